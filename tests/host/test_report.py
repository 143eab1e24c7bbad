"""report.html: everything inside, a stranger's text escaped, nothing invented, and it says so when something is missing."""

import json
import math
import re
import shutil
from dataclasses import replace

import pytest
from report_parts import (
    HOSTILE,
    Page,
    images,
    latency,
    small_bundle,
    small_exam,
    small_report,
    without_own_script,
    written,
)

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED
from tinkit.host.report.command import load_report, report
from tinkit.host.report.pictures import THUMBNAILS
from tinkit.results import Report


@pytest.fixture
def usual(tmp_path):
    small_report(tmp_path, small_bundle(tmp_path))
    return tmp_path


def test_one_well_formed_file_that_asks_for_nothing(usual):
    text = written(usual)
    page = Page(text)
    assert len(text) < 2_000_000
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert {"link", "iframe", "object", "base", "form"}.isdisjoint(tag for tag, _ in page.tags)
    assert page.all("script") == [{}]
    assert "<script" not in without_own_script(text)
    for _, attributes in page.tags:
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]


def test_structure_for_those_who_listen_and_for_small_screens(usual):
    page = Page(written(usual))
    assert page.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert len(page.all("h1")) == 1
    assert all(attributes["alt"] for attributes in page.all("img"))
    charts = page.all("svg")
    assert len(charts) >= 4
    assert all(chart["aria-label"] and chart["role"] == "img" for chart in charts)
    assert len(page.all("caption")) == len(page.all("table")) >= 4
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link["href"][1:] for link in page.all("a")} <= targets


def test_a_hostile_name_is_only_text(usual):
    facts = load_report(usual / "report" / "report.json")
    evil = replace(
        facts.chain[1],
        verdict=FAILED,
        reason=f"cosine of {HOSTILE!r}",
        worst=[{"index": 0, "name": HOSTILE, "cosine": 0.1}],
    )
    evil_facts = replace(
        facts, title=HOSTILE, chain=[evil], verdict=FAILED, notes=[HOSTILE], machine={HOSTILE: HOSTILE},
        budgets=[{"name": HOSTILE, "limit": 1, "measured": 2, "verdict": FAILED, "reason": HOSTILE}],
    )  # fmt: skip
    files.write_json(usual / "report" / "report.json", evil_facts.to_json())
    text = written(usual)
    page = Page(text)
    assert "<script" not in without_own_script(text)
    assert page.all("script") == [{}]
    assert any(HOSTILE in attributes["alt"] for attributes in page.all("img"))
    assert page.text.count("<script>") >= 6


def test_names_of_the_history_are_text_too(tmp_path):
    run = {"history": [{"epoch": 1, "loss": 1.0, "</text><script>": 2.0}]}
    small_report(tmp_path, small_bundle(tmp_path, run=run))
    assert "<script" not in without_own_script(written(tmp_path))


def test_names_that_are_no_unicode_are_written(usual):
    facts = load_report(usual / "report" / "report.json")
    files.write_json(usual / "report" / "report.json", replace(facts, notes=["caf\udce9.jpg"]).to_json())
    assert "caf?.jpg" in written(usual)


def test_worst_pictures_are_the_right_ones_small_and_without_exif(usual):
    page = Page(written(usual))
    shown = images(page)
    assert 8 <= len(shown) <= THUMBNAILS
    exam = small_exam()
    for index, (attributes, image) in shown.items():
        assert attributes["alt"].endswith(str(exam.names[index]))
        assert max(image.size) <= 128
        assert dict(image.getexif()) == {}
        assert "exif" not in image.info
    for hop in load_report(usual / "report" / "report.json").chain:
        worst = hop.worst[0]["name"]
        if hop.output != "pixels" and not worst.startswith("not in"):
            assert list(exam.names).index(worst) in shown
    assert "the garden" not in written(usual)


def test_never_more_thumbnails_than_agreed(usual):
    facts = load_report(usual / "report" / "report.json")
    every = [{"index": i, "name": str(name), "cosine": 0.5} for i, name in enumerate(small_exam().names)]
    files.write_json(
        usual / "report" / "report.json", replace(facts, chain=[replace(facts.chain[1], worst=every)] * 3).to_json()
    )
    assert len(images(Page(written(usual)))) == THUMBNAILS


def test_verdicts_in_plain_words(usual):
    text = Page(written(usual)).text
    assert "Verdict: passed" in text
    assert "rehearsal." not in text
    facts = load_report(usual / "report" / "report.json")
    bad = replace(facts.chain[3], verdict=FAILED, reason="cosine 0.1 of picture 'x.jpg' is below 0.9")
    over = {"name": "peak_mb", "limit": 5.0, "measured": 99.0, "verdict": FAILED}
    failed = replace(facts, verdict=FAILED, chain=[*facts.chain[:3], bad], budgets=[over])
    files.write_json(usual / "report" / "report.json", failed.to_json())
    text = Page(written(usual)).text
    assert "Verdict: failed" in text
    assert "cosine 0.1 of picture 'x.jpg' is below 0.9" in text
    assert "budget peak_mb: 99, the limit is 5" in text


def test_a_rehearsal_says_so_before_any_number(usual):
    facts = load_report(usual / "report" / "report.json")
    files.write_json(
        usual / "report" / "report.json",
        replace(facts, verdict=NOT_JUDGED, rehearsal="onnxruntime-cpu, not the target runtime").to_json(),
    )
    text = Page(written(usual)).text
    assert "This is a rehearsal: onnxruntime-cpu, not the target runtime" in text
    assert text.index("This is a rehearsal") < text.index("Verdict: not judged") < text.index("Worst picture")
    assert "The host gate, at the export, says: passed" in text


def test_a_bundle_that_is_gone_is_no_error(usual):
    shutil.rmtree(usual / "bundle-small")
    page = Page(written(usual))
    assert "The bundle is no longer at" in page.text
    assert "not recorded" in page.text
    assert not page.all("img")
    assert "picture" in page.text  # the names are still there


def test_a_bundle_that_moved_with_its_report_is_found(usual):
    moved = usual / "elsewhere"
    moved.mkdir()
    shutil.move(usual / "bundle-small", moved / "bundle-small")
    shutil.move(usual / "report", moved / "report")
    assert images(Page(written(moved)))


def test_another_bundle_in_the_same_place_is_not_believed(usual):
    facts = load_report(usual / "report" / "report.json")
    files.write_json(
        usual / "report" / "report.json", replace(facts, bundle=dict(facts.bundle, model_sha256="0" * 64)).to_json()
    )
    page = Page(written(usual))
    assert "another one than was examined" in page.text
    assert "1.235 million" not in page.text
    assert not page.all("img")


def test_a_damaged_bundle_is_named_not_raised(usual):
    with open(usual / "bundle-small" / "exam.npz", "r+b") as handle:
        handle.seek(200)
        byte = handle.read(1)
        handle.seek(200)
        handle.write(bytes([byte[0] ^ 1]))
    page = Page(written(usual))
    assert "cannot be used" in page.text
    assert not page.all("img")


def test_a_bundle_without_an_exam(tmp_path):
    small_report(tmp_path, small_bundle(tmp_path, exam=None))
    page = Page(written(tmp_path))
    assert "carries no exam" in page.text
    assert "1.235 million parameters" in page.text
    assert not page.all("img")


def test_what_is_missing_is_said_and_nothing_invented(tmp_path):
    bare = dict.fromkeys(("student", "run", "teacher", "host_gate", "privacy"))
    small_report(
        tmp_path, small_bundle(tmp_path, **bare), latency=[], budgets=[], chain=[], machine={}, versions={}, device={}
    )
    text = Page(written(tmp_path)).text
    assert "number of parameters: not recorded" in text
    assert "No batch was timed." in text
    assert "Curves: not recorded." in text
    assert "Whose pictures the bundle carries: not recorded." in text
    assert "carries 40 pictures, 1 of them also as encoded files" in text
    assert "No budgets were given." in text
    assert not re.search(r"\b(None|Undefined|nan)\b", text)


def test_a_hole_in_a_list_is_said_too(usual):
    facts = load_report(usual / "report" / "report.json")
    hop = replace(facts.chain[1], worst=[{"index": 0, "cosine": 0.5}], reason="")
    holes = replace(facts, chain=[hop], budgets=[{"name": "p95_ms"}], bundle={"path": facts.bundle["path"]})
    files.write_json(usual / "report" / "report.json", holes.to_json())
    rows = Page(written(usual)).text
    assert "p95_ms not recorded not recorded not recorded" in rows
    assert "Not in the bundle's exam: not recorded 0.50000" in rows


def test_the_facts_are_in_the_page(usual):
    text = Page(written(usual)).text
    expected = (
        "1.235 million parameters", "89 000 000", "abc123", "a teacher of note", "a processor of note", "a note of note",
        "These are the user's own pictures", "tensorrt",
        "batch 1, 1 thread, 201 samples, onnxruntime on a processor of note", "gate.embedding.min_cosine",
        "1 beyond the right end, the longest 50 ms",
    )  # fmt: skip
    assert [words for words in expected if words not in text] == []


def test_hops_that_find_the_same_pictures_hard_share_a_strip(usual):
    facts = load_report(usual / "report" / "report.json")
    hop = facts.chain[1]
    chain = [
        replace(hop, hop="batch 1", conditions={"batch": 1, "via": "x"}),
        replace(hop, hop="batch 8", conditions={"via": "x"}),
    ]
    files.write_json(usual / "report" / "report.json", replace(facts, chain=[*chain, facts.chain[3]]).to_json())
    text = Page(written(usual)).text
    assert re.search(r"1\s+batch 1\s+\(embedding\);\s+2\s+batch 8\s+\(embedding\)", text)
    assert "Exam, hops 1, 2 via x" in text


def test_pictures_of_another_hop_and_those_that_are_not_in_the_exam_are_told_apart(usual):
    facts = load_report(usual / "report" / "report.json")
    hop = facts.chain[1]
    other = [*hop.worst[:1], {"index": 99, "name": "gone.jpg", "cosine": 0.5}]
    again = replace(hop, hop="again", worst=other)
    files.write_json(usual / "report" / "report.json", replace(facts, chain=[hop, again]).to_json())
    assert ". Not in the bundle's exam: gone.jpg 0.50000" in Page(written(usual)).text


def test_marks_of_doubtful_latency(usual):
    facts = load_report(usual / "report" / "report.json")
    assert "not settled" not in Page(written(usual)).text.split("What the numbers mean")[0]
    files.write_json(
        usual / "report" / "report.json", replace(facts, latency=[latency(contended=True, stable=False)]).to_json()
    )
    text = Page(written(usual)).text.split("What the numbers mean")[0]
    assert text.count("contended") >= 2
    assert text.count("not settled") >= 2


def test_report_round_trip_through_json(tmp_path):
    facts = small_report(tmp_path, small_bundle(tmp_path))
    assert Report.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    result = report(tmp_path / "report" / "report.json", out=tmp_path / "out")
    assert result == replace(facts, path=str(tmp_path / "out" / "report.html"))
    assert report(tmp_path / "report", out=tmp_path / "mine.html").path == str(tmp_path / "mine.html")


def test_the_newest_report_by_its_date(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TinkitError, match="no report here"):
        report()
    bundle = small_bundle(tmp_path)
    for name, created in (("b", "2025-01-01"), ("a", "2025-03-01"), ("c", "2025-02-01")):
        facts = small_report(tmp_path, bundle, created=created)
        files.write_json(tmp_path / "runs" / name / "report-small-here" / "report.json", facts.to_json())
    (tmp_path / "runs" / "d").mkdir()
    (tmp_path / "runs" / "d" / "report.json").write_text('{"half": ')
    assert report().path == str(tmp_path / "runs" / "a" / "report-small-here" / "report.html")


def test_reports_that_are_none(usual):
    path = usual / "report" / "report.json"
    good = files.read_json(path, "The report")
    for planted, words in (
        (dict(good, schema="other"), "schema"),
        ({key: good[key] for key in good if key != "chain"}, "not complete"),
        (dict(good, surprise=1), "not complete"),
    ):
        files.write_json(path, planted)
        with pytest.raises(TinkitError, match=words):
            report(path)
    with pytest.raises(TinkitError, match="no report here"):
        report(usual / "nowhere")
    with pytest.raises(TinkitError, match="no report here") as error:
        report(usual)
    assert error.value.next_step == f"tinkit report {usual / 'report'}"  # of a run its reports are named


def test_contrast_is_enough_in_light_dark_and_print(usual):
    style = re.search(r"<style>(.*?)</style>", written(usual), re.S).group(1)
    themes = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(themes) == 3
    for theme in themes:
        for name in ("ink", "soft", "passed", "failed", "unjudged", "s0", "s1", "s2", "s3", "s4"):
            assert contrast(theme[name], theme["paper"]) >= 4.5, name
        assert contrast(theme["ink"], theme["wash"]) >= 4.5


def contrast(one, other):
    """WCAG 2 contrast ratio of two #rgb or #rrggbb colours."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(d * 2 for d in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else math.pow((c + 0.055) / 1.055, 2.4) for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
