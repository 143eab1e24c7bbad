"""The questions of an evaluation, one method each: which pictures it needs, embedded, and given to the module that answers.

A question returns its module's block. What it embeds is kept by the store, so a question that was asked before is cheap.
"""

import os
import time
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np

from tinkit import files
from tinkit.host.evaluate import dense, domains, labelled, ood, orthogonality, robustness, similarity
from tinkit.host.evaluate.asked import Asked
from tinkit.host.evaluate.masks import Masks, mask_path, read_masks
from tinkit.host.evaluate.others import Other, read_others
from tinkit.host.evaluate.pictures import BANK, PARTS, TEST, Sorted, draw
from tinkit.host.evaluate.rows import COMMON_SIZE, Embedder, Rows, Squares
from tinkit.host.images import Picture
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


class Questions:
    """One evaluation's pictures and their rows. `seconds` adds up what scanning and embedding took, by word."""

    def __init__(self, run: Run, pictures: Sorted, embedder: Embedder, folder: str, asked: Asked):
        """Every folder is read, and then the pictures of `pictures` are embedded; InterruptedError on Ctrl-C."""
        self.run, self.pictures, self.embedder, self.folder, self.asked = run, pictures, embedder, folder, asked
        self.seed = asked.seed
        self.seconds: dict[str, float] = {}
        with self._timed("scan"):
            self.strange = self._others(asked.ood, labelled=False)
            self.domain = self._others(asked.domains, labelled=True)
            self.masked = self._masked(asked.masks)
        with self._timed("embed"):
            self.rows = embedder.rows(pictures.all, "pictures")
        self.parts = {part: self.rows[pictures.rows_of(part)] for part in PARTS}

    @property
    def notes(self) -> list[str]:
        """What was left out of the further folders."""
        return [note for other in (*self.strange, *self.domain) for note in other.notes]

    def ask(self, say: Callable[[str], None]) -> dict[str, dict]:
        """Block by name of everything that is asked for and can be answered. InterruptedError on Ctrl-C."""
        asked: dict[str, Callable[[], dict]] = {"similarity": self.similarity}
        if (mapping := self.embedder.mapping) is not None:
            asked["orthogonality"] = lambda: orthogonality.orthogonality(mapping, self.rows.teacher, self.seed)
        for name, question, wanted in (
            ("labels", self.labels, self.pictures.classes),
            ("ood", self.ood, self.strange),
            ("domains", self.domains, self.domain),
            ("corruption", self.corruption, self.asked.corruptions),
            ("dense", self.dense, self.asked.dense or self.masked),
        ):
            if wanted:
                asked[name] = question
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

    def ood(self):
        strange = {other.name: self._rows_of(other).pair for other in self.strange}
        groups = {other.name: other.group for other in self.strange}
        return ood.ood(self.parts[BANK].pair, self.parts[TEST].pair, strange, seed=self.seed, groups=groups)

    def domains(self):
        source = os.path.basename(self.pictures.root)
        rows = {source: {part: self.parts[part].pair for part in PARTS}}
        rows.update({other.name: {TEST: self._rows_of(other).pair} for other in self.domain})
        labels = {source: self.pictures.labels, **{other.name: {TEST: other.numbers_N} for other in self.domain}}
        teacher, student = (
            {name: {part: pair[who] for part, pair in found.items()} for name, found in rows.items()}
            for who in ("teacher", "student")
        )
        return domains.domains(source, teacher, student, labels, self.pictures.classes, self.seed)

    def corruption(self):
        chosen = draw(self.pictures.parts[TEST], self.asked.corruptions)
        squares = Squares(chosen, self.embedder.network.preprocessing.crop_pct)
        tick = self.embedder.progress.bar("corruptions", robustness.passes() * len(chosen))
        judge, labels_N, learnt = None, None, ""
        if self.pictures.classes:
            number = dict(zip(self.pictures.parts[TEST], self.pictures.labels[TEST]))
            labels_N, judge, learnt = [number[picture] for picture in chosen], self._knn, self._bank_hash()
        cache = os.path.join(self.folder, "corruptions.json")
        return robustness.robustness(
            squares, self.embedder.embed, judge, labels_N, cache, self.seed, tick, learnt=learnt
        )

    def _bank_hash(self):
        """Of what the kNN learns from: the same test pictures against another bank have other answers."""
        contents = [picture.content for picture in self.pictures.parts[BANK]]
        return files.sha256_of_json([contents, np.asarray(self.pictures.labels[BANK]).tolist()])

    def _knn(self, rows):
        """Class numbers by each network's own neighbours in the bank."""
        bank, labels, classes = self.parts[BANK].pair, self.pictures.labels[BANK], len(self.pictures.classes)
        return {who: labelled.knn_answers(bank[who], labels, rows[who], classes) for who in rows}

    def dense(self):
        chosen, masks = self.masked or (draw(self.pictures.parts[TEST], DENSE_PICTURES), None)
        with self._timed("embed"):
            local = [(store.arrays["local"], store.grid) for store in self.embedder.local(chosen)]
        names = [picture.name for picture in chosen]
        return dense.dense(*local[0], *local[1], names, masks, seed=self.seed)

    def _others(self, folders, labelled) -> list[Other]:
        counter, stop = self.embedder.progress.counter, self.embedder.stop
        return read_others(
            folders, self.pictures, labelled, self.asked.limit, lambda name: counter(f"reading {name}"), stop
        )

    def _masked(self, folder) -> tuple[list[Picture], Masks] | None:
        """Pictures that have a mask, at most MASKED_PICTURES, and their masks."""
        if folder is None:
            return None
        having = [p for p in self.pictures.all if os.path.isfile(mask_path(folder, p.name))]
        chosen = draw(having or self.pictures.all[:1], MASKED_PICTURES)
        return chosen, read_masks(folder, chosen, self.embedder.network.preprocessing.crop_pct, COMMON_SIZE)

    def _rows_of(self, other: Other) -> Rows:
        with self._timed("embed"):
            return self.embedder.rows(other.pictures, other.name)

    @contextmanager
    def _timed(self, step):
        began = time.monotonic()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - began
