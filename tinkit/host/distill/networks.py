"""The two networks of a run and what each says: built from the settings, their shapes seen on an empty picture."""

import contextlib

import torch

from tinkit.host.distill.pair import Pair
from tinkit.host.distill.settings import Settings
from tinkit.host.student import Student, build_student
from tinkit.host.taps import side_of, tap_indices
from tinkit.host.teacher import Teacher, load_teacher, require_parts


def make_networks(
    settings: Settings, terms, needed, device: torch.device | str | None = None
) -> tuple[Student, Teacher, tuple[str, ...]]:
    """Student, teacher, and what the teacher itself computes; with labels its logits come from a fitted head.

    device: the teacher's; None: a GPU where there is one.
    """
    with seeded(settings.seed):
        student = build_student(settings.student, settings.student_size, settings.dim, settings.student_weights)
    if "student_taps" in needed:
        student.tapped = tap_indices(student.backbone)
    teacher = load_teacher(
        settings.teacher,
        settings.teacher_weights,
        settings.teacher_size,
        settings.teacher_global == "pooled",
        settings.teacher_mean,
        settings.teacher_std,
    ).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    own_logits = "logits" in needed and settings.labels is None
    wishes = (("local", "local" in needed), ("logits", own_logits), ("taps", "teacher_taps" in needed))
    parts = tuple(name for name, wish in wishes if wish)
    without = [] if any("local" in term.cls.needs for term in terms) else ["local"]
    require_parts(teacher, [name for name in parts if name not in without])
    return student, teacher, parts


@torch.no_grad()
def make_pair(teacher, student, teacher_parts, labels, needed, pictures: int, settings: Settings) -> Pair:
    """Shapes of both sides, seen on an empty picture. Classes only where a method sees logits or labels."""
    size = teacher.preprocessing.size
    theirs = teacher.features(torch.zeros(1, 3, size, size, dtype=torch.uint8), teacher_parts)
    student.eval()
    ours = student(torch.zeros(1, 3, student.spec.size, student.spec.size))
    student.train()
    return Pair(
        side_of(ours),
        side_of(theirs),
        (len(labels.classes) if labels else teacher.classes) if {"logits", "labels"} & needed else None,
        pictures,
        settings.epochs,
        settings.teacher_global == "pooled",
        settings.seed,
    )


@contextlib.contextmanager
def seeded(seed):
    """torch's global generator starts at `seed` inside, and is as before outside.

    Student, mapping and training each get their own start: whether a store had to be built must not change a weight.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
