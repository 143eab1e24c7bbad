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
from tinkit.host.teacher import LOCAL_ONLY, Teacher
from tinkit.host.views import AllViews, collate, refuse_broken

SCHEMA = "tinkit-store-1"
IDENTITY, CHUNKS = "identity.json", "chunks.jsonl"
CHUNK_ROWS = 512
TAP = "tap."  # in front of a tap's name in the name of its array


@dataclass(frozen=True)
class FeatureStore:
    """A finished store, opened for reading. Arrays are memory maps of (N * K, ...)."""

    path: str
    views: int
    arrays: dict[str, np.ndarray]
    grid: tuple[int, int] | None

    def features(self, pictures_B, views_B, parts=None) -> Features:
        """float32 `Features` of the given picture indices and view numbers; all that is stored, or the named parts."""
        rows = np.asarray(pictures_B) * self.views + np.asarray(views_B)
        arrays = {
            name: array
            for name, array in self.arrays.items()
            if parts is None or name == "global" or name in parts or (name.startswith(TAP) and "taps" in parts)
        }
        taken = {name: torch.from_numpy(array[rows].astype(np.float32)) for name, array in arrays.items()}
        taps = {name[len(TAP) :]: rows for name, rows in taken.items() if name.startswith(TAP)}
        return Features(taken["global"], taken.get("local"), self.grid, taken.get("logits"), taps)

    def global_rows(self, view=0) -> np.ndarray:
        """The global features of one view of all pictures, (N, D) in the stored dtype."""
        return self.arrays["global"][view :: self.views]


def identity_of(teacher: Teacher, views: AllViews, parts, dtype: str) -> dict:
    """Everything that shapes the stored numbers. Another identity is another store."""
    import PIL
    import torchvision

    listing = hashlib.sha256("\n".join(picture.content for picture in views.pictures).encode()).hexdigest()
    return {
        "schema": SCHEMA,
        "teacher": teacher.identity,
        "views": {"policy": views.policy.to_json(), "numbers": list(views.numbers), "crop_pct": views.crop_pct},
        "pictures": {"count": len(views.pictures), "sha256": listing},
        "decoder": f"Pillow {PIL.__version__}",
        "colour": f"torchvision {torchvision.__version__.split('+')[0]}",
        "local": "local" in parts,
        "dtype": dtype,
        **{part: True for part in ("logits", "taps") if part in parts},
    }


@dataclass(frozen=True)
class Job:
    """What a store is made of and how: the teacher, the views, which arrays, in which dtype; `batch` views a pass."""

    teacher: Teacher
    views: AllViews
    parts: tuple[str, ...] = LOCAL_ONLY  # what is stored besides the global feature: local, logits, taps
    dtype: str = "float16"
    workers: int = 0
    batch: int = 64

    @property
    def rows_per_chunk(self) -> int:
        """A whole number of pictures: all views of one are in one chunk."""
        return max(1, CHUNK_ROWS // len(self.views.numbers)) * len(self.views.numbers)

    def chunks(self) -> list[range]:
        """The pictures of each chunk."""
        count, step = len(self.views.pictures), self.rows_per_chunk // len(self.views.numbers)
        return [range(start, min(start + step, count)) for start in range(0, count, step)]


def open_or_build(
    root,
    teacher: Teacher,
    views: AllViews,
    tick: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
    **options,
) -> FeatureStore:
    """The store for this teacher and these views below `root`: opened when finished, else continued or begun.

    `options` are those of `Job`. `tick(n)` is told of n more pictures done; when `stop()` turns true the work ends at the
    next batch with InterruptedError, finished chunks kept. Raises TinkitError for damage, a full disk, features that do
    not fit the dtype, or a picture gone meanwhile.
    """
    job = Job(teacher, views, **options)
    identity = identity_of(teacher, views, job.parts, job.dtype)
    path = os.path.join(root, files.sha256_of_json(identity)[:16])
    with files.folder_lock(path, "the feature store", wait=True):
        record = os.path.join(path, IDENTITY)
        if not os.path.exists(record):
            files.write_json(record, {"identity": identity, "layout": None})
        layout = _read_identity(record, identity)
        try:
            for chunk, found in _compute(job, len(_finished_chunks(path)), tick or (lambda n: None), stop):
                if layout is None:
                    layout = _layout(found)
                    files.write_json(record, {"identity": identity, "layout": layout})
                    _say_size(say, path, layout, len(views.pictures) * len(views.numbers))
                _write_chunk(path, chunk, found["arrays"], job.rows_per_chunk)
        except InterruptedError:
            raise
        except OSError as error:
            raise from_os_error(error, "writing the feature store") from error
    return _open(path, layout, len(views.numbers))


def _read_identity(record, identity):
    value = files.read_json(record, "The store's identity")
    if value.get("identity") != identity:
        raise TinkitError("The store in this folder belongs to something else.", where=record, next_step="remove it")
    return value["layout"]


def _compute(job: Job, first: int, tick, stop) -> Iterator[tuple[int, dict]]:
    """(chunk number, {"arrays", "grid"}) for the chunks from `first` on."""
    chunks = job.chunks()
    tick(sum(map(len, chunks[:first])))
    step = max(1, job.batch // len(job.views.numbers))
    batches = [(n, list(c[s : s + step])) for n, c in enumerate(chunks) if n >= first for s in range(0, len(c), step)]
    loader = DataLoader(
        job.views,
        batch_sampler=[pictures for _, pictures in batches],
        num_workers=job.workers,
        collate_fn=collate,
        worker_init_fn=ignore_interrupt,
    )
    parts: list[dict[str, np.ndarray]] = []
    for (chunk, pictures), batch in zip(batches, loader):
        features = job.teacher.features(refuse_broken(batch).flatten(0, 1), job.parts)
        parts.append(_arrays(features, job))
        if pictures[-1] == chunks[chunk][-1]:
            joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            yield chunk, {"arrays": joined, "grid": features.grid}
            parts = []
        tick(len(pictures))
        if stop and stop():
            raise InterruptedError


def _arrays(features: Features, job: Job) -> dict[str, np.ndarray]:
    """The features as arrays of the store's dtype; TinkitError when they do not fit it."""
    wanted = {"global": features.global_BD, "local": features.local_BLD, "logits": features.logits_BC}
    wanted.update({TAP + name: tap for name, tap in features.taps.items()})
    with np.errstate(over="ignore"):  # judged below
        found = {name: t.cpu().numpy().astype(job.dtype) for name, t in wanted.items() if t is not None}
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise TinkitError(
                f"The teacher's {name} features do not fit {job.dtype}, or are not finite.",
                seen="NaN or infinite values",
                next_step="--store-dtype float32, or check the teacher's weights",
            )
    return found


def _layout(found):
    arrays = {name: {"shape": list(a.shape[1:]), "dtype": str(a.dtype)} for name, a in found["arrays"].items()}
    return {"arrays": arrays, "grid": found["grid"]}


def _say_size(say, path, layout, rows):
    row = sum(int(np.prod(a["shape"])) * np.dtype(a["dtype"]).itemsize for a in layout["arrays"].values())
    if say:
        say(f"feature store: {rows} rows of {row} bytes, {rows * row / 1e6:.0f} MB in {path}")


def _write_chunk(path, chunk, arrays, rows_per_chunk):
    """Append one chunk to every array and then its line to the list."""
    hashes, rows = {}, 0
    for name, array in arrays.items():
        data, rows = array.tobytes(), len(array)
        hashes[name] = hashlib.sha256(data).hexdigest()
        array_path = os.path.join(path, name + ".bin")
        with open(array_path, "r+b" if os.path.exists(array_path) else "w+b") as handle:
            handle.truncate(chunk * rows_per_chunk * (len(data) // rows))  # what a killed process left half-written
            handle.seek(0, os.SEEK_END)
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
    with open(os.path.join(path, CHUNKS), "a", encoding="utf-8") as handle:
        handle.write(json.dumps({"chunk": chunk, "rows": rows, "sha256": hashes}) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


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
