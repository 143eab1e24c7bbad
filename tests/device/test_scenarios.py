"""Load scenarios under a clock that only the test moves: queues worked out by hand, arrivals that a seed decides."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkit.device import scenarios
from tinkit.device.scenarios import NAMES, Scenario, arrivals, parse_scenario, play
from tinkit.errors import TinkitError


class Machine:
    """Runs take `seconds(batch)`; sleeping takes exactly what was asked for, and `oversleep` more."""

    def __init__(self, seconds, oversleep=0.0):
        self.seconds, self.oversleep, self.now, self.batches, self.slept = seconds, oversleep, 100.0, [], []

    def run(self, batch):
        self.batches.append(batch)
        self.now += self.seconds(batch)

    def clock(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds + self.oversleep

    def play(self, scenario, max_batch=1):
        return play(scenario, self.run, max_batch, self.clock, self.sleep)


def server(monkeypatch, times, **settings):
    """A server whose queries arrive at these seconds."""
    monkeypatch.setattr(scenarios, "arrivals", lambda scenario: np.array(times))
    values = {"rate_per_s": 1.0, "duration_s": times[-1], "min_samples": len(times)}
    return Scenario("server", **dict(values, **settings))


def test_single_stream_is_one_query_after_the_other():
    machine = Machine(lambda batch: (1 if len(machine.batches) % 2 else 3) / 64)
    seen = machine.play(Scenario("single-stream", duration_s=1.0, min_samples=20))
    assert (seen["scenario"], seen["valid"], seen["reason"]) == ("single-stream", True, "")
    assert (seen["queries"], seen["samples"]) == (32, 32)  # a 32nd each until a second is over
    assert (seen["seconds"], seen["per_s"], seen["mean_ms"]) == pytest.approx((1.0, 32, 31.25))
    assert (seen["p50_ms"], seen["p90_ms"], seen["p999_ms"]) == pytest.approx((31.25, 46.875, 46.875))
    assert machine.slept == []
    assert (seen["duration_s"], seen["min_samples"], seen["max_batch"], seen["seed"]) == (1.0, 20, 1, 0)


def test_streams_go_on_until_both_limits_are_reached():
    seen = Machine(lambda batch: 0.010).play(Scenario("single-stream", duration_s=0.1, min_samples=70))
    assert (seen["samples"], seen["valid"]) == (70, True)
    assert seen["seconds"] == pytest.approx(0.7)


@pytest.mark.parametrize(("max_batch", "parts"), [(8, [8]), (3, [3, 3, 2]), (1, [1] * 8), (100, [8])])
def test_a_query_of_a_multi_stream_is_over_with_its_last_part(max_batch, parts):
    machine = Machine(lambda batch: 0.001 + 0.002 * batch)
    seen = machine.play(Scenario("multi-stream", duration_s=0.01, min_samples=24), max_batch)
    assert machine.batches == parts * 3
    assert (seen["queries"], seen["samples"], seen["samples_per_query"]) == (3, 24, 8)
    assert seen["p50_ms"] == seen["p99_ms"] == pytest.approx(len(parts) + 16)


def test_offline_is_one_query_in_the_largest_batches_and_has_no_latency():
    machine = Machine(lambda batch: 0.125)
    seen = machine.play(Scenario("offline", duration_s=1.0, min_samples=10), 32)
    assert set(machine.batches) == {32}
    assert (seen["queries"], seen["samples"], seen["valid"]) == (1, 256, True)
    assert seen["per_s"] == pytest.approx(256)
    assert {seen[name] for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "mean_ms")} == {None}


def test_a_servers_queue_by_hand(monkeypatch):
    """Arrivals at 1, 2, 3 and 10 s, 2.5 s each: answers at 3.5, 6, 8.5 and 12.5."""
    machine = Machine(lambda batch: 2.5)
    seen = machine.play(server(monkeypatch, [1.0, 2.0, 3.0, 10.0]))
    assert machine.batches == [1, 1, 1, 1]
    assert machine.slept == pytest.approx([1.0, 1.5])  # to the first, and from 8.5 to the last
    expected = np.array([2.5, 4.0, 5.5, 2.5]) * 1e3
    assert seen["mean_ms"] == pytest.approx(expected.mean())
    for name, percent in (("p50_ms", 50), ("p90_ms", 90), ("p95_ms", 95), ("p99_ms", 99), ("p999_ms", 99.9)):
        assert seen[name] == pytest.approx(np.percentile(expected, percent))
    assert (seen["seconds"], seen["per_s"], seen["queries"]) == pytest.approx((12.5, 4 / 12.5, 4))
    assert (seen["valid"], seen["reason"]) == (True, "")


def test_a_server_takes_together_what_waits_up_to_its_largest_batch(monkeypatch):
    """0 | 1 2 3 4 wait until 5: three of them go, answers at 10, and the last one at 15 with the one that came at 6."""
    machine = Machine(lambda batch: 5.0)
    seen = machine.play(server(monkeypatch, [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 20.0]), 3)
    assert machine.batches == [1, 3, 2, 1]
    assert seen["mean_ms"] == pytest.approx(1e3 * np.mean([5, 9, 8, 7, 11, 9, 5]))
    assert seen["p50_ms"] == pytest.approx(8000)


def test_a_late_awakening_is_in_the_latency(monkeypatch):
    seen = Machine(lambda batch: 1.0, oversleep=0.25).play(server(monkeypatch, [2.0, 4.0, 6.0]))
    assert seen["p50_ms"] == pytest.approx(1250)


def test_a_server_without_load_is_its_service_time():
    scenario = Scenario("server", duration_s=100.0, min_samples=50, rate_per_s=1.0, seed=3)
    seen = Machine(lambda batch: 1e-6).play(scenario)
    assert seen["p99_ms"] == pytest.approx(1e-3, rel=1e-3)
    assert seen["valid"]


def test_waiting_is_that_of_the_textbook():
    """M/D/1: at 60 % load the mean wait is 0.6 / (2 * 0.4) = 0.75 service times (Pollaczek and Khinchine)."""
    waits = []
    for seed in range(8):
        scenario = Scenario("server", duration_s=500.0, min_samples=1, rate_per_s=60.0, seed=seed)
        seen = Machine(lambda batch: 0.010).play(scenario)
        assert seen["valid"]
        waits.append(seen["mean_ms"] - 10)
    assert np.mean(waits) == pytest.approx(7.5, rel=0.03)


@pytest.mark.parametrize(("rate", "valid"), [(90, True), (120, False), (1000, False)])
def test_a_queue_that_grows_is_not_valid(rate, valid):
    scenario = Scenario("server", duration_s=20.0, min_samples=100, rate_per_s=rate, seed=1)
    seen = Machine(lambda batch: 0.010).play(scenario)
    assert seen["valid"] is valid
    assert ("fell behind" in seen["reason"]) is not valid
    assert seen["per_s"] <= 100.001
    assert seen["seconds"] <= 2 * 20.2  # it is not waited for for ever


@pytest.mark.parametrize(("late", "valid"), [(5, True), (6, False)])
def test_a_server_is_behind_with_more_than_a_twentieth(monkeypatch, late, valid):
    """100 queries; the last ones arrive at once, so that `late` of them are answered after the last arrival."""
    times = [float(number) for number in range(100 - late)] + [100.0] * late
    seen = Machine(lambda batch: 0.5).play(server(monkeypatch, times))
    assert seen["valid"] is valid


def test_batches_let_a_server_keep_up():
    scenario = Scenario("server", duration_s=20.0, min_samples=100, rate_per_s=300, seed=1)
    assert not Machine(lambda batch: 0.010).play(scenario, 2)["valid"]
    assert Machine(lambda batch: 0.010).play(scenario, 4)["valid"]


@pytest.mark.parametrize("name", ["single-stream", "multi-stream", "offline"])
def test_too_few_samples_in_ten_times_the_duration_are_not_valid(name):
    seen = Machine(lambda batch: 1.0).play(Scenario(name, duration_s=1.0, min_samples=500))
    assert not seen["valid"]
    assert seen["samples"] < 20
    assert seen["reason"] == "only {} samples of 500 in {:.3g} s".format(seen["samples"], seen["samples"])


def test_time_that_a_run_does_not_count_is_as_if_it_had_not_passed():
    machine = Machine(lambda batch: 1 / 16)

    def run(batch):
        machine.run(batch)
        return 1 / 64

    seen = play(Scenario("single-stream", 0.5, 10), run, 1, machine.clock, machine.sleep)
    assert (seen["p50_ms"], seen["seconds"], seen["samples"]) == pytest.approx((1000 / 64, 0.5, 32))
    shortly = play(Scenario("single-stream", 0.5, 1), lambda batch: machine.run(batch) or 1 / 800, 1, machine.clock)
    assert shortly["reason"] == "only 0.1 s of 0.5 s"  # 5 s have passed, 0.1 s of them count
    machine.now = 100.0
    late = play(Scenario("server", 1.0, 10, 20.0), run, 1, machine.clock, machine.sleep)
    assert late["p50_ms"] == pytest.approx(1000 / 64, rel=0.5)


def test_arrivals_are_decided_by_the_seed():
    scenario = Scenario("server", duration_s=5.0, min_samples=100, rate_per_s=200.0, seed=4)
    times = arrivals(scenario)
    np.testing.assert_array_equal(times, arrivals(scenario))
    other = arrivals(Scenario("server", duration_s=5.0, min_samples=100, rate_per_s=200.0, seed=5))
    assert times[0] != other[0]
    assert times[-2] < 5.0 <= times[-1]
    longer = arrivals(Scenario("server", duration_s=5.0, min_samples=3000, rate_per_s=200.0, seed=4))
    assert len(longer) == 3000
    np.testing.assert_array_equal(longer[: len(times)], times)


def test_arrivals_are_a_poisson_process():
    """Gaps are exponential, and the counts of a second have the variance of their mean."""
    times = arrivals(Scenario("server", duration_s=2000.0, min_samples=1, rate_per_s=20.0, seed=9))
    gaps = np.sort(np.diff(times))
    ranks = (np.arange(len(gaps)) + 0.5) / len(gaps)
    farthest = np.abs(ranks - (1 - np.exp(-20.0 * gaps))).max()
    assert farthest < 1.63 / math.sqrt(len(gaps))  # Kolmogorov and Smirnov at 1 %
    counts = np.bincount(times.astype(int))[:2000]
    assert counts.mean() == pytest.approx(20, rel=0.02)
    assert counts.var() == pytest.approx(20, rel=0.1)
    even = np.arange(40000) / 20.0
    assert np.bincount(even.astype(int)).var() < 1  # what the check above must not take for Poisson


def test_it_runs_on_the_real_clock():
    seen = play(Scenario("server", 0.3, 10, 50.0), lambda batch: time.sleep(0.002), 4)
    assert seen["p50_ms"] >= 2
    assert seen["seconds"] >= 0.3


def test_scenarios_are_read_from_the_command_line():
    assert parse_scenario("single-stream") == Scenario("single-stream")
    assert parse_scenario("server:rate=200,duration=10,samples=500") == Scenario("server", 10.0, 500, 200.0)
    assert parse_scenario("multi-stream:query=4,seed=7") == Scenario("multi-stream", samples_per_query=4, seed=7)
    assert parse_scenario("offline:duration=0.5").duration_s == 0.5


@pytest.mark.parametrize(
    ("text", "seen", "next_step"),
    [
        ("", "no scenario ''", "known"),
        ("servr:rate=1", "no scenario 'servr'", "did you mean server"),
        ("Server:rate=1", "no scenario", "server"),
        ("server", "a server without a rate", "server:rate=200"),
        ("server:", "no setting ''", "known"),
        ("server:rate=1,", "no setting ''", "known"),
        ("server:rat=1", "no setting 'rat=1'", "rate"),
        ("server:rate", "rate = ''", "a number"),
        ("server:rate=-1", "rate = '-1'", "from 0.001"),
        ("server:rate=nan", "rate = 'nan'", "a number"),
        ("server:rate=inf", "rate = 'inf'", "a number"),
        ("server:rate=1,rate=2", "rate twice", "once"),
        ("server:rate=1,samples=2.5", "samples = '2.5'", "a whole number"),
        ("server:rate=1,samples=0", "samples = '0'", "from 1"),
        ("server:rate=100000,duration=86400", "more than 1e+07 queries", "lower rate"),
        ("offline:rate=1", "rate in offline", "of server only"),
        ("server:rate=1,query=4", "query in server", "of multi-stream only"),
    ],
)
def test_what_is_not_understood_is_named(text, seen, next_step):
    with pytest.raises(TinkitError) as error:
        parse_scenario(text)
    assert seen in error.value.seen
    assert next_step in error.value.next_step
    assert error.value.exit_code == 1


@given(st.one_of(st.text(), st.from_regex(r"(server|offline|multi-stream):[a-z]{0,8}=[-+0-9.e_]{0,9}(,[a-z=0-9]*)?")))
def test_any_text_is_a_scenario_or_refused(text):
    try:
        scenario = parse_scenario(text)
    except TinkitError:
        return
    assert scenario.name in NAMES
    assert 0 < scenario.duration_s <= 86400


@pytest.mark.parametrize(
    ("scenario", "max_batch"), [(Scenario("server"), 1), (Scenario("offline"), 0), (Scenario("race"), 1)]
)
def test_a_scenario_that_cannot_be_played_is_a_programmers_error(scenario, max_batch):
    with pytest.raises(ValueError, match="largest batch"):
        play(scenario, lambda batch: None, max_batch)


def test_a_server_that_is_stopped_with_queries_unanswered_is_not_valid():
    """Few of them, so that the queue's own rule says nothing: what they would have waited is in no percentile."""
    now = [0.0]
    stalls = iter([False] * 1940 + [True] + [False] * 10**6)

    def run(batch):
        now[0] += 11.0 if next(stalls) else 0.001

    def sleep(seconds):
        now[0] += seconds

    played = play(Scenario("server", 10.0, 500, rate_per_s=200.0), run, 1, clock=lambda: now[0], sleep=sleep)
    assert not played["valid"]
    assert "unanswered" in played["reason"]
