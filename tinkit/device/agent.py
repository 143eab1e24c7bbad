"""The agent: what runs on a board while the host asks it for something, and puts everything back when it ends.

`serve` talks in frames on its standard input and output (wire.py, conversation.py), keeps what it is sent (agent_cache.py),
waits for its turn to measure (turn.py), and has a child do the work (worker.py). A closed standard input, silence, SIGHUP,
SIGTERM or SIGINT cut a run: the child and its children are killed, the board's state is restored, and what was sent stays
for the next run. No word of a library gets between the frames: standard output is standard error from then on.
"""

import argparse
import contextlib
import os
import select
import signal
import sys
import time

import tinkit
from tinkit.device import worker
from tinkit.device.agent_cache import AgentCache
from tinkit.device.conversation import CUTTING, Conversation
from tinkit.device.wire import FrameError, StreamEnded, write_frame
from tinkit.errors import EXIT_OK, EXIT_USER, TinkitError

SILENCE_S = 60.0  # the host is heard of every 10
PIPE_BLOCK = 4096  # a pipe that is ready takes this much without blocking


class Cut(BaseException):
    """A signal ended the run; nothing on the way may take it for an error that it can handle."""


class Channel:
    """The agent's standard input and output as a stream for wire.py that waits no longer than `silence_s`.

    From then on 0 is empty and 1 is standard error, for whatever a library reads or prints.
    """

    def __init__(self, silence_s=SILENCE_S):
        self._in, self._out, self.silence_s, self.heard = os.dup(0), os.dup(1), silence_s, time.monotonic()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        os.close(nothing)

    def fileno(self):
        return self._in

    def read1(self, most):
        """What has come, b"" at the end. Raises StreamEnded after silence."""
        left = max(0.0, self.heard + self.silence_s - time.monotonic())
        if not select.select([self._in], [], [], left)[0]:
            self.check_silence()
        try:
            data = os.read(self._in, most)
        except OSError:  # a connection that was reset has ended
            return b""
        self.heard = time.monotonic()
        return data

    def write(self, data):
        """Some of it. Raises StreamEnded when nobody takes it any more."""
        if not select.select([], [self._out], [], self.silence_s)[1]:
            raise StreamEnded("The host takes nothing any more.", seen="for {:g} s".format(self.silence_s))
        try:
            return os.write(self._out, data[:PIPE_BLOCK])
        except OSError as error:
            raise StreamEnded("The host is gone.", seen=error.strerror) from None

    def flush(self):
        """Nothing is buffered."""

    def check_silence(self):
        if time.monotonic() - self.heard >= self.silence_s:
            raise StreamEnded("The host was silent for {:g} s.".format(self.silence_s))


def serve(root="/", silence_s=SILENCE_S):
    """Talk until the host says bye; returns the exit code. A run that is cut leaves the cache for the next."""
    for number in CUTTING:
        signal.signal(number, _cut)
    channel = Channel(silence_s)
    try:
        with AgentCache() as cache:
            return _talk(Conversation(channel, cache, root), channel, cache)
    except TinkitError as error:
        with contextlib.suppress(FrameError):
            write_frame(channel, worker.error_frame(error))
    except Cut:
        pass
    return EXIT_USER


def _talk(conversation, channel, cache):
    reason, keep = None, True
    try:
        keep = conversation.run()
    except FrameError as error:
        reason = error
    except Cut as error:
        reason = TinkitError("The agent was ended by a signal.", seen=str(error), next_step="run it again: it goes on")
    if reason is not None:
        with contextlib.suppress(FrameError):  # the host may be gone
            write_frame(channel, worker.error_frame(reason))
    removed, left_mb = cache.close(remove=not keep)
    with contextlib.suppress(FrameError):
        write_frame(channel, {"tell": "bye", "removed": removed, "left_mb": left_mb})
    return EXIT_OK if reason is None else EXIT_USER


def _cut(number, frame):
    for each in CUTTING:
        signal.signal(each, signal.SIG_IGN)  # once is enough: tidying up is not cut
    raise Cut(signal.Signals(number).name)


def restore(folder, root="/"):
    """Put the board back from the record in `folder`: what a child does whose parent was killed."""
    from tinkit.device.commands import Commands
    from tinkit.device.state_change import StateChange

    for line in StateChange(Commands(root), folder, allowed=True, root=root).restore():
        sys.stderr.write(line + "\n")
    return EXIT_OK


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["sample"]:
        from tinkit.device import sampler

        return sampler.main(argv[1:])
    parser = argparse.ArgumentParser(prog="tinkit-agent", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version="tinkit-agent " + tinkit.__version__)
    jobs = parser.add_subparsers(dest="job", metavar="serve | work | restore | sample")
    jobs.required = True
    words = {"serve": "talk to a host", "work": "the child that measures", "restore": "put the board back"}
    parsers = {name: jobs.add_parser(name, help=text) for name, text in words.items()}
    for each in parsers.values():
        each.add_argument("--root", default="/", help="where the board's files and tools are looked up")
    parsers["serve"].add_argument(
        "--silence", type=float, default=SILENCE_S, help="seconds until the host counts as gone"
    )
    parsers["work"].add_argument("run", help="the folder of the run")
    parsers["work"].add_argument("--tell", type=int, required=True, help="file descriptor for frames")
    parsers["work"].add_argument("--cache", required=True, help="the agent's folder")
    parsers["restore"].add_argument("folder", help="the folder of the record")
    options = parser.parse_args(argv)
    try:
        if options.job == "serve":
            return serve(options.root, options.silence)
        if options.job == "work":
            return worker.work(options.run, options.tell, options.root, options.cache)
        return restore(options.folder, options.root)
    except TinkitError as error:
        sys.stderr.write("{}\n".format(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
