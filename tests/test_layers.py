"""Imports go one way, base <- device <- host <- cli, and nothing of torch reaches a board. Python 3.8, numpy 1.17."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tinkit

PACKAGE = Path(tinkit.__file__).parent
MODULES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
BASE = [name for name in MODULES if "/" not in name and name != "__main__.py"]
CLI = [name for name in MODULES if name.startswith("cli/") or name == "__main__.py"]
DEVICE = [name for name in MODULES if name.startswith("device/")]
HOST = [name for name in MODULES if name.startswith("host/")]
BOARD = BASE + DEVICE

HEAVY = ("torch", "torchvision", "timm", "lightning_fabric", "onnx", "onnxscript", "safetensors", "sklearn", "PIL")
TOML = {"strict.py": {"tomllib", "tomli"}}  # read on the host; inside a function, a board gets JSON
ON_BOARD = {"onnxruntime", "tensorrt", "openvino", "PIL"}  # inside functions only

# What numpy gained after 1.17 or lost since, as far as a careless hand would reach for it.
NUMPY_NAMES = {
    "bool", "broadcast_shapes", "sliding_window_view", "ptp", "product", "cumproduct", "in1d", "trapz", "row_stack",
    "float_", "trapezoid", "concat", "astype", "permute_dims", "matrix_transpose", "vecdot", "unique_values", "isdtype",
    "unique_counts", "pow", "acos", "asin", "atan", "atan2", "bitwise_count", "exceptions", "dtypes", "strings",
    "typing", "cumulative_sum", "unstack", "from_dlpack", "matvec", "vecmat",
}  # fmt: skip


def imports_of(tree):
    """(module, inside a function) of every import."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            if node.module == "tinkit":
                yield from ((f"tinkit.{alias.name}", id(node) in inside) for alias in node.names)
            else:
                yield node.module, id(node) in inside


def layer_of(module):
    parts = module.split(".") + [""]
    if parts[0] != "tinkit":
        return "stdlib" if parts[0] in sys.stdlib_module_names else parts[0]
    return parts[1] if parts[1] in ("device", "host", "cli") else "base"


def wrong_imports(names, allowed, allowed_inside=()):
    found = []
    for name in names:
        for module, inside in imports_of(MODULES[name]):
            layer = layer_of(module)
            if layer in TOML.get(name, ()) and inside:
                continue
            if layer not in allowed and not (inside and layer in allowed_inside):
                found.append(f"{name}: {module}")
    return found


def test_base_imports_stdlib_numpy_and_base():
    assert wrong_imports(BASE, {"stdlib", "numpy", "base"}) == []


def test_device_imports_base_and_device_and_third_parties_inside_functions():
    assert wrong_imports(DEVICE, {"stdlib", "numpy", "base", "device"}, ON_BOARD) == []


def test_host_does_not_import_the_command_line():
    assert [name for name in HOST for module, _ in imports_of(MODULES[name]) if layer_of(module) == "cli"] == []


def test_cli_imports_the_work_inside_commands():
    assert wrong_imports(CLI, {"stdlib", "click", "base", "cli"}, {"rich", "device", "host"}) == []


def test_the_walk_sees_a_planted_import():
    planted = ast.parse("from tinkit import host\ndef f():\n    import torch\n    from tinkit.device import board")
    seen = [(layer_of(module), inside) for module, inside in imports_of(planted)]
    assert seen == [("host", False), ("torch", True), ("device", True)]


def test_board_modules_import_where_the_heavy_ones_are_blocked():
    names = ["tinkit." + name[: -len(".py")].replace("/", ".").replace(".__init__", "") for name in BOARD]
    blocked = (*HEAVY, "click", "rich", "tomli", "tomllib", "onnxruntime", "tensorrt", "openvino")
    code = (
        "import sys, importlib\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        f"for name in {[n.replace('tinkit.__init__', 'tinkit') for n in names]!r}: importlib.import_module(name)\n"
        "print('imported')"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "imported", done.stderr


def test_importing_tinkit_brings_nothing():
    code = "import sys, tinkit; dir(tinkit); print(sorted(m for m in sys.modules if 'tinkit' in m or m == 'numpy'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['tinkit']"


def test_board_modules_are_python_3_8():
    def refused(text):
        try:
            ast.parse(text, feature_version=(3, 8))
        except SyntaxError as error:
            return str(error)
        return None

    assert refused("match x:\n    case 1: pass")
    assert {name: why for name in BOARD if (why := refused((PACKAGE / name).read_text()))} == {}


def test_board_modules_use_only_what_python_3_8_brings():
    paths = [str(PACKAGE / name) for name in BOARD]
    flags = ["--quiet", "--no-tips", "--eval-annotations", "--violations", "--target=3.8-", "--exclude", "tomllib"]
    done = subprocess.run(
        [sys.executable, "-c", "import vermin; vermin.main()", *flags, *paths], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_board_modules_use_only_what_numpy_1_17_and_2_both_have():
    found = [
        f"{name}:{node.lineno} np.{node.attr}"
        for name in BOARD
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("np", "numpy")
        and node.attr in NUMPY_NAMES
    ]
    assert found == []


@pytest.mark.parametrize("name", MODULES)
def test_every_module_tells_its_story(name):
    assert ast.get_docstring(MODULES[name])
