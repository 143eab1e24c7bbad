"""The pictures that int8 is calibrated on: real ones, and not those of the exam, which would then be judged too well."""

import os

import numpy as np

from tinkit.bundle import Exam
from tinkit.device.sitting import fill
from tinkit.errors import TinkitError
from tinkit.host.export.exam import exam_of_folder
from tinkit.host.export.gate import Draft
from tinkit.host.images import require_images
from tinkit.host.run import Run

PICTURES, BATCH = 128, 8
TOO_WELL = "int8 is calibrated on the exam's own pictures, {}: the gate is judged too well"


def calibration_feeds(draft: Draft, fp32, run: Run, exam: Exam, folder=None):
    """(function that gives the inputs of `fp32` in small batches, notes) for an int8 target; others need none.

    The pictures are of `folder`, else of the run's own folder, in both cases without those of the exam (by their pixels);
    where the run's folder is gone or has no others, the exam's, which a note says. Raises TinkitError for `folder`.
    """
    if draft.target.precision != "int8":
        return (lambda: iter(())), []
    pixels, notes = _pixels(draft, run, exam, folder)
    batch = draft.target.batch
    size = batch.max if batch.min == batch.max else max(BATCH, batch.min)

    def feeds():
        for start in range(0, len(pixels), size):
            yield draft.feed(fill(pixels[start : start + size], batch.min), fp32)

    return feeds, notes


def _pixels(draft: Draft, run: Run, exam: Exam, folder) -> tuple[np.ndarray, list[str]]:
    root = os.fspath(folder or run.record["images"]["root"])
    try:
        require_images(root)
    except TinkitError as error:
        if folder is None:
            return exam.pixels, [TOO_WELL.format("the run's folder is gone")]
        raise TinkitError(f"The pictures for calibration are not there. {error.what}", error.where,
                          next_step="--calibration FOLDER") from None  # fmt: skip
    taken = {pixels.tobytes() for pixels in exam.pixels}
    try:
        others, skipped = exam_of_folder(root, draft.preprocessing, PICTURES + len(taken))
    except TinkitError as error:
        raise TinkitError("The pictures for calibration cannot be used.", where=root, seen=error.what) from None
    notes = [f"{len(skipped)} unreadable files were left out of the calibration"] if skipped else []
    fresh = [index for index, pixels in enumerate(others.pixels) if pixels.tobytes() not in taken][:PICTURES]
    if not fresh:
        return exam.pixels, [*notes, TOO_WELL.format("there are no others")]
    return others.pixels[fresh], notes
