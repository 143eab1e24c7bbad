"""The page's section on answers: which pictures flipped, how sure the probe may be, which classes paid, other domains.

From the blocks "labels" and "domains" of an evaluation. Thumbnails go to the first flipped pictures; all of them are listed.
"""

from typing import Any

from tinkit.host.report.album import Album
from tinkit.host.report.plots_evaluation import Pair, curves, pairs
from tinkit.host.report.text import number, pair, table, tables, text, texts

PICTURED = 48  # flipped pictures with a thumbnail
CHANGED = 12  # entries of the confusion difference that are told
WAYS = {"right to wrong": "lost", "wrong to right": "won", "wrong to other": "both wrong"}
SCORES = ("recall", "precision", "f1")


def labels_of(block: dict, album: Album) -> dict[str, Any]:
    """What the template shows of the block "labels"."""
    calibration = table(block.get("calibration"))
    return {
        "pictures": table(block.get("pictures")),
        "churns": [
            (title, table(table(block.get(name)).get("churn")))
            for name, title in (("knn", "nearest neighbours"), ("probe", "linear probe"))
            if table(block.get(name))
        ],
        "flipped": _flipped(table(table(block.get("knn")).get("churn")), album),
        "reliability": _reliability(calibration),
        "ece": {who: number(table(calibration.get(who)).get("ece")) for who in ("teacher", "student")},
        "classes": [_class(entry) for entry in tables(block.get("per_class"), 10_000)],
        "confusion": _confusion(table(block.get("confusion"))),
        "notes": texts(block.get("notes")),
    }


def domains_of(block: dict) -> dict[str, Any]:
    """What the template shows of the block "domains"."""
    found, mean = tables(block.get("domains")), table(block.get("mean"))
    rows = [
        Pair(
            _named(entry, block),
            number(entry.get("teacher")),
            number(entry.get("student")),
            pair(entry.get("student_interval")),
        )
        for entry in found
    ]
    return {
        "train": text(block.get("train")),
        "chart": pairs("Accuracy by domain", rows, "accuracy of the probe; ring: teacher, dot: student"),
        "rows": [_domain(entry, block) for entry in found]
        + ([_domain(mean, {}, "mean of the others")] if mean else []),
        "notes": texts(block.get("notes")),
    }


def _domain(entry: dict, block: dict, name="") -> dict[str, Any]:
    """One row of the table of domains."""
    numbers = ("count", "teacher", "student", "change", "teacher_drop", "student_drop", "agreement")
    return {
        "name": name or _named(entry, block),
        "trained_on": bool(entry.get("trained_on")),
        **{key: number(entry.get(key)) for key in numbers},
        **{key: pair(entry.get(key)) for key in ("student_interval", "change_interval")},
    }


def _named(entry, block):
    return text(entry.get("name")) + (", trained on" if entry.get("name") == block.get("train") else "")


def _flipped(churn: dict, album: Album) -> list[dict[str, str]]:
    found = []
    for place, entry in enumerate(tables(churn.get("pictures"), 200)):
        words = {key: text(entry.get(key)) for key in ("name", "label", "teacher", "student")}
        kind = WAYS.get(text(entry.get("way")), text(entry.get("way"), "flipped"))
        data = album.data(words["name"]) if place < PICTURED else ""
        found.append({**words, "kind": kind, "data": data, "words": " ".join(words.values())})
    return found


def _reliability(calibration: dict):
    """A chart of accuracy over confidence; "" without bins."""
    series, told = {}, {}
    for who in ("teacher", "student"):
        bins = tables(table(table(calibration.get(who)).get("reliability")).get("bins"))
        if bins:
            series[who] = [(number(one.get("confidence")), number(one.get("accuracy"))) for one in bins]
            told[who] = [
                f"confidence {text(one.get('confidence'))}, right {text(one.get('accuracy'))}, {text(one.get('count'))} pictures"
                for one in bins
            ]
    return curves("Reliability", series, "confidence", "right", diagonal=True, told=told) if series else ""


def _class(entry: dict) -> dict[str, Any]:
    teacher, student = table(entry.get("teacher")), table(entry.get("student"))
    before, after = number(teacher.get("recall")), number(student.get("recall"))
    change = after - before if before is not None and after is not None else None
    return {
        "name": text(entry.get("class"), "not recorded"),
        "count": number(entry.get("count")),
        "change": change,
        **{f"teacher_{score}": number(teacher.get(score)) for score in SCORES},
        **{f"student_{score}": number(student.get(score)) for score in SCORES},
    }


def _confusion(block: dict) -> list[dict[str, Any]]:
    """The entries that changed most: {"label", "answer", "change"}, in pictures."""
    if "pairs" in block:
        found = [
            {"label": text(one.get("label")), "answer": text(one.get("answer")), "change": number(one.get("change"))}
            for one in tables(block["pairs"])
        ]
    else:
        classes = [str(name) for name in block.get("classes") or []]
        found = [
            {"label": label, "answer": answer, "change": number(change)}
            for label, row in zip(classes, block.get("difference") or [])
            for answer, change in zip(classes, row)
        ]
    changed = [(abs(number(one["change"]) or 0.0), one) for one in found]
    return [one for size, one in sorted(changed, key=lambda pair: -pair[0]) if size][:CHANGED]
