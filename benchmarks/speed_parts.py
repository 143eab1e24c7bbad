"""The measurements of benchmarks/speed.py: each takes (work folder, what) and gives plain numbers."""

import os
import subprocess
import sys
import time

from tinkit import files

BATCH, ROUNDS, WARM, STEPS = 64, 7, 3, 6
TEACHER, TEACHER_SIZE, STUDENT_SIZE = "efficientnet-lite2", 260, 224
VIT_BATCH, VIT_STEPS, VIT_ROUNDS = 32, 2, 3


def step(work, student):
    """Images/s of tinkit's loop on a store, and of the bare supervised loop; the default teacher, 224 px."""
    prepared = _prepared(work, "some", student=student, student_size=STUDENT_SIZE, views=1, batch_size=BATCH)
    rates = in_turns({"bare": prepared.bare_rate, "cached": prepared.distil_rate}, ROUNDS, BATCH, WARM, STEPS)
    return {**rates, "local positions": prepared.positions(), "size": STUDENT_SIZE, "batch": BATCH}


def online(work, teacher):
    """Images/s with the store against the live teacher: a ViT with random weights, default student at 224 px."""
    weights = _random_weights(work, teacher)
    same = {"teacher": teacher, "teacher_weights": weights, "student": "mobilenetv4_conv_small", "batch_size": VIT_BATCH,
            "student_size": STUDENT_SIZE, "views": 1, "pca_pictures": 32}  # fmt: skip
    cached, live = _prepared(work, "few", **same), _prepared(work, "few", online=True, **same)
    rates = in_turns({"online": live.distil_rate, "cached": cached.distil_rate}, VIT_ROUNDS, VIT_BATCH, 1, VIT_STEPS)
    return {**rates, "batch": VIT_BATCH}


def in_turns(measures, rounds, *arguments):
    """name -> the rates of all rounds; one round of each before that does not count."""
    found = {name: [] for name in measures}
    for number in range(rounds + 1):
        for name, measure in measures.items():
            rate = measure(*arguments)
            if number:
                found[name].append(rate)
    return found


class _prepared:
    """A run that is ready to train: parts, state, and both loops over the same views."""

    def __init__(self, work, pictures, **settings):
        from tinkit.host.distill.prepare import prepare
        from tinkit.host.distill.schedule import make_optimizer
        from tinkit.host.distill.settings import Settings
        from tinkit.host.distill.state import Distiller, State
        from tinkit.host.distill.threads import worker_count
        from tinkit.host.progress import Progress

        settings = {"teacher": TEACHER, "teacher_size": None, **settings}
        self.settings = Settings(images=os.path.join(work, pictures), epochs=1000, **settings)
        with _threads(self.settings):
            self.parts = prepare(self.settings, os.path.join(work, "runs", "speed"), Progress(), lambda: False)
        self.workers = worker_count(self.settings)
        distiller = Distiller(self.parts.student, self.parts.method).to(_device())
        self.state = State(distiller, make_optimizer(distiller, self.settings), None)

    def positions(self):
        grid = self.parts.sample().__next__().grid
        return None if grid is None else grid[0] * grid[1]

    def distil_rate(self, batch, warm, steps):
        """Images/s over `steps` steps of tinkit's own loop, after `warm`."""
        from lightning_fabric import Fabric

        from tinkit.host.distill.loop import train

        times = []

        def after_step(record):
            times.append(time.monotonic())

        fabric = Fabric(devices=1, precision=_precision())
        with _threads(self.settings):
            train(self.state, self.parts.views, self.parts.source, self.settings, fabric, after_step, lambda: None,
                  lambda: len(times) > warm + steps)  # fmt: skip
        return batch * steps / (times[warm + steps] - times[warm])

    def bare_rate(self, batch, warm, steps):
        """Images/s of the cheapest honest loop: the same loader and student, a linear head, cross-entropy, AdamW."""
        import torch
        from torch.utils.data import DataLoader

        from tinkit.host.distill.plan import Plan
        from tinkit.host.store import ignore_interrupt
        from tinkit.host.student import build_student
        from tinkit.host.views import collate, normalise_on_device

        student = build_student(self.settings.student, self.settings.student_size, classes=1000).train()
        student = student.to(_device()).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(student.parameters(), fused=True)
        views, images = self.parts.views, student.spec.preprocessing
        plan = Plan(len(views), 1, batch, 0)
        loader = DataLoader(views, batch_sampler=plan, num_workers=self.workers, collate_fn=collate,
                            worker_init_fn=ignore_interrupt)  # fmt: skip
        times = []
        with _threads(self.settings):
            for (pixels, *_), index_B, _ in loader:
                with torch.autocast(_device(), torch.bfloat16, enabled=_device() == "cuda"):
                    logits_BC = _head_only(student, normalise_on_device(pixels.to(_device()), images))
                loss = torch.nn.functional.cross_entropy(logits_BC.float(), (index_B % 1000).to(_device()))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                times.append((time.monotonic(), float(loss.detach()))[0])
                if len(times) > warm + steps:
                    break
        return batch * steps / (times[warm + steps] - times[warm])


def _head_only(student, images_BCHW):
    """Logits by pooling and a linear layer: what a supervised loop computes, without a neck over all positions."""
    features = student.backbone.forward_features(images_BCHW)
    pooled_BD = features.mean((2, 3)) if features.ndim == 4 else features[:, 0]
    return student.head(student.neck(pooled_BD) if student.neck is not None else pooled_BD)


def store(work, teacher):
    """Pictures/s: the bare teacher on the loader, and the store being written; then its size, and random reads."""
    import numpy as np

    from tinkit.host.images import scan
    from tinkit.host.teacher import load_teacher

    name, size = teacher.split()
    count, folder = (10_000, "all") if int(size) < 128 else (400, "some")
    pictures = scan(os.path.join(work, folder)).usable[:count]
    teacher = load_teacher(name, size=int(size)).to(_device())
    rounds = 3 if count > 1000 else 5
    part = pictures[: min(len(pictures), 2000)]
    rates = in_turns({"bare": lambda: _bare_teacher(part, teacher), "written": lambda: _written(work, part, teacher)[0]},
                     rounds)  # fmt: skip
    rate, kept = _written(work, pictures, teacher)
    random = np.random.default_rng(0)
    reads = []
    for _ in range(60):
        rows = random.integers(0, len(pictures), 64)
        began = time.monotonic()
        kept.features(rows, 0 * rows)
        reads.append(64 / (time.monotonic() - began))
    return {**rates, "whole": rate, "pictures": len(pictures), "reads": reads[10:], "bytes": _bytes(kept, len(pictures)),
            "int8": _int8(work, part[:500], teacher)}  # fmt: skip


def _all_views(pictures, teacher):
    from tinkit.host.views import AllViews, ViewPolicy

    return AllViews(pictures, ViewPolicy(), [teacher.preprocessing], 0.9, numbers=[0])


def _bare_teacher(pictures, teacher):
    from torch.utils.data import DataLoader

    from tinkit.host.store import ignore_interrupt
    from tinkit.host.views import collate

    began = time.monotonic()
    with _threads():
        for pixels in DataLoader(_all_views(pictures, teacher), batch_size=64, num_workers=_workers(), collate_fn=collate,
                                 worker_init_fn=ignore_interrupt):  # fmt: skip
            teacher.features(pixels.flatten(0, 1), ("local",))
    return len(pictures) / (time.monotonic() - began)


def _written(work, pictures, teacher, **options):
    """(pictures/s, the store) of a store written anew."""
    import shutil

    from tinkit.host.store import open_or_build

    root = os.path.join(work, "stores")
    shutil.rmtree(root, ignore_errors=True)
    began = time.monotonic()
    with _threads():
        kept = open_or_build(root, teacher, _all_views(pictures, teacher), workers=_workers(), **options)
    return len(pictures) / (time.monotonic() - began), kept


def _bytes(kept, pictures):
    return (
        sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(kept.path) for name in names)
        / pictures
    )


def _int8(work, pictures, teacher):
    """Bytes a picture as int8, and the cosine of each row to its float16 one: mean and worst."""
    import numpy as np
    import torch

    rows = np.arange(len(pictures))
    exact = _written(work, pictures, teacher)[1].features(rows, 0 * rows)
    kept = _written(work, pictures, teacher, dtype="int8")[1]
    close = kept.features(rows, 0 * rows)
    found = {"bytes": _bytes(kept, len(pictures))}
    for name, one, other in (("global", exact.global_BD, close.global_BD), ("local", exact.local_BLD, close.local_BLD)):
        cosines = torch.nn.functional.cosine_similarity(one, other, dim=-1)
        found[name] = {"mean": float(cosines.mean()), "worst": float(cosines.min())}
    return found


def memory(work, count):
    """Peak memory in MB while a store of `count` made-up pictures is built; pictures/s with a teacher that costs nothing."""
    import shutil

    import numpy as np
    import torch

    from tinkit.device.board import peak_memory_mb
    from tinkit.host.features import Features
    from tinkit.host.images.catalogue import Catalogue
    from tinkit.host.store import open_or_build
    from tinkit.host.views import AllViews, ViewPolicy

    class Blank(AllViews):
        def __getitem__(self, index):
            return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

    class Instant:
        identity, preprocessing, classes = {"name": "instant"}, None, 0

        def features(self, pixels, parts=()):
            return Features(torch.ones(len(pixels), 64))

    count = int(count)
    addresses = np.random.default_rng(0).integers(0, 256, (count, 32), dtype=np.uint8)
    listing_began = time.monotonic()
    pictures = Catalogue.of("/made-up", (f"folder-{n % 1000:03d}/picture-{n:07d}.jpg" for n in range(count)), addresses)
    before, listed = peak_memory_mb(), time.monotonic() - listing_began
    root = os.path.join(work, "stores")
    shutil.rmtree(root, ignore_errors=True)
    began = time.monotonic()
    open_or_build(root, Instant(), Blank(pictures, ViewPolicy(), [None], 0.9, numbers=[0]), parts=(), batch=512)
    return {"pictures": count, "listing_mb": before, "peak_mb": peak_memory_mb(), "listed_s": listed,
            "per_s": count / (time.monotonic() - began)}  # fmt: skip


def start(work, _):
    """Seconds of `tinkit --help`, and from the command to the first gradient: at first, and with the features kept."""
    import shutil

    shown = []
    for _ in range(9):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "tinkit", "--help"], check=True, stdout=subprocess.DEVNULL)
        shown.append(time.monotonic() - began)
    shutil.rmtree(os.path.join(work, "first"), ignore_errors=True)
    first = [_first_gradient(work) for _ in range(4)]
    return {
        "help": shown[2:],
        "first": first[0],
        "again": first[1:],
        "pictures": len(os.listdir(os.path.join(work, "some"))),
    }


def _first_gradient(work):
    """Seconds from starting the process to the end of the first backward pass; it then leaves at once."""
    import shutil

    code = (
        "import os, sys, lightning_fabric as lf\n"
        "real = lf.Fabric.backward\n"
        "def backward(*arguments, **named):\n"
        "    real(*arguments, **named)\n"
        "    print('gradient', flush=True)\n"
        "    os._exit(0)\n"
        "lf.Fabric.backward = backward\n"
        "from tinkit.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    out = os.path.join(work, "first", "run")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", code, "distill", os.path.join(work, "some"), "--teacher", "efficientnet-lite0"]
    command += ["--teacher-size", "128", "--student-size", "128", "--views", "2", "--out", out]
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if "gradient" not in done.stdout:
        raise RuntimeError(f"no first gradient: {done.stdout}")
    return time.monotonic() - began


def export(work, student):
    """Seconds of a bare torch.onnx.export, of tinkit's ONNX file, and of whole exports with their gates."""
    import logging
    import shutil
    import warnings

    import torch

    import tinkit
    from tinkit.host.export.command import load_target
    from tinkit.host.export.to_onnx import student_to_onnx
    from tinkit.host.run import load_run

    run = os.path.join(work, "runs", f"export-{student}")
    if not os.path.exists(os.path.join(run, "student.safetensors")):
        tinkit.distill(os.path.join(work, "some"), out=run, student=student, student_size=STUDENT_SIZE, epochs=1, views=1,
                       teacher="efficientnet-lite0", teacher_size=128, quiet=True)  # fmt: skip
    logging.disable(logging.CRITICAL)
    target = load_target("onnx-fp32")
    deployed = load_run(run).student().eval().deploy()

    def bare():
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example = torch.zeros(2, 3, STUDENT_SIZE, STUDENT_SIZE)
            program = torch.onnx.export(deployed, (example,), dynamo=True, opset_version=target.opset, optimize=True,
                                        dynamic_shapes=({0: "batch"},), verbose=False)  # fmt: skip
            program.save(os.path.join(work, "bare.onnx"))

    def whole(name):
        shutil.rmtree(os.path.join(work, "bundle"), ignore_errors=True)
        tinkit.export(run, target=name, out=os.path.join(work, "bundle"))

    def seconds(action, *arguments):
        began = time.monotonic()
        action(*arguments)
        return time.monotonic() - began

    return in_turns(
        {
            "bare": lambda: seconds(bare),
            "file": lambda: seconds(student_to_onnx, deployed, STUDENT_SIZE, target, os.path.join(work, "ours.onnx")),
            "onnx-fp32": lambda: seconds(whole, "onnx-fp32"),
            "trt-fp16": lambda: seconds(whole, "trt-fp16"),
        },
        5,
    )


def scaling(work, student):
    """Images/s of one process on one core and of two on two, one thread and no loader process each; the same batch."""
    found = {"1": [], "2": []}
    for number in range(4):
        for devices in found:
            rate = _trained_on(work, student, devices)
            if number:
                found[devices].append(rate)
    return {**found, "batch": BATCH, "size": 128}


def _trained_on(work, student, devices):
    """Images/s that run.json tells after two epochs, on the cores 0..devices-1."""
    import shutil

    out = os.path.join(work, "runs", f"scaling-{devices}")
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "tinkit",
        "distill",
        os.path.join(work, "some"),
        "--devices",
        devices,
        "--out",
        out,
    ]
    command += [
        "--student",
        student,
        "--student-size",
        "128",
        "--teacher",
        "efficientnet-lite0",
        "--teacher-size",
        "128",
    ]
    command += ["--views", "1", "--epochs", "2", "--workers", "0", "--batch-size", str(BATCH)]
    cores = "0" if devices == "1" else "0,1"
    subprocess.run(["taskset", "-c", cores, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    return files.read_json(os.path.join(out, "run.json"), "The run")["timings"]["images_per_s"]


def _random_weights(work, name):
    """A weights file of a timm network as it is born."""
    import timm

    from tinkit.host.weights import write_weights

    path = os.path.join(work, f"{name}.safetensors")
    if not os.path.exists(path):
        write_weights(path, timm.create_model(name, num_classes=0).state_dict())
    return path


def _device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _precision():
    return "bf16-mixed" if _device() == "cuda" else "32-true"


def _workers():
    return min(8, max(1, (os.cpu_count() or 1) // 2))


def _threads(settings=None):
    from tinkit.host.distill.threads import threads_beside, worker_count

    return threads_beside(_workers() if settings is None else worker_count(settings))
