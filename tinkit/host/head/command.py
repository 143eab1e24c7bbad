"""`tinkit head`: a linear head on a run's student, from a few labelled pictures or from text vectors.

With labels a head is fitted twice: on the mapped teacher (the promise of the teacher in the middle: what was built on the
teacher works on the student) and on the student's own features. Both are judged on the student's features of validation
pictures, the better one is kept, and the test pictures are asked once. With `--prompts` the text vectors of a CLIP-like
teacher are carried through the mapping (tinkit.host.head.zero_shot), held against the teacher's own answers, and refused
below a limit. The head is a file beside the run (tinkit.host.head.files); `tinkit export --head NAME` ships it.
"""

import os
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import torch

from tinkit import files, workspace
from tinkit.errors import Interrupted, TinkitError
from tinkit.host.evaluate.networks import StudentNetwork
from tinkit.host.evaluate.pictures import BANK, Sorted, sort_pictures
from tinkit.host.evaluate.rows import Embedder, Rows
from tinkit.host.head.files import FOLDER, ON_TEACHER, SOURCES, head_paths, write_head
from tinkit.host.head.labels import from_labels
from tinkit.host.head.zero_shot import MIN_AGREEMENT, from_prompts, read_prompts
from tinkit.host.images import is_there, require_images
from tinkit.host.interruption import StopSignal
from tinkit.host.labels import FOLDERS, require_labels
from tinkit.host.progress import Progress
from tinkit.host.run import MAPPING, STUDENT, Run, load_run

LABELS, PROMPTS = "labels", "prompts"
STORE = ".stores"  # beside the runs, as for distillation and evaluation


@dataclass(frozen=True)
class HeadResult:
    """A head and its evidence. kind: "labels" or "prompts"; source: the features it comes from, "teacher" or "student".

    verdict: "not judged" for a head from labels (there is no limit), "passed" or "failed" for one from prompts; reason says
    why in a sentence. weights: None for one that failed. Accuracies and agreements in 0..1, intervals 95 %.
    """

    run: str
    name: str
    path: str
    weights: str | None
    kind: str
    source: str
    classes: list[str]
    verdict: str
    reason: str
    evidence: dict[str, Any]
    pictures: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def head(
    run=None,
    data=None,
    labels=None,
    name="head",
    prompts=None,
    source=None,
    limit=None,
    out=None,
    min_agreement=None,
    workers=None,
    seed=0,
    quiet=False,
) -> HeadResult:
    """Make a linear head for a run's student and write it beside the run. Returns the `HeadResult`.

    run: a path or an opened `Run`, the newest finished one when None. data: a folder of pictures (default: the run's own).
    labels: "folders" (the default) or a CSV of path,label. prompts: an .npz of text vectors instead of labels. source: "teacher"
    or "student" instead of the better of the two. limit: at most so many pictures. out: the folder (default RUN/heads).
    min_agreement: with prompts, the least share of pictures on which mapped teacher and student must answer as the teacher
    does (default MIN_AGREEMENT); a head below it is refused: verdict "failed", and no weights are written.
    Raises TinkitError for what a user can mend, Interrupted on Ctrl-C.
    """
    opened = run if isinstance(run, Run) else load_run(run or workspace.newest_run())
    root = _check(opened, data, labels, prompts, source, min_agreement)
    folder = os.fspath(out or os.path.join(opened.path, FOLDER))
    head_paths(folder, name)
    found = None if prompts is None else read_prompts(prompts)
    began = time.monotonic()
    with files.folder_lock(folder, "the heads' folder"), Progress(quiet) as progress, StopSignal() as stop:
        try:
            tick = progress.counter("reading")
            pictures = sort_pictures(root, "none" if found else labels or FOLDERS, limit, tick, stop)
            if found and len(pictures.parts[BANK]) == len(pictures.all):
                raise TinkitError("There are too few different pictures to judge a head on.", where=root,
                                  seen="all have the content of one", next_step="--data FOLDER with others")  # fmt: skip
            rows = _rows(opened, pictures, workers, progress, stop)
        except InterruptedError:
            raise Interrupted(
                "Stopped; what was embedded is kept.", where=folder, next_step="the same command goes on from there"
            ) from None
        if found:
            least = MIN_AGREEMENT if min_agreement is None else min_agreement
            fitted = from_prompts(found, opened.mapping(), rows, pictures.rows_of(BANK), least, seed)
        else:
            fitted = from_labels(rows, pictures, source, seed)
        told: dict[str, Any] = {
            "kind": PROMPTS if found else LABELS,
            "source": fitted.source,
            "classes": list(found.names if found else pictures.classes),
            "verdict": fitted.verdict,
            "reason": fitted.reason,
            "evidence": fitted.evidence,
            "pictures": _told(pictures),
            "notes": [*pictures.notes, *_notes(opened, root), *fitted.notes],
        }
        path, weights = write_head(folder, name, fitted, {**_made(opened, seed), **told})
    return HeadResult(run=opened.path, name=name, path=path, weights=weights, seconds=time.monotonic() - began, **told)


def _check(run: Run, data, labels, prompts, source, min_agreement) -> str:
    """The folder of pictures, after everything that can be wrong before the work begins."""
    if prompts is not None and (labels is not None or source is not None):
        raise TinkitError(
            "A head comes from labels or from prompts.", next_step="leave --prompts, or --labels and --from, out"
        )
    if prompts is None and min_agreement is not None:
        raise TinkitError(
            "--min-agreement is for a head from --prompts: a head from labels has no limit.", next_step="leave it out"
        )
    if min_agreement is not None and not 0 <= min_agreement <= 1:
        raise TinkitError("--min-agreement is a share of pictures.", seen=str(min_agreement), next_step="0 to 1")
    if source is not None and source not in SOURCES:
        raise TinkitError(
            "There is no such source of a head.", seen=str(source), next_step="--from teacher or --from student"
        )
    if MAPPING not in run.record["files"] and (prompts is not None or source == ON_TEACHER):
        raise TinkitError("The run has no mapping: nothing of the teacher can be carried to its student.", where=run.path,
                          next_step="a method with a mapping (tinkit list methods), or labels and --from student")  # fmt: skip
    if labels is not None:
        require_labels(labels)
    own = run.record["images"]["root"]
    if data is None and not is_there(own):
        raise TinkitError("The pictures that the run was made of are not there any more.", where=own,
                          next_step="--data FOLDER: pictures in class folders")  # fmt: skip
    return require_images(own if data is None else data)


def _rows(run: Run, pictures: Sorted, workers, progress, stop) -> Rows:
    """The rows of all pictures, part after part."""
    teacher = run.teacher().to("cuda" if torch.cuda.is_available() else "cpu")
    store = os.path.join(os.path.dirname(os.path.abspath(run.path)), STORE)
    workers = workers if workers is not None else min(8, max(1, (os.cpu_count() or 1) // 2))
    embedder = Embedder(teacher, run.mapping(), StudentNetwork(run), store, workers, progress, stop)
    return embedder.rows(pictures.all, "pictures")


def _notes(run: Run, root) -> list[str]:
    notes = []
    if root == os.path.abspath(run.record["images"]["root"]):
        notes.append(
            "these are the run's own pictures: the student was trained on most of them; new ones may fare worse"
        )
    if run.record["method"].get("fitted_afterwards"):
        notes.append("the mapping was fitted to the student after training: its method has none")
    return notes


def _made(run: Run, seed) -> dict[str, Any]:
    """When, and for whose student."""
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "run": {"name": run.name, "id": run.record.get("id"), "student_sha256": run.record["files"][STUDENT]},
        "seed": seed,
    }


def _told(pictures: Sorted) -> dict[str, Any]:
    return {
        "root": pictures.root,
        **{part: len(pictures.parts[part]) for part in pictures.parts},
        "skipped": len(pictures.skipped),
    }
