"""A real TensorRT builder on the host, without a GPU: does it take the exported graph?

TensorRT-RTX 1.7 (extra `trt-check`, two wheels) parses and builds on the CPU with the parser and the builder of the
generation of TensorRT 11. Its engines do not run on a board; they are measured and thrown away. What this proves: a
strongly typed graph of this kind is read and built. What it does not: that 8.6 or 10.3 read it (tinkit.host.export.legality
asks for their limits), nor anything about speed or answers. It works in a process of its own, because the builder ends
its process on some graphs (seen: Attention of opset 23 in fp32).
"""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tinkit
from tinkit.device.engine import BuildOptions, build
from tinkit.device.tensorrt_log import recording_logger, tidy
from tinkit.errors import CannotJudge, TinkitError
from tinkit.target import Target

# Said on every machine without a driver, and by a second build in one process; neither is about the model.
HARMLESS = r"cudaError 35|initialization failure with error: 35|The logger passed into"
OPTIONS = BuildOptions(timing_cache=None)  # timing caches are a deprecated no-op there
WEAK_NOTE = (
    "the graph was built as it is typed; the {} that this target asks TensorRT 8 for by flags was not tried, "
    "and this builder reads more than the parser of TensorRT 8"
)


@dataclass(frozen=True)
class CheckBuild:
    """What the builder made: seconds of the whole build, megabytes (10^6 bytes) of the engine, warnings in `lines`.

    version: as in "TensorRT-RTX 1.7.1.116"; note: what this build does not say about the target, or "".
    """

    version: str
    seconds: float
    megabytes: float
    lines: tuple[str, ...]
    note: str = ""


def check_build(model_path, target: Target) -> CheckBuild:
    """Parse and build the model of a TensorRT target on the CPU.

    Raises CannotJudge where the builder is not installed or does not start, TinkitError with its last words where it
    refuses the model or dies of it.
    """
    if target.runtime != "tensorrt":
        raise TinkitError("Only a TensorRT target can be tried on TensorRT's builder.", seen=target.runtime)
    find_builder()
    job = json.dumps({"model": str(Path(model_path).absolute()), "target": target.to_json()})
    command = [sys.executable, "-m", "tinkit.host.export.check_build"]
    beside_tinkit = Path(tinkit.__file__).parents[1]  # so that this very tinkit is imported
    done = subprocess.run(command, input=job, cwd=beside_tinkit, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TinkitError(
            "TensorRT's builder ended on this model without a word.",
            where=str(model_path),
            seen=_end(done),
            next_step="another opset or student may be taken; please report the model to TensorRT",
        )
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        kind = CannotJudge if answer.pop("no_verdict") else TinkitError
        raise kind(*answer["error"])
    return CheckBuild(**dict(answer, lines=tuple(answer["lines"])))


def _end(done):
    if done.returncode < 0:
        return f"signal {-done.returncode} ({signal.strsignal(-done.returncode)})"
    return f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or ['nothing was said'])[-1]}"


def build_here(model_path, target: Target) -> CheckBuild:
    """`check_build` in this very process."""
    trt = find_builder()
    logger = recording_logger(trt, HARMLESS)
    built = build(trt, model_path, target, OPTIONS, logger)
    return CheckBuild(
        version=f"TensorRT-RTX {built.tensorrt}",
        seconds=round(built.seconds, 3),
        megabytes=round(len(built.plan) / 1e6, 3),
        lines=tuple(tidy(built.log, HARMLESS)),
        note=WEAK_NOTE.format(target.precision) if target.weakly_typed else "",
    )


def find_builder():
    """The module of TensorRT-RTX. Raises CannotJudge where it is not installed."""
    try:
        import tensorrt_rtx_bindings
    except (ImportError, OSError) as error:  # OSError: the bindings are there, the libraries are not
        raise CannotJudge(
            "TensorRT's builder for the host is not installed.",
            seen=str(error),
            next_step='pip install "tinkit[trt-check]"',
        ) from None
    return tensorrt_rtx_bindings


def _answer(job):
    """What the process of its own writes: a CheckBuild or an error, as plain data."""
    try:
        return asdict(build_here(job["model"], Target.from_json(job["target"])))
    except TinkitError as error:
        words = [error.what, error.where, error.seen, error.next_step]
        return {"error": words, "no_verdict": isinstance(error, CannotJudge)}


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
