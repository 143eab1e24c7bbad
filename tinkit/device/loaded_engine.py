"""A plan loaded into TensorRT: its tensors by name, its batch range, its layers, and one context that runs it.

TensorRT's side of tinkit/device/tensorrt_runtime.py, which has the buffers and the stream. Only what 8.5 to 11 have in
common is used. TensorRT answers with None or False where something is wrong; here that is an error with the last words of
its log, and too little memory is told as such.
"""

import contextlib

import numpy as np

from tinkit.device.runtime import Tensor
from tinkit.device.tensorrt_log import TOO_LITTLE_MEMORY, known_meaning, last_words
from tinkit.errors import CannotJudge, TinkitError

NUMPY_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


class LoadedEngine:
    """inputs, outputs: `Tensor`s, a free batch is called "batch"; batch_range: smallest and largest; inspector: JSON text.

    path: where the plan lies, for the words of an error. Raises CannotJudge where TensorRT does not start, TinkitError
    for a plan that it does not load, for other free sizes than the batch, and for too little memory.
    """

    def __init__(self, trt, plan, cuda, logger, path=None, host_code=False):
        self._trt, self._cuda, self._logger, self._path = trt, cuda, logger, path
        self._heard, self._runtime, self._engine, self._context = len(logger.lines), None, None, None
        self._batch, self._addresses = None, {}  # what the context was told, for another one
        try:
            self._load(plan, host_code)
            self.inputs, self.outputs = self._tensors()
            self.batch_range = self._batches()
            self._context = self._new_context()
            self.set_batch(self.batch_range[1])
            self.inspector = self._layers()
        except BaseException:
            self.close()
            raise

    def set_batch(self, batch):
        """The shapes of all inputs; `shape` tells those of the outputs from then on."""
        for tensor in self.inputs:
            shape = (batch,) + tensor.shape[1:]
            if not self._context.set_input_shape(tensor.name, shape):
                raise self._refused("TensorRT does not take {} in the shape {}.".format(tensor.name, shape))
        self._batch = batch

    def shape(self, name):
        """The shape of a tensor at the batch that was set."""
        shape = tuple(self._context.get_tensor_shape(name))
        if min(shape) < 0:
            raise TinkitError("The shape of an output depends on its values.", seen="{} {}".format(name, shape))
        return shape

    def use_buffer(self, name, address):
        if not self._context.set_tensor_address(name, address):
            raise self._refused("TensorRT does not take a buffer for {}.".format(name))
        self._addresses = dict(
            self._addresses, **{name: address}
        )  # a new one: contexts of one engine may share the old

    def enqueue(self, stream):
        """Put one run on the stream (its handle, a number); returns before it is done."""
        if not self._context.execute_async_v3(stream):
            raise self._refused("TensorRT does not run the engine.")

    @contextlib.contextmanager
    def profiled(self):
        """Gives a list; what is enqueued inside appends (layer, ms) of its layers to it, when it is done or earlier.

        For that time a second context takes the place of the one that is timed, on the same buffers. It needs the memory of
        the activations once more: too little is an error as in the beginning. An enqueue may wait for the GPU.
        """
        timed, heard = self._context, []
        profiler = _profiler(self._trt, heard)
        try:
            self._context = self._new_context()
            self._context.profiler = profiler  # enqueue_emits_profile is on unless somebody turns it off
            self._tell_again()
            yield heard
        finally:
            self._context = timed  # the other one goes before its profiler
            self._tell_again()

    def _tell_again(self):
        self.set_batch(self._batch)
        for name, address in self._addresses.items():
            self.use_buffer(name, address)

    def close(self):
        """TensorRT wants a part to go before what made it."""
        self._context = None
        self._engine = None
        self._runtime = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _load(self, plan, host_code):
        try:
            self._runtime = self._trt.Runtime(self._logger)
        except (TypeError, RuntimeError) as error:  # pybind11 saw a null pointer
            raise CannotJudge("TensorRT's runtime does not start.", seen=self._words() + "; " + str(error)) from None
        if host_code:  # a version-compatible engine brings a runtime of its own, which is code
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._refused("TensorRT does not load the engine.", (len(plan), "the engine"))

    def _tensors(self):
        inputs, outputs = [], []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            shape, kind = tuple(self._engine.get_tensor_shape(name)), self._engine.get_tensor_dtype(name).name
            if kind not in NUMPY_DTYPES:
                raise TinkitError("A tensor has a type that numpy lacks.", seen="{}: {}".format(name, kind))
            if not shape or -1 in shape[1:]:
                raise TinkitError("Only the batch of an engine may be free.", seen="{} {}".format(name, shape))
            shape = ("batch",) + shape[1:] if shape[0] == -1 else shape
            is_input = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(Tensor(name, NUMPY_DTYPES[kind], shape))
        return tuple(inputs), tuple(outputs)

    def _batches(self):
        """What every input takes; of a fixed batch the same number twice."""
        low, high = [], []
        for tensor in self.inputs:
            smallest = largest = tensor.shape
            if tensor.shape[0] == "batch":
                smallest, _, largest = self._engine.get_tensor_profile_shape(tensor.name, 0)
            low.append(smallest[0])
            high.append(largest[0])
        return max(low), min(high)

    def _layers(self):
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context  # or types are "N/A due to dynamic shapes"
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _new_context(self):
        wanted = getattr(self._engine, "device_memory_size_v2", None)  # 10.3 and later; the other one is gone in 11
        wanted = self._engine.device_memory_size if wanted is None else wanted
        context = self._engine.create_execution_context()
        if context is None:
            raise self._refused("TensorRT makes no execution context.", (wanted, "the engine's activations"))
        return context

    def _words(self):
        return "TensorRT {}: {}".format(
            self._trt.__version__, last_words(self._logger.lines[self._heard :], self._logger.harmless)
        )

    def _refused(self, what, wanted=None):
        words = self._words()
        meaning, next_step = known_meaning(words)
        if meaning == TOO_LITTLE_MEMORY:
            return self._cuda.too_little_memory(wanted, words)
        if self._path and next_step is None:
            next_step = "remove {}, so that it is built anew".format(self._path)
        return TinkitError(meaning or what, where=self._path, seen=words, next_step=next_step)


class AnotherContext(LoadedEngine):
    """One more context of an engine that is loaded. The engine stays until the last one of them is closed."""

    def __init__(self, first):
        self.__dict__.update(vars(first), _context=None, _batch=None, _addresses={})
        self._context = self._new_context()
        self.set_batch(self.batch_range[1])


def _profiler(trt, heard):
    """A TensorRT IProfiler that appends (layer, ms) to `heard`; every version has the same two methods."""

    class Profiler(trt.IProfiler):
        def __init__(self):
            trt.IProfiler.__init__(self)  # or pybind11 refuses the object

        def report_layer_time(self, layer_name, ms):
            heard.append((str(layer_name), float(ms)))

    return Profiler()


def batch_of(feeds, inputs, batch_range):
    """The batch size of arrays by name. Raises TinkitError for other names, types or shapes than the engine's."""
    if set(feeds) != {tensor.name for tensor in inputs}:
        wanted = ", ".join(tensor.name for tensor in inputs)
        raise TinkitError("The inputs are not the engine's.", seen=", ".join(sorted(feeds)), next_step="give " + wanted)
    batch = None
    for tensor in inputs:
        seen, shape = feeds[tensor.name].dtype, feeds[tensor.name].shape
        batch = shape[:1] if batch is None else batch
        if seen != np.dtype(tensor.dtype) or shape[1:] != tensor.shape[1:] or shape[:1] != batch or not shape:
            raise TinkitError(
                "An input is not what the engine takes.",
                where=tensor.name,
                seen="{} {}".format(seen, shape),
                next_step="give {} {}, the batch the same for all inputs".format(tensor.dtype, tensor.shape),
            )
    low, high = batch_range
    if not low <= batch[0] <= high:
        raise TinkitError(
            "The batch is outside what the engine was built for.",
            seen="batch {}, the engine takes {} to {}".format(batch[0], low, high),
            next_step="split the pictures, or export with another batch range in the target",
        )
    return batch[0]
