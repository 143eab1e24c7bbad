"""`tinkit evaluate`: one command that asks every question, on a user's own pictures, of a run's student or of a bundle.

The road: open the run (and the bundle); sort the pictures; embed them with teacher, mapped teacher and network (the store
keeps the rows); ask each module; hold the answers against the budget; write evaluation.json and its page. Questions that need
labels, strange pictures, other domains or masks are asked when these are given.
"""

import os
import time
from contextlib import contextmanager
from datetime import datetime, timezone

import numpy as np
import torch

import tinkit
from tinkit import files, workspace
from tinkit.bundle import MANIFEST, Bundle, open_bundle
from tinkit.errors import Interrupted, TinkitError
from tinkit.host.evaluate import budget as budgets
from tinkit.host.evaluate import dense, domains, labelled, ood, orthogonality, robustness, similarity
from tinkit.host.evaluate.evaluation import BLOCKS, JSON, Evaluation, folder_of
from tinkit.host.evaluate.masks import mask_path, read_masks
from tinkit.host.evaluate.measure import HIGHER, LOWER, Measure
from tinkit.host.evaluate.networks import BundleNetwork, StudentNetwork
from tinkit.host.evaluate.pictures import BANK, PARTS, TEST, Sorted, draw, other_folder, sort_pictures
from tinkit.host.evaluate.rows import COMMON_SIZE, Embedder, Rows
from tinkit.host.images import require_folder
from tinkit.host.interruption import StopSignal
from tinkit.host.progress import Progress
from tinkit.host.run import Run, load_run

STORE = ".stores"
DENSE_PICTURES, MASKED_PICTURES, CORRUPTED_PICTURES = 48, 500, 200
GROUPS = ("near", "far")
# Every name that a budget may use -> which side is better, and what it needs. Held against the modules by a test.
NAMES = {
    **dict.fromkeys(("cosine", "cosine_p1"), (HIGHER, "mapping")),
    "cosine_difference": (LOWER, ""),
    "cosine_difference_mapped": (LOWER, "mapping"),
    **dict.fromkeys(("spearman", "cka", "cka_debiased", "overlap@1", "overlap@10", "overlap@50"), (HIGHER, "")),
    **dict.fromkeys(("knn", "probe", "agreement", "probe_agreement"), (HIGHER, "labels")),
    **dict.fromkeys(("ece", "churn"), (LOWER, "labels")),
    **dict.fromkeys(("auroc", "auroc@50", "aupr"), (HIGHER, "ood")),
    "fpr95": (LOWER, "ood"),
    "corruption": (HIGHER, "corruptions"),
    "corruption_gap": (LOWER, "corruptions"),
    "domain": (HIGHER, "domains"),
    "map_correlation": (HIGHER, "dense"),
    **dict.fromkeys(("miou", "kmeans_miou"), (HIGHER, "masks")),
}
LACKS = {
    "mapping": "the run has no mapping (its method has none, and none could be fitted)",
    "labels": "give labelled pictures: --data FOLDER with class folders, or --labels FILE.csv",
    "ood": "give strange pictures: --ood FOLDER",
    "corruptions": "add --corruptions",
    "domains": "give another domain: --domains FOLDER with the same class folders",
    "dense": "leave --no-dense out; a bundle has no local features",
    "masks": "give masks: --masks FOLDER",
}


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

    subject: a run or a bundle below one, the newest finished run when None. data: pictures, sorted into class folders where there
    are labels (default: the run's own folder); with train/ and test/ in it these are kept apart. labels: "folders", a CSV of
    path,label, or "none". ood: folders of strange pictures, "near:DIR" or "far:DIR" to group them. domains: further labelled
    folders with the same classes. masks: a folder of masks for the pictures of `data`. corruptions: the 15 standard corruptions
    at 5 severities, of `corruption_pictures` test pictures. limit: at most so many pictures of every folder, drawn by content.
    budget: such as "auroc>-0.01,agreement>0.9"; what it breaks is in the verdict, not raised.
    Raises TinkitError for what a user can mend, CannotJudge where the target's runtime is required and missing.
    """
    rules = budgets.parse(budget or "")
    run, bundle = open_subject(subject)
    wanted = {
        "labels": labels,
        "ood": ood,
        "domains": domains,
        "masks": masks,
        "corruptions": corruptions,
        "dense": dense,
    }
    folder = os.fspath(out or folder_of(run, bundle))
    for path in (*(_group(entry)[1] for entry in ood), *domains, *filter(None, (masks,))):
        require_folder(path)
    with files.folder_lock(folder, "the evaluation's folder"), Progress(quiet) as progress, StopSignal() as stop:
        asked = _Asked(run, bundle, folder, progress, stop, limit, seed, workers, require_target_runtime)
        try:
            return asked.answer(data, wanted, rules, corruption_pictures)
        except InterruptedError:
            raise Interrupted(
                "Stopped; what was embedded is kept.", where=folder, next_step="the same command goes on from there"
            ) from None


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


class _Asked:
    """One evaluation while it works: what is open, what was found so far."""

    def __init__(self, run, bundle, folder, progress, stop, limit, seed, workers, require_target_runtime):
        self.run, self.bundle, self.folder, self.progress, self.stop = run, bundle, folder, progress, stop
        self.limit, self.seed, self.require = limit, seed, require_target_runtime
        self.workers = workers if workers is not None else min(8, max(1, (os.cpu_count() or 1) // 2))
        self.blocks: dict = {}
        self.measures: list[Measure] = []
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []

    def answer(self, data, wanted, rules, corrupted) -> Evaluation:
        """Ask everything, judge, write."""
        began = time.monotonic()
        mapping = self.run.mapping()
        self._check(rules, mapping, wanted, data)
        with self._timed("scan"):
            pictures = self._pictures(data, wanted["labels"])
        self._check_labels(rules, pictures)
        say = self.progress.say
        say(
            f"{len(pictures.all)} pictures: "
            + ", ".join(f"{len(pictures.parts[part])} {part}" for part in PARTS)
            + (f"; {len(pictures.classes)} classes" if pictures.classes else "; no labels")
        )
        with self._timed("load"):
            teacher = self.run.teacher().to("cuda" if torch.cuda.is_available() else "cpu")
            network = self._network()
        root = os.path.join(os.path.dirname(os.path.abspath(self.run.path)), STORE)
        self.embedder = Embedder(teacher, mapping, network, root, self.workers, self.progress, self.stop)
        try:
            with self._timed("embed"):
                rows = self.embedder.rows(pictures.all, "pictures")
            self._ask(pictures, rows, mapping, wanted, corrupted)
        finally:
            network.close()
        self.seconds["total"] = time.monotonic() - began
        return self._written(pictures, network, rules)

    def _ask(self, pictures: Sorted, rows: Rows, mapping, wanted, corrupted):
        names = [picture.name for picture in pictures.all]
        fitted = self.run.record["method"].get("fitted_afterwards") is not None
        with self._block("similarity", similarity) as keep:
            keep(similarity.similarity(rows.teacher, rows.mapped, rows.student, names, fitted, self.seed))
        if mapping is not None:
            with self._timed("orthogonality"):
                self.blocks["orthogonality"] = orthogonality.orthogonality(mapping, rows.teacher)
        parts = {part: rows[pictures.rows_of(part)] for part in PARTS}
        if pictures.classes:
            with self._block("labels", labelled) as keep:
                keep(self._labelled(pictures, parts))
        if wanted["ood"]:
            with self._block("ood", ood) as keep:
                keep(self._ood(parts, wanted["ood"]))
        if wanted["domains"]:
            with self._block("domains", domains) as keep:
                keep(self._domains(pictures, parts, wanted["domains"]))
        if wanted["corruptions"]:
            with self._block("corruption", robustness) as keep:
                keep(self._corruption(pictures, parts, corrupted))
        if wanted["masks"] or (wanted["dense"] and self.bundle is None):
            with self._block("dense", dense) as keep:
                keep(self._dense(pictures, wanted["masks"]))

    def _labelled(self, pictures: Sorted, parts):
        names = [picture.name for picture in pictures.parts[TEST]]
        teacher, student = ({part: getattr(parts[part], who) for part in PARTS} for who in ("teacher", "student"))
        return labelled.labelled(teacher, student, pictures.labels, pictures.classes, names, self.seed)

    def _ood(self, parts, folders):
        groups: dict[str, str] = {}
        strange = {}
        for entry in folders:
            group, path = _group(entry)
            with self._timed("scan"):
                found, _, root = other_folder(path, (), False, self.limit, stop=self.stop)
            name = _unlike(os.path.basename(root), strange)
            with self._timed("embed"):
                strange[name] = self.embedder.rows(found, name).pair
            groups[name] = group
        return ood.ood(parts[BANK].pair, parts[TEST].pair, strange, seed=self.seed, groups=groups)

    def _domains(self, pictures: Sorted, parts, folders):
        source = os.path.basename(pictures.root)
        rows = {source: {part: parts[part].pair for part in PARTS}}
        labels = {source: pictures.labels}
        for path in folders:
            with self._timed("scan"):
                found, numbers, root = other_folder(path, pictures.classes, True, self.limit, stop=self.stop)
            name = _unlike(os.path.basename(root), rows)
            with self._timed("embed"):
                rows[name], labels[name] = {TEST: self.embedder.rows(found, name).pair}, {TEST: numbers}
        teacher, student = (
            {name: {part: pair[who] for part, pair in found.items()} for name, found in rows.items()}
            for who in ("teacher", "student")
        )
        return domains.domains(source, teacher, student, labels, pictures.classes, self.seed)

    def _dense(self, pictures: Sorted, masks):
        chosen = draw(pictures.parts[TEST], DENSE_PICTURES)
        found = None
        if masks:
            with_masks = [p for p in pictures.all if os.path.isfile(mask_path(masks, p.name))] or pictures.all[:1]
            chosen = draw(with_masks, MASKED_PICTURES)
            found = read_masks(masks, chosen, self.embedder.network.preprocessing.crop_pct, COMMON_SIZE)
        with self._timed("embed"):
            teacher, student = self.embedder.local(chosen)
        names = [picture.name for picture in chosen]
        local = [(store.arrays["local"], store.grid) for store in (teacher, student)]
        return dense.dense(*local[0], *local[1], names, found, seed=self.seed)

    def _network(self):
        if self.bundle is None:
            return StudentNetwork(self.run)
        network = BundleNetwork(self.bundle, self.require, self.progress.say)
        if network.rehearsal:
            self.notes.append(network.rehearsal)
            self.progress.say(network.rehearsal)
        return network

    def _pictures(self, data, labels) -> Sorted:
        root = data if data is not None else self.run.record["images"]["root"]
        if data is None and not os.path.isdir(root):
            raise TinkitError("The run's pictures are gone.", where=root, next_step="tinkit evaluate --data FOLDER")
        found = sort_pictures(root, labels, self.limit, self.progress.counter("reading"), self.stop)
        self.notes += found.notes
        if os.path.realpath(root) == os.path.realpath(self.run.record["images"]["root"]):
            self.notes.append("these are the pictures that the student was distilled on: others judge it more strictly")
        return found

    def _check(self, rules, mapping, wanted, data):
        """Refuse a budget that cannot be judged, before anything is embedded."""
        has = {
            "": True,
            "mapping": mapping is not None,
            "labels": wanted["labels"] != "none",
            "ood": bool(wanted["ood"]),
            "corruptions": wanted["corruptions"],
            "domains": bool(wanted["domains"]),
            "dense": wanted["dense"] and self.bundle is None,
            "masks": bool(wanted["masks"]),
        }
        lacks = {name: "" if has[need] else LACKS[need] for name, (_, need) in NAMES.items()}
        budgets.check(rules, {name: better for name, (better, _) in NAMES.items()}, lacks)
        if wanted["masks"] and self.bundle is not None:
            raise TinkitError("A bundle has no local features to hold against masks.", next_step="evaluate its run")

    def _check_labels(self, rules, pictures: Sorted):
        """The same once it is known whether there are labels."""
        if pictures.classes:
            return
        for rule in rules:
            if NAMES[rule.name][1] in ("labels", "domains"):
                raise TinkitError("The budget names what needs labels.", seen=rule.text, next_step=LACKS["labels"])

    @contextmanager
    def _timed(self, step):
        began = time.monotonic()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - began

    @contextmanager
    def _block(self, name, module):
        """Keep a module's block and its measures; the time is the question's own, with what it had to embed."""
        with self._timed(name):
            yield lambda block: self._keep(name, module, block)
        if self.stop():
            raise InterruptedError

    def _keep(self, name, module, block):
        self.blocks[name] = block
        found = module.measures(block)
        self.measures += found
        for measure in found:
            self.progress.say(in_words(measure))

    def _written(self, pictures: Sorted, network, rules) -> Evaluation:
        judged = budgets.judge(rules, self.measures)
        verdict = budgets.verdict_of(judged)
        record, model = self.run.record, network.identity["weights"] if self.bundle else None
        found = Evaluation(
            title=f"{self.run.name}, {self.bundle.target.name if self.bundle else 'student'}"
            + (f" ({network.rehearsal})" if network.rehearsal else ""),
            verdict=verdict,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            subject={
                "kind": network.kind,
                "run": os.path.abspath(self.run.path),
                "run_id": record.get("id"),
                "bundle": os.path.abspath(self.bundle.path) if self.bundle else None,
                "model_sha256": model,
                "name": self.bundle.name if self.bundle else self.run.name,
                "runtime": network.runtime,
                "rehearsal": network.rehearsal,
                "student": record.get("student"),
                "teacher": record.get("teacher"),
                "method": record.get("method"),
            },
            pictures={
                "root": pictures.root,
                "labelled": {part: len(pictures.parts[part]) for part in PARTS} if pictures.classes else {},
                "unlabelled": 0 if pictures.classes else len(pictures.all),
                "skipped": [list(entry) for entry in pictures.skipped],
                "classes": list(pictures.classes),
                "limit": self.limit,
            },
            measures=self.measures,
            budget=[entry.to_json() for entry in judged],
            **{name: self.blocks.get(name) for name in BLOCKS},
            conditions={
                "seed": self.seed,
                "view": f"centre square, {network.preprocessing.crop_pct:g} of the short side, for both networks",
                "teacher_size": self.embedder.teacher.preprocessing.size,
                "student_size": network.preprocessing.size,
                "arithmetic": {
                    "teacher": self.embedder.teacher.identity.get("arithmetic", ""),
                    "student": network.identity["arithmetic"],
                },
                "intervals": "95 %, percentile bootstrap over pictures",
                "versions": {"tinkit": tinkit.__version__, "torch": torch.__version__, "numpy": np.__version__},
            },
            seconds=self.seconds,
            notes=self.notes,
            path=os.path.join(self.folder, JSON),
        )
        files.write_json(found.path, found.to_json())
        return found


def in_words(measure: Measure) -> str:
    """One line: the student's value, its interval, the teacher's."""
    interval = " ({:.3f} to {:.3f})".format(*measure.interval) if measure.interval else ""
    teacher = "" if measure.teacher is None else f", teacher {measure.teacher:.3f}"
    return f"{measure.name:<26} {measure.student:.3f}{interval}{teacher}"


def _group(entry) -> tuple[str, str]:
    """("near", DIR) of near:DIR; ("", DIR) of a plain folder, which may hold a colon itself."""
    text = os.fspath(entry)
    group, colon, path = text.partition(":")
    return (group, path) if colon and group in GROUPS and not os.path.isdir(text) else ("", text)


def _unlike(name, taken) -> str:
    """A name for a folder that no other folder has."""
    return name if name not in taken else next(f"{name} {n}" for n in range(2, 1000) if f"{name} {n}" not in taken)
