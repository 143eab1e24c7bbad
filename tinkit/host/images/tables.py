"""Pictures in Parquet and Arrow tables, as the datasets library of Hugging Face writes them (`to_parquet`, `save_to_disk`).

A column of struct<bytes, path> or of binary holds the encoded files. Read through pyarrow: of a Parquet file one row group
at a time, of which a few stay in memory; Arrow files are memory-mapped, record batch by record batch. A row group is
decompressed whole for one picture, so reading in random order is fast only where groups are small, or from Arrow.
"""

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate

from tinkit.device.pictures import Unreadable
from tinkit.errors import TinkitError
from tinkit.host.images.picture import ARROW, PARQUET
from tinkit.host.images.reading import patiently

ENDINGS = {".parquet": PARQUET, ".arrow": ARROW}
NAMES = ("image", "img", "jpg", "jpeg", "png", "picture", "photo")
KEPT_BYTES = 256 << 20  # of row groups, in each process; one is always kept
OPEN_FILES = 32
IPC_FILE = b"ARROW1"


def is_saved_dataset(folder) -> bool:
    """Whether `save_to_disk` made this folder."""
    has = [
        os.path.isfile(os.path.join(folder, name)) for name in ("dataset_dict.json", "state.json", "dataset_info.json")
    ]
    return has[0] or (has[1] and has[2])


def files_of_saved_dataset(folder) -> list[str]:
    """The Arrow files of a `save_to_disk` folder, relative to it, in the order of its rows; cached selections not among them.

    TinkitError for a folder whose own lists of files cannot be read.
    """
    splits = [""]
    if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
        splits = _listed(os.path.join(folder, "dataset_dict.json"), "splits")
    found = []
    for split in splits:
        for entry in _listed(os.path.join(folder, split, "state.json"), "_data_files"):
            name = entry.get("filename") if isinstance(entry, dict) else None
            if not isinstance(name, str) or os.path.basename(name) != name:
                raise TinkitError(
                    "The data set's list of files is odd.", where=os.path.join(folder, split, "state.json")
                )
            found.append(os.path.join(split, name))
    return found


def _listed(path, key):
    from tinkit import files

    value = patiently(lambda: files.read_json(path, "The data set's state"), path).get(key)
    if not isinstance(value, list):
        raise TinkitError("The data set's state cannot be read.", where=path, seen=f"no list of {key}")
    return value


def rows_in(path) -> int:
    """How many rows the table has. TinkitError without pyarrow or without a column of pictures; OSError; Unreadable."""
    return patiently(lambda: _guarded(_table, path).rows, os.fspath(path), root=os.path.dirname(os.path.abspath(path)))


def read_row(kind: str, path: str, row: int) -> bytes:
    """The encoded bytes of one row. Unreadable for an empty one, or a damaged table; OSError."""
    value = _guarded(lambda path: _table(path).value(row), path)
    if isinstance(value, dict):
        beside = value.get("path")
        value = value.get("bytes")
        if value is None and beside:
            with open(os.path.join(os.path.dirname(path), beside), "rb") as handle:
                return handle.read()
    if value is None:
        raise Unreadable(f"row {row} has no picture")
    return value


def picture_column(schema, where) -> str:
    """The column that holds pictures: one of the usual names, or the only one whose type fits. TinkitError else."""
    fits = [field.name for field in schema if _fits(field.type)]
    named = [name for wanted in NAMES for name in fits if name.lower() == wanted]
    if named or len(fits) == 1:
        return (named or fits)[0]
    raise TinkitError(
        "The table has no column of pictures." if not fits else "The table has several columns that may hold pictures.",
        where=where,
        seen=", ".join(f"{field.name}: {field.type}" for field in schema)[:400],
        next_step="a column of encoded pictures (binary, or struct<bytes, path>) named image",
    )


def _fits(kind) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        children = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
        return "bytes" in children and _fits(children["bytes"])
    return types.is_binary(kind) or types.is_large_binary(kind)


class _Parquet:
    def __init__(self, path):
        import pyarrow
        import pyarrow.parquet

        self.path = path
        self.file = pyarrow.parquet.ParquetFile(pyarrow.OSFile(path))  # reads at a place, so that forks do not disturb
        about = self.file.metadata
        self.column = picture_column(self.file.schema_arrow, path)
        self.starts = [0, *accumulate(about.row_group(group).num_rows for group in range(about.num_row_groups))]
        self.rows = self.starts[-1]

    def value(self, row):
        group = _part_of(self.starts, row)
        return _kept((self.path, group), lambda: self._column(group))[row - self.starts[group]].as_py()

    def _column(self, group):
        return self.file.read_row_group(group, columns=[self.column], use_threads=False).column(0)


class _Arrow:
    """A stream (what the datasets library writes) or a file of the Arrow format, memory-mapped."""

    def __init__(self, path):
        import pyarrow

        self.path, self.map = path, pyarrow.memory_map(path)
        is_file = self.map.read_at(len(IPC_FILE), 0) == IPC_FILE if self.map.size() >= len(IPC_FILE) else False
        self.file = pyarrow.ipc.open_file(self.map) if is_file else None
        self.places: list[int] = []
        counts = self._batches_of_file() if self.file else self._batches_of_stream()
        self.column = picture_column(self.schema, path)
        self.starts = [0, *accumulate(counts)]
        self.rows = self.starts[-1]

    def _batches_of_file(self):
        self.schema = self.file.schema
        return [self.file.get_batch(number).num_rows for number in range(self.file.num_record_batches)]

    def _batches_of_stream(self):
        """Rows of each batch; where each begins is kept, so that one is read without those before it."""
        import pyarrow

        self.map.seek(0)
        self.schema = pyarrow.ipc.read_schema(pyarrow.ipc.read_message(self.map))
        counts = []
        while (place := self.map.tell()) < self.map.size():
            try:
                message = pyarrow.ipc.read_message(self.map)
            except EOFError:  # the end mark of a stream
                break
            if message.type == "dictionary":
                raise TinkitError("The Arrow file has a dictionary column, which is not read in a stream.",
                                  where=self.path, next_step="save it as .parquet")  # fmt: skip
            self.places.append(place)
            counts.append(pyarrow.ipc.read_record_batch(message, self.schema).num_rows)
        return counts

    def value(self, row):
        number = _part_of(self.starts, row)
        return _kept((self.path, number), lambda: self._batch(number))[row - self.starts[number]].as_py()

    def _batch(self, number):
        import pyarrow

        if self.file:
            batch = self.file.get_batch(number)
        else:
            self.map.seek(self.places[number])
            batch = pyarrow.ipc.read_record_batch(pyarrow.ipc.read_message(self.map), self.schema)
        return batch.column(self.schema.get_field_index(self.column))


def _part_of(starts, row) -> int:
    """Which row group or batch has this row."""
    if not 0 <= row < starts[-1]:
        raise Unreadable(f"the table has no row {row} any more")
    return bisect_right(starts, row) - 1


_lock = threading.RLock()
_owner = 0  # the process whose open files these are: a fork begins with none
_tables: OrderedDict = OrderedDict()
_columns: OrderedDict = OrderedDict()


def _table(path):
    """The open table, from the few that are kept open; opened anew when the file is another than it was."""
    status = os.stat(path)
    seen = (status.st_ino, status.st_size, status.st_mtime_ns)
    if path in _tables and _tables[path].seen != seen:
        forget(path)
    if path not in _tables:
        _tables[path] = _Parquet(path) if os.path.splitext(path)[1].lower() == ".parquet" else _Arrow(path)
        _tables[path].seen = seen
        while len(_tables) > OPEN_FILES:
            _tables.popitem(last=False)
    _tables.move_to_end(path)
    return _tables[path]


def _kept(key, make):
    """The column of a row group or batch, from the few in memory."""
    if key not in _columns:
        _columns[key] = make()
        while len(_columns) > 1 and sum(column.nbytes for column in _columns.values()) > KEPT_BYTES:
            _columns.popitem(last=False)
    _columns.move_to_end(key)
    return _columns[key]


def _guarded(action, path):
    """`action(path)` alone in this process; pyarrow's own errors become Unreadable."""
    global _owner
    try:
        import pyarrow
    except ImportError:
        raise TinkitError(
            "Reading Parquet and Arrow needs pyarrow.", where=path, next_step='pip install "tinkit[data]"'
        ) from None
    with _lock:
        if _owner != os.getpid():
            _tables.clear()
            _columns.clear()
            _owner = os.getpid()
        try:
            return action(path)
        except (pyarrow.ArrowException, EOFError) as error:
            forget(path)
            raise Unreadable(f"a damaged table: {str(error)[:200]}") from None
        except OSError as error:
            forget(path)
            if error.errno is None:  # pyarrow's own, about a file that ends too early
                raise Unreadable(f"a damaged table: {str(error)[:200]}") from None
            raise


def forget(path) -> None:
    """Close what is open of this table: it has changed, or its share went away."""
    _tables.pop(path, None)
    for key in [key for key in _columns if key[0] == path]:
        del _columns[key]
