"""A TensorRT engine behind the Runtime protocol: from the cache or built here, then run on buffers of its own.

model.onnx + target -> this machine's TensorRT and GPU -> cache or builder -> engine -> `run`. Only the part of
TensorRT's interface that 8.5 to 11 have in common is used, with tensors by name. Buffers are made once, for the largest
batch, and copies go through pinned memory. Nothing falls back: a CUDA graph that cannot be recorded is an error.
"""

import contextlib
import time
from dataclasses import asdict, dataclass, replace

import numpy as np

from tinkit.device import engine as engines
from tinkit.device.cuda import Cuda, megabytes
from tinkit.device.cuda_memory import DeviceBuffer, Event, Graph, PinnedBuffer, Stream
from tinkit.device.engine_cache import EngineCache
from tinkit.device.engine_identity import engine_identity, power_mode, timing_identity
from tinkit.device.runtime import Tensor
from tinkit.device.tensorrt_log import TOO_LITTLE_MEMORY, known_meaning, last_words, recording_logger
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
INSTALL = (
    "on a Jetson TensorRT comes with JetPack: sudo apt-get install python3-libnvinfer, and make a virtual environment with "
    '--system-site-packages; elsewhere: pip install "tinkit[trt]"'
)


def open_tensorrt(
    model_path,
    target,
    fp32_nodes=(),
    say=None,
    cache=None,
    trt=None,
    cuda=None,
    options=engines.DEFAULTS,
    cuda_graph=False,
):
    """The engine of a model on this machine, built where the cache has none; a `TensorRtRuntime` to use in a `with`.

    cache: an `EngineCache`, the user's own when None. trt, cuda: what is found when None; a `cuda` that is given stays
    the caller's. `say(line)` hears of the steps.
    Raises CannotJudge without TensorRT, driver or GPU; TinkitError for a TensorRT that does not fit the target, an
    engine that is not built or does not load, and too little memory.
    """
    say = say or (lambda line: None)
    trt = trt or engines.find_tensorrt()
    if trt is None:
        raise CannotJudge("TensorRT is missing, so no engine can be built or run here.", next_step=INSTALL)
    with contextlib.ExitStack() as until_open:
        if cuda is None:
            cuda = until_open.enter_context(Cuda())  # before TensorRT's runtime, which may crash without a GPU
        cuda.use()
        engines.refuse_unfit(trt, model_path, target)
        cache = cache or EngineCache(say=say)
        options = replace(options, fp32_nodes=tuple(fp32_nodes))
        plan, facts = _plan(trt, model_path, target, cuda, cache, options, say)
        opened = TensorRtRuntime(
            trt, plan, target, cuda, cuda_graph=cuda_graph, host_code=options.version_compatible, facts=facts
        )
        opened.close_afterwards(until_open.pop_all())
        return opened


def _plan(trt, model_path, target, cuda, cache, options, say):
    """(plan, facts about it): from the cache, else built and kept."""
    asked = asdict(replace(options, timing_cache=None))
    asked.update({name: getattr(target, name) for name in ("precision", "rest", "weakly_typed")})
    asked["batch"] = asdict(target.batch)
    identity = engine_identity(model_path, trt.__version__, cuda.gpu, asked)
    plan = cache.lookup(identity)
    if plan is not None:
        say("the engine of an earlier build is used: {}".format(cache.path(identity)))
        return plan, dict(cache.facts(identity), engine=cache.path(identity))
    timing = timing_identity(trt.__version__, cuda.gpu)
    if options.timing_cache == b"":
        options = replace(options, timing_cache=cache.lookup(timing) or b"")
    built = _built(trt, model_path, target, options, cuda, say)
    facts = {"build_s": round(built.seconds, 3), "power_mode": power_mode(), "log": list(built.log)}
    try:
        if built.timing_cache:
            cache.keep(timing, built.timing_cache)
        facts["engine"] = cache.keep(identity, built.plan, facts)
    except TinkitError as error:  # a full disk costs the next build, not this one
        say("the engine is not kept: {}".format(error.what))
    return built.plan, facts


def _built(trt, model_path, target, options, cuda, say):
    free = cuda.free_memory()
    try:
        return engines.engine_from_onnx(trt, model_path, target, options=options, say=say)
    except TinkitError as error:
        if error.what == TOO_LITTLE_MEMORY:
            told = "{} of {} were free before the build on {}; {}"
            error.seen = told.format(megabytes(free), megabytes(cuda.gpu.memory_bytes), cuda.gpu.name, error.seen)
        raise


@dataclass(frozen=True)
class Slot:
    """A tensor with its memory on both sides, large enough for the largest batch."""

    tensor: Tensor
    device: DeviceBuffer
    pinned: PinnedBuffer


class TensorRtRuntime:
    """A loaded engine: the Runtime protocol, with `inspector` (JSON text about its layers) and `facts` about the plan.

    load_ms: from the plan's bytes to an engine that can run, its build not included. device_ms: of the last run, the
    network on the GPU without copies, by events; None before. One thread at a time. The first run of another batch size
    costs more than the next ones. A CUDA graph is recorded after it and kept for as long as that size runs, because one
    context's graph is only certain for the shapes that it was recorded with.
    Raises CannotJudge where TensorRT does not start, TinkitError for a plan that does not load and too little memory.
    """

    name = "tensorrt"

    def __init__(self, trt, plan, target, cuda, logger=None, cuda_graph=False, host_code=False, facts=None):
        start = time.perf_counter()
        self._trt, self._cuda, self._logger = trt, cuda, logger or recording_logger(trt)
        self.facts, self.device_ms, self._cuda_graph = dict(facts or {}), None, cuda_graph
        self._batch, self._graph, self._views = None, None, {}
        self._later, self._context = contextlib.ExitStack(), None
        self._heard = len(self._logger.lines)
        cuda.use()
        with contextlib.ExitStack() as until_loaded:  # an error half-way gives everything back
            self._stream = until_loaded.enter_context(Stream(cuda))
            self._events = [until_loaded.enter_context(Event(cuda)) for _ in range(2)]
            until_loaded.callback(self._drop_engine)
            self._load(plan, host_code)
            self._slots = self._make_slots(until_loaded)
            self._owned = until_loaded.pop_all()
        self.load_ms = (time.perf_counter() - start) * 1e3
        self.conditions = {
            "provider": "TensorRT",
            "gpu": cuda.gpu.name,
            "compute_capability": cuda.gpu.sm,
            "precision": target.precision,
            "batch_range": list(self.batch_range),
            "cuda_graph": cuda_graph,
            "copies": "host array to pinned memory to GPU and back, on one stream",
            "wait": "cuStreamSynchronize, in the way that the driver chooses by itself",
        }

    def run(self, feeds):
        if self._context is None:
            raise ValueError("the runtime is closed")
        batch = batch_of(feeds, self.inputs, self.batch_range)
        self._cuda.use()
        self._set_batch(batch)
        inputs, outputs = self._slots[: len(self.inputs)], self._slots[len(self.inputs) :]
        for slot in inputs:
            view = self._views[slot.tensor.name]
            np.copyto(view, feeds[slot.tensor.name])
            self._stream.to_device(slot.device, slot.pinned, view.nbytes)
        self._events[0].record(self._stream)
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.launch(self._stream)
        self._events[1].record(self._stream)
        for slot in outputs:
            self._stream.to_host(slot.pinned, slot.device, self._views[slot.tensor.name].nbytes)
        self._stream.synchronise()
        self.device_ms = self._events[1].ms_since(self._events[0])
        if self._cuda_graph and self._graph is None:  # now, for TensorRT does work of its own in a shape's first run
            self._graph = Graph(self._cuda, self._stream, self._enqueue)
        return {slot.tensor.name: self._views[slot.tensor.name].copy() for slot in outputs}

    def versions(self):
        return dict(self._cuda.versions(), tensorrt=str(self._trt.__version__))

    def close_afterwards(self, stack):
        """Close an `ExitStack` with what this runtime needs (the CUDA device) when it is closed itself."""
        self._later = stack

    def close(self):
        if self._context is None:
            return
        with self._later, self._owned:
            self._cuda.use()
            with contextlib.suppress(TinkitError):  # a run that was interrupted may still use the buffers
                self._stream.synchronise()
            self._close_graph()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        with contextlib.suppress(*(() if kind is None else (TinkitError,))):  # the first error is the one to tell
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
        self.inputs, self.outputs = self._tensors()
        self.batch_range = self._batches()
        layers = self._engine.create_engine_inspector()
        self.inspector = str(layers.get_engine_information(self._trt.LayerInformationFormat.JSON))
        wanted = getattr(self._engine, "device_memory_size_v2", None)  # 10.3 and later; before that the one without
        wanted = self._engine.device_memory_size if wanted is None else wanted
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._refused("TensorRT makes no execution context.", (wanted, "the engine's activations"))

    def _tensors(self):
        """(inputs, outputs); a free batch is called "batch" in their shapes."""
        sides = ([], [])
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            shape = tuple(self._engine.get_tensor_shape(name))
            kind = self._engine.get_tensor_dtype(name).name
            if kind not in NUMPY_DTYPES:
                raise TinkitError("A tensor has a type that numpy lacks.", seen="{}: {}".format(name, kind))
            if not shape or -1 in shape[1:]:
                raise TinkitError("Only the batch of an engine may be free.", seen="{} {}".format(name, shape))
            shape = ("batch",) + shape[1:] if shape[0] == -1 else shape
            is_input = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            sides[0 if is_input else 1].append(Tensor(name, NUMPY_DTYPES[kind], shape))
        return tuple(sides[0]), tuple(sides[1])

    def _batches(self):
        """(smallest, largest) batch that every input takes; of a fixed one the same number twice."""
        low, high = [], []
        for tensor in self.inputs:
            smallest, largest = tensor.shape, tensor.shape
            if tensor.shape[0] == "batch":
                smallest, _, largest = self._engine.get_tensor_profile_shape(tensor.name, 0)
            low.append(smallest[0])
            high.append(largest[0])
        return max(low), min(high)

    def _make_slots(self, stack):
        self._set_shapes(self.batch_range[1])
        slots = []
        for tensor in self.inputs + self.outputs:
            size = int(np.prod(self._shape(tensor), dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
            device = stack.enter_context(DeviceBuffer(self._cuda, size, "the tensor " + tensor.name))
            pinned = stack.enter_context(PinnedBuffer(self._cuda, size, "the tensor " + tensor.name))
            if not self._context.set_tensor_address(tensor.name, device.handle):
                raise self._refused("TensorRT does not take a buffer for {}.".format(tensor.name))
            slots.append(Slot(tensor, device, pinned))
        return slots

    def _set_batch(self, batch):
        if batch == self._batch:
            return
        self._close_graph()
        self._batch = None  # until all of it is set
        self._set_shapes(batch)
        self._views = {
            slot.tensor.name: slot.pinned.array(slot.tensor.dtype, self._shape(slot.tensor)) for slot in self._slots
        }
        self._batch = batch

    def _set_shapes(self, batch):
        for tensor in self.inputs:
            shape = (batch,) + tensor.shape[1:]
            if not self._context.set_input_shape(tensor.name, shape):
                raise self._refused("TensorRT does not take {} of the shape {}.".format(tensor.name, shape))

    def _shape(self, tensor):
        shape = tuple(self._context.get_tensor_shape(tensor.name))
        if min(shape) < 0:
            raise TinkitError("An output's shape depends on its values.", seen="{} {}".format(tensor.name, shape))
        return shape

    def _enqueue(self):
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._refused("TensorRT does not run the engine.")

    def _close_graph(self):
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def _drop_engine(self):
        """Before the stream and the device go; TensorRT wants the parts to go before what made them."""
        self._context = None
        self._engine = None
        self._runtime = None

    def _words(self):
        words = last_words(self._logger.lines[self._heard :], self._logger.harmless)
        return "TensorRT {}: {}".format(self._trt.__version__, words)

    def _refused(self, what, wanted=None):
        words = self._words()
        meaning, next_step = known_meaning(words)
        if meaning == TOO_LITTLE_MEMORY:
            return self._cuda.too_little_memory(wanted, words)
        path = self.facts.get("engine")
        if path and next_step is None:
            next_step = "remove {}, so that it is built anew".format(path)
        return TinkitError(what, where=path, seen=words, next_step=next_step)


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
