"""Plain data -> frozen dataclasses, strictly: a typo in a file must not switch anything off.

TOML and JSON go through `build`: unknown and missing keys are named with the nearest known one, types are checked, nested
tables become their classes, and what a class refuses (`check` in its __post_init__) comes out with the file's name.
"""

import difflib
from dataclasses import MISSING, fields, is_dataclass
from typing import Dict, Tuple

from tinkit.errors import TinkitError

PLAIN = {  # annotation -> (what TOML or JSON may give for it, in words)
    str: (str, "text"),
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
}
LISTS = {  # annotation -> (what each of the list must be, in words)
    Tuple[int, ...]: (int, "a list of whole numbers"),
    Tuple[str, ...]: (str, "a list of texts"),
}
TABLES = {  # annotation -> the annotation of every value; a table of dataclasses needs no entry
    Dict[str, str]: str,
    Dict[str, Tuple[str, ...]]: Tuple[str, ...],
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
    """The value in the type that the field wants: tables become dataclasses, lists become tuples."""
    if is_dataclass(field.type):
        return _table(field.type, value, where)
    if getattr(field.type, "__origin__", None) is dict:
        if not isinstance(value, dict):
            raise _wrong_type(field.name, value, where, "a table")
        inner = TABLES.get(field.type)
        if inner is None:
            return {key: _table(field.type.__args__[1], one, where) for key, one in value.items()}
        return {key: _plain("{}.{}".format(field.name, key), inner, one, where) for key, one in value.items()}
    return _plain(field.name, field.type, value, where)


def _plain(name, kind, value, where):
    """A value that is no table, checked; `kind` is its annotation. bool is no number here, though Python has it so."""
    if kind in LISTS:
        one_kind, words = LISTS[kind]
        if not isinstance(value, (list, tuple)) or not all(type(one) is one_kind for one in value):
            raise _wrong_type(name, value, where, words)
        return tuple(value)
    kinds, words = PLAIN.get(kind, (object, ""))
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind in (int, float)):
        raise _wrong_type(name, value, where, words)
    return value


def _wrong_type(name, value, where, words):
    return TinkitError(
        "A value of the recipe has the wrong type.",
        where=where,
        seen="{} = {!r}".format(name, value),
        next_step="it must be " + words,
    )


def _table(cls, value, where):
    if isinstance(value, cls):
        return value
    if not isinstance(value, dict):
        raise TinkitError("The recipe wants a table here.", where=where, seen="{} = {!r}".format(cls.__name__, value))
    return build(cls, dict(value), where)
