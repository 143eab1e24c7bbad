"""What `tinkit select` returns and writes as selection.json: the pictures to label first, and how well they stand for all."""

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from tinkit.host.images import Picture

SCHEMA, PAGE = "tinkit-selection-1", "selection.html"


@dataclass(frozen=True)
class Chosen:
    """One picture to label. rank from 1; name relative to the folder of pictures; link: its name in the folder of links.

    stands_for: how many pictures (without copies) have it as the nearest chosen one, itself among them. at: its place on the
    map, () without one. label: the class, where labels were given, else "".
    place: as in `Picture`, for one inside a tar or a table.
    """

    rank: int
    name: str
    path: str
    link: str
    stands_for: int
    at: tuple[float, ...] = ()
    label: str = ""
    place: str = ""

    @property
    def picture(self) -> Picture:
        """To be read; without its address."""
        return Picture(self.path, self.name, "", self.place)


@dataclass(frozen=True)
class Selection:
    """A finished selection in the folder `path`.

    pictures: usable ones, copies among them; copies: left out because another file has the same bytes; alike: files with
    other bytes and exactly the features of another (kept). features_of: the network that saw them. space: "t-sne", "features",
    or "none" for random. quality: by space ("features": 1 - cosine; "map": units of the map), see
    tinkit.host.select.choose.quality. classes: {"found", "of", "random"} where labels were given, random being what as many
    random pictures would find on average; else {}.
    """

    path: str
    root: str
    chosen: list[Chosen]
    pictures: int
    copies: int
    alike: int
    skipped: int
    features_of: dict[str, Any]
    method: str
    space: str
    metric: str
    seed: int
    quality: dict[str, dict[str, float]]
    classes: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    schema: str = SCHEMA

    @property
    def page(self) -> str:
        """The contact sheet."""
        return os.path.join(self.path, PAGE)

    def to_json(self):
        value = asdict(self)
        for entry in value["chosen"]:
            entry["at"] = list(entry["at"])
        return value

    @classmethod
    def from_json(cls, value):
        chosen = [Chosen(**dict(entry, at=tuple(entry["at"]))) for entry in value["chosen"]]
        return cls(**dict(value, chosen=chosen))
