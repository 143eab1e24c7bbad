"""The record of the real bindings is true, and what the code asks of TensorRT is there in each of the seven versions."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tensorrt_wheels
from recording_tensorrt import SEVERITY, recorded, recording
from test_engine import FP16, LAYERS, WEAK_INT8

from tinkit.device.engine import BuildOptions, engine_from_onnx
from tinkit.errors import TinkitError

REAL_MODULE = """
import json, sys
import tensorrt_bindings as trt
from tinkit.device import tensorrt_log
from tinkit.device.engine import engine_from_onnx, refuse_unfit
from tinkit.device.tensorrt_log import progress_monitor, recording_logger
from tinkit.errors import CannotJudge
from tinkit.target import Target

target = Target.from_json(json.loads(sys.argv[1]))
refuse_unfit(trt, "model.onnx", target)
logger = recording_logger(trt)
for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
    logger.log(getattr(trt.ILogger.Severity, name), name)
said = []
monitor = progress_monitor(trt, said.append, clock=iter([0.0, 9.0]).__next__)
if monitor is not None:
    monitor.phase_start("Building", None, 3)
    assert monitor.step_complete("Building", 0)
    monitor.phase_finish("Building")
try:
    engine_from_onnx(trt, "model.onnx", target)
except CannotJudge as error:
    refused = error.what + " " + error.seen
print(json.dumps({"lines": logger.lines, "said": said, "refused": refused}))
"""


def fitting(version):
    return WEAK_INT8 if version.startswith("8.") else FP16


def touched(version):
    """(class, member) of all that `engine_from_onnx` asks of a version, with every option and every error."""
    module = recording(version, layers=LAYERS, cache_fits=False, log=[("WARNING", "w")])
    options = {"workspace_mb": 1, "timing_cache": b"old", "version_compatible": True, "optimization_level": 1}
    fp32_nodes = ("/conv/Conv",)
    every = BuildOptions(hardware_compatible="AMPERE_PLUS", fp32_nodes=fp32_nodes, **options)
    engine_from_onnx(module, "model.onnx", fitting(version), every)
    module.scene.parser_errors = [("UNSUPPORTED_NODE", "/det", "Det", "false")]
    with pytest.raises(TinkitError, match="does not read"):
        engine_from_onnx(module, "model.onnx", fitting(version))
    return module.touched


def lacking(asked, version, facts):
    """What was asked for and is not in `describe`'s facts."""
    names = {"module": set(facts["classes"]) | set(facts["enums"])}
    names.update({kind: {text.split("(")[0].split(" ")[0] for text in rows} for kind, rows in facts["classes"].items()})
    names.update({kind: set(values) for kind, values in facts["enums"].items()})
    return sorted(member for member in asked if member[1] not in names.get(member[0], ()))


def test_the_record_has_a_birth_certificate():
    value = json.loads(tensorrt_wheels.DATA.read_text())
    assert set(value["born"]) == {"by", "on", "python", "wheels"}
    assert set(value["born"]["wheels"]) == set(value["versions"]) == set(tensorrt_wheels.WHEELS)
    assert all(len(wheel["sha256"]) == 64 for wheel in value["born"]["wheels"].values())
    assert all(version == facts["version"] for version, facts in value["versions"].items())


@pytest.mark.parametrize("version", recorded())
def test_the_record_shows_what_each_generation_knows(version):
    enums, classes = recorded()[version]["enums"], recorded()[version]["classes"]
    generation = version.split(".")[0]
    assert ("STRONGLY_TYPED" in enums["NetworkDefinitionCreationFlag"]) == (generation != "8")
    assert ("EXPLICIT_BATCH" in enums["NetworkDefinitionCreationFlag"]) == (generation != "11")
    assert ("FP16" in enums["BuilderFlag"]) == ("INT8" in enums["BuilderFlag"]) == (generation != "11")
    assert ("BF16" in enums["DataType"]) == ("IProgressMonitor" in classes) == (generation != "8")
    assert "set_shape(input, min, opt, max)" in classes["IOptimizationProfile"]
    assert set(enums[SEVERITY]) == {"INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"}


@pytest.mark.parametrize("version", recorded())
def test_all_that_is_asked_of_a_version_is_in_its_record(version):
    asked = touched(version)
    assert lacking(asked, version, recorded()[version]) == []
    assert {("OnnxParser", "parse_from_file"), ("BuilderFlag", "TF32")} <= asked
    assert (("ILayer", "precision") in asked) == version.startswith("8.")


def test_something_of_another_version_is_noticed():
    assert lacking(touched("8.6.1"), "11.4.0.106", recorded()["11.4.0.106"]) == [
        ("BuilderFlag", "FP16"),
        ("BuilderFlag", "INT8"),
        ("BuilderFlag", "OBEY_PRECISION_CONSTRAINTS"),
        ("ILayer", "precision"),
        ("ILayer", "set_output_type"),
        ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),
    ]


def test_the_pretended_module_refuses_what_the_real_one_would():
    trt = recording("11.4.0.106")
    with pytest.raises(AttributeError, match="FP16"):
        _ = trt.BuilderFlag.FP16
    with pytest.raises(AttributeError, match="IInt8Calibrator"):
        _ = trt.IInt8Calibrator
    builder = trt.Builder(None)
    with pytest.raises(AttributeError, match=r"build_engine"):
        builder.build_engine()
    with pytest.raises(AttributeError, match="cannot be set"):
        builder.create_network().num_layers = 3
    with pytest.raises(TypeError, match="got 1 arguments"):
        builder.create_builder_config().set_timing_cache(b"")


@pytest.mark.slow
@pytest.mark.tensorrt
@pytest.mark.parametrize("version", tensorrt_wheels.WHEELS)
def test_the_real_bindings_are_as_recorded_and_have_all_that_is_asked(version, tmp_path):
    if not all(map(shutil.which, ("gcc", "nm", "readelf"))):
        pytest.skip("gcc, nm and readelf are needed to stand in for NVIDIA's libraries")
    try:
        place, wheel = tensorrt_wheels.fetch(version, tmp_path)
    except FileNotFoundError as error:
        pytest.skip(f"no wheel: {error}")
    real = tensorrt_wheels.members_of(place)
    assert lacking(touched(version), version, real) == []
    assert real == recorded()[version]
    if sys.version_info[:2] == (3, 11):  # another Python has another file of the same bindings
        assert wheel == json.loads(tensorrt_wheels.DATA.read_text())["born"]["wheels"][version]
    answer = ask_real_module(place, version)
    assert answer["lines"][:3] == ["INTERNAL_ERROR", "ERROR", "warning: WARNING"]
    assert answer["said"] == ([] if version.startswith("8.") else ["building: Building, step 1 of 3, 9 s"])
    assert answer["refused"].startswith("TensorRT's builder does not start.")
    assert "nullptr" in answer["refused"]


def ask_real_module(place, version):
    """The code of tinkit on the real bindings, whose builder cannot start without the libraries behind them."""
    here = Path(__file__).parents[2]
    environment = dict(os.environ, LD_LIBRARY_PATH=str(place / "stub"), PYTHONPATH=f"{place / 'site'}:{here}")
    command = [sys.executable, "-W", "error", "-c", REAL_MODULE, json.dumps(fitting(version).to_json())]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
