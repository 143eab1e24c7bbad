"""A tiny teacher and student for the tests: real timm networks, random weights, 32 pixels, seconds to train."""

import itertools

import timm
import torch

from tinkit.host.distill import records as records
from tinkit.host.weights import write_weights

TEACHER = STUDENT = "test_efficientnet"
SMALL = {
    "teacher": TEACHER,
    "teacher_size": 64,
    "student": STUDENT,
    "student_size": 32,
    "dim": 16,
    "epochs": 2,
    "batch_size": 8,
    "views": 2,
    "workers": 0,
    "quiet": True,
}


def teacher_weights(folder, classes=0):
    """A weights file of random but lively weights, the same every time; with a classifier when asked for."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = timm.create_model(TEACHER, num_classes=classes)
    path = str(folder / "teacher.safetensors")
    write_weights(path, network.state_dict())
    return path


def stopped_after(patched, steps):
    """Training is asked to stop after so many steps, as by Ctrl-C."""
    real, asked = records.train, itertools.count(1)

    def train(*arguments, **options):
        return real(*arguments[:-2], lambda: next(asked) >= steps, arguments[-1], **options)

    patched.setattr(records, "train", train)
