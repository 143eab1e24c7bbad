"""Files written as if the power may fail, and read as if a stranger wrote them.

Writing: a temporary name in the same folder, fsync, rename. Reading arrays: no pickle, and a cap on the size that the
header announces before anything is allocated. Hashes guard against damage, not against an attacker.
"""

import contextlib
import hashlib
import json
import os
import struct
import tokenize
import zipfile
import zlib

import numpy as np

from tinkit.errors import TinkitError, from_os_error

MAX_ARRAY_BYTES = 1 << 30

# What zipfile, zlib and numpy raise over a damaged archive. RuntimeError: encryption or an unknown compression.
DAMAGE = (OSError, ValueError, TypeError, EOFError, RuntimeError, SyntaxError, zipfile.BadZipFile, struct.error, zlib.error,
          tokenize.TokenError)  # fmt: skip


@contextlib.contextmanager
def atomic(path, doing=None):
    """Give a temporary path beside `path`; on success it becomes `path`, on any error it is removed.

    Raises TinkitError for a full disk or a folder that cannot be written.
    """
    path = os.fspath(path)
    partial = "{}.{}.partial".format(path, os.getpid())
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        yield partial
        with open(partial, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
        sync_folder(os.path.dirname(path) or ".")
    except OSError as error:
        raise from_os_error(error, doing or "writing {}".format(path)) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)


def sync_folder(folder):
    """Make a rename in `folder` survive a power cut (where the system can sync folders)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path, text):
    with atomic(path) as partial, open(partial, "w", encoding="utf-8") as handle:
        handle.write(text)


def write_json(path, value):
    """Strict JSON: numbers that are not finite become the strings that float() reads back ("inf", "nan")."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def read_json(path, what):
    """Read a JSON object; `what` names the file for the user ("the run's record")."""
    try:
        with open(path, encoding="utf-8") as handle:
            value = json.load(handle)
    except FileNotFoundError:
        raise TinkitError("{} is missing.".format(what), where=path) from None
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: "[" a thousand times
        raise TinkitError("{} cannot be read.".format(what), where=path, seen=str(error)) from None
    if not isinstance(value, dict):
        raise TinkitError("{} is not a JSON object.".format(what), where=path, seen=type(value).__name__)
    return value


def read_record(path, what, schema, next_step):
    """`read_json` of a file whose "schema" must be this one; TinkitError with `next_step` for another."""
    value = read_json(path, what)
    if value.get("schema") != schema:
        raise TinkitError(
            "{} has a schema that this tinkit does not read.".format(what),
            where=path,
            seen=repr(value.get("schema")),
            next_step=next_step,
        )
    return value


def write_npz(path, arrays):
    """Write named arrays, uncompressed and without pickle."""
    with atomic(path) as partial, open(partial, "wb") as handle:
        np.savez(handle, **arrays)


def read_npz(path, max_bytes=MAX_ARRAY_BYTES):
    """Read all arrays of an .npz into a dict. Refuses pickles and files that unpack to more than `max_bytes`."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if total <= max_bytes:
                total = sum(_announced_bytes(archive, entry) for entry in entries)
            if total > max_bytes:
                raise TinkitError(
                    "The array file is larger than tinkit reads.",
                    where=path,
                    seen="{} bytes unpacked, limit {}".format(total, max_bytes),
                )
            return {_array_name(entry): _read_array(archive, entry) for entry in entries}
    except FileNotFoundError:
        raise TinkitError("The array file is missing.", where=path) from None
    except DAMAGE as error:
        raise TinkitError("The array file cannot be read.", where=path, seen=str(error) or repr(error)) from None


def _array_name(entry):
    return entry.filename[: -len(".npy")] if entry.filename.endswith(".npy") else entry.filename


def _read_array(archive, entry):
    with archive.open(entry) as handle:
        return np.lib.format.read_array(handle, allow_pickle=False)


def _announced_bytes(archive, entry):
    """What the array's own header says that it takes: numpy allocates that much before it reads."""
    with archive.open(entry) as handle:
        version = np.lib.format.read_magic(handle)
        if version not in ((1, 0), (2, 0)):
            raise ValueError("array format {}.{}".format(*version))
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(handle)
    count = 1
    for length in shape:
        count *= int(length)
    return count * dtype.itemsize


def sha256_of_file(path):
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(value):
    """The identity of plain data: equal values in any key order have equal hashes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextlib.contextmanager
def folder_lock(folder, what, wait=False):
    """Hold `folder`, made if need be, for this process: a second tinkit is refused, or waits when `wait` is set.

    `wait` may be a function: it is called as often as the folder is found held, with the holder's process as text, and
    sleeps, or raises to wait no longer. The lock is the kernel's (flock on `.lock`), so it is gone when the process dies,
    however it dies.
    """
    while True:
        try:
            handle, holder = _lock(folder, wait is True)
        except OSError as error:
            raise from_os_error(error, "opening {}".format(what)) from error
        if handle is not None:
            break
        if not wait:
            raise TinkitError(
                "Another tinkit is using {}.".format(what),
                where=folder,
                seen="process {}".format(holder),
                next_step="wait for it, or choose another folder with --out",
            )
        wait(holder)
    try:
        with contextlib.suppress(OSError):  # on a full disk the lock holds without its note
            os.ftruncate(handle.fileno(), 0)
            os.pwrite(handle.fileno(), str(os.getpid()).encode(), 0)
        yield
    finally:
        handle.close()


def _lock(folder, block):
    """(the open file that holds the folder, None), or (None, the process that holds it)."""
    import fcntl

    path = os.path.join(folder, ".lock")
    while True:
        os.makedirs(folder, exist_ok=True)
        try:
            handle = open(path, "a+")  # noqa: SIM115 - the caller closes it
        except FileNotFoundError:
            if os.path.isdir(folder):
                raise
            continue  # the folder was removed since
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
            if is_still(path, handle.fileno()):
                return handle, None
            handle.close()
        except BlockingIOError:
            with handle:
                handle.seek(0)
                return None, handle.read().strip() or "unknown"
        except BaseException:
            handle.close()
            raise


def is_still(path, handle):
    """Whether the open file is what lies at `path`: a lock on one that was removed holds nothing."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
