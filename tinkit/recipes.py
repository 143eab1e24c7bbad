"""Targets and devices as data: one TOML file each, found by name, read strictly.

A target says what is exported and the gates it must pass; a device profile says how a machine is timed. A name is looked
up in `export/` and `profiles/` of the working directory first (a product's own), then in the recipes that tinkit brings.
A value with a slash or `.toml` is a path. Unknown keys are errors: a typo must not switch a gate off.
"""

import difflib
import os
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Dict, Tuple

from tinkit.errors import TinkitError

TARGET_SCHEMA = "tinkit-target-1"
DEVICE_SCHEMA = "tinkit-device-1"
PACKAGE = os.path.dirname(os.path.abspath(__file__))


class _Wrong(Exception):
    """A value outside its range; `_build` turns it into a TinkitError that names the file."""


def _check(ok, key, seen, wanted):
    if not ok:
        raise _Wrong(key, seen, wanted)


@dataclass(frozen=True)
class Gate:
    """Limits for one output, both on the worst picture of the exam.

    min_cosine: of an answer with the PyTorch student's; max_error_share: the largest |difference| anywhere in the output,
    as a share of the largest |answer|.
    """

    min_cosine: float
    max_error_share: float

    def __post_init__(self):
        _check(-1 <= self.min_cosine <= 1, "min_cosine", self.min_cosine, "-1 to 1")
        _check(self.max_error_share > 0, "max_error_share", self.max_error_share, "more than 0")


@dataclass(frozen=True)
class Batch:
    """The batch sizes an engine is built for: smallest, the one it is tuned for, largest."""

    min: int = 1
    opt: int = 1
    max: int = 8

    def __post_init__(self):
        _check(1 <= self.min <= self.opt <= self.max, "batch", (self.min, self.opt, self.max), "1 <= min <= opt <= max")


@dataclass(frozen=True)
class Target:
    """What to export. `io` is the dtype of inputs and outputs; `pixel_gate` is in grey levels (0..255)."""

    description: str
    runtime: str
    precision: str
    gate: Dict[str, Gate]
    name: str = ""
    path: str = field(default="", compare=False)
    opset: int = 20
    io: str = "float32"
    batch: Batch = Batch()
    local: bool = False
    head: bool = False  # set by export, for a student that kept its classifier
    pixel_gate: float = 2.0

    def __post_init__(self):
        _check(self.runtime in ("onnxruntime", "tensorrt"), "runtime", self.runtime, "onnxruntime or tensorrt")
        _check(self.precision in ("fp32", "fp16"), "precision", self.precision, "fp32 or fp16")
        _check(self.io in ("float32", "float16"), "io", self.io, "float32 or float16")
        _check(not (self.precision == "fp32" and self.io == "float16"), "io", self.io, "float32 for an fp32 target")
        _check(18 <= self.opset <= 22, "opset", self.opset, "18 to 22 (23 brings Attention, which TensorRT lacks)")
        _check("embedding" in self.gate, "gate", sorted(self.gate), "a gate for `embedding`")
        _check(not self.local or "local" in self.gate, "gate", sorted(self.gate), "a gate for `local` (local = true)")

    @property
    def outputs(self):
        return ("embedding",) + ("logits",) * self.head + ("local",) * self.local

    def gate_of(self, output):
        """The gate of an output; logits without one of their own are held to the embedding's."""
        return self.gate["embedding"] if output == "logits" and output not in self.gate else self.gate[output]

    def to_json(self):
        """Plain data that travels; the path of the file stays here."""
        return {name: value for name, value in asdict(self).items() if name != "path"}

    @classmethod
    def from_json(cls, value):
        return _build(cls, dict(value), value.get("path", "manifest"))


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
        _check(self.runtime in ("onnxruntime", "tensorrt"), "runtime", self.runtime, "onnxruntime or tensorrt")
        _check(self.threads >= 1, "threads", self.threads, "1 or more")
        whole = all(type(batch) is int and batch >= 1 for batch in self.batches)
        _check(bool(self.batches) and whole, "batches", self.batches, "batch sizes of 1 or more")
        _check(self.warmup_s >= 0, "warmup_s", self.warmup_s, "0 or more")
        _check(self.min_seconds >= 0, "min_seconds", self.min_seconds, "0 or more")
        _check(self.min_samples >= 200, "min_samples", self.min_samples, "200 or more, or percentiles mean little")

    def to_json(self):
        """Plain data that travels; the path of the file stays here."""
        return {name: value for name, value in asdict(self).items() if name != "path"}

    @classmethod
    def from_json(cls, value):
        return _build(cls, dict(value, batches=tuple(value["batches"])), value.get("path", "job"))


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
    if isinstance(value.get("batches"), list):
        value["batches"] = tuple(value["batches"])
    return _build(cls, dict(value, name=os.path.basename(path)[: -len(".toml")], path=path), path)


def _schema(path):
    try:
        return read_toml(path).get("schema")
    except TinkitError:
        return None


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


def _build(cls, value, where):
    """A frozen recipe from plain data: unknown and missing keys are named, nested tables become their classes."""
    names = {field.name: field for field in fields(cls)}
    for key in value:
        if key not in names:
            raise TinkitError(
                "The recipe has a key that tinkit does not know.",
                where=where,
                seen=key,
                next_step=nearest(key, [name for name in names if name not in ("name", "path")]),
            )
    missing = [
        name
        for name, field in names.items()
        if name not in value and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise TinkitError("The recipe lacks a key.", where=where, seen="no " + ", no ".join(missing))
    for name in value:
        _check_type(names[name], value[name], where)
    if "gate" in value:
        value["gate"] = {output: _table(Gate, gate, where) for output, gate in dict(value["gate"]).items()}
    if "batch" in value:
        value["batch"] = _table(Batch, value["batch"], where)
    try:
        return cls(**value)
    except _Wrong as wrong:
        key, seen, wanted = wrong.args
        raise TinkitError(
            "A value of the recipe is out of range.", where=where, seen="{} = {!r}".format(key, seen), next_step=wanted
        ) from None
    except TypeError as error:
        raise TinkitError("A value of the recipe has the wrong type.", where=where, seen=str(error)) from None


PLAIN = {  # annotation -> (what TOML or JSON may give for it, in words)
    str: (str, "text"),
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    Dict[str, Gate]: (dict, "a table"),
    Tuple[int, ...]: (tuple, "a list of whole numbers"),
}


def _check_type(field, value, where):
    kinds, words = PLAIN.get(field.type, (object, ""))
    if not isinstance(value, kinds) or (isinstance(value, bool) and field.type in (int, float)):
        raise TinkitError(
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
    return _build(cls, dict(value), where)


def parse_budget(text, where="--budget"):
    """`p95_ms<5` or `p95_ms=5,peak_mb=300` -> {"p95_ms": 5.0, ...}: upper limits in the unit that the name ends with."""
    limits = {}  # type: Dict[str, float]
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        for sign in ("<=", "<", "="):
            if sign in part:
                key, number = part.split(sign, 1)
                break
        else:
            raise TinkitError("A budget is NAME<LIMIT.", where=where, seen=part, next_step="for example p95_ms<5")
        limits[key.strip()] = _budget_number(number, part, where)
    check_budget(limits, where)
    return limits


BUDGETS = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "min_ms", "load_ms", "peak_mb", "file_mb")


def check_budget(limits, where):
    for key, limit in limits.items():
        if key not in BUDGETS:
            raise TinkitError("There is no such budget.", where=where, seen=key, next_step=nearest(key, BUDGETS))
        _budget_number(limit, "{} = {}".format(key, limit), where)


def _budget_number(value, seen, where):
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not number > 0 or number == float("inf"):
        raise TinkitError("A budget wants a number above 0.", where=where, seen=seen)
    return number
