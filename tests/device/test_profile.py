"""The report as a whole: verdicts, rehearsals, budgets, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tinkit
from tinkit import files
from tinkit.device import board
from tinkit.device import profile as profiles
from tinkit.device.profile import profile
from tinkit.errors import EXIT_NO_VERDICT, CannotJudge, TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED, compare_answers
from tinkit.recipes import match_device
from tinkit.results import Report
from tinkit.target import Batch, Gate


def hop_of_the_host(verdict):
    hop = compare_answers("student -> ONNX", "embedding", np.ones((1, 2)), np.ones((1, 2)), ["a"])
    return replace(hop, verdict=verdict)


def test_the_report_is_complete_and_is_what_lies_on_the_disk(make_bundle, exam, here, tmp_path):
    told = []
    chain = {"chain": [hop_of_the_host(PASSED).to_json()]}
    report = profile(make_bundle(exam, chain).path, here, out=tmp_path / "out", say=told.append)
    assert report.verdict == PASSED
    assert report.rehearsal == ""
    assert [hop.hop for hop in report.chain][:2] == ["student -> ONNX", "encoded picture -> pixels"]
    assert [run.batch for run in report.latency] == [1, 4]
    assert all(len(run.samples_ms) == run.samples >= 200 for run in report.latency)
    assert report.load_ms > 0
    assert report.peak_mb > 0
    assert report.bundle["path"] == str(tmp_path / "bundle-small")
    assert {"load_before", "load_after", "cpu"} <= set(report.machine)
    assert {"onnxruntime", "tinkit", "numpy", "python"} == set(report.versions)
    assert report.path == str(tmp_path / "out" / "report.json")
    assert Report.from_json(files.read_json(report.path, "The report")) == report
    assert any("p50" in line for line in told)


def test_by_default_newest_bundle_detected_device_and_a_folder_beside_the_bundle(
    make_bundle, exam, tmp_path, monkeypatch
):
    home = tmp_path / "runs" / "one"
    home.mkdir(parents=True)
    (tmp_path / make_bundle(exam).path).rename(home / "bundle-small")
    monkeypatch.chdir(tmp_path)
    report = tinkit.profile(warmup_s=0.0, min_seconds=0.0)
    device = match_device({}, "onnxruntime")
    assert report.device["name"] == device
    assert report.path == str(home / "report-small-{}".format(device) / "report.json")
    assert [run.batch for run in report.latency] == [1]
    assert any("batch 8 was not timed: the target takes 1 to 4" in note for note in report.notes)


@pytest.mark.parametrize(("share", "verdict"), [(0.0095, PASSED), (0.0105, FAILED)])
def test_a_gate_decides_the_report_just_inside_and_just_outside(make_bundle, exam, here, tmp_path, share, verdict):
    answers = exam.answers["embedding"].copy()
    picture, column = np.unravel_index(np.abs(answers).argmin(), answers.shape)
    answers[picture, column] += share * np.abs(answers).max()
    bundle = make_bundle(replace(exam, answers={"embedding": answers}))
    assert profile(bundle, here, out=tmp_path / "out").verdict == verdict


def rehearsed(make_bundle, exam, **manifest):
    gate = {"embedding": Gate(min_cosine=0.999, max_error_share=0.05)}
    return make_bundle(exam, manifest, runtime="tensorrt", precision="fp16", gate=gate)


def test_another_runtime_than_the_targets_is_a_rehearsal(make_bundle, exam, here, tmp_path):
    wrong = replace(exam, answers={"embedding": -exam.answers["embedding"]})
    chain = [hop_of_the_host(PASSED).to_json()]
    bundle = rehearsed(make_bundle, wrong, chain=chain)
    report = profile(bundle, here, out=tmp_path / "out", budget={"p95_ms": 1e-9})
    assert report.verdict == NOT_JUDGED
    assert report.rehearsal == "onnxruntime-cpu, not the target runtime"
    assert "rehearsal: onnxruntime-cpu, not the target runtime" in report.title
    assert {hop.verdict for hop in report.chain[1:]} == {NOT_JUDGED}
    assert report.chain[0].verdict == PASSED  # the host's own verdict stands, and is not this device's
    assert [entry["verdict"] for entry in report.budgets] == [NOT_JUDGED]
    assert report.chain[2].cosine_min == pytest.approx(-1)


def test_a_rehearsal_can_be_refused(make_bundle, exam, here, tmp_path):
    with pytest.raises(CannotJudge) as error:
        profile(rehearsed(make_bundle, exam), here, out=tmp_path / "out", require_target_runtime=True)
    assert error.value.exit_code == EXIT_NO_VERDICT
    assert not (tmp_path / "out").exists()
    assert profile(make_bundle(exam), here, out=tmp_path / "out", require_target_runtime=True).verdict == PASSED


def test_where_the_targets_runtime_is_there_it_is_taken_and_never_replaced(make_bundle, exam, tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "gpu_present", lambda: True)
    monkeypatch.setattr(profiles, "find_tensorrt", lambda: object())
    opened = []

    def open_runtime(kind, path, threads, target, fp32_nodes, say, cache):
        opened.append((kind, target.name, fp32_nodes))
        raise CannotJudge("The driver has no device.")

    monkeypatch.setattr(profiles, "open_runtime", open_runtime)
    bundle = rehearsed(make_bundle, exam)
    with pytest.raises(CannotJudge, match="no device"):
        profile(bundle.path, out=tmp_path / "out")
    assert opened == [("tensorrt", bundle.target.name, ())]


def test_a_bf16_bundle_is_not_rehearsed_where_nothing_has_bf16(make_bundle, exam, here, tmp_path):
    bundle = make_bundle(exam, runtime="tensorrt", precision="bf16", opset=22)
    with pytest.raises(CannotJudge, match="bf16"):
        profile(bundle.path, here, out=tmp_path / "out")


class Answering:
    """An OpenVINO that computes in `precision`."""

    name = "openvino"

    def __init__(self, precision):
        self.precision = precision

    def node_precisions(self):
        return {"conv": self.precision}

    def layer_precisions(self):
        return {self.precision: 1}


def test_what_the_runtime_really_computes_in_is_judged(make_bundle, exam, tmp_path):
    gate = {"embedding": {"min_cosine": 0.9, "max_error_share": 0.5}}
    bundle = make_bundle(exam, {"node_macs": {"conv": 100}}, runtime="openvino", compute="fp32", gate=gate)
    good, bad = (profiles.runtime_truth(bundle, Answering(precision)) for precision in ("fp32", "bf16"))
    assert (good.verdict, bad.verdict) == (PASSED, FAILED)
    assert "bf16" in bad.reason
    hop = hop_of_the_host(PASSED)
    assert profiles.judge_report([hop], [hop], [], good) == PASSED
    assert profiles.judge_report([hop], [hop], [], bad) == FAILED
    assert profiles.judge_report([hop], [hop], [], None, FAILED) == FAILED  # the graph's own truth failed on the host


def test_a_profile_of_another_processor_is_refused(make_bundle, exam, here):
    other = "aarch64" if board.architecture() == "x86_64" else "x86_64"
    with pytest.raises(CannotJudge, match="another processor"):
        profile(make_bundle(exam), replace(here, arch=other))


def test_latency_budgets_are_of_batch_one(make_bundle, exam, here, tmp_path):
    bundle = make_bundle(exam)
    report = profile(bundle, here, out=tmp_path / "out", budget={"p95_ms": 1000.0, "peak_mb": 0.001})
    first, second = report.budgets
    assert (first["verdict"], first["measured"], first["reason"]) == (PASSED, report.latency[0].p95_ms, "batch 1")
    assert second["verdict"] == FAILED
    assert report.verdict == FAILED


def test_a_latency_budget_without_batch_one_is_not_judged(make_bundle, exam, here, tmp_path):
    bundle = make_bundle(exam, batch=Batch(2, 2, 4))
    report = profile(bundle, here, out=tmp_path / "out", budget={"p95_ms": 1000.0})
    assert [run.batch for run in report.latency] == [4]
    assert [(entry["verdict"], entry["measured"]) for entry in report.budgets] == [(NOT_JUDGED, None)]
    json.loads(json.dumps(report.to_json()))


def test_a_misspelt_budget_is_refused_before_anything_runs(make_bundle, exam, here, tmp_path):
    with pytest.raises(TinkitError, match="no such budget"):
        profile(make_bundle(exam), here, out=tmp_path / "out", budget={"p95_sm": 3})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.onnx", "exam.npz"])
def test_a_flipped_byte_is_refused(make_bundle, exam, here, name):
    bundle = make_bundle(exam)
    path = Path(bundle.path) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(TinkitError, match="damaged") as error:
        profile(bundle.path, here)
    assert error.value.where == str(path)


def test_without_an_exam_latency_is_measured_on_noise_and_nothing_is_judged(make_bundle, here, tmp_path):
    report = profile(make_bundle(None), here, out=tmp_path / "out")
    assert report.verdict == NOT_JUDGED
    assert "noise" in report.latency[0].conditions["pictures"]
