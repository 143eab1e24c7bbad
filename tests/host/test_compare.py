"""Comparing two reports: unlike ones are refused, noise is not called a change, and a rule fails for a real reason only."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from report_parts import latency, small_bundle, small_report

import tinkit
from tinkit.errors import EXIT_NO_VERDICT, CannotJudge, TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.host.report.compare import BETTER, CHANGED, COMPARED, NOISE, SAME, WORSE, Change, compare, parse_rules


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    return small_report(
        folder, small_bundle(folder), board={"model": "a board", "power_mode": "15W", "clocks_pinned": True}
    )


def run(p95, spread=0.01, **changes):
    """A latency whose p95 is this, known to a share of `spread`."""
    return latency(p95_ms=p95, intervals={"p95_ms": [p95 * (1 - spread), p95 * (1 + spread)]}, **changes)


def with_p95(report, p95, **changes):
    return replace(report, latency=[run(p95, **changes)])


def change_of(result, name):
    return next(change for change in result.changes if change.name == name)


def test_a_report_is_the_same_as_itself(report):
    result = compare(report, report, fail_if="p95_ms>+0%,embedding.cosine_min<-0,load_ms>+0%")
    assert result.verdict == PASSED
    assert {change.verdict for change in result.changes} == {SAME}
    assert {"p50_ms", "p99.9_ms", "load_ms", "file_mb", "embedding.cosine_min"} <= {c.name for c in result.changes}


@pytest.mark.parametrize(
    ("after", "verdict", "word"),
    [
        (10.4, PASSED, WORSE),
        (10.6, NOT_JUDGED, WORSE),
        (10.8, FAILED, WORSE),
        (9.0, PASSED, BETTER),
        (10.1, PASSED, NOISE),
    ],
)
def test_a_rule_fails_beyond_its_limit_and_the_noise(report, after, verdict, word):
    result = compare(with_p95(report, 10.0), with_p95(report, after), fail_if="p95_ms>+5%")
    assert result.verdict == verdict
    assert change_of(result, "p95_ms").verdict == word


def test_a_rule_broken_within_the_noise_is_not_judged(report):
    before, after = with_p95(report, 10.0, spread=0.1), with_p95(report, 10.6, spread=0.1)
    result = compare(before, after, fail_if="p95_ms>+5%")
    assert result.verdict == NOT_JUDGED
    assert "the noise is" in result.rules[0]["reason"]
    assert compare(before, with_p95(report, 13.0, spread=0.1), fail_if="p95_ms>+5%").verdict == FAILED
    assert compare(before, with_p95(report, 12.5, spread=0.1), fail_if="p95_ms>+2").verdict == NOT_JUDGED  # in ms
    assert compare(before, with_p95(report, 16.0, spread=0.1), fail_if="p95_ms>+2").verdict == FAILED


def test_the_noise_is_what_both_intervals_leave_open(report):
    change = change_of(compare(with_p95(report, 10.0, spread=0.1), with_p95(report, 20.0, spread=0.1)), "p95_ms")
    assert change.interval == pytest.approx((18 / 11 - 1, 22 / 9 - 1))


def test_fidelity_has_no_noise_and_its_worst_hop_counts(report):
    worse = replace(report, chain=[replace(hop, cosine_min=hop.cosine_min - 0.01) for hop in report.chain])
    result = compare(report, worse, fail_if="embedding.cosine_min<-0.005")
    assert result.verdict == FAILED
    assert change_of(result, "embedding.cosine_min").verdict == WORSE
    assert compare(report, worse, fail_if="embedding.cosine_min<-0.02").verdict == PASSED
    assert compare(worse, report, fail_if="embedding.cosine_min<-0.005").verdict == PASSED


def test_what_was_measured_once_is_changed_neither_better_nor_worse(report):
    assert change_of(compare(report, replace(report, load_ms=99.0)), "load_ms").verdict == CHANGED


def test_higher_rates_are_better():
    assert Change("offline.per_s", 10.0, 20.0, (0.5, 1.5)).verdict == BETTER
    assert Change("p95_ms", 10.0, 20.0, (0.5, 1.5)).verdict == WORSE


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("device", {"device": {"name": "elsewhere", "runtimes": ["onnxruntime"]}}),
        ("playback", {"board": {"model": "a board", "power_mode": "15W", "clocks_pinned": True, "played_back": "/x"}}),
        ("mode", {"board": {"model": "a board", "power_mode": "25W", "clocks_pinned": True}}),
        ("clocks", {"board": {"model": "a board", "power_mode": "15W", "clocks_pinned": False}}),
        ("protocol", {"latency": [run(10.0, protocol="tinkit-latency-1")]}),
        ("threads", {"latency": [run(10.0, threads=4)]}),
        ("target", {"rehearsal": "onnxruntime-cpu"}),
    ],
)
def test_unlike_reports_are_refused_unless_that_is_allowed(report, word, changes):
    before, after = with_p95(report, 10.0), replace(with_p95(report, 10.0), **changes)
    with pytest.raises(CannotJudge) as caught:
        compare(before, after)
    assert caught.value.exit_code == EXIT_NO_VERDICT
    assert word + ": " in caught.value.seen
    assert "--allow " + word in caught.value.next_step
    result = compare(before, after, allow=[word])
    assert any(note.startswith(word) for note in result.notes)


def test_other_versions_and_marks_are_told_and_no_obstacle(report):
    after = replace(report, versions={"onnxruntime": "2.0"}, latency=[latency(marks=["throttled: the clock fell"])])
    notes = compare(report, after).notes
    assert "onnxruntime 1.0 before, 2.0 after" in notes
    assert "after: throttled: the clock fell" in notes


@pytest.mark.parametrize(
    "text", ["p95_ms", "p95_ms>5%", "p95_ms=+5%", "p59>+5%", "load>+5%", "p95_ms>+x%", "cosine_min", " , "]
)
def test_a_rule_that_makes_no_sense_is_refused(text):
    with pytest.raises(TinkitError) as caught:
        parse_rules(text)
    assert caught.value.where == "--fail-if"
    assert caught.value.next_step


def test_a_rule_about_what_is_not_there_is_not_judged(report):
    result = compare(report, report, fail_if="energy_mj>+5%")
    assert (result.verdict, result.rules[0]["reason"]) == (NOT_JUDGED, "it is not in both reports")


def test_an_unknown_word_to_allow_is_refused(report):
    with pytest.raises(TinkitError, match="to allow"):
        compare(report, report, allow=["everything"])


def test_junit_and_json_tell_the_same(report, tmp_path):
    rules = "p95_ms>+5%,p50_ms>+900%,energy_mj>+1%"
    result = compare(with_p95(report, 10.0), with_p95(report, 20.0), fail_if=rules)
    result.write(junit_path=tmp_path / "out.xml", json_path=tmp_path / "out.json")
    root = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert root.attrib["tests"] == "3"
    cases = {case.attrib["name"]: case for case in root.iter("testcase")}
    assert cases["p95_ms>+5%"].find("failure") is not None
    assert cases["energy_mj>+1%"].find("skipped") is not None
    assert cases["p50_ms>+900%"].find("failure") is None
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["verdict"] == FAILED
    assert [rule["verdict"] for rule in told["rules"]] == [FAILED, PASSED, NOT_JUDGED]


def test_control_characters_do_not_break_the_xml(report, tmp_path):
    result = replace(compare(report, report), title="a\x1b[31mb\x00")
    result.write(junit_path=tmp_path / "out.xml")
    assert ElementTree.parse(tmp_path / "out.xml").getroot().get("name") == "tinkit compare: a [31mb "


def test_reports_are_found_by_folder_or_file(tmp_path, report):
    bundle = small_bundle(tmp_path)
    small_report(tmp_path, bundle)
    assert tinkit.compare(tmp_path / "report", tmp_path / "report" / "report.json").verdict == COMPARED
    with pytest.raises(TinkitError, match="no report"):
        tinkit.compare(tmp_path, tmp_path / "report")
