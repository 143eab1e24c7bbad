"""Lists of pictures: a text file with a path a line, or a CSV with a column of paths.

Paths are relative to the list's own folder. A path that is listed again is the same picture and counts once, so a CSV may
have several lines for one. What a list names is tried, whatever its ending.
"""

import csv
import os
from collections.abc import Iterable

from tinkit.errors import TinkitError
from tinkit.host.images.reading import patiently

COLUMNS = ("path", "image", "file", "file_name", "filename")
LABEL_COLUMNS = ("label", "class")


def names_in_text(path) -> list[str]:
    """The paths of a text list, relative to its folder; empty lines and lines that start with # are left out."""
    lines = (line.strip() for line in patiently(lambda: _lines(path), os.fspath(path)))
    return _once(os.path.dirname(path), (line for line in lines if line and not line.startswith("#")), path)


def names_in_csv(path) -> list[str]:
    """The paths of a CSV: of the column path, image or file, or of the first."""
    rows = csv_rows(path)
    column, _, has_header = columns_of(rows[0][1] if rows else [])
    if rows and not has_header and _is_unknown_header(path, rows):
        has_header = True
    given = (row[column].strip() for _, row in rows[has_header:] if len(row) > column)
    return _once(os.path.dirname(path), filter(None, given), path)


def csv_rows(path, what="The CSV file") -> list[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not empty. Bytes that are no UTF-8 are kept, as in file names."""
    try:
        lines = patiently(lambda: _lines(path), os.fspath(path))
        reader = csv.reader(lines)
        return [(reader.line_num, row) for row in reader if row]
    except (OSError, csv.Error) as error:
        raise TinkitError(f"{what} cannot be read.", where=path, seen=str(error)) from None


def columns_of(first_row) -> tuple[int, int, bool]:
    """(column of paths, column of labels, whether this row is a header). Without names: 0, 1, False."""
    names = [cell.strip().lower() for cell in first_row]
    paths = [names.index(name) for name in COLUMNS if name in names]
    if not paths:
        return 0, 1, False
    others = [number for number in range(len(names)) if number != paths[0]]
    labels = [names.index(name) for name in LABEL_COLUMNS if name in names]
    return paths[0], (labels or others or [1])[0], True


def name_of(given, base) -> str:
    """A path as a picture's name: relative to `base` where it lies below, else as it is."""
    name = os.path.normpath(given)
    if os.path.isabs(name) and name.startswith(os.path.join(base, "")):
        return os.path.relpath(name, base)
    return name


def _is_unknown_header(path, rows) -> bool:
    first = os.path.join(os.path.dirname(path), rows[0][1][0].strip())
    return len(rows) > 1 and not os.path.splitext(first)[1] and not os.path.lexists(first)


def _lines(path) -> list[str]:
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as handle:
        return list(handle)


def _once(base, given: Iterable[str], path) -> list[str]:
    names = list(dict.fromkeys(name_of(name, base) for name in given))
    if any("\0" in name for name in names):
        raise TinkitError("The list is no text: it has zero bytes.", where=path, next_step="save it as UTF-8")
    return names
