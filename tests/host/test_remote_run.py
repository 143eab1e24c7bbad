"""A run on a board over the local way: what comes before the agent answers, and all that an honest board does."""

import json
import os
import shutil
import time

import pytest
from remote_parts import impatient, on, refused
from sshd_parts import asked, board_bundle, fake_far_side, good_report, quick_device

from tinkit.errors import CannotJudge, TinkitError
from tinkit.fidelity import PASSED
from tinkit.host.board import connection, remote, talk
from tinkit.host.board.run import board_hello, change_state, profile_on


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return board_bundle(tmp_path_factory.mktemp("board"))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch, tmp_path):
    impatient(monkeypatch, tmp_path)


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
