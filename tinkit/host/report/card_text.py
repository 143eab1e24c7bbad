"""Text for a model card: a stranger's words stay words in Markdown and in the HTML that is made of it."""

import re

from tinkit.host.report.text import NOT_RECORDED, finite, said

MARKUP = re.compile(r"([\\`*_\[\]|~#])")


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def plain(value) -> str:
    """A value as one line of text that Markdown and HTML leave as it is; what is missing is "not recorded"."""
    if isinstance(value, Markdown):
        return value
    text = " ".join(str(said(value)).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKUP.sub(r"\\\1", text)


def code(value) -> Markdown:
    """A name as code, in a table too; what is missing is said in words."""
    text = " ".join(str(said(value)).split()).replace("`", "'").replace("|", "\\|")
    return Markdown(f"`{text}`" if text and said(value) is not NOT_RECORDED else NOT_RECORDED)


def licence_told(told) -> str:
    """An SPDX expression as code, anything else as text."""
    return code(told["name"]) if told["spdx"] else told["name"]


def arrow(hop) -> str:
    return str(hop).replace("->", "→")


def megabytes(count) -> str:
    return f"{count / 1e6:.2f} MB" if finite(count) else NOT_RECORDED
