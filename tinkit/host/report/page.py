"""How a page is made of a template: what is missing is said, everything is escaped, and one script of tinkit's own may run."""

import base64
import functools
import hashlib
import os

import jinja2
from markupsafe import Markup

from tinkit.host.report.precision import percent, signed
from tinkit.host.report.text import NOT_RECORDED, cut, flat, limit_of, plus, said, share, short

SCRIPT = "page_script.js.j2"

HERE = os.path.dirname(os.path.abspath(__file__))


def page_of(template, **contents) -> str:
    """A template of this folder as text; what is missing is said, and everything is escaped.

    `script` is the one script of a page, `script_hash` what its content security policy lets run: nothing else does.
    """
    script, script_hash = page_script()
    page = (
        _environment()
        .get_template(template)
        .render(
            not_recorded=NOT_RECORDED,
            short=short,
            plus=plus,
            share=share,
            script=script,
            script_hash=script_hash,
            **contents,
        )
    )
    return page.encode("utf-8", "replace").decode()  # a file name may hold bytes that are no UTF-8


@functools.cache
def page_script() -> tuple[Markup, str]:
    """(the script, its hash as a content security policy names it)."""
    script = Markup(_environment().get_template(SCRIPT).render())
    return script, "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([HERE, os.path.dirname(HERE)]),  # of this package, and select/sheet.html.j2
        autoescape=True,
        undefined=jinja2.ChainableUndefined,  # what an older manifest lacks is said, by `finalize`
        finalize=said,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        cut=cut,
        short=short,
        flat=flat,
        percent=percent,
        signed=signed,
        plus=plus,
        share=share,
        limit_of=limit_of,
        arrow=arrow,
        breaks=breaks,
        slug=lambda text: str(said(text)).replace(" ", "-"),
    )
    return environment


def breaks(name) -> Markup:
    """A file's name that may be broken behind its folders."""
    return Markup("/<wbr>").join(str(said(name)).split("/"))


def arrow(hop) -> str:
    """A hop's name with an arrow."""
    return str(hop).replace("->", "→")
