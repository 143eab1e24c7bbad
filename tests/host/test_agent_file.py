"""The agent is the same file wherever it is made, carries base and device code alone, and says kindly what a board lacks."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

import tinkit
from tinkit.host.board import agent_file as module
from tinkit.host.board.agent_file import MAIN, PACKAGE, agent_file

BLOCKED = ("torch", "torchvision", "timm", "lightning_fabric", "onnx", "onnxscript", "safetensors", "sklearn", "PIL",
           "click", "rich", "tomli", "tomllib", "onnxruntime", "tensorrt", "openvino")  # fmt: skip


@pytest.fixture(scope="module")
def archive():
    return zipfile.ZipFile(io.BytesIO(agent_file()[0]))


@pytest.fixture
def agent(tmp_path):
    (tmp_path / "agent.pyz").write_bytes(agent_file()[0])
    return str(tmp_path / "agent.pyz")


def python(code, *arguments):
    """Run code in a Python that finds nothing of this checkout."""
    return subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )


def started_as(agent, planted, *arguments):
    """The zipapp run as `python agent.pyz ARGUMENTS`, with a line of code before it."""
    return python(f"import sys, runpy; sys.argv = sys.argv[1:]; {planted}\n"
                  "runpy.run_path(sys.argv[0], run_name='__main__')", agent, *arguments)  # fmt: skip


def test_equal_sources_give_equal_bytes_whenever_and_wherever(tmp_path, monkeypatch):
    before = agent_file()
    shutil.copytree(PACKAGE, tmp_path / "elsewhere" / "tinkit", ignore=shutil.ignore_patterns("__pycache__"))
    for number, path in enumerate(sorted((tmp_path / "elsewhere").rglob("*"), reverse=True)):
        os.utime(path, (1e9 + number, 1e9 + number))
        path.chmod(0o700)
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "elsewhere" / "tinkit")
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    agent_file.cache_clear()
    assert agent_file() == before
    with open(tmp_path / "elsewhere" / "tinkit" / "errors.py", "a") as handle:
        handle.write("# changed\n")
    agent_file.cache_clear()
    assert agent_file()[1] != before[1]
    agent_file.cache_clear()


def test_it_carries_base_and_device_and_nothing_else(archive):
    names = archive.namelist()
    assert names == sorted(names)
    expected = {f"tinkit/{path.name}" for path in PACKAGE.glob("*.py")} - {"tinkit/__main__.py"}
    expected |= {f"tinkit/device/{path.name}" for path in PACKAGE.glob("device/*.py")}
    assert set(names) == expected | {"__main__.py"}
    assert "tinkit/device/agent.py" in names
    assert not [name for name in names if "host" in name or "cli" in name]
    assert archive.testzip() is None


def test_it_is_small(archive):
    assert len(agent_file()[0]) < 300_000


def test_all_of_it_is_python_3_8(archive):
    parsed = [ast.parse(archive.read(name), feature_version=(3, 8)) for name in archive.namelist()]
    assert len(parsed) > 50


def test_its_start_is_older_python_so_that_it_can_say_what_is_too_old():
    tree = ast.parse(MAIN, feature_version=(3, 4))
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.JoinedStr, ast.NamedExpr, ast.AnnAssign))]


def test_every_module_imports_from_it_where_all_else_is_blocked(agent, archive):
    names = [name[: -len(".py")].replace("/", ".") for name in archive.namelist() if name != "__main__.py"]
    names = [name.removesuffix(".__init__") for name in names]
    done = python(
        f"import sys, importlib\nsys.path.insert(0, {agent!r})\nfor name in {BLOCKED!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"assert all(sys.modules[name].__file__.startswith({agent!r}) for name in {names!r})\nprint('imported')"
    )
    assert done.stdout.strip() == "imported", done.stderr


def test_it_says_its_version(agent):
    done = started_as(agent, "", "--version")
    assert (done.stdout.strip(), done.returncode) == (f"tinkit-agent {tinkit.__version__}", 0)


@pytest.mark.parametrize(
    ("planted", "what", "seen"),
    [
        ("sys.version_info = (3, 6, 9, 'final', 0)", "The Python of this board is too old", "Python 3.6.9"),
        ("sys.modules['numpy'] = None", "numpy is missing", "numpy"),
        ("import types; sys.modules['numpy'] = types.SimpleNamespace(__version__='1.13.3')",
         "The numpy of this board is too old", "numpy 1.13.3"),
    ],
)  # fmt: skip
def test_it_says_kindly_what_the_board_lacks(agent, planted, what, seen):
    done = started_as(agent, planted, "serve")
    told = json.loads(done.stdout)
    assert told["tell"] == "error"
    assert what in told["what"]
    assert seen in told["seen"]
    assert told["next"]
    assert told["where"] == sys.executable
    assert done.returncode == told["exit_code"] == 1
    assert "Traceback" not in done.stderr
    assert what in done.stderr
    assert started_as(agent, planted, "--version").stdout == ""  # frames only for a host


@pytest.mark.parametrize("version", ["1.17", "2.0.0rc1", "1.26.4", "10.0"])
def test_a_newer_numpy_is_taken(agent, version):
    code = MAIN[: MAIN.index("from tinkit")]
    planted = f"import sys, types; sys.modules['numpy'] = types.SimpleNamespace(__version__={version!r})"
    assert python(f"{planted}\nexec({code!r})").returncode == 0
