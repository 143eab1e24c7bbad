"""Engines behind the Runtime protocol, on a pretended GPU: right answers, nothing left over, and words for every refusal."""

import gc
import weakref

import cuda_parts
import numpy as np
import pytest
from cuda_parts import CLOCK_MS, DataType, FakeDriver, FakeTensorRt, Network, TensorIOMode, nothing_left
from recording_tensorrt import recorded
from small_parts import SIZE, WEIGHT, small_target

from tinkit.device import engine as engines
from tinkit.device import tensorrt_runtime
from tinkit.device.cuda import Cuda
from tinkit.device.engine import BuildOptions, Built
from tinkit.device.engine_cache import EngineCache
from tinkit.device.tensorrt_log import TOO_LITTLE_MEMORY
from tinkit.device.tensorrt_runtime import TensorRtRuntime, open_tensorrt
from tinkit.errors import CannotJudge, TinkitError
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


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_answers_are_right_at_every_batch_and_again(driver, cuda, cuda_graph):
    trt, runtime = opened(driver, cuda, cuda_graph=cuda_graph)
    with runtime:
        for batch in (4, 1, 1, 1, 3, 3, 4):
            pictures = PICTURES[::-1][:batch]
            given = runtime.run({"image": pictures})
            assert set(given) == {"embedding"}
            np.testing.assert_array_equal(given["embedding"], answers(pictures))
    # With a graph: once to run and once to record for each of the 4 times that the batch changed; else every run.
    assert trt.executions == (8 if cuda_graph else 7)
    assert driver.count("cuGraphLaunch") == (3 if cuda_graph else 0)


def test_the_protocol_is_told(driver, cuda):
    _, runtime = opened(driver, cuda)
    with runtime:
        assert (runtime.name, runtime.load_ms > 0, runtime.device_ms) == ("tensorrt", True, None)
        (image,), (embedding,) = runtime.inputs, runtime.outputs
        assert (image.name, image.dtype, image.shape) == ("image", "float32", ("batch", 3, SIZE, SIZE))
        assert (embedding.name, embedding.shape) == ("embedding", ("batch", 8))
        assert runtime.versions() == {"tensorrt": "10.3.0", "cuda_driver": "12.6"}
        assert runtime.inspector == '{"Layers": []}'
        assert runtime.conditions["batch_range"] == [1, 4]
        assert (runtime.conditions["cuda_graph"], runtime.conditions["gpu"]) == (False, "Orin")
        assert "pinned" in runtime.conditions["copies"]
        runtime.run({"image": PICTURES})
        assert runtime.device_ms == pytest.approx(CLOCK_MS * 2)  # the network and the mark, without the copies


def test_answers_are_the_callers_own(driver, cuda):
    _, runtime = opened(driver, cuda)
    with runtime:
        first = runtime.run({"image": PICTURES})["embedding"]
        runtime.run({"image": PICTURES * 0})
    np.testing.assert_array_equal(first, answers(PICTURES))


@pytest.mark.parametrize(("dtype", "name"), [(DataType.HALF, "float16"), (DataType.UINT8, "uint8")])
def test_tensors_have_their_own_types(driver, cuda, dtype, name):
    _, runtime = opened(driver, cuda, dtype=dtype, compute=lambda given: {"embedding": given["image"][:, 0, 0, :8]})
    pictures = np.arange(4 * 3 * SIZE * SIZE).reshape(PICTURES.shape).astype(name)
    with runtime:
        given = runtime.run({"image": pictures})["embedding"]
    assert given.dtype == np.dtype(name)
    np.testing.assert_array_equal(given, pictures[:, 0, 0, :8])


def test_buffers_are_made_once_for_the_largest_batch(driver, cuda):
    _, runtime = opened(driver, cuda)
    with runtime:
        sizes = sorted(len(kept) for kind, kept in driver.alive.values() if kind == "device")
        assert sizes == [4 * 8 * 4, 4 * 3 * SIZE * SIZE * 4]
        for batch in (1, 4, 2):
            runtime.run({"image": PICTURES[:batch]})
    assert (driver.count("cuMemAlloc_v2"), driver.count("cuMemHostAlloc")) == (2, 2)


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


def test_an_engine_of_a_fixed_batch_takes_that_one_only(driver, cuda):
    _, runtime = opened(driver, cuda, batch=2)
    with runtime:
        assert runtime.batch_range == (2, 2)
        np.testing.assert_array_equal(runtime.run({"image": PICTURES[:2]})["embedding"], answers(PICTURES[:2]))
        with pytest.raises(TinkitError, match="outside"):
            runtime.run({"image": PICTURES[:1]})


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


def test_a_closed_runtime_is_not_run(driver, cuda):
    _, runtime = opened(driver, cuda, cuda_graph=True)
    with runtime:
        runtime.run({"image": PICTURES})
    runtime.close()
    with pytest.raises(ValueError, match="closed"):
        runtime.run({"image": PICTURES})


def test_tensorrt_goes_before_its_stream_and_its_device(driver):
    trt = FakeTensorRt(driver, network())
    with Cuda(library=driver) as cuda:
        runtime = TensorRtRuntime(trt, b"plan", FP16, cuda)
        context, engine = weakref.ref(runtime._engine._context), weakref.ref(runtime._engine._engine)
        seen = []
        weakref.finalize(context(), lambda: seen.append("context"))
        weakref.finalize(engine(), lambda: seen.append("engine"))
        destroy = driver._cuStreamDestroy_v2
        driver._cuStreamDestroy_v2 = lambda stream: (seen.append("stream"), destroy(stream))[1]
        trt.runtimes.clear()
        runtime.close()
        gc.collect()
        assert seen == ["context", "engine", "stream"]


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


def test_a_cuda_graph_is_switched_on_and_off_between_runs(driver, cuda):
    _, runtime = opened(driver, cuda)
    with runtime:
        for wanted, launches in ((False, 0), (True, 2), (True, 5), (False, 5), (True, 7)):
            runtime.use_cuda_graph(wanted)
            assert runtime.conditions["cuda_graph"] is wanted
            for _ in range(3):
                np.testing.assert_array_equal(runtime.run({"image": PICTURES})["embedding"], answers(PICTURES))
            assert driver.count("cuGraphLaunch") == launches
            assert runtime.device_ms == pytest.approx(CLOCK_MS * 2)
        kinds = [kind for kind, _ in driver.alive.values()]
        assert kinds.count("graph executable") == 1
        runtime.use_cuda_graph(False)
        assert "graph executable" not in [kind for kind, _ in driver.alive.values()]
    with pytest.raises(ValueError, match="closed"):
        runtime.use_cuda_graph(True)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_second_stream_has_its_own_context_stream_and_buffers(driver, cuda, cuda_graph):
    trt, runtime = opened(driver, cuda, cuda_graph=cuda_graph)
    with runtime:
        before = kinds_alive(driver)
        with runtime.again() as other:
            assert kinds_alive(driver) == {kind: 2 * count for kind, count in before.items()}
            assert len(trt.runtimes) == 1  # nothing is loaded again
            assert other.conditions == runtime.conditions
            for batch in (4, 1, 1, 1):
                mine = runtime.run({"image": PICTURES[:batch]})["embedding"]
                theirs = other.run({"image": -PICTURES[:4]})["embedding"]
                np.testing.assert_array_equal(mine, answers(PICTURES[:batch]))
                np.testing.assert_array_equal(theirs, answers(-PICTURES))
        assert {kind: count for kind, count in kinds_alive(driver).items() if kind in before} == before
        np.testing.assert_array_equal(runtime.run({"image": PICTURES})["embedding"], answers(PICTURES))
    with pytest.raises(ValueError, match="closed"):
        runtime.again()


def kinds_alive(driver):
    kinds = [kind for kind, _ in driver.alive.values()]
    return {kind: kinds.count(kind) for kind in kinds}


def test_an_engine_stays_until_its_second_stream_is_closed_too(driver, cuda):
    _, runtime = opened(driver, cuda)
    engine = weakref.ref(runtime._engine._engine)
    other = runtime.again()
    runtime.close()
    np.testing.assert_array_equal(other.run({"image": PICTURES})["embedding"], answers(PICTURES))
    assert engine() is not None
    other.close()
    gc.collect()
    assert engine() is None


def test_a_second_stream_that_gets_no_memory_is_told_and_the_first_one_goes_on(driver, cuda):
    trt, runtime = opened(driver, cuda)
    with runtime:
        before = kinds_alive(driver)
        trt.network.fails["create_execution_context"] = "CUDA out of memory"
        with pytest.raises(TinkitError, match="too little memory"):
            runtime.again()
        assert kinds_alive(driver) == before
        np.testing.assert_array_equal(runtime.run({"image": PICTURES})["embedding"], answers(PICTURES))


@pytest.mark.parametrize(("version", "batch", "able"), [("8.6.2", -1, False), ("8.6.2", 2, True), ("10.3.0", -1, True)])
def test_tensorrt_8_has_a_second_stream_for_a_fixed_batch_only(driver, cuda, version, batch, able):
    _, runtime = opened(driver, cuda, version=version, batch=batch)
    with runtime:
        if able:
            with runtime.again() as other:
                np.testing.assert_array_equal(other.run({"image": PICTURES[:2]})["embedding"], answers(PICTURES[:2]))
            return
        with pytest.raises(CannotJudge, match="two streams") as error:
            runtime.again()
    assert error.value.seen == "TensorRT 8.6.2, batch 1 to 4"


# open_tensorrt: what is found, in which order, and what it says where something is missing.


@pytest.fixture
def said():
    return []


@pytest.fixture
def cache(tmp_path, said):
    return EngineCache(tmp_path / "cache" / "engines", say=said.append)


@pytest.fixture
def builds(monkeypatch):
    """The builder's stand-in: `builds` has what each build was asked for."""
    asked = []

    def engine_from_onnx(trt, onnx_path, target, options, logger=None, say=None):
        asked.append(options)
        return Built(b"plan", (options.timing_cache or b"") + b"+", ("warning: slow",), 2.5, trt.__version__)

    monkeypatch.setattr(engines, "engine_from_onnx", engine_from_onnx)
    return asked


def test_an_engine_is_built_once_and_then_found(driver, model_path, cache, builds, said):
    trt = FakeTensorRt(driver, network())
    for _ in range(2):
        with Cuda(library=driver) as cuda:
            with open_tensorrt(model_path, FP16, say=said.append, cache=cache, trt=trt, cuda=cuda) as runtime:
                np.testing.assert_array_equal(runtime.run({"image": PICTURES})["embedding"], answers(PICTURES))
                assert runtime.facts["build_s"] == 2.5
                assert runtime.facts["log"] == ["warning: slow"]
            cuda.use()  # a device that was given stays the caller's
    assert len(builds) == 1
    assert "earlier build is used" in said[-1]


def test_another_target_or_option_is_another_build_and_shares_the_timing_cache(driver, model_path, cache, builds):
    trt = FakeTensorRt(driver, network())
    int8, slower = (
        small_target(runtime="tensorrt", precision="int8", rest=rest, batch=FP16.batch) for rest in ("fp16", "fp32")
    )
    wider = small_target(runtime="tensorrt", precision="fp16", batch=Batch(1, 2, 8))
    asked = [(FP16, {}), (int8, {}), (slower, {}), (wider, {}), (FP16, {"fp32_nodes": ["norm"]})]
    asked += [(FP16, {"options": BuildOptions(workspace_mb=512)}), (FP16, {})]
    with Cuda(library=driver) as cuda:
        for target, more in asked:
            open_tensorrt(model_path, target, cache=cache, trt=trt, cuda=cuda, **more).close()
    assert len(builds) == 6
    assert [options.timing_cache for options in builds] == [b"+" * count for count in range(6)]
    assert builds[4].fp32_nodes == ("norm",)
    assert builds[5].workspace_mb == 512


def test_a_damaged_engine_is_built_anew_with_a_word(driver, model_path, cache, builds, said):
    trt = FakeTensorRt(driver, network())
    with Cuda(library=driver) as cuda:
        runtime = open_tensorrt(model_path, FP16, cache=cache, trt=trt, cuda=cuda)
        runtime.close()
        with open(runtime.facts["engine"], "ab") as handle:
            handle.write(b"?")
        open_tensorrt(model_path, FP16, cache=cache, trt=trt, cuda=cuda).close()
    assert len(builds) == 2
    assert "damaged" in said[0]


def test_a_disk_that_is_full_costs_the_next_build_not_this_one(driver, model_path, cache, builds, said, monkeypatch):
    def full(identity, plan, facts=None):
        raise TinkitError("Could not finish writing: No space left on device")

    monkeypatch.setattr(cache, "keep", full)
    trt = FakeTensorRt(driver, network())
    with (
        Cuda(library=driver) as cuda,
        open_tensorrt(model_path, FP16, say=said.append, cache=cache, trt=trt, cuda=cuda) as runtime,
    ):
        runtime.run({"image": PICTURES})
    assert said == ["the engine is not kept: Could not finish writing: No space left on device"]


def test_its_own_device_is_closed_with_the_runtime_and_after_an_error(driver, model_path, cache, builds, monkeypatch):
    monkeypatch.setattr(tensorrt_runtime, "Cuda", lambda: Cuda(library=driver))
    with open_tensorrt(model_path, FP16, cache=cache, trt=FakeTensorRt(driver, network())):
        assert driver.retained == 1
    assert driver.retained == 0
    with pytest.raises(TinkitError, match="no execution context"):
        open_tensorrt(
            model_path, FP16, cache=cache, trt=FakeTensorRt(driver, network(fails={"create_execution_context": "no"}))
        )
    assert driver.retained == 0


def test_without_tensorrt_it_cannot_judge_and_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(engines, "find_tensorrt", lambda: None)
    with pytest.raises(CannotJudge, match="TensorRT is missing") as error:
        open_tensorrt("model.onnx", FP16)
    assert error.value.exit_code == 4
    for word in ("python3-libnvinfer", "--system-site-packages", "tinkit[trt]"):
        assert word in error.value.next_step


def test_without_a_gpu_it_cannot_judge_before_tensorrts_runtime_is_touched(monkeypatch, builds):
    driver = FakeDriver(devices=0)
    trt = FakeTensorRt(driver, network())
    monkeypatch.setattr(tensorrt_runtime, "Cuda", lambda: Cuda(library=driver))
    with pytest.raises(CannotJudge, match="no GPU") as error:
        open_tensorrt("model.onnx", FP16, trt=trt)
    assert error.value.exit_code == 4
    assert (trt.runtimes, builds) == ([], [])


def test_a_tensorrt_that_does_not_fit_the_target_is_refused_before_the_cache(driver, model_path, cache, builds):
    trt = FakeTensorRt(driver, network(), version="8.6.2")
    with Cuda(library=driver) as cuda, pytest.raises(TinkitError) as error:
        open_tensorrt(model_path, FP16, cache=cache, trt=trt, cuda=cuda)
    assert error.value.exit_code == 1
    assert "TensorRT 8.6.2" in error.value.seen
    assert (trt.runtimes, builds) == ([], [])


def test_too_little_memory_for_the_build_says_what_was_free(driver, model_path, cache, monkeypatch):
    def engine_from_onnx(*_, **__):
        raise TinkitError(TOO_LITTLE_MEMORY, seen="TensorRT 10.3.0: OutOfMemory", next_step="close other programs")

    monkeypatch.setattr(engines, "engine_from_onnx", engine_from_onnx)
    with Cuda(library=driver) as cuda, pytest.raises(TinkitError, match="too little memory") as error:
        open_tensorrt(model_path, FP16, cache=cache, trt=FakeTensorRt(driver, network()), cuda=cuda)
    assert error.value.seen.startswith("8589.9 MB of 8589.9 MB were free before the build on Orin; TensorRT 10.3.0")
    assert error.value.exit_code == 1


@pytest.mark.parametrize("asked", [False, True])
def test_only_a_version_compatible_engine_may_bring_code_of_its_own(driver, model_path, cache, builds, asked):
    trt = FakeTensorRt(driver, network())
    with Cuda(library=driver) as cuda:
        options = BuildOptions(version_compatible=asked)
        open_tensorrt(model_path, FP16, cache=cache, trt=trt, cuda=cuda, options=options).close()
    assert trt.runtimes[0].engine_host_code_allowed is asked
