"""torch's older exporter, for TensorRT 8: it is the only one that writes opset 16 and 17, and it writes them noisily.

Traced graphs carry Identity, Shape and Constant nodes around every attention and name folded weights "onnx::Conv_150".
Here the noise is folded (the passes of onnx-ir keep the opset, measured: test_vit 496 -> 243 nodes at opset 17), and
nodes and weights get the names of their modules as in graphs of the newer exporter.
"""

import io
import warnings
from typing import Any

import onnx
import onnx_ir
import torch
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants

FOLDED_WEIGHT = "onnx::"  # how the exporter names a weight that it made itself
ROUNDS = (
    2  # folding a Shape frees constants for the next round; a third finds nothing (efficientvit_b0, vit_tiny, tiny_vit)
)


def legacy_model(module, example, target, names) -> onnx.ModelProto:
    """Export `module` (a copy: its fused attention is switched off) at `target.opset`; names: (input, outputs).

    Fused attention is traced with a scale computed from shapes, and fails for EVA's (`is_causal` as a tensor); the plain
    one gives the same numbers. Raises what torch raises.
    """
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    first, outputs = names
    free = target.batch.min != target.batch.max
    written: Any = io.BytesIO()  # this exporter takes a file, too, which the type of export() leaves out
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", "Constant folding - Only steps=1", UserWarning)  # folded below instead
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the whole exporter; this torch still has it
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # sizes are fixed; the batch is checked
        torch.onnx.export(
            module,
            (example,),
            written,
            dynamo=False,
            opset_version=target.opset,
            input_names=[first],
            output_names=[*outputs],
            dynamic_axes={name: {0: "batch"} for name in (first, *outputs)} if free else None,
        )
    return _named_weights(_folded(onnx.load_from_string(written.getvalue())), module)


def _folded(model):
    ir = onnx_ir.from_proto(model)
    for _ in range(ROUNDS):
        fold_constants(ir, onnx_shape_inference=True)
        passes.IdentityEliminationPass()(ir)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(ir)
        passes.CommonSubexpressionEliminationPass()(ir)
        passes.DeduplicateInitializersPass()(ir)
        passes.RemoveUnusedNodesPass()(ir)
    return onnx_ir.to_proto(ir)


def _named_weights(model, module):
    """Folded weights get the name of the node's module: "onnx::Conv_150" -> "student.backbone.conv_stem.weight"."""
    modules = {name for name, _ in module.named_modules()}
    taken = {tensor.name for tensor in model.graph.initializer}
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        owner = module_of_trace(node.name, modules)
        for name, part in zip(node.input[1:3], ("weight", "bias")):
            wanted = f"{owner}.{part}"
            if owner and name.startswith(FOLDED_WEIGHT) and name not in renamed and wanted not in taken:
                renamed[name] = wanted
                taken.add(wanted)
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    return model


def module_of_trace(name, modules) -> str:
    """ "/student/blocks/blocks.0/attn/MatMul" -> "student.backbone.blocks.0.attn", "" where the trace tells no module.

    A trace knows calls: it repeats the parents of list members, and leaves out a module whose forward_features was called
    instead of itself (the backbone).
    """
    if not name.startswith("/"):
        return ""
    scopes = name.split("/")[1:-1]
    kept = [scope for scope, after in zip(scopes, [*scopes[1:], ""]) if not after.startswith(scope + ".")]
    for count in (0, 1):
        found = ".".join([*kept[:1], *["backbone"] * count, *kept[1:]])
        if found in modules:
            return found
    return ".".join(kept)
