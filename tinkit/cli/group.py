"""The group that all commands belong to, and the few things that they share: options, settings, tables, verdicts."""

import os

import click

import tinkit
from tinkit import errors


def _tell_makefile(context, parameter, wanted):
    if wanted and not context.resilient_parsing:
        click.echo(os.path.join(os.path.dirname(os.path.abspath(tinkit.__file__)), "jetson.mk"))
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(tinkit.__version__, prog_name="tinkit")
@click.option(
    "--makefile",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_tell_makefile,
    help="Print the path of jetson.mk, for a product's own Makefile: include $(shell tinkit --makefile)",
)
def cli():
    """Distil a large vision model into a small faithful student, export it, and carry the evidence along.

    \b
    tinkit distill photos/             teacher -> faithful student, no labels needed
    tinkit export --target trt-fp16    student -> a bundle that carries its own exam
    tinkit profile                     the exam and the latency on this machine, and a report

    Exit codes: 0 fine, 1 something to fix, 2 wrong command line, 3 a gate or budget failed, 4 could not judge.
    """


def option(*names, **options):
    """An option that is None unless it was given, so that the settings file can speak."""
    return click.option(*names, default=None, **options)


def only_given(values):
    """Only what was said on the command line."""
    return {name: value for name, value in values.items() if value is not None and value != ()}


def with_file(section, given, kinds, used=None):
    """Flags over `tinkit.toml`; what the file says is printed. used: the keys of the section that count, None for all."""
    from tinkit.settings_file import SETTINGS_FILE, read_section

    values = {name: value for name, value in read_section(section, kinds).items() if used is None or name in used}
    if values:
        say(f"settings from {SETTINGS_FILE}: " + ", ".join(f"{name} = {value}" for name, value in values.items()))
    return {**values, **given}


def say(line):
    click.echo(line, err=True)


def table(header, rows):
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # plain: "tinkit[host]" is no markup
    Console().print(table)


def end(verdict, what):
    click.echo(f"{verdict}: {what}")
    if verdict == "failed":
        click.get_current_context().exit(errors.EXIT_GATE)
