"""Methods on attention maps at several depths: AT, AFD and RTK (a reconstruction over AFD)."""

from dataclasses import replace

import pytest
import torch
from method_parts import STUDENT, TEACHER, batch, leaves, pair

from tinkit.host.distill.pair import Tap
from tinkit.host.methods.afd import AFD, map_errors
from tinkit.host.methods.at import AT, attention_error, attention_map
from tinkit.host.methods.rtk import RTK, keep

ALL = [AT, AFD, RTK]
LEARNED = [AFD, RTK]


def make(method, of=None, **options):
    torch.manual_seed(0)
    return method(of or pair(), **options).double()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def taps_of(given):
    return list(given.student.taps.values()), list(given.teacher.taps.values())


def without_logits(given):
    return replace(
        given, student=replace(given.student, logits_BC=None), teacher=replace(given.teacher, logits_BC=None)
    )


# AT ---------------------------------------------------------------------------------------------------------------


def test_an_attention_map_by_hand():
    maps = torch.tensor([[[[1.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]]])  # energies 1, 0, 2, 2
    torch.testing.assert_close(attention_map(maps), torch.tensor([[1 / 3, 0, 2 / 3, 2 / 3]]))


def test_attention_error_by_hand():
    ours, theirs = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 5.0]]]])
    assert attention_error(ours, theirs).item() == pytest.approx(1.0)  # (1 - 0)^2 and (0 - 1)^2, mean


def test_at_adds_the_pairs_from_the_deep_end():
    given = batch(pair())
    parts = make(AT)(given)
    ours, theirs = taps_of(given)
    wanted = attention_error(ours[0], theirs[1]) + attention_error(ours[1], theirs[2])
    assert parts["attention"].item() == pytest.approx(wanted.item(), abs=1e-15)
    assert parts["loss"].item() == pytest.approx(1000 * wanted.item(), abs=1e-12)


def test_larger_features_are_averaged_to_the_smaller_grid_on_either_side():
    large, small = normal(2, 3, 4, 6), normal(2, 5, 2, 3, seed=1)
    averaged = large.unflatten(2, (2, 2)).unflatten(4, (3, 2)).mean((3, 5))
    wanted = attention_error(averaged, small).item()
    assert attention_error(large, small).item() == pytest.approx(wanted, abs=1e-15)
    assert attention_error(small, large).item() == pytest.approx(wanted, abs=1e-15)
    assert attention_error(normal(1, 3, 4, 2), normal(1, 3, 2, 4)).isfinite()


def test_an_attention_map_knows_no_scale_order_or_sign_of_channels():
    maps = normal(2, 4, 3, 3)
    other = -2.5 * maps[:, [2, 0, 3, 1]]
    assert attention_error(maps, other).item() == pytest.approx(0, abs=1e-15)
    assert attention_error(maps, maps.flip(3)).item() > 1e-3


# AFD --------------------------------------------------------------------------------------------------------------


def batch_norm(rows):
    return (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()


def linear(projection, rows):
    return rows @ projection.linear.weight.mT + projection.linear.bias


def projected(projection, tap):
    return batch_norm(linear(projection, tap.mean((2, 3))))


def test_afd_attention_one_pair_of_taps_at_a_time():
    method, given = make(AFD, qk_dim=6), batch(pair())
    student, teacher = taps_of(given)
    queries = [projected(p, f) for p, f in zip(method.query, teacher)]
    keys = [projected(p, f).relu() for p, f in zip(method.key, student)]
    rows = torch.stack([keys[s][b] for b in range(6) for s in range(2)])
    bilinear = batch_norm(linear(method.bilinear, rows))
    wanted = torch.zeros(6, 3, 2, dtype=torch.float64)
    for b in range(6):
        for t in range(3):
            for s in range(2):
                key = bilinear[b * 2 + s, t * 6 : (t + 1) * 6]
                wanted[b, t, s] = (key @ queries[t][b] + method.place_t[t] @ method.place_s[s]) / 6**0.5
    torch.testing.assert_close(method.attention(student, teacher), wanted.softmax(2))


def test_map_errors_are_on_each_teacher_taps_grid():
    student, teacher = taps_of(batch(pair()))
    errors = map_errors(student, teacher)
    assert errors.shape == (6, 3, 2)
    for t, theirs in enumerate(teacher):
        for s, ours in enumerate(student):
            for b in range(6):
                energy = (ours[b] ** 2).sum(0) / len(ours[b])
                on_grid = torch.nn.functional.adaptive_avg_pool2d(energy[None], theirs.shape[2:]).flatten()
                goal = (theirs[b] ** 2).sum(0).flatten()
                wanted = ((on_grid / on_grid.norm() - goal / goal.norm()) ** 2).mean()
                assert errors[b, t, s].item() == pytest.approx(wanted.item(), abs=1e-14)


def test_afd_is_a_weighted_mean_over_the_student_taps_of_each_teacher_tap():
    method, given = make(AFD), without_logits(batch(pair()))
    weights, errors = method.attention(*taps_of(given)), map_errors(*taps_of(given))
    torch.testing.assert_close(weights.sum(2), torch.ones(6, 3, dtype=torch.float64))
    parts = method(given)
    wanted = sum((weights[b] * errors[b]).sum() for b in range(6)) / 6
    assert set(parts) == {"attention", "loss"}
    assert parts["attention"].item() == pytest.approx(wanted.item())
    assert parts["loss"].item() == pytest.approx(200 * wanted.item())


# RTK --------------------------------------------------------------------------------------------------------------


def test_rtk_attention_one_pair_of_taps_at_a_time():
    method, given = make(RTK, qk_dim=6), batch(pair())
    student, teacher = taps_of(given)
    wanted = torch.zeros(6, 2, 3, dtype=torch.float64)
    for s, ours in enumerate(student):
        for t, theirs in enumerate(teacher):
            query, key = projected(method.query[s], ours), projected(method.key[t], theirs).relu()
            wanted[:, s, t] = ((query * key).sum(1) + method.place_s[s] @ method.place_t[t]) / 6**0.5
    torch.testing.assert_close(method.attention(student, teacher), wanted.softmax(2))


@pytest.mark.parametrize("straight_through", [True, False])
def test_rtk_with_every_key_is_the_unfiltered_attention_loss(straight_through):
    method, given = make(RTK, top_k=3, straight_through=straight_through), without_logits(batch(pair()))
    unfiltered = (method.attention(*taps_of(given)) * map_errors(*taps_of(given)).mT).sum((1, 2)).mean()
    loss = method(given)["attention"]
    assert loss.item() == pytest.approx(unfiltered.item(), abs=1e-14)
    parts = [*given.student.taps.values(), *method.parameters()]
    for ours, theirs in zip(torch.autograd.grad(loss, parts), torch.autograd.grad(unfiltered, parts)):
        torch.testing.assert_close(ours, theirs)


def test_rtk_with_one_key_takes_the_error_of_the_largest_weight():
    method, given = make(RTK), batch(pair())
    weights, errors = method.attention(*taps_of(given)), map_errors(*taps_of(given)).mT
    wanted = sum(errors[b, s, weights[b, s].argmax()] for b in range(6) for s in range(2)) / 6
    assert method(given)["attention"].item() == pytest.approx(wanted.item(), abs=1e-14)


def test_keep_by_hand():
    weights = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]])
    torch.testing.assert_close(keep(weights, 1), torch.tensor([[[1.0, 0, 0], [0, 0, 1.0]]]))
    torch.testing.assert_close(keep(weights, 2), torch.tensor([[[5 / 8, 3 / 8, 0], [0, 2 / 9, 7 / 9]]]))
    torch.testing.assert_close(keep(weights, 0), torch.tensor([[[1.0, 0, 0], [0, 0, 1.0]]]))  # at least 1/3
    even = torch.full((1, 1, 3), 1 / 3)
    torch.testing.assert_close(keep(even, 0), even)
    torch.testing.assert_close(keep(even - 1e-7, 0), even)  # rounded below the average: never nobody


def test_the_mask_has_no_gradient():
    weights = normal(2, 3, 5).softmax(2).requires_grad_()
    (keep(weights, 2) * normal(2, 3, 5, seed=1)).sum().backward()
    dropped = keep(weights, 2) == 0
    assert dropped.sum() == 2 * 3 * 3
    assert weights.grad[dropped].abs().max() == 0
    assert weights.grad[~dropped].abs().min() > 0


def trained(method, given):
    """Names of the own parts with a gradient above rounding."""
    method(given)["attention"].backward()
    return {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-15}


def test_rtk_with_one_key_trains_its_attention_only_when_passed_straight_through():
    """The finding behind `straight_through`: one key's weight is A / A = 1, whatever A is."""
    literal, given = make(RTK, straight_through=False), batch(pair())
    assert trained(literal, given) == set()
    method, again = make(RTK), batch(pair())
    assert {"query.0.linear.weight", "key.2.linear.weight", "place_s", "place_t"} <= trained(method, again)
    assert method(again)["loss"].item() == pytest.approx(literal(given)["loss"].item(), abs=1e-12)


def test_rtk_is_labelled_a_reconstruction():
    assert RTK.reconstruction
    assert "reconstruction" in RTK.__doc__.splitlines()[0]
    assert not AFD.reconstruction


# Laws -------------------------------------------------------------------------------------------------------------

SAME = pair(
    student=replace(STUDENT, taps=(Tap("s1", 2, (4, 4)), Tap("s2", 3, (4, 4)))),
    teacher=replace(TEACHER, taps=(Tap("t1", 5, (4, 4)), Tap("t2", 1, (4, 4)), Tap("t3", 4, (4, 4)))),
)


@pytest.mark.parametrize("method", ALL)
def test_zero_when_every_pair_of_attention_maps_is_identical(method):
    """The same looks in other channels, at other scales; with other looks it is not zero."""
    given = batch(SAME)
    loss = make(method, SAME)
    assert loss(given)["attention"].item() > 1e-3
    looks = normal(6, 1, 4, 4, seed=3)
    for side in (given.student, given.teacher):
        for scale, (name, old) in enumerate(side.taps.items(), start=1):
            side.taps[name] = (scale * looks).repeat(1, old.shape[1], 1, 1).requires_grad_(old.requires_grad)
    assert loss(given)["attention"].item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("method", LEARNED)
def test_the_kl_term_is_there_with_logits_and_only_then(method):
    given = batch(pair())
    parts = make(method)(given)
    p, q = ((side.logits_BC / 4).softmax(1) for side in (given.teacher, given.student))
    kl = 16 * (p * (p / q).log()).sum() / 6
    assert parts["kd"].item() == pytest.approx(kl.item(), abs=1e-12)
    assert parts["loss"].item() == pytest.approx(200 * parts["attention"].item() + 0.9 * kl.item(), abs=1e-10)
    assert set(make(method)(without_logits(given))) == {"attention", "loss"}
    assert set(make(method, kd_weight=0.0)(given)) == {"attention", "loss"}


@pytest.mark.parametrize("method", ALL)
def test_gradient_reaches_all_student_taps_the_logits_and_the_own_parts(method):
    given, loss = batch(pair()), make(method)
    loss(given)["loss"].backward()
    student = given.student
    reached = [*student.taps.values(), *([] if method is AT else [student.logits_BC])]
    for tensor in leaves(student):
        assert (tensor.grad is not None and tensor.grad.abs().sum() > 0) == any(tensor is r for r in reached)
    assert all(tensor.grad is None for tensor in leaves(given.teacher))
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith("weight") or name.startswith("place"):
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("change", ["nothing", "constant", "zero"])
def test_one_picture_constant_and_zero_maps_stay_finite(method, change):
    for count, dtype in ((1, torch.float32), (2, torch.float32), (6, torch.float64)):
        given, loss = batch(pair(), B=count, dtype=dtype), make(method).to(dtype)
        for tensor in given.student.taps.values():
            if change == "constant":
                tensor.data[:] = tensor.data[:1].mean()
            elif change == "zero":
                tensor.data.zero_()
        parts = loss(given)
        parts["loss"].backward()
        assert all(torch.isfinite(part) and part.ndim == 0 for part in parts.values())
        assert all(torch.isfinite(tensor.grad).all() for tensor in given.student.taps.values())
        assert all(torch.isfinite(p.grad).all() for p in loss.parameters())


@pytest.mark.parametrize("method", LEARNED)
def test_one_tap_and_one_picture_is_enough(method):
    one = pair(student=replace(STUDENT, taps=STUDENT.taps[-1:]), teacher=replace(TEACHER, taps=TEACHER.taps[-1:]))
    loss, given = make(method, one), batch(one, B=1)
    means = loss.query[0].norm.running_mean.clone()
    assert torch.isfinite(loss(given)["loss"])
    assert torch.equal(loss.query[0].norm.running_mean, means)  # a single row teaches the statistics nothing
    loss(batch(one, B=2))
    assert not torch.equal(loss.query[0].norm.running_mean, means)


@pytest.mark.parametrize("method", ALL)
def test_nonsense_is_refused(method):
    with pytest.raises(ValueError, match="taps"):
        make(method, pair(student=replace(STUDENT, taps=())))
    with pytest.raises(ValueError, match="weight must be at least 0, not -1"):
        make(method, weight=-1.0)
    if method is RTK:
        with pytest.raises(ValueError, match="top_k"):
            make(RTK, top_k=-1)


@pytest.mark.parametrize("method", LEARNED)
def test_training_lowers_it(method):
    loss, given = make(method, qk_dim=8), batch(pair())
    parameters = [*loss.parameters(), *given.student.taps.values(), given.student.logits_BC]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    values = []
    for _ in range(40):
        value = loss(given)["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]
