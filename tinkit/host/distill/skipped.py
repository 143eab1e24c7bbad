"""The files that were left out, by name: the first hundred in run.json, all of them in skipped.jsonl."""

import json
import os
from collections.abc import Sequence

from tinkit import files

SKIPPED = "skipped.jsonl"
TOLD = 100  # of them in run.json


def record_skipped(run, skipped: Sequence[tuple[str, str]]) -> dict:
    """Write skipped.jsonl, a line {"name", "reason"} each; returns what run.json tells: some, how many, and where all are.

    There is no file when nothing was left out.
    """
    if skipped:
        with files.atomic(os.path.join(run, SKIPPED)) as partial, open(partial, "w", encoding="utf-8") as handle:
            handle.writelines(json.dumps({"name": name, "reason": reason}) + "\n" for name, reason in skipped)
    return {
        "skipped": [{"name": name, "reason": reason} for name, reason in skipped[:TOLD]],
        "skipped_count": len(skipped),
        "skipped_file": SKIPPED if skipped else None,
    }
