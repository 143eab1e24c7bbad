"""`tinkit evaluate`: one command that asks every question, on a user's own pictures, of a run's student or of a bundle.

The road: open the run (and the bundle); sort the pictures; embed them with teacher, mapped teacher and network (the store
keeps the rows); ask each module; hold the answers against the budget; write evaluation.json. Questions that need labels,
strange pictures, other domains or masks are asked when these are given.
"""

import os
import time
from datetime import datetime, timezone

import numpy as np
import torch

import tinkit
from tinkit import files, workspace
from tinkit.bundle import MANIFEST, Bundle, open_bundle
from tinkit.errors import Interrupted, TinkitError
from tinkit.host.evaluate import budget as budgets
from tinkit.host.evaluate.evaluation import BLOCKS, JSON, Evaluation, folder_of
from tinkit.host.evaluate.names import refuse_what_cannot_be_judged, refuse_without_labels
from tinkit.host.evaluate.networks import BundleNetwork, StudentNetwork
from tinkit.host.evaluate.pictures import PARTS, Sorted, sort_pictures
from tinkit.host.evaluate.questions import MODULES, Questions, group_of
from tinkit.host.evaluate.rows import Embedder
from tinkit.host.images import require_folder
from tinkit.host.interruption import StopSignal
from tinkit.host.progress import Progress
from tinkit.host.run import Run, load_run

STORE = ".stores"
CORRUPTED_PICTURES = 200
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
    run, bundle = open_subject(subject)
    mapping, dense = run.mapping(), dense and bundle is None
    if masks and bundle is not None:
        raise TinkitError("A bundle has no local features to hold against masks.", next_step="evaluate its run")
    fitted = run.record["method"].get("fitted_afterwards") is not None
    given = {
        "some mapping": mapping is not None,
        "labels": labels != "none",
        "ood": bool(ood),
        "domains": bool(domains),
    }
    given.update({"mapping": mapping is not None and not fitted, "fitted mapping": mapping is not None and fitted})
    groups = {group_of(entry)[0] for entry in ood}
    given.update(corruptions=corruptions, dense=dense, masks=bool(masks), near="near" in groups, far="far" in groups)
    refuse_what_cannot_be_judged(rules, given)
    for path in (*(group_of(entry)[1] for entry in ood), *domains, *filter(None, (masks,))):
        require_folder(path)
    wanted = {"ood": ood, "domains": domains, "masks": masks, "dense": dense}
    wanted["corruptions"] = corruption_pictures if corruptions else 0
    folder = os.fspath(out or folder_of(run, bundle))
    with files.folder_lock(folder, "the evaluation's folder"), Progress(quiet) as progress, StopSignal() as stop:
        try:
            pictures = _pictures(run, data, labels, limit, progress, stop)
            if not pictures.classes:
                refuse_without_labels(rules)
                _refuse_domains_without_labels(domains, pictures)
            network = (
                StudentNetwork(run) if bundle is None else BundleNetwork(bundle, require_target_runtime, progress.say)
            )
            try:
                embedder = _embedder(run, mapping, network, workers, progress, stop)
                questions = Questions(run, pictures, embedder, folder, limit, seed)
                blocks = questions.ask(wanted, progress.say)
            finally:
                network.close()
        except InterruptedError:
            raise Interrupted(
                "Stopped; what was embedded is kept.", where=folder, next_step="the same command goes on from there"
            ) from None
        questions.seconds["total"] = time.monotonic() - began
        found = _evaluation(run, bundle, questions, blocks, rules)
        files.write_json(found.path, found.to_json())
    return found


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


def _pictures(run: Run, data, labels, limit, progress: Progress, stop) -> Sorted:
    own = run.record["images"]["root"]
    root = own if data is None else data
    if data is None and not os.path.isdir(root):
        raise TinkitError("The run's pictures are gone.", where=root, next_step="tinkit evaluate --data FOLDER")
    pictures = sort_pictures(root, labels, limit, progress.counter("reading"), stop)
    counted = ", ".join(f"{len(pictures.parts[part])} {part}" for part in PARTS)
    progress.say(f"{len(pictures.all)} pictures ({counted}), {len(pictures.classes) or 'no'} classes")
    if os.path.realpath(root) == os.path.realpath(own):
        pictures = pictures.noting(ITS_OWN)
    return pictures


def _refuse_domains_without_labels(domains, pictures: Sorted):
    if domains:
        raise TinkitError(
            "Domains are compared by a probe, which needs labels.",
            where=pictures.root,
            next_step="class folders in --data",
        )


def _embedder(run: Run, mapping, network, workers, progress: Progress, stop) -> Embedder:
    if network.rehearsal:
        progress.say(network.rehearsal)
    teacher = run.teacher().to("cuda" if torch.cuda.is_available() else "cpu")
    store = os.path.join(os.path.dirname(os.path.abspath(run.path)), STORE)
    count = min(8, max(1, (os.cpu_count() or 1) // 2)) if workers is None else workers
    return Embedder(teacher, mapping, network, store, count, progress, stop)


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
            "limit": questions.limit,
        },
        measures=measures,
        budget=[entry.to_json() for entry in judged],
        **{name: blocks.get(name) for name in BLOCKS},
        conditions=_conditions(questions),
        seconds=questions.seconds,
        notes=[*pictures.notes, *filter(None, (network.rehearsal,))],
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
