"""Rows of features for pictures: teacher, mapped teacher and the network under evaluation, in the same order.

Every network sees the evaluation view of a picture, cut by the student's crop for both, once in its life: rows are kept in the
feature store in float32 and memory-mapped, so that a second evaluation is arithmetic alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tinkit.device.pictures import crop, decode
from tinkit.errors import TinkitError
from tinkit.host.evaluate.networks import BundleNetwork, StudentNetwork
from tinkit.host.features import Features
from tinkit.host.images import Picture
from tinkit.host.mapping import Mapping
from tinkit.host.progress import Progress
from tinkit.host.store import FeatureStore, open_or_build
from tinkit.host.teacher import Teacher, require_parts
from tinkit.host.views import EVALUATION, AllViews, ViewPolicy
from tinkit.pixels import centre_box

COMMON_SIZE = 224  # pixels: the square that is corrupted, before each network's own size (ImageNet-C's size)


@dataclass(frozen=True)
class Rows:
    """(N, D) float32 each, memory maps perhaps; mapped None for a run without a mapping."""

    teacher: np.ndarray
    mapped: np.ndarray | None
    student: np.ndarray

    def __len__(self):
        return len(self.student)

    def __getitem__(self, which) -> "Rows":
        return Rows(self.teacher[which], None if self.mapped is None else self.mapped[which], self.student[which])

    @property
    def pair(self) -> dict[str, np.ndarray]:
        """Teacher and student by name, for what compares the two."""
        return {"teacher": self.teacher, "student": self.student}


class Squares:
    """The centred square of each picture at 224 pixels, (224, 224, 3) uint8, decoded when a slice is asked for."""

    def __init__(self, pictures: Sequence[Picture], crop_pct: float):
        self.pictures, self.crop_pct = pictures, crop_pct

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, part: slice) -> list[np.ndarray]:
        images = [decode(picture.read()) for picture in self.pictures[part]]
        boxes = [centre_box(image.width, image.height, self.crop_pct) for image in images]
        return [crop(image, box, COMMON_SIZE) for image, box in zip(images, boxes)]


@dataclass(frozen=True)
class Embedder:
    """Teacher, mapping and network, and where their rows are kept."""

    teacher: Teacher
    mapping: Mapping | None
    network: StudentNetwork | BundleNetwork
    store: str
    workers: int
    progress: Progress
    stop: Callable[[], bool]

    def rows(self, pictures: Sequence[Picture], what: str) -> Rows:
        """The rows of these pictures, computed or read. `what` names them on the progress bar. InterruptedError on Ctrl-C."""
        teacher = self._stored(self.teacher, pictures, f"teacher, {what}").global_rows()
        student = self._stored(self.network, pictures, f"{self.network.kind}, {what}").global_rows()
        return Rows(teacher, self.map(teacher), student)

    def local(self, pictures: Sequence[Picture]) -> tuple[FeatureStore, FeatureStore]:
        """Stores with local features of a few pictures, of the teacher and the student."""
        return tuple(
            self._stored(network, pictures, "local features", ("local",)) for network in (self.teacher, self.network)
        )  # type: ignore[return-value]

    def map(self, teacher_ND) -> np.ndarray | None:
        """The teacher's rows in the student's space."""
        if self.mapping is None:
            return None
        with torch.no_grad():
            parts = [
                self.mapping(Features(torch.from_numpy(np.array(teacher_ND[start : start + 4096])))).numpy()
                for start in range(0, len(teacher_ND), 4096)
            ]
        return np.concatenate(parts)

    def embed(self, squares: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Rows of squares that are on no disk: each resampled to the two networks' sizes. Nothing is kept."""
        return {
            name: self._embed(network, squares)
            for name, network in (("teacher", self.teacher), ("student", self.network))
        }

    def _embed(self, network, squares, batch=64):
        from PIL import Image

        size, how = network.preprocessing.size, network.preprocessing.interpolation
        found = []
        for start in range(0, len(squares), batch):
            if self.stop():
                raise InterruptedError
            images = [Image.fromarray(square) for square in squares[start : start + batch]]
            pixels = np.stack([crop(image, (0, 0, image.width, image.height), size, how) for image in images])
            rows = network.features(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), ())
            found.append(rows.global_BD.cpu().numpy())
        return np.concatenate(found)

    def _stored(self, network, pictures, what, parts=()) -> FeatureStore:
        crop_pct = self.network.preprocessing.crop_pct
        views = AllViews(pictures, ViewPolicy(), [network.preprocessing], crop_pct, numbers=[EVALUATION])
        return open_or_build(
            self.store,
            network,
            views,
            parts=parts,
            dtype="float32",
            workers=self.workers,
            tick=self.progress.bar(what, len(pictures)),
            say=None,
            stop=self.stop,
        )


def gives_local(teacher: Teacher) -> bool:
    """Whether there is a feature for each place of a picture."""
    try:
        require_parts(teacher, ("local",))
    except TinkitError:
        return False
    return True
