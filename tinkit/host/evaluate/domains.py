"""Does an answer hold in another style? A probe trained on one domain (photos), asked on others (art, sketches).

Both networks get their own probe on the pictures of the first domain, C chosen on its validation part; its test part says what
they lose on the way to each other domain. One source, many targets: the hard half of what is done with PACS (arXiv 1710.03077).
"""

from collections.abc import Sequence

import numpy as np

from tinkit.errors import TinkitError
from tinkit.host.evaluate.answers import judged
from tinkit.host.evaluate.labelled import check_rows
from tinkit.host.evaluate.measure import Measure
from tinkit.host.evaluate.pictures import BANK, PARTS, TEST, VALIDATION
from tinkit.host.evaluate.probe import fit_probe, notes_of, of_probes
from tinkit.host.evaluate.resampling import LEVEL, RESAMPLES


def domains(train_name: str, teacher: dict, student: dict, labels: dict, classes: Sequence[str], seed: int = 0) -> dict:
    """The block "domains". teacher, student: domain -> part -> (N, D) rows; labels: domain -> part -> (N,) class numbers.

    The domain `train_name` has the parts "bank", "validation" and "test", of every other "test" is used: all of its pictures.
    {"train", "classes", "domains": [{"name", "trained_on", "count", and of judged(): "teacher", "student", "change",
    "agreement" with intervals, "teacher_drop", "student_drop"}], "mean": the same over the other domains, "probe", "notes"}.
    change: student minus teacher. drop: accuracy on the trained domain minus this one, 0 for itself. A mean is over domains, each
    with one vote; its interval resamples pictures within each domain. Raises TinkitError without another domain, for one
    without pictures, and for features that are not finite.
    """
    others = [name for name in labels if name != train_name]
    if not others:
        raise TinkitError("There is no other domain to test on.", seen=train_name, next_step="--domains FOLDER")
    for name in (train_name, *others):
        for part in PARTS if name == train_name else (TEST,):
            where = f"{name}, {part}"
            check_rows(teacher[name][part], student[name][part], labels[name][part], len(classes), where)
            if part != VALIDATION and len(labels[name][part]) == 0:
                raise TinkitError("A domain has no labelled picture.", where=where)
    source = labels[train_name]
    probes = [
        fit_probe(rows[BANK], source[BANK], rows[VALIDATION], source[VALIDATION], classes, seed)
        for rows in (teacher[train_name], student[train_name])
    ]
    found, columns = [], []
    for name in (train_name, *others):
        truth = np.asarray(labels[name][TEST], np.int64)
        taught, learned = probes[0].answers(teacher[name][TEST])[0], probes[1].answers(student[name][TEST])[0]
        found.append(
            {
                "name": name,
                "trained_on": name == train_name,
                "count": len(truth),
                **judged(truth, taught, learned, seed),
            }
        )
        columns.append(_columns(truth, taught, learned))
    for entry in found:
        for who in ("teacher", "student"):
            entry[who + "_drop"] = found[0][who] - entry[who]
    return {
        "train": train_name,
        "classes": len(classes),
        "domains": found,
        "mean": _mean(found[1:], columns[1:], seed),
        "probe": of_probes(*probes),
        "notes": notes_of(*probes) + _unseen(labels, others, source, classes),
    }


def _columns(truth, teacher, student):
    """One value a picture of each kind."""
    teacher_right, student_right = (np.equal(answers, truth).astype(float) for answers in (teacher, student))
    return {
        "teacher": teacher_right,
        "student": student_right,
        "change": student_right - teacher_right,
        "agreement": np.equal(teacher, student).astype(float),
    }


def _mean(found, columns, seed):
    block = {name: float(np.mean([entry[name] for entry in found])) for name in ("teacher_drop", "student_drop")}
    for name in columns[0]:
        block[name] = float(np.mean([column[name].mean() for column in columns]))
        block[name + "_interval"] = list(interval_of_mean_of_means([column[name] for column in columns], seed))
    return block


def interval_of_mean_of_means(columns: Sequence[np.ndarray], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean over columns of each column's mean, resampled within each column.

    Drawn as counts of each distinct value (a bootstrap sample is a multinomial draw of them), so that a column may be long.
    """
    random = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for column in columns:
        values, count = np.unique(column, return_counts=True)
        total += random.multinomial(len(column), count / len(column), size=RESAMPLES) @ values / len(column)
    low, high = np.quantile(total / len(columns), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _unseen(labels, others, source, classes):
    """Which domains have classes that the probe was never trained on."""
    notes = []
    for name in others:
        unseen = np.setdiff1d(labels[name][TEST], source[BANK])
        if len(unseen):
            count = int(np.isin(labels[name][TEST], unseen).sum())
            named = ", ".join(classes[c] for c in unseen[:8]) + (" and more" if len(unseen) > 8 else "")
            notes.append(
                f"{name}: {count} pictures of classes without a training picture ({named}) are beyond the probe"
            )
    return notes


def measures(block: dict) -> list[Measure]:
    """domain: the mean accuracy over the domains that the probe was not trained on."""
    mean = block["mean"]
    return [
        Measure(
            "domain",
            "domains",
            "Accuracy in other domains",
            mean["student"],
            mean["teacher"],
            interval=tuple(mean["student_interval"]),
            change=tuple(mean["change_interval"]),
            what=f"probe trained on {block['train']}, mean over {len(block['domains']) - 1} other domains",
        )
    ]
