"""The epoch whose student was nearest to its teacher on the held-out pictures, kept beside the last one.

What ships is the last epoch. The held-out pictures are the run's validation split: an epoch chosen on them would report
them too well, and the learning rate comes down so that the last epoch is the good one. `best.safetensors` is there for
who wants to look, and may be removed. The measure is the mean cosine to the mapped teacher where the method has a mapping,
else the share of nearest neighbours in common with the teacher; of equal epochs the later counts.
"""

import contextlib
import math
import os

import torch

from tinkit.host.distill.writing import write_patiently
from tinkit.host.weights import write_weights

BEST = "best.safetensors"
MEASURES = ("cosine_mean", "neighbour_overlap")  # the first that the monitor has


def best_epoch(history) -> dict | None:
    """{"epoch", "step", "measure", "value"} of the best entry of a run's history; None where there is no number."""
    measure = next((name for name in MEASURES if history and name in history[-1]), None)
    entries = [entry for entry in history if measure and math.isfinite(entry.get(measure, math.nan))]
    if not entries:
        return None
    best = max(entries, key=lambda entry: (entry[measure], entry["epoch"]))
    return {"epoch": best["epoch"], "step": best["step"], "measure": measure, "value": best[measure]}


def weights_of(distiller, keep_head: bool) -> dict[str, torch.Tensor]:
    """Copies on the CPU of what would ship now: `student.*`, and `mapping.*` where there is one."""
    student, method = distiller.student, distiller.method
    parts = {"student": {n: t for n, t in student.state_dict().items() if keep_head or not n.startswith("head.")}}
    if keep_head and (own := method.head()) is not None:
        parts["student"].update({f"head.{name}": tensor for name, tensor in own.state_dict().items()})
    if method.mapping is not None:
        parts["mapping"] = method.mapping.state_dict()
    return {
        f"{part}.{name}": tensor.detach().cpu().clone()
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def write_best(run, history, weights) -> None:
    """best.safetensors in the run's folder; none when the last epoch is the best, or its weights were not kept."""
    path, best = os.path.join(run, BEST), best_epoch(history)
    if best is None or best["epoch"] == history[-1]["epoch"] or not weights:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    told = {name: str(value) for name, value in best.items()}
    write_patiently(lambda: write_weights(path, weights, told), run, f"writing {path}")


def describe_best(run, history) -> dict | None:
    """What run.json tells of the best epoch; `file` is None when there is none beside the last."""
    best = best_epoch(history)
    if best is None:
        return None
    return {**best, "ships": "the last epoch", "file": BEST if os.path.exists(os.path.join(run, BEST)) else None}
