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
from tinkit.device.engine_identity import engine_identity, timing_identity
from tinkit.device.jetson import power_mode
from tinkit.device.loaded_engine import AnotherContext, LoadedEngine, batch_of
from tinkit.device.runtime import Tensor
from tinkit.device.tensorrt_log import TOO_LITTLE_MEMORY, recording_logger
from tinkit.errors import CannotJudge, TinkitError

INSTALL = (
    "on a Jetson TensorRT comes with JetPack: sudo apt-get install python3-libnvinfer, and make a virtual environment with "
    '--system-site-packages; elsewhere: pip install "tinkit[trt]"'
)

RECIPE = 1  # raised when engines are built otherwise than before: older ones are then not used again


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
    asked = dict(asdict(options), precision=target.precision, rest=target.rest, batch=asdict(target.batch))
    asked.update(weakly_typed=target.weakly_typed, recipe=RECIPE)
    del asked["timing_cache"]  # it makes the build shorter, not another engine
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
    context's graph is only certain for the shapes that it was recorded with. of: a `LoadedEngine` that is open, to run
    in another context of its own instead of loading the plan.
    Raises CannotJudge where TensorRT does not start, TinkitError for a plan that does not load and too little memory.
    """

    name = "tensorrt"

    def __init__(self, trt, plan, target, cuda, logger=None, cuda_graph=False, host_code=False, facts=None, of=None):
        start = time.perf_counter()
        self._module, self._target = trt, target
        self._tensorrt, self._cuda = str(trt.__version__), cuda
        self.facts, self.device_ms, self._cuda_graph = dict(facts or {}), None, cuda_graph
        self._batch, self._graph, self._views = None, None, {}
        self._later, self._owned = contextlib.ExitStack(), None
        cuda.use()
        with contextlib.ExitStack() as until_loaded:  # an error half-way gives everything back
            self._stream = until_loaded.enter_context(Stream(cuda))
            self._events = [until_loaded.enter_context(Event(cuda)) for _ in range(2)]
            if of is None:
                logger, path = logger or recording_logger(trt), self.facts.get("engine")
                engine = until_loaded.enter_context(LoadedEngine(trt, plan, cuda, logger, path, host_code))
            else:
                engine = until_loaded.enter_context(AnotherContext(of))
            self._engine, self.inspector, self.batch_range = engine, engine.inspector, engine.batch_range
            self.inputs, self.outputs = engine.inputs, engine.outputs
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
        if self._owned is None:
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
            self._graph = self._recorded()
        return {slot.tensor.name: self._views[slot.tensor.name].copy() for slot in outputs}

    def use_cuda_graph(self, wanted):
        """Whether runs from now on go through a CUDA graph; recorded after the next run, or dropped at once."""
        if self._owned is None:
            raise ValueError("the runtime is closed")
        self._cuda_graph = self.conditions["cuda_graph"] = bool(wanted)
        if not wanted:
            self._cuda.use()
            self._close_graph()

    def again(self):
        """The same engine in another context with a stream and buffers of its own, for another thread; a `with` closes it.

        The weights are there once, the activations twice. Close it before this one. Raises CannotJudge on TensorRT 8
        for a free batch: it gives a shape profile to one context only (NVIDIA: shared by default since TensorRT 10).
        """
        if self._owned is None:
            raise ValueError("the runtime is closed")
        if self._tensorrt.startswith("8.") and any(tensor.shape[0] == "batch" for tensor in self.inputs):
            raise CannotJudge(
                "TensorRT 8 does not run an engine with a free batch in two streams.",
                seen="TensorRT {}, batch {} to {}".format(self._tensorrt, *self.batch_range),
                next_step="measure one stream, or export with a fixed batch",
            )
        graph, engine = self._cuda_graph, self._engine
        return TensorRtRuntime(
            self._module, None, self._target, self._cuda, cuda_graph=graph, facts=self.facts, of=engine
        )

    @contextlib.contextmanager
    def profiled(self):
        """Gives a list; runs inside append (layer, ms) of their layers: in a context of their own, never as a CUDA graph."""
        graph, self._cuda_graph = self._cuda_graph, False
        self._cuda.use()
        self._close_graph()
        try:
            with self._engine.profiled() as heard:
                yield heard
        finally:
            self._cuda_graph = graph

    def versions(self):
        return dict(self._cuda.versions(), tensorrt=self._tensorrt)

    def close_afterwards(self, stack):
        """Close an `ExitStack` with what this runtime needs (the CUDA device) when it is closed itself."""
        self._later = stack

    def close(self):
        if self._owned is None:
            return
        owned, self._owned = self._owned, None
        with self._later, owned:
            self._cuda.use()
            with contextlib.suppress(TinkitError):  # a run that was interrupted may still use the buffers
                self._stream.synchronise()
            self._close_graph()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        with contextlib.suppress(*(() if kind is None else (TinkitError,))):  # the first error is the one to tell
            self.close()

    def _make_slots(self, stack):
        self._engine.set_batch(self.batch_range[1])
        slots = []
        for tensor in self.inputs + self.outputs:
            size = int(np.prod(self._engine.shape(tensor.name), dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
            device = stack.enter_context(DeviceBuffer(self._cuda, size, "the tensor " + tensor.name))
            pinned = stack.enter_context(PinnedBuffer(self._cuda, size, "the tensor " + tensor.name))
            self._engine.use_buffer(tensor.name, device.handle)
            slots.append(Slot(tensor, device, pinned))
        return slots

    def _set_batch(self, batch):
        if batch == self._batch:
            return
        self._close_graph()
        self._batch = None  # until all of it is set
        self._engine.set_batch(batch)
        self._views = {
            slot.tensor.name: slot.pinned.array(slot.tensor.dtype, self._engine.shape(slot.tensor.name))
            for slot in self._slots
        }
        self._batch = batch

    def _enqueue(self):
        self._engine.enqueue(self._stream.handle)

    def _recorded(self):
        try:
            return Graph(self._cuda, self._stream, self._enqueue)
        except TinkitError as error:
            raise TinkitError(
                "The engine cannot be recorded as a CUDA graph.",
                seen=error.seen or error.what,
                next_step="run it without (cuda_graph=False)",
            ) from error

    def _close_graph(self):
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()
