"""Pictures decoded once: uint8 pixels in one memory map that all loader processes share, bounded in bytes.

Two files in a folder of their own: `.pixels`, the RGB bytes one picture after the other, and `.slots`, an open-addressing
table from a picture's address to where it lies. The maps are only read; everything is written by plain writes into space
that was allocated before, so that a full disk is an error and no signal. A picture's place is taken under a lock of the
kernel's (a killed process gives it back), its pixels are written, and only then does its slot say that it is there.
When the limit or the disk is full, pictures are decoded again as without a cache. The pixels are the decoder's, to the bit.
"""

import contextlib
import fcntl
import mmap
import os
import shutil
import struct
import threading
import uuid

from PIL import Image

from tinkit import files
from tinkit.errors import TinkitError, from_os_error
from tinkit.host.free_memory import free_memory

FOLDER = "decoded"
PIXELS, SLOTS = ".pixels", ".slots"
SHARE = 4  # the default limit is this part of what is free
STEP = 64 << 20  # bytes of disk taken at once

HEADER = struct.Struct("<QQQQ")  # limit in bytes; slots; bytes taken; slots taken
SLOT = struct.Struct("<16sQII")  # start of the address; offset; height; width, with PENDING until the pixels are there
KEY_BYTES, WIDTH_AT = 16, 28
PENDING = 1 << 31


def default_limit(folder) -> int:
    """Bytes for a cache in `folder`: a quarter of the memory that is free now, at most a quarter of the free disk."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(os.path.abspath(folder))
    return min(free_memory(), shutil.disk_usage(folder).free) // SHARE


class DecodedCache:
    """Address of a picture -> its pixels, for all processes. Made by `make`; pickled, it is opened again elsewhere."""

    @classmethod
    def make(cls, folder, limit_bytes: int, slots: int) -> "DecodedCache":
        """A cache in `folder` of at most `limit_bytes` of pixels and `slots` pictures; close it in this process.

        What a killed run left in the folder is removed. Raises TinkitError when the files cannot be made.
        """
        if limit_bytes < 1 or slots < 1:
            raise ValueError(f"a cache of {limit_bytes} bytes and {slots} pictures")
        home = os.path.join(os.fspath(folder), FOLDER)
        path = os.path.join(home, uuid.uuid4().hex)
        with files.folder_lock(home, "the cache of decoded pictures", wait=True):
            _remove_orphans(home)
            try:
                owner = _make_files(path, limit_bytes, slots)
                cache = cls(path)
            except OSError as error:
                _unlink(path)
                raise from_os_error(error, "making the cache of decoded pictures") from error
        cache._owner, cache._owner_pid = owner, os.getpid()
        return cache

    def __init__(self, path):
        self.path = path
        self._owner, self._owner_pid = None, -1  # the open file whose lock says that somebody still uses the cache
        self._threads, self._pid = threading.Lock(), os.getpid()
        try:
            self._slots_file = os.open(path + SLOTS, os.O_RDWR | os.O_CLOEXEC)
            self._pixels_file = os.open(path + PIXELS, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise TinkitError("The cache of decoded pictures is gone.", where=path) from None
        self._slots = mmap.mmap(self._slots_file, 0, access=mmap.ACCESS_READ)
        self._pixels = mmap.mmap(self._pixels_file, 0, access=mmap.ACCESS_READ)
        self.limit_bytes, self.slots, _, _ = HEADER.unpack_from(self._slots)
        self._places = (len(self._slots) - HEADER.size) // SLOT.size

    def __reduce__(self):
        return DecodedCache, (self.path,)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    @property
    def used_bytes(self) -> int:
        """Bytes of pixels taken so far; `limit_bytes` once the cache is full."""
        return HEADER.unpack_from(self._slots)[2]

    @property
    def pictures(self) -> int:
        """How many pictures have a place."""
        return HEADER.unpack_from(self._slots)[3]

    def get(self, content: str):
        """The picture with this address (hex) as an RGB Pillow image of its own; None when it is not here."""
        _, (_, offset, height, width) = self._find(bytes.fromhex(content)[:KEY_BYTES])
        if not width or width & PENDING:
            return None
        with memoryview(self._pixels)[offset : offset + 3 * height * width] as pixels:
            return Image.frombytes("RGB", (width, height), pixels)

    def put(self, content: str, image) -> bool:
        """Keep an RGB Pillow image. False when it does not fit any more; nothing is raised for a full disk."""
        if image.mode != "RGB":
            raise ValueError(f"a picture in mode {image.mode}")
        key, size = bytes.fromhex(content)[:KEY_BYTES], 3 * image.height * image.width
        try:
            with self._locked():
                at, (_, begun, height, width) = self._find(key)
                if width and not width & PENDING:
                    return True
                if width and (height, width & ~PENDING) != (image.height, image.width):
                    return False
                offset = begun if width else self._take(at, key, image, size)
            if offset is None:
                return False
            # Of a killed process, or of one that is at it right now: the same pixels once more do no harm.
            _write(self._pixels_file, image.tobytes(), offset)
            _write(self._slots_file, struct.pack("<I", image.width), at + WIDTH_AT)
        except OSError:  # a full disk, a quota, a disk that fails: this picture is decoded again, as without a cache
            return False
        return True

    def close(self):
        """Let go of it; in the process that made it, remove its files."""
        if self._slots.closed:
            return
        self._slots.close()
        self._pixels.close()
        os.close(self._slots_file)
        os.close(self._pixels_file)
        if self._owner is not None and self._owner_pid == os.getpid():
            _unlink(self.path)
            os.close(self._owner)

    def _find(self, key) -> tuple[int, tuple[bytes, int, int, int]]:
        """(position in the table, slot) of this key, or of the empty slot where it would go."""
        place = int.from_bytes(key[:8], "little") % self._places
        while True:  # ends: there are more places than slots that may be taken
            at = HEADER.size + place * SLOT.size
            slot = SLOT.unpack_from(self._slots, at)
            if slot[0] == key or not slot[3]:
                return at, slot
            place = (place + 1) % self._places

    def _take(self, at, key, image, size) -> int | None:
        """A place for `size` bytes and the slot for it, pending; None when the cache is full. Under the lock."""
        _, _, used, taken = HEADER.unpack_from(self._slots)
        if used + size > self.limit_bytes or taken >= self.slots:
            return None
        try:
            _allocate(self._pixels_file, used, size, self.limit_bytes)
        except OSError:
            self._write_header(self.limit_bytes, taken)  # nobody need try again
            return None
        self._write_header(used + size, taken + 1)
        _write(self._slots_file, SLOT.pack(key, used, image.height, image.width | PENDING), at)
        return used

    def _write_header(self, used, taken):
        _write(self._slots_file, HEADER.pack(self.limit_bytes, self.slots, used, taken), 0)

    @contextlib.contextmanager
    def _locked(self):
        """One writer among all processes (the kernel's lock) and among the threads of this one."""
        if self._pid != os.getpid():  # forked, perhaps while another thread held it
            self._threads, self._pid = threading.Lock(), os.getpid()
        with self._threads:
            fcntl.lockf(self._slots_file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._slots_file, fcntl.LOCK_UN)


def _make_files(path, limit_bytes, slots) -> int:
    """Both files, and the open one whose lock says that they are in use."""
    places = slots + slots // 2 + 1
    with open(path + SLOTS, "xb") as handle:
        handle.write(HEADER.pack(limit_bytes, slots, 0, 0))
        handle.flush()
        os.posix_fallocate(handle.fileno(), 0, HEADER.size + places * SLOT.size)
    owner = os.open(path + PIXELS, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX)
        os.ftruncate(owner, limit_bytes)
    except OSError:
        os.close(owner)
        raise
    return owner


def _allocate(pixels_file, used, size, limit):
    """Disk for the bytes from `used` on, a step at a time; OSError when there is none."""
    first, last = -(-used // STEP) * STEP, min(-(-(used + size) // STEP) * STEP, limit)
    if last > first:
        os.posix_fallocate(pixels_file, first, last - first)


def _write(handle, data, offset):
    view = memoryview(data)
    while view:
        done = os.pwrite(handle, view, offset)
        view, offset = view[done:], offset + done


def _remove_orphans(home):
    """The files of runs that ended without closing them: nobody holds their lock. Others, and other people's, stay."""
    for entry in os.listdir(home):
        path, ending = os.path.splitext(os.path.join(home, entry))
        if ending == SLOTS and not os.path.exists(path + PIXELS):
            _unlink(path)
        elif ending == PIXELS:
            with contextlib.suppress(OSError), open(path + PIXELS, "r+b") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _unlink(path)


def _unlink(path):
    for ending in (PIXELS, SLOTS):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ending)
