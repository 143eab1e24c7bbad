"""What a board tells, on the page: every field is shown, escaped and believed only as far as it is of its kind."""

import re
from dataclasses import replace

import pytest
from board_parts import fake_board
from hypothesis import given
from hypothesis import strategies as st
from report_board_parts import BOARD, NEW_FIELDS, STEPS, TRTEXEC, board_latencies, board_report, planted, window
from report_parts import HOSTILE, Page, latency, small_bundle, small_report, without_own_script, written
from small_parts import PREPROCESSING, SIZE, small_exam, small_model, small_target, this_machine

from tinkit import files
from tinkit.bundle import write_bundle
from tinkit.device.profile import profile
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, PASSED
from tinkit.host.report.command import load_report, render
from tinkit.host.report.source import Evidence
from tinkit.host.report.text import between, limit_of, relative
from tinkit.host.report.timing import marks_of

GONE = Evidence(None, None, "The bundle is gone.")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return board_report(tmp_path_factory.mktemp("board"))


def page_of(facts):
    return Page(render(facts, GONE))


def section(facts, name, following):
    """The text between two headings of the page."""
    found = re.search(f" {re.escape(name)} (.*?) {re.escape(following)} ", page_of(facts).text)
    assert found, name
    return found.group(1)


def test_the_board_in_words(full):
    told = section(full, "The board", "Latency Milliseconds")
    expected = (
        "NVIDIA Jetson Orin Nano of note", "p3767-0003", "JetPack 6.2.1", "L4T 36.4.7", "TensorRT 10.3.0.30", "CUDA 12.6",
        "Power mode 25W", "Clocks pinned", "GPU clock 918 MHz, allowed 918 to 918", "CPU clock 1 344 MHz",
        "Fan 128 of 255, 2 300 turns a minute", "Not told by this machine: Memory clock.",
        "gpu 44.5 51.5", "cpu 45.2 not read", "tj not read 52.0",
    )  # fmt: skip
    assert [words for words in expected if words not in told] == []
    assert "not pinned" in section(
        replace(full, board=dict(BOARD, clocks_pinned=False)), "The board", "Latency Milliseconds"
    )
    unknown = section(
        replace(full, board=dict(BOARD, clocks_pinned=None, after={})), "The board", "Latency Milliseconds"
    )
    assert "pinned" not in unknown
    assert "Not told by this machine: Clocks" in unknown


def test_a_board_that_was_played_back_is_told_before_any_number(full):
    assert "Played back" not in page_of(full).text
    text = page_of(replace(full, board=dict(BOARD, played_back="/a/folder/<b>"))).text
    assert "came from files below /a/folder/<b> , not from the machine that ran" in text
    assert text.index("Played back") < text.index("Verdict:")


def test_a_mode_that_changed_meanwhile_is_a_mark(full):
    after = dict(BOARD, power_mode="15W", clocks_pinned=False)
    text = page_of(replace(full, board=dict(BOARD, after=after))).text
    assert "power mode: 25W before, 15W after" in text[: text.index("Verdict:")]
    assert "clocks: pinned before, not pinned after" in text[: text.index("Verdict:")]


def test_latency_with_intervals_the_gpu_alone_and_with_a_graph(full):
    told = section(full, "Latency", "At the start")
    assert re.search(r"batch 1 2 3\.\d+ 3 2\.91 to 3\.11 .* the GPU alone 1\.45 1\.53 1\.53 1\.5 to 1\.56", told)
    assert "batch 1, CUDA graph" in told
    assert re.search(r"p99\.9 .*4 to 50", told)
    assert (
        told.count("201 samples in 1 s, the processor waits for the GPU, 20 runs of warm-up, drift +1.2 %; no marks")
        == 2
    )
    assert "not measured" not in told
    assert "First run, ms 8.25" in page_of(full).text
    assert "Time to load, ms 12.5" in page_of(full).text


def test_without_gpu_or_graph_the_reason_is_one_line(full):
    told = section(replace(full, latency=[latency()]), "Latency", "At the start")
    assert "The network on the GPU alone: not measured; onnxruntime tells no such times ." in told
    assert "With a CUDA graph: not measured; onnxruntime was run without one ." in told
    assert "wall/CPU 1.02" in told


def test_marks_cannot_be_overlooked(full):
    marked = [replace(full.latency[0], marks=["throttled: the GPU's clock fell", "drifted: by 9 %"]), full.latency[1]]
    facts = replace(full, latency=marked, scenarios=[])
    text = page_of(facts).text
    before = text[: text.index("Verdict:")]
    assert "These numbers are marked" in before
    assert "batch 1: throttled: the GPU's clock fell" in before
    assert text[: text.index("Fidelity, hop by hop")].count("throttled: the GPU's clock fell") == 2  # banner, headline
    assert "throttled: the GPU's clock fell" in section(facts, "Latency Milliseconds", "How it was timed")
    assert "marked" not in page_of(replace(full, scenarios=[], watch={})).text[: text.index("Verdict:")]


def test_a_flag_without_a_mark_is_a_mark_and_none_is_told_twice():
    run = latency(contended=True, stable=False, marks=["contended: in words"])
    assert marks_of(run) == ["contended: in words", "not settled when the warm-up ended"]
    assert marks_of(latency()) == []


def test_throughput_and_scenarios_with_their_settings_and_validity(full):
    told = section(full, "Throughput and load", "Clocks, temperature and power")
    assert "1 333.2 8 4.1 5.2 240 3.01 2 666.5 8" in told
    assert (
        "server 1 240 1 240 10.02 123.8 4 6 7 9 11.5 4.25 Valid; at least 10 s, at least 500 pictures, 123.5 queries/s"
        in told
    )
    assert "at most 16 at once, seed 4" in told
    assert "Not valid: only 3 samples of 500 in 100 s" in told
    assert "offline 1 240 1 240 10.02 123.8 none none none none none none" in told
    assert "scenario offline is not valid" in page_of(full).text.split("Verdict:")[0]


def test_what_the_machine_did_by_windows(full):
    told = section(full, "Clocks, temperature and power while it was timed", "Layers")
    assert "1 idle 3 15 306 (286 to 307) 1510" in told
    assert "gpu: 44.0 to 45.5, at most 46.2 VDD_IN: 4.50 W VDD_SOC: 1.25 W none" in told
    assert "3 events" in told
    assert "Read from: devfreq, tegrastats . Could not be read: energy: no counters" in told
    charts = [chart["aria-label"] for chart in page_of(full).all("svg")]
    assert "Power, W. power from 4.5 to 8.5" in charts
    assert "Median clock, MHz. gpu from 306 to 880; cpu from 1510 to 1510" in charts
    assert "Hottest zone at the end, °C. hottest from 45.5 to 51.5" in charts


def test_windows_that_throttled_are_marks_unless_a_latency_tells_it(full):
    names = ("batch 1", "2 streams", "server")
    windows = [window(name, 900.0, 50.0, 7.0, events) for name, events in zip(names, (4, 5, 0))]
    before = page_of(replace(full, watch={"windows": windows}, scenarios=[])).text.split("Verdict:")[0]
    assert "2 streams: 5 throttle events" in before
    assert "throttle events" not in before.replace("2 streams: 5 throttle events", "")


def test_power_and_energy_with_rail_and_source_or_why_there_is_none(full):
    told = section(full, "Power and energy", "Layers")
    assert "Rail VDD_IN Source tegrastats Idle 4.5 W Under load, batch 1 7.5 W Energy of a picture 23.25 mJ" in told
    assert "above idle 9.125 mJ How the rail before all others" in told
    assert "Energy of one picture 23.25 mJ" in page_of(full).text.split("Fidelity, hop by hop")[0]
    none = replace(full, power={"source": "", "note": "no energy: power: no INA3221 here"})
    assert section(none, "Power and energy", "Layers") == ("Power and energy: not measured; power: no INA3221 here .")
    assert "Energy of one picture" not in page_of(none).text.split("Fidelity, hop by hop")[0]
    half = replace(full, power=dict(full.power, idle_w=None, energy_above_idle_mj=None))
    assert "Idle not measured" in section(half, "Power and energy", "Layers")


def test_layers_with_share_bar_bound_and_peaks(full):
    told = section(full, "Layers", "Beside NVIDIA's trtexec")
    expected = (
        "fused 1 stem/Conv, stem/Relu, stem/Add and 1 more CaskConvolution 1.5 60.0% memory 0.5 3 ",
        "Reformat 2 not an ONNX node of this graph Reformat 0.75 30.0% unknown unknown unknown",
        "Peak of fp16 15 tera-operations a second", "Memory 102 GB/s", "Source device profile of note", "98.7%",
        "The layers add up to 2.500 ms.",
    )  # fmt: skip
    assert [words for words in expected if words not in told] == []
    widths = [span["style"] for span in page_of(full).all("span") if span.get("class") == "share"]
    assert widths[:2] == ["width: 100.0%", "width: 50.0%"]


def test_never_more_than_twenty_layers(full):
    top = [dict(full.layers["top"][0], layer=f"layer {number};") for number in range(30)]
    told = section(replace(full, layers=dict(full.layers, top=top)), "Layers", "Beside NVIDIA's trtexec")
    assert "layer 19;" in told
    assert "layer 20;" not in told


def test_trtexec_beside_our_numbers(full):
    told = section(full, "Beside NVIDIA's trtexec", "Sizes")
    assert "agrees (the goal is 3 %): tinkit's median GPU compute time is +2.0% of trtexec's" in told
    assert "p50 1.53 1.5 +2.0 %" in told
    assert "p99.9 1.61 1.9 -15." in told
    assert "trtexec '--onnx=a b.onnx'" in told
    other = replace(full, trtexec=dict(TRTEXEC, batch=8, marks=["spin_wait was to be on and is off"]))
    told = section(other, "Beside NVIDIA's trtexec", "Sizes")
    assert "tinkit has no GPU times of the same batch" in told
    assert "p50 none 1.5 unknown" in told
    assert "spin_wait was to be on and is off" in told


def test_our_times_beside_trtexec_are_those_of_the_same_use_of_a_graph(full):
    plain, graph = board_latencies()
    graph = replace(graph, gpu=dict(graph.gpu, p50_ms=9.75))
    assert "p50 9.75 1.5" in section(replace(full, latency=[plain, graph]), "Beside NVIDIA's trtexec", "Sizes")
    without = replace(full, latency=[plain, graph], trtexec=dict(TRTEXEC, cuda_graph=False))
    assert "p50 1.53 1.5" in section(without, "Beside NVIDIA's trtexec", "Sizes")


def test_steps_and_bytes(full):
    told = section(full, "Where the time went", "Privacy")
    assert "connect 0.4 hello 0.2 copy 1.5 run 80 work 78 exam 2 latency 20 bye 0.1" in told
    assert "What the board did is all in run and work, and told again" in told
    assert "Bytes sent 1 234 567 Bytes received 76 543 Files sent 4 Files that were there already 0" in told
    here = replace(full, transfer={}, steps={"exam": 1.0})
    told = section(here, "Where the time went", "Privacy")
    assert "Nothing was sent" in told
    assert "What the board did" not in told


def test_budgets_with_their_sign(full):
    budgets = [
        {"name": "p95_ms", "limit": 5.0, "sign": "<", "measured": 3.9, "verdict": PASSED, "reason": "batch 1"},
        {"name": "offline.per_s", "limit": 200.0, "sign": ">", "measured": 150.0, "verdict": FAILED, "reason": ""},
    ]
    facts = replace(full, budgets=budgets, verdict=FAILED)
    assert "p95_ms ≤ 5 3.9 passed batch 1 offline.per_s ≥ 200 150 failed" in page_of(facts).text
    assert "budget offline.per_s: 150, the limit is ≥ 200" in page_of(facts).text


def test_what_was_not_measured_is_one_line_each_with_a_reason(full):
    kinds = {name: type(getattr(full, name)) for name in NEW_FIELDS}
    bare = replace(full, latency=[latency()], first_ms=0.0, **{name: kind() for name, kind in kinds.items()})
    page = page_of(bare)
    lines = re.findall(r"[A-Za-z][A-Za-z, ]+: not measured; [^.;]+", page.text)
    for what in (
        "GPU alone",
        "CUDA graph",
        "Temperatures",
        "Throughput",
        "Load scenarios",
        "over time",
        "Power and",
        "Layers",
        "trtexec",
    ):
        assert [line for line in lines if what in line], what
    assert "First run, ms not measured" in page.text
    assert "Seconds by step: not recorded" in page.text
    assert not re.search(r"\b(None|Undefined|nan)\b", page.text)
    assert len(page.all("table")) < len(page_of(full).all("table")) - 6  # no empty tables


def walk(value, path=()):
    """Every place in plain data: (path, value), the root left out."""
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key), entry
        if isinstance(entry, (dict, list)):
            yield from walk(entry, (*path, key))


def every_text(value):
    """Plain data with every text and every key that a board chooses made hostile."""
    if isinstance(value, dict):
        return {
            **{key: every_text(entry) for key, entry in value.items()},
            HOSTILE: every_text(next(iter(value.values()), 1)),
        }
    if isinstance(value, list):
        return [every_text(entry) for entry in value]
    return HOSTILE if isinstance(value, str) else value


def every_number(value):
    if isinstance(value, dict):
        return {key: every_number(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [every_number(entry) for entry in value]
    return value if isinstance(value, str) else HOSTILE


@pytest.mark.parametrize("plant", [every_text, every_number])
@pytest.mark.parametrize("name", NEW_FIELDS)
def test_hostile_text_in_every_field_is_only_text(full, name, plant):
    facts = replace(full, **{name: plant(getattr(full, name))})
    text = render(facts, GONE)
    page = Page(text)
    assert "<script" not in without_own_script(text)
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    allowed = re.compile(r"width: [\d.]+%|margin-top: 1.5rem")
    assert not [tag for _, tag in page.tags if "style" in tag and not allowed.fullmatch(tag["style"])]
    assert plant is every_number or HOSTILE in page.text or name == "transfer"  # numbers under names of ours


def test_hostile_text_in_latencies_is_only_text(full):
    run = replace(full.latency[0], marks=[HOSTILE], conditions={"runtime": HOSTILE}, intervals={"p50_ms": [HOSTILE, 1]},
                  gpu={"p50_ms": HOSTILE, "intervals": HOSTILE, HOSTILE: 1})  # fmt: skip
    text = render(replace(full, latency=[run], budgets=[{"name": HOSTILE, "sign": HOSTILE, "limit": HOSTILE}]), GONE)
    assert "<script" not in without_own_script(text)
    assert Page(text).text.count(HOSTILE) >= 6


junk = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=True), st.text(max_size=8),
    st.just(HOSTILE),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@given(data=st.data(), seen=junk)
def test_anything_in_any_place_is_shown_or_left_out_but_never_stops_the_page(full, data, seen):
    name = data.draw(st.sampled_from(NEW_FIELDS))
    value = getattr(full, name)
    path, _ = data.draw(st.sampled_from(list(walk(value))))
    if name in ("throughput", "scenarios") and len(path) == 1:
        return  # not a list of objects: refused when it is loaded
    text = render(replace(full, **{name: planted(value, path, seen)}), GONE)
    Page(text)
    assert "<script" not in without_own_script(text)


def test_reports_of_another_schema_and_damaged_ones_are_refused_by_name(tmp_path):
    facts = small_report(tmp_path, small_bundle(tmp_path))
    path = tmp_path / "report" / "report.json"
    good = facts.to_json()
    old = {key: value for key, value in good.items() if key not in (*NEW_FIELDS, "first_ms")}
    run, hop = good["latency"][0], good["chain"][1]
    for planted_value, words in (
        (dict(old, schema="tinkit-report-1"), "schema"),
        (dict(good, board=[]), "not complete"),
        (dict(good, throughput=[1]), "not complete"),
        (dict(good, first_ms="soon"), "not complete"),
        (dict(good, first_ms=True), "not complete"),
        (dict(good, latency=[dict(run, p95_ms="fast")]), "not complete"),
        (dict(good, latency=[dict(run, p95_ms="inf")]), "not complete"),
        (dict(good, latency=[dict(run, samples_ms=[1.0, "2"])]), "not complete"),
        (dict(good, latency=[dict(run, marks="throttled")]), "not complete"),
        (dict(good, latency=[{key: run[key] for key in run if key != "p999_ms"}]), "not complete"),
        (dict(good, chain=[dict(hop, gate="open")]), "not complete"),
        (dict(good, chain=[dict(hop, worst=[{"index": [], "name": "x"}])]), "not complete"),
    ):
        files.write_json(path, planted_value)
        with pytest.raises(TinkitError, match=words) as caught:
            load_report(path)
        assert str(path) in str(caught.value.where)
    files.write_json(path, good)
    assert load_report(path) == facts


def test_the_whole_page_is_well_formed_and_asks_for_nothing(tmp_path):
    board_report(tmp_path)
    text = written(tmp_path)
    page = Page(text)
    assert not re.search(r"https?://|url\(|@import|<script", without_own_script(text))
    assert len(page.all("h1")) == 1
    assert all(chart["aria-label"] and chart["role"] == "img" for chart in page.all("svg"))
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert STEPS.keys() <= set(page.text.split())


@pytest.mark.slow
def test_the_page_of_a_real_run_on_a_board_that_is_played_back(tmp_path):
    """Shapes as tinkit/device writes them, rather than as the parts of this test say."""
    tensors = {
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, SIZE, SIZE]}],
        "outputs": [{"name": "embedding", "dtype": "float32", "shape": ["batch", 8]}],
    }
    manifest = {"name": "small", "target": small_target().to_json(), "preprocessing": PREPROCESSING.to_json(),
                "tensors": tensors, "chain": [], "host_gate": {}}  # fmt: skip
    bundle = write_bundle(tmp_path / "bundle", small_model(tmp_path / "small.onnx"), manifest, small_exam())
    profile(
        bundle, this_machine(arch="aarch64", min_seconds=0.6), tmp_path / "report", {"server.per_s": 1.0},
        scenarios=["server:rate=50,duration=0.2,samples=5", "offline:duration=0.1,samples=4"], root=fake_board(tmp_path / "root"),
    )  # fmt: skip
    text = Page(written(tmp_path)).text
    board = re.search(r" The board Model (.*) Where the time went", text).group(1)
    expected = (
        "p3767-0003", "JetPack 6.2.1", "Power mode 25W", "Clocks not pinned", "batch 1 0.", "drift ",
        "Valid; at least 0.2 s",
        "1 idle 0.6", "VDD_IN: 3.61 W", "Rail VDD_IN", "Source INA3221 by its files", "measured here with numpy",
        "server.per_s ≥ 1",
    )  # fmt: skip
    assert [words for words in expected if words not in board] == []
    assert "open 0." in text
    assert "came from files below" in text.split("Verdict:")[0]
    assert "not recorded" not in board.split("Sizes")[0]


def test_text_of_numbers():
    assert relative(-0.0123) == "-1.2\u2009%"
    assert relative(None) == "not recorded"
    assert between([1, 2.5]) == "1 to 2.5"
    assert between([1]) == between("ab") == between([1, float("nan")]) == ""
    assert limit_of({"limit": 3, "sign": "<"}) == "≤ 3"
    assert limit_of({"limit": 3, "sign": "&"}) == "3"
