"""A report from a board: refused where it contradicts itself, judged anew from its numbers, and harmless in every part."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from report_board_parts import BOARD, LAYERS, OFFLINE, POWER, SERVER, THROUGHPUT, TRTEXEC, WATCH, planted
from small_parts import reduced_target
from sshd_parts import board_bundle, good_report, hop, quick_device, timed

import tinkit
from tinkit import files
from tinkit.bundle import write_bundle
from tinkit.cli import cli
from tinkit.device.latency import PERCENTILES, summary
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.host.board.received import checked_report
from tinkit.host.report.compare import UNLIKE, compare

TRUTH = {"subject": "engine", "precision": "fp16", "layers": {"fp16": 1.0}, "macs": {"fp16": 0.95, "fp32": 0.05}, "floor": 0.9,
         "verdict": PASSED, "reason": "", "notes": [], "weights": {}, "computed": ""}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return board_bundle(tmp_path_factory.mktemp("board"))


def check(bundle, report=None, budget=None, board_root=None, **changes):
    """The checked report; budget: {name: limit}, of which the board says that all are passed."""
    limits = budget or {}
    entries = [{"name": name, "limit": limit, "measured": 0.1, "verdict": PASSED} for name, limit in limits.items()]
    data = json.dumps({**(report or good_report(bundle)), "budgets": entries, **changes}).encode()
    return checked_report(data, "board", bundle, quick_device(), limits, "report.json", board_root)


def refused(*args, **changes):
    with pytest.raises(TinkitError) as caught:
        check(*args, **changes)
    return str(caught.value)


def latency(**changes):
    return [{**timed().to_json(), **changes}]


def scenario(samples_ms, /, **changes):
    """What a server tells of these samples."""
    found = {**SERVER, "samples_ms": list(samples_ms)}
    found.update((name, float(np.percentile(samples_ms, percent))) for name, percent in PERCENTILES.items())
    return {**found, "mean_ms": float(np.mean(samples_ms)), **changes}


# --- what a report must not contradict ---


def test_an_honest_report_is_taken(bundle):
    report = check(bundle, latency=latency(gpu=summary([1.0, 2.0, 3.0])), scenarios=[scenario([3.0, 4.0])])
    assert report.verdict == PASSED


@pytest.mark.parametrize("name", ["mean_ms", "min_ms", *PERCENTILES])
def test_statistics_that_are_not_those_of_their_samples(bundle, name):
    true = getattr(timed(), name)
    assert f"contradicts itself: it is not used.\n  where: board\n  seen:  batch 1: {name}" in refused(
        bundle, latency=latency(**{name: true * 0.999})
    )
    assert check(bundle, latency=latency(**{name: true * (1 + 1e-7)})).verdict == PASSED
    gpu = summary([1.0, 2.0, 3.0])
    assert f"batch 1, gpu: {name}" in refused(bundle, latency=latency(gpu={**gpu, name: gpu[name] * 0.999}))
    if name != "min_ms":
        played = scenario([3.0, 4.0])
        assert f"server: {name}" in refused(bundle, scenarios=[{**played, name: played[name] * 0.999}])
        assert f"server: {name}" in refused(bundle, scenarios=[{**played, name: None}])
        assert f"offline: {name}" in refused(bundle, scenarios=[{**OFFLINE, "samples_ms": [], name: 1.0}])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"protocol": "tinkit-latency-1"}, "protocol 'tinkit-latency-1'"),
        ({"samples": 100_000}, "100000 samples, 200 told"),
        ({"samples": 0, "samples_ms": []}, "of its samples None"),
        ({"samples": 2, "samples_ms": [-1.0, 2.0]}, "samples from -1"),
        ({"samples": 2, "samples_ms": [1.0, 1e12]}, "samples from 1 to 1e+12 ms"),
    ],
)
def test_a_latency_that_cannot_be(bundle, changes, told):
    assert told in refused(bundle, latency=latency(**changes))


def test_a_rehearsal_only_of_a_board_that_is_played_back(bundle, tmp_path):
    played = {"rehearsal": "played back: from a folder", "chain": [hop("pytorch -> onnx").to_json(),
              hop("onnx -> onnxruntime", NOT_JUDGED).to_json()]}  # fmt: skip
    report = check(bundle, board_root=tmp_path, budget={"p95_ms": 5.0}, **played)
    assert (report.verdict, report.budgets[0]["verdict"]) == (NOT_JUDGED, NOT_JUDGED)
    assert report.title == "small on here (rehearsal: played back: from a folder)"
    for root, rehearsal in ((None, "played back: x"), ("/", "played back: x"), (tmp_path, ""), (tmp_path, "other")):
        assert "of another rehearsal" in refused(bundle, board_root=root, **{**played, "rehearsal": rehearsal})
    played["chain"] = good_report(bundle)["chain"]
    assert "contradicts itself" in refused(bundle, board_root=tmp_path, **played)


def test_budgets_and_verdict_are_judged_here_from_the_numbers(bundle):
    report = check(bundle, budget={"p95_ms": 3.0, "p50_ms": 3.1, "file_mb": 1e-9, "per_s": 10.0, "energy_mj": 9.0},
                   power={"energy_mj": 8.0}, verdict=PASSED)  # fmt: skip
    told = {entry["name"]: (entry["verdict"], entry["measured"]) for entry in report.budgets}
    assert told == {
        "p95_ms": (FAILED, pytest.approx(timed().p95_ms)),
        "p50_ms": (PASSED, pytest.approx(3.0)),
        "file_mb": (FAILED, os.path.getsize(bundle.model_path) / 1e6),
        "per_s": (NOT_JUDGED, None),
        "energy_mj": (PASSED, 8.0),
    }
    assert report.verdict == FAILED
    failed = [hop("pytorch -> onnx").to_json(), hop("onnx -> onnxruntime", FAILED).to_json()]
    assert check(bundle, chain=failed, verdict=PASSED).verdict == FAILED


@pytest.mark.parametrize(
    "changes",
    [
        {"cosine_min": 0.98},
        {"max_error_share": 0.02},
        {"max_error_share": "inf"},
        {"cosine_min": "nan"},
        {"pictures": 0},
    ],
)
def test_an_exam_that_is_passed_in_words_only(bundle, changes):
    hops = good_report(bundle)["chain"]
    assert "passed, with cosine" in refused(bundle, chain=[hops[0], {**hops[1], **changes}])
    first = check(bundle, chain=[{**hops[0], **changes}, hops[1]]).chain[0]
    assert first.cosine_min == 1.0  # the host's own hop is ours


def test_pixels_and_outputs_that_are_passed_in_words_only(bundle):
    hops = good_report(bundle)["chain"]
    pixels = {**hops[1], "output": "pixels", "max_error": 2.0}
    assert check(bundle, chain=[*hops, pixels]).verdict == PASSED
    for wrong in ({**pixels, "max_error": 2.1}, {**hops[1], "output": "another"}):
        assert "passed, with cosine" in refused(bundle, chain=[*hops, wrong])


def test_what_was_left_out_is_missed(bundle, tmp_path):
    report = good_report(bundle)
    assert "nothing about embedding" in refused(bundle, chain=report["chain"][:1])
    assert "nothing about batch 1" in refused(bundle, latency=[])
    assert "nothing about batch 1" in refused(bundle, latency=[replace(timed(), batch=4).to_json()])
    assert "nothing about batch 1" in refused(bundle, latency=latency(conditions={"cuda_graph": True}))
    bare = write_bundle(tmp_path / "bare", bundle.model_path, bundle.manifest, None)
    assert check(bare, chain=report["chain"][:1]).verdict == NOT_JUDGED
    device = quick_device(batches=(8,))  # the target takes 1 to 4
    data = json.dumps({**report, "latency": []}).encode()
    assert checked_report(data, "board", bundle, device, {}, "report.json").latency == []


def test_the_precision_is_told_and_is_what_its_numbers_say(tmp_path):
    bundle = board_bundle(tmp_path, target=reduced_target().to_json(), node_macs={"conv": 10})
    assert check(bundle, truth=TRUTH).verdict == PASSED
    assert check(bundle, truth={**TRUTH, "verdict": FAILED}).verdict == FAILED
    assert "without the precision" in refused(bundle)
    for changes in ({"macs": {"fp16": 0.8}, "floor": 0.5}, {"macs": {}}, {"precision": "fp32", "macs": {"fp32": 1.0}}):
        assert "precision" in refused(bundle, truth={**TRUTH, **changes})
    for changes in ({"macs": "all"}, {"macs": {"fp16": None}}, {"verdict": "great"}, {"notes": [1]}, {"shell": "rm"}):
        assert "The board sent a report" in refused(bundle, truth={**TRUTH, **changes})


# --- what a report must not break ---


@pytest.mark.parametrize(
    "changes",
    [
        {"budgets": [{"name": "p95_ms", "limit": 3.0, "measured": "fast", "verdict": PASSED}]},
        {"throughput": [{**THROUGHPUT[0], "pictures_per_s": "many"}]},
        {"throughput": [{key: value for key, value in THROUGHPUT[0].items() if key != "p99_ms"}]},
        {"scenarios": [scenario([1.0], valid="yes")]},
        {"scenarios": [scenario([1.0], reason=None)]},
        {"scenarios": [scenario([1.0], per_s=None)]},
        {"scenarios": [scenario([1.0], samples_ms=["1"])]},
        {"scenarios": [SERVER]},  # without its samples
        {"power": {"energy_mj": "little"}},
        {"power": {"load_w": True}},
        {"latency": latency(gpu={"p50_ms": 1.0})},
        {"latency": latency(gpu=dict(summary([1.0]), intervals=[]))},
        {"latency": latency(intervals={"p50_ms": [1.0]})},
        {"latency": latency(intervals={"p50_ms": [1.0, "2"]})},
        {"latency": latency(marks=[["a"]])},
        {"notes": [{}]},
        {"versions": {"onnxruntime": ["1"]}},
    ],
)  # fmt: skip
def test_a_nested_part_of_another_kind_is_refused(bundle, changes):
    assert "not as reports are" in refused(bundle, **changes)


def full_report(bundle):
    """Everything that a board may tell."""
    gpu = dict(summary(np.linspace(1.5, 1.6, 200)))
    plain = replace(timed(), gpu=gpu, marks=["drifted: so"], conditions={"runtime": "tensorrt", "cuda_graph": False})
    graph = replace(plain, conditions={"runtime": "tensorrt", "cuda_graph": True})
    hops = good_report(bundle)["chain"]
    worst = [{"index": 0, "name": "scene0.png", "cosine": 0.999}]
    hops[1].update(worst=worst, max_error=0.001, gate={"min_cosine": 0.99}, conditions={"batch": 1, "x": 0.5})
    return good_report(
        bundle, chain=hops, latency=[plain.to_json(), graph.to_json()], board=BOARD, watch=WATCH, power=POWER, layers=LAYERS,
        throughput=THROUGHPUT, scenarios=[scenario(np.linspace(3, 9, 20).tolist()), {**OFFLINE, "samples_ms": []}], truth=TRUTH,
        trtexec=TRTEXEC, steps={"exam": 0.5}, notes=["a note"], first_ms=8.0,
    )  # fmt: skip


def places(value, path=()):
    """Every place in plain data; of a long list the first two entries."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2])
    for key, entry in entries:
        yield (*path, key)
        if isinstance(entry, (dict, list)):
            yield from places(entry, (*path, key))


JUNK = st.one_of(
    st.none(), st.booleans(), st.sampled_from([0, -1, 1, 10**30, 2**62, 1e-300, -1e18, 0.5, "", "inf", "nan", "<b>", "\x1b[2J"]),
    st.text(max_size=5), st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=2) |
    st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=4),
)  # fmt: skip


def use(report, before, folder):
    """All that the commands do with a report that was taken."""
    files.write_json(folder / "report.json", report.to_json())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tinkit, "profile", lambda *args, **options: replace(report, path=str(folder / "report.json")))
        done = CliRunner().invoke(cli, ["profile"], catch_exceptions=False)
    assert report.title in done.output
    for pair in ((before, folder), (folder, before)):
        assert compare(*pair, allow=tuple(UNLIKE)).rows()


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    """(a bundle, a full report of it, that report's folder)."""
    folder = tmp_path_factory.mktemp("full")
    bundle = board_bundle(folder, node_macs={"conv": 10}, target=reduced_target().to_json())
    files.write_json(folder / "before/report.json", check(bundle, full_report(bundle)).to_json())
    (folder / "after").mkdir()
    return bundle, full_report(bundle), folder


BUDGET = {"p95_ms": 5.0, "server.p99_ms": 9.0, "per_s": 1.0, "gpu.p50_ms": 2.0}


@settings(max_examples=150)
@given(data=st.data(), seen=JUNK)
def test_a_part_that_is_replaced_is_refused_or_breaks_nothing(taken, data, seen):
    bundle, report, folder = taken
    path = data.draw(st.sampled_from(sorted(places(report), key=str)))
    try:
        found = check(bundle, planted(report, path, seen), BUDGET)
    except TinkitError:
        return
    use(found, folder / "before", folder / "after")


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1e6) | st.integers(0, 3) | st.floats(0, 1e-6), min_size=1, max_size=8))
def test_any_samples_with_their_own_statistics_break_nothing(taken, samples_ms):
    bundle, report, folder = taken
    times = summary(samples_ms)
    block = times.pop("block")
    run = {**report["latency"][0], **times, "samples": len(samples_ms), "gpu": {**times, "block": block}}
    use(check(bundle, {**report, "latency": [run]}), folder / "before", folder / "after")
