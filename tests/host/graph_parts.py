"""Small planted ONNX graphs for the tests of what is done to graphs."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tinkit.host.export.graphs import tensor_types

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def make_model(nodes, constants, width, out_width=None, rank4=False, opset=20):
    """image (batch, width[, 1, 1]) -> embedding, from nodes as (operator, inputs, output[, attributes])."""
    tail = [1, 1] if rank4 else []
    return graph_model(
        nodes, constants, ["batch", width, *tail], {"embedding": ["batch", out_width or width, *tail]}, opset
    )


def graph_model(nodes, constants, image, outputs, opset=20, image_type=TensorProto.FLOAT):
    """A checked model. Nodes as (operator, inputs, output[, attributes]); a node is called OPERATOR + its number, or what
    its attributes call `name`. float64 constants become float32, others stay what they are."""
    made = []
    for number, (op, inputs, out, *more) in enumerate(nodes):
        attributes = {"name": f"{op}{number}", **(more[0] if more else {})}
        made.append(helper.make_node(op, inputs, [out], **attributes))
    graph = helper.make_graph(
        made,
        "planted",
        [helper.make_tensor_value_info("image", image_type, image)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(_single(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _single(value):
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def run_all(model, image, optimised=True):
    """{output: array} of a ModelProto in onnxruntime; the image is turned into the input's dtype."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
    feed = {value.name: np.asarray(image, kinds[value.type]) for value in session.get_inputs()}
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feed)))


def run(model, image, optimised=True):
    return run_all(model, image, optimised)["embedding"]


def computed_in(model) -> dict[str, set]:
    """Node -> the ONNX float types of its inputs and outputs."""
    types = tensor_types(model)
    return {
        node.name: {types[name] for name in (*node.input, *node.output) if name and types[name] in FLOATS}
        for node in model.graph.node
    }


def overflowing(opset=20):
    """250 x 90 x 8 = 180000 between two convolutions, 720 at the end: harmless in fp32, infinite in fp16."""
    constants = {"up": np.full((8, 8, 1, 1), 90.0), "down": np.full((8, 8, 1, 1), 0.0005)}
    nodes = [("Conv", ["image", "up"], "large"), ("Conv", ["large", "down"], "embedding")]
    return make_model(nodes, constants, 8, rank4=True, opset=opset)


def quantised(opset=20):
    """image (batch, 4, 6, 6) -> embedding (batch, 5): Conv, Relu, mean, MatMul, Add; weights and activations of the two
    products behind Q/DQ, symmetric, weights per channel."""
    rng = np.random.default_rng(3)
    constants = {
        "conv.weight": rng.normal(size=(8, 4, 3, 3)) / 6,
        "conv.bias": rng.normal(size=8),
        "fc.weight": rng.normal(size=(8, 5)) / 3,
        "fc.bias": rng.normal(size=5),
        "image.scale": np.float32(0.025),
        "mean.scale": np.float32(0.01),
        "conv.scale": np.full(8, 0.004, np.float32),
        "fc.scale": np.full(5, 0.008, np.float32),
        "zero": np.int8(0),
        "zeros8": np.zeros(8, np.int8),
        "zeros5": np.zeros(5, np.int8),
    }
    nodes = [
        *_pair("image", "image.scale", "zero"),
        *_pair("conv.weight", "conv.scale", "zeros8", 0),
        ("Conv", ["image/dq", "conv.weight/dq", "conv.bias"], "conv", {"pads": [1, 1, 1, 1], "name": "Conv"}),
        ("Relu", ["conv"], "relu"),
        ("GlobalAveragePool", ["relu"], "pool"),
        ("Flatten", ["pool"], "mean"),
        *_pair("mean", "mean.scale", "zero"),
        *_pair("fc.weight", "fc.scale", "zeros5", 1),
        ("MatMul", ["mean/dq", "fc.weight/dq"], "product", {"name": "MatMul"}),
        ("Add", ["product", "fc.bias"], "embedding", {"name": "Add"}),
    ]
    return graph_model(nodes, constants, ["batch", 4, 6, 6], {"embedding": ["batch", 5]}, opset)


def _pair(name, scale, zero, axis=None):
    more = {} if axis is None else {"axis": axis}
    return [
        ("QuantizeLinear", [name, scale, zero], f"{name}/q", more),
        ("DequantizeLinear", [f"{name}/q", scale, zero], f"{name}/dq", more),
    ]
