"""Text and plain data of a board, made harmless before they are shown or kept.

Text loses its control characters, escape sequences and direction marks, so that it cannot move a cursor, hide a word or
write to a clipboard. Data is walked with a limit on its depth, and its numbers must be finite. What it says is not
believed for that: tinkit/host/board/received.py checks what it can.
"""

import json
import math
import re
import unicodedata

from tinkit.errors import TinkitError

MAX_DEPTH = 16  # of plain data; a report needs six
MAX_LINE, MAX_TEXT = 2000, 4000  # characters of a line shown, of a text within a report
MAX_NUMBER = 1 << 63
ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, the cursor
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|$)"  # OSC: titles, links, clipboard
    r"|\x1b[ -/]*[0-~]"
)
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # control, direction marks, surrogates, line separators


def clean(text, limit=MAX_LINE):
    """`text` on one line, without what moves a cursor, colours, hides or turns text round; at most `limit` characters."""
    shown = ESCAPES.sub("", str(text)[: 8 * limit])
    shown = "".join(
        " " if c in "\t\r\n" else c for c in shown if c in "\t\r\n" or unicodedata.category(c) not in UNSEEN
    )
    shown = shown.rstrip(" ")
    return shown if len(shown) <= limit else shown[: limit - 4] + " ..."


def plain(value, depth=MAX_DEPTH):
    """`value` (parsed JSON) with every text cleaned. Raises ValueError for what is too deep or no finite number."""
    if depth < 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {clean(key, MAX_TEXT): plain(entry, depth - 1) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry, depth - 1) for entry in value]
    if isinstance(value, str):
        return clean(value, MAX_TEXT)
    if isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) <= MAX_NUMBER):
        raise ValueError("a number that is not finite")
    return value


def parsed(data, what, where):
    """The JSON object in `data` (bytes), cleaned. Raises TinkitError for anything else."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
        if not isinstance(value, dict):
            raise ValueError(f"not an object but {type(value).__name__}")
        return plain(value)
    except (ValueError, RecursionError) as error:
        raise TinkitError(f"The board sent {what} that cannot be read.", where=where, seen=clean(error, 200)) from None


def _no_constant(word):
    raise ValueError(f"{word} is no JSON number")
