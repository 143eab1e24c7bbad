"""`tinkit store`: the teacher's features on disk, listed, held against the teacher, collected and joined."""

import click

from tinkit import errors
from tinkit.cli.group import cli, end, option, say, table

ROOT = "runs/.stores"


@cli.group()
def store():
    """The stores of the teacher's features: what is there, whether it is right, what can go."""


@store.command("ls")
@option("--store", "root", help=f"the folder with the stores  [{ROOT}]")
def list_stores(root):
    """List the stores: teacher, pictures, views, size, when each was used last."""
    from tinkit.host.store.listing import list_stores

    found = list_stores(root or ROOT)
    if not found:
        click.echo(f"no stores in {root or ROOT}")
        return
    table(("store", "teacher", "pictures", "views", "dtype", "size", "state", "used"), [one.row() for one in found])


@store.command()
@click.argument("names", nargs=-1, metavar="[STORE]...")
@option("--store", "root", help=f"the folder with the stores  [{ROOT}]")
@option("--images", help="the pictures: a sample of the rows is computed again and compared")
@option("--teacher-weights", help="the weights file, for a teacher that was given one")
@option("--sample", type=click.IntRange(min=1), help="pictures of the sample  [32]")
@option("--seed", type=click.IntRange(min=0), help="which pictures  [0]")
def verify(names, root, images, teacher_weights, sample, seed):
    """Hold every byte of the STOREs (default: all) against its hash; with --images also against the teacher itself."""
    from tinkit.host.store.verify import verify_stores

    found = verify_stores(root or ROOT, names, images, teacher_weights, sample or 32, seed or 0, say=say)
    for one in found:
        click.echo(f"{one.verdict:<10} {one.name}: {one.reason}")
    bad = [one for one in found if one.verdict == "failed"]
    if bad:
        end("failed", f"{len(bad)} of {len(found)} stores")
    if not any(one.verdict == "passed" for one in found):
        click.get_current_context().exit(errors.EXIT_NO_VERDICT)


@store.command()
@option("--store", "root", help=f"the folder with the stores  [{ROOT}]")
@option("--limit-gb", type=click.FloatRange(min=0), help="keep at most so much; those used longest ago go first")
@option("--unused-days", type=click.FloatRange(min=0), help="remove what was not used for so many days")
@click.option("--yes", is_flag=True, help="remove; without it the command only tells")
def gc(root, limit_gb, unused_days, yes):
    """Tell what can go: damaged stores and those of another tinkit; with a limit also the least used. --yes removes it."""
    from tinkit.host.store.collect import collect
    from tinkit.host.store.size import told_size

    if limit_gb is None and unused_days is None:
        say("neither --limit-gb nor --unused-days: only what no run can use any more")
    limit = None if limit_gb is None else int(limit_gb * 1e9)
    found = collect(root or ROOT, limit, unused_days, remove=yes)
    for one in found:
        click.echo(f"{'removed' if yes else 'would go':<10} {one.name}: {told_size(one.bytes)}, {one.reason}")
    click.echo(f"{told_size(sum(one.bytes for one in found))} in {len(found)} stores")


@store.command()
@click.argument("sources", nargs=-1, required=True, metavar="STORE STORE...")
@click.option("--into", required=True, help="the folder that gets the joined store")
def merge(sources, into):
    """Join STOREs of the same teacher and views: parts of one store made apart, or stores of different pictures."""
    from tinkit.host.store.merge import merge
    from tinkit.host.store.size import told_size

    if len(sources) < 2:
        raise errors.TinkitError(
            "There is nothing to join.", seen=f"{len(sources)} store", next_step="name two or more"
        )
    found = merge(sources, into, say=say)
    state = "" if found.finished else ", not finished"
    click.echo(f"store    {found.path}: {found.pictures} pictures, {told_size(found.bytes)}{state}")
