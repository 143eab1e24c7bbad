"""The page of an evaluation, alone and beside a report: what it shows is in the JSON, and a stranger's text is only text."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from evaluation_parts import CLASSES, PICTURES, bare, evaluation, hostile, name_of, write_pictures, written_evaluation
from PIL import Image
from report_parts import HISTORY, HOSTILE, Page, small_bundle, small_report, without_own_script

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.host.report.album import MOST, MOST_BYTES, Album, heat
from tinkit.host.report.command import report
from tinkit.host.report.evaluation import evaluation_page
from tinkit.host.report.page import breaks

MAPS, MINUS = 6 * 2 * 2, "\u2212"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluated") / "pictures"
    write_pictures(root)
    return root


def page_of(folder, value):
    """(text, Page) of the page of this evaluation.json."""
    written_evaluation(folder, value)
    with open(evaluation_page(folder), encoding="utf-8") as handle:
        text = handle.read()
    return text, Page(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pictures):
    return page_of(tmp_path_factory.mktemp("whole"), evaluation(pictures))


def thumbnails(page):
    """Decoded JPEGs with their size in bytes."""
    found = []
    for attributes in page.all("img"):
        kind, data = attributes["src"].split(",", 1)
        if kind == "data:image/jpeg;base64":
            raw = base64.b64decode(data)
            found.append((attributes["alt"], Image.open(io.BytesIO(raw)), len(raw)))
    return found


def test_one_small_file_that_asks_for_nothing(whole):
    text, page = whole
    assert len(text) < 2_500_000
    rest = without_own_script(text)
    assert not re.search(r"https?://|url\(|@import|<script", rest)
    assert {"link", "iframe", "object", "base", "form"}.isdisjoint(tag for tag, _ in page.tags)
    for _, attributes in page.tags:
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; img-src data:;")
    assert "'unsafe-inline'" not in policies[0].split("script-src")[1]


def test_structure_for_those_who_listen(whole):
    _, page = whole
    assert len(page.all("h1")) == 1
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for attributes in page.all("th"))
    assert all(chart["aria-label"] and chart["role"] == "img" for chart in page.all("svg"))
    targets = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(targets) == len(set(targets))
    assert {link["href"][1:] for link in page.all("a")} <= set(targets)


def test_the_three_questions_and_the_verdict(whole):
    _, page = whole
    assert "Verdict: failed" in page.text
    assert "degradation budget auroc>-0.01: AUROC, change -0.0200" in page.text
    assert "Answers as its teacher 0.900 kNN agreement, 0.880 to 0.920" in page.text
    assert "Holds when pictures get worse 0.610" in page.text
    assert "Knows what it does not know 0.935 AUROC, 0.915 to 0.955; the teacher has 0.955: worse" in page.text


def test_a_change_is_better_or_worse_only_beyond_its_interval(whole):
    _, page = whole
    rows = dict(re.findall(r"(kNN accuracy|Probe accuracy|Calibration error) (.*?) (?=Probe|Calib|Strange)", page.text))
    assert rows["kNN accuracy"].endswith("worse")
    assert rows["Probe accuracy"].endswith("no clear change")  # -0.02 to +0.001
    assert rows["Calibration error"].endswith("worse")  # more, where lower is better


def with_gap(pictures, clean):
    value = evaluation(pictures)
    gap = {"name": "corruption_gap", "group": "corruption", "title": "Lost to corruption", "student": 0.1, "teacher": 0.2,
           "better": "lower", "interval": [0.05, 0.15], "change": [-0.15, -0.05], "what": "clean minus corrupt"}  # fmt: skip
    corruption = dict(
        value["corruption"], clean={"teacher": 0.91, "student": clean}, gap={"teacher": 0.2, "student": -0.01}
    )
    return {**value, "measures": [*value["measures"], gap], "corruption": corruption}


def test_who_had_less_to_lose_is_not_praised_for_losing_less(tmp_path, pictures):
    text = page_of(tmp_path / "weak", with_gap(pictures, 0.3))[1].text.replace(MINUS, "-")
    assert "-0.150 to -0.050 less, but it had less to lose" in text
    assert "Lost against clean pictures: the student -0.010, the teacher 0.200" in text
    assert "times as much" not in text
    text = page_of(tmp_path / "equal", with_gap(pictures, 0.91))[1].text.replace(MINUS, "-")
    assert "-0.150 to -0.050 better" in text


def test_maps_that_are_no_more_alike_than_those_of_other_pictures_say_so(tmp_path, pictures):
    value = evaluation(pictures)
    told = dict(value["dense"]["map_correlation"], mean=0.8, interval=[0.75, 0.85], other_picture=0.81)
    by_place = dict(value["dense"], map_correlation=told, grid=[2, 2])
    text = page_of(tmp_path / "place", {**value, "dense": by_place})[1].text
    assert "it is 0.810: no less, so these numbers are explained by the places alone" in text
    assert "With 2 x 2 places there is little" in text
    own = dict(value["dense"], map_correlation=dict(told, other_picture=0.3))
    text = page_of(tmp_path / "own", {**value, "dense": own})[1].text
    assert "it is 0.300, which is what the places alone explain" in text
    assert "there is little" not in text


def test_the_domains_are_a_table_too(whole):
    _, page = whole
    assert re.search(r"sketch 300 0\.590 0\.480 .*? -0\.110 .*? 0\.360 0\.450", page.text.replace(MINUS, "-"))
    assert "photo, trained on" in page.text
    assert "mean of the others" in page.text


def test_a_name_breaks_behind_its_folders(whole):
    text, _ = whole
    assert "tram/<wbr>picture" in text
    assert str(breaks("<b>/x")) == "&lt;b&gt;/<wbr>x"


def test_what_was_not_asked_says_how_to_ask(tmp_path, pictures):
    _, page = page_of(tmp_path, bare(pictures))
    assert "Verdict: not judged" in page.text
    assert "Answers as its teacher 0.620 Neighbours in common of 10" in page.text  # the next best answer
    assert "Knows what it does not know not asked it needs --ood FOLDER" in page.text
    for option in ("--ood FOLDER", "--corruptions", "--domains FOLDER", "--labels CSV"):
        assert option in page.text
    assert not re.search(r"\b(None|Undefined|nan)\b", page.text)


def test_the_worst_pictures_with_their_neighbours(whole):
    text, _ = whole
    first = re.search(r'<ul class="cases">\s*<li>(.*?)</div>\s*</li>', text, re.S).group(1)
    names = re.findall(r'alt="([^"]+)"', first)
    assert names[0] == name_of(3)
    assert len(names) == 11
    marked = [name.removeprefix("both: ") for name in names[1:] if name.startswith("both: ")]
    assert len(marked) == 2 * len(set(marked)) > 0  # each one on both sides
    assert "0.31000" in first


def test_thumbnails_are_small_and_without_exif(whole):
    _, page = whole
    shown = thumbnails(page)
    assert len(shown) > 150
    assert len(page.all("img")) - len(shown) == MAPS
    for _, image, size in shown:
        assert size <= MOST_BYTES
        assert max(image.size) <= 160
        assert dict(image.getexif()) == {}


def test_two_hundred_thumbnails_of_noise_stay_below_five_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "pictures"
    write_pictures(root, side=32)
    for index in range(PICTURES):
        noise = rng.integers(0, 256, (160, 160, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / name_of(index), quality=95)
    text, page = page_of(tmp_path, evaluation(root))
    assert len(page.all("img")) > 200
    assert len(text) < 5_000_000


def test_no_more_thumbnails_than_agreed(pictures):
    album = Album(pictures)
    assert all(album.data(name_of(n % PICTURES)) for n in range(MOST))
    assert album.data(name_of(0)) == ""
    assert (album.shown, album.beyond) == (MOST, 1)


def test_pictures_that_are_gone_are_told(tmp_path):
    _, page = page_of(tmp_path, evaluation(tmp_path / "moved away"))
    assert not thumbnails(page)
    assert "no longer there" in page.text
    assert "could not be shown: " in page.text
    assert page.text.count("no image") > 100


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/secret.jpg", "a/../../secret.jpg", ""])
def test_a_name_never_leads_out_of_the_folder(tmp_path, name):
    root = tmp_path / "pictures"
    root.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.jpg")
    album = Album(root)
    assert album.data(name) == ""
    assert "not a name below" in album.missing[name]


def test_a_damaged_picture_is_told(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    album = Album(tmp_path)
    assert album.data("a.jpg") == ""
    assert album.missing["a.jpg"]


def test_hostile_text_is_only_text(tmp_path, pictures):
    value = hostile(evaluation(pictures))
    value = {**value, "schema": evaluation(pictures)["schema"], "verdict": "failed"}
    text, page = page_of(tmp_path, value)
    assert "<script" not in without_own_script(text)
    assert page.text.count(HOSTILE) > 100
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]


def decoded(data):
    return Image.open(io.BytesIO(base64.b64decode(data.split(",", 1)[1]))).convert("RGB")


def test_a_map_in_colours_that_do_not_need_red_and_green():
    image = decoded(heat([[0, 255, 128], [64, 192, 32]], 0, 0))
    cell = image.width // 3
    assert image.size == (3 * cell, 2 * cell)
    assert 90 <= image.width <= 120  # as large as it is shown
    at = {value: (x * cell + cell // 2, y * cell + cell // 2) for value, x, y in (
        (0, 0, 0), (255, 1, 0), (128, 2, 0), (64, 0, 1), (192, 1, 1), (32, 2, 1))}  # fmt: skip
    low, high = image.getpixel(at[32]), image.getpixel(at[255])
    assert high == (255, 234, 70)
    assert low[2] > low[0]
    grey = image.convert("L")
    levels = [grey.getpixel(at[value]) for value in sorted(at)]
    assert levels == sorted(levels)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_the_ring_of_a_map_is_seen_on_every_colour_and_hides_no_neighbour(level):
    ringed, plain = (np.asarray(decoded(heat(np.full((2, 2), level), *point)), int) for point in ((0, 0), (1, 1)))
    half = len(plain) // 2
    changed = np.abs(ringed[:half, :half] - plain[:half, :half]).max(axis=2) > 60
    assert changed.sum() > 3 * half  # two rings are drawn, and one of them at least stands out
    assert not np.abs(ringed[:half, half:] - plain[:half, half:]).any()
    assert not np.abs(ringed[half:, :half] - plain[half:, :half]).any()


@pytest.mark.parametrize(
    ("values", "point"), [([[0, 256]], (0, 0)), ([[-1]], (0, 0)), ([[0.5]], (0, 0)), ([1], (0, 0)), ([[1]], (0, 1))]
)
def test_what_is_no_map_is_refused(values, point):
    with pytest.raises(ValueError, match=r"map|point"):
        heat(values, *point)


def test_a_mapping_that_keeps_angles_is_drawn_flat_and_told_in_words(tmp_path, pictures):
    value = evaluation(pictures)
    stretch = {"median": 1.0, "min": 1.0, "max": 1.0, "values": [1 + 1e-8 * n for n in range(64)]}
    text, page = page_of(tmp_path, {**value, "orthogonality": dict(value["orthogonality"], stretch=stretch)})
    chart = text[text.index('aria-label="Stretch of the mapping') :].split("</svg>")[0]
    ticks = re.findall(
        r'class="tick"[^>]*text-anchor="end">([^<]+)<|text-anchor="end" class="tick"[^>]*>([^<]+)<', chart
    )
    assert [one or other for one, other in ticks] == ["0.9", "0.95", "1", "1.05", "1.1"]
    assert "width, teacher to student 1 280 to 128" in page.text
    assert "cosine_change" not in page.text


@pytest.fixture
def run(tmp_path, pictures):
    """RUN/report-small-here/report.json of a bundle of run abc123, and RUN/evaluation."""
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    facts = small_report(folder, small_bundle(folder, run={"id": "abc123", "history": HISTORY}))
    (folder / "report").rename(folder / "report-small-here")
    written_evaluation(folder / "evaluation", evaluation(pictures))
    return folder, facts


def page_beside(folder, **options):
    with open(report(folder / "report-small-here", **options).path, encoding="utf-8") as handle:
        return Page(handle.read())


def test_a_report_shows_the_evaluation_of_its_run(run):
    page = page_beside(run[0])
    text = page.text
    assert "Verdict: failed" in text  # the degradation budget was missed, the device's gates were not
    assert (
        text.index("Answers as its teacher 0.900")
        < text.index("Worst picture after export, cosine")
        < text.index("Latency, p95")
    )
    assert "What each hop lost" in [chart["aria-label"].split(".")[0] for chart in page.all("svg")]
    assert (
        text.index("Fidelity, hop by hop") < text.index("Where the student sees something else") < text.index("Sizes")
    )
    assert all(name in text for name in CLASSES)
    assert len(page.all("script")) == 1
    targets = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(targets) == len(set(targets))
    assert {link["href"][1:] for link in page.all("a")} <= set(targets)


def test_a_report_without_an_evaluation_says_how_near_and_what_is_missing(run):
    folder, facts = run
    (folder / "evaluation" / "evaluation.json").unlink()
    text = page_beside(folder).text
    assert "Verdict: passed" in text
    assert "Near its teacher, cosine" in text
    assert "no evaluation on other pictures: tinkit evaluate" in text
    files.write_json(folder / "report-small-here" / "report.json", replace(facts, chain=facts.chain[1:]).to_json())
    assert "no hop from the teacher was examined" in page_beside(folder).text


def test_an_evaluation_of_another_run_is_never_taken(run, pictures):
    folder, _ = run
    other = evaluation(pictures)
    other["subject"] = dict(other["subject"], run_id="another")
    path = written_evaluation(folder / "evaluation", other)
    assert "Answers as its teacher" not in page_beside(folder).text
    with pytest.raises(TinkitError, match="another run"):
        report(folder / "report-small-here", evaluation=path)


def test_licences_are_told_where_they_are_declared_and_unknown_where_not(run):
    text = page_beside(run[0]).text
    assert "Licences: what the model is made of" in text
    assert "Model: model.onnx unknown nobody has said under which licence it is given" in text
    assert "Licences: what the model is made of" not in page_without(run[0])
    given = {"model": {"file": "m", "licence": {"known": True, "name": "MIT", "source": "the user"}}, "code": []}
    assert "Model: m MIT the user" in page_beside(run[0], provenance=given).text


def page_without(folder):
    """The report's page when the evaluation is gone."""
    (folder / "evaluation" / "evaluation.json").rename(folder / "evaluation" / "away")
    text = page_beside(folder).text
    (folder / "evaluation" / "away").rename(folder / "evaluation" / "evaluation.json")
    return text


def test_siblings_are_shown_in_one_picture(run):
    folder, facts = run
    assert "No other report of this run" in page_beside(folder).text
    slower = replace(facts.latency[0], p95_ms=9.5)
    target = dict(facts.bundle["target"], name="slower")
    other = replace(facts, latency=[slower], bundle=dict(facts.bundle, target=target))
    files.write_json(folder / "report-slower-here" / "report.json", other.to_json())
    page = page_beside(folder)
    assert "slower" in page.text
    assert "(this report)" in page.text
    assert any(chart["aria-label"].startswith("Loss of the worst picture against latency") for chart in page.all("svg"))


def test_what_is_no_evaluation_is_refused_by_name(tmp_path, pictures):
    with pytest.raises(TinkitError, match="no evaluation here"):
        evaluation_page(tmp_path)
    path = written_evaluation(tmp_path, evaluation(pictures, schema="other"))
    with pytest.raises(TinkitError, match="schema"):
        evaluation_page(path)
    whole_value = evaluation(pictures)
    written_evaluation(tmp_path, {key: whole_value[key] for key in whole_value if key != "measures"})
    with pytest.raises(TinkitError, match="not complete"):
        evaluation_page(tmp_path)
