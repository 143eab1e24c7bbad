"""A target: what is exported, for which runtime, in which precision, and the gates that it must pass.

One TOML file in `export/` each (tinkit.recipes finds and reads them); a bundle's manifest carries it to the board. Keys
that cannot go together are refused here, with what is wanted instead, before anything has been exported.
"""

from dataclasses import asdict, dataclass, field
from typing import Dict, Tuple

from tinkit.strict import build, check

RUNTIMES = ("onnxruntime", "tensorrt", "openvino")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
INPUTS = ("float-nchw", "uint8-nhwc")
GATES = ("embedding", "logits", "local", "frame")
FLOORS = {"fp32": 1.0, "fp16": 0.9, "bf16": 0.9, "int8": 0.85}  # where a target does not say
NOT_SAID = -1.0
DYNAMO_OPSET = 18  # torch's newer exporter starts here
HALF_SCALE_OPSET = 19  # QuantizeLinear takes fp16 since here
BF16_OPSET = 22  # Conv takes bf16 since here (onnx.defs)


@dataclass(frozen=True)
class Gate:
    """Limits for one output over the pictures of the exam.

    min_cosine: of an answer with the PyTorch student's, on the worst picture; max_error_share: the largest |difference|
    anywhere in the output, as a share of the largest |answer|; min_cosine_mean: of the mean over the pictures, -1 where
    it is not judged.
    """

    min_cosine: float
    max_error_share: float
    min_cosine_mean: float = -1.0

    def __post_init__(self):
        check(-1 <= self.min_cosine <= 1, "min_cosine", self.min_cosine, "-1 to 1")
        check(self.max_error_share > 0, "max_error_share", self.max_error_share, "more than 0")
        mean = self.min_cosine_mean
        check(-1 <= mean <= 1, "min_cosine_mean", mean, "-1 to 1")
        check(
            mean == -1 or mean >= self.min_cosine, "min_cosine_mean", mean, "min_cosine or more: a mean cannot be worse"
        )


@dataclass(frozen=True)
class Batch:
    """The batch sizes an engine is built for: smallest, the one it is tuned for, largest."""

    min: int = 1
    opt: int = 1
    max: int = 8

    def __post_init__(self):
        check(1 <= self.min <= self.opt <= self.max, "batch", (self.min, self.opt, self.max), "1 <= min <= opt <= max")


@dataclass(frozen=True)
class Target:
    """What to export.

    io: dtype of outputs and of a float input; rest: what an int8 target computes in elsewhere; input: normalised float
    NCHW, or uint8 NHWC at network size with the normalisation inside the graph; frame: (height, width) in pixels of a
    camera frame that the graph resizes itself, () for none; compute: the arithmetic asked of OpenVINO, which on a CPU
    chooses bf16 by itself; weakly_typed: for TensorRT 8, precision is asked for by flags and not written into the graph;
    floor: least share of the multiply-accumulates that must really be in `precision` (by precision where not said); heal:
    largest share of them that healing may return to `higher`; unproven: why nobody has proven this target yet;
    pixel_gate: in grey levels (0..255).
    """

    description: str
    runtime: str
    precision: str
    gate: Dict[str, Gate]
    name: str = ""
    path: str = field(default="", compare=False)
    opset: int = 20
    exporter: str = "dynamo"
    io: str = "float32"
    rest: str = ""
    input: str = "float-nchw"
    frame: Tuple[int, ...] = ()
    compute: str = ""
    weakly_typed: bool = False
    floor: float = NOT_SAID
    heal: float = 0.15
    unproven: str = ""
    batch: Batch = Batch()
    local: bool = False
    head: bool = False  # set by export, for a student that kept its classifier
    pixel_gate: float = 2.0

    def __post_init__(self):
        _check_runtime(self)
        _check_opset(self)
        _check_tensors(self)
        _check_gates(self)
        if self.floor == NOT_SAID:
            object.__setattr__(self, "floor", FLOORS[self.precision])
        check(0 <= self.floor <= 1, "floor", self.floor, "0 to 1, a share of the multiply-accumulates")
        check(0 <= self.heal <= 1, "heal", self.heal, "0 to 1, a share of the multiply-accumulates")

    @property
    def outputs(self):
        return ("embedding",) + ("logits",) * self.head + ("local",) * self.local

    @property
    def higher(self):
        """The precision that healing returns a node to."""
        return self.rest or "fp32"

    def gate_of(self, output):
        """The gate of an output; logits without one of their own are held to the embedding's."""
        return self.gate["embedding"] if output == "logits" and output not in self.gate else self.gate[output]

    def to_json(self):
        """Plain data that travels; the path of the file stays here."""
        plain = {name: value for name, value in asdict(self).items() if name != "path"}
        return dict(plain, frame=list(self.frame))

    @classmethod
    def from_json(cls, value):
        return build(cls, dict(value), value.get("path", "manifest"))


def _check_runtime(target):
    runtime, precision, rest, compute = target.runtime, target.precision, target.rest, target.compute
    check(runtime in RUNTIMES, "runtime", runtime, "one of " + ", ".join(RUNTIMES))
    check(precision in PRECISIONS, "precision", precision, "one of " + ", ".join(PRECISIONS))
    if precision == "int8":
        check(rest in ("fp32", "fp16"), "rest", rest, "fp32 or fp16: what an int8 target computes in elsewhere")
    else:
        check(rest == "", "rest", rest, "nothing: only an int8 target has a rest")
    if runtime == "openvino":
        wanted = 'fp32, bf16 or fp16: without it OpenVINO chooses by itself, bf16 on CPUs that have it; write compute = "fp32"'
        check(compute in ("fp32", "bf16", "fp16"), "compute", compute, wanted)
    else:
        check(
            compute == "",
            "compute",
            compute,
            "nothing: only openvino is asked for an arithmetic, the others read the graph",
        )
    weak = target.weakly_typed
    check(not weak or runtime == "tensorrt", "weakly_typed", weak, "false: only TensorRT has weakly typed networks")
    check(not (weak and precision == "bf16"), "weakly_typed", weak, "false for bf16: TensorRT 8 has no bf16")
    check(
        not (precision == "bf16" and runtime == "onnxruntime"),
        "precision",
        precision,
        "another: onnxruntime has no bf16 Conv",
    )


def _check_opset(target):
    opset, exporter = target.opset, target.exporter
    check(16 <= opset <= 22, "opset", opset, "16 to 22 (23 brings Attention, which TensorRT lacks)")
    check(exporter in ("dynamo", "legacy"), "exporter", exporter, "dynamo or legacy")
    wanted = "legacy" if opset < DYNAMO_OPSET else "dynamo"
    check(exporter == wanted, "exporter", exporter, "{} at opset {}: below {} torch has only the legacy exporter, "
          "and only there is it used".format(wanted, opset, DYNAMO_OPSET))  # fmt: skip
    if target.precision == "bf16":
        check(opset >= BF16_OPSET, "opset", opset, "{}: Conv takes bf16 since there".format(BF16_OPSET))
    if target.rest == "fp16" and not target.weakly_typed:
        wanted = "{} or more: QuantizeLinear takes fp16 since there (or weakly_typed = true for TensorRT 8)"
        check(opset >= HALF_SCALE_OPSET, "opset", opset, wanted.format(HALF_SCALE_OPSET))


def _check_tensors(target):
    io, frame = target.io, target.frame
    check(io in ("float32", "float16"), "io", io, "float32 or float16")
    has_fp16 = "fp16" in (target.precision, target.rest)
    check(io == "float32" or has_fp16, "io", io, "float32, as nothing in a {} target is fp16".format(target.precision))
    check(io == "float32" or not target.weakly_typed, "io", io, "float32: a weakly typed graph is written in fp32")
    check(target.input in INPUTS, "input", target.input, " or ".join(INPUTS))
    whole = all(type(side) is int and side >= 1 for side in frame)
    check(len(frame) in (0, 2) and whole, "frame", frame, "[height, width] of a camera frame in pixels, or nothing")
    check(not frame or target.input == "uint8-nhwc", "frame", frame, 'input = "uint8-nhwc": a camera frame is uint8')


def _check_gates(target):
    gates = sorted(target.gate)
    check("embedding" in gates, "gate", gates, "a gate for `embedding`")
    check(set(gates) <= set(GATES), "gate", gates, "gates for " + ", ".join(GATES) + " only")
    check(not target.local or "local" in gates, "gate", gates, "a gate for `local` (local = true)")
    wanted = "a gate for `frame` with a frame, and none without: the resize in the graph is not Pillow's"
    check(bool(target.frame) == ("frame" in gates), "gate", gates, wanted)
