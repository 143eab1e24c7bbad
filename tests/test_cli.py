"""The command line: quick help, settings from flag over file over default, errors as messages with exit codes."""

import os
import re
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from tinkit import cli as cli_module
from tinkit.cli import cli


def process(*arguments, cwd, **environment):
    """(exit code, stdout, stderr) of a real process."""
    done = subprocess.run(
        [sys.executable, "-m", "tinkit.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def tinkit(tmp_path, monkeypatch, capsys):
    """tinkit("export", ...) in an empty folder -> (exit code, stdout, stderr), without a new process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli_module.main(list(arguments))
        return (ended.value.code, *capsys.readouterr())

    return run


def test_help_is_quick(tmp_path):
    took = []
    for _ in range(5):
        began = time.perf_counter()
        code, text, _ = process("--help", cwd=tmp_path)
        took.append(time.perf_counter() - began)
        assert code == 0
    assert "distill" in text
    bare = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import click"], check=True)
        bare.append(time.perf_counter() - began)
    assert min(took) < max(0.2, 2.5 * min(bare))  # 200 ms, or what Python itself allows on a loaded machine


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv=['tinkit','--help']\nfrom tinkit.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    code += "heavy = {'torch','timm','numpy','onnx','rich','onnxruntime'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_defaults_in_the_help_are_the_defaults():
    from dataclasses import fields

    from tinkit.host.settings import Settings

    text = {option.name: option.help or "" for option in cli.commands["distill"].params if hasattr(option, "help")}
    for field in fields(Settings):
        if field.name == "images":
            continue
        assert field.name in text, f"{field.name} has no flag"
        said = re.search(r"\[([^\]]*)\]\s*$", text[field.name])
        if isinstance(field.default, bool) or field.default is None or said is None:
            continue
        value = said.group(1)
        assert value == str(field.default) or float(value) == float(field.default), field.name


def test_a_user_s_mistake_has_no_traceback(tmp_path):
    code, _, text = process("distill", "nowhere", cwd=tmp_path)
    assert code == 1
    assert "missing" in text
    assert "Traceback" not in text


def test_the_debug_switch_shows_the_traceback(tinkit, monkeypatch):
    monkeypatch.setenv("TINKIT_DEBUG", "1")
    code, _, text = tinkit("distill", "nowhere")
    assert code == 1
    assert "Traceback" in text


def test_exit_codes_of_usage_and_nothing_to_do(tinkit):
    assert tinkit("export", "--targt", "x")[0] == 2
    code, _, text = tinkit("export")
    assert code == 1
    assert "tinkit distill" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[distil]\nepochs = 1\n", "distill"),
        ("[distill]\nepoch = 1\n", "epochs"),
        ("[profile]\nbudgett = 1\n", "budget"),
    ],
)
def test_a_typo_in_the_settings_file_is_named(tinkit, tmp_path, text, said):
    (tmp_path / "tinkit.toml").write_text(text)
    command = ("profile", "nowhere") if "profile" in text else ("distill", ".")
    code, _, error = tinkit(*command)
    assert code == 1
    assert "tinkit.toml" in error
    assert said in error


def test_flag_over_file_over_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinkit.toml").write_text('[distill]\nepochs = 7\nbatch-size = 9\nimages = "pictures"\n')
    seen = {}

    def recorded(images, **settings):
        seen.update(settings, images=images)
        raise SystemExit(0)

    monkeypatch.setattr(cli_module.tinkit, "distill", recorded, raising=False)
    CliRunner().invoke(cli, ["distill", "--epochs", "3"])
    assert (seen["epochs"], seen["batch_size"], seen["images"]) == (3, 9, "pictures")
    assert "views" not in seen


def test_a_budget_that_makes_no_sense(tinkit):
    for budget, said in (("p95_ms", "NAME<LIMIT"), ("p59_ms<5", "p95_ms"), ("p95_ms<-1", "above 0")):
        code, _, text = tinkit("profile", "nowhere", "--budget", budget)
        assert code == 1
        assert said in text
