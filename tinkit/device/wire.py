"""How host and agent talk over one channel: frames, each a line of JSON, some followed by so many raw bytes.

    {"ask": "blob", "sha256": "...", "size": 5}\\n12345

Asks of the host: hello, blob, profile, state, alive, bye. What the agent tells: every ask but alive (which has no answer)
ends in exactly one of hello, kept, done, error, bye; before a done or an error come any number of say and file frames. A
file is told by the word that it was asked for: "report.json", or "engine" where the job's fetch has it. After an error the
conversation goes on, unless the frames themselves were wrong: then the agent tells it and ends. Nothing here believes the
other side: a line has a limit, a payload the reader's own, and what does not fit is a `FrameError`.
"""

import hashlib
import json
import os

from tinkit.errors import TinkitError

WIRE = 1  # raised when an older side would misunderstand
MAX_LINE = 64 * 1024  # bytes of a frame's JSON, its newline included
BLOCK = 64 * 1024
IN_MEMORY = 1 << 20


class FrameError(TinkitError):
    """The other side said something that is no frame, or more than was allowed; nothing after it can be read."""


class StreamEnded(FrameError):
    """The other side is gone: between two frames or in the middle of one."""


def write_frame(stream, message, data=b""):
    """Write one frame and flush. data: bytes, or the path of a file that is sent in blocks.

    `size` is put into the message; where the message has one it must agree. Raises ValueError for a message that is no
    JSON or too long, FrameError when the file shrinks while it is sent (the frame is broken then), OSError of the stream.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        announced = {"size": len(data)} if len(data) or "size" in message else {}
        _write(stream, _head(message, announced) + bytes(data))
    else:
        with open(data, "rb") as handle:
            left = os.fstat(handle.fileno()).st_size
            _write(stream, _head(message, {"size": left}))
            while left:
                block = handle.read(min(BLOCK, left))
                if not block:
                    raise FrameError("A file became shorter while it was sent.", where=os.fspath(data))
                _write(stream, block)
                left -= len(block)
    stream.flush()


def _head(message, announced):
    if message.get("size", announced.get("size")) != announced.get("size"):
        raise ValueError("the message says size {}, there are {}".format(message["size"], announced))
    line = json.dumps(dict(message, **announced), separators=(",", ":"), allow_nan=False).encode("utf-8") + b"\n"
    if len(line) > MAX_LINE:
        raise ValueError("a frame's line has {} bytes, at most {} are allowed".format(len(line), MAX_LINE))
    return line


def _write(stream, data):
    """All of it: an unbuffered stream may take less at once."""
    view = memoryview(data)
    while len(view):
        written = stream.write(view)
        view = view[len(view) if written is None else written :]


class Reader:
    """Frames from a binary stream (`read1`, or `read` of an unbuffered one).

    already: bytes that were read from it before. `waiting()` says whether bytes were taken from the stream that no frame
    has used yet: ask it before a select on the stream, which should be unbuffered then.
    """

    def __init__(self, stream, already=b""):
        self._next = getattr(stream, "read1", None) or stream.read
        self._buffer = bytes(already)
        self._payload = None

    def waiting(self):
        return bool(self._buffer)

    def read(self, max_bytes=0):
        """(message, `Payload`) of the next frame; what was not read of the payload before it is skipped.

        max_bytes: the largest payload that is allowed. Raises StreamEnded at the end, FrameError for anything else.
        """
        if self._payload is not None:
            self._payload.skip()
        message = _message(self._line())
        size = message.get("size", 0)
        if type(size) is not int or size < 0:
            raise FrameError("A frame has a size that is none.", seen=repr(size)[:80])
        if size > max_bytes:
            raise FrameError(
                "A frame brings more than is taken here.", seen="{} bytes, at most {} are".format(size, max_bytes)
            )
        self._payload = Payload(self, size)
        return message, self._payload

    def _line(self):
        parts = self._buffer
        while b"\n" not in parts:
            if len(parts) >= MAX_LINE:
                break
            more = self._next(BLOCK)
            if not more:
                raise StreamEnded(
                    "The other side is gone.", seen="in the middle of a frame" if parts else "between two frames"
                )
            parts += more
        line, newline, self._buffer = parts.partition(b"\n")
        if not newline or len(line) >= MAX_LINE:
            raise FrameError(
                "A frame's line is longer than {} bytes.".format(MAX_LINE),
                seen=repr(line[:80].decode("utf-8", "replace")),
            )
        return line

    def some(self, most):
        """1 to `most` bytes as they come; b"" at the end of the stream."""
        if self._buffer:
            block, self._buffer = self._buffer[:most], self._buffer[most:]
            return block
        return self._next(most) or b""


class Payload:
    """The raw bytes after a frame's line, to be read once: `size` of them, `left` of those not read yet."""

    def __init__(self, reader, size):
        self._reader, self.size, self.left = reader, size, size

    def blocks(self):
        """The bytes in blocks of at most 64 KiB. Raises StreamEnded when the stream ends before they do."""
        while self.left:
            block = self._reader.some(min(BLOCK, self.left))
            if not block:
                raise StreamEnded("The other side is gone.", seen="{} of {} bytes missing".format(self.left, self.size))
            self.left -= len(block)
            yield block

    def read(self, limit=IN_MEMORY):
        """All bytes at once; for small things. Raises FrameError where there are more than `limit`."""
        if self.size > limit:
            raise FrameError("A frame brings more than is taken here.", seen="{} bytes".format(self.size))
        return b"".join(self.blocks())

    def save(self, path):
        """Write the bytes to a new file of this user's alone (0600, no link is followed); returns their sha256.

        On any error nothing is left. Raises FileExistsError and other OSErrors as they come.
        """
        digest = hashlib.sha256()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(handle, "wb") as out:
                for block in self.blocks():
                    digest.update(block)
                    out.write(block)
                out.flush()
                os.fsync(out.fileno())
        except BaseException:
            os.unlink(path)
            raise
        return digest.hexdigest()

    def skip(self):
        for _ in self.blocks():
            pass


def _message(line):
    try:
        message = json.loads(line.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError; "[" a thousand times
        raise FrameError("A line is no frame: it is not JSON.", seen=_shown(line), where=str(error)[:120]) from None
    if not isinstance(message, dict):
        raise FrameError("A line is no frame: it is not a JSON object.", seen=_shown(line))
    return message


def _no_number(name):
    raise ValueError("{} is no number of JSON".format(name))


def _shown(line):
    """The beginning of a line without control characters."""
    return repr(line[:80].decode("utf-8", "replace"))
