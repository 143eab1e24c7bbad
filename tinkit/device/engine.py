"""ONNX -> TensorRT engine, built on the machine that runs it; one function for TensorRT 8.6 to 11.

Precision is in the graph, so the network is strongly typed wherever the version knows that word (10 and later; 11 knows
nothing else). TensorRT 8 is weakly typed: there flags allow what the graph asks for. The module is an argument, so that
the same code is examined with every version's bindings. Running engines, caches and timing come later.
"""

import importlib

from tinkit.device import board
from tinkit.errors import TinkitError

LAST_WORDS = 5


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


def engine_from_onnx(trt, onnx_path, target, logger=None, workspace=None):
    """The serialised engine as bytes. `workspace` limits the builder's memory, in bytes.

    `logger` may be a `recording_logger(trt)` of the caller's. Raises TinkitError with TensorRT's last words.
    """
    logger = logger or recording_logger(trt)
    builder = trt.Builder(logger)
    flags, strong = network_flags(trt)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        seen = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise _refused("TensorRT does not read the model.", trt, onnx_path, seen or logger.lines)
    config = builder.create_builder_config()
    if not strong and target.precision == "fp16":
        config.set_flag(trt.BuilderFlag.FP16)
    if workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _add_batch_range(builder, network, config, target.batch, onnx_path)
    plan = builder.build_serialized_network(network, config)
    if plan is None:  # TensorRT raises nothing; what went wrong is only in the log
        raise _refused("TensorRT does not build the engine.", trt, onnx_path, logger.lines)
    return bytes(plan)


def network_flags(trt):
    """(flags, strongly typed). The bits moved between versions, so they are asked for by name."""
    names = trt.NetworkDefinitionCreationFlag
    flags, strong = 0, hasattr(names, "STRONGLY_TYPED")
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):  # 10 and later; 8 needs it, 11 has dropped it
        if hasattr(names, name):
            flags |= 1 << int(getattr(names, name))
    return flags, strong


def recording_logger(trt):
    """A TensorRT logger that prints nothing and keeps errors and warnings in `lines`, in the order they came."""
    severity = trt.ILogger.Severity
    kept = (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING)

    class Recording(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.lines = []

        def log(self, severity, msg):
            if severity in kept:
                self.lines.append(str(msg))

    return Recording()


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


def _refused(what, trt, onnx_path, lines):
    words = "; ".join(lines[-LAST_WORDS:]) or "nothing was logged"
    return TinkitError(what, where=str(onnx_path), seen="TensorRT {}: {}".format(trt.__version__, words))
