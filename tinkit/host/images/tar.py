"""The members of a tar, found by its headers alone, and read where they lie: no unpacking, and no data touched before.

Reads what tars are made of today: ustar names and prefixes, GNU long names, pax paths and sizes, sizes above 8 GB, hard and
symbolic links within the tar (format: POSIX.1-2001 and GNU tar's manual, "Basic Tar Format"). A tar that was cut off gives
its whole members. Sparse files are left out with a word, and a compressed tar is refused: it has no random access.
"""

import functools
import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from tinkit.device.pictures import suffixes
from tinkit.host.images.reading import patiently
from tinkit.host.images.tar_header import (
    BLOCK,
    Damaged,
    decimal_in,
    number_in,
    own_name,
    padded,
    pax_records,
    sum_is_right,
    text_in,
    why_no_header,
)

NEAR, WINDOW, ONE_HEADER = 32 << 10, 256 << 10, 3 * BLOCK  # bytes: small members are read over, large ones jumped over
MAX_EXTENSION = 1 << 20  # bytes of a long name or of pax records; more is damage
ZEROS = bytes(BLOCK)
FILES, LINKS, BARE = (b"0", b"\0", b"7"), (b"1", b"2"), (b"3", b"4", b"5", b"6")
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL, SPARSE = b"L", b"K", (b"x", b"X"), b"g", b"S"


@dataclass
class TarIndex:
    """The pictures of a tar in its order: `names` one after the other as bytes, where each ends, offset and size in bytes.

    others: counts members that are no pictures by their name; lost: (member, reason), and ("", reason) for the tar itself.
    """

    names: bytearray = field(default_factory=bytearray)
    ends: array = field(default_factory=lambda: array("q"))
    offsets: array = field(default_factory=lambda: array("q"))
    sizes: array = field(default_factory=lambda: array("q"))
    others: int = 0
    lost: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ends)

    def add(self, name: bytes, offset: int, size: int) -> None:
        """One more picture."""
        self.names += name
        self.ends.append(len(self.names))
        self.offsets.append(offset)
        self.sizes.append(size)

    def own_names(self) -> list[bytes]:
        """The names as a list."""
        starts = [0, *self.ends[:-1]] if len(self) else []
        return [bytes(self.names[start:end]) for start, end in zip(starts, self.ends)]


def index_of(path, stop: Callable[[], bool] | None = None) -> TarIndex:
    """The pictures in the tar `path`. OSError when it cannot be opened, InterruptedError once `stop()` is true."""
    return patiently(lambda: _index_of(path, stop), os.fspath(path), root=os.path.dirname(os.path.abspath(path)))


def read_member(path, offset: int, size: int) -> bytes:
    """`size` bytes at `offset`. OSError when the tar has become shorter."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(handle, size, offset)
        while len(data) < size:  # one read gives 2 GB at most
            more = os.pread(handle, size - len(data), offset + len(data))
            if not more:
                raise OSError(f"the tar ends inside of this picture: {len(data)} of {size} bytes")
            data += more
    finally:
        os.close(handle)
    return data


def place_of(path, name: bytes) -> tuple[int, int] | None:
    """(offset, size) of the picture of this name, the last of several; None where there is none. The last tar is kept."""
    status = os.stat(path)
    return _places(os.fspath(path), status.st_size, status.st_mtime_ns).get(name)


@functools.lru_cache(maxsize=1)
def _places(path, _size, _time):
    index = index_of(path)
    return dict(zip(index.own_names(), zip(index.offsets, index.sizes)))


def _index_of(path, stop) -> TarIndex:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _Reader(handle, stop).read()
    finally:
        os.close(handle)


class _Reader:
    """One walk over the headers of an open tar."""

    def __init__(self, handle, stop):
        self.handle, self.stop = handle, stop
        self.length = os.fstat(handle).st_size
        self.index = TarIndex()
        self.endings = {ending.encode() for ending in suffixes()}
        self.links: list[tuple[bytes, bytes]] = []
        self.window, self.start = b"", 0

    def read(self) -> TarIndex:
        try:
            self._walk()
        except Damaged as error:
            whole = f"; the {len(self.index)} pictures before it are used" if len(self.index) else ""
            self.index.lost.append(("", f"{error}{whole}"))
        if self.links:
            self._follow_links()
        return self.index

    def _walk(self):
        at = members = 0
        name: bytes | None = None  # of the next member, where a header before it says so
        pax: dict[bytes, bytes] = {}
        link: bytes | None = None
        while True:
            header = self._header(at)
            if header is None:
                return
            members += 1
            if self.stop and not members % 4096 and self.stop():
                raise InterruptedError
            kind, size = header[156:157], number_in(header[124:136], at)
            if kind in (LONG_NAME, LONG_LINK) or kind in PAX or kind == PAX_GLOBAL:
                data = self._extension(at + BLOCK, size)
                if kind == LONG_NAME:
                    name = text_in(data) if name is None else name
                elif kind == LONG_LINK:
                    link = text_in(data) if link is None else link
                elif kind in PAX:
                    pax = {**pax_records(data, at), **pax}
                at += BLOCK + padded(size)
                continue
            own = name or pax.get(b"path") or own_name(header)
            if pax.get(b"size"):
                size = decimal_in(pax[b"size"], at)
            at = self._member(header, at + BLOCK, kind, own, size, link or pax.get(b"linkpath"), pax)
            name, link, pax = None, None, {}

    def _member(self, header, at, kind, name, size, link, pax) -> int:
        """Note one member whose data begin at `at`; returns where the next header is."""
        if kind == SPARSE:
            at = self._after_sparse_map(header, at)
        if kind in BARE or kind in LINKS:
            if kind in LINKS and self._is_picture(name):
                self.links.append((_tidy(name), _target(name, kind, link or text_in(header[157:257]))))
            return at
        end = at + size
        if end > self.length:
            raise Damaged(f"cut off at byte {self.length}, inside of {os.fsdecode(name)}")
        if not self._is_picture(name) or (kind == b"\0" and name.endswith(b"/")):
            self.index.others += 1
        elif kind == SPARSE or any(key.startswith(b"GNU.sparse.") for key in pax):
            self.index.lost.append((os.fsdecode(_tidy(name)), "a sparse file, which tinkit does not read from a tar"))
        elif kind in FILES:
            self.index.add(_tidy(name), at, size)
        else:
            self.index.others += 1
        return at + padded(size)

    def _header(self, at) -> bytes | None:
        """The header at this byte, None at the end. Damaged when there is none."""
        within = at - self.start
        if not 0 <= within <= len(self.window) - BLOCK:
            jump = at - self.start - len(self.window)
            self.window, self.start, within = os.pread(self.handle, WINDOW if jump < NEAR else ONE_HEADER, at), at, 0
        header = self.window[within : within + BLOCK]
        if header == ZEROS:
            return None
        if not header:
            raise Damaged("empty, and no tar" if not at else f"no end mark at byte {at}: it may have been cut off")
        if len(header) < BLOCK:
            raise Damaged(
                f"cut off at byte {self.length}, inside of a header" if at else "no tar: shorter than a header"
            )
        if not sum_is_right(header):
            raise Damaged(why_no_header(header, at))
        return header

    def _extension(self, at, size) -> bytes:
        if size > MAX_EXTENSION:
            raise Damaged(f"a name of {size} bytes at byte {at}")
        within = at - self.start
        data = self.window[within : within + size]
        if len(data) < size:
            data = os.pread(self.handle, size, at)
        if len(data) < size:
            raise Damaged(f"cut off at byte {self.length}, inside of a name")
        return data

    def _after_sparse_map(self, header, at) -> int:
        more = header[482]
        while more:
            block = os.pread(self.handle, BLOCK, at)
            if len(block) < BLOCK:
                raise Damaged(f"cut off at byte {self.length}, inside of a header")
            at, more = at + BLOCK, block[504]
        return at

    def _is_picture(self, name) -> bool:
        """By the rules of a folder: no hidden file or folder, a known ending or none."""
        if name.startswith(b".") or b"/." in name:
            parts = _tidy(name).split(b"/")
            if any(part.startswith(b".") and part != b".." for part in parts):
                return False
        own = name.rpartition(b"/")[2]
        _, dot, ending = own.rpartition(b".")
        return bool(own) and (not dot or b"." + ending.lower() in self.endings)

    def _follow_links(self):
        """A link to a member is that member under another name; others are lost."""
        places = dict(zip(self.index.own_names(), zip(self.index.offsets, self.index.sizes)))
        for name, target in self.links:
            if target in places:
                places[name] = places[target]
                self.index.add(name, *places[target])
            else:
                reason = f"a link to {os.fsdecode(target)}, which is no picture of this tar"
                self.index.lost.append((os.fsdecode(name), reason))


def _tidy(name) -> bytes:
    """Without ./ in front and without leading slashes: a member lies below its tar."""
    while name.startswith((b"./", b"/")):
        name = name[2:] if name.startswith(b"./") else name[1:]
    return name


def _target(name, kind, link) -> bytes:
    """The member that a link names: a symbolic one is relative to its own folder."""
    if kind == b"1":
        return _tidy(link)
    return os.path.normpath(os.path.join(os.path.dirname(_tidy(name)), link))
