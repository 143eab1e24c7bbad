"""Labels from folders and from a CSV, and a head fitted on what the teacher says."""

import numpy as np
import pytest
import torch

from tinkit.errors import TinkitError
from tinkit.host.heads import fit_head
from tinkit.host.images import Picture
from tinkit.host.labels import read_labels

PICTURES = [Picture(f"/p/{name}", name, "00") for name in ("a/1.jpg", "a/2.jpg", "deep/b/3.jpg", "4.jpg")]


def test_a_picture_s_own_folder_is_its_label_and_one_at_the_top_has_none():
    labels = read_labels("folders", PICTURES, "/p")
    assert labels.classes == ("a", "b")
    assert labels.of(PICTURES).tolist() == [0, 0, 1, -1]
    assert "3 pictures of 2 classes (a, b)" in labels.in_words()


def test_a_class_without_a_picture_to_train_on_is_left_out_and_told():
    labels = read_labels("folders", PICTURES, "/p").within(PICTURES[2:])
    assert labels.classes == ("b",)
    assert labels.dropped == ("a",)
    assert labels.of(PICTURES).tolist() == [-1, -1, 0, -1]
    assert "no training picture of a" in labels.in_words()


def test_a_csv_may_have_a_header_empty_labels_absolute_paths_and_strangers(tmp_path):
    (file := tmp_path / "labels.csv").write_text("path,label\na/1.jpg,dog\n/p/4.jpg, cat\na/2.jpg,\ngone.jpg,dog\n\n")
    labels = read_labels(str(file), PICTURES, "/p")
    assert labels.of(PICTURES).tolist() == [1, -1, -1, 0]
    assert labels.unknown == 1
    assert "1 line names no usable picture" in labels.in_words()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a/1.jpg,dog\na/2.jpg,dog\n", "two classes"),
        ("a/1.jpg,dog\na/1.jpg,cat\n", "two labels"),
        ("a/1.jpg\n", "not path,label"),
        ("gone.jpg,dog\n", "names no usable picture with a label"),
        ("\xff\xfe".encode("latin-1"), "cannot be read"),
        ("path,label\na.jpg,café\n".encode("latin-1"), "no UTF-8"),
        ("path,label\na.jpg,cat\n".encode("utf-16"), "no UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_labels_that_say_nothing_are_refused(tmp_path, text, words):
    file = tmp_path / "labels.csv"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TinkitError, match=words):
        read_labels(str(file), PICTURES, "/p")


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_finds_separable_classes_and_never_says_one_it_has_not_seen(classes):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, 120)
    rows = generator.normal(size=(120, 6)).astype(np.float32) + 8 * np.eye(6, dtype=np.float32)[labels]
    head = fit_head(rows, labels, classes + 1)
    said = head(torch.from_numpy(rows)).argmax(1).numpy()
    assert (said == labels).all()
    assert head(torch.from_numpy(rows))[:, -1].unique().item() > -100  # below the others, and still a plain logit
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_a_head_is_scikit_learn_s_own_model_folded():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(1)
    labels = generator.integers(0, 3, 200)
    rows = generator.normal(3, 2, (200, 5)).astype(np.float32) + np.eye(5, dtype=np.float32)[labels]
    scaled = StandardScaler().fit_transform(rows)
    model = LogisticRegression(max_iter=200, tol=1e-3).fit(scaled, labels)
    ours = fit_head(rows, labels, 3)(torch.from_numpy(rows)).softmax(1).numpy()
    np.testing.assert_allclose(ours, model.predict_proba(scaled), atol=2e-3)
