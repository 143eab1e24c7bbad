"""One measurement at a time on a machine, whoever's it is."""

import subprocess
import sys
import threading

import pytest

from tinkit.device.turn import Turn, held
from tinkit.errors import EXIT_NO_VERDICT, CannotJudge

HOLD = "import sys; from tinkit.device.turn import Turn; t = Turn(); print(t.take(), flush=True); sys.stdin.read()"


@pytest.fixture(autouse=True)
def name(monkeypatch, tmp_path):
    monkeypatch.setenv("TINKIT_MEASURING", str(tmp_path))


def test_who_measures_is_told_and_not_waited_for_without_end():
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "True\n"
        told = []
        with pytest.raises(CannotJudge) as caught, held(0.1, told.append, poll_s=0.01):
            raise AssertionError("two at once")
        assert caught.value.exit_code == EXIT_NO_VERDICT
        assert f"process {other.pid}" in caught.value.seen
        assert [f"process {other.pid}" in line for line in told] == [True]
        other.stdin.close()
        other.wait(10)
    with held(0, told.append):  # gone with its process
        pass


def test_the_next_one_goes_on_as_soon_as_it_is_free():
    first, told, order = Turn(), [], []
    assert first.take()

    def second():
        with held(30, told.append, poll_s=0.01):
            order.append("second")

    waiting = threading.Thread(target=second)
    waiting.start()
    while not told:
        pass
    order.append("first")
    first.give()
    waiting.join(30)
    assert order == ["first", "second"]


def test_it_is_given_back_also_after_an_error():
    with pytest.raises(RuntimeError), held(0, print):
        raise RuntimeError
    turn = Turn()
    assert turn.take()
    turn.give()
