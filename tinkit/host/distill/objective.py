"""What training minimises: one or several methods with weights, and cross-entropy where there are labels.

`--method tintem+dist:0.5` is tintem's loss plus half of dist's. Everything here runs in float32 outside of autocast:
similarities and softmaxes at small temperatures do not survive half precision.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tinkit.errors import TinkitError
from tinkit.host.distill.gather import gather
from tinkit.host.distill.pair import Batch, Pair, Side
from tinkit.host.features import Features
from tinkit.host.mapping import Mapping
from tinkit.host.methods import ALIASES, method_class, options_of
from tinkit.strict import nearest


@dataclass(frozen=True)
class Term:
    """One method of the objective as the settings name it."""

    name: str
    weight: float
    options: dict[str, Any]

    @property
    def cls(self):
        return method_class(self.name)


def parse_terms(method: str, options: Sequence[str] = (), shared: dict[str, Any] | None = None) -> list[Term]:
    """Terms of "a+b:0.5" with options "name=value" (of the one method) or "method.name=value".

    `shared` are settings that reach each method which has an option of that name. TinkitError for an unknown method or
    option, a method named twice, or a value of the wrong type.
    """
    terms: dict[str, Term] = {}
    for part in method.split("+"):
        name, _, weight = part.strip().partition(":")
        if not name:
            raise TinkitError("A method is missing beside a plus.", seen=method, next_step="tintem+dist:0.5")
        name = ALIASES.get(name, name)
        known = options_of(method_class(name))
        if name in terms:
            raise TinkitError("A method is named twice.", seen=method)
        mine = {key: value for key, value in (shared or {}).items() if key in known}
        terms[name] = Term(name, _weight(weight, method), mine)
    for option in options:
        key, equals, text = (word.strip() for word in option.partition("="))
        name, _, key = key.rpartition(".")
        name = ALIASES.get(name, name) or next(iter(terms))
        if not equals or name not in terms or (len(terms) > 1 and "." not in option.partition("=")[0]):
            raise TinkitError(
                "An option of a method is name=value, or with several methods METHOD.name=value.",
                seen=option,
                next_step="methods here: " + ", ".join(terms),
            )
        known = options_of(method_class(name))
        if key not in known:
            raise TinkitError(f"{name} has no such option.", seen=key, next_step=nearest(key, known))
        terms[name].options[key] = _value(text, known[key], option)
    return list(terms.values())


def _weight(text, method):
    try:
        weight = float(text or 1)
    except ValueError:
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise TinkitError("A method's weight must be a number above 0.", seen=method, next_step="tintem+dist:0.5")
    return weight


def _value(text, default, option):
    """The text as the type of the option's default."""
    try:
        if isinstance(default, bool):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        value = tuple(map(float, text.split(","))) if isinstance(default, tuple) else type(default)(text)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError
        return value
    except (KeyError, ValueError):
        kind = "numbers with commas" if isinstance(default, tuple) else type(default).__name__
        raise TinkitError("An option's value has the wrong type.", seen=option, next_step=f"a {kind}") from None


def wanted(terms: Sequence[Term], local: bool, logits: bool, labels: bool) -> frozenset[str]:
    """What the terms are given. `local` and `logits` allow what a method can do without.

    TinkitError, with the option that mends it, for a method that needs what is not allowed or not there.
    """
    found: set[str] = set()
    for term in terms:
        needs, uses = set(term.cls.needs), set(term.cls.uses)
        if "local" in needs and not local:
            raise TinkitError(f"{term.name} needs local features.", seen="--no-local", next_step="leave it out")
        if "labels" in needs and not labels:
            raise TinkitError(
                f"{term.name} needs labels.",
                next_step="--labels folders (each picture's own folder) or --labels FILE.csv (lines of path,label)",
            )
        found |= needs | (uses & {"local"} if local else set()) | (uses & {"logits"} if logits else set())
    return frozenset(found)


def label_weight(terms: Sequence[Term], asked: float | None) -> float:
    """The weight of cross-entropy: as asked, else the papers'."""
    return asked if asked is not None else sum(term.weight * term.cls.label_weight for term in terms)


class Objective(nn.Module):
    """The weighted sum of methods. Parts are named by the method when there are several."""

    def __init__(self, terms: Sequence[Term], pair: Pair, label_weight: float = 0.0):
        super().__init__()
        self.terms = nn.ModuleDict()
        for term in terms:
            try:
                self.terms[term.name] = term.cls(pair, **term.options)
            except ValueError as error:
                raise TinkitError(
                    f"{term.name} cannot work like this.",
                    where="--option, or the networks of the pair",
                    seen=str(error),
                    next_step=f"options of {term.name} and their defaults: "
                    + ", ".join(f"{name} {value}" for name, value in options_of(term.cls).items()),
                ) from None
        self.weights = {term.name: term.weight for term in terms}
        self.options = {term.name: {**options_of(term.cls), **term.options} for term in terms}
        self.label_weight = label_weight

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """{"loss", and each part before weighting}: scalars, float32."""
        with torch.autocast(batch.student.global_BD.device.type, enabled=False):
            return self._parts(replace(batch, student=_full(batch.student), teacher=_full(batch.teacher)))

    def _parts(self, batch):
        parts, loss = {}, torch.zeros((), device=batch.student.global_BD.device)
        for name, term in self.terms.items():
            found = term(batch)
            loss = loss + self.weights[name] * found.pop("loss")
            parts.update({f"{name}.{part}" if len(self.terms) > 1 else part: value for part, value in found.items()})
        if self.label_weight and batch.labels_B is not None and batch.student.logits_BC is not None:
            parts["label"] = cross_entropy(batch.student.logits_BC, batch.labels_B)
            loss = loss + self.label_weight * parts["label"]
        return {"loss": loss, **parts}

    def _terms(self) -> list[Any]:
        return list(self.terms.values())

    def fit(self, teacher) -> None:
        """Let each method see the teacher's features of the training pictures before training."""
        for term in self._terms():
            if hasattr(term, "fit"):
                term.fit(teacher)

    @property
    def mapping(self) -> Mapping | None:
        """The mapping from teacher to student that a method trains on, if any does."""
        return next((term.mapping for term in self._terms() if hasattr(term, "mapping")), None)

    def head(self) -> nn.Linear | None:
        """A classifier on the student's embedding that a method brings, if any does."""
        return next((term.head() for term in self._terms() if hasattr(term, "head")), None)

    def describe(self) -> list[dict]:
        """The terms for the run's record."""
        return [
            {
                "name": name,
                "paper": term.paper,
                "reconstruction": term.reconstruction,
                "weight": self.weights[name],
                "options": self.options[name],
                "extra_parameters": sum(p.numel() for p in term.parameters()),
            }
            for name, term in self.terms.items()
        ]


def trained_parts(objective: Objective, pair: Pair) -> set[str]:
    """Which of the student's "global", "local", "logits", "taps" get gradient: tried on a copy with random features.

    A method over taps alone leaves the embedding that ships as it was born.
    """
    copy_ = copy.deepcopy(objective).cpu()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours, theirs = (_random(side, pair.classes) for side in (pair.student, pair.teacher))
        for tensor in (found := tensors_of(ours)).values():
            tensor.requires_grad_(True)
        labels_B = None if pair.classes is None else torch.zeros(2, dtype=torch.int64)
        copy_(Batch(ours, theirs, torch.arange(2) % max(pair.pictures, 1), 0, 0, labels_B))["loss"].backward()
    return {name.split(".")[0] for name, tensor in found.items() if tensor.grad is not None and tensor.grad.any()}


def tensors_of(features: Features) -> dict[str, torch.Tensor]:
    """What is there, by "global", "local", "logits", "taps.NAME"."""
    named = {"global": features.global_BD, "local": features.local_BLD, "logits": features.logits_BC}
    named.update({f"taps.{name}": tap for name, tap in features.taps.items()})
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _random(side: Side, classes) -> Features:
    local_BLD = None
    if side.local_dim is not None and side.grid is not None:
        local_BLD = torch.randn(2, side.grid[0] * side.grid[1], side.local_dim)
    logits_BC = None if classes is None else torch.randn(2, classes)
    taps = {tap.name: torch.randn(2, tap.channels, *tap.grid) for tap in side.taps}
    return Features(torch.randn(2, side.dim), local_BLD, side.grid, logits_BC, taps)


def cross_entropy(logits_BC, labels_B) -> torch.Tensor:
    """Mean over the labelled pictures, of all processes together; 0 where a batch has none."""
    total = F.cross_entropy(logits_BC, labels_B, ignore_index=-1, reduction="sum")
    counts = gather((labels_B >= 0).sum()[None].float())
    return total / counts.mean().clamp(min=1 / len(counts))


def _full(features: Features) -> Features:
    """Every tensor in half precision as float32; float32 and float64 as they are. Autocast mixes them in one network."""

    def full(tensor):
        return tensor.float() if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16) else tensor

    return Features(
        full(features.global_BD),
        full(features.local_BLD),
        features.grid,
        full(features.logits_BC),
        {name: full(tap) for name, tap in features.taps.items()},
    )
