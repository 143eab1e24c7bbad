"""TCS: the coordinate system, the hash term and the drops by hand, the exact fold, and a state that survives a stop."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from method_parts import batch, features, pair
from sklearn.decomposition import PCA

from tinkit.host.distill.pair import Side
from tinkit.host.methods.tcs import TCS


def teacher_rows(of, count=90, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    rows = [features(of.teacher, None, 30, generator, dtype) for _ in range(count // 30)]
    stretch = torch.linspace(1, 3, of.teacher.dim, dtype=dtype)
    return [replace(row, global_BD=row.global_BD * stretch + 1) for row in rows]


def make(of=None, fit=True, **options) -> TCS:
    of = of or pair()
    torch.manual_seed(0)
    method = TCS(of, **{"bits": 16, **options}).double()
    if fit:
        method.fit(lambda: iter(teacher_rows(of)))
    return method


def step(method, optimizer, number, epoch):
    """One step of training on the batch of this number."""
    parts = method(replace(batch(pair(), seed=number, labels=True), epoch=epoch, step=number))
    optimizer.zero_grad()
    parts["loss"].backward()
    optimizer.step()
    return parts["loss"].item()


def test_the_basis_is_sklearns_pca():
    method = make()
    expected = PCA().fit(torch.cat([row.global_BD for row in teacher_rows(pair())]).numpy())
    np.testing.assert_allclose(method.mean_D.numpy(), expected.mean_, atol=1e-12)
    signs = np.sign((method.U_DD.numpy().T * expected.components_).sum(1))
    np.testing.assert_allclose(method.U_DD.numpy().T, signs[:, None] * expected.components_, atol=1e-10)


@pytest.mark.parametrize("basis", ["pca", "random", "none"])
def test_whitened_coordinates_of_the_teacher_have_variance_one(basis):
    """But for the floor under directions in which the teacher hardly moves."""
    rows_ND = torch.cat([row.global_BD for row in teacher_rows(pair())])
    plain, white = make(basis=basis), make(basis=basis, whiten=True)
    variance_D = ((rows_ND - plain.mean_D) @ plain.U_DD).var(0)
    expected = variance_D / (variance_D + 1e-5 * variance_D.max())
    found = ((rows_ND - white.mean_D) @ white.U_DD).var(0)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert expected.min() > 0.99


def test_the_control_bases_are_orthogonal_and_share_the_hashes():
    pca, random, none = (make(basis=basis) for basis in ("pca", "random", "none"))
    eye = torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(random.U_DD.T @ random.U_DD, eye, atol=1e-6, rtol=0)  # kept in float32
    assert (random.U_DD - pca.U_DD).abs().max() > 0.1
    assert none.U_DD.equal(eye)
    assert pca.b_H.equal(random.b_H)
    assert pca.b_H.equal(none.b_H)


def test_the_hash_term_by_hand():
    method, of = make(), batch(pair())
    rows_ND = torch.cat([row.global_BD for row in teacher_rows(pair())]).numpy()
    W, A, a = (x.detach().numpy() for x in (method.W_HD, method.A.weight, method.A.bias))
    b = -np.median(rows_ND @ W.T, axis=0)
    np.testing.assert_array_equal(((rows_ND @ W.T + b) > 0).sum(0), 45)  # a median halves the pictures
    h = (of.student.global_BD.detach().numpy() @ A.T + a) @ W.T + b
    bit = (of.teacher.global_BD.numpy() @ W.T + b) > 0
    by_hand = np.mean(np.where(bit, np.log1p(np.exp(-h)), np.log1p(np.exp(h))))
    assert method(of)["lsh"].item() == pytest.approx(by_hand, abs=1e-10)


def test_a_student_that_gives_the_teachers_features_has_no_l2_and_the_smallest_hash_loss():
    method = make(pair(student=Side(7, 7)))
    of = batch(pair(student=Side(7, 7)))
    of.student.global_BD.data.copy_(of.teacher.global_BD)
    with torch.no_grad():
        method.A.weight.copy_(torch.eye(7))
        method.A.bias.zero_()
        h = of.teacher.global_BD @ method.W_HD.T + method.b_H
    parts = method(of)
    assert parts["l2"].item() == 0
    assert parts["lsh"].item() == pytest.approx(torch.log1p((-h.abs()).exp()).mean().item(), abs=1e-12)


@pytest.mark.parametrize("options", [{}, {"whiten": True}, {"basis": "random"}, {"basis": "none"}])
def test_folded_equals_unfolded(options):
    of = pair(epochs=3)
    method = make(of, **options)
    optimizer = torch.optim.Adam(method.parameters(), 0.05)
    for number in range(4):
        step(method, optimizer, number, epoch=number // 2)
    assert int(method.active_D.sum()) == 3
    f = batch(of, seed=9).student.global_BD.detach()
    z = (method.A(f) - method.mean_D) @ method.U_DD
    unfolded = method.C(z * method.mask_D * method.active_D)
    folded = method.head()
    assert (folded.in_features, folded.out_features) == (5, 4)
    torch.testing.assert_close(folded(f), unfolded, atol=1e-10, rtol=0)


def test_the_score_is_the_sum_of_the_masks_absolute_gradients():
    method, expected = make(), torch.zeros(7, dtype=torch.float64)
    for seed in range(3):
        labels = torch.tensor([0, -1, 3, 1, -1, 2])
        parts = method(replace(batch(pair(), seed=seed), labels_B=labels))
        expected += torch.autograd.grad(parts["ce"], method.mask_D)[0].abs()
    torch.testing.assert_close(method.score_D, expected, atol=1e-12, rtol=0)
    assert expected.min() > 0


def test_processes_share_the_gradient_before_its_absolute_value(monkeypatch):
    gradients = []
    for seed in range(2):
        twin = make()
        parts = twin(batch(pair(), seed=seed, labels=True))
        gradients.append(torch.autograd.grad(parts["ce"], twin.mask_D)[0])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda mine: mine.add_(gradients[1]))
    method = make()
    method(batch(pair(), seed=0, labels=True))
    torch.testing.assert_close(method.score_D, (sum(gradients) / 2).abs(), atol=1e-12, rtol=0)


def test_nothing_is_scored_or_dropped_out_of_training_nor_scored_after_the_last_drop():
    method = make()
    method.eval()(batch(pair(), labels=True))
    method.train()(replace(batch(pair(), labels=True), epoch=1))
    assert not method.score_D.any()
    method = make().eval()
    method(replace(batch(pair(), labels=True), epoch=1))
    assert method.active_D.all()


def test_the_plan_of_drops():
    plan = TCS(pair(epochs=30))
    counts = [plan.dimensions_at(epoch) for epoch in range(30)]
    assert counts[0] == 7
    assert counts[10:] == [3] * 20
    assert counts == sorted(counts, reverse=True)
    assert TCS(pair(epochs=30), keep=7).dimensions_at(29) == 7
    assert [TCS(pair(epochs=2), keep=2).dimensions_at(epoch) for epoch in (0, 1)] == [7, 2]
    wide = TCS(pair(teacher=Side(100), epochs=12), drops=2)
    assert [wide.dimensions_at(epoch) for epoch in range(6)] == [100, 100, 75, 75, 50, 50]


def test_a_drop_keeps_the_highest_scores_and_never_brings_one_back():
    method = make(pair(epochs=9), keep=2)  # drops at the start of epochs 1, 2 and 3
    for epoch, scores in [(1, [1, 9, 2, 8, 3, 7, 4]), (2, [99, 1, 99, 2, 3, 4, 5]), (3, [99, 99, 99, 1, 99, 3, 2])]:
        method.score_D.copy_(torch.tensor(scores))
        before = method.active_D.clone()
        method(replace(batch(pair(), labels=True), epoch=epoch))
        active = set(method.active_D.nonzero().flatten().tolist())
        assert len(active) == method.dimensions_at(epoch)
        assert active <= set(before.nonzero().flatten().tolist())
        assert not method.score_D[~method.active_D].any()
    assert active == {4, 5}
    assert not method.score_D.any()  # each drop is judged by what came after the one before


def test_without_a_single_label_the_directions_of_least_variance_go():
    method = make()
    method(batch(pair()))
    method(replace(batch(pair()), epoch=1))
    assert method.active_D.tolist() == [True] * 3 + [False] * 4


def test_dropped_dimensions_stay_zero_and_get_no_gradient():
    method = make()
    optimizer = torch.optim.Adam(method.parameters(), 0.1)
    for number in range(6):
        step(method, optimizer, number, epoch=number // 2)
    gone = ~method.active_D
    assert int(gone.sum()) == 4
    assert method._mask()[gone].eq(0).all()
    assert method.mask_D.grad[gone].eq(0).all()
    assert method.C.weight.grad[:, gone].eq(0).all()
    assert method.mask_D.grad[~gone].ne(0).all()


def test_a_stop_in_the_middle_changes_no_bit():
    def fresh(fit):
        method = make(fit=fit)
        return method, torch.optim.AdamW(method.parameters(), 0.05)

    whole, optimizer = fresh(True)
    losses = [step(whole, optimizer, number, epoch=number // 3) for number in range(9)]
    first, optimizer = fresh(True)
    for number in range(2):  # in the epoch whose scores decide the drop
        step(first, optimizer, number, epoch=0)
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    second, optimizer = fresh(False)
    second.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert [step(second, optimizer, number, epoch=number // 3) for number in range(2, 9)] == losses[2:]
    for name, value in whole.state_dict().items():
        assert value.equal(second.state_dict()[name]), name


def test_a_copy_writes_into_its_own_scores():
    method = make()
    twin = copy.deepcopy(method)
    twin(batch(pair(), labels=True))["loss"].backward()
    assert twin.score_D.any()
    assert not method.score_D.any()
    assert method.mask_D.grad is None


def test_gradient_reaches_student_and_own_parts_but_not_the_teacher():
    for part, names in [
        ("ce", {"mask_D", "A.weight", "A.bias", "C.weight", "C.bias"}),
        ("lsh", {"A.weight", "A.bias"}),
        ("l2", {"A.weight", "A.bias"}),
    ]:
        method, of = make(), batch(pair(), labels=True)
        of.teacher.global_BD.requires_grad_()
        method(of)[part].backward()
        assert {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()} == names
        assert of.student.global_BD.grad.any()
        assert of.teacher.global_BD.grad is None


def test_pictures_without_a_label_count_in_the_label_free_terms_only():
    method, of = make(), batch(pair())
    some = method(replace(of, labels_B=torch.tensor([2, -1, 0, -1, -1, 3])))
    z = (method.A(of.student.global_BD) - method.mean_D) @ method.U_DD
    expected = torch.nn.functional.cross_entropy(method.C(z)[[0, 2, 5]], torch.tensor([2, 0, 3]))
    assert some["ce"].item() == pytest.approx(expected.item(), abs=1e-12)
    for labels in (None, torch.full((6,), -1)):
        none = method(replace(of, labels_B=labels))
        assert none["ce"].item() == 0
        assert none["lsh"].item() == some["lsh"].item()
        none["ce"].backward()  # a graph is there: DDP needs every part in every step
        assert not method.C.weight.grad.any()


def test_weights_and_loss():
    of = batch(pair(), labels=True)
    parts = make(ce_weight=2.0, lsh_weight=0.5, l2_weight=3.0)(of)
    assert parts["loss"].item() == pytest.approx((2 * parts["ce"] + 0.5 * parts["lsh"] + 3 * parts["l2"]).item())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("count", [1, 3])
def test_one_picture_and_a_constant_student_give_finite_gradients(classes, count):
    of = pair(classes=classes)
    method, one = make(of, whiten=True), batch(of, B=count, labels=True)
    one.student.global_BD.data.fill_(1.0)
    loss = method(one)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(one.student.global_BD.grad).all()
    assert torch.isfinite(method.score_D).all()


def test_fewer_pictures_than_dimensions_still_fit():
    method = make(fit=False, whiten=True)
    method.fit(lambda: iter([replace(row, global_BD=row.global_BD[:1]) for row in teacher_rows(pair(), 60)]))
    assert torch.isfinite(method(batch(pair(), labels=True))["loss"])


def test_one_seed_one_hash_whatever_torch_has_drawn_before():
    torch.manual_seed(1)
    one, other = TCS(pair(), basis="random"), TCS(pair(), basis="random")
    assert one.W_HD.equal(other.W_HD)
    assert one.U_DD.equal(other.U_DD)
    assert not one.W_HD.equal(TCS(pair(seed=1)).W_HD)


@pytest.mark.parametrize("options", [{"basis": "ica"}, {"bits": 0}, {"keep": 8}, {"keep": -1}, {"drops": 0}])
def test_nonsense_is_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"^{name} must be .*, not {value}$"):
        TCS(pair(), **options)


def test_it_asks_for_classes_and_for_a_fit():
    with pytest.raises(ValueError, match="classes"):
        TCS(pair(classes=None))
    with pytest.raises(ValueError, match="fitted"):
        make(fit=False)(batch(pair(), labels=True))
    with pytest.raises(ValueError, match="no pictures"):
        make(fit=False).fit(lambda: iter(()))
