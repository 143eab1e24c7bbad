"""The command line of trtexec, every default said in the words of the version at hand.

trtexec 11 turned CUDA graphs and spin-wait on and copies off; 8 and 10 have it the other way round, and no version has
words for both ways. So what moves a number is chosen here, not there. What a build is told is what tinkit's own builder
does (engine.py). Flags by version are read in NVIDIA's samples/common/sampleOptions.cpp.
"""

import os
from dataclasses import dataclass
from typing import Optional

from tinkit.device.weak_typing import FLAGS
from tinkit.errors import CannotJudge, TinkitError

LOG_EVERY = 1000000  # queries a line of the log: trtexec's 10 make a log of megabytes


@dataclass(frozen=True)
class TrtexecOptions:
    """How to time; what trtexec would choose by itself is chosen here.

    seconds and iterations: at least so long and so many. transfers: copy in and out with every query, one after the
    other as tinkit does (--exposeDMA). workspace_mb: as in `BuildOptions`. layers: a further run for times by layer.
    """

    seconds: float = 10.0
    warmup_s: float = 1.0
    iterations: int = 200
    cuda_graph: bool = True
    spin_wait: bool = True
    transfers: bool = False
    workspace_mb: Optional[int] = None
    layers: bool = False


DEFAULTS = TrtexecOptions()


def command(trtexec, version, model, target, batch, options, folder, inputs=(), engine=""):
    """The argument list that times `model` (an ONNX file), or the serialised `engine` where one is given.

    trtexec: its path or name; version: (major, minor, ...); inputs: `Tensor`s of the model, whose free first dimension
    becomes the batch; folder: where times.json and layers.json are to be written.
    Raises TinkitError for a version or a name that cannot be served, and for a target of the other kind of typing.
    """
    refuse_unfit(version, target, batch)
    words = [trtexec]
    words += ["--loadEngine=" + str(engine)] if engine else _build(version, model, target, inputs, options)
    words += _shapes(inputs, {"--shapes": batch})
    words += ["--profilingVerbosity=detailed"]  # as tinkit builds; also how much is told to profilers while running
    return words + _timing(version, options) + _reports(version, options, folder)


def refuse_unfit(version, target, batch):
    """Raise where this trtexec would build or time something else than the target says."""
    seen = "trtexec {}, target {} ({})".format(dotted(version), target.name or "without a name", target.precision)
    if tuple(version[:2]) < (8, 5) or version[0] == 9:
        raise CannotJudge(
            "The flags of this trtexec are not known.", seen=seen, next_step="use TensorRT 8.5, 8.6, 10 or 11"
        )
    if target.weakly_typed and version[0] >= 10:
        raise TinkitError("The target is for TensorRT 8: its precision is in flags, not in the graph.", seen=seen)
    if not target.weakly_typed and target.precision != "fp32" and version[0] < 10:
        raise TinkitError("The target writes its precision into the graph, which TensorRT 8 does not obey.", seen=seen)
    if not target.batch.min <= batch <= target.batch.max:
        raise ValueError("batch {} is outside the target's {}".format(batch, target.batch))


def _build(version, model, target, inputs, options):
    """What tinkit's own builder does, in flags. TF32 is off there, too."""
    words = ["--onnx=" + str(model), "--noTF32", "--avgTiming=8", "--sparsity=disable"]
    if version[:2] > (8, 5):
        words += ["--builderOptimizationLevel=3", "--hardwareCompatibilityLevel=none"]
    if version[0] == 10:
        words += ["--stronglyTyped"]  # 11 knows nothing else
    if target.weakly_typed:
        words += ["--" + name.lower() for name in FLAGS.get((target.precision, target.rest), ())]
    if options.workspace_mb:
        words += ["--memPoolSize=workspace:{}".format(int(options.workspace_mb))]
    sizes = {"--minShapes": target.batch.min, "--optShapes": target.batch.opt, "--maxShapes": target.batch.max}
    return words + _shapes(inputs, sizes)


def _shapes(inputs, sizes):
    """One argument for each of `sizes` (flag -> batch), for the inputs whose first dimension is free."""
    free = [
        tensor for tensor in inputs if tensor.shape and (not isinstance(tensor.shape[0], int) or tensor.shape[0] < 0)
    ]
    for tensor in free:
        if not tensor.name or set(tensor.name) & set(",*'\"") or not tensor.name.isprintable():
            raise TinkitError("trtexec cannot be told the shape of an input of this name.", seen=repr(tensor.name))
    told = {flag: ",".join("{}:{}".format(x.name, "x".join(map(str, (size,) + tuple(x.shape[1:])))) for x in free)
            for flag, size in sizes.items()}  # fmt: skip
    return ["{}={}".format(flag, shapes) for flag, shapes in told.items() if shapes]


def _timing(version, options):
    words = [
        "--device=0",
        "--iterations={}".format(options.iterations),
        "--warmUp={}".format(round(options.warmup_s * 1e3)),
        "--duration={:g}".format(options.seconds),
        "--sleepTime=0",
        "--idleTime=0",
        "--infStreams=1" if version[:2] > (8, 5) else "--streams=1",
    ]
    if version[0] >= 11:  # on by default: graph, spin; off: transfers
        words += ["--noCudaGraph"] * (not options.cuda_graph) + ["--noSpinWait"] * (not options.spin_wait)
        words += ["--includeDataTransfers", "--exposeDMA"] if options.transfers else []
    else:  # just the other way round
        words += ["--useCudaGraph"] * options.cuda_graph + ["--useSpinWait"] * options.spin_wait
        words += ["--exposeDMA"] if options.transfers else ["--noDataTransfers"]
    return words


def _reports(version, options, folder):
    words = ["--avgRuns={}".format(LOG_EVERY), "--percentile=50,90,95,99"]
    words += ["--exportTimes=" + os.path.join(str(folder), "times.json")]
    if options.layers:  # in a run of its own: always so in 11, which drops the word some day
        words += ["--exportProfile=" + os.path.join(str(folder), "layers.json")]
        words += ["--separateProfileRun"] * (version[0] < 11)
    return words


def dotted(version):
    """(10, 3, 0) -> "10.3.0"."""
    return ".".join(str(part) for part in version)
