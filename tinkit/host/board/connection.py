"""An open channel to an agent: the pipes of one process, ssh's or the agent's own, and what they say.

First the far script's mark is found behind whatever a login prints, and the agent is sent where it is missing; then
frames go both ways (tinkit/device/wire.py). A thread keeps what comes on standard error, another one tells the agent that
we are alive. However the process ends, the caller gets one TinkitError that says so.
"""

import contextlib
import json
import subprocess
import threading
from collections import deque

from tinkit.device.wire import FrameError, Reader, StreamEnded, write_frame
from tinkit.errors import TinkitError
from tinkit.host.board.agent_start import HAVE, SORRY, WANT
from tinkit.host.board.foreign import clean
from tinkit.host.board.ssh_errors import connecting_failed, connection_lost

MAX_BANNER = 64 * 1024  # bytes that login scripts may print before the agent answers
ALIVE_S = 10  # the agent ends after 60 s of silence
PATIENCE_S = 10  # for the far side to set back what it changed
OUT_OF_STEP_S = 2  # for one that does not keep to the conversation
SHOWN_LINES, KEPT_LINES = 200, 40  # of standard error


class Connection:
    """An agent that listens: `ask` it, `listen` to it, `close` it. Counts the bytes of both ways, before ssh's encryption.

    landed: whether the agent's own file had to be sent; in_step: whether both sides know where they are in the conversation;
    keep: whether the board shall keep its cache at the end.
    """

    def __init__(self, process, host, python, ssh_config=None, say=None):
        self.host, self.process, self.python, self.ssh_config = host, process, python, ssh_config
        self.sent_bytes = self.received_bytes = 0
        self.landed, self.in_step, self.keep = False, True, False
        self._say = say or (lambda line: None)
        self._words, self._late, self._reader = deque(maxlen=KEPT_LINES), "", None
        self._writing, self._over = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._hear_errors, daemon=True)]
        self._threads[0].start()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.close()

    def land(self, agent, sha256, seconds=None):
        """Wait for the far script's mark and give it the agent (bytes) where it has none; within `seconds` if given."""
        with self.within(seconds, "the agent was started"):
            word, already = self._mark(b"", sha256)
            if word == WANT:
                self.landed = True
                with contextlib.suppress(_Gone):  # why, is what it says next
                    left = memoryview(agent)
                    while left:
                        left = left[self.write(left) :]
                word, already = self._mark(already, sha256)
        if word != HAVE:
            raise TinkitError(
                "The far side does not start the agent.", where=self.host, seen=f"it answers {word} again"
            )
        self._reader = Reader(self, already)
        self._threads.append(threading.Thread(target=self._stay_alive, daemon=True))
        self._threads[-1].start()

    def _mark(self, seen, sha256):
        """(word, bytes after its line) of the next mark; what a login prints before it is skipped."""
        while True:
            line, newline, rest = seen.partition(b"\n")
            if not newline:
                more = self.read(4096)
                if not more:
                    raise self._connecting_failed()
                seen += more
            elif line in (f"{WANT} {sha256}".encode(), f"{HAVE} {sha256}".encode()):
                return line.split()[0].decode(), rest
            elif line.startswith(SORRY.encode() + b" "):
                raise self._sorry(line[len(SORRY) + 1 :])
            else:
                seen = rest
            if self.received_bytes > MAX_BANNER:
                raise TinkitError(
                    "The board says too much before the agent answers.",
                    where=self.host,
                    seen=f"more than {MAX_BANNER // 1024} KB",
                    next_step="let its login scripts be silent when nobody sits at a terminal",
                )

    def _sorry(self, told):
        try:
            what, where, seen, then = (clean(text, 300) for text in json.loads(told.decode("utf-8", "replace")))
        except (ValueError, TypeError, RecursionError):
            what, where, seen, then = "The far side does not start the agent.", "", clean(told[:200]), None
        return TinkitError(what, where=f"{self.host}: {where}", seen=seen, next_step=then)

    def ask(self, message, data=b""):
        """Send a frame; data: bytes or the path of a file. That nobody takes it is told by the next `listen`."""
        with self._writing, contextlib.suppress(_Gone):
            write_frame(self, message, data)

    def listen(self, max_bytes=0, doing="waiting for it"):
        """(message, payload) of the next frame. Raises TinkitError where the connection is lost, FrameError for junk."""
        with self.still_there(doing):
            return self._reader.read(max_bytes)

    @contextlib.contextmanager
    def still_there(self, doing):
        """What is read in this block ends in `lost` where the far side is gone, and says whose frame cannot be read."""
        try:
            yield
        except StreamEnded:
            raise self.lost(doing) from None
        except FrameError as error:
            raise self.out_of_step(f"The board is not understood. {error.what}", doing, error.seen) from None
        except BaseException:
            self.in_step = False  # in the middle of a file
            raise

    def out_of_step(self, what, doing, seen):
        """The TinkitError for a far side that does not keep to the conversation: it is not spoken to any more."""
        self.in_step = False
        return TinkitError(what, where=f"{self.host}, while {doing}", seen=clean(seen, 300))

    def lost(self, doing):
        """The TinkitError for a far side that is gone."""
        self.in_step = False
        if self._late:
            return self._too_late()
        code = self._code()
        return connection_lost(self.host, code, list(self._words), doing)

    def _connecting_failed(self):
        if self._late:
            return self._too_late()
        code = self._code()
        return connecting_failed(
            self.host, -1 if code is None else code, list(self._words), self.python, self.ssh_config
        )

    def _too_late(self):
        seen = "; ".join(self._words) or None
        return TinkitError(f"The board did not answer in time: {self._late}.", where=self.host, seen=seen)

    def _code(self):
        """What the process ended with, after its last words; None where it does not end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
            self._threads[0].join(2)
        return self.process.returncode

    @contextlib.contextmanager
    def within(self, seconds, doing):
        """End the connection where the block takes longer; None: as long as it takes."""

        def end():
            self._late = f"{seconds:g} s until {doing}"
            self.process.kill()

        timer = threading.Timer(seconds or 0, end)
        timer.daemon = True
        if seconds is not None:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def close(self, patience_s=None):
        """End the channel, give the far side time to tidy up, then end the process. True where it ended by itself."""
        if patience_s is None:
            patience_s = PATIENCE_S if self.in_step else OUT_OF_STEP_S
        self._over.set()
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # the end of its input is the end of the agent
        drain = threading.Thread(target=self._drain, daemon=True)
        drain.start()
        by_itself = True
        try:
            self.process.wait(patience_s)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            by_itself = False
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
            self.process.kill()
            self.process.wait()
        for thread in [drain, *self._threads]:
            thread.join(2)
        for stream in (self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                stream.close()
        return by_itself

    # What Reader and write_frame take for a stream.

    def read(self, size):
        try:
            block = self.process.stdout.read(size)
        except (OSError, ValueError):  # closed by another thread
            block = b""
        self.received_bytes += len(block or b"")
        return block or b""

    def write(self, data):
        try:
            written = self.process.stdin.write(data)
        except (OSError, ValueError) as error:
            raise _Gone from error
        self.sent_bytes += written
        return written

    def flush(self):
        """Nothing is buffered here."""

    def _drain(self):
        while self.read(1 << 16):
            pass

    def _stay_alive(self):
        while not self._over.wait(ALIVE_S):
            self.ask({"ask": "alive"})

    def _hear_errors(self):
        """ssh's words (and the far side's), a line at a time: the last are kept, the first are shown."""
        shown, line = 0, b""
        with contextlib.suppress(OSError, ValueError):
            while block := self.process.stderr.read(4096):
                *lines, line = (line + block).split(b"\n")
                lines, line = ([*lines, line], b"") if len(line) > MAX_BANNER else (lines, line)
                for each in lines:
                    shown += self._hear(each, shown < SHOWN_LINES)
        self._hear(line, shown < SHOWN_LINES)

    def _hear(self, line, aloud):
        text = clean(line.decode("utf-8", "replace")).strip()
        if not text:
            return 0
        self._words.append(text)
        if aloud:
            self._say(f"{'board' if self.host == 'local' else 'ssh':<8} {text}")
        return 1


class _Gone(Exception):
    """Nobody reads what is written any more."""
