"""What trtexec writes, read from recorded files of 8.6 to 11, by hand-worked numbers, and from any text at all."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.device.trtexec_parts import DATA
from tinkit.device import trtexec_output
from tinkit.device.trtexec_output import (
    MAX_MS,
    parse_layers,
    parse_summary,
    parse_times,
    percentiles,
    plain,
    read_text,
    version_of,
)
from tinkit.errors import TinkitError


def recorded(name):
    return (DATA / name).read_text()


@pytest.mark.parametrize(
    ("name", "version", "passed", "settings"),
    [
        ("log-8.6.0.txt", (8, 6, 0), True, (False, False, True)),
        ("log-10.3.0-head.txt", (10, 3, 0), None, (None, False, True)),
        ("log-10.14.1.txt", (10, 14, 1), True, (False, False, True)),
        ("log-11.0.0.txt", (11, 0, 0), True, (True, True, False)),
        ("failed-8.0.1.txt", (8, 0, 1), None, (None, None, None)),
        ("failed-10.8.0.txt", (10, 8, 0), False, (None, None, None)),
    ],
)
def test_recorded_logs_tell_version_verdict_and_the_defaults_of_their_version(name, version, passed, settings):
    seen = parse_summary(recorded(name))
    assert version_of(recorded(name)) == version
    assert seen["passed"] is passed
    assert tuple(seen["settings"].get(key) for key in ("cuda_graph", "spin_wait", "transfers")) == settings


def test_the_recorded_summary_of_11():
    seen = parse_summary(recorded("log-11.0.0.txt"))
    assert (seen["throughput_qps"], seen["queries"], seen["device"]) == (23215, 69647, "NVIDIA B200")
    assert (seen["walltime_s"], seen["compute_s"]) == (3.00009, 2.80945)
    assert seen["compute"] == {
        "min_ms": 0.0395508, "max_ms": 0.0682373, "mean_ms": 0.0403384, "median_ms": 0.0402832,
        "p90_ms": 0.0404663, "p95_ms": 0.0405273, "p99_ms": 0.0413513,
    }  # fmt: skip
    assert seen["h2d"]["max_ms"] == 0.0
    assert seen["errors"] == seen["warnings"] == []


def test_the_recorded_summary_of_8_with_its_warning():
    seen = parse_summary(recorded("log-8.6.0.txt"))
    assert seen["latency"]["median_ms"] == 0.0517578  # not H2D Latency, not D2H Latency
    assert (seen["h2d"]["median_ms"], seen["d2h"]["median_ms"]) == (0.00415039, 0.00366211)
    assert seen["compute"]["median_ms"] == 0.0439453  # not its explanation
    assert seen["warnings"][0] == "* GPU compute time is unstable, with coefficient of variance = 44.3558%."
    assert seen["precision"] == "FP32"


def test_errors_are_kept_for_the_user():
    assert parse_summary(recorded("failed-10.8.0.txt"))["errors"][-1] == "Engine set up failed"
    assert parse_summary(recorded("failed-8.0.1.txt"))["errors"][0].startswith(
        "Unknown option: --exportLayerInfo yolov5n"
    )


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("[TensorRT v8502]", (8, 5, 2)),
        ("[TensorRT v8601]", (8, 6, 1)),
        ("[TensorRT v100001]", (10, 0, 1)),
        ("[TensorRT v101401] [b48]", (10, 14, 1)),
        ("[TensorRT v110100] [b106]", (11, 1, 0)),
        ("[I] TensorRT version: 8.6.3", (8, 6, 3)),
        ("[TensorRT v10030]", None),
        ("TensorRT version: 8001", None),
        ("", None),
    ],
)
def test_versions_in_their_two_spellings(text, version):
    assert version_of(text) == version


def test_recorded_times_of_10_3():
    times = parse_times(recorded("times-10.3.json"))
    assert (len(times.compute_ms), times.dropped) == (10, 0)
    assert (times.compute_ms[0], times.latency_ms[0], times.h2d_ms[0], times.d2h_ms[0]) == (
        2.96048, 3.06689, 0.098938, 0.00747681,
    )  # fmt: skip
    assert times.enqueue_ms[0] == pytest.approx(500.508 - 498.501)
    for whole, *parts in zip(times.latency_ms, times.h2d_ms, times.compute_ms, times.d2h_ms):
        assert whole == pytest.approx(sum(parts), abs=1e-5)  # latency is the sum that NVIDIA says it is
    assert sorted(parse_times(recorded("times-8.json")).compute_ms)[-1] == 0.900864


def test_percentiles_worked_out_by_hand():
    # 1 2 3 4 5 ms: the q-th per cent lies at 1 + 4 q / 100 by linear interpolation
    seen = percentiles(parse_times(recorded("times-11.1.json")).compute_ms)
    assert seen == pytest.approx(
        {
            "p50_ms": 3,
            "p90_ms": 4.6,
            "p95_ms": 4.8,
            "p99_ms": 4.96,
            "p999_ms": 4.996,
            "mean_ms": 3,
            "min_ms": 1,
            "max_ms": 5,
        }
    )
    assert percentiles([]) == {}
    assert set(percentiles([2.5]).values()) == {2.5}


ROW = json.loads(recorded("times-11.1.json"))[0]


@pytest.mark.parametrize(
    "change",
    [
        {"computeMs": None}, {"computeMs": "1"}, {"computeMs": True}, {"computeMs": -1}, {"computeMs": float("nan")},
        {"computeMs": float("inf")}, {"computeMs": MAX_MS * 1.01}, {"latencyMs": []}, {"endEnqMs": 0}, {"h2dMs": 10**400},
    ],
)  # fmt: skip
def test_rows_that_are_no_query_are_dropped_and_counted(change):
    times = parse_times(json.dumps([ROW, dict(ROW, **change), ROW]))
    assert (times.compute_ms, times.dropped) == ([1, 1], 1)
    short = {key: value for key, value in ROW.items() if key not in change}
    assert parse_times(json.dumps([short])).dropped == 1


def test_a_file_that_ends_in_the_middle_gives_its_whole_rows():
    text = recorded("times-10.3.json")
    times = parse_times(text[: len(text) // 2])
    assert (times.compute_ms, times.dropped) == (parse_times(text).compute_ms[: len(times.compute_ms)], 0)
    assert 3 <= len(times.compute_ms) <= 5


def test_layers_by_median_where_there_is_one():
    new, old = parse_layers(recorded("layers-10.json")), parse_layers(recorded("layers-8.json"))
    assert new["count"] == 13897
    assert new["layers"][1] == {
        "layer": "/features/features.0/Conv + /features/features.1/Relu", "ms": 0.023552, "share": pytest.approx(0.0426435),
    }  # fmt: skip
    assert (old["count"], old["layers"][0]["ms"]) == (4216, 0.0122041)


def test_layers_that_cannot_be_are_left_out():
    good = {"name": "conv", "averageMs": 1, "percentage": 100}
    bad = [
        dict(good, percentage=100.1),
        dict(good, averageMs=-1),
        dict(good, name=3),
        dict(good, medianMs="1"),
        7,
        None,
    ]
    assert parse_layers(json.dumps([{"count": -1}, *bad, good])) == {
        "count": 0,
        "layers": [{"layer": "conv", "ms": 1, "share": 1}],
    }


def test_sizes_are_capped(tmp_path, monkeypatch):
    big = tmp_path / "times.json"
    big.write_text("x" * 101)
    assert read_text(str(big), 101) == "x" * 101
    with pytest.raises(TinkitError, match="more than can be read"):
        read_text(str(big), 100)
    assert read_text(str(tmp_path / "none"), 100) == ""
    monkeypatch.setattr(trtexec_output, "MAX_QUERIES", 4)
    with pytest.raises(TinkitError, match="more than can be read"):
        parse_times(recorded("times-11.1.json"))
    monkeypatch.setattr(trtexec_output, "MAX_TIMES", 10)
    with pytest.raises(TinkitError, match="more than can be read"):
        parse_times(recorded("times-11.1.json"))
    monkeypatch.setattr(trtexec_output, "MAX_LAYERS_TEXT", 10)
    with pytest.raises(TinkitError, match="more than can be read"):
        parse_layers(recorded("layers-8.json"))


def test_a_log_that_is_too_long_keeps_its_beginning_and_its_end(monkeypatch):
    monkeypatch.setattr(trtexec_output, "MAX_LOG", 6000)
    head, tail = recorded("log-11.0.0.txt").split("=== Performance summary ===")
    seen = parse_summary(head + "[09/08/2026-10:20:22] [V] noise\n" * 10000 + tail)
    assert (seen["passed"], seen["settings"]["cuda_graph"], seen["throughput_qps"]) == (True, True, 23215)


def test_many_errors_and_long_lines_are_cut():
    seen = parse_summary("".join("[E] {} {}\n".format(number, "x" * 5000) for number in range(1000)))
    assert len(seen["errors"]) == 20
    assert max(map(len, seen["errors"])) <= 300
    assert plain("a\x1b[31mb\r\nc") == "a [31mb  c"


FILES = ["log-8.6.0.txt", "log-11.0.0.txt", "times-10.3.json", "layers-10.json"]
PIECES = st.sampled_from(
    [line for name in FILES for line in recorded(name).splitlines()] + ["[", "]", "{", "}", ",", '"']
)
TEXTS = st.one_of(st.text(), st.lists(st.one_of(PIECES, st.text(max_size=8)), max_size=12).map("\n".join))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.lists(st.integers(), max_size=2)
)
KEYS = sorted({*ROW, "name", "averageMs", "medianMs", "percentage", "count"})
ROWS = st.lists(st.one_of(SCALARS, st.dictionaries(st.sampled_from(KEYS), SCALARS)), max_size=6).map(json.dumps)


def finite(value):
    """Every number in it is finite and not negative."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    return not isinstance(value, float) or (math.isfinite(value) and value >= 0)


@given(st.one_of(TEXTS, ROWS))
@example("[" * 100000)
@example('{"computeMs": ' + "[" * 100000 + "}")
@example("Latency: min = 1e999 ms, max = 1-2 ms, percentile(99.9%) = 3 ms")
@example("Throughput: ١٢ qps\nTiming trace has ٣ queries")
@example("{" * 50000)
@example("[" * 50000 + "[E] x")
def test_any_text_gives_finite_numbers_or_none(text):
    times, layers, summary, version = parse_times(text), parse_layers(text), parse_summary(text), version_of(text)
    columns = (times.compute_ms, times.latency_ms, times.h2d_ms, times.d2h_ms, times.enqueue_ms)
    assert len({len(column) for column in columns}) == 1
    assert all(0 <= value <= MAX_MS for column in columns for value in column)
    assert all(0 <= layer["ms"] <= MAX_MS and 0 <= layer["share"] <= 1 for layer in layers["layers"])
    assert finite(summary)
    assert finite(percentiles(times.compute_ms))
    assert version is None or (len(version) == 3 and all(0 <= part <= 99 for part in version))
    json.dumps([summary, layers, percentiles(times.compute_ms)], allow_nan=False)
