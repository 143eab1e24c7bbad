"""The mapping keeps angles: exactly where the width allows, and its means and file survive."""

import numpy as np
import pytest
import torch

from tinkit.errors import TinkitError
from tinkit.host.features import Features
from tinkit.host.mapping import GLOBAL, LOCAL, Mapping, MappingSpec, Moments, fit_afterwards


def rows(count, width, rank=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rank = rank or width
    return torch.randn(count, rank, generator=generator) @ torch.randn(rank, width, generator=generator) + 3


def fitted(kind, width, dim, rank=None, center=True, heads=1):
    moments = Moments()
    data = rows(200, width, rank)
    moments.add(Features(data[:100], data[:100, None]))
    moments.add(Features(data[100:], data[100:, None]))
    mapping = Mapping(MappingSpec(kind, center, width, dim, heads, width if heads == 2 else None))
    mapping.fit(moments, seed=0)
    return mapping.eval(), data


@pytest.mark.parametrize("dim", [8, 12])
def test_pca_as_wide_or_wider_is_a_rotation(dim):
    mapping, data = fitted("pca", 8, dim)
    mapped = mapping(Features(data))
    centred = data - data.mean(0)
    torch.testing.assert_close(mapped @ mapped.T, centred @ centred.T, atol=1e-3, rtol=1e-4)


def test_pca_keeps_all_of_a_low_rank_teacher():
    mapping, data = fitted("pca", 16, 4, rank=4)
    centred = data - data.mean(0)
    torch.testing.assert_close(
        mapping(Features(data)) @ mapping(Features(data)).T, centred @ centred.T, atol=5e-3, rtol=1e-3
    )


def test_pca_orders_by_variance_and_is_orthonormal():
    mapping, data = fitted("pca", 8, 5)
    basis = mapping.head[0].basis
    torch.testing.assert_close(basis.T @ basis, torch.eye(5), atol=1e-5, rtol=0)
    variance = mapping(Features(data)).var(0)
    assert (variance[:-1] >= variance[1:] - 1e-4).all()
    top = torch.linalg.eigvalsh(torch.cov(data.T.double(), correction=0)).flip(0)[:5]
    torch.testing.assert_close(mapping(Features(data)).var(0, correction=0).double(), top, rtol=1e-3, atol=1e-3)


def test_centred_target_has_zero_mean_and_uncentred_has_not():
    centred, data = fitted("pca", 8, 5)
    assert centred(Features(data)).mean(0).abs().max() < 1e-3
    plain, _ = fitted("pca", 8, 5, center=False)
    assert plain(Features(data)).mean(0).abs().max() > 0.5


def test_learned_from_pca_starts_at_the_pca_of_the_normed_teacher():
    mapping, data = fitted("learned-pca", 8, 8)
    normed = torch.nn.functional.layer_norm(data, (8,))
    mapped = mapping.raw(data, GLOBAL)
    mapped, normed = mapped - mapped.mean(0), normed - normed.mean(0)
    torch.testing.assert_close(mapped @ mapped.T, normed @ normed.T, atol=1e-3, rtol=1e-3)


def test_running_mean_follows_and_only_for_learned_and_centred():
    mapping = Mapping(MappingSpec("learned", True, 4, 3))
    for _ in range(300):
        mapping.observe(torch.tensor([[1.0, 2.0, 3.0]]), GLOBAL)
        mapping.steps += 1
    torch.testing.assert_close(mapping.mean[GLOBAL], torch.tensor([1.0, 2.0, 3.0]), atol=1e-3, rtol=1e-3)
    assert mapping.mean[LOCAL].abs().sum() == 0
    frozen, _ = fitted("pca", 4, 3)
    before = frozen.mean.clone()
    frozen.observe(torch.ones(5, 3), GLOBAL)
    assert torch.equal(frozen.mean, before)


def test_two_heads_for_a_pooled_teacher():
    mapping, data = fitted("pca", 8, 5, heads=2)
    assert len(mapping.head) == 2
    assert mapping.raw(data, LOCAL).shape == (200, 5)


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(TinkitError, match="learned-pca"):
        Mapping(MappingSpec("pac", True, 4, 3))


def test_a_mapping_fitted_afterwards_finds_a_linear_student_and_refuses_noise():
    generator = np.random.default_rng(0)
    teacher = generator.normal(2, 1, (400, 6))
    weight, offset = generator.normal(size=(6, 3)), generator.normal(size=3)
    mapping, share = fit_afterwards(teacher, teacher @ weight + offset)
    assert share > 0.999
    assert mapping.spec.kind == "fitted"
    mapped = mapping(Features(torch.from_numpy(teacher).float())).numpy()
    np.testing.assert_allclose(mapped, teacher @ weight + offset, atol=0.02)
    assert fit_afterwards(teacher, generator.normal(size=(400, 3))) is None
    assert fit_afterwards(teacher[:5], teacher[:5]) is None  # nothing to check it on


def test_a_fitted_mapping_reads_back_from_its_file():
    mapping, _ = fit_afterwards(np.eye(20, 4) + np.arange(20)[:, None], np.arange(60.0).reshape(20, 3))
    again = Mapping(MappingSpec(**mapping.spec.to_json()))
    again.load_state_dict(mapping.state_dict())
    features = Features(torch.randn(2, 4))
    assert torch.equal(again(features), mapping(features))
