"""The ONNX file is what the target asked for, whatever state the module is in; what the exporter bends is refused."""

import numpy as np
import onnx
import pytest
import torch
from export_parts import DIM, ROOT, SIZE, target

from tinkit.device.pictures import network_pixels
from tinkit.device.runtime import open_runtime
from tinkit.errors import TinkitError
from tinkit.host.export.input_form import crop_of
from tinkit.host.export.legacy_export import module_of_trace
from tinkit.host.export.to_onnx import check_model, shape_of, student_to_onnx
from tinkit.host.student import build_student
from tinkit.pixels import Preprocessing, normalise
from tinkit.target import Batch, Gate

GATE = Gate(min_cosine=0.9999, max_error_share=1e-3)
PREPROCESSING = Preprocessing(size=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=0.875)


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


def legacy_target(opset, **changes):
    return target(runtime="tensorrt", opset=opset, exporter="legacy", **changes)


@pytest.mark.parametrize("opset", [16, 17])
@pytest.mark.parametrize("architecture", ["test_efficientnet", "test_vit"])
def test_the_legacy_exporter_answers_as_the_module_does_at_any_batch(architecture, opset, tmp_path):
    torch.manual_seed(0)
    student = build_student(architecture, SIZE, DIM).deploy(False)
    student_to_onnx(student, SIZE, legacy_target(opset), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
    assert [(value.name, shape_of(value)) for value in model.graph.output] == [("embedding", ["batch", DIM])]
    for count in (1, 3):
        with torch.no_grad():
            expected = student(torch.from_numpy(images(count)))[0].numpy()
        seen = answers(tmp_path / "model.onnx", images(count))["embedding"]
        assert np.abs(seen - expected).max() < 1e-4 * np.abs(expected).max()
    assert all(getattr(part, "fused_attn", True) for part in student.modules())  # the student itself is left alone


def test_legacy_graphs_have_the_names_of_modules_and_no_noise(tmp_path):
    torch.manual_seed(0)
    student = build_student("test_efficientnet", SIZE, DIM).deploy(False)
    student_to_onnx(student, SIZE, legacy_target(17), tmp_path / "old.onnx")
    student_to_onnx(student, SIZE, target(), tmp_path / "new.onnx")
    old, new = (onnx.load(tmp_path / name).graph for name in ("old.onnx", "new.onnx"))
    assert [node.name for node in old.node] == [node.name for node in new.node]
    assert {"Identity", "Constant", "Shape"}.isdisjoint(node.op_type for node in old.node)
    weights = {name for node in old.node if node.op_type == "Conv" for name in node.input[1:2]}
    assert "student.backbone.conv_stem.weight" in weights
    assert not [name for name in weights if "::" in name]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("/student/conv_stem/Conv", "student.backbone.conv_stem"),
        ("/student/blocks/blocks.0/blocks.0.1/attn/MatMul_1", "student.backbone.blocks.0.1.attn"),
        ("/student/neck/Gemm", "student.neck"),
        ("/student/Shape", "student"),
        ("node_Conv_3", ""),
    ],
)
def test_a_trace_leads_to_its_module(name, module):
    modules = {"student", "student.neck", "student.backbone.conv_stem", "student.backbone.blocks.0.1.attn"}
    assert module_of_trace(name, modules) == module


def test_a_legacy_export_with_a_fixed_batch(tmp_path):
    student_to_onnx(Plain(), SIZE, legacy_target(16, batch=Batch(3, 3, 3)), tmp_path / "model.onnx")
    assert shape_of(onnx.load(tmp_path / "model.onnx").graph.input[0])[0] == 3


def test_a_student_that_the_legacy_exporter_does_not_know_is_an_error_with_its_cause(tmp_path):
    class Strange(Plain):
        def forward(self, images):
            return torch.special.bessel_j0(images).mean((2, 3))

    with pytest.raises(TinkitError, match="cannot export") as caught:
        student_to_onnx(Strange(), SIZE, legacy_target(16), tmp_path / "model.onnx")
    assert "bessel_j0" in caught.value.seen
    assert "opset 16" in caught.value.where
    assert not (tmp_path / "model.onnx").exists()


def pictures(count, height=SIZE, width=SIZE):
    """Smooth uint8 NHWC pictures: what a camera sees, not noise, which no two filters resample alike."""
    rng = np.random.default_rng(count)
    y, x = np.mgrid[0:height, 0:width] / max(height, width) * 6
    waves = [np.sin(a * y + b * x + c) for a, b, c in rng.uniform(0.3, 1.5, (count * 3, 3))]
    return np.uint8(127 + 120 * np.stack(waves).reshape(count, 3, height, width).transpose(0, 2, 3, 1))


@pytest.mark.parametrize("opset", [16, 20])
def test_uint8_pictures_are_normalised_in_the_graph_as_on_the_host(deployed, opset, tmp_path):
    wanted = legacy_target(opset, input="uint8-nhwc") if opset < 18 else target(input="uint8-nhwc")
    student_to_onnx(deployed, SIZE, wanted, tmp_path / "model.onnx", PREPROCESSING)
    model = onnx.load(tmp_path / "model.onnx")
    assert [node.name for node in model.graph.node][:4] == [
        f"normalise/{op}" for op in ("Cast", "Transpose", "Mul", "Add")
    ]
    assert [(value.name, shape_of(value)) for value in model.graph.input] == [("image", ["batch", SIZE, SIZE, 3])]
    for count in (1, 3):
        with torch.no_grad():
            expected = deployed(torch.from_numpy(normalise(pictures(count), PREPROCESSING))).numpy()
        seen = answers(tmp_path / "model.onnx", pictures(count))["embedding"]
        assert np.abs(seen - expected).max() < 1e-4 * np.abs(expected).max()


def test_uint8_pictures_through_a_whole_student(tmp_path):
    torch.manual_seed(0)
    student = build_student("test_efficientnet", SIZE, DIM)
    deployed, preprocessing = student.deploy(False), student.spec.preprocessing
    student_to_onnx(deployed, SIZE, target(input="uint8-nhwc"), tmp_path / "model.onnx", preprocessing)
    with torch.no_grad():
        expected = deployed(torch.from_numpy(normalise(pictures(2), preprocessing)))[0].numpy()
    seen = answers(tmp_path / "model.onnx", pictures(2))["embedding"]
    assert np.abs(seen - expected).max() < 1e-4 * np.abs(expected).max()


def framed(opset=20, frame=(120, 160), **changes):
    gates = {"embedding": GATE, "frame": GATE}
    return target(input="uint8-nhwc", frame=frame, gate=gates, opset=opset, **changes)


def resized(path):
    """What the graph's resize makes of frames: NHWC float, 0..255."""
    model = onnx.load(path)
    model.graph.output.append(onnx.helper.make_tensor_value_info("resize/image", onnx.TensorProto.FLOAT, None))
    onnx.save(model, path)
    return lambda frames: answers(path, frames)["resize/image"].transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("frame", "most"),
    [
        ((128, 160), 2),  # the crop falls on whole pixels: what is left are the filters and Pillow's rounding
        ((120, 160), 9),  # it is off by half a pixel, where these pictures change by up to 14 grey levels a pixel
    ],
)
def test_a_frame_is_cropped_and_resampled_in_the_graph_nearly_as_pillow_does(deployed, frame, most, tmp_path):
    student_to_onnx(deployed, SIZE, framed(frame=frame), tmp_path / "model.onnx", PREPROCESSING)
    assert shape_of(onnx.load(tmp_path / "model.onnx").graph.input[0]) == ["batch", *frame, 3]
    frames = pictures(2, *frame)
    seen = resized(tmp_path / "model.onnx")(frames)
    expected = np.stack([network_pixels(png(one), PREPROCESSING) for one in frames]).astype(np.float32)
    shifted = np.stack([network_pixels(png(np.roll(one, 4, 1)), PREPROCESSING) for one in frames])
    assert seen.shape == (2, SIZE, SIZE, 3)
    assert np.abs(seen - expected).max() < most
    assert np.abs(seen - shifted).max() > 2 * most  # a crop in another place would be seen


def png(frame):
    import io

    from PIL import Image

    handle = io.BytesIO()
    Image.fromarray(frame).save(handle, "PNG")
    return handle.getvalue()


@pytest.mark.parametrize(
    ("wanted", "antialias"),
    [
        (framed(), 1),
        (framed(runtime="tensorrt"), 0),
        (framed(16, runtime="tensorrt", exporter="legacy"), 0),
        (framed(17, exporter="legacy"), 0),
    ],
)
def test_a_frame_is_antialiased_where_opset_and_runtime_have_it(deployed, wanted, antialias, tmp_path):
    student_to_onnx(deployed, SIZE, wanted, tmp_path / "model.onnx", PREPROCESSING)
    node = next(node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.name == "resize/Resize")
    assert sum(attribute.i for attribute in node.attribute if attribute.name == "antialias") == antialias


@pytest.mark.parametrize("frame", [(97, 131), (75, 75), (301, 233), (40, 50), (64, 64)])
def test_frames_of_any_size_come_out_at_network_size(deployed, frame, tmp_path):
    student_to_onnx(deployed, SIZE, framed(frame=frame), tmp_path / "model.onnx", PREPROCESSING)
    assert answers(tmp_path / "model.onnx", pictures(1, *frame))["embedding"].shape == (1, DIM)


def test_the_crop_is_the_centred_square_inside_the_frame():
    assert crop_of((120, 160), 1.0) == (0, 20, 120)
    assert crop_of((480, 640), 0.875) == (30, 110, 420)
    for frame in ((97, 131), (301, 233), (33, 33)):
        top, left, side = crop_of(frame, 0.9)
        assert 0 <= top <= frame[0] - side
        assert 0 <= left <= frame[1] - side


def test_a_uint8_input_without_preprocessing_is_a_programmers_error(deployed, tmp_path):
    with pytest.raises(ValueError, match="preprocessing"):
        student_to_onnx(deployed, SIZE, target(input="uint8-nhwc"), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_file_with_another_input_than_the_targets_is_refused(exported):
    with pytest.raises(TinkitError, match="another input"):
        check_model(onnx.load(exported), target(input="uint8-nhwc"), "model.onnx")


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
