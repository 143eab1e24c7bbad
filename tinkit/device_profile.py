"""A device profile: how a machine is timed, and what is known about its hardware.

One TOML file in `profiles/` each (tinkit.recipes finds and reads them); a job carries it to the board, a report keeps it.
How a machine is timed is tinkit's choice. What the hardware can do comes from data sheets: `sources` says where each fact
was seen, and `unverified` names those that nobody has confirmed. No budgets: those are the product's.
"""

import json
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Dict, Tuple

from tinkit.errors import CannotJudge
from tinkit.strict import build, check
from tinkit.target import RUNTIMES

PREFIX = "MODE_"  # AGX boards say MODE_30W where the others say 30W
RATES = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class PowerMode:
    """What nvpmodel allows under one name: the highest clock, and what is left on. 0 where it is the board's own.

    cores: CUDA cores that stay on, since the low modes switch some off; power_w: the budget of the name, none for MAXN.
    """

    gpu_mhz: float = 0.0
    power_w: float = 0.0
    bandwidth_gb_s: float = 0.0
    cores: int = 0

    def __post_init__(self):
        for name in ("gpu_mhz", "power_w", "bandwidth_gb_s", "cores"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 (not known, or as the board) or more")


@dataclass(frozen=True)
class GpuFacts:
    """The GPU. Operations are dense (no sparsity) and two for a multiply-add, for each CUDA core and clock cycle.

    name: as CUDA says it, where that tells devices apart (every Orin is called "Orin"); mhz: the clock of a GPU without
    power modes; rates: 0 where it has none. fp32 is real fp32: tinkit turns TF32 off.
    """

    name: str = ""
    sm: str = ""
    cores: int = 0
    tensor_cores: int = 0
    multiprocessors: int = 0
    mhz: float = 0.0
    ops_per_core_cycle_fp32: float = 0.0
    ops_per_core_cycle_fp16: float = 0.0
    ops_per_core_cycle_int8: float = 0.0

    def __post_init__(self):
        numbers = [name for name, value in asdict(self).items() if not isinstance(value, str)]
        for name in numbers:
            check(getattr(self, name) >= 0, "gpu." + name, getattr(self, name), "0 (not known) or more")


@dataclass(frozen=True)
class DeviceProfile:
    """How a machine is timed, and its hardware. Times in seconds; `batches` are timed one after the other.

    runtimes: what it runs, the one it is for first; boards: part numbers of the modules (p3767-0003); models: words of
    the device tree's model, for boards without a number; modes: by nvpmodel's names; rails: of its power sensors, the
    total first where there is one; targets: export targets that fit, fits: the same by JetPack ("6" stands for all of 6
    that have no entry of their own); streams: how many at once for throughput; unsupported: why tinkit does not run
    there; unverified and sources: keys (`gpu.cores`, `modes.25W`) whose values nobody confirmed, or where they were seen.
    """

    description: str
    runtimes: Tuple[str, ...]
    arch: str
    name: str = ""
    path: str = field(default="", compare=False)
    threads: int = 1
    batches: Tuple[int, ...] = (1,)
    streams: Tuple[int, ...] = (1, 2)
    warmup_s: float = 5.0  # at most: warm-up ends as soon as the latency is stable
    min_samples: int = 200
    min_seconds: float = 3.0
    boards: Tuple[str, ...] = ()
    models: Tuple[str, ...] = ()
    gpu: GpuFacts = GpuFacts()
    memory_gb: float = 0.0
    bandwidth_gb_s: float = 0.0
    modes: Dict[str, PowerMode] = field(default_factory=dict)
    rails: Tuple[str, ...] = ()
    jetpack: Tuple[str, ...] = ()
    targets: Tuple[str, ...] = ()
    fits: Dict[str, Tuple[str, ...]] = field(default_factory=dict)
    unsupported: str = ""
    unverified: Tuple[str, ...] = ()
    sources: Dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        known = bool(self.runtimes) and all(runtime in RUNTIMES for runtime in self.runtimes)
        check(known, "runtimes", self.runtimes, "a list with one or more of " + ", ".join(RUNTIMES))
        check(self.threads >= 1, "threads", self.threads, "1 or more")
        for name in ("batches", "streams"):
            sizes = getattr(self, name)
            whole = all(type(size) is int and size >= 1 for size in sizes)
            check(bool(sizes) and whole, name, sizes, "whole numbers of 1 or more")
        check(self.warmup_s >= 0, "warmup_s", self.warmup_s, "0 or more")
        check(self.min_seconds >= 0, "min_seconds", self.min_seconds, "0 or more")
        check(self.min_samples >= 200, "min_samples", self.min_samples, "200 or more, or percentiles mean little")
        check(self.memory_gb >= 0, "memory_gb", self.memory_gb, "0 (not known) or more")
        check(self.bandwidth_gb_s >= 0, "bandwidth_gb_s", self.bandwidth_gb_s, "0 (not known) or more")
        for jetpack, targets in self.fits.items():
            strange = [target for target in targets if target not in self.targets]
            check(not strange, "fits." + jetpack, strange, "targets that `targets` lists too")
        for key in self.unverified + tuple(self.sources):
            check(
                _has_key(self, key), "unverified or sources", key, "a key of this file, such as gpu.cores or modes.25W"
            )

    @property
    def runtime(self):
        """The runtime that this device is for."""
        return self.runtimes[0]

    def has(self, runtime):
        return runtime in self.runtimes

    def mode(self, name):
        """The `PowerMode` of this name, or None; MODE_30W and 30W are one."""
        plain = {_without_prefix(known): mode for known, mode in self.modes.items()}
        return self.modes.get(name) or plain.get(_without_prefix(name))

    def peak_ops(self, mode=""):
        """{"fp32", "fp16", "int8"}: dense operations a second of the GPU alone; {} where clock or cores are not known.

        cores x clock x operations for each core and cycle. Advertised totals are sparse and count the DLAs: not these.
        """
        here = self.mode(mode) or PowerMode()
        cycles = (here.gpu_mhz or self.gpu.mhz) * 1e6 * (here.cores or self.gpu.cores)
        rates = {rate: getattr(self.gpu, "ops_per_core_cycle_" + rate) for rate in RATES}
        return {rate: cycles * rates[rate] for rate in RATES if cycles * rates[rate]}

    def peak_bytes(self, mode=""):
        """Bytes a second between memory and chip, at most; 0.0 where it is not known."""
        return ((self.mode(mode) or PowerMode()).bandwidth_gb_s or self.bandwidth_gb_s) * 1e9

    def fitting_targets(self, jetpack):
        """Export targets for a JetPack: those of the longest entry of `fits` that it begins with, else all."""
        entries = [entry for entry in self.fits if (jetpack + ".").startswith(entry + ".")]
        return self.fits[max(entries, key=len)] if entries else self.targets

    def refuse_unsupported(self):
        """Raises CannotJudge for a device that is data only."""
        if self.unsupported:
            raise CannotJudge(
                "tinkit does not support this device.",
                where=self.path or None,
                seen=self.name,
                next_step=self.unsupported,
            )

    def to_json(self):
        """Plain data that travels; the path of the file stays here."""
        return json.loads(json.dumps({name: value for name, value in asdict(self).items() if name != "path"}))

    @classmethod
    def from_json(cls, value):
        return build(cls, dict(value), value.get("path", "job"))


def _without_prefix(name):
    return name[len(PREFIX) :] if name.startswith(PREFIX) else name


def _has_key(value, key):
    """Whether `key` (dotted: modes.25W.gpu_mhz) leads to something in a profile."""
    first, _, rest = key.partition(".")
    if is_dataclass(value):
        there, inner = first in asdict(value), getattr(value, first, None)
    else:
        there, inner = isinstance(value, dict) and first in value, isinstance(value, dict) and value.get(first)
    return there and (not rest or _has_key(inner, rest))
