"""Does a network know what it does not know: pictures of another kind told from known ones, teacher beside student.

The score of a picture is its cosine to the k-th nearest picture of the bank (Sun et al. 2022, arXiv 2204.06507); no labels are
used. k = 1 as in the code of arXiv 2411.15239 (CosPress), k = 50 as in OpenOOD (arXiv 2306.09301), whole bank. Each network is
judged with its own bank. The known pictures must not be in the bank: one that is has a score of 1.
"""

import numpy as np

from tinkit.host.evaluate import roc
from tinkit.host.evaluate.finite import require_finite
from tinkit.host.evaluate.measure import HIGHER, LOWER, Measure
from tinkit.host.evaluate.neighbours import nearest

KS = (1, 50)
NETWORKS = ("teacher", "student")
GROUPS = ("near", "far")
BINS = 30
TWIN = 1 - 1e-6  # a cosine to the bank from which a known picture counts as being in it


def ood(bank, known, strange, ks=KS, seed=0, groups=None) -> dict:
    """The block "ood". bank, known: {"teacher": (N, Dt), "student": (N, Ds)}; strange: {set name: the same}.

    groups: {set name: "near" | "far" | ""}. k is cut to the size of the bank. Means are over sets, each set counting once; for
    intervals known and strange pictures are resampled apart, the same pictures for both networks, every k and every set.
    ValueError for sides of unequal length or without pictures, TinkitError for rows that are not finite.
    """
    groups = {name: (groups or {}).get(name, "") for name in strange}
    _check(bank, known, strange, groups)
    sizes = {name: len(rows["student"]) for name, rows in strange.items()}
    times = roc.resamples(len(known["student"]) + max(sizes.values()))
    known_scores = _scores(bank, known, ks)
    drawn, sets = {}, {}
    for number, (name, rows) in enumerate(strange.items()):
        strange_scores = _scores(bank, rows, ks)
        rankings = {k: {n: roc.Ranking.of(known_scores[n][k], strange_scores[n][k]) for n in NETWORKS} for k in ks}
        values = {k: {n: ranking.metrics() for n, ranking in both.items()} for k, both in rankings.items()}
        drawn[name] = values, _resampled(rankings, len(known["student"]), sizes[name], times, (seed, number))
        sets[name] = {
            "group": groups[name],
            "pictures": sizes[name],
            "k": {str(k): _told(*_of_k([drawn[name]], k)) for k in ks},
            "histogram": {n: _histogram(known_scores[n][ks[0]], strange_scores[n][ks[0]]) for n in NETWORKS},
            "roc": {n: ranking.curve() for n, ranking in rankings[ks[0]].items()},
        }
    means = {"mean": list(strange), **{group: [name for name in strange if groups[name] == group] for group in GROUPS}}
    return {
        "ks": [int(k) for k in ks],
        "bank": len(bank["student"]),
        "known": len(known["student"]),
        "sets": sets,
        **{
            mean: {str(k): _told(*_of_k([drawn[name] for name in names], k)) for k in ks}
            for mean, names in means.items()
            if names
        },
        "conditions": {
            "score": "cosine to the k-th nearest picture of the bank",
            "aupr": "average precision",
            "fpr95_known": "share of strange pictures that pass where 95 % of the known pass",
            "fpr95_strange": "share of known pictures that are flagged where 95 % of the strange are",
            "histogram and roc": f"k = {ks[0]}",
            "resamples": times,
            "seed": seed,
        },
        "notes": _notes(len(bank["student"]), known_scores, ks),
    }


def _check(bank, known, strange, groups):
    if not strange:
        raise ValueError("no strange pictures")
    for what, rows in (("bank", bank), ("known", known), *strange.items()):
        if not len(rows["teacher"]) == len(rows["student"]) > 0:
            raise ValueError(
                f"{what}: {len(rows['teacher'])} rows of the teacher, {len(rows['student'])} of the student"
            )
        require_finite({network: rows[network] for network in NETWORKS}, f"the {what} pictures of the OOD question")
    unknown = set(groups.values()) - {"", *GROUPS}
    if unknown:
        raise ValueError(f"no such group: {', '.join(sorted(unknown))}")


def _scores(bank, rows, ks) -> dict:
    """{network: {k: (M,)}}."""
    found = {}
    for network in NETWORKS:
        cosines = nearest(bank[network], rows[network], max(ks))[1]
        found[network] = {k: cosines[:, min(k, cosines.shape[1]) - 1] for k in ks}
    return found


def _resampled(rankings, known, strange, times, seed) -> dict:
    """{k: {network: {metric: (R,)}}}; both networks and every k see the same drawn pictures."""
    parts: dict = {k: {network: [] for network in both} for k, both in rankings.items()}
    for weights in roc.weights(known, strange, times, seed):
        for k, both in rankings.items():
            for network, ranking in both.items():
                parts[k][network].append(ranking.metrics(*weights))
    return {k: {network: _joined(found) for network, found in both.items()} for k, both in parts.items()}


def _joined(found):
    return {metric: np.concatenate([part[metric] for part in found]) for metric in roc.METRICS}


def _of_k(entries, k):
    """(values, resampled) of one k, {network: {metric: (1,) or (R,)}}: the mean over the sets' entries."""
    return tuple(
        {n: {m: np.mean([entry[side][k][n][m] for entry in entries], axis=0) for m in roc.METRICS} for n in NETWORKS}
        for side in (0, 1)
    )


def _told(values, resampled) -> dict:
    """{"teacher", "student": {metric: value}, "difference": {metric: value}, "interval", "change": {metric: [low, high]}}."""
    change = {metric: resampled["student"][metric] - resampled["teacher"][metric] for metric in roc.METRICS}
    numbers = {network: {metric: float(values[network][metric][0]) for metric in roc.METRICS} for network in NETWORKS}
    return {
        **numbers,
        "difference": {metric: numbers["student"][metric] - numbers["teacher"][metric] for metric in roc.METRICS},
        "interval": {metric: _interval(resampled["student"][metric]) for metric in roc.METRICS},
        "change": {metric: _interval(change[metric]) for metric in roc.METRICS},
    }


def _interval(values_R):
    return [float(value) for value in np.percentile(values_R, (2.5, 97.5))]


def _histogram(known_N, strange_M) -> dict:
    """Counts of both in 30 equal bins from the lowest score to the highest."""
    edges = np.histogram_bin_edges(np.concatenate([known_N, strange_M]), BINS)
    counts = {
        what: np.histogram(scores, edges)[0].tolist() for what, scores in (("known", known_N), ("strange", strange_M))
    }
    return {"edges": [round(float(edge), 6) for edge in edges], **counts}


def _notes(bank, known_scores, ks) -> list[str]:
    notes = [
        f"k = {k} is more than the {bank} pictures of the bank: the farthest of them is taken." for k in ks if k > bank
    ]
    nearest_k = min(ks)
    twins = int((known_scores["teacher"][nearest_k] >= TWIN).sum())
    if nearest_k == 1 and twins:
        notes.append(
            f"{twins} of the known pictures look like one of the bank to the teacher (cosine 1): is the bank apart from them?"
        )
    return notes


def measures(block) -> list[Measure]:
    """auroc, fpr95 and aupr at the first k (known pictures positive), auroc@K at the others; near and far where grouped."""
    first, *others = block["ks"]
    everywhere = f"mean over {', '.join(block['sets'])}"
    mean = block["mean"][str(first)]
    told = [
        _measure("auroc", "AUROC", mean, "auroc", f"k = {first}, {everywhere}"),
        _measure(
            "fpr95", "FPR at 95 % recall", mean, "fpr95_known", f"recall of known pictures, k = {first}, {everywhere}"
        ),
        _measure("aupr", "AUPR", mean, "aupr_known", f"average precision, known positive, k = {first}, {everywhere}"),
    ]
    for k in others:
        told.append(_measure(f"auroc@{k}", f"AUROC, k = {k}", block["mean"][str(k)], "auroc", f"k = {k}, {everywhere}"))
    for group in GROUPS:
        if group in block:
            of_group = block[group][str(first)]
            told.append(
                _measure(f"auroc_{group}", f"AUROC, {group} sets", of_group, "auroc", f"k = {first}, {group} sets")
            )
    return told


def _measure(name, title, told, metric, what) -> Measure:
    return Measure(
        name=name,
        group="ood",
        title=title,
        student=told["student"][metric],
        teacher=told["teacher"][metric],
        better=LOWER if metric in roc.LOWER_IS_BETTER else HIGHER,
        interval=tuple(told["interval"][metric]),
        change=tuple(told["change"][metric]),
        what=f"strange pictures told from known ones by the cosine to the k-th nearest of the bank: {what}",
    )
