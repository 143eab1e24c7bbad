"""The wheel: all of the package, exactly the recipes of the checkout, and nothing else."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from small_pair import SMALL, teacher_weights

import tinkit

CHECKOUT = Path(__file__).parent.parent
RECIPES = {f"{kind}/{path.name}": path for kind in ("export", "profiles") for path in (CHECKOUT / kind).iterdir()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def below(wheel, folder):
    return {name[len(folder) :]: wheel.read(name) for name in wheel.namelist() if name.startswith(folder)}


def test_the_recipes_are_those_of_the_checkout_byte_for_byte(wheel):
    assert len(RECIPES) > 3
    assert below(wheel, "tinkit/_recipes/") == {name: path.read_bytes() for name, path in RECIPES.items()}


def test_the_package_is_whole_and_brings_its_templates(wheel):
    endings = (".py", ".j2", ".mk")
    wanted = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "tinkit").rglob("*") if path.suffix in endings}
    seen = {name for name in wheel.namelist() if name.startswith("tinkit/") and "_recipes" not in name}
    assert seen == wanted
    assert any(name.endswith(".j2") for name in seen)
    assert "tinkit/jetson.mk" in seen


def test_nothing_else_is_inside(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"tinkit", f"tinkit-{tinkit.__version__}.dist-info"}


def test_the_metadata_keep_the_board_light(wheel):
    text = wheel.read(f"tinkit-{tinkit.__version__}.dist-info/METADATA").decode()
    required = [
        line.split(": ", 1)[1] for line in text.splitlines() if line.startswith("Requires-Dist") and "extra" not in line
    ]
    assert sorted(line.split(">")[0] for line in required) == ["click", "numpy", "rich", "tomli"]
    entry_points = wheel.read(f"tinkit-{tinkit.__version__}.dist-info/entry_points.txt").decode()
    assert "tinkit = tinkit.cli:main" in entry_points


def test_the_wheel_alone_finds_its_recipes(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "import tinkit; from tinkit.recipes import known; print(tinkit.__file__)\n"
    code += "print(sorted(known('target')), sorted(known('device')))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    where, found = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path)
    names = [sorted(Path(name).stem for name in RECIPES if name.startswith(kind)) for kind in ("export", "profiles")]
    assert found == f"{names[0]} {names[1]}"


def test_the_wheel_alone_brings_the_recipes_of_make(wheel, tmp_path):
    wheel.extractall(tmp_path)
    command = [sys.executable, "-m", "tinkit.cli"]
    clean = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([*command, "--makefile"], cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    path = Path(done.stdout.removesuffix("\n"))
    assert path.is_relative_to(tmp_path)
    assert path.read_bytes() == (CHECKOUT / "tinkit/jetson.mk").read_bytes()
    dry = ["make", "-n", "-f", str(path), "jetson", "HOST=board", f"TINKIT={' '.join(command)}"]
    done = subprocess.run(dry, cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    assert '--host="$HOST"' in done.stdout


@pytest.mark.slow
def test_the_three_commands_work_from_the_wheel_alone(wheel, photos, tmp_path):
    """In an empty folder, with no checkout in sight, as after `pip install "tinkit[host,cpu]"`."""
    site, place = tmp_path / "site", tmp_path / "product"
    wheel.extractall(site)
    place.mkdir()
    settings = {k: v for k, v in SMALL.items() if k != "quiet"} | {"teacher_weights": teacher_weights(tmp_path)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (place / "tinkit.toml").write_text("\n".join(["[distill]", *lines, ""]))
    for arguments in (["distill", str(photos)], ["export", "--target", "trt-fp16"], ["profile"]):
        command = [sys.executable, "-m", "tinkit.cli", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        if arguments[0] == "export":
            assert str(site / "tinkit" / "_recipes" / "export") in done.stderr
    (page,) = place.glob("runs/*/report-trt-fp16-*/report.html")
    assert page.stat().st_size > 10_000
