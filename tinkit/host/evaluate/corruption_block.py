"""The numbers of the finished corruptions: by corruption, by group, by severity and over all, teacher beside student.

Relative errors follow Hendrycks & Dietterich 2019, arXiv 1903.12261 (mCE and relative mCE), with the teacher in AlexNet's place.
"""

from collections.abc import Sequence

import numpy as np

from tinkit.host.evaluate.corruptions import CORRUPTIONS
from tinkit.host.evaluate.resampling import RESAMPLES, interval_of_mean

TEACHER, STUDENT = NETWORKS = ("teacher", "student")


def block(cells, clean_right, names: Sequence[str], severities: Sequence[int], seed) -> dict:
    """Plain data of finished cells. "judged" and "notes" of the caller's are added there.

    cells: {(name, severity): {"right": {network: (N,) bool}, "agreement": share, "cosine": {network: mean}}}. clean_right:
    {network: (N,) bool}. Lists are over severities. A relative error is None where the teacher makes none.
    """
    right = {n: np.array([[cells[name, s]["right"][n] for s in severities] for name in names]) for n in NETWORKS}
    clean = {n: float(clean_right[n].mean()) for n in NETWORKS}
    by_name = {}
    for i, name in enumerate(names):
        accuracy = {n: right[n][i].mean(axis=1) for n in NETWORKS}
        told = [cells[name, severity] for severity in severities]
        by_name[name] = {
            "group": next(group for group, members in CORRUPTIONS.items() if name in members),
            **{n: accuracy[n].tolist() for n in NETWORKS},
            "mean": {n: float(accuracy[n].mean()) for n in NETWORKS},
            "agreement": [cell["agreement"] for cell in told],
            "cosine": {n: [cell["cosine"][n] for cell in told] for n in NETWORKS},
            "relative_error": _ratio({n: (1 - accuracy[n]).sum() for n in NETWORKS}),
            "relative_gap": _ratio({n: (clean[n] - accuracy[n]).sum() for n in NETWORKS}),
        }
    kept = {n: right[n].mean(axis=(0, 1)) for n in NETWORKS}  # share of the cells that each picture survives
    return {
        "pictures": len(clean_right[STUDENT]),
        "severities": [int(severity) for severity in severities],
        "clean": clean,
        "corruptions": by_name,
        "groups": {group: _mean_of(by_name, group) for group in CORRUPTIONS if set(names) & set(CORRUPTIONS[group])},
        "by_severity": {n: right[n].mean(axis=(0, 2)).tolist() for n in NETWORKS},
        "mean": _with_intervals(kept, seed),
        "gap": _with_intervals({n: clean_right[n] - kept[n] for n in NETWORKS}, seed),
        "agreement": float(np.mean([cell["agreement"] for cell in cells.values()])),
        "relative_error": _mean_ratio(by_name, "relative_error"),
        "relative_gap": _mean_ratio(by_name, "relative_gap"),
        "conditions": {
            "seed": seed,
            "resamples": RESAMPLES,
            "frost": "drawn by tinkit, not the published photographs",
            "relative_error": "errors of the student over the teacher's, summed over severities, mean over corruptions",
            "relative_gap": "the same of what is lost against clean pictures",
        },
    }


def _with_intervals(values, seed) -> dict:
    """Means over pictures of (N,) a network; interval: of the student; change: of student minus teacher."""
    return {
        **{n: float(values[n].mean()) for n in NETWORKS},
        "interval": list(interval_of_mean(values[STUDENT], seed=seed)),
        "change": list(interval_of_mean(values[STUDENT] - values[TEACHER], seed=seed)),
    }


def _ratio(sums):
    return float(sums[STUDENT] / sums[TEACHER]) if sums[TEACHER] > 1e-12 else None


def _mean_of(by_name, group):
    members = [entry["mean"] for entry in by_name.values() if entry["group"] == group]
    return {n: float(np.mean([member[n] for member in members])) for n in NETWORKS}


def _mean_ratio(by_name, key):
    found = [entry[key] for entry in by_name.values() if entry[key] is not None]
    return float(np.mean(found)) if found else None
