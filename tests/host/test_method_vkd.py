"""VkD: exact projections, what they keep, the loss by hand, and what gets gradient."""

import pytest
import torch
from method_parts import STUDENT, TEACHER, batch, leaves, pair
from torch.nn import functional as F

from tinkit.host.distill.pair import Side
from tinkit.host.methods.vkd import PROJECTIONS, CholeskyProjection, HouseholderProjection, VkD, standardise, whiten

KINDS = list(PROJECTIONS)
SHAPES = [(5, 9), (6, 6), (9, 5)]  # student narrower, as wide, wider than the teacher


def rows(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trained(kind, ds, dt, dtype, steps=20):
    """A projection after steps of AdamW, with weight decay, at a large learning rate."""
    torch.manual_seed(0)
    projection = PROJECTIONS[kind](ds, dt).to(dtype)
    optimiser = torch.optim.AdamW(projection.parameters(), lr=5e-3, weight_decay=0.05)
    for step in range(steps):
        loss = F.smooth_l1_loss(projection(rows(8, ds, seed=step).to(dtype)), rows(8, dt, seed=-step - 1).to(dtype))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return projection


def matrix(projection, ds, dtype):
    """W (dt,ds)."""
    return projection(torch.eye(ds, dtype=dtype)).detach().T


@pytest.mark.parametrize(("ds", "dt"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_w_is_orthonormal_after_steps_and_moved(kind, ds, dt):
    W = matrix(trained(kind, ds, dt, torch.float64), ds, torch.float64)
    thin = W if dt >= ds else W.T
    exact = 1e-6 if kind == "matrix_exp" else 1e-12  # torch's fixed rotation is made in float32
    torch.testing.assert_close(thin.T @ thin, torch.eye(min(ds, dt), dtype=torch.float64), atol=exact, rtol=0)
    start = matrix(trained(kind, ds, dt, torch.float64, steps=0), ds, torch.float64)
    assert (W - start).abs().max() > 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_keeps_the_gram_matrix(kind):
    projection, z = trained(kind, 24, 60, torch.float32, steps=50), rows(7, 24).float()
    out = projection(z).detach()
    assert out.dtype == torch.float32
    torch.testing.assert_close(out @ out.T, z @ z.T, atol=2e-4, rtol=0)


def test_cholesky_in_single_precision_is_exact_for_a_badly_conditioned_parameter():
    torch.manual_seed(0)
    projection = CholeskyProjection(4, 6)
    with torch.no_grad():
        projection.V[:, 1] = projection.V[:, 0] + 1e-3 * projection.V[:, 1]  # a float32 Gram matrix would lose this
    W = matrix(projection, 4, torch.float32)
    torch.testing.assert_close(W.T @ W, torch.eye(4), atol=1e-3, rtol=0)


def test_cholesky_is_gram_schmidt_and_blind_to_scale():
    projection = CholeskyProjection(2, 3).double()
    with torch.no_grad():
        projection.V.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]))
    root = 0.5**0.5
    expected = torch.tensor([[root, root], [root, -root], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(matrix(projection, 2, torch.float64), expected)
    with torch.no_grad():
        projection.V.mul_(0.1)
    torch.testing.assert_close(matrix(projection, 2, torch.float64), expected)


@pytest.mark.parametrize(("ds", "dt"), SHAPES)
def test_compact_householder_is_the_product_of_the_reflections(ds, dt):
    torch.manual_seed(0)
    projection = HouseholderProjection(ds, dt).double()
    below = projection.below.detach()
    Q = torch.linalg.householder_product(below, 2 / (1 + below.square().sum(0)))
    torch.testing.assert_close(matrix(projection, ds, torch.float64), Q if dt >= ds else Q.T)


@pytest.mark.parametrize(("ds", "dt"), [(3, 5), (5, 3)])
@pytest.mark.parametrize("cls", [CholeskyProjection, HouseholderProjection])
def test_gradient_of_the_projection_against_finite_differences(cls, ds, dt):
    torch.manual_seed(1)
    projection = cls(ds, dt).double()
    ((name, parameter),) = projection.named_parameters()
    free = (parameter.detach() + 0.3 * rows(*parameter.shape)).tril(-1 if name == "below" else 99).requires_grad_()
    call = torch.func.functional_call
    assert torch.autograd.gradcheck(
        lambda V, z: call(projection, {name: V}, (z,)), (free, rows(2, ds).requires_grad_())
    )


def method(of=None, **options):
    torch.manual_seed(0)
    return VkD(of or pair(), **options).double()


def test_loss_by_hand():
    vkd = method(pair(student=Side(2), teacher=Side(3), classes=None))
    with torch.no_grad():
        vkd.projection.V.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]]))  # W = the first two axes
    data = batch(pair(student=Side(2), teacher=Side(3), classes=None), B=1)
    data.student.global_BD.data = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    data.teacher.global_BD = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    unit = 1 / (2 / 3 + 1e-5) ** 0.5  # layer norm: (-unit, 0, unit)
    expected = ((3 + unit - 0.5) + (4 - 0.5) + unit - 0.5) / 3  # |unit| > 1: the linear branch
    parts = vkd(data)
    assert parts["feature"].item() == pytest.approx(expected, abs=1e-12)
    assert parts["loss"].item() == pytest.approx(expected, abs=1e-12)
    assert "kl" not in parts


def test_zero_where_the_student_is_the_turned_back_normalised_teacher():
    same = pair(student=Side(7), teacher=TEACHER, classes=None)
    vkd, data = method(same), batch(same)
    target = F.layer_norm(data.teacher.global_BD, (7,))
    data.student.global_BD.data = target @ matrix(vkd.projection, 7, torch.float64)
    assert vkd(data)["loss"].item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(("tau", "golden"), [(1.0, 0.2031370760995), (4.0, 0.3798381425853)])
def test_the_kl_part_is_kd(tau, golden):
    data = batch(pair(), B=3)
    ours = [[2, 0.5, -1, 0], [0.1, 1.5, 0.3, -0.7], [-0.5, 0.2, 0.9, 1.1]]
    theirs = [[3, 1, -2, 0.5], [-1, 2.5, 0, -0.5], [0, -1, 1, 3]]
    data.student.logits_BC = torch.tensor(ours, dtype=torch.float64)
    data.teacher.logits_BC = torch.tensor(theirs, dtype=torch.float64)
    parts = method(tau=tau, alpha=2.0, gamma=3.0)(data)
    assert parts["kl"].item() == pytest.approx(golden, abs=1e-8)
    assert parts["loss"].item() == pytest.approx(2 * parts["feature"].item() + 3 * parts["kl"].item(), abs=1e-12)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_without_logits_on_either_side_there_is_no_kl(side):
    data = batch(pair())
    getattr(data, side).logits_BC = None
    assert set(method()(data)) == {"feature", "loss"}


def test_standardise_by_hand():
    out = standardise(rows(9, 4) * 3 + 5)
    torch.testing.assert_close(out.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(out.std(0), torch.ones(4, dtype=torch.float64))


def test_standardised_on_both_sides_scale_and_offset_of_the_student_do_not_count():
    vkd, data = method(norm="standardise"), batch(pair())
    before = vkd(data)["feature"].item()
    data.student.global_BD.data = 4 * data.student.global_BD.data + rows(1, 5)
    assert vkd(data)["feature"].item() == pytest.approx(before, abs=1e-12)
    layernorm = method()
    assert layernorm(data)["feature"].item() != pytest.approx(layernorm(batch(pair()))["feature"].item(), abs=1e-3)


def test_whitened_rows_have_covariance_one():
    skewed = rows(40, 6) @ rows(6, 6, seed=1) + 3
    torch.testing.assert_close(whiten(skewed, 1e-12).T.cov(), torch.eye(6, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", ["layernorm", "standardise", "whiten"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_picture_and_a_constant_student_are_finite(norm, kind):
    for count in (1, 4):
        vkd, data = method(norm=norm, parametrization=kind), batch(pair(), B=count)
        data.student.global_BD.data.fill_(0.5)
        vkd(data)["loss"].backward()
        for gradient in [data.student.global_BD.grad, *(p.grad for p in vkd.parameters())]:
            assert torch.isfinite(gradient).all()


def test_gradient_reaches_student_and_projection_only():
    vkd, data = method(), batch(pair())
    for tensor in leaves(data.teacher):
        tensor.requires_grad_()
    vkd(data)["loss"].backward()
    assert data.student.global_BD.grad.abs().sum() > 0
    assert data.student.logits_BC.grad.abs().sum() > 0
    assert data.student.local_BLD.grad is None
    assert all(tensor.grad is None for tensor in leaves(data.teacher))
    assert all(p.grad.abs().sum() > 0 for p in vkd.parameters())


@pytest.mark.parametrize(
    "options", [{"norm": "batch"}, {"parametrization": "qr"}, {"tau": 0.0}, {"whiten_eps": 0.0}, {"gamma": -1.0}]
)
def test_nonsense_is_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"^{name} must be .*, not {value}$"):
        VkD(pair(student=STUDENT), **options)
