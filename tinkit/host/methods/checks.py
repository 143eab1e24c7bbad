"""What methods ask of their options. Not a method.

Each check takes options by name, `above(0, tau=tau)`, and raises a ValueError that names the first wrong one, what is
allowed and what came. NaN passes none.
"""


def above(limit, **options) -> None:
    _check(options, lambda value: value > limit, f"above {limit}")


def below(limit, **options) -> None:
    _check(options, lambda value: value < limit, f"below {limit}")


def at_least(limit, **options) -> None:
    _check(options, lambda value: value >= limit, f"at least {limit}")


def within(least, most, **options) -> None:
    _check(options, lambda value: least <= value <= most, f"from {least} to {most}")


def one_of(allowed, **options) -> None:
    _check(options, lambda value: value in allowed, "one of " + ", ".join(allowed))


def _check(options, holds, rule):
    for name, value in options.items():
        if not holds(value):
            raise ValueError(f"{name} must be {rule}, not {value}")
