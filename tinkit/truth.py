"""Precision truth: in which precision a graph or an engine really computes, read back after the build and judged.

An engine that was asked for fp16 may be fp32 and say nothing. So shares are counted: of layers, and of MACs
(multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul with constant weights). The verdict is about MACs: a share
at the target's floor passes, below it fails, and where too much stays unknown there is none. Here the verdict and what
engines and OpenVINO tell about themselves; `tinkit.host.export.graph_truth` counts an ONNX graph. Not seen here: what a kernel
accumulates in.

The engine inspector's JSON. Certain, from NVIDIA's documents: {"Layers": [...], "Bindings": [names]} up to TensorRT 10,
and "I/O Tensors": [{"Name", "IOMode", "DataType", ...}] instead of "Bindings" in 11; a layer is an object only in an
engine built with detailed profiling verbosity, otherwise a plain string; a tensor of a layer says "Format/Datatype" up
to 10, which 11 splits in two; a dynamic shape gives "N/A due to dynamic shapes" unless the inspector got an execution
context. A reading, from published files and not from a rule: the spelling of the split fields (any case is taken), what
"Metadata" holds, how fused layers are named, and the arithmetic that a tactic's name tells.
"""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Dict, Tuple

from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED

UNKNOWN = "unknown"
WIDTH = {"int8": 1, "fp16": 2, "bf16": 3, "fp32": 4, UNKNOWN: 5}  # of two candidates the wider is believed
SPELLINGS = {
    "fp32": ("float32", "fp32", "float", "tf32", "f32"),
    "fp16": ("float16", "fp16", "half", "f16"),
    "bf16": ("bfloat16", "bf16"),
    "int8": ("int8", "i8", "u8"),
    "other": ("uint8", "int32", "int64", "int4", "bool", "fp8", "fp4", "float8", "float4"),
}
SPELLED = {word: name for name, words in SPELLINGS.items() for word in words}
WORD = re.compile("|".join(sorted(SPELLED, key=len, reverse=True)))
TACTIC = re.compile(
    r"_[a-z]+\d+?[a-z]+\d+_([a-z]+\d+?)[a-z]+\d+_"
)  # ..._f16f16_f16f32_f32_...: the third is the product's
IDLE = ("reformat", "constant", "noop", "shapehosttodevice", "signal", "wait")  # move or keep data, compute nothing
MULTIPLIES = ("conv", "gemm", "matmul", "matrixmultiply", "fullyconnected", "mha")
OPENED = "[ONNX Layer: "
SHOWN = 3  # names in a note


@dataclass(frozen=True)
class Truth:
    """What share of `subject` (graph, engine, openvino) is in which precision, and whether that is the one asked for.

    layers, macs: precision -> share (0..1), {} where nothing could be counted; weights: stored dtype -> share of the
    weight elements behind those MACs; computed: the arithmetic asked of a runtime, where storage alone is judged.
    """

    subject: str
    precision: str
    layers: Dict[str, float]
    macs: Dict[str, float]
    floor: float
    verdict: str
    reason: str = ""
    notes: Tuple[str, ...] = ()
    weights: Dict[str, float] = field(default_factory=dict)
    computed: str = ""

    def to_json(self):
        return dict(asdict(self), notes=list(self.notes))

    @classmethod
    def from_json(cls, value):
        return cls(**dict(value, notes=tuple(value.get("notes", ()))))


@dataclass(frozen=True)
class Layer:
    """One layer of an engine. `nodes`: the names of ONNX nodes that it may hold, as far as it tells."""

    name: str
    precision: str
    kind: str
    nodes: Tuple[str, ...]


def shares(amounts):
    """precision -> share of the total, the largest first; {} where the total is 0. Amounts are whole numbers."""
    total = sum(amounts.values())
    ordered = sorted(amounts.items(), key=lambda item: (-item[1], item[0]))
    return {name: amount / total for name, amount in ordered if amount} if total else {}


def judge_truth(found, precision, floor, what):
    """(verdict, reason) for `found` {precision: share}: exactly at the floor passes.

    Failed only where even everything unknown could not lift the share to the floor; not judged where it could, or where
    there is nothing to judge. `what` ends the sentence: "of the MACs".
    """
    if not found:
        return NOT_JUDGED, "there was nothing to count {}".format(what)
    share, unknown = found.get(precision, 0.0), found.get(UNKNOWN, 0.0)
    said = "{:.2%} {} in {}, the floor is {:.2%}".format(share, what, precision, floor)
    if share >= floor:
        return PASSED, said
    if unknown and share + unknown >= floor:
        return NOT_JUDGED, "{}; {:.2%} unknown".format(said, unknown)
    others = ", ".join("{:.2%} {}".format(part, name) for name, part in found.items() if name != precision)
    return FAILED, "{} ({})".format(said, others)


def engine_truth(inspector_json, target, node_macs):
    """The `Truth` of a TensorRT engine: its inspector's JSON (text or parsed) against the target.

    node_macs: ONNX node name -> MACs of one picture, from the manifest. A node that no layer names is unknown. Raises
    TinkitError for text that is not the inspector's.
    """
    entries = _entries(inspector_json)
    layers = [_layer(entry) for entry in entries]
    working = [layer for layer in layers if not _is_idle(layer)]
    by_node = {}  # type: Dict[str, list]
    for layer in working:
        for node in layer.nodes:
            by_node.setdefault(node, []).append(layer)
    precisions = {node: _believed(by_node[node]) for node in node_macs if node in by_node}
    notes = []
    if len(precisions) < len(node_macs) and any("ForeignNode" in layer.name for layer in working):
        notes.append("a fused region (ForeignNode) does not name all of its nodes")
    if "due to dynamic shapes" in json.dumps(entries):
        notes.append("types of tensors were not shown for dynamic shapes: the inspector had no execution context")
    counted = [layer.precision for layer in working]
    truth = _of_nodes("engine", precisions, target.precision, target.floor, node_macs, notes, counted)
    if entries and not any(isinstance(entry, dict) for entry in entries):
        reason = "the engine was built without detailed profiling verbosity, so its layers are names only"
        return replace(truth, verdict=NOT_JUDGED, reason=reason)
    return truth


def openvino_truth(precisions, target, node_macs, layers=None):
    """The `Truth` of a model compiled by OpenVINO, from what its layers say they compute in.

    precisions: name of a layer -> precision (`OpenVinoRuntime.node_precisions()`); layers: precision -> count. OpenVINO
    names a layer after its ONNX node; with a bias the product is NAME/WithoutBiases [ran, 2026.4]; a node that writes an
    output of the graph is named after that output instead, and so is unknown here. An fp16 target stores fp16 and
    computes in target.compute: that is what is judged here, against the same floor.
    """
    wanted = "int8" if target.precision == "int8" else target.compute
    found = {}
    for node in node_macs:
        for name in (node + "/WithoutBiases", node):
            if name in precisions:
                found[node] = precisions[name]
                break
    counts = [name for name, count in (layers or {}).items() for _ in range(count)] or list(precisions.values())
    truth = _of_nodes("openvino", found, wanted, target.floor, node_macs, [], counts)
    return replace(truth, computed=target.compute)


def _of_nodes(subject, precisions, wanted, floor, node_macs, notes, layers):
    """A judged Truth: precisions {node: precision} weighed by the MACs of all nodes, layers as a list of precisions."""
    amounts = {}  # type: Dict[str, int]
    for node, macs in node_macs.items():
        name = precisions.get(node, UNKNOWN)
        amounts[name] = amounts.get(name, 0) + macs
    lost = [node for node in node_macs if node not in precisions]
    if lost:
        notes = [
            *notes,
            "{} of {} nodes with MACs are named by no layer ({})".format(len(lost), len(node_macs), some(lost)),
        ]
    found = shares(amounts)
    verdict, reason = judge_truth(found, wanted, floor, "of the MACs")
    counts = {name: layers.count(name) for name in set(layers)}
    return Truth(subject, wanted, shares(counts), found, floor, verdict, reason, tuple(notes))


def engine_layers(inspector_json):
    """list[Layer] of an engine, in its order and with those that only move data; both layouts, see the module's story."""
    return [_layer(entry) for entry in _entries(inspector_json)]


def _entries(inspector_json):
    value = inspector_json
    if isinstance(value, (str, bytes)):
        try:
            value = json.loads(value, strict=False)  # TensorRT separates node names with bare control characters
        except ValueError as error:
            raise TinkitError("The engine inspector's answer is not JSON.", seen=str(error)) from None
    if not isinstance(value, dict) or not isinstance(value.get("Layers"), list):
        seen = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise TinkitError('The engine inspector\'s answer has no list of "Layers".', seen=str(seen))
    return value["Layers"]


def _layer(entry):
    if not isinstance(entry, dict):
        return Layer(str(entry), UNKNOWN, "", _named(str(entry)))
    name, told = str(entry.get("Name", "")), str(entry.get("Metadata", ""))
    nodes = tuple(_closed(part) for part in told.split(OPENED)[1:]) or _named(name)
    return Layer(name, _precision(entry), str(entry.get("LayerType", "")), nodes)


def _precision(entry):
    """The precision that a layer computes in: the wider of its weights and its first input, as both must be int8 for an
    int8 product and a kernel never multiplies two float types. Without weights of its own: what the tactic says, or the
    first two inputs. At last the outputs. Integer shapes and indices do not count."""
    weights = entry.get("Weights")
    weight = _dtype(str(weights.get("Type", ""))) if isinstance(weights, dict) else UNKNOWN
    inputs = [_tensor_dtype(tensor) for tensor in entry.get("Inputs", ())]
    inputs = [name for name in inputs if name not in (UNKNOWN, "other")]
    product = TACTIC.search(str(entry.get("TacticName", "")))
    tactic = _dtype(product.group(1)) if product else UNKNOWN
    outputs = [_tensor_dtype(tensor) for tensor in entry.get("Outputs", ())]
    if weight in WIDTH and weight != UNKNOWN:
        known = inputs[:1] or [name for name in (tactic,) if name != UNKNOWN]
        return max([weight, *known], key=lambda name: WIDTH.get(name, 0))
    if tactic in WIDTH and tactic != UNKNOWN:
        return tactic
    known = inputs[:2] or [name for name in outputs[:1] if name != "other"]
    return max(known, key=lambda name: WIDTH.get(name, 0)) if known else UNKNOWN


def _tensor_dtype(tensor):
    """Of {"Format/Datatype": ...} or {"Format": ..., "DataType": ...}; the split data type wins over its format's words."""
    if not isinstance(tensor, dict):
        return UNKNOWN
    fields = {re.sub("[^a-z]", "", key.lower()): str(value) for key, value in tensor.items()}
    for key in ("datatype", "formatdatatype", "format"):
        if key in fields:
            return _dtype(fields[key])
    return UNKNOWN


def _dtype(text):
    """ "Channel major FP16 format where channel % 8 == 0" -> fp16; "other" for integers, unknown where nothing is said."""
    if text.upper().startswith("N/A"):
        return UNKNOWN
    found = WORD.search(text.lower())
    return SPELLED[found.group()] if found else UNKNOWN


def _closed(part):
    """The node name in what follows "[ONNX Layer: ": up to its last bracket, whatever separates the entries."""
    return part[: part.rindex("]")] if "]" in part else part.strip()


def _named(name):
    """Node names in a fused layer's name: "a + b", "a || b", "PWN(PWN(a), b)", and a Myelin suffix taken off."""
    parts = re.split(r" \+ | ?\|\| ?|, ", re.sub(r"PWN\(|\)+(?= \+ |, | ?\|\||$)", "", name))
    return tuple(re.sub(r"_myl\d+(_\d+)?$", "", part.strip()) for part in parts if part.strip())


def _is_idle(layer):
    return layer.kind.lower() in IDLE or layer.name.startswith("Reformatting CopyNode")


def _believed(layers):
    """One precision for a node that several layers name: those that multiply are asked, the widest is believed."""
    multiplying = [layer for layer in layers if any(word in layer.kind.lower() for word in MULTIPLIES)]
    return max((layer.precision for layer in multiplying or layers), key=lambda name: WIDTH.get(name, 0))


def some(names):
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
