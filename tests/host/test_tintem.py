"""TinTeM's loss: golden values worked out in float64, invariances, and who gets gradient."""

import pytest
import torch

from tinkit.host.distill.objective import Objective, Term
from tinkit.host.distill.pair import Batch, Pair, Side
from tinkit.host.features import Features, resample_grid
from tinkit.host.methods import method_class, options_of
from tinkit.host.methods import sne as sne_module
from tinkit.host.methods.sne import divergence, log_conditional, masked_cosines
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


def plain_sne(high, low, temperatures, form):
    """The formula as it is written, all matrices at once."""
    cosines = masked_cosines(high), masked_cosines(low)
    return sum(divergence(*(c / t for c in cosines), form) for t in temperatures) / len(temperatures)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("form", ["full", "half"])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7)])
def test_value_and_gradient_are_those_of_the_plain_formula(monkeypatch, dtype, close, form, shape):
    monkeypatch.setattr(sne_module, "GROUP", 2 * 7**2)  # two pictures at a time
    generator = torch.Generator().manual_seed(0)
    points = [torch.randn(*shape, width, generator=generator, dtype=torch.float64).to(dtype) for width in (6, 4)]
    found = []
    for function in (sne, plain_sne):
        high, low = (p.clone().requires_grad_() for p in points)
        value = function(high, low, TEMPERATURES, form)
        value.mul(torch.arange(1, value.numel() + 1).view(value.shape)).sum().backward()
        found.append((value.detach(), high.grad, low.grad))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close * theirs.abs().max().item())


class Held:
    """Counts the bytes that autograd holds on to, and their peak."""

    def __init__(self):
        self.now = self.peak = 0

    def pack(self, tensor):
        return _Packed(tensor, self)

    def of(self, run):
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda packed: packed.tensor):
            run()
        return self.peak


class _Packed:
    def __init__(self, tensor, held):
        self.tensor, self.held = tensor, held
        held.now += tensor.nbytes
        held.peak = max(held.peak, held.now)

    def __del__(self):
        self.held.now -= self.tensor.nbytes


def held_by(function, temperatures, pictures=None, n=96):
    shape = (n, 8) if pictures is None else (pictures, n, 8)
    low = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    return Held().of(lambda: function(low.detach().flip(0), low, temperatures, "full").sum().backward())


def test_memory_does_not_grow_with_the_temperatures():
    """Bytes that autograd keeps: the same for one temperature and for ten; the plain formula keeps ten times as much."""
    one, ten = held_by(sne, (0.05,)), held_by(sne, TEMPERATURES)
    assert ten == one
    assert held_by(plain_sne, TEMPERATURES) > 5 * held_by(plain_sne, (0.05,))
    assert 3 * ten < held_by(plain_sne, TEMPERATURES)


def test_memory_of_the_local_term_is_that_of_a_few_pictures(monkeypatch):
    """Four times the pictures: the matrices of a group stay, only points (n x width) grow."""
    monkeypatch.setattr(sne_module, "GROUP", 2 * 96**2)
    few, many = held_by(sne, (0.05,), 4), held_by(sne, (0.05,), 16)
    points = 4 * 96 * 8 * 4  # bytes of four pictures
    assert few > 4 * 96 * 96 * 2
    assert many - few <= 12 * points
    assert held_by(plain_sne, (0.05,), 16) > 3 * held_by(plain_sne, (0.05,), 4)


@pytest.mark.slow
def test_the_local_term_at_the_tokens_of_a_large_vit():
    """24 pictures of 1 + 1369 tokens (518 pixels, patches of 14): one matrix of all is 180 MB, the plain form keeps many."""
    from tinkit.device.board import peak_memory_mb

    low = torch.randn(24, 1370, 32).requires_grad_()
    high = torch.randn(24, 1370, 32)
    before = peak_memory_mb()
    sne(high, low, (0.05,)).mean().backward()
    assert torch.isfinite(low.grad).all()
    assert peak_memory_mb() - before < 500


def feature_term_as_written(student, mapping, teacher, target_BD):
    """All of the student's grid brought to the teacher's, all of the teacher mapped, one long vector each."""
    local_BLD = resample_grid(student.local_BLD, student.grid, teacher.grid)
    theirs_BLD = mapping.target(mapping.raw(teacher.local_BLD, 1), 1)
    ours, theirs = (
        torch.cat([one[:, None], rest], 1).flatten(1)
        for one, rest in ((student.global_BD, local_BLD), (target_BD, theirs_BLD))
    )
    return (1 - torch.nn.functional.cosine_similarity(ours, theirs)).mean()


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("kind", ["pca", "learned"])
@pytest.mark.parametrize(
    "grids", [((2, 2), (4, 6)), ((3, 3), (2, 2)), ((2, 3), (2, 3)), ((3, 5), (7, 4)), ((3, 5), (5, 4))]
)
@pytest.mark.parametrize("stored", [False, True])
def test_the_feature_term_is_the_one_that_resamples_and_maps_everything(kind, center, grids, stored):
    method = make(kind, center=center).double()
    (h, w), (H, W) = grids
    student, teacher = features(5, h * w, 6, 1, grids[0]).to(torch.float64), features(5, H * W, 8, 2, grids[1])
    teacher = teacher.to(torch.float64)
    found = []
    for written in (False, True):
        student.local_BLD = student.local_BLD.detach().requires_grad_()
        student.global_BD = student.global_BD.detach().requires_grad_()
        if written:
            value = feature_term_as_written(student, method.mapping, teacher, method.map_teacher(teacher))
        else:
            rows = torch.arange(5) + 3 if stored else None
            value = method(Batch(student, teacher, torch.arange(5), 0, 0, row_B=rows))["feature"]
        value.backward()
        found.append((value.detach(), student.local_BLD.grad, student.global_BD.grad))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_view_met_again_is_not_mapped_again_and_gives_the_same_bits(monkeypatch):
    """Its length is kept under the row of the store, whatever batch it comes in; without rows nothing is kept."""
    method = make("pca", center=True)
    student, teacher = features(5, 4, 6, 1, (2, 2)), features(5, 9, 8, 2, (3, 3))
    seen = []
    real = method.mapping.raw
    monkeypatch.setattr(
        method.mapping, "raw", lambda rows, which: (seen.append(tuple(rows.shape)), real(rows, which))[1]
    )

    def value(order, rows):
        ours = Features(student.global_BD[order], student.local_BLD[order], student.grid)
        theirs = Features(teacher.global_BD[order], teacher.local_BLD[order], teacher.grid)
        return method(Batch(ours, theirs, order, 0, 0, row_B=rows))["feature"].item()

    order = torch.arange(5)
    first, alone = value(order, order + 40), seen.count((9, 8))
    assert alone == 5
    assert value(order, order + 40) == first
    assert value(order.flip(0), order.flip(0) + 40) == pytest.approx(first, rel=1e-6)
    assert seen.count((9, 8)) == 5
    value(order, order + 100)
    assert seen.count((9, 8)) == 10
    assert (5, 9, 8) not in seen
    assert value(order, None) == pytest.approx(first, rel=1e-6)
    assert (5, 9, 8) in seen
    assert not any("norms" in name for name in method.state_dict())
