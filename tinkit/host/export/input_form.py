"""What a camera hands over, taken by the graph itself: uint8 NHWC pictures, or whole frames of one fixed size.

`normalise/*` nodes do what tinkit.pixels.normalise does, in fp32 (0.1 ms where the host needs 0.7). `resize/*` nodes
before them crop the centred square and resample it. No ONNX Resize equals Pillow's antialiased bicubic: the crop is
rounded to whole pixels, Pillow rounds to grey levels, and only onnxruntime has its filter. The others get a linear one
without antialiasing: TensorRT's parser refuses the attribute, OpenVINO passes over it without a word. So the frame is a
hop of its own with its own gate (tinkit.host.export.frame, where the differences are).
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tinkit.pixels import Preprocessing, centre_box
from tinkit.target import Target

ANTIALIAS_OPSET = 18
INNER = "normalise/image"  # the normalised float NCHW tensor that the student reads
PLANES = ("normalise/Cast", "normalise/Transpose")  # nodes from uint8 NHWC to float NCHW, of pixels at network size


def with_input_form(model, target: Target, size: int, preprocessing: Preprocessing | None):
    """The model with the target's input form in front; the float model itself where nothing is asked. Changes `model`.

    The input keeps its name and its batch. Raises ValueError without the preprocessing that a uint8 input needs.
    """
    if target.input == "float-nchw":
        return model
    if preprocessing is None:
        raise ValueError("a uint8 input needs the preprocessing of the student")
    graph = model.graph
    image = graph.input[0]
    for node in graph.node:
        node.input[:] = [INNER if name == image.name else name for name in node.input]
    planes = _planes(image.name, "normalise")
    nodes, constants = _normalised(planes[-1].output[0], preprocessing)
    _put_in_front(graph, [*planes, *nodes], constants, (size, size))
    return with_resize(model, target, preprocessing) if target.frame else model


def with_resize(model, target: Target, preprocessing: Preprocessing):
    """A uint8 NHWC model at network size, of any precision, takes frames of `target.frame` instead. Changes `model`.

    Raises ValueError for a model that has no `normalise/*` nodes in front.
    """
    graph = model.graph
    if not set(PLANES) <= {node.name for node in graph.node}:
        raise ValueError("only a model that takes uint8 NHWC pixels at network size gets a resize in front")
    (planes,) = (node.output[0] for node in graph.node if node.name == PLANES[1])
    nodes, constants = _resized(graph.input[0].name, target, preprocessing)
    for node in graph.node:
        node.input[:] = [nodes[-1].output[0] if name == planes else name for name in node.input]
    _put_in_front(graph, nodes, constants, target.frame, replacing=PLANES)
    return model


def _put_in_front(graph, nodes, constants, frame, replacing=()):
    """The graph's first nodes, and an input of uint8 NHWC pictures of (height, width) `frame`."""
    image = graph.input[0]
    batch = image.type.tensor_type.shape.dim[0]
    shape = [batch.dim_param or batch.dim_value, *frame, 3]
    image.CopyFrom(helper.make_tensor_value_info(image.name, TensorProto.UINT8, shape))
    old = [node for node in graph.node if node.name not in replacing]
    del graph.node[:]
    graph.node.extend([*nodes, *old])
    graph.initializer.extend(constants)


def _planes(name, prefix):
    """uint8 NHWC -> float NCHW, values 0..255."""
    cast = helper.make_node("Cast", [name], [f"{prefix}/float"], f"{prefix}/Cast", to=TensorProto.FLOAT)
    planes = helper.make_node(
        "Transpose", [cast.output[0]], [f"{prefix}/planes"], f"{prefix}/Transpose", perm=[0, 3, 1, 2]
    )
    return [cast, planes]


def _normalised(name, preprocessing):
    """(pixels - 255 mean) / (255 std) as pixels * scale + shift, worked out in float64."""
    std = np.asarray(preprocessing.std, np.float64)
    mean = np.asarray(preprocessing.mean, np.float64)
    constants = {"normalise/scale": 1 / (255 * std), "normalise/shift": -mean / std}
    nodes = [
        helper.make_node("Mul", [name, "normalise/scale"], ["normalise/scaled"], "normalise/Mul"),
        helper.make_node("Add", ["normalise/scaled", "normalise/shift"], [INNER], "normalise/Add"),
    ]
    return nodes, [_constant(key, value.reshape(1, 3, 1, 1).astype(np.float32)) for key, value in constants.items()]


def _resized(name, target, preprocessing):
    """The centred square of a frame at network size, float NCHW, values 0..255.

    Pillow's own filter where onnxruntime has it: a = -0.5, weights outside the picture left out, overshoot clipped.
    """
    top, left, side = crop_of(target.frame, preprocessing.crop_pct)
    antialias = target.opset >= ANTIALIAS_OPSET and target.runtime == "onnxruntime"
    pillows = antialias and preprocessing.interpolation == "bicubic"
    form = {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1} if pillows else {"mode": "linear"}
    size = preprocessing.size
    scale = np.nextafter(np.float32(size / side), np.float32(np.inf))  # ONNX rounds the side down: never below `size`
    nodes = _planes(name, "resize")
    cut = ["resize/planes", "resize/first", "resize/last", "resize/axes"]
    nodes += [
        helper.make_node("Slice", cut, ["resize/square"], "resize/Slice"),
        helper.make_node(
            "Resize",
            ["resize/square", "", "resize/scale"],
            ["resize/resampled"],
            "resize/Resize",
            **form,
            coordinate_transformation_mode="half_pixel",
            **({"antialias": 1} if antialias else {}),
        ),
        helper.make_node("Clip", ["resize/resampled", "resize/black", "resize/white"], ["resize/image"], "resize/Clip"),
    ]
    corners = {"first": [top, left], "last": [top + side, left + side], "axes": [2, 3]}
    constants = [_constant(f"resize/{key}", np.array(value, np.int64)) for key, value in corners.items()]
    levels = {"scale": [1, 1, scale, scale], "black": 0, "white": 255}
    return nodes, [
        *constants,
        *(_constant(f"resize/{key}", np.array(value, np.float32)) for key, value in levels.items()),
    ]


def crop_of(frame, crop_pct):
    """(top, left, side) in whole pixels: tinkit.pixels.centre_box, rounded."""
    height, width = frame
    box = centre_box(width, height, crop_pct)
    side = max(1, round(box[2] - box[0]))
    return round((height - side) / 2), round((width - side) / 2), side


def _constant(name, values):
    return numpy_helper.from_array(values, name)
