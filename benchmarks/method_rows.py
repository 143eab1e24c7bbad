"""The rows of benchmarks/methods.py and what is to be done for them: three rates on a third of the length, then the seeds.

A job is known by what it does, not by its row: two rows with the same settings share their runs, and a second call finds
what a first one left behind. When a default of tinkit's changes, the row that names it gets another job.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

RATES = (1.7e-3, 5e-3, 1.5e-2)  # the same three for every row
TUNING_SHARE, TUNING_SEED = 3, 0  # tuning runs are a third as long

TEACHER, TEACHER_SIZE, STUDENT, STUDENT_SIZE = "efficientnet-lite0", 96, "mobilenetv3_small_050", 64
RELEASED = {"mapping": "learned", "center": False, "cosines_weight": 0.0}
LABELLED = {"labels": "folders"}

# row -> (settings of tinkit.distill, or None for the student as it was born; seeds)
ROWS = {
    "tintem (default)": ({}, 3),
    "tintem (released)": (RELEASED, 3),
    "random weights": (None, 3),
    "cosine": ({"method": "cosine"}, 3),
    "mse": ({"method": "mse"}, 3),
    "vkd": ({"method": "vkd"}, 3),
    "proteus": ({"method": "proteus"}, 3),
    "rkd": ({"method": "rkd"}, 3),
    "pkt": ({"method": "pkt"}, 3),
    "sp": ({"method": "sp"}, 3),
    "crd": ({"method": "crd"}, 3),
    "simkd": ({"method": "simkd"}, 3),
    "diffkd": ({"method": "diffkd", "logits": True}, 3),  # its two points: features and logits
    "kd": ({"method": "kd"}, 3),
    "dist": ({"method": "dist"}, 3),
    "dkd": ({"method": "dkd"}, 3),
    "cmkd": ({"method": "cmkd"}, 3),
    "ofa": ({"method": "ofa"}, 3),
    # Hints and attention train the backbone's maps alone: as in their papers, beside a term on the classes.
    "fitnet+kd": ({"method": "fitnet+kd"}, 3),
    "at+kd": ({"method": "at+kd"}, 3),
    "afd (with kd)": ({"method": "afd", "logits": True}, 3),
    "rtk (with kd)": ({"method": "rtk", "logits": True}, 3),
    "tintem+dist:0.5": ({"method": "tintem+dist:0.5"}, 3),
    # Cross-entropy alone, as a control: a weight must be above 0, so mse gets next to none.
    "labels only": ({"method": "mse:1e-9", "label_weight": 1.0, **LABELLED}, 1),
    "kd (labels)": ({"method": "kd", **LABELLED}, 1),
    "dkd (labels)": ({"method": "dkd", **LABELLED}, 1),
    "dist (labels)": ({"method": "dist", **LABELLED}, 1),
    "crd (labels)": ({"method": "crd", **LABELLED}, 1),
    "tcs (labels)": ({"method": "tcs", **LABELLED}, 1),
    "tcs random basis (labels)": ({"method": "tcs", "options": ("basis=random",), **LABELLED}, 1),
    "tcs no basis (labels)": ({"method": "tcs", "options": ("basis=none",), **LABELLED}, 1),
}

# The study of the mapping: where it comes from, centred or not, and a direct term on the cosines.
STUDY = {
    f"{mapping} {'centred' if center else 'not centred'}{f' + {weight:g} cosines' if weight else ''}": (
        {"mapping": mapping, "center": center, "cosines_weight": weight},
        3,
    )
    for mapping, center, weight in (
        *((mapping, center, 0.0) for mapping in ("pca", "learned-pca", "learned") for center in (True, False)),
        *((mapping, True, 1.0) for mapping in ("pca", "learned-pca", "learned")),
        ("pca", True, 4.0),
    )
}


@dataclass(frozen=True)
class Budget:
    """What every row gets: epochs of a final run, most seeds, training pictures a class."""

    epochs: int
    seeds: int
    per_class: int

    @property
    def tuning_epochs(self):
        return max(1, self.epochs // TUNING_SHARE)


@dataclass(frozen=True)
class Job:
    """One run: trained, and measured on the validation pictures (tuning) or on everything (final)."""

    settings: dict | None
    rate: float | None
    seed: int
    epochs: int
    per_class: int
    final: bool

    @property
    def key(self):
        """A name for files, the same for the same work."""
        known = json.dumps(resolved(self.settings), sort_keys=True)
        name = "random" if self.settings is None else resolved(self.settings)["method"].replace(":", "-")
        mark = hashlib.sha256(known.encode()).hexdigest()[:8]
        kind = "final" if self.final else "tuning"
        rate = "" if self.rate is None else f"-rate{self.rate:g}"
        return f"{name}-{mark}-{kind}-{self.epochs}epochs-{self.per_class}pictures{rate}-seed{self.seed}"

    def to_json(self):
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text):
        return cls(**json.loads(text))


def resolved(settings):
    """The settings with tinkit's defaults for what rows tell apart; None stays None."""
    from tinkit.host.distill.settings import Settings

    if settings is None:
        return None
    full = {name: getattr(Settings, name) for name in ("method", "labels", "label_weight", "options")}
    full.update(settings)
    if "tintem" in full["method"]:
        full = {**{name: getattr(Settings, name) for name in ("mapping", "center", "cosines_weight")}, **full}
    return full


@dataclass(frozen=True)
class Plan:
    """Where a row stands: what can be run now, its jobs so far, the rate once chosen, and why it cannot be finished."""

    ready: tuple[Job, ...]
    tuning: tuple[Job, ...]
    finals: tuple[Job, ...]
    rate: float | None
    failed: str | None


def plan(row, results, failed, budget):
    """The `Plan` of a row (settings, seeds), from results and failures (text) by job key.

    Final runs are known only when all three tuning runs are there; the row without training has no rate to choose.
    """
    settings, seeds = row
    rates = () if settings is None else RATES
    tuning = tuple(
        Job(settings, rate, TUNING_SEED, budget.tuning_epochs, budget.per_class, final=False) for rate in rates
    )
    open_jobs = tuple(job for job in tuning if job.key not in results)
    broken = [failed[job.key] for job in open_jobs if job.key in failed]
    if open_jobs:
        ready = tuple(job for job in open_jobs if job.key not in failed)
        return Plan(ready, tuning, (), None, broken[0] if broken else None)
    rate = choose_rate({job.rate: results[job.key].get("knn_validation") for job in tuning})
    if rates and rate is None:
        return Plan((), tuning, (), None, "the loss was not finite at any of the rates")
    finals = tuple(
        Job(settings, rate, seed, budget.epochs, budget.per_class, final=True)
        for seed in range(min(seeds, budget.seeds))
    )
    open_jobs = tuple(job for job in finals if job.key not in results)
    broken = [failed[job.key] for job in open_jobs if job.key in failed]
    broken += [results[job.key]["diverged"] for job in finals if "diverged" in results.get(job.key, {})]
    ready = tuple(job for job in open_jobs if job.key not in failed)
    return Plan(ready, tuning, finals, rate, broken[0] if broken else None)


def written_runs(rows, record, budget):
    """Results by job key out of a written page's JSON (`record`): runs that need not be made again.

    A row whose settings are no longer those of the page gives none. Tuning runs come with their accuracy alone, so a
    row's costs are then medians over its final runs.
    """
    found, written = {}, {row["row"]: row for row in record["rows"]}
    for name, row in rows.items():
        old = written.get(name)
        if old is None or json.loads(json.dumps(row[0])) != old["settings"]:
            continue
        for job in plan(row, {}, {}, budget).tuning:
            if f"{job.rate:g}" in old["tuning"]:
                found[job.key] = {"knn_validation": old["tuning"][f"{job.rate:g}"], "from": "the page"}
        known = {(run["rate"], run["seed"], run["epochs"]): run for run in old["runs"]}
        for job in plan(row, found, {}, budget).finals:
            if (job.rate, job.seed, job.epochs) in known:
                found[job.key] = known[job.rate, job.seed, job.epochs]
    return found


def choose_rate(accuracies):
    """The rate with the best validation accuracy, the lowest of equals; None stands for a run that diverged."""
    found = {rate: accuracy for rate, accuracy in accuracies.items() if accuracy is not None}
    return min(found, key=lambda rate: (-found[rate], rate)) if found else None


def ready_jobs(rows, results, failed, budget):
    """What can be run now, complete rows first; each job once."""
    found = {}
    for row in rows.values():
        for job in plan(row, results, failed, budget).ready:
            found.setdefault(job.key, job)
    return list(found.values())
