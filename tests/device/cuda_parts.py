"""A pretended GPU with a pretended TensorRT on it. Device memory is host memory; streams work only when waited for.

Every function goes through a real ctypes callback with the argument types that the code under test has set, so a handle
cut to 32 bits or a forgotten type is seen. `calls` has the order, `alive` what was not given back, `fail` injected codes.
The pretended engine reads and writes that memory, so what comes out of a run has been through every copy.
"""

import contextlib
import ctypes
import enum
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

NAMES = {
    0: "CUDA_SUCCESS",
    2: "CUDA_ERROR_OUT_OF_MEMORY",
    100: "CUDA_ERROR_NO_DEVICE",
    700: "CUDA_ERROR_ILLEGAL_ADDRESS",
}
TEXTS = {0: "no error", 2: "out of memory", 100: "no CUDA-capable device is detected", 700: "illegal memory access"}
HANDLE = 0x7F00_0000_1000  # handles need more than 32 bits
CLOCK_MS = 0.25  # what one piece of work takes


class Function:
    """One function of the library; typed by whoever loads it, as with ctypes."""

    argtypes = restype = None

    def __init__(self, name, library):
        self.name, self.library = name, library

    def __call__(self, *arguments):
        assert self.argtypes is not None, self.name + " is called without argument types"
        assert self.restype is ctypes.c_int, self.name
        self.library.calls.append(self.name)
        if self.library.fail.get(self.name):
            if self.name == "cuStreamEndCapture":
                self.library.recording = None  # a capture is over, also where it failed
            return self.library.fail[self.name]
        caught = []

        def guarded(*values):
            try:
                return getattr(self.library, "_" + self.name)(*values) or 0
            except Exception as error:  # noqa: BLE001 - a callback cannot raise; it is raised below
                caught.append(error)
                return 999

        code = ctypes.CFUNCTYPE(ctypes.c_int, *self.argtypes)(guarded)(*arguments)
        if caught:
            raise caught[0]
        return code


class FakeDriver:
    """The library object. fail: {function: code}; missing: functions that it lacks; memory: bytes of the device."""

    def __init__(self, fail=None, missing=(), memory=8 << 30, devices=1, name=b"Orin"):
        self.fail, self.missing, self.memory, self.devices, self.name = dict(fail or {}), missing, memory, devices, name
        self.calls, self.alive, self.retained = [], {}, 0
        self.queue, self.recording, self.marks, self.clock = [], None, {}, 0.0
        self._functions, self._next, self._strings = {}, HANDLE, []

    def __getattr__(self, name):
        if not name.startswith("cu") or name in self.missing or not hasattr(type(self), "_" + name):
            raise AttributeError(name)
        return self._functions.setdefault(name, Function(name, self))

    def put(self, work):
        """Enqueue `work()`, or record it while a capture goes on; how a pretended engine works on the stream."""
        (self.queue if self.recording is None else self.recording).append(work)

    def count(self, name):
        return self.calls.count(name)

    # What the functions do. Pointers arrive as plain numbers.

    def _cuInit(self, flags):
        return 0 if self.devices else 100

    def _cuGetErrorName(self, code, out):
        return self._text(NAMES, code, out)

    def _cuGetErrorString(self, code, out):
        return self._text(TEXTS, code, out)

    def _text(self, table, code, out):
        if code not in table:
            return 1
        self._strings.append(ctypes.create_string_buffer(table[code].encode()))
        return write(out, ctypes.c_void_p, ctypes.addressof(self._strings[-1]))

    def _cuDriverGetVersion(self, out):
        write(out, ctypes.c_int, 12060)

    def _cuDeviceGetCount(self, out):
        write(out, ctypes.c_int, self.devices)

    def _cuDeviceGet(self, out, index):
        write(out, ctypes.c_int, index)

    def _cuDeviceGetName(self, out, size, device):
        ctypes.memmove(out, self.name + b"\0", len(self.name) + 1)

    def _cuDeviceGetAttribute(self, out, attribute, device):
        write(out, ctypes.c_int, {16: 8, 18: 1, 75: 8, 76: 7}[attribute])

    def _cuDeviceTotalMem_v2(self, out, device):
        write(out, ctypes.c_size_t, self.memory)

    def _cuDevicePrimaryCtxRetain(self, out, device):
        self.retained += 1
        write(out, ctypes.c_void_p, HANDLE - 16)

    def _cuDevicePrimaryCtxRelease_v2(self, device):
        assert self.retained > 0
        assert self.fail or not self.alive, "the context goes before what is in it: {}".format(self.alive)
        self.retained -= 1

    def _cuCtxSetCurrent(self, context):
        assert context == HANDLE - 16
        assert self.retained > 0

    def _cuMemGetInfo_v2(self, free, total):
        write(free, ctypes.c_size_t, self.memory - self.used())
        write(total, ctypes.c_size_t, self.memory)

    def used(self):
        return sum(len(kept) for kind, kept in self.alive.values() if kind == "device")

    def _cuMemAlloc_v2(self, out, size):
        return self._allocate("device", out, size)

    def _cuMemHostAlloc(self, out, size, flags):
        return self._allocate("pinned", out, size)

    def _allocate(self, kind, out, size):
        if size == 0:
            return 1
        if size > self.memory - self.used():
            return 2
        kept = (ctypes.c_ubyte * size)()
        self.alive[ctypes.addressof(kept)] = (kind, kept)
        return write(out, ctypes.c_uint64, ctypes.addressof(kept))

    def _cuMemFree_v2(self, address):
        return self._give_back(address, "device")

    def _cuMemFreeHost(self, address):
        return self._give_back(address, "pinned")

    def _cuMemcpyHtoDAsync_v2(self, target, source, size, stream):
        return self._copy(target, "device", source, "pinned", size, stream)

    def _cuMemcpyDtoHAsync_v2(self, target, source, size, stream):
        return self._copy(target, "pinned", source, "device", size, stream)

    def _copy(self, target, target_kind, source, source_kind, size, stream):
        for address, kind in ((target, target_kind), (source, source_kind), (stream, "stream")):
            assert self.alive[address][0] == kind
        assert size <= min(len(self.alive[target][1]), len(self.alive[source][1]))
        self.put(lambda: ctypes.memmove(target, source, size))

    def _cuStreamCreate(self, out, flags):
        assert flags == 1
        return self._handle("stream", out)

    def _cuStreamSynchronize(self, stream):
        assert self.alive[stream][0] == "stream"
        assert self.recording is None, "waiting for a stream that records"
        while self.queue:
            self._step()

    def _step(self):
        self.queue.pop(0)()
        self.clock += CLOCK_MS

    def _cuStreamDestroy_v2(self, stream):
        return self._give_back(stream, "stream")

    def _cuStreamBeginCapture_v2(self, stream, mode):
        assert self.alive[stream][0] == "stream"
        assert (mode, self.recording) == (1, None)
        self.recording = []

    def _cuStreamEndCapture(self, stream, out):
        recorded, self.recording = self.recording, None
        return self._handle("graph", out, recorded)

    def _cuGraphInstantiateWithFlags(self, out, graph, flags):
        assert flags == 0
        return self._handle("graph executable", out, self.alive[graph][1])

    def _cuGraphInstantiate_v2(self, out, graph, node, log, size):
        assert (node, log, size) == (None, None, 0)
        return self._handle("graph executable", out, self.alive[graph][1])

    def _cuGraphLaunch(self, graph, stream):
        assert (self.alive[graph][0], self.alive[stream][0]) == ("graph executable", "stream")
        steps = self.alive[graph][1]
        self.put(lambda: [step() for step in steps])

    def _cuGraphDestroy(self, graph):
        return self._give_back(graph, "graph")

    def _cuGraphExecDestroy(self, graph):
        return self._give_back(graph, "graph executable")

    def _cuEventCreate(self, out, flags):
        return self._handle("event", out)

    def _cuEventRecord(self, event, stream):
        assert (self.alive[event][0], self.alive[stream][0]) == ("event", "stream")
        assert self.recording is None, "an event in a graph marks nothing outside"
        self.marks.pop(event, None)
        self.put(lambda: self.marks.update({event: self.clock}))

    def _cuEventSynchronize(self, event):
        assert self.alive[event][0] == "event"
        while event not in self.marks:  # what comes after the event is not waited for
            self._step()

    def _cuEventElapsedTime(self, out, start, end):
        write(out, ctypes.c_float, self.marks[end] - self.marks[start])

    def _cuEventDestroy_v2(self, event):
        return self._give_back(event, "event")

    def _handle(self, kind, out, kept=()):
        self._next += 16
        self.alive[self._next] = (kind, kept)
        return write(out, ctypes.c_void_p, self._next)

    def _give_back(self, handle, kind):
        if self.alive.get(handle, ("nothing",))[0] != kind:
            return 1  # given back twice, or something else
        del self.alive[handle]
        return 0


def write(address, kind, value):
    kind.from_address(address).value = value
    return 0


@contextlib.contextmanager
def nothing_left(driver):
    """What is opened inside is given back inside."""
    yield driver
    assert driver.alive == {}
    assert driver.retained == 0


class DataType(enum.Enum):
    """By name as in every version; the numbers are not TensorRT's."""

    FLOAT, HALF, INT8, INT32, BOOL, UINT8, BF16 = range(7)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class LayerInformationFormat(enum.Enum):
    ONELINE, JSON = range(2)


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


@dataclass
class Network:
    """What a pretended plan holds. tensors: name -> (TensorIOMode, DataType, shape), -1 for the free batch; compute:
    {input: array} -> {output: array}; fails: {method: words in the log}, which then answers None or False."""

    tensors: dict
    compute: object
    batches: tuple = (1, 2, 4)
    fails: dict = field(default_factory=dict)
    memory: int = 5_000_000


class FakeEngine:
    def __init__(self, world):
        self._world, self._network = world, world.network
        self.num_io_tensors = len(self._network.tensors)
        self.device_memory_size_v2 = self._network.memory

    def get_tensor_name(self, index):
        return list(self._network.tensors)[index]

    def get_tensor_mode(self, name):
        return self._network.tensors[name][0]

    def get_tensor_dtype(self, name):
        return self._network.tensors[name][1]

    def get_tensor_shape(self, name):
        return self._network.tensors[name][2]

    def get_tensor_profile_shape(self, name, profile_index):
        assert (self._network.tensors[name][0], profile_index) == (TensorIOMode.INPUT, 0)
        return [(size, *self._network.tensors[name][2][1:]) for size in self._network.batches]

    def create_engine_inspector(self):
        return FakeInspector()

    def create_execution_context(self):
        return self._world.answer("create_execution_context", lambda: FakeContext(self._world))


class FakeInspector:
    """Like the real one it knows no types of a free batch until it has a context whose shapes are set."""

    execution_context = None

    def get_engine_information(self, format):
        if self.execution_context is None or not self.execution_context._shapes:
            return '{"Layers": ["N/A due to dynamic shapes"]}'
        return '{"Layers": []}' if format == LayerInformationFormat.JSON else "one line"


class FakeContext:
    def __init__(self, world):
        self._world, self._network, self._shapes, self._addresses = world, world.network, {}, {}
        self._warm = None

    def set_input_shape(self, name, shape):
        smallest, _, largest = self._network.batches
        assert smallest <= shape[0] <= largest, "a real TensorRT refuses it"
        self._shapes[name] = tuple(shape)
        self._warm = None
        return self._world.answer("set_input_shape", lambda: True, False)

    def get_tensor_shape(self, name):
        batch = next(iter(self._shapes.values()))[0]
        return tuple(batch if size == -1 else size for size in self._network.tensors[name][2])

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return self._world.answer("set_tensor_address", lambda: True, False)

    def execute_async_v3(self, stream_handle):
        driver = self._world.driver
        assert driver.alive[stream_handle][0] == "stream"
        assert driver.recording is None or self._warm, "the first run in a shape cannot be recorded"
        self._warm = True
        self._world.executions += 1
        views = {name: self._view(name) for name in self._network.tensors}

        def work():
            given = {name: view for name, view in views.items() if self._network.tensors[name][0] == TensorIOMode.INPUT}
            for name, value in self._network.compute(given).items():
                views[name][...] = value

        driver.put(work)
        return self._world.answer("execute_async_v3", lambda: True, False)

    def _view(self, name):
        """The tensor in the pretended device's memory, which must be large enough for it and still be there."""
        kind, memory = self._world.driver.alive[self._addresses[name]]
        dtype = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8"}[self._network.tensors[name][1].name]
        shape = self.get_tensor_shape(name)
        assert kind == "device"
        return np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)


class FakeRuntime:
    engine_host_code_allowed = False

    def __init__(self, world, logger):
        self._world, world.logger = world, logger
        world.runtimes.append(self)

    def deserialize_cuda_engine(self, serialized_engine):
        assert self._world.driver.retained > 0, "a real TensorRT may crash without a device"
        if bytes(serialized_engine) != b"plan":
            self._world.network.fails["deserialize_cuda_engine"] = "Serialization assertion failed: magic tag"
        return self._world.answer("deserialize_cuda_engine", lambda: FakeEngine(self._world))


class FakeTensorRt:
    """The `trt` module that runs one pretended network on a pretended driver."""

    DataType, TensorIOMode, LayerInformationFormat = DataType, TensorIOMode, LayerInformationFormat

    def __init__(self, driver, network, version="10.3.0", starts=True):
        self.__version__, self.driver, self.network, self.starts = version, driver, network, starts
        self.executions, self.runtimes, self.logger = 0, [], None
        self.ILogger = type("ILogger", (ILogger,), {})  # of this module alone, as the process keeps a logger for each
        strong = {} if version.startswith("8.") else {"STRONGLY_TYPED": 1}
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**strong)

    def Runtime(self, logger):
        if not self.starts:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return FakeRuntime(self, logger)

    def answer(self, method, right, wrong=None):
        if method not in self.network.fails:
            return right()
        self.logger.log(self.ILogger.Severity.ERROR, self.network.fails[method])
        return wrong
