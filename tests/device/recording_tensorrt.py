"""A pretended `trt` module with exactly the members that one TensorRT version has, which records what is done to it.

Its shape is the record of the real bindings (tests/data/tensorrt-bindings.json): a member that the version lacks raises
AttributeError, an attribute that cannot be set refuses, and a call with too many or too few arguments fails. What the
version would answer is a `Scene`. `calls` holds (class, member, arguments) in order, `touched` every member asked for.
"""

import enum
import functools
import json
from dataclasses import dataclass, field

import tensorrt_wheels

SEVERITY = "ILogger.Severity"


@dataclass
class Scene:
    """What the pretended parser, builder and device answer. Layers as dicts of name, metadata and output dtypes."""

    inputs: dict = field(default_factory=lambda: {"image": (-1, 3, 16, 16)})
    layers: list = field(default_factory=list)
    parser_errors: list = field(default_factory=list)  # (error code, node, operator, words)
    log: list = field(default_factory=list)  # (severity, words) during the build
    plan: bytes = b"plan"  # None: the build fails
    cache_fits: bool = True
    device: bool = True
    steps: int = 3


@functools.cache
def recorded():
    """version -> {"classes": {name: [members]}, "enums": {name: {member: value}}}."""
    return json.loads(tensorrt_wheels.DATA.read_text())["versions"]


class _Named(enum.Enum):
    """An enum of the bindings: has a number, but is none."""

    def __int__(self):
        return self.value


class _Members:
    """An enum as the code under test sees it: looking at a member is recorded."""

    def __init__(self, world, name, values):
        self._world, self._name, self._kind = world, name, _Named(name.replace(".", "_"), values)

    def __getattr__(self, name):
        value = getattr(self._kind, name)
        self._world.touched.add((self._name, name))
        return value


class _Part:
    """An object of a class of the bindings: attributes have the given values, methods ask `world.answer`."""

    def __init__(self, world, kind, **values):
        members = {text.split("(")[0].split(" ")[0]: text for text in world.classes[kind]}
        self.__dict__.update(_world=world, _kind=kind, _values=values, _members=members)

    def __getattr__(self, name):
        text = self._member(name)
        if "(" not in text:
            return self._values[name]
        return functools.partial(self._world.call, self, self._kind, text)

    def __setattr__(self, name, value):
        if not self._member(name).endswith(" ="):
            raise AttributeError(f"{self._kind}.{name} cannot be set")
        self._values[name] = value
        self._world.calls.append((self._kind, name, value))

    def _member(self, name):
        if name not in self._members:
            raise AttributeError(f"TensorRT {self._world.__version__} has no {self._kind}.{name}")
        self._world.touched.add((self._kind, name))
        return self._members[name]


class Pretended:
    """The module. `calls_of(member)` gives the arguments of all calls of a method, or the values set."""

    def __init__(self, version, scene):
        self.__version__, self.scene = version, scene
        self.classes = recorded()[version]["classes"]
        self.calls, self.touched, self.logger = [], set(), None
        values = recorded()[version]["enums"]
        self.enums = {name: _Members(self, name, members) for name, members in values.items()}
        self.bases = {"ILogger": type("ILogger", (), {"Severity": self.enums[SEVERITY]})}
        if "IProgressMonitor" in self.classes:
            self.bases["IProgressMonitor"] = type("IProgressMonitor", (), {})

    def __getattr__(self, name):
        if name not in self.classes and name not in self.enums:
            raise AttributeError(f"TensorRT {self.__version__} has no {name}")
        self.touched.add(("module", name))
        if name in self.enums:
            return self.enums[name]
        return self.bases.get(name) or functools.partial(self.make, name)

    def calls_of(self, member):
        return [arguments for _, name, arguments in self.calls if name == member]

    def make(self, kind, *arguments):
        """A constructor call."""
        (text,) = (text for text in self.classes[kind] if text.startswith("__init__("))
        return self.call(None, kind, text, *arguments)

    def call(self, part, kind, text, *arguments):
        name, _, rest = text.rstrip(")").partition("(")
        wanted = [word for word in rest.split(", ") if word]
        least = sum(not word.endswith("=") for word in wanted)
        if rest != "..." and not least <= len(arguments) <= len(wanted):
            raise TypeError(f"{kind}.{text} got {len(arguments)} arguments")
        self.calls.append((kind, name, arguments))
        return getattr(self, f"_{kind}_{name}", lambda part, *arguments: None)(part, *arguments)

    def _Builder___init__(self, part, logger):
        if not self.scene.device:
            logger.log(self.severity("ERROR"), "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger
        return _Part(self, "Builder")

    def _Builder_create_network(self, part, flags=0):
        scene = self.scene
        return _Part(self, "INetworkDefinition", num_inputs=len(scene.inputs), num_layers=len(scene.layers))

    def _INetworkDefinition_get_input(self, part, index):
        name, shape = list(self.scene.inputs.items())[index]
        return _Part(self, "ITensor", name=name, shape=shape)

    def _INetworkDefinition_get_layer(self, part, index):
        layer = dict(self.scene.layers[index])
        outputs = layer.pop("outputs", ("FLOAT",))
        return _Part(self, "ILayer", num_outputs=len(outputs), **dict({"metadata": ""}, **layer, outputs=outputs))

    def _ILayer_get_output(self, part, index):
        kind = getattr(self.enums["DataType"]._kind, part._values["outputs"][index])
        return _Part(self, "ITensor", dtype=kind, is_shape_tensor=False)

    def _ILayer_set_output_type(self, part, index, kind):
        self.calls.append(("layer", part._values["name"], (index, kind)))

    def _OnnxParser___init__(self, part, network, logger):
        return _Part(self, "OnnxParser", num_errors=len(self.scene.parser_errors))

    def _OnnxParser_parse_from_file(self, part, path):
        return not self.scene.parser_errors

    def _OnnxParser_get_error(self, part, index):
        return _Part(self, "ParserError", error=self.scene.parser_errors[index])

    def _ParserError_code(self, part):
        return getattr(self.enums["ErrorCode"]._kind, part._values["error"][0])

    def _ParserError_node(self, part):
        return 7

    def _ParserError_node_name(self, part):
        return part._values["error"][1]

    def _ParserError_node_operator(self, part):
        return part._values["error"][2]

    def _ParserError_desc(self, part):
        return part._values["error"][3]

    def _Builder_create_builder_config(self, part):
        return _Part(self, "IBuilderConfig", builder_optimization_level=3)

    def _Builder_create_optimization_profile(self, part):
        return _Part(self, "IOptimizationProfile")

    def _IBuilderConfig_create_timing_cache(self, part, data):
        return _Part(self, "ITimingCache", data=data)

    def _IBuilderConfig_set_timing_cache(self, part, cache, ignore_mismatch):
        return self.scene.cache_fits or ignore_mismatch or cache._values["data"] == b""

    def _ITimingCache_serialize(self, part):
        return memoryview(part._values["data"] + b"+")

    def _Builder_build_serialized_network(self, part, network, config):
        for severity, words in self.scene.log:
            self.logger.log(self.severity(severity), words)
        monitor = config._values.get("progress_monitor")
        if monitor is not None:
            monitor.phase_start("Building Engine", None, self.scene.steps)
            for step in range(self.scene.steps):
                if not monitor.step_complete("Building Engine", step):
                    return None
            monitor.phase_finish("Building Engine")
        return None if self.scene.plan is None else memoryview(self.scene.plan)

    def severity(self, name):
        return getattr(self.enums[SEVERITY]._kind, name)


def recording(version, **scene):
    """A `Pretended` TensorRT of a recorded version; keywords are those of `Scene`."""
    return Pretended(version, Scene(**scene))
