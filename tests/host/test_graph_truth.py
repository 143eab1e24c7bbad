"""Precision truth of ONNX graphs: small ones built by hand, true and lying, and what the converter writes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_parts import reduced_target

from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.host.export.graph_truth import graph_truth
from tinkit.host.export.half import to_half

# 8 x 8 pixels: stem 16*3*9*64, block 16*16*64 and head 16*8 multiply-accumulates
MACS = {"stem/Conv": 27648, "block/Conv": 16384, "head/MatMul": 128}
TOTAL = sum(MACS.values())


class Drawn:
    """A graph drawn node by node: image (batch, 3, 8, 8) -> stem/Conv -> block/Conv -> mean -> head/MatMul."""

    def __init__(self, quantised=(), stored=(), via=None):
        """quantised: nodes with Q/DQ on data and weight; stored: nodes whose weight lies as fp16 behind a Cast."""
        self.nodes, self.constants, self.via = [], [], via
        rng = np.random.default_rng(5)
        data = "image"
        for name, kind, shape in (
            ("stem/Conv", "Conv", (16, 3, 3, 3)),
            ("block/Conv", "Conv", (16, 16, 1, 1)),
            ("head/MatMul", "MatMul", (16, 8)),
        ):
            weight = self.constant(f"{name}/weight", rng.normal(size=shape).astype(np.float32))
            if name in stored:
                self.constants[-1] = numpy_helper.from_array(
                    numpy_helper.to_array(self.constants[-1]).astype(np.float16), weight
                )
                weight = self.node("Cast", [weight], f"{weight}/wide", to=TensorProto.FLOAT)
            if kind == "MatMul":
                data = self.node("ReduceMean", [data, self.constant("axes", np.array([2, 3]))], "mean", keepdims=0)
            if name in quantised:
                data, weight = self.quantised(data), self.quantised(weight)
            pads = {"pads": [1] * 4} if shape[-1] == 3 else {}
            data = self.node(
                kind, [data, weight], "embedding" if kind == "MatMul" else f"{name}/out", name=name, **pads
            )

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind, inputs, output, name=None, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name or f"{output}/{kind}", **attributes))
        return output

    def quantised(self, tensor):
        around = [self.constant(f"{tensor}/scale", np.float32(0.05)), self.constant(f"{tensor}/zero", np.int8(0))]
        small = self.node("QuantizeLinear", [tensor, *around], f"{tensor}/q")
        wide = self.node("DequantizeLinear", [small, *around], f"{tensor}/dq")
        return self.node(self.via, [wide], f"{tensor}/via") if self.via else wide

    def model(self):
        shape = {"image": ["batch", 3, 8, 8], "embedding": ["batch", 8]}
        image, embedding = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in shape.items()
        )
        graph = helper.make_graph(self.nodes, "drawn", [image], [embedding], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def test_an_fp32_graph_is_fp32():
    truth = graph_truth(Drawn().model(), reduced_target("fp32"), MACS)
    assert (truth.verdict, truth.macs, truth.layers, truth.weights) == (
        PASSED,
        {"fp32": 1.0},
        {"fp32": 1.0},
        {"fp32": 1.0},
    )
    assert truth.subject == "graph"


def test_macs_are_counted_from_the_graph_where_none_are_given():
    model = Drawn(quantised=["block/Conv"]).model()
    assert graph_truth(model, reduced_target("int8")) == graph_truth(model, reduced_target("int8"), MACS)


def test_a_graph_that_claims_fp16_but_is_fp32_fails():
    truth = graph_truth(Drawn().model(), reduced_target("fp16"), MACS)
    assert truth.verdict == FAILED
    assert "0.00% of the MACs in fp16" in truth.reason
    assert "100.00% fp32" in truth.reason


def test_fp16_weights_behind_casts_are_stored_and_not_computed():
    truth = graph_truth(Drawn(stored=MACS).model(), reduced_target("fp16"), MACS)
    assert (truth.verdict, truth.macs, truth.weights) == (FAILED, {"fp32": 1.0}, {"fp16": 1.0})


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_the_converter_writes_passes_and_is_not_the_other(precision):
    model = Drawn().model()
    model.opset_import[0].version = 22
    half, _ = to_half(model, precision)
    assert graph_truth(half, reduced_target(precision), MACS).verdict == PASSED
    other = {"fp16": "bf16", "bf16": "fp16"}[precision]
    assert graph_truth(half, reduced_target(other), MACS).verdict == FAILED


def test_nodes_kept_in_fp32_count_and_the_floor_decides():
    half, _ = to_half(Drawn().model(), "fp16", keep=["block/Conv"])
    share = 1 - MACS["block/Conv"] / TOTAL
    truth = graph_truth(half, reduced_target("fp16", floor=share), MACS)
    assert truth.macs == pytest.approx({"fp16": share, "fp32": 1 - share})
    assert graph_truth(half, reduced_target("fp16", floor=truth.macs["fp16"]), MACS).verdict == PASSED
    assert graph_truth(half, reduced_target("fp16", floor=truth.macs["fp16"] + 1e-9), MACS).verdict == FAILED


def test_int8_wants_data_and_weight_from_8_bit_values():
    both = Drawn(quantised=MACS).model()
    assert graph_truth(both, reduced_target("int8"), MACS).macs == {"int8": 1.0}
    assert graph_truth(both, reduced_target("int8"), MACS).verdict == PASSED
    dequantised = {node.name: node for node in both.graph.node}
    dequantised["stem/Conv"].input[0] = "image"  # its data is no longer quantised
    truth = graph_truth(both, reduced_target("int8"), MACS)
    assert truth.macs == pytest.approx({"fp32": MACS["stem/Conv"] / TOTAL, "int8": 1 - MACS["stem/Conv"] / TOTAL})
    assert truth.verdict == FAILED


def test_int8_with_fp16_elsewhere():
    mixed, _ = to_half(Drawn(quantised=["stem/Conv"]).model(), "fp16")
    truth = graph_truth(mixed, reduced_target("int8", rest="fp16", floor=0.6), MACS)
    assert set(truth.macs) == {"int8", "fp16"}
    assert truth.verdict == PASSED
    assert graph_truth(mixed, reduced_target("int8", rest="fp16"), MACS).verdict == FAILED


def test_values_that_are_only_moved_stay_int8():
    assert graph_truth(Drawn(quantised=MACS, via="Identity").model(), reduced_target("int8"), MACS).macs == {
        "int8": 1.0
    }
    assert graph_truth(Drawn(quantised=MACS, via="Relu").model(), reduced_target("int8"), MACS).macs == {"fp32": 1.0}


def test_int8_weights_are_told_as_stored():
    model = Drawn(quantised=["stem/Conv"]).model()
    for node in model.graph.node:  # the weight as int8 behind its DequantizeLinear alone
        if node.name == "stem/Conv/weight/dq/DequantizeLinear":
            node.input[0] = "small"
    model.graph.initializer.append(numpy_helper.from_array(np.ones((16, 3, 3, 3), np.int8), "small"))
    truth = graph_truth(model, reduced_target("int8", floor=0.5), MACS)
    assert truth.weights == pytest.approx({"int8": 432 / 816, "fp32": 384 / 816})
    assert truth.verdict == PASSED


def test_a_weakly_typed_graph_is_not_judged_on_the_host():
    plain, weak = Drawn().model(), {"weakly_typed": True, "opset": 17, "exporter": "legacy"}
    truth = graph_truth(plain, reduced_target("fp16", **weak), MACS)
    assert truth.verdict == NOT_JUDGED
    assert truth.reason == "not judged on the host: TensorRT 8 decides at build time"
    truth = graph_truth(Drawn(quantised=MACS).model(), reduced_target("int8", **weak), MACS)
    assert truth.verdict == NOT_JUDGED
    assert "100.00% of the MACs in int8" in truth.reason


def test_openvino_fp16_is_judged_by_what_is_stored():
    asked = reduced_target("fp16", runtime="openvino", compute="bf16")
    truth = graph_truth(Drawn(stored=MACS).model(), asked, MACS)
    assert (truth.verdict, truth.computed, truth.macs) == (PASSED, "bf16", {"fp32": 1.0})
    assert "of the stored weights" in truth.reason
    partly = graph_truth(Drawn(stored=["stem/Conv"]).model(), asked, MACS)
    assert (partly.verdict, partly.weights) == (FAILED, pytest.approx({"fp16": 432 / 816, "fp32": 384 / 816}))
    assert graph_truth(to_half(Drawn().model(), "fp16")[0], asked, MACS).verdict == PASSED


def test_nodes_that_are_not_in_the_graph_are_unknown():
    truth = graph_truth(Drawn().model(), reduced_target("fp32"), dict(MACS, **{"lost/Conv": TOTAL}))
    assert truth.verdict == NOT_JUDGED
    assert truth.macs == {"fp32": 0.5, "unknown": 0.5}
    assert "lost/Conv" in truth.notes[0]


def test_a_free_size_wants_macs():
    model = Drawn().model()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(ValueError, match="node_macs must be given"):
        graph_truth(model, reduced_target("fp32"))
