"""`tinkit profile --host`: a bundle on a board, told in the order of the conversation.

Hello -> the device profile that fits -> the files that the board lacks, by hash -> the job -> its progress -> report.json
(and the engine where it was asked for) -> goodbye. The report is written here only when it is whole and checked
(tinkit/host/board/received.py). tinkit/host/board/remote.py is the connection, tinkit/device/agent.py the other side.
"""

import contextlib
import errno
import os
from dataclasses import replace

from tinkit import files, recipes, workspace
from tinkit.budget import check_budget
from tinkit.bundle import MANIFEST, Bundle, open_bundle
from tinkit.device.profile import default_out
from tinkit.device.scenarios import parse_scenario
from tinkit.device.steps import Steps
from tinkit.errors import CannotJudge, TinkitError, from_os_error
from tinkit.host.board import received
from tinkit.host.board.foreign import clean
from tinkit.host.board.remote import PYTHON
from tinkit.host.board.talk import answer, ask_hello, conversation
from tinkit.results import Report

REPORT, ENGINE = "report.json", "engine"
WAIT_S = 60  # for another measurement on the same board


def profile_on(
    host,
    bundle=None,
    device=None,
    out=None,
    budget=None,
    keep=False,
    fetch_engine=None,
    python=PYTHON,
    ssh_config=None,
    board_root=None,
    mode="",
    pin_clocks=False,
    allow_state_change=False,
    wait_s=WAIT_S,
    say=None,
    **options,
) -> Report:
    """Examine and time a bundle on the board `host`; write the checked report.json into `out` and return the `Report`.

    bundle, device, out and budget are those of `tinkit.profile`; device: matched by what the board tells when None. keep:
    leave the board's cache for the next run. fetch_engine: a path to write the built engine to; it is never loaded here.
    mode, pin_clocks: the power mode's name and pinned clocks during the run, only with allow_state_change. wait_s: for
    another measurement on that board to end. options: plain keyword arguments of tinkit.device.profile.profile. python,
    ssh_config, board_root: see tinkit.host.board.remote.connect.
    Raises TinkitError for every failure, with no report written (but where only the engine could not be put in its place);
    Interrupted on Ctrl-C.
    """
    say, budget = say or (lambda line: None), dict(budget or {})
    check_budget(budget, "budget")
    chosen = recipes.load_device(device) if isinstance(device, (str, os.PathLike)) else device
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle or workspace.newest_bundle())
    say(f"bundle   {opened.path}")
    for scenario in options.get("scenarios") or ():
        parse_scenario(scenario)
    _check_folder(out or os.path.dirname(os.path.abspath(opened.path)))
    with _engine_file(fetch_engine, say) as engine:
        steps = Steps()
        there = {"python": python, "ssh_config": ssh_config, "board_root": board_root}
        with conversation(host, steps, say, keep, **there) as connection:
            hello = ask_hello(connection, steps, say)
            chosen = chosen or matched(hello, opened.target, options)
            chosen.refuse_unsupported()
            say(f"device   {chosen.name}")
            sent = _send_missing(connection, steps, hello, opened, say)
            job = {
                "bundle": {"name": opened.name, "files": {name: sha for name, (_, sha) in _files(opened).items()}},
                "device": chosen.to_json(),
                "options": {"budget": budget, **options},
                "mode": mode,
                "pin_clocks": pin_clocks,
                "allow_state_change": allow_state_change,
                "fetch": [ENGINE] if engine else [],
                "wait_s": wait_s,
            }
            data = _run_job(connection, steps, job, engine, say)
            path = os.path.join(os.fspath(out or default_out(opened, chosen)), REPORT)
            changes = {name: options[name] for name in ("warmup_s", "min_seconds") if options.get(name) is not None}
            report = received.checked_report(data, host, opened, replace(chosen, **changes), budget, path, board_root)
        sent.update(sent_bytes=connection.sent_bytes, received_bytes=connection.received_bytes)
        measured = received.steps_of({"steps": report.steps})
        report = replace(report, steps={**measured, **steps.seconds}, transfer=sent)
        files.write_json(path, report.to_json())
        say(f"verdict  {report.verdict}; {path}")
    return report


def board_hello(host, python=PYTHON, ssh_config=None, board_root=None, say=None) -> dict:
    """What the agent on a board tells about it, checked and cleaned; nothing stays there."""
    say, steps = say or (lambda line: None), Steps()
    with conversation(host, steps, say, python=python, ssh_config=ssh_config, board_root=board_root) as connection:
        return _asked_in_passing(connection, steps, say)


def change_state(
    host, change, allow_state_change=False, python=PYTHON, ssh_config=None, board_root=None, wait_s=WAIT_S, say=None
) -> list[str]:
    """Have the board's mode or clocks changed, or put back; returns what was done, in lines.

    change: {"mode": name, "pin_clocks": bool} or {"restore": True}; it stays until it is put back. Raises TinkitError,
    also without allow_state_change.
    """
    say, steps = say or (lambda line: None), Steps()
    notes: list[str] = []
    with conversation(host, steps, say, python=python, ssh_config=ssh_config, board_root=board_root) as connection:
        _asked_in_passing(connection, steps, say)
        wanted = {**change, "allow_state_change": allow_state_change, "wait_s": wait_s}
        connection.ask({"ask": "state", "change": wanted})
        answer(connection, "done", "it changes its state", notes.append)
    return notes


def _asked_in_passing(connection, steps, say):
    """The hello of who measures nothing: what an earlier run left for the next one stays."""
    hello = ask_hello(connection, steps, say)
    connection.keep = bool(hello["have"])
    return hello


def matched(hello, target, options):
    """The `DeviceProfile` for the board that said hello. Raises CannotJudge where it has not the target's runtime."""
    there = sorted(hello["runtimes"])
    if target.runtime not in there and options.get("backend") != "trtexec":
        raise CannotJudge(
            "The board does not have the target's runtime.",
            seen=f"target {target.name} wants {target.runtime}, the board has {', '.join(there) or 'none'}",
            next_step="install it for that Python, or name another Python of the board with --python",
        )
    return recipes.load_device(
        recipes.match_device(hello["board"], target.runtime, str(hello["machine"].get("arch", "")))
    )


def _files(opened):
    """name -> (path, sha256) of what a board needs of a bundle."""
    manifest = os.path.join(opened.path, MANIFEST)
    listed = {name: (os.path.join(opened.path, name), record["sha256"]) for name, record in
              opened.manifest["files"].items()}  # fmt: skip
    return {MANIFEST: (manifest, files.sha256_of_file(manifest)), **listed}


def _send_missing(connection, steps, hello, opened, say):
    """Send the files that the board has not; returns {"files_sent", "files_there"}, the agent itself counted."""
    needed = _files(opened)
    missing = {name: it for name, it in needed.items() if it[1] not in hello["have"]}
    total = sum(os.path.getsize(path) for path, _ in missing.values())
    if total > hello["free_bytes"]:
        raise TinkitError(
            "The bundle does not fit on the board.",
            where=f"{connection.host}: {hello['cache']}",
            seen=f"{total / 1e6:.1f} MB to send, {hello['free_bytes'] / 1e6:.1f} MB free",
            next_step="free some space there",
        )
    with steps.of("copy"):
        for name, (path, sha256) in missing.items():
            connection.ask({"ask": "blob", "sha256": sha256}, path)
            answer(connection, "kept", f"{name} was sent", say)
    say(f"copy     {len(missing)} of {len(needed)} files, {total / 1e6:.1f} MB")
    sent = len(missing) + connection.landed
    return {"files_sent": sent, "files_there": len(needed) + 1 - sent}


def _run_job(connection, steps, job, engine, say):
    """The bytes of report.json; the engine, where asked for, is written to the file `engine`."""
    taken = {}
    with steps.of("run"):
        connection.ask({"ask": "profile", "job": job})
        most = received.MAX_ENGINE_BYTES if engine else received.MAX_REPORT_BYTES
        done = answer(connection, "done", "it measured", say, lambda *file: _take(*file, engine, taken), most)
    steps.seconds.update(received.steps_of(done))
    if REPORT not in taken:
        raise TinkitError("The board finished without a report.", where=connection.host, next_step="run it again")
    return taken[REPORT]


def _take(name, payload, engine, taken):
    """Keep a file that was asked for, once; nothing but its exact name decides where it goes."""
    if name == REPORT and name not in taken:
        taken[name] = payload.read(received.MAX_REPORT_BYTES)
    elif name == ENGINE and engine and name not in taken:
        payload.save(engine)
        taken[name] = True
    else:
        raise TinkitError(
            "The board sent a file that was not asked for.",
            seen=repr(clean(name, 200)),
            next_step="it was not kept; look at the board before it is used again",
        )


def _check_folder(path):
    """Refuse a place where no report.json could be written, before a board works for it."""
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        raise TinkitError(
            "No report can be written there.",
            where=there,
            seen="no right to write" if os.path.isdir(there) else "it is no folder",
            next_step="name another folder with --out",
        )


@contextlib.contextmanager
def _engine_file(path, say):
    """A temporary file beside `path`; it becomes `path` only when everything went well. None without a path.

    Raises TinkitError at once where `path` is a folder or no file can be made beside it.
    """
    if not path:
        yield None
        return
    partial = f"{os.fspath(path)}.{os.getpid()}.partial"
    try:
        if os.path.isdir(path) or not os.path.basename(path):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)  # of a process that died with our number
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # it can be made
        os.unlink(partial)
    except OSError as error:
        raise from_os_error(error, "making the file for the engine") from None
    try:
        yield partial
        if not os.path.lexists(partial):
            say("engine   the board sent none")
            return
        try:
            os.replace(partial, path)
        except OSError as error:
            raise from_os_error(error, "putting the engine in its place; the report is written") from None
        say(f"engine   {path}")
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
