"""What `tinkit select` leaves behind: a CSV to write labels into, a folder of links (of the pictures themselves, where they
lie inside tars or tables), and selection.json.

The CSV begins with path,label, so that with its labels filled in it is a file for `--labels`. A folder that holds anything
is never written to: somebody's labels may be in it.
"""

import csv
import io
import os
from datetime import datetime

from tinkit import files, workspace
from tinkit.errors import TinkitError, from_os_error
from tinkit.host.images import Picture, is_row
from tinkit.host.select.result import Chosen, Selection

TABLE, LINKS, RECORD = "selection.csv", "pictures", "selection.json"
COLUMNS = ("path", "label", "rank", "stands_for", "x", "y", "link")
LONGEST = 200  # bytes of a link's name: with the rank in front it is below what any file system takes


def folder_for(out, root) -> str:
    """The absolute folder to write: `out`, or runs/selection-TIME. TinkitError when it holds something, or lies in `root`."""
    path = os.path.abspath(os.fspath(out or os.path.join(workspace.RUNS, f"selection-{datetime.now():%Y%m%d-%H%M%S}")))
    real, pictures = os.path.realpath(path), os.path.realpath(root)
    if real == pictures or real.startswith(os.path.join(pictures, "")):
        raise TinkitError(
            "The selection would lie among the pictures, and be read as pictures the next time.",
            where=path,
            next_step="--out FOLDER outside of " + pictures,
        )
    try:
        taken = os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path))
    except OSError as error:
        raise from_os_error(error, "looking into the folder of the selection") from error
    if taken:
        raise TinkitError("There is something at this place already.", where=path, next_step="another --out")
    return path


def link_name(rank: int, picture: Picture) -> str:
    """A name of its own in one flat folder: the rank, and as much of the file's name as fits, with its ending."""
    stem, ending = os.path.splitext(os.path.basename(picture.name))
    if is_row(picture.name):  # TABLE.parquet#7
        stem, ending = f"{stem}-{ending.partition('#')[2]}", _ending_of(picture.read())
    room = LONGEST - len(os.fsencode(ending))
    return f"{rank:05d}-" + os.fsdecode(os.fsencode(stem)[:room]) + ending


def _ending_of(data) -> str:
    """The usual ending of these encoded bytes; "" when they are no picture any more."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            return {"JPEG": ".jpg", "TIFF": ".tif"}.get(str(image.format), f".{image.format}".lower())
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return ""


def write_selection(selection: Selection, page: str) -> None:
    """Write everything, the record last. TinkitError for a full disk or a file system without links."""
    links = os.path.join(selection.path, LINKS)
    try:
        os.makedirs(links, exist_ok=True)
        for picture in selection.chosen:
            _put(picture, os.path.join(links, picture.link))
    except OSError as error:
        raise from_os_error(error, "writing the links") from error
    with files.atomic(os.path.join(selection.path, TABLE)) as partial:
        _write_table(partial, selection)
    files.write_text(selection.page, page)
    files.write_json(os.path.join(selection.path, RECORD), selection.to_json())


def _put(chosen: Chosen, path):
    """A link to a file; the bytes themselves of a picture inside a tar or a table."""
    if not chosen.place:
        os.symlink(chosen.path, path)
        return
    with open(path, "xb") as handle:
        handle.write(chosen.picture.read())


def _write_table(path, selection):
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as handle:  # a name may be no UTF-8
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        for one in selection.chosen:
            place = [f"{value:.3f}" for value in one.at] or ["", ""]
            writer.writerow([one.name, one.label, one.rank, one.stands_for, *place, one.link])
