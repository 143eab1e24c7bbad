"""The linear probe: it is scikit-learn's pipeline in one layer, chosen on validation pictures alone, kind to few labels."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tinkit.host.evaluate import probe as module
from tinkit.host.evaluate.probe import GRID, fit_probe, notes_of, of_probes


def clusters(count, classes=4, width=12, noise=1.5, seed=0, wrong=0.0):
    """Rows around one centre a class, columns of very different scale and offset; a share of wrong labels."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = random.permutation(np.arange(count) % classes)
    rows = centres[labels] + noise * random.normal(size=(count, width))
    flip = random.random(count) < wrong
    labels = np.where(flip, random.integers(0, classes, count), labels)
    return (rows * np.logspace(-2, 2, width) + np.linspace(-30, 30, width)).astype(np.float32), labels


def pipeline(rows, labels, c):
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-7, max_iter=5000)).fit(
        rows.astype(np.float64), labels
    )


@pytest.mark.parametrize("classes", [2, 4])
def test_the_folded_layer_is_scikit_learns_pipeline(classes):
    rows, labels = clusters(160, classes)
    valid, valid_labels = clusters(80, classes, seed=1)
    probe = fit_probe(rows, labels, valid, valid_labels, classes)
    fresh, _ = clusters(50, classes, seed=2)
    expected = pipeline(rows, labels, probe.c).predict_proba(fresh)
    np.testing.assert_allclose(probe.proba(fresh), expected, atol=2e-3)
    assert probe.weight.shape == (classes, 12)
    assert probe.weight.dtype == probe.bias.dtype == np.float32
    np.testing.assert_allclose(probe.logits(fresh), fresh @ probe.weight.T + probe.bias)


def test_a_fold_without_the_shift_would_be_noticed():
    rows, labels = clusters(160)
    probe = fit_probe(rows, labels, *clusters(80, seed=1), 4)
    expected = pipeline(rows, labels, probe.c).predict_proba(rows)
    unshifted = module.Probe(probe.weight, probe.bias + probe.weight @ rows.mean(0), probe.c, None)
    assert np.abs(unshifted.proba(rows) - expected).max() > 0.1


def by_brute_force(rows, labels, valid, valid_labels):
    """The C with the best validation accuracy over the whole grid, among equals the lowest log loss, by scikit-learn alone."""
    models = [pipeline(rows, labels, c) for c in GRID]
    return max(
        zip(GRID, models, strict=True),
        key=lambda pair: (
            pair[1].score(valid, valid_labels),
            -log_loss(valid_labels, pair[1].predict_proba(valid)),
        ),
    )


@pytest.mark.parametrize(("noise", "wrong", "seed"), [(1.5, 0.0, 0), (3.0, 0.3, 4), (2.0, 0.5, 6)])
def test_the_choice_is_that_of_the_whole_grid(noise, wrong, seed):
    train = clusters(120, noise=noise, wrong=wrong, seed=seed)
    valid = clusters(200, noise=noise, seed=seed + 1)
    probe = fit_probe(*train, *valid, 4)
    c, model = by_brute_force(*train, *valid)
    assert probe.c == c
    assert probe.validation_accuracy == pytest.approx(model.score(*valid), abs=1.5 / 200)  # one picture on the border
    assert dict(probe.tried)[probe.c] == probe.validation_accuracy == max(accuracy for _, accuracy in probe.tried)


def test_other_validation_labels_bring_another_choice():
    train, valid = clusters(120, noise=3.0, wrong=0.3, seed=4), clusters(200, noise=3.0, seed=5)
    shuffled = np.random.default_rng(0).permutation(valid[1])
    assert fit_probe(*train, *valid, 4).c != fit_probe(*train, valid[0], shuffled, 4).c


def test_the_walk_ends_once_two_are_worse():
    train, valid = clusters(60, width=40, noise=3.0, wrong=0.4, seed=4), clusters(300, width=40, noise=3.0, seed=5)
    probe = fit_probe(*train, *valid, 4)
    assert len(probe.tried) < len(GRID)
    assert [c for c, _ in probe.tried] == list(GRID[: len(probe.tried)])
    assert all(accuracy < probe.validation_accuracy for _, accuracy in probe.tried[-2:])


def test_the_edge_of_the_grid_is_said():
    easy, valid = clusters(60, noise=0.1), clusters(60, noise=0.1, seed=1)
    probe = fit_probe(*easy, *valid, 4)
    assert probe.c == GRID[-1]
    assert any("edge of the grid" in note for note in probe.notes)
    middle = fit_probe(*clusters(120, noise=3.0, wrong=0.3, seed=4), *clusters(200, noise=3.0, seed=5), 4)
    assert GRID[0] < middle.c < GRID[-1]
    assert middle.notes == ()


def test_a_solver_that_has_not_settled_is_said(monkeypatch):
    monkeypatch.setattr(module, "MOST_STEPS", 1)
    probe = fit_probe(*clusters(60), *clusters(60, seed=1), 4)
    assert any("not settled" in note for note in probe.notes)


def test_a_class_without_training_pictures_scores_below_all_others():
    rows, labels = clusters(160)
    valid, valid_labels = clusters(80, seed=1)
    keep = labels != 2
    probe = fit_probe(rows[keep], labels[keep], valid, valid_labels, ["a", "b", "c", "d"])
    logits = probe.logits(np.concatenate([rows, valid]))
    others = logits[:, [0, 1, 3]]
    assert np.ptp(logits[:, 2]) == 0
    assert logits[0, 2] <= min(others[keep.nonzero()[0]].min(), others[len(rows) :].min()) - module.ABSENT + 1e-3
    assert not (probe.answers(valid)[0] == 2).any()
    assert any("no training picture of c" in note for note in probe.notes)
    np.testing.assert_allclose(probe.proba(valid).sum(1), 1)


def test_one_class_alone_and_no_validation():
    rows, _ = clusters(6)
    empty = rows[:0], np.zeros(0, np.int64)
    probe = fit_probe(rows, np.full(6, 1), *empty, 3)
    answers, confidence = probe.answers(rows)
    assert (answers == 1).all()
    assert (confidence > 0.99).all()
    assert probe.validation_accuracy is None
    assert any("one class only" in note for note in probe.notes)
    unchosen = fit_probe(*clusters(40), *empty, 4)
    assert (unchosen.c, unchosen.validation_accuracy, unchosen.tried) == (module.UNCHOSEN, None, ())
    assert any("no validation picture" in note for note in unchosen.notes)


def test_one_picture_a_class_is_enough():
    rows, labels = clusters(4, noise=0.1)
    probe = fit_probe(rows, labels, *clusters(40, noise=0.1, seed=1), 4)
    assert probe.validation_accuracy == 1


def test_a_column_that_never_changes_does_no_harm():
    rows, labels = clusters(80)
    flat = np.concatenate([rows, np.full((80, 1), 7, np.float32)], axis=1)
    probe = fit_probe(flat, labels, flat, labels, 4)
    assert np.isfinite(probe.weight).all()
    np.testing.assert_allclose(probe.proba(flat), fit_probe(rows, labels, rows, labels, 4).proba(rows), atol=1e-3)


def test_more_pictures_than_the_limit_are_sampled_by_seed(monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 40)
    data = *clusters(160), *clusters(80, seed=1), 4
    first, again, other = (fit_probe(*data, seed=seed) for seed in (0, 0, 1))
    assert any("40 of 160" in note for note in first.notes)
    assert (first.weight == again.weight).all()
    assert (first.weight != other.weight).any()


def test_chunks_change_nothing(monkeypatch):
    data = *clusters(60), *clusters(30, seed=1), 4
    whole = fit_probe(*data)
    monkeypatch.setattr(module, "CHUNK", 7)
    parts = fit_probe(*data)
    np.testing.assert_allclose(whole.weight, parts.weight, rtol=1e-4, atol=1e-7)
    answers, confidence = parts.answers(data[0])
    np.testing.assert_array_equal(answers, parts.proba(data[0]).argmax(1))
    np.testing.assert_allclose(confidence, parts.proba(data[0]).max(1), rtol=1e-6)
    assert parts.logits(data[0][:0]).shape == (0, 4)


def test_what_does_not_fit_is_refused():
    rows, labels = clusters(20)
    for train, told in (
        ((rows[:0], labels[:0]), "no training rows"),
        ((rows, labels[:-1]), "19 labels"),
        ((rows, labels - 1), "labels -1"),
        ((rows, labels + 1), "of 4 classes"),
        ((np.where(rows == rows[3, 3], np.nan, rows), labels), "not finite"),
    ):
        with pytest.raises(ValueError, match=told):
            fit_probe(*train, rows, labels, 4)


def test_both_probes_in_one_block():
    rows, labels = clusters(60)
    first, second = fit_probe(rows, labels, rows, labels, 4), fit_probe(rows, labels, rows[:0], labels[:0], 4)
    block = of_probes(first, second)
    assert block["teacher_probe"]["c"] == first.c
    assert block["student_probe"] == {"c": module.UNCHOSEN, "validation_accuracy": None, "tried": []}
    assert notes_of(second, second) == list(second.notes)
    assert any(note.startswith("student's probe: no validation") for note in notes_of(first, second))
