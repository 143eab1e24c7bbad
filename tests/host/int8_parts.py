"""Two small nets for int8, written node by node, and smooth pictures: a CNN and a block of attention.

Weights are random and scaled so that the activations stay near one, as in a trained net.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SIZE = 32


class Net:
    """Collects nodes; every method adds some and returns the name of what they compute."""

    def __init__(self, seed=0):
        self.nodes, self.constants, self.random = [], [], np.random.default_rng(seed)

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op, name, *inputs, **attributes):
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def weight(self, name, shape, fan):
        return self.constant(name, self.random.normal(0, (2 / fan) ** 0.5, shape).astype(np.float32))

    def conv(self, name, x, channels, kernel=1, group=1, stride=1):
        out, inside = channels[1], channels[0] // group
        weight = self.weight(f"{name}.weight", (out, inside, kernel, kernel), inside * kernel**2)
        bias = self.constant(f"{name}.bias", self.random.normal(0, 0.1, out).astype(np.float32))
        pad = [kernel // 2] * 4
        return self.add("Conv", name, x, weight, bias, group=group, pads=pad, strides=[stride, stride])

    def linear(self, name, x, width, out):
        """MatMul with its weight on the right, and an Add for the bias: how a Linear over tokens is exported."""
        product = self.add("MatMul", name, x, self.weight(f"{name}.weight", (width, out), 2 * width))
        bias = self.constant(f"{name}.bias", self.random.normal(0, 0.1, out).astype(np.float32))
        return self.add("Add", f"{name}.add", product, bias)

    def gemm(self, name, x, width, out):
        weight = self.weight(f"{name}.weight", (out, width), 2 * width)
        return self.add("Gemm", name, x, weight, self.constant(f"{name}.bias", np.zeros(out, np.float32)), transB=1)

    def model(self, outputs, opset=18):
        """ONNX model from `image` to {output name: (tensor, shape)}; the tensors are renamed to the outputs."""
        new = {tensor: name for name, (tensor, _) in outputs.items()}
        for node in self.nodes:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, (_, shape) in outputs.items()],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def small_cnn(width=16, seed=0):
    """Stem, a depthwise block with a residual, a HardSwish and a gate, a head: `local` and `embedding`."""
    net = Net(seed)
    zero, six = net.constant("zero", np.float32(0)), net.constant("six", np.float32(6))
    x = net.add("Relu", "stem.act", net.conv("stem", "image", (3, width), 3, stride=2))
    y = net.add("Clip", "dw.act", net.conv("dw", x, (width, width), 3, group=width), zero, six)
    x = net.add("Add", "residual", net.conv("pw", y, (width, width)), x)
    x = net.add("HardSwish", "wide.act", net.conv("wide", x, (width, 2 * width), 3, stride=2))
    gate = net.add(
        "Sigmoid", "gate.act", net.conv("gate", net.add("GlobalAveragePool", "squeeze", x), (2 * width,) * 2)
    )
    x = net.conv("project", net.add("Mul", "gated", x, gate), (2 * width, 2 * width))
    y = net.add("Relu", "skip.act", net.conv("skip", x, (2 * width, 2 * width), 3))
    x = net.add("Add", "residual2", net.conv("skip2", y, (2 * width, 2 * width)), x)
    x = net.add("Relu", "neck.act", net.conv("neck", x, (2 * width, 2 * width)))
    pooled = net.add("Flatten", "flat", net.add("GlobalAveragePool", "pool", x))
    embedding = net.gemm("embed", pooled, 2 * width, 24)
    logits = net.gemm("head", embedding, 24, 5)
    shape = ["batch", 2 * width, SIZE // 4, SIZE // 4]
    return net.model({"local": (x, shape), "embedding": (embedding, ["batch", 24]), "logits": (logits, ["batch", 5])})


def small_attention(width=32, heads=2, seed=1):
    """Patches, norm, attention with its two products of activations, an MLP with GELU: `embedding`."""
    net = Net(seed)
    tokens, depth = (SIZE // 8) ** 2, width // heads
    patches = net.conv("patches", "image", (3, width), 8, stride=8)
    net.nodes[-1].attribute[1].ints[:] = [0, 0, 0, 0]
    flat = net.add("Reshape", "patches.flat", patches, net.constant("flat", np.array([0, width, tokens])))
    x = net.add("Transpose", "tokens", flat, perm=[0, 2, 1])
    q, k, v = [_heads(net, part, _norm(net, f"norm.{part}", x, width), width, heads) for part in "qkv"]
    scores = net.add("MatMul", "scores", q, net.add("Transpose", "k.turned", k, perm=[0, 1, 3, 2]))
    scaled = net.add("Mul", "scaled", scores, net.constant("scale", np.float32(2 / depth**0.5)))
    mixed = net.add("MatMul", "mixed", net.add("Softmax", "softmax", scaled, axis=-1), v)
    back = net.add("Transpose", "back", mixed, perm=[0, 2, 1, 3])
    joined = net.add("Reshape", "joined", back, net.constant("join", np.array([0, tokens, width])))
    x = net.add("Add", "residual", net.linear("proj", joined, width, width), x)
    y = net.linear("up", _norm(net, "norm.mlp", x, width), width, 4 * width)
    half = net.add("Div", "gelu.div", y, net.constant("root2", np.float32(2**0.5)))
    one = net.add("Add", "gelu.one", net.add("Erf", "gelu.erf", half), net.constant("one", np.float32(1)))
    y = net.add("Mul", "gelu.half", net.add("Mul", "gelu", y, one), net.constant("half", np.float32(0.5)))
    x = net.add("Add", "residual2", net.linear("down", y, 4 * width, width), x)
    mean = net.add("ReduceMean", "mean", x, net.constant("axis", np.array([1])), keepdims=0)
    return net.model({"embedding": (net.gemm("embed", mean, width, 24), ["batch", 24])})


def _norm(net, name, x, width):
    scale = net.constant(f"{name}.scale", np.ones(width, np.float32))
    return net.add("LayerNormalization", name, x, scale, net.constant(f"{name}.shift", np.zeros(width, np.float32)))


def _heads(net, name, x, width, heads):
    shape = net.constant(f"{name}.shape", np.array([0, (SIZE // 8) ** 2, heads, width // heads]))
    split = net.add("Reshape", f"{name}.split", net.linear(name, x, width, width), shape)
    return net.add("Transpose", f"{name}.heads", split, perm=[0, 2, 1, 3])


def pictures(count, seed=0):
    """`count` smooth pictures (N, 3, 32, 32), float32, about normal: noise of three sizes, as photographs have."""
    random = np.random.default_rng(seed)
    total = np.zeros((count, 3, SIZE, SIZE))
    for cells in (2, 8, 32):
        noise = random.normal(0, 1 / cells**0.5, (count, 3, cells, cells))
        total += noise.repeat(SIZE // cells, 2).repeat(SIZE // cells, 3)
    return (total + random.normal(0, 0.5, (count, 3, 1, 1))).astype(np.float32)


def run(model, images, level="off", names=None):
    """{output: array} of `model` on `images`, at graph optimisation "off" or "all"."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = {"off": levels.ORT_DISABLE_ALL, "all": levels.ORT_ENABLE_ALL}[level]
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = names or [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images})))


def cosines(a, b):
    """The cosine of every picture's outputs, and the least of those after the mean of `b` is taken out (stricter)."""
    a, b = (values.reshape(len(values), -1).astype(np.float64) for values in (a, b))
    plain = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    a, b = a - b.mean(0), b - b.mean(0)
    return plain, (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
