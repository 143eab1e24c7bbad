"""Deployed student -> ONNX file: one input `image`, named outputs, a free batch, nothing foreign in the graph.

torch.onnx.export with exporter, opset, batch and input form as the target says (dynamo from opset 18 on, below it the
legacy exporter, for TensorRT 8). What the exporter does quietly is read back from the
file and refused: a raised opset, a batch baked in, operators outside ONNX. The exporter's own optimizer folds batch
norms (measured: 2.8 times faster on mobilenetv3; onnxslim after it changes no CNN, so it is left out). Its notes about
Python sources are removed: they hold paths of the machine that exported.
"""

import ast
import copy
import logging
import os
import warnings
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from tinkit.errors import TinkitError
from tinkit.host.export.input_form import with_input_form
from tinkit.host.export.legacy_export import legacy_model, module_of_trace
from tinkit.pixels import Preprocessing
from tinkit.target import Target

INPUT = "image"
MAX_BYTES = 2**31 - 2**20  # protobuf's limit for one file, less the graph itself
EXAMPLE_BATCH = 2  # some versions of torch.export bake in a batch of 1
OWN_DOMAINS = ("", "ai.onnx")


def student_to_onnx(deployed, size: int, target: Target, path, preprocessing: Preprocessing | None = None) -> list[str]:
    """Write `deployed` (a `Deployed`) as ONNX in fp32 to `path`; returns notes for the user.

    `size` is the side of the picture in pixels; `preprocessing` is needed where the target's input is uint8. The module
    itself is not changed. Raises TinkitError when the exporter fails or when the file is not what the target asked for.
    """
    module = _plain_copy(deployed)
    batch = target.batch
    static = batch.min == batch.max
    example = torch.zeros(batch.max if static else EXAMPLE_BATCH, 3, size, size)
    try:
        with _quiet():
            if target.exporter == "legacy":
                model = legacy_model(module, example, target, (INPUT, module.output_names))
            else:
                model = _dynamo_model(module, example, target)
    except RuntimeError as error:  # OnnxExporterError is one; the legacy exporter raises others, too
        raise TinkitError(
            "torch cannot export this student to ONNX.",
            where=f"opset {target.opset}, the {target.exporter} exporter",
            seen=_last_cause(error),
            next_step="choose another --student: tinkit list students",
        ) from error
    model = tidy(model, [name for name, _ in module.named_modules()])
    model = with_input_form(model, target, size, preprocessing)
    check_model(model, target, path)
    onnx.save(model, os.fspath(path))
    return [f"the batch is fixed at {batch.max}"] if static else []


def _dynamo_model(module, example, target: Target):
    free = target.batch.min != target.batch.max
    with torch.no_grad():
        program: Any = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=target.opset,
            input_names=[INPUT],
            output_names=module.output_names,
            dynamic_shapes=({0: "batch"},) if free else None,
            optimize=True,
            verbose=False,
        )
    return program.model_proto


def check_model(model, target: Target, where) -> None:
    """The file is valid ONNX and what the target asked for: opset, names, batch, no operators of other domains."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise TinkitError("The exported model is not valid ONNX.", where=where, seen=_first_line(error)) from None
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    foreign = sorted({node.domain for node in model.graph.node} - set(OWN_DOMAINS))
    if foreign or model.functions:
        raise TinkitError(
            "The exported model uses operators that are not ONNX's own.",
            where=where,
            seen=", ".join(foreign) or f"{len(model.functions)} local functions",
        )
    if opsets.get("") != target.opset:
        raise TinkitError(
            "The exporter wrote another opset than the target asks for.",
            where=where,
            seen=f"opset {opsets.get('')}, the target says {target.opset}",
            next_step=f"opset = {opsets.get('')} in the target's file, if its runtime reads that",
        )
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    if inputs != [INPUT] or outputs != list(target.outputs):
        raise TinkitError(
            "The exported model has other tensors than wanted.", where=where, seen=f"{inputs} -> {outputs}"
        )
    kind, form = model.graph.input[0].type.tensor_type.elem_type, target.input
    if kind != (onnx.TensorProto.UINT8 if form == "uint8-nhwc" else onnx.TensorProto.FLOAT):
        raise TinkitError(
            "The exported model takes another input than the target asks for.",
            where=where,
            seen=f"{onnx.TensorProto.DataType.Name(kind)}, the target says {form}",
        )
    wanted = target.batch.max if target.batch.min == target.batch.max else "batch"
    for value in (*model.graph.input, *model.graph.output):
        if shape_of(value)[0] != wanted:
            raise TinkitError(
                "The exported model has another batch than the target asks for.",
                where=where,
                seen=f"{value.name} {shape_of(value)}, wanted {wanted} first",
            )


def shape_of(value) -> list:
    """The shape of a ValueInfoProto: numbers, and names where a dimension is free."""
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def tidy(model, modules=()):
    """Give nodes the names of their modules and remove the exporter's notes. Changes and returns `model`.

    `modules` are the names of the exported module's parts, for graphs of the legacy exporter.
    """
    turn_constants(model)
    taken: set[str] = set()
    for node in model.graph.node:
        node.name = _free_name(f"{_module_of(node, modules) or 'graph'}/{node.op_type}", taken)
        node.doc_string = ""
        del node.metadata_props[:]
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer)
    for part in (model, model.graph, *values):
        part.doc_string = ""
        del part.metadata_props[:]
    model.graph.name = "student"
    return model


def turn_constants(model) -> None:
    """Store weights as they are read: a Transpose of an initialiser becomes an initialiser (a neck on local features).

    Changes `model`. What looks for constant weights later need not look through it.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    turned = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in constants]
    for node in turned:
        if node.output[0] in outputs:
            continue
        order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)
        values = numpy_helper.to_array(constants[node.input[0]]).transpose(order)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), node.output[0]))
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    unread = [tensor for tensor in graph.initializer if tensor.name not in read | outputs]
    for tensor in unread:
        graph.initializer.remove(tensor)


def _module_of(node, modules) -> str:
    """The module that a node came from ("backbone.blocks.0.0.conv"), "" where neither weight nor exporter tells."""
    for name in node.input[1:2]:  # a folded batch norm hides the convolution in the scopes, its weight tells
        if name.endswith(".weight"):
            return _without_student(name.removesuffix(".weight"))
    for prop in node.metadata_props:
        if prop.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(prop.value)  # ["", "student", ..., name of the call]
            return _without_student(scopes[-2]) if len(scopes) > 1 else ""
    return _without_student(module_of_trace(node.name, modules))


def _without_student(scope) -> str:
    return scope.removeprefix("student").removeprefix(".")


def _free_name(name, taken) -> str:
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    taken.add(free)
    return free


def _plain_copy(deployed):
    """A copy on the CPU in eval mode, not compiled, and not channels_last (which would add transposes)."""
    module = copy.deepcopy(getattr(deployed, "_orig_mod", deployed)).cpu().eval()
    other = sorted({str(p.dtype) for p in module.parameters() if p.is_floating_point() and p.dtype != torch.float32})
    if other:
        raise ValueError(f"export wants a student in float32, not {', '.join(other)}")
    total = sum(p.numel() * p.element_size() for p in module.parameters())
    if total > MAX_BYTES:
        raise TinkitError(
            "The student is larger than one ONNX file can be.", seen=f"{total / 1e9:.1f} GB, the limit is 2"
        )
    return module.to(memory_format=torch.contiguous_format)


@contextmanager
def _quiet():
    """Without the exporter's talk; errors still come as exceptions.

    The one warning left out is about caches that timm fills on the first forward (tiny_vit's attention biases): they are
    constants in eval mode.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"The tensor attributes? .*_cache.* assigned during export")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _last_cause(error) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
