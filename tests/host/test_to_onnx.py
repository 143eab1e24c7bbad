"""The ONNX file is what the target asked for, whatever state the module is in; what the exporter bends is refused."""

import numpy as np
import onnx
import pytest
import torch
from export_parts import DIM, ROOT, SIZE, target

from tinkit.device.runtime import open_runtime
from tinkit.errors import TinkitError
from tinkit.host.to_onnx import check_model, shape_of, student_to_onnx
from tinkit.target import Batch


class Plain(torch.nn.Module):
    """The least that can be exported, with everything that has a state: batch norm and drop-out."""

    output_names = ("embedding",)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.norm = torch.nn.Conv2d(3, DIM, 3, stride=8), torch.nn.BatchNorm2d(DIM)

    def forward(self, images):
        return torch.nn.functional.dropout(self.norm(self.convolution(images)), 0.5, self.training).mean((2, 3))


@pytest.fixture(scope="module")
def deployed():
    return Plain().eval()


@pytest.fixture(scope="module")
def exported(deployed, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    student_to_onnx(deployed, SIZE, target(), path)
    return path


def answers(path, images):
    with open_runtime("onnxruntime", path) as runtime:
        return runtime.run({"image": images})


def images(count):
    return np.random.default_rng(count).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_file_answers_as_the_module_does_at_any_batch(deployed, exported, count):
    with torch.no_grad():
        expected = deployed(torch.from_numpy(images(count))).numpy()
    assert np.abs(answers(exported, images(count))["embedding"] - expected).max() < 1e-4 * np.abs(expected).max()


def test_opset_names_and_free_batch_are_the_targets(exported):
    model = onnx.load(exported)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert [(value.name, shape_of(value)) for value in model.graph.input] == [("image", ["batch", 3, SIZE, SIZE])]
    assert [(value.name, shape_of(value)) for value in model.graph.output] == [("embedding", ["batch", DIM])]
    assert sorted(path.name for path in exported.parent.iterdir()) == ["model.onnx"]  # no weights beside it


def test_nodes_are_named_after_modules_and_no_path_of_this_machine_is_inside(exported):
    names = [node.name for node in onnx.load(exported).graph.node]
    assert "convolution/Conv" in names
    assert len(set(names)) == len(names)
    data = exported.read_bytes()
    for secret in (ROOT.encode(), b"site-packages", b".py", b"tinkit.host", b"stack_trace"):
        assert secret not in data


def test_batch_norms_are_folded(exported):
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(exported).graph.node}


def test_a_module_in_training_compiled_and_channels_last_gives_the_same_file_and_is_left_alone(exported, tmp_path):
    module = Plain()
    module.train().to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    student_to_onnx(torch.compile(module), SIZE, target(), tmp_path / "odd.onnx")
    assert (tmp_path / "odd.onnx").read_bytes() == exported.read_bytes()
    assert module.training
    assert module.convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_batch_that_may_not_vary_is_fixed_in_the_file_and_told(tmp_path):
    notes = student_to_onnx(Plain(), SIZE, target(batch=Batch(3, 3, 3)), tmp_path / "model.onnx")
    assert shape_of(onnx.load(tmp_path / "model.onnx").graph.input[0])[0] == 3
    assert notes == ["the batch is fixed at 3"]
    with pytest.raises(TinkitError, match="does not run"):
        answers(tmp_path / "model.onnx", images(2))


def test_a_student_that_is_not_in_fp32_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bfloat16"):
        student_to_onnx(Plain().bfloat16(), SIZE, target(), tmp_path / "model.onnx")


def test_a_student_that_torch_cannot_export_is_an_error_with_its_cause(tmp_path):
    class Undecided(Plain):
        def forward(self, images):
            return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))

    with pytest.raises(TinkitError, match="cannot export") as caught:
        student_to_onnx(Undecided(), SIZE, target(), tmp_path / "model.onnx")
    assert "data-dependent" in caught.value.seen
    assert not (tmp_path / "model.onnx").exists()


def plant_opset(model):
    model.opset_import[0].version = 21


def plant_domain(model):
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.op_type, node.domain = "FusedConv", "com.microsoft"


def plant_baked_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def plant_name(model):
    model.graph.input[0].name = "pixels"
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == "image" else name for name in node.input]


def plant_broken_shape(model):
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = DIM + 1


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (plant_opset, "another opset"),
        (plant_domain, "not ONNX's own"),
        (plant_baked_batch, "another batch"),
        (plant_name, "other tensors"),
        (plant_broken_shape, "not valid ONNX"),
    ],
)
def test_a_file_that_is_not_what_was_asked_for_is_refused(exported, plant, told):
    model = onnx.load(exported)
    check_model(model, target(), "model.onnx")
    plant(model)
    with pytest.raises(TinkitError, match=told):
        check_model(model, target(), "model.onnx")
