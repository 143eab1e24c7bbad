"""What happens inside a graph on real pictures: every float tensor of a model, and where a reduced model goes wrong.

`compare_activations` ranks the nodes of the fp32 graph by the error that each *adds* on top of what its inputs already
carry: the list that healing works down. Squared errors are summed picture by picture and in groups of tensors, so memory
is that of one picture. onnxruntime runs with its optimisations off, so that the tensors of the graph exist.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from tinkit.errors import CannotJudge, TinkitError
from tinkit.host.export.graphs import constant_names, copied, tensor_types

SEEN_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)  # numpy has no bfloat16; a rehearsal holds no such tensor inside
GROUP = 64  # tensors that are looked at in one run


@dataclass(frozen=True)
class NodeError:
    """The output of one node of the reference. `error`: length of the difference / length of the reference's tensor,
    over all pictures; inf where the reduced one is not finite. `added`: error less the largest of its inputs, >= 0."""

    node: str
    op_type: str
    tensor: str
    error: float
    added: float


def activation_names(model) -> list[str]:
    """Names of the float tensors that nodes compute from the picture, in the graph's order."""
    types, constants = tensor_types(model), constant_names(model)
    return [
        name
        for node in model.graph.node
        for name in node.output
        if name and name not in constants and types[name] in SEEN_TYPES
    ]


def activations(model, feeds: Iterable[dict], names: Sequence[str] | None = None) -> Iterator[dict[str, np.ndarray]]:
    """For each of `feeds` ({input: array}) the tensors `names` of `model`, by default all of activation_names(model).

    One feed's tensors are in memory at a time. Raises CannotJudge without onnxruntime, TinkitError for a model that does
    not run, ValueError for a name that the model does not have.
    """
    wanted = activation_names(model) if names is None else list(names)
    session = _session(_giving(model, wanted))
    for feed in feeds:
        try:
            yield dict(zip(wanted, session.run(wanted, feed)))
        except _errors() as error:
            raise TinkitError("onnxruntime does not run the model.", seen=str(error)) from None


def compare_activations(reference_model, reduced_model, feeds_list: Sequence[dict]) -> list[NodeError]:
    """What each node of the reference adds to the error of the reduced model, worst first (by added, then by error).

    Compared are the tensors that have their name in both. Where the reference itself is not finite (a mask of -inf), the
    reduced tensor must be equal. A tensor of zeros that comes out otherwise has the error 1.
    """
    there = set(activation_names(reduced_model))
    names = [name for name in activation_names(reference_model) if name in there]
    errors: dict[str, float] = {}
    for start in range(0, len(names), GROUP):
        group = names[start : start + GROUP]
        errors.update(_group_errors(reference_model, reduced_model, feeds_list, group))
    found = [
        NodeError(node.name, node.op_type, name, errors[name], _added(errors[name], node, errors))
        for node in reference_model.graph.node
        for name in node.output
        if name in errors
    ]
    return sorted(found, key=lambda entry: (-entry.added, -entry.error))


def _group_errors(reference_model, reduced_model, feeds, group) -> dict[str, float]:
    difference, length = dict.fromkeys(group, 0.0), dict.fromkeys(group, 0.0)
    pairs = zip(activations(reference_model, feeds, group), activations(reduced_model, feeds, group))
    for reference, reduced in pairs:
        for name in group:
            apart, long = _squares(reference[name], reduced[name], name)
            difference[name] += apart
            length[name] += long
    return {name: _relative(difference[name], length[name]) for name in group}


def _squares(reference, reduced, name) -> tuple[float, float]:
    """(squared length of the difference, of the reference) in float64; inf where only the reduced is not finite."""
    if reference.shape != reduced.shape:
        raise TinkitError(
            "A tensor has another shape in the reduced model.", where=name, seen=f"{reference.shape}, {reduced.shape}"
        )
    x, r = reference.astype(np.float64).ravel(), reduced.astype(np.float64).ravel()
    finite = np.isfinite(x)
    same = np.array_equal(x[~finite], r[~finite], equal_nan=True)
    if not same or not np.isfinite(r[finite]).all():
        return float("inf"), float(x[finite] @ x[finite])
    apart = r[finite] - x[finite]
    return float(apart @ apart), float(x[finite] @ x[finite])


def _relative(difference, length) -> float:
    if difference == 0 or np.isinf(difference):
        return float(difference)
    return float(np.sqrt(difference / length)) if length > 0 else 1.0


def _added(error, node, errors) -> float:
    before = max((errors[name] for name in node.input if name in errors), default=0.0)
    return 0.0 if np.isinf(before) else max(error - before, 0.0)


def _giving(model, names):
    """The model with `names` as its outputs."""
    types = tensor_types(model)
    unknown = [name for name in names if name not in types]
    if unknown:
        raise ValueError(f"the model has no tensor {unknown[0]!r}")
    giving = copied(model)
    del giving.graph.output[:]
    giving.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in names)
    return giving


def _session(model):
    try:
        import onnxruntime
    except ImportError:
        raise CannotJudge(
            "onnxruntime is missing, so nothing can be run here.", next_step='pip install "tinkit[cpu]"'
        ) from None
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors; they come back as exceptions
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except _errors() as error:
        raise TinkitError("onnxruntime does not load the model.", seen=str(error)) from None


def _errors():
    """onnxruntime's own exceptions; they have no common parent but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*kinds, ValueError, RuntimeError)
