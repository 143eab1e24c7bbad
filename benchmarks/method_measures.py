"""What benchmarks/methods.py measures on a student: its structure against the teacher's, and what can be read off it.

All features are numpy arrays, one a part (train, validation, held-out, ood, and each corruption of the held-out pictures).
The training pictures are the bank of the nearest neighbours; their labels serve here and in rows marked (labels) only.
Legend: N pictures, D width.
"""

import warnings

import numpy as np

from tinkit.fidelity import cosine_difference, cosine_spearman, knn_predict, linear_cka, unit

PROBE_C = (0.01, 0.1, 1.0)  # of the linear probe, chosen on the validation pictures


def knn_accuracy(features, labels, part, queries=None):
    """Share of right answers of kNN (k = 10, weights exp(similarity / 0.07)) on a part, or on `queries` for it."""
    predicted = knn_predict(features["train"], labels["train"], features[part] if queries is None else queries)
    return float((predicted == labels[part]).mean())


def measure(features, teacher, labels, corruptions):
    """The metrics of one student by name. `features` and `teacher`: part -> (N,D); for the teacher's own, give it twice."""
    held, theirs = features["held-out"], teacher["held-out"]
    says, teacher_says = (knn_predict(rows["train"], labels["train"], rows["held-out"]) for rows in (features, teacher))
    corrupted = {name: knn_accuracy(features, labels, "held-out", features[name]) for name in corruptions}
    return {
        "cosine_difference": cosine_difference(held, theirs),
        "cosine_difference_centred": cosine_difference(
            held - features["train"].mean(0), theirs - teacher["train"].mean(0)
        ),
        "spearman": cosine_spearman(held, theirs),
        "cka": linear_cka(held, theirs),
        "knn": float((says == labels["held-out"]).mean()),
        "probe": probe_accuracy(features, labels),
        "agreement": float((says == teacher_says).mean()),
        "auroc": auroc(features["train"], held, features["ood"]),
        "corrupted": float(np.mean(list(corrupted.values()))),
        "corrupted_each": corrupted,
    }


def auroc(bank_ND, known_ND, strange_ND):
    """How well the cosine to the nearest picture of the bank tells known pictures (positive) from strange ones."""
    from sklearn.metrics import roc_auc_score

    bank = unit(bank_ND)
    nearest = [(unit(rows) @ bank.T).max(axis=1) for rows in (known_ND, strange_ND)]
    return float(roc_auc_score(np.repeat([1, 0], [len(known_ND), len(strange_ND)]), np.concatenate(nearest)))


def probe_accuracy(features, labels):
    """Logistic regression on standardised features of the training pictures: held-out accuracy at the C that does best
    on the validation pictures."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean_D, std_D = features["train"].mean(0), features["train"].std(0) + 1e-6
    rows = {part: (features[part] - mean_D) / std_D for part in ("train", "validation", "held-out")}
    found = []
    for strength in PROBE_C:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 300 rounds are enough for a probe
            model = LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(rows["train"], labels["train"])
        found.append([float(model.score(rows[part], labels[part])) for part in ("validation", "held-out")])
    return max(found, key=lambda scores: scores[0])[1]


def embed(student, pixels, batch=125):
    """The student's embeddings of uint8 pixels (N,3,S,S), (N,D) float32."""
    import torch

    from tinkit.host.views import normalise_on_device

    parts = []
    with torch.no_grad():
        for start in range(0, len(pixels), batch):
            images = normalise_on_device(torch.from_numpy(pixels[start : start + batch]), student.spec.preprocessing)
            parts.append(student(images).global_BD.numpy())
    return np.concatenate(parts)
