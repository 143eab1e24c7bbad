"""The exam on the device: what passes, what fails, what is only evidence."""

import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_parts import PREPROCESSING, SIZE, WEIGHT, small_exam, small_model

from tinkit.device.pictures import frame_pixels
from tinkit.device.runtime import OnnxRuntime
from tinkit.device.sitting import answer_exam, judge_pixels, network_input, sit_exam
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.pixels import normalise
from tinkit.target import Batch, Gate


def sat(bundle, **options):
    with OnnxRuntime(bundle.model_path) as runtime:
        return sit_exam(bundle, runtime, {"device": "here"}, **options)


def by_hop(hops):
    return {hop.hop: hop for hop in hops}


def test_the_right_model_passes_at_the_smallest_and_the_largest_batch(make_bundle, exam):
    hops = sat(make_bundle(exam))
    assert [(hop.hop, hop.verdict) for hop in hops] == [
        ("encoded picture -> pixels", PASSED),
        ("student -> onnxruntime, batch 1", PASSED),
        ("student -> onnxruntime, batch 4", PASSED),
        ("mapped teacher -> onnxruntime", NOT_JUDGED),
    ]
    assert hops[0].max_error == 0
    assert hops[1].cosine_min > 0.999999
    assert [hop.conditions.get("batch") for hop in hops] == [None, 1, 4, 4]
    assert {hop.pictures for hop in hops[1:]} == {6}


@pytest.mark.parametrize(("share", "verdict"), [(0.0095, PASSED), (0.0105, FAILED)])
def test_the_error_gate_holds_just_inside_and_not_just_outside(make_bundle, exam, share, verdict):
    answers = exam.answers["embedding"].copy()
    picture, column = np.unravel_index(np.abs(answers).argmin(), answers.shape)
    answers[picture, column] += share * np.abs(answers).max()
    hop = by_hop(sat(make_bundle(replace(exam, answers={"embedding": answers}))))["student -> onnxruntime, batch 4"]
    assert hop.verdict == verdict
    assert hop.max_error_share == pytest.approx(share, rel=1e-2)


def test_one_strange_picture_fails_the_gate_and_is_named(make_bundle, exam):
    answers = exam.answers["embedding"].copy()
    answers[3] = -answers[3]
    hop = by_hop(sat(make_bundle(replace(exam, answers={"embedding": answers}))))["student -> onnxruntime, batch 1"]
    assert hop.verdict == FAILED
    assert "scene3.png" in hop.reason
    assert hop.worst[0]["index"] == 3


def test_a_rehearsal_keeps_the_evidence_and_judges_nothing(make_bundle, exam):
    wrong = replace(exam, answers={"embedding": -exam.answers["embedding"]})
    hops = sat(make_bundle(wrong), rehearsal="another runtime")
    assert {hop.verdict for hop in hops} == {NOT_JUDGED}
    hop = by_hop(hops)["student -> onnxruntime, batch 1"]
    assert hop.cosine_min == pytest.approx(-1)
    assert hop.gate == {"min_cosine": 0.99, "max_error_share": 0.01}
    assert "another runtime" in hop.reason
    assert "here it failed" in hop.reason


@pytest.mark.parametrize(("shift", "verdict"), [(2, PASSED), (3, FAILED)])
def test_a_picture_that_decodes_otherwise_fails_the_pixel_gate(make_bundle, exam, shift, verdict):
    pixels = exam.pixels.copy()
    at = np.unravel_index(pixels[1].argmax(), pixels[1].shape)
    pixels[1][at] -= shift
    hop = sat(make_bundle(replace(exam, pixels=pixels)))[0]
    assert (hop.output, hop.max_error, hop.verdict) == ("pixels", shift, verdict)
    assert hop.pictures == 2


def test_worst_pictures_of_the_pixel_hop_are_counted_in_the_exam(make_bundle, exam):
    pixels = exam.pixels.copy()
    pixels[5] = 255 - pixels[5]
    data = small_exam(encoded=6).encoded
    hop = sat(make_bundle(replace(exam, pixels=pixels, encoded={4: data[4], 5: data[5]})))[0]
    assert (hop.worst[0]["index"], hop.worst[0]["name"]) == (5, "scene5.png")


def test_a_picture_that_cannot_be_decoded_here_fails(make_bundle, exam):
    for encoded in ({1: b"no picture"}, {**exam.encoded, 1: b"no picture"}):
        hop = sat(make_bundle(replace(exam, encoded=encoded)))[0]
        assert hop.verdict == FAILED
        assert "scene1.png" in hop.reason


def test_without_pillow_the_rest_of_the_exam_goes_on(make_bundle, exam, monkeypatch):
    bundle = make_bundle(exam)
    monkeypatch.setitem(sys.modules, "PIL", None)
    hops = sat(bundle)
    assert (hops[0].verdict, hops[0].pictures) == (NOT_JUDGED, 0)
    assert "pillow" in hops[0].reason.lower()
    assert hops[1].verdict == PASSED


def test_without_an_exam_there_is_no_verdict(make_bundle):
    hops = sat(make_bundle(None))
    assert [(hop.verdict, hop.pictures) for hop in hops] == [(NOT_JUDGED, 0)]
    assert "--deploy-only" in hops[0].reason


def test_a_model_with_fixed_batch_is_filled_up(make_bundle, exam, tmp_path):
    model = small_model(tmp_path / "fixed.onnx", batch=4)
    bundle = make_bundle(exam, model=model, batch=Batch(4, 4, 4))  # six pictures: one batch and a half
    hops = by_hop(sat(bundle))
    assert hops["student -> onnxruntime, batch 4"].verdict == PASSED
    with OnnxRuntime(bundle.model_path) as runtime:
        answers = answer_exam(bundle, runtime, exam.pixels[:1], 4)
    np.testing.assert_allclose(answers["embedding"], exam.answers["embedding"][:1], atol=1e-5)


def test_half_precision_inputs_follow_the_manifest(make_bundle, exam, tmp_path):
    model = small_model(tmp_path / "half.onnx", dtype="float16")
    hops = by_hop(sat(make_bundle(exam, model=model, precision="fp16", io="float16")))
    seen = hops["student -> onnxruntime, batch 1"]
    assert seen.verdict == PASSED
    assert 0 < seen.max_error < 0.01


def uint8_model(path):
    """image (batch, 16, 16, 3) uint8 -> embedding: the small model with its normalisation inside."""
    model = onnx.load(small_model(path))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3]))
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["normal"]),
    ]
    model.graph.node[0].input[0] = "normal"
    nodes += list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, value in (("scale", 1 / 127.5), ("one", 1.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    onnx.save(model, path)
    return path


@pytest.fixture
def uint8_bundle(make_bundle, exam, tmp_path):
    bundle = make_bundle(exam, model=uint8_model(tmp_path / "uint8.onnx"), input="uint8-nhwc")
    bundle.manifest["tensors"]["inputs"] = [{"name": "image", "dtype": "uint8", "shape": ["batch", SIZE, SIZE, 3]}]
    return bundle


def test_a_uint8_input_takes_the_pixels_as_they_are(uint8_bundle, exam):
    fed = network_input(uint8_bundle, exam.pixels[:2])["image"]
    assert fed.dtype == np.uint8
    np.testing.assert_array_equal(fed, exam.pixels[:2])
    seen = by_hop(sat(uint8_bundle))["student -> onnxruntime, batch 4"]
    assert seen.verdict == PASSED
    assert seen.cosine_min > 0.999999


def test_a_uint8_input_that_is_not_nhwc_is_refused(uint8_bundle, exam):
    uint8_bundle.manifest["tensors"]["inputs"][0]["shape"] = ["batch", 3, SIZE, SIZE]
    with pytest.raises(TinkitError, match="NHWC"):
        network_input(uint8_bundle, exam.pixels[:1])


@pytest.fixture
def frame_bundle(make_bundle, exam, tmp_path):
    """make(exam) -> a bundle whose model takes frames of just the network's size."""
    path = uint8_model(tmp_path / "frame.onnx")
    gates = {"embedding": Gate(0.99, 0.01), "frame": Gate(0.99, 0.01)}

    def make(exam):
        changes = {"input": "uint8-nhwc", "frame": (SIZE, SIZE), "gate": gates}
        bundle = make_bundle(exam, model=path, **changes)
        image = {"name": "image", "dtype": "uint8", "shape": ["batch", SIZE, SIZE, 3]}
        bundle.manifest["tensors"]["inputs"] = [image]
        return bundle

    return make


def framed(exam):
    """The exam with the small model's answers on the frames of its encoded pictures, worked out in numpy."""
    frames = np.stack([frame_pixels(exam.encoded[index], (SIZE, SIZE)) for index in sorted(exam.encoded)])
    answers = normalise(frames, PREPROCESSING).mean(axis=(2, 3)) @ WEIGHT
    return replace(exam, frame_answers={"embedding": answers.astype(np.float32)})


def test_a_model_that_takes_frames_is_asked_about_frames_and_not_about_pixels(frame_bundle, exam):
    hops = sat(frame_bundle(framed(exam)))
    assert [(hop.hop, hop.verdict) for hop in hops] == [
        ("encoded picture -> pixels", PASSED),
        ("student -> onnxruntime", NOT_JUDGED),
        ("frame -> onnxruntime, batch 1", PASSED),
        ("frame -> onnxruntime, batch 2", PASSED),
    ]
    assert "whole frames" in hops[1].reason
    assert {hop.pictures for hop in hops[2:]} == {2}


def test_a_wrong_answer_on_a_frame_fails_and_its_picture_is_counted_in_the_exam(frame_bundle):
    every = small_exam(encoded=6)
    wrong = framed(replace(every, encoded={2: every.encoded[2], 4: every.encoded[4]}))
    wrong.frame_answers["embedding"][1] *= -1
    hop = sat(frame_bundle(wrong))[-1]
    assert hop.verdict == FAILED
    assert (hop.worst[0]["index"], hop.worst[0]["name"]) == (4, "scene4.png")
    assert "scene4.png" in hop.reason


def test_a_rehearsal_of_frames_judges_nothing(frame_bundle, exam):
    hops = sat(frame_bundle(framed(exam)), rehearsal="another runtime")
    assert {hop.verdict for hop in hops} == {NOT_JUDGED}
    assert "here it passed" in hops[-1].reason


def test_without_pillow_frames_are_not_judged(frame_bundle, exam, monkeypatch):
    bundle = frame_bundle(framed(exam))
    monkeypatch.setitem(sys.modules, "PIL", None)
    hops = sat(bundle)
    assert {hop.verdict for hop in hops} == {NOT_JUDGED}
    assert "pillow" in hops[-1].reason.lower()


def test_an_exam_without_answers_on_frames_is_refused(frame_bundle, exam):
    with pytest.raises(TinkitError, match="do not fit the model's output"):
        sat(frame_bundle(exam))


def test_a_manifest_of_another_model_is_refused(make_bundle, exam, tmp_path):
    model = small_model(tmp_path / "half.onnx", dtype="float16")
    with pytest.raises(TinkitError, match="inputs of the model are not those of the manifest"):
        sat(make_bundle(exam, model=model))


def test_answers_of_another_width_are_refused(make_bundle, exam):
    narrow = replace(exam, answers={"embedding": exam.answers["embedding"][:, :5]})
    with pytest.raises(TinkitError, match="do not fit the model's output"):
        sat(make_bundle(narrow))


def test_pixel_limit_itself_passes():
    assert judge_pixels(2.0, 2.0)[0] == PASSED
    assert judge_pixels(2.0001, 2.0)[0] == FAILED
