"""One picture: what it is called, the address of its bytes, and how to read it, wherever it lies."""

import os
from dataclasses import dataclass

from tinkit.host.images.reading import patiently

TAR, PARQUET, ARROW = "tar", "parquet", "arrow"


@dataclass(frozen=True)
class Picture:
    """A picture by name; nothing is open.

    path: for people, a file's path, or "SHARD.tar/MEMBER", or "FILE.parquet#ROW". name: the same, relative to the root.
    content: hex sha256, the picture's address (of its bytes; in a quick listing of name, size and time).
    place: how to read what is no file of its own: "tar:OFFSET:SIZE:PATH", "parquet:ROW:PATH" or "arrow:ROW:PATH".
    """

    path: str
    name: str
    content: str
    place: str = ""

    def read(self) -> bytes:
        """The encoded bytes. OSError when they cannot be read; TinkitError when a network share stays away."""
        return patiently(self._read, self.path, root=self.root)

    @property
    def container(self) -> str:
        """The file that holds the bytes: the picture's own, a tar or a table."""
        if not self.place:
            return self.path
        return self.place.split(":", 3 if self.place.startswith(TAR + ":") else 2)[-1]

    @property
    def root(self) -> str:
        inside = os.path.join("", self.name)
        return (
            self.path[: -len(inside)] or os.sep if self.path.endswith(os.sep + inside) else os.path.dirname(self.path)
        )

    def _read(self) -> bytes:
        if not self.place:
            with open(self.path, "rb") as handle:
                return handle.read()
        kind, first, rest = self.place.split(":", 2)
        if kind == TAR:
            from tinkit.host.images.tar import read_member

            size, path = rest.split(":", 1)
            return read_member(path, int(first), int(size))
        from tinkit.host.images.tables import read_row

        return read_row(kind, rest, int(first))
