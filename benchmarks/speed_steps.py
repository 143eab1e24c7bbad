"""Steps of benchmarks/speed.py: tinkit's loop on a store, beside the bare supervised loop and beside the live teacher."""

import dataclasses
import itertools
import os
import resource
import tempfile
import time

from speed_turns import device, in_turns, threads

BATCH, ROUNDS, WARM, STEPS = 64, 5, 2, 4
TEACHER, STUDENT_SIZE = "efficientnet-lite2", 160
VIT_BATCH, VIT_STEPS = 16, 2
COMPILED_STEPS = 12
HOW = ("plain", "given back", "compiled")
VIT_ROUNDS = {"vit_small_patch16_224": 3, "vit_base_patch16_224": 2, "vit_large_patch16_224": 1}


def step(work, student):
    """Images/s of tinkit's loop on a store, and of the bare supervised loop; the default teacher, 160 px."""
    prepared = _prepared(work, "some", student=student, student_size=STUDENT_SIZE, views=1, batch_size=BATCH)
    first = prepared.distil_rate(BATCH, WARM, prepared.parts.plan.batches)  # and so every view is met once
    rates = in_turns({"bare": prepared.bare_rate, "cached": prepared.distil_rate}, ROUNDS, BATCH, WARM, STEPS)
    return {**rates, "first": first, "local positions": prepared.positions(), "size": STUDENT_SIZE, "batch": BATCH}


def online(work, teacher):
    """Images/s with the store against the live teacher: a ViT with random weights, default student at 160 px."""
    weights = _random_weights(work, teacher)
    same = {"teacher": teacher, "teacher_weights": weights, "student": "mobilenetv4_conv_small", "batch_size": VIT_BATCH,
            "student_size": STUDENT_SIZE, "views": 1, "pca_pictures": 32}  # fmt: skip
    cached, live = _prepared(work, "few", **same), _prepared(work, "few", online=True, **same)
    cached.distil_rate(VIT_BATCH, 1, cached.parts.plan.batches)  # every view is met once
    rates = in_turns({"online": live.distil_rate, "cached": cached.distil_rate}, VIT_ROUNDS[teacher], VIT_BATCH, 1, VIT_STEPS,
                     discard=0)  # fmt: skip
    return {**rates, "batch": VIT_BATCH}


def compiled(work, student):
    """Seconds and page faults of tinkit's single steps: as they are (before, between and after), with the memory of each step
    given back to the system, and with torch.compile, whose first one is told apart."""
    from contextlib import nullcontext
    from unittest import mock

    from torch._inductor.utils import fresh_cache

    prepared = _prepared(work, "some", student=student, student_size=STUDENT_SIZE, views=1, batch_size=BATCH)
    prepared.step_times(prepared.parts.plan.batches)  # every view is met once
    times, faults = {name: [] for name in HOW}, {name: [] for name in HOW}

    def measure(how, **settings):
        found = prepared.steps(WARM + COMPILED_STEPS, **settings)
        times[how] += [seconds for seconds, _ in found[WARM:]]
        faults[how] += [count for _, count in found[WARM:]]
        return found[0][0]

    measure("plain")
    with mock.patch("tinkit.host.distill.loop.kept_memory", nullcontext):
        measure("given back")
    measure("plain")
    with tempfile.TemporaryDirectory() as folder, fresh_cache(dir=folder):
        first = measure("compiled", compile="on")
    measure("plain")
    return {**times, "faults": faults, "first": first, "batch": BATCH, "size": STUDENT_SIZE}


class _prepared:
    """A run that is ready to train: parts, state, and both loops over the same views."""

    def __init__(self, work, pictures, **settings):
        import torch

        from tinkit.host.distill.prepare import prepare
        from tinkit.host.distill.ranks import alone
        from tinkit.host.distill.schedule import make_optimizer
        from tinkit.host.distill.settings import Settings
        from tinkit.host.distill.state import Distiller, State
        from tinkit.host.distill.threads import worker_count
        from tinkit.host.progress import Progress

        settings = {"teacher": TEACHER, "teacher_size": None, **settings}
        self.settings = Settings(images=os.path.join(work, pictures), epochs=1000, **settings)
        with threads(self.settings):
            self.parts = prepare(self.settings, os.path.join(work, "runs", "speed"), Progress(), lambda: False, alone())
        self.workers = worker_count(self.settings)
        distiller = Distiller(self.parts.student, self.parts.method).to(device()).to(memory_format=torch.channels_last)
        self.state = State(distiller, make_optimizer(distiller, self.settings), None)

    def positions(self):
        grid = self.parts.sample().__next__().grid
        return None if grid is None else grid[0] * grid[1]

    def distil_rate(self, batch, warm, steps):
        """Images/s over `steps` steps of tinkit's own loop, after the first one and `warm` more."""
        return batch * steps / sum(self.step_times(1 + warm + steps)[1 + warm :])

    def step_times(self, steps):
        """Seconds of each of the next steps of tinkit's own loop, the wait for its pictures included."""
        return [seconds for seconds, _ in self.steps(steps)]

    def steps(self, steps, **settings):
        """(seconds, page faults of this process) of each of the next steps of tinkit's own loop."""
        from tinkit.host.distill.loop import train
        from tinkit.host.distill.ranks import alone

        def now():
            return time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt

        marks = [now()]
        wanted = dataclasses.replace(self.settings, **settings)
        with threads(wanted):
            train(self.state, self.parts.plan, self.parts.views, self.parts.source, wanted, alone().fabric,
                  lambda record: marks.append(now()), lambda: None, lambda: len(marks) > steps)  # fmt: skip
        return [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(marks)]

    def bare_rate(self, batch, warm, steps):
        """Images/s of the cheapest honest loop: the same loader and student, a linear head, cross-entropy, AdamW.

        It keeps its memory as tinkit's does, which makes it the faster of the two forms of it.
        """
        import torch
        from torch.utils.data import DataLoader

        from tinkit.host.distill.plan import Plan
        from tinkit.host.memory import kept_memory
        from tinkit.host.store import ignore_interrupt
        from tinkit.host.student import build_student
        from tinkit.host.views import collate, normalise_on_device

        student = build_student(self.settings.student, self.settings.student_size, classes=1000).train()
        student = student.to(device()).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(student.parameters(), fused=True)
        views, images = self.parts.views, student.spec.preprocessing
        plan = Plan(len(views), 1, batch, 0)
        loader = DataLoader(views, batch_sampler=plan.onwards(0, 0, 1000), num_workers=self.workers, collate_fn=collate,
                            worker_init_fn=ignore_interrupt)  # fmt: skip
        times = []
        with threads(self.settings), kept_memory():
            for (pixels, *_), index_B, _ in loader:
                with torch.autocast(device(), torch.bfloat16, enabled=device() == "cuda"):
                    logits_BC = _head_only(student, normalise_on_device(pixels.to(device()), images))
                loss = torch.nn.functional.cross_entropy(logits_BC.float(), (index_B % 1000).to(device()))
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


def _random_weights(work, name):
    """A weights file of a timm network as it is born."""
    import timm

    from tinkit.host.weights import write_weights

    path = os.path.join(work, f"{name}.safetensors")
    if not os.path.exists(path):
        write_weights(path, timm.create_model(name, num_classes=0).state_dict())
    return path
