"""The command line: a thin shell over the functions of the same names. Every command imports what it needs inside.

Settings come from a flag, else from `tinkit.toml` in the working directory, else from the function's default; what was
resolved is printed. A user's mistake ends with a message and an exit code (see `tinkit.errors`), never with a traceback,
unless TINKIT_DEBUG=1 asks for one.
"""

import os
import sys

import click

from tinkit import errors
from tinkit.cli import boards, evidence, models, reports, stores  # noqa: F401 - they register their commands
from tinkit.cli.group import cli

__all__ = ["cli", "main"]

EXTRAS = {  # import name -> the extra that brings it
    **dict.fromkeys(
        (
            "torch",
            "torchvision",
            "timm",
            "lightning_fabric",
            "onnx",
            "onnxscript",
            "safetensors",
            "sklearn",
            "scipy",
            "jinja2",
            "PIL",
            "ml_dtypes",
        ),
        "host,cpu",
    ),
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "tensorrt_rtx_bindings": "trt-check",
    "skimage": "demo",
    "pyarrow": "data",
}


def main(arguments=None):
    """The entry point: runs the command and turns errors into messages and exit codes."""
    try:
        code = cli.main(arguments, prog_name="tinkit", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else errors.EXIT_OK)
    except click.ClickException as error:
        if "unexpected extra argument" in error.message:  # most often a shell has put the files in a pattern's place
            error.message += "\nA pattern of files needs quotes: 'data-*.tar'"
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("Stopped.", 130)
    except errors.TinkitError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        _fail(f'{error.name} is not installed.\n  next:  pip install "tinkit[{extra}]"', errors.EXIT_USER)
    except OSError as error:
        if error.errno is None:
            raise
        _fail(str(errors.from_os_error(error, "the command")), errors.EXIT_USER)


def _fail(message, code):
    if os.environ.get("TINKIT_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    click.echo(f"tinkit: {message}", err=True)
    sys.exit(code)
