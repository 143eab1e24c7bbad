"""`tinkit profile`: on this machine (tinkit/device/profile.py), or on a board over ssh (tinkit/host/board/run.py)."""

from tinkit import workspace
from tinkit.bundle import Bundle, open_bundle
from tinkit.device.profile import profile as profile_here
from tinkit.device.turn import held
from tinkit.errors import TinkitError
from tinkit.results import Report

WAIT_S = 60.0  # for another measurement on this machine to end
ONLY_WITH_A_HOST = (
    "keep",
    "fetch_engine",
    "mode",
    "pin_clocks",
    "allow_state_change",
    "python",
    "ssh_config",
    "board_root",
)


def profile(bundle=None, device=None, out=None, budget=None, host=None, **options) -> Report:
    """Examine and time a bundle; write `report.json` and return the `Report` (`path` is that file).

    host: None for this machine; "USER@BOARD" or a name of the ssh configuration; "local" for the way of a board without ssh.
    wait_s: for another measurement on the same machine to end. The other options are those of
    `tinkit.device.profile.profile` and, with a host, of `tinkit.host.board.run.profile_on`. Raises as they do.
    """
    if host is None:
        foreign = [name for name in ONLY_WITH_A_HOST if options.pop(name, None)]
        if foreign:
            raise TinkitError(
                "This is about a board, and none was named.",
                seen=", ".join(foreign),
                next_step="add --host USER@BOARD, or --host local",
            )
        say = options.get("say") or (lambda line: None)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle or workspace.newest_bundle())
        say(f"bundle   {opened.path}")
        with held(options.pop("wait_s", WAIT_S), say):
            report = profile_here(opened, device=device, out=out, budget=budget, **options)
        say(f"verdict  {report.verdict}; {report.path}")
        return report
    from tinkit.host.board.run import profile_on

    options.pop("require_target_runtime", None)  # always, on a board
    return profile_on(host, bundle, device=device, out=out, budget=budget, **options)
