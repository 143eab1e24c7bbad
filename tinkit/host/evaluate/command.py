"""`tinkit evaluate`: one command that asks every question, on a user's own pictures, of a run's student or of a bundle.

The road: open the run (and the bundle); sort the pictures; embed them with teacher, mapped teacher and network (the store
keeps the rows); ask each module; hold the answers against the budget; write evaluation.json. Questions that need labels,
strange pictures, other domains or masks are asked when these are given.
"""

import os
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
import torch

import tinkit
from tinkit import files, workspace
from tinkit.bundle import MANIFEST, Bundle, open_bundle
from tinkit.errors import Interrupted, TinkitError
from tinkit.host.evaluate import budget as budgets
from tinkit.host.evaluate.asked import Asked, several
from tinkit.host.evaluate.evaluation import BLOCKS, JSON, Evaluation, folder_of
from tinkit.host.evaluate.names import refuse_what_cannot_be_judged, refuse_without_labels
from tinkit.host.evaluate.networks import BundleNetwork, StudentNetwork
from tinkit.host.evaluate.pictures import PARTS, TEST, Sorted, require_bank_and_test, sort_pictures
from tinkit.host.evaluate.questions import MODULES, Questions
from tinkit.host.evaluate.rows import Embedder, gives_local
from tinkit.host.images import is_there
from tinkit.host.interruption import StopSignal
from tinkit.host.progress import Progress
from tinkit.host.run import Run, load_run

STORE = ".stores"
CORRUPTED_PICTURES = 200
FEW = 100
FEW_TO_JUDGE = (
    "{0} test pictures are few: an interval without width means that all were alike, and 3 in {0} others may not be"
)
ITS_OWN = "these are the pictures that the student was distilled on: others judge it more strictly"


def evaluate(
    subject=None,
    data=None,
    labels=None,
    ood=(),
    domains=(),
    masks=None,
    corruptions=False,
    corruption_pictures=CORRUPTED_PICTURES,
    dense=True,
    limit=None,
    budget="",
    out=None,
    require_target_runtime=False,
    workers=None,
    seed=0,
    quiet=False,
) -> Evaluation:
    """Compare a network with its teacher on pictures; writes evaluation.json and returns the `Evaluation`.

    subject: a run, or a bundle in its run's folder; the newest finished run when None. data: pictures, in class folders where
    there are labels (default: the run's own folder); with train/ and test/ in it these are kept apart. labels: "folders", a
    CSV of path,label, or "none". ood: folders of strange pictures, "near:DIR" or "far:DIR" to group them. domains: further
    labelled folders with the same classes. masks: a folder of masks for the pictures of `data`. corruptions: the 15 standard
    corruptions at 5 severities, of `corruption_pictures` test pictures. limit: at most so many pictures of every folder,
    drawn by content. budget: such as "auroc>-0.01,agreement>0.9"; what it breaks is in the verdict, not raised.
    Raises TinkitError for what a user can mend, CannotJudge where the target's runtime is required and missing.
    """
    began, rules = time.monotonic(), budgets.parse(budget or "")
    if corruptions and corruption_pictures < 1:
        raise TinkitError("--corruption-pictures is a number from 1 on.", seen=str(corruption_pictures))
    asked = Asked(
        data=data,
        labels=labels,
        ood=several(ood),
        domains=several(domains),
        masks=masks,
        corruptions=corruption_pictures if corruptions else 0,
        dense=dense,
        limit=limit,
        workers=workers,
        seed=seed,
    )
    run, bundle = open_subject(subject)
    if bundle is not None:
        asked = _without_local(
            asked, "Masks are held against the local features of a run's student, not of a bundle.", "evaluate its run"
        )
    refuse_what_cannot_be_judged(rules, _given(run, asked))
    folder = os.fspath(out or folder_of(run, bundle))
    with files.folder_lock(folder, "the evaluation's folder"), Progress(quiet) as progress, StopSignal() as stop:
        try:
            pictures = _pictures(run, asked, progress, stop)
            if not pictures.classes:
                refuse_without_labels(rules)
                _refuse_domains_without_labels(asked, pictures)
            with _opened(run, bundle, require_target_runtime, progress) as network:
                embedder = _embedder(run, network, asked, progress, stop)
                questions, blocks = _answers(run, pictures, embedder, folder, asked, rules)
        except InterruptedError:
            raise Interrupted(
                "Stopped; what was embedded is kept.", where=folder, next_step="the same command goes on from there"
            ) from None
        questions.seconds["total"] = time.monotonic() - began
        found = _evaluation(run, bundle, questions, blocks, rules)
        files.write_json(found.path, found.to_json())
    return found


def _without_local(asked: Asked, why, next_step=None) -> Asked:
    """The same without what needs local features; TinkitError for masks, which were asked for."""
    if asked.masks is not None:
        raise TinkitError(why, next_step=next_step)
    return replace(asked, dense=False)


def _given(run: Run, asked: Asked) -> dict[str, bool]:
    """What a measure may need -> whether it is there."""
    mapping, fitted = run.mapping() is not None, run.record["method"].get("fitted_afterwards") is not None
    return {
        **asked.needs(),
        "some mapping": mapping,
        "mapping": mapping and not fitted,
        "fitted mapping": mapping and fitted,
    }


@contextmanager
def _opened(run: Run, bundle: Bundle | None, require_target_runtime, progress: Progress):
    """The network under evaluation, closed in the end."""
    network = StudentNetwork(run) if bundle is None else BundleNetwork(bundle, require_target_runtime, progress.say)
    try:
        if network.rehearsal:
            progress.say(network.rehearsal)
        yield network
    finally:
        network.close()


def _answers(run: Run, pictures: Sorted, embedder: Embedder, folder, asked: Asked, rules):
    """(questions, their blocks)."""
    if not gives_local(embedder.teacher):
        asked = _without_local(asked, "The teacher gives no local features to hold against masks.")
        refuse_what_cannot_be_judged(rules, _given(run, asked))
    questions = Questions(run, pictures, embedder, folder, asked)
    return questions, questions.ask(embedder.progress.say)


def open_subject(subject) -> tuple[Run, Bundle | None]:
    """(run, bundle or None) of a path: a run's folder, or a bundle's, whose run is the folder above with the same id."""
    path = os.fspath(subject) if subject is not None else workspace.newest_run()
    if not os.path.isfile(os.path.join(path, MANIFEST)):
        return load_run(path), None
    bundle = open_bundle(path)
    above = os.path.dirname(os.path.abspath(path))
    told = bundle.manifest.get("run") or {}
    if not os.path.isfile(os.path.join(above, workspace.RUN_RECORD)):
        raise TinkitError(
            "The bundle does not lie in its run's folder, which has the teacher to compare with.",
            where=bundle.path,
            seen=f"run {told.get('name')!r}",
            next_step="evaluate it where it was exported: tinkit evaluate RUN/bundle-TARGET",
        )
    run = load_run(above)
    if run.record.get("id") != told.get("id"):
        raise TinkitError(
            "The bundle is of another run than the folder that it lies in.",
            where=bundle.path,
            seen=f"bundle of {told.get('id')}, run {run.record.get('id')}",
        )
    return run, bundle


def _pictures(run: Run, asked: Asked, progress: Progress, stop) -> Sorted:
    own = run.record["images"]["root"]
    root = own if asked.data is None else asked.data
    if asked.data is None and not is_there(root):
        raise TinkitError("The run's pictures are gone.", where=root, next_step="tinkit evaluate --data FOLDER")
    pictures = sort_pictures(root, asked.labels, asked.limit, progress.counter("reading"), stop)
    counted = ", ".join(f"{len(pictures.parts[part])} {part}" for part in PARTS)
    progress.say(f"{len(pictures.all)} pictures ({counted}), {len(pictures.classes) or 'no'} classes")
    require_bank_and_test(pictures)
    if pictures.classes and len(pictures.parts[TEST]) < FEW:
        pictures = pictures.noting(FEW_TO_JUDGE.format(len(pictures.parts[TEST])))
    if pictures.skipped:
        pictures = pictures.noting(f"{len(pictures.skipped)} files cannot be read and were skipped; {JSON} names them")
    ours, theirs = os.path.realpath(own), os.path.realpath(root)
    if os.path.commonpath([ours, theirs]) in (ours, theirs):  # one holds the other
        pictures = pictures.noting(ITS_OWN)
    return pictures


def _refuse_domains_without_labels(asked: Asked, pictures: Sorted):
    if asked.domains:
        raise TinkitError(
            "Domains are compared by a probe, which needs labels.",
            where=pictures.root,
            next_step="class folders in --data",
        )


def _embedder(run: Run, network, asked: Asked, progress: Progress, stop) -> Embedder:
    teacher = run.teacher().to("cuda" if torch.cuda.is_available() else "cpu")
    store = os.path.join(os.path.dirname(os.path.abspath(run.path)), STORE)
    count = min(8, max(1, (os.cpu_count() or 1) // 2)) if asked.workers is None else asked.workers
    return Embedder(teacher, run.mapping(), network, store, count, progress, stop)


def _evaluation(run: Run, bundle: Bundle | None, questions: Questions, blocks, rules) -> Evaluation:
    network, pictures, record = questions.embedder.network, questions.pictures, run.record
    measures = [entry for name in blocks for entry in MODULES[name].measures(blocks[name])]
    judged = budgets.judge(rules, measures)
    rehearsal = f" ({network.rehearsal})" if network.rehearsal else ""
    return Evaluation(
        title=f"{run.name}, {bundle.target.name if bundle else 'student'}{rehearsal}",
        verdict=budgets.verdict_of(judged),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        subject={
            "kind": network.kind,
            "run": os.path.abspath(run.path),
            "run_id": record.get("id"),
            "bundle": os.path.abspath(bundle.path) if bundle else None,
            "model_sha256": network.identity["weights"] if bundle else None,
            "name": bundle.name if bundle else run.name,
            "runtime": network.runtime,
            "rehearsal": network.rehearsal,
            **{key: record.get(key) for key in ("student", "teacher", "method")},
        },
        pictures={
            "root": pictures.root,
            "labelled": {part: len(pictures.parts[part]) for part in PARTS} if pictures.classes else {},
            "unlabelled": 0 if pictures.classes else len(pictures.all),
            "skipped": [list(entry) for entry in pictures.skipped],
            "classes": list(pictures.classes),
            "limit": questions.asked.limit,
        },
        measures=measures,
        budget=[entry.to_json() for entry in judged],
        **{name: blocks.get(name) for name in BLOCKS},
        conditions=_conditions(questions),
        seconds=questions.seconds,
        notes=[*pictures.notes, *questions.notes, *filter(None, (network.rehearsal,))],
        path=os.path.join(questions.folder, JSON),
    )


def _conditions(questions: Questions) -> dict:
    embedder = questions.embedder
    teacher, network = embedder.teacher, embedder.network
    return {
        "seed": questions.seed,
        "view": f"centre square, {network.preprocessing.crop_pct:g} of the short side, for both networks",
        "teacher_size": teacher.preprocessing.size,
        "student_size": network.preprocessing.size,
        "arithmetic": {"teacher": teacher.identity.get("arithmetic", ""), "student": network.identity["arithmetic"]},
        "intervals": "95 %, percentile bootstrap over pictures",
        "versions": {"tinkit": tinkit.__version__, "torch": torch.__version__, "numpy": np.__version__},
    }
