"""`tinkit.toml` in the working directory: settings for the commands, one table each.

Read strictly: an unknown section or key is named with the nearest known one, and types are checked, so that a typo does
not leave a gate off. Flags win over the file; what comes from neither is the function's default.
"""

import os

from tinkit.errors import TinkitError
from tinkit.strict import nearest, read_toml

SETTINGS_FILE = "tinkit.toml"
SECTIONS = ("distill", "export", "profile", "evaluate", "select", "head")
EXPORT = {
    "target": str,
    "out": str,
    "exam": str,
    "deploy_only": bool,
    "heal": bool,
    "calibration": str,
    "check_build": bool,
    "head": str,
}
EVALUATE = {
    "data": str,
    "labels": str,
    "ood": tuple,
    "domains": tuple,
    "masks": str,
    "corruptions": bool,
    "corruption_pictures": int,
    "dense": bool,
    "limit": int,
    "budget": str,
    "out": str,
    "require_target_runtime": bool,
    "workers": int,
    "seed": int,
}
SELECT = {
    "images": str,
    "budget": int,
    "teacher": str,
    "teacher_weights": str,
    "teacher_size": int,
    "run": str,
    "method": str,
    "space": str,
    "metric": str,
    "perplexity": (int, float),
    "labels": str,
    "seed": int,
    "store": str,
    "workers": int,
    "strict": bool,
    "out": str,
}
HEAD = {
    "data": str,
    "labels": str,
    "name": str,
    "prompts": str,
    "from": str,
    "min_agreement": (int, float),
    "limit": int,
    "out": str,
    "workers": int,
    "seed": int,
}
BOARD = {"host": str, "python": str, "ssh_config": str, "board_root": str}  # how a board is reached
PROFILE = {  # not here: allow_state_change, which must be said every time
    **BOARD,
    "device": str,
    "out": str,
    "require_target_runtime": bool,
    "budget": dict,
    "scenarios": tuple,
    "layers": bool,
    "backend": str,
    "keep": bool,
    "fetch_engine": str,
    "mode": str,
    "pin_clocks": bool,
    "wait_s": (int, float),
}
WORDS = {
    str: "text in quotes",
    bool: "true or false",
    dict: "a table",
    tuple: "a list",
    int: "a whole number",
    (int, float): "a number",
}


def read_section(section, kinds):
    """{key: value} of [section], {} without the file or the section. Dashes become underscores, lists tuples.

    kinds: key -> type that a value must have, `object` for any. Raises TinkitError for what is not known or not of its
    type.
    """
    if not os.path.isfile(SETTINGS_FILE):
        return {}
    values = read_toml(SETTINGS_FILE)
    for name in values:
        if name not in SECTIONS:
            raise TinkitError(
                "The settings file has a section that tinkit does not know.",
                where=SETTINGS_FILE,
                seen=name,
                next_step=nearest(name, SECTIONS),
            )
    values = values.get(section, {})
    if not isinstance(values, dict):
        raise TinkitError(
            "A section of the settings file must be a table.", where=SETTINGS_FILE, next_step="[{}]".format(section)
        )
    values = {name.replace("-", "_"): tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    for name, value in values.items():
        _check(section, name, value, kinds)
    return values


def _check(section, name, value, kinds):
    if name == "allow_state_change":
        raise TinkitError(
            "Permission to change a board is not for a file.",
            where=SETTINGS_FILE,
            seen=name,
            next_step="say --allow-state-change on the command line, every time",
        )
    if name not in kinds:
        raise TinkitError(
            "The settings file has a key that `tinkit {}` does not know.".format(section),
            where=SETTINGS_FILE,
            seen=name,
            next_step=nearest(name, kinds),
        )
    if not isinstance(value, kinds[name]) or (isinstance(value, bool) and kinds[name] not in (bool, object)):
        raise TinkitError(
            "A value of the settings file has the wrong type.",
            where=SETTINGS_FILE,
            seen="{} = {!r}".format(name, value),
            next_step="it must be " + WORDS[kinds[name]],
        )
