"""open_tensorrt: what is found, in which order, and what it says where something is missing."""

import numpy as np
import pytest
from cuda_parts import FakeDriver, FakeTensorRt
from small_parts import small_target
from tensorrt_parts import FP16, PICTURES, answers, network

from tinkit.device import engine as engines
from tinkit.device import tensorrt_runtime
from tinkit.device.cuda import Cuda
from tinkit.device.engine import BuildOptions, Built
from tinkit.device.engine_cache import EngineCache
from tinkit.device.tensorrt_log import TOO_LITTLE_MEMORY
from tinkit.device.tensorrt_runtime import open_tensorrt
from tinkit.errors import CannotJudge, TinkitError
from tinkit.target import Batch


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
