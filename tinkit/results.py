"""What the commands return: frozen facts with verdict, evidence and conditions, to and from JSON.

A number is never without its conditions: `Latency` keeps its raw samples and says how they were taken.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional

from tinkit.fidelity import Fidelity
from tinkit.truth import Truth

REPORT_SCHEMA = "tinkit-report-2"
LATENCY_PROTOCOL = "tinkit-latency-2"  # raised whenever numbers stop being comparable


@dataclass(frozen=True)
class DistillResult:
    """A finished run. `metrics` are of the held-out pictures after the last epoch."""

    run: str
    student: str
    teacher: str
    method: str
    epochs: int
    pictures: int
    skipped: int
    metrics: Dict[str, float]
    seconds: float


@dataclass(frozen=True)
class ExportResult:
    """A bundle and the verdict of its host gate and precision truth ("passed", "failed" or "not judged").

    healing: by step ("fp16", "int8"), what went back to higher precision and why (tinkit.host.export.heal.Healing as JSON).
    """

    bundle: str
    target: str
    verdict: str
    hops: List[Fidelity]
    notes: List[str] = field(default_factory=list)
    truth: Optional[Truth] = None
    healing: Dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Latency:
    """Wall-clock milliseconds of one batch, end to end with host copies, `samples_ms` in the order taken.

    intervals: percentile -> [low, high], 95 % by bootstrap. gpu: the same percentiles and samples of the network on the
    GPU alone, by events and without copies; {} where the runtime has none. drift: median of the last fifth of the samples
    over that of the first, minus 1. wall_per_cpu is wall time over the thread's own processor time: above 1.1 on a single
    thread, other work had the core and the numbers are marked contended. marks: why these numbers are not those of a
    quiet, settled machine, in words. Memory in MB of 10^6 bytes.
    """

    batch: int
    threads: int
    samples: int
    seconds: float
    mean_ms: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    warmup_runs: int
    stable: bool
    contended: bool
    wall_per_cpu: float
    samples_ms: List[float]
    drift: float = 0.0
    intervals: Dict[str, List[float]] = field(default_factory=dict)
    gpu: Dict[str, Any] = field(default_factory=dict)
    marks: List[str] = field(default_factory=list)
    protocol: str = LATENCY_PROTOCOL
    conditions: Dict[str, Any] = field(default_factory=dict)

    def to_json(self):
        return asdict(self)

    @classmethod
    def from_json(cls, value):
        return cls(**value)


@dataclass(frozen=True)
class Report:
    """The evidence about one bundle on one machine.

    `rehearsal` is "" or says that the target's own runtime was not used; then the device gate is "not judged". `chain`
    holds every hop from teacher to runtime, in order. `truth` is the precision that the runtime really computes in
    (tinkit.truth.Truth as JSON), {} where it does not tell. `budgets` lists {"name", "limit", "measured", "verdict"}.
    first_ms: the first run after loading. `board`, `watch`, `power`, `layers`, `throughput`, `scenarios` and `trtexec` are
    what tinkit/device/{jetson,watch,layers,throughput,scenarios,trtexec}.py return, {} or [] where not measured; `steps`
    is seconds by step of the whole command, `transfer` what went to and from a board.
    """

    title: str
    verdict: str
    rehearsal: str
    bundle: Dict[str, Any]
    device: Dict[str, Any]
    chain: List[Fidelity]
    latency: List[Latency]
    budgets: List[Dict[str, Any]]
    load_ms: float
    peak_mb: float
    machine: Dict[str, Any]
    versions: Dict[str, str]
    created: str
    path: str = ""
    notes: List[str] = field(default_factory=list)
    truth: Dict[str, Any] = field(default_factory=dict)
    first_ms: float = 0.0
    throughput: List[Dict[str, Any]] = field(default_factory=list)
    scenarios: List[Dict[str, Any]] = field(default_factory=list)
    board: Dict[str, Any] = field(default_factory=dict)
    watch: Dict[str, Any] = field(default_factory=dict)
    power: Dict[str, Any] = field(default_factory=dict)
    layers: Dict[str, Any] = field(default_factory=dict)
    trtexec: Dict[str, Any] = field(default_factory=dict)
    steps: Dict[str, float] = field(default_factory=dict)
    transfer: Dict[str, Any] = field(default_factory=dict)
    schema: str = REPORT_SCHEMA

    def to_json(self):
        return asdict(self)

    @classmethod
    def from_json(cls, value):
        return cls(
            **dict(
                value,
                chain=[Fidelity.from_json(hop) for hop in value["chain"]],
                latency=[Latency.from_json(run) for run in value["latency"]],
            )
        )
