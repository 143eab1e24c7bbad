"""A network as an engine on the pretended GPU of cuda_parts.py, for the tests of the TensorRT runtime."""

import numpy as np
from cuda_parts import DataType, FakeTensorRt, Network, TensorIOMode
from small_parts import SIZE, WEIGHT, small_target

from tinkit.device.tensorrt_runtime import TensorRtRuntime
from tinkit.target import Batch

FP16 = small_target(runtime="tensorrt", precision="fp16", batch=Batch(1, 2, 4))
PICTURES = np.random.default_rng(5).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)


def network(dtype=DataType.FLOAT, batch=-1, **changes):
    """The model of small_parts.py as a plan: image (batch, 3, 16, 16) -> embedding (batch, 8)."""
    tensors = {
        "embedding": (TensorIOMode.OUTPUT, dtype, (batch, 8)),  # an output may come before the input
        "image": (TensorIOMode.INPUT, dtype, (batch, 3, SIZE, SIZE)),
    }
    values = {"tensors": tensors, "compute": lambda given: {"embedding": given["image"].mean(axis=(2, 3)) @ WEIGHT}}
    return Network(**dict(values, **changes))


def answers(pictures):
    return pictures.mean(axis=(2, 3)) @ WEIGHT


def opened(driver, cuda, plan=b"plan", **more):
    """(trt, runtime) of a network; keywords of `network`, of FakeTensorRt and of TensorRtRuntime."""
    version = more.pop("version", "10.3.0")
    trt = FakeTensorRt(driver, network(**{key: more.pop(key) for key in tuple(more) if key in NETWORK}), version)
    return trt, TensorRtRuntime(trt, plan, FP16, cuda, **more)


NETWORK = ("dtype", "batch", "batches", "fails", "memory", "tensors", "compute")
