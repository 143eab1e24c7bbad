"""The student: a neck where it needs one, nothing that takes no part, and the same answers after deployment."""

import subprocess
import sys
import warnings

import pytest
import timm
import torch
from torch import nn

from tinkit.errors import TinkitError
from tinkit.host import student as students
from tinkit.host.listing import REPARAMETERISED
from tinkit.host.student import DEFAULT_DIM, PROVEN, build_student
from tinkit.host.weights import write_weights

CNN, VIT = "test_efficientnet", "test_vit"


def images(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_a_cnn_gets_a_linear_neck_and_a_vit_does_not():
    cnn, vit = build_student(CNN, 64), build_student(VIT)
    assert cnn.neck.out_features == cnn.dim == cnn.spec.dim == DEFAULT_DIM
    assert vit.neck is None
    assert vit.spec.dim is None
    assert vit(images(vit.spec.size)).global_BD.shape == (2, vit.dim)


@pytest.mark.parametrize("name", [CNN, VIT])
def test_dim_sets_the_width_of_both_features(name):
    student = build_student(name, 64, dim=24).eval()
    features = student(images(64))
    assert student.dim == 24
    assert features.global_BD.shape == (2, 24)
    assert features.local_BLD.shape == (2, features.grid[0] * features.grid[1], 24)


def test_the_global_feature_of_a_cnn_is_the_mean_of_its_local_ones():
    features = build_student(CNN, 64).eval()(images(64))
    torch.testing.assert_close(features.local_BLD.mean(1), features.global_BD, atol=1e-5, rtol=1e-5)


def test_the_convolution_behind_the_pooling_is_gone():
    student = build_student("mobilenetv4_conv_small", 64)
    full = timm.create_model("mobilenetv4_conv_small", num_classes=0)
    unused = sum(parameter.numel() for name, parameter in full.named_parameters() if "head" in name)
    assert unused > 1_000_000  # 960 -> 1280 and its norm
    assert sum(p.numel() for p in student.backbone.parameters()) == sum(p.numel() for p in full.parameters()) - unused


@pytest.mark.parametrize("name", [CNN, VIT, "mobilenetv3_small_100", "test_convnext"])
def test_all_parameters_of_a_student_take_part(name):
    student = build_student(name, 64).eval()
    features = student(images(64))
    (features.global_BD.square().sum() + features.local_BLD.square().sum()).backward()
    without = [name for name, parameter in student.named_parameters() if parameter.grad is None]
    assert without == []


def test_a_vit_is_built_for_the_size_wanted():
    student = build_student(VIT, 96)
    assert student.spec.size == student.spec.preprocessing.size == 96
    assert student.eval()(images(96)).grid == (6, 6)


@pytest.mark.parametrize(("name", "size"), [(VIT, 65), ("test_convnext", 8)])
def test_a_size_that_does_not_fit_is_refused(name, size):
    with pytest.raises(TinkitError, match="does not run at this size") as caught:
        build_student(name, size)
    assert "--student-size" in caught.value.next_step


def test_the_preprocessing_is_the_networks_own():
    preprocessing = build_student("efficientnet_lite0").spec.preprocessing
    assert preprocessing.size == 224
    config = timm.get_pretrained_cfg("efficientnet_lite0")
    assert preprocessing.mean == pytest.approx(config.mean)
    assert preprocessing.std == pytest.approx(config.std)


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(TinkitError, match="no model of this name") as caught:
        build_student("mobilenetv4_conv_smal")
    assert "mobilenetv4_conv_small" in caught.value.next_step


def test_start_weights_are_loaded_and_may_bring_a_classifier(tmp_path):
    source = timm.create_model(CNN, num_classes=10)
    write_weights(tmp_path / "a.safetensors", source.state_dict())
    student = build_student(CNN, 64, weights=tmp_path / "a.safetensors")
    assert torch.equal(student.backbone.conv_stem.weight, source.conv_stem.weight)


def test_start_weights_of_another_network_name_the_tensors(tmp_path):
    write_weights(tmp_path / "a.safetensors", timm.create_model("test_resnet", num_classes=0).state_dict())
    with pytest.raises(TinkitError, match="do not fit") as caught:
        build_student(CNN, 64, weights=tmp_path / "a.safetensors")
    assert "missing: conv_stem.weight" in caught.value.seen


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("name", [CNN, VIT, "repghostnet_050"])
def test_what_ships_answers_as_what_was_trained(name, local):
    student = build_student(name, 64, dim=16)
    for _ in range(3):  # batch norms with statistics that matter when branches are folded
        student.train()(images(64, 8))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    deployed = student.deploy(local)
    answers = deployed(images(64))
    assert deployed.output_names == (["embedding", "local"] if local else ["embedding"])
    assert len(answers) == len(deployed.output_names)
    assert student.training  # deploying left the original as it was
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    features = student.eval()(images(64))
    for answer, wanted in zip(answers, (features.global_BD, features.local_BLD)):
        torch.testing.assert_close(answer, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROVEN)
def test_the_list_says_truly_which_students_are_folded(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        student = build_student(name)
    folded = student.deploy().student
    smaller = sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in student.parameters())
    assert smaller == (name in REPARAMETERISED)


@pytest.mark.parametrize("architecture", ["fastvit_t8", "mobileone_s0"])
@pytest.mark.slow
def test_stems_with_strided_1x1_convolutions_train_channels_last(architecture):
    """In a process of its own: without the remedy oneDNN ends it."""
    code = (
        "import torch; from tinkit.host.student import build_student; torch.set_num_threads(1);"
        f"student = build_student({architecture!r}, 64).to(memory_format=torch.channels_last).train();"
        "x = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last);"
        "student(x).global_BD.square().sum().backward();"
        "print(all(p.grad is None or p.grad.isfinite().all() for p in student.parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr[-500:]


def test_thinning_first_is_the_same_convolution():
    torch.manual_seed(0)
    conv, other = nn.Conv2d(3, 5, 1, stride=2), nn.Conv2d(3, 5, 1, stride=2)
    other.load_state_dict(conv.state_dict())
    students._thin_first(other)
    x = torch.randn(2, 3, 9, 9)
    assert other.stride == (1, 1)
    assert torch.equal(conv(x), other(x)) or torch.allclose(conv(x), other(x), atol=1e-7)
    wide = nn.Conv2d(16, 5, 1, stride=2)
    students._thin_first(wide)
    assert wide.stride == (2, 2)
