"""ONNX -> TensorRT engine, built on the machine that runs it; one function for TensorRT 8.5 to 11.

Precision is in the graph, so the network is strongly typed wherever the version knows that word (10 and later; 11 knows
nothing else). TensorRT 8 is weakly typed: flags allow fp16 and int8, and a list of nodes stays in fp32. A target of one
kind on a TensorRT of the other is refused: it would build, silently in fp32. The module is an argument and every enum
is asked for by name, because the bits moved between versions; so the same code is examined with every version's
bindings. Caches of engines and running them live elsewhere.
"""

import importlib
import re
import time
from dataclasses import dataclass
from typing import Optional, Tuple

from tinkit.device import board
from tinkit.device.tensorrt_log import known_meaning, last_words, progress_monitor, recording_logger
from tinkit.device.weak_typing import set_weak_precision
from tinkit.errors import CannotJudge, TinkitError

OLDEST = (8, 5)
NEWEST_OPSET = (((9, 0), 17), ((10, 0), 19), ((10, 2), 20))  # below this version: the parser's newest opset, by source


@dataclass(frozen=True)
class BuildOptions:
    """How to build, beside the target. Another value of any of these makes another engine.

    workspace_mb: most memory for trying kernels, in MiB; None: all there is. timing_cache: bytes of an earlier
    `Built.timing_cache`, b"" for a new one, None for none. hardware_compatible: "AMPERE_PLUS" or
    "SAME_COMPUTE_CAPABILITY". fp32_nodes: ONNX node names that stay in fp32 in a weakly typed network; a strongly typed
    one has that in its graph and does not look at them.
    """

    workspace_mb: Optional[int] = None
    timing_cache: Optional[bytes] = b""
    version_compatible: bool = False
    hardware_compatible: str = ""
    optimization_level: Optional[int] = None
    fp32_nodes: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """A serialised engine with the timing cache after the build (bytes) and TensorRT's errors and warnings."""

    plan: bytes
    timing_cache: bytes
    log: Tuple[str, ...]
    seconds: float
    tensorrt: str


DEFAULTS = BuildOptions()


def find_tensorrt():
    """The tensorrt module of this machine, or None."""
    for name in ("tensorrt", "tensorrt_bindings"):
        try:
            return importlib.import_module(name)
        except (ImportError, OSError):  # OSError: the package is there, its shared libraries are not
            continue
    return None


def gpu_present():
    """Whether the driver finds a CUDA device. Ask before touching TensorRT's runtime: it may crash without one."""
    return bool(board.cuda_gpus())


def engine_from_onnx(trt, onnx_path, target, options=DEFAULTS, logger=None, say=None):
    """`Built` for a target, or TinkitError with TensorRT's last words. `say(line)` hears of progress and of oddities.

    Refused before parsing: a TensorRT that cannot do what the target means (see `refuse_unfit`).
    """
    refuse_unfit(trt, onnx_path, target)
    return build(trt, onnx_path, target, options, logger, say)


def refuse_unfit(trt, onnx_path, target):
    """Raise TinkitError where this TensorRT would not build what the target says, or would build something else."""
    version, bf16, strong = _version(trt), hasattr(trt.DataType, "BF16"), _knows_strong_typing(trt)
    own = "trt85" if version < (8, 6) else "trt86"  # the targets for TensorRT 8
    if version < OLDEST:
        raise _unfit("This TensorRT is too old.", trt, onnx_path, target, "use TensorRT 8.5 or newer")
    if target.precision == "bf16" and not bf16:
        raise _unfit("This TensorRT has no bf16.", trt, onnx_path, target, "export with `--target {}-fp16`".format(own))
    if target.weakly_typed and strong:
        what = "The target is for TensorRT 8: its graph is fp32 and takes its precision from flags."
        raise _unfit(what, trt, onnx_path, target, "export with `--target trt-{}`".format(target.precision))
    if not target.weakly_typed and not strong and target.precision != "fp32":
        what = "The target writes its precision into the graph, which this TensorRT does not obey."
        raise _unfit(what, trt, onnx_path, target, "export with `--target {}-{}`".format(own, target.precision))
    newest = next((opset for below, opset in NEWEST_OPSET if version < below), target.opset)
    if target.opset > newest:
        what = "This TensorRT reads models up to opset {}.".format(newest)
        raise _unfit(what, trt, onnx_path, target, "use a newer TensorRT, or a target with a lower opset")


def build(trt, onnx_path, target, options=DEFAULTS, logger=None, say=None):
    """`engine_from_onnx` without its refusals: for a builder that only examines the graph."""
    say, logger = say or (lambda line: None), logger or recording_logger(trt)
    started, heard = time.monotonic(), len(logger.lines)
    say("{} builds {}; on a small board this takes minutes".format(_label(trt), onnx_path))
    builder = _builder(trt, onnx_path, logger, heard)
    network = builder.create_network(_network_flags(trt))
    _parse(trt, onnx_path, network, logger, heard)
    config = builder.create_builder_config()
    _set_options(trt, onnx_path, config, options)
    unmet = ()  # kept with the engine, because its report must tell them, too
    if not _knows_strong_typing(trt):
        unmet = set_weak_precision(trt, network, config, target, options.fp32_nodes)
    for line in unmet:
        say(line)
    _add_batch_range(builder, network, config, target.batch, onnx_path)
    cache = _use_timing_cache(config, options.timing_cache, say)
    monitor = progress_monitor(trt, say)
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.error is not None:
        raise monitor.error
    if plan is None:  # TensorRT raises nothing; what went wrong is only in the log
        lines = logger.lines[heard:]
        raise _refused("TensorRT does not build the engine.", trt, onnx_path, lines, logger, options.workspace_mb)
    kept = b"" if cache is None else bytes(cache.serialize())
    seconds = time.monotonic() - started
    return Built(bytes(plan), kept, (*unmet, *logger.lines[heard:]), seconds, trt.__version__)


def _version(trt):
    """(major, minor). TensorRT-RTX counts from 1, but is of the generation of 11: it becomes (11, 0)."""
    major, minor = (int(number) for number in re.findall(r"\d+", trt.__version__)[:2])
    return (11, 0) if major < 3 else (major, minor)


def _label(trt):
    rtx = re.match(r"[12]\.", trt.__version__)
    return "TensorRT{} {}".format("-RTX" if rtx else "", trt.__version__)


def _knows_strong_typing(trt):
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def _network_flags(trt):
    names = trt.NetworkDefinitionCreationFlag
    flags = 0
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):  # 10 and later; 8 needs it, 11 has dropped it
        if hasattr(names, name):
            flags |= 1 << int(getattr(names, name))
    return flags


def _builder(trt, onnx_path, logger, heard):
    try:
        return trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # pybind11 saw a null pointer: no device, or a driver too old
        lines = logger.lines[heard:] + [str(error)]
        refused = _refused("TensorRT's builder does not start.", trt, onnx_path, lines, logger)
        raise CannotJudge(refused.what, refused.where, refused.seen, refused.next_step) from None


def _parse(trt, onnx_path, network, logger, heard):
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [_parser_words(parser.get_error(index)) for index in range(parser.num_errors)]
        raise _refused("TensorRT does not read the model.", trt, onnx_path, errors or logger.lines[heard:], logger)


def _parser_words(error):
    """`Det d: UNSUPPORTED_NODE: ...`; TensorRT 8 knows the number of a node only."""
    if hasattr(error, "node_name"):
        where = "{} {}".format(error.node_operator(), error.node_name())
    else:
        where = "node {}".format(error.node())
    return "{}: {}: {}".format(where, str(error.code()).rpartition(".")[2], error.desc())


def _set_options(trt, onnx_path, config, options):
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector then names the precision of each layer
    config.clear_flag(trt.BuilderFlag.TF32)  # what the graph computes in fp32 has fp32's digits, not fp16's
    if options.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.version_compatible:
        config.set_flag(_option(trt, onnx_path, trt.BuilderFlag, "VERSION_COMPATIBLE"))
    if options.hardware_compatible:
        levels = _option(trt, onnx_path, trt, "HardwareCompatibilityLevel")
        config.hardware_compatibility_level = _option(trt, onnx_path, levels, options.hardware_compatible)
    if options.optimization_level is not None:
        _option(trt, onnx_path, config, "builder_optimization_level")
        config.builder_optimization_level = options.optimization_level


def _option(trt, onnx_path, holder, name):
    if not hasattr(holder, name):
        seen = "{}: {}".format(_label(trt), name)
        raise TinkitError("This TensorRT does not know a build option.", str(onnx_path), seen, "build without it")
    return getattr(holder, name)


def _add_batch_range(builder, network, config, batch, onnx_path):
    """One optimisation profile for all inputs with a free first dimension."""
    profile, free = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 in shape[1:]:
            raise TinkitError(
                "Only the batch of a model may be free.", where=str(onnx_path), seen="{} {}".format(tensor.name, shape)
            )
        if shape[0] == -1:
            free = True
            profile.set_shape(tensor.name, *[(size,) + shape[1:] for size in (batch.min, batch.opt, batch.max)])
    if free:
        config.add_optimization_profile(profile)


def _use_timing_cache(config, data, say):
    """The timing cache of this build: the given one, or a new one where it is of another device or version."""
    if data is None:
        return None
    cache = config.create_timing_cache(data)
    if cache is not None and config.set_timing_cache(cache, False):  # False: a mismatch is not ignored
        return cache
    say("the timing cache is of another device or TensorRT and is not used")
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)
    return cache


def _unfit(what, trt, onnx_path, target, next_step):
    seen = "{}, target {} ({}, opset {})".format(
        _label(trt), target.name or "without a name", target.precision, target.opset
    )
    return TinkitError(what, where=str(onnx_path), seen=seen, next_step=next_step)


def _refused(what, trt, onnx_path, lines, logger, workspace_mb=None):
    words = last_words(lines, logger.harmless)
    meaning, next_step = known_meaning(words, workspace_mb)
    seen = "{}: {}".format(_label(trt), words)
    return TinkitError(meaning or what, where=str(onnx_path), seen=seen, next_step=next_step)
