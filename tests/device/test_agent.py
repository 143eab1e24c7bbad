"""The agent in a process, talked to through pipes: what it tells, what it keeps, what it refuses, what it leaves behind."""

import hashlib
import json
import os
import resource
from pathlib import Path

import pytest
from agent_parts import Board, job_of, planted_agent, wait_for
from board_parts import fake_board

import tinkit
from tinkit.device.wire import MAX_LINE, WIRE
from tinkit.results import Report


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def bundle(make_bundle):
    return make_bundle().path


@pytest.fixture
def board(tmp_path):
    with Board(tmp_path) as board:
        yield board
    assert "Traceback" not in board.errors


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One agent with a planted profile for many tests: none of them may end it."""
    folder = tmp_path_factory.mktemp("board")
    with Board(folder, path=planted_agent(folder)) as board:
        board.ask("hello")
        yield board
        assert board.ask("bye", keep=False)["removed"]
    assert "Traceback" not in board.errors
    assert not (folder / "tinkit").exists()


@pytest.fixture
def planted(shared):
    """The shared agent, that has told nothing yet: `{"behave": code}` is what its profile does."""
    del shared.heard[:]
    yield shared
    assert list((shared.folder / "runs").iterdir()) == []


def behaving(code, **changes):
    return dict({"options": {"behave": code}}, **changes)


def blobs(board):
    return sorted(path.name for path in (board.folder / "blobs").iterdir())


def test_hello_tells_the_machine_and_bye_leaves_nothing(board):
    told = board.ask("hello")
    assert {"wire": WIRE, "tinkit": tinkit.__version__, "have": [], "notes": []}.items() <= told.items()
    assert told["machine"]["cores"] >= 1
    assert told["board"]["model"] == ""
    assert "onnxruntime" in told["runtimes"]
    assert told["free_bytes"] > 0
    assert told["cache"] == str(board.folder)
    assert board.folder.stat().st_mode & 0o777 == 0o700
    assert board.ask("bye", keep=False) == {"tell": "bye", "removed": True, "left_mb": 0.0, "data": b""}
    assert board.ended() == 0
    assert not (board.cache / "tinkit").exists()


def test_hello_of_a_board_that_is_played_back(tmp_path):
    with Board(tmp_path, root=fake_board(tmp_path / "board")) as board:
        told = board.ask("hello")
        board.ask("bye", keep=False)
    assert "Orin Nano" in told["board"]["model"]
    assert told["board"]["power_mode"] == "25W"


def test_files_are_kept_by_their_hash_and_not_twice(board):
    data = os.urandom(300_000)
    assert board.ask("blob", data, sha256=sha256(data))["tell"] == "kept"
    assert board.ask("blob", data, sha256=sha256(data))["tell"] == "kept"
    assert board.ask("hello")["have"] == [sha256(data)]
    assert (board.folder / "blobs" / sha256(data)).read_bytes() == data
    told = board.ask("bye", keep=True)
    assert not told["removed"]
    assert 0.3 < told["left_mb"] < 1
    assert board.ended() == 0
    with Board(board.cache) as again:
        assert again.ask("hello")["have"] == [sha256(data)]
        assert again.ask("bye", keep=False)["removed"]


def test_a_wrong_hash_is_refused_and_nothing_is_kept(board):
    told = board.ask("blob", b"12345", sha256=sha256(b"12346"))
    assert told["tell"] == "error"
    assert "damaged" in told["what"]
    assert blobs(board) == []
    assert board.ask("hello")["have"] == []  # the conversation goes on


def test_a_name_that_is_no_hash_is_refused(planted):
    before = blobs(planted)
    for name in ("../../evil", "/etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", ["a"], None):
        told = planted.ask("blob", b"12345", sha256=name)
        assert told["tell"] == "error"
        assert "no sha256" in told["what"]
    assert blobs(planted) == before


def test_a_full_disk_is_told_kindly_and_leaves_nothing_partial(tmp_path):
    def little():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    data = os.urandom(100_000)
    with Board(tmp_path, limit=little) as board:
        told = board.ask("blob", data, sha256=sha256(data))
        assert "could not be kept on the board" in told["what"]
        assert "free some space" in told["next"]
        assert blobs(board) == []
        assert board.ask("blob", b"123", sha256=sha256(b"123"))["tell"] == "kept"  # what fits still does
        assert board.ask("bye", keep=False)["removed"]
    assert board.errors == ""


def test_a_host_that_goes_in_the_middle_of_a_file_leaves_nothing_partial(board):
    board.ask("hello")
    board.process.stdin.write(b'{"ask":"blob","sha256":"%s","size":100000}\n12345' % (b"a" * 64))
    assert wait_for(lambda: len(blobs(board)) == 1)
    board.process.stdin.close()
    told = board.rest()
    assert [message["tell"] for message in told] == ["error", "bye"]
    assert board.ended() == 1
    assert blobs(board) == []


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\xffhello\n", "not JSON"),
        (b'{"ask":["hello"]}\n', "unknown"),
        (b'{"ask":"hello","size":99999999999}\n', "more than is taken"),
        (b"x" * (MAX_LINE + 1), "longer than"),
    ],
)
def test_garbage_ends_with_a_message_and_no_traceback(board, data, what):
    board.process.stdin.write(data)
    told = board.rest()
    assert [message["tell"] for message in told] == ["error", "bye"]
    assert what in told[0]["what"]
    assert board.ended() == 1


NOT_SENT = {"manifest.json": "a" * 64, "model.onnx": "a" * 64}
NO_JOBS = [
    (None, "no object"),
    ([], "no object"),
    ({"device": {}}, "missing or wrong"),
    (job_of({}), "does not list its files"),
    (job_of(dict(NOT_SENT, **{"model.onnx": "../../etc/passwd"})), "name or hash is none"),
    (job_of(dict(NOT_SENT, **{"../x": "a" * 64})), "name or hash is none"),
    (job_of(NOT_SENT), "was not sent"),
    (job_of(NOT_SENT, wait_s=-1), "missing or wrong"),
    (job_of(NOT_SENT, wait_s=True), "missing or wrong"),
    (job_of(NOT_SENT, shell="rm"), "does not know"),
]


def test_a_job_that_is_none_is_refused_and_the_conversation_goes_on(planted):
    for job, what in NO_JOBS:
        told = planted.ask("profile", job=job)
        assert told["tell"] == "error"
        assert what in told["what"]
    for change in (None, {"reboot": True}, {"mode": 3}):
        assert planted.ask("state", change=change)["tell"] == "error"


def test_a_job_ends_with_its_report_and_leaves_nothing(planted, bundle):
    told = planted.ask("profile", job=planted.send_bundle(bundle, **behaving("say('half')")))
    assert told["tell"] == "done"
    assert set(told["steps"]) == {"wait", "work"}
    file = planted.heard[-2]
    assert (file["tell"], file["name"], file["size"]) == ("file", "report.json", len(file["data"]))
    assert b'"manifest.json"' in file["data"]
    assert planted.lines()[1:] == ["half"]


def test_what_a_library_prints_never_gets_between_the_frames(planted, bundle):
    code = (
        'os.write(1, b\'{"tell":"done","steps":{}}\\n\'); print(\'{"tell":"error"}\'); os.system(\'echo from a shell\')\n'
        "os.write(2, b'\\xff\\x1b[31m red'); print(repr(sys.stdin.read()))"
    )
    assert planted.ask("profile", job=planted.send_bundle(bundle, **behaving(code)))["tell"] == "done"
    printed = [line for line in planted.lines() if line.startswith("board ")]
    assert printed == [
        'board    {"tell":"done","steps":{}}',
        'board    {"tell":"error"}',
        "board    from a shell",
        "board    \ufffd\x1b[31m red''",  # the host cleans what it shows
    ]
    assert [message["tell"] for message in planted.heard if message["tell"] in ("done", "error")] == ["done"]


def test_what_a_library_prints_in_the_parent_is_standard_error(tmp_path):
    code = "\nimport os\nquiet = board_facts\ndef board_facts(*a):\n"
    code += "    print('printed')\n    os.system('echo shell')\n    return quiet(*a)\n"
    with Board(tmp_path, path=planted_agent(tmp_path, {"tinkit/device/hello.py": code})) as board:
        assert board.ask("hello")["tell"] == "hello"
        assert board.ask("bye", keep=False)["tell"] == "bye"
        assert board.rest() == []
    assert sorted(board.errors.split()) == ["printed", "shell"]


def test_a_library_that_prints_without_end_is_cut_short(planted, bundle):
    job = planted.send_bundle(bundle, **behaving("for i in range(3000): print('line', i)"))
    assert planted.ask("profile", job=job)["tell"] == "done"
    printed = [line for line in planted.lines() if line.startswith("board ")]
    assert len(printed) == 201
    assert "not told" in printed[-1]


FAILING = [
    ("raise CannotJudge('No GPU.', seen='none', next_step='get one')", "none", "get one", 4),
    ("raise TinkitError('Damaged.', seen='half', next_step='again')", "half", "again", 1),
    ("1 / 0", "ZeroDivisionError", "mistake", 1),
    ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV", "mistake", 1),
    ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL", "memory", 1),
    ("os._exit(0)", "exit code 0", "mistake", 1),
]


@pytest.mark.slow
def test_a_child_that_fails_is_told_in_words(planted, bundle):
    job = planted.send_bundle(bundle)
    for code, seen, then, exit_code in FAILING:
        told = planted.ask("profile", job=dict(job, **behaving(code)))
        assert (told["tell"], told["exit_code"]) == ("error", exit_code)
        assert seen in told["seen"]
        assert then in told["next"]
    assert "file" not in [message["tell"] for message in planted.heard]


@pytest.mark.parametrize("option", ["unheard_of", "root"])
def test_options_that_are_none_or_ours_are_refused(planted, bundle, option):
    told = planted.ask("profile", job=planted.send_bundle(bundle, options={option: "/"}))
    assert "does not know" in told["what"]
    assert told["seen"] == option


def test_a_damaged_file_is_removed_and_sent_again(planted, bundle):
    job = planted.send_bundle(bundle, **behaving(""))
    model = planted.folder / "blobs" / job["bundle"]["files"]["model.onnx"]
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    told = planted.ask("profile", job=job)
    assert "damaged" in told["what"]
    assert model.name not in planted.ask("hello")["have"]
    planted.send_bundle(bundle)
    assert planted.ask("profile", job=job)["tell"] == "done"


def test_an_engine_is_sent_when_asked_for_and_only_from_our_folder(planted, bundle):
    code = "path = os.path.join(engines, 'a.plan'); open(path, 'wb').write(b'engine'); engine['engine'] = path"
    job = planted.send_bundle(bundle, **behaving(code, fetch=["engine"]))
    assert planted.ask("profile", job=job)["tell"] == "done"
    assert planted.heard[-2] == {"tell": "file", "name": "engine", "size": 6, "data": b"engine"}
    for code in ("engine['engine'] = engines + '/../../../../../../../../etc/passwd'", ""):
        del planted.heard[:]
        assert planted.ask("profile", job=dict(job, options={"behave": code}))["tell"] == "done"
        assert [message["name"] for message in planted.heard if message["tell"] == "file"] == ["report.json"]
        assert planted.lines()[-1] == "engine   this runtime made none"


def test_temporary_files_and_caches_of_libraries_are_ours(planted, bundle):
    code = (
        "import tempfile\n"
        "places = [tempfile.gettempdir(), os.environ['XDG_CACHE_HOME'], os.environ['CUDA_CACHE_PATH'], os.getcwd()]\n"
        "for place in places: say(place)"
    )
    planted.ask("profile", job=planted.send_bundle(bundle, **behaving(code)))
    assert len(planted.lines()) == 5
    assert all(Path(line).is_relative_to(planted.folder) for line in planted.lines()[1:])


def test_two_agents_share_a_cache_and_the_last_one_removes_it(tmp_path):
    with Board(tmp_path) as first, Board(tmp_path) as second:
        first.ask("blob", b"123", sha256=sha256(b"123"))
        assert second.ask("hello")["have"] == [sha256(b"123")]
        told = first.ask("bye", keep=False)
        assert not told["removed"]
        assert blobs(second) == [sha256(b"123")]
        assert second.ask("bye", keep=False)["removed"]
    assert not (tmp_path / "tinkit").exists()


def test_a_cache_that_others_can_write_is_refused(tmp_path):
    (tmp_path / "tinkit" / "agent").mkdir(parents=True)
    path = planted_agent(tmp_path)
    (tmp_path / "tinkit" / "agent").chmod(0o777)
    with Board(tmp_path, path=path) as board:
        told = board.hear()
        assert "nobody else" in told["what"]
        assert told["where"] == str(board.folder)
        assert board.ended() == 1
    assert "Traceback" not in board.errors


def test_silence_ends_it(tmp_path):
    with Board(tmp_path, silence_s=0.5) as board:
        told = board.rest()
        assert "silent for 0.5 s" in told[0]["what"]
        assert board.ended() == 1


def test_an_agent_file_of_another_version_goes_with_the_rest_and_one_that_is_just_starting_stays(tmp_path):
    with Board(tmp_path) as board:
        board.ask("hello")
        old, new = (board.folder / "agents" / name for name in ("old.pyz", "new.pyz"))
        old.touch()
        os.utime(old, (1e9, 1e9))
        new.touch()
        assert not board.ask("bye", keep=False)["removed"]
        assert (new.exists(), old.exists()) == (True, False)
        assert os.listdir(board.folder / "agents") == ["new.pyz"]


def test_a_real_bundle_is_measured_and_its_report_sent(board, make_bundle, exam):
    job = board.send_bundle(make_bundle(exam).path)
    assert board.ask("profile", job=job)["tell"] == "done", board.heard
    file = next(message for message in board.heard if message["tell"] == "file")
    report = Report.from_json(json.loads(file["data"]))
    assert report.verdict == "passed"
    assert report.bundle["model_sha256"] == job["bundle"]["files"]["model.onnx"]
    assert [run.batch for run in report.latency] == [1]
    assert any(line.startswith("latency") for line in board.lines())
    assert board.ask("bye", keep=False)["removed"]
    assert not (board.cache / "tinkit").exists()
