"""What a Jetson says of itself, by reading files only: module, release, power mode by name, clocks, fan, temperatures.

Everything under `root` is foreign text: unknown stays unknown ("" or {} or None), numbers are finite and within what a
board can have. On another Linux most keys are empty. Power modes are names: their numbers differ from board to board and
from one flashing to the next. Sources: NVIDIA's Jetson Linux developer guide (nv_tegra_release, nvpmodel, jetson_clocks),
kernel device trees, and the recorded boards in tests/data/boards/SOURCES.md.
"""

import os
import re

from tinkit.device import installed
from tinkit.device.board_files import names, number, strings, text

# L4T -> JetPack. 32.x to 36.4.x and 38.2 as several public tables agree; 36.5, 38.4 and 39.2 are seen in one or two places
# only. A release that is not listed stays unknown: NVIDIA numbers the two without a rule.
JETPACKS = {
    "32.6.1": "4.6",
    "32.7.1": "4.6.1",
    "32.7.2": "4.6.2",
    "32.7.3": "4.6.3",
    "32.7.4": "4.6.4",
    "32.7.5": "4.6.5",
    "32.7.6": "4.6.6",
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.1": "5.1.5",
    "35.6.2": "5.1.5",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "36.5.2": "6.2.3",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.2.2": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
    "39.2.2": "7.2.2",
}
SM = {"tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}

GPU_WORDS = ("gpc", "gpu", "ga10b", "gv11b", "gp10b", "gm20b")  # as the GPU's clock is called, the surest first
EMC = ("sys/kernel/debug/bpmp/debug/clk/emc", ("rate", "min_rate", "max_rate"))  # readable for root only
MAX_MHZ, MAX_C, MIN_C = 20000, 200, -60  # a zone that is off says -256


def board_facts(root="/", commands=None):
    """Facts about the board as plain data; every key is always there. Changes nothing.

    With `commands` nvpmodel is asked (as the user, `-q`) where the files do not tell the power mode. memory_mb: of 10^6
    bytes, what the kernel manages. cpu_mhz over all running cores: the fastest now, the lowest and the highest limit.
    """
    compatible = strings(root, "proc/device-tree/compatible")
    soc = _soc(compatible)
    l4t = l4t_version(root)
    packages = installed.packages(root)
    return {
        "model": next(iter(strings(root, "proc/device-tree/model")), ""),
        "compatible": compatible,
        "module": _module(compatible),
        "soc": soc,
        "sm": SM.get(soc, ""),
        "l4t": l4t,
        "jetpack": JETPACKS.get(l4t, ""),
        "memory_mb": _memory_mb(root),
        "tensorrt": installed.tensorrt_version(packages),
        "cuda": installed.cuda_version(root, packages),
        "power_mode": _known_mode(root, commands),
        "power_modes": power_modes(root),
        "clocks_pinned": clocks_pinned(root),
        "gpu_mhz": _gpu_mhz(root),
        "cpu_mhz": _cpu_mhz(root),
        "emc_mhz": _clock(root, EMC[0], EMC[1], 1e6),
        "fan": _fan(root),
        "temperatures_c": _temperatures(root),
        "played_back": "" if os.path.abspath(root) == "/" else os.path.abspath(root),
    }


def l4t_version(root="/"):
    """`36.4.7` from "# R36 (release), REVISION: 4.7, ..."; "" where this is no Jetson."""
    found = re.match(r"# R([0-9]{1,4}) \(release\), REVISION: ([0-9.]{1,20})", text(root, "etc/nv_tegra_release"))
    return "{}.{}".format(*found.groups()) if found else ""


def power_modes(root="/"):
    """The power modes that nvpmodel knows, name -> number, in the order of its configuration."""
    modes = {}
    for line in text(root, "etc/nvpmodel.conf", 1 << 20).splitlines():
        mode = re.match(r"<\s*POWER_MODEL\s([^<>]{1,200})>", line)
        words = dict(word.split("=", 1) for word in mode.group(1).split() if "=" in word) if mode else {}
        if re.match(r"[0-9]{1,4}\Z", words.get("ID", "")) and re.match(r"[!-~]{1,64}\Z", words.get("NAME", "")):
            modes.setdefault(words["NAME"], int(words["ID"]))
    return modes


def power_mode(root="/"):
    """The name of a Jetson's power mode, "" where there is none. Numbers differ between boards, so they are looked up.

    "number 7" where the status names a mode that the configuration does not have.
    """
    chosen = re.search(r"pmode:0*([0-9]{1,4})(?![0-9])", text(root, "var/lib/nvpmodel/status"))
    if not chosen:
        return ""
    found = [name for name, number_of in power_modes(root).items() if number_of == int(chosen.group(1))]
    return found[0] if found else "number " + chosen.group(1)


def mode_told(said):
    """The name in what `nvpmodel -q` prints ("NV Power Mode: 25W", then its number); "" where there is none."""
    found = re.search(r"^NV Power Mode:[ \t]*([!-~]{1,64})[ \t\r]*$", said, re.MULTILINE)
    return found.group(1) if found else ""


def clocks_pinned(root="/"):
    """Whether GPU and CPU stand still as after jetson_clocks; None where the GPU's clock is not told.

    jetson_clocks pins by setting the lowest clock to the highest of the current power mode. The memory's clock is pinned
    too, but only root can read it, so it is not judged here.
    """
    gpu = _gpu_mhz(root)
    if "min" not in gpu or "max" not in gpu:
        return None
    cores = [core for core in _cores(root) if "min" in core and "max" in core]
    return all(clock["min"] == clock["max"] for clock in [gpu] + cores)


def _known_mode(root, commands):
    name = power_mode(root)
    if name and not name.startswith("number "):
        return name
    return mode_told(commands.run(["nvpmodel", "-q"]).out) if commands is not None else ""


def _module(compatible):
    """The module's part number: behind the carrier's ("p3768-0000+p3767-0003-super"), else one that stands alone."""
    for pattern in (r"\+(p[0-9]{4}-[0-9]{4})(?![0-9])", r"^nvidia,(p[0-9]{4}-[0-9]{4})(?![0-9+])(?!.*\+)"):
        for entry in compatible:
            found = re.search(pattern, entry)
            if found:
                return found.group(1)
    return ""


def _soc(compatible):
    found = [re.match(r"nvidia,(tegra[0-9]{3})$", entry) for entry in compatible]
    return next((match.group(1) for match in found if match), "")


def _memory_mb(root):
    found = re.search(r"^MemTotal:\s*([0-9]{1,12}) kB", text(root, "proc/meminfo"), re.MULTILINE)
    return round(int(found.group(1)) * 1024 / 1e6) if found else 0


def _gpu_mhz(root):
    """Clocks of the GPU: its devfreq device, by the words that NVIDIA's kernels name it with."""
    folder = "sys/class/devfreq"
    devices = names(root, folder)
    for word in GPU_WORDS:
        for name in (name for name in devices if word in name):
            clock = _clock(root, folder + "/" + name, ("cur_freq", "min_freq", "max_freq"), 1e6)
            if clock:
                return clock
    return {}


def _cpu_mhz(root):
    cores = _cores(root)
    merged = {}
    for key, choose in (("now", max), ("min", min), ("max", max)):
        values = [core[key] for core in cores if key in core]
        if values:
            merged[key] = choose(values)
    return merged


def _cores(root):
    """Clocks of each running core."""
    folder = "sys/devices/system/cpu"
    cores = []
    for name in names(root, folder):
        if re.match(r"cpu[0-9]{1,4}$", name) and number(root, "{}/{}/online".format(folder, name)) != 0:
            files = ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq")
            cores.append(_clock(root, "{}/{}/cpufreq".format(folder, name), files, 1e3))
    return cores


def _clock(root, folder, file_names, divisor):
    """{"now", "min", "max"} in MHz, as far as they are told and possible."""
    values = {key: number(root, folder + "/" + name) for key, name in zip(("now", "min", "max"), file_names)}
    return {key: value / divisor for key, value in values.items() if value and 0 < value / divisor <= MAX_MHZ}


def _fan(root):
    """{"pwm": 0 to 255, "rpm"}: the hwmon devices of Jetson Linux 35 and newer, or the old pwm-fan."""
    found = {"pwm": number(root, "sys/devices/pwm-fan/cur_pwm"), "rpm": None}
    for name in names(root, "sys/class/hwmon"):
        folder = "sys/class/hwmon/" + name
        kind = text(root, folder + "/name").strip()
        if kind == "pwmfan":
            found["pwm"] = number(root, folder + "/pwm1")
        elif kind == "pwm_tach":
            rpm = number(root, folder + "/rpm")
            found["rpm"] = number(root, folder + "/fan1_input") if rpm is None else rpm
    limits = {"pwm": 255, "rpm": 100000}
    return {key: value for key, value in found.items() if value is not None and 0 <= value <= limits[key]}


def _temperatures(root):
    """Degrees Celsius by zone, without "-thermal" behind the name; zones that are off or cannot be read are left out."""
    zones = {}
    for name in names(root, "sys/class/thermal"):
        if name.startswith("thermal_zone"):
            kind = text(root, "sys/class/thermal/{}/type".format(name)).strip()
            kind = re.sub(r"-thermal$|_thermal$", "", kind)
            value = number(root, "sys/class/thermal/{}/temp".format(name))
            if re.match(r"[A-Za-z0-9_. -]{1,40}$", kind) and value is not None and MIN_C < value / 1000 < MAX_C:
                zones[kind] = value / 1000
    return zones
