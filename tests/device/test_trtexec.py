"""trtexec driven: its command line in each version's words, what it prints held against what was asked, every way to fail."""

import json

import pytest

from tests.device.small_parts import reduced_target, small_target
from tests.device.trtexec_parts import INPUTS, calls, trtexec_board
from tinkit.device import trtexec
from tinkit.device.commands import Commands
from tinkit.device.runtime import Tensor
from tinkit.device.trtexec import agreement, run_trtexec
from tinkit.device.trtexec_command import TrtexecOptions, command
from tinkit.errors import CannotJudge, TinkitError
from tinkit.target import Batch

FP16 = reduced_target("fp16")
WEAK = reduced_target("fp16", weakly_typed=True, opset=17, exporter="legacy")
WEAK_INT8 = reduced_target("int8", weakly_typed=True, opset=17, exporter="legacy")
FP32 = small_target(runtime="tensorrt")
RUN = ["--profilingVerbosity=detailed", "--device=0", "--iterations=200", "--warmUp=1000", "--duration=10"]
RUN += ["--sleepTime=0", "--idleTime=0"]
TOLD = ["--avgRuns=1000000", "--percentile=50,90,95,99", "--exportTimes=/w/times.json"]
BUILD = ["trtexec", "--onnx=m.onnx", "--noTF32", "--avgTiming=8", "--sparsity=disable"]
NEWER = ["--builderOptimizationLevel=3", "--hardwareCompatibilityLevel=none"]
SHAPES = ["--minShapes=image:1x3x16x16", "--optShapes=image:1x3x16x16", "--maxShapes=image:4x3x16x16"]
SHAPES += ["--shapes=image:2x3x16x16"]


def line(version, target, options=None, engine="", inputs=INPUTS, batch=2):
    return command("trtexec", version, "m.onnx", target, batch, options or TrtexecOptions(), "/w", inputs, engine)


def test_the_whole_command_line_of_each_version():
    old = ["--useCudaGraph", "--useSpinWait", "--noDataTransfers"]
    assert line((8, 5, 2), WEAK) == [*BUILD, "--fp16", *SHAPES, *RUN, "--streams=1", *old, *TOLD]
    assert line((8, 6, 1), WEAK) == [*BUILD, *NEWER, "--fp16", *SHAPES, *RUN, "--infStreams=1", *old, *TOLD]
    assert line((10, 3, 0), FP16) == [
        *BUILD, *NEWER, "--stronglyTyped", *SHAPES, *RUN, "--infStreams=1", *old, *TOLD,
    ]  # fmt: skip
    assert line((11, 1, 0), FP16) == [*BUILD, *NEWER, *SHAPES, *RUN, "--infStreams=1", *TOLD]


def test_what_is_not_the_default_of_each_version():
    other = TrtexecOptions(
        cuda_graph=False, spin_wait=False, transfers=True, seconds=0.5, workspace_mb=512, layers=True
    )
    new = set(line((11, 1, 0), FP32, other)) - set(line((11, 1, 0), FP32))
    assert new == {"--noCudaGraph", "--noSpinWait", "--includeDataTransfers", "--exposeDMA", "--duration=0.5",
                   "--memPoolSize=workspace:512", "--exportProfile=/w/layers.json"}  # fmt: skip
    for version in ((8, 6, 1), (10, 3, 0)):
        words = line(version, FP32, other)
        assert not {"--useCudaGraph", "--useSpinWait", "--noDataTransfers"} & set(words)
        assert {"--exposeDMA", "--separateProfileRun"} <= set(words)


def test_weak_typing_follows_the_target():
    assert [word for word in line((8, 6, 1), WEAK_INT8) if word in ("--int8", "--fp16")] == ["--int8", "--fp16"]
    assert not {"--int8", "--fp16"} & set(line((8, 6, 1), FP32))
    with pytest.raises(TinkitError, match="does not obey"):
        line((8, 6, 1), FP16)
    for version in ((10, 3, 0), (11, 1, 0)):
        with pytest.raises(TinkitError, match="for TensorRT 8"):
            line(version, WEAK)


@pytest.mark.parametrize("version", [(8, 4, 0), (8, 2, 1), (9, 1, 0), (7, 1, 3)])
def test_versions_whose_flags_are_not_known(version):
    with pytest.raises(CannotJudge):
        line(version, FP32)


def test_an_engine_of_tinkit_is_loaded_and_nothing_built():
    words = line((10, 3, 0), FP16, engine="/cache/a.plan")
    assert words[:3] == ["trtexec", "--loadEngine=/cache/a.plan", "--shapes=image:2x3x16x16"]
    building = (
        "--onnx",
        "--noTF32",
        "--stronglyTyped",
        "--builder",
        "--min",
        "--opt",
        "--max",
        "--avgTiming",
        "--sparsity",
    )
    assert not [word for word in words if word.startswith(building)]


def test_shapes_of_free_inputs_only():
    fixed = (Tensor("image", "uint8", (1, 16, 16, 3)),)
    assert not [word for word in line((10, 3, 0), FP16, inputs=fixed, batch=1) if "hapes" in word]
    two = (Tensor("a", "float32", (-1, 3)), Tensor("b:0", "float32", ("n", 5)), Tensor("c", "float32", ()))
    assert "--shapes=a:2x3,b:0:2x5" in line((10, 3, 0), FP16, inputs=two)
    for name in ("a,b", "a*", "", "a\nb", "it's"):
        with pytest.raises(TinkitError, match="of this name"):
            line((10, 3, 0), FP16, inputs=(Tensor(name, "float32", (-1, 3)),))
    with pytest.raises(ValueError, match="batch 8"):
        line((10, 3, 0), FP16, batch=8)


def timed(
    tmp_path, target=FP16, batch=1, engine=False, version="10.3.0", behave="pass", times="times-10.3.json", **more
):
    tmp_path.mkdir(exist_ok=True)
    commands = trtexec_board(tmp_path / "board", version, behave, times)
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    (tmp_path / "a.plan").write_bytes(b"plan")
    plan = str(tmp_path / "a.plan") if engine else ""
    more = dict({"seconds": 0.1, "warmup_s": 0.1, "inputs": INPUTS, "engine": plan}, **more)
    return run_trtexec(commands, str(tmp_path / "model.onnx"), target, batch, str(tmp_path), **more)


def test_a_run_from_its_raw_times(tmp_path):
    said = []
    seen = timed(tmp_path, engine=True, say=said.append)
    assert (seen["version"], seen["engine"], seen["samples"]) == ("10.3.0", "tinkit's", 10)
    assert seen["path"].endswith("usr/src/tensorrt/bin/trtexec")
    assert seen["command"][0] == seen["path"]
    # compute, sorted: 2.96027 2.96048 2.96246 2.96298 2.96674 | 2.96692 2.97339 2.97458 2.99036 3.00043
    assert seen["compute"]["p50_ms"] == pytest.approx((2.96674 + 2.96692) / 2)
    assert seen["compute"]["p90_ms"] == pytest.approx(2.99036 + 0.1 * (3.00043 - 2.99036))
    assert seen["latency"]["max_ms"] == 3.09283
    assert seen["enqueue"]["min_ms"] == pytest.approx(515.329 - 513.379)
    assert seen["settings"] == {"cuda_graph": True, "spin_wait": True, "transfers": False, "expose_dma": False}
    assert seen["device"] == "Orin"
    assert seen["marks"] == ["only 10 of 200 queries"]
    assert "trtexec 10.3.0 times batch 1" in said[0]
    json.dumps(seen, allow_nan=False)  # goes into the report
    assert calls(tmp_path / "board") == [["--help"], seen["command"][1:]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.plan", "board", "model.onnx"]  # nothing left over


@pytest.mark.parametrize("version", ["8.5.2", "8.6.1", "10.0.1", "10.3.0", "10.16.1", "11.0.0", "11.1.0"])
@pytest.mark.parametrize(("graph", "transfers"), [(True, False), (False, True)])
def test_every_version_understands_what_was_asked(tmp_path, version, graph, transfers):
    target = WEAK if version.startswith("8") else FP16
    seen = timed(tmp_path, target, 2, version=version, cuda_graph=graph, transfers=transfers, layers=True)
    assert seen["version"] == version
    assert seen["settings"] == {
        "cuda_graph": graph, "spin_wait": True, "transfers": transfers, "expose_dma": transfers
    }  # fmt: skip
    assert [mark for mark in seen["marks"] if "was to be" in mark] == []
    assert seen["layers"] == [{"layer": "conv", "ms": 0.4, "share": 0.8}]
    assert any("weakly typed" in mark for mark in seen["marks"]) == version.startswith("8")


def test_the_words_of_another_version_are_refused_or_noticed(tmp_path, monkeypatch):
    right = command
    monkeypatch.setattr(trtexec, "command", lambda path, _, *rest: right(path, (10, 3, 0), *rest))
    seen = timed(tmp_path / "a", version="11.1.0", cuda_graph=False, engine=True)
    assert "cuda_graph was to be off and is on" in seen["marks"]
    monkeypatch.setattr(trtexec, "command", lambda path, _, *rest: right(path, (11, 1, 0), *rest))
    seen = timed(tmp_path / "b", version="10.3.0", engine=True)
    assert {"cuda_graph was to be on and is off", "transfers was to be off and is on"} <= set(seen["marks"])
    with pytest.raises(TinkitError, match="trtexec failed") as caught:
        timed(tmp_path / "c", version="10.3.0", cuda_graph=False, engine=True)
    assert "Unknown option: --noCudaGraph" in caught.value.seen


@pytest.mark.parametrize(
    ("behave", "what", "seen"),
    [
        ("fail", "trtexec failed", "Builder creation failed; Engine set up failed"),
        ("killed", "trtexec was killed", "exit code -9"),
        ("no-verdict", "without a verdict", "nothing"),
        ("no-times", "wrote no times", "rows: 0"),
        ("junk-times", "wrote no times", "rows: 1"),
    ],
)
def test_every_way_to_fail_is_told(tmp_path, behave, what, seen):
    with pytest.raises(TinkitError, match=what) as caught:
        timed(tmp_path, behave=behave)
    assert not isinstance(caught.value, CannotJudge)
    if behave != "no-verdict":
        assert seen in caught.value.seen
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.plan", "board", "model.onnx"]


@pytest.mark.slow
def test_a_trtexec_that_hangs_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(trtexec, "BUILD_S", 0.0)
    monkeypatch.setattr(trtexec, "START_S", 2.0)
    with pytest.raises(TinkitError, match="takes too long") as caught:
        timed(tmp_path, behave="hang")
    assert "more than 2 s" in caught.value.seen


def test_missing_or_mute_is_no_verdict(tmp_path):
    with pytest.raises(CannotJudge, match="trtexec is missing") as caught:
        run_trtexec(Commands(str(tmp_path)), "m.onnx", FP16, 1, str(tmp_path))
    assert "libnvinfer-bin" in caught.value.next_step
    with pytest.raises(CannotJudge, match="does not say its version"):
        timed(tmp_path, behave="mute")
    broken = tmp_path / "board/usr/src/tensorrt/bin/trtexec"
    broken.write_text("#!/nowhere/python\n")
    with pytest.raises(CannotJudge, match="does not say its version"):
        run_trtexec(Commands(str(tmp_path / "board")), "m.onnx", FP16, 1, str(tmp_path))


def test_a_model_that_is_not_there(tmp_path):
    commands = trtexec_board(tmp_path / "board")
    with pytest.raises(TinkitError, match="trtexec failed") as caught:
        run_trtexec(commands, str(tmp_path / "none.onnx"), FP16, 1, str(tmp_path), inputs=INPUTS)
    assert "Could not open file" in caught.value.seen


@pytest.mark.parametrize(
    ("behave", "mark"),
    [
        ("graph-off", "cuda_graph was to be on and is off"),
        ("other-median", "its log says a median of 4.4502"),
        ("unstable", "GPU compute time is unstable, with coefficient of variance = 44.3558%."),
    ],
)
def test_numbers_not_to_be_trusted_are_marked(tmp_path, behave, mark):
    seen = timed(tmp_path, behave=behave, engine=True)
    assert [told for told in seen["marks"] if told.startswith(mark)]
    told = agreement(2.9668, seen)
    assert mark in told["note"]
    assert (seen["as_asked"], told["verdict"]) == ((False, "not judged") if behave == "graph-off" else (True, "agrees"))


def test_a_version_of_the_future_is_timed_and_marked(tmp_path):
    seen = timed(tmp_path, version="12.0.0", engine=True)
    assert "trtexec 12.0.0 is newer than the flags known here" in seen["marks"]


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [(2.0, "agrees"), (2.0599, "agrees"), (2.0601, "apart"), (1.9401, "agrees"), (1.9399, "apart"), (20.0, "apart")],
)
def test_three_per_cent_either_way(ours, verdict):
    theirs = {"compute": {"p50_ms": 2.0}, "engine": "tinkit's", "as_asked": True, "marks": []}
    seen = agreement(ours, theirs)
    assert seen["verdict"] == verdict
    assert (seen["ours_ms"], seen["trtexec_ms"], seen["within"]) == (ours, 2.0, 0.03)
    assert seen["apart"] == pytest.approx(ours / 2 - 1)


def test_exactly_at_the_goal_agrees():
    theirs = {"compute": {"p50_ms": 2.0}, "engine": "tinkit's", "as_asked": True, "marks": []}
    assert agreement(2.5, theirs, goal=0.25)["verdict"] == "agrees"
    assert agreement(2.5, theirs, goal=0.2499)["verdict"] == "apart"


def test_two_builds_are_not_two_stopwatches():
    seen = agreement(2.0, {"compute": {"p50_ms": 2.0}, "engine": "its own", "marks": []})
    assert (seen["verdict"], seen["apart"]) == ("not judged", 0.0)
    assert "two builds" in seen["note"]


@pytest.mark.parametrize("ours", [None, 0, -1.0, float("nan"), float("inf"), "2.0", True])
def test_no_time_is_no_agreement(ours):
    for pair in ((ours, 2.0), (2.0, ours)):
        seen = agreement(pair[0], {"compute": {"p50_ms": pair[1]}, "engine": "tinkit's"})
        assert (seen["verdict"], seen["apart"]) == ("not judged", None)
    assert agreement(2.0, {})["verdict"] == "not judged"


def test_an_int8_target_of_tensorrt_8_keeps_its_batch_range(tmp_path):
    target = reduced_target("int8", weakly_typed=True, opset=17, exporter="legacy", batch=Batch(2, 4, 8))
    timed(tmp_path, target, 8, version="8.6.1")
    words = calls(tmp_path / "board")[1]
    assert "--minShapes=image:2x3x16x16" in words
    assert "--maxShapes=image:8x3x16x16" in words
    assert "--shapes=image:8x3x16x16" in words
