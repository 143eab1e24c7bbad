"""Precision on TensorRT 8, whose networks are weakly typed: flags say what may be used, layers what must be.

A node finds its layers by TensorRT's own note of it: from 8.6 on a layer's metadata holds `[ONNX Layer: name | ...]`.
Before, there is only the layer's name: the node's, with `_<number>` behind it where the name was taken already. Then a
node `x_1` beside a listed `x` cannot be told apart and stays in fp32 as well: slower, never wrong. Both rules are read
in the source of onnx-tensorrt (registerLayer, generateUniqueName, processMetadata).
"""

import re

FLAGS = {("fp16", ""): ("FP16",), ("int8", "fp16"): ("INT8", "FP16"), ("int8", "fp32"): ("INT8",)}
ALWAYS_FP32 = ("normalise/", "resize/")  # what tinkit puts in front of a student: it works on 0..255
ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]|]*[^\]| ])")


def set_weak_precision(trt, network, config, target, fp32_nodes):
    """Flags that allow the target's precision, and fp32 for the float layers of some nodes.

    fp32_nodes: ONNX node names. Returns a line for each that no layer belongs to.
    """
    for name in FLAGS.get((target.precision, target.rest), ()):
        config.set_flag(getattr(trt.BuilderFlag, name))
    found = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        nodes = _wanted_nodes(layer, fp32_nodes)
        outputs = [place for place in range(layer.num_outputs) if _is_float(trt, layer.get_output(place))]
        if nodes and outputs:
            layer.precision = trt.DataType.FLOAT
            for place in outputs:
                layer.set_output_type(place, trt.DataType.FLOAT)
        found.update(nodes)
    if found:
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    told = "no layer of TensorRT belongs to the node {}, which was to stay in fp32"
    return tuple(told.format(name) for name in fp32_nodes if name not in found)


def _wanted_nodes(layer, fp32_nodes):
    """The names that this layer was made for, out of the listed ones and of those that always stay in fp32."""
    known = ONNX_NODE.findall(getattr(layer, "metadata", "") or "")
    if known:
        return [name for name in known if name in fp32_nodes or name.startswith(ALWAYS_FP32)]
    if layer.name.startswith(ALWAYS_FP32):
        return [layer.name]
    return [name for name in (layer.name, re.sub(r"_\d+$", "", layer.name)) if name in fp32_nodes]


def _is_float(trt, tensor):
    return tensor.dtype in (trt.DataType.FLOAT, trt.DataType.HALF) and not tensor.is_shape_tensor
