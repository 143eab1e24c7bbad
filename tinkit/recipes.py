"""Targets and devices as data: one TOML file each, found by name, read strictly.

A target says what is exported and the gates it must pass; a device profile says how a machine is timed. A name is looked
up in `export/` and `profiles/` of the working directory first (a product's own), then in the recipes that tinkit brings.
A value with a slash or `.toml` is a path. Unknown keys are errors: a typo must not switch a gate off.
"""

import os
from dataclasses import asdict, dataclass, field
from typing import Tuple

from tinkit.errors import TinkitError
from tinkit.strict import build, check, nearest, read_toml
from tinkit.target import RUNTIMES, Target

TARGET_SCHEMA = "tinkit-target-1"
DEVICE_SCHEMA = "tinkit-device-1"
PACKAGE = os.path.dirname(os.path.abspath(__file__))


@dataclass(frozen=True)
class DeviceProfile:
    """How a machine is timed. Times in seconds; `batches` are timed one after the other."""

    description: str
    runtime: str
    arch: str
    name: str = ""
    path: str = field(default="", compare=False)
    threads: int = 1
    batches: Tuple[int, ...] = (1,)
    warmup_s: float = 5.0  # at most: warm-up ends as soon as the latency is stable
    min_samples: int = 200
    min_seconds: float = 3.0

    def __post_init__(self):
        check(self.runtime in RUNTIMES, "runtime", self.runtime, "one of " + ", ".join(RUNTIMES))
        check(self.threads >= 1, "threads", self.threads, "1 or more")
        whole = all(type(batch) is int and batch >= 1 for batch in self.batches)
        check(bool(self.batches) and whole, "batches", self.batches, "batch sizes of 1 or more")
        check(self.warmup_s >= 0, "warmup_s", self.warmup_s, "0 or more")
        check(self.min_seconds >= 0, "min_seconds", self.min_seconds, "0 or more")
        check(self.min_samples >= 200, "min_samples", self.min_samples, "200 or more, or percentiles mean little")

    def to_json(self):
        """Plain data that travels; the path of the file stays here."""
        return {name: value for name, value in asdict(self).items() if name != "path"}

    @classmethod
    def from_json(cls, value):
        return build(cls, dict(value), value.get("path", "job"))


KINDS = {  # kind -> (folder, schema, class)
    "target": ("export", TARGET_SCHEMA, Target),
    "device": ("profiles", DEVICE_SCHEMA, DeviceProfile),
}


def load_target(name_or_path):
    return _load("target", name_or_path)


def load_device(name_or_path):
    return _load("device", name_or_path)


def known(kind):
    """name -> path of every recipe of a kind; a product's own in the working directory win."""
    folder, schema, _ = KINDS[kind]
    found = {}  # type: Dict[str, str]
    for place in _places(folder):
        for entry in sorted(os.listdir(place)) if os.path.isdir(place) else []:
            path = os.path.join(place, entry)
            if entry.endswith(".toml") and _schema(path) == schema:
                found.setdefault(entry[: -len(".toml")], path)
    return found


def ignored(kind):
    """TOML files in the working directory's recipe folder that do not carry tinkit's schema key."""
    folder, schema, _ = KINDS[kind]
    if not os.path.isdir(folder):
        return []
    paths = [os.path.join(folder, entry) for entry in sorted(os.listdir(folder)) if entry.endswith(".toml")]
    return [path for path in paths if _schema(path) != schema]


def _places(folder):
    return (folder, os.path.join(PACKAGE, "_recipes", folder), os.path.join(os.path.dirname(PACKAGE), folder))


def _load(kind, name_or_path):
    _, schema, cls = KINDS[kind]
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        path = name_or_path
        if not os.path.isfile(path):
            raise TinkitError("There is no {} file here.".format(kind), where=path)
    else:
        paths = known(kind)
        if name_or_path not in paths:
            raise TinkitError(
                "There is no {} of this name.".format(kind), seen=name_or_path, next_step=nearest(name_or_path, paths)
            )
        path = paths[name_or_path]
    value = read_toml(path)
    seen = value.pop("schema", None)
    if seen != schema:
        raise TinkitError(
            "The {} file has no tinkit schema.".format(kind),
            where=path,
            seen="schema = {!r}".format(seen),
            next_step='write schema = "{}" on top of it'.format(schema),
        )
    for key in ("name", "path"):
        if key in value:
            raise TinkitError("The key `{}` comes from the file's name.".format(key), where=path, next_step="remove it")
    return build(cls, dict(value, name=os.path.basename(path)[: -len(".toml")], path=path), path)


def _schema(path):
    try:
        return read_toml(path).get("schema")
    except TinkitError:
        return None
