"""OpenVINO on a CPU behind the Runtime protocol: it reads the ONNX file itself and compiles it in memory.

Left alone OpenVINO computes in bf16 on CPUs that have it, so the arithmetic is always asked for, and `conditions` hold
what the compiled model says it was given. `layer_precisions` and `node_precisions` tell what each layer runs in:
`tinkit.truth` judges that. Weights stored in fp16 or behind Q/DQ are OpenVINO's own business; its cache stays off.
"""

import time
import warnings

import numpy as np

from tinkit.device.runtime import Tensor
from tinkit.device.signal_stack import own_signal_stack
from tinkit.errors import CannotJudge, TinkitError

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
WORKING = (  # layer types that compute with the values of the model; the others move, convert or keep them
    "Convolution", "Deconvolution", "FullyConnected", "MatMul", "Eltwise", "Pooling", "Reduce", "Softmax", "MVN", "RMS",
    "Interpolate", "Math", "Subgraph", "ScaledDotProductAttention", "NormalizeL2",
)  # fmt: skip
RECORDED = (
    "INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT", "EXECUTION_MODE_HINT",
    "ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING", "DYNAMIC_QUANTIZATION_GROUP_SIZE",
)  # fmt: skip


class OpenVinoRuntime:
    """One model on the CPU: `threads` threads, one stream, arithmetic `compute` ("fp32", "bf16" or "fp16").

    Raises CannotJudge without openvino or where the CPU lacks the arithmetic, TinkitError for a model that does not load
    or run. Answers are copies of the caller's own. pinned=False: the threads may wander between cores.
    """

    name = "openvino"

    def __init__(self, model_path, threads=1, compute="fp32", pinned=True):
        if compute not in HINTS:
            raise ValueError("unknown arithmetic {!r}".format(compute))
        self._openvino = find_openvino()
        core = self._openvino.Core()
        with own_signal_stack():  # looking at the CPU sets one, and so does compiling
            _check_arithmetic(core, compute)
        options = {
            "INFERENCE_PRECISION_HINT": HINTS[compute],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # no quantisation that nobody asked for
            "CACHE_DIR": "",
        }
        if not pinned:
            options["ENABLE_CPU_PINNING"] = False
        self._asked = model_path, threads, compute
        start = time.perf_counter()
        try:
            with own_signal_stack():
                model, self._writers, given = _read(self._openvino, model_path)
                self._compiled = core.compile_model(model, "CPU", options)
            self._request = self._compiled.create_infer_request()
        except _errors(self._openvino) as error:
            raise TinkitError("OpenVINO does not load the model.", where=str(model_path), seen=_words(error)) from None
        if not self._compiled.outputs:  # an empty file is an empty model to it
            raise TinkitError("OpenVINO does not load the model.", where=str(model_path), seen="it has no outputs")
        self.load_ms = (time.perf_counter() - start) * 1e3
        self.inputs = tuple(_tensor(value) for value in self._compiled.inputs)
        self.outputs = tuple(_tensor(value, given) for value in self._compiled.outputs)
        self.conditions = {name.lower(): _plain(self._compiled.get_property(name)) for name in RECORDED}
        self.conditions.update(device="CPU", compute=compute, cache="off")

    def run(self, feeds):
        if self._request is None:
            raise ValueError("the runtime is closed")
        _check_feeds(self.inputs, feeds)
        try:
            self._request.infer(feeds)
            return {
                tensor.name: np.array(self._request.get_output_tensor(index).data)
                for index, tensor in enumerate(self.outputs)
            }
        except _errors(self._openvino) as error:
            raise TinkitError("OpenVINO does not run the model.", seen=_words(error)) from None

    def again(self):
        """The model compiled once more, for another thread: a `with` closes it, and it takes its memory once more.

        Another request of this one would wait its turn, for it has one stream; and two models with pinned threads share a
        core (both measured: together they did what one does alone), so the threads of this one are not pinned.
        """
        if self._request is None:
            raise ValueError("the runtime is closed")
        return OpenVinoRuntime(*self._asked, pinned=False)

    def layer_precisions(self):
        """precision -> number of layers that compute in it (convolutions, products, elementwise, pooling, ...)."""
        counts = {}  # type: dict
        for _, precision, kind in self._layers():
            if kind in WORKING:
                counts[precision] = counts.get(precision, 0) + 1
        return counts

    def node_precisions(self):
        """Name -> precision of every computing layer, by each name that OpenVINO kept of what it fused into the layer.

        Names are those of ONNX nodes where the nodes had some; a product with a bias is NAME/WithoutBiases. A node that
        writes an output is renamed after the output; here it has both names.
        """
        layers = [layer for layer in self._layers() if layer[2] in WORKING]
        found = {name: precision for names, precision, _ in layers for name in names}
        for output, node in self._writers.items():
            for suffix in ("", "/WithoutBiases"):
                if output + suffix in found:
                    found[node + suffix] = found[output + suffix]
        return found

    def _layers(self):
        """[(original names, precision, layer type)] of the compiled graph, in the words of OpenVINO's rt_info."""
        if self._compiled is None:
            raise ValueError("the runtime is closed")
        found = []
        for node in self._compiled.get_runtime_model().get_ops():
            told = {key: _plain(node.rt_info[key]) for key in ("originalLayersNames", "runtimePrecision", "layerType")}
            names = [name for name in told["originalLayersNames"].split(",") if name]
            precision = PRECISIONS.get(told["runtimePrecision"], told["runtimePrecision"])
            found.append((names, precision, told["layerType"]))
        return found

    def versions(self):
        return {"openvino": str(self._openvino.__version__)}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._request = self._compiled = None  # frees the model's memory


def find_openvino():
    """The openvino module. Raises CannotJudge without it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of its own imports are not the user's
            import openvino
    except ImportError:
        raise CannotJudge(
            "openvino is missing, so this target cannot be run here.", next_step='pip install "tinkit[openvino]"'
        ) from None
    return openvino


def _read(openvino, model_path):
    """(model, output -> name of the node that writes it, names of the outputs), by the ONNX reader alone: asked in general,
    OpenVINO tries the readers of all formats on a damaged file."""
    reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
    parsed = reader.load(str(model_path))
    writers, given = {}, set()
    for output in parsed.get_outputs():
        given.update(output.get_names())
        writer = output.get_producing_operation()
        if writer is not None and writer.get_names():
            writers[output.get_names()[0]] = writer.get_names()[0]
    return reader.convert(parsed), writers, given


def _check_arithmetic(core, compute):
    """A CPU without bf16 or fp16 would silently compute in fp32."""
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if compute.upper() not in able:
        raise CannotJudge(
            "OpenVINO does not compute in {} on this CPU.".format(compute),
            seen=", ".join(sorted(able)),
            next_step="choose a target with another `compute`, or a machine that has it",
        )


def _check_feeds(inputs, feeds):
    """OpenVINO runs with what is missing from an earlier call and converts dtypes by itself; neither is meant here."""
    for tensor in inputs:
        if tensor.name not in feeds:
            raise TinkitError("OpenVINO does not run the model.", seen="no input {!r}".format(tensor.name))
        seen = np.asarray(feeds[tensor.name])
        fits = len(seen.shape) == len(tensor.shape) and all(
            isinstance(wanted, str) or wanted == size for wanted, size in zip(tensor.shape, seen.shape)
        )
        if not fits or str(seen.dtype) != tensor.dtype:
            raise TinkitError(
                "OpenVINO does not run the model.",
                seen="{} {} {}".format(tensor.name, seen.dtype, seen.shape),
                next_step="it wants {} {}".format(tensor.dtype, tensor.shape),
            )
    unknown = sorted(set(feeds) - {tensor.name for tensor in inputs})
    if unknown:
        raise TinkitError("OpenVINO does not run the model.", seen="no input of it is named " + ", ".join(unknown))


def _tensor(port, given=()):
    """OpenVINO keeps no name for a free dimension; only the batch is ever free in a bundle.

    given: names of the graph's outputs; a tensor may have others as well, of nodes that were folded into it.
    """
    shape = tuple(int(size.get_length()) if size.is_static else "batch" for size in port.get_partial_shape())
    name = next((name for name in sorted(port.get_names()) if name in given), port.get_any_name())
    return Tensor(name, port.get_element_type().to_dtype().name, shape)


def _plain(value):
    """A property or rt_info value as JSON takes it: what is wrapped comes out, an enum is its name, a type "f32"."""
    if hasattr(value, "get_type_name"):
        return value.get_type_name()
    if hasattr(value, "name"):
        return value.name
    value = getattr(value, "value", value)
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _words(error):
    """OpenVINO puts source lines before the reason; the last lines are the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-2:])


def _errors(openvino):
    """OpenVINO's own exceptions have no common parent but Exception."""
    kinds = [kind for kind in vars(openvino._pyopenvino).values() if isinstance(kind, type)]
    return (*[kind for kind in kinds if issubclass(kind, Exception)], RuntimeError, ValueError, TypeError)
