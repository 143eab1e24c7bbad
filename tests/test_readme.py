"""Every command in the README is run, or, where it would install or take minutes, checked against what there is."""

import json
import os
import re
import shlex
import shutil
import sys

import pytest
from product_parts import quick_profile
from small_pair import SMALL, teacher_weights

from tinkit import cli

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def blocks(language):
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as handle:
        return re.findall(rf"```{language}\n(.*?)```", handle.read(), re.DOTALL)


def shell_lines():
    return [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines() if line.strip()]


@pytest.fixture
def workplace(photos, tmp_path, monkeypatch):
    settings = {k: v for k, v in SMALL.items() if k != "quiet"} | {"teacher_weights": teacher_weights(tmp_path)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    lines += ["[profile]", f"device = {json.dumps(quick_profile(tmp_path / 'quick.toml'))}"]
    (tmp_path / "tinkit.toml").write_text("\n".join(["[distill]", *lines, ""]))
    shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_tinkit_command_works_as_written(workplace, capsys):
    ran = 0
    for line in shell_lines():
        if line.startswith("tinkit "):
            with pytest.raises(SystemExit) as ended:
                cli.main(shlex.split(line)[1:])
            finished_already = "--resume" in line and "already finished" in capsys.readouterr().err
            assert ended.value.code == 0 or finished_already, line
            ran += 1
    assert ran >= 10


def test_every_make_target_exists():
    with open(os.path.join(ROOT, "Makefile"), encoding="utf-8") as handle:
        targets = set(re.findall(r"^([a-z-]+):", handle.read(), re.MULTILINE))
    named = {line.split()[1] for line in shell_lines() if line.startswith("make ")}
    assert {"demo", "test", "help"} <= named <= targets


def test_every_extra_exists():
    from importlib.metadata import metadata

    extras = set(metadata("tinkit").get_all("Provides-Extra"))
    for line in shell_lines():
        if line.startswith("pip install"):
            named = re.search(r"tinkit\[([^\]]*)\]", line).group(1).split(",")
            assert set(named) <= extras


def test_the_flags_of_the_other_examples_exist():
    options = (option for command in cli.cli.commands.values() for option in command.params)
    flags = {name for option in options for name in getattr(option, "opts", [])}
    for block in blocks("text"):
        assert set(re.findall(r"--[a-z-]+", block)) <= flags


def test_the_python_example_runs(workplace, monkeypatch, capsys):
    """With the small settings: the example itself leaves everything at its default."""
    import tinkit

    real_distill, real_profile = tinkit.distill, tinkit.profile
    small = {**SMALL, "teacher_weights": str(workplace / "teacher.safetensors")}
    monkeypatch.setattr(tinkit, "distill", lambda images: real_distill(images, **small), raising=False)
    monkeypatch.setattr(
        tinkit, "profile", lambda b, budget: real_profile(b, quick_profile("quick.toml"), budget=budget), raising=False
    )
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - our own README  # noqa: S102 - our own README
    assert "passed passed" in capsys.readouterr().out


def test_the_settings_example_is_valid():
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    from tinkit.budget import check_budget
    from tinkit.host.distill.settings import Settings

    (example,) = blocks("toml")
    values = tomllib.loads(example)
    Settings(images="x", **values["distill"])
    check_budget(values["profile"]["budget"], "README")


def test_every_linked_page_exists():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as handle:
        for link in re.findall(r"\]\(((?!http)[^)]*)\)", handle.read()):
            assert os.path.exists(os.path.join(ROOT, link)), link
