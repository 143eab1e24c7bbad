"""Targets and devices as data: one TOML file each, found by name, read strictly.

A target says what is exported and the gates it must pass; a device profile says how a machine is timed and what it is;
the one for a board is found by what the board says about itself, and where the two disagree is told. A name is looked
up in `export/` and `profiles/` of the working directory first (a product's own), then in the recipes that tinkit brings.
A value with a slash or `.toml` is a path. Unknown keys are errors: a typo must not switch a gate off.
"""

import os
import platform

from tinkit.device_profile import DeviceProfile
from tinkit.errors import CannotJudge, TinkitError
from tinkit.strict import build, nearest, read_toml
from tinkit.target import Target

TARGET_SCHEMA = "tinkit-target-1"
DEVICE_SCHEMA = "tinkit-device-1"
PACKAGE = os.path.dirname(os.path.abspath(__file__))


GENERIC = {  # processor -> runtime -> the profile of a machine that no other profile is for
    "x86_64": {"onnxruntime": "x86-cpu", "openvino": "x86-openvino", "tensorrt": "x86-tensorrt"},
    "aarch64": {"onnxruntime": "arm64-cpu", "tensorrt": "arm64-tensorrt"},
}
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}  # other names of these
LEAST_MEMORY, MOST_MEMORY = 0.75, 1.1  # of what the data sheet says: the system keeps some for itself
CLOCK_APART = 0.05

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


def match_device(facts, runtime, arch=""):
    """The name of the device profile for a board: by its module's part number, by its model and memory, else generic.

    facts: `tinkit.device.jetson.board_facts`, believed only as far as it is text and numbers. runtime: what it is to run;
    a profile without it is passed over, except one that is unsupported. arch: of the board; a Jetson's is known and ""
    otherwise means this machine. Raises CannotJudge where there is no profile for the processor.
    """
    profiles = [load_device(path) for path in known("device").values()]
    able = [profile for profile in profiles if profile.has(runtime) or profile.unsupported]
    module, model = _text(facts, "module"), _text(facts, "model").lower()
    for profile in able:
        if module and module in profile.boards:
            return profile.name
    if not module:
        alike = [profile for profile in able if any(word.lower() in model for word in profile.models)]
        fitting = [profile for profile in alike if _memory_fits(profile, memory_gb(facts))]
        if len(fitting) == 1:
            return fitting[0].name
    jetson = _text(facts, "soc") or module
    seen = "aarch64" if jetson else (arch or platform.machine()).lower()
    generic = GENERIC.get(ARCHITECTURES.get(seen, seen))
    if generic is None:
        raise CannotJudge(
            "There is no device profile for this processor.",
            seen=seen[:40] or "an unknown architecture",
            next_step="write one (profiles/*.toml) and name it with --device",
        )
    return generic.get(runtime, generic["onnxruntime"])


def disagreements(profile, facts, machine=None):
    """[(what, what the profile says, what the board says)], in words; what either of them does not know is no disagreement.

    facts: `tinkit.device.jetson.board_facts`; machine: `tinkit.device.board.machine`. Both may come from a board, so
    values of a wrong type count as not known and long or unprintable text is cut.
    """
    machine = machine or {}
    module, sm, jetpack, mode = (_text(facts, key) for key in ("module", "sm", "jetpack", "power_mode"))
    arch = ARCHITECTURES.get(_text(machine, "arch").lower(), _text(machine, "arch"))
    gpus = [name for name in _list(machine, "cuda_gpus") if isinstance(name, str)]
    found = []
    if arch and arch != ARCHITECTURES.get(profile.arch, profile.arch):
        found.append(("processor", profile.arch, arch))
    if module and profile.boards and module not in profile.boards:
        found.append(("module", " or ".join(profile.boards), module))
    if sm and profile.gpu.sm and sm != profile.gpu.sm:
        found.append(("SM", profile.gpu.sm, sm))
    if gpus and profile.gpu.name and profile.gpu.name not in gpus:
        found.append(("GPU", profile.gpu.name, ", ".join(gpus)))
    seen_gb = memory_gb(facts) or memory_gb(machine)
    if not _memory_fits(profile, seen_gb):
        found.append(("memory", "{:g} GB".format(profile.memory_gb), "{:.1f} GB".format(seen_gb)))
    if not jetpack and _text(facts, "l4t"):
        jetpack = "one that is not known, L4T " + _text(facts, "l4t")
    if jetpack and profile.jetpack and jetpack not in profile.jetpack:
        found.append(("JetPack", ", ".join(profile.jetpack), jetpack))
    return [(what, says, told(board)) for what, says, board in found + _mode_disagreements(profile, facts, mode)]


def _mode_disagreements(profile, facts, mode):
    """Power modes that the profile does not have, and a highest GPU clock that is not the present mode's."""
    there = facts.get("power_modes")
    offered = list(there) if isinstance(there, dict) else []
    strange = [name for name in offered if isinstance(name, str) and name != mode and not profile.mode(name)]
    found = []
    if mode and profile.modes and not profile.mode(mode):
        found.append(("power mode", ", ".join(profile.modes), mode))
    if strange and profile.modes:
        found.append(("power modes on offer", ", ".join(profile.modes), ", ".join(strange)))
    clocks = facts.get("gpu_mhz")
    highest = _number(clocks, "max") if isinstance(clocks, dict) else 0.0
    known_mhz = (profile.mode(mode).gpu_mhz if profile.mode(mode) else profile.gpu.mhz) if highest else 0.0
    if known_mhz and abs(highest / known_mhz - 1) > CLOCK_APART:
        what = "highest GPU clock" + (" in " + mode if mode else "")
        found.append((what, "{:g} MHz".format(known_mhz), "{:g} MHz".format(highest)))
    return found


def _memory_fits(profile, seen_gb):
    if not seen_gb or not profile.memory_gb:
        return True
    return LEAST_MEMORY <= seen_gb / profile.memory_gb <= MOST_MEMORY


def memory_gb(facts):
    """Of a board's facts (memory_mb) or a machine's (memory_gb); 0.0 where it is not told."""
    return _number(facts, "memory_mb") / 1000 or _number(facts, "memory_gb")


def _text(facts, key):
    value = facts.get(key)
    return value if isinstance(value, str) else ""


def _list(facts, key):
    value = facts.get(key)
    return value if isinstance(value, (list, tuple)) else []


def _number(facts, key):
    """A number that can be one: positive and below a million million; else 0.0. bool is no number here."""
    value = facts.get(key)
    return float(value) if type(value) in (int, float) and 0 < value < 1e12 else 0.0


def told(text):
    """Text of a board as it may be printed: no control characters, and not without end."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]


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
    if kind == "device" and "runtime" in value:
        raise TinkitError(
            "The key `runtime` of a device is now `runtimes`, a list.",
            where=path,
            seen="runtime = {!r}".format(value["runtime"]),
            next_step='write runtimes = ["{}"]'.format(value["runtime"]),
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
