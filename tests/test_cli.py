"""The command line: quick help, settings from flag over file over default, errors as messages with exit codes."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from export_parts import ROOT, loud_norm, write_run
from small_parts import PREPROCESSING, small_model, small_target

import tinkit as package
from tinkit import cli as cli_module
from tinkit.bundle import write_bundle
from tinkit.cli import cli
from tinkit.host.export import command as exports
from tinkit.host.export.precision import Plan, write_precision


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout


def test_defaults_in_the_help_are_the_defaults():
    from dataclasses import fields

    from tinkit.host.distill.settings import Settings

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

    monkeypatch.setattr(package, "distill", recorded, raising=False)
    CliRunner().invoke(cli, ["distill", "--epochs", "3"])
    assert (seen["epochs"], seen["batch_size"], seen["images"]) == (3, 9, "pictures")
    assert "views" not in seen


def test_a_budget_that_makes_no_sense(tinkit):
    for budget, said in (("p95_ms", "NAME<LIMIT"), ("p95_sm<5", "p95_ms"), ("p95_ms<-1", "above 0")):
        code, _, text = tinkit("profile", "nowhere", "--budget", budget)
        assert code == 1
        assert said in text


WRONG_TYPES = {
    "export": [
        "heal = 1",
        'heal = "no"',
        "calibration = true",
        "calibration = 3",
        'check-build = "yes"',
        "check_build = 0",
    ],
    "profile": ['require-target-runtime = "yes"', "budget = 5"],
}


@pytest.mark.parametrize(
    ("section", "line"), [(section, line) for section in WRONG_TYPES for line in WRONG_TYPES[section]]
)
def test_a_value_of_the_wrong_type_is_named(tinkit, tmp_path, section, line):
    (tmp_path / "tinkit.toml").write_text(f"[{section}]\n{line}\n")
    code, _, error = tinkit(section, "nowhere")
    assert code == 1
    assert "wrong type" in error
    assert line.partition(" ")[0].replace("-", "_") + " = " in error
    assert "it must be " in error


def test_what_the_file_says_reaches_the_export_and_a_flag_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinkit.toml").write_text('[export]\nheal = false\ncheck-build = true\ncalibration = "here"\n')
    seen = []

    def recorded(run, say, **settings):
        seen.append(settings)
        raise SystemExit(0)

    monkeypatch.setattr(package, "export", recorded, raising=False)
    CliRunner().invoke(cli, ["export"])
    CliRunner().invoke(cli, ["export", "--heal", "--calibration", "there"])
    CliRunner().invoke(cli, ["export", "--no-heal"])
    file = {"heal": False, "check_build": True, "calibration": "here"}
    assert seen == [file, {**file, "heal": True, "calibration": "there"}, file]


@pytest.fixture(scope="module")
def loud(photos, tmp_path_factory):
    """A run whose student overflows in fp16 on real pictures, at its first norm."""
    return write_run(tmp_path_factory.mktemp("loud") / "run", photos, loud_norm, architecture="test_convnext")


@pytest.fixture(scope="module")
def graphs():
    """What torch's exporter wrote for the loud run, by the form of the graph: it takes seconds, and is not the subject."""
    return {}


@pytest.fixture
def export(tinkit, loud, graphs, monkeypatch):
    """export("--target", ...) of the loud run into ./bundle -> as `tinkit`."""
    write = exports.student_to_onnx

    def once(deployed, size, target, path, preprocessing):
        form = (size, target.opset, target.exporter, target.input, target.local)
        if form not in graphs:
            notes = write(deployed, size, target, path, preprocessing)
            graphs[form] = Path(path).read_bytes(), notes
        Path(path).write_bytes(graphs[form][0])
        return list(graphs[form][1])

    monkeypatch.setattr(exports, "student_to_onnx", once)
    return lambda *flags: tinkit("export", loud, "--out", "bundle", *flags)


STEM = "backbone.stem.0/Conv (Conv)"


def test_a_healed_export_is_fine_and_names_the_nodes(export):
    code, out, said = export("--target", "onnx-fp16")
    assert code == 0
    assert re.search(rf"^healed     {re.escape(STEM)}, \d+\.\d\d% of the MACs$", out, re.M)
    assert "suspect" not in out
    assert re.search(r"^passed     precision: 9\d\.\d\d% of the MACs in fp16", out, re.M)
    assert out.splitlines()[-1].startswith("passed: host gate of onnx-fp16")
    assert "heal     fp16: " in said


def test_a_gate_that_cannot_be_healed_ends_with_3_and_the_ranking(export, tmp_path):
    recipe = Path(ROOT, "export", "onnx-fp16.toml").read_text()
    (tmp_path / "strict.toml").write_text(recipe.replace("heal = 0.1", "heal = 0.0"))
    code, out, _ = export("--target", "strict.toml")
    assert code == 3
    assert f"suspect    {STEM}, overflows\n" in out
    assert re.search(r"^suspect    .*, adds a relative error of \d", out, re.M)
    assert not re.search("^healed", out, re.M)
    assert out.splitlines()[-1].startswith("failed: host gate")


def test_without_healing_a_failed_gate_ends_with_3_at_once(export, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("nothing may be ranked or healed")

    monkeypatch.setattr("tinkit.host.export.settle.heal", forbidden)
    code, out, said = export("--target", "onnx-fp16", "--no-heal")
    assert code == 3
    assert re.search(r"^failed     student -> onnx.*first node that is not finite is backbone.stem.0/Conv", out, re.M)
    assert not re.search("^(healed|suspect)", out, re.M)
    assert "heal     " not in said


def test_a_graph_that_is_not_in_the_precision_asked_for_ends_with_3(export, monkeypatch):
    def lazy(fp32, target, plan=None, ranges=None):
        return write_precision(fp32, replace(target, precision="fp32"), Plan())

    monkeypatch.setattr("tinkit.host.export.settle.write_precision", lazy)
    code, out, _ = export("--target", "trt-fp16")
    assert code == 3
    assert re.search(r"^failed     precision: 0\.00% of the MACs in fp16, the floor is 90\.00%", out, re.M)
    assert not re.search(r"^failed     student", out, re.M)  # the answers are right: only the truth finds it


def test_a_runtime_that_is_not_installed_ends_with_4_and_its_command(export, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    code, out, error = export("--target", "openvino-fp16")
    assert code == 4
    assert 'pip install "tinkit[openvino]"' in error
    assert "passed" not in out
    assert not (tmp_path / "bundle").exists()


def test_a_builder_that_is_not_installed_ends_with_4_and_its_command(export, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    code, _, error = export("--target", "trt-fp32", "--check-build")
    assert code == 4
    assert "TensorRT's builder for the host is not installed" in error
    assert "pip install" in error
    assert "Traceback" not in error


def test_a_target_runtime_that_is_required_and_missing_ends_with_4(tinkit, tmp_path, monkeypatch):
    manifest = {"name": "small", "target": small_target(runtime="tensorrt").to_json(), "tensors": {}, "chain": []}
    manifest["preprocessing"] = PREPROCESSING.to_json()
    write_bundle(tmp_path / "bundle", small_model(tmp_path / "small.onnx"), manifest, None)
    monkeypatch.setattr("tinkit.device.profile.find_tensorrt", lambda: None)
    code, out, error = tinkit("profile", "bundle", "--require-target-runtime")
    assert code == 4
    assert "wants tensorrt" in error
    assert "drop --require-target-runtime" in error
    assert "report" not in out
    assert not list(tmp_path.glob("report-*"))


def test_a_pattern_that_the_shell_expanded_is_explained(capsys):
    with pytest.raises(SystemExit) as ended:
        cli_module.main(["distill", "a-0.tar", "a-1.tar"])
    assert ended.value.code == 2
    assert "A pattern of files needs quotes" in capsys.readouterr().err


def test_the_package_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "tinkit", "--version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
