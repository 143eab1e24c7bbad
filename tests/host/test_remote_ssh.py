"""A board behind a real sshd: the whole road to a report, and every way in which it can be cut."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sshd_parts import (
    NAME,
    NO_SSHD,
    Sshd,
    at_a_terminal,
    bare_python,
    board_bundle,
    descendants,
    fake_far_side,
    quick_device,
    wait_until,
)

from tinkit.errors import TinkitError
from tinkit.fidelity import PASSED
from tinkit.host.board.run import board_hello, profile_on

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(NO_SSHD), reason=NO_SSHD or "there is one")]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return board_bundle(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """The Python of a far side that has numpy and onnxruntime, and neither torch nor tinkit."""
    return bare_python(tmp_path_factory.mktemp("bare") / "a python's folder")


@pytest.fixture
def sshd(tmp_path):
    with Sshd(tmp_path / "sshd", tmp_path / "far cache".replace(" ", "-")) as running:
        yield running


@pytest.fixture
def profile(sshd, bundle, bare, tmp_path):
    """profile(**options) -> Report, over that sshd; batches are quick unless another device is given."""

    def run(**options):
        given = {
            "device": quick_device(),
            "out": tmp_path / "out",
            "python": bare,
            "layers": False,
            "wait_s": 300,
            **options,
        }
        return profile_on(NAME, bundle, ssh_config=sshd.config, **given)

    return run


def long_device():
    """It is still timed when a test cuts it."""
    return quick_device(min_seconds=60.0, warmup_s=0.0)


def left(sshd):
    """What is kept on the board, as paths below its cache."""
    return sorted(str(path.relative_to(sshd.cache)) for path in sshd.cache.rglob("*") if path.is_file())


def agents(sshd):
    return [(pid, line) for session in sshd.sessions() for pid, line in descendants(session) if ".pyz" in line]


def test_a_report_from_a_board_that_has_neither_torch_nor_tinkit(sshd, profile, bare, tmp_path):
    probe = "import importlib.util as u; print([n for n in ('torch', 'tinkit', 'onnx', 'click') if u.find_spec(n)])"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    seen = subprocess.run([bare, "-c", probe], capture_output=True, text=True, check=True, env=clean, cwd=tmp_path)
    assert seen.stdout.strip() == "[]"
    lines = []
    report = profile(say=lines.append)
    assert report.verdict == PASSED, lines
    assert report.latency[0].p50_ms > 0
    assert PASSED in [hop.verdict for hop in report.chain[1:]]
    assert json.loads((tmp_path / "out/report.json").read_text()) == report.to_json()
    assert report.transfer["files_sent"] == 4
    assert {"connect", "hello", "copy", "run", "bye", "work"} <= set(report.steps)
    assert left(sshd) == []
    assert agents(sshd) == []


def test_a_second_run_on_a_kept_cache_sends_no_files(sshd, profile):
    first, second = profile(keep=True), profile(keep=True)
    assert first.transfer["files_sent"] == 4
    assert second.transfer["files_sent"] == 0
    assert second.transfer["files_there"] == 4
    assert second.transfer["sent_bytes"] < 5000
    kept = left(sshd)
    assert any(path.endswith(".pyz") for path in kept)
    profile()
    assert left(sshd) == []


def test_hello_leaves_nothing_there(sshd, bare):
    hello = board_hello(NAME, python=bare, ssh_config=sshd.config)
    assert hello["runtimes"].get("onnxruntime")
    assert hello["machine"]["arch"]
    assert left(sshd) == []


def cut_in_the_middle(profile, cut):
    """The error of a run that is cut by `cut()` while the board measures."""
    lines, threads = [], []

    def say(line):
        lines.append(line)
        if line.startswith("exam     ") and not threads:
            threads.append(threading.Thread(target=cut_soon))
            threads[-1].start()

    def cut_soon():
        time.sleep(0.3)
        cut()

    with pytest.raises(TinkitError) as caught:
        profile(device=long_device(), say=say)
    for thread in threads:
        thread.join()
    assert threads, lines
    return str(caught.value)


def kill_ssh(sshd):
    mine = [
        pid
        for pid, line in descendants(os.getpid())
        if str(sshd.config) in line and "-o StrictHostKeyChecking=yes" in line
    ]
    assert len(mine) == 1
    os.kill(mine[0], signal.SIGKILL)


def kill_session(sshd):
    for pid in sshd.sessions():
        for below, line in descendants(pid):
            if line.startswith("sshd:"):
                os.kill(below, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # it may have gone with its child
            os.kill(pid, signal.SIGKILL)


def kill_agent(sshd, number=signal.SIGKILL):
    serving = [pid for pid, line in agents(sshd) if " serve" in line]
    assert len(serving) == 1
    os.kill(serving[0], number)


def far_processes(bare):
    """Whatever still runs of the far Python."""
    return [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if bare.encode() in _read(path)]


def _read(path):
    try:
        return path.read_bytes().split(b"\0")[0]
    except OSError:
        return b""


@pytest.mark.parametrize("cut", [kill_ssh, kill_session, kill_agent])
def test_a_cut_run_says_so_leaves_no_half_report_and_the_next_goes_on(sshd, profile, bare, tmp_path, cut):
    told = cut_in_the_middle(profile, lambda: cut(sshd))
    assert told.startswith("The connection to the board was lost.")
    assert "while it measured" in told
    assert "run the same command again" in told
    assert not (tmp_path / "out").exists()
    wait_until(lambda: not far_processes(bare), what="the agent and its child have ended")
    assert [path for path in left(sshd) if "/blobs/" in path]
    report = profile()
    assert report.verdict == PASSED
    assert report.transfer["files_sent"] == 0
    assert left(sshd) == []


def test_a_board_that_vanishes_is_noticed(sshd, profile, bare, tmp_path):
    """Its sshd stands still, as a board without power does: ssh misses three answers."""
    stopped = []

    def freeze():
        for session in sshd.sessions():
            for pid in [session, *(pid for pid, line in descendants(session) if line.startswith("sshd:"))]:
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)

    begin = time.monotonic()
    told = cut_in_the_middle(profile, freeze)
    assert "connection to the board was lost" in told
    assert "not responding" in told
    assert time.monotonic() - begin < 60
    assert not (tmp_path / "out").exists()
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not far_processes(bare), what="the agent and its child have ended")


def test_an_agent_that_is_asked_to_end_says_so(sshd, profile, bare, tmp_path):
    told = cut_in_the_middle(profile, lambda: kill_agent(sshd, signal.SIGTERM))
    assert "ended by a signal" in told
    assert not (tmp_path / "out").exists()
    wait_until(lambda: not far_processes(bare), what="the agent and its child have ended")
    assert profile().verdict == PASSED


def test_ctrl_c_at_the_terminal(sshd, bundle, bare, tmp_path):
    """The whole group is asked to stop; the agent ends by the end of its input, and its child with it."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from sshd_parts import quick_device\nfrom tinkit.host.board.run import profile_on\n"
        f"profile_on({NAME!r}, {bundle.path!r}, device=quick_device(min_seconds=60.0, warmup_s=0.0), out='out', "
        f"python={bare!r}, ssh_config={sshd.config!r}, layers=False, say=lambda line: print(line, flush=True))\n"
    )
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-c", code, here, os.path.join(os.path.dirname(here), "device")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = subprocess.Popen(command, cwd=tmp_path, text=True, start_new_session=True, preexec_fn=at_a_terminal, **pipes)
    for line in run.stdout:
        if line.startswith("exam     "):
            break
    os.killpg(run.pid, signal.SIGINT)
    error = run.communicate(timeout=60)[1]
    assert "Interrupted: Stopped." in error
    assert "the agent on the board has ended" in error
    assert not (tmp_path / "out").exists()
    wait_until(lambda: not far_processes(bare), what="the agent and its child have ended")


def test_two_runs_at_once_take_turns(sshd, profile, tmp_path):
    reports, lines = {}, {0: [], 1: []}

    def run(number):
        device = quick_device(min_seconds=3.0)
        reports[number] = profile(device=device, out=tmp_path / str(number), say=lines[number].append)

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [reports[number].verdict for number in (0, 1)] == [PASSED, PASSED]
    assert any(line.startswith("waiting  ") for line in lines[0] + lines[1])
    assert left(sshd) == []


def test_an_unknown_host_key_is_refused_and_stays_unknown(sshd, profile, tmp_path):
    sshd.know("")
    with pytest.raises(TinkitError, match="not known here, and tinkit accepts none") as caught:
        profile()
    assert f"ssh -F {sshd.config} -- {NAME}" in str(caught.value)
    assert sshd.known_hosts.read_text() == ""
    assert left(sshd) == []


def test_another_host_key_is_refused(sshd, profile):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(sshd.folder / "other")], check=True)
    sshd.know((sshd.folder / "other.pub").read_text())
    known = sshd.known_hosts.read_text()
    with pytest.raises(TinkitError, match="not the one that is known"):
        profile()
    assert sshd.known_hosts.read_text() == known
    assert left(sshd) == []


def test_a_configuration_that_would_accept_any_key_is_overruled(sshd, profile):
    sshd.know("")
    sshd.write_config(StrictHostKeyChecking="no")
    with pytest.raises(TinkitError, match="not known here"):
        profile()
    assert sshd.known_hosts.read_text() == ""


def test_who_is_not_let_in_and_where_nobody_answers(sshd, profile):
    sshd.write_config(IdentityFile=sshd.folder / "host_key")
    with pytest.raises(TinkitError, match="does not let this user in"):
        profile()
    sshd.write_config(Port=1)
    with pytest.raises(TinkitError, match="refuses the connection"):
        profile()
    sshd.write_config(HostName="no-such-board.invalid")
    with pytest.raises(TinkitError, match="not known to this network"):
        profile()
    sshd.write_config()
    with pytest.raises(TinkitError, match="no Python of this name"):
        profile(python="/no/such/python")


def test_a_lying_board_over_ssh(sshd, profile, bundle, tmp_path):
    script = "def lie(message):\n    tell({'tell': 'file', 'name': '../../x'}, b'x')\n    time.sleep(60)\ntalk(profile=lie)\n"
    with pytest.raises(TinkitError, match="not asked for"):
        profile(python=fake_far_side(tmp_path / 'a "far" side\'s', script, bundle))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
@pytest.mark.parametrize(("kilobytes", "what"), [(48, "the agent"), (520, "the bundle")])
def test_a_full_disk_on_the_board(sshd, profile, tmp_path, kilobytes, what):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=0700", "none", str(sshd.cache)], check=True)
    try:
        if what == "the bundle":
            (sshd.cache / "others").write_bytes(bytes(1))
            fill(sshd.cache, 300_000)
        with pytest.raises(TinkitError) as caught:
            profile()
        told = str(caught.value)
        assert "free some space" in told, told
        assert not (tmp_path / "out").exists()
        assert [path for path in left(sshd) if "partial" in path] == []
    finally:
        subprocess.run(["umount", str(sshd.cache)], check=True)
    assert profile().verdict == PASSED


def fill(folder, leave):
    """Take all of a small disk but so many bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filling").write_bytes(bytes(max(0, free - leave)))
