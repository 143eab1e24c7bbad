"""tinkit: distil a large vision model into a small faithful student, export it, and carry the evidence along.

The functions below have the names of the commands and return frozen results. They are resolved on first use, so that
`import tinkit` stays free of torch and a board can import the parts it needs.
"""

__version__ = "0.1.0"

_HOMES = {
    "distill": "tinkit.host.distill.command",
    "estimate": "tinkit.host.distill.estimate",
    "export": "tinkit.host.export.command",
    "profile": "tinkit.host.profile",
    "report": "tinkit.host.report.command",
    "compare": "tinkit.host.report.compare",
    "matrix": "tinkit.host.board.matrix",
    "evaluate": "tinkit.host.evaluate.command",
    "select": "tinkit.host.select",
    "head": "tinkit.host.head.command",
    "card": "tinkit.host.report.card",
    "predict": "tinkit.device.predict",
    "open_bundle": "tinkit.bundle",
    "TinkitError": "tinkit.errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError("module 'tinkit' has no attribute {!r}".format(name))
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__():
    return sorted(__all__)
