"""The mapping's distance from keeping angles: 0 for what keeps them, hand-worked for what does not, for all kinds of head."""

import json

import numpy as np
import pytest
import torch

from tinkit import fidelity
from tinkit.host.evaluate import orthogonality as module
from tinkit.host.evaluate.orthogonality import linear_part, measures, orthogonality
from tinkit.host.features import Features
from tinkit.host.mapping import FITTED, Mapping, MappingSpec, Moments, fit_afterwards

WIDTH = 12


def rows(count=120, rank=WIDTH, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, rank)) @ generator.normal(size=(rank, WIDTH)) + 2).astype(np.float32)


def mapping_of(kind, dim=5, center=True, head="ln_linear", data=None, **options):
    torch.manual_seed(0)
    mapping = Mapping(MappingSpec(kind, center, WIDTH, dim, head=head, **options))
    moments = Moments()
    moments.add(Features(torch.from_numpy(rows() if data is None else data)))
    mapping.fit(moments, seed=0)
    return mapping.eval()


def with_matrix(matrix_dD):
    """A plain matrix as the mapping."""
    mapping = Mapping(MappingSpec("learned", False, matrix_dD.shape[1], len(matrix_dD), head="linear")).eval()
    with torch.no_grad():
        mapping.head[0].weight.copy_(torch.as_tensor(matrix_dD))
    return mapping


@pytest.mark.parametrize("dim", [5, 12, 20])
def test_a_pca_mapping_keeps_angles_whatever_its_width(dim):
    found = orthogonality(mapping_of("pca", dim), rows())
    assert found["directions"] == found["seen"] == min(dim, WIDTH)
    assert found["distance"] == pytest.approx(0, abs=1e-5)
    assert found["stretch"]["min"] == pytest.approx(1, abs=1e-5)
    assert found["stretch"]["max"] == pytest.approx(1, abs=1e-5)
    if dim >= WIDTH:
        assert found["variance_kept"] == pytest.approx(1, abs=1e-6)
        assert found["cosine_change_centred"]["value"] == pytest.approx(0, abs=1e-4)


def test_a_stretched_mapping_by_hand():
    matrix = np.zeros((3, WIDTH))
    matrix[0, 0], matrix[1, 1], matrix[2, 2] = 3, 2, 1
    found = orthogonality(with_matrix(matrix), rows())
    mean = 14 / 3  # of the squares
    expected = np.linalg.norm(matrix @ matrix.T / mean - np.eye(3))
    assert found["distance"] == pytest.approx(expected, rel=1e-6)
    assert found["distance_rms"] == pytest.approx(expected / 3**0.5, rel=1e-6)
    assert found["stretch"] == {
        "median": pytest.approx(1),
        "min": pytest.approx(0.5),
        "max": pytest.approx(1.5),
        "values": pytest.approx([1.5, 1, 0.5]),
    }


def test_scale_does_not_count_and_shear_does():
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, 4)))[0].T
    assert orthogonality(with_matrix(7 * turned), rows())["distance"] == pytest.approx(0, abs=1e-5)
    sheared = turned.copy()
    sheared[1] = turned[0] + 0.1 * turned[1]
    assert orthogonality(with_matrix(sheared), rows())["distance"] > 1


def test_the_scale_of_a_layernorm_is_folded_in():
    mapping = mapping_of("learned-pca", WIDTH - 1)
    scale = torch.linspace(0.2, 3, WIDTH)
    with torch.no_grad():
        mapping.head[0][0].weight.copy_(scale)
        mapping.head[0][0].bias.copy_(torch.linspace(-1, 1, WIDTH))
    matrix, _ = linear_part(mapping)
    data = torch.from_numpy(rows(7))
    deviation = (data.var(1, correction=0, keepdim=True) + mapping.head[0][0].eps).sqrt()
    out = mapping.raw(data, 0).detach()
    at_zero = mapping.raw(torch.zeros(1, WIDTH), 0).detach()  # the constant part
    expected = (data / deviation).double().numpy() @ matrix.T
    np.testing.assert_allclose((out - at_zero).numpy(), expected, atol=1e-5)
    assert orthogonality(mapping, rows())["distance"] > 1


def test_behind_a_layernorm_one_direction_cannot_be_seen_and_is_not_counted():
    mapping = mapping_of("learned", 20)
    with torch.no_grad():
        mapping.head[0][1].weight.copy_(torch.linalg.qr(torch.randn(20, WIDTH))[0])
    found = orthogonality(mapping, rows())
    assert found["directions"] == found["seen"] == WIDTH - 1
    assert found["distance"] == pytest.approx(0, abs=1e-5)
    assert found["variance_kept"] == pytest.approx(1, abs=1e-9)


def test_the_variance_that_is_kept_is_that_of_the_pca():
    data = rows()
    found = orthogonality(mapping_of("pca", 3, data=data), data)
    values = np.sort(np.linalg.eigvalsh(np.cov(data.T.astype(np.float64))))[::-1]
    assert found["variance_kept"] == pytest.approx(values[:3].sum() / values.sum(), rel=1e-5)
    low_rank = rows(rank=3)
    assert orthogonality(mapping_of("pca", 3, data=low_rank), low_rank)["variance_kept"] == pytest.approx(1, abs=1e-6)
    assert orthogonality(mapping_of("pca", 3, data=data), low_rank)["variance_kept"] < 0.999


def test_a_direction_that_is_cut_is_not_seen():
    matrix = np.eye(3, WIDTH)
    matrix[2] = matrix[0]
    found = orthogonality(with_matrix(matrix), rows())
    assert (found["directions"], found["seen"]) == (3, 2)
    data = rows().astype(np.float64)
    variance = data.var(axis=0)
    assert found["variance_kept"] == pytest.approx(variance[:2].sum() / variance.sum(), rel=1e-6)


@pytest.mark.parametrize("center", [True, False])
def test_the_change_of_cosines_is_that_of_the_pictures(center):
    mapping, data = mapping_of("pca", 4, center), rows()
    mapped = mapping(Features(torch.from_numpy(data))).numpy()
    found = orthogonality(mapping, data)
    assert found["cosine_change"]["value"] == pytest.approx(fidelity.cosine_difference(mapped, data), abs=1e-5)
    centred = fidelity.cosine_difference(mapped, data - data.mean(axis=0))
    assert found["cosine_change_centred"]["value"] == pytest.approx(centred, abs=1e-5)
    as_wide = orthogonality(mapping_of("pca", WIDTH, center), data)
    kept, changed = ("cosine_change_centred", "cosine_change") if center else ("cosine_change", "cosine_change_centred")
    assert as_wide[kept]["value"] == pytest.approx(0, abs=1e-5)
    assert as_wide[changed]["value"] > 0.1


def test_a_mapping_that_was_fitted_afterwards_says_so():
    teacher = rows()
    mapping, _ = fit_afterwards(teacher, teacher[:, :4] * [1, 2, 3, 4])
    found = orthogonality(mapping, teacher)
    assert found["fitted"]
    assert found["kind"] == FITTED
    np.testing.assert_allclose(found["stretch"]["max"], 1.6, atol=0.01)  # 4 over a mean of 2.5


def test_two_heads_are_judged_by_the_global_one():
    mapping = Mapping(MappingSpec("learned", False, WIDTH, 3, heads=2, local_dim=6, head="linear")).eval()
    with torch.no_grad():
        mapping.head[0].weight.copy_(torch.eye(3, WIDTH))
    assert orthogonality(mapping, rows())["distance"] == pytest.approx(0, abs=1e-9)


def test_many_stretches_are_thinned_and_the_block_is_plain(monkeypatch):
    monkeypatch.setattr(module, "LISTED", 4)
    monkeypatch.setattr(module, "CHUNK", 7)
    found = json.loads(json.dumps(orthogonality(mapping_of("learned"), rows()), allow_nan=False))
    stretches = found["stretch"]["values"]
    assert len(stretches) == 4
    assert (stretches[0], stretches[-1]) == (found["stretch"]["max"], found["stretch"]["min"])
    seen = {measure.name: measure for measure in measures(found)}
    assert set(seen) == {"mapping_distance", "mapping_variance", "mapping_cosine_difference"}
    low, high = seen["mapping_cosine_difference"].interval
    assert low < found["cosine_change"]["value"] < high
    assert seen["mapping_distance"].better == "lower"


def test_a_sample_is_said(monkeypatch):
    monkeypatch.setattr(module, "SAMPLED", 30)
    assert orthogonality(mapping_of("pca"), rows())["pair_pictures"] == 30


def test_memory_maps_are_read(tmp_path):
    np.save(tmp_path / "rows.npy", rows())
    mapping = mapping_of("learned")
    assert orthogonality(mapping, np.load(tmp_path / "rows.npy", mmap_mode="r")) == orthogonality(mapping, rows())


@pytest.mark.parametrize("data", [rows(3), rows()[:, :5]])
def test_rows_of_another_teacher_are_refused(data):
    with pytest.raises(ValueError, match="12 wide"):
        orthogonality(mapping_of("pca"), data)
