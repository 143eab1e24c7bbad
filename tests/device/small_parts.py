"""A model small enough to know by heart: the mean colour of a picture times a 3 x 8 matrix, with target and exam."""

import io

import numpy as np

from tinkit.bundle import Exam
from tinkit.device import board, pictures
from tinkit.pixels import Preprocessing, normalise
from tinkit.recipes import DeviceProfile
from tinkit.target import Batch, Gate, Target

SIZE = 16
PREPROCESSING = Preprocessing(size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.8)
WEIGHT = np.random.default_rng(7).normal(size=(3, 8)).astype(np.float32)


def small_model(path, batch="batch", dtype="float32"):
    """image (batch, 3, 16, 16) -> embedding (batch, 8) as an ONNX file, opset 20."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[dtype]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image", "axes"], ["colour"], keepdims=0),
            helper.make_node("MatMul", ["colour", "weight"], ["embedding"]),
        ],
        "small",
        [helper.make_tensor_value_info("image", kind, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embedding", kind, [batch, 8])],
        [
            numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
            numpy_helper.from_array(WEIGHT.astype(dtype), "weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model, full_check=True)
    save(model, str(path))
    return path


def small_target(**changes):
    values = {
        "description": "for tests",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "gate": {"embedding": Gate(min_cosine=0.99, max_error_share=0.01)},
        "name": "small",
        "batch": Batch(1, 1, 4),
    }
    return Target(**dict(values, **changes))


def reduced_target(precision="fp16", **changes):
    """A TensorRT target in a precision, with what that precision must say."""
    rest, opset = "fp16" if precision == "int8" else "", 22 if precision == "bf16" else 20
    return small_target(
        **dict({"runtime": "tensorrt", "precision": precision, "rest": rest, "opset": opset}, **changes)
    )


def this_machine(**changes):
    """A device profile of this very machine that times quickly."""
    values = {
        "description": "this machine",
        "runtimes": ("onnxruntime",),
        "arch": board.architecture(),
        "name": "here",
        "batches": (1, 4),
        "warmup_s": 0.05,
        "min_samples": 200,
        "min_seconds": 0.01,
    }
    return DeviceProfile(**dict(values, **changes))


def small_exam(count=6, encoded=2):
    """Pictures with a colour of their own each, and the answers of the small model, worked out in numpy."""
    from PIL import Image

    rng = np.random.default_rng(3)
    colours = rng.integers(40, 216, (count, 1, 1, 3))
    scenes = np.clip(colours + rng.integers(-40, 40, (count, 24, 30, 3)), 0, 255).astype(np.uint8)
    files = []
    for scene in scenes:
        handle = io.BytesIO()
        Image.fromarray(scene).save(handle, "PNG")
        files.append(handle.getvalue())
    pixels = np.stack([pictures.network_pixels(data, PREPROCESSING) for data in files])
    answers = normalise(pixels, PREPROCESSING).mean(axis=(2, 3)) @ WEIGHT
    return Exam(
        pixels=pixels,
        names=np.array(["scene{}.png".format(index) for index in range(count)]),
        answers={"embedding": answers},
        mapped=answers + np.float32(0.1),
        encoded=dict(list(enumerate(files))[:encoded]),
    )
