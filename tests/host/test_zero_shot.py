"""Text vectors through the mapping: exact where the mapping loses nothing, measured and refused where it does."""

import numpy as np
import pytest
import torch

from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, PASSED
from tinkit.host.evaluate.rows import Rows
from tinkit.host.features import Features
from tinkit.host.head.zero_shot import (
    MIN_AGREEMENT,
    Prompts,
    affine_parts,
    agreement,
    carried,
    from_prompts,
    length_of,
    read_prompts,
    teacher_logits,
)
from tinkit.host.mapping import GLOBAL, Mapping, MappingSpec, Moments, fit_afterwards

WIDTH, CLASSES = 16, 5


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def aligned(count=300, rank=WIDTH, width=WIDTH, seed=0, level=False):
    """(teacher (N, width), prompts): pictures scatter widely around the directions of their classes' texts, all turned
    towards one common direction, as CLIP's are, which some texts are nearer to than others.

    rank: of the scatter; level: no row has a mean over its coordinates.
    """
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.normal(size=(width, width)))[0]
    if level:  # all but the direction (1, 1, ..)
        basis = np.linalg.qr(np.concatenate([np.ones((width, 1)), basis[:, 1:]], axis=1))[0][:, 1:]
    common, plane = 2.0 * basis[:, -1], basis[:, : rank - 1]
    centres = random.normal(size=(CLASSES, rank - 1)) @ plane.T
    rows = (
        common + centres[random.integers(CLASSES, size=count)] + 1.5 * random.normal(size=(count, rank - 1)) @ plane.T
    )
    texts = unit(centres + 0.5 * random.normal(size=width) + np.linspace(-0.5, 0.5, CLASSES)[:, None] * common)
    return unit(rows).astype(np.float32), Prompts(tuple("abcde"), texts.astype(np.float32), 100.0, "0" * 64)


def mapped_by(mapping, rows):
    with torch.no_grad():
        return mapping.eval()(Features(torch.from_numpy(rows))).numpy()


def pca(rows, dim, center=True):
    moments = Moments()
    moments.add(Features(torch.from_numpy(rows)))
    mapping = Mapping(MappingSpec("pca", center, rows.shape[1], dim))
    mapping.fit(moments, seed=0)
    return mapping


def learned(rows, dim, head, center=True):
    """A learned mapping with random weights, scales and biases, and a running mean that it has observed."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        mapping = Mapping(MappingSpec("learned", center, rows.shape[1], dim, head=head))
        for parameter in mapping.parameters():
            torch.nn.init.normal_(parameter, 0.3)
        for _ in range(200):
            mapping.observe(mapping.raw(torch.from_numpy(rows), GLOBAL), GLOBAL)
    return mapping


def centred(logits):
    return logits - logits.mean(axis=1, keepdims=True)


def test_the_teacher_s_answers_are_clip_s_formula():
    prompts = Prompts(("a", "b"), np.array([[1, 0], [0.6, 0.8]], np.float32), 10.0, "")
    np.testing.assert_allclose(
        teacher_logits(prompts, np.array([[0.0, 5.0], [3.0, 4.0]])), [[0, 8], [6, 10]], atol=1e-5
    )


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dim", [WIDTH, 24])
def test_a_rotation_loses_nothing(dim, center):
    rows, prompts = aligned()
    mapping = pca(rows, dim, center)
    weight, bias = carried(prompts, mapping, rows[:100])
    logits = mapped_by(mapping, rows) @ weight.T + bias
    np.testing.assert_allclose(logits, centred(teacher_logits(prompts, rows)), atol=2e-3)  # of logits up to 60
    assert (np.abs(bias).max() > 1) == center  # the centring is in it: without, the answers are others
    unbiased = agreement(mapped_by(mapping, rows) @ weight.T, teacher_logits(prompts, rows))
    assert (unbiased["agreement"] < 0.95) == center


@pytest.mark.parametrize("center", [True, False])
def test_what_the_mapping_does_not_see_stays_at_its_mean(center):
    """The scatter has rank 6, the student 6 dimensions: PCA keeps it whole, and what all pictures share goes to the bias."""
    rows, prompts = aligned(rank=6)
    rows = np.ascontiguousarray(
        rows / np.abs(rows @ rows[0])[:, None]
    )  # lengths differ now, so that the rows are a plane
    rows = rows - (rows - rows.mean(0)) @ _outside(rows, 6)
    mapping = pca(rows.astype(np.float32), 6, center)
    weight, bias = carried(prompts, mapping, rows)
    reference = prompts.scale * (1 / np.linalg.norm(rows, axis=1)).mean() * rows @ prompts.text.T
    logits = mapped_by(mapping, rows.astype(np.float32)) @ weight.T + bias
    np.testing.assert_allclose(logits, centred(reference), atol=5e-3)


def _outside(rows, dim):
    """(D, D): the projector on what the first `dim` principal directions leave."""
    _, vectors = np.linalg.eigh(np.cov(rows.T))
    kept = vectors[:, -dim:]
    return np.eye(rows.shape[1]) - kept @ kept.T


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("head", "dim"), [("linear", WIDTH), ("linear", 30), ("ln_linear", WIDTH), ("ln_linear", 30)])
def test_a_learned_mapping_is_turned_back(head, dim, center):
    """Rows of one length without a mean over coordinates: then the LayerNorm loses nothing either."""
    rows, prompts = aligned(level=head == "ln_linear")
    rows = rows * 20  # the teacher's answers do not see lengths, and LayerNorm's epsilon is small now
    mapping = learned(rows, dim, head, center)
    weight, bias = carried(prompts, mapping, rows)
    logits = mapped_by(mapping, rows) @ weight.T + bias
    reference = teacher_logits(prompts, rows)
    assert agreement(logits, reference)["agreement"] > 0.995
    np.testing.assert_allclose(logits, centred(reference), atol=0.05)


def test_a_mean_over_coordinates_that_the_layer_norm_takes_off_goes_to_the_bias():
    rows, prompts = aligned(level=True)
    rows = 20 * rows + 3  # all as long as each other, with the same mean
    mapping = learned(rows, WIDTH, "ln_linear")
    weight, bias = carried(prompts, mapping, rows)
    logits = mapped_by(mapping, rows) @ weight.T + bias
    assert np.ptp(prompts.text.sum(axis=1)) > 0.1  # what is taken off is not the same for all classes
    np.testing.assert_allclose(logits, centred(teacher_logits(prompts, rows)), atol=0.05)


@pytest.mark.parametrize("head", ["linear", "ln_linear"])
def test_the_affine_parts_are_the_mapping(head):
    rows, _ = aligned()
    rows = rows * 20
    mapping = learned(rows, 7, head)
    matrix, offset, normed = affine_parts(mapping)
    seen = rows.astype(np.float64)
    if normed:
        seen = unit(seen - seen.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(seen @ matrix.T + offset, mapped_by(mapping, rows), atol=1e-4)
    assert normed == (head == "ln_linear")


def test_a_mapping_fitted_afterwards_carries_too():
    rows, prompts = aligned(400)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))[0]
    mapping, _ = fit_afterwards(rows, 3 * rows @ turn + 1)
    weight, bias = carried(prompts, mapping, rows)
    found = agreement(mapped_by(mapping, rows) @ weight.T + bias, teacher_logits(prompts, rows))
    assert found["agreement"] > 0.97


def test_the_student_s_length_is_found_and_matters():
    rows, prompts = aligned()
    mapping = pca(rows, WIDTH)
    mapped = mapped_by(mapping, rows)
    assert length_of(mapped, 7 * mapped) == pytest.approx(7, rel=1e-5)
    assert length_of(mapped, -mapped) == 1.0
    block = from_prompts(prompts, mapping, Rows(rows, mapped, 0.1 * mapped), slice(0, 100), 0.99, 0)
    assert block.verdict == PASSED
    weight, bias = carried(prompts, mapping, rows[:100])
    unaware = agreement(0.1 * mapped @ weight.T + bias, teacher_logits(prompts, rows))
    assert unaware["agreement"] < 0.9


def test_the_limit_passes_at_it_and_fails_above_it():
    rows, prompts = aligned(width=WIDTH)
    mapping = pca(rows, 8)  # loses something
    mapped = mapped_by(mapping, rows)
    student = mapped + np.random.default_rng(5).normal(size=mapped.shape).astype(np.float32) * 0.2
    bank = slice(0, 100)
    seen = from_prompts(prompts, mapping, Rows(rows, mapped, student), bank, 0.0, 0).evidence
    worst = min(seen["mapped"]["agreement"], seen["student"]["agreement"])
    assert 0.2 < worst < 1
    assert from_prompts(prompts, mapping, Rows(rows, mapped, student), bank, worst, 0).verdict == PASSED
    failed = from_prompts(prompts, mapping, Rows(rows, mapped, student), bank, worst + 1e-9, 0)
    assert failed.verdict == FAILED
    assert f"student {seen['student']['agreement']:.3f}" in failed.reason
    assert seen["pictures"] == 200  # the bank, which the means are of, is not judged


def test_a_student_that_does_not_follow_is_refused_however_good_the_mapping():
    rows, prompts = aligned()
    mapping = pca(rows, WIDTH)
    mapped = mapped_by(mapping, rows)
    stranger = np.random.default_rng(0).permutation(mapped)
    found = from_prompts(prompts, mapping, Rows(rows, mapped, stranger), slice(0, 100), MIN_AGREEMENT, 0)
    assert found.evidence["mapped"]["agreement"] > 0.99
    assert found.evidence["student"]["agreement"] < 0.6
    assert found.verdict == FAILED


def test_a_teacher_that_always_says_the_same_is_told():
    rows, _ = aligned()
    mapping = pca(rows, WIDTH)
    texts = np.concatenate([rows.mean(0, keepdims=True), -rows.mean(0, keepdims=True)])
    blunt = Prompts(("thing", "nothing"), unit(texts).astype(np.float32), 100.0, "")
    mapped = mapped_by(mapping, rows)
    found = from_prompts(blunt, mapping, Rows(rows, mapped, mapped), slice(0, 100), 0.5, 0)
    assert found.evidence["commonest"]["class"] == "thing"
    assert found.evidence["commonest"]["share"] > 0.95
    assert any("agreement says little" in note for note in found.notes)
    assert any("unproven on real CLIP weights" in note for note in found.notes)


def test_texts_of_another_space_are_refused():
    rows, prompts = aligned()
    mapping = pca(rows, WIDTH)
    mapped = mapped_by(mapping, rows)
    narrow = Prompts(prompts.names, prompts.text[:, :8], 100.0, "")
    with pytest.raises(TinkitError, match="space of the teacher"):
        from_prompts(narrow, mapping, Rows(rows, mapped, mapped), slice(0, 100), 0.5, 0)


def test_a_file_of_prompts_comes_back_as_unit_vectors(tmp_path):
    np.savez(tmp_path / "p.npz", names=["a", "b"], text=np.array([[3.0, 4.0], [0, 2]]), logit_scale=np.float32(50))
    found = read_prompts(tmp_path / "p.npz")
    np.testing.assert_allclose(found.text, [[0.6, 0.8], [0, 1]], rtol=1e-6)
    assert (found.names, found.scale, found.notes) == (("a", "b"), 50.0, ())
    np.savez(tmp_path / "p.npz", names=["a", "b"], text=np.eye(2, dtype=np.float16))
    assert read_prompts(tmp_path / "p.npz").scale == 100.0
    np.savez(tmp_path / "p.npz", names=["a", "b"], text=np.eye(2), logit_scale=4.6052)
    assert "logarithm" in read_prompts(tmp_path / "p.npz").notes[0]


TWO = {"names": np.array(["a", "b"]), "text": np.eye(2)}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"text": np.eye(2)}, "has no names"),
        ({"names": np.array(["a", "b"])}, "has no text"),
        ({**TWO, "names": np.array([1, 2])}, "not text"),
        ({**TWO, "names": np.array(["a", "a"])}, "each once"),
        ({**TWO, "names": np.array(["a", " "])}, "at least two classes"),
        ({"names": np.array(["a"]), "text": np.eye(2)[:1]}, "at least two classes"),
        ({**TWO, "text": np.eye(3)}, "text is float64"),
        ({**TWO, "text": np.eye(2, dtype=int)}, "text is int64"),
        ({**TWO, "text": np.array([[1.0, 0], [0, 0]])}, "zero or not finite"),
        ({**TWO, "text": np.array([[1.0, 0], [0, np.nan]])}, "zero or not finite"),
        ({**TWO, "logit_scale": np.float32(-1)}, "not one positive number"),
        ({**TWO, "logit_scale": np.array("loud")}, "not one positive number"),
    ],
)
def test_a_file_that_is_no_set_of_prompts_says_why(tmp_path, arrays, words):
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(TinkitError, match=words):
        read_prompts(tmp_path / "p.npz")


def test_pickled_names_are_not_opened(tmp_path):
    np.savez(tmp_path / "p.npz", names=np.array(["a", "b"], dtype=object), text=np.eye(2))
    with pytest.raises(TinkitError, match="cannot be read"):
        read_prompts(tmp_path / "p.npz")
