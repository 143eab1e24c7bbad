"""A board over the local way: what is refused before anything starts, the start of the agent, and boards that lie."""

import ast
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sshd_parts import (
    PRELUDE,
    asked,
    at_a_terminal,
    board_bundle,
    fake_far_side,
    good_report,
    hop,
    program,
    quick_device,
    wait_until,
)

from tinkit.errors import CannotJudge, Interrupted, TinkitError
from tinkit.fidelity import FAILED, PASSED
from tinkit.host import agent_start, connection, remote, ssh_errors, talk
from tinkit.host.board_run import board_hello, change_state, profile_on
from tinkit.host.foreign import ESCAPES, clean, parsed
from tinkit.host.received import checked_report, steps_of, told_error


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return board_bundle(tmp_path_factory.mktemp("board"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch, tmp_path):
    """Boards that hang are waited for shortly, and the agent's cache is the test's own."""
    monkeypatch.setattr(connection, "PATIENCE_S", 0.3)
    monkeypatch.setattr(connection, "OUT_OF_STEP_S", 0.3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "its 'cache'"))


def on(far_side, bundle, tmp_path, **options):
    """A run on a pretended board; what is written goes to `out`."""
    given = {"device": quick_device(), "out": tmp_path / "out", **options}
    return profile_on("local", bundle, python=far_side, **given)


def refused(far_side, bundle, tmp_path, **options):
    """The error of such a run, which leaves no report and no process behind."""
    with pytest.raises(TinkitError) as caught:
        on(far_side, bundle, tmp_path, **options)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


# --- which host, and how ssh is called ---


@pytest.mark.parametrize(
    "host",
    ["", "-oProxyCommand=touch x", "-x", "user@-x", "-user@board", "user@", "@board", "a@b@-c", "ssh://-x", "ssh://u@-x",
     "ssh://", "board one", "board\n", "board\x1b[2J", "board\u202e", "board;id", "$(id)", "`id`", "a|b", "a'b", 'a"b',
     "u@a\\b", "board&"],
)  # fmt: skip
def test_a_host_that_could_be_something_else_is_refused(host):
    with pytest.raises(TinkitError, match="no host") as caught:
        remote.check_host(host)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["local", "board", "me@orin", "me@10.0.0.7", "ssh://me@orin:2222", "DOM\\me@orin", "::1", "fe80::1%eth0"]
)
def test_hosts_that_ssh_takes(host):
    remote.check_host(host)


@pytest.mark.parametrize("python", ["", "-c", "py\nthon", "py\0thon"])
def test_a_python_that_could_be_something_else_is_refused(python):
    with pytest.raises(TinkitError, match="no name of a Python"):
        remote.connect("local", python=python)


def test_ssh_is_called_with_the_host_after_two_dashes_and_nothing_forwarded(monkeypatch):
    monkeypatch.setattr(remote, "_somebody_there", lambda: False)
    called = remote.ssh_arguments("me@orin", "exec x", "a config")
    assert called[-3:] == ["--", "me@orin", "exec x"]
    assert called[called.index("-F") + 1] == "a config"
    assert {"StrictHostKeyChecking=yes", "ClearAllForwardings=yes", "BatchMode=yes"} <= set(called)
    assert {"-T", "-a", "-x"} <= set(called)
    monkeypatch.setattr(remote, "_somebody_there", lambda: True)
    assert "BatchMode=yes" not in remote.ssh_arguments("me@orin", "exec x")


def test_nothing_of_the_environment_gets_onto_a_command_line(monkeypatch):
    for name in ("SSH_PASSWORD", "PASSWORD", "SECRET_TOKEN"):
        monkeypatch.setenv(name, "hunter2")
    called = remote.ssh_arguments(
        "me@orin", agent_start.start_command(agent_start.start_arguments("p", "0", 1, ["serve"]))
    )
    assert "hunter2" not in " ".join(called)


def test_a_board_root_is_for_this_machine_only(tmp_path):
    with pytest.raises(TinkitError, match="only here"):
        remote.connect("board", board_root=tmp_path)


# --- the one line ---


def test_the_line_passes_through_any_shell():
    line = agent_start.one_line()
    assert not set("'!\n\r") & set(line)
    assert line.isascii()
    ast.parse(line)


def test_the_script_parses_on_pythons_that_are_too_old():
    for old in ((3, 4), (3, 6), (3, 8)):
        ast.parse(agent_start.SCRIPT, feature_version=old)
    assert "f'" not in agent_start.SCRIPT
    assert 'f"' not in agent_start.SCRIPT


@pytest.mark.parametrize(
    "shell", [name for name in ("sh", "bash", "dash", "zsh", "csh", "tcsh", "fish") if shutil.which(name)]
)
@pytest.mark.parametrize("name", ["a python", "it's", 'say "x"', "$HOME", "a;b", "a\\b", "ü", "*"])
def test_every_argument_arrives_as_it_is(tmp_path, shell, name):
    far_side = program(tmp_path / name, "import json, sys\nprint(json.dumps(sys.argv))\n")
    arguments = agent_start.start_arguments(far_side, "0" * 64, 7, ["serve", "--root", "a 'b' \"c\" $d"])
    done = subprocess.run([shell, "-c", agent_start.start_command(arguments)], capture_output=True, check=True)
    assert json.loads(done.stdout) == arguments


def test_a_shell_that_knows_no_quotes_would_be_noticed(monkeypatch):
    monkeypatch.setattr(agent_start, "SCRIPT", "print('x')")
    with pytest.raises(ValueError, match="shell"):
        agent_start.one_line()


# --- the agent arrives ---

TINY = b"""
import os, sys
print("started", sys.argv[1:], flush=True)
sys.stdout.write(repr(sys.stdin.buffer.read(5)) + chr(10))
sys.stdout.flush()
sys.stdin.buffer.read()
"""


@pytest.fixture
def tiny(monkeypatch):
    """The agent is a program of a few lines: how it gets there is all that matters."""

    def use(data=TINY, sha256=None):
        monkeypatch.setattr(remote, "agent_file", lambda: (data, sha256 or hashlib.sha256(data).hexdigest()))
        return hashlib.sha256(data).hexdigest()

    use()
    return use


def agents(tmp_path):
    folder = tmp_path / "its 'cache'/tinkit/agent/agents"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def lines_of(open_connection):
    """What came behind the mark, as lines, until the far side waits."""
    seen = open_connection._reader._buffer
    while seen.count(b"\n") < 2:
        seen += open_connection.read(100)
    return seen.decode().splitlines()


def test_the_agent_is_sent_once_and_nothing_behind_it_is_read(tiny, tmp_path):
    for landed in (True, False):
        with remote.connect("local") as there:
            assert there.landed is landed
            assert (there.sent_bytes > 0) is landed
            there.write(b"hello")
            assert lines_of(there) == ["started ['serve']", "b'hello'"]
    assert agents(tmp_path) == [tiny() + ".pyz"]
    folder = tmp_path / "its 'cache'/tinkit/agent"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_damaged_agent_on_the_board_is_sent_again(tiny, tmp_path):
    with remote.connect("local"):
        pass
    kept = tmp_path / "its 'cache'/tinkit/agent/agents" / agents(tmp_path)[0]
    kept.write_bytes(kept.read_bytes() + b"#")
    with remote.connect("local") as there:
        assert there.landed
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == tiny()


def test_a_link_in_place_of_the_agent_is_not_run(tiny, tmp_path):
    with remote.connect("local"):
        pass
    kept = tmp_path / "its 'cache'/tinkit/agent/agents" / agents(tmp_path)[0]
    kept.rename(tmp_path / "elsewhere")
    kept.symlink_to(tmp_path / "elsewhere")
    with remote.connect("local") as there:
        assert there.landed
    assert not kept.is_symlink()


def test_an_agent_that_arrives_damaged_is_not_started(tiny, tmp_path):
    tiny(sha256="0" * 64)
    with pytest.raises(TinkitError, match="arrived damaged"):
        remote.connect("local")
    assert agents(tmp_path) == []


def test_a_full_disk_is_told_and_leaves_nothing(tiny, tmp_path, full_disk):
    tiny(TINY + b"#" * 200_000)
    with full_disk(), pytest.raises(TinkitError, match="could not be kept on the board") as caught:
        remote.connect("local")
    assert "File too large" in str(caught.value)
    assert agents(tmp_path) == []


def test_a_connection_cut_while_the_agent_is_sent_leaves_nothing(tmp_path):
    arguments = agent_start.start_arguments(sys.executable, "0" * 64, 1000, ["serve"])
    cut = subprocess.run(arguments, input=b"half", capture_output=True)
    assert cut.returncode == 4
    assert agents(tmp_path) == []


@pytest.mark.parametrize("folder", ["tinkit/agent", "tinkit/agent/agents"])
def test_a_cache_that_others_can_write_is_refused(tiny, tmp_path, folder):
    (tmp_path / "its 'cache'" / folder).mkdir(parents=True)
    (tmp_path / "its 'cache'" / folder).chmod(0o777)
    (tmp_path / "its 'cache'/tinkit").chmod(0o700)
    if folder.endswith("agents"):
        (tmp_path / "its 'cache'/tinkit/agent").chmod(0o700)
    with pytest.raises(TinkitError, match="Others have rights") as caught:
        remote.connect("local")
    assert "0o40777" in str(caught.value)


def test_an_old_python_is_told_kindly(monkeypatch):
    monkeypatch.setattr(agent_start, "OLDEST", (99, 1))
    with pytest.raises(TinkitError, match="too old") as caught:
        remote.connect("local")
    assert "99.1 or newer" in str(caught.value)


@pytest.mark.parametrize(
    ("release", "told", "then"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 29818004", "JetPack 4 (the original Nano, TX2) is not", "JetPack 5 or newer"),
        ("# R35 (release), REVISION: 4.1, GCID: R32", "The Python of the board is too old", "--python"),
        ("\udcff", "The Python of the board is too old", "--python"),
        (None, "The Python of the board is too old", "--python"),
    ],
)  # fmt: skip
def test_an_old_python_on_jetpack_4_is_told_as_what_it_is(monkeypatch, tmp_path, release, told, then):
    path = tmp_path / "nv_tegra_release"
    if release is not None:
        path.write_text(release, errors="surrogateescape")
    monkeypatch.setattr(agent_start, "OLDEST", (99, 1))
    monkeypatch.setattr(agent_start, "SCRIPT", agent_start.SCRIPT.replace("/etc/nv_tegra_release", str(path)))
    with pytest.raises(TinkitError) as caught:
        remote.connect("local")
    assert told in str(caught.value)
    assert then in str(caught.value).split("next:")[1]


def test_no_such_python():
    with pytest.raises(TinkitError, match="no Python of this name"):
        remote.connect("local", python="/no/such python")


# --- before the agent answers ---


def test_a_banner_is_skipped_whatever_it_ends_with(tmp_path, bundle):
    script = (
        "out(b'Welcome to the board!\\r\\n' * 300 + b'tinkit-have something else\\nlast line without an end')\ntalk()\n"
    )
    assert on(fake_far_side(tmp_path / "far", script, bundle), bundle, tmp_path).verdict == PASSED


@pytest.mark.parametrize(
    "junk", ["b'x' * 1000", "b'a line' + bytes([10])", "bytes(1000)"], ids=["one line", "lines", "zeros"]
)
def test_output_without_end_before_the_first_frame_is_cut_off(tmp_path, bundle, junk):
    script = f"while True:\n    out({junk})\n"
    begin = time.monotonic()
    assert "says too much" in refused(fake_far_side(tmp_path / "far", script, bundle), bundle, tmp_path)
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("", "did not start"),
        ("sys.exit(1)", "did not start"),
        ("sys.stderr.write('bash: line 1: exec: python3: not found\\n'); sys.exit(127)", "no Python of this name"),
        ('out(b\'tinkit-sorry ["What.", "\\\\u001b[2Jwhere", 1, 2]\\n\')', "What."),
        ("out(b'tinkit-sorry ' + b'[' * 50000 + b'\\n')", "does not start the agent"),
        ("out(('tinkit-want ' + sha + '\\n').encode() * 2); sys.stdin.buffer.read(size)", "does not start the agent"),
        ("have()", "connection to the board was lost"),
        ("have(); os.kill(os.getpid(), 9)", "ended by signal 9"),
    ],
)
def test_a_far_side_that_does_not_get_as_far_as_hello(tmp_path, bundle, script, told):
    text = refused(fake_far_side(tmp_path / "far", script + "\n", bundle), bundle, tmp_path)
    assert told in text
    assert "\x1b" not in text


def test_a_far_side_that_says_nothing_is_not_waited_for_without_end(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(remote, "LANDING_S", 0.3)
    assert "in time" in refused(fake_far_side(tmp_path / "far", "time.sleep(60)\n", bundle), bundle, tmp_path)
    monkeypatch.setattr(talk, "HELLO_S", 0.3)
    assert "in time: 0.3 s until the agent said hello" in refused(
        fake_far_side(tmp_path / "far", "have()\ntime.sleep(60)\n", bundle), bundle, tmp_path
    )


# --- an honest board ---


def test_a_report_with_what_the_host_knows_itself(tmp_path, bundle):
    lines = []
    report = on(fake_far_side(tmp_path / "far", bundle=bundle), bundle, tmp_path, say=lines.append, warmup_s=0.5)
    assert report.path == str(tmp_path / "out/report.json")
    assert json.loads((tmp_path / "out/report.json").read_text()) == report.to_json()
    assert report.title == "small on here"
    assert report.device["warmup_s"] == 0.5
    assert report.bundle["path"] == bundle.path
    assert [one.hop for one in report.chain] == ["pytorch -> onnx", "onnx -> onnxruntime"]
    assert report.transfer["files_sent"] == 3
    assert report.transfer["files_there"] == 1
    assert report.transfer["sent_bytes"] > os.path.getsize(bundle.model_path)
    assert {"connect", "hello", "copy", "run", "bye", "exam"} <= set(report.steps)
    assert "exam     passed" in lines


def test_what_is_asked_of_the_board(tmp_path, bundle):
    far_side = fake_far_side(tmp_path / "far", bundle=bundle, report=json.dumps(good_report(bundle)).encode())
    on(far_side, bundle, tmp_path, keep=True, mode="25W", allow_state_change=True, wait_s=5, layers=False)
    asks = asked(far_side)
    assert [message["ask"] for message in asks] == ["hello", "blob", "blob", "blob", "profile", "bye"]
    assert asks[-1]["keep"] is True
    job = asks[4]["job"]
    assert set(job["bundle"]["files"]) == {"manifest.json", "model.onnx", "exam.npz"}
    assert {message["sha256"] for message in asks[1:4]} == set(job["bundle"]["files"].values())
    assert job["options"] == {"budget": {}, "layers": False}
    assert (job["mode"], job["allow_state_change"], job["pin_clocks"], job["fetch"], job["wait_s"]) == (
        "25W",
        True,
        False,
        [],
        5,
    )


def test_what_the_board_has_is_not_sent(tmp_path, bundle):
    sha = bundle.manifest["files"]["model.onnx"]["sha256"]
    script = f"HELLO['have'] = [{sha!r}, 7, None]\ntalk()\n"
    report = on(fake_far_side(tmp_path / "far", script, bundle), bundle, tmp_path)
    assert report.transfer["files_sent"] == 2
    assert report.transfer["files_there"] == 2


def test_a_mistake_is_told_before_anything_is_started(tmp_path, bundle):
    nowhere = str(tmp_path / "no such python")
    for wrong in ({"scenarios": ["serve:rate=2"]}, {"budget": {"p95": 3}}, {"device": "no-such-device"}):
        assert "no Python" not in refused(nowhere, bundle, tmp_path, **wrong)


def test_a_board_without_the_runtime_or_the_room_gets_nothing(tmp_path, bundle):
    far_side = fake_far_side(tmp_path / "far", "HELLO['runtimes'] = {'openvino': '1'}\ntalk()\n", bundle)
    with pytest.raises(CannotJudge, match="does not have the target's runtime"):
        on(far_side, bundle, tmp_path, device=None)
    assert [message["ask"] for message in asked(far_side)] == ["hello", "bye"]
    far_side = fake_far_side(tmp_path / "small", "HELLO['free_bytes'] = 5\ntalk()\n", bundle)
    assert "does not fit on the board" in refused(far_side, bundle, tmp_path)
    assert [message["ask"] for message in asked(far_side)] == ["hello", "bye"]


def test_an_error_of_the_board_is_ours_and_the_board_tidies_up(tmp_path, bundle):
    script = """
error = {"tell": "error", "what": "No \\x1b[31mGPU.", "where": "/dev", "seen": "nothing", "next": "buy one", "exit_code": 4}
talk(profile=lambda message: tell(error))
"""
    far_side = fake_far_side(tmp_path / "far", script, bundle)
    with pytest.raises(CannotJudge) as caught:
        on(far_side, bundle, tmp_path)
    assert str(caught.value) == "No GPU.\n  where: local: /dev\n  seen:  nothing\n  next:  buy one"
    assert asked(far_side)[-1]["ask"] == "bye"


def test_that_we_live_is_said_while_the_board_works(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(connection, "ALIVE_S", 0.05)
    script = """
def wait(message):
    for _ in range(3):
        if ask()["ask"] != "alive":
            sys.exit(9)
    measure(message)
talk(profile=wait)
"""
    script = script.replace("talk(", "talk(alive=lambda message: None, ")
    assert on(fake_far_side(tmp_path / "far", script, bundle), bundle, tmp_path).verdict == PASSED


def test_hello_and_state(tmp_path):
    far_side = fake_far_side(tmp_path / "far", "HELLO['board'] = {'model': 'Ori\\x1b[2Jn'}\ntalk()\n")
    assert board_hello("local", python=far_side)["board"] == {"model": "Orin"}
    script = "talk(state=lambda message: (tell({'tell': 'say', 'line': 'mode 25W'}), done()))\n"
    far_side = fake_far_side(tmp_path / "state", script)
    assert change_state("local", {"mode": "25W"}, allow_state_change=True, python=far_side, wait_s=1) == ["mode 25W"]
    assert asked(far_side)[1]["change"] == {"mode": "25W", "allow_state_change": True, "wait_s": 1}


def test_an_engine_goes_only_where_it_was_asked_for(tmp_path, bundle):
    script = """
def both(message):
    tell({"tell": "file", "name": "engine"}, b"native code")
    measure(message)
talk(profile=both)
"""
    far_side = fake_far_side(tmp_path / "far", script, bundle)
    on(far_side, bundle, tmp_path, fetch_engine=tmp_path / "engines/a.plan")
    assert (tmp_path / "engines/a.plan").read_bytes() == b"native code"
    assert [path.name for path in (tmp_path / "engines").iterdir()] == ["a.plan"]
    shutil.rmtree(tmp_path / "out")
    assert "not asked for" in refused(far_side, bundle, tmp_path)


def test_where_nothing_can_be_written_is_told_before_anything_is_started(tmp_path, bundle):
    nowhere, file = str(tmp_path / "no such python"), tmp_path / "a file"
    file.write_bytes(b"kept")
    (tmp_path / "engines").mkdir()
    for wrong, told in (
        ({"out": file}, "No report can be written there"),
        ({"out": file / "below"}, "No report can be written there"),
        ({"fetch_engine": tmp_path / "engines"}, "it is a folder"),
        ({"fetch_engine": f"{tmp_path}/new/"}, "it is a folder"),
        ({"fetch_engine": file / "engine"}, "making the file for the engine"),
    ):
        assert told in refused(nowhere, bundle, tmp_path, **wrong)
    assert file.read_bytes() == b"kept"
    assert list((tmp_path / "engines").iterdir()) == []


def test_an_engine_that_cannot_be_put_in_its_place_does_not_cost_the_report(tmp_path, bundle):
    script = """
def both(message):
    tell({"tell": "file", "name": "engine"}, b"native code")
    measure(message)
talk(profile=both)
"""
    place = tmp_path / "engines/a.plan"

    def say(line):
        if line == "exam     passed":
            place.mkdir()

    with pytest.raises(TinkitError, match="putting the engine in its place; the report is written"):
        on(fake_far_side(tmp_path / "far", script, bundle), bundle, tmp_path, say=say, fetch_engine=place)
    assert json.loads((tmp_path / "out/report.json").read_text())["verdict"] == PASSED
    assert list((tmp_path / "engines").iterdir()) == [place]


def test_the_real_agent_on_this_machine(tmp_path, bundle, monkeypatch):
    """The whole way without ssh; what it proves over ssh is in test_remote_ssh.py."""
    monkeypatch.setattr(connection, "PATIENCE_S", 10)
    lines = []
    report = profile_on(
        "local", bundle, device=quick_device(), out=tmp_path / "out", say=lines.append, layers=False, wait_s=300
    )
    assert report.verdict == PASSED, lines
    assert report.latency[0].samples >= 200
    assert report.transfer["files_sent"] == 4
    assert not (tmp_path / "its 'cache'/tinkit").exists()


def test_what_was_kept_for_the_next_run_stays_when_the_board_is_only_asked(tmp_path, bundle):
    def run(**options):
        settings = {"device": quick_device(), "out": tmp_path / "out", "layers": False, "wait_s": 300}
        return profile_on("local", bundle, **settings, **options).transfer["files_sent"]

    cache = tmp_path / "its 'cache'/tinkit"
    assert run(keep=True) == 4
    assert len(board_hello("local")["have"]) == 3
    assert run() == 0
    assert not cache.exists()
    assert board_hello("local")["have"] == []
    assert not cache.exists()


# --- boards that lie ---

LIES = {
    "a file named ../x": ("tell({'tell': 'file', 'name': '../x'}, b'x')", "not asked for"),
    "an absolute file": ("tell({'tell': 'file', 'name': '/tmp/x'}, b'x')", "not asked for"),
    "a file without a name": ("tell({'tell': 'file'}, b'x')", "not asked for"),
    "a file whose name is a list": ("tell({'tell': 'file', 'name': ['report.json']}, b'x')", "not asked for"),
    "an engine nobody wants": ("tell({'tell': 'file', 'name': 'engine'}, b'x')", "not asked for"),
    "a second report": ("send_report(); send_report(); done()", "not asked for"),
    "a report of 10 GB": (
        'out(b\'{"tell": "file", "name": "report.json", "size": 10000000000}\\n\'); time.sleep(60)',
        "10000000000 bytes",
    ),
    "a report that is no JSON": ("send_report(b'no'); done()", "cannot be read"),
    "a report that is no text": ("send_report(bytes([200, 201])); done()", "cannot be read"),
    "a report nested deeply": ("send_report(b'[' * 100000); done()", "cannot be read"),
    "a report nested too deeply": (
        "send_report(b'{\"a\": ' + b'[' * 40 + b']' * 40 + b'}'); done()",
        "nested too deeply",
    ),
    "a report with NaN": ("send_report(report().replace(b'1.0', b'NaN')); done()", "no JSON number"),
    "a report with 1e999": ("send_report(report().replace(b'1.0', b'1e999')); done()", "not finite"),
    "a report with a giant number": ("send_report(report().replace(b'1.0', b'9' * 5000)); done()", "cannot be read"),
    "a report that is a list": ("send_report(b'[]'); done()", "not an object"),
    "a report of another schema": (
        "send_report(report().replace(b'tinkit-report-', b'other-')); done()",
        "another schema",
    ),
    "an empty report": ("send_report(b'{}'); done()", "another schema"),
    "no report": ("done()", "without a report"),
    "half a report": ('out(b\'{"tell": "file", "name": "report.json", "size": 9}\\nhalf\'); sys.exit(0)', "was lost"),
    "an end without a word": ("sys.exit(0)", "was lost"),
    "a killed agent": ("os.kill(os.getpid(), 9)", "was lost"),
    "an endless line": ("while True: out(b'x' * 100000)", "line is longer"),
    "no frame": ("out(b'Segmentation fault\\n'); time.sleep(60)", "not understood"),
    "another answer": ("tell({'tell': 'bye'})", "something else"),
    "an answer that is none": ("tell({'hello': 1})", "something else"),
    "a negative size": ('out(b\'{"tell": "file", "size": -1}\\n\')', "not understood"),
    "bytes behind a line": ("tell({'tell': 'say', 'line': 'x'}, b'x')", "not asked for"),
    "talk without end": ("while True: tell({'tell': 'say', 'line': 'x'})", "without end"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_board_that_lies_gets_no_report_written(tmp_path, bundle, monkeypatch, lie):
    monkeypatch.setattr(talk, "MAX_LINES", 1000)
    body, told = LIES[lie]
    script = "def lie(message):\n    " + body.replace("; ", "\n    ") + "\ntalk(profile=lie)\n"
    text = refused(fake_far_side(tmp_path / "far", script, bundle), bundle, tmp_path)
    assert told in text
    assert not (tmp_path / "x").exists()


CHANGED = {
    "another model": ({"bundle": {"model_sha256": "0" * 64}}, "another model"),
    "no model": ({"bundle": {}}, "another model"),
    "a bundle that is text": ({"bundle": "x"}, "not as reports are"),
    "an unknown key": ({"shell": "rm"}, "not as reports are"),
    "a verdict that is none": ({"verdict": "great"}, "verdict that is none"),
    "a load time in words": ({"load_ms": "quick"}, "not as reports are"),
    "a latency that is none": ({"latency": [{"batch": 1}]}, "not as reports are"),
    "a latency that is text": ({"latency": ["fast"]}, "not as reports are"),
    "a hop that is none": ({"chain": [7]}, "not as reports are"),
    "a chain without the host": ({"chain": []}, "hops of the host"),
    "a budget nobody set": (
        {"budgets": [{"name": "p95_ms", "limit": 1, "measured": 1, "verdict": "passed"}]},
        "other budgets",
    ),
    "budgets that are text": ({"budgets": ["x"]}, "not as reports are"),
    "a report without the exam": ({"chain": [hop("pytorch -> onnx").to_json()]}, "without an exam"),
    "a report without a latency": ({"latency": []}, "without a latency"),
    "a rehearsal": ({"rehearsal": "another runtime"}, "another rehearsal"),
    "notes that are an object": ({"notes": {"a": 1}}, "not as reports are"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_report_that_does_not_fit_is_refused(tmp_path, bundle, change):
    changes, told = CHANGED[change]
    report = json.dumps(good_report(bundle, **changes)).encode()
    assert told in refused(fake_far_side(tmp_path / "far", report=report), bundle, tmp_path)


def check(bundle, tmp_path, budget=None, **changes):
    data = json.dumps(good_report(bundle, **changes)).encode()
    return checked_report(data, "board", bundle, quick_device(), budget or {}, tmp_path / "report.json")


def test_a_budget_that_the_board_left_out_is_missed(tmp_path, bundle):
    with pytest.raises(TinkitError, match="other budgets"):
        check(bundle, tmp_path, budget={"p95_ms": 3.0})
    entry = {"name": "p95_ms", "limit": 3.0, "measured": None, "verdict": PASSED, "reason": ""}
    with pytest.raises(TinkitError, match="other budgets"):
        check(bundle, tmp_path, {"p95_ms": 3}, budgets=[dict(entry, limit=300)])


def test_a_failed_host_gate_stays_failed_whatever_the_board_says(tmp_path):
    failed = board_bundle(tmp_path / "a", host_gate={"verdict": FAILED})
    assert check(failed, tmp_path).verdict == FAILED
    failed = board_bundle(tmp_path / "b", chain=[hop("pytorch -> onnx", FAILED).to_json()])
    report = check(failed, tmp_path)
    assert report.verdict == FAILED
    assert [one.verdict for one in report.chain] == [FAILED, PASSED]


def test_what_the_board_says_about_itself_is_cleaned_and_the_rest_is_ours(tmp_path, bundle):
    report = check(
        bundle,
        tmp_path,
        title="<b>",
        path="/etc/passwd",
        machine={"a\x1b[1m": ["\x9b2Jx\u202e"]},
        device={"name": "a lie"},
    )
    assert report.machine == {"a": ["x"]}
    assert (report.title, report.device["name"], report.path) == (
        "small on here",
        "here",
        str(tmp_path / "report.json"),
    )


@pytest.mark.parametrize(
    "hello",
    ["HELLO['wire'] = 2", "del HELLO['have']", "HELLO['machine'] = 1", "HELLO['free_bytes'] = 'much'", "HELLO['board'] = None",
     "HELLO['board'] = {'a': 1e300}", "x = HELLO['board']\nfor _ in range(50): x['a'] = {}; x = x['a']", "HELLO['have'] = 'x'"],
)  # fmt: skip
def test_a_hello_that_is_none(tmp_path, bundle, hello):
    text = refused(fake_far_side(tmp_path / "far", hello + "\ntalk()\n", bundle), bundle, tmp_path)
    assert "wire" in text or "hello" in text


# --- text and data of strangers ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]52;c;Y2xpcA==\x1b\\b", "ab"),
        ("a\x1b]8;;http://x\x1b\\b", "ab"),
        ("\x9b2Ja\x90x\x9cb", "ab"),
        ("50 %\r100 %", "50 % 100 %"),
        ("a\tb\nc", "a b c"),
        ("a\u202eb\u200bc\u2028d\ufeff", "abcd"),
        ("nul\0bell\x07", "nulbell"),
        ("\x1b(Bx\x1b=y\x1b", "xy"),
        ("Grüße, 東京 ✓", "Grüße, 東京 ✓"),
        (7, "7"),
    ],
)
def test_a_line_without_what_a_terminal_obeys(text, shown):
    assert clean(text) == shown


@given(st.text() | st.text(alphabet="\x1b\x9b[]\\;0123mJ\x07\x9c \n\r\tab\u202e"))
def test_no_text_gets_through_that_is_not_printable(text):
    shown = clean(text, 50)
    assert len(shown) <= 50
    assert all(c.isprintable() for c in shown)
    assert not ESCAPES.search(shown)


def test_a_long_line_is_cut_quickly():
    begin = time.monotonic()
    assert len(clean("\x1b]" + "x" * 10_000_000)) <= 2000
    assert len(clean("\x1b[" * 5_000_000)) <= 2000
    assert time.monotonic() - begin < 30  # a quadratic way would take hours


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON | st.binary())
def test_any_report_is_refused_in_words(bundle, value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    with pytest.raises(TinkitError):
        checked_report(data, "board", bundle, quick_device(), {}, "report.json")


@given(st.sampled_from(sorted(good_report.__annotations__) or ["latency"]), JSON)
def test_nothing_else_than_words_comes_of_an_error_frame(name, value):
    assert isinstance(
        told_error({"tell": "error", "what": value, "seen": value, "exit_code": value}, "board"), TinkitError
    )
    assert isinstance(steps_of({"steps": value}), dict)
    assert set(steps_of({"steps": {"a": value}})) <= {"a"}


FIELDS = ["title", "verdict", "bundle", "device", "chain", "latency", "budgets", "load_ms", "notes", "truth", "steps", "watch",
          "scenarios", "throughput", "versions", "created", "power", "layers"]  # fmt: skip


@given(st.sampled_from(FIELDS), JSON)
def test_any_field_is_checked_without_a_crash(bundle, name, value):
    data = json.dumps({**good_report(bundle), name: value}).encode()
    try:
        report = checked_report(data, "board", bundle, quick_device(), {}, "report.json")
    except TinkitError:
        return
    json.dumps(report.to_json(), allow_nan=False)


def test_parsed_says_what_it_is_about():
    with pytest.raises(TinkitError, match="a report that cannot be read"):
        parsed(b"\xff", "a report", "board")


# --- what ssh says ---

SAID = {
    "No ED25519 host key is known for [127.0.0.1]:2222 and you have requested strict checking.\n"
    "Host key verification failed.": ("not known here", "run once by hand"),
    "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key for board has changed and you have requested "
    "strict checking.\nHost key verification failed.": ("not the one that is known", "find out why"),
    "me@board: Permission denied (publickey,password).": ("does not let this user in", "ssh-copy-id"),
    "ssh: Could not resolve hostname board: Name or service not known": ("not known to this network", "address"),
    "ssh: connect to host board port 22: Connection refused": ("refuses the connection", "sshd"),
    "ssh: connect to host board port 22: Connection timed out": ("does not answer", "switched on"),
    "ssh: connect to host board port 22: No route to host": ("does not answer", "switched on"),
    "Can't open user config file x: No such file or directory": ("does not take its configuration", "correct"),
    "x: line 1: Bad configuration option: prot": ("does not take its configuration", "correct"),
    "Unable to negotiate with 10.0.0.7 port 22: no matching host key type found. Their offer: ssh-rsa": (
        "no algorithm in common",
        "by hand",
    ),
    "kex_exchange_identification: Connection closed by remote host": ("before anybody was let in", "by hand"),
    "something that is new": ("failed", "by hand"),
}


@pytest.mark.parametrize("said", SAID)
def test_what_ssh_says_when_it_fails(said):
    error = str(ssh_errors.connecting_failed("me@board", 255, said.splitlines(), "python3", "my config"))
    what, then = SAID[said]
    assert what in error.splitlines()[0]
    assert then in error
    assert said.splitlines()[0] in error
    assert "ssh -F 'my config' -- me@board" in error or "by hand" not in then


def test_ssh_without_a_word_and_a_far_shell_without_python():
    assert "said nothing" in str(ssh_errors.connecting_failed("b", 255, [], "python3"))
    for code, words in (
        (127, ["zsh: command not found: python3"]),
        (126, ["Permission denied"]),
        (1, ["exec: x: not found."]),
    ):
        assert "no Python of this name" in str(ssh_errors.connecting_failed("b", code, words, "python3"))
    assert "did not start" in str(ssh_errors.connecting_failed("b", 1, ["This account is not available."], "python3"))


def test_all_that_goes_through_ssh_arrives(tmp_path, bundle, monkeypatch):
    """With a program in ssh's place that hands the command to a shell, as sshd does."""
    (tmp_path / "bin").mkdir()
    text = (
        "import json, os, sys\n"
        f"open({str(tmp_path / 'called')!r}, 'w').write(json.dumps(sys.argv))\n"
        "print('Last login: today', file=sys.stderr, flush=True)\n"
        "os.execvp('sh', ['sh', '-c', sys.argv[-1]])\n"
    )
    program(tmp_path / "bin/ssh", text)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    far_side, lines = fake_far_side(tmp_path / "a 'far' \"side\"", bundle=bundle), []
    profile_on("me@board", bundle, device=quick_device(), out=tmp_path / "out", python=far_side, say=lines.append)
    called = json.loads((tmp_path / "called").read_text())
    assert called[-3:-1] == ["--", "me@board"]
    assert "ssh      Last login: today" in lines


def test_without_ssh(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TinkitError, match="no ssh here"):
        remote.connect("board")


def test_many_words_of_ssh_are_not_all_shown(tmp_path, bundle):
    script = "sys.stderr.write('x' * 5000000 + '\\n' + 'noise\\n' * 100000)\nsys.stderr.flush()\ntalk()\n"
    lines = []
    on(fake_far_side(tmp_path / "far", script, bundle), bundle, tmp_path, say=lines.append)
    assert len(lines) < 250
    assert max(map(len, lines)) < 2100


# --- Ctrl-C ---


def test_ctrl_c_ends_the_run_with_nothing_half_done(tmp_path, bundle):
    script = "def slow(message):\n    tell({'tell': 'say', 'line': 'go'})\n    ask()\ntalk(profile=slow)\n"
    lines = []

    def say(line):
        lines.append(line)
        if line == "go":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="Stopped") as caught:
        on(fake_far_side(tmp_path / "far", script, bundle), bundle, tmp_path, say=say, fetch_engine=tmp_path / "e.plan")
    assert "agent on the board has ended" in str(caught.value)
    assert caught.value.exit_code == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far"]


def test_a_far_side_that_does_not_end_is_ended(tmp_path, bundle):
    script = "def slow(message):\n    tell({'tell': 'say', 'line': str(os.getpid())})\n    time.sleep(60)\ntalk(profile=slow)\n"

    def say(line):
        if line.isdigit():
            pids.append(int(line))
            raise KeyboardInterrupt

    pids = []
    with pytest.raises(Interrupted, match="Stopped") as caught:
        on(fake_far_side(tmp_path / "far", script, bundle), bundle, tmp_path, say=say)
    assert "cut off" in str(caught.value)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_signal_at_the_terminal_reaches_us_and_not_ssh(tmp_path, bundle):
    """The whole foreground group gets SIGINT: what stands in ssh's place ignores it, and ends when we close its input."""
    script = PRELUDE + (
        "def slow(message):\n    open(folder + '/busy', 'w').close()\n    sys.stdin.buffer.read()\n"
        "    open(folder + '/tidied', 'w').close()\ntalk(profile=slow)\n"
    )
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin/ssh", "import os, sys\nos.execvp('sh', ['sh', '-c', sys.argv[-1]])\n")
    far_side = program(tmp_path / "python", script)
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from sshd_parts import quick_device\nfrom tinkit.host.board_run import profile_on\n"
        f"profile_on('board', {bundle.path!r}, device=quick_device(), out='out', python=sys.argv[1])\n"
    )
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-c", code, far_side, here, os.path.join(os.path.dirname(here), "device")]
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=at_a_terminal
    )
    wait_until((tmp_path / "busy").exists)
    os.killpg(run.pid, signal.SIGINT)
    said = run.communicate(timeout=30)[1].decode()
    assert "tinkit.errors.Interrupted: Stopped." in said
    assert (tmp_path / "tidied").exists()
    assert not (tmp_path / "out").exists()
