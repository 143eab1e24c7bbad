"""CMKD, our reconstruction: ranks and weights against golden values and scipy, and memory that stays bounded."""

import numpy as np
import pytest
import torch
from method_parts import pair
from scipy.stats import rankdata, spearmanr
from torch.utils._python_dispatch import TorchDispatchMode

from tinkit.host.distill.pair import Batch
from tinkit.host.features import Features
from tinkit.host.methods.cmkd import CMKD, PIECE, hard_rank, normalised_entropy, soft_rank, zscore
from tinkit.host.methods.dist import pearson

Z_S = torch.tensor([[2, 0.5, -1, 0], [0.1, 1.5, 0.3, -0.7], [-0.5, 0.2, 0.9, 1.1]], dtype=torch.float64)
Z_T = torch.tensor([[3, 1, -2, 0.5], [-1, 2.5, 0, -0.5], [0, -1, 1, 3]], dtype=torch.float64)


def golden(student_BC=Z_S, teacher_BC=Z_T):
    student, teacher = (Features(z, logits_BC=z) for z in (student_BC, teacher_BC))
    return Batch(student, teacher, torch.arange(len(student_BC)), 0, 0)


def close(tensor, values, abs=1e-8):
    return tensor.tolist() == pytest.approx(list(values), abs=abs)


def test_spearman_golden_hard_and_soft():
    assert close(pearson(hard_rank(Z_S), hard_rank(Z_T)), [0.999999998, 0.7999999984, 0.7999999984])
    soft = {
        1.0: [0.9855568658834416, 0.7382267759943364, 0.7367473101433817],
        0.1: [0.9999919863393549, 0.7687649990358978, 0.7930861459938517],
        0.01: [0.9999999979999998, 0.7999999979053231, 0.7999999983175538],
    }
    for eps, values in soft.items():
        assert close(pearson(soft_rank(Z_S, eps), hard_rank(Z_T)), values)


def test_zscore_and_entropy_golden():
    assert close(zscore(Z_S)[0], [1.2999998960000083, 0.09999999200000063, -1.099999912000007, -0.2999999760000019])
    assert close(normalised_entropy(Z_T), [0.44616590764505465, 0.3940545535303698, 0.42926430551477734])
    assert close(normalised_entropy(torch.tensor([[0.0, 0, 0], [900, 0, 0]])), [1, 0], abs=1e-6)


def test_ranks_are_scipys_ties_too():
    values = torch.tensor([[3.0, 1, 1, 2, 3, 3], [0, 0, 0, 0, 0, 0], [6, 5, 4, 3, 2, 1]])
    assert hard_rank(values).tolist() == rankdata(values.numpy(), axis=1).tolist()
    torch.testing.assert_close(soft_rank(values, 1e-3), hard_rank(values))
    many = torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [spearmanr(a, b).statistic for a, b in zip(many[:2].numpy(), many[2:].numpy())]
    assert close(pearson(hard_rank(many[:2]), hard_rank(many[2:])), expected)


@pytest.mark.parametrize("piece", [1, 7, 35, 10**6])
def test_pieces_do_not_change_soft_ranks_nor_their_gradient(piece):
    values = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    downstream = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ranks = soft_rank(values, 0.3, piece)
    (slope,) = torch.autograd.grad(ranks, values, downstream)
    d = (values[:, :, None] - values[:, None, :]).detach().numpy() / 0.3
    s = 1 / (1 + np.exp(-d))
    g = downstream.numpy()
    np.testing.assert_allclose(ranks.detach().numpy(), 0.5 + s.sum(2), atol=1e-12)
    # by hand: d loss / d x_k = sum_j sigmoid'(x_k - x_j) (g_k - g_j) / eps
    np.testing.assert_allclose(slope, (s * (1 - s) * (g[:, :, None] - g[:, None, :])).sum(2) / 0.3, atol=1e-12)


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that any operation made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            self.numbers = max(self.numbers, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return out


def test_a_thousand_classes_fit_in_little_memory():
    """64 pictures x 1000 x 1000 comparisons would be 256 MB in float32, and several of them when kept for the gradient."""
    values = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t)
    with Largest() as largest, hooks:
        soft_rank(values, 0.1).backward(torch.ones_like(values))
    assert sum(kept) == values.numel()
    assert largest.numbers <= PIECE


def test_parts_and_weights_by_hand():
    p_s, p_t = (zscore(z).div(2).softmax(1) for z in (Z_S, Z_T))
    values_B = 1 - pearson(p_s, p_t)
    ranks_B = 1 - pearson(soft_rank(zscore(Z_S), 0.2), hard_rank(Z_T))
    entropy_B = normalised_entropy(Z_T)
    for weighting, w_B in (
        ("hard_to_ranks", entropy_B),
        ("hard_to_values", 1 - entropy_B),
        ("constant", torch.full((3,), 0.3, dtype=torch.float64)),
    ):
        parts = CMKD(pair(), tau=2.0, eps=0.2, weighting=weighting, rank_share=0.3)(golden())
        assert parts["values"].item() == pytest.approx(((1 - w_B) * values_B).mean().item(), abs=1e-12)
        assert parts["ranks"].item() == pytest.approx((w_B * ranks_B).mean().item(), abs=1e-12)
        assert parts["loss"].item() == pytest.approx(8 * (parts["values"] + parts["ranks"]).item(), abs=1e-12)


def test_equality_leaves_only_the_softness_of_the_ranks():
    floors = [CMKD(pair(), eps=eps)(golden(Z_T))["loss"].item() for eps in (0.5, 0.1, 0.01)]
    assert floors[0] > floors[1] >= floors[2]
    assert floors[2] == pytest.approx(0, abs=1e-6)


def test_scale_and_shift_of_a_picture_s_logits_are_free():
    moved = CMKD(pair())(golden(3 * Z_S + 1, Z_T))
    for name, value in CMKD(pair())(golden()).items():
        assert moved[name].item() == pytest.approx(value.item(), abs=1e-6), name  # 1e-7 beside the deviation


def test_it_says_that_it_is_a_reconstruction():
    assert CMKD.reconstruction
    assert "reconstruction" in CMKD.__doc__.lower()
