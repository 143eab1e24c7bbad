"""The doctor of a board: from one message of the agent's, whatever is in it; a board that is fine has no trouble."""

import copy
import json
from pathlib import Path

import pytest
from board_parts import fake_board
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkit import recipes
from tinkit.device.board import machine
from tinkit.device.hello import hello
from tinkit.device.jetson import board_facts
from tinkit.host.board.doctor import examine_board
from tinkit.host.doctor import MISSING, OK, TROUBLE, Finding

PROFILES = Path(__file__).parents[2] / "profiles"
BOARD = {
    "model": "NVIDIA Jetson Orin Nano Developer Kit", "module": "p3767-0003", "soc": "tegra234", "sm": "8.7", "l4t": "36.4.7",
    "jetpack": "6.2.1", "memory_mb": 7990, "tensorrt": "10.3.0.30", "cuda": "12.6", "power_mode": "25W", "played_back": "",
    "power_modes": {"15W": 0, "25W": 1, "MAXN_SUPER": 2}, "clocks_pinned": True, "gpu_mhz": {"max": 918.0}, "compatible": [],
}  # fmt: skip
HELLO = {
    "tell": "hello", "wire": 1, "tinkit": "0.1", "python": "3.10.12", "numpy": "1.26.4", "board": BOARD,
    "machine": {"arch": "aarch64", "cpu": "Arm", "memory_gb": 8.0, "cuda_gpus": ["Orin"]},
    "runtimes": {"tensorrt": "10.3.0", "onnxruntime": "1.23.0"}, "have": [], "cache": "/home/me/.cache", "free_bytes": 20 * 10**9,
}  # fmt: skip


def examined(board=None, runtimes=None, **changes):
    """Findings by what they are about; the last where there are several."""
    hello = copy.deepcopy(HELLO) | changes
    hello["board"] |= board or {}
    hello["runtimes"] = HELLO["runtimes"] if runtimes is None else runtimes
    return {finding.what: finding for finding in examine_board(hello)}


def test_a_board_that_is_fine_has_no_trouble():
    findings = examine_board(HELLO)
    assert [finding.state for finding in findings] == [OK] * len(findings)
    told = {finding.what: finding.detail for finding in findings}
    assert list(told) == [
        "board", "profile", "python", "numpy", "onnxruntime", "tensorrt", "disk", "memory", "power mode", "clocks", "targets",
    ]  # fmt: skip
    assert told["board"] == (
        "NVIDIA Jetson Orin Nano Developer Kit, module p3767-0003, L4T 36.4.7, JetPack 6.2.1, SM 8.7, CUDA 12.6"
    )
    assert told["profile"].startswith("orin-nano-8gb: ")
    assert "unverified" in told["profile"]
    assert told["power mode"] == "25W; it offers 15W, 25W, MAXN_SUPER"
    assert told["targets"] == "trt-fp16, trt-int8, trt-fp32 (with JetPack 6.2.1)"


def test_the_played_back_board_is_examined_end_to_end(tmp_path):
    root = fake_board(tmp_path / "board")
    facts = board_facts(root)
    hello = HELLO | {"board": facts, "machine": machine(root) | {"arch": "aarch64"}}
    told = {finding.what: finding for finding in examine_board(json.loads(json.dumps(hello)))}
    assert told["profile"].detail.startswith("orin-nano-8gb: ")
    assert told["profile"].state == OK
    assert "played back from " + str(tmp_path) in told["board"].detail
    assert told["power mode"].detail.startswith(facts["power_mode"])


def test_the_onnxruntime_of_pypi_is_found_in_what_an_agent_says(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime_gpu-1.20.0.dist-info").mkdir()
    metadata = tmp_path / "onnxruntime_gpu-1.20.0.dist-info/METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.20.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    told = json.loads(json.dumps(hello(fake_board(tmp_path / "board"))))
    (found,) = (finding for finding in examine_board(told) if finding.what == "onnxruntime")
    assert found.state == TROUBLE
    assert found.detail == "onnxruntime-gpu 1.20.0: the wheel of PyPI has no code for this GPU (sm_87)"
    metadata.unlink()
    metadata.parent.rmdir()
    told = hello(fake_board(tmp_path / "another"))
    (found,) = (finding for finding in examine_board(told) if finding.what == "onnxruntime")
    assert found.state == OK


FOUR_GB = {"module": "p3767-0004", "memory_mb": 4000, "power_modes": {"10W": 0, "25W": 1}, "gpu_mhz": {"max": 1020.0}}
# (what, state, words of it, changes of hello): each the only thing that is not well
NOT_WELL = [
    ("python", TROUBLE, "3.6.9: the agent needs 3.8", {"python": "3.6.9"}),
    ("python", MISSING, "needs 3.8", {"python": ""}),
    ("python", TROUBLE, "soon", {"python": "soon"}),
    ("numpy", MISSING, "needs 1.17", {"numpy": ""}),
    ("numpy", TROUBLE, "1.16.6", {"numpy": "1.16.6"}),
    ("onnxruntime", MISSING, "onnx-* targets", {"runtimes": {"tensorrt": "10.3.0"}}),
    ("onnxruntime", TROUBLE, "no code for this GPU (sm_87)", {"runtimes": {"tensorrt": "10.3.0", "onnxruntime-gpu": "1.31.1"}}),
    ("tensorrt", MISSING, "comes with JetPack", {"runtimes": {"onnxruntime": "1"}, "board": {"tensorrt": ""}}),
    ("tensorrt", TROUBLE, "this Python does not see it", {"runtimes": {"onnxruntime": "1"}}),
    ("tensorrt", TROUBLE, "Python has 10.16.1, the system 10.3.0.30", {"runtimes": {"onnxruntime": "1", "tensorrt": "10.16.1"}}),
    ("disk", TROUBLE, "only 2.0 GB free", {"free_bytes": 2 * 10**9 - 1}),
    ("disk", TROUBLE, "does not tell", {"free_bytes": -1}),
    ("memory", TROUBLE, "building an engine may run out", {"board": FOUR_GB}),
    ("memory", TROUBLE, "does not tell", {"board": {"memory_mb": 0}, "machine": {"arch": "aarch64", "memory_gb": "unknown"}}),
    ("power mode", TROUBLE, "not known; it offers 15W", {"board": {"power_mode": ""}}),
    ("clocks", TROUBLE, "not pinned", {"board": {"clocks_pinned": False}}),
    ("profile", TROUBLE, "memory: orin-nano-8gb says 8 GB, the board says 4.6 GB", {"board": {"memory_mb": 4600}}),
    ("profile", TROUBLE, "SM: orin-nano-8gb says 8.7, the board says 7.2", {"board": {"sm": "7.2"}}),
    ("profile", TROUBLE, "the board says 50W", {"board": {"power_mode": "50W"}}),
    ("profile", TROUBLE, "JetPack: orin-nano-8gb says", {"board": {"jetpack": "5.0.2"}}),
    ("profile", TROUBLE, "highest GPU clock in 25W: orin-nano-8gb says 918 MHz", {"board": {"gpu_mhz": {"max": 612.0}}}),
]  # fmt: skip


@pytest.mark.parametrize(("what", "state", "words", "changes"), NOT_WELL)
def test_what_is_not_well_is_found_and_nothing_else(what, state, words, changes):
    hello = copy.deepcopy(HELLO) | changes
    hello["board"] = BOARD | changes.get("board", {})
    (found,) = (finding for finding in examine_board(hello) if finding.state != OK)
    assert (found.what, found.state) == (what, state)
    assert words in found.detail


def test_the_limits_themselves_are_fine():
    assert examined(python="3.8.0")["python"].state == OK
    assert examined(numpy="1.17.0")["numpy"].state == OK
    assert examined(numpy="2.0")["numpy"].state == OK
    assert examined(free_bytes=2 * 10**9)["disk"].state == OK
    assert examined(board={"memory_mb": 4500})["memory"].state == OK
    assert examined(board={"clocks_pinned": None})["clocks"] == Finding(
        "clocks", OK, "the board does not tell whether they are pinned"
    )


def test_what_is_missing_comes_with_a_command():
    for what in ("numpy", "python"):
        assert examined(**{what: ""})[what].command
    assert "pip install onnxruntime" in examined(runtimes={"tensorrt": "10.3.0"})["onnxruntime"].command
    assert "--system-site-packages" in examined(runtimes={"onnxruntime": "1"})["tensorrt"].command
    assert "clocks" in examined(board={"clocks_pinned": False})["clocks"].command


def test_the_original_nano_is_unsupported_and_gets_no_further_advice():
    nano = {"model": "NVIDIA Jetson Nano Developer Kit", "module": "p3448-0000", "soc": "tegra210", "sm": "5.3"}
    board, profile = examine_board(HELLO | {"python": "3.6.9", "numpy": "", "board": BOARD | nano})
    assert (board.state, profile.state) == (OK, TROUBLE)
    assert profile.detail.startswith("nano is not supported: JetPack 4")


def test_a_machine_that_is_no_jetson_is_not_told_about_jetsons():
    hello = HELLO | {"board": {}, "machine": {"arch": "x86_64", "cpu": "a processor", "memory_gb": 16.0}}
    told = {finding.what: finding for finding in examine_board(hello | {"runtimes": {"onnxruntime": "1.23"}})}
    assert not {"tensorrt", "power mode", "clocks", "targets"} & set(told)
    assert told["profile"].detail.startswith("x86-cpu: ")
    assert told["board"].detail == "a processor"
    with_gpu = {finding.what: finding for finding in examine_board(hello | {"runtimes": {"tensorrt": "10.16"}})}
    assert with_gpu["profile"].detail.startswith("x86-tensorrt: ")
    assert with_gpu["tensorrt"].state == OK


def test_a_processor_without_a_profile_is_said():
    hello = HELLO | {"board": {}, "machine": {"arch": "riscv64"}}
    found = {finding.what: finding for finding in examine_board(hello)}["profile"]
    assert (found.state, found.detail) == (MISSING, "none for the processor riscv64")
    assert "--device" in found.command


def test_what_a_board_says_is_cleaned_before_it_is_shown():
    hello = HELLO | {"python": "3.10\x1b[2J", "board": BOARD | {"model": "\x1b]0;title\x07" + "x" * 5000}}
    for finding in examine_board(hello):
        assert all(text.isprintable() for text in finding)
        assert len(finding.detail) < 1000


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FEW = ("orin-nano-8gb", "nano", "x86-cpu", "x86-tensorrt", "arm64-cpu", "arm64-tensorrt")  # reading them all takes long
KEYS = st.sampled_from(sorted({*HELLO, *BOARD, *HELLO["machine"], "tensorrt", "onnxruntime-gpu"}))


@settings(max_examples=12)
@given(st.dictionaries(KEYS, ANYTHING), st.dictionaries(KEYS, ANYTHING), st.dictionaries(KEYS, ANYTHING))
def test_no_hello_breaks_the_doctor(hello, board, other):
    few = {name: str(PROFILES / f"{name}.toml") for name in FEW}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "known", lambda kind: few)
        for told in (hello, HELLO | {"board": BOARD | board}, HELLO | {"machine": other}, HELLO | {"runtimes": other}):
            for finding in examine_board(told):
                assert finding.state in (OK, MISSING, TROUBLE)
                assert all(isinstance(text, str) and text.isprintable() for text in finding)
