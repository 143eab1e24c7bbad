"""What a line of NVIDIA's tegrastats says, from the first Nano (JetPack 4) to Thor (JetPack 7).

The line is words: a name and its value, and every release changed a few of them. So it is read word by word, only the
forms below are believed, and what is not there stays unknown. Our own reading; jetson-stats is AGPL and was not used.
Power is what the rails say now; the second and third numbers (mean and largest since tegrastats started) are left out.
"""

import re
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

LONGEST_LINE = 8192  # characters; the longest seen has about 900
MOST = 256  # processors, rails or zones of one line
HOTTEST_C, COLDEST_C = 250.0, -60.0  # a zone that is off says -256
LARGEST_MHZ, LARGEST_MW, LARGEST_MB = 20000, 10**7, 10**8

GPU_NAMES = ("GR3D_FREQ", "GR3D2_FREQ", "GR3D")  # the second GPC of Orin under JetPack 5; TX1
RAIL_WORDS = ("VDD", "VIN", "POM_", "CPU", "GPU", "SOC", "SYS", "CV")  # how rails begin that are told without a unit
NOT_CONNECTED = "NC"

SIZE = re.compile(r"(\d{1,9})/\d{1,9}MB", re.ASCII)
LOAD = re.compile(r"(?:(\d{1,3})%)?(?:@\[?(\d{1,6}(?:,\d{1,6})*)\]?)?", re.ASCII)
CORES = re.compile(r"\[([^\[\]]*)\](?:@(\d{1,6}))?", re.ASCII)
CORE = re.compile(r"(\d{1,3})%(?:@(\d{1,6}))?", re.ASCII)
ZONE = re.compile(r"([A-Za-z][\w.-]{0,31})@(-?\d{1,4}(?:\.\d{1,6})?)C(?:/-?[\d.]{1,12}C)?", re.ASCII)
POWER = re.compile(r"(-?\d{1,8})(mW)?((?:/-?\d{1,8}(?:mW)?){0,2})", re.ASCII)
RAIL = re.compile(r"[A-Za-z][\w.+-]{0,31}", re.ASCII)

# Rails that together are the whole, where no single one is. Left out of Orin's: VDDQ_VDD2_1V8AO, which VIN_SYS_5V0 feeds.
PARTS = (
    (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), "AGX Orin"),
    (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), "AGX Xavier"),
    (("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"), "Thor without its carrier's VIN"),
)
WHOLE = (
    ("VIN", "the input of the carrier board: module, carrier and what is plugged in"),
    ("POM_5V_IN", "the 5 V input of the whole board"),
    ("VDD_IN", "the input of the module: processors and memory, without the carrier board"),
)


@dataclass(frozen=True)
class Reading:
    """One line. None, [] or {} where it does not say; all numbers finite and within the bounds above.

    ram_mb, swap_mb: used. gpu_mhz: one for each GPC that is told; 0 is a GPU that is switched off. cpu: (percent, MHz or
    None) of each core, None for one that is off. Old boards print 50 or 100 C for PMIC always: that is no measurement.
    """

    ram_mb: Optional[int] = None
    swap_mb: Optional[int] = None
    gpu_percent: Optional[int] = None
    gpu_mhz: List[int] = field(default_factory=list)
    cpu: List[Optional[Tuple[int, Optional[int]]]] = field(default_factory=list)
    emc_percent: Optional[int] = None
    temperatures_c: Dict[str, float] = field(default_factory=dict)
    power_mw: Dict[str, int] = field(default_factory=dict)


def parse_line(text):
    """A `Reading` of any text at all; nothing is raised. Of a name that comes twice the first counts."""
    words = str(text)[:LONGEST_LINE].split()
    named = {}
    for name, value in zip(words, words[1:]):
        named.setdefault(name.upper(), value)
    loads = [_load(named[name]) for name in GPU_NAMES if name in named]
    percents = [percent for percent, _ in loads if percent is not None]
    return Reading(
        ram_mb=_used(named.get("RAM", "")),
        swap_mb=_used(named.get("SWAP", "")),
        gpu_percent=max(percents) if percents else None,
        gpu_mhz=[mhz for _, clocks in loads for mhz in clocks][:MOST],
        cpu=_cores(words),
        emc_percent=_load(named.get("EMC_FREQ", named.get("EMC", "")))[0],
        temperatures_c=_zones(words),
        power_mw=_rails(words),
    )


def total_rail(names):
    """(rails to add up, what they are in words) for the power of the whole, of the rails that a board has.

    Some boards have one rail that all power passes; adding others to it would count them twice. Sources: NVIDIA's
    developer guide (Nano, Orin), energymon's JetsonPowerRails.md (AGX, TX), the readings of Thor kits (VIN is larger than
    the sum of the others).
    """
    names = list(names)
    for name, meaning in WHOLE:
        if name in names:
            return [name], "{}: {}".format(name, meaning)
    for parts, board in PARTS:
        there = [name for name in parts if name in names]
        if len(there) == len(parts):
            return there, "{} ({}: no rail has it all)".format(" + ".join(there), board)
    if "psys" in names:
        return ["psys"], "psys: the platform, by the processor's energy counter"
    packages = sorted(name for name in names if name.startswith(("package-", "dram")))
    if packages:
        memory = "" if any(name.startswith("dram") for name in packages) else ", memory not included"
        return packages, "{}: by the processor's energy counters{}".format(" + ".join(packages), memory)
    if names:
        return sorted(names), "{}: all rails that are told, of an unknown board; may miss some or count twice".format(
            " + ".join(sorted(names))
        )
    return [], "no power rail is told"


def _used(value):
    found = SIZE.fullmatch(value)
    used = int(found.group(1)) if found else LARGEST_MB + 1
    return used if used <= LARGEST_MB else None


def _load(value):
    """(percent or None, [MHz]) of `61%`, `61%@1016`, `61%@[1016,1016]`, `@[1016]` or `@1016`; (None, []) of others."""
    found = LOAD.fullmatch(value)
    if not found:
        return None, []
    percent, clocks = found.groups()
    clocks = [int(mhz) for mhz in clocks.split(",")] if clocks else []
    return _percent(percent), [mhz for mhz in clocks if mhz <= LARGEST_MHZ]


def _percent(text):
    return int(text) if text is not None and int(text) <= 100 else None


def _cores(words):
    """Cores of `CPU [21%@1510,off]`, and of `CPU [21%,off]@1510` where all have one clock. AGX Xavier also has a rail CPU."""
    for name, value in zip(words, words[1:]):
        found = CORES.fullmatch(value) if name.upper() == "CPU" else None
        if found:
            return [_core(core, found.group(2)) for core in found.group(1).split(",")[:MOST]]
    return []


def _core(text, common_mhz):
    found = CORE.fullmatch(text)
    percent = _percent(found.group(1)) if found else None
    if not found or percent is None:
        return None
    mhz = int(found.group(2) or common_mhz or LARGEST_MHZ + 1)
    return percent, mhz if mhz <= LARGEST_MHZ else None


def _zones(words):
    zones = {}
    for found in filter(None, map(ZONE.fullmatch, words)):
        celsius = float(found.group(2))
        if COLDEST_C <= celsius <= HOTTEST_C and len(zones) < MOST:
            zones.setdefault(found.group(1), celsius)
    return zones


def _rails(words):
    """{rail: mW now} of `VDD_IN 8912mW/7421mW`, `VDD_IN 5336/4970` and `VDD_IN 8912mW/7421mW/9000mW`."""
    rails = {}
    for name, value in zip(words, words[1:]):
        found = POWER.fullmatch(value)
        if not found or not RAIL.fullmatch(name) or name == NOT_CONNECTED:
            continue
        now, unit, rest = found.groups()
        told = unit or (rest and name.startswith(RAIL_WORDS))
        if told and abs(int(now)) <= LARGEST_MW and len(rails) < MOST:
            rails.setdefault(name, int(now))
    return rails
