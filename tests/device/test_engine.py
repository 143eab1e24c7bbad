"""One builder for every TensorRT: pretended modules of each generation, and the real RTX builder where there is one."""

from types import SimpleNamespace

import pytest
from small_parts import small_model, small_target

from tinkit.device.engine import engine_from_onnx, find_tensorrt, recording_logger
from tinkit.errors import TinkitError
from tinkit.target import Batch

GENERATIONS = {  # version -> (network flags with their bits, builder flags)
    "8.6.1": ({"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1}, {"FP16": 0, "INT8": 1}),
    "10.3.0": ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, {"FP16": 0, "INT8": 1}),
    "11.4.0": ({"STRONGLY_TYPED": 0, "PREFER_JIT_PYTHON_PLUGINS": 1}, {"TF32": 3}),
}
WANTED_FLAGS = {"8.6.1": 0b01, "10.3.0": 0b11, "11.4.0": 0b01}


class Logger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)


def pretended(version, shape=(-1, 3, 16, 16), parses=True, builds=True):
    """A `trt` module with only the members that this generation has; `seen` keeps what was asked of it."""
    network_flags, builder_flags = GENERATIONS[version]
    seen = SimpleNamespace(flags=None, builder_flags=[], shapes={}, profiles=0, memory={}, log=None)

    class Config:
        profiling_verbosity = None

        def set_flag(self, flag):
            seen.builder_flags.append(flag)

        def set_memory_pool_limit(self, pool, size):
            seen.memory[pool] = size

        def add_optimization_profile(self, profile):
            seen.profiles += 1

    class Builder:
        def __init__(self, logger):
            seen.log = logger.log

        def create_network(self, flags=0):
            seen.flags = flags
            return SimpleNamespace(num_inputs=1, get_input=lambda index: SimpleNamespace(name="image", shape=shape))

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return SimpleNamespace(set_shape=lambda name, *shapes: seen.shapes.update({name: shapes}))

        def build_serialized_network(self, network, config):
            seen.log(Logger.Severity.INFO, "chatter")
            seen.log(Logger.Severity.WARNING, "a warning")
            if not builds:
                seen.log(Logger.Severity.ERROR, "Could not find any implementation for node {conv}")
                return None
            return memoryview(b"plan")

    class Parser:
        num_errors = 1

        def __init__(self, network, logger):
            pass

        def parse_from_file(self, path):
            return parses

        def get_error(self, index):
            return SimpleNamespace(desc=lambda: "No importer registered for op: Det")

    module = SimpleNamespace(
        __version__=version,
        ILogger=Logger,
        Builder=Builder,
        OnnxParser=Parser,
        NetworkDefinitionCreationFlag=SimpleNamespace(**network_flags),
        BuilderFlag=SimpleNamespace(**builder_flags),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
    )
    return module, seen


FP16 = small_target(runtime="tensorrt", precision="fp16", batch=Batch(1, 2, 4))
FP32 = small_target(runtime="tensorrt", batch=Batch(1, 2, 4))


@pytest.mark.parametrize("version", GENERATIONS)
def test_each_generation_gets_the_flags_that_it_knows(version):
    trt, seen = pretended(version)
    assert engine_from_onnx(trt, "model.onnx", FP16) == b"plan"
    assert seen.flags == WANTED_FLAGS[version]
    weakly_typed = version.startswith("8.")
    assert seen.builder_flags == ([trt.BuilderFlag.FP16] if weakly_typed else [])
    assert seen.memory == {}


def test_weak_typing_gets_no_fp16_for_an_fp32_target():
    trt, seen = pretended("8.6.1")
    engine_from_onnx(trt, "model.onnx", FP32, workspace=512 << 20)
    assert seen.builder_flags == []
    assert seen.memory == {"workspace": 512 << 20}


def test_a_free_batch_gets_the_range_of_the_target():
    trt, seen = pretended("10.3.0")
    engine_from_onnx(trt, "model.onnx", FP16)
    assert seen.shapes == {"image": ((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))}
    assert seen.profiles == 1


def test_a_fixed_batch_gets_no_profile():
    trt, seen = pretended("10.3.0", shape=(1, 3, 16, 16))
    engine_from_onnx(trt, "model.onnx", FP16)
    assert seen.profiles == 0


def test_a_free_height_is_refused():
    trt, _ = pretended("10.3.0", shape=(-1, 3, -1, -1))
    with pytest.raises(TinkitError, match="Only the batch"):
        engine_from_onnx(trt, "model.onnx", FP16)


def test_no_engine_is_an_error_with_the_last_words():
    trt, _ = pretended("11.4.0", builds=False)
    with pytest.raises(TinkitError) as error:
        engine_from_onnx(trt, "model.onnx", FP16)
    assert "TensorRT 11.4.0" in error.value.seen
    assert "Could not find any implementation" in error.value.seen
    assert "chatter" not in error.value.seen


def test_a_model_that_is_not_read_says_why():
    trt, _ = pretended("10.3.0", parses=False)
    with pytest.raises(TinkitError) as error:
        engine_from_onnx(trt, "model.onnx", FP16)
    assert "No importer registered" in error.value.seen


def test_tensorrt_without_its_libraries_is_not_found(monkeypatch):
    def missing(name):
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr("tinkit.device.engine.importlib.import_module", missing)
    assert find_tensorrt() is None


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx_bindings", reason="the TensorRT-RTX wheels are not installed")


@pytest.mark.tensorrt
@pytest.mark.parametrize(("dtype", "target"), [("float32", FP32), ("float16", FP16)])
def test_the_real_builder_makes_an_engine(rtx, tmp_path, dtype, target):
    path = small_model(tmp_path / "model.onnx", dtype=dtype)
    assert len(engine_from_onnx(rtx, path, target)) > 1000


@pytest.mark.tensorrt
def test_the_real_parser_says_what_it_does_not_read(rtx, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    logger = recording_logger(rtx)
    with pytest.raises(TinkitError, match="does not read"):
        engine_from_onnx(rtx, path, FP32, logger)
    assert logger.lines
