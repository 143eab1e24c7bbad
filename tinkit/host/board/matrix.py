"""`tinkit matrix`: one run, several targets, several power modes of one board, and the page that holds them side by side.

Every target is exported once, every mode is set, measured and put back. What fails does not stop the others: a gate, a
budget, a mode that needs a reboot (skipped and told, never rebooted). The cache on the board is kept until the last one.
"""

import os
from dataclasses import dataclass, field

from tinkit import recipes, workspace
from tinkit.errors import EXIT_GATE, EXIT_NO_VERDICT, EXIT_OK, EXIT_USER, CannotJudge, TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED
from tinkit.host.board.remote import check_host
from tinkit.host.run import Run, load_run
from tinkit.results import Report
from tinkit.target import Target


@dataclass
class Matrix:
    """reports in the order measured; skipped: [(target, mode, why)]; page: latency against fidelity, "" without a report."""

    reports: list[Report] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    page: str = ""
    exit_code: int = EXIT_OK

    def rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [
            (
                report.title,
                report.board.get("power_mode") or "-",
                f"{report.latency[0].p50_ms:.3f}" if report.latency else "-",
                f"{report.latency[0].p95_ms:.3f}" if report.latency else "-",
                f"{report.power['energy_mj']:.2f}" if report.power.get("energy_mj") is not None else "-",
                report.verdict,
            )
            for report in self.reports
        ]
        return rows + [(target, mode or "-", "-", "-", "-", why) for target, mode, why in self.skipped]

    def skip(self, target: str, mode: str, why: str, code: int, say) -> None:
        say(f"skipped  {_cell(target, mode)}: {why}")
        self.skipped.append((target, mode, why))
        self.worsen(code)

    def worsen(self, code: int) -> None:
        order = (EXIT_OK, EXIT_NO_VERDICT, EXIT_GATE)
        self.exit_code = max(self.exit_code, code, key=order.index)


def matrix(
    run=None, targets=("onnx-fp32",), modes=("",), host="local", out=None, allow_state_change=False, say=None, **options
) -> Matrix:
    """Export `run` (the newest when None) to each target and profile it on `host` in each power mode ("" leaves the mode).

    options: of `tinkit.profile`. The exit code is that of the worst: 3 over 4 over 0, where 4 is also what a skipped cell
    counts. Raises TinkitError before any work for a host, run, target or permission that is missing, and CannotJudge when
    nothing could be measured.
    """
    import tinkit
    from tinkit.host.report.several import report_several

    say = say or (lambda line: None)
    check_host(host)
    modes = list(dict.fromkeys(modes))
    if any(modes) and not allow_state_change:
        raise TinkitError(
            "The power mode is not changed.",
            seen="changing the board's state is not allowed",
            next_step="add --allow-state-change (it is put back at the end)",
        )
    opened = run if isinstance(run, Run) else load_run(run or workspace.newest_run())
    wanted = [recipes.load_target(target) for target in dict.fromkeys(targets)]
    out = os.path.abspath(out or opened.path)
    found = Matrix()
    bundles = {target.name: _exported(opened, target, modes, found, say) for target in wanted}
    cells = [(target.name, mode) for target in wanted if bundles[target.name] for mode in modes]
    for number, (target, mode) in enumerate(cells, 1):
        say(f"matrix   {_cell(target, mode)}: {number} of {len(cells)}")
        folder = os.path.join(out, "-".join(filter(None, ("report", target, mode))))
        kept = dict(options, keep=options.get("keep") or number < len(cells))
        if allow_state_change:
            kept["allow_state_change"] = True
        try:
            report = tinkit.profile(bundles[target], host=host, mode=mode, out=folder, say=say, **kept)
        except TinkitError as error:
            _refuse_ctrl_c(error)
            found.skip(target, mode, error.what, EXIT_NO_VERDICT, say)
            continue
        found.reports.append(report)
        tinkit.report(report.path)
        found.worsen(_code_of(report))
    if found.reports:
        found.page = str(report_several([report.path for report in found.reports], out=out))
    elif found.exit_code != EXIT_GATE:
        raise CannotJudge("Nothing of the matrix could be measured.", seen="; ".join(why for *_, why in found.skipped))
    return found


def _exported(run: Run, target: Target, modes, found: Matrix, say) -> str:
    """The bundle's path; "" when the target is skipped in all its modes, as its gate failed or nothing here can judge it."""
    import tinkit

    try:
        exported = tinkit.export(run, target=target, say=say)
        why, code = "its host gate failed", EXIT_GATE
    except TinkitError as error:
        _refuse_ctrl_c(error)
        why, code = error.what, EXIT_NO_VERDICT
    else:
        if exported.verdict != FAILED:
            return str(exported.bundle)
    for mode in modes:
        found.skip(target.name, mode, why, code, say)
    return ""


def _refuse_ctrl_c(error: TinkitError) -> None:
    if error.exit_code not in (EXIT_USER, EXIT_GATE, EXIT_NO_VERDICT):
        raise error


def _code_of(report: Report) -> int:
    """As `tinkit profile` ends: a budget that was not judged counts as well."""
    if report.verdict == FAILED:
        return EXIT_GATE
    unjudged = [report.verdict, *(limit["verdict"] for limit in report.budgets)]
    return EXIT_NO_VERDICT if NOT_JUDGED in unjudged and not report.rehearsal else EXIT_OK


def _cell(target: str, mode: str) -> str:
    return f"{target}, {mode}" if mode else target
