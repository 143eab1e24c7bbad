"""`tinkit matrix`: one run, several targets, several power modes of one board, and the page that holds them side by side.

Every target is exported once, every mode is set, measured and put back. What fails does not stop the others: a gate, a
budget, a mode that needs a reboot (skipped and told, never rebooted). The cache on the board is kept until the last one.
"""

import os
from dataclasses import dataclass, field

from tinkit import workspace
from tinkit.errors import EXIT_GATE, EXIT_NO_VERDICT, EXIT_OK, CannotJudge, TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED
from tinkit.results import Report


@dataclass
class Matrix:
    """reports in the order measured; skipped: [(target, mode, why)]; page: latency against fidelity, "" without a report."""

    reports: list[Report] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    page: str = ""
    exit_code: int = EXIT_OK

    def rows(self) -> list[tuple[str, ...]]:
        rows = [
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


def matrix(run=None, targets=("onnx-fp32",), modes=("",), host="local", out=None, say=None, **options) -> Matrix:
    """Export `run` (the newest when None) to each target and profile it on `host` in each power mode ("" leaves the mode).

    options: of `tinkit.profile`. The exit code is that of the worst: 3 over 4 over 0.
    """
    import tinkit
    from tinkit.host.report_several import report_several

    say = say or (lambda line: None)
    run = run or workspace.newest_run()
    found = Matrix()
    out = os.path.abspath(out or run)
    cells = [(target, mode) for target in targets for mode in modes]
    bundles: dict[str, str] = {}
    for number, (target, mode) in enumerate(cells):
        say(f"matrix   {target}{', ' + mode if mode else ''}: {number + 1} of {len(cells)}")
        try:
            if target not in bundles:
                exported = tinkit.export(run, target=target, say=say)
                bundles[target] = exported.bundle if exported.verdict != FAILED else ""
            if not bundles[target]:
                raise TinkitError(f"The host gate of {target} failed.")
            folder = os.path.join(out, "report-" + "-".join(filter(None, (os.path.basename(target), mode))))
            last = number == len(cells) - 1
            kept = dict(options, keep=options.get("keep") or not last)
            report = tinkit.profile(bundles[target], host=host, mode=mode, out=folder, say=say, **kept)
        except TinkitError as error:
            if error.exit_code not in (1, EXIT_GATE, EXIT_NO_VERDICT):
                raise  # Ctrl-C
            say(f"matrix   {target}{', ' + mode if mode else ''} is skipped: {error.what}")
            found.skipped.append((target, mode, error.what))
            failed_gate = bundles.get(target) == "" or error.exit_code == EXIT_GATE
            _worse(found, EXIT_GATE if failed_gate else EXIT_NO_VERDICT)
            continue
        found.reports.append(report)
        tinkit.report(report.path)
        _worse(found, {FAILED: EXIT_GATE, NOT_JUDGED: EXIT_NO_VERDICT}.get(report.verdict, EXIT_OK))
    if found.reports:
        found.page = str(report_several([report.path for report in found.reports], out=out))
    elif found.skipped:
        raise CannotJudge("Nothing of the matrix could be measured.", seen="; ".join(why for *_, why in found.skipped))
    return found


def _worse(found, code):
    order = (EXIT_OK, EXIT_NO_VERDICT, EXIT_GATE)
    found.exit_code = max(found.exit_code, code, key=order.index)
