"""Looks at the held-out pictures after every epoch: is the student where the mapped teacher is, and are angles kept?

Held-out pictures are seen through the evaluation view only, and never trained on. Their pixels (at most 512 pictures)
stay in memory as uint8 for the run.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from tinkit.fidelity import Fidelity, compare_answers, cosine_difference, cosine_per_picture, neighbour_overlap, unit
from tinkit.host.features import Features
from tinkit.host.views import normalise_on_device


@dataclass(frozen=True)
class HeldOut:
    """N pictures: student pixels (N,3,S,S) uint8, names, and the teacher's features of them."""

    names: list[str]
    pixels: torch.Tensor
    teacher: Features

    def batches(self, size=128):
        return [slice(start, start + size) for start in range(0, len(self.names), size)]


@torch.no_grad()
def embed(student, held_out: HeldOut, device) -> np.ndarray:
    """The student's embeddings (N, D) float32; the student is put into eval mode and back."""
    was_training = student.training
    student.eval()
    images = student.spec.preprocessing
    parts = [
        student(normalise_on_device(held_out.pixels[part].to(device), images)).global_BD for part in held_out.batches()
    ]
    student.train(was_training)
    return torch.cat(parts).float().cpu().numpy()


@torch.no_grad()
def map_all(mapping, held_out: HeldOut, device) -> np.ndarray | None:
    """The mapped teacher's embeddings (N, D) float32; None without a mapping."""
    if mapping is None:
        return None
    parts = [mapping(Features(held_out.teacher.global_BD[part].to(device))) for part in held_out.batches()]
    return torch.cat(parts).float().cpu().numpy()


def metrics(student_ND, mapped_ND, teacher_ND, fitted=False) -> dict[str, float]:
    """The monitor's numbers; those against the mapped teacher only where there is a mapping.

    With a mapping that was fitted on the student afterwards their names begin with fitted_: they say how linear the
    student is in the teacher, not how near it came to a target, and are higher than a trained mapping's.

    cosine_*: of student to mapped teacher, per picture; cosine_difference: mean |difference of pairwise cosines| of
    student and teacher as it is; cosine_difference_mapped: the same against the mapped teacher (centred, when the mapping
    centres); neighbour_overlap: share of the nearest `neighbours` in common with the teacher (10, fewer in
    a small set; chance is neighbours / (N - 1)).
    """
    found = {}
    if mapped_ND is not None:
        cosine = cosine_per_picture(student_ND, mapped_ND)
        found = {
            "cosine_mean": float(cosine.mean()),
            "cosine_p1": float(np.percentile(cosine, 1)),
            "cosine_min": float(cosine.min()),
            "cosine_difference_mapped": cosine_difference(student_ND, mapped_ND),
        }
        found = {f"fitted_{name}" if fitted else name: value for name, value in found.items()}
    return {
        **found,
        "cosine_difference": cosine_difference(student_ND, teacher_ND),
        "neighbour_overlap": neighbour_overlap(student_ND, teacher_ND, neighbours(len(teacher_ND))),
        "neighbours": neighbours(len(teacher_ND)),
    }


def in_words(found) -> str:
    """One line of the monitor."""
    words = f"angles off by {found['cosine_difference']:.3f}  neighbours {found['neighbour_overlap']:.2f}"
    if "cosine_mean" not in found:
        return "no mapping yet  " + words
    return f"held-out cosine {found['cosine_mean']:.3f} (p1 {found['cosine_p1']:.3f})  " + words


def neighbours(pictures: int) -> int:
    """How many nearest neighbours to compare: 10, but at most a quarter of the others, so that chance stays below it."""
    return max(1, min(10, (pictures - 1) // 4))


def chain(student_ND, mapped_ND, teacher_ND, names, fitted=False) -> list[Fidelity]:
    """The first two hops of the fidelity chain, as evidence (no gate); one hop where there is no mapping.

    teacher -> mapped teacher live in spaces of different width, so each picture is described by its cosines to the other
    held-out pictures, and the two descriptions are correlated. mapped teacher -> student is the plain cosine.
    """
    if mapped_ND is None:
        hop = _by_profiles("teacher -> student", student_ND, teacher_ND, names)
        return [replace(hop, reason="evidence, no gate; no mapping")]
    mapped = "teacher fitted afterwards" if fitted else "mapped teacher"
    first = _by_profiles(f"teacher -> {mapped}", mapped_ND, teacher_ND, names)
    second = compare_answers(
        f"{mapped} -> student",
        "embedding",
        student_ND,
        mapped_ND,
        names,
        conditions={
            "measure": "cosine of each held-out picture",
            "cosine_difference": cosine_difference(student_ND, mapped_ND),
            "neighbour_overlap": neighbour_overlap(student_ND, mapped_ND, neighbours(len(names))),
            "neighbours": neighbours(len(names)),
        },
    )
    return [replace(hop, reason="evidence, no gate") for hop in (first, second)]


def _by_profiles(name, rows_ND, reference_ND, names) -> Fidelity:
    return compare_answers(
        name,
        "embedding",
        _profiles(rows_ND),
        _profiles(reference_ND),
        names,
        conditions={
            "measure": "correlation of each picture's cosines to the other held-out pictures",
            "cosine_difference": cosine_difference(rows_ND, reference_ND),
            "neighbour_overlap": neighbour_overlap(rows_ND, reference_ND, neighbours(len(names))),
            "neighbours": neighbours(len(names)),
        },
    )


def _profiles(rows_ND):
    """(N, N-1): each row's cosines to the other rows, with the row's mean removed."""
    rows = unit(rows_ND)
    cosines = rows @ rows.T
    others = cosines[~np.eye(len(rows), dtype=bool)].reshape(len(rows), -1)
    return others - others.mean(axis=1, keepdims=True)
