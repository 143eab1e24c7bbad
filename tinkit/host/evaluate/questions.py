"""The questions of an evaluation, one method each: which pictures it needs, embedded, and given to the module that answers.

A question returns its module's block. What it embeds is kept by the store, so a question that was asked before is cheap.
"""

import os
import time
from collections.abc import Callable
from contextlib import contextmanager

from tinkit.host.evaluate import dense, domains, labelled, ood, orthogonality, robustness, similarity
from tinkit.host.evaluate.masks import mask_path, read_masks
from tinkit.host.evaluate.pictures import BANK, PARTS, TEST, Sorted, draw, other_folder
from tinkit.host.evaluate.rows import COMMON_SIZE, Embedder, Squares
from tinkit.host.run import Run

MODULES = {
    "similarity": similarity,
    "orthogonality": orthogonality,
    "labels": labelled,
    "ood": ood,
    "domains": domains,
    "corruption": robustness,
    "dense": dense,
}
DENSE_PICTURES, MASKED_PICTURES = 48, 500
GROUPS = ("near", "far")


class Questions:
    """One evaluation's pictures and their rows. `seconds` adds up what embedding and scanning took, by word."""

    def __init__(self, run: Run, pictures: Sorted, embedder: Embedder, folder: str, limit: int | None, seed: int):
        self.run, self.pictures, self.embedder, self.folder = run, pictures, embedder, folder
        self.limit, self.seed = limit, seed
        self.seconds: dict[str, float] = {}
        with self._timed("embed"):
            self.rows = embedder.rows(pictures.all, "pictures")
        self.parts = {part: self.rows[pictures.rows_of(part)] for part in PARTS}

    def ask(self, wanted: dict, say: Callable[[str], None]) -> dict[str, dict]:
        """Block by name of everything that is asked for and can be answered. InterruptedError on Ctrl-C.

        wanted: "ood" and "domains" folders, "corruptions" how many pictures (0: not), "masks" a folder, "dense" whether.
        """
        asked: dict[str, Callable[[], dict]] = {"similarity": self.similarity}
        if (mapping := self.embedder.mapping) is not None:
            asked["orthogonality"] = lambda: orthogonality.orthogonality(mapping, self.rows.teacher, self.seed)
        if self.pictures.classes:
            asked["labels"] = self.labels
        if wanted["ood"]:
            asked["ood"] = lambda: self.ood(wanted["ood"])
        if wanted["domains"]:
            asked["domains"] = lambda: self.domains(wanted["domains"])
        if wanted["corruptions"]:
            asked["corruption"] = lambda: self.corruption(wanted["corruptions"])
        if wanted["dense"] or wanted["masks"]:
            asked["dense"] = lambda: self.dense(wanted["masks"])
        found = {}
        for name, question in asked.items():
            with self._timed(name):
                found[name] = question()
            say(f"{name:<14} {self.seconds[name]:.1f} s")
            if self.embedder.stop():
                raise InterruptedError
        return found

    def similarity(self):
        names = [picture.name for picture in self.pictures.all]
        fitted = self.run.record["method"].get("fitted_afterwards") is not None
        return similarity.similarity(
            self.rows.teacher, self.rows.mapped, self.rows.student, names, fitted=fitted, seed=self.seed
        )

    def labels(self):
        names = [picture.name for picture in self.pictures.parts[TEST]]
        teacher, student = ({part: getattr(self.parts[part], who) for part in PARTS} for who in ("teacher", "student"))
        return labelled.labelled(teacher, student, self.pictures.labels, self.pictures.classes, names, self.seed)

    def ood(self, folders):
        strange: dict[str, dict] = {}
        groups: dict[str, str] = {}
        for entry in folders:
            group, path = group_of(entry)
            name, rows, _ = self._other(path, strange, labelled=False)
            strange[name], groups[name] = rows.pair, group
        known = self.parts[TEST].pair
        return ood.ood(self.parts[BANK].pair, known, strange, seed=self.seed, groups=groups)

    def domains(self, folders):
        source = os.path.basename(self.pictures.root)
        rows = {source: {part: self.parts[part].pair for part in PARTS}}
        labels = {source: self.pictures.labels}
        for path in folders:
            name, found, numbers = self._other(path, rows, labelled=True)
            rows[name], labels[name] = {TEST: found.pair}, {TEST: numbers}
        teacher, student = (
            {name: {part: pair[who] for part, pair in found.items()} for name, found in rows.items()}
            for who in ("teacher", "student")
        )
        return domains.domains(source, teacher, student, labels, self.pictures.classes, self.seed)

    def corruption(self, count):
        chosen = draw(self.pictures.parts[TEST], count)
        squares = Squares(chosen, self.embedder.network.preprocessing.crop_pct)
        tick = self.embedder.progress.bar("corruptions", robustness.passes() * len(chosen))
        judge, labels_N = None, None
        if self.pictures.classes:
            number = dict(zip(self.pictures.parts[TEST], self.pictures.labels[TEST]))
            labels_N, judge = [number[picture] for picture in chosen], self._knn
        cache = os.path.join(self.folder, "corruptions.json")
        return robustness.robustness(squares, self.embedder.embed, judge, labels_N, cache, self.seed, tick)

    def _knn(self, rows):
        """Class numbers by each network's own neighbours in the bank."""
        bank, labels, classes = self.parts[BANK].pair, self.pictures.labels[BANK], len(self.pictures.classes)
        return {who: labelled.knn_answers(bank[who], labels, rows[who], classes) for who in rows}

    def dense(self, masks):
        chosen, found = draw(self.pictures.parts[TEST], DENSE_PICTURES), None
        if masks:
            having = [p for p in self.pictures.all if os.path.isfile(mask_path(masks, p.name))]
            chosen = draw(having or self.pictures.all[:1], MASKED_PICTURES)
            found = read_masks(masks, chosen, self.embedder.network.preprocessing.crop_pct, COMMON_SIZE)
        with self._timed("embed"):
            local = [(store.arrays["local"], store.grid) for store in self.embedder.local(chosen)]
        names = [picture.name for picture in chosen]
        return dense.dense(*local[0], *local[1], names, found, seed=self.seed)

    def _other(self, path, taken, labelled):
        """(a name that no other folder has, rows, class numbers) of a further folder."""
        with self._timed("scan"):
            found, numbers, root = other_folder(
                path, self.pictures.classes, labelled, self.limit, stop=self.embedder.stop
            )
        name = os.path.basename(root)
        if name in taken:
            name = next(f"{name} {n}" for n in range(2, len(taken) + 3) if f"{name} {n}" not in taken)
        with self._timed("embed"):
            return name, self.embedder.rows(found, name), numbers

    @contextmanager
    def _timed(self, step):
        began = time.monotonic()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - began


def group_of(entry) -> tuple[str, str]:
    """("near", DIR) of near:DIR; ("", DIR) of a plain folder, which may hold a colon itself."""
    text = os.fspath(entry)
    group, colon, path = text.partition(":")
    return (group, path) if colon and group in GROUPS and not os.path.isdir(text) else ("", text)
