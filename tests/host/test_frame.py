"""A graph that takes whole frames: its hop is there, is judged on real pictures, and can fail."""

import dataclasses

import numpy as np
import onnx
import pytest
from export_parts import DIM, SIZE, target, write_run
from small_parts import this_machine

from tinkit.bundle import open_bundle
from tinkit.device.pictures import frame_pixels, network_pixels_of_frame
from tinkit.device.profile import profile
from tinkit.device.runtime import OnnxRuntime
from tinkit.device.sitting import NO_FRAMES, network_input
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.host.export.command import export
from tinkit.host.export.frame import LEFT_OUT, framed, without_frame
from tinkit.host.export.input_form import with_resize
from tinkit.host.export.precision import Written
from tinkit.host.run import load_run
from tinkit.pixels import Preprocessing
from tinkit.target import Gate

FRAME = (90, 120)
OUTPUT = Gate(min_cosine=0.9999, max_error_share=1e-3)
FITTING, STRICT = Gate(min_cosine=0.95, max_error_share=0.5), Gate(min_cosine=0.9999999, max_error_share=0.5)


def frame_target(frame_gate=FITTING, frame=FRAME, **changes):
    gates = {"embedding": OUTPUT, "frame": frame_gate}
    return target(**{"input": "uint8-nhwc", "frame": frame, "gate": gates, **changes})


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    return opened(write_run(tmp_path_factory.mktemp("run") / "small", photos))


def opened(path):
    """The run, without the hops that are only half written there."""
    run = load_run(path)
    run.record["chain"] = []
    return run


@pytest.fixture(scope="module")
def passed(run, tmp_path_factory):
    return export(run, frame_target(), out=tmp_path_factory.mktemp("out") / "bundle")


@pytest.fixture
def here():
    return this_machine(warmup_s=0.0, min_seconds=0.0)


def frames_of(result):
    return [hop for hop in result.hops if hop.hop.startswith("frame -> ")]


def test_the_frame_is_a_hop_of_its_own_and_its_worst_picture_is_named(passed):
    assert passed.verdict == PASSED
    assert [(hop.hop, hop.verdict) for hop in passed.hops] == [
        ("encoded picture -> pixels", PASSED),
        ("student -> onnx, batch 1", PASSED),
        ("student -> onnx, batch 5", PASSED),
        ("frame -> student, batch 1", PASSED),
        ("frame -> student, batch 5", PASSED),
    ]
    hop, exam = frames_of(passed)[0], open_bundle(passed.bundle).exam()
    assert hop.pictures == len(exam.encoded) == 8
    assert hop.gate == {"min_cosine": 0.95, "max_error_share": 0.5}
    assert hop.conditions["frame"] == "90 x 120 pixels"
    assert hop.worst[0]["name"] == exam.names[hop.worst[0]["index"]]
    assert 0.95 < hop.cosine_min < 0.9999999  # no ONNX resize is Pillow's
    assert all(seen.conditions["resize"] == LEFT_OUT for seen in passed.hops[1:3])


def test_the_bundle_says_that_its_model_takes_frames(passed):
    bundle = open_bundle(passed.bundle)
    image = {"name": "image", "dtype": "uint8", "shape": ["batch", *FRAME, 3]}
    assert bundle.manifest["tensors"]["inputs"] == [image]
    assert bundle.target.frame == FRAME
    assert bundle.exam().frame_answers["embedding"].shape == (8, DIM)
    assert bundle.exam().pixels.shape[1:] == (SIZE, SIZE, 3)


def test_a_strict_gate_of_the_frame_fails_though_the_network_is_right(run, tmp_path):
    result = export(run, frame_target(STRICT), out=tmp_path / "bundle")
    assert result.verdict == FAILED
    assert {hop.verdict for hop in result.hops[:3]} == {PASSED}
    hop = frames_of(result)[0]
    assert hop.verdict == FAILED
    assert hop.worst[0]["name"] in hop.reason


@pytest.mark.slow
def test_a_resize_that_looks_elsewhere_fails_a_gate_that_fits(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tinkit.host.export.input_form.crop_of", lambda frame, share: (0, 0, 40))
    result = export(run, frame_target(), out=tmp_path / "bundle")
    assert {hop.verdict for hop in frames_of(result)} == {FAILED}


def test_the_board_sits_the_exam_on_frames_and_times_frames(passed, here, tmp_path):
    report = profile(passed.bundle, here, out=tmp_path)
    hops = {hop.hop: hop for hop in report.chain[-4:]}
    assert hops["encoded picture -> pixels"].verdict == PASSED
    assert hops["student -> onnxruntime"].verdict == NOT_JUDGED
    assert "whole frames" in hops["student -> onnxruntime"].reason
    seen = hops["frame -> onnxruntime, batch 5"]
    assert (seen.verdict, seen.pictures) == (PASSED, 8)
    assert hops["frame -> onnxruntime, batch 1"].cosine_min == pytest.approx(frames_of(passed)[0].cosine_min, abs=1e-6)
    assert [timed.batch for timed in report.latency] == [1, 4]
    assert {timed.conditions["pictures"] for timed in report.latency} == {"noise: frames of 90 x 120 pixels"}
    assert "resizing" in report.latency[0].conditions["measured"]
    assert report.verdict == PASSED


def test_pictures_at_network_size_are_refused_in_words(passed):
    bundle = open_bundle(passed.bundle)
    with pytest.raises(TinkitError, match="not of the size that the model takes") as caught:
        network_input(bundle, bundle.exam().pixels[:2])
    assert caught.value.seen == "64 x 64 pixels, the model takes 90 x 120"
    assert "whole frames" in caught.value.next_step


@pytest.mark.slow
def test_without_encoded_pictures_the_frame_is_not_judged_and_that_is_said(photos, here, tmp_path):
    without = {"change_exam": lambda exam: dataclasses.replace(exam, encoded={}), "count": 4}
    result = export(opened(write_run(tmp_path / "run", photos, **without)), frame_target(), out=tmp_path / "bundle")
    assert [(hop.hop, hop.verdict, hop.reason) for hop in frames_of(result)] == [
        ("frame -> student", NOT_JUDGED, NO_FRAMES)
    ]
    assert any("frame -> student: not judged" in note for note in result.notes)
    assert open_bundle(result.bundle).exam().frame_answers == {}
    report = profile(result.bundle, here, out=tmp_path / "report")
    assert [run.batch for run in report.latency] == [1, 4]
    assert report.chain[-1].reason == NO_FRAMES
    assert report.verdict == NOT_JUDGED  # nothing was judged on this device


@pytest.mark.slow
def test_without_an_exam_frames_are_timed_all_the_same(run, here, tmp_path):
    result = export(run, frame_target(), out=tmp_path / "bundle", deploy_only=True)
    assert {hop.verdict for hop in frames_of(result)} == {PASSED}
    report = profile(result.bundle, here, out=tmp_path / "report")
    assert [run.batch for run in report.latency] == [1, 4]


@pytest.mark.slow
def test_a_half_precision_graph_resizes_in_fp32_and_ships_whole(run, tmp_path):
    gates = {"embedding": Gate(0.99, 0.1), "frame": FITTING}
    result = export(
        run, dataclasses.replace(frame_target(), precision="fp16", floor=0.9, gate=gates), out=tmp_path / "bundle"
    )
    assert [(hop.hop, hop.verdict) for hop in frames_of(result)][::2] == [
        ("frame -> student, rehearsed in fp16, batch 1", PASSED),
        ("frame -> student, as shipped, batch 1", NOT_JUDGED),
    ]
    model = onnx.load(open_bundle(result.bundle).model_path)
    by_name = {node.name: node for node in model.graph.node}
    assert by_name["resize/Clip"].input[0] == by_name["resize/Resize"].output[0]
    assert by_name["normalise/Mul"].input[0] == by_name["resize/Clip"].output[0]  # no cast between them


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"runtime": "tensorrt"}, {"runtime": "openvino", "compute": "fp32"}])
def test_a_graph_for_others_resizes_plainly_and_is_judged_by_its_own_gate(run, other, tmp_path):
    if other["runtime"] == "openvino":
        pytest.importorskip("openvino")
    result = export(run, frame_target(**other), out=tmp_path / "bundle")
    model = onnx.load(open_bundle(result.bundle).model_path)
    (resize,) = (node for node in model.graph.node if node.op_type == "Resize")
    assert {attribute.name for attribute in resize.attribute} == {"mode", "coordinate_transformation_mode"}
    assert {hop.verdict for hop in frames_of(result)} == {PASSED}


def test_the_settled_network_itself_is_not_changed(passed):
    target_of = frame_target()
    assert without_frame(target_of).frame == ()
    assert "frame" not in without_frame(target_of).gate
    assert without_frame(target(input="uint8-nhwc")) == target(input="uint8-nhwc")
    shipped = onnx.load(open_bundle(passed.bundle).model_path)
    written = Written(shipped, shipped, "")
    assert framed(written, target(), None) is written
    with pytest.raises(ValueError, match="uint8 NHWC"):
        with_resize(onnx.ModelProto(), target_of, None)
    with pytest.raises(ValueError, match="uint8 NHWC"):  # it has a resize already
        framed(written, target_of, None)


@pytest.mark.parametrize("size", [(60, 200), (200, 60), (90, 120), (45, 60), (64, 64)])
def test_a_frame_is_the_largest_centred_part_with_its_aspect_ratio(size, tmp_path):
    from PIL import Image

    height, width = size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, width)[None, :]
    picture[..., 1] = np.linspace(0, 255, height)[:, None]
    Image.fromarray(picture).save(tmp_path / "ramp.png")
    frame = frame_pixels(str(tmp_path / "ramp.png"), FRAME)
    assert frame.shape == (*FRAME, 3)
    if size == FRAME:
        np.testing.assert_array_equal(frame, picture)
    scale = min(height / FRAME[0], width / FRAME[1])
    cut_w, cut_h = (1 - scale * FRAME[1] / width) / 2 * 255, (1 - scale * FRAME[0] / height) / 2 * 255
    assert frame[45, 0, 0] == pytest.approx(cut_w, abs=5)
    assert frame[45, -1, 0] == pytest.approx(255 - cut_w, abs=5)
    assert frame[0, 60, 1] == pytest.approx(cut_h, abs=5)
    assert frame[-1, 60, 1] == pytest.approx(255 - cut_h, abs=5)


def test_pillows_preprocessing_of_a_frame_is_its_centred_square():
    frame = np.random.default_rng(0).integers(0, 256, (*FRAME, 3), dtype=np.uint8)
    whole = Preprocessing(90, (0, 0, 0), (1, 1, 1), crop_pct=1.0)
    np.testing.assert_array_equal(network_pixels_of_frame(frame, whole), frame[:, 15:105])


def test_a_picture_that_the_board_cannot_decode_fails_its_frame_by_name(passed, tmp_path):
    from tinkit.device.sitting import frame_hops

    bundle = open_bundle(passed.bundle)
    exam = bundle.exam()
    index = max(exam.encoded)
    damaged = dataclasses.replace(exam, encoded={**exam.encoded, index: b"no picture"})
    with OnnxRuntime(bundle.model_path) as runtime:
        (hop,) = frame_hops(bundle, runtime, damaged, "onnxruntime")
    assert hop.verdict == FAILED
    assert str(exam.names[index]) in hop.reason
