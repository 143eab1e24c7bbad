"""Where pictures come from, chosen by what `images` is; every source becomes a catalogue of candidates, nothing decoded.

A folder of picture files; a .tar, or a folder or pattern of them (the layout of WebDataset: the pictures among a sample's
members count); a text list or a CSV; Parquet and Arrow tables, a folder of them, or a data set saved by `save_to_disk`.
"""

import os
import re
from array import array
from dataclasses import dataclass

import numpy as np

from tinkit.device.pictures import Unreadable
from tinkit.errors import TinkitError, from_os_error
from tinkit.host.images import tables, tar
from tinkit.host.images.catalogue import ADDRESS_BYTES, Catalogue, Holder, catalogue_of
from tinkit.host.images.folder import COMPRESSED, TAR_ENDING, Contents, look_into
from tinkit.host.images.lists import names_in_csv, names_in_text
from tinkit.host.images.picture import TAR, Picture
from tinkit.host.images.shards import MAGIC, ending_of, refuse_compressed, shards_of

LISTS = {".txt": names_in_text, ".csv": names_in_csv}
ROW = re.compile(r"(?P<table>.*\.(?:parquet|arrow))#(?P<row>\d+)", re.IGNORECASE | re.DOTALL)
KINDS = "a folder of pictures, a .tar or a pattern of them, a .txt or .csv list, or .parquet and .arrow tables"


@dataclass(frozen=True)
class Listing:
    """Candidates, nothing of them opened. pictures: a catalogue whose addresses are zero.

    source: `images`, absolute. others: counts files that are no pictures by their name. lost: (name, reason) of what could
    not be listed: a folder without permission, the rest of a tar that was cut off.
    """

    source: str
    pictures: Catalogue
    others: int
    lost: tuple[tuple[str, str], ...] = ()


def list_pictures(images, stop=None) -> Listing:
    """All candidates of a source: names and places. InterruptedError once `stop()` is true.

    In order of name (a folder), of the list, or as they lie in the tars and tables, these in order of name. TinkitError for
    what is no source, for a shard that is missing, and where there is no candidate.
    """
    source = require_images(images)
    base = base_of(source)
    try:
        listing = _list(source, base, stop)
    except InterruptedError:
        raise
    except OSError as error:
        raise from_os_error(error, "listing the pictures") from error
    if not len(listing.pictures):
        raise _no_picture(listing)
    return listing


def require_images(images) -> str:
    """The absolute path (or pattern) of a source of pictures that is there; TinkitError for anything else. Lists nothing."""
    source = os.path.abspath(os.fspath(images))
    if os.path.isdir(source):
        return source
    ending = ending_of(source)
    if os.path.exists(source):
        if ending in LISTS or ending == TAR_ENDING or ending in tables.ENDINGS:
            return source
        if source.lower().endswith(COMPRESSED):
            raise refuse_compressed(source)
        raise TinkitError("The pictures must be a folder, this is a file.", where=source, next_step="name " + KINDS)
    if MAGIC.search(source):
        shards_of(source)
        return source
    raise TinkitError("The folder is missing.", where=source, next_step="name " + KINDS)


def is_there(images) -> bool:
    """Whether `require_images` would take it."""
    try:
        require_images(images)
    except TinkitError:
        return False
    return True


def base_of(source) -> str:
    """The folder that names of this source's pictures are relative to."""
    source = os.path.abspath(os.fspath(source))
    is_file = ending_of(source) in (*LISTS, TAR_ENDING, *tables.ENDINGS)
    if os.path.isdir(source) or not (is_file or MAGIC.search(source)):
        return source
    folder = os.path.dirname(source)
    while not os.path.exists(source) and MAGIC.search(folder):
        folder = os.path.dirname(folder)
    return folder


def class_folder(name) -> str:
    """The folder that a picture lies in, by its name; "" at the top, of a tar's top, and of a table's row."""
    if is_row(name):
        return ""
    folder = os.path.basename(os.path.dirname(name))
    return "" if folder.lower().endswith(TAR_ENDING) else folder


def is_row(name) -> bool:
    """Whether this is the name of a table's row, as in train.parquet#7."""
    return ROW.fullmatch(name) is not None


def find_picture(source, name) -> Picture | None:
    """The picture of this name, as it can be read now, with an empty address; None where it is not. OSError, TinkitError."""
    base = base_of(source)
    path = os.path.join(base, name)
    if os.path.isfile(path):
        return Picture(path, name, "")
    if row := ROW.fullmatch(path):
        table = row["table"]
        return Picture(path, name, "", f"{tables.ENDINGS[ending_of(table)]}:{row['row']}:{table}")
    for cut in (match.end() - 1 for match in re.finditer(r"\.tar/", path, re.IGNORECASE)):
        if os.path.isfile(path[:cut]):
            place = tar.place_of(path[:cut], os.fsencode(path[cut + 1 :]))
            return place and Picture(path, name, "", f"{TAR}:{place[0]}:{place[1]}:{path[:cut]}")
    return None


def _list(source, base, stop) -> Listing:
    if not os.path.isdir(source):
        if (ending := ending_of(source)) in LISTS and os.path.exists(source):
            return Listing(source, catalogue_of(base, LISTS[ending](source)), 0)
        shards = [source] if os.path.exists(source) else shards_of(source)
        return _of_shards(source, base, [os.path.relpath(shard, base) for shard in shards], Contents(), stop)
    if tables.is_saved_dataset(source):
        return _of_shards(source, base, tables.files_of_saved_dataset(source), Contents(), stop)
    found = look_into(source, stop)
    if found.pictures or not (found.tars or found.tables or found.compressed):
        others = found.others + len(found.tars) + len(found.tables) + len(found.compressed)
        names = sorted(found.pictures + found.unnamed)
        return Listing(source, catalogue_of(base, names), others, tuple(found.lost))
    if found.tars and found.tables:
        raise TinkitError("The folder holds tars and tables of pictures: which?", where=source,
                          seen=f"{found.tars[0]}, {found.tables[0]}", next_step="name one of them, or a pattern")  # fmt: skip
    if not found.tars and not found.tables:
        raise refuse_compressed(os.path.join(source, found.compressed[0]))
    found.others += len(found.unnamed)
    return _of_shards(source, base, found.tars or _without_cached_selections(found.tables), found, stop)


def _of_shards(source, base, names, found: Contents, stop) -> Listing:
    """The pictures inside of tars or tables with these names relative to `base`; one that cannot be read is lost alone."""
    lost, others = list(found.lost), found.others + len(found.compressed)
    holders, indices = [], []
    for name in names:
        if stop and stop():
            raise InterruptedError
        kind = tables.ENDINGS.get(ending_of(name), TAR)
        try:
            index = _look_at(kind, os.path.join(base, name), stop)
        except InterruptedError:
            raise
        except (Unreadable, OSError) as error:
            lost.append((name, str(error)))
            continue
        others += index.others
        lost += [(os.path.join(name, inside) if inside else name, reason) for inside, reason in index.lost]
        holders.append(Holder(kind, name))
        indices.append(index)
    holder_N = np.repeat(np.arange(len(indices), dtype=np.int32), [len(index) for index in indices])
    starts = np.cumsum([0, *(len(index.names) for index in indices)])
    catalogue = Catalogue(
        base,
        _joined([np.frombuffer(bytes(index.names), np.uint8) for index in indices], np.uint8),
        _joined([np.array(index.ends, np.int64) + start for index, start in zip(indices, starts)]),
        np.zeros((len(holder_N), ADDRESS_BYTES), np.uint8),
        holders,
        holder_N,
        _joined([np.array(index.offsets, np.int64) for index in indices]),
        _joined([np.array(index.sizes, np.int64) for index in indices]),
    )
    return Listing(source, catalogue, others, tuple(lost))


def _look_at(kind, path, stop) -> tar.TarIndex:
    """What is in a tar; the rows of a table are members without a name, at the offset of their number."""
    if kind == TAR:
        return tar.index_of(path, stop)
    zeros = array("q", bytes(8 * (rows := tables.rows_in(path))))
    return tar.TarIndex(ends=zeros, offsets=array("q", range(rows)), sizes=zeros)


def _joined(parts, dtype=np.int64) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _without_cached_selections(names) -> list[str]:
    """Not cache-0123.arrow: what the datasets library keeps of a map or filter beside a data set."""
    return [name for name in names if not os.path.basename(name).startswith("cache-")] or names


def _no_picture(listing: Listing):
    seen = "; ".join(f"{name}: {reason}" for name, reason in listing.lost[:3])
    return TinkitError(
        "There is no usable picture in the folder." if os.path.isdir(listing.source) else "There is no usable picture.",
        where=listing.source,
        seen=seen or f"0 unreadable, {listing.others} files that are no pictures",
        next_step="give " + KINDS,
    )
