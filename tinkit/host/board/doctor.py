"""What a board can do, what is missing there, and where it is not what its device profile says: `tinkit doctor --host`.

Inspection only, and all of it from the one message that the agent says first. That message comes from elsewhere, so a value
of a wrong type counts as not told, and text is cut and cleaned before it is shown. Findings are those of tinkit.host.doctor.
"""

import re

from tinkit import recipes
from tinkit.errors import CannotJudge
from tinkit.host.doctor import MISSING, OK, TROUBLE, Finding

LEAST_PYTHON, LEAST_NUMPY = (3, 8), (1, 17)
LITTLE_DISK_GB = 2  # bundle, engine, and what TensorRT writes while it builds one
LITTLE_MEMORY_GB = 4.5  # CPU and GPU share it: boards below it have run out while building an engine
SEES_TENSORRT = "sudo apt-get install python3-libnvinfer, and a virtual environment made with --system-site-packages"
NAMED = {"module": "module", "L4T": "l4t", "JetPack": "jetpack", "SM": "sm", "CUDA": "cuda"}
PINNING = "make jetson-clocks HOST=... , or tinkit clocks --host ... --allow-state-change"


def examine_board(hello):
    """Findings about a board, in the order of the work. hello: what the agent tells first (tinkit.device.wire), as a dict.

    A Jetson that tinkit does not support gets its finding and no further advice: nothing of it would help.
    """
    facts, machine, runtimes = (_part(hello, key) for key in ("board", "machine", "runtimes"))
    jetson = bool(_text(facts, "soc").startswith("tegra") or _text(facts, "module"))
    profile = _profile(facts, machine, runtimes, jetson)
    first = [_board(facts, machine), _matched(profile, machine)]
    if profile is not None and profile.unsupported:
        return first
    findings = [
        *first,
        *_disagreements(profile, facts, machine),
        _version("python", _text(hello, "python"), LEAST_PYTHON, "the agent", "name another with --python"),
        _version("numpy", _text(hello, "numpy"), LEAST_NUMPY, "the agent", "python3 -m pip install numpy"),
        _onnxruntime(runtimes, facts, jetson),
        _disk(hello),
        _memory(facts, machine),
    ]
    if jetson or "tensorrt" in runtimes:
        findings.insert(-2, _tensorrt(runtimes, facts))
    if jetson:
        findings += [_power_mode(facts), _clocks(facts), _targets(profile, facts)]
    return findings


def _profile(facts, machine, runtimes, jetson):
    """The device profile that a run of the board's best runtime would take; None for an unknown processor."""
    best = "tensorrt" if jetson or "tensorrt" in runtimes else "onnxruntime"
    try:
        return recipes.load_device(recipes.match_device(facts, best, _text(machine, "arch")))
    except CannotJudge:
        return None


def _board(facts, machine):
    about = [_text(facts, "model") or _text(machine, "cpu") or "an unknown machine"]
    about += [f"{word} {_text(facts, key)}" for word, key in NAMED.items() if _text(facts, key)]
    if _text(facts, "played_back"):
        about.append("played back from " + _text(facts, "played_back"))
    return Finding("board", OK, ", ".join(about))


def _matched(profile, machine):
    if profile is None:
        detail = f"none for the processor {_text(machine, 'arch') or 'that is not told'}"
        return Finding("profile", MISSING, detail, "write one (profiles/*.toml) and name it with --device")
    if profile.unsupported:
        return Finding("profile", TROUBLE, f"{profile.name} is not supported: {profile.unsupported}")
    memory = f"; {len(profile.unverified)} of its facts are unverified" if profile.unverified else ""
    return Finding("profile", OK, f"{profile.name}: {profile.description}{memory}")


def _disagreements(profile, facts, machine):
    told = recipes.disagreements(profile, facts, machine) if profile is not None else []
    return [
        Finding("profile", TROUBLE, f"{what}: {profile.name} says {says}, the board says {board}")
        for what, says, board in told
    ]


def _version(what, seen, least, whose, command):
    wanted = ".".join(map(str, least))
    if not seen:
        return Finding(what, MISSING, f"{whose} needs {wanted}", command)
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", seen)
    if found is None or tuple(map(int, found.groups())) < least:
        return Finding(what, TROUBLE, f"{seen}: {whose} needs {wanted}", command)
    return Finding(what, OK, seen)


def _tensorrt(runtimes, facts):
    seen, installed = _text(runtimes, "tensorrt"), _text(facts, "tensorrt")
    if seen and installed and not (installed + ".").startswith(seen + "."):
        return Finding("tensorrt", TROUBLE, f"Python has {seen}, the system {installed}", SEES_TENSORRT)
    if "tensorrt" in runtimes:
        return Finding("tensorrt", OK, seen or "installed")
    if installed:
        return Finding("tensorrt", TROUBLE, f"{installed} is installed, but this Python does not see it", SEES_TENSORRT)
    return Finding("tensorrt", MISSING, "trt-* engines; it comes with JetPack", "sudo apt-get install nvidia-jetpack")


def _onnxruntime(runtimes, facts, jetson):
    gpu = _text(runtimes, "onnxruntime-gpu")
    if jetson and gpu:
        detail = f"onnxruntime-gpu {gpu}: the wheel of PyPI has no code for this GPU"
        detail += f" (sm_{_text(facts, 'sm').replace('.', '')})" if _text(facts, "sm") else ""
        command = "python3 -m pip uninstall onnxruntime-gpu && python3 -m pip install onnxruntime, unless it is NVIDIA's build"
        return Finding("onnxruntime", TROUBLE, detail, command)
    if "onnxruntime" not in runtimes and not gpu:
        return Finding("onnxruntime", MISSING, "onnx-* targets, on the CPU", "python3 -m pip install onnxruntime")
    return Finding("onnxruntime", OK, _text(runtimes, "onnxruntime") or gpu or "installed")


def _disk(hello):
    free = hello.get("free_bytes")
    if type(free) is not int or free < 0:
        return Finding("disk", TROUBLE, "the board does not tell how much is free")
    where = f"{free / 1e9:.1f} GB free for {_text(hello, 'cache') or 'the cache'}"
    return Finding("disk", OK, where) if free >= LITTLE_DISK_GB * 1e9 else Finding("disk", TROUBLE, f"only {where}")


def _memory(facts, machine):
    seen = recipes.memory_gb(facts) or recipes.memory_gb(machine)
    if not seen:
        return Finding("memory", TROUBLE, "the board does not tell how much it has")
    if seen < LITTLE_MEMORY_GB:
        detail = f"{seen:.1f} GB: building an engine may run out; close the desktop, add swap"
        return Finding("memory", TROUBLE, detail)
    return Finding("memory", OK, f"{seen:.1f} GB")


def _power_mode(facts):
    name = _text(facts, "power_mode")
    modes = [mode for mode in _part(facts, "power_modes") if isinstance(mode, str)]
    others = f"; it offers {recipes.told(', '.join(modes))}" if modes else ""
    if not name:
        return Finding("power mode", TROUBLE, f"not known{others}", "sudo nvpmodel -q, on the board")
    return Finding("power mode", OK, name + others)


def _clocks(facts):
    pinned = facts.get("clocks_pinned")
    if pinned is True:
        return Finding("clocks", OK, "pinned (jetson_clocks)")
    if pinned is False:
        return Finding("clocks", TROUBLE, "not pinned: latencies will wander with the load", PINNING)
    return Finding("clocks", OK, "the board does not tell whether they are pinned")


def _targets(profile, facts):
    """Which export targets fit, by the board's JetPack where it is known."""
    if profile is None or not profile.targets:
        return Finding("targets", OK, "the profile names none: see tinkit list targets")
    jetpack = _text(facts, "jetpack")
    which = f"with JetPack {jetpack}" if jetpack else "by JetPack, which is not known"
    return Finding("targets", OK, f"{', '.join(profile.fitting_targets(jetpack))} ({which})")


def _part(hello, key):
    value = hello.get(key)
    return value if isinstance(value, dict) else {}


def _text(facts, key):
    """Text as it may be printed; "" for anything else."""
    value = facts.get(key)
    return recipes.told(value) if isinstance(value, str) else ""
