"""DiffKD: DDIM's coefficients to 1e-8, what a denoiser that knows the teacher must give, and who trains whom."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from method_parts import batch, leaves, pair
from torch import nn

from tinkit.host.distill.pair import Side
from tinkit.host.methods.diffkd import DiffKD
from tinkit.host.methods.diffkd_parts import Denoiser, NoiseAdapter, alphas_cumprod, ddim_schedule
from tinkit.host.methods.lone_norm import BatchNorm2d

# Worked out apart from this code, in numpy: t, a_t, a_(t - 100), c_x, c_e.
GOLDEN = [
    (400, 0.19357200966664662, 0.394011122523382, 1.426700985960679, -0.5027436683374039),
    (300, 0.394011122523382, 0.6563470055193468, 1.2906619691450563, -0.4185002820504383),
    (200, 0.6563470055193468, 0.8951415908975365, 1.1678286191766618, -0.3607851210112517),
    (100, 0.8951415908975365, 0.9999, 1.0568963938808449, -0.3322425856002355),
    (0, 0.9999, 1.0, 1.0000500037503124, -0.010000500037502573),
]


def make(of=None, **options) -> DiffKD:
    torch.manual_seed(0)
    return DiffKD(of or pair(), **options).double()


def with_gradient(method, part, of) -> tuple[set[str], bool]:
    """(The method's modules that get gradient from this part, whether the student does.)"""
    method.zero_grad()
    method(of)[part].backward()
    reached = {
        ".".join(name.split(".")[:2]) for name, p in method.named_parameters() if p.grad is not None and p.grad.any()
    }
    return reached, any(t.grad is not None and bool(t.grad.any()) for t in leaves(of.student))


def test_golden_schedule():
    schedule, alphas = ddim_schedule(5), alphas_cumprod()
    assert [t for t, _, _ in schedule] == [400, 300, 200, 100, 0]
    for (t, c_x, c_e), (_, a, b, golden_x, golden_e) in zip(schedule, GOLDEN):
        assert c_x == pytest.approx(golden_x, abs=1e-8)
        assert c_e == pytest.approx(golden_e, abs=1e-8)
        assert alphas[t].item() == pytest.approx(a, abs=1e-8)
        assert t == 0 or alphas[t - 100].item() == pytest.approx(b, abs=1e-8)


def test_any_number_of_steps_leads_from_noise_to_none():
    """The product of c_x is sqrt(1 / a) of the first level, whatever lies between."""
    for steps in (1, 2, 7, 500):
        schedule = ddim_schedule(steps)
        assert len(schedule) == steps
        assert schedule[-1][0] == 0
        product = np.prod([c_x for _, c_x, _ in schedule])
        assert product == pytest.approx(alphas_cumprod()[schedule[0][0]].item() ** -0.5, rel=1e-12)


class KnowsTheTeacher(nn.Module):
    """The noise that stands between x and h, exactly; keeps the times it was asked for."""

    def __init__(self, h):
        super().__init__()
        self.h, self.times = h, []

    def forward(self, x, t_B):
        self.times.append(t_B)
        a = alphas_cumprod()[t_B][:, None, None, None]
        return (x - a.sqrt() * self.h) / (1 - a).sqrt()


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_a_denoiser_that_knows_the_teacher_leaves_no_loss(tau):
    """From any student, DDIM lands on the teacher, and the noise is told without error: kd and diff are zero."""
    method, of = make(autoencoder=False, tau=tau), batch(pair())
    maps = {
        method.feature: of.teacher.local_BLD.transpose(1, 2).unflatten(2, (2, 3)),
        method.logits: of.teacher.logits_BC[:, :, None, None],
    }
    for point, h in maps.items():
        point.denoiser, point.proj = KnowsTheTeacher(h), nn.Identity()
    parts = method(of)
    assert set(parts) == {"kd", "diff", "logits_kd", "logits_diff", "loss"}
    for name, value in parts.items():
        assert value.item() == pytest.approx(0, abs=1e-12), name
    for point in maps:
        asked = [times.tolist() for times in point.denoiser.times]
        assert asked[:5] == [[t] * 6 for t in (400, 300, 200, 100, 0)]
        assert len(set(asked[5])) > 1  # a time for each picture
        assert len(asked) == 6


def test_a_student_that_is_the_teacher_costs_nothing_when_no_noise_is_added_or_seen():
    """Student and teacher go through the same layer; scale is the batch norm's business."""
    same = Side(7, 7, (2, 3))
    method, of = make(pair(student=same, teacher=same, classes=None)), batch(pair(student=same, teacher=same))
    of.teacher.local_BLD.mul_(1e4)  # far above the norm's epsilon
    of.student.local_BLD.data.copy_(of.teacher.local_BLD)
    point = method.feature
    point.denoiser.body = nn.Sequential(Zero())
    with torch.no_grad():
        point.adapter.choice.weight.zero_()
        point.adapter.choice.bias.copy_(torch.tensor([800.0, 0.0]))  # g = 1
        point.trans.weight.copy_(point.encoder[0].weight)
        point.trans.bias.zero_()
        point.proj[0].weight.copy_(torch.eye(3)[:, :, None, None])
    assert method(of)["kd"].item() == pytest.approx(0, abs=1e-12)
    of.student.local_BLD.data.mul_(-1)
    assert method(of)["kd"].item() == pytest.approx(4, abs=1e-6)  # opposite points of variance 1


class Zero(nn.Module):
    def forward(self, x):
        return 0 * x


def test_kd_and_ae_by_hand():
    """A denoiser that sees no noise scales by 1 / sqrt(a_400); the rest is two linear maps, two norms and a mix."""
    method, of = make(pair(classes=None)), batch(pair())
    point = method.feature
    point.denoiser.body = nn.Sequential(Zero())
    parts = method(of)

    def rows(tokens):  # one row for each picture and position
        return tokens.detach().numpy().reshape(-1, tokens.shape[-1])

    def linear(conv, x):
        weight = conv.weight.detach().numpy()[:, :, 0, 0]
        return x @ weight.T + (0 if conv.bias is None else conv.bias.detach().numpy())

    def norm(x):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    teacher = rows(of.teacher.local_BLD)
    h = norm(linear(point.encoder[0], teacher))
    assert parts["ae"].item() == pytest.approx(np.mean((linear(point.decoder, h) - teacher) ** 2), abs=1e-10)
    x = linear(point.trans, rows(of.student.local_BLD))
    x_BDHW = torch.from_numpy(x).reshape(6, 6, 3).transpose(1, 2).reshape(6, 3, 2, 3)
    g = np.repeat(point.adapter(x_BDHW).detach().numpy(), 6)[:, None]
    noise = torch.randn(6, 3, 2, 3, generator=of.generator(), dtype=torch.float64)
    noise = noise.flatten(2).transpose(1, 2).reshape(-1, 3).numpy()
    denoised = norm(linear(point.proj[0], (g * x + (1 - g) * noise) / GOLDEN[0][1] ** 0.5))
    assert parts["kd"].item() == pytest.approx(np.mean((denoised - h) ** 2), abs=1e-10)


def test_logits_kd_by_hand():
    method, of = make(tau=3.0), batch(pair())
    student = torch.randn(6, 4, 1, 1, dtype=torch.float64)
    method.logits.proj = Constant(student)
    p, q = (torch.softmax(x.flatten(1) / 3, 1) for x in (of.teacher.logits_BC, student))
    assert method(of)["logits_kd"].item() == pytest.approx((9 * (p * (p / q).log()).sum() / 6).item(), abs=1e-12)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value + 0 * x


@pytest.mark.parametrize("prefix", ["", "logits_"])
def test_each_part_trains_exactly_its_own(prefix):
    point = "logits" if prefix else "feature"
    of = batch(pair())
    reached, student = with_gradient(make(), prefix + "kd", of)
    assert reached == {f"{point}.{name}" for name in ("trans", "denoiser", "adapter", "proj")}
    assert student
    reached, student = with_gradient(make(), prefix + "diff", batch(pair()))
    assert reached == {f"{point}.denoiser"}
    assert not student


def test_the_autoencoder_is_trained_by_its_own_error_alone():
    reached, student = with_gradient(make(), "ae", batch(pair()))
    assert reached == {"feature.encoder", "feature.decoder"}
    assert not student


def test_the_teacher_gets_no_gradient_even_when_it_asks():
    of = batch(pair())
    for tensor in leaves(of.teacher):
        tensor.requires_grad_()
    make()(of)["loss"].backward()
    assert all(tensor.grad is None for tensor in leaves(of.teacher))
    assert of.student.local_BLD.grad.any()
    assert of.student.logits_BC.grad.any()


class Scales(nn.Module):
    """eps(x) = w x, so that DDIM is the product over t of c_x + c_e w."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x, t_B):
        return self.w * x


def test_gradient_runs_back_through_all_five_steps():
    point = make().feature
    point.denoiser = Scales()
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    point.denoise(x).backward()
    factors = np.array([c_x + c_e * 0.3 for *_, c_x, c_e in GOLDEN])
    assert x.grad.item() == pytest.approx(factors.prod(), abs=1e-12)
    by_w = sum(c_e / factor for factor, (*_, c_e) in zip(factors, GOLDEN)) * factors.prod()
    assert point.denoiser.w.grad.item() == pytest.approx(by_w, abs=1e-12)


def test_without_logits_there_is_one_point():
    method, of = make(pair(classes=None)), batch(pair())
    assert method.logits is None
    assert set(method(of)) == {"kd", "diff", "ae", "loss"}
    unlabelled = replace(of, teacher=replace(of.teacher, logits_BC=None))
    assert set(make()(unlabelled)) == {"kd", "diff", "ae", "loss"}


@pytest.mark.parametrize(("options", "width"), [({}, 3), ({"ae_channels": 9}, 9), ({"autoencoder": False}, 7)])
def test_the_width_of_the_latent(options, width):
    assert make(**options).feature.proj[0].weight.shape == (width, width, 1, 1)


def test_a_student_grid_of_another_size_is_resampled():
    of = pair(student=Side(5, 5, (4, 6)))
    fine, coarse = batch(of), batch(pair())
    rows = fine.student.local_BLD.detach().reshape(6, 2, 2, 3, 2, 5).mean((2, 4)).reshape(6, 6, 5)
    coarse.student.local_BLD.data.copy_(rows)
    coarse.teacher, coarse.student.logits_BC = fine.teacher, fine.student.logits_BC
    a, b = make(of)(fine), make()(coarse)
    assert {n: v.item() for n, v in a.items()} == pytest.approx({n: v.item() for n, v in b.items()}, abs=1e-12)


def test_the_same_step_draws_the_same_noise_and_another_step_another():
    of = batch(pair())
    losses = [make()(replace(of, step=step))["loss"].item() for step in (3, 3, 4)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_weights_and_loss():
    parts = make(kd_weight=2.0, diff_weight=0.5, ae_weight=3.0)(batch(pair()))
    kd, diff = parts["kd"] + parts["logits_kd"], parts["diff"] + parts["logits_diff"]
    assert parts["loss"].item() == pytest.approx((2 * kd + 0.5 * diff + 3 * parts["ae"]).item())


@pytest.mark.parametrize("grid", [(2, 3), (1, 1)])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_one_picture_one_position_and_a_constant_student_give_finite_gradients(grid, count, training):
    of = pair(student=Side(5, 5, grid), teacher=Side(7, 7, grid), classes=2)
    method, one = make(of).train(training), batch(of, B=count)
    for tensor in leaves(one.student):
        tensor.data.fill_(1.0)
    loss = method(one)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    for tensor in [one.student.local_BLD, one.student.logits_BC, *method.parameters()]:
        assert torch.isfinite(tensor.grad).all()


def test_a_single_value_a_channel_is_normalised_by_what_was_seen_before():
    norm = BatchNorm2d(2).double()
    norm(torch.randn(64, 2, 1, 1, dtype=torch.float64) * 3 + 1)
    seen = norm.running_mean.clone(), norm.running_var.clone()
    one = torch.tensor([2.0, -1.0], dtype=torch.float64)[None, :, None, None]
    expected = (one.flatten() - seen[0]) / (seen[1] + norm.eps).sqrt()
    torch.testing.assert_close(norm(one).flatten(), expected)
    assert norm.running_mean.equal(seen[0])
    assert norm.num_batches_tracked == 1


def test_shapes_and_range_of_denoiser_and_adapter():
    for kernel, size in ((3, (2, 3)), (1, (1, 1))):
        x = torch.randn(4, 5, *size)
        assert Denoiser(5, kernel)(x, torch.arange(4)).shape == x.shape
        g = NoiseAdapter(5, kernel)(x)
        assert g.shape == (4,)
        assert ((g > 0) & (g < 1)).all()


def test_twenty_steps_lower_the_loss():
    method, of = make(), batch(pair())
    optimizer = torch.optim.Adam(method.parameters(), 0.02)
    losses = []
    for step in range(20):
        loss = method(replace(of, step=step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 501}, {"tau": 0.0}, {"ae_channels": -1}])
def test_nonsense_is_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"^{name} must be .*, not {value}$"):
        DiffKD(pair(), **options)


def test_it_asks_for_local_features():
    with pytest.raises(ValueError, match="local"):
        DiffKD(pair(teacher=Side(7)))
