"""One worker process of `tinkit.host.guard`: how it is started and ended, and what it does all its life.

It takes one item after the other from its own pipe, says that it begins and then what came out. It does not listen to
Ctrl-C, computes in one thread, and does not outlive the process that started it.
"""

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from tinkit.host.channel import Inbox, Outbox

KILLED_S = 5.0  # a killed process that is still there then hangs in the kernel, and is left behind
WATCH_S = 2.0
NOTHING = [pickle.dumps(None)]


@dataclass
class Sent:
    number: int
    item: Any
    slot: int
    tries: int = 1


class Failure(NamedTuple):
    error: Exception
    text: str


class Worker:
    """One process, this side of its pipe, and the items it was given, the one being worked on first."""

    def __init__(self, context, work):
        self.connection, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far, work), daemon=True)
        self.process.start()
        far.close()
        self.inbox = Inbox(self.connection)
        self.waiting: deque[Sent] = deque()
        self.started = False
        self.spent_s = 0.0

    def give(self, sent):
        self.waiting.append(sent)
        with contextlib.suppress(OSError):  # it is gone: the next look at it will tell
            self.connection.send((sent.number, sent.slot, sent.item))

    def end(self):
        self.process.kill()
        self.process.join(KILLED_S)
        self.connection.close()
        self.inbox.close()

    def ending(self) -> str:
        code = self.process.exitcode
        return f"killed its process (signal {-code})" if code and code < 0 else f"ended its process (exit code {code})"


def _serve(connection, work):
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the main process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["OMP_NUM_THREADS"] = "1"  # for a torch that is imported later
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    outbox = Outbox(connection)
    while True:
        try:
            number, slot, item = connection.recv()
        except EOFError:
            return
        connection.send(("started", number, NOTHING))
        try:
            outbox.send("result", number, work(item), slot)
        except Exception as error:  # noqa: BLE001 - whatever the work raises is handed on
            outbox.send("failed", number, Failure(_portable(error), traceback.format_exc()), slot)


def _leave_with(parent):
    """A worker does not outlive the process that started it."""
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os._exit(1)


def _portable(error) -> Exception:
    """The exception itself when it can travel."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    except Exception:  # noqa: BLE001 - any class may refuse in any way
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
