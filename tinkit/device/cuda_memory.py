"""What the CUDA driver hands out, each with one owner: buffers, streams, events and graphs.

Everything here is opened in a `with` and given back once; using it afterwards is a ValueError. Copies go through pinned
host buffers only, because the driver stages pageable ones itself, and then "async" is not.
"""

import contextlib
import ctypes

import numpy as np

from tinkit.device.cuda import ADDRESS, POINTER, megabytes
from tinkit.errors import TinkitError

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the legacy default stream
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do does not break a capture


class Owned:
    """A handle of the driver's and the call that gives it back."""

    def __init__(self, cuda, handle, release, size=0):
        self._cuda, self._handle, self._release, self.size = cuda, handle, release, size

    @property
    def handle(self):
        """As a plain number, what TensorRT takes for a stream or an address."""
        if self._handle is None:
            raise ValueError("{} is closed".format(type(self).__name__))
        return self._handle.value

    def close(self):
        handle, self._handle = self._handle, None
        if handle is not None:
            self._cuda.call(self._release, handle)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        with contextlib.suppress(*(() if kind is None else (TinkitError,))):  # the first error is the one to tell
            self.close()


class DeviceBuffer(Owned):
    """`size` bytes of the GPU's memory; `what` is said where there is too little."""

    def __init__(self, cuda, size, what="a buffer"):
        handle = ADDRESS()
        cuda.call("cuMemAlloc_v2", ctypes.byref(handle), size, wanted=(size, what))
        super().__init__(cuda, handle, "cuMemFree_v2", size)


class PinnedBuffer(Owned):
    """`size` bytes of host memory that the system never moves, so that the GPU copies it by itself."""

    def __init__(self, cuda, size, what="a buffer"):
        handle = POINTER()
        cuda.call("cuMemHostAlloc", ctypes.byref(handle), size, 0, wanted=(size, what + " in host memory"))
        super().__init__(cuda, handle, "cuMemFreeHost", size)

    def array(self, dtype, shape):
        """A view of its first bytes. It is gone with the buffer: hand out copies."""
        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        _check_size(count * dtype.itemsize, self)
        return np.frombuffer((ctypes.c_ubyte * self.size).from_address(self.handle), dtype, count).reshape(shape)


class Stream(Owned):
    """Work for the GPU, in order; nothing of it is certain to be done before `synchronise` returns."""

    def __init__(self, cuda):
        handle = POINTER()
        cuda.call("cuStreamCreate", ctypes.byref(handle), NON_BLOCKING)
        super().__init__(cuda, handle, "cuStreamDestroy_v2")

    def to_device(self, target, source, size):
        """Copy the first `size` bytes of a PinnedBuffer; it must stay unchanged until `synchronise`."""
        _check_size(size, target, source)
        self._cuda.call("cuMemcpyHtoDAsync_v2", target.handle, source.handle, size, self.handle)

    def to_host(self, target, source, size):
        """Copy the first `size` bytes into a PinnedBuffer; they are there after `synchronise`."""
        _check_size(size, target, source)
        self._cuda.call("cuMemcpyDtoHAsync_v2", target.handle, source.handle, size, self.handle)

    def synchronise(self):
        self._cuda.call("cuStreamSynchronize", self.handle)


class Event(Owned):
    """A mark on a stream with the GPU's own clock, good to about half a microsecond (cuda.h)."""

    def __init__(self, cuda):
        handle = POINTER()
        cuda.call("cuEventCreate", ctypes.byref(handle), 0)
        super().__init__(cuda, handle, "cuEventDestroy_v2")

    def record(self, stream):
        self._cuda.call("cuEventRecord", self.handle, stream.handle)

    def ms_since(self, earlier):
        """Milliseconds from `earlier` to this mark; waits until this one was reached."""
        passed = ctypes.c_float()
        self._cuda.call("cuEventSynchronize", self.handle)
        self._cuda.call("cuEventElapsedTime", ctypes.byref(passed), earlier.handle, self.handle)
        return passed.value


class Graph(Owned):
    """What `work()` puts on the stream, recorded once and launched as one; nothing of it runs while it is recorded.

    Addresses and sizes are those of the recording. Raises what `work` raises (the stream is usable again then), or
    TinkitError where the work cannot be recorded.
    """

    def __init__(self, cuda, stream, work):
        graph = _recorded(cuda, stream, work)
        try:
            handle = cuda.instantiate(graph)
        finally:
            cuda.call("cuGraphDestroy", graph)
        super().__init__(cuda, handle, "cuGraphExecDestroy")

    def launch(self, stream):
        self._cuda.call("cuGraphLaunch", self.handle, stream.handle)


def _recorded(cuda, stream, work):
    graph = POINTER()
    cuda.call("cuStreamBeginCapture_v2", stream.handle, THREAD_LOCAL)
    try:
        work()
    except BaseException:  # also Ctrl-C: a stream left in capture mode takes no work any more
        with contextlib.suppress(TinkitError):
            cuda.call("cuStreamEndCapture", stream.handle, ctypes.byref(graph))
        with contextlib.suppress(TinkitError):
            if graph.value:
                cuda.call("cuGraphDestroy", graph)
        raise
    cuda.call("cuStreamEndCapture", stream.handle, ctypes.byref(graph))
    return graph


def _check_size(size, *buffers):
    for buffer in buffers:
        if not 0 <= size <= buffer.size:
            raise ValueError("{} do not fit into a buffer of {}".format(megabytes(size), megabytes(buffer.size)))
