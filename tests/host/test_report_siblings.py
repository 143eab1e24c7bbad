"""Siblings of a report: the same run's, whatever folder names say; others and half-copied ones are left out."""

import dataclasses

import pytest
from report_parts import TARGET, chain_of, latency, small_bundle, small_exam, small_report

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.host.report.siblings import same_run, siblings


@pytest.fixture
def own(tmp_path):
    """(the run's folder, its bundle's report as a Report); the report lies in `report`."""
    folder = tmp_path / "run [1]"  # brackets mean something to glob
    folder.mkdir()
    return folder, small_report(folder, small_bundle(folder))


def add(folder, name, report, **changes):
    changed = dataclasses.replace(report, **changes)
    files.write_json(folder / name / "report.json", changed.to_json())
    return changed


def other_target(name):
    return {"name": name, "path": "", "target": {**TARGET.to_json(), "name": name}, "file_mb": 1.5}


def test_a_report_alone_is_its_own_sibling(own):
    folder, report = own
    (one,) = siblings(folder / "report")
    assert one.own
    assert (one.target, one.device, one.verdict, one.unlike) == ("small", "here", "passed", "")
    assert (one.p50_ms, one.p95_ms) == (latency().p50_ms, latency().p95_ms)
    gated = [hop.cosine_min for hop in report.chain if hop.gate and "onnxruntime" in hop.hop]
    assert one.worst_cosine == min(gated)
    assert one.file_mb == 3.3e-5
    assert one.path == str(folder / "report" / "report.json")


def test_other_targets_come_by_p95_and_those_without_one_last(own):
    folder, report = own
    add(folder, "report-fast", report, bundle=other_target("int8"), latency=[latency(p95_ms=0.5)])
    add(folder, "report-untimed", report, bundle=other_target("fp32"), latency=[])
    found = siblings(folder / "report" / "report.json")
    assert [one.target for one in found] == ["int8", "small", "fp32"]
    assert [one.own for one in found] == [False, True, False]
    assert found[0].file_mb == 1.5
    assert found[2].p95_ms is None
    assert all(one.unlike == "" for one in found)


def test_another_run_in_the_same_folder_is_no_sibling(own):
    folder, report = own
    hop = dataclasses.replace(report.chain[0], cosine_mean=report.chain[0].cosine_mean + 1e-9)
    other = add(folder, "report-other-run", report, chain=[hop, *report.chain[1:]])
    assert not same_run(report, other)
    assert len(siblings(folder / "report")) == 1


def test_reports_without_the_hops_of_a_run_are_no_siblings_of_each_other(own):
    folder, report = own
    bare = add(folder, "report-a", report, chain=report.chain[1:])
    add(folder, "report-b", report, chain=report.chain[1:])
    assert not same_run(bare, bare)
    assert [one.own for one in siblings(folder / "report-a")] == [True]


def test_damaged_ones_are_left_out_and_only_the_one_asked_about_is_an_error(own):
    folder, _ = own
    (folder / "report-half").mkdir()
    (folder / "report-half" / "report.json").write_text('{"schema": "tinkit-rep')
    assert len(siblings(folder / "report")) == 1
    with pytest.raises(TinkitError, match="cannot be read"):
        siblings(folder / "report-half")
    with pytest.raises(TinkitError, match="no report"):
        siblings(folder / "nowhere")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"device": {"name": "there"}}, "device"),
        ({"board": {"power_mode": "25W"}}, "mode"),
        ({"board": {"played_back": "/recorded"}}, "playback"),
        ({"rehearsal": "onnxruntime-cpu"}, "a rehearsal: onnxruntime-cpu"),
        ({"latency": [latency(protocol="tinkit-latency-1")]}, "protocol"),
    ],
)
def test_what_is_measured_otherwise_says_so(own, changes, word):
    folder, report = own
    add(folder, "report-unlike", report, **changes)
    told = {one.own: one.unlike for one in siblings(folder / "report")}
    assert told[True] == ""
    assert told[False].startswith(word)


def test_a_cuda_graph_is_not_the_plain_run(own):
    folder, report = own
    graph = latency(p95_ms=0.1, conditions={"cuda_graph": True})
    add(folder, "report-graph", report, latency=[graph, latency(p95_ms=1.0)])
    assert siblings(folder / "report")[0].p95_ms == 1.0


def test_the_hops_before_the_export_are_what_a_run_is():
    assert chain_of(small_exam())[0].hop == "mapped teacher -> student"
