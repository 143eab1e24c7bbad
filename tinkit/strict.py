"""Plain data -> frozen dataclasses, strictly: a typo in a file must not switch anything off.

TOML and JSON go through `build`: unknown and missing keys are named with the nearest known one, types are checked, nested
tables become their classes, and what a class refuses (`check` in its __post_init__) comes out with the file's name.
"""

import difflib
from dataclasses import MISSING, fields, is_dataclass
from typing import Tuple

from tinkit.errors import TinkitError

PLAIN = {  # annotation -> (what TOML or JSON may give for it, in words)
    str: (str, "text"),
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    Tuple[int, ...]: (tuple, "a list of whole numbers"),
}
FROM_THE_FILE = ("name", "path")  # never offered to a user as a key


class Wrong(Exception):
    """A value outside its range: (key, value seen, what is wanted). `build` turns it into a TinkitError."""


def check(ok, key, seen, wanted):
    """Raise `Wrong` when not `ok`."""
    if not ok:
        raise Wrong(key, seen, wanted)


def nearest(name, names):
    """A sentence that offers what the user may have meant."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    if close:
        return "did you mean {}?".format(" or ".join(close))
    names = sorted(names)
    return (
        "known: {}".format(", ".join(names))
        if len(names) <= 20
        else "none of {} known names is near".format(len(names))
    )


def read_toml(path):
    """A TOML file as a dict. Lives on the host only: a board gets JSON."""
    try:
        import tomllib as toml
    except ImportError:  # Python 3.10
        import tomli as toml
    try:
        with open(path, "rb") as handle:
            return toml.load(handle)
    except (OSError, toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TinkitError("The TOML file cannot be read.", where=path, seen=str(error)) from None


def build(cls, value, where):
    """`cls` (a frozen dataclass) from a dict of plain data. Raises TinkitError that names `where` and the key."""
    names = {field.name: field for field in fields(cls)}
    _check_keys(names, value, where)
    ready = {name: _converted(names[name], value[name], where) for name in value}
    try:
        return cls(**ready)
    except Wrong as wrong:
        key, seen, wanted = wrong.args
        raise TinkitError(
            "A value of the recipe is out of range.", where=where, seen="{} = {!r}".format(key, seen), next_step=wanted
        ) from None
    except TypeError as error:
        raise TinkitError("A value of the recipe has the wrong type.", where=where, seen=str(error)) from None


def _check_keys(names, value, where):
    for key in value:
        if key not in names:
            raise TinkitError(
                "The recipe has a key that tinkit does not know.",
                where=where,
                seen=key,
                next_step=nearest(key, [name for name in names if name not in FROM_THE_FILE]),
            )
    missing = [
        name
        for name, field in names.items()
        if name not in value and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise TinkitError("The recipe lacks a key.", where=where, seen="no " + ", no ".join(missing))


def _converted(field, value, where):
    """The value in the type that the field wants: tables become dataclasses, lists of numbers become tuples."""
    if is_dataclass(field.type):
        return _table(field.type, value, where)
    if getattr(field.type, "__origin__", None) is dict:
        inner = field.type.__args__[1]
        if not isinstance(value, dict):
            raise _wrong_type(field, value, where, "a table")
        return {key: _table(inner, one, where) for key, one in value.items()}
    if field.type == Tuple[int, ...]:
        if isinstance(value, list):
            value = tuple(value)
        if isinstance(value, tuple) and not all(type(one) is int for one in value):
            raise _wrong_type(field, value, where, "a list of whole numbers")
    kinds, words = PLAIN.get(field.type, (object, ""))
    if not isinstance(value, kinds) or (isinstance(value, bool) and field.type in (int, float)):
        raise _wrong_type(field, value, where, words)
    return value


def _wrong_type(field, value, where, words):
    return TinkitError(
        "A value of the recipe has the wrong type.",
        where=where,
        seen="{} = {!r}".format(field.name, value),
        next_step="it must be " + words,
    )


def _table(cls, value, where):
    if isinstance(value, cls):
        return value
    if not isinstance(value, dict):
        raise TinkitError("The recipe wants a table here.", where=where, seen="{} = {!r}".format(cls.__name__, value))
    return build(cls, dict(value), where)
