"""The format of a shard: a run of whole pictures, one raw file for each array, and a journal of what was written.

`00007.global.bin` holds a row for each view of each picture of shard 7; `00007.jsonl` a line for each batch: its pictures,
the sha256 of each array's bytes, the pictures put aside, the loss. Every line carries its own checksum; a last line says
that the shard is finished and is written after everything before it is on disk. Reading trusts nothing else.
"""

import json
import os
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tinkit import files
from tinkit.errors import TinkitError

IDENTITY, CONTENTS, USED = "identity.json", "contents.bin", "used"
REMOVED = ".removed"  # at the end of a folder's name: no store any more
SHARD_BYTES = 1 << 30
SHARD_ROWS = 65_536


@dataclass(frozen=True)
class Array:
    """One stored array: the shape of a row and numpy's name of its dtype."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """How rows lie in files. `grid`: (height, width) of the stored local features."""

    arrays: dict[str, Array]
    grid: tuple[int, int] | None
    pictures: int
    views: int
    pictures_per_shard: int

    @property
    def shards(self) -> int:
        return -(-self.pictures // self.pictures_per_shard)

    @property
    def rows_per_shard(self) -> int:
        return self.pictures_per_shard * self.views

    @property
    def row_bytes(self) -> int:
        return sum(array.row_bytes for array in self.arrays.values())

    @property
    def total_bytes(self) -> int:
        return self.row_bytes * self.pictures * self.views

    def pictures_of(self, shard: int) -> range:
        start = shard * self.pictures_per_shard
        return range(start, min(start + self.pictures_per_shard, self.pictures))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Layout":
        arrays = {name: Array(tuple(a["shape"]), a["dtype"]) for name, a in value["arrays"].items()}
        return cls(**{**value, "arrays": arrays, "grid": value["grid"] and tuple(value["grid"])})


def pictures_per_shard(row_bytes: int, pictures: int, views: int, step: int, ranks: int) -> int:
    """Whole batches of `step` pictures in shards of at most SHARD_BYTES and SHARD_ROWS; as many shards for each rank.

    Batches therefore begin at the same pictures for any number of ranks, and rows do not depend on it.
    """
    rows = max(1, min(SHARD_ROWS, SHARD_BYTES // max(1, row_bytes)))
    most = max(1, rows // views)
    rounds = max(1, -(-pictures // (most * ranks)))
    wanted = max(1, -(-pictures // (rounds * ranks)))
    if most < step:
        return min(wanted, most)
    return min(-(-wanted // step), most // step) * step


@dataclass(frozen=True)
class Line:
    """A batch in the journal: the pictures start..stop-1 and what is known of their rows."""

    start: int
    stop: int
    sha256: dict[str, str]
    bad: dict[int, str] = field(default_factory=dict)  # pictures put aside and why
    loss: dict[str, list[float]] = field(default_factory=dict)

    def to_text(self, views: int) -> str:
        return _signed(
            {
                "pictures": [self.start, self.stop],
                "rows": (self.stop - self.start) * views,
                "sha256": self.sha256,
                "bad": {str(number): reason for number, reason in self.bad.items()},
                "loss": self.loss,
            }
        )


def finished_text(pictures: range) -> str:
    return _signed({"finished": True, "pictures": [pictures.start, pictures.stop]})


def _signed(value) -> str:
    return json.dumps({**value, "crc32": _crc32(value)}) + "\n"


def _crc32(value) -> str:
    return f"{zlib.crc32(json.dumps(value).encode()):08x}"


def _verified(piece: bytes) -> dict[str, Any] | None:
    """The value of a journal's line; None for one that is cut or changed."""
    try:
        value = json.loads(piece) if piece.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) and value.pop("crc32", None) == _crc32(value) else None


@dataclass(frozen=True)
class Journal:
    """What a journal says: the unbroken run of good lines and the bytes of each; damaged: a bad one before the last."""

    lines: list[Line]
    sizes: list[int]
    finished: bool
    damaged: bool


def paths_of(root) -> list[str]:
    """The folders below `root` that hold a store, in the order of their names."""
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    paths = [os.path.join(root, name) for name in names if not name.endswith(REMOVED)]
    return [path for path in paths if os.path.exists(os.path.join(path, IDENTITY))]


def file_of(folder, shard: int, array: str) -> str:
    return os.path.join(folder, f"{shard:05d}.{array}.bin")


def journal_of(folder, shard: int) -> str:
    return os.path.join(folder, f"{shard:05d}.jsonl")


def read_journal(text: bytes, pictures: range) -> Journal:
    """The journal of a shard of these pictures."""
    lines: list[Line] = []
    sizes: list[int] = []
    expected, finished = pictures.start, False
    pieces = text.splitlines(keepends=True)
    for piece in pieces:
        value = _verified(piece)
        if value is None or value["pictures"][0] != (pictures.start if "finished" in value else expected):
            break
        if "finished" in value:
            finished = value["pictures"][1] == expected == pictures.stop
            break
        bad = {int(number): reason for number, reason in value["bad"].items()}
        lines.append(Line(expected, value["pictures"][1], value["sha256"], bad, value["loss"]))
        expected = lines[-1].stop
        sizes.append(len(piece))
    says_finished = bool(pieces) and "finished" in (_verified(pieces[-1]) or {})
    return Journal(lines, sizes, finished, says_finished and not finished)


def damaged(folder, shard: int, seen: str, where=None) -> TinkitError:
    """Names what to remove: without its journal a shard, and it alone, is computed anew."""
    journal = journal_of(folder, shard)
    return TinkitError(
        "The feature store is damaged.",
        where=where or journal,
        seen=seen,
        next_step=f"remove {journal} and run again: that shard alone is computed anew",
    )


def write_identity(folder, identity: dict, layout: Layout) -> None:
    value = {"identity": identity, "layout": layout.to_json()}
    files.write_json(os.path.join(folder, IDENTITY), {**value, "sha256": files.sha256_of_json(value)})


def read_identity(folder) -> tuple[dict, Layout]:
    """(identity, layout) of the store in this folder; TinkitError for one that is missing, damaged or of another schema."""
    path = os.path.join(folder, IDENTITY)
    value = files.read_json(path, "The store's identity")
    stated = value.pop("sha256", None)
    if stated != files.sha256_of_json(value):
        raise TinkitError(
            "The store's identity is damaged.",
            where=path,
            seen="another hash than when it was written",
            next_step=f"remove {path} and run again: finished shards are kept",
        )
    return value["identity"], Layout.from_json(value["layout"])
