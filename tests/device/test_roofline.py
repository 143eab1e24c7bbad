"""Least times worked out by hand, what a fused layer keeps inside, and peaks that are a board's at its power mode."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkit.device import roofline
from tinkit.device.onnx_nodes import Graph, Node
from tinkit.device.roofline import Peaks, lines, measured_peaks, peaks_of
from tinkit.recipes import load_device

# One 3 x 3 convolution of 16 to 32 channels on 20 x 20 pixels, fp32, and a Relu behind it.
READ, WEIGHTS, WRITTEN = 16 * 20 * 20 * 4, 32 * 16 * 9 * 4, 32 * 20 * 20 * 4
MACS = 32 * 20 * 20 * 16 * 9
NODE_BYTES = {"conv": [READ + WEIGHTS, WRITTEN, WEIGHTS], "relu": [WRITTEN, WRITTEN, 0]}
NODE_MACS = {"conv": MACS}
GRAPH = Graph(
    [Node("conv", "Conv", ("image", "w"), ("t",)), Node("relu", "Relu", ("t",), ("embedding",))], {"w"}, {"embedding"}
)
PRECISIONS = {"conv": "fp32"}
PEAKS = Peaks({"fp32": 1e9, "fp16": 4e9}, 1e6, "planted")


def layer(*nodes, ms=1.0):
    return {"layer": "+".join(nodes), "nodes": list(nodes), "type": "", "ms": ms, "share": 1.0, "note": ""}


def line(*nodes, batch=1, peaks=PEAKS, graph=GRAPH, precisions=PRECISIONS, ms=1.0, macs=NODE_MACS, moved=NODE_BYTES):
    (found,) = lines([layer(*nodes, ms=ms)], macs, moved, precisions, peaks, batch, graph)
    return found


def test_one_node_by_hand():
    """25600 + 18432 + 51200 bytes at 1 MB/s are 95.232 ms; 2 x 1843200 operations at 1 GFLOP/s 3.6864 ms."""
    found = line("conv", ms=190.464)
    assert (found["bytes"], found["macs"]) == (95232, 1843200)
    assert (found["bound"], found["least_ms"]) == ("memory", pytest.approx(95.232))
    assert found["times_the_bound"] == pytest.approx(2)
    assert found["ms"] == 190.464


def test_arithmetic_is_the_bound_where_memory_is_fast():
    fast = Peaks({"fp32": 1e9, "fp16": 4e9}, 1e9)
    assert (line("conv", peaks=fast)["bound"], line("conv", peaks=fast)["least_ms"]) == (
        "arithmetic",
        pytest.approx(3.6864),
    )
    for half in ("fp16", "bf16"):
        assert line("conv", peaks=fast, precisions={"conv": half})["least_ms"] == pytest.approx(3.6864 / 4)


def test_just_beside_the_ridge_the_bound_changes():
    ridge = 2e0 * MACS / 95232  # operations a byte
    assert line("conv", peaks=Peaks({"fp32": 1e6 * ridge * 1.001}, 1e6))["bound"] == "memory"
    assert line("conv", peaks=Peaks({"fp32": 1e6 * ridge * 0.999}, 1e6))["bound"] == "arithmetic"


def test_a_batch_moves_activations_again_and_weights_once():
    found = line("conv", batch=8)
    assert found["bytes"] == 8 * (25600 + 51200) + 18432
    assert found["macs"] == 8 * MACS


def test_what_stays_inside_a_fused_layer_is_not_moved():
    """Conv + Relu in one: the tensor between them is neither written nor read; what goes out is as large."""
    assert line("conv", "relu")["bytes"] == 95232
    assert line("conv", "relu", batch=3)["bytes"] == 3 * (25600 + 51200) + 18432
    assert line("conv", "relu", graph=None)["bytes"] == 95232 + 2 * 51200  # each node by itself


def test_a_tensor_that_somebody_else_reads_is_written_and_one_read_twice_is_moved_once():
    graph = Graph(
        [
            Node("conv", "Conv", ("image", "w"), ("t",)),
            Node("sigmoid", "Sigmoid", ("t",), ("s",)),
            Node("mul", "Mul", ("t", "s"), ("m",)),
            Node("other", "Erf", ("m",), ("e",)),
            Node("late", "Erf", ("t",), ("embedding",)),
        ],
        {"w"},
        {"embedding"},
    )
    moved = {
        "conv": [100, 10, 60],
        "sigmoid": [10, 10, 0],
        "mul": [20, 10, 0],
        "other": [10, 10, 0],
        "late": [10, 10, 0],
    }
    silu = line("sigmoid", "mul", graph=graph, moved=moved)
    assert silu["bytes"] == 10 + 10  # t once, m; s stays inside
    whole = line("conv", "sigmoid", "mul", graph=graph, moved=moved)
    assert whole["bytes"] == 100 + 10 + 10  # image and weights, m, and t for the late one
    outputs = Graph(graph.nodes, {"w"}, {"s"})
    assert line("sigmoid", "mul", graph=outputs, moved=moved)["bytes"] == 10 + 10 + 10  # s goes out as well


def test_a_view_moves_nothing():
    graph = Graph([Node("flat", "Flatten", ("image",), ("embedding",))])
    found = line("flat", graph=graph, moved={"flat": [64, 64, 0]})
    assert (found["bytes"], found["least_ms"], found["bound"], found["times_the_bound"]) == (0, 0, "unknown", None)


def test_what_is_not_known_has_no_bound():
    assert line()["bound"] == line("nobody")["bound"] == "unknown"
    int8 = line("conv", precisions={"conv": "int8"})
    assert (int8["bound"], int8["least_ms"]) == ("unknown", pytest.approx(95.232))  # at least what memory says
    assert line("conv", precisions={})["bound"] == "unknown"
    assert line("relu", precisions={})["bound"] == "memory"  # without products a precision does not matter
    nothing = line("conv", peaks=Peaks())
    assert (nothing["bound"], nothing["least_ms"], nothing["times_the_bound"]) == ("unknown", 0, None)
    no_memory = line("conv", peaks=Peaks({"fp32": 1e9}))
    assert (no_memory["bound"], no_memory["least_ms"]) == ("unknown", pytest.approx(3.6864))


def test_a_node_without_a_precision_has_that_of_its_layer():
    assert line("conv", "relu", precisions={"relu": "fp16"})["bound"] == "memory"


BOARD = {
    "name": "planted",
    "gpu": {"cores": 1024, "ops_per_core_cycle_fp32": 2, "ops_per_core_cycle_fp16": 16, "ops_per_core_cycle_int8": 32},
    "modes": {
        "15W": {"gpu_mhz": 625},
        "25W": {"gpu_mhz": 1020, "bandwidth_gb_s": 102},
        "7W": {"gpu_mhz": 625, "cores": 512},
    },
    "bandwidth_gb_s": 68,
}


def test_peaks_of_a_power_mode_are_the_orin_formula():
    """cores x GHz x 32e-3 TOPS of dense int8, fp16 half of it: 1024 x 0.625 -> 20.48, 1024 x 1.02 -> 33.4 (67 sparse)."""
    slow, fast, least = (peaks_of(BOARD, mode) for mode in ("15W", "25W", "7W"))
    assert slow.ops_per_s == {
        "fp32": pytest.approx(1.28e12),
        "fp16": pytest.approx(10.24e12),
        "int8": pytest.approx(20.48e12),
    }
    assert fast.ops_per_s["int8"] * 2 == pytest.approx(66.8e12, rel=1e-3)
    assert least.ops_per_s["int8"] == pytest.approx(10.24e12)
    assert (slow.bytes_per_s, fast.bytes_per_s) == (68e9, 102e9)
    assert slow.source == "device profile planted: power mode 15W"


@pytest.mark.parametrize(
    ("name", "mode"), [("orin-nano-8gb", "15W"), ("agx-orin-64gb", "MAXN"), ("orin-nx-16gb", "25W")]
)
def test_peaks_of_shipped_profiles(name, mode):
    device = load_device(name).to_json()
    ghz, cores = device["modes"][mode]["gpu_mhz"] / 1e3, device["modes"][mode]["cores"] or device["gpu"]["cores"]
    found = peaks_of(device, mode, measure=False)
    assert found.ops_per_s["int8"] == pytest.approx(cores * ghz * 32e9)
    assert found.ops_per_s["fp16"] == pytest.approx(cores * ghz * 16e9)
    assert found.bytes_per_s == 1e9 * (device["modes"][mode]["bandwidth_gb_s"] or device["bandwidth_gb_s"])


def test_an_unknown_mode_is_the_fastest_and_says_so():
    found = peaks_of(BOARD, "")
    assert found.ops_per_s == peaks_of(BOARD, "25W").ops_per_s
    assert "'' is not in it, so its fastest one" in found.source


def test_a_card_without_modes_has_one_clock():
    card = {"gpu": {"cores": 1000, "mhz": 2000, "ops_per_core_cycle_fp32": 2}, "bandwidth_gb_s": 1000}
    assert peaks_of(card, "") == Peaks({"fp32": 4e12}, 1e12, "device profile without a name: no power modes")


@pytest.mark.parametrize("broken", [{}, {"gpu": None, "modes": []}, {"gpu": {"cores": "many"}, "modes": {"15W": 3}}])
def test_a_profile_without_peaks_is_not_guessed(broken):
    assert peaks_of(broken, "15W", measure=False) == Peaks(source="the device profile has no peak rates")


NUMBER = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
RATES = st.dictionaries(st.sampled_from([*BOARD["gpu"], "mhz"]), NUMBER)
MODES = st.dictionaries(
    st.sampled_from(["15W", "25W"]), st.dictionaries(st.sampled_from(["gpu_mhz", "bandwidth_gb_s", "cores"]), NUMBER)
)


@given(RATES, MODES, NUMBER)
def test_peaks_are_positive_and_finite_or_not_there(gpu, modes, bandwidth):
    found = peaks_of({"gpu": gpu, "modes": modes, "bandwidth_gb_s": bandwidth}, "15W", measure=False)
    assert all(0 < rate <= roofline.LARGEST for rate in found.ops_per_s.values())
    assert 0 <= found.bytes_per_s <= roofline.LARGEST
    assert math.isfinite(line("conv", peaks=found)["least_ms"])


def test_a_processor_is_measured_and_said_so():
    found = peaks_of({"threads": 1}, "")
    assert set(found.ops_per_s) == {"fp32"}
    assert 1e8 < found.ops_per_s["fp32"] < 1e13
    assert 1e8 < found.bytes_per_s < 1e12
    assert "measured here with numpy" in found.source
    assert "1 thread" in found.source


def test_what_cannot_be_measured_is_said(monkeypatch):
    monkeypatch.setattr(roofline.sys, "executable", "/bin/true")
    found = measured_peaks()
    assert (found.ops_per_s, found.bytes_per_s) == ({}, 0)
    assert "could not be measured" in found.source
