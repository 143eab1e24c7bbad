"""Distillation methods, one module a paper. A literal dict is the registry.

A method is an `nn.Module` with its own train-only parts, made for a `Pair` with keyword options. It says what it must have
(`needs`) and what it takes when there (`uses`): "local", "logits", "labels", "student_taps", "teacher_taps"; the global
features are always there. `forward(batch)` returns its parts and their weighted sum as "loss". Where it has them:
`fit(teacher)` before training, `map_teacher(features)`, `head()` (a classifier that it brings), `mapping`.
"""

import importlib
import inspect

from tinkit.errors import TinkitError
from tinkit.recipes import nearest

METHODS = {
    "tintem": "TinTeM",
    "vkd": "VkD",
    "proteus": "Proteus",
    "mse": "MSE",
    "cosine": "Cosine",
    "rkd": "RKD",
    "pkt": "PKT",
    "sp": "SP",
    "crd": "CRD",
    "fitnet": "FitNet",
    "at": "AT",
    "afd": "AFD",
    "rtk": "RTK",
    "simkd": "SimKD",
    "diffkd": "DiffKD",
    "kd": "KD",
    "dkd": "DKD",
    "dist": "DIST",
    "cmkd": "CMKD",
    "ofa": "OFA",
    "tcs": "TCS",
}
# A step of benchmarks/method_cost.py against the same step with the cheapest loss there is.
EXTRA_COST: dict[str, str] = {}
ALIASES = {"cospress": "tintem"}


def method_class(name: str):
    """The class of a method or alias; TinkitError with the nearest names for another word."""
    name = ALIASES.get(name, name)
    if name not in METHODS:
        raise TinkitError("There is no such method.", seen=name, next_step=nearest(name, [*METHODS, *ALIASES]))
    return getattr(importlib.import_module(f"tinkit.host.methods.{name}"), METHODS[name])


def options_of(cls) -> dict[str, object]:
    """name -> default of a method's options."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
