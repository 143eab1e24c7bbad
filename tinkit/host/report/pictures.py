"""The worst pictures of each hop as thumbnails for the report's page.

Made from the exam's pixels at network size, never from the picture's file: EXIF, names of places and the full resolution
cannot come along. A picture is in the page once, however many hops find it hard.
"""

import base64
import io
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tinkit.bundle import Exam
from tinkit.fidelity import Fidelity

THUMBNAILS = 24  # in the whole page
SIDE = 128  # pixels; shown at two thirds of it, for sharp screens


@dataclass(frozen=True)
class Strip:
    """The worst pictures of one hop, as in `Fidelity.worst` and with `id`, the exam's index.

    Hops that find the same pictures hard in the same order (two batch sizes) are one strip, with the first's cosines.

    new: to be shown here (`data` is the thumbnail); shared: shown with another hop; elsewhere: not in the exam.
    """

    hops: dict[int, Fidelity]  # number in the chain, from 1 -> hop
    new: list[dict[str, Any]] = field(default_factory=list)
    shared: list[dict[str, Any]] = field(default_factory=list)
    elsewhere: list[dict[str, Any]] = field(default_factory=list)

    @property
    def worst(self):
        return next(iter(self.hops.values())).worst


def worst_pictures(chain: list[Fidelity], exam: Exam | None) -> tuple[list[Strip], int]:
    """(strips, pictures shown), strips of the hops that changed anything, in the chain's order.

    Every picture is in the page once, at most THUMBNAILS in all: the worst of each hop first, then the second worst.
    """
    if exam is None:
        return [], 0
    alike: dict[tuple, Strip] = {}
    for number, hop in enumerate(chain, 1):
        if hop.worst and hop.max_error != 0:
            order = tuple((entry.get("index"), entry.get("name")) for entry in hop.worst)
            alike.setdefault(order, Strip({})).hops[number] = hop
    strips = list(alike.values())
    shown: set[int] = set()
    for rank in range(max((len(strip.worst) for strip in strips), default=0)):
        for strip in strips:
            for entry in strip.worst[rank : rank + 1]:
                index = _exam_index(entry, exam)
                if index is None:
                    strip.elsewhere.append(entry)
                elif index in shown:
                    strip.shared.append(dict(entry, id=index))
                elif len(shown) < THUMBNAILS:
                    shown.add(index)
                    strip.new.append(dict(entry, id=index, data=thumbnail(exam.pixels[index])))
    return strips, len(shown)


def thumbnail(pixels_HWC) -> str:
    """A data: URI of a small JPEG made from pixels alone: nothing of the original file is in it."""
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _exam_index(entry, exam: Exam):
    """Where the exam has this picture, or None. Hops before the export count other pictures, so the name decides."""
    index, name = entry.get("index"), entry.get("name")
    if isinstance(index, int) and 0 <= index < len(exam.names) and str(exam.names[index]) == name:
        return index
    same = [place for place, known in enumerate(exam.names) if str(known) == name]
    return same[0] if len(same) == 1 else None
