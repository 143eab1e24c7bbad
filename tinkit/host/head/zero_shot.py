"""Text vectors of a CLIP-like teacher, carried through the mapping: a zero-shot head for the student.

The teacher answers s <t/|t|, w_c/|w_c|> (CLIP, arXiv 2103.00020): t its global feature, w_c the text vector of class c, s the
logit scale. The mapping sees z = A v + a: v = t where it is a matrix, v = Pt/|Pt| where a LayerNorm comes first (P takes the
mean over coordinates off); `a` is its bias less the centring. With v0 the mean of v on the user's pictures, what z tells of v is

    v ~ v0 + A+ (z - a - A v0)

(A+ the pseudo-inverse; where z is blind, v stays at its mean). One linear layer cannot divide by a picture's own length:
1/|t| (for v = t) or |Pt|/|t| and mean(t)/|t| are their means on these pictures. So, with g and h for those means,

    weight_c = s g A+' w_c        bias_c = s (g <w_c, v0 - A+ (a + A v0)> + h sum(w_c))

and for a centred PCA mapping that is the rotated text vector and s g <w_c, v0>: centring moves into the bias. The mean
over classes is taken off both; softmax does not see it, and low precision rounds differences better than a common
offset. This derivation is tinkit's own. Unproven on real CLIP weights.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, PASSED
from tinkit.host.evaluate.neighbours import unit_rows
from tinkit.host.evaluate.resampling import interval_of_mean
from tinkit.host.evaluate.rows import Rows
from tinkit.host.head.files import ON_TEACHER, Fitted
from tinkit.host.mapping import GLOBAL, Mapping

LOGIT_SCALE = 100.0  # what CLIP's was clipped to in training, and reached
LOOKS_LIKE_A_LOGARITHM = 5.0  # ln(100) is 4.6: a checkpoint keeps the logarithm
MIN_AGREEMENT = 0.8  # of four pictures in five the student must give the teacher's own zero-shot answer
COMMONEST = 0.9  # where the teacher itself names one class this often, agreement says little
SMALLEST = 0.01  # singular values below this share of the largest are noise, and not inverted


@dataclass(frozen=True)
class Prompts:
    """Class names, unit text vectors (C, Dt) float32, the logit scale, the hash of the file, and notes."""

    names: tuple[str, ...]
    text: np.ndarray
    scale: float
    sha256: str
    notes: tuple[str, ...] = ()


def read_prompts(path) -> Prompts:
    """The prompts of an .npz: "names" (C,), "text" (C, Dt), and "logit_scale" if it has one.

    Raises TinkitError for anything that cannot be a set of classes with a direction each.
    """
    arrays = files.read_npz(path)
    lacks = [key for key in ("names", "text") if key not in arrays]
    if lacks:
        raise _wrong(path, "has no " + " and no ".join(lacks))
    names, text = arrays["names"], arrays["text"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise _wrong(path, f"names are {names.dtype} {names.shape}, not text (C,)")
    names = [str(name).strip() for name in names]
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise _wrong(path, f"{len(names)} names, {len(set(names))} different ones: at least two classes, each once")
    if text.ndim != 2 or len(text) != len(names) or text.dtype.kind != "f":
        raise _wrong(path, f"text is {text.dtype} {text.shape}, not numbers ({len(names)}, width of the teacher)")
    text = np.asarray(text, np.float64)
    if not np.isfinite(text).all() or not np.linalg.norm(text, axis=1).all():
        raise _wrong(path, "a text vector is zero or not finite")
    scale = np.asarray(arrays.get("logit_scale", LOGIT_SCALE))
    if scale.dtype.kind not in "fiu" or scale.size != 1 or not 0 < scale.item() < np.inf:
        raise _wrong(path, f"logit_scale {scale.tolist()}, not one positive number")
    notes: tuple[str, ...] = ()
    if scale.item() < LOOKS_LIKE_A_LOGARITHM:
        notes = (
            f"logit_scale {scale.item():.3g} may be the logarithm that a checkpoint keeps: probabilities would be flat",
        )
    return Prompts(tuple(names), unit_rows(text), float(scale.item()), files.sha256_of_file(path), notes)


def teacher_logits(prompts: Prompts, teacher_ND) -> np.ndarray:
    """(N, C): the teacher's own zero-shot answers."""
    return prompts.scale * unit_rows(teacher_ND) @ prompts.text.T


def carried(prompts: Prompts, mapping: Mapping, teacher_ND) -> tuple[np.ndarray, np.ndarray]:
    """(weight (C, D), bias (C,)) float64 over mapped features; teacher_ND (N, Dt): pictures that the means are taken of."""
    matrix_dD, offset_d, normed = affine_parts(mapping)
    rows = np.asarray(teacher_ND, np.float64)
    lengths, means = np.linalg.norm(rows, axis=1), rows.mean(axis=1)
    if not lengths.all():
        raise TinkitError("The teacher's feature of a picture is zero, so it has no direction.")
    share, rest = (1 / lengths).mean(), 0.0
    if normed:
        rows = rows - means[:, None]
        spread = np.linalg.norm(rows, axis=1)
        rows, share, rest = (
            rows / np.maximum(spread, 1e-12)[:, None],
            (spread / lengths).mean(),
            (means / lengths).mean(),
        )
    v0_D, text_CD = rows.mean(axis=0), prompts.text.astype(np.float64)
    inverse_Dd = np.linalg.pinv(matrix_dD, rcond=SMALLEST)
    weight_Cd = share * text_CD @ inverse_Dd
    bias_C = share * text_CD @ (v0_D - inverse_Dd @ (offset_d + matrix_dD @ v0_D)) + rest * text_CD.sum(axis=1)
    return prompts.scale * (weight_Cd - weight_Cd.mean(axis=0)), prompts.scale * (bias_C - bias_C.mean())


def affine_parts(mapping: Mapping) -> tuple[np.ndarray, np.ndarray, bool]:
    """(A (D, Dt), a (D,), whether a LayerNorm comes first): the global head of a mapping as z = A v + a, in float64.

    v as the module's story has it; LayerNorm's own epsilon (1e-5 on the variance) is left out.
    """
    tensors = {name: value.detach().cpu().double().numpy() for name, value in mapping.head[GLOBAL].state_dict().items()}
    centre_d = mapping.mean[GLOBAL].detach().cpu().double().numpy() * mapping.spec.center
    if "basis" in tensors:
        return tensors["basis"].T, -centre_d, False
    if "weight" in tensors:
        return tensors["weight"], -centre_d, False
    width = len(tensors["0.weight"])
    matrix_dD = np.sqrt(width) * tensors["1.weight"] * tensors["0.weight"]
    matrix_dD = matrix_dD - matrix_dD.mean(axis=1, keepdims=True)  # v has no mean over its coordinates
    return matrix_dD, tensors["1.weight"] @ tensors["0.bias"] + tensors["1.bias"] - centre_d, True


def length_of(mapped_ND, student_ND) -> float:
    """The number a > 0 for which a * mapped is nearest to the student's embeddings (least squares); 1 where none is.

    Losses over cosines leave the length of an embedding open, and a linear head is not blind to it.
    """
    mapped, student = np.asarray(mapped_ND, np.float64), np.asarray(student_ND, np.float64)
    found = (mapped * student).sum() / max((mapped**2).sum(), 1e-30)
    return float(found) if np.isfinite(found) and found > 0 else 1.0


def agreement(logits_NC, reference_NC, seed=0) -> dict:
    """How often two sets of answers name the same class, 0..1, with a 95 % interval by bootstrap over pictures."""
    same = np.equal(np.argmax(logits_NC, axis=1), np.argmax(reference_NC, axis=1)).astype(float)
    return {"agreement": float(same.mean()), "interval": list(interval_of_mean(same, seed=seed))}


def from_prompts(prompts: Prompts, mapping, rows: Rows, bank: slice, limit: float, seed: int) -> Fitted:
    """The zero-shot head, its means taken on the bank, held against the teacher's own answers on all other pictures.

    What is judged against `limit` is the agreement of the mapped teacher and of the student, each on its own features.
    """
    if rows.mapped is None or bank.stop >= len(rows):
        raise ValueError("a mapping and pictures outside the bank are needed")
    if rows.teacher.shape[1] != prompts.text.shape[1]:
        raise TinkitError(
            "The text vectors do not live in the space of the teacher's global feature.",
            seen=f"{prompts.text.shape[1]} wide, the teacher's feature is {rows.teacher.shape[1]}",
            next_step="distil from the image tower with its projection (an ONNX teacher with the output `embedding`)",
        )
    judged = rows[slice(bank.stop, None)]
    length = length_of(rows.mapped[bank], rows.student[bank])
    weight_CD, bias_C = carried(prompts, mapping, rows.teacher[bank])
    reference = teacher_logits(prompts, judged.teacher)
    answers = {
        "mapped": rows.mapped[bank.stop :] @ weight_CD.T + bias_C,
        "student": judged.student @ (weight_CD / length).T + bias_C,
    }
    shares = np.bincount(reference.argmax(axis=1), minlength=len(prompts.names)) / len(reference)
    evidence: dict[str, Any] = {
        **{who: agreement(logits, reference, seed) for who, logits in answers.items()},
        "pictures": len(reference),
        "limit": limit,
        "commonest": {"class": prompts.names[int(shares.argmax())], "share": float(shares.max())},
        "probability_difference": float(
            np.abs(softmax(answers["student"], axis=1) - softmax(reference, axis=1)).sum(axis=1).mean() / 2
        ),
        "logit_scale": prompts.scale,
        "length": length,
        "prompts_sha256": prompts.sha256,
        "unproven": "on real CLIP weights: the way was tested on synthetic aligned vectors only",
    }
    notes = [*prompts.notes, f"zero-shot heads are unproven {evidence['unproven']}"]
    if shares.max() > COMMONEST:
        notes.append(
            f"the teacher itself answers {evidence['commonest']['class']!r} for {shares.max():.0%} of these pictures: "
            "agreement says little here"
        )
    told = ", ".join(
        f"{words} {evidence[who]['agreement']:.3f} (95 % {_interval(evidence[who])})"
        for who, words in (("mapped", "mapped teacher"), ("student", "student"))
    )
    worst = min(evidence[who]["agreement"] for who in answers)
    passed = worst >= limit
    reason = (
        f"answers as the teacher's own zero-shot does, of {len(reference)} pictures: {told}; "
        f"{'at least' if passed else 'the limit is'} {limit:g}"
    )
    return Fitted(weight_CD / length, bias_C, ON_TEACHER, PASSED if passed else FAILED, reason, evidence, notes)


def _wrong(path, seen):
    return TinkitError(
        "The file of prompts is not one.",
        where=str(path),
        seen=seen,
        next_step='np.savez(path, names=["cat", ...], text=vectors of (classes, width), logit_scale=100.0)',
    )


def _interval(block) -> str:
    return " to ".join(f"{value:.3f}" for value in block["interval"])
