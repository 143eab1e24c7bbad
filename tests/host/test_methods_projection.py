"""MSE, Cosine, Proteus, FitNet and SimKD: by hand in numpy, zero where they must be, and what gets gradient."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from method_parts import STUDENT, TEACHER, batch, leaves, pair

from tinkit.host.distill.pair import Tap
from tinkit.host.methods.cosine import Cosine
from tinkit.host.methods.fitnet import FitNet
from tinkit.host.methods.mse import MSE
from tinkit.host.methods.proteus import Proteus, draw_mask
from tinkit.host.methods.simkd import SimKD


class WithPatches(Proteus):
    """Proteus with its optional term."""

    def __init__(self, pair, **options):
        super().__init__(pair, **{"patch_weight": 1.0, **options})


METHODS = [MSE, Cosine, Proteus, WithPatches, FitNet, SimKD]


def method(cls, of=None, **options):
    torch.manual_seed(0)
    return cls(of or pair(), **options).double()


def array(tensor):
    return tensor.detach().numpy()


def linear(layer, x):
    return array(x) @ array(layer.weight).T + array(layer.bias)


def layer_norm(x):
    x = array(x)
    return torch.from_numpy((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5))


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_mse_by_hand():
    mse, data = method(MSE, local_weight=0.5), batch(pair())
    expected = ((linear(mse.global_head, data.student.global_BD) - array(data.teacher.global_BD)) ** 2).mean()
    local = ((linear(mse.local_head, data.student.local_BLD) - array(data.teacher.local_BLD)) ** 2).mean()
    parts = mse(data)
    assert parts["global"].item() == pytest.approx(expected, abs=1e-12)
    assert parts["local"].item() == pytest.approx(local, abs=1e-12)
    assert parts["loss"].item() == pytest.approx(expected + 0.5 * local, abs=1e-12)


def test_cosine_by_hand():
    method_, data = method(Cosine, local_weight=2.0), batch(pair())
    ours, theirs = linear(method_.global_head, data.student.global_BD), array(data.teacher.global_BD)
    expected = (1 - cosine(ours, theirs)).mean()
    local = (1 - cosine(linear(method_.local_head, data.student.local_BLD), array(data.teacher.local_BLD))).mean()
    assert method_(data)["loss"].item() == pytest.approx(expected + 2 * local, abs=1e-12)


def test_cosine_is_blind_to_the_teachers_lengths_and_mse_is_not():
    data, longer = batch(pair()), batch(pair())
    longer.teacher.global_BD = longer.teacher.global_BD * 3
    longer.teacher.local_BLD = longer.teacher.local_BLD * torch.rand(6, 6, 1, dtype=torch.float64).add(0.1)
    assert method(Cosine)(longer)["loss"].item() == pytest.approx(method(Cosine)(data)["loss"].item(), abs=1e-12)
    assert method(MSE)(longer)["loss"].item() != pytest.approx(method(MSE)(data)["loss"].item(), abs=0.1)


@pytest.mark.parametrize("cls", [MSE, Cosine])
def test_without_local_features_on_either_side_only_the_global_part(cls):
    for side, of in (("student", STUDENT), ("teacher", TEACHER)):
        bare = pair(**{side: replace(of, local_dim=None, grid=None)})
        regress = method(cls, bare)
        assert set(regress(batch(bare))) == {"global", "loss"}
        assert {name.split(".")[0] for name, _ in regress.named_parameters()} == {"global_head"}
    assert set(method(cls, local_weight=0.0)(batch(pair()))) == {"global", "loss"}


@pytest.mark.parametrize("cls", [MSE, Cosine])
def test_zero_where_the_teacher_is_a_linear_function_of_the_student(cls):
    regress, data = method(cls), batch(pair())
    data.teacher.global_BD = regress.global_head(data.student.global_BD).detach()
    data.teacher.local_BLD = regress.local_head(data.student.local_BLD).detach()
    assert regress(data)["loss"].item() == pytest.approx(0, abs=1e-12)


def test_proteus_by_hand():
    of = pair()
    proteus, data = method(Proteus, token_weight=2.0, feature_weight=3.0, patch_weight=5.0), batch(of)
    s, t = layer_norm(data.student.global_BD), array(data.teacher.global_BD)
    S, T = layer_norm(data.student.local_BLD), array(data.teacher.local_BLD)
    token = linear(proteus.token_head[1], s) - t
    feature = np.concatenate([token[:, None], linear(proteus.feature_head[1], S) - T], axis=1)
    mask = draw_mask(6, 6, 0.5, 0.5, data.generator()).numpy()
    patch = (linear(proteus.patch_head[1], S) - T)[mask]
    parts = proteus(data)
    assert parts["token"].item() == pytest.approx((token**2).mean(), abs=1e-12)
    assert parts["feature"].item() == pytest.approx((feature**2).mean(), abs=1e-12)
    assert parts["patch"].item() == pytest.approx((patch**2).mean(), abs=1e-12)
    total = 2 * (token**2).mean() + 3 * (feature**2).mean() + 5 * (patch**2).mean()
    assert parts["loss"].item() == pytest.approx(total, abs=1e-12)


def test_proteus_takes_a_teacher_whose_pooled_vector_has_a_width_of_its_own():
    of = pair(teacher=replace(TEACHER, dim=11))
    proteus, data = method(Proteus, of), batch(of)
    token = linear(proteus.token_head[1], layer_norm(data.student.global_BD)) - array(data.teacher.global_BD)
    local = linear(proteus.feature_head[1], layer_norm(data.student.local_BLD)) - array(data.teacher.local_BLD)
    expected = ((token**2).sum() + (local**2).sum()) / (token.size + local.size)
    parts = proteus(data)
    assert parts["feature"].item() == pytest.approx(expected, abs=1e-12)


def test_proteus_is_blind_to_the_students_lengths():
    data, longer = batch(pair()), batch(pair())
    longer.student.global_BD.data *= 3
    longer.student.local_BLD.data = longer.student.local_BLD.data * 3 + 1
    # Layer norm's epsilon is all that is left of the length.
    assert method(Proteus)(longer)["loss"].item() == pytest.approx(method(Proteus)(data)["loss"].item(), rel=1e-3)


@pytest.mark.parametrize(("pictures", "places"), [(8, 12), (5, 9), (1, 1)])
def test_the_mask_has_half_of_the_places_in_half_of_the_pictures(pictures, places):
    mask = draw_mask(pictures, places, 0.5, 0.5, torch.Generator().manual_seed(3))
    counts = mask.sum(1)
    assert (counts > 0).sum() == max(1, round(pictures / 2))
    assert set(counts.tolist()) <= {0, max(1, round(places / 2))}


def test_proteus_has_no_patch_term_unless_asked_for():
    assert set(method(Proteus)(batch(pair()))) == {"token", "feature", "loss"}
    assert method(Proteus).patch_head is None
    assert "patch" in method(Proteus, patch_weight=1.0)(batch(pair()))


def test_the_mask_changes_with_the_step_and_repeats_on_resume():
    data = batch(pair())
    same, later = batch(pair()), replace(data, step=1)
    proteus = method(Proteus, patch_weight=1.0)
    assert proteus(data)["patch"].item() == proteus(same)["patch"].item()
    assert proteus(data)["patch"].item() != proteus(later)["patch"].item()


def test_the_patch_part_reaches_the_drawn_places_only():
    proteus, data = method(Proteus, patch_weight=1.0), batch(pair())
    proteus(data)["patch"].backward()
    reached = data.student.local_BLD.grad.abs().sum(-1) > 0
    assert torch.equal(reached, draw_mask(6, 6, 0.5, 0.5, data.generator()))
    assert data.student.global_BD.grad is None


@pytest.mark.parametrize(
    ("taps", "layer", "names"),
    [
        (4, 0, ("s2", "t2")),  # layer 2 of 4
        (3, 0, ("s2", "t2")),
        (2, 0, ("s1", "t1")),
        (4, 1, ("s1", "t1")),
        (4, 4, ("s4", "t4")),
    ],
)
def test_fitnet_takes_the_middle_or_the_layer_asked_for(taps, layer, names):
    ours = tuple(Tap(f"s{k}", 3, (4, 4)) for k in range(1, taps + 1))
    theirs = (Tap("shallow", 2, (16, 16)), *(Tap(f"t{k}", 5, (4, 4)) for k in range(1, taps + 1)))
    of = pair(student=replace(STUDENT, taps=ours), teacher=replace(TEACHER, taps=theirs))
    assert FitNet(of, layer=layer).names == names


def test_fitnet_by_hand():
    of = pair()  # matched: (s1, t1), (s2, t2); s2 is 2 x 3, t2 is 3 x 3
    fitnet, data = method(FitNet, of, layer=2), batch(of)
    grown = torch.nn.functional.interpolate(data.student.taps["s2"], (3, 3), mode="bilinear")
    W, b = array(fitnet.regressor.weight)[:, :, 0, 0], array(fitnet.regressor.bias)
    out = np.einsum("oc,bchw->bohw", W, array(grown)) + b[:, None, None]
    hint = ((out - array(data.teacher.taps["t2"])) ** 2).mean()
    parts = fitnet(data)
    assert parts["hint"].item() == pytest.approx(hint, abs=1e-12)
    assert parts["loss"].item() == pytest.approx(100 * hint, abs=1e-10)


def test_fitnet_is_zero_at_the_regressed_map():
    fitnet, data = method(FitNet, layer=2), batch(pair())
    data.student.taps["s2"] = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    data.teacher.taps["t2"] = fitnet.regressor(data.student.taps["s2"]).detach()
    assert fitnet(data)["loss"].item() == 0


def normalised(x):
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    return np.maximum((x - mean) / np.sqrt(var + 1e-5), 0)


def test_simkd_by_hand():
    simkd, data = method(SimKD), batch(pair())
    first, second, third = (array(m.weight) for m in simkd.projector if isinstance(m, torch.nn.Conv2d))
    assert (first.shape, second.shape, third.shape) == ((3, 5, 1, 1), (3, 3, 3, 3), (7, 3, 1, 1))  # 7 // 2
    x = array(data.student.local_BLD).transpose(0, 2, 1).reshape(6, 5, 2, 3)
    x = normalised(np.einsum("oc,bchw->bohw", first[:, :, 0, 0], x))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    x = sum(
        np.einsum("oc,bchw->bohw", second[:, :, i, j], padded[:, :, i : i + 2, j : j + 3])
        for i in range(3)
        for j in range(3)
    )
    x = normalised(np.einsum("oc,bchw->bohw", third[:, :, 0, 0], normalised(x)))
    target = array(data.teacher.local_BLD).transpose(0, 2, 1).reshape(6, 7, 2, 3)
    assert simkd(data)["loss"].item() == pytest.approx(((x - target) ** 2).mean(), abs=1e-10)


def test_simkd_floor_of_a_signed_teacher_and_its_way_out():
    """With a constant projector the loss is the distance to that constant: 0 for the same one, a floor below 0."""
    for last_relu, constant, expected in ((True, 0.7, 0), (True, -0.7, 0.49), (False, -0.7, 0)):
        simkd, data = method(SimKD, last_relu=last_relu), batch(pair())
        last = [m for m in simkd.projector if isinstance(m, torch.nn.BatchNorm2d)][-1]
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.constant_(last.bias, constant)
        data.teacher.local_BLD = torch.full_like(data.teacher.local_BLD, constant)
        assert simkd(data)["loss"].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("ours", "theirs"), [((2, 3), (4, 6)), ((4, 6), (2, 3)), ((2, 6), (4, 3))])
def test_simkd_compares_on_the_smaller_grid(ours, theirs):
    of = pair(student=replace(STUDENT, grid=ours), teacher=replace(TEACHER, grid=theirs))
    simkd, data = method(SimKD, of), batch(of)
    seen = []
    simkd.projector.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-2:]))
    simkd(data)["loss"].backward()
    assert seen == [(2, 3)]
    assert (data.student.local_BLD.grad.abs().sum(-1) > 0).all()


REACHED = {
    MSE: {"global_BD", "local_BLD"},
    Cosine: {"global_BD", "local_BLD"},
    Proteus: {"global_BD", "local_BLD"},
    WithPatches: {"global_BD", "local_BLD"},
    FitNet: {"s1"},
    SimKD: {"local_BLD"},
}


@pytest.mark.parametrize("cls", METHODS)
def test_gradient_reaches_the_stated_features_and_every_own_parameter(cls):
    data, regress = batch(pair()), method(cls)
    for tensor in leaves(data.teacher):
        tensor.requires_grad_()
    student = {name: getattr(data.student, name) for name in ("global_BD", "local_BLD", "logits_BC")}
    student.update(data.student.taps)
    regress(data)["loss"].backward()
    assert {name for name, tensor in student.items() if tensor.grad is not None} == REACHED[cls]
    assert all(student[name].grad.abs().sum() > 0 for name in REACHED[cls])
    assert all(tensor.grad is None for tensor in leaves(data.teacher))
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in regress.parameters())


@pytest.mark.parametrize("cls", METHODS)
@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (1, (2, 3)), (4, (2, 3))])
def test_one_picture_one_place_and_a_constant_student_are_finite(cls, count, grid):
    taps = tuple(Tap(tap.name, tap.channels, grid) for tap in STUDENT.taps)
    of = pair(student=replace(STUDENT, grid=grid, taps=taps), teacher=replace(TEACHER, grid=grid))
    regress, data = method(cls, of), batch(of, B=count)
    for tensor in leaves(data.student):
        tensor.data.fill_(0.5)
    loss = regress(data)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [tensor.grad for tensor in [*leaves(data.student), *regress.parameters()] if tensor.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("cls", METHODS)
def test_fifty_steps_lower_the_loss_and_keep_the_dtype(cls):
    torch.manual_seed(0)
    regress, data = cls(pair()), batch(pair(), dtype=torch.float32)
    optimiser = torch.optim.AdamW([*regress.parameters(), *leaves(data.student)], lr=1e-2)
    losses = []
    for _ in range(50):
        loss = regress(data)["loss"]
        assert loss.dtype == torch.float32
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("cls", [MSE, Cosine, Proteus, SimKD])
def test_a_batch_without_the_local_features_it_was_promised_is_refused(cls):
    data = batch(pair())
    data.teacher.local_BLD = None
    with pytest.raises(ValueError, match="local features"):
        method(cls)(data)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (MSE, {"local_weight": -1.0}),
        (Cosine, {"local_weight": -1.0}),
        (Proteus, {"mask_ratio": 0.0}),
        (Proteus, {"mask_share": 1.5}),
        (FitNet, {"layer": 3}),
        (FitNet, {"weight": 0.0}),
        (SimKD, {"factor": 8}),
    ],
)
def test_nonsense_is_refused(cls, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"^{name} must be .*, not {value}$"):
        cls(pair(), **options)
