"""A run that is cut, in whatever way, leaves no process behind, the board as it was, and what was sent for the next run."""

import contextlib
import os
import signal
import time

import pytest
from agent_parts import Board, alive, planted_agent, wait_for
from board_parts import fake_board, ran_as_root, refuse_sudo

from tinkit.device.jetson import clocks_pinned, power_mode

SLOW = pytest.mark.slow  # of one kind with its neighbours, and each takes some seconds

# A run with a child of its own, one in another session, one that ignores what can be ignored; it goes on for longer than a test.
BUSY = """
for options in ({}, {'start_new_session': True}):
    say('child {}'.format(subprocess.Popen(['sleep', '120'], **options).pid))
tough = "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); s.signal(s.SIGHUP, s.SIG_IGN); time.sleep(120)"
say('child {}'.format(subprocess.Popen([sys.executable, '-c', tough], start_new_session=True).pid))
say('began {}'.format(os.getpid()))
end = time.monotonic() + 120
while time.monotonic() < end:
    pass
"""


@pytest.fixture
def bundle(make_bundle):
    return make_bundle().path


@pytest.fixture
def root(tmp_path):
    return fake_board(tmp_path / "board")


@pytest.fixture
def open_board(tmp_path, root):
    """open_board(**changes) -> an agent with a planted profile on a board that is played back."""
    path = planted_agent(tmp_path)
    return lambda cache=tmp_path, **changes: Board(cache, root=root, path=path, **changes)


def begun(board, bundle, **changes):
    """Begin a run that would go on for minutes; returns all of its processes."""
    job = board.send_bundle(bundle, options={"behave": BUSY}, **changes)
    board.begin(job)
    while sum(line.startswith("began") for line in board.lines()) < 2:
        assert board.hear()["tell"] == "say"
    found = {int(line.split()[1]) for line in board.lines() if line.split()[0] in ("began", "child")}
    assert len(found) == 4
    assert all(alive(pid) for pid in found)
    return found


CHANGED = {"mode": "MAXN_SUPER", "pin_clocks": True, "allow_state_change": True}


def as_found(root):
    return power_mode(root) == "25W" and clocks_pinned(root) is False


def nothing_left_of(processes, seconds=30):
    """Whether they are all gone within this time: killed; the kernel takes its time."""
    return wait_for(lambda: not any(alive(pid) for pid in processes), seconds)


@contextlib.contextmanager
def two_boards(open_board, tmp_path, bundle, name):
    """Two agents of one turn to measure; the first one has it and measures."""
    (tmp_path / "other").mkdir()
    with open_board(name=name) as first, open_board(cache=tmp_path / "other", name=name) as second:
        begun(first, bundle)
        yield first, second


def test_the_state_is_changed_for_a_run_and_put_back(open_board, bundle, root):
    with open_board() as board:
        job = board.send_bundle(
            bundle, options={"behave": "say('mode ' + open(root + '/var/lib/nvpmodel/status').read())"}
        )
        assert board.ask("profile", job=dict(job, **CHANGED))["tell"] == "done"
        told = " ".join(board.lines())
        assert "power mode MAXN_SUPER (was 25W)" in told
        assert "pmode:0002" in told
        assert "power mode is 25W again" in told
        assert as_found(root)
        assert board.ask("bye", keep=False)["removed"]


@pytest.mark.parametrize(
    "how",
    [
        "end of input",
        signal.SIGTERM,
        *(pytest.param(how, marks=SLOW) for how in (signal.SIGHUP, signal.SIGINT, "bye", "junk")),
    ],
)
def test_a_run_that_is_cut_ends_everything_and_restores(open_board, bundle, root, how):
    with open_board() as board:
        processes = begun(board, bundle, **CHANGED)
        assert power_mode(root) == "MAXN_SUPER"
        if how == "end of input":
            board.process.stdin.close()
        elif how == "bye":
            board.send("bye", keep=False)
        elif how == "junk":
            board.process.stdin.write(b"junk\n")
        else:
            board.process.send_signal(how)
        told = board.rest()
        assert [message["tell"] for message in told if message["tell"] != "say"] == ["error", "bye"]
        assert not told[-1]["removed"]
        assert told[-1]["left_mb"] > 0
        assert board.ended() == 1
        assert nothing_left_of(processes, 5)
        assert as_found(root)
        assert list((board.folder / "runs").iterdir()) == []
        assert len(list((board.folder / "blobs").iterdir())) == 2
    assert "Traceback" not in board.errors


@SLOW
def test_the_next_run_goes_on_with_what_a_cut_one_left(open_board, bundle):
    with open_board() as board:
        begun(board, bundle)
    with open_board() as board:
        assert len(board.ask("hello")["have"]) == 2
        assert board.ask("bye", keep=False)["removed"]


def test_a_killed_parent_ends_the_child_and_has_the_board_restored(open_board, bundle, root):
    with open_board() as board:
        processes = begun(board, bundle, **CHANGED)
        board.process.kill()
        assert nothing_left_of(processes)
        assert wait_for(lambda: as_found(root))
        assert wait_for(lambda: list((board.folder / "state").iterdir()) == [])
    with open_board() as board:  # and what else it left is swept
        assert "half done" in board.ask("hello")["notes"][0]
        assert list((board.folder / "runs").iterdir()) == []
        assert board.ask("bye", keep=False)["removed"]


@SLOW
def test_when_both_are_killed_the_next_agent_restores(open_board, bundle, root):
    with open_board() as board:
        processes = begun(board, bundle, **CHANGED)
        child = max(int(line.split()[1]) for line in board.lines() if line.startswith("began"))
        signal_all([child], signal.SIGSTOP)
        board.process.kill()
        signal_all(processes, signal.SIGKILL)
        assert nothing_left_of(processes)
        board.process.wait()
        assert not as_found(root)
    with open_board() as board:
        notes = board.ask("hello")["notes"]
        assert any("power mode is 25W again" in note for note in notes)
        assert as_found(root)
        assert board.ask("bye", keep=False)["removed"]


@SLOW
def test_what_cannot_be_restored_stays_recorded_and_is_told(open_board, bundle, root):
    with open_board() as board:
        begun(board, bundle, **CHANGED)
        refuse_sudo(root)
        board.process.stdin.close()
        told = board.rest()
        assert told[-1]["tell"] == "bye"
        assert board.ended() == 1
        assert power_mode(root) == "MAXN_SUPER"
    assert "Traceback" not in board.errors
    with open_board() as board:
        assert "left it changed" in " ".join(board.ask("hello")["notes"])
        told = board.ask("bye", keep=False)
        assert not told["removed"]  # the record is needed still
        assert [path.name for path in board.folder.iterdir()] == ["state"]
    refuse_sudo(root, False)
    with open_board() as board:
        board.ask("hello")
        assert as_found(root)
        assert board.ask("bye", keep=False)["removed"]


def test_no_state_is_changed_without_leave(open_board, bundle, root):
    with open_board() as board:
        told = board.ask("profile", job=board.send_bundle(bundle, **dict(CHANGED, allow_state_change=False)))
        assert "--allow-state-change" in told["next"]
        assert board.ask("state", change={"mode": "15W"})["tell"] == "error"
        board.ask("bye", keep=False)
    assert ran_as_root(root) == []
    assert as_found(root)


@SLOW
def test_a_change_on_purpose_stays_until_it_is_taken_back(open_board, bundle, root):
    with open_board() as board:
        assert board.ask("state", change=CHANGED)["tell"] == "done"
        assert not board.ask("bye", keep=False)["removed"]
    assert (power_mode(root), clocks_pinned(root)) == ("MAXN_SUPER", True)
    with open_board() as board:
        assert board.ask("hello")["notes"] == []
        job = board.send_bundle(bundle, options={"behave": ""})
        assert board.ask("profile", job=job)["tell"] == "done"
        assert (power_mode(root), clocks_pinned(root)) == ("MAXN_SUPER", True)
        assert board.ask("state", change={"restore": True})["tell"] == "done"
        assert as_found(root)
        assert board.ask("bye", keep=False)["removed"]


@SLOW
def test_the_second_of_two_is_told_who_measures_and_gives_up(open_board, bundle, tmp_path):
    with two_boards(open_board, tmp_path, bundle, "a") as (first, second):
        told = second.ask("profile", job=second.send_bundle(bundle, wait_s=0.7))
        assert (told["tell"], told["exit_code"]) == ("error", 4)
        assert f"process {first.process.pid} of user " in told["seen"]
        assert f"waiting  process {first.process.pid} of user" in second.lines()[0]
        assert second.ask("bye", keep=False)["removed"]


@SLOW
def test_the_second_of_two_waits_for_its_turn(open_board, bundle, tmp_path):
    with two_boards(open_board, tmp_path, bundle, "b") as (first, second):
        second.send("profile", job=second.send_bundle(bundle, options={"behave": ""}, wait_s=60))
        assert "waiting" in second.hear()["line"]
        second.send("alive")
        first.process.kill()  # the kernel takes the turn back, whatever became of its holder
        assert second.until("done", "error")["tell"] == "done"
        assert second.ask("bye", keep=False)["removed"]


@SLOW
def test_a_host_that_goes_while_waiting_ends_the_wait(open_board, bundle, tmp_path):
    with two_boards(open_board, tmp_path, bundle, "c") as (_, second):
        second.send("profile", job=second.send_bundle(bundle, wait_s=600))
        assert "waiting" in second.hear()["line"]
        second.process.stdin.close()
        assert second.rest()[-1]["tell"] == "bye"
        assert second.ended() == 1


@SLOW
def test_a_silent_host_ends_a_run_and_a_living_one_does_not(open_board, bundle):
    with open_board(silence_s=2) as board:
        processes = begun(board, bundle)
        end = time.monotonic() + 4
        while time.monotonic() < end:
            board.send("alive")
            time.sleep(0.3)
        assert board.process.poll() is None
        assert "silent" in board.rest()[0]["what"]
        assert nothing_left_of(processes, 5)


@SLOW
def test_a_host_that_takes_nothing_any_more_ends_a_run(open_board, bundle):
    with open_board(silence_s=2) as board:
        job = board.send_bundle(bundle, options={"behave": "for i in range(10**6): say('x' * 900)"})
        child = board.begin(job)
        end = time.monotonic() + 30
        while board.process.poll() is None and time.monotonic() < end:
            board.send("alive")  # speaks, and does not listen
            time.sleep(0.3)
            if not alive(child):
                break
        assert wait_for(lambda: not alive(child))
        assert board.ended() == 1


def signal_all(processes, number):
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
