"""Budgets as a product writes them: any percentile, the GPU alone, load scenarios, rates as lower limits."""

import pytest

from tinkit.budget import check_budget, is_lower_limit, parse_budget, percentile_of, split_name
from tinkit.errors import TinkitError


def test_budgets_are_read_as_written():
    text = "p95_ms<5, peak_mb<=300,load_ms=20, p99.9_ms<9,gpu.p50_ms<3,server.p99_ms<20,offline.per_s>100,per_s=7"
    assert parse_budget(text) == {
        "p95_ms": 5.0,
        "peak_mb": 300.0,
        "load_ms": 20.0,
        "p99.9_ms": 9.0,
        "gpu.p50_ms": 3.0,
        "server.p99_ms": 20.0,
        "offline.per_s": 100.0,
        "per_s": 7.0,
    }


@pytest.mark.parametrize(
    "text",
    [
        "p95_ms", "p95<5", "p95_ms<zero", "p95_ms<0", "p95_ms<-1", "p95_ms<nan", "p95_ms<inf",
        "p0_ms<5", "p100_ms<5", "gpu.load_ms<3", "gpu.per_s>3", "sever.p99_ms<3", "server.load_ms<3",
    ],
)  # fmt: skip
def test_a_budget_that_means_nothing_is_refused(text):
    with pytest.raises(TinkitError) as caught:
        parse_budget(text)
    assert caught.value.where == "--budget"


@pytest.mark.parametrize("text", ["per_s<100", "offline.per_s<=100", "p95_ms>5", "energy_mj>=5"])
def test_a_limit_on_the_wrong_side_is_refused_with_the_right_one(text):
    with pytest.raises(TinkitError, match="lower limit") as caught:
        parse_budget(text)
    assert (">" if "per_s" in text else "<") in caught.value.next_step


def test_names_fall_into_scope_and_measure():
    assert split_name("server.p99.9_ms") == ("server", "p99.9_ms")
    assert split_name("p99.9_ms") == ("", "p99.9_ms")
    assert [percentile_of(name) for name in ("p99.9_ms", "p5_ms", "p0_ms", "mean_ms", "load_ms")] == [
        99.9,
        5,
        None,
        None,
        None,
    ]
    assert is_lower_limit("single-stream.per_s")
    assert not is_lower_limit("p95_ms")


def test_a_near_name_is_offered():
    with pytest.raises(TinkitError) as caught:
        check_budget({"energy_mJ": 3}, "tinkit.toml")
    assert "energy_mj" in caught.value.next_step
