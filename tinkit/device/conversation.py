"""What the agent answers: each ask of the host from its frame to its last word, read from top to bottom.

While a job runs, one loop listens to the host (alive; anything else cuts it), to the child's frames and to what libraries
print in it, and to nobody's threads. Everything that a job changes is put back before its last frame is told, in whatever way it
ends; signals wait meanwhile. A job is checked before anything is done for it.
"""

import contextlib
import math
import os
import select
import signal
import time

from tinkit import files
from tinkit.device.agent_cache import MAX_BLOB
from tinkit.device.commands import Commands
from tinkit.device.hello import hello
from tinkit.device.job import CHANGE_PARTS, checked, checked_job
from tinkit.device.state_change import StateChange
from tinkit.device.turn import POLL_S, Turn, busy
from tinkit.device.wire import FrameError, Reader, StreamEnded, write_frame
from tinkit.device.worker import BUNDLE, JOB, LINE, OUT, Printed, Worker, error_frame
from tinkit.errors import CannotJudge, TinkitError, from_os_error

CUTTING = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
REPORT, ENGINE = "report.json", "engine"
EXIT_S = 30.0  # for a child that has told its last word


class Conversation:
    """Frames over `channel` (agent.Channel) about a board whose files are under `root`, with an open `AgentCache`."""

    def __init__(self, channel, cache, root="/"):
        self._channel, self._cache, self._root = channel, cache, root
        self._reader, self._commands = Reader(channel), Commands(root)
        self._asks = {"hello": self._hello, "blob": self._blob, "profile": self._profile, "state": self._state}

    def run(self):
        """Answer until the host says bye; returns whether it wants the cache kept. Raises FrameError when it is gone."""
        while True:
            message, payload = self._reader.read(MAX_BLOB)
            ask = message.get("ask")
            if ask == "bye":
                return message.get("keep") is True
            if ask == "alive":
                continue
            if not isinstance(ask, str) or ask not in self._asks:
                raise FrameError("The host asks for something unknown.", seen=repr(ask)[:80])
            try:
                self._asks[ask](message, payload)
            except FrameError:
                raise
            except TinkitError as error:
                self._tell(error_frame(error))
            except OSError as error:
                self._tell(error_frame(from_os_error(error, "what was asked ({})".format(ask))))

    def _tell(self, message, data=b""):
        write_frame(self._channel, message, data)

    def _say(self, line):
        self._tell({"tell": "say", "line": str(line)[:LINE]})

    def _hello(self, message, payload):
        notes = self._swept() + self._put_back_if_free()
        told = hello(self._root, self._commands)
        told.update(have=self._cache.have(), cache=self._cache.folder, free_bytes=self._cache.free_bytes())
        self._tell(dict(told, notes=[note[:LINE] for note in notes]))

    def _blob(self, message, payload):
        self._cache.keep(message.get("sha256"), payload)
        self._tell({"tell": "kept", "sha256": message["sha256"]})

    def _profile(self, message, payload):
        job, steps = checked_job(message.get("job")), {}
        run = self._cache.new_run()
        try:
            self._lay_out(job, run)
            with self._turn(job["wait_s"], steps):
                for line in self._put_back():
                    self._say(line)
                with self._changed(job):
                    begin = time.monotonic()
                    self._work(run)
                    steps["work"] = round(time.monotonic() - begin, 3)
            self._send(job, run)
        finally:
            with undisturbed():
                self._cache.remove_run(run)
        self._tell({"tell": "done", "steps": steps})

    def _state(self, message, payload):
        """A change on purpose, which stays; its record is kept apart from those of runs, which are put back by themselves."""
        change, steps = checked(message.get("change"), CHANGE_PARTS, "change"), {}
        lasting = self._state_change("pinned", change["allow_state_change"])
        with self._turn(change["wait_s"], steps):
            lines = self._put_back()
            with undisturbed():
                if change["restore"]:
                    lines += lasting.restore() or ["nothing was changed"]
                if change["mode"]:
                    lines.append(lasting.set_mode(change["mode"]))
                if change["pin_clocks"]:
                    lines.append(lasting.pin_clocks())
        for line in lines:
            self._say(line)
        self._tell({"tell": "done", "steps": steps})

    def _lay_out(self, job, run):
        for name, sha256 in job["bundle"]["files"].items():
            self._cache.place(sha256, os.path.join(run, BUNDLE, name))
        files.write_json(os.path.join(run, JOB), job)

    @contextlib.contextmanager
    def _turn(self, wait_s, steps):
        """Wait until nobody else measures, listening to the host; then hold the board's turn."""
        turn, begin, told = Turn(), time.monotonic(), False
        try:
            while not turn.take():
                left = begin + wait_s - time.monotonic()
                if left <= 0:
                    raise busy(turn, wait_s)
                if not told:
                    self._say("waiting  {} measures on this board (at most {:g} s)".format(turn.holder(), wait_s))
                    told = True
                self._listen(min(POLL_S, left))
            steps["wait"] = round(time.monotonic() - begin, 3)
            yield
        finally:
            turn.give()

    @contextlib.contextmanager
    def _changed(self, job):
        """The board in the power mode and with the clocks that the job wants, and as it was afterwards."""
        change, restored = self._state_change("state", job["allow_state_change"]), []
        try:
            if job["mode"]:
                self._say("state    " + change.set_mode(job["mode"]))
            if job["pin_clocks"]:
                self._say("state    " + change.pin_clocks())
            yield
        finally:
            with undisturbed():
                restored += change.restore()
        for line in restored:
            self._say("state    " + line)

    def _state_change(self, folder, allowed):
        return StateChange(self._commands, self._cache.path(folder), allowed, self._root)

    def _put_back(self):
        """Restore what a killed run left changed; lines that tell it. What cannot be restored is told, and stays recorded."""
        try:
            if StateChange.left_behind(self._cache.path("state")) is None:
                return []
            with undisturbed():
                lines = self._state_change("state", True).restore()
            return ["state    an interrupted run had left it changed: " + line for line in lines]
        except FrameError:
            raise
        except TinkitError as error:
            return ["state    an interrupted run left it changed: {} {}".format(error.what, error.next_step or "")]

    def _put_back_if_free(self):
        turn = Turn()
        if not turn.take():
            return []  # it would disturb; the next job does it
        try:
            return self._put_back()
        finally:
            turn.give()

    def _swept(self):
        if not self._cache.swept:
            return []
        return ["an interrupted run had left {} things half done: removed".format(len(self._cache.swept))]

    def _work(self, run):
        """Have a child do the job; its lines are told on. Raises what it raised, or how it ended without a report."""
        work, printed = Worker(run, self._cache, self._root), Printed()
        try:
            last = self._follow(work, printed)
        finally:
            with undisturbed():
                code = work.end()
        if last.get("tell") == "error":
            kind = CannotJudge if last.get("exit_code") == CannotJudge.exit_code else TinkitError
            raise kind(last.get("what"), last.get("where"), last.get("seen"), last.get("next"))
        if last.get("tell") != "done":
            raise printed.ended_without_a_word(code)

    def _follow(self, work, printed):
        """Tell the child's lines on until it has ended; its last frame ({} without one)."""
        last, open_ends, enough = {}, {work.told_fd, work.output_fd}, math.inf
        while True:
            ready = self._listen(POLL_S if open_ends else 0.05, open_ends)
            if work.output_fd in ready:
                data = os.read(work.output_fd, 65536)
                for line in printed.lines(data):
                    self._say("board    " + line)
                open_ends -= set() if data else {work.output_fd}
            if work.told_fd in ready:
                frames = work.frames()
                if frames is None:
                    open_ends, enough = open_ends - {work.told_fd}, time.monotonic() + EXIT_S
                for frame in frames or ():
                    if frame.get("tell") == "say":
                        self._say(frame.get("line", ""))
                    else:
                        last = frame
            if (not ready and work.ended()) or time.monotonic() > enough:
                return last

    def _listen(self, timeout_s, others=()):
        """Wait so long for the host or for one of the file descriptors `others`; returns those that are ready."""
        ready = [self._channel]
        if not self._reader.waiting():
            ready = select.select([self._channel] + list(others), [], [], timeout_s)[0]
        if self._channel not in ready:
            self._channel.check_silence()
            return ready
        ask = self._reader.read()[0].get("ask")
        if ask == "bye":
            raise StreamEnded("The host said bye in the middle of a run.")
        if ask != "alive":
            raise FrameError("The host asks for something in the middle of a run.", seen=repr(ask)[:80])
        return [each for each in ready if each is not self._channel]

    def _send(self, job, run):
        report = os.path.join(run, OUT, REPORT)
        self._tell({"tell": "file", "name": REPORT}, report)
        if ENGINE in job["fetch"]:
            path = self._engine_of(report)
            if path:
                self._tell({"tell": "file", "name": ENGINE}, path)
            else:
                self._say("engine   this runtime made none")

    def _engine_of(self, report):
        """The engine's file that the report names, when it is in our own folder; "" without one."""
        engine = files.read_json(report, "The report")["machine"].get("engine")
        path = engine.get("engine") if isinstance(engine, dict) else None
        ours = os.path.join(os.path.realpath(self._cache.path("engines")), "")
        real = os.path.realpath(path) if isinstance(path, str) else ""
        return real if real.startswith(ours) and os.path.isfile(real) else ""


@contextlib.contextmanager
def undisturbed():
    """Signals that would cut wait until the block is through."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, CUTTING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
