"""Features: one meaning of global and local for every kind of backbone, and grids resampled by laws."""

import pytest
import timm
import torch

from tinkit.errors import TinkitError
from tinkit.host.features import as_map, backbone_features, features_of, resample_grid, resample_map

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Backbone:
    """What features_of asks of a timm backbone."""

    def __init__(self, **facts):
        self.__dict__.update(facts)


def network(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=0, **options).eval()


def test_a_cnn_gives_its_map_and_the_mean_of_it():
    backbone = network("test_efficientnet")
    with torch.no_grad():
        seen, out = backbone_features(backbone, IMAGES), backbone.forward_features(IMAGES)
    assert seen.grid == tuple(out.shape[2:])
    torch.testing.assert_close(seen.local_BLD.mean(1), seen.global_BD)
    row, column = 1, 0
    torch.testing.assert_close(seen.local_BLD[:, row * seen.grid[1] + column], out[:, :, row, column])


def test_a_vit_gives_its_class_token_and_its_patches():
    backbone = network("test_vit", img_size=64)
    with torch.no_grad():
        seen, out = backbone_features(backbone, IMAGES), backbone.forward_features(IMAGES)
    torch.testing.assert_close(seen.global_BD, out[:, 0])
    torch.testing.assert_close(seen.local_BLD, out[:, 1:])
    assert seen.grid == (4, 4)


def test_registers_are_neither_global_nor_local():
    out = torch.randn(2, 1 + 4 + 6, 5)
    seen = features_of(out, Backbone(num_prefix_tokens=5, cls_token=torch.zeros(1)), (32, 48))
    assert torch.equal(seen.global_BD, out[:, 0])
    assert torch.equal(seen.local_BLD, out[:, 5:])
    assert seen.grid == (2, 3)  # by the proportions of the picture


@pytest.mark.parametrize("facts", [{}, {"num_prefix_tokens": 0}, {"num_prefix_tokens": 1, "cls_token": None}])
def test_without_a_class_token_the_global_feature_is_the_mean(facts):
    out = torch.randn(2, 9 + facts.get("num_prefix_tokens", 0), 5)
    seen = features_of(out, Backbone(**facts), (48, 48))
    torch.testing.assert_close(seen.global_BD, out[:, -9:].mean(1))


def test_channels_last_maps_are_turned():
    out = torch.randn(2, 4, 3, 7)  # B H W C
    seen = features_of(out, Backbone(output_fmt="NHWC"), (64, 48))
    assert seen.grid == (4, 3)
    torch.testing.assert_close(seen.global_BD, out.mean((1, 2)))
    torch.testing.assert_close(seen.local_BLD, out.reshape(2, 12, 7))


@pytest.mark.parametrize("out", [torch.zeros(2, 5), (torch.zeros(2, 3, 4), torch.zeros(1)), {"x": 1}])
def test_an_output_that_is_neither_map_nor_tokens_is_refused(out):
    with pytest.raises(TinkitError, match="cannot read"):
        features_of(out, Backbone(), (64, 64))


def test_tokens_that_form_no_grid_are_refused():
    with pytest.raises(TinkitError, match="do not form a grid"):
        features_of(torch.zeros(2, 11, 5), Backbone(), (64, 64))


def test_the_same_grid_is_left_alone():
    local = torch.randn(2, 12, 5)
    assert resample_grid(local, (3, 4), (3, 4)) is local


def test_shrinking_is_the_mean_of_the_area():
    local = torch.arange(16.0).reshape(1, 16, 1)
    seen = resample_grid(local, (4, 4), (2, 2))
    assert seen.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


@pytest.mark.parametrize("wanted", [(2, 3), (7, 9), (3, 9), (1, 1)])
def test_a_constant_stays_and_the_shape_is_as_wanted(wanted):
    seen = resample_grid(torch.full((2, 20, 3), 4.0), (4, 5), wanted)
    assert seen.shape == (2, wanted[0] * wanted[1], 3)
    torch.testing.assert_close(seen, torch.full_like(seen, 4.0))


def test_growing_keeps_a_linear_ramp_inside():
    ramp = torch.arange(4.0).repeat(4, 1).reshape(1, 16, 1)  # rises from left to right
    seen = resample_grid(ramp, (4, 4), (8, 8)).reshape(8, 8)
    torch.testing.assert_close(seen[:, 1:-1], (torch.arange(1.0, 7) / 2 - 0.25).repeat(8, 1))


def test_a_map_is_averaged_when_it_shrinks():
    map_BCHW = torch.arange(16.0).view(1, 1, 4, 4)
    assert resample_map(map_BCHW, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resample_map(map_BCHW, (4, 4)) is map_BCHW
    assert resample_map(map_BCHW, (8, 8)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("wanted", [(2, 3), (4, 5), (6, 4)])
def test_maps_and_local_features_follow_one_rule(wanted):
    local = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(1))
    as_maps = resample_map(as_map(local, (4, 5)), wanted)
    assert torch.equal(as_map(resample_grid(local, (4, 5), wanted), wanted), as_maps)


def test_a_map_has_its_rows_where_the_grid_has_them():
    local = torch.arange(12.0).reshape(1, 6, 2)
    assert as_map(local, (2, 3))[0, :, 1, 0].tolist() == local[0, 3].tolist()
