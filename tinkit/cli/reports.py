"""`tinkit report`, `tinkit compare` and `tinkit list`: what has been measured, and what there is."""

import click

import tinkit
from tinkit import errors
from tinkit.cli.group import cli, end, option, table


@cli.command()
@click.argument("sources", nargs=-1)
@option("--out", help="where the page goes  [beside report.json; of several: report-of-N.html here]")
def report(sources, out):
    """Write report.html for a report's folder or report.json (default: the newest); of several, latency against fidelity."""
    if len(sources) > 1:
        from tinkit.host.report_several import report_several

        click.echo(f"report   {report_several(sources, out=out)}")
        return
    click.echo(f"report   {tinkit.report(sources[0] if sources else None, out=out).path}")


@cli.command()
@click.argument("before")
@click.argument("after")
@option("--fail-if", help="changes that fail, such as p95_ms>+5%,embedding.cosine_min<-0.001")
@option(
    "--allow",
    multiple=True,
    help="compare in spite of a difference in: protocol, device, playback, mode, clocks, target, threads; repeat",
)
@option("--junit", help="write JUnit XML to this file")
@option("--json", "json_path", help="write the comparison as JSON to this file")
def compare(before, after, fail_if, allow, junit, json_path):
    """Say what changed from report BEFORE to report AFTER, and whether it is more than noise."""
    result = tinkit.compare(before, after, fail_if=fail_if or "", allow=allow or ())
    table(("what", "before", "after", "change", "noise", "verdict"), result.rows())
    for note in result.notes:
        click.echo(f"note     {note}")
    result.write(junit, json_path)
    end(result.verdict, result.title)
    if result.verdict == "not judged":
        click.get_current_context().exit(errors.EXIT_NO_VERDICT)


@cli.command(name="list")
@click.argument("what", type=click.Choice(["methods", "targets", "devices", "teachers", "students"]))
def list_(what):
    """What there is: methods, targets, devices, teachers or students."""
    from tinkit.host import listing

    table(*listing.rows(what))
