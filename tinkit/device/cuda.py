"""The few calls of CUDA that running an engine takes, through ctypes: nothing of torch, pycuda or a toolkit.

The driver API was chosen: its library (libcuda.so.1) is there wherever a GPU works, on a Jetson too, while libcudart
comes with a toolkit and carries a version in its name. TensorRT speaks the runtime API, which lives in the device's
primary context; so that context is retained and made current here, and both sides mean the same memory.
What the driver hands out (buffers, streams, events, graphs) is owned in tinkit/device/cuda_memory.py.
"""

import contextlib
import ctypes
from dataclasses import dataclass

from tinkit.errors import CannotJudge, TinkitError

LIBRARY = "libcuda.so.1"
OUT_OF_MEMORY = 2
POINTER, INT, UINT, SIZE, ADDRESS = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_uint64

# cuda.h of CUDA 13.0, and there since 11.0 (JetPack 5 has 11.4). Handles and pointers are 64 bits wide: ctypes would
# pass them as 32-bit numbers if it were not told. CUdevice is an int, CUdeviceptr a 64-bit number.
SIGNATURES = {
    "cuInit": (UINT,),
    "cuGetErrorName": (INT, POINTER),
    "cuGetErrorString": (INT, POINTER),
    "cuDriverGetVersion": (POINTER,),
    "cuDeviceGetCount": (POINTER,),
    "cuDeviceGet": (POINTER, INT),
    "cuDeviceGetName": (POINTER, INT, INT),
    "cuDeviceGetAttribute": (POINTER, INT, INT),
    "cuDeviceTotalMem_v2": (POINTER, INT),
    "cuDevicePrimaryCtxRetain": (POINTER, INT),
    "cuDevicePrimaryCtxRelease_v2": (INT,),
    "cuCtxSetCurrent": (POINTER,),
    "cuMemGetInfo_v2": (POINTER, POINTER),
    "cuMemAlloc_v2": (POINTER, SIZE),
    "cuMemFree_v2": (ADDRESS,),
    "cuMemHostAlloc": (POINTER, SIZE, UINT),
    "cuMemFreeHost": (POINTER,),
    "cuMemcpyHtoDAsync_v2": (ADDRESS, POINTER, SIZE, POINTER),
    "cuMemcpyDtoHAsync_v2": (POINTER, ADDRESS, SIZE, POINTER),
    "cuStreamCreate": (POINTER, UINT),
    "cuStreamSynchronize": (POINTER,),
    "cuStreamDestroy_v2": (POINTER,),
    "cuStreamBeginCapture_v2": (POINTER, INT),
    "cuStreamEndCapture": (POINTER, POINTER),
    "cuGraphLaunch": (POINTER, POINTER),
    "cuGraphDestroy": (POINTER,),
    "cuGraphExecDestroy": (POINTER,),
    "cuEventCreate": (POINTER, UINT),
    "cuEventRecord": (POINTER, POINTER),
    "cuEventSynchronize": (POINTER,),
    "cuEventElapsedTime": (POINTER, POINTER, POINTER),
    "cuEventDestroy_v2": (POINTER,),
}
# The first one that the library has: with flags since CUDA 11.4, with a log buffer before.
INSTANTIATE = {
    "cuGraphInstantiateWithFlags": (POINTER, POINTER, ctypes.c_ulonglong),
    "cuGraphInstantiate_v2": (POINTER, POINTER, POINTER, POINTER, SIZE),
}
MULTIPROCESSORS, INTEGRATED, MAJOR, MINOR = 16, 18, 75, 76  # CUdevice_attribute


@dataclass(frozen=True)
class Gpu:
    """A device as the driver tells of it; `integrated`: it shares the memory of the machine, as on a Jetson."""

    name: str
    sm: str  # compute capability, "8.7"
    multiprocessors: int
    memory_bytes: int
    integrated: bool


class Cuda:
    """One device with its primary context retained; use it in a `with`. `library` is a stand-in in tests.

    A context belongs to a thread: whoever works from another one calls `use()` there first.
    Raises CannotJudge where there is no driver or no device.
    """

    def __init__(self, index=0, library=None):
        self._library, self._context = library or _driver(), None
        for name, kinds in SIGNATURES.items():
            self._bind(name, kinds)
        self._instantiate = next((name for name, kinds in INSTANTIATE.items() if self._bind(name, kinds, False)), None)
        self._start()
        self._device = self._device_number(index)
        self.gpu = self._facts()
        context = POINTER()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._context = context
        try:
            self.use()
        except TinkitError:
            self.close()
            raise

    def call(self, name, *arguments, wanted=None):
        """Call the driver. `wanted`: (bytes, what for) of a call that takes memory. Raises TinkitError for any code but 0."""
        code = getattr(self._library, name)(*arguments)
        if code == OUT_OF_MEMORY:
            raise self.too_little_memory(wanted, self._words(name, code))
        if code != 0:
            raise TinkitError("CUDA refused a call.", seen=self._words(name, code))

    def use(self):
        """Make the context current in this thread; once for every thread, cheap when it is already."""
        if self._context is None:
            raise ValueError("the CUDA device is closed")
        self.call("cuCtxSetCurrent", self._context)

    def free_memory(self):
        """Bytes free now. On a Jetson memory that the system caches files in counts as used, so it is a lower bound."""
        free, total = SIZE(), SIZE()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def too_little_memory(self, wanted=None, words=""):
        """The TinkitError for it, also where TensorRT was the one that got none. `wanted`: (bytes, what for)."""
        free = "an unknown amount"
        with contextlib.suppress(TinkitError):
            free = megabytes(self.free_memory())
        asked = "wanted {} for {}, ".format(megabytes(wanted[0]), wanted[1]) if wanted else ""
        return TinkitError(
            "The GPU has too little memory.",
            where=self.gpu.name,
            seen="{}{} of {} free; {}".format(asked, free, megabytes(self.gpu.memory_bytes), words).rstrip("; "),
            next_step="close what else uses the GPU, or export for a smaller largest batch (batch.max of the target)",
        )

    def instantiate(self, graph):
        """The executable of a captured graph, as a handle that the caller owns."""
        if self._instantiate is None:
            raise TinkitError("This driver cannot run CUDA graphs.", next_step="leave the CUDA graph off")
        handle = POINTER()
        more = (0,) if self._instantiate == "cuGraphInstantiateWithFlags" else (None, None, 0)
        self.call(self._instantiate, ctypes.byref(handle), graph, *more)
        return handle

    def versions(self):
        version = INT()
        self.call("cuDriverGetVersion", ctypes.byref(version))  # 12020: the CUDA that the driver can, not the toolkit's
        return {"cuda_driver": "{}.{}".format(version.value // 1000, version.value % 1000 // 10)}

    def close(self):
        if self._context is not None:
            self._context = None
            self.call("cuDevicePrimaryCtxRelease_v2", self._device)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        with contextlib.suppress(*(() if kind is None else (TinkitError,))):  # the first error is the one to tell
            self.close()

    def _bind(self, name, kinds, needed=True):
        function = getattr(self._library, name, None)
        if function is None:
            if needed:
                raise CannotJudge(
                    "The NVIDIA driver is older than tinkit can use.", seen="{} lacks {}".format(LIBRARY, name)
                )
            return False
        function.argtypes, function.restype = list(kinds), INT
        return True

    def _start(self):
        code, count = self._library.cuInit(0), INT()
        if code != 0:
            raise CannotJudge("CUDA does not start, so there is no GPU here.", seen=self._words("cuInit", code))
        self.call("cuDeviceGetCount", ctypes.byref(count))
        if count.value == 0:
            raise CannotJudge(
                "The NVIDIA driver finds no GPU.", next_step="look whether this user and container may see it"
            )
        self._count = count.value

    def _device_number(self, index):
        if not 0 <= index < self._count:
            raise TinkitError("There is no such GPU.", seen="number {}, there are {}".format(index, self._count))
        device = INT()
        self.call("cuDeviceGet", ctypes.byref(device), index)
        return device.value

    def _facts(self):
        name, total = ctypes.create_string_buffer(256), SIZE()
        self.call("cuDeviceGetName", name, len(name), self._device)
        self.call("cuDeviceTotalMem_v2", ctypes.byref(total), self._device)
        return Gpu(
            name=name.value.decode("utf-8", "replace"),
            sm="{}.{}".format(self._attribute(MAJOR), self._attribute(MINOR)),
            multiprocessors=self._attribute(MULTIPROCESSORS),
            memory_bytes=total.value,
            integrated=bool(self._attribute(INTEGRATED)),
        )

    def _attribute(self, number):
        value = INT()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    def _words(self, name, code):
        """`cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY (2), out of memory`"""
        told = []
        for ask in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            found = getattr(self._library, ask)(code, ctypes.byref(text)) == 0 and text.value
            told.append(text.value.decode("utf-8", "replace") if found else "unknown")
        return "{}: {} ({}), {}".format(name, told[0], code, told[1])


def megabytes(count):
    return "{:.1f} MB".format(count / 1e6)


def _driver():
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise CannotJudge(
            "There is no NVIDIA driver here, so there is no GPU.",
            seen=str(error),
            next_step="run this on the board; a container must be started with its GPU (--runtime nvidia or --gpus all)",
        ) from None
