"""`tinkit profile`, `tinkit doctor` and `tinkit clocks`: this machine, or a board over ssh."""

import click

import tinkit
from tinkit import errors
from tinkit.cli.group import cli, end, only_given, option, say, table, with_file


def _board_options(command):
    """What every command that reaches a board takes."""
    for add in (
        option("--ssh-config", help="a file for ssh -F  [ssh's own]"),
        option("--python", help="the board's interpreter  [python3]"),
        option(
            "--host", help="USER@BOARD or a name of your ssh config; local: the same way without ssh  [this machine]"
        ),
    ):
        command = add(command)
    return command


@cli.command()
@click.argument("bundle", required=False)
@_board_options
@option("--device", help="a name from `tinkit list devices` or a .toml path  [detected]")
@option("--budget", help="limits such as p95_ms<5,p99.9_ms<9,gpu.p50_ms<3,server.p99_ms<20,offline.per_s>100")
@option("--out", help="the report's folder  [beside the bundle]")
@click.option("--require-target-runtime", is_flag=True, default=None, help="exit 4 rather than rehearse elsewhere")
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    help="single-stream, multi-stream, offline or server:rate=50,duration=10,samples=500; may be repeated",
)
@option("--layers/--no-layers", help="time every layer and hold it against what the machine allows  [layers]")
@option("--backend", type=click.Choice(["tensorrt", "trtexec"]), help="trtexec: have NVIDIA's tool time it as well")
@click.option(
    "--keep", is_flag=True, default=None, help="leave the cache on the board, so that the next run sends nothing"
)
@option("--fetch-engine", help="bring the engine back to this file (it is never loaded here)")
@option("--mode", help="power mode of the board, by name; needs --allow-state-change")
@click.option("--pin-clocks", is_flag=True, default=None, help="jetson_clocks for the run; needs --allow-state-change")
@click.option(
    "--allow-state-change", is_flag=True, default=None, help="let the board be changed, by sudo -n, and put back"
)
@option("--wait", "wait_s", type=float, help="seconds to wait for another measurement on the board  [60]")
@option("--board-root", help="with --host local: read the board's files and tools below this folder")
def profile(bundle, budget, **given):
    """Sit the exam and measure BUNDLE (default: the newest), here or on a board, and write the report."""
    from tinkit.settings_file import PROFILE

    settings = with_file("profile", only_given(given), PROFILE)
    limits = _limits(budget, settings)
    result = tinkit.profile(bundle, budget=limits, say=say, **settings)
    for limit in result.budgets:
        measured = "-" if limit["measured"] is None else f"{limit['measured']:g}"
        click.echo(f"budget   {limit['name']} {measured}, {limit['sign']} {limit['limit']:g}: {limit['verdict']}")
    _write_html(result.path)
    end(result.verdict, result.title)
    unjudged = result.verdict == "not judged" or any(limit["verdict"] == "not judged" for limit in result.budgets)
    if unjudged and not result.rehearsal:
        click.get_current_context().exit(errors.EXIT_NO_VERDICT)


@cli.command()
@_board_options
@option("--board-root", help="with --host local: read the board's files and tools below this folder")
def doctor(**given):
    """What this machine can do, what is missing, and the command that brings it; with --host: the same of a board."""
    if given["host"] is None:
        from tinkit.host import doctor as examination

        _refuse_without_host(only_given(given))
        findings = examination.examine()
    else:
        from tinkit.host.board.doctor import examine_board
        from tinkit.host.board.run import board_hello

        findings = examine_board(board_hello(say=say, **_of_board(given)))
    table(("what", "state", "detail", "to get it"), findings)


@cli.command()
@_board_options
@option("--mode", help="the power mode to set, by name")
@click.option("--restore", is_flag=True, help="put mode and clocks back to what they were")
@click.option("--allow-state-change", is_flag=True, default=False, help="needed: this changes the board, by sudo -n")
@option("--wait", "wait_s", type=float, help="seconds to wait for a measurement on the board  [60]")
@option("--board-root", help="with --host local: read the board's files and tools below this folder")
def clocks(mode, restore, allow_state_change, **given):
    """Pin a Jetson's clocks (jetson_clocks), set its power mode, or put both back. They stay until then."""
    from tinkit.host.board.run import change_state

    if restore and mode is not None:
        raise click.UsageError("--restore puts the mode back to what it was; --mode sets another: give one of them")
    settings = _of_board(given)
    if "host" not in settings:
        raise errors.TinkitError("Whose clocks?", next_step="name a board: --host USER@BOARD, or --host local")
    change = {"restore": True} if restore else {"mode": mode or "", "pin_clocks": True}
    for note in change_state(settings.pop("host"), change, allow_state_change=allow_state_change, say=say, **settings):
        click.echo(f"clocks   {note}")


@cli.command()
@click.argument("run", required=False)
@_board_options
@click.option("--target", "targets", multiple=True, required=True, help="an export target; may be repeated")
@click.option(
    "--mode", "modes", multiple=True, help="a power mode of the board by name; may be repeated  [the present one]"
)
@option("--device", help="a name from `tinkit list devices` or a .toml path  [detected]")
@option("--budget", help="limits for each of them")
@option("--out", help="where the reports go  [the run's folder]")
@click.option(
    "--pin-clocks", is_flag=True, default=None, help="jetson_clocks for every run; needs --allow-state-change"
)
@click.option(
    "--allow-state-change", is_flag=True, default=None, help="let the board be changed, by sudo -n, and put back"
)
@option("--wait", "wait_s", type=float, help="seconds to wait for another measurement on the board  [60]")
@option("--board-root", help="with --host local: read the board's files and tools below this folder")
def matrix(run, targets, modes, budget, **given):
    """Export RUN to several targets, profile each in several power modes of a board, and hold them side by side."""
    from tinkit.settings_file import PROFILE

    of_one = {"mode", "out", "fetch_engine", "require_target_runtime"}
    settings = with_file("profile", only_given(given), PROFILE, used=set(PROFILE) - of_one)
    _refuse_without_host(settings)
    limits = _limits(budget, settings)
    found = tinkit.matrix(run, targets=targets, modes=modes or ("",), budget=limits, say=say, **settings)
    table(("report", "mode", "p50 ms", "p95 ms", "mJ a picture", "verdict"), found.rows())
    if found.page:
        click.echo(f"report   {found.page}")
    click.get_current_context().exit(found.exit_code)


def _limits(budget, settings):
    """The budget of the flag, else of the settings file (taken out of `settings`), checked."""
    from tinkit.budget import check_budget, parse_budget
    from tinkit.settings_file import SETTINGS_FILE

    limits = settings.pop("budget", None)
    if budget is not None:
        return parse_budget(budget)
    check_budget(limits or {}, SETTINGS_FILE)
    return limits


def _of_board(given):
    """What was said on the command line, and what the settings file says about how a board is reached."""
    from tinkit.settings_file import BOARD, PROFILE

    return with_file("profile", only_given(given), PROFILE, used=BOARD)


def _refuse_without_host(settings):
    """As `tinkit.profile` does: what is about a board is not silently left out."""
    foreign = [name for name in settings if name in ("python", "ssh_config", "board_root")]
    if foreign and "host" not in settings:
        raise errors.TinkitError(
            "This is about a board, and none was named.",
            seen=", ".join(foreign),
            next_step="add --host USER@BOARD, or --host local",
        )


def _write_html(path):
    """The page needs the host's parts; a board has report.json all the same."""
    from importlib.util import find_spec

    if find_spec("jinja2") is None:
        click.echo(f"report   {path}")
        click.echo('note     report.html needs pip install "tinkit[host]"')
        return
    click.echo(f"report   {tinkit.report(path).path}")
