"""The charts of an evaluation: to scale, with their values as words, and with names that can be read."""

import re

import pytest

from tinkit.host.report import plots_evaluation
from tinkit.host.report.blocks import coarser
from tinkit.host.report.plots_evaluation import Loss, Pair


def test_the_charts_of_losses_and_pairs_are_to_scale():
    chart = str(plots_evaluation.losses("x", [Loss("a", 1e-4, 1e-2, 1e-3), Loss("b", 0.0, 1.0)]))
    spots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]
    gate = float(re.search(r'x1="([\d.]+)"[^>]*class="gate"', chart).group(1))
    assert gate == pytest.approx((spots[0] + spots[1]) / 2, abs=0.11)  # halfway between 1e-4 and 1e-2
    assert spots[2] == min(spots)
    chart = str(plots_evaluation.pairs("x", [Pair("a", 0.2, 0.6, (0.5, 0.7)), Pair("b", None, 0.4)], "share"))
    ring, disc, alone = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart))
    assert alone == pytest.approx((ring + disc) / 2, abs=0.11)
    assert "teacher not measured" in chart


def test_every_point_of_a_curve_says_its_value():
    line = [(0.0, 0.5), (1.0, None), (2.0, 0.75)]
    chart = str(plots_evaluation.curves("x", {"student": line}, "severity", "right"))
    assert re.findall(r"<title>([^<]*)</title>", chart) == ["student: 0, 0.5", "student: 2, 0.75"]
    assert chart.count("<polyline") == 0  # the gap parts the line
    many = [(float(n), float(n)) for n in range(1000)]
    assert str(plots_evaluation.curves("x", {"a": many}, "x", "y")).count("<title>") <= plots_evaluation.SPOTS


def test_densities_are_shares_of_their_own_whole():
    chart = str(plots_evaluation.densities("x", [0, 1, 2], {"known": [1, 3], "strange": [30, 10]}, "score"))
    assert "0 to 1: known 25 %, strange 75 %" in chart
    assert "most of strange between 0 and 1" in chart


def test_few_pictures_make_few_bins_of_one_width():
    edges, counts = list(range(31)), {"known": [2] * 30, "strange": [100] * 30}
    kept, joined = coarser(edges, counts)  # 60 pictures: at most 8 bins, and 6 divide 30
    assert kept == [0, 5, 10, 15, 20, 25, 30]
    assert joined == {"known": [10] * 6, "strange": [500] * 6}
    assert coarser(edges, {"known": [200] * 30, "strange": [150] * 30})[0] == edges
    assert coarser([0, 1], {"known": [0], "strange": []}) == ([0, 1], {"known": [0], "strange": []})


def test_names_of_hills_at_one_place_do_not_lie_on_each_other():
    same = {"known": [1, 8, 1], "strange": [1, 8.2, 1]}
    chart = str(plots_evaluation.densities("x", [0, 1, 2, 3], same, "score"))
    heights = [float(y) for y in re.findall(r'<text x="[^"]*" y="([^"]*)" class="name', chart)]
    assert abs(heights[0] - heights[1]) >= 12
    apart = {"known": [8, 1, 1, 1], "strange": [1, 1, 1, 8]}
    chart = str(plots_evaluation.densities("x", [0, 1, 2, 3, 4], apart, "score"))
    heights = [float(y) for y in re.findall(r'<text x="[^"]*" y="([^"]*)" class="name', chart)]
    assert heights[0] == heights[1]


def test_names_beside_a_diagonal_go_where_fewer_points_are():
    places = {}
    for where, line in (("below", [(0.7, 0.1), (0.9, 0.2)]), ("above", [(0.1, 0.9), (0.2, 1.0)])):
        chart = str(plots_evaluation.curves("x", {"student": line}, "confidence", "right", diagonal=True))
        places[where] = float(re.search(r'<text x="([^"]*)"[^>]*class="name', chart).group(1))
    assert places["below"] < 160 < places["above"]
