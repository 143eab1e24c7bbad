"""A full evaluation with made-up numbers, every block filled in the shapes that tinkit.host.evaluate gives, and its pictures."""

import math

import numpy as np
from PIL import Image, ImageDraw
from report_parts import HOSTILE

from tinkit import files
from tinkit.host.evaluate.corruptions import CORRUPTIONS
from tinkit.host.evaluate.evaluation import JSON, SCHEMA
from tinkit.host.evaluate.measure import LOWER, Measure

CLASSES = ["bicycle", "bottle", "cat", "chair", "dog", "lamp", "plant", "tram"]
PICTURES, WORST, GRID, FLIPPED = 96, 12, 14, 60
BOTH = ("teacher", "student")


def name_of(index):
    return f"{CLASSES[index % len(CLASSES)]}/picture {index}.jpg"


def write_pictures(root, count=PICTURES, side=160):
    """Pictures that a person can tell apart: each class has a shape, each picture colours of its own."""
    rng = np.random.default_rng(3)
    for index in range(count):
        path = root / name_of(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        low, high = (tuple(int(v) for v in rng.integers(a, b, 3)) for a, b in ((20, 130), (130, 250)))
        image = Image.new("RGB", (side + index % 3 * 30, side), low)
        pen, kind = ImageDraw.Draw(image), index % len(CLASSES)
        x, y, reach = (float(v) for v in (image.width / 2 + rng.integers(-25, 25), side / 2, 30 + rng.integers(0, 25)))
        pen.regular_polygon((x, y, reach), kind + 3, rotation=int(rng.integers(90)), fill=high)
        noise = rng.normal(0, 9, (image.height, image.width, 3))
        Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)).save(path, quality=88)


def similarity():
    rng = np.random.default_rng(0)
    worst = []
    for place in range(WORST):
        index = int(7 * place + 3) % PICTURES
        near = [int(one) for one in rng.permutation(PICTURES)[:8]]
        cosine, overlap = 0.31 + 0.027 * place, 0.2 + 0.03 * (place % 4)
        both = {"teacher_neighbours": near[:5], "student_neighbours": [*near[5:], *near[: 2 + place % 3]][:5]}
        worst.append({"name": name_of(index), "index": index, "cosine": cosine, "overlap": overlap, **both})
    value = {"value": 0.87, "interval": [0.85, 0.89]}
    return {
        "pictures": PICTURES,
        "fitted": False,
        "mapping": True,
        "not_finite": {"teacher": 0, "mapped": 0, "student": 0},
        "cosine": {"mean": 0.91, "p1": 0.42, "min": 0.31, "interval": [0.9, 0.92], "p1_interval": [0.38, 0.45]},
        "cosine_difference": {
            "teacher": {"value": 0.06, "interval": [0.05, 0.07]},
            "mapped": {"value": 0.04, "interval": [0.03, 0.05]},
        },
        "spearman": value,
        "cka": value,
        "cka_debiased": value,
        "overlap": [{"k": 10, "value": 0.62, "interval": [0.6, 0.64], "chance": 0.01}],
        "worst": worst,
        "names": {str(index): name_of(index) for index in range(PICTURES)},
        "conditions": {"seed": 0, "pair_pictures": PICTURES},
    }


def judged(teacher, student):
    return {
        "teacher": teacher, "teacher_interval": [teacher - 0.02, teacher + 0.02],
        "student": student, "student_interval": [student - 0.02, student + 0.02],
        "change": student - teacher, "change_interval": [student - teacher - 0.01, student - teacher + 0.01],
        "agreement": 0.9, "agreement_interval": [0.88, 0.92],
    }  # fmt: skip


def churn(pictures=FLIPPED):
    ways = ("right to wrong", "wrong to right", "wrong to other")
    listed = []
    for place in range(pictures):
        index, way = place * 5 % PICTURES, ways[place * 3 // pictures]
        label, other, third = (CLASSES[(index + step) % len(CLASSES)] for step in (0, 3, 5))
        teacher, student = {ways[0]: (label, other), ways[1]: (other, label), ways[2]: (other, third)}[way]
        listed.append(
            {"name": name_of(index), "index": index, "label": label, "teacher": teacher, "student": student, "way": way}
        )
    third = pictures // 3
    counts = {"right_to_wrong": third, "wrong_to_right": third, "wrong_to_other": third}
    return {**counts, "flipped": pictures, "share": 0.1, "pictures": listed}


def bins(too_sure):
    middles = [(bin_ + 0.5) / 15 for bin_ in range(4, 15)]
    return {
        "bins": [
            {
                "low": m - 1 / 30,
                "high": m + 1 / 30,
                "confidence": m,
                "accuracy": max(0.0, m - too_sure * math.sin(3 * m)),
                "count": 20 + n,
            }
            for n, m in enumerate(middles)
        ]
    }


def labels():
    rng = np.random.default_rng(1)
    scores = [
        {who: {s: float(rng.uniform(0.6, 1)) for s in ("recall", "precision", "f1")} for who in BOTH} for _ in CLASSES
    ]
    return {
        "pictures": {"bank": 400, "validation": 100, "test": 600},
        "classes": len(CLASSES),
        "knn": {"k": 10, "temperature": 0.07, **judged(0.91, 0.88), "churn": churn()},
        "probe": {**judged(0.94, 0.93), "churn": churn(30)},
        "calibration": {
            "bins": 15,
            "change_interval": [0.01, 0.03],
            **{
                who: {"ece": ece, "confidence": 0.9, "accuracy": 0.9, "reliability": bins(2 * ece)}
                for who, ece in (("teacher", 0.03), ("student", 0.05))
            },
        },
        "per_class": [{"class": name, "count": 60 + 5 * n, **scores[n]} for n, name in enumerate(CLASSES)],
        "confusion": {"classes": CLASSES, "difference": rng.integers(-6, 7, (len(CLASSES), len(CLASSES))).tolist()},
        "notes": ["no validation picture of tram: it has no say in the choice of C"],
    }


def ood():
    edges = [round(0.1 + 0.03 * n, 6) for n in range(31)]

    def hill(middle, width, whole):
        return [int(whole * math.exp(-(((edge + 0.015 - middle) / width) ** 2))) for edge in edges[:-1]]

    def at(area):
        told = {
            "auroc": area,
            "aupr_known": area - 0.01,
            "aupr_strange": area - 0.03,
            "fpr95_known": 1.02 - area,
            "fpr95_strange": 1.05 - area,
        }
        student = {name: value - 0.02 if name.startswith("au") else value + 0.04 for name, value in told.items()}
        interval = {name: [value - 0.01, value + 0.01] for name, value in student.items()}
        change = {name: [student[name] - told[name] - 0.01, student[name] - told[name] + 0.01] for name in told}
        return {
            "teacher": told,
            "student": student,
            "difference": {n: student[n] - told[n] for n in told},
            "interval": interval,
            "change": change,
        }

    def curve(power):
        return [[n / 50, (n / 50) ** power] for n in range(51)]

    return {
        "ks": [1, 50],
        "bank": 400,
        "known": 600,
        "sets": {
            name: {
                "group": group,
                "pictures": 300,
                "k": {"1": at(area), "50": at(area - 0.02)},
                "histogram": {
                    who: {"edges": edges, "known": hill(0.78, 0.14, 90), "strange": hill(middle, 0.12, 60)}
                    for who, middle in (("teacher", 0.4), ("student", 0.46))
                },
                "roc": {"teacher": curve(0.08), "student": curve(0.14)},
            }
            for name, group, area in (("sketches", "near", 0.93), ("textures", "far", 0.98))
        },
        "mean": {"1": at(0.955), "50": at(0.93)},
        "conditions": {"score": "cosine", "seed": 0},
        "notes": [],
    }  # fmt: skip


def corruption():
    rng = np.random.default_rng(2)
    found = {}
    for group, names in CORRUPTIONS.items():
        for name in names:
            slope = float(rng.uniform(0.03, 0.12))
            values = {
                who: [0.9 - extra - slope * s for s in range(1, 6)]
                for who, extra in (("teacher", 0), ("student", 0.02 + slope / 2))
            }
            found[name] = {
                "group": group,
                **values,
                "mean": {who: float(np.mean(values[who])) for who in BOTH},
                "agreement": [0.8] * 5,
                "cosine": {who: [0.7] * 5 for who in BOTH},
                "relative_error": None if name == "fog" else 1.2,
                "relative_gap": 1.1,
            }
    mean = {who: float(np.mean([one["mean"][who] for one in found.values()])) for who in BOTH}
    return {
        "judged": "accuracy",
        "pictures": 200,
        "severities": [1, 2, 3, 4, 5],
        "clean": {"teacher": 0.91, "student": 0.88},
        "corruptions": found,
        "groups": {},
        "by_severity": {
            who: [float(np.mean([one[who][s] for one in found.values()])) for s in range(5)] for who in BOTH
        },
        "mean": {**mean, "interval": [mean["student"] - 0.02, mean["student"] + 0.02], "change": [-0.08, -0.04]},
        "gap": {"teacher": 0.2, "student": 0.25, "interval": [0.2, 0.3], "change": [0.02, 0.08]},
        "agreement": 0.8,
        "relative_error": 1.21,
        "relative_gap": 1.13,
        "conditions": {"seed": 0},
        "notes": ["The teacher makes no error under fog: no relative error there."],
    }


def domains():
    found = [
        {"name": name, "trained_on": n == 0, "count": 300, **judged(0.95 - 0.12 * n, 0.93 - 0.15 * n),
         "teacher_drop": 0.12 * n, "student_drop": 0.15 * n}
        for n, name in enumerate(("photo", "art painting", "cartoon", "sketch"))
    ]  # fmt: skip
    return {"train": "photo", "classes": 7, "domains": found, "mean": judged(0.71, 0.63), "probe": {}, "notes": []}


def heat(row, column, wide):
    y, x = np.mgrid[:GRID, :GRID]
    return np.round(255 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / wide)).astype(int).tolist()


def dense():
    maps = []
    for n in range(6):
        points = [
            {"row": row, "column": column, "why": why, "correlation": 0.8 - 0.1 * n, "low": -0.1, "high": 0.9,
             "teacher": heat(row, column, 30), "student": heat(row, column + 1, 45 + 8 * n)}
            for row, column, why in ((7, 7, "the centre"), (3, 10, "the most central of the tenth that differs most"))
        ]  # fmt: skip
        maps.append(
            {
                "name": name_of(8 * n + 1),
                "index": 8 * n + 1,
                "why": "lowest" if n < 3 else "sample",
                "correlation": 0.5 + 0.07 * n,
                "points": points,
            }
        )
    return {
        "pictures": 64, "grid": [GRID, GRID], "teacher_grid": [16, 16], "student_grid": [GRID, GRID],
        "map_correlation": {"mean": 0.78, "p1": 0.5, "min": 0.48, "interval": [0.76, 0.8], "pictures": 64, "other_picture": 0.31},
        "maps": maps, "segmentation": None, "notes": [], "conditions": {"seed": 0},
    }  # fmt: skip


def orthogonality():
    values = [2.2 * math.exp(-n / 40) for n in range(128)]
    return {
        "kind": "tintem", "fitted": False, "teacher_dim": 1280, "dim": 128, "directions": 128, "seen": 128, "distance": 6.1,
        "distance_rms": 0.54, "stretch": {"median": 0.9, "min": 0.1, "max": 2.2, "values": values}, "variance_kept": 0.86,
        "cosine_change": {"value": 0.04, "interval": [0.03, 0.05]},
    }  # fmt: skip


def measures():
    pair = [
        ("knn", "labels", "kNN accuracy", 0.88, 0.91, "higher", (-0.04, -0.02), "10 nearest by cosine"),
        ("probe", "labels", "Probe accuracy", 0.93, 0.94, "higher", (-0.02, 0.001), "C chosen on validation pictures"),
        ("ece", "labels", "Calibration error", 0.05, 0.03, LOWER, (0.01, 0.03), "expected calibration error of the probe"),
        ("auroc", "ood", "AUROC", 0.935, 0.955, "higher", (-0.03, -0.01), "k = 1, mean over sketches, textures"),
        ("fpr95", "ood", "FPR at 95 % recall", 0.105, 0.065, LOWER, (0.02, 0.06), "recall of known pictures"),
        ("corruption", "corruption", "Corrupted accuracy", 0.61, 0.67, "higher", (-0.08, -0.04), "15 corruptions"),
        ("domain", "domains", "Accuracy in other domains", 0.63, 0.71, "higher", (-0.1, -0.06), "mean over 3 other domains"),
    ]  # fmt: skip
    alone = [
        ("agreement", "labels", "kNN agreement", 0.9, "share of test pictures that kNN answers alike in both spaces"),
        ("cosine", "similarity", "Cosine to the mapped teacher", 0.91, "mean"),
        ("cka_debiased", "similarity", "Linear CKA, debiased", 0.87, "U-statistic of HSIC"),
        ("overlap@10", "similarity", "Neighbours in common of 10", 0.62, "by chance 0.0100"),
        ("map_correlation", "dense", "Similarity maps", 0.78, "mean correlation of the two networks' similarity maps"),
    ]
    compared = [
        Measure(n, g, t, value, interval=(value - 0.02, value + 0.02), what=what) for n, g, t, value, what in alone
    ]
    return [
        Measure(n, g, t, s, teacher, b, (s - 0.02, s + 0.02), c, w) for n, g, t, s, teacher, b, c, w in pair
    ] + compared


def evaluation(root, **changes):
    """evaluation.json of the pictures below `root`, as plain data."""
    return {
        "schema": SCHEMA,
        "title": "one: tiny beside a teacher of note",
        "verdict": "failed",
        "created": "2025-01-02T03:04:05+00:00",
        "subject": {
            "kind": "student", "run": "runs/one", "run_id": "abc123", "bundle": None, "model_sha256": None, "name": "one",
            "runtime": None,
            "student": {"architecture": "tiny"}, "teacher": {"name": "a teacher of note"}, "method": {"name": "tintem"},
        },
        "pictures": {"root": str(root), "labelled": {"bank": 400, "validation": 100, "test": 600}, "unlabelled": 0, "skipped": [],
                     "classes": CLASSES, "limit": None},
        "measures": [measure.to_json() for measure in measures()],
        "budget": [
            {"rule": "auroc>-0.01", "name": "auroc", "limit": -0.01, "seen": -0.02, "verdict": "failed",
             "reason": "AUROC, change -0.0200 (95 %: -0.0300 to -0.0100)"},
            {"rule": "agreement>0.9", "name": "agreement", "limit": 0.9, "seen": 0.9, "verdict": "passed",
             "reason": "kNN agreement 0.9000"},
        ],
        "similarity": similarity(),
        "orthogonality": orthogonality(),
        "labels": labels(),
        "ood": ood(),
        "corruption": corruption(),
        "domains": domains(),
        "dense": dense(),
        "conditions": {"seed": 0, "device": "cpu"},
        "seconds": {"embed": 12.34, "labels": 3.2, "total": 20.0},
        "notes": ["a note of the evaluation"],
        **changes,
    }  # fmt: skip


def bare(root, **changes):
    """An evaluation of pictures without labels, nothing but similarity asked."""
    nothing = dict.fromkeys(("labels", "ood", "corruption", "domains", "dense", "orthogonality"))
    told = [measure.to_json() for measure in measures() if measure.group == "similarity"]
    return evaluation(root, **{**nothing, "measures": told, "budget": [], "verdict": "not judged", **changes})


def hostile(value):
    """Plain data with every text made hostile; numbers, keys and the words that the page knows stay."""
    if isinstance(value, dict):
        return {key: hostile(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [hostile(entry) for entry in value]
    return HOSTILE if isinstance(value, str) else value


def written_evaluation(folder, value):
    path = folder / JSON
    files.write_json(path, value)
    return path
