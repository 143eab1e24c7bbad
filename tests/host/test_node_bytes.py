"""Bytes of nodes by hand: shapes x items, weights as they are stored, one picture of any batch."""

import numpy as np
import pytest
from graph_parts import graph_model, overflowing, quantised

from tinkit.host.export.graphs import constant_names
from tinkit.host.export.half import to_half
from tinkit.host.export.node_bytes import node_bytes


def small():
    """Conv of 3 to 4 channels on 5 x 7 pixels with what may stand around it."""
    constants = {"w": np.ones((4, 3, 3, 3)), "b": np.ones(4), "m": np.ones((4, 6)), "at": np.array(1, np.int64)}
    nodes = [
        ("Conv", ["image", "w", "b"], "c", {"pads": [1, 1, 1, 1], "name": "conv"}),
        ("Sigmoid", ["c"], "s", {"name": "sigmoid"}),
        ("Mul", ["c", "s"], "silu", {"name": "mul"}),
        ("Add", ["silu", "silu"], "twice", {"name": "twice"}),
        ("GlobalAveragePool", ["twice"], "pool", {"name": "pool"}),
        ("Flatten", ["pool"], "flat", {"name": "flat"}),
        ("MatMul", ["flat", "m"], "embedding", {"name": "product"}),
        ("Gather", ["twice", "at"], "local", {"axis": 2, "name": "gather"}),
    ]
    outputs = {"embedding": ["batch", 6], "local": ["batch", 4, 7]}
    return graph_model(nodes, constants, ["batch", 3, "height", "width"], outputs)


MAP = 4 * 5 * 7 * 4
EXPECTED = {
    "conv": [3 * 5 * 7 * 4 + (4 * 27 + 4) * 4, MAP, (4 * 27 + 4) * 4],
    "sigmoid": [MAP, MAP, 0],
    "mul": [2 * MAP, MAP, 0],
    "twice": [MAP, MAP, 0],  # one tensor, read once
    "pool": [MAP, 16, 0],
    "flat": [16, 16, 0],
    "product": [16 + 4 * 6 * 4, 24, 4 * 6 * 4],
    "gather": [8 + 4 * 7 * 4, 4 * 7 * 4, 8],  # a row of the map, and the index
}


def test_bytes_by_hand():
    assert node_bytes(small(), (5, 7)) == EXPECTED
    assert list(node_bytes(small(), (5, 7))) == list(EXPECTED)


def test_a_fixed_batch_is_divided_out():
    model = small()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    assert node_bytes(model, (5, 7)) == EXPECTED


def test_half_floats_are_half_as_many():
    full, half = node_bytes(small(), (5, 7)), node_bytes(to_half(small(), "fp16")[0], (5, 7))
    for name in ("conv", "sigmoid", "mul", "product"):
        assert half[name] == [count // 2 for count in full[name]], name


@pytest.mark.parametrize("precision", ["", "fp16"])
def test_weights_behind_q_dq_are_int8_and_what_is_the_same_for_every_picture_costs_no_picture_anything(precision):
    model = to_half(quantised(), precision)[0] if precision else quantised()
    found, item = node_bytes(model, 6), 2 if precision else 4
    assert (found["Conv"][2], found["MatMul"][2]) == (8 * 4 * 9 + 8 * item, 8 * 5)  # the Conv has a bias as well
    assert found["Add"] == [2 * 5 * item, 5 * item, 5 * item]
    constants = constant_names(model)
    for node in model.graph.node:
        if node.output[0] in constants:
            assert found[node.name] == [0, 0, 0]
    assert {node.op_type for node in model.graph.node if node.output[0] in constants} >= {"QuantizeLinear"}


def test_a_stored_int8_weight_is_int8_and_a_small_one_is_not_made_larger():
    constants = {"w": np.ones((4, 6), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    nodes = [
        ("DequantizeLinear", ["w", "s", "z"], "v", {"name": "dq"}),
        ("MatMul", ["image", "v"], "embedding", {"name": "p"}),
    ]
    found = node_bytes(graph_model(nodes, constants, ["batch", 4], {"embedding": ["batch", 6]}), 1)
    assert found == {"dq": [0, 0, 0], "p": [16 + 24, 24, 24]}


def test_a_node_without_a_name_is_called_by_its_output():
    model = overflowing()
    named = node_bytes(model, 1)
    model.graph.node[0].name = ""
    found = node_bytes(model, 1)
    assert found[model.graph.node[0].output[0]] == next(iter(named.values()))
    assert "" not in found


@pytest.mark.parametrize("batch", [1, 4])
def test_what_the_board_needs_is_there(batch):
    """The names are those that the board reads from the same file, and the layer's bytes add up."""
    from tinkit.device.onnx_nodes import graph_of
    from tinkit.device.roofline import Peaks, lines

    model = small()
    found, graph = node_bytes(model, (5, 7)), graph_of(model.SerializeToString())
    assert list(found) == [node.name for node in graph.nodes]
    fused = {"layer": "x", "nodes": ["conv", "sigmoid", "mul"], "type": "", "ms": 1.0, "share": 1.0, "note": ""}
    (line,) = lines([fused], {}, found, {}, Peaks({}, 1e9), batch, graph)
    assert line["bytes"] == batch * (3 * 5 * 7 * 4 + MAP) + (4 * 27 + 4) * 4
