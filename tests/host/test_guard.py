"""Guarded processes: what is lost is one item, and never more; no process is left behind."""

import faulthandler
import os
import signal
import time

import numpy as np
import pytest
import torch

from tinkit.errors import TinkitError
from tinkit.host import guard
from tinkit.host.guard import Guarded, Lost, WorkFailed

SOON = 2.0  # s; the limit for an item where a test plants one that hangs: nothing else there takes any time
LONG = 10_000  # s; what hangs


def gone(pid) -> bool:
    """Whether the process ends within a generous time."""
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{pid}/stat") as handle:
            if handle.read().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        time.sleep(0.05)
    return False


def pid_and(item):
    return os.getpid(), item


def fault(item):
    """A number as it is; anything else says how the process goes wrong."""
    if item == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "segv":
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "leave":
        os._exit(7)
    if item == "exit":
        raise SystemExit(3)
    if item == "hang":
        time.sleep(LONG)
    if item == "raise":
        raise KeyError("planted")
    if item == "odd":
        raise Odd(1, 2)
    if item == "user":
        raise TinkitError("A planted error.", where="here", seen="this", next_step="that")
    return item


class Odd(Exception):
    """Cannot be unpickled: its arguments are not those of its constructor."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order(workers):
    with Guarded(fault, workers) as guarded:
        for count in (0, 1, 2, 50):
            assert list(guarded.map(range(count))) == list(range(count))


def test_order_holds_when_a_worker_is_slower():
    def work(item):
        time.sleep(0.05 if item % 5 == 0 else 0)
        return item

    with Guarded(work, 3) as guarded:
        assert list(guarded.map(range(40), ahead=3)) == list(range(40))


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        ("kill", "killed its process (signal 9)"),
        ("segv", "killed its process (signal 11)"),
        ("leave", "ended its process (exit code 7)"),
        ("exit", "ended its process (exit code 3)"),
        ("hang", "took more than 2 s"),
    ],
)
def test_one_item_is_lost_and_no_more(plant, reason):
    items = [0, 1, plant, 3, 4, plant, plant, 7, 8, 9, 10]
    if plant == "hang":
        items = [0, plant, 2, 3, 4]
    with Guarded(fault, 2, SOON if plant == "hang" else 60.0) as guarded:
        found = list(guarded.map(items))
        assert found == [Lost(reason) if item == plant else item for item in items]
        assert list(guarded.map([1, 2])) == [1, 2]  # and it goes on


def test_every_item_may_be_lost():
    with Guarded(fault, 2) as guarded:
        assert list(guarded.map(["leave"] * 12)) == [Lost("ended its process (exit code 7)")] * 12


def test_a_killed_item_does_not_hold_up_the_queue_behind_it():
    """The killed worker has other items waiting: the fresh one gets them, each once and in order."""
    with Guarded(pid_and, 1) as guarded:
        pids = set()
        for number, (pid, item) in enumerate(guarded.map(range(30), ahead=4)):
            assert item == number
            pids.add(pid)
    assert len(pids) == 1
    with Guarded(fault, 1) as guarded:
        assert list(guarded.map([0, "kill", 2, 3, 4, 5], ahead=5))[2:] == [2, 3, 4, 5]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_comes_at_its_place_with_the_original_as_cause(workers):
    with Guarded(fault, workers) as guarded:
        results = guarded.map([0, 1, "raise", 3])
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(WorkFailed, match="planted") as raised:
            next(results)
        assert isinstance(raised.value.__cause__, KeyError)
        assert list(guarded.map([5])) == [5]


def test_an_exception_of_the_worker_tells_where_it_was_raised():
    with Guarded(fault, 1) as guarded, pytest.raises(WorkFailed, match=r'raise KeyError\("planted"\)'):
        list(guarded.map(["raise"]))


def test_an_exception_that_cannot_travel_is_told_by_its_text():
    with Guarded(fault, 1) as guarded, pytest.raises(WorkFailed, match="Odd: 1 and 2") as raised:
        list(guarded.map(["odd"]))
    assert "Odd: 1 and 2" in str(raised.value.__cause__)


def test_a_result_that_cannot_travel_is_an_error_and_no_loss():
    with Guarded(lambda item: lambda: item, 1) as guarded, pytest.raises(WorkFailed, match="pickle"):
        list(guarded.map([1]))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_for_the_user_stays_one(workers):
    with Guarded(fault, workers) as guarded, pytest.raises(TinkitError, match="A planted error") as raised:
        list(guarded.map(["user"]))
    assert (raised.value.where, raised.value.seen, raised.value.next_step) == ("here", "this", "that")


def processes_of(guarded):
    return [worker.process.pid for worker in guarded._workers]


@pytest.mark.parametrize("how", ["end", "exception", "close", "del", "error in the items"])
def test_no_process_is_left(how):
    def items():
        yield from ["hang", "hang", 1] if how != "end" else [1, 2]
        if how == "error in the items":
            raise OSError("planted")

    guarded = Guarded(fault, 2)
    with guarded:
        results = guarded.map(items(), ahead=1 if how != "error in the items" else 3)
        if how == "end":
            assert list(results) == [1, 2]
        guarded._give(enumerate([]), 0, 1)  # starts the workers
        pids = processes_of(guarded)
        if how == "error in the items":
            with pytest.raises(OSError, match="planted"):
                next(results)
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_an_exception_in_the_consumer_leaves_no_process():
    pids = []

    def consume():
        with Guarded(pid_and, 2) as guarded:
            for _ in guarded.map(range(100)):
                pids.extend(processes_of(guarded))
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_a_consumer_that_leaves_early_leaves_no_process_and_no_old_results():
    with Guarded(pid_and, 2) as guarded:
        results = guarded.map(range(100))
        assert next(results)[1] == 0
        pids = processes_of(guarded)
        results.close()
        assert all(gone(pid) for pid in pids)
        assert [item for _, item in guarded.map("abcdef")] == list("abcdef")


def test_a_worker_does_not_outlive_its_parent(tmp_path, monkeypatch):
    """The parent is killed (no clean-up of its own) while the workers hang."""
    monkeypatch.setattr("tinkit.host.worker.WATCH_S", 0.1)
    child = os.fork()
    if child == 0:
        with Guarded(tell_and_hang, 2) as guarded:
            list(guarded.map([tmp_path / "a", tmp_path / "b"]))
        os._exit(0)
    try:
        names = [tmp_path / "a", tmp_path / "b"]
        for _ in range(1200):
            if all(name.exists() and name.read_text().endswith(".") for name in names):
                break
            time.sleep(0.05)
        pids = [int(name.read_text()[:-1]) for name in names]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert all(gone(pid) for pid in pids)


def tell_and_hang(path):
    path.write_text(f"{os.getpid()}.")
    time.sleep(LONG)


def test_the_source_is_taken_a_bounded_number_ahead():
    taken = []

    def items():
        for number in range(200):
            taken.append(number)
            yield number

    with Guarded(fault, 2) as guarded:
        for result in guarded.map(items(), ahead=3):
            assert len(taken) <= result + 1 + 2 * 3
    assert len(taken) == 200


def test_stop_is_heard_while_an_item_hangs():
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 3

    with Guarded(fault, 1, timeout_s=LONG) as guarded, pytest.raises(InterruptedError):
        list(guarded.map(["hang", 1], stop=stop))
    with Guarded(fault, 0) as guarded, pytest.raises(InterruptedError):
        list(guarded.map([1], stop=lambda: True))


def test_ctrl_c_is_for_the_parent():
    def work(item):
        os.kill(os.getpid(), signal.SIGINT)
        return item

    with Guarded(work, 2) as guarded:
        assert list(guarded.map(range(5))) == list(range(5))


def test_a_process_that_is_ended_from_outside_costs_no_item(tmp_path):
    """SIGTERM is a scheduler's, never a decoder's: the item is tried again, though not for ever."""

    def once(item):
        mark = tmp_path / str(item)
        if item == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(LONG)
        if item == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(LONG)
        return item

    with Guarded(once, 2) as guarded:
        assert list(guarded.map(range(6))) == [0, 1, 2, Lost("killed its process (signal 15)"), 4, 5]


def test_workers_that_cannot_begin_are_an_error_and_not_a_loop(monkeypatch):
    monkeypatch.setattr("tinkit.host.worker.Outbox", lambda connection: os._exit(9))
    with Guarded(fault, 1) as guarded, pytest.raises(TinkitError, match="end before they begin") as raised:
        list(guarded.map([1, 2]))
    assert "exit code 9" in raised.value.seen


def test_one_torch_thread():
    with Guarded(lambda item: torch.get_num_threads(), 1) as guarded:
        assert list(guarded.map([0])) == [1]


class Clock:
    """Tells the given times, then the last one for ever."""

    def __init__(self, *times):
        self.times = list(times)

    def __call__(self):
        return self.times.pop(0) if len(self.times) > 1 else self.times[0]


def nap(item):
    time.sleep(0.3)
    return item


@pytest.mark.parametrize("clock", [Clock(1e9, 0.0), Clock(0.0, 1e9), Clock(0.0, 5e8, 1e9)])
def test_a_clock_that_jumps_makes_no_item_late(clock):
    """Backwards, or forwards over the time that the machine was stopped."""
    with Guarded(nap, 1, timeout_s=60.0, clock=clock) as guarded:
        assert list(guarded.map([1, 2])) == [1, 2]


def test_the_clock_decides_what_is_late():
    """An hour by the clock for every look, of which no more than two ticks count; and none at all."""
    hours = iter(range(10**9))
    with Guarded(fault, 1, timeout_s=1.5 * guard.TICK_S, clock=lambda: next(hours) * 3600.0) as guarded:
        assert list(guarded.map(["hang"])) == [Lost("took more than 1.5 s")]
    with Guarded(nap, 1, timeout_s=0.01, clock=lambda: 0.0) as guarded:
        assert list(guarded.map([1])) == [1]


def test_a_consumer_that_is_away_for_long_makes_no_item_late():
    away = [0.0]
    with Guarded(nap, 1, clock=lambda: time.monotonic() + away[0]) as guarded:
        found = []
        for result in guarded.map(range(4)):
            found.append(result)
            away[0] += 1e6
    assert found == [0, 1, 2, 3]


def large(item):
    """All kinds of arrays, beyond what goes through the pipe and below."""
    random = np.random.default_rng(item)
    return {
        "views": torch.from_numpy(random.integers(0, 256, (4, 3, 64, 64), np.uint8)),
        "halves": torch.arange(70_001).to(torch.bfloat16) * item,
        "one": torch.tensor(item),
        "flags": torch.arange(50_000) % 2 == item % 2,
        "turned": torch.from_numpy(random.random((200, 300))).T,
        "part": np.arange(100_000)[item::3],
        "columns": np.asfortranarray(random.random((300, 200))),
        "none": np.zeros((0, 3), np.float32),
        "bytes": bytes(random.integers(0, 256, 60_000, np.uint8)),
        "texts": ["a", "b" * item],
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b) and a.flags.writeable
    return a == b


@pytest.mark.parametrize("workers", [1, 2])
def test_arrays_arrive_whole_and_are_the_consumers_own(workers):
    with Guarded(large, workers) as guarded:
        kept = list(guarded.map(range(12)))
    for item, found in enumerate(kept):  # all of them, after the workers and their memory are gone
        expected = large(item)
        assert [name for name in expected if not same(found[name], expected[name])] == []
        found["views"].add_(1)
        found["columns"][:] = 0


def test_results_of_changing_size_in_the_same_memory():
    sizes = [10, 10_000, 5, 300_000, 5_000, 800_000, 4_000]
    with Guarded(lambda size: np.arange(size), 1) as guarded:
        for size, found in zip(sizes, guarded.map(sizes, ahead=2)):
            np.testing.assert_array_equal(found, np.arange(size))


def test_killed_workers_leave_no_open_file():
    def work(item):
        array = np.full(100_000, item)
        if item % 3 == 2:
            os._exit(1)
        return array

    with Guarded(work, 2) as guarded:
        list(guarded.map(range(6)))
        before = len(os.listdir("/proc/self/fd"))
        list(guarded.map(range(30)))
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * 2 * 2  # blocks of the two that live now
    assert len(os.listdir("/proc/self/fd")) < before


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
@pytest.mark.slow
def test_where_processes_are_not_forked(context):
    with Guarded(fault, 1, timeout_s=60.0, context=context) as guarded:
        assert list(guarded.map([0, "kill", 2])) == [0, Lost("killed its process (signal 9)"), 2]


def test_wrong_use_is_told():
    with pytest.raises(ValueError, match="workers -1"):
        Guarded(fault, -1)
    with Guarded(fault, 1) as guarded:
        first = guarded.map(range(5))
        next(first)
        with pytest.raises(ValueError, match="another map"):
            next(guarded.map([1]))
    with pytest.raises(ValueError, match="closed"):
        next(first)
    with pytest.raises(ValueError, match="closed"):
        list(guarded.map([1]))
