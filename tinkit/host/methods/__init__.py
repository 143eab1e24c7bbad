"""Distillation methods, one module a paper. A literal dict is the registry.

A method is an `nn.Module` with its own train-only parts, made for a `Pair` with keyword options. It says what it must have
(`needs`) and what it takes when there (`uses`): "local", "logits", "labels", "student_taps", "teacher_taps"; the global
features are always there. `forward(batch)` returns its parts and their weighted sum as "loss". Where it has them:
`fit(teacher)` before training, `map_teacher(features)`, `head()` (a classifier that it brings), `mapping`.
"""

import importlib
import inspect

from tinkit.errors import TinkitError
from tinkit.strict import nearest

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
# A step with the method against the same step with the cheapest loss there is: docs/method-cost.md. FitNet alone trains the
# lower layers only. Differences below a tenth are noise.
TIMES_THE_STEP = {
    "tintem": 1.16,
    "vkd": 1.38,
    "proteus": 1.28,
    "mse": 1.34,
    "cosine": 1.34,
    "rkd": 1.13,
    "pkt": 1.02,
    "sp": 1.04,
    "crd": 1.20,
    "fitnet": 0.35,
    "at": 1.10,
    "afd": 1.19,
    "rtk": 1.22,
    "simkd": 2.96,
    "diffkd": 6.48,
    "kd": 1.23,
    "dkd": 1.07,
    "dist": 1.10,
    "cmkd": 3.59,
    "ofa": 1.16,
    "tcs": 1.25,
}
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
