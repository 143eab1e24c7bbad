"""KD, DKD, DIST and OFA: golden values in float64, laws, and derivations by hand in numpy. CMKD has its own file."""

import numpy as np
import pytest
import torch
from method_parts import batch, leaves, pair
from scipy.special import log_softmax, logsumexp
from scipy.stats import pearsonr

from tinkit.host.distill.pair import Batch
from tinkit.host.features import Features
from tinkit.host.methods import dist
from tinkit.host.methods.cmkd import CMKD
from tinkit.host.methods.dist import DIST
from tinkit.host.methods.dkd import DKD, decoupled, target_classes
from tinkit.host.methods.kd import KD, soft_kl
from tinkit.host.methods.ofa import OFA, ofa_loss

Z_S = torch.tensor([[2, 0.5, -1, 0], [0.1, 1.5, 0.3, -0.7], [-0.5, 0.2, 0.9, 1.1]], dtype=torch.float64)
Z_T = torch.tensor([[3, 1, -2, 0.5], [-1, 2.5, 0, -0.5], [0, -1, 1, 3]], dtype=torch.float64)
METHODS = (KD, DKD, DIST, CMKD, OFA)


def golden(student_BC=Z_S, teacher_BC=Z_T, labels_B=None, epoch=0):
    student, teacher = (Features(z, logits_BC=z) for z in (student_BC, teacher_BC))
    return Batch(student, teacher, torch.arange(len(student_BC)), 0, epoch, labels_B)


@pytest.mark.parametrize(("tau", "value"), [(1.0, 0.2031370760995), (4.0, 0.3798381425853)])
def test_kd_golden(tau, value):
    parts = KD(pair(), tau=tau, loss_weight=3.0)(golden())
    assert parts["kl"].item() == pytest.approx(value, abs=1e-8)
    assert parts["loss"].item() == pytest.approx(3 * value, abs=1e-8)


@pytest.mark.parametrize(
    ("tau", "tau2_scale", "inter", "intra"),
    [
        (1.0, True, 0.08237701201756, 0.00626887601267),
        (1.0, False, 0.08237701201756, 0.00626887601267),
        (4.0, True, 1.70574661676, 0.36579206559),
        (4.0, False, 0.10660916354765, 0.02286200409907),
    ],
)
def test_dist_golden(tau, tau2_scale, inter, intra):
    parts = DIST(pair(), tau=tau, tau2_scale=tau2_scale)(golden())
    assert parts["inter"].item() == pytest.approx(inter, abs=1e-8)
    assert parts["intra"].item() == pytest.approx(intra, abs=1e-8)
    assert parts["loss"].item() == pytest.approx(2 * (inter + intra), abs=4e-8)  # loss_weight 2, as released
    weighed = DIST(pair(), tau=tau, tau2_scale=tau2_scale, beta=0.5, gamma=3.0, loss_weight=1.0)(golden())
    assert weighed["loss"].item() == pytest.approx(0.5 * inter + 3 * intra, abs=4e-8)


def test_dist_is_scipys_pearson():
    y_s, y_t = (np.exp(log_softmax(z.numpy(), 1)) for z in (Z_S, Z_T))
    rows = np.mean([pearsonr(a, b)[0] for a, b in zip(y_s, y_t)])
    columns = np.mean([pearsonr(a, b)[0] for a, b in zip(y_s.T, y_t.T)])
    parts = DIST(pair())(golden())
    # 3e-7: eps = 1e-8 over the smallest product of norms of a class (0.01 here)
    assert parts["inter"].item() == pytest.approx(1 - rows, abs=3e-7)
    assert parts["intra"].item() == pytest.approx(1 - columns, abs=3e-7)


def test_dist_at_equality_and_at_a_constant_student():
    assert DIST(pair())(golden(Z_T))["loss"].item() == pytest.approx(2 * 4.7015099669e-7, abs=1e-12)  # eps's floor
    flat = DIST(pair(), tau=2.0)(golden(torch.zeros_like(Z_T)))
    assert (flat["inter"].item(), flat["intra"].item()) == (4.0, 4.0)
    assert DIST(pair())(golden(Z_S[:1], Z_T[:1]))["intra"].item() == 1.0  # one picture: no correlation over the batch


def test_dist_gathers_the_rows_of_all_processes(monkeypatch):
    more = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(dist, "gather_rows", lambda rows: torch.cat([rows, more]))
    both = torch.cat([Z_S, more]), torch.cat([Z_T, more])
    assert DIST(pair(), gather=True)(golden())["intra"] == DIST(pair())(golden(*both))["intra"]
    assert DIST(pair())(golden())["intra"] != DIST(pair())(golden(*both))["intra"]


@pytest.mark.parametrize("method", [KD, DKD, DIST, CMKD])
def test_a_constant_added_to_a_picture_s_logits_changes_nothing(method):
    shift = torch.tensor([[5.0], [-3.0], [0.5]])
    moved = method(pair())(golden(Z_S + shift, Z_T - 2 * shift))
    for name, value in method(pair())(golden()).items():
        assert moved[name].item() == pytest.approx(value.item(), abs=1e-12), name


@pytest.mark.parametrize("method", [KD, DKD])
def test_zero_at_equality_and_nowhere_else(method):
    assert method(pair())(golden(Z_T))["loss"].item() == pytest.approx(0, abs=1e-12)
    assert method(pair())(golden())["loss"].item() > 1e-3


@pytest.mark.parametrize("target", [[0, 1, 3], [2, 0, 0]])
def test_dkd_falls_into_two_and_adds_up_to_kd(target):
    tckd_B, nckd_B = decoupled(Z_S, Z_T, torch.tensor(target))
    p_target_B = Z_T.softmax(1)[torch.arange(3), target]
    together = (tckd_B + (1 - p_target_B) * nckd_B).mean()
    assert together.item() == pytest.approx(soft_kl(Z_S, Z_T).item(), abs=1e-12)


@pytest.mark.parametrize("labels", [None, [2, -1, 0]])
def test_dkd_by_hand(labels):
    """Numpy, class by class, from the definitions; a picture without a label has the teacher's top class."""
    target = [0, 1, 3] if labels is None else [2, 1, 0]
    tckd = nckd = 0.0
    for s, t, k in zip(Z_S.numpy() / 4, Z_T.numpy() / 4, target):
        p, q = np.exp(t) / np.exp(t).sum(), np.exp(s) / np.exp(s).sum()
        tckd += 16 / 3 * (p[k] * np.log(p[k] / q[k]) + (1 - p[k]) * np.log((1 - p[k]) / (1 - q[k])))
        p, q = np.delete(p, k) / (1 - p[k]), np.delete(q, k) / (1 - q[k])
        nckd += 16 / 3 * (p * np.log(p / q)).sum()
    parts = DKD(pair())(golden(labels_B=None if labels is None else torch.tensor(labels), epoch=19))
    assert parts["tckd"].item() == pytest.approx(tckd, abs=1e-12)
    assert parts["nckd"].item() == pytest.approx(nckd, abs=1e-12)
    assert parts["loss"].item() == pytest.approx(tckd + 8 * nckd, abs=1e-12)


def test_dkd_warms_up_over_the_first_epochs():
    full = DKD(pair(), warmup=0.0)(golden())["loss"].item()
    at = [DKD(pair(epochs=240))(golden(epoch=epoch))["loss"].item() / full for epoch in (0, 9, 19, 50)]
    assert at == pytest.approx([1 / 20, 10 / 20, 1, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dkd_with_certain_teacher_and_student(dtype):
    """p_t rounds to 1 in float32; the loss is finite and is the one that long arithmetic gives."""
    student_BC = torch.tensor([[0.0, 90, 10], [400, 0, 1]], dtype=dtype, requires_grad=True)
    teacher_BC = torch.tensor([[200.0, 0, 3], [-5, 120, 0]], dtype=dtype)
    parts = DKD(pair(classes=3), tau=1.0, warmup=0.0)(golden(student_BC, teacher_BC))
    parts["loss"].backward()
    assert torch.isfinite(student_BC.grad).all()
    rest = np.array([logsumexp([90, 10]), logsumexp([400, 1])])  # the teacher is sure: TCKD is -log q_t
    tckd = np.mean(np.logaddexp(rest, [0, 0]) - [0, 0])
    assert parts["tckd"].item() == pytest.approx(tckd, rel=1e-6)


def test_target_classes():
    assert target_classes(Z_T, None).tolist() == [0, 1, 3]
    assert target_classes(Z_T, torch.tensor([2, -1, 0])).tolist() == [2, 1, 0]


@pytest.mark.parametrize("eps", [1.0, 1.4])
def test_ofa_by_hand(eps):
    target = [2, 1, 0]
    expected = 0.0
    for s, t, k in zip(log_softmax(Z_S.numpy() / 2, 1), np.exp(log_softmax(Z_T.numpy() / 2, 1)), target):
        for c in range(4):
            lifted = (t[c] + 1) ** eps - 1 if c == k else t[c] ** eps
            expected -= lifted * s[c] / 3
    assert ofa_loss(Z_S, Z_T, torch.tensor(target), eps, 2.0).item() == pytest.approx(expected, abs=1e-12)


def test_ofa_at_eps_1_looks_at_no_label_and_has_the_teacher_s_entropy_as_its_floor():
    targets = torch.tensor([0, 1, 3]), torch.tensor([2, 0, 0])
    one, other = (ofa_loss(Z_S, Z_T, target).item() for target in targets)
    assert one == pytest.approx(other, abs=1e-12)
    p = Z_T.softmax(1)
    entropy = -(p * p.log()).sum(1).mean().item()
    assert ofa_loss(Z_T, Z_T, targets[0]).item() == pytest.approx(entropy, abs=1e-12)
    assert one - entropy == pytest.approx(soft_kl(Z_S, Z_T).item(), abs=1e-12)
    assert ofa_loss(Z_S, Z_T, targets[0], 1.4) != ofa_loss(Z_S, Z_T, targets[1], 1.4)


def test_ofa_has_a_head_for_each_tap_and_trains_it():
    torch.manual_seed(0)
    of = pair()
    method = OFA(of, eps=(1.0, 1.5, 2.0), loss_weight=0.5, stage_weight=2.0).double()
    one = batch(of, labels=True)
    parts = method(one)
    parts["loss"].backward()
    assert [tuple(head.weight.shape) for head in method.heads] == [(4, 3), (4, 4)]
    assert all(p.grad.abs().sum() > 0 for p in method.parameters())
    by_hand = sum(
        ofa_loss(head(one.student.taps[name].mean((2, 3))), one.teacher.logits_BC, one.labels_B, eps)
        for head, name, eps in zip(method.heads, ("s1", "s2"), (1.0, 1.5))
    )
    assert parts["stages"].item() == pytest.approx(by_hand.item(), abs=1e-12)
    logits = ofa_loss(one.student.logits_BC, one.teacher.logits_BC, one.labels_B, 2.0).item()
    assert parts["loss"].item() == pytest.approx(0.5 * logits + 2 * by_hand.item(), abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_reaches_the_student_s_logits_and_taps_and_nothing_else(method):
    of = pair()
    one = batch(of)
    for tensor in leaves(one.teacher):
        tensor.requires_grad_(True)
    method(of).double()(one)["loss"].backward()
    reached = {id(t) for t in leaves(one.student) if t.grad is not None and t.grad.abs().sum() > 0}
    wanted = [one.student.logits_BC, *(one.student.taps.values() if method is OFA else ())]
    assert reached == {id(t) for t in wanted}
    assert all(t.grad is None for t in leaves(one.teacher))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("B", "classes", "constant"), [(1, 4, False), (1, 2, True), (5, 4, True), (5, 2, False)])
def test_small_batches_two_classes_and_a_constant_student_stay_finite(method, dtype, B, classes, constant):
    of = pair(classes=classes)
    one = batch(of, B=B, dtype=dtype)
    if constant:
        for tensor in leaves(one.student):
            tensor.data.zero_()
    parts = method(of).to(dtype)(one)
    parts["loss"].backward()
    assert all(torch.isfinite(part) and part.shape == () and part.dtype == dtype for part in parts.values())
    assert torch.isfinite(one.student.logits_BC.grad).all()


@pytest.mark.parametrize("method", [KD, DKD, DIST, CMKD, OFA])
@pytest.mark.parametrize("labels", [None, [-1] * 6, [0, -1, 3, 2, -1, 1]])
def test_descent_lowers_the_loss_with_and_without_labels(method, labels):
    of = pair()
    one = batch(of, seed=3)
    one.labels_B = None if labels is None else torch.tensor(labels)
    torch.manual_seed(0)
    method = method(of).double()
    first = method(one)["loss"].item()
    trained = [one.student.logits_BC, *method.parameters()]
    for _ in range(20):
        for tensor, slope in zip(trained, torch.autograd.grad(method(one)["loss"], trained)):
            tensor.data -= 0.05 * slope
    assert method(one)["loss"].item() < first


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (KD, {"tau": 0.0}),
        (DKD, {"warmup": -1.0}),
        (DIST, {"tau": -1.0}),
        (CMKD, {"eps": 0.0}),
        (CMKD, {"weighting": "easy"}),
        (CMKD, {"rank_share": 1.5}),
        (OFA, {"eps": (1.0, 1.0)}),  # neither one for all nor one for each of two taps and the logits
    ],
)
def test_nonsense_is_refused(method, options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
        method(pair(), **options)


@pytest.mark.parametrize("method", METHODS)
def test_missing_logits_are_named(method):
    one = batch(pair())
    one.teacher.logits_BC = None
    with pytest.raises(ValueError, match="logits"):
        method(pair())(one)
