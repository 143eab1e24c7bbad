"""One builder for every TensorRT: seven pretended versions in the shape of the real bindings, and the real RTX builder."""

import dataclasses

import pytest
from recording_tensorrt import recorded, recording
from rtx_parts import beside_us
from small_parts import small_model, small_target

from tinkit.device import tensorrt_log
from tinkit.device.engine import BuildOptions, engine_from_onnx, find_tensorrt, refuse_unfit
from tinkit.device.tensorrt_log import known_meaning, last_words, progress_monitor, recording_logger
from tinkit.errors import CannotJudge, TinkitError
from tinkit.target import Batch

VERSIONS = list(recorded())
NEW = [version for version in VERSIONS if not version.startswith("8.")]
STRONG = {"runtime": "tensorrt", "batch": Batch(1, 2, 4)}
WEAK = dict(STRONG, weakly_typed=True, opset=17, exporter="legacy")
FP32 = small_target(**STRONG)
FP16 = small_target(**STRONG, precision="fp16")
INT8 = small_target(**STRONG, precision="int8", rest="fp16")
BF16 = small_target(**STRONG, precision="bf16", opset=22)
WEAK_FP16 = small_target(**WEAK, precision="fp16")
WEAK_INT8 = small_target(**WEAK, precision="int8", rest="fp16")
WEAK_INT8_FP32 = small_target(**WEAK, precision="int8", rest="fp32")
NETWORK_FLAGS = {"8": 0b01, "10": 0b11, "11": 0b01}  # the bit of STRONGLY_TYPED in 11 was EXPLICIT_BATCH's in 8


def fitting(version, target=FP16, weak=WEAK_FP16):
    return weak if version.startswith("8.") else target


def set_flags(trt):
    return [flag.name for (flag,) in trt.calls_of("set_flag")]


def build(trt, target, **options):
    said = []
    built = engine_from_onnx(trt, "model.onnx", target, BuildOptions(**options), say=said.append)
    return built, said


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_builds_with_the_flags_that_it_knows(version):
    trt = recording(version)
    built, _ = build(trt, fitting(version))
    assert (built.plan, built.tensorrt) == (b"plan", version)
    assert built.seconds >= 0
    assert trt.calls_of("create_network") == [(NETWORK_FLAGS[version.split(".")[0]],)]
    assert set_flags(trt) == (["FP16"] if version.startswith("8.") else [])
    assert [flag.name for (flag,) in trt.calls_of("clear_flag")] == ["TF32"]
    assert [value.name for value in trt.calls_of("profiling_verbosity")] == ["DETAILED"]
    assert trt.calls_of("set_memory_pool_limit") == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_option_reaches_every_version_by_name(version):
    trt = recording(version)
    options = {"workspace_mb": 512, "version_compatible": True, "optimization_level": 2}
    build(trt, fitting(version), hardware_compatible="AMPERE_PLUS", **options)
    ((pool, size),) = trt.calls_of("set_memory_pool_limit")
    assert (pool.name, size) == ("WORKSPACE", 512 * 1024 * 1024)
    assert set_flags(trt)[0] == "VERSION_COMPATIBLE"
    assert [level.name for level in trt.calls_of("hardware_compatibility_level")] == ["AMPERE_PLUS"]
    assert trt.calls_of("builder_optimization_level") == [2]


def test_the_same_name_has_another_number_elsewhere():
    numbers = {version: recorded()[version]["enums"]["BuilderFlag"]["VERSION_COMPATIBLE"] for version in VERSIONS}
    assert (numbers["8.6.1"], numbers["10.3.0"], numbers["11.4.0.106"]) == (15, 13, 12)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_narrow_hardware_option_is_refused_where_it_is_unknown(version):
    known = "SAME_COMPUTE_CAPABILITY" in recorded()[version]["enums"]["HardwareCompatibilityLevel"]
    assert known == (version.startswith(("10.13", "10.16", "11.")))
    trt = recording(version)
    if known:
        build(trt, fitting(version), hardware_compatible="SAME_COMPUTE_CAPABILITY")
        assert len(trt.calls_of("hardware_compatibility_level")) == 1
        return
    with pytest.raises(TinkitError, match="does not know a build option") as error:
        build(trt, fitting(version), hardware_compatible="SAME_COMPUTE_CAPABILITY")
    assert error.value.seen == f"TensorRT {version}: SAME_COMPUTE_CAPABILITY"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", [(-1, 3, 16, 16), (-1, 16, 16, 3)])
def test_a_free_batch_gets_the_range_of_the_target(version, shape):
    trt = recording(version, inputs={"image": shape})
    build(trt, fitting(version))
    rest = shape[1:]
    assert trt.calls_of("set_shape") == [("image", (1, *rest), (2, *rest), (4, *rest))]
    assert len(trt.calls_of("add_optimization_profile")) == 1


def test_all_inputs_share_one_profile():
    trt = recording("10.3.0", inputs={"image": (-1, 3, 16, 16), "mask": (-1, 1), "fixed": (1, 2)})
    build(trt, FP16)
    assert [call[0] for call in trt.calls_of("set_shape")] == ["image", "mask"]
    assert len(trt.calls_of("add_optimization_profile")) == 1


def test_a_fixed_batch_gets_no_profile():
    trt = recording("10.3.0", inputs={"image": (1, 3, 16, 16)})
    build(trt, FP16)
    assert trt.calls_of("add_optimization_profile") == []


def test_a_free_height_is_refused():
    with pytest.raises(TinkitError, match="Only the batch"):
        build(recording("10.3.0", inputs={"image": (-1, 3, -1, -1)}), FP16)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_timing_cache_goes_in_and_comes_out(version):
    trt = recording(version)
    built, said = build(trt, fitting(version), timing_cache=b"old")
    assert trt.calls_of("create_timing_cache") == [(b"old",)]
    assert [ignore for _, ignore in trt.calls_of("set_timing_cache")] == [False]
    assert built.timing_cache == b"old+"
    assert not any("timing cache" in line for line in said)


def test_a_timing_cache_of_another_device_is_told_and_a_new_one_begun():
    built, said = build(recording("10.3.0", cache_fits=False), FP16, timing_cache=b"old")
    assert built.timing_cache == b"+"
    assert any("of another device" in line for line in said)


def test_no_timing_cache_where_none_is_wanted():
    trt = recording("10.3.0")
    built, _ = build(trt, FP16, timing_cache=None)
    assert built.timing_cache == b""
    assert trt.calls_of("create_timing_cache") == []


WEAK_FLAGS = [(WEAK_FP16, ["FP16"]), (WEAK_INT8, ["INT8", "FP16"]), (WEAK_INT8_FP32, ["INT8"])]


@pytest.mark.parametrize(("target", "flags"), WEAK_FLAGS)
def test_weak_typing_allows_what_the_target_says(target, flags):
    trt = recording("8.6.1")
    build(trt, target)
    assert set_flags(trt) == flags


def test_an_fp32_target_gets_no_flag_on_8():
    trt = recording("8.6.1")
    build(trt, dataclasses.replace(FP32, opset=17, exporter="legacy"))
    assert set_flags(trt) == []


LAYERS = [  # as the parser of 8.6 leaves them: the ONNX node in the metadata, a layer's name only almost
    {"name": "/norm/Mul", "metadata": "[ONNX Layer: /norm/Mul]"},
    {"name": "/norm/Mul_12", "metadata": "[ONNX Layer: /norm/Mul | a doc string]"},
    {"name": "/norm/Mul_1", "metadata": "[ONNX Layer: /norm/Mul_1]"},
    {"name": "/norm/Shape", "metadata": "[ONNX Layer: /norm/Mul]", "outputs": ("INT32",)},
    {"name": "normalise/mul", "metadata": "[ONNX Layer: normalise/mul]"},
    {"name": "/conv/Conv", "metadata": "[ONNX Layer: /conv/Conv]", "outputs": ("FLOAT", "INT32", "HALF")},
]


def fp32_layers(trt):
    """(layers of which outputs were set, those of which the precision was set)."""
    outputs = [(name, place) for kind, name, (place, _) in (c for c in trt.calls if c[0] == "layer")]
    assert {kind.name for _, _, (_, kind) in (c for c in trt.calls if c[0] == "layer")} <= {"FLOAT"}
    assert all(kind.name == "FLOAT" for kind in trt.calls_of("precision"))
    return outputs, len(trt.calls_of("precision"))


def test_the_layers_of_a_node_stay_in_fp32_on_8():
    trt = recording("8.6.1", layers=LAYERS)
    _, said = build(trt, WEAK_FP16, fp32_nodes=("/norm/Mul", "/conv/Conv"))
    outputs = [("/norm/Mul", 0), ("/norm/Mul_12", 0), ("normalise/mul", 0), ("/conv/Conv", 0), ("/conv/Conv", 2)]
    assert fp32_layers(trt) == (outputs, 4)
    assert set_flags(trt) == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
    assert not any("no layer" in line for line in said)


def test_without_metadata_the_name_decides_and_a_number_behind_it_counts_as_the_node():
    plain = [dict(layer, metadata="") for layer in LAYERS]
    trt = recording("8.6.1", layers=[*plain, {"name": "resize/cubic_3"}])
    build(trt, WEAK_FP16, fp32_nodes=("/norm/Mul",))
    outputs = [("/norm/Mul", 0), ("/norm/Mul_12", 0), ("/norm/Mul_1", 0), ("normalise/mul", 0), ("resize/cubic_3", 0)]
    assert fp32_layers(trt) == (outputs, 5)


def test_a_listed_node_without_a_layer_is_told():
    trt = recording("8.6.1", layers=LAYERS)
    built, said = build(trt, WEAK_FP16, fp32_nodes=("/gone/Add", "/norm/Mul"))
    assert [line for line in said if "no layer" in line] == [
        "no layer of TensorRT belongs to the node /gone/Add, which was to stay in fp32"
    ]
    assert "no layer of TensorRT belongs to the node /gone/Add, which was to stay in fp32" in built.log


@pytest.mark.parametrize("version", NEW)
def test_strong_typing_leaves_the_layers_alone(version):
    trt = recording(version, layers=LAYERS)
    build(trt, FP16, fp32_nodes=("/norm/Mul",))
    assert not any(kind in ("ILayer", "layer") for kind, _, _ in trt.calls)
    assert set_flags(trt) == []


REFUSED = [
    ("8.6.1", FP16, "does not obey", "--target trt86-fp16"),
    ("8.6.1", INT8, "does not obey", "--target trt86-int8"),
    ("8.6.1", BF16, "no bf16", "--target trt86-fp16"),
    ("8.6.1", FP32, "opset 17", "lower opset"),
    ("10.3.0", WEAK_FP16, "for TensorRT 8", "--target trt-fp16"),
    ("10.16.1.11", WEAK_INT8, "for TensorRT 8", "--target trt-int8"),
    ("11.0.0.114", WEAK_FP16, "for TensorRT 8", "--target trt-fp16"),
    ("11.4.0.106", WEAK_INT8, "for TensorRT 8", "--target trt-int8"),
]


@pytest.mark.parametrize(("version", "target", "what", "next_step"), REFUSED)
def test_a_target_that_would_become_something_else_is_refused_before_parsing(version, target, what, next_step):
    trt = recording(version)
    with pytest.raises(TinkitError, match=what) as error:
        build(trt, target)
    assert error.value.exit_code == 1
    assert next_step in error.value.next_step
    assert f"TensorRT {version}" in error.value.seen
    assert trt.calls == []


@pytest.mark.parametrize(
    ("version", "shape", "target", "what"),
    [
        ("8.2.1", "8.6.1", WEAK_FP16, "too old"),
        ("10.1.0", "10.3.0", dataclasses.replace(FP16, opset=21), "up to opset 20"),
        ("9.3.0.post12.dev1", "10.3.0", FP16, "up to opset 19"),
        ("8.5.2.2", "8.6.1", FP16, "does not obey"),
    ],
)
def test_versions_without_wheels_are_judged_by_their_number(version, shape, target, what):
    trt = recording(shape)
    trt.__version__ = version
    with pytest.raises(TinkitError, match=what) as error:
        refuse_unfit(trt, "model.onnx", target)
    assert version.startswith("8.5") == ("trt85-fp16" in error.value.next_step)


@pytest.mark.parametrize("version", NEW)
@pytest.mark.parametrize("target", [FP32, FP16, INT8, BF16, dataclasses.replace(FP16, opset=22)])
def test_strongly_typed_targets_of_every_precision_fit_10_and_later(version, target):
    trt = recording(version)
    assert refuse_unfit(trt, "model.onnx", target) is None
    built, _ = build(trt, target)
    assert built.plan


@pytest.mark.parametrize("version", VERSIONS)
def test_no_engine_is_an_error_with_the_last_words(version):
    log = [("INFO", "chatter"), ("WARNING", "a warning"), ("ERROR", "10: Internal Error (nothing fits)")]
    with pytest.raises(TinkitError, match="does not build") as error:
        build(recording(version, plan=None, log=log), fitting(version))
    assert error.value.seen == f"TensorRT {version}: 10: Internal Error (nothing fits)"


def test_warnings_are_kept_and_other_talk_is_not():
    log = [("VERBOSE", "much"), ("INFO", "chatter"), ("WARNING", "a warning"), ("INTERNAL_ERROR", "late")]
    built, _ = build(recording("10.3.0", log=log), FP16)
    assert built.log == ("warning: a warning", "late")


def test_a_second_build_does_not_repeat_the_words_of_the_first():
    trt = recording("10.3.0", plan=None, log=[("ERROR", "first")])
    with pytest.raises(TinkitError, match="does not build"):
        build(trt, FP16)
    trt.scene.log, trt.scene.plan = [("WARNING", "second")], b"plan"
    assert build(trt, FP16)[0].log == ("warning: second",)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_that_is_not_read_says_which_node_and_what_to_do(version):
    trt = recording(version, parser_errors=[("UNSUPPORTED_NODE", "/det", "Det", "false")])
    with pytest.raises(TinkitError, match="does not read") as error:
        build(trt, fitting(version))
    node = "node 7" if version.startswith("8.") else "Det /det"
    assert error.value.seen == f"TensorRT {version}: {node}: UNSUPPORTED_NODE: false"
    assert "no such operator" in error.value.next_step


def test_a_builder_that_does_not_start_is_no_verdict():
    with pytest.raises(CannotJudge, match="driver is too old") as error:
        build(recording("10.3.0", device=False), FP16)
    assert error.value.exit_code == 4
    assert "error: 35" in error.value.seen
    assert "update the NVIDIA driver" in error.value.next_step


@pytest.mark.parametrize(
    ("words", "workspace_mb", "what", "next_step"),
    [
        ("[E] Cuda failure: out of memory", None, "too little memory", "smaller batch range"),
        ("Requested amount of GPU memory (123 bytes) could not be allocated.", 64, "too little memory", "close other"),
        ("Could not find any implementation for node {conv}.", 512, "too little memory", "than 512 MiB"),
        ("Could not find any implementation for node {conv}.", None, "does not build", "often too little memory"),
    ],
)
def test_too_little_memory_is_said_with_a_next_step(words, workspace_mb, what, next_step):
    trt = recording("8.6.1", plan=None, log=[("ERROR", words)])
    with pytest.raises(TinkitError, match=what) as error:
        build(trt, WEAK_FP16, workspace_mb=workspace_mb)
    assert next_step in error.value.next_step
    assert words in error.value.seen


def test_unknown_words_get_no_invented_next_step():
    assert known_meaning("Internal Error (Assertion g.nodes.size() == 0 failed)") == ("", None)


def test_last_words_are_errors_before_warnings_and_each_once():
    assert last_words(["warning: w", "a\n--- End node ---\nb", "a"]) == "a; b"
    assert last_words(["warning: w"]) == "warning: w"
    assert last_words(["noise 35", "e"], harmless="noise") == "e"
    assert last_words([]) == "nothing was logged"


@pytest.mark.parametrize("version", VERSIONS)
def test_progress_is_told_where_the_version_can(version, monkeypatch):
    monkeypatch.setattr(tensorrt_log, "PROGRESS_S", 0.0)
    trt = recording(version, steps=3)
    _, said = build(trt, fitting(version))
    steps = [
        line.partition(", ")[2].rpartition(",")[0] for line in said if line.startswith("building: Building Engine")
    ]
    assert steps == ([] if version.startswith("8.") else ["step 1 of 3", "step 2 of 3", "step 3 of 3"])


def test_progress_is_told_at_most_every_few_seconds():
    now, said = [0.0], []
    monitor = progress_monitor(recording("10.3.0"), said.append, clock=lambda: now[0])
    monitor.phase_start("Building", None, 100)
    for step in range(100):
        now[0] = 0.1 * step
        assert monitor.step_complete("Building", step) is True
    assert said == ["building: Building, step 51 of 100, 5 s"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, BrokenPipeError])
def test_nothing_is_raised_into_tensorrt(kind, monkeypatch):
    monkeypatch.setattr(tensorrt_log, "PROGRESS_S", 0.0)
    said = []

    def say(line):
        said.append(line)
        if line.startswith("building:"):
            raise kind

    with pytest.raises(kind):
        engine_from_onnx(recording("10.3.0"), "model.onnx", FP16, say=say)
    assert len(said) == 2  # the build was asked to stop after the first step


def test_tensorrt_without_its_libraries_is_not_found(monkeypatch):
    def missing(name):
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr("tinkit.device.engine.importlib.import_module", missing)
    assert find_tensorrt() is None


def test_one_logger_a_process():
    trt = recording("10.3.0")
    assert recording_logger(trt) is recording_logger(trt)
    assert recording_logger(recording("10.3.0")) is not recording_logger(trt)


def for_real(path, target):
    """An engine by the real builder: (bytes of the plan, its timing cache, what was said)."""
    import tensorrt_rtx_bindings as rtx

    said = []
    options = BuildOptions(workspace_mb=256, timing_cache=None, optimization_level=1)
    built = engine_from_onnx(rtx, path, target, options, say=said.append)
    return len(built.plan), built.timing_cache, said


@pytest.mark.tensorrt
@pytest.mark.parametrize(("dtype", "target"), [("float32", FP32), ("float16", FP16)])
def test_the_real_builder_makes_an_engine(tmp_path, dtype, target):
    path = small_model(tmp_path / "model.onnx", dtype=dtype)
    size, timing_cache, said = beside_us(for_real, path, target)
    assert size > 1000
    assert timing_cache == b""
    assert said[0].startswith("TensorRT-RTX 1.")


@pytest.mark.tensorrt
def test_the_real_parser_says_what_it_does_not_read(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(TinkitError, match="does not read"):
        beside_us(for_real, path, FP32)
