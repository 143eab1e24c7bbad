"""What corruption does to answers: every standard corruption at every severity, teacher beside student.

Pictures are corrupted, embedded and judged one corruption and severity (a cell) at a time; only the right answers of each picture
are kept, so a million rows are never in memory, and in a JSON file, so an evaluation that was stopped goes on. Judged are the
answers of a classifier that has seen clean pictures only (Hendrycks & Dietterich 2019, arXiv 1903.12261), or, without
labels, whether the nearest clean picture of a corrupted one is the picture itself ("found again").
"""

import base64
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from tinkit import files
from tinkit.host.evaluate.corruption_block import NETWORKS, STUDENT, TEACHER, block
from tinkit.host.evaluate.corruptions import NAMES, SEVERITIES, corrupt
from tinkit.host.evaluate.finite import require_finite
from tinkit.host.evaluate.measure import HIGHER, LOWER, Measure
from tinkit.host.evaluate.neighbours import nearest, unit_rows

SCHEMA = "tinkit-corruption-1"  # raised whenever a cell would come out otherwise
ACCURACY, FOUND_AGAIN = "accuracy", "found again"
BATCH = 32
Rows = dict[str, np.ndarray]  # {"teacher": (N, Dt), "student": (N, Ds)}


def robustness(
    pictures: Sequence[np.ndarray],
    embed: Callable[[list[np.ndarray]], Rows],
    judge: Callable[[Rows], dict[str, np.ndarray]] | None = None,
    labels_N=None,
    cache=None,
    seed=0,
    tick: Callable[[int], None] | None = None,
    names: Sequence[str] = NAMES,
    severities: Sequence[int] = SEVERITIES,
    learnt="",
) -> dict:
    """The block "corruption" of clean `pictures`, uint8 (H, W, 3) each (224 pixels is what the parameters are for).

    pictures: anything with len and slices. embed: rows of a list of pictures. judge: class numbers (N,) of rows by both networks'
    own classifiers; with `labels_N` these are right or wrong, and without either "found again" is judged. cache: a JSON file
    of finished cells; used again only for the same rows of the clean pictures, labels, clean answers, seed and `learnt`, a
    hash of what the judge learned from. tick(n): n more pictures done, `passes()` times the pictures in all. A picture's
    corruption depends on seed, corruption, severity and its index alone. ValueError for labels without judge or the other
    way round, or of another number than pictures;
    TinkitError for features that are not finite.
    """
    if (judge is None) != (labels_N is None) or (labels_N is not None and len(labels_N) != len(pictures)):
        raise ValueError("judge and labels go together, one label a picture")
    tick = tick or (lambda pictures: None)
    clean = _embed_all(pictures, embed, tick, lambda picture, index: picture)
    require_finite(clean, "clean pictures of the corruptions")
    found_again = judge is None
    judge = judge or (
        lambda rows: {network: nearest(clean[network], rows[network], 1)[0][:, 0] for network in NETWORKS}
    )
    labels = np.arange(len(pictures)) if labels_N is None else np.asarray(labels_N)
    clean_answers = judge(clean)
    finished = _Finished(cache, clean, labels, clean_answers, seed, learnt)
    cells = {}
    for name, severity in itertools.product(names, severities):
        if finished.get(name, severity) is None:
            change = partial(_corrupted, name, severity, seed)
            rows = _embed_all(pictures, embed, tick, change)
            require_finite(rows, f"{name} at severity {severity}")
            finished.put(name, severity, _cell(rows, clean, judge(rows), labels))
        else:
            tick(len(pictures))
        cells[name, severity] = _opened(finished.get(name, severity), len(pictures))
    clean_right = {network: np.asarray(clean_answers[network]) == labels for network in NETWORKS}
    found = block(cells, clean_right, names, severities, seed)
    return {"judged": FOUND_AGAIN if found_again else ACCURACY, **found, "notes": _notes(found)}


def passes(names=NAMES, severities=SEVERITIES) -> int:
    """How many times every picture is embedded."""
    return 1 + len(names) * len(severities)


def _corrupted(name, severity, seed, picture, index) -> np.ndarray:
    return corrupt(picture, name, severity, np.random.default_rng([seed, NAMES.index(name), severity, index]))


def _embed_all(pictures, embed, tick, change) -> Rows:
    """Rows of all pictures, each changed by change(picture, index), a batch at a time."""
    parts: dict[str, list] = {network: [] for network in NETWORKS}
    for start in range(0, len(pictures), BATCH):
        batch = [change(picture, start + i) for i, picture in enumerate(pictures[start : start + BATCH])]
        rows = embed(batch)
        for network in NETWORKS:
            parts[network].append(np.asarray(rows[network], np.float32))
        tick(len(batch))
    return {network: np.concatenate(found) for network, found in parts.items()}


def _cell(rows, clean, answers, labels) -> dict:
    """What is kept of one corruption at one severity: right answers as packed bits, equal answers, cosines to clean."""
    right = {network: np.asarray(answers[network]) == labels for network in NETWORKS}
    cosine = {n: float((unit_rows(rows[n]) * unit_rows(clean[n])).sum(axis=1).mean()) for n in NETWORKS}
    agreement = float(np.mean(np.asarray(answers[TEACHER]) == np.asarray(answers[STUDENT])))
    return {
        "right": {network: _packed(right[network]) for network in NETWORKS},
        "agreement": agreement,
        "cosine": cosine,
    }


def _packed(right_N) -> str:
    return base64.b64encode(np.packbits(right_N).tobytes()).decode()


def _opened(cell, pictures) -> dict:
    """The cell with its right answers as (N,) bool again."""
    bits = {network: np.frombuffer(base64.b64decode(text), np.uint8) for network, text in cell["right"].items()}
    return dict(
        cell, right={network: np.unpackbits(found, count=pictures).astype(bool) for network, found in bits.items()}
    )


class _Finished:
    """The cells that are done, in memory and, with a path, in a file that is written after each."""

    def __init__(self, path, clean, labels, clean_answers, seed, learnt):
        self.path = path
        identity = {"schema": SCHEMA, "seed": seed, "labels": _hash(labels), "learnt": learnt}
        for network in NETWORKS:
            identity[network] = {"rows": _hash(clean[network]), "answers": _hash(clean_answers[network])}
        self.content = {"identity": identity, "cells": {}}
        if path and os.path.exists(path):
            found = files.read_json(path, "the file of finished corruptions")
            if found.get("identity") == identity:
                self.content = found

    def get(self, name, severity):
        return self.content["cells"].get(f"{name}/{severity}")

    def put(self, name, severity, cell):
        self.content["cells"][f"{name}/{severity}"] = cell
        if self.path:
            files.write_json(self.path, self.content)


def _hash(array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _notes(found) -> list[str]:
    perfect = [name for name, entry in found["corruptions"].items() if entry["relative_error"] is None]
    return [f"The teacher makes no error under {', '.join(perfect)}: no relative error there."] if perfect else []


def measures(block) -> list[Measure]:
    """corruption: the mean over all corruptions and severities; corruption_gap: clean minus that."""
    again = block["judged"] == FOUND_AGAIN
    title = "Found again under corruption" if again else "Accuracy under corruption"
    what = (
        "nearest clean picture is the picture itself"
        if again
        else "right answers of a classifier fitted on clean pictures"
    )
    cells = f"mean over {len(block['corruptions'])} corruptions at {len(block['severities'])} severities"
    return [
        _measure("corruption", title, block["mean"], HIGHER, f"{what}, {cells}"),
        _measure("corruption_gap", "Lost to corruption", block["gap"], LOWER, f"{what}, clean minus {cells}"),
    ]


def _measure(name, title, told, better, what) -> Measure:
    return Measure(
        name=name,
        group="corruption",
        title=title,
        student=told[STUDENT],
        teacher=told[TEACHER],
        better=better,
        interval=tuple(told["interval"]),
        change=tuple(told["change"]),
        what=what,
    )
