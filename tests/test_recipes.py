"""Recipes: every shipped one loads, a typo is named, a product's own win, and nothing out of range gets in."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tinkit import recipes
from tinkit.errors import TinkitError
from tinkit.recipes import known, load_device, load_target
from tinkit.strict import nearest
from tinkit.target import Batch, Gate, Target

CHECKOUT = Path(__file__).parent.parent
TARGETS = sorted((CHECKOUT / "export").glob("*.toml"))
DEVICES = sorted((CHECKOUT / "profiles").glob("*.toml"))

TARGET = """
schema = "tinkit-target-1"
description = "a product's own"
runtime = "onnxruntime"
precision = "fp32"

[gate.embedding]
min_cosine = 0.9
max_error_share = 0.1
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own(tmp_path):
    """own(text, name) writes a product's own target and gives its path."""

    def write(text=TARGET, name="mine.toml"):
        (tmp_path / "export").mkdir(exist_ok=True)
        path = tmp_path / "export" / name
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.stem)
def test_every_shipped_target_loads_by_name_and_path(path):
    by_name, by_path = load_target(path.stem), load_target(str(path))
    assert by_name.name == by_path.name == path.stem
    assert by_name.gate == by_path.gate
    assert by_name.description
    assert recipes.ignored("target") == []


@pytest.mark.parametrize("path", DEVICES, ids=lambda path: path.stem)
def test_every_shipped_device_loads_by_name_and_path(path):
    device = load_device(path.stem)
    assert device.name == load_device(str(path)).name == path.stem
    assert isinstance(device.batches, tuple)
    assert recipes.ignored("device") == []


def test_known_lists_just_the_shipped_files():
    assert sorted(known("target")) == [path.stem for path in TARGETS]
    assert sorted(known("device")) == [path.stem for path in DEVICES]
    assert TARGETS
    assert DEVICES


@pytest.mark.parametrize("target", [path.stem for path in TARGETS])
def test_target_survives_the_manifest(target):
    loaded = load_target(target)
    assert "path" not in loaded.to_json()  # a bundle does not tell where the exporting machine keeps its files
    assert Target.from_json(json.loads(json.dumps(loaded.to_json()))) == loaded


@pytest.mark.parametrize("device", [path.stem for path in DEVICES])
def test_device_survives_the_job(device):
    loaded = load_device(device)
    assert recipes.DeviceProfile.from_json(json.loads(json.dumps(loaded.to_json()))) == loaded


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("max_eror_share", "max_error_share"), ("min_cos", "min_cosine")],
)
def test_a_typo_in_a_gate_names_the_key_and_the_nearest(own, wrong, right):
    path = own(TARGET.replace(right, wrong))
    with pytest.raises(TinkitError) as caught:
        load_target("mine")
    assert caught.value.where == os.path.relpath(path)
    assert caught.value.seen == wrong
    assert right in caught.value.next_step


def test_a_typo_in_a_top_level_key_names_the_nearest(own):
    own("precison = 'fp16'\n" + TARGET)
    with pytest.raises(TinkitError, match="does not know") as caught:
        load_target("mine")
    assert "did you mean precision" in caught.value.next_step


def test_an_unknown_target_lists_the_nearest():
    with pytest.raises(TinkitError) as caught:
        load_target("trt-fp61")
    assert caught.value.seen == "trt-fp61"
    assert "trt-fp16" in caught.value.next_step


def test_a_name_like_nothing_lists_all():
    assert nearest("zzz", ["one", "two"]) == "known: one, two"


def test_a_products_own_recipe_wins_over_the_shipped_one(own):
    own(name="trt-fp16.toml")
    assert load_target("trt-fp16").description == "a product's own"
    assert load_target("trt-fp16").path == os.path.join("export", "trt-fp16.toml")  # which is printed
    assert "onnx-fp32" in known("target")  # the others stay


def test_a_file_without_the_schema_is_ignored_by_name_and_refused_by_path(own):
    path = own("[tool]\nsomething = 'else'\n", "trt-fp16.toml")
    assert load_target("trt-fp16").runtime == "tensorrt"
    assert recipes.ignored("target") == [os.path.join("export", "trt-fp16.toml")]
    with pytest.raises(TinkitError, match="no tinkit schema"):
        load_target(path)


def test_a_file_that_is_no_toml_says_so(own):
    path = own("this is = = no toml")
    assert "mine" not in known("target")
    with pytest.raises(TinkitError, match="cannot be read"):
        load_target(path)


def test_a_value_with_a_slash_or_an_ending_is_a_path(own):
    shutil.copy(own(), "here.toml")
    assert load_target("here.toml").name == "here"
    assert load_target("./here.toml").name == "here"
    for missing in ("trt-fp16.toml", "export/nothing", "./trt-fp16"):
        with pytest.raises(TinkitError, match="There is no target file here"):
            load_target(missing)


def test_a_device_is_no_target():
    with pytest.raises(TinkitError, match="no tinkit schema"):
        load_target(str(DEVICES[0]))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('precision = "fp32"', 'precision = "fp8"', "precision"),
        ('runtime = "onnxruntime"', 'runtime = "tflite"', "runtime"),
        ('precision = "fp32"', 'precision = "fp32"\nio = "float16"', "io"),
        ('precision = "fp32"', 'precision = "fp32"\nopset = 17', "opset"),
        ('precision = "fp32"', 'precision = "fp32"\nopset = 23', "opset"),
        ('precision = "fp32"', 'precision = "fp32"\nopset = "twenty"', "wrong type"),
        ('precision = "fp32"', 'precision = "fp32"\nlocal = true', "local"),
        ('precision = "fp32"', 'precision = "fp32"\nbatch = 8', "wants a table"),
        ('precision = "fp32"', 'precision = "fp32"\nname = "other"', "file's name"),
        ('precision = "fp32"', "", "no precision"),
        ('precision = "fp32"', 'precision = ["fp32"]', "it must be text"),
        ('precision = "fp32"', 'precision = "fp32"\nopset = 20.5', "a whole number"),
        ('precision = "fp32"', 'precision = "fp32"\nlocal = "no"', "true or false"),
        ('precision = "fp32"', 'precision = "fp32"\npixel_gate = "2"', "a number"),
        ("min_cosine = 0.9", "min_cosine = true", "a number"),
        ("min_cosine = 0.9", "min_cosine = 1.1", "min_cosine"),
        ("min_cosine = 0.9", "", "no min_cosine"),
        ("max_error_share = 0.1", "max_error_share = 0", "max_error_share"),
        ("max_error_share = 0.1", "max_error_share = 0.1\n[batch]\nmin = 4\nopt = 2", "batch"),
        ("max_error_share = 0.1", "max_error_share = 0.1\n[batch]\nmin = 0", "batch"),
        ("[gate.embedding]", "[gate.logits]", "embedding"),
    ],
)
def test_what_is_out_of_range_is_refused_with_the_file(own, old, new, said):
    assert old in TARGET
    path = own(TARGET.replace(old, new))
    with pytest.raises(TinkitError) as caught:
        load_target(path)
    assert said in str(caught.value)
    assert caught.value.where == path


@pytest.mark.parametrize("gate", ["5", '"abc"', "[1, 2]"])
def test_a_gate_that_is_no_table_is_refused(own, gate):
    text = TARGET.replace('precision = "fp32"', f'precision = "fp32"\ngate = {gate}')
    with pytest.raises(TinkitError, match="wrong type"):
        load_target(own(text[: text.index("[gate.embedding]")]))


def test_the_limits_themselves_are_allowed():
    assert Gate(1.0, 1e-9).min_cosine == 1.0
    assert Batch(1, 1, 1).max == 1


DEVICE_FAULTS = [
    "threads = 0", "threads = 1.5", "batches = []", "batches = [0]", 'batches = ["one"]', "batches = 8", "min_samples = 199",
    'runtimes = ["gpu"]', "runtimes = []", 'runtimes = "onnxruntime"', "runtimes = [1]", "warmup_s = -1.0",
    'min_seconds = "three"',
    "streams = [0]", "streams = []", "memory_gb = -1", "memory_gb = true", "bandwidth_gb_s = -1", 'boards = "p3767-0003"',
    "boards = [3767]", "targets = [true]", 'unverified = ["gpu.core"]', 'unverified = ["modes.25W"]', "modes = 3",
    "unsupported = true", "sources = []", "sources = { boards = 1 }", "sources = { gpus = 'a data sheet' }",
    "fits = { 6 = 'trt-fp16' }", "fits = { 6 = ['trt-fp16'] }",
]  # fmt: skip
INNER_FAULTS = {  # line -> the key that the message names
    "gpu = 8": "GpuFacts",
    "gpu = { cores = -1 }": "gpu.cores",
    "gpu = { cores = 1.5 }": "cores",
    "gpu = { sm = 8.7 }": "sm",
    "modes = { 25W = { gpu_mhz = -1 } }": "gpu_mhz",
    "modes = { 25W = { gpu_mhz = '918' } }": "gpu_mhz",
    "modes = { 25W = 918 }": "PowerMode",
}


def x86_cpu_with(line):
    """The shipped profile of a plain processor, in board.toml, with this line instead of the one of the same key."""
    lines = (CHECKOUT / "profiles" / "x86-cpu.toml").read_text().splitlines()
    name = line.split()[0]
    Path("board.toml").write_text("\n".join([*(one for one in lines if one.split()[0] != name), line]))


@pytest.mark.parametrize(
    ("fault", "key"), [*((fault, fault.split()[0]) for fault in DEVICE_FAULTS), *INNER_FAULTS.items()]
)
def test_a_device_out_of_range_is_refused(fault, key):
    x86_cpu_with(fault)
    with pytest.raises(TinkitError, match=r"out of range|wrong type|wants a table") as caught:
        load_device("board.toml")
    assert key in caught.value.seen
    assert caught.value.where == "board.toml"


TYPOS = {
    "target = ['onnx-fp32']": ("target", "targets"),
    "gpu = { core = 8 }": ("core", "cores"),
    "modes = { 25W = { gpu_mh = 918 } }": ("gpu_mh", "gpu_mhz"),
    "jetpacks = ['6.2']": ("jetpacks", "jetpack"),
    "budget = 'p95_ms<5'": ("budget", ""),  # none here: budgets are the product's
}


@pytest.mark.parametrize("line", TYPOS)
def test_a_typo_in_a_device_names_the_nearest_key(line):
    wrong, right = TYPOS[line]
    x86_cpu_with(line)
    with pytest.raises(TinkitError, match="does not know") as caught:
        load_device("board.toml")
    assert caught.value.seen == wrong
    assert right in caught.value.next_step


def test_an_old_device_file_is_told_what_to_write_instead():
    text = (CHECKOUT / "profiles" / "x86-cpu.toml").read_text()
    assert 'runtimes = ["onnxruntime"]' in text
    Path("board.toml").write_text(text.replace('runtimes = ["onnxruntime"]', 'runtime = "onnxruntime"'))
    with pytest.raises(TinkitError, match="now `runtimes`") as caught:
        load_device("board.toml")
    assert (caught.value.where, caught.value.seen) == ("board.toml", "runtime = 'onnxruntime'")
    assert caught.value.next_step == 'write runtimes = ["onnxruntime"]'
