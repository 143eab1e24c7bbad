"""The conversation with an agent: hello, one answer to every ask, goodbye, and what Ctrl-C makes of it.

Every answer is looked at before it is used: the one that was asked for, no bytes that were not, a number of lines that
ends. tinkit/host/board/connection.py carries the frames; tinkit/device/agent.py is the other side.
"""

import contextlib

from tinkit.device.wire import WIRE
from tinkit.errors import Interrupted, TinkitError
from tinkit.host.board import received
from tinkit.host.board.foreign import clean, plain
from tinkit.host.board.remote import connect

HELLO_S = 180  # a cold board imports its runtimes to tell their versions
BYE_S = 60
MAX_LINES = 100_000  # of progress
HELLO_KINDS = {"tinkit": str, "python": str, "numpy": str, "machine": dict, "board": dict, "runtimes": dict,
               "have": list, "cache": str, "free_bytes": int}  # fmt: skip


@contextlib.contextmanager
def conversation(host, steps, say, keep=False, **where):
    """An open connection. In whatever way the block ends, the board is asked to tidy up, or the end of the channel does.

    keep: leave the board's cache; the connection's `keep` may be set otherwise meanwhile. where: python, ssh_config and
    board_root of `remote.connect`. Raises Interrupted for Ctrl-C, when the agent has ended; until then it sets back what
    it changed.
    """
    connection = None
    try:
        say(f"host     {clean(host, 200)}")
        with steps.of("connect"):
            connection = connect(host, say=say, **where)
        connection.keep = keep
        try:
            yield connection
        except TinkitError:
            if connection.in_step:  # the error is what there is to tell, not that a board which is gone says no goodbye
                with contextlib.suppress(TinkitError):
                    goodbye(connection, steps, say)
            raise
        try:
            goodbye(connection, steps, say)
        except TinkitError as error:  # costs nobody the report
            say(f"note     the board did not say goodbye: {error.what} {error.seen or ''}".rstrip())
    except KeyboardInterrupt:
        said = "the board was not reached"
        if connection is not None:
            say("stopping; the board sets back what it changed")
            said = "the agent on the board has ended" if connection.close() else "the agent on the board was cut off"
        raise Interrupted(
            "Stopped.",
            where=host,
            seen=said,
            next_step="run the same command again: what the board has is not sent twice",
        ) from None
    finally:
        if connection is not None:
            connection.close()


def ask_hello(connection, steps, say):
    """The checked hello; what an interrupted run had left there, and is put right now, is told."""
    with steps.of("hello"), connection.within(HELLO_S, "the agent said hello"):
        connection.ask({"ask": "hello"})
        message = answer(connection, "hello", "it said hello", say)
    for note in message["notes"] if isinstance(message.get("notes"), list) else ():
        say(clean(note))
    return checked_hello(message, connection.host)


def checked_hello(message, host):
    """The hello frame, cleaned, with every part that is needed. Raises TinkitError for another wire or a part amiss."""
    if message.get("wire") != WIRE:
        raise TinkitError(
            "The agent speaks another wire than this tinkit.", where=host, seen=f"{message.get('wire')!r}, here {WIRE}"
        )
    try:
        hello = plain(message)
    except ValueError as error:
        raise TinkitError("The agent's hello cannot be read.", where=host, seen=str(error)) from None
    wrong = [key for key, kind in HELLO_KINDS.items() if not isinstance(hello.get(key), kind)]
    if wrong:
        raise TinkitError("The agent's hello lacks a part.", where=host, seen="no usable " + ", ".join(wrong))
    return {"wire": WIRE, **{key: hello[key] for key in HELLO_KINDS}}


def answer(connection, wanted, doing, say, take=None, most=0):
    """The next frame that is no progress, when it is the `wanted` one; lines are shown.

    take(name, payload) gets every file, of at most `most` bytes; without it a file is an error.
    """
    for _ in range(MAX_LINES):
        message, payload = connection.listen(most, doing)
        tell = message.get("tell")
        if tell == "file" and take is not None:
            with connection.still_there(doing):
                take(message.get("name"), payload)
        elif payload.size:
            raise connection.out_of_step("The board sent bytes that were not asked for.", doing, str(payload.size))
        elif tell == "say":
            say(clean(message.get("line", "")))
        elif tell == "error":
            raise received.told_error(message, connection.host)
        elif tell == wanted:
            return message
        else:
            raise connection.out_of_step("The board answers something else than it was asked.", doing, str(message))
    raise connection.out_of_step("The board talks without end.", doing, f"{MAX_LINES} lines")


def goodbye(connection, steps, say):
    """The board tidies up, and what it keeps is told. Raises TinkitError where it does not answer."""
    with steps.of("bye"), connection.within(BYE_S, "it had tidied up"):
        connection.ask({"ask": "bye", "keep": bool(connection.keep)})
        message = answer(connection, "bye", "it tidied up", say)
    left = message.get("left_mb")
    if not message.get("removed") and isinstance(left, (int, float)):
        say(f"kept     {left:.1f} MB stay on the board for the next run")
