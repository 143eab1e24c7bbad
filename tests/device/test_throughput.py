"""Several streams at once: a thread each, let go together, and only runs inside the window counted."""

import contextlib
import threading
import time

import numpy as np
import pytest
from small_parts import SIZE

from tinkit.device.runtime import OnnxRuntime
from tinkit.device.throughput import WARM_RUNS, throughput
from tinkit.errors import TinkitError


class Sleeper:
    """Runs sleep; `lock`: one at a time; `fails_at`: the run that raises. `opened` counts what `again` has open."""

    def __init__(self, seconds=0.005, lock=None, fails_at=None, error=None):
        self.seconds, self.lock, self.fails_at, self.error = seconds, lock, fails_at, error
        self.runs, self.threads, self.opened, self.others = 0, set(), 0, []

    def run(self, feeds):
        self.runs += 1
        self.threads.add(threading.current_thread())
        if self.runs == self.fails_at:
            raise self.error
        with self.lock or contextlib.nullcontext():
            time.sleep(self.seconds)

    @contextlib.contextmanager
    def again(self):
        other = Sleeper(self.seconds, self.lock)
        self.others.append(other)
        self.opened += 1
        try:
            yield other
        finally:
            self.opened -= 1


def test_streams_work_side_by_side():
    runtime = Sleeper()
    seen = throughput(runtime, {}, 4, 3, 0.3, 1)
    assert (seen["streams"], seen["batch"], seen["seconds"]) == (3, 4, 0.3)
    assert seen["pictures_per_s"] == pytest.approx(seen["runs"] * 4 / 0.3)
    assert 3 * 30 < seen["runs"] <= 3 * 60  # 5 ms and a little each
    assert 5 <= seen["p50_ms"] <= seen["p99_ms"]
    assert [len(one.threads) for one in (runtime, *runtime.others)] == [1, 1, 1]
    assert runtime.opened == 0


def test_streams_that_wait_for_each_other_are_not_faster():
    lock = threading.Lock()
    one = throughput(Sleeper(lock=lock), {}, 1, 1, 0.3, 1)
    two = throughput(Sleeper(lock=lock), {}, 1, 2, 0.3, 1)
    assert two["pictures_per_s"] < 1.2 * one["pictures_per_s"]


class Ticks:
    """A clock for one stream: every run takes the next of these seconds."""

    def __init__(self, seconds):
        self.left, self.now = list(seconds), 50.0

    def run(self, feeds):
        self.now += self.left.pop(0)

    def clock(self):
        return self.now


def test_only_complete_runs_inside_the_window_count():
    runtime = Ticks([9.0] * WARM_RUNS + [0.25, 0.5, 0.5])  # the third one ends at 1.25
    seen = throughput(runtime, {}, 2, 1, 1.0, 1, runtime.clock)
    assert runtime.left == []
    assert (seen["runs"], seen["seconds"], seen["pictures_per_s"]) == (2, 1.0, 4.0)
    assert (seen["p50_ms"], seen["p99_ms"]) == pytest.approx((375, 497.5))


def test_a_run_that_ends_with_the_window_counts():
    runtime = Ticks([9.0] * WARM_RUNS + [0.5, 0.5])
    assert throughput(runtime, {}, 1, 1, 1.0, 1, runtime.clock)["runs"] == 2


def test_the_window_grows_until_there_are_enough_runs():
    runtime = Ticks([0.5] * (WARM_RUNS + 6))
    seen = throughput(runtime, {}, 1, 1, 1.0, 6, runtime.clock)
    assert (seen["runs"], seen["seconds"], seen["pictures_per_s"]) == (6, 3.0, 2.0)


def test_it_gives_up_after_ten_times_the_window():
    runtime = Ticks([4.0] * 50)
    seen = throughput(runtime, {}, 1, 1, 1.0, 20, runtime.clock)
    assert (seen["runs"], seen["seconds"]) == (3, 12.0)


@pytest.mark.parametrize("fails_at", [1, WARM_RUNS, WARM_RUNS + 2])
@pytest.mark.parametrize("error", [TinkitError("the stream is lost"), KeyboardInterrupt()])
def test_what_a_run_raises_ends_all_streams(fails_at, error):
    runtime = Sleeper(0.001, fails_at=fails_at, error=error)
    with pytest.raises(type(error)) as seen:
        throughput(runtime, {}, 1, 3, 30.0)
    assert seen.value is error
    assert runtime.opened == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream-")]


def test_a_second_stream_that_does_not_open_is_told():
    class Alone(Sleeper):
        def again(self):
            raise TinkitError("too little memory")

    with pytest.raises(TinkitError, match="too little memory"):
        throughput(Alone(), {}, 1, 2, 0.1)


def test_a_runtime_without_a_second_stream_is_a_programmers_error():
    runtime = Ticks([0.5] * 20)
    with pytest.raises(ValueError, match="Ticks has no second stream"):
        throughput(runtime, {}, 1, 2, 0.1)
    for streams, seconds in ((0, 1.0), (1, 0.0)):
        with pytest.raises(ValueError, match="at least one stream"):
            throughput(runtime, {}, 1, streams, seconds)


@pytest.mark.parametrize("streams", [1, 2])
def test_it_times_a_real_runtime(model_path, streams):
    with OnnxRuntime(model_path) as runtime:
        seen = throughput(runtime, {"image": np.zeros((2, 3, SIZE, SIZE), np.float32)}, 2, streams, 0.1)
    assert seen["runs"] >= 50
    assert seen["pictures_per_s"] > 100
