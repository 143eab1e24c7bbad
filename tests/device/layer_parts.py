"""Small nets whose fusions are known, and a pretended TensorRT that reports its layers."""

import cuda_parts
import numpy as np

SIZE = 32
RNG = np.random.default_rng(11)


def weights(*shape):
    return RNG.normal(size=shape).astype(np.float32) * 0.1


def net(path, nodes, constants, image, outputs):
    """An ONNX file at `path`; nodes as (name, operator, inputs, outputs[, attributes])."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, name=name, **dict(*more)) for name, op, ins, outs, *more in nodes],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model, full_check=True)
    save(model, str(path))
    return str(path)


def mobile_net(path):
    """Conv + Relu, a depthwise Conv + BatchNormalization + Relu, a residual, MatMul + Add, a MatMul that ends it."""
    nodes = [
        ("stem/conv", "Conv", ["image", "stem_w", "stem_b"], ["t1"], {"pads": [1, 1, 1, 1]}),
        ("stem/relu", "Relu", ["t1"], ["t2"]),
        ("dw/conv", "Conv", ["t2", "dw_w"], ["t3"], {"group": 16, "pads": [1, 1, 1, 1]}),
        ("dw/norm", "BatchNormalization", ["t3", "scale", "shift", "mean", "var"], ["t4"]),
        ("dw/relu", "Relu", ["t4"], ["t5"]),
        ("residual", "Add", ["t2", "t5"], ["t6"]),
        ("pool", "GlobalAveragePool", ["t6"], ["t7"]),
        ("flat", "Flatten", ["t7"], ["t8"]),
        ("head/product", "MatMul", ["t8", "head_w"], ["t9"]),
        ("head/bias", "Add", ["t9", "head_b"], ["t10"]),
        ("head/erf", "Erf", ["t10"], ["t11"]),
        ("last", "MatMul", ["t11", "last_w"], ["embedding"]),
    ]
    constants = {
        "stem_w": weights(16, 3, 3, 3), "stem_b": weights(16), "dw_w": weights(16, 1, 3, 3), "scale": weights(16),
        "shift": weights(16), "mean": weights(16), "var": np.ones(16, np.float32), "head_w": weights(16, 8),
        "head_b": weights(8), "last_w": weights(8, 8),
    }  # fmt: skip
    return net(path, nodes, constants, ["batch", 3, SIZE, SIZE], {"embedding": ["batch", 8]})


FUSED = [  # what the net's layers are in any runtime that fuses them
    {"stem/conv", "stem/relu"},
    {"dw/conv", "dw/norm", "dw/relu"},
    {"residual"},
    {"pool"},
    {"head/product", "head/bias"},
    {"head/erf"},
    {"last"},
]
NODES = {name for names in FUSED for name in names} | {"flat"}


class IProfiler:
    """Like pybind11's: an object whose __init__ was not called is refused."""

    def __init__(self):
        self.made = True


class ReportingContext(cuda_parts.FakeContext):
    profiler = None

    def execute_async_v3(self, stream_handle):
        done = super().execute_async_v3(stream_handle)
        self._world.ran.append(self)
        if self.profiler is not None:
            assert isinstance(self.profiler, IProfiler)
            assert self.profiler.made
            for name, ms in self._world.reports:
                self.profiler.report_layer_time(name, ms * len(self._world.ran))
        return done


class ReportingTensorRt(cuda_parts.FakeTensorRt):
    """reports: [(layer, ms)] of the first run; every run takes as many times longer as there were runs. ran: contexts."""

    IProfiler = IProfiler

    def __init__(self, driver, network, reports, inspector):
        super().__init__(driver, network)
        self.reports, self.inspector, self.ran = reports, inspector, []

    def Runtime(self, logger):
        world, loaded = self, super().Runtime(logger)
        load = loaded.deserialize_cuda_engine

        def deserialize(plan):
            engine = load(plan)
            engine.create_execution_context = lambda: world.answer(
                "create_execution_context", lambda: ReportingContext(world)
            )
            engine.create_engine_inspector = lambda: Inspector(world.inspector)
            return engine

        loaded.deserialize_cuda_engine = deserialize
        return loaded


class Inspector:
    execution_context = None

    def __init__(self, text):
        self.text = text

    def get_engine_information(self, format):
        return self.text
