"""Taps: where timm says, in one pass, without a change to the features; and how two networks' taps are paired."""

import pytest
import timm
import torch
from method_parts import pair
from torch import nn

from tinkit.errors import TinkitError
from tinkit.host.features import backbone_features
from tinkit.host.student import build_student
from tinkit.host.taps import match_taps, side_of, tap_indices, tapped_features


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "mobilenetv3_small_050"])
def test_taps_come_in_the_same_pass_and_leave_the_features_as_they_are(name):
    backbone = timm.create_model(name, num_classes=0).eval()
    size = backbone.pretrained_cfg["input_size"][-1]
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        tapped = tapped_features(backbone, images, tap_indices(backbone))
        plain = backbone_features(backbone, images)
    assert torch.equal(tapped.global_BD, plain.global_BD)
    assert torch.equal(tapped.local_BLD, plain.local_BLD)
    taps = side_of(tapped).taps
    assert 3 <= len(taps) <= 5
    assert all(tapped.taps[tap.name].shape == (2, tap.channels, *tap.grid) for tap in taps)
    assert [tap.grid for tap in taps] == sorted((tap.grid for tap in taps), reverse=True)


def test_a_network_without_feature_information_says_what_works():
    with pytest.raises(TinkitError, match="efficientnet"):
        tap_indices(nn.Linear(2, 2))


def test_a_student_s_taps_are_never_deployed():
    student = build_student("test_efficientnet", 32, 8)
    student.tapped = tap_indices(student.backbone)
    assert student.eval()(torch.zeros(1, 3, 32, 32)).taps
    deployed = student.deploy()
    assert deployed.student.tapped == ()
    assert len(deployed(torch.zeros(1, 3, 32, 32))) == 1


def test_taps_are_paired_from_the_deep_end():
    assert [(a.name, b.name) for a, b in match_taps(pair())] == [("s1", "t1"), ("s2", "t2")]
