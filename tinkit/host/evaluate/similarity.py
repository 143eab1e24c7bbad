"""How like its teacher the network is on pictures without labels: picture by picture, pair by pair, neighbour by neighbour.

Pointwise against the mapped teacher, where there is a mapping; relational against the teacher's own space. Centred kernel
alignment is over all pictures. What is over pairs is of at most pairs.SAMPLED pictures, and neighbours are looked up for at
most QUERIES pictures (among all of them): seeded samples of more, said in `conditions`. Suggested in tinkit's notes on arXiv
2411.15239, whose code has no such numbers; CKA by arXiv 1905.00414 and Song et al. 2012.
"""

import numpy as np

from tinkit.errors import TinkitError
from tinkit.fidelity import cosine_per_picture
from tinkit.host.evaluate import cka, neighbours, pairs
from tinkit.host.evaluate.measure import LOWER, Measure
from tinkit.host.evaluate.resampling import HALVES, RESAMPLES, halves, interval, interval_of_mean

KS = (1, 10, 50)
QUERIES = 10_000
FEWEST = 8  # pictures: a half of them must do for the U-statistic of CKA
SHOWN = 5  # neighbours of each of the worst pictures
CHUNK = 4096
PAIRWISE = (
    "over pairs of pictures and CKA: random halves without replacement, so that no picture meets itself; the spread of "
    f"{HALVES} halves about the value"
)
POINTWISE = (
    f"over pictures and neighbours: percentile bootstrap of {RESAMPLES} resamples; neighbours stay those among all"
)


def similarity(teacher_ND, mapped_ND, student_ND, names, fitted=False, seed=0, worst=12) -> dict:
    """The block "similarity" of an evaluation, plain data.

    Rows (N, Dt), (N, Ds) or None without a mapping, (N, Ds): same pictures in the same order, may be memory maps. fitted:
    the mapping was fitted on the student afterwards. A row that is not finite has cosine -1 to the mapped teacher, counts
    as zeros elsewhere, and is counted in "not_finite". Overlap at k is left out where chance alone would give more than
    half. TinkitError for fewer than eight pictures, ValueError for rows that do not belong together.
    """
    _check(teacher_ND, mapped_ND, student_ND, names)
    count = len(student_ND)
    cosine_N = None if mapped_ND is None else _cosines(student_ND, mapped_ND)
    overlaps, queries, shares_QK = _overlaps(teacher_ND, student_ND, seed)
    low = _lowest(cosine_N, queries, shares_QK, overlaps, worst)
    shown = _shown(teacher_ND, student_ND, low, cosine_N, names)
    used = {index for one in shown for key in ("teacher_neighbours", "student_neighbours") for index in one[key]}
    picked = pairs.sample(count, pairs.SAMPLED, seed)
    lost = {"teacher": teacher_ND, "mapped": mapped_ND, "student": student_ND}
    return {
        "pictures": count,
        "fitted": bool(fitted and mapped_ND is not None),
        "mapping": mapped_ND is not None,
        "not_finite": {name: _not_finite(rows) for name, rows in lost.items() if rows is not None},
        "cosine": None if cosine_N is None else _summary(cosine_N, seed),
        **_pairwise(teacher_ND, mapped_ND, student_ND, picked, seed),
        "overlap": overlaps,
        "worst": shown,
        "names": {str(index): str(names[index]) for index in sorted(used | {one["index"] for one in shown})},
        "conditions": {
            "seed": seed,
            "pair_pictures": len(picked),
            "pairs": len(picked) * (len(picked) - 1) // 2,
            "queries": len(queries),
            "neighbours_by": neighbours.engine(),
            "intervals": {"level": 0.95, "pairwise": PAIRWISE, "pointwise": POINTWISE},
        },
    }


def measures(block) -> list[Measure]:
    """What a budget may name; those against a mapping that was fitted afterwards have names that begin with fitted_."""
    prefix = "fitted_" if block["fitted"] else ""
    target = "the teacher, mapped by a regression on the student" if prefix else "the mapped teacher"
    found = []
    if block["mapping"]:
        cosine, apart = block["cosine"], block["cosine_difference"]["mapped"]
        what = f"cosine of the network's embedding to {target}, {{}}"
        found += [
            _measure(f"{prefix}cosine", f"Cosine to {target}", cosine["mean"], cosine["interval"], what.format("mean")),
            _measure(
                f"{prefix}cosine_p1",
                f"Cosine to {target}, lowest 1 %",
                cosine["p1"],
                cosine["p1_interval"],
                what.format("1st percentile of the pictures"),
            ),
            _of(f"{prefix}cosine_difference_mapped", f"Angles off, against {target}", apart, DIFFERENCE, LOWER),
        ]
    return [
        *found,
        _of(
            "cosine_difference",
            "Angles off, against the teacher",
            block["cosine_difference"]["teacher"],
            DIFFERENCE,
            LOWER,
        ),
        _of(
            "spearman",
            "Order of pairs",
            block["spearman"],
            "Spearman's correlation of pairwise cosines with the teacher's",
        ),
        _of("cka", "Linear CKA", block["cka"], "with the teacher's rows; biased towards 1 when pictures are few"),
        _of(
            "cka_debiased", "Linear CKA, debiased", block["cka_debiased"], "U-statistic of HSIC; about 0 when unrelated"
        ),
        *(
            _of(f"overlap@{one['k']}", f"Neighbours in common of {one['k']}", one, _by_chance(one))
            for one in block["overlap"]
        ),
    ]


DIFFERENCE = "mean over pairs of pictures of |difference of their cosines|, 0 when angles are kept"


def _by_chance(one):
    return f"share of the {one['k']} nearest pictures that the teacher has too; by chance {one['chance']:.4f}"


def _of(name, title, found, what, better="higher"):
    return _measure(name, title, found["value"], found["interval"], what, better)


def _measure(name, title, value, ends, what, better="higher"):
    return Measure(name, "similarity", title, value, better=better, interval=tuple(ends), what=what)


def _check(teacher_ND, mapped_ND, student_ND, names):
    count = len(names)
    if any(rows is not None and len(rows) != count for rows in (teacher_ND, mapped_ND, student_ND)):
        raise ValueError(f"{len(teacher_ND)} rows of the teacher, {len(student_ND)} of the student, {count} names")
    if mapped_ND is not None and np.shape(mapped_ND) != np.shape(student_ND):
        raise ValueError(f"mapped teacher {np.shape(mapped_ND)}, student {np.shape(student_ND)}")
    if count < FEWEST:
        raise TinkitError(
            "There are too few pictures to compare two networks.",
            seen=f"{count} pictures",
            next_step=f"give at least {FEWEST}, better some hundreds",
        )


def _cosines(student_ND, mapped_ND):
    starts = range(0, len(student_ND), CHUNK)
    return np.concatenate([cosine_per_picture(student_ND[i : i + CHUNK], mapped_ND[i : i + CHUNK]) for i in starts])


def _not_finite(rows_ND):
    starts = range(0, len(rows_ND), CHUNK)
    return int(sum((~np.isfinite(rows_ND[i : i + CHUNK]).all(axis=1)).sum() for i in starts))


def _summary(cosine_N, seed):
    """The smallest has no interval: a resample can only have the same or a larger one."""
    return {
        "mean": float(cosine_N.mean()),
        "p1": float(np.percentile(cosine_N, 1)),
        "min": float(cosine_N.min()),
        "interval": list(interval_of_mean(cosine_N, seed=seed)),
        "p1_interval": list(interval(lambda values: np.percentile(values, 1), cosine_N, seed=seed)),
    }


def _pairwise(teacher_ND, mapped_ND, student_ND, picked, seed):
    half = halves(len(picked), seed=seed)
    teacher_MD, student_MD = np.asarray(teacher_ND[picked]), np.asarray(student_ND[picked])
    teacher, student = pairs.pair_cosines(teacher_MD), pairs.pair_cosines(student_MD)
    found = {
        "cosine_difference": {
            "teacher": pairs.difference(student, teacher, half),
            "mapped": None
            if mapped_ND is None
            else pairs.difference(student, pairs.pair_cosines(mapped_ND[picked]), half),
        },
        "spearman": pairs.spearman(student, teacher, seed=seed),
    }
    values = cka.cka(teacher_ND, student_ND)
    ends = cka.intervals(teacher_MD, student_MD, half, values, len(student_ND))
    for name, value, between in zip(("cka", "cka_debiased"), values, ends):
        found[name] = {"value": value, "interval": list(between)}
    return found


def _ks(count):
    """The numbers of neighbours for which chance, k / (N - 1), gives at most half."""
    return [k for k in KS if 2 * k <= count - 1]


def _overlaps(teacher_ND, student_ND, seed):
    """What the block says of each k, the pictures that were asked (Q,), and the shares (Q, K) picture by picture."""
    count = len(student_ND)
    queries, ks = pairs.sample(count, QUERIES, seed), _ks(count)
    near = [neighbours.nearest_to(rows, queries, max(ks))[0] for rows in (teacher_ND, student_ND)]
    shares = np.stack([shared(near[0][:, :k], near[1][:, :k]) for k in ks], axis=1)
    found = [
        {
            "k": k,
            "value": float(shares[:, place].mean()),
            "interval": list(interval_of_mean(shares[:, place], seed=seed)),
            "chance": k / (count - 1),
        }
        for place, k in enumerate(ks)
    ]
    return found, queries, shares


def shared(a_QK, b_QK) -> np.ndarray:
    """(Q,): the share of the K indices of each row of `a` that are in the same row of `b`; no row has one twice."""
    both = np.sort(np.hstack([a_QK, b_QK]), axis=1)
    return (both[:, 1:] == both[:, :-1]).sum(axis=1) / a_QK.shape[1]


def _lowest(cosine_N, queries, shares_QK, overlaps, worst):
    """Indices of the worst pictures: by cosine to the mapped teacher, else by the neighbours in common (10, or fewer)."""
    if cosine_N is not None:
        return np.argsort(cosine_N, kind="stable")[:worst]
    place = max(place for place, one in enumerate(overlaps) if one["k"] <= 10)
    return queries[np.argsort(shares_QK[:, place], kind="stable")[:worst]]


def _shown(teacher_ND, student_ND, low, cosine_N, names):
    if not len(low):
        return []
    k = max(k for k in _ks(len(student_ND)) if k <= 10)
    most = max(k, SHOWN)
    teacher, student = (neighbours.nearest_to(rows, low, most)[0] for rows in (teacher_ND, student_ND))
    shares = shared(teacher[:, :k], student[:, :k])
    return [
        {
            "name": str(names[index]),
            "index": int(index),
            "cosine": None if cosine_N is None else float(cosine_N[index]),
            "overlap": float(shares[place]),
            "teacher_neighbours": teacher[place, :SHOWN].tolist(),
            "student_neighbours": student[place, :SHOWN].tolist(),
        }
        for place, index in enumerate(low)
    ]
