"""Linear classifiers: one fitted on the teacher's features where a user has labels, and when the student's may ship."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from tinkit.errors import TinkitError
from tinkit.host.distill.objective import Term
from tinkit.host.distill.sample import Sample
from tinkit.host.labels import Labels


def check_head(terms: Sequence[Term], trains_head: bool, keep_head: bool) -> None:
    """TinkitError when a head is to be kept and nothing makes one."""
    if keep_head and not trains_head and not any(hasattr(term.cls, "head") for term in terms):
        raise TinkitError(
            "There is no head to keep: nothing here trains one.",
            seen="--keep-head",
            next_step="a method over logits, or --labels with --label-weight 1",
        )


def head_on_teacher(sample: Sample, labels: Labels, say: Callable[[str], None]) -> nn.Linear:
    """A frozen head on the teacher's global features of a sample of labelled pictures."""
    labels_N, rows_ND = labels.of(sample.pictures).numpy(), sample.globals()
    head = fit_head(rows_ND, labels_N, len(labels.classes))
    right = (head(torch.from_numpy(rows_ND)).argmax(1).numpy() == labels_N).mean()
    say(f"head on the teacher: {len(rows_ND)} labelled pictures, {right:.3f} of these right")
    return head


def fit_head(rows_ND: np.ndarray, labels_N: np.ndarray, classes: int) -> nn.Linear:
    """A frozen linear head on the teacher's features, by logistic regression on standardised columns (scikit-learn).

    A class without a picture among the rows gets a constant logit below all that were seen.
    """
    from sklearn.linear_model import LogisticRegression

    mean_D, std_D = rows_ND.mean(0), rows_ND.std(0) + 1e-6
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # few labels a class is what few labels means
        model = LogisticRegression(max_iter=200, tol=1e-3).fit((rows_ND - mean_D) / std_D, labels_N)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    head = nn.Linear(rows_ND.shape[1], classes)
    with torch.no_grad():
        seen = torch.from_numpy(model.classes_)
        head.weight.zero_()
        head.weight[seen] = torch.from_numpy(weight / std_D).float()
        head.bias[seen] = torch.from_numpy(bias - weight @ (mean_D / std_D)).float()
        others = np.setdiff1d(np.arange(classes), model.classes_)
        head.bias[others] = head(torch.from_numpy(rows_ND).float())[:, seen].min() - 1
    return head.requires_grad_(False).eval()
