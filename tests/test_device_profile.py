"""Device profiles: peaks by the formula, every fact with a source or marked, and boards found by what they say of themselves."""

import json
from pathlib import Path

import pytest

from tinkit import recipes
from tinkit.device.board import machine as this_machine
from tinkit.device.jetson import JETPACKS, board_facts
from tinkit.device_profile import DeviceProfile, GpuFacts, PowerMode
from tinkit.errors import CannotJudge, TinkitError
from tinkit.recipes import disagreements, known, load_device, load_target, match_device

PROFILES = Path(__file__).parent.parent / "profiles"
DEVICES = {path.stem: load_device(str(path)) for path in sorted(PROFILES.glob("*.toml"))}
TARGETS = {path.stem: load_target(str(path)) for path in (PROFILES.parent / "export").glob("*.toml")}
NAMES = list(DEVICES)
BOARDS = [name for name in NAMES if DEVICES[name].boards]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def facts(**changes):
    """What an Orin Nano 8GB with Super modes says of itself; every key is there, as board_facts promises."""
    told = {"module": "p3767-0003", "model": "NVIDIA Jetson Orin Nano Developer Kit", "soc": "tegra234", "sm": "8.7"}
    told |= {"l4t": "36.4.7", "jetpack": "6.2.1", "memory_mb": 7990, "power_mode": "25W", "gpu_mhz": {"max": 918.0}}
    told |= {"power_modes": {"15W": 0, "25W": 1, "MAXN_SUPER": 2}, "clocks_pinned": True, "compatible": [], "fan": {}}
    return told | changes


def test_every_board_of_the_issue_has_a_profile():
    orins = {"orin-nano-4gb", "orin-nano-8gb", "orin-nx-8gb", "orin-nx-16gb", "agx-orin-32gb", "agx-orin-64gb"}
    others = {"xavier-nx", "agx-thor-t4000", "agx-thor-t5000", "nano", "rtx-desktop"}
    generic = {"x86-cpu", "x86-openvino", "x86-tensorrt", "arm64-cpu", "arm64-tensorrt"}
    assert set(NAMES) == orins | others | generic
    assert set(BOARDS) == (orins | others) - {"rtx-desktop"}
    assert {DEVICES[name].gpu.sm for name in orins} == {"8.7"}


# (profile, mode, rate) -> 10^12 operations a second; sparse figures of data sheets halved. Sources: the check values of
# NVIDIA's data sheets (171, 67, 40 and 20 TOPS sparse int8; 42.6, 26.7, 19.2, 15.0 and 12.5 TFLOPS fp16; Thor's table 2).
CHECKED = {
    ("agx-orin-64gb", "MAXN", "int8"): 171 / 2,
    ("agx-orin-64gb", "MAXN", "fp16"): 42.6,
    ("agx-orin-32gb", "MAXN", "fp16"): 26.7,
    ("orin-nx-16gb", "MAXN_SUPER", "fp16"): 19.2,
    ("orin-nx-16gb", "MAXN", "fp16"): 15.0,
    ("orin-nx-8gb", "MAXN", "fp16"): 12.5,
    ("orin-nano-8gb", "MAXN_SUPER", "int8"): 67 / 2,
    ("orin-nano-8gb", "MAXN_SUPER", "fp16"): 16.7,
    ("orin-nano-8gb", "15W", "int8"): 40 / 2,
    ("orin-nano-4gb", "10W", "int8"): 20 / 2,
    ("orin-nano-4gb", "MAXN_SUPER", "fp16"): 8.4,
    ("agx-thor-t5000", "MAXN", "fp16"): 258,
    ("agx-thor-t5000", "MAXN", "int8"): 517,
    ("nano", "MAXN", "fp16"): 0.47,
    ("rtx-desktop", "", "fp32"): 82.58,
    ("rtx-desktop", "", "fp16"): 330.3,
}


@pytest.mark.parametrize(("name", "mode", "rate"), CHECKED)
def test_peaks_are_those_of_the_data_sheets(name, mode, rate):
    assert DEVICES[name].peak_ops(mode)[rate] / 1e12 == pytest.approx(CHECKED[name, mode, rate], rel=0.01)


@pytest.mark.parametrize("name", [name for name in NAMES if DEVICES[name].gpu.sm == "8.7"])
def test_orin_peaks_follow_the_formula_in_every_mode(name):
    """int8 dense = cores x GHz x 32e-3 TOPS, fp16 half of it, sparse twice; fp32 two operations for each core and cycle."""
    device = DEVICES[name]
    assert device.modes
    for mode, limits in device.modes.items():
        peaks = device.peak_ops(mode)
        cores = limits.cores or device.gpu.cores
        assert peaks["int8"] / 1e12 == pytest.approx(cores * limits.gpu_mhz / 1000 * 32e-3)
        assert peaks["fp16"] == peaks["int8"] / 2
        assert peaks["fp32"] == peaks["int8"] / 16
        assert 0 < limits.gpu_mhz <= 1300.5
        assert cores % 256 == 0  # whole TPCs


def test_sparse_int8_of_2048_cores_at_1300_mhz_is_170_tops():
    gpu = GpuFacts(cores=2048, ops_per_core_cycle_int8=32)
    device = DeviceProfile("d", ("tensorrt",), "aarch64", gpu=gpu, modes={"MAXN": PowerMode(gpu_mhz=1300)})
    assert 2 * device.peak_ops("MAXN")["int8"] / 1e12 == pytest.approx(170, abs=0.5)


def test_a_peak_that_is_not_known_is_left_out():
    assert DEVICES["x86-cpu"].peak_ops() == {}
    assert DEVICES["x86-cpu"].peak_bytes() == 0.0
    assert "int8" not in DEVICES["nano"].peak_ops("MAXN")  # it has no such instruction
    assert DEVICES["orin-nano-8gb"].peak_ops("80W") == {}  # a mode that is not there has no clock
    assert DEVICES["orin-nano-8gb"].peak_ops("") == {}


def test_bandwidth_is_the_modes_own_or_the_boards():
    nano = DEVICES["orin-nano-8gb"]
    assert nano.peak_bytes("15W") == pytest.approx(2 * 2133e6 * 16, rel=0.001)  # both edges of the clock, 128 bit
    assert nano.peak_bytes("25W") == nano.peak_bytes() == pytest.approx(2 * 3199e6 * 16, rel=0.001)
    assert DEVICES["agx-thor-t5000"].peak_bytes("120W") == 273e9


def test_a_mode_is_found_with_and_without_its_prefix():
    agx, nano = DEVICES["agx-orin-64gb"], DEVICES["orin-nano-8gb"]
    assert agx.mode("30W") is agx.mode("MODE_30W") is agx.modes["MODE_30W"]
    assert nano.mode("MODE_25W") is nano.modes["25W"]
    assert nano.mode("50W") is None
    assert agx.peak_ops("50W") == agx.peak_ops("MODE_50W")


def facts_of(value, way=""):
    """Dotted keys of every hardware fact that a profile states."""
    for key, one in value.items():
        if isinstance(one, dict):
            yield from facts_of(one, f"{way}{key}.")
        elif one not in ("", 0, [], 0.0):
            yield way + key


HARDWARE = ("boards", "models", "memory_gb", "bandwidth_gb_s", "rails", "jetpack", "gpu", "modes")


def uncovered(device):
    """Facts with neither a source nor a mark that they are unverified; an entry `modes` is for all below it."""
    plain = device.to_json()
    stated = list(facts_of({key: plain[key] for key in HARDWARE}))
    covered = [*device.sources, *device.unverified]
    return [key for key in stated if not any((key + ".").startswith(entry + ".") for entry in covered)]


@pytest.mark.parametrize("name", NAMES)
def test_every_fact_has_a_source_or_is_marked_unverified(name):
    assert uncovered(DEVICES[name]) == []


def test_a_fact_without_a_source_is_seen():
    device = DeviceProfile(
        "d", ("tensorrt",), "aarch64", memory_gb=8, gpu=GpuFacts(sm="8.7"), sources={"gpu.sm": "here"}
    )
    assert uncovered(device) == ["memory_gb"]


@pytest.mark.parametrize("name", NAMES)
def test_every_target_that_a_profile_names_exists_and_runs_there(name):
    device = DEVICES[name]
    assert bool(device.targets) != bool(device.unsupported)
    for target in device.targets:
        assert TARGETS[target].runtime == device.runtime  # the one that the device is for
        assert any(TARGETS[target].batch.min <= batch <= TARGETS[target].batch.max for batch in device.batches)


@pytest.mark.parametrize("name", BOARDS)
def test_modules_belong_to_one_board_and_jetpacks_are_known(name):
    device = DEVICES[name]
    others = {module for other in BOARDS if other != name for module in DEVICES[other].boards}
    assert not others & set(device.boards)
    assert device.arch == "aarch64"
    assert set(device.jetpack) <= set(JETPACKS.values()) | {"5.1.6", "5.1.7"}  # later 35.6.x: their L4T is not known
    if not device.unsupported:
        assert all(any((jetpack + ".").startswith(entry + ".") for entry in device.fits) for jetpack in device.jetpack)


def test_the_jetpack_decides_which_target_fits():
    orin = DEVICES["orin-nano-8gb"]
    assert orin.fitting_targets("5.1.2") == ("trt85-fp16", "trt85-int8")
    assert orin.fitting_targets("6.0") == ("trt86-fp16", "trt86-int8")
    assert orin.fitting_targets("6.2.1") == ("trt-fp16", "trt-int8", "trt-fp32")
    assert "trt-bf16" in orin.fitting_targets("7.2")
    assert orin.fitting_targets("60.1") == orin.fitting_targets("") == orin.targets


def test_nothing_shipped_has_a_budget():
    for path in PROFILES.glob("*.toml"):
        assert "budget" not in path.read_text()


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_found_by_each_of_its_part_numbers(name):
    for module in DEVICES[name].boards:
        assert match_device(facts(module=module, model="", memory_mb=0), "tensorrt") == name
        assert (
            match_device(facts(module=module, model="NVIDIA Jetson Orin NX"), "tensorrt") == name
        )  # the number decides


BY_MODEL = {
    ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7990): "orin-nano-8gb",
    ("NVIDIA Jetson Orin Nano Developer Kit", 3700): "orin-nano-4gb",
    ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 15650): "orin-nx-16gb",
    ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 7800): "orin-nx-8gb",
    ("NVIDIA Jetson AGX Orin Developer Kit", 65800): "agx-orin-64gb",
    ("NVIDIA Jetson AGX Orin", 32000): "agx-orin-32gb",
    ("NVIDIA Jetson AGX Thor Developer Kit", 131000): "agx-thor-t5000",
    ("NVIDIA Jetson Xavier NX Developer Kit", 15900): "xavier-nx",
    ("NVIDIA Jetson Nano Developer Kit", 4150): "nano",
    ("NVIDIA Jetson Orin Nano", 0): "arm64-tensorrt",  # 4 or 8 GB: not guessed
    ("NVIDIA Jetson Orin Nano", 16000): "arm64-tensorrt",  # none of the two
    ("Jetson-AGX", 31000): "arm64-tensorrt",
}


@pytest.mark.parametrize(("model", "memory_mb"), BY_MODEL)
def test_a_board_without_a_number_is_found_by_model_and_memory(model, memory_mb):
    told = facts(module="", model=model, memory_mb=memory_mb)
    assert match_device(told, "tensorrt") == BY_MODEL[model, memory_mb]


def test_an_unknown_module_is_not_taken_for_another_board():
    told = facts(module="p9999-0001", model="NVIDIA Jetson Orin Nano Developer Kit")
    assert match_device(told, "tensorrt") == "arm64-tensorrt"
    assert match_device(told, "onnxruntime") == "arm64-cpu"


@pytest.mark.parametrize(
    ("runtime", "arch", "name"),
    [
        ("onnxruntime", "x86_64", "x86-cpu"),
        ("openvino", "AMD64", "x86-openvino"),
        ("tensorrt", "x86_64", "x86-tensorrt"),
        ("onnxruntime", "aarch64", "arm64-cpu"),
        ("openvino", "arm64", "arm64-cpu"),  # which has it not, and so can only rehearse
        ("tensorrt", "arm64", "arm64-tensorrt"),
    ],
)
def test_what_is_no_jetson_gets_the_generic_profile(runtime, arch, name):
    assert match_device({}, runtime, arch) == name
    assert DEVICES[name].arch == recipes.ARCHITECTURES.get(arch.lower(), arch)


def test_a_jetson_is_arm64_whatever_this_machine_is_and_runs_onnxruntime_too():
    assert match_device(facts(), "onnxruntime") == "orin-nano-8gb"
    assert match_device(facts(), "onnxruntime", "x86_64") == "orin-nano-8gb"
    assert match_device({"soc": "tegra186"}, "tensorrt", "x86_64") == "arm64-tensorrt"
    assert match_device(facts(), "openvino") == "arm64-cpu"


def test_an_unknown_processor_has_no_profile():
    with pytest.raises(CannotJudge) as caught:
        match_device({}, "onnxruntime", "riscv64")
    assert caught.value.seen == "riscv64"


def test_this_machine_is_found_without_naming_its_processor():
    assert load_device(match_device(board_facts(), "onnxruntime")).arch == this_machine()["arch"]


def test_a_products_own_board_wins(tmp_path):
    (tmp_path / "profiles").mkdir()
    text = (PROFILES / "orin-nano-8gb.toml").read_text()
    (tmp_path / "profiles" / "our-camera.toml").write_text(text)
    assert match_device(facts(), "tensorrt") == "our-camera"
    assert set(known("device")) == {*NAMES, "our-camera"}
    assert match_device(facts(module="p3767-0004"), "tensorrt") == "orin-nano-4gb"


@pytest.mark.parametrize(
    "wrong",
    [
        {"module": 5, "model": None, "soc": [], "memory_mb": "8000"},
        {"module": {}, "model": b"x", "soc": 7, "memory_mb": float("nan")},
        {
            "module": "\x1b[31m",
            "memory_mb": -1,
            "power_modes": [1],
            "gpu_mhz": "fast",
            "power_mode": ["25W"],
            "sm": 8.7,
        },
        {"memory_mb": 1e300, "gpu_mhz": {"max": float("inf")}, "power_modes": {7: 7}, "jetpack": {}, "l4t": 1},
        {"memory_mb": True, "gpu_mhz": {"max": True}},
    ],
)
def test_foreign_facts_of_a_wrong_type_count_as_not_known(wrong):
    assert match_device(wrong, "tensorrt", "aarch64") == "arm64-tensorrt"
    agreed = [what for what, _, _ in disagreements(DEVICES["orin-nano-8gb"], wrong, {"memory_gb": "unknown"})]
    assert agreed == (["module"] if wrong.get("module") == "\x1b[31m" else [])


def test_the_board_that_is_what_its_profile_says_has_no_disagreement():
    machine = {"arch": "aarch64", "memory_gb": 8.0, "cuda_gpus": ["Orin"]}
    assert disagreements(DEVICES["orin-nano-8gb"], facts(), machine) == []
    assert disagreements(DEVICES["arm64-tensorrt"], facts(), machine) == []  # which claims nothing


DIFFERENT = {
    "module": ({"module": "p3767-0004"}, "p3767-0003 or p3767-0005", "p3767-0004"),
    "SM": ({"sm": "7.2"}, "8.7", "7.2"),
    "memory": ({"memory_mb": 3900}, "8 GB", "3.9 GB"),
    "power mode": ({"power_mode": "40W", "gpu_mhz": {}}, "7W, 15W, 25W, MAXN_SUPER", "40W"),
    "power modes on offer": (
        {"power_modes": {"25W": 0, "MAXN_SUPER_JC": 1, "5W": 2}}, "7W, 15W, 25W, MAXN_SUPER", "MAXN_SUPER_JC, 5W",
    ),
    "highest GPU clock in 25W": ({"gpu_mhz": {"max": 624.75}}, "918 MHz", "624.75 MHz"),
}  # fmt: skip


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_disagreement_is_named_with_both_sides(what):
    changes, says, board = DIFFERENT[what]
    assert disagreements(DEVICES["orin-nano-8gb"], facts(**changes)) == [(what, says, board)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"jetpack": "5.0.2"}, "5.0.2"),
        ({"jetpack": "7.0"}, "7.0"),  # Thor's
        ({"jetpack": "", "l4t": "36.9.9"}, "one that is not known, L4T 36.9.9"),
    ],
)
def test_a_jetpack_that_is_not_in_the_list_is_told(changes, told):
    ((what, says, board),) = disagreements(DEVICES["orin-nano-8gb"], facts(**changes))
    assert (what, board) == ("JetPack", told)
    assert "6.2.1" in says


def test_no_jetpack_at_all_is_no_disagreement():
    assert disagreements(DEVICES["orin-nano-8gb"], facts(jetpack="", l4t="")) == []


def test_limits_of_memory_and_clock():
    nano = DEVICES["orin-nano-8gb"]
    for memory_mb, agrees in ((6000, True), (5999, False), (8800, True), (8801, False)):
        assert (disagreements(nano, facts(memory_mb=memory_mb)) == []) is agrees, memory_mb
    for mhz, agrees in ((918 * 0.951, True), (918 * 0.949, False), (918 * 1.049, True), (918 * 1.051, False)):
        assert (disagreements(nano, facts(gpu_mhz={"max": mhz})) == []) is agrees, mhz


def test_another_processor_or_another_card_is_told():
    seen = disagreements(DEVICES["rtx-desktop"], {}, {"arch": "arm64", "cuda_gpus": ["NVIDIA GeForce RTX 3060"]})
    assert seen == [("processor", "x86_64", "aarch64"), ("GPU", "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3060")]
    same = {"arch": "x86_64", "cuda_gpus": ["NVIDIA GeForce RTX 4090"]}
    assert disagreements(DEVICES["rtx-desktop"], {}, same) == []


def test_what_a_board_says_is_shown_without_control_characters_and_not_without_end():
    ((_, _, board),) = disagreements(DEVICES["orin-nano-8gb"], facts(module="\x1b[2J\n" + "p" * 10_000))
    assert board == ("?[2J?" + "p" * 10_000)[:200]


def test_the_original_nano_is_data_only():
    nano = DEVICES["nano"]
    with pytest.raises(CannotJudge, match="does not support") as caught:
        nano.refuse_unsupported()
    assert "Python 3.6" in caught.value.next_step
    assert "TensorRT 8.2" in caught.value.next_step
    for runtime in ("tensorrt", "onnxruntime"):  # nobody may fall back to the generic profile there
        assert match_device(facts(module="p3448-0000", sm="5.3"), runtime) == "nano"
    assert [name for name in NAMES if DEVICES[name].unsupported] == ["nano"]
    DEVICES["orin-nano-8gb"].refuse_unsupported()


def test_the_first_runtime_is_the_one_a_device_is_for():
    device = DeviceProfile("d", ("tensorrt", "onnxruntime"), "aarch64")
    assert device.runtime == "tensorrt"
    assert device.has("onnxruntime")
    assert not device.has("openvino")


def test_plain_data_has_lists_and_comes_back_equal():
    device = DEVICES["orin-nano-8gb"]
    plain = device.to_json()
    assert plain == json.loads(json.dumps(plain))
    assert "path" not in plain
    assert DeviceProfile.from_json(plain) == device
    with pytest.raises(TinkitError, match="does not know"):
        DeviceProfile.from_json(dict(plain, modes={"25W": {"mhz": 918}}))
