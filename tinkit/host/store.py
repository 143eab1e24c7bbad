"""The feature store: what the teacher says about every view, computed once, written once, memory-mapped ever after.

A folder named by the hash of everything that made it (`identity.json`); one raw file per array with a row for each view
of each picture (row = picture * K + view); `chunks.jsonl` lists the finished chunks with the sha256 of their rows. A
chunk counts only once its line is on disk, so a kill at any moment costs one chunk; opening checks every chunk, so a
flipped byte is refused. Rows are written with plain writes, never through the map: a full disk is an error, not a signal.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader

from tinkit import files
from tinkit.errors import TinkitError, from_os_error
from tinkit.host.features import Features
from tinkit.host.teacher import Teacher
from tinkit.host.views import AllViews, collate, refuse_broken

SCHEMA = "tinkit-store-1"
IDENTITY, CHUNKS = "identity.json", "chunks.jsonl"
CHUNK_ROWS = 512


@dataclass(frozen=True)
class FeatureStore:
    """A finished store, opened for reading. Arrays are memory maps of (N * K, ...)."""

    path: str
    views: int
    arrays: dict[str, np.ndarray]
    grid: tuple[int, int] | None

    def features(self, pictures_B, views_B) -> Features:
        """float32 `Features` of the given picture indices and view numbers."""
        rows = np.asarray(pictures_B) * self.views + np.asarray(views_B)
        taken = {name: torch.from_numpy(array[rows].astype(np.float32)) for name, array in self.arrays.items()}
        return Features(taken["global"], taken.get("local"), self.grid)

    def global_rows(self, view=0) -> np.ndarray:
        """The global features of one view of all pictures, (N, D) in the stored dtype."""
        return self.arrays["global"][view :: self.views]


def identity_of(teacher: Teacher, views: AllViews, local: bool, dtype: str) -> dict:
    """Everything that shapes the stored numbers. Another identity is another store."""
    import PIL

    listing = hashlib.sha256("\n".join(picture.content for picture in views.pictures).encode()).hexdigest()
    return {
        "schema": SCHEMA,
        "teacher": teacher.identity,
        "views": {"policy": views.policy.to_json(), "numbers": list(views.numbers), "crop_pct": views.crop_pct},
        "pictures": {"count": len(views.pictures), "sha256": listing},
        "decoder": f"Pillow {PIL.__version__}",
        "local": local,
        "dtype": dtype,
    }


def open_or_build(
    root,
    teacher: Teacher,
    views: AllViews,
    local=True,
    dtype="float16",
    workers=0,
    batch=64,
    tick: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> FeatureStore:
    """The store for this teacher and these views below `root`: opened when finished, else continued or begun.

    `tick(n)` is told of n more pictures done; when `stop()` turns true the work ends at the next batch with
    InterruptedError, finished chunks kept. Raises TinkitError for damage, a full disk, or a picture gone meanwhile.
    """
    identity = identity_of(teacher, views, local, dtype)
    path = os.path.join(root, files.sha256_of_json(identity)[:16])
    with files.folder_lock(path, "the feature store", wait=True):
        record = os.path.join(path, IDENTITY)
        if not os.path.exists(record):
            files.write_json(record, {"identity": identity, "layout": None})
        layout = _read_identity(record, identity)
        layout = _fill(path, record, identity, layout, teacher, views, local, dtype, workers, batch, tick, say, stop)
    return _open(path, layout, len(views.numbers))


def _read_identity(record, identity):
    value = files.read_json(record, "The store's identity")
    if value.get("identity") != identity:
        raise TinkitError("The store in this folder belongs to something else.", where=record, next_step="remove it")
    return value["layout"]


def _fill(path, record, identity, layout, teacher, views, local, dtype, workers, batch, tick, say, stop):
    done = _finished_chunks(path)
    per_chunk = max(1, CHUNK_ROWS // len(views.numbers))  # pictures
    chunks = -(-len(views.pictures) // per_chunk)
    if tick:
        tick(min(len(done) * per_chunk, len(views.pictures)))
    if len(done) == chunks:
        return layout
    start = len(done) * per_chunk
    rest = range(start, len(views.pictures))
    loader = DataLoader(
        views,
        batch_size=max(1, batch // len(views.numbers)),
        sampler=rest,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=ignore_interrupt,
    )
    pending: dict[str, list[np.ndarray]] = {}
    chunk, count = len(done), 0
    try:
        for found, pictures in _compute(loader, teacher, local, dtype, tick, stop):
            if layout is None:
                layout = _layout(found)
                _say_size(say, path, layout, len(views.pictures) * len(views.numbers))
                files.write_json(record, {"identity": identity, "layout": layout})
            for name in layout["arrays"]:
                pending.setdefault(name, []).append(found[name])
            count += pictures
            while count >= per_chunk or (count and chunk == chunks - 1 and start + count == len(views.pictures)):
                rows = min(count, per_chunk) * len(views.numbers)
                pending = _write_chunk(path, layout, chunk, pending, rows, per_chunk * len(views.numbers))
                taken = min(count, per_chunk)
                chunk, count, start = chunk + 1, count - taken, start + taken
    except OSError as error:
        if isinstance(error, InterruptedError):
            raise
        raise from_os_error(error, "writing the feature store") from error
    return layout


def _compute(loader, teacher, local, dtype, tick, stop) -> Iterator[tuple[dict, int]]:
    for batch in loader:
        pixels_PKCHW = refuse_broken(batch)
        features = teacher.features(pixels_PKCHW.flatten(0, 1))
        with np.errstate(over="ignore"):  # judged below
            found = {"global": features.global_BD.cpu().numpy().astype(dtype)}
            if local and features.local_BLD is not None:
                found["local"] = features.local_BLD.cpu().numpy().astype(dtype)
        for name, array in found.items():
            if not np.isfinite(array).all():
                raise TinkitError(
                    f"The teacher's {name} features do not fit {dtype}, or are not finite.",
                    seen="NaN or infinite values",
                    next_step="--store-dtype float32, or check the teacher's weights",
                )
        yield dict(found, grid=features.grid), len(pixels_PKCHW)
        if tick:
            tick(len(pixels_PKCHW))
        if stop and stop():
            raise InterruptedError


def _layout(found):
    arrays = {name: {"shape": list(a.shape[1:]), "dtype": str(a.dtype)} for name, a in found.items() if name != "grid"}
    return {"arrays": arrays, "grid": found["grid"]}


def _say_size(say, path, layout, rows):
    row = sum(int(np.prod(a["shape"])) * np.dtype(a["dtype"]).itemsize for a in layout["arrays"].values())
    if say:
        say(f"feature store: {rows} rows of {row} bytes, {rows * row / 1e6:.0f} MB in {path}")


def _write_chunk(path, layout, chunk, pending, rows, rows_per_chunk):
    """Append one chunk to every array and then its line to the list; what is left over stays pending."""
    left, hashes = {}, {}
    for name, parts in pending.items():
        joined = np.concatenate(parts)
        data = joined[:rows].tobytes()
        left[name] = [joined[rows:]]
        hashes[name] = hashlib.sha256(data).hexdigest()
        row = len(data) // rows
        array_path = os.path.join(path, name + ".bin")
        with open(array_path, "r+b" if os.path.exists(array_path) else "w+b") as handle:
            handle.truncate(chunk * rows_per_chunk * row)  # what a killed process left half-written
            handle.seek(0, os.SEEK_END)
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
    with open(os.path.join(path, CHUNKS), "a", encoding="utf-8") as handle:
        handle.write(json.dumps({"chunk": chunk, "rows": rows, "sha256": hashes}) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    return left


def _finished_chunks(path) -> list[dict]:
    """The lines of the list, in order; a line that a kill cut short is dropped from the file too."""
    list_path = os.path.join(path, CHUNKS)
    if not os.path.exists(list_path):
        return []
    with open(list_path, encoding="utf-8") as handle:
        text = handle.read()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        files.write_text(list_path, whole)
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise _damaged(list_path, str(error)) from None
    if any(line.get("chunk") != number for number, line in enumerate(lines)):
        raise _damaged(list_path, "chunks out of order")
    return lines


def _open(path, layout, views) -> FeatureStore:
    lines = _finished_chunks(path)
    rows = sum(line["rows"] for line in lines)
    arrays: dict[str, np.ndarray] = {}
    for name, spec in layout["arrays"].items():
        array_path = os.path.join(path, name + ".bin")
        width = int(np.prod(spec["shape"])) * np.dtype(spec["dtype"]).itemsize
        try:
            if os.path.getsize(array_path) < rows * width:
                raise _damaged(array_path, f"{os.path.getsize(array_path)} bytes, expected {rows * width}")
            _check_hashes(array_path, name, lines, width)
        except FileNotFoundError:
            raise _damaged(array_path, "missing") from None
        arrays[name] = np.memmap(array_path, spec["dtype"], "r", shape=(rows, *spec["shape"]))
    return FeatureStore(path, views, arrays, None if layout["grid"] is None else tuple(layout["grid"]))


def _check_hashes(array_path, name, lines, width):
    with open(array_path, "rb") as handle:
        for line in lines:
            seen = hashlib.sha256(handle.read(line["rows"] * width)).hexdigest()
            if seen != line["sha256"][name]:
                raise _damaged(array_path, f"chunk {line['chunk']} has another hash than when it was written")


def _damaged(path, seen):
    return TinkitError(
        "The feature store is damaged.",
        where=path,
        seen=seen,
        next_step=f"remove {os.path.dirname(path)} and run again: it is computed anew",
    )


def ignore_interrupt(_worker):
    """Ctrl-C belongs to the main process: it stops at a batch and saves; workers just finish."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
