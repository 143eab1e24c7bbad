"""Across domains: a probe of one, asked in others, against scikit-learn and with a planted shift."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tinkit.errors import TinkitError
from tinkit.host.evaluate import domains as module
from tinkit.host.evaluate.domains import domains, interval_of_mean_of_means

CLASSES = ["dog", "horse", "house"]
WHO = ("teacher", "student")


def styles(shift=1.0, seed=0):
    """(teacher, student, labels): photos with three parts; sketch is moved for both, art for the student only.

    Moved by the way from the first class to the second: a dog then looks like a horse.
    """
    random = np.random.default_rng(seed)
    centres = random.normal(size=(3, 10)) * 1.5
    move = {("teacher", "sketch"): shift, ("student", "sketch"): shift, ("student", "art"): shift}
    direction = centres[1] - centres[0]
    labels = {
        "photo": {part: np.arange(n) % 3 for part, n in (("bank", 90), ("validation", 60), ("test", 60))},
        "art": {"test": np.arange(45) % 3},
        "sketch": {"test": np.arange(150) % 3},
    }
    rows = {
        who: {
            name: {
                part: (centres[y] + random.normal(size=(len(y), 10)) + move.get((who, name), 0) * direction).astype(
                    np.float32
                )
                for part, y in parts.items()
            }
            for name, parts in labels.items()
        }
        for who in WHO
    }
    return rows["teacher"], rows["student"], labels


@pytest.fixture(scope="module")
def block():
    return domains("photo", *styles(), CLASSES)


def test_accuracies_are_scikit_learns(block):
    teacher, student, labels = styles()
    for who, rows in (("teacher", teacher), ("student", student)):
        c = block["probe"][f"{who}_probe"]["c"]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-7, max_iter=5000))
        model.fit(rows["photo"]["bank"], labels["photo"]["bank"])
        for entry in block["domains"]:
            truth = labels[entry["name"]]["test"]
            assert entry[who] == pytest.approx(model.score(rows[entry["name"]]["test"], truth), abs=1.5 / len(truth))


def test_drops_changes_and_means_follow_from_the_accuracies(block):
    source, *others = block["domains"]
    assert (source["name"], source["trained_on"], source["teacher_drop"], source["student_drop"]) == (
        "photo",
        True,
        0,
        0,
    )
    assert [(entry["name"], entry["trained_on"], entry["count"]) for entry in others] == [
        ("art", False, 45),
        ("sketch", False, 150),
    ]
    for entry in others:
        for who in WHO:
            assert entry[who + "_drop"] == pytest.approx(source[who] - entry[who])
        assert entry["change"] == pytest.approx(entry["student"] - entry["teacher"])
    for name in ("teacher", "student", "change", "agreement", "teacher_drop", "student_drop"):
        assert block["mean"][name] == pytest.approx(np.mean([entry[name] for entry in others]))


def test_a_shift_that_only_the_student_suffers_shows_there_alone(block):
    _, art, sketch = block["domains"]
    assert art["student_drop"] > art["teacher_drop"] + 0.1
    assert sketch["teacher_drop"] > 0.1
    still = domains("photo", *styles(shift=0.0), CLASSES)
    assert all(abs(entry["student_drop"]) < 0.1 for entry in still["domains"])


def test_the_measure_is_the_mean_over_the_other_domains(block):
    (measure,) = module.measures(block)
    others = block["domains"][1:]
    assert (measure.name, measure.group) == ("domain", "domains")
    assert measure.student == pytest.approx((others[0]["student"] + others[1]["student"]) / 2)
    assert measure.teacher == pytest.approx((others[0]["teacher"] + others[1]["teacher"]) / 2)
    assert measure.interval[0] < measure.student < measure.interval[1]
    assert measure.change[0] <= measure.student - measure.teacher <= measure.change[1]


def test_the_interval_of_a_mean_of_means_is_scipys():
    random = np.random.default_rng(1)
    columns = [(random.random(n) < p).astype(float) for n, p in ((60, 0.9), (400, 0.4))]
    expected = stats.bootstrap(
        columns,
        lambda *each: np.mean([column.mean() for column in each]),
        paired=False,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = interval_of_mean_of_means(columns)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.008)
    pooled = np.concatenate(columns).mean()
    assert not low < pooled < high  # a mean over pictures is another number than a mean over domains
    assert interval_of_mean_of_means([np.ones(5)]) == (1, 1)


def test_the_block_is_plain_and_repeatable(block):
    again = domains("photo", *styles(), CLASSES)
    assert json.dumps(block, allow_nan=False) == json.dumps(again, allow_nan=False)
    assert block["train"] == "photo"
    assert block["classes"] == 3


def test_a_class_that_was_never_trained_on_is_said():
    teacher, student, labels = styles()
    keep = labels["photo"]["bank"] != 2
    for column in (teacher, student, labels):
        column["photo"] = dict(column["photo"], bank=column["photo"]["bank"][keep])
    notes = domains("photo", teacher, student, labels, CLASSES)["notes"]
    assert any("art: 15 pictures of classes without a training picture (house)" in note for note in notes)
    assert any("no training picture of house" in note for note in notes)


def test_what_does_not_fit_is_refused():
    teacher, student, labels = styles()
    only = [{"photo": column["photo"]} for column in (teacher, student, labels)]
    with pytest.raises(TinkitError, match="no other domain"):
        domains("photo", *only, CLASSES)
    emptied = [dict(column, art={"test": column["art"]["test"][:0]}) for column in (teacher, student, labels)]
    with pytest.raises(TinkitError, match="no labelled picture") as caught:
        domains("photo", *emptied, CLASSES)
    assert "art, test" in str(caught.value)
    broken = dict(student, art={"test": student["art"]["test"] * np.nan})
    with pytest.raises(TinkitError, match="not finite"):
        domains("photo", teacher, broken, labels, CLASSES)
    two = {"photo": {part: y % 2 for part, y in labels["photo"].items()}, "art": labels["art"]}
    with pytest.raises(ValueError, match=r"art, test: labels 0 \.\. 2 of 2"):
        domains("photo", teacher, student, two, CLASSES[:2])
