"""Where runs and bundles lie, and which one is the newest finished one.

runs/NAME/                      a run: run.json says status "finished" when it is
runs/NAME/bundle-TARGET/        its bundles
runs/NAME/report-TARGET-DEVICE/ their reports
runs/.stores/                   teacher features, shared by the runs beside it
"""

import glob
import os

from tinkit import bundle as bundles
from tinkit import files
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED

RUNS = "runs"
RUN_RECORD = "run.json"


def newest_run(root=RUNS):
    """The path of the newest finished run below `root`; TinkitError when there is none."""
    return _newest(
        [os.path.join(root, "*", RUN_RECORD)],
        lambda record: record.get("status") == "finished",
        "There is no finished run here.",
        "tinkit distill IMAGES makes one; or name a run",
    )


def newest_bundle(root=RUNS):
    """The path of the newest bundle below `root` whose host gate did not fail."""
    return _newest(
        [os.path.join(root, "*", "bundle-*", bundles.MANIFEST)],
        lambda manifest: manifest.get("host_gate", {}).get("verdict") != FAILED,
        "There is no bundle here that passed its host gate.",
        "tinkit export --target NAME makes one; or name a bundle",
    )


def _newest(patterns, wanted, what, next_step):
    found = []
    for pattern in patterns:
        for path in glob.glob(pattern):
            try:
                record = files.read_json(path, "The record")
            except TinkitError:
                continue  # a half-copied folder is not the newest finished one
            if wanted(record):
                found.append((record.get("created", ""), os.path.dirname(path)))
    if not found:
        raise TinkitError(what, where=os.path.abspath(RUNS), next_step=next_step)
    return max(found)[1]
