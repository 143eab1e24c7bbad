"""Numbers as words and as charts: never better than they are, never lost."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from report_parts import chain_of, small_exam

from tinkit.fidelity import FAILED
from tinkit.host.report import plots, svg
from tinkit.host.report.command import worst_hop
from tinkit.host.report.text import cut, flat, short


def test_a_cosine_never_looks_better_than_it_was():
    assert cut(0.99989) == "0.99989"
    assert cut(0.899999) == "0.89999"
    assert cut(0.99999999) == "0.9999999"
    assert cut(0.29) == "0.29000"
    assert cut(1 - 2e-16) == "1.0000000"  # equal answers, but for float64
    assert cut(-0.999999) == "-1.00000"
    assert cut(float("nan")) == "not a number"


def test_numbers_as_text():
    assert short(None) == short("") == "not recorded"
    assert short(float("inf")) == "infinite"
    assert short(1234567) == "1\u2009234\u2009567"
    assert short(0) == "0"
    assert short(True) == "yes"
    assert short(3.14159) == "3.142"


def test_flat_keeps_every_fact_and_counts_long_lists():
    value = {"a": {"b": [1, 2], "c": {}}, "d": None, "e": list(range(100)), "f": [{"g": 0.1}], "history": [1]}
    assert flat(value) == [
        ("a.b", "1, 2"),
        ("a.c", "none"),
        ("d", "not recorded"),
        ("e", "100 entries"),
        ("f.0.g", "0.1"),
    ]


def test_the_headline_is_the_worst_gated_hop():
    exam = small_exam()
    held, onnx, _, device = chain_of(exam)
    lower, higher = replace(onnx, cosine_min=0.91), replace(device, cosine_min=0.99)
    assert worst_hop([held, higher, lower]) is lower
    failed = replace(higher, verdict=FAILED)
    assert worst_hop([held, failed, lower]) is failed
    assert worst_hop([held, replace(lower, pictures=0)]) is None


def test_ticks_are_round_and_cover_the_range():
    for low, high in ((0, 1), (0.31, 0.87), (-5.5, 12345), (3, 3), (0, 0), (1e-9, 2e-9)):
        ticks = svg.nice_ticks(low, high)
        steps = {round(b - a, 12) for a, b in pairwise(ticks)}
        assert ticks[0] <= low <= high <= ticks[-1]
        assert len(steps) <= 2  # one but for rounding
        assert 2 <= len(ticks) <= 8


def test_names_at_the_line_ends_do_not_touch():
    placed = svg.apart({"a": 50.0, "b": 50.0, "c": 51.0, "d": 199.0, "e": 199.5}, 10, 200, gap=13)
    heights = sorted(placed.values())
    assert all(b - a >= 13 - 1e-9 for a, b in pairwise(heights))
    assert list(placed) == ["a", "b", "c", "d", "e"]
    assert heights[0] >= 10
    assert heights[-1] <= 200


def test_a_missing_value_breaks_the_line():
    chart = plots.line_chart("x", {"y": [1.0, 2.0, None, float("nan"), 3.0, 2.0, None, 5.0]}, list(range(1, 9)))
    assert chart.count("<polyline") == 2
    assert chart.count("<circle") == 1
    assert "nan" not in chart


def test_the_histogram_counts_every_sample():
    samples = [1.0] * 30 + [1.2] * 10 + [9.0]
    chart, beyond = plots.histogram("x", samples, {"p50": 1.0, "p95": 1.2, "p99": 6.0})
    heights = [float(value) for value in re.findall(r'height="([\d.]+)" class="bar"', chart)]
    assert beyond == 1
    assert len(heights) == 2
    assert heights[0] / heights[1] == pytest.approx(3, rel=0.01)
    assert "p99 6 →" in chart
    assert "p95 1.2<" in chart
    assert plots.histogram("x", [2.0] * 200, {"p50": 2.0})[1] == 0
