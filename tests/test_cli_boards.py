"""The commands around a board: help, exit codes, flags over `tinkit.toml`, and what is refused before a board is reached."""

import json
import re

import pytest
from board_parts import fake_board, ran_as_root
from click.testing import CliRunner
from report_parts import latency, small_bundle, small_report
from sshd_parts import board_bundle

import tinkit as package
from tinkit import cli as cli_module
from tinkit.cli import cli
from tinkit.errors import EXIT_GATE, EXIT_NO_VERDICT, EXIT_USAGE, EXIT_USER
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.host.board.matrix import Matrix

COMMANDS = ("profile", "doctor", "clocks", "compare", "matrix", "report")


@pytest.fixture
def tinkit(tmp_path, monkeypatch, capsys):
    """tinkit("profile", ...) in an empty folder -> (exit code, stdout, stderr), without a new process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli_module.main(list(arguments))
        return (ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(board_bundle(tmp_path_factory.mktemp("bundle")).path)


@pytest.fixture
def reports(tmp_path):
    """reports("a", p95=3.0, **changes of the report) -> the path of a report.json."""

    def make(name, p95=3.0, **changes):
        folder = tmp_path / name
        folder.mkdir()
        run = latency(p95_ms=p95, intervals={"p95_ms": [p95 * 0.99, p95 * 1.01]})
        facts = {"board": {"power_mode": "15W"}, "latency": [run], **changes}
        small_report(folder, small_bundle(folder), **facts)
        return str(folder / "report/report.json")

    return make


@pytest.fixture
def recorded(monkeypatch):
    """The keywords that a function of the package is called with, which then ends."""
    seen = {}

    def record(name):
        def call(*arguments, **settings):
            seen.update(settings, arguments=arguments)
            raise SystemExit(0)

        monkeypatch.setattr(package, name, call, raising=False)
        return seen

    return record


def settings_file(tmp_path, text):
    (tmp_path / "tinkit.toml").write_text(text)


# --- help and usage ---


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_every_option(tinkit, command):
    code, text, _ = tinkit(command, "--help")
    assert code == 0
    options = [name for one in cli.commands[command].params for name in one.opts if name.startswith("--")]
    assert [name for name in options if not re.search(rf"{name}\b", text)] == []
    silent = [one.name for one in cli.commands[command].params if one.param_type_name == "option" and not one.help]
    assert silent == []


def test_every_way_to_a_board_has_the_same_options():
    ways = {"host", "python", "ssh_config", "board_root"}
    for command in ("profile", "doctor", "clocks", "matrix"):
        assert ways <= {one.name for one in cli.commands[command].params}, command
    for command in ("profile", "clocks", "matrix"):
        assert {"wait_s", "allow_state_change"} <= {one.name for one in cli.commands[command].params}, command


@pytest.mark.parametrize(
    "words",
    [("profile", "--bakend", "x"), ("profile", "--backend", "tensorflow"), ("profile", "--wait", "soon"), ("doctor", "x"),
     ("clocks", "x"), ("clocks", "--host", "local", "--restore", "--mode", "15W"), ("compare", "a"), ("compare",), ("matrix",),
     ("matrix", "--host", "local"), ("report", "--junit", "x")],
)  # fmt: skip
def test_a_wrong_command_line_ends_with_2(tinkit, words):
    code, _, text = tinkit(*words)
    assert code == EXIT_USAGE
    assert "Usage" in text


# --- which board ---


@pytest.mark.parametrize("host", ["-oProxyCommand=touch ran", "me@-x", "a b", "$(touch ran)", ""])
@pytest.mark.parametrize(
    "command", [("profile", "nowhere"), ("doctor",), ("clocks",), ("matrix", "nowhere", "--target", "x")]
)
def test_a_host_that_is_none_is_refused_by_every_command(tinkit, tmp_path, command, host, bundle):
    words = ("profile", bundle) if command[0] == "profile" else command
    before = sorted(tmp_path.iterdir())
    code, _, text = tinkit(*words, f"--host={host}")
    assert code == EXIT_USER
    assert "no host to connect to" in text
    settings_file(tmp_path, f"[profile]\nhost = {json.dumps(host)}\n")
    if command[0] != "doctor":  # which is about this machine, unless told on the command line
        code, _, text = tinkit(*words)
        assert code == EXIT_USER
        assert "no host to connect to" in text
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "tinkit.toml"] == before


@pytest.mark.parametrize(
    "flags",
    [("--keep",), ("--fetch-engine", "x"), ("--mode", "15W"), ("--pin-clocks",), ("--allow-state-change",),
     ("--python", "x"), ("--ssh-config", "x"), ("--board-root", "x")],
)  # fmt: skip
def test_what_is_about_a_board_needs_one(tinkit, flags):
    code, _, text = tinkit("profile", "nowhere", *flags)
    assert code == EXIT_USER
    assert "none was named" in text
    assert "--host USER@BOARD" in text


@pytest.mark.parametrize("flags", [("--python", "x"), ("--ssh-config", "x"), ("--board-root", "x")])
@pytest.mark.parametrize("command", [("doctor",), ("matrix", "--target", "onnx-fp32"), ("clocks",)])
def test_how_a_board_is_reached_needs_one_too(tinkit, command, flags):
    code, _, text = tinkit(*command, *flags)
    assert code == EXIT_USER
    assert "--host USER@BOARD" in text


def test_a_board_is_played_back_only_here(tinkit, bundle):
    code, _, text = tinkit("profile", bundle, "--host", "orin", "--board-root", ".")
    assert code == EXIT_USER
    assert "played back only here" in text


# --- flags over the file over defaults ---


def test_flags_over_the_file_over_the_default(tinkit, tmp_path, recorded):
    settings_file(
        tmp_path,
        '[profile]\nhost = "orin"\nssh-config = "there"\nkeep = true\nlayers = false\nwait-s = 5\nmode = "15W"\n'
        'scenarios = ["offline", "single-stream"]\nbackend = "trtexec"\n[profile.budget]\np95_ms = 5\n',
    )
    seen = recorded("profile")
    tinkit("profile")
    wanted = {"host": "orin", "ssh_config": "there", "keep": True, "layers": False, "wait_s": 5, "mode": "15W",
              "scenarios": ("offline", "single-stream"), "backend": "trtexec", "budget": {"p95_ms": 5}}  # fmt: skip
    assert {name: value for name, value in seen.items() if name not in ("say", "arguments")} == wanted
    tinkit(
        "profile", "--host", "other", "--layers", "--wait", "9", "--scenario", "server:rate=5", "--budget", "p99_ms<7"
    )
    changed = {
        "host": "other",
        "layers": True,
        "wait_s": 9.0,
        "scenarios": ("server:rate=5",),
        "budget": {"p99_ms": 7.0},
    }
    assert {name: seen[name] for name in wanted} == {**wanted, **changed}


def test_a_matrix_takes_from_the_file_all_but_what_is_of_one_run(tinkit, tmp_path, recorded):
    settings_file(
        tmp_path,
        '[profile]\nhost = "orin"\npython = "/opt/p"\nkeep = true\nmode = "15W"\nout = "o"\nfetch_engine = "e"\n'
        "[profile.budget]\np95_ms = 7\n",
    )
    seen = recorded("matrix")
    tinkit("matrix", "--target", "t")
    assert (seen["budget"], seen["modes"]) == ({"p95_ms": 7}, ("",))
    tinkit("matrix", "a run", "--target", "t", "--target", "u", "--mode", "7W", "--wait", "9", "--budget", "p95_ms<5")
    assert seen.pop("arguments") == ("a run",)
    del seen["say"]
    assert seen == {
        "host": "orin",
        "python": "/opt/p",
        "keep": True,
        "targets": ("t", "u"),
        "modes": ("7W",),
        "wait_s": 9.0,
        "budget": {"p95_ms": 5.0},
    }


@pytest.mark.parametrize("line", ["allow_state_change = true", "allow-state-change = true"])
@pytest.mark.parametrize("command", [("profile", "nowhere"), ("clocks",), ("matrix", "--target", "x")])
def test_permission_to_change_a_board_is_not_for_a_file(tinkit, tmp_path, line, command):
    settings_file(tmp_path, f'[profile]\nhost = "local"\n{line}\n')
    code, _, text = tinkit(*command)
    assert code == EXIT_USER
    assert "allow_state_change" in text
    assert "tinkit.toml" in text


# --- clocks of a board that is played back ---


@pytest.fixture
def board(tmp_path):
    return fake_board(tmp_path / "board")


def test_clocks_without_permission_change_nothing(tinkit, board, tmp_path):
    def state():
        return {path: path.read_bytes() for path in (tmp_path / "board").rglob("*") if path.is_file()}

    before = state()
    for flags in ((), ("--mode", "25W")):
        code, out, text = tinkit("clocks", "--host", "local", "--board-root", board, "--wait", "300", *flags)
        assert code == EXIT_USER
        assert "--allow-state-change" in text
        assert out == ""
    assert state() == before
    assert ran_as_root(board) == []


def test_clocks_are_pinned_stay_and_are_put_back(tinkit, board):
    where = ("clocks", "--host", "local", "--board-root", board, "--wait", "300")
    code, out, _ = tinkit(*where, "--allow-state-change", "--mode", "15W")
    assert code == 0
    assert re.search(r"^clocks   power mode 15W", out, re.M)
    assert re.search(r"^clocks   clocks pinned by jetson_clocks$", out, re.M)
    assert any(line.startswith("jetson_clocks") for line in ran_as_root(board))
    code, out, _ = tinkit(*where, "--restore")
    assert code == 0
    assert re.search(r"^clocks   clocks are as they were$", out, re.M)
    assert any("--restore" in line for line in ran_as_root(board))


def test_a_mode_that_the_board_does_not_have(tinkit, board):
    code, _, text = tinkit(
        "clocks", "--host", "local", "--board-root", board, "--wait", "300", "--allow-state-change", "--mode", "99W"
    )
    assert code == EXIT_USER
    assert "no power mode of this name" in text
    assert "15W" in text


def test_doctor_of_a_board_is_about_that_board(tinkit, board):
    code, out, _ = tinkit("doctor", "--host", "local", "--board-root", board)
    assert code == 0
    assert "Orin Nano" in out
    assert ran_as_root(board) == []


# --- compare, report, matrix ---


def test_comparing_ends_with_0_3_or_4(tinkit, reports, tmp_path):
    slow, quick = reports("slow", 3.0), reports("quick", 2.0)
    code, out, _ = tinkit("compare", slow, quick, "--fail-if", "p95_ms>+5%", "--junit", "j.xml", "--json", "c.json")
    assert code == 0
    assert out.splitlines()[-1].startswith("passed: ")
    assert "better" in out
    code, out, _ = tinkit("compare", quick, slow, "--fail-if", "p95_ms>+5%", "--junit", "j.xml", "--json", "c.json")
    assert code == EXIT_GATE
    assert json.loads((tmp_path / "c.json").read_text())["verdict"] == FAILED
    assert "<failure" in (tmp_path / "j.xml").read_text()
    code, out, _ = tinkit("compare", quick, slow, "--fail-if", "p95_ms>+5%,energy_mj>+5%")
    assert code == EXIT_GATE  # what failed is worse than what could not be judged
    code, out, _ = tinkit("compare", slow, quick, "--fail-if", "energy_mj>+5%")
    assert code == EXIT_NO_VERDICT
    assert "not in both reports" in " ".join(out.split())
    assert tinkit("compare", quick, slow)[0] == 0


def test_unlike_reports_are_compared_only_when_told(tinkit, reports):
    here, there = reports("here"), reports("there", board={"power_mode": "25W"})
    code, _, text = tinkit("compare", here, there)
    assert code == EXIT_NO_VERDICT
    assert "--allow mode" in text
    code, out, _ = tinkit("compare", here, there, "--allow", "mode")
    assert code == 0
    assert "15W before, 25W after" in out
    assert tinkit("compare", here, there, "--allow", "moon")[0] == EXIT_USER


@pytest.mark.parametrize("rule", ["p95_ms", "p95_ms>5", "p95_sm>+5%"])
def test_a_rule_that_makes_no_sense(tinkit, reports, rule):
    here = reports("here")
    code, _, text = tinkit("compare", here, here, "--fail-if", rule)
    assert code == EXIT_USER
    assert "--fail-if" in text


def test_reports_that_are_not_there(tinkit, reports):
    for words in (("compare", reports("here"), "nowhere"), ("report", "nowhere"), ("report", "nowhere", "elsewhere")):
        code, _, text = tinkit(*words)
        assert code == EXIT_USER
        assert "nowhere" in text


def test_several_reports_are_one_page(tinkit, reports, tmp_path):
    code, out, _ = tinkit("report", reports("one"), reports("two", 2.0), "--out", "pages")
    assert code == 0
    (page,) = (tmp_path / "pages").glob("*.html")
    assert str(page) in out


def test_a_matrix_tells_every_cell_and_ends_with_its_worst(tinkit, reports, monkeypatch):
    from tinkit.host.report.command import load_report

    found = Matrix(
        [load_report(reports("one"))], [("trt-int8", "MAXN_SUPER", "it needs a reboot")], "page.html", EXIT_NO_VERDICT
    )
    monkeypatch.setattr(package, "matrix", lambda *_, **__: found, raising=False)
    result = CliRunner().invoke(cli, ["matrix", "--target", "t"])
    assert result.exit_code == EXIT_NO_VERDICT
    for told in ("15W", PASSED, "MAXN_SUPER", "needs a reboot", "report   page.html"):
        assert told in " ".join(result.output.split()) or told in result.output
    found.page, found.exit_code = "", EXIT_GATE
    result = CliRunner().invoke(cli, ["matrix", "--target", "t"])
    assert result.exit_code == EXIT_GATE
    assert "\nreport " not in result.output
    assert NOT_JUDGED not in result.output
