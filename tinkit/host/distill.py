"""`tinkit distill`: pictures and a teacher in, a run folder with a faithful student out.

The road: scan and split the pictures; load the teacher; build the student; let the teacher see every view once (the
store, or live with --online); fit the mapping; train; look at the held-out pictures; write the run. Everything that can
go wrong says where, and leaves the last good checkpoint; --resume goes on from it.
"""

import contextlib
import json
import os
import platform
import signal
import threading
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

import tinkit
from tinkit import files, workspace
from tinkit.errors import Interrupted, TinkitError, from_os_error
from tinkit.host import checkpoint, heldout, run
from tinkit.host.exam import make_exam
from tinkit.host.features import Features
from tinkit.host.images import Picture, Pictures, scan, split
from tinkit.host.loop import Cached, Distiller, Live, State, make_optimizer, train, worker_count
from tinkit.host.mapping import Mapping, MappingSpec, Moments
from tinkit.host.methods import METHODS
from tinkit.host.progress import Progress
from tinkit.host.settings import Settings
from tinkit.host.store import FeatureStore, ignore_interrupt, open_or_build
from tinkit.host.student import Student, build_student
from tinkit.host.teacher import Teacher, load_teacher
from tinkit.host.views import EVALUATION, AllViews, ViewPolicy, Views, collate, refuse_broken
from tinkit.host.weights import write_weights
from tinkit.results import DistillResult

EXAM_PICTURES = 64


@dataclass(frozen=True)
class Parts:
    """Everything that is made before training starts."""

    pictures: Pictures
    train: list[Picture]
    views: Views
    teacher: Teacher
    student: Student
    method: torch.nn.Module
    source: Cached | Live
    held_out: heldout.HeldOut
    held_pictures: list[Picture]


def distill(images=None, out=None, resume=False, quiet=False, **settings) -> DistillResult:
    """Distil a teacher into a student from a folder of pictures without labels. Returns a frozen result.

    `settings` are the fields of `tinkit.host.settings.Settings`. `out` names the run's folder (default
    runs/STUDENT-TIME). With `resume` the settings of the folder's record are used; others given must agree with them.
    Raises TinkitError for what a user can mend, Interrupted after Ctrl-C (saved, --resume continues).
    """
    chosen, out = _settings(images, out, resume, settings)
    with files.folder_lock(out, "the run's folder"), Progress(quiet) as progress, StopSignal() as stop:
        if resume and _status(out) == "finished":
            raise TinkitError("The run is already finished: there is nothing to resume.", where=out)
        try:
            return _distill(chosen, out, resume, progress, stop)
        except InterruptedError:
            raise Interrupted(
                "Stopped; what is done is saved.", where=out, next_step=f"tinkit distill --out {out} --resume"
            ) from None


def _distill(settings: Settings, out, resume, progress: Progress, stop) -> DistillResult:
    began = time.monotonic()
    record = files.read_json(os.path.join(out, workspace.RUN_RECORD), "The run's record") if resume else {}
    if not record:
        record = {"schema": run.SCHEMA, "status": "running", "created": _now(), "settings": settings.to_json()}
        files.write_json(os.path.join(out, workspace.RUN_RECORD), record)
    parts = prepare(settings, out, progress, stop)
    with seeded(settings.seed):
        fabric = Fabric(devices=1, precision="bf16-mixed" if torch.cuda.is_available() else "32-true")
        distiller = Distiller(parts.student, parts.method).to(memory_format=torch.channels_last)
        state = State(distiller, make_optimizer(distiller, settings), _average(distiller, settings))
        saved = checkpoint.load(out) if resume else None
        if saved is not None:
            state.load_state_dict(saved)
            progress.say(f"resumed at epoch {state.epoch + 1}, step {state.step}")
        prepared = time.monotonic() - began
        _train_with_records(state, parts, settings, out, fabric, progress, stop)
        return _finish(state, parts, settings, out, record, prepared, progress, fabric.device)


def prepare(settings: Settings, out, progress: Progress, stop) -> Parts:
    """From a folder to everything that training needs. Raises TinkitError or InterruptedError."""
    pictures = scan(settings.images, settings.strict)
    train_pictures, held_pictures = split(pictures.usable, settings.seed)
    progress.say(
        f"{len(pictures.usable)} pictures ({len(held_pictures)} held out), "
        f"{len(pictures.skipped)} unreadable, {pictures.others} other files"
    )
    if len(train_pictures) < settings.batch_size:
        raise TinkitError(
            "There are fewer pictures to train on than a batch holds.",
            where=pictures.root,
            seen=f"{len(train_pictures)} pictures, --batch-size {settings.batch_size}",
            next_step="more pictures, or a smaller --batch-size",
        )
    teacher = load_teacher(
        settings.teacher, settings.teacher_weights, settings.teacher_size, settings.teacher_global == "pooled",
        settings.teacher_mean, settings.teacher_std,
    ).to("cuda" if torch.cuda.is_available() else "cpu")  # fmt: skip
    with seeded(settings.seed):
        student = build_student(settings.student, settings.student_size, settings.dim, settings.student_weights)
    policy = ViewPolicy(scale_min=settings.scale_min, seed=settings.seed)
    crop_pct = student.spec.preprocessing.crop_pct
    sizes = [student.spec.preprocessing] + ([teacher.preprocessing] if settings.online else [])
    held_out = _held_out(held_pictures, teacher, student, policy, settings, out, progress, stop)
    store, moments = None, Moments()
    if not settings.online:
        all_views = AllViews(train_pictures, policy, [teacher.preprocessing], crop_pct, numbers=list(range(settings.views)))
        store = _store(all_views, teacher, settings, out, progress, stop, settings.local)
    if settings.mapping != "learned":
        _observe(moments, store, teacher, train_pictures, policy, crop_pct, settings, stop)
    with seeded(settings.seed):
        method = _method(settings, teacher, student, held_out.teacher, moments)
    return Parts(
        pictures, train_pictures, Views(train_pictures, policy, sizes, crop_pct), teacher, student, method,
        Live(teacher) if store is None else Cached(store), held_out, held_pictures,
    )  # fmt: skip


def _store(views, teacher, settings, out, progress, stop, local) -> FeatureStore:
    root = settings.store or os.path.join(os.path.dirname(os.path.abspath(out)), ".stores")
    return open_or_build(
        root, teacher, views, local=local, dtype=settings.store_dtype, workers=worker_count(settings),
        tick=progress.bar("teacher", len(views.pictures)), say=progress.say, stop=stop,
    )  # fmt: skip


def _held_out(pictures, teacher, student, policy, settings, out, progress, stop) -> heldout.HeldOut:
    images = student.spec.preprocessing
    views = AllViews(pictures, policy, [teacher.preprocessing], images.crop_pct, numbers=[EVALUATION])
    store = _store(views, teacher, settings, out, progress, stop, local=False)
    loader = DataLoader(AllViews(pictures, policy, [images], images.crop_pct, numbers=[EVALUATION]), batch_size=64,
                        num_workers=worker_count(settings), collate_fn=collate, worker_init_fn=ignore_interrupt)  # fmt: skip
    pixels = torch.cat([refuse_broken(batch)[:, 0] for batch in loader])
    rows = np.arange(len(pictures))
    return heldout.HeldOut([p.name for p in pictures], pixels, store.features(rows, 0 * rows))


def _observe(moments: Moments, store, teacher, pictures, policy, crop_pct, settings, stop) -> None:
    """The pre-pass of PCA over view 0 of at most `pca_pictures` pictures: from the store, or by the live teacher."""
    chosen = np.sort(np.random.default_rng([settings.seed, 3]).permutation(len(pictures))[: settings.pca_pictures])
    if store is not None:
        for start in range(0, len(chosen), 256):
            rows = chosen[start : start + 256]
            moments.add(store.features(rows, 0 * rows))
        return
    views = AllViews([pictures[i] for i in chosen], policy, [teacher.preprocessing], crop_pct, numbers=[0])
    loader = DataLoader(views, batch_size=64, num_workers=worker_count(settings), collate_fn=collate,
                        worker_init_fn=ignore_interrupt)  # fmt: skip
    for batch in loader:
        moments.add(teacher.features(refuse_broken(batch)[:, 0]))
        if stop():
            raise InterruptedError


def _method(settings: Settings, teacher, student, features: Features, moments: Moments):
    pooled = settings.teacher_global == "pooled"
    width = features.global_BD.shape[1]
    local_width = None
    if pooled and settings.local:
        size = teacher.preprocessing.size
        probe = teacher.features(torch.zeros(1, 3, size, size, dtype=torch.uint8)).local_BLD
        local_width = None if probe is None else probe.shape[2]
    heads = 2 if local_width is not None else 1
    mapping = Mapping(MappingSpec(settings.mapping, settings.center, width, student.dim, heads, local_width))
    if settings.mapping != "learned":
        mapping.fit(moments, settings.seed)
    return METHODS[settings.method](mapping, cosines_weight=settings.cosines_weight)


def _train_with_records(state: State, parts: Parts, settings, out, fabric, progress, stop) -> None:
    """Run the loop with log, bar, monitor and checkpoints around it."""
    total = settings.epochs * (len(parts.train) // settings.batch_size)
    bar = progress.bar("training", total * settings.batch_size, state.step * settings.batch_size)
    writer = _tensorboard(out)
    began, earlier = time.monotonic(), state.seconds
    with Log(os.path.join(out, run.LOG), state.step, state.epoch) as log:

        def after_step(record):
            log.write(record)
            if writer:
                for name, value in record.items():
                    writer.add_scalar(name, value, record["step"])
            bar(settings.batch_size, " ".join(f"{n} {record[n]:.3f}" for n in ("loss", "token", "feature") if n in record))

        def after_epoch():
            state.seconds = earlier + time.monotonic() - began
            best = state.best
            student_ND = heldout.embed(best.student, parts.held_out, fabric.device)
            mapped_ND = heldout.map_all(best.method, parts.held_out, fabric.device)
            found = heldout.metrics(student_ND, mapped_ND, parts.held_out.teacher.global_BD.numpy())
            state.history.append({"epoch": state.epoch, "step": state.step, **log.means(), **found})
            log.write({"event": "epoch", **state.history[-1]})
            progress.say(
                f"epoch {state.epoch}/{settings.epochs}  loss {state.history[-1]['loss']:.4f}  "
                f"held-out cosine {found['cosine_mean']:.3f} (p1 {found['cosine_p1']:.3f})  "
                f"angles off by {found['cosine_difference_mapped']:.3f}  neighbours {found['neighbour_overlap']:.2f}"
            )
            checkpoint.save(out, state.state_dict())

        try:
            complete = train(state, parts.views, parts.source, settings, fabric, after_step, after_epoch, stop)
        finally:
            if writer:
                writer.close()
        if not complete:
            state.seconds = earlier + time.monotonic() - began
            checkpoint.save(out, state.state_dict())
            raise InterruptedError


def _finish(state: State, parts: Parts, settings, out, record, prepared, progress, device) -> DistillResult:
    best = state.best
    student, method = best.student.eval(), best.method.eval()
    student_ND, mapped_ND = heldout.embed(student, parts.held_out, device), heldout.map_all(method, parts.held_out, device)
    teacher_ND = parts.held_out.teacher.global_BD.numpy()
    held = parts.held_pictures[:EXAM_PICTURES]
    exam = make_exam([(p.path, p.name) for p in held], student.spec.preprocessing)
    write_weights(os.path.join(out, run.STUDENT), student.state_dict())
    mapping = json.dumps(method.mapping.spec.to_json())
    write_weights(os.path.join(out, run.MAPPING), method.mapping.state_dict(), {"mapping": mapping})
    files.write_npz(os.path.join(out, run.EXAM), replace(exam, mapped=mapped_ND[: len(held)]).to_arrays())
    metrics = heldout.metrics(student_ND, mapped_ND, teacher_ND)
    hashes = {name: files.sha256_of_file(os.path.join(out, name)) for name in (run.STUDENT, run.MAPPING, run.EXAM)}
    pictures = parts.pictures
    record.update(
        status="finished",
        finished=_now(),
        id=hashes[run.STUDENT][:16],
        student={
            "architecture": settings.student, "size": student.spec.size, "dim": student.spec.dim,
            "preprocessing": student.spec.preprocessing.to_json(),
        },
        teacher=parts.teacher.identity,
        method={"name": settings.method, "paper": method.paper, "mapping": method.mapping.spec.to_json()},
        images={
            "root": pictures.root, "usable": len(pictures.usable), "train": len(parts.train), "heldout": len(parts.held_pictures),
            "others": pictures.others, "skipped": [{"name": name, "reason": reason} for name, reason in pictures.skipped],
        },
        metrics=metrics,
        history=state.history,
        chain=[hop.to_json() for hop in heldout.chain(student_ND, mapped_ND, teacher_ND, parts.held_out.names)],
        timings={
            "prepare_s": prepared, "train_s": state.seconds,
            "images_per_s": state.step * settings.batch_size / max(state.seconds, 1e-9),
        },
        machine={"node": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": str(device)},
        versions=_versions(),
        files=hashes,
    )  # fmt: skip
    files.write_json(os.path.join(out, workspace.RUN_RECORD), record)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(out, checkpoint.CHECKPOINT))
    progress.say(f"student in {out}")
    return DistillResult(
        run=str(out), student=settings.student, teacher=settings.teacher, method=settings.method, epochs=state.epoch,
        pictures=len(pictures.usable), skipped=len(pictures.skipped), metrics=metrics, seconds=prepared + state.seconds,
    )  # fmt: skip


@contextlib.contextmanager
def seeded(seed):
    """torch's global generator starts at `seed` inside, and is as before outside.

    Student, mapping and training each get their own start: whether a store had to be built must not change a weight.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class Log:
    """log.jsonl: a line a step. A resumed run drops the lines after its step and takes up the sums of its epoch."""

    def __init__(self, path, step, epoch):
        self.sums, self.count = {}, 0
        lines = []
        with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as handle:
            lines = [line for line in handle if _step_of(line) <= step]
        for record in map(json.loads, lines):
            if "event" not in record and record["epoch"] == epoch:
                self._add(record)
        try:
            files.write_text(path, "".join(lines))
            self.handle = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        except OSError as error:
            raise from_os_error(error, "opening the log") from error

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with contextlib.suppress(OSError):
            self.handle.close()

    def write(self, record):
        try:
            self.handle.write(json.dumps(record) + "\n")
            if "event" in record:
                self.handle.flush()
        except OSError as error:
            raise from_os_error(error, "writing the log") from error
        if "event" not in record:
            self._add(record)

    def _add(self, record):
        self.count += 1
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Means of the step records since the last call."""
        means = {name: total / max(self.count, 1) for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class StopSignal:
    """Ctrl-C (and SIGTERM) as a question: `stop()` is true once somebody asked. A second Ctrl-C ends at once."""

    def __init__(self):
        self.asked = False
        self.previous = {}

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _settings(images, out, resume, given) -> tuple[Settings, str]:
    """The settings and the run's folder; refuses to mix two runs in one folder."""
    if not resume:
        if images is None:
            raise TinkitError("No pictures given.", next_step="tinkit distill FOLDER")
        settings = Settings(images=os.path.abspath(os.fspath(images)), **given)
        out = os.fspath(out or os.path.join(workspace.RUNS, f"{settings.student}-{datetime.now():%Y%m%d-%H%M%S}"))
        status = _status(out)
        if status:
            raise TinkitError(
                "There is a run in this folder already.", where=out, seen=f"status {status!r}",
                next_step=f"another --out, or tinkit distill --out {out} --resume" if status == "running" else "another --out",
            )  # fmt: skip
        return settings, out
    if out is None:
        raise TinkitError("--resume needs to know the run.", next_step="--out runs/NAME --resume")
    out = os.fspath(out)
    record = files.read_json(os.path.join(out, workspace.RUN_RECORD), "The run's record")
    settings = Settings.from_json(record.get("settings", {}))
    if images is not None:
        given = dict(given, images=os.path.abspath(os.fspath(images)))
    for name, value in given.items():
        recorded = getattr(settings, name)
        if value is not None and value != recorded:
            raise TinkitError(
                "A resumed run keeps its settings.", where=out, seen=f"{name} {value!r}, recorded {recorded!r}",
                next_step="leave it out, or start a new run",
            )  # fmt: skip
    return settings, out


def _status(out):
    path = os.path.join(out, workspace.RUN_RECORD)
    return files.read_json(path, "The run's record").get("status") if os.path.exists(path) else None


def _step_of(line) -> float:
    try:
        return json.loads(line).get("step", 0)
    except ValueError:
        return float("inf")  # cut short by a kill


def _average(distiller, settings):
    from timm.utils import ModelEmaV3

    return ModelEmaV3(distiller, decay=settings.ema, use_warmup=True) if settings.ema else None


def _tensorboard(out):
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(os.path.join(out, "tensorboard"))


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow")
    return {"tinkit": tinkit.__version__, "python": platform.python_version(), **{name: version(name) for name in names}}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
