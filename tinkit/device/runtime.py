"""What runs a model: one protocol, so that the exam and the stopwatch do not care which runtime is behind it.

Here onnxruntime on a CPU, with every option that moves a number set by hand and recorded; OpenVINO and TensorRT have
modules of their own. Arrays go in and come out in host memory, so a time taken around `run` includes the copies. A runtime
that is missing is said, never replaced.
"""

import contextlib
import time
from dataclasses import dataclass
from typing import Any, Dict, Protocol, Tuple

import numpy as np

from tinkit.errors import CannotJudge, TinkitError

NUMPY_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
}


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model; a dimension is a number, or a name (str) where it is free."""

    name: str
    dtype: str
    shape: Tuple[Any, ...]


class Runtime(Protocol):
    """A loaded model. Open it in a `with`; `load_ms` is the time from the file to a model that can run.

    One thread at a time. A runtime may also have `again()`: a context manager with a Runtime of the same model for another
    thread, so that both run at once.
    """

    name: str
    inputs: Tuple[Tensor, ...]
    outputs: Tuple[Tensor, ...]
    load_ms: float
    conditions: Dict[str, Any]

    def run(self, feeds: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """One batch, host arrays in and out by name; returns when the answers are there."""

    def versions(self) -> Dict[str, str]: ...

    def __enter__(self): ...

    def __exit__(self, *exception): ...


class OnnxRuntime:
    """onnxruntime's CPU provider: `threads` threads inside an operator, never two operators at once.

    `without`: names of onnxruntime's own optimisations that are switched off, where a graph is judged for another runtime.
    Raises CannotJudge without onnxruntime, TinkitError for a model that does not load or run.
    """

    name = "onnxruntime"

    def __init__(self, model_path, threads=1, without=()):
        self._ort = _onnxruntime()
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors; they come back as exceptions
        self.conditions = {
            "provider": "CPUExecutionProvider",
            "intra_op_threads": threads,
            "inter_op_threads": 1,
            "execution": "sequential",
            "graph_optimization": "all" + "".join(" but " + name for name in without),
        }
        start = time.perf_counter()
        try:
            self._session = self._ort.InferenceSession(
                str(model_path), options, ["CPUExecutionProvider"], disabled_optimizers=list(without)
            )
        except _onnxruntime_errors() as error:
            raise TinkitError("onnxruntime does not load the model.", where=str(model_path), seen=str(error)) from None
        self.load_ms = (time.perf_counter() - start) * 1e3
        self.inputs = tuple(_tensor(value) for value in self._session.get_inputs())
        self.outputs = tuple(_tensor(value) for value in self._session.get_outputs())
        self._names = [output.name for output in self.outputs]
        self._errors = _onnxruntime_errors()

    def run(self, feeds):
        if self._session is None:
            raise ValueError("the runtime is closed")
        try:
            return dict(zip(self._names, self._session.run(self._names, feeds)))
        except self._errors as error:
            raise TinkitError("onnxruntime does not run the model.", seen=str(error)) from None

    def again(self):
        """Itself: a session may be run from several threads. More than one thread inside an operator are shared then."""
        return contextlib.nullcontext(self)

    def versions(self):
        return {"onnxruntime": str(self._ort.__version__)}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._session = None  # frees the model's memory


def open_runtime(kind, model_path, threads=1, target=None, fp32_nodes=(), say=None, cache=None):
    """The runtime of a target or a device profile by its name, for the model of `target` (a `Target`).

    The target says which arithmetic OpenVINO is asked for and what TensorRT builds, with `fp32_nodes` for TensorRT 8.
    cache: an `EngineCache`, the user's own when None.
    Raises CannotJudge where this machine has no such runtime.
    """
    if kind == "onnxruntime":
        return OnnxRuntime(model_path, threads)
    if kind == "openvino":
        from tinkit.device.openvino_runtime import OpenVinoRuntime

        return OpenVinoRuntime(model_path, threads, getattr(target, "compute", "") or "fp32")
    if kind == "tensorrt":
        from tinkit.device.tensorrt_runtime import open_tensorrt

        return open_tensorrt(model_path, target, fp32_nodes, say, cache)
    raise ValueError("unknown runtime {!r}".format(kind))


def _tensor(value):
    return Tensor(value.name, NUMPY_DTYPES.get(value.type, value.type), tuple(value.shape))


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError:
        raise CannotJudge(
            "onnxruntime is missing, so nothing can be run here.", next_step='pip install "tinkit[cpu]"'
        ) from None
    return onnxruntime


def _onnxruntime_errors():
    """onnxruntime's own exceptions; they have no common parent but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*kinds, ValueError, RuntimeError)
