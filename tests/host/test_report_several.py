"""Several reports on one page: who is on the front, among those that measure the same thing only."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_board_parts import BOARD, POWER, board_report
from report_parts import GATE, HOSTILE, Page, chain_of, latency, small_exam

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, compare_answers
from tinkit.host.report import plots
from tinkit.host.report.several import entries_of, front, render, report_several, unlike, worst_cosine

PLAIN = {"runtime": "tensorrt", "cuda_graph": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return board_report(tmp_path_factory.mktemp("several"))


def one(base, name, p95, loss, energy=None, **changes):
    """A report of target `name` with this p95, and with this loss in its worst hop on the device."""
    exam = small_exam()
    answers = exam.answers["embedding"]
    hop = compare_answers("student -> tensorrt, batch 1", "embedding", answers, answers, exam.names, GATE)
    chain = [*chain_of(exam)[:3], replace(hop, cosine_min=1 - loss)]
    run = latency(p95_ms=p95, conditions=PLAIN, intervals={"p95_ms": [p95 * 0.98, p95 * 1.02]})
    power = dict(POWER, energy_mj=energy) if energy else {"source": "", "note": "no energy: no rails here"}
    bundle = dict(base.bundle, target={"name": name})
    return replace(
        base,
        **{
            "title": f"{name} on a board",
            "chain": chain,
            "latency": [run],
            "power": power,
            "bundle": bundle,
            **changes,
        },
    )


def dots(page):
    """kind -> how many, of the first chart."""
    first = page.all("svg")[0]
    kinds = re.findall(r"on the front|behind the front|not comparable|nothing to compare it with", first["aria-label"])
    return {kind: kinds.count(kind) for kind in set(kinds)}


def test_the_front_is_told_and_drawn(base):
    reports = [
        one(base, "fp32", 9.0, 1e-6),
        one(base, "fp16", 3.0, 1e-4),
        one(base, "int8", 2.0, 1e-2),
        one(base, "slow", 9.5, 1e-3),
    ]
    page = Page(render(reports))
    assert "On the front: 1 fp32 , 2 fp16 , 3 int8 . No other one" in page.text
    assert dots(page) == {"on the front": 3, "behind the front": 1}
    kinds = [circle["class"] for circle in page.all("circle")]
    assert kinds == ["point front"] * 3 + ["point behind"]
    label = page.all("svg")[0]["aria-label"]
    assert "2 fp16: p95 of batch 1, ms 3, 1 - cosine of the worst picture 0.0001, on the front" in label
    assert "4 slow: p95 of batch 1, ms 9.5, 1 - cosine of the worst picture 0.001, behind the front" in label
    assert "8.82 to 9.18" in page.text
    assert len(page.all("svg")) == 1
    assert "No picture: the energy is known of none" in page.text
    assert "1 fp32 ( no rails here )" in page.text


def test_the_second_picture_is_of_energy_and_has_its_own_front(base):
    reports = [
        one(base, "fast", 2.0, 1e-3, energy=30.0),
        one(base, "frugal", 4.0, 1e-3, energy=20.0),
        one(base, "dark", 1.0, 1e-2),
    ]
    page = Page(render(reports))
    assert len(page.all("svg")) == 2
    energy = page.all("svg")[1]["aria-label"]
    assert "2 frugal: energy of a picture, mJ 20, 1 - cosine of the worst picture 0.001, on the front" in energy
    assert "1 fast" in energy
    assert "dark" not in energy
    assert "Energy not measured: 3 dark ( no rails here )" in page.text
    assert dots(page) == {"on the front": 2, "behind the front": 1}
    rows = [
        re.sub(r"\s+", " ", row)
        for row in re.findall(r"(?:latency|energy|behind)(?: and energy)? power mode", page.text)
    ]
    assert rows == ["latency power mode", "energy power mode", "latency power mode"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"board": dict(BOARD, power_mode="15W")}, "power mode: 15W, the others have 25W"),
        ({"board": dict(BOARD, clocks_pinned=False)}, "clocks: not pinned, the others have pinned"),
        ({"board": dict(BOARD, clocks_pinned=None)}, "clocks: not told, the others have pinned"),
        ({"board": dict(BOARD, played_back="/x")}, "played back from a folder: yes, the others have no"),
        (
            {"device": {"name": "another"}},
            "device: another on NVIDIA Jetson Orin Nano of note, the others have here on",
        ),
        (
            {"latency": [latency(p95_ms=0.1, conditions=PLAIN, protocol="tinkit-latency-1")]},
            "protocol: tinkit-latency-1, the others",
        ),
        ({"rehearsal": "onnxruntime-cpu"}, "a rehearsal: onnxruntime-cpu"),
    ],
)
def test_what_does_not_measure_the_same_is_hollow_with_the_reason(base, changes, reason):
    best = one(base, "other", 0.1, 1e-7, **changes)
    page = Page(render([best, one(base, "a", 9.0, 1e-3), one(base, "b", 8.0, 1e-2)]))
    assert dots(page) == {"on the front": 2, "not comparable": 1}
    assert page.all("circle")[0]["class"] == "point hollow"
    assert reason in page.text.split("Loss and energy")[0]
    assert reason in page.text.split("The reports")[1]
    assert "Not compared: " + reason in page.text


def test_rails_are_compared_for_energy_only(base):
    reports = [one(base, name, 2.0, 1e-3, energy=20.0) for name in "abc"]
    reports[2] = replace(reports[2], power=dict(POWER, rail="VDD_GPU", energy_mj=1.0))
    page = Page(render(reports))
    assert dots(page) == {"on the front": 3}
    assert (
        "3 c: energy of a picture, mJ 1, 1 - cosine of the worst picture 0.001, not comparable"
        in page.all("svg")[1]["aria-label"]
    )
    assert "Its energy is not compared: rail: VDD_GPU, the others have VDD_IN" in page.text


def test_nothing_but_rehearsals_has_no_front(base):
    page = Page(render([one(base, name, 2.0, 1e-3, rehearsal="elsewhere") for name in "ab"]))
    assert dots(page) == {"not comparable": 2}
    assert "There is no front" in page.text


def test_a_report_without_a_loss_or_without_batch_1_is_told_not_drawn(base):
    nothing = one(base, "b", 2.0, 1e-3, chain=[])
    page = Page(render([one(base, "a", 2.0, 1e-3), nothing, one(base, "c", 2.0, 1e-3, latency=[latency(batch=8)])]))
    assert dots(page) == {"nothing to compare it with": 1}
    assert "There is no front: no two of these reports may be compared" in page.text
    assert "2 b : no gated hop on the device has been examined" in page.text
    assert "3 c : batch 1 was not timed" in page.text
    assert not re.search(r"\b(None|nan|inf)\b", page.text)
    assert not Page(render([nothing])).all("svg")


def test_the_worst_hop_on_the_device_counts_and_the_host_does_not(base):
    report = one(base, "a", 2.0, 1e-3)
    on_device, on_host = (
        report.chain[-1],
        replace(report.chain[-1], hop="student -> onnx, rehearsed in fp16, batch 8", cosine_min=0.5),
    )
    assert worst_cosine(replace(report, chain=[on_device, on_host])) == pytest.approx(1 - 1e-3)
    worse = replace(on_device, hop="student -> onnxruntime, batch 8", cosine_min=0.75)
    assert worst_cosine(replace(report, chain=[on_device, worse, on_host])) == 0.75
    assert worst_cosine(replace(report, chain=[on_host])) is None
    assert worst_cosine(replace(report, chain=[replace(on_device, gate=None)])) is None


def test_losses_below_the_rounding_of_float32_are_alike(base):
    page = Page(render([one(base, "same", 2.0, 0.0), one(base, "slower", 3.0, -1e-15), one(base, "fast", 1.0, 1e-3)]))
    assert "no more than the rounding of float32 answers" in page.text
    assert "alike: 1 same , 2 slower ." in page.text
    label = page.all("svg")[0]["aria-label"]
    assert "1 same: p95 of batch 1, ms 2, 1 - cosine of the worst picture 1e-08, on the front" in label
    assert "2 slower: p95 of batch 1, ms 3, 1 - cosine of the worst picture 1e-08, behind the front" in label
    assert page.text.count("below 1e-08") == 3  # the sentence, two rows


def test_plain_runs_are_drawn_and_never_those_with_a_graph(base):
    plain, graph = latency(p95_ms=3.0, conditions=PLAIN), latency(p95_ms=1.0, conditions={"cuda_graph": True})
    entry = entries_of([one(base, "a", 2.0, 1e-3, latency=[graph, plain])])[0]
    assert entry.single.p95_ms == 3.0


def test_marks_played_back_and_unequal_exams_are_told_before_the_front(base):
    marked = one(base, "a", 2.0, 1e-3, latency=[latency(p95_ms=2.0, conditions=PLAIN, marks=["throttled: 100 %"])])
    other = one(base, "b", 3.0, 1e-4, board=dict(BOARD, played_back="/x"))
    few = one(base, "c", 3.0, 1e-4)
    few = replace(few, chain=[replace(hop, pictures=8) for hop in few.chain])
    text = Page(render([marked, other, few])).text
    before = text[: text.index("Loss and latency")]
    assert "1 throttled: 100 %" in before
    assert "In 2 b the board's facts" in before
    assert "exams of one size (8, 40 pictures)" in before
    text = Page(render([one(base, "a", 2.0, 1e-3)])).text
    assert "marked" not in text
    assert "Played back" not in text
    assert "exams of one size" not in text


def test_labels_are_short_unlike_and_name_the_mode_where_there_are_several(base):
    fast = one(base, "fp16", 2.0, 1e-3)
    assert [entry.label for entry in entries_of([fast, fast])] == ["1 fp16", "2 fp16"]
    slow = replace(fast, board=dict(BOARD, power_mode="15W"))
    long = one(base, "a-target-with-a-very-long-name", 2.0, 1e-3)
    assert [entry.label for entry in entries_of([fast, slow, long])] == [
        "1 fp16 25W",
        "2 fp16 15W",
        "3 a-target-with-a-very-…",
    ]


def write(folder, name, report):
    path = folder / name / "report.json"
    files.write_json(path, report.to_json())
    return path


def test_the_page_is_written_where_it_was_asked_for(base, tmp_path, monkeypatch):
    first, second = write(tmp_path, "a", one(base, "a", 2.0, 1e-3)), write(tmp_path, "b", one(base, "b", 3.0, 1e-4))
    monkeypatch.chdir(tmp_path)
    assert report_several([first, tmp_path / "b"]) == str(tmp_path / "report-of-2.html")
    assert report_several([first, second], out=tmp_path / "out") == str(tmp_path / "out" / "report-of-2.html")
    mine = report_several([first, second, first], out=tmp_path / "mine.html")
    assert mine == str(tmp_path / "mine.html")
    text = (tmp_path / "mine.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?://|url\(|@import|<script", text)
    assert {"script", "link", "iframe", "object", "base", "form", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert len(page.all("h1")) == 1
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert report_several([first], out=tmp_path) == str(tmp_path / "report-of-1.html")  # a matrix of one cell


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda path: path.unlink(), "no report here"),
        (lambda path: path.write_text('{"half": '), "."),
        (lambda path: path.write_text("[]"), "."),
        (lambda path: path.write_text(json.dumps({"schema": "tinkit-report-1"})), "schema"),
        (lambda path: path.write_text(path.read_text().replace('"p95_ms": 3.0', '"p95_ms": "3"')), "not complete"),
    ],
)
def test_a_source_that_is_missing_foreign_or_damaged_is_named(base, tmp_path, plant, words):
    good, bad = write(tmp_path, "good", one(base, "a", 2.0, 1e-3)), write(tmp_path, "bad", one(base, "b", 3.0, 1e-3))
    plant(bad)
    with pytest.raises(TinkitError, match=words) as caught:
        report_several([good, bad], out=tmp_path)
    assert str(bad) in str(caught.value.where)
    assert not (tmp_path / "report-of-2.html").exists()


def test_no_source_is_an_error():
    with pytest.raises(TinkitError, match="No report"):
        report_several([])


def test_hostile_text_is_only_text(base):
    evil = one(base, HOSTILE, 2.0, 1e-3, energy=3.0, title=HOSTILE, verdict=FAILED, created=HOSTILE,
               board=dict(BOARD, power_mode=HOSTILE, model=HOSTILE, played_back=HOSTILE))  # fmt: skip
    evil = replace(
        evil, latency=[replace(evil.latency[0], marks=[HOSTILE], intervals={"p95_ms": [HOSTILE, 1]}, protocol=HOSTILE)]
    )
    evil = replace(
        evil, power=dict(evil.power, rail=HOSTILE, source=HOSTILE), bundle={**evil.bundle, "file_mb": HOSTILE}
    )
    other = one(base, "b", 2.0, 1e-3, rehearsal=HOSTILE, power={"source": "", "note": HOSTILE})
    text = render([evil, other, one(base, "c", 1.0, 1e-2, energy=1.0), one(base, "d", 1.0, 1e-2, energy=1.0)])
    page = Page(text)
    assert "<script" not in text
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert page.text.count(HOSTILE) >= 8


@pytest.mark.parametrize("seen", [None, 3, "x", [], {}, [[1]], float("nan"), {"name": {}}])
def test_what_is_of_another_kind_stops_nothing(base, seen):
    board = {**BOARD, **dict.fromkeys(("power_mode", "clocks_pinned", "model", "played_back"), seen)}
    power = dict.fromkeys(("energy_mj", "rail", "source", "note"), seen)
    odd = one(
        base,
        "a",
        2.0,
        1e-3,
        board=board,
        power=power,
        device={"name": seen},
        bundle={"target": seen, "name": seen, "file_mb": seen},
    )
    odd = replace(odd, latency=[replace(odd.latency[0], intervals={"p95_ms": seen}, conditions={"cuda_graph": seen})])
    page = Page(render([odd, one(base, "b", 2.0, 1e-3, energy=2.0)]))
    assert "b on a board" in page.text
    assert len(page.all("circle")) >= 2
    assert not re.search(r"\b(None|Undefined)\b", page.text)


def test_front_by_hand():
    assert front({1: (1, 3), 2: (2, 2), 3: (3, 1), 4: (3, 3), 5: (2, 3)}) == {1, 2, 3}
    assert front({1: (1, 1), 2: (1, 1)}) == {1, 2}  # equals do not push each other off
    assert front({1: (1, 1), 2: (1, 2)}) == {1}
    assert front({}) == set()


points = st.dictionaries(st.integers(0, 20), st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1)


@given(points)
def test_every_point_behind_the_front_has_one_on_it_that_is_no_worse(places):
    first = front(places)
    assert first
    for number, (x, y) in places.items():
        better = [n for n in first if places[n][0] <= x and places[n][1] <= y and places[n] != (x, y)]
        assert (number not in first) == bool(better)


def test_the_largest_group_is_compared_and_the_first_of_equals():
    keys = {1: {"mode": "a"}, 2: {"mode": "b"}, 3: {"mode": "b"}, 4: {"rehearsal": "r"}}
    assert unlike(keys) == {1: "power mode: a, the others have b", 4: "a rehearsal: r"}
    assert unlike({1: {"mode": "a"}, 2: {"mode": "b"}}) == {2: "power mode: b, the others have a"}
    assert unlike({}) == {}


def boxes_of(chart):
    """(left, top, right, bottom) of every name of a scatter, and of every dot."""
    names = []
    pattern = r'<text x="([\d.]+)" y="([\d.]+)" class="label-of" text-anchor="(\w+)">([^<]*)<'
    for x, y, anchor, words in re.findall(pattern, chart):
        width, middle = plots.LETTER * len(words), float(y) - 4
        left = float(x) - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        names.append((left, middle - 6, left + width, middle + 6))
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="(\d+)"', chart)
    dots_ = [(float(x) - float(r), float(y) - float(r), float(x) + float(r), float(y) + float(r)) for x, y, r in found]
    return names, dots_


def meet(one_box, other):
    return one_box[0] < other[2] and other[0] < one_box[2] and one_box[1] < other[3] and other[1] < one_box[3]


places = st.lists(st.tuples(st.floats(0.01, 100), st.floats(1e-8, 2)), min_size=1, max_size=24)


@given(places)
def test_names_never_lie_on_one_another_or_on_dots_and_stay_inside(where):
    chart = str(
        plots.scatter("a", [plots.Dot(f"{n} fp16 25W", x, y) for n, (x, y) in enumerate(where, 1)], "ms", "loss")
    )
    names, circles = boxes_of(chart)
    assert len(circles) == len(where)
    assert len(names) == len(where)
    everything = names + circles
    for index, box in enumerate(names):
        assert box[0] >= 0
        assert box[2] <= plots.WIDE
        assert box[1] >= 0
        assert box[3] <= plots.HIGH
        assert not [other for place, other in enumerate(everything) if place != index and meet(box, other)]


def test_names_in_one_heap_move_away_with_a_line_to_their_dot():
    chart = str(
        plots.scatter("a", [plots.Dot(f"{n} a name of some length", 5.0, 3e-3) for n in range(9)], "ms", "loss")
    )
    names, _ = boxes_of(chart)
    assert len(names) == 9
    assert 5 <= chart.count('class="leader"') < 9


def test_the_axis_is_logarithmic_with_powers_of_ten():
    dots_ = [plots.Dot("a", 1.0, 1e-6), plots.Dot("b", 2.0, 1e-4), plots.Dot("c", 3.0, 1e-2)]
    chart = str(plots.scatter("a", dots_, "ms", "loss"))
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', chart)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11)
    assert "10⁻⁶" in chart
    assert "10⁻²" in chart
