"""CUDA through ctypes: on a pretended GPU the order, the ownership and the words; on a real one the copies."""

import contextlib
import ctypes
import re

import numpy as np
import pytest
from cuda_parts import CLOCK_MS, FakeDriver, nothing_left

from tinkit.device import cuda as cuda_module
from tinkit.device.cuda import INSTANTIATE, SIGNATURES, Cuda
from tinkit.device.cuda_memory import DeviceBuffer, Event, Graph, PinnedBuffer, Stream
from tinkit.errors import CannotJudge, TinkitError

WORDS = np.arange(64, dtype=np.float32)


def there_and_back(cuda):
    """(sent, received, milliseconds) of 256 bytes that went to the device and came back."""
    with contextlib.ExitStack() as stack:
        stream, start, end = (stack.enter_context(kind(cuda)) for kind in (Stream, Event, Event))
        far, sent, received = (
            stack.enter_context(kind(cuda, 256)) for kind in (DeviceBuffer, PinnedBuffer, PinnedBuffer)
        )
        np.copyto(sent.array("float32", (64,)), WORDS)
        start.record(stream)
        stream.to_device(far, sent, 256)
        stream.to_host(received, far, 256)
        end.record(stream)
        stream.synchronise()
        return WORDS, received.array("float32", (64,)).copy(), end.ms_since(start)


def test_the_device_tells_what_it_is(cuda):
    gpu = cuda.gpu
    assert (gpu.name, gpu.sm, gpu.multiprocessors, gpu.memory_bytes, gpu.integrated) == (
        "Orin",
        "8.7",
        8,
        8 << 30,
        True,
    )
    assert cuda.versions() == {"cuda_driver": "12.6"}


def test_the_primary_context_is_retained_then_made_current_then_released(driver):
    with Cuda(library=driver):
        pass
    order = [name for name in driver.calls if "Ctx" in name]
    assert order == ["cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuDevicePrimaryCtxRelease_v2"]


def test_a_copy_there_and_back_is_equal(cuda):
    sent, received, passed_ms = there_and_back(cuda)
    np.testing.assert_array_equal(sent, received)
    assert passed_ms == pytest.approx(3 * CLOCK_MS)


def test_a_copy_is_there_only_after_synchronise(cuda):
    with Stream(cuda) as stream, DeviceBuffer(cuda, 4) as far, PinnedBuffer(cuda, 4) as near:
        near.array("uint8", (4,))[:] = 7
        stream.to_device(far, near, 4)
        stream.synchronise()
        near.array("uint8", (4,))[:] = 0
        stream.to_host(near, far, 4)
        assert near.array("uint8", (4,)).sum() == 0
        stream.synchronise()
        assert near.array("uint8", (4,)).sum() == 28


@pytest.mark.parametrize("kind", [DeviceBuffer, PinnedBuffer, Stream, Event])
def test_everything_is_given_back_once_and_not_used_afterwards(driver, cuda, kind):
    owned = kind(cuda, 16) if kind in (DeviceBuffer, PinnedBuffer) else kind(cuda)
    owned.close()
    owned.close()
    assert driver.alive == {}
    with pytest.raises(ValueError, match="is closed"):
        owned.handle  # noqa: B018


def test_a_closed_device_is_not_used(driver):
    cuda = Cuda(library=driver)
    cuda.close()
    cuda.close()
    with pytest.raises(ValueError, match="closed"):
        cuda.use()
    assert driver.count("cuDevicePrimaryCtxRelease_v2") == 1


def test_an_error_half_way_gives_everything_back_and_is_the_one_told(driver):
    driver.fail["cuMemcpyDtoHAsync_v2"] = 700
    with pytest.raises(TinkitError) as error, Cuda(library=driver) as cuda:
        there_and_back(cuda)
    assert error.value.seen == "cuMemcpyDtoHAsync_v2: CUDA_ERROR_ILLEGAL_ADDRESS (700), illegal memory access"


def test_a_broken_device_does_not_hide_the_first_error():
    # After an illegal access every further call fails, the ones that free as well.
    driver = FakeDriver({"cuStreamSynchronize": 700, "cuMemFree_v2": 700, "cuStreamDestroy_v2": 700})
    with pytest.raises(TinkitError, match="CUDA refused") as error, Cuda(library=driver) as cuda:
        there_and_back(cuda)
    assert "cuStreamSynchronize" in error.value.seen


def test_a_call_that_fails_while_closing_is_told():
    driver = FakeDriver({"cuStreamDestroy_v2": 700})
    with Cuda(library=driver) as cuda:
        with pytest.raises(TinkitError) as error, Stream(cuda):
            pass
        driver.alive.clear()
    assert "cuStreamDestroy_v2" in error.value.seen


def test_a_code_without_a_name_is_told_as_a_number():
    driver = FakeDriver({"cuStreamCreate": 4242})
    with Cuda(library=driver) as cuda, pytest.raises(TinkitError) as error:
        Stream(cuda)
    assert error.value.seen == "cuStreamCreate: unknown (4242), unknown"


@pytest.mark.parametrize("kind", [DeviceBuffer, PinnedBuffer])
def test_too_little_memory_says_how_much_was_wanted_and_is_free(kind):
    driver = FakeDriver(memory=8_000_000)
    with nothing_left(driver), Cuda(library=driver) as cuda, contextlib.ExitStack() as stack:
        stack.enter_context(DeviceBuffer(cuda, 3_000_000))
        with pytest.raises(TinkitError, match="too little memory") as error:
            kind(cuda, 6_000_000, "the input image")
    assert "wanted 6.0 MB for the input image" in error.value.seen
    assert "5.0 MB of 8.0 MB free" in error.value.seen
    assert "CUDA_ERROR_OUT_OF_MEMORY" in error.value.seen
    assert "batch.max" in error.value.next_step
    assert error.value.exit_code == 1


def test_no_driver_cannot_judge(monkeypatch):
    monkeypatch.setattr(cuda_module, "LIBRARY", "libcuda-that-is-not-there.so.1")
    with pytest.raises(CannotJudge, match="no NVIDIA driver") as error:
        Cuda()
    assert error.value.exit_code == 4
    assert "libcuda-that-is-not-there" in error.value.seen


@pytest.mark.parametrize("fakes", [{"devices": 0}, {"fail": {"cuInit": 100}}])
def test_no_device_cannot_judge_and_says_the_code(fakes):
    with pytest.raises(CannotJudge) as error:
        Cuda(library=FakeDriver(**fakes))
    assert "CUDA_ERROR_NO_DEVICE" in error.value.seen


def test_a_driver_that_sees_none_of_its_devices_cannot_judge(monkeypatch):
    driver = FakeDriver(devices=0)
    monkeypatch.setattr(driver, "_cuInit", lambda flags: 0, raising=False)
    with pytest.raises(CannotJudge, match="finds no GPU"):
        Cuda(library=driver)


def test_an_old_driver_cannot_judge():
    with pytest.raises(CannotJudge, match="older") as error:
        Cuda(library=FakeDriver(missing=("cuStreamBeginCapture_v2",)))
    assert "cuStreamBeginCapture_v2" in error.value.seen


@pytest.mark.parametrize("index", [-1, 1])
def test_a_device_that_is_not_there_is_refused(index):
    with pytest.raises(TinkitError, match="no such GPU"):
        Cuda(index, library=FakeDriver())


def test_a_context_that_cannot_be_used_is_released():
    with nothing_left(FakeDriver({"cuCtxSetCurrent": 700})) as driver, pytest.raises(TinkitError):
        Cuda(library=driver)


def test_a_copy_larger_than_its_buffers_is_refused_before_the_driver(driver, cuda):
    with Stream(cuda) as stream, DeviceBuffer(cuda, 8) as far, PinnedBuffer(cuda, 16) as near:
        with pytest.raises(ValueError, match="do not fit"):
            stream.to_device(far, near, 16)
        with pytest.raises(ValueError, match="do not fit"):
            near.array("float32", (5,))
    assert driver.count("cuMemcpyHtoDAsync_v2") == 0


@pytest.mark.parametrize("missing", [(), ("cuGraphInstantiateWithFlags",)])
def test_a_graph_runs_nothing_while_recorded_and_all_when_launched(missing):
    with nothing_left(FakeDriver(missing=missing)) as driver, Cuda(library=driver) as cuda:
        ran = []
        with Stream(cuda) as stream, Graph(cuda, stream, lambda: driver.put(lambda: ran.append(1))) as graph:
            stream.synchronise()
            assert ran == []
            graph.launch(stream)
            graph.launch(stream)
            stream.synchronise()
            assert ran == [1, 1]
    used = "cuGraphInstantiate_v2" if missing else "cuGraphInstantiateWithFlags"
    steps = ["cuStreamBeginCapture_v2", "cuStreamEndCapture", used, "cuGraphDestroy", "cuGraphLaunch", "cuGraphLaunch"]
    assert [name for name in driver.calls if "Graph" in name or "Capture" in name] == [*steps, "cuGraphExecDestroy"]


def test_work_that_fails_leaves_the_stream_usable(driver, cuda):
    def work():
        raise KeyboardInterrupt

    with Stream(cuda) as stream:
        with pytest.raises(KeyboardInterrupt):
            Graph(cuda, stream, work)
        assert driver.recording is None
        stream.synchronise()


@pytest.mark.parametrize("name", ["cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_a_graph_that_is_not_made_leaves_nothing_behind(driver, cuda, name):
    driver.fail[name] = 901
    with Stream(cuda) as stream, pytest.raises(TinkitError, match="refused") as error:
        Graph(cuda, stream, lambda: None)
    assert name in error.value.seen
    assert driver.alive == {}


def test_a_driver_without_graphs_says_so():
    driver = FakeDriver(missing=tuple(INSTANTIATE))
    with nothing_left(driver), Cuda(library=driver) as cuda, pytest.raises(TinkitError, match="cannot run") as error:
        cuda.instantiate(ctypes.c_void_p())
    assert "CUDA graph off" in error.value.next_step


def kinds_of(prototype):
    """The parameters of a prototype in cuda.h as ctypes kinds; a type that is not known here is a KeyError."""
    plain = {"size_t": ctypes.c_size_t, "int": ctypes.c_int, "CUdevice": ctypes.c_int, "CUresult": ctypes.c_int}
    plain.update(
        {"CUdevice_attribute": ctypes.c_int, "CUstreamCaptureMode": ctypes.c_int, "CUdeviceptr": ctypes.c_uint64}
    )
    plain.update({"unsigned int": ctypes.c_uint, "unsigned long long": ctypes.c_ulonglong})
    handles = ("CUcontext", "CUstream", "CUevent", "CUgraph", "CUgraphExec")
    plain.update(dict.fromkeys(handles, ctypes.c_void_p))
    for parameter in prototype.split(","):
        if "*" in parameter:
            yield ctypes.c_void_p
        else:
            yield plain[parameter.strip().rpartition(" ")[0]]


def test_the_signatures_are_those_of_cuda_h():
    """Against the header that comes with torch's triton; the newest entry of the two ways to instantiate is in it."""
    nvidia = pytest.importorskip("triton.backends.nvidia", reason="cuda.h comes with triton, which is not here")
    with open(nvidia.__path__[0] + "/include/cuda.h", encoding="utf-8", errors="replace") as handle:
        header = handle.read()
    prototypes = dict(reversed(re.findall(r"^CUresult CUDAAPI (\w+)\(([^)]*)\);", header, re.MULTILINE)))
    spelled = {name: re.sub(r"_v\d$", "", name) for name in SIGNATURES}
    spelled["cuGraphInstantiateWithFlags"] = "cuGraphInstantiate"
    for name, plain in spelled.items():
        wanted = list(kinds_of(prototypes[plain]))
        assert list({**SIGNATURES, **INSTANTIATE}[name]) == wanted, name


@pytest.mark.gpu
def test_a_real_device_copies_and_measures():
    try:
        cuda = Cuda()
    except CannotJudge as error:
        pytest.skip(str(error))
    with cuda:
        assert cuda.gpu.multiprocessors > 0
        assert 0 < cuda.free_memory() <= cuda.gpu.memory_bytes
        sent, received, passed_ms = there_and_back(cuda)
        np.testing.assert_array_equal(sent, received)
        assert passed_ms > 0
        with pytest.raises(TinkitError, match="too little memory"):
            DeviceBuffer(cuda, 1 << 50)


@pytest.mark.gpu
def test_a_real_graph_copies_when_launched_and_not_before():
    try:
        cuda = Cuda()
    except CannotJudge as error:
        pytest.skip(str(error))
    with cuda, Stream(cuda) as stream, DeviceBuffer(cuda, 256) as far, PinnedBuffer(cuda, 256) as near:
        near.array("uint8", (256,))[:] = 1
        stream.to_device(far, near, 256)
        stream.synchronise()
        near.array("uint8", (256,))[:] = 0
        with Graph(cuda, stream, lambda: stream.to_host(near, far, 256)) as graph:
            stream.synchronise()
            assert near.array("uint8", (256,)).sum() == 0
            graph.launch(stream)
            stream.synchronise()
            assert near.array("uint8", (256,)).sum() == 256
