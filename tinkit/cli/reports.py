"""`tinkit report`, `tinkit compare` and `tinkit list`: what has been measured, and what there is."""

import os

import click

import tinkit
from tinkit import errors
from tinkit.cli.group import cli, end, option, table


@cli.command()
@click.argument("sources", nargs=-1)
@option("--out", help="where the page goes  [beside the JSON; of several: report-of-N.html here]")
@option("--evaluation", help="evaluation.json to show in a report  [the one of the same model in the run's folder]")
@click.option("--card", is_flag=True, help="write MODEL_CARD.md and bom.cdx.json (CycloneDX) too, of one source")
@option("--licence", help="of the model, for the card: Apache-2.0, ...  [unknown]")
@option("--data-licence", help="of the pictures, for the card  [unknown]")
def report(sources, out, evaluation, card, licence, data_licence):
    """Write the page of a report or an evaluation, by folder or JSON (default: the newest report); of several reports, latency
    against fidelity. With --card, the one source may also be a run or a bundle: then only the card is written."""
    if (licence or data_licence) and not card:
        raise click.UsageError("--licence and --data-licence are for the card: add --card")
    if len(sources) > 1:
        if card or evaluation:
            raise click.UsageError("--card and --evaluation are of one source")
        from tinkit.host.report.several import report_several

        click.echo(f"report   {report_several(sources, out=out)}")
        return
    source = sources[0] if sources else None
    if card:
        _write_card(source, out, evaluation, licence, data_licence)
        out = os.path.dirname(out) or "." if out and out.endswith(".md") else out  # a card's name is not the page's
    if _is_evaluation(source):
        from tinkit.host.report.evaluation import evaluation_page

        click.echo(f"report   {evaluation_page(source, out)}")
    elif not (card and _is_run_or_bundle(source)):
        click.echo(f"report   {tinkit.report(source, out=out, evaluation=evaluation).path}")


def _is_evaluation(source):
    if source is None:
        return False
    in_folder = os.path.isfile(os.path.join(source, "evaluation.json"))
    return os.path.basename(source) == "evaluation.json" or (
        in_folder and not os.path.exists(os.path.join(source, "report.json"))
    )


def _is_run_or_bundle(source):
    from tinkit.bundle import MANIFEST
    from tinkit.workspace import RUN_RECORD

    return source is not None and any(os.path.isfile(os.path.join(source, name)) for name in (MANIFEST, RUN_RECORD))


def _write_card(source, out, evaluation, licence, data_licence):
    from tinkit.host.report.card import card

    place = os.path.dirname(out) or "." if out and out.endswith(".html") else out  # a page's name is not the card's
    found = card(source, out=place, licence=licence, data_licence=data_licence, evaluation=evaluation)
    click.echo(f"card     {found.card}")
    click.echo(f"bill     {found.bill}")
    for sentence in found.unknown:
        click.echo(f"ask      {sentence}")


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
