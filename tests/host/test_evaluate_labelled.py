"""Answers where there are labels: against scikit-learn, by hand, and with faults that must show."""

import json
import time
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from sklearn.neighbors import KNeighborsClassifier

from tinkit.errors import TinkitError
from tinkit.fidelity import knn_predict
from tinkit.host.evaluate import answers, labelled
from tinkit.host.evaluate.labelled import PARTS, knn_answers
from tinkit.host.evaluate.labelled import labelled as ask

CLASSES = ["ant", "bee", "cat", "dog"]


def data(noise=1.0, counts=(120, 60, 80), seed=0, classes=4):
    """(teacher rows, student rows, labels) by part: the student is a narrower, noisier picture of the teacher."""
    random = np.random.default_rng(seed)
    centres, turn = 0.7 * random.normal(size=(classes, 16)), random.normal(size=(16, 8))
    labels = {part: random.permutation(np.arange(n) % classes) for part, n in zip(PARTS, counts, strict=True)}
    teacher = {part: (centres[y] + random.normal(size=(len(y), 16))).astype(np.float32) for part, y in labels.items()}
    student = {
        part: (rows @ turn + noise * random.normal(size=(len(rows), 8))).astype(np.float32)
        for part, rows in teacher.items()
    }
    return teacher, student, labels


def block_of(teacher, student, labels, classes=CLASSES, seed=0):
    return ask(teacher, student, labels, classes, [f"t{i}.png" for i in range(len(labels["test"]))], seed)


@pytest.fixture(scope="module")
def block():
    return block_of(*data())


def by_scikit_learn(rows, labels, k=10):
    model = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    return model.fit(rows["bank"].astype(np.float64), labels["bank"]).predict(rows["test"].astype(np.float64))


@pytest.mark.parametrize("k", [1, 10])
def test_knn_answers_as_scikit_learn_does(k):
    teacher, student, labels = data()
    for rows in (teacher, student):
        found = knn_answers(rows["bank"], labels["bank"], rows["test"], 4, k)
        np.testing.assert_array_equal(found, by_scikit_learn(rows, labels, k))
    assert (knn_predict(student["bank"], labels["bank"], student["test"], k) == found).all()


def test_knn_weighs_by_hand(monkeypatch):
    """One neighbour at cosine 1 outweighs nine at 0.8 (exp(0.2 / 0.07) = 17.4), and not eighteen."""
    far = [0.8, 0.6]
    for count, expected in ((9, 0), (18, 1)):
        bank = np.array([[1, 0]] + [far] * count, np.float32)
        labels = np.array([0] + [1] * count)
        assert knn_answers(bank, labels, np.array([[2.0, 0]], np.float32), 3, k=30).tolist() == [expected]
    monkeypatch.setattr(labelled, "CHUNK", 3)
    teacher, _, labels = data()
    found = knn_answers(teacher["bank"], labels["bank"], teacher["test"], 4)
    np.testing.assert_array_equal(found, by_scikit_learn(teacher, labels))


def test_accuracies_and_agreement_are_scikit_learns(block):
    teacher, student, labels = data()
    pair = [by_scikit_learn(rows, labels) for rows in (teacher, student)]
    knn = block["knn"]
    assert knn["teacher"] == pytest.approx(accuracy_score(labels["test"], pair[0]))
    assert knn["student"] == pytest.approx(accuracy_score(labels["test"], pair[1]))
    assert knn["agreement"] == pytest.approx(accuracy_score(*pair))
    assert knn["change"] == pytest.approx(knn["student"] - knn["teacher"])
    assert knn["agreement"] < 1
    for kind in ("knn", "probe"):
        for name in ("teacher", "student", "change", "agreement"):
            low, high = block[kind][name + "_interval"]
            assert low <= block[kind][name] <= high
            assert low < high


def test_an_interval_is_as_wide_as_the_binomial_law_says():
    right = np.arange(400) % 4 != 0
    found = answers.judged(np.ones(400, int), right.astype(int), np.ones(400, int))
    low, high = found["teacher_interval"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.75 * 0.25 / 400), rel=0.1)
    assert found["student_interval"] == [1, 1]


def test_equal_networks_agree_and_nothing_flips():
    teacher, _, labels = data()
    turned = {part: 3 * rows[:, ::-1] for part, rows in teacher.items()}
    found = block_of(teacher, turned, labels)
    for kind in ("knn", "probe"):
        assert found[kind]["agreement"] == 1
        assert found[kind]["churn"]["flipped"] == found[kind]["change"] == 0
        assert found[kind]["churn"]["pictures"] == []
    assert not np.any(found["confusion"]["difference"])


def test_one_wrong_label_in_the_students_world_shows():
    """A planted fault: the student swaps two pictures of different classes, and they are the ones that flip."""
    teacher, _, labels = data(counts=(120, 60, 80))
    labels = dict(labels)
    student = {part: rows.copy() for part, rows in teacher.items()}
    before = knn_answers(teacher["bank"], labels["bank"], teacher["test"], 4)
    i, j = next((i, j) for i in range(80) for j in range(80) if before[i] == labels["test"][i] != before[j])
    student["test"][[i, j]] = teacher["test"][[j, i]]
    churn = block_of(teacher, student, labels)["knn"]["churn"]
    assert {entry["index"] for entry in churn["pictures"]} == {i, j}
    first = churn["pictures"][0]
    assert first == {
        "name": f"t{i}.png",
        "index": i,
        "label": CLASSES[labels["test"][i]],
        "teacher": CLASSES[before[i]],
        "student": CLASSES[before[j]],
        "way": "right to wrong",
    }


def test_churn_by_hand():
    labels, teacher, student = (
        np.array(column) for column in ([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 1], [0, 1, 0, 1, 2, 0])
    )
    found = answers.churn(labels, teacher, student, "abc", "uvwxyz")
    assert [found[name] for name in ("right_to_wrong", "wrong_to_right", "wrong_to_other", "flipped")] == [1, 1, 2, 4]
    assert found["share"] == pytest.approx(4 / 6)
    assert [(p["name"], p["way"]) for p in found["pictures"]] == [
        ("v", "right to wrong"),
        ("w", "wrong to right"),
        ("y", "wrong to other"),
        ("z", "wrong to other"),
    ]


def test_churn_lists_at_most_200_and_counts_all():
    count = answers.LISTED + 50
    found = answers.churn(np.zeros(count, int), np.zeros(count, int), np.ones(count, int), "ab", range(count))
    assert len(found["pictures"]) == answers.LISTED
    assert found["right_to_wrong"] == found["flipped"] == count


def test_churn_and_change_tell_one_story(block):
    for kind in ("knn", "probe"):
        churn = block[kind]["churn"]
        assert churn["share"] == pytest.approx(1 - block[kind]["agreement"])
        lost = (churn["wrong_to_right"] - churn["right_to_wrong"]) / block["pictures"]["test"]
        assert block[kind]["change"] == pytest.approx(lost)
        assert Counter(p["way"] for p in churn["pictures"])["right to wrong"] == churn["right_to_wrong"]


def answered(count=300, classes=5, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    return labels, *(np.where(random.random(count) < p, labels, random.integers(0, classes, count)) for p in (0.8, 0.5))


def test_the_table_by_class_is_scikit_learns():
    labels, teacher, student = answered()
    table = answers.per_class(labels, teacher, student, "abcde")
    for who, found in (("teacher", teacher), ("student", student)):
        precision, recall, f1, count = precision_recall_fscore_support(labels, found)
        np.testing.assert_allclose([row[who]["precision"] for row in table], precision)
        np.testing.assert_allclose([row[who]["recall"] for row in table], recall)
        np.testing.assert_allclose([row[who]["f1"] for row in table], f1)
        assert [row["count"] for row in table] == count.tolist()
    assert [row["class"] for row in table] == list("abcde")


def test_a_class_never_answered_with_has_precision_0():
    table = answers.per_class(np.array([0, 1, 1]), np.array([0, 0, 0]), np.array([0, 1, 2]), "abc")
    assert [row["class"] for row in table] == ["a", "b"]
    assert table[1]["teacher"] == {"recall": 0, "precision": 0, "f1": 0}
    assert table[1]["student"] == {"recall": 0.5, "precision": 1, "f1": pytest.approx(2 / 3)}


def test_the_confusion_change_is_scikit_learns_both_ways():
    labels, teacher, student = answered()
    expected = confusion_matrix(labels, student) - confusion_matrix(labels, teacher)
    found = answers.confusion_change(labels, teacher, student, "abcde")
    assert found == {"classes": list("abcde"), "difference": expected.tolist()}
    assert np.abs(expected).sum() > 0


def test_many_classes_give_the_most_changed_pairs():
    classes = [f"c{i}" for i in range(answers.WHOLE + 10)]
    labels, teacher, student = answered(2000, len(classes))
    every = range(len(classes))
    teachers, students = (confusion_matrix(labels, found, labels=every) for found in (teacher, student))
    pairs = answers.confusion_change(labels, teacher, student, classes)["pairs"]
    assert len(pairs) == answers.WHOLE
    for pair in pairs:
        place = classes.index(pair["label"]), classes.index(pair["answer"])
        assert (pair["teacher"], pair["student"]) == (teachers[place], students[place])
        assert pair["change"] == students[place] - teachers[place]
    sizes = np.sort(np.abs(students - teachers).ravel())[::-1]
    assert [abs(pair["change"]) for pair in pairs] == sizes[: answers.WHOLE].tolist()
    same = answers.confusion_change(labels, teacher, teacher, classes)
    assert same == {"pairs": []}


def test_the_block_is_plain_and_repeatable(block):
    text = json.dumps(block, allow_nan=False)
    assert json.dumps(block_of(*data()), allow_nan=False) == text
    assert block["pictures"] == {"bank": 120, "validation": 60, "test": 80}
    assert block["knn"]["k"] == 10
    assert len(block["per_class"]) == block["classes"] == 4
    counted = sum(entry["count"] for entry in block["calibration"]["student"]["reliability"]["bins"])
    assert counted == 80
    assert block["calibration"]["student"]["accuracy"] == pytest.approx(block["probe"]["student"])


def test_the_test_part_has_no_say_in_what_is_fitted(block):
    teacher, student, labels = data()
    shuffled = dict(labels, test=np.random.default_rng(5).permutation(labels["test"]))
    found = block_of(teacher, student, shuffled)
    for who in ("teacher_probe", "student_probe"):
        assert found["probe"][who] == block["probe"][who]
    assert found["probe"]["agreement"] == block["probe"]["agreement"]
    assert found["probe"]["teacher"] < block["probe"]["teacher"] - 0.2


def test_measures_are_what_the_block_says(block):
    found = {measure.name: measure for measure in labelled.measures(block)}
    assert list(found) == ["knn", "probe", "agreement", "probe_agreement", "ece", "churn"]
    assert (found["knn"].student, found["knn"].teacher) == (block["knn"]["student"], block["knn"]["teacher"])
    assert found["knn"].change == tuple(block["knn"]["change_interval"])
    assert found["agreement"].student == block["knn"]["agreement"]
    assert found["probe_agreement"].student == block["probe"]["agreement"]
    assert found["churn"].student == pytest.approx(1 - found["agreement"].student)
    low, high = found["churn"].interval
    assert low <= found["churn"].student <= high
    assert {name for name, measure in found.items() if measure.better == "lower"} == {"ece", "churn"}
    assert found["ece"].student == block["calibration"]["student"]["ece"]
    low, high = found["ece"].change
    assert low < high
    assert {measure.group for measure in found.values()} == {"labels"}


def without(data, part, *classes):
    teacher, student, labels = data
    keep = ~np.isin(labels[part], classes)
    return tuple(dict(column, **{part: column[part][keep]}) for column in (teacher, student, labels))


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("bank", "no training picture of cat"),
        ("validation", "no validation picture of cat"),
        ("test", "no test picture of cat"),
    ],
)
def test_a_class_missing_from_a_part_is_said(part, told):
    found = block_of(*without(data(), part, 2))
    assert any(told in note for note in found["notes"])
    assert ("cat" in [row["class"] for row in found["per_class"]]) == (part != "test")
    json.dumps(found, allow_nan=False)


def test_very_few_labels():
    found = block_of(*data(counts=(4, 0, 4)))
    assert found["knn"]["k"] == 4
    assert found["probe"]["student_probe"]["validation_accuracy"] is None
    assert any("no validation picture" in note for note in found["notes"])
    single = block_of(*data(counts=(4, 1, 1)))
    assert single["knn"]["student_interval"] == [single["knn"]["student"]] * 2
    json.dumps([found, single, [m.to_json() for m in labelled.measures(single)]], allow_nan=False)


def test_two_classes_and_one():
    pair = block_of(*data(classes=2), classes=["ant", "bee"])
    assert pair["probe"]["student"] > 0.6
    alone = block_of(*without(without(data(), "bank", 1, 2, 3), "test", 1, 2, 3))
    assert alone["knn"]["student"] == alone["probe"]["student"] == 1
    assert any("one class only" in note for note in alone["notes"])


def test_what_does_not_fit_is_refused():
    teacher, student, labels = data()
    with pytest.raises(ValueError, match="79 names"):
        ask(teacher, student, labels, CLASSES, ["x"] * 79)
    with pytest.raises(ValueError, match=r"bank: labels 0 \.\. 3 of 3 classes"):
        block_of(teacher, student, labels, CLASSES[:3])
    with pytest.raises(ValueError, match="test: 79 teacher rows"):
        block_of(dict(teacher, test=teacher["test"][1:]), student, labels)
    with pytest.raises(TinkitError, match="no labelled picture in the test part"):
        block_of(*without(data(), "test", 0, 1, 2, 3))
    broken = dict(student, test=student["test"].copy())
    broken["test"][[3, 5], 0] = np.inf
    with pytest.raises(TinkitError, match="not finite") as caught:
        block_of(teacher, broken, labels)
    assert "2 of 80 pictures" in str(caught.value)


@pytest.mark.slow
def test_ten_thousand_pictures_are_judged(tmp_path):
    """The size of the issue, from memory maps: 10,000 x 1280, ten classes. Says how long it took; nothing hangs on it."""
    random = np.random.default_rng(0)
    centres, counts = random.normal(size=(10, 1280)) * 0.2, (6000, 2000, 2000)
    labels = {part: random.integers(0, 10, n) for part, n in zip(PARTS, counts, strict=True)}
    both = []
    for noise in (1.0, 1.5):
        rows = {}
        for part, y in labels.items():
            path = tmp_path / f"{noise}-{part}.npy"
            np.save(path, (centres[y] + noise * random.normal(size=(len(y), 1280))).astype(np.float32))
            rows[part] = np.load(path, mmap_mode="r")
        both.append(rows)
    began = time.monotonic()
    found = block_of(*both, labels, [f"c{i}" for i in range(10)])
    print(f"10,000 pictures in {time.monotonic() - began:.1f} s")
    assert found["probe"]["teacher"] > found["probe"]["student"] > 0.5
