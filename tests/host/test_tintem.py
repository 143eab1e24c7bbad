"""TinTeM's loss: golden values worked out in float64, invariances, and who gets gradient."""

import pytest
import torch

from tinkit.host.distill.objective import Objective, Term
from tinkit.host.distill.pair import Batch, Pair, Side
from tinkit.host.features import Features
from tinkit.host.methods import method_class, options_of
from tinkit.host.methods.tintem import TEMPERATURES, TinTeM, cosine_matrix_error, sne

T = torch.tensor([[1, 0, 0], [0.8, 0.6, 0], [0, 1, 0.2], [0, 0.3, 1]], dtype=torch.float64)
S = torch.tensor([[1, 0], [0.9, 0.5], [0.1, 1], [-0.4, 1]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("form", "temperatures", "golden"),
    [
        ("full", TEMPERATURES, 1.8589291102),
        ("full", (0.1,), 0.4043439329),
        ("full", (1.0,), 0.0206859888),
        ("half", TEMPERATURES, 2.152609985),
        ("half", (0.1,), 0.5474798412),
    ],
)
def test_golden_values(form, temperatures, golden):
    assert sne(T, S, temperatures, form).item() == pytest.approx(golden, abs=1e-8)


def rotation(width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator))[0]


@pytest.mark.parametrize("form", ["full", "half"])
def test_zero_at_equality_and_blind_to_rotation_and_scale(form):
    assert sne(T, T, form=form).item() == 0
    assert sne(T, 3.7 * T @ rotation(3), form=form).abs().item() < 1e-12
    moved = sne(5 * T @ rotation(3, 1), 0.1 * S @ rotation(2, 2), form=form)
    assert moved.item() == pytest.approx(sne(T, S, form=form).item(), abs=1e-12)


def test_the_similarity_terms_do_not_see_a_constant_added_to_all_cosines():
    """The finding behind centring: with log-softmax rows a common offset cancels (conditional form, exactly)."""
    from tinkit.host.methods.sne import log_conditional

    logits = torch.randn(5, 5, dtype=torch.float64)
    torch.testing.assert_close(log_conditional(logits), log_conditional(logits + 0.7))


def test_leading_dimensions_are_independent():
    both = sne(torch.stack([T, T.flip(0)]), torch.stack([S, S]))
    assert both.shape == (2,)
    assert both[0].item() == pytest.approx(sne(T, S).item())
    assert both[1].item() == pytest.approx(sne(T.flip(0), S).item())


def features(batch, positions, width, seed, grid=None):
    generator = torch.Generator().manual_seed(seed)
    local = torch.randn(batch, positions, width, generator=generator)
    return Features(torch.randn(batch, width, generator=generator), local, grid or (1, positions))


PAIR = Pair(Side(6, 6, (1, 4)), Side(8, 8, (1, 4)))


def make(kind="learned", center=False, cosines_weight=0.0, **options):
    """The released form, unless asked otherwise."""
    torch.manual_seed(0)
    method = TinTeM(PAIR, mapping=kind, center=center, cosines_weight=cosines_weight, **options)
    method.fit(lambda: [features(64, 4, PAIR.teacher.dim, 9)])
    return method


def batch_for(method, batch=5, positions=4):
    student = features(batch, positions, method.mapping.spec.dim, 1)
    student.global_BD.requires_grad_()
    student.local_BLD.requires_grad_()
    return Batch(student, features(batch, positions, method.mapping.spec.teacher_dim, 2), torch.arange(batch), 0, 0)


def gradients(method, part):
    batch = batch_for(method)
    method(batch)[part].backward()
    head = [p.grad for p in method.mapping.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    return batch.student.global_BD.grad, batch.student.local_BLD.grad, head


@pytest.mark.parametrize("part", ["local", "global"])
def test_similarity_terms_train_the_mapping_only(part):
    token, local, head = gradients(make(), part)
    assert token is None
    assert local is None
    assert head


@pytest.mark.parametrize("part", ["token", "feature", "cosines"])
def test_student_terms_train_the_student_only(part):
    token, local, head = gradients(make(cosines_weight=1.0), part)
    assert token.abs().sum() > 0
    assert head == []
    assert (local is not None and local.abs().sum() > 0) == (part == "feature")


@pytest.mark.parametrize(
    "idle",
    [
        {"form": "half"},
        {"temperatures": (0.1,)},
        {"head": "linear"},
        {"stop_gradient": False},
        {"local_weight": 0.5},
        {"global_weight": 0.0},
    ],
)
def test_a_switch_that_a_frozen_mapping_leaves_idle_is_refused(idle):
    (name,) = idle
    with pytest.raises(ValueError, match=f"^{name} .* does nothing.*mapping=learned"):
        TinTeM(PAIR, **idle)
    assert options_of(TinTeM).keys() > idle.keys()
    TinTeM(PAIR, **{name: options_of(TinTeM)[name]})
    for kind in ("learned", "learned-pca"):
        TinTeM(PAIR, mapping=kind, **idle)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"form": "third"}, "form must be one of full, half, not third"),
        ({"feature_cosine": "both"}, "feature_cosine must be one of flat, per_token, not both"),
        ({"head": "mlp"}, "head must be one of ln_linear, linear, not mlp"),
        ({"temperatures": (0.1, 0.0)}, "temperatures must be above 0, not 0.0"),
        ({"temperatures": ()}, "temperatures must be above 0"),
        ({"token_weight": -1.0}, "token_weight must be at least 0, not -1.0"),
        ({"token_weight": float("nan")}, "token_weight must be at least 0, not nan"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(wrong, words):
    with pytest.raises(ValueError, match=words):
        TinTeM(PAIR, **wrong)


def test_a_frozen_mapping_has_no_similarity_terms_and_nothing_to_train():
    method = make("pca", center=True)
    parts = method(batch_for(method))
    assert set(parts) == {"token", "feature", "loss"}
    assert list(method.parameters()) == []


@pytest.mark.parametrize("feature_cosine", ["flat", "per_token"])
def test_a_student_that_is_the_mapped_teacher_has_no_student_loss(feature_cosine):
    method = make("pca", center=True, feature_cosine=feature_cosine, cosines_weight=1.0)
    teacher = features(5, 4, 8, 2)
    mapping = method.mapping
    student = Features(mapping(teacher), mapping.target(mapping.raw(teacher.local_BLD, 1), 1), teacher.grid)
    parts = method(Batch(student, teacher, torch.arange(5), 0, 0))
    assert parts["loss"].item() == pytest.approx(0, abs=1e-6)


def test_flat_and_per_token_cosines_differ():
    flat, per_token = make(feature_cosine="flat"), make(feature_cosine="per_token")
    batch = batch_for(flat)
    assert flat(batch)["feature"].item() != pytest.approx(per_token(batch)["feature"].item(), abs=1e-4)


@pytest.mark.parametrize("kind", ["learned", "pca"])
def test_one_picture_and_a_constant_student_give_finite_gradients(kind):
    for count in (1, 3):
        method = make(kind, cosines_weight=1.0)
        batch = batch_for(method, batch=count)
        batch.student.global_BD.data.zero_()
        loss = method(batch)["loss"]
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(batch.student.global_BD.grad).all()


def test_autocast_leaves_the_similarities_in_fp32():
    torch.manual_seed(0)
    objective = Objective([Term("tintem", 1.0, {"mapping": "learned", "center": False})], PAIR)
    method = objective.terms["tintem"]
    plain = objective(batch_for(method))
    method.mapping.steps.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        under = objective(batch_for(method))
    for name, value in plain.items():
        assert under[name].dtype == torch.float32
        assert under[name].item() == value.item()


def test_a_student_grid_of_another_size_is_resampled():
    method = make("pca")
    student = features(5, 9, 6, 1, grid=(3, 3))
    teacher = features(5, 4, 8, 2, grid=(2, 2))
    assert torch.isfinite(method(Batch(student, teacher, torch.arange(5), 0, 0))["feature"])


def test_cosine_matrix_error_by_hand():
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert cosine_matrix_error(student, target).item() == pytest.approx(0.5)


def test_cospress_is_the_same_method():
    assert method_class("cospress") is TinTeM


def test_without_the_stop_gradient_the_student_s_terms_pull_at_the_mapping():
    for stop, trained in ((True, False), (False, True)):
        _, _, head = gradients(make(stop_gradient=stop), "token")
        assert bool(head) == trained


def test_a_linear_head_has_neither_norm_nor_bias():
    method = make(head="linear", local_weight=0.0)
    assert [tuple(p.shape) for p in method.parameters()] == [(6, 8)]
    assert torch.isfinite(method(batch_for(method))["loss"])
