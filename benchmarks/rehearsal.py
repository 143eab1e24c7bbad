"""How well the rehearsal predicts a runtime that computes in half: single operators against torch on a CPU.

    python benchmarks/rehearsal.py [--write docs/rehearsal.md]

Each operator is a graph of one or a few nodes, written in fp16 or bf16 by tinkit.host.export.half and run as its rehearsal; torch
runs the same operator on the same rounded inputs and weights with its own kernels for torch.float16 and torch.bfloat16.
Inputs are ordinary (normal, sd 1) and large (normal, times the factor in the table, at most 60000). The difference is
told in units of the last place (ulp) of the larger of both answers, the largest over all elements that are finite in
both, and as a share of the largest answer; beside it the share of elements that differ at all, and what is not finite.
The last row sums in half one after the other: what the rehearsal leaves out. Random weights, a fixed seed, one thread.
"""

import argparse
import os
import platform
import sys
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from command import write_page
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from tinkit.host.export.half import to_half
from tinkit.host.export.rehearsal import rehearsal_graph

TORCH_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
MANTISSA = {"fp16": 10, "bf16": 7}  # bits behind the point
LEAST = {"fp16": -14, "bf16": -126}  # exponent of the smallest normal number
LARGEST = 6e4  # of an input, so that it is finite in fp16
OPSET = 22  # the first with a bf16 convolution
SEED = 5


@dataclass(frozen=True)
class Operator:
    """One row: ONNX nodes (op, inputs, output[, attributes]) from x to y, the same in torch, shapes, factor of large."""

    nodes: list
    torch: object
    shape: tuple
    weights: dict
    large: float


def _weights():
    rng = np.random.default_rng(SEED)

    def normal(*shape, fan=1):
        return (rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32)

    return {  # products have answers four times as large as the input
        "conv": {"w": normal(32, 64, 3, 3, fan=576 / 16), "b": normal(32)},
        "depthwise": {"w": normal(32, 1, 3, 3, fan=9 / 16), "b": normal(32)},
        "linear": {"w": normal(64, 512, fan=512 / 16), "b": normal(64)},
        "matmul": {"w": normal(512, 64, fan=512 / 16)},
        "norm": {"w": normal(192), "b": normal(192)},
        "none": {},
    }


def operators():
    """name -> Operator. `large` is chosen so that some answers of fp16 pass 65504 where the operator can do that at all."""
    w = _weights()
    return {
        "Conv 3x3, 64 in": Operator(
            [("Conv", ["x", "w", "b"], "y", {"pads": [1, 1, 1, 1]})],
            lambda x, w, b: functional.conv2d(x, w, b, padding=1), (2, 64, 12, 12), w["conv"], 2e4,
        ),
        "Conv 3x3, depthwise": Operator(
            [("Conv", ["x", "w", "b"], "y", {"pads": [1, 1, 1, 1], "group": 32})],
            lambda x, w, b: functional.conv2d(x, w, b, padding=1, groups=32), (2, 32, 12, 12), w["depthwise"], 2e4,
        ),
        "Gemm (linear), 512 in": Operator(
            [("Gemm", ["x", "w", "b"], "y", {"transB": 1})],
            functional.linear, (32, 512), w["linear"], 2e4,
        ),
        "MatMul, 512 in": Operator([("MatMul", ["x", "w"], "y")], torch.matmul, (2, 16, 512), w["matmul"], 2e4),
        "MatMul of two activations": Operator(
            [("Transpose", ["x"], "t", {"perm": [0, 2, 1]}), ("MatMul", ["x", "t"], "y")],
            lambda x: x @ x.transpose(1, 2), (2, 24, 64), w["none"], 40,
        ),
        "LayerNormalization": Operator(
            [("LayerNormalization", ["x", "w", "b"], "y", {"epsilon": 1e-6})],
            lambda x, w, b: functional.layer_norm(x, (192,), w, b, 1e-6), (2, 24, 192), w["norm"], 1e4,
        ),
        "LayerNorm as Pow and means": Operator(
            [
                ("ReduceMean", ["x", "last"], "m"),
                ("Sub", ["x", "m"], "d"),
                ("Pow", ["d", "two"], "p"),
                ("ReduceMean", ["p", "last"], "v"),
                ("Add", ["v", "eps"], "e"),
                ("Sqrt", ["e"], "s"),
                ("Div", ["d", "s"], "y"),
            ],
            _plain_norm, (2, 24, 192), {"last": np.array([-1], np.int64), "two": np.float32(2), "eps": np.float32(1e-6)}, 1e3,
        ),
        "Softmax": Operator([("Softmax", ["x"], "y", {"axis": -1})], lambda x: x.softmax(-1), (2, 24, 197), w["none"], 1e4),
        "Gelu": Operator([("Gelu", ["x"], "y")], functional.gelu, (64, 256), w["none"], 1e4),
        "HardSwish": Operator([("HardSwish", ["x"], "y")], functional.hardswish, (64, 256), w["none"], 2e4),
        "Sigmoid * x": Operator(
            [("Sigmoid", ["x"], "s"), ("Mul", ["x", "s"], "y")],
            lambda x: x * torch.sigmoid(x), (64, 256), w["none"], 2e4,
        ),
        "GlobalAveragePool": Operator(
            [("GlobalAveragePool", ["x"], "y")], lambda x: x.mean((2, 3), keepdim=True), (8, 32, 14, 14), w["none"], 2e4
        ),
        "residual Add": Operator([("Add", ["x", "x"], "y")], lambda x: x + x, (64, 256), w["none"], 2e4),
        "ReLU linear attention, denominator": Operator(
            [
                ("Relu", ["x"], "q"),
                ("Transpose", ["q"], "k", {"perm": [0, 2, 1]}),
                ("ReduceSum", ["k", "last"], "sum"),
                ("MatMul", ["q", "sum"], "dot"),
                ("Add", ["dot", "eps"], "y"),
            ],
            _denominator, (2, 196, 16), {"last": np.array([-1], np.int64), "eps": np.float32(1e-15)}, 30,
        ),
        "MatMul, 512 in, summed in half": Operator(
            [("MatMul", ["x", "w"], "y")], _summed_in_half, (2, 16, 512), w["matmul"], 2e4,
        ),
    }  # fmt: skip


def _plain_norm(x, last, two, eps):
    apart = x - x.mean(-1, keepdim=True)
    return apart / torch.sqrt(apart.pow(2).mean(-1, keepdim=True) + eps)


def _summed_in_half(x, w):
    total = torch.zeros(*x.shape[:-1], w.shape[1], dtype=x.dtype)
    for index in range(len(w)):
        total = total + x[..., index, None] * w[index]
    return total


def _denominator(x, last, eps):
    queries = torch.relu(x)
    return queries @ queries.transpose(1, 2).sum(-1, keepdim=True) + eps


def graph(operator):
    """The fp32 model of an operator."""
    rank = len(operator.shape)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{i}" for i in range(rank)]) for name in "xy"
    ]
    nodes = [
        helper.make_node(op, inputs, [out], name=f"{op}{number}", **(more[0] if more else {}))
        for number, (op, inputs, out, *more) in enumerate(operator.nodes)
    ]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in operator.weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "operator", [values[0]], [values[1]], weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def rehearsed(operator, precision, x):
    """(answer of the rehearsal as float32, notes of to_half)."""
    half, notes = to_half(graph(operator), precision)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = rehearsal_graph(half).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0], notes


@torch.inference_mode()
def in_torch(operator, precision, x):
    """torch's answer in half as float32, or its refusal as a string."""
    kind = TORCH_TYPES[precision]
    weights = [
        torch.from_numpy(np.asarray(value)).to(kind if np.asarray(value).dtype == np.float32 else torch.int64)
        for value in operator.weights.values()
    ]
    try:
        return operator.torch(torch.from_numpy(x).to(kind), *weights).float().numpy()
    except RuntimeError as error:
        return str(error).splitlines()[0]


def ulps(a, b, precision):
    """|a - b| in units of the last place of the larger, where both are finite."""
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both].astype(np.float64), b[both].astype(np.float64)
    largest = np.maximum(np.abs(a), np.abs(b))
    exponent = np.floor(np.log2(np.where(largest > 0, largest, 1)))
    exponent = np.where(largest > 0, np.maximum(exponent, LEAST[precision]), LEAST[precision])
    return np.abs(a - b) / 2.0 ** (exponent - MANTISSA[precision])


def _largest_share(a, b):
    """The largest difference as a share of the largest answer, where both are finite."""
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any() or not np.abs(b[both]).max():
        return None
    return float(np.abs(a[both] - b[both]).max() / np.abs(b[both]).max())


def measure(name, operator, precision, factor):
    """One row as a dict."""
    x = (np.random.default_rng(SEED + 1).normal(size=operator.shape) * factor).clip(-LARGEST, LARGEST)
    x = torch.from_numpy(x).to(TORCH_TYPES[precision]).float().numpy()  # both sides start from the same rounded input
    row = {"operator": name, "precision": precision, "factor": factor}
    answer, notes = rehearsed(operator, precision, x)
    theirs = in_torch(operator, precision, x)
    if isinstance(theirs, str):
        return {**row, "torch": theirs, "notes": notes}
    apart = ulps(answer, theirs, precision)
    ours_out, theirs_out = ~np.isfinite(answer), ~np.isfinite(theirs)
    return {
        **row,
        "torch": "",
        "notes": notes,
        "elements": int(answer.size),
        "largest_ulp": float(apart.max()) if apart.size else None,
        "largest_share": _largest_share(answer, theirs),
        "differ": float((apart > 0).mean()) if apart.size else None,
        "not_finite": [int(ours_out.sum()), int(theirs_out.sum()), int((ours_out & theirs_out).sum())],
    }


TITLES = (
    "operator",
    "precision",
    "input times",
    "largest difference, ulp",
    "same, of the largest answer",
    "elements that differ",
    "not finite: rehearsal, torch, both",
)


def table(rows):
    lines = ["| " + " | ".join(TITLES) + " |", "|" + "---|" * len(TITLES)]
    for row in rows:
        cells = [row["operator"], row["precision"], f"{row['factor']:g}"]
        if row["torch"]:
            cells += [f"torch does not run it: {row['torch']}", "-", "-", "-"]
        else:
            cells += [_number(row["largest_ulp"], ".4g"), _number(row["largest_share"], ".1e")]
            cells += [_number(row["differ"], ".2%"), f"{', '.join(map(str, row['not_finite']))} of {row['elements']}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value, form):
    return "-" if value is None else format(value, form)


def conditions():
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"Conditions: torch {torch.__version__} on a CPU ({capability}; {_processor()}), onnxruntime "
        f"{onnxruntime.__version__}, onnx {onnx.__version__}, Python {platform.python_version()}, 1 thread, seed {SEED}. "
        "Inputs and weights are rounded first and are the same for both. 1 ulp is the distance of two neighbouring "
        "numbers of the precision at the larger of both answers; below the smallest normal number the distance there."
    )


def _processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            names = [line.partition(":")[2].strip() for line in handle if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="PAGE", help="also write the page, and JSON beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measure(name, operator, precision, factor)
        for name, operator in operators().items()
        for precision in TORCH_TYPES
        for factor in (1, operator.large)
    ]
    print(table(rows))
    print(conditions())
    if options.write:
        command = f"python benchmarks/{os.path.basename(__file__)} --write {options.write}"
        record = {"rows": rows, "conditions": conditions()}
        write_page(options.write, "What the rehearsal predicts", command, table(rows), conditions(), record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
