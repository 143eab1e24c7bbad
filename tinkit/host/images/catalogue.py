"""Very many pictures in little memory: names in one array of bytes, addresses in another, a `Picture` made on asking.

About 100 bytes a picture. It holds arrays and no objects, so that worker processes share it by fork without copying
it, and pickling it is one copy. A picture inside a tar or a table is told by its file's number and where it is in it.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.host.images.picture import TAR, Picture

SCHEMA = "tinkit-catalogue-1"
ADDRESS_BYTES = 32
BLOCK = 1 << 16  # pictures handled at once, so that no step needs memory for all of them twice


class Holder(NamedTuple):
    """A file with pictures inside: kind "tar", "parquet" or "arrow"; name relative to the root."""

    kind: str
    name: str


class Catalogue(Sequence[Picture]):
    """Pictures below `root`, in an order. Made by `catalogue_of`, `take` and slicing; never changed.

    names: (bytes,) uint8, all names one after the other as the file system has them; ends_N: int64, where each ends.
    contents_N32: uint8, the sha256 addresses. For pictures inside `holders`: holder_N int32, at_N and size_N int64
    (offset and bytes in a tar; the row of a table); empty arrays when every picture is a file of its own.
    """

    def __init__(self, root, names, ends_N, contents_N32, holders=(), holder_N=None, at_N=None, size_N=None):
        self.root = root
        self.names, self.ends_N, self.contents_N32 = names, ends_N, contents_N32
        self.holders: tuple[Holder, ...] = tuple(Holder(*holder) for holder in holders)
        self.holder_N = np.zeros(0, np.int32) if holder_N is None else holder_N
        self.at_N = np.zeros(0, np.int64) if at_N is None else at_N
        self.size_N = np.zeros(0, np.int64) if size_N is None else size_N

    def __len__(self) -> int:
        return len(self.ends_N)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> "Catalogue": ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        index = range(len(self))[index]  # IndexError, and negative numbers from the end
        return self._picture(index, self.contents_N32[index].tobytes().hex())

    def __iter__(self) -> Iterator[Picture]:
        for index in range(len(self)):
            yield self._picture(index, self.contents_N32[index].tobytes().hex())

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        arrays = (self.names, self.ends_N, self.contents_N32, self.holder_N, self.at_N, self.size_N)
        return sum(array.nbytes for array in arrays)

    def name(self, index: int) -> str:
        """The name of one picture, without making it."""
        own = os.fsdecode(self.names[self.ends_N[index - 1] if index else 0 : self.ends_N[index]].tobytes())
        if not self.holders:
            return own
        holder = self.holders[self.holder_N[index]]
        return f"{holder.name}/{own}" if holder.kind == TAR else f"{holder.name}#{self.at_N[index]}"

    def all_names(self) -> Iterator[str]:
        """The names in order, without making pictures."""
        return map(self.name, range(len(self)))

    def take(self, indices) -> "Catalogue":
        """The pictures of these numbers (or where a boolean array is true), in that order."""
        indices = np.asarray(indices)
        indices = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(np.int64)
        starts_N = np.concatenate([np.zeros(1, np.int64), self.ends_N[:-1]])[: len(self)]
        starts, ends = starts_N[indices], self.ends_N[indices]
        inside = [array[indices] if self.holders else array for array in (self.holder_N, self.at_N, self.size_N)]
        return Catalogue(
            self.root,
            _gather(self.names, starts, ends),
            np.cumsum(ends - starts),
            self.contents_N32[indices],
            self.holders,
            *inside,
        )

    def with_contents(self, contents_N32) -> "Catalogue":
        """The same pictures with these addresses, (N, 32) uint8."""
        contents_N32 = np.asarray(contents_N32, np.uint8)
        if contents_N32.shape != (len(self), ADDRESS_BYTES):
            raise ValueError(f"addresses {contents_N32.shape}, expected {(len(self), ADDRESS_BYTES)}")
        return Catalogue(
            self.root, self.names, self.ends_N, contents_N32, self.holders, self.holder_N, self.at_N, self.size_N
        )

    def contents_sha256(self) -> str:
        """sha256 of the addresses in hex, one a line, without a last newline: the identity of the pictures in order."""
        digest = hashlib.sha256()
        for start in range(0, len(self), BLOCK):
            digest.update(b"\n" if start else b"")
            digest.update(self.contents_N32[start : start + BLOCK].tobytes().hex("\n", ADDRESS_BYTES).encode())
        return digest.hexdigest()

    def save(self, path) -> None:
        """Write it as an .npz, for another process."""
        told = [SCHEMA, self.root, *(text for holder in self.holders for text in holder)]
        arrays = {
            "names": self.names, "ends": self.ends_N, "contents": self.contents_N32,
            "holder": self.holder_N, "at": self.at_N, "size": self.size_N,
            "told": np.frombuffer(b"\0".join(map(os.fsencode, told)), np.uint8),
        }  # fmt: skip
        files.write_npz(path, arrays)

    @classmethod
    def load(cls, path) -> "Catalogue":
        """What `save` wrote. TinkitError for another file, or a damaged one."""
        arrays = files.read_npz(path)
        try:
            schema, root, *rest = map(os.fsdecode, arrays["told"].tobytes().split(b"\0"))
            holders = tuple(Holder(*pair) for pair in zip(rest[::2], rest[1::2]))
            made = cls(root, arrays["names"], arrays["ends"], arrays["contents"], holders,
                       arrays["holder"], arrays["at"], arrays["size"])  # fmt: skip
            whole = schema == SCHEMA and made._is_whole()
        except (KeyError, ValueError, TypeError, IndexError):
            whole = False
        if not whole:
            raise TinkitError("This is no catalogue of pictures, or a damaged one.", where=os.fspath(path))
        return made

    def _is_whole(self) -> bool:
        inside = len(self) if self.holders else 0
        return (
            self.contents_N32.shape == (len(self), ADDRESS_BYTES)
            and (self.ends_N[-1] if len(self) else 0) == len(self.names)
            and bool((np.diff(self.ends_N, prepend=0) >= 0).all())
            and {len(self.holder_N), len(self.at_N), len(self.size_N)} == {inside}
            and (not inside or 0 <= self.holder_N.min() <= self.holder_N.max() < len(self.holders))
        )

    def _picture(self, index, content) -> Picture:
        name = self.name(index)
        place = ""
        if self.holders:
            holder = self.holders[self.holder_N[index]]
            where = f"{self.at_N[index]}:{self.size_N[index]}" if holder.kind == TAR else f"{self.at_N[index]}"
            place = f"{holder.kind}:{where}:{os.path.join(self.root, holder.name)}"
        return Picture(os.path.join(self.root, name), name, content, place)


def catalogue_of(root, names: Iterable[str], contents_N32=None, holders=(), **inside) -> Catalogue:
    """A catalogue of these names (of files relative to `root`, or of members in their tar), addresses zero if not given.

    inside: holder_N, at_N and size_N, for pictures that are no files of their own.
    """
    blob, ends = bytearray(), []
    for name in names:
        blob += os.fsencode(name)
        ends.append(len(blob))
    if contents_N32 is None:
        contents_N32 = np.zeros((len(ends), ADDRESS_BYTES), np.uint8)
    return Catalogue(
        root, np.frombuffer(bytes(blob), np.uint8), np.array(ends, np.int64), contents_N32, holders, **inside
    )


def names_of(pictures: Iterable[Picture]) -> Iterator[str]:
    """The names of a catalogue or of any pictures, in order."""
    return pictures.all_names() if isinstance(pictures, Catalogue) else (picture.name for picture in pictures)


@dataclass(frozen=True)
class Pictures:
    """What a source holds. `skipped` are (name, reason); `others` counts files that are no pictures by their name.

    root: the source itself, absolute: a folder, a tar, a pattern, a list or a table (for a folder, `usable.root`).
    address: what `Picture.content` is the hash of, "content" or "name, size and time".
    """

    root: str
    usable: Catalogue
    skipped: tuple[tuple[str, str], ...]
    others: int
    address: str = "content"


def _gather(names, starts, ends) -> np.ndarray:
    """The bytes of each start:end, one after the other."""
    parts = []
    for block in range(0, len(starts), BLOCK):
        some, lengths = starts[block : block + BLOCK], (ends - starts)[block : block + BLOCK]
        shifts = np.repeat(some - np.cumsum(lengths) + lengths, lengths)
        parts.append(names[shifts + np.arange(len(shifts))])
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)
