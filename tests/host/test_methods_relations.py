"""Methods that compare pictures with each other: RKD, PKT, SP (matrices of a batch) and CRD (a memory bank)."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from method_parts import batch, leaves, pair

from tinkit.host.distill.pair import Batch, Side
from tinkit.host.features import Features
from tinkit.host.methods import rkd
from tinkit.host.methods.crd import CRD, EPS
from tinkit.host.methods.pkt import PKT
from tinkit.host.methods.rkd import RKD
from tinkit.host.methods.sp import SP

MATRICES = [RKD, PKT, SP]
ALL = [*MATRICES, CRD]


def make(method, **changes):
    """The method in float64 with its pair's options."""
    torch.manual_seed(0)
    options = changes.pop("options", {})
    return method(pair(**changes), **options).double()


def step(student_BD, teacher_BD, number=0, index=None):
    """A batch of global features only."""
    student, teacher = (torch.as_tensor(x) for x in (student_BD, teacher_BD))
    index_B = torch.arange(len(student)) if index is None else torch.tensor(index)
    return Batch(Features(student), Features(teacher), index_B, number, 0)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(width, seed=0):
    return torch.linalg.qr(normal(width, width, seed=seed)).Q


# By hand, one number at a time ------------------------------------------------------------------------------------


def huber(error):
    return error**2 / 2 if abs(error) < 1 else abs(error) - 0.5


def rkd_by_hand(student, teacher):
    count = range(len(student))
    apart, angle = [], []
    for x in (student, teacher):
        length = {(i, j): math.dist(x[i], x[j]) for i, j in product(count, count)}
        mean = np.mean([d for d in length.values() if d > 0])
        apart.append({pair: d / mean for pair, d in length.items()})
        angle.append({})
        for i, j, k in product(count, count, count):
            both = length[i, j] * length[i, k]
            angle[-1][i, j, k] = (x[j] - x[i]) @ (x[k] - x[i]) / both if both else 0.0
    distance_error = np.mean([huber(apart[0][p] - apart[1][p]) for p in apart[0]])
    return distance_error, np.mean([huber(angle[0][t] - angle[1][t]) for t in angle[0]])


@pytest.mark.parametrize("width", [3, 9])  # below and above the number of pictures: its own span or not
def test_rkd_by_hand(width):
    student, teacher = 4 * normal(5, width, seed=1) + 7, normal(5, 4, seed=2)
    student[3] = student[1]  # one picture twice
    parts = make(RKD)(step(student, teacher))
    distance, angle = rkd_by_hand(student.numpy(), teacher.numpy())
    assert parts["distance"].item() == pytest.approx(distance, abs=1e-12)
    assert parts["angle"].item() == pytest.approx(angle, abs=1e-12)
    assert parts["loss"].item() == pytest.approx(25 * distance + 50 * angle, abs=1e-10)


def test_rkd_in_the_points_own_span_has_the_gradient_of_the_plain_formula():
    """Centre, size and basis are constants to autograd: numerical differences do not know that."""
    method, teacher = make(RKD), normal(4, 6, seed=2)
    student = normal(4, 7, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: method(step(x, teacher))["loss"], student)


@pytest.mark.parametrize("at_once", [1, 3])
def test_rkd_in_chunks_is_rkd_at_once(monkeypatch, at_once):
    student, teacher = normal(7, 3, seed=1).requires_grad_(), normal(7, 5, seed=2)
    whole = make(RKD)(step(student, teacher))["angle"]
    (wanted,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr(rkd, "CHUNK", at_once * 7 * 7)
    chunked = make(RKD)(step(student, teacher))["angle"]
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(torch.autograd.grad(chunked, student)[0], wanted)


def test_pkt_by_hand():
    student, teacher = normal(5, 3, seed=1), normal(5, 4, seed=2)
    rows = []
    for x in (student.numpy(), teacher.numpy()):
        unit = [v / (math.sqrt(v @ v) + 1e-7) for v in x]
        kernel = [[(1 + u @ v) / 2 for v in unit] for u in unit]
        rows.append([[k / sum(row) for k in row] for row in kernel])
    terms = [t * math.log((t + 1e-7) / (s + 1e-7)) for ours, theirs in zip(*rows) for s, t in zip(ours, theirs)]
    parts = make(PKT)(step(student, teacher))
    assert parts["divergence"].item() == pytest.approx(np.mean(terms), abs=1e-14)
    assert parts["loss"].item() == pytest.approx(30000 * np.mean(terms), abs=1e-9)


@pytest.mark.parametrize("features", ["map", "global"])
def test_sp_by_hand(features):
    of = pair()
    given = batch(of)
    sides = given.student, given.teacher
    grams = []
    for side in sides:
        x = (side.global_BD if features == "global" else side.local_BLD.reshape(6, -1)).detach().numpy()
        gram = np.array([[a @ b for b in x] for a in x])
        grams.append(np.array([row / math.sqrt(row @ row) for row in gram]))
    wanted = np.sum((grams[0] - grams[1]) ** 2) / 36
    parts = make(SP, options={"features": features})(given)
    assert parts["similarity"].item() == pytest.approx(wanted, abs=1e-14)
    assert parts["loss"].item() == pytest.approx(3000 * wanted, abs=1e-10)


def test_sp_without_a_map_on_one_side_takes_the_global_features():
    of = pair(teacher=Side(7))
    assert make(SP)(batch(of))["loss"].item() == make(SP, options={"features": "global"})(batch(of))["loss"].item()


# Laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", MATRICES)
def test_zero_at_equality_and_blind_to_a_rotation_and_a_scale_of_either_side(method):
    student, teacher = normal(6, 5, seed=1), normal(6, 5, seed=2)
    loss, exact = make(method), 1e-5 if method is PKT else 1e-12  # PKT adds 1e-7 to lengths
    assert loss(step(teacher, teacher))["loss"].item() == 0
    assert loss(step(3.7 * teacher @ turn(5), teacher))["loss"].item() == pytest.approx(0, abs=1e-10)
    wanted = loss(step(student, teacher))["loss"].item()
    turned = loss(step(0.2 * student @ turn(5, 3), 5 * teacher @ turn(5, 4)))["loss"].item()
    assert wanted > 1
    assert turned == pytest.approx(wanted, rel=exact)


def test_rkd_takes_points_for_one_by_their_distance_against_the_whole_figure():
    points = torch.tensor([[0.0, 0.0], [0.0, 1e-6], [1.0, 0.0], [0.0, -1.0]])
    apart, angles = rkd.distances(points), rkd.angles(points, torch.arange(4))
    assert apart[0, 1] == 0
    assert angles[0, 1].abs().max() == 0
    assert angles[0, 2, 3].item() == pytest.approx(0, abs=1e-7)
    assert angles[2, 0, 3].item() == pytest.approx(0.5**0.5)
    student, teacher = normal(6, 5, seed=1), normal(6, 5, seed=2)
    losses = [make(RKD)(step(scale * student, teacher))["loss"].item() for scale in (1, 1e-9)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


def test_rkd_alone_is_blind_to_a_shift():
    student, teacher = normal(6, 5, seed=1), normal(6, 5, seed=2)
    for method, blind in ((RKD, True), (PKT, False), (SP, False)):
        here, there = (make(method)(step(x, teacher))["loss"].item() for x in (student, student + 2))
        assert (abs(here - there) < 1e-9) == blind


@pytest.mark.parametrize("method", MATRICES)
def test_gather_in_one_process_changes_nothing(method):
    given = batch(pair())
    assert make(method, options={"gather": True})(given)["loss"].item() == make(method)(given)["loss"].item()


@pytest.mark.parametrize("method", ALL)
def test_gradient_reaches_the_compared_features_and_no_others(method):
    given = batch(pair())
    make(method)(given)["loss"].backward()
    compared = given.student.local_BLD if method is SP else given.student.global_BD
    for tensor in leaves(given.student):
        assert (tensor.grad is not None) == (tensor is compared)
    assert compared.grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in leaves(given.teacher))


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_constant_equal_and_zero_rows_stay_finite(method, dtype):
    for count, change in product((1, 2, 64), ("nothing", "constant", "zero", "a pair", "almost")):
        given = batch(pair(pictures=64), B=count, dtype=dtype)
        for tensor in (given.student.global_BD, given.student.local_BLD):
            if change == "constant":
                tensor.data[:] = 300 * tensor.data[:1]
            elif change == "zero":
                tensor.data.zero_()
            elif change == "a pair":
                tensor.data[-1] = tensor.data[0]
            elif change == "almost":
                tensor.data[:] = tensor.data[:1] + 1e-9 * tensor.data
        parts = make(method, pictures=64).to(dtype)(given)
        parts["loss"].backward()
        compared = given.student.local_BLD if method is SP else given.student.global_BD
        assert all(torch.isfinite(part) and part.ndim == 0 for part in parts.values()), (count, change)
        assert torch.isfinite(compared.grad).all(), (count, change)


def test_rkd_of_equal_rows_pushes_nothing_apart_and_one_picture_has_no_relations():
    """Equal rows far from 0, in more numbers than rows: the span's rounding must not become directions."""
    student = (300 * normal(1, 40).expand(6, -1)).float().clone().requires_grad_()
    make(RKD).float()(step(student, normal(6, 5).float()))["loss"].backward()
    assert student.grad.abs().max() == 0
    assert make(RKD)(step(normal(1, 5), normal(1, 4)))["loss"].item() == 0


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (RKD, {"distance_weight": -1.0}),
        (PKT, {"weight": -1.0}),
        (SP, {"features": "taps"}),
        (CRD, {"tau": 0.0}),
        (CRD, {"momentum": 1.0}),
        (CRD, {"negatives": 0}),
    ],
)
def test_nonsense_is_refused(method, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"^{name} must be .*, not {value}$"):
        make(method, options=options)


# CRD --------------------------------------------------------------------------------------------------------------


def embed(layer, x):
    rows = (x @ layer.weight.mT + layer.bias).detach().numpy()
    return rows / np.sqrt((rows**2).sum(1, keepdims=True))


def crd_by_hand(method, given, chosen, z=None):
    """(student, teacher, (Z_s, Z_t)) by the code's formula, its 1e-7 included; chosen: rows of picture numbers."""
    count, tau, result, constants = len(method.bank_student_NE), method.tau, [], []
    anchors = (
        embed(method.embed_student, given.student.global_BD),
        embed(method.embed_teacher, given.teacher.global_BD),
    )
    banks = method.bank_teacher_NE.numpy(), method.bank_student_NE.numpy()
    for side, (rows, bank) in enumerate(zip(anchors, banks)):
        out = np.array([[math.exp(row @ bank[j] / tau) for j in js] for row, js in zip(rows, chosen)])
        constants.append(out.mean() * count if z is None else z[side])
        p, c = out / constants[-1], (len(chosen[0]) - 1) / count
        terms = np.log(p[:, 0] / (p[:, 0] + c + 1e-7)) + np.log(c / (p[:, 1:] + c + 1e-7)).sum(1)
        result.append(-terms.mean())
    return *result, constants


def everyone(index, count):
    return [[i] + [j for j in range(count) if j != i] for i in index]


def test_crd_by_hand_over_two_steps():
    """Few pictures: every other one is a negative, nothing is drawn. The second step keeps the first one's Z."""
    method = make(CRD, pictures=9, options={"embed_dim": 4})
    dropped = 8 * math.log((8 / 9) / (8 / 9 + EPS))  # the constant that our logarithms leave out
    z = None
    for number, index in enumerate(([4, 0, 7], [1, 4, 2])):
        given = step(normal(3, 5, seed=number), normal(3, 7, seed=9 + number), number, index)
        student, teacher, z = crd_by_hand(method, given, everyone(index, 9), z)
        parts = method(given)
        assert parts["student"].item() == pytest.approx(student + dropped, abs=1e-10)
        assert parts["teacher"].item() == pytest.approx(teacher + dropped, abs=1e-10)
        assert parts["loss"].item() == pytest.approx(0.8 * (student + teacher + 2 * dropped), abs=1e-10)
        assert method.log_z.exp().numpy() == pytest.approx(z)


def test_crd_moves_the_rows_of_the_batch_and_no_others():
    method = make(CRD, pictures=9, options={"embed_dim": 4, "momentum": 0.3})
    before = [bank.clone().numpy() for bank in (method.bank_student_NE, method.bank_teacher_NE)]
    given = step(normal(4, 5, seed=1), normal(4, 7, seed=2), index=[4, 0, 4, 7])  # picture 4 twice
    method(given)
    layers = method.embed_student, method.embed_teacher
    inputs = given.student.global_BD, given.teacher.global_BD
    for old, layer, x, bank in zip(before, layers, inputs, (method.bank_student_NE, method.bank_teacher_NE)):
        rows = embed(layer, x)
        wanted = old.copy()
        for picture, row in ((4, (rows[0] + rows[2]) / 2), (0, rows[1]), (7, rows[3])):
            moved = 0.3 * old[picture] + 0.7 * row
            wanted[picture] = moved / math.sqrt(moved @ moved)
        np.testing.assert_allclose(bank.numpy(), wanted, atol=1e-12)


def test_crd_remembers_nothing_outside_training():
    method = make(CRD).eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    given = batch(pair())
    first = method(given)["loss"].item()
    torch.testing.assert_close(dict(method.state_dict()), before, rtol=0, atol=0, equal_nan=True)
    assert method(given)["loss"].item() == first


def test_crd_parts_train_their_own_side():
    for part, ours, theirs in (("student", True, False), ("teacher", False, True)):
        method, given = make(CRD), batch(pair())
        method(given)[part].backward()
        reached = [
            any(p.grad is not None for p in m.parameters()) for m in (method.embed_student, method.embed_teacher)
        ]
        assert reached == [ours, theirs]
        assert (given.student.global_BD.grad is not None) == ours


def test_crd_gradient_is_that_of_the_banks_before_they_moved():
    grads = []
    for training in (True, False):
        method, given = make(CRD).train(training), batch(pair())
        method(given)["loss"].backward()
        grads.append(given.student.global_BD.grad)
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_crd_negatives_are_other_pictures_drawn_anew_at_each_step():
    method = make(CRD, pictures=30, options={"negatives": 20})
    index_B = torch.tensor([0, 29, 7, 7])
    given = [step(normal(4, 5), normal(4, 7), number, index_B.tolist()) for number in range(200)]
    drawn = torch.stack([method._others(g, index_B) for g in given])
    assert drawn.shape == (200, 4, 20)
    for row, own in enumerate(index_B.tolist()):
        assert set(drawn[:, row].flatten().tolist()) == set(range(30)) - {own}
    assert torch.equal(drawn[3], method._others(given[3], index_B))
    assert not torch.equal(drawn[3], drawn[4])


def test_crd_with_few_pictures_takes_each_other_picture_once():
    method = make(CRD, pictures=5)
    assert method.negatives == 4
    others = method._others(step(normal(2, 5), normal(2, 7)), torch.tensor([0, 3]))
    assert others.tolist() == [[1, 2, 3, 4], [0, 1, 2, 4]]


def test_crd_of_a_single_picture_is_finite_and_of_none_is_refused():
    parts = make(CRD, pictures=1)(step(normal(1, 5), normal(1, 7)))
    assert parts["loss"].item() == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="pictures"):
        make(CRD, pictures=0)


def test_crd_goes_on_from_its_state_as_if_nothing_had_happened():
    of = pair(pictures=40)
    options = {"negatives": 8}
    whole, half = make(CRD, pictures=40, options=options), make(CRD, pictures=40, options=options)
    for number in range(2):
        given = replace(batch(of, seed=5), step=number)
        whole(given)
        half(given)
    fresh = make(CRD, pictures=40, seed=99, options=options)
    fresh.load_state_dict(half.state_dict())
    last = replace(batch(of, seed=6), step=2)
    assert fresh(last)["loss"].item() == whole(last)["loss"].item()


def test_crd_learns_to_pick_the_right_picture():
    method, given = make(CRD, options={"embed_dim": 8}), batch(pair())
    optimizer = torch.optim.Adam([*method.parameters(), given.student.global_BD], lr=0.05)
    losses = []
    for _ in range(40):
        loss = method(given)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_crd_banks_come_from_the_pairs_seed_with_rows_of_about_length_one():
    one, same, other = (make(CRD, seed=seed).bank_student_NE for seed in (1, 1, 2))
    assert one.norm(dim=1).mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
