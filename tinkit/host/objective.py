"""What training minimises: one or several methods with weights, and cross-entropy where there are labels.

`--method tintem+dist:0.5` is tintem's loss plus half of dist's. Everything here runs in float32 outside of autocast:
similarities and softmaxes at small temperatures do not survive half precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tinkit.errors import TinkitError
from tinkit.host.features import Features
from tinkit.host.mapping import Mapping
from tinkit.host.methods import ALIASES, method_class, options_of
from tinkit.host.pair import Batch, Pair
from tinkit.recipes import nearest


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
        name = ALIASES.get(name, name)
        known = options_of(method_class(name))
        if name in terms:
            raise TinkitError("A method is named twice.", seen=method)
        mine = {key: value for key, value in (shared or {}).items() if key in known}
        terms[name] = Term(name, _weight(weight, method), mine)
    for option in options:
        key, equals, text = option.partition("=")
        name, _, key = key.rpartition(".") if "." in key else ("", "", key)
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
        if isinstance(default, tuple):
            return tuple(float(part) for part in text.split(","))
        return text if default is None else type(default)(text)
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
                raise TinkitError(f"{term.name} does not take these options.", seen=str(error)) from None
        self.weights = {term.name: term.weight for term in terms}
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
                "extra_parameters": sum(p.numel() for p in term.parameters()),
            }
            for name, term in self.terms.items()
        ]


def cross_entropy(logits_BC, labels_B) -> torch.Tensor:
    """Mean over the labelled pictures; 0 where a batch has none."""
    total = F.cross_entropy(logits_BC, labels_B, ignore_index=-1, reduction="sum")
    return total / max(int((labels_B >= 0).sum()), 1)


def _full(features: Features) -> Features:
    """Half precision as float32; float32 and float64 as they are."""
    half = features.global_BD.dtype in (torch.float16, torch.bfloat16)
    return features.to(torch.float32) if half else features
