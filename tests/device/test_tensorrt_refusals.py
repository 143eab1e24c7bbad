"""What a TensorRT runtime refuses, what it says where TensorRT or the GPU does, and how true the pretended classes are."""

import cuda_parts
import numpy as np
import pytest
from cuda_parts import DataType, FakeDriver, FakeTensorRt, TensorIOMode, nothing_left
from recording_tensorrt import recorded
from small_parts import SIZE
from tensorrt_parts import FP16, PICTURES, answers, network, opened

from tinkit.device.cuda import Cuda
from tinkit.device.tensorrt_runtime import TensorRtRuntime
from tinkit.errors import CannotJudge, TinkitError


@pytest.mark.parametrize("batch", [0, 5])
def test_a_batch_outside_the_profile_is_refused_before_the_gpu_is_touched(driver, cuda, batch):
    _, runtime = opened(driver, cuda)
    with runtime:
        before = len(driver.calls)
        with pytest.raises(TinkitError, match="outside what the engine was built for") as error:
            runtime.run({"image": np.zeros((batch, 3, SIZE, SIZE), np.float32)})
        assert len(driver.calls) == before
    assert error.value.seen == "batch {}, the engine takes 1 to 4".format(batch)
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"picture": PICTURES}, "inputs are not the engine's"),
        ({}, "inputs are not the engine's"),
        ({"image": PICTURES.astype(np.float64)}, "not what the engine takes"),
        ({"image": PICTURES[:, :, 1:]}, "not what the engine takes"),
        ({"image": np.float32(1)}, "not what the engine takes"),
    ],
)
def test_other_inputs_are_refused_and_nothing_is_cast(driver, cuda, feeds, words):
    trt, runtime = opened(driver, cuda)
    with runtime, pytest.raises(TinkitError, match=words):
        runtime.run(feeds)
    assert trt.executions == 0


def test_two_inputs_of_different_batches_are_refused(driver, cuda):
    tensors = dict(network().tensors, mask=(TensorIOMode.INPUT, DataType.FLOAT, (-1, 1)))
    _, runtime = opened(driver, cuda, tensors=tensors)
    with runtime, pytest.raises(TinkitError, match="not what the engine takes") as error:
        runtime.run({"image": PICTURES, "mask": np.zeros((3, 1), np.float32)})
    assert error.value.where == "mask"


def test_a_plan_that_does_not_load_tells_tensorrts_last_words(driver, cuda):
    with pytest.raises(TinkitError, match="does not load") as error:
        opened(driver, cuda, plan=b"another", facts={"engine": "/cache/engine-1.plan"})
    assert error.value.seen == "TensorRT 10.3.0: Serialization assertion failed: magic tag"
    assert "remove /cache/engine-1.plan" in error.value.next_step
    assert driver.alive == {}


def test_an_old_error_is_not_told_again(driver, cuda):
    trt = FakeTensorRt(driver, network())
    with pytest.raises(TinkitError, match="does not load"):
        TensorRtRuntime(trt, b"another", FP16, cuda)
    trt.network = network(fails={"set_tensor_address": "an address of the past"})
    with pytest.raises(TinkitError, match="buffer") as error:
        TensorRtRuntime(trt, b"plan", FP16, cuda)
    assert error.value.seen == "TensorRT 10.3.0: an address of the past"


@pytest.mark.parametrize(
    ("method", "words", "wanted"),
    [
        (
            "deserialize_cuda_engine",
            "Error Code 2: OutOfMemory (Requested size was 4 bytes.)",
            "0.0 MB for the engine,",
        ),
        ("create_execution_context", "CUDA out of memory", "5.0 MB for the engine's activations"),
    ],
)
def test_too_little_gpu_memory_says_wanted_and_free(driver, cuda, method, words, wanted):
    with pytest.raises(TinkitError, match="too little memory") as error:
        opened(driver, cuda, fails={method: words})
    assert "wanted " + wanted in error.value.seen
    assert "8589.9 MB of 8589.9 MB free" in error.value.seen
    assert words in error.value.seen
    assert driver.alive == {}


def test_too_little_memory_for_the_buffers_gives_everything_back():
    with nothing_left(FakeDriver(memory=10_000)) as driver, Cuda(library=driver) as cuda:
        with pytest.raises(TinkitError, match="too little memory") as error:
            opened(driver, cuda)
        assert driver.alive == {}
    assert "0.0 MB for the tensor image" in error.value.seen


@pytest.mark.parametrize(
    ("method", "words"),
    [("set_input_shape", "does not take image in the shape"), ("create_execution_context", "no execution context")]
    + [("set_tensor_address", "does not take a buffer")],
)
def test_what_tensorrt_refuses_while_loading_is_told(driver, cuda, method, words):
    with pytest.raises(TinkitError, match=words) as error:
        opened(driver, cuda, fails={method: "the reason"})
    assert "the reason" in error.value.seen
    assert driver.alive == {}


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_run_that_fails_is_told_and_the_next_one_is_right(driver, cuda, cuda_graph):
    trt, runtime = opened(driver, cuda, cuda_graph=cuda_graph)
    with runtime:
        trt.network.fails["execute_async_v3"] = "Cask convolution execution"
        with pytest.raises(TinkitError, match="does not run") as error:
            runtime.run({"image": PICTURES})
        assert "Cask convolution execution" in error.value.seen
        del trt.network.fails["execute_async_v3"]
        for _ in range(3):
            np.testing.assert_array_equal(runtime.run({"image": PICTURES})["embedding"], answers(PICTURES))


def test_a_graph_that_is_not_recorded_is_an_error_and_not_run_without(driver, cuda):
    driver.fail["cuStreamEndCapture"] = 901
    _, runtime = opened(driver, cuda, cuda_graph=True)
    with runtime, pytest.raises(TinkitError, match="cannot be recorded") as error:
        runtime.run({"image": PICTURES})
    assert "cuStreamEndCapture" in error.value.seen
    assert "cuda_graph=False" in error.value.next_step


def test_tensorrt_that_does_not_start_cannot_judge(driver, cuda):
    trt = FakeTensorRt(driver, network(), starts=False)
    with pytest.raises(CannotJudge, match="does not start") as error:
        TensorRtRuntime(trt, b"plan", FP16, cuda)
    assert "nullptr" in error.value.seen
    assert driver.alive == {}


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((-1, -1), DataType.FLOAT, "Only the batch"),
        ((), DataType.FLOAT, "Only the batch"),
        ((-1, 8), DataType.BF16, "numpy"),
    ],
)
def test_engines_of_other_forms_are_refused(driver, cuda, shape, dtype, words):
    tensors = dict(network().tensors, embedding=(TensorIOMode.OUTPUT, dtype, shape))
    with pytest.raises(TinkitError, match=words):
        opened(driver, cuda, tensors=tensors)
    assert driver.alive == {}


def test_an_engine_of_tensorrt_8_tells_its_memory_under_the_old_name(driver, cuda, monkeypatch):
    class Older(cuda_parts.FakeEngine):
        def __init__(self, world):
            super().__init__(world)
            self.device_memory_size = self.__dict__.pop("device_memory_size_v2")

    monkeypatch.setattr(cuda_parts, "FakeEngine", Older)
    with pytest.raises(TinkitError, match="too little memory") as error:
        opened(driver, cuda, fails={"create_execution_context": "out of memory"})
    assert "wanted 5.0 MB for the engine's activations" in error.value.seen


@pytest.mark.parametrize("version", recorded())
def test_the_pretended_classes_have_no_member_that_a_real_version_lacks(version):
    """Against the record of the real bindings, which test_tensorrt_bindings.py keeps true."""
    engine = cuda_parts.FakeEngine(FakeTensorRt(None, network()))
    pretended = {
        "Runtime": cuda_parts.FakeRuntime,
        "ICudaEngine": engine,
        "IExecutionContext": cuda_parts.FakeContext,
        "EngineInspector": cuda_parts.FakeInspector,
    }
    for name, fake in pretended.items():
        real = {text.split("(")[0].split(" ")[0] for text in recorded()[version]["classes"][name]}
        members = {member for member in dir(fake) if not member.startswith("_")}
        if "device_memory_size_v2" not in real and fake is engine:
            members = members - {"device_memory_size_v2"} | {"device_memory_size"}
        assert members, name
        assert members <= real, name
    enums = recorded()[version]["enums"]
    assert {"INPUT"} <= set(enums["TensorIOMode"])
    assert {"JSON"} <= set(enums["LayerInformationFormat"])
    assert {"FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8"} <= set(enums["DataType"])
