"""What TensorRT says while it works: a logger that keeps it, a progress line, and what the known messages mean.

TensorRT answers a failed build with None; the reason is only in its log. So every line above "info" is kept, an error
carries the last of them, and a message that we have seen before is turned into a next step. The table says where a
message was seen: [ran] on the builder of TensorRT-RTX 1.7, [notes] in issues and documentation only.
"""

import re
import time

LAST_WORDS = 5
PROGRESS_S = 5.0  # seconds between two progress lines
WARNING = "warning: "  # in front of a kept line that was no error
NOISE = re.compile(r"--- (Begin|End) node ---|^Node name: |While parsing node number|^(input|output|op_type): |^$")
NO_IMPLEMENTATION = "Could not find any implementation"

TOO_LITTLE_MEMORY = "There is too little memory to build the engine."
FREE_MEMORY = "close other programs (a desktop too), or build with a lower optimisation level and a smaller batch range"
KNOWN = (  # (pattern, what happened or "" for the general words, next step); the first that fits counts
    (  # [notes]: TensorRT's own and CUDA's words
        r"out of memory|OutOfMemory|insufficient memory|memory \(\d+ bytes\) could not be allocated",
        TOO_LITTLE_MEMORY,
        FREE_MEMORY,
    ),
    (  # [ran]
        r"must have same input types",
        "",
        "fp16 and fp32 meet at this node without a Cast: export the model again with this version of tinkit",
    ),
    (  # [ran]
        r"Non-zero zero point|UINT8 zero_point",
        "",
        "TensorRT takes symmetric int8 only (zero point 0, not uint8): export with `--target trt-int8`",
    ),
    (  # [ran]
        r"has type Int32 but must have type",
        "",
        "TensorRT takes no int32 bias behind DequantizeLinear: export with `--target trt-int8`, which keeps it float",
    ),
    (  # [ran] without the first words, which are those of TensorRT 8
        r"No importer registered|UNSUPPORTED_NODE|Unsupported operator",
        "",
        "this TensorRT has no such operator: use a newer TensorRT, or a target with a lower opset",
    ),
    (  # [ran]
        r"no optimization profile has been defined",
        "",
        "an input has free sizes, but no batch range was given: write [batch] into the target",
    ),
    (  # [ran]
        r"not supported by a dedicated kernel",
        "",
        "TensorRT has no fp32 kernel for the operator Attention: export with an opset of 22 or less",
    ),
    (  # [ran]
        r"nvinfer_lean",
        "",
        "a version-compatible engine needs TensorRT's lean runtime: install it, or build without this option",
    ),
    (  # [notes]
        r"driver version is insufficient|initialization failure with error: 35",
        "The driver is too old for this TensorRT.",
        "update the NVIDIA driver, or use the TensorRT that came with it (on a Jetson: JetPack's own)",
    ),
)

_LOGGERS = {}  # type: dict


def recording_logger(trt, harmless=""):
    """The logger of this process for `trt`: prints nothing, keeps errors and warnings in `lines`, in order.

    One a process: TensorRT keeps the first logger that it is given for as long as any of its objects lives, and ignores
    later ones with a warning. Whoever reads remembers `len(logger.lines)` first. `harmless`: a pattern of text lines
    that are noise here.
    """
    if trt.ILogger not in _LOGGERS:
        _LOGGERS[trt.ILogger] = _new_logger(trt)
    _LOGGERS[trt.ILogger].harmless = harmless
    return _LOGGERS[trt.ILogger]


def _new_logger(trt):
    severity = trt.ILogger.Severity
    kept = {severity.INTERNAL_ERROR: "", severity.ERROR: "", severity.WARNING: WARNING}

    class Recording(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.lines = []
            self.harmless = ""

        def log(self, severity, msg):
            if severity in kept:
                self.lines.append(kept[severity] + str(msg))

    return Recording()


def last_words(lines, harmless=""):
    """The last errors in one line of text, or the last warnings where there was no error; each said once."""
    texts = tidy(lines, harmless)
    errors = [text for text in texts if not text.startswith(WARNING)]
    return "; ".join((errors or texts)[-LAST_WORDS:]) or "nothing was logged"


def tidy(lines, harmless=""):
    """The text lines of log lines in order, each once, without the frame around a node and without `harmless` ones."""
    texts = [text.strip() for line in lines for text in line.splitlines()]
    texts = [text for text in texts if not NOISE.search(text) and not (harmless and re.search(harmless, text))]
    return list(dict.fromkeys(texts))


def known_meaning(words, workspace_mb=None):
    """(what happened or "", next step or None) of TensorRT's words. `workspace_mb`: the limit of the build, in MiB."""
    for pattern, what, next_step in KNOWN:
        if re.search(pattern, words, re.IGNORECASE):
            return what, next_step
    if NO_IMPLEMENTATION in words or "insufficient workspace" in words:  # [notes]: most often the memory for trying
        if workspace_mb:
            return TOO_LITTLE_MEMORY, "give the builder more workspace than {} MiB".format(workspace_mb)
        return "", "often too little memory for the builder: " + FREE_MEMORY
    return "", None


def progress_monitor(trt, say, clock=time.monotonic):
    """A progress monitor that calls `say` with one line at most every PROGRESS_S seconds; None before TensorRT 10.

    Nothing may be raised into TensorRT, which would end the process: an error of `say` and Ctrl-C are kept in `error`,
    the build is asked to stop, and the caller raises it.
    """
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Progress(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self.error = None
            self.steps = {}
            self.started = self.said = clock()

        def phase_start(self, phase_name, parent_phase, num_steps):
            self.steps[phase_name] = num_steps

        def phase_finish(self, phase_name):
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name, step):
            try:
                self.tell(phase_name, step)
            except BaseException as error:  # noqa: BLE001 - raised by the caller, outside of TensorRT
                self.error = error
            return self.error is None

        def tell(self, phase_name, step):
            now = clock()
            if now - self.said < PROGRESS_S or self.error is not None:
                return
            self.said = now
            of = self.steps.get(phase_name, "?")
            say("building: {}, step {} of {}, {:.0f} s".format(phase_name, step + 1, of, now - self.started))

    return Progress()
