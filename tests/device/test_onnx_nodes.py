"""ONNX files read without onnx: the same names as onnx reads, constants, and words for every damage."""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_parts import mobile_net, net, weights

from tinkit.device.onnx_nodes import graph_of, read_graph
from tinkit.errors import TinkitError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return mobile_net(tmp_path_factory.mktemp("net") / "net.onnx")


def test_it_reads_what_onnx_reads(path):
    graph, theirs = read_graph(path), onnx.load(path).graph
    assert [tuple(node) for node in graph.nodes] == [
        (node.name, node.op_type, tuple(node.input), tuple(node.output)) for node in theirs.node
    ]
    assert graph.constants == {tensor.name for tensor in theirs.initializer}
    assert graph.outputs == {"embedding"}
    assert graph.writer["t9"].name == "head/product"
    assert [node.name for node in graph.readers["t2"]] == ["dw/conv", "residual"]


def test_constants_are_what_no_picture_changes_and_a_node_without_a_name_has_its_outputs(tmp_path):
    nodes = [
        ("", "Transpose", ["w"], ["turned"]),
        ("constant", "Constant", [], ["two"], {"value_float": 2.0}),
        ("scaled", "Mul", ["turned", "two"], ["small"]),
        ("noise", "RandomNormal", [], ["noise"], {"shape": [4, 4], "dtype": 1}),
        ("product", "MatMul", ["image", "small"], ["p"]),
        ("sum", "Add", ["p", "noise"], ["embedding"]),
    ]
    graph = read_graph(net(tmp_path / "a.onnx", nodes, {"w": weights(4, 4)}, ["batch", 4], {"embedding": ["batch", 4]}))
    assert graph.constants == {"w", "turned", "two", "small"}
    assert graph.nodes[0].name == "turned"


@pytest.mark.parametrize(
    "damage", [b"", b"\x3a", b"\x3a\xff\x01ab", b"\xff" * 20, b"\x08\x08", b"\x3b\x3b", b"\x38\x01"]
)
def test_damage_is_told(tmp_path, damage):
    (tmp_path / "a.onnx").write_bytes(damage)
    with pytest.raises(TinkitError, match="nodes of the model cannot be read"):
        read_graph(tmp_path / "a.onnx")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(TinkitError, match="cannot be read") as error:
        read_graph(tmp_path / "none.onnx")
    assert "none.onnx" in error.value.where


@given(st.data())
def test_any_bytes_are_a_graph_or_a_value_error(path, data):
    with open(path, "rb") as handle:
        good = bytearray(handle.read())
    for _ in range(data.draw(st.integers(0, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(good[: data.draw(st.integers(0, len(good)))])
    for bytes_ in (cut, bytes(good), data.draw(st.binary(max_size=64))):
        try:
            graph_of(bytes_)
        except ValueError:
            continue
