"""The host gate: the exported model sits the exam on the workstation before it leaves it.

The reference is the trained student in fp32 PyTorch, before re-parameterisation, so that folding branches is inside
the gate. What is judged is `Written.judged` (tinkit.host.export.precision): the file that ships, or its rehearsal. Where that is
a rehearsal the file that ships is run as well, to see that it is whole.
"""

import os
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch

from tinkit.bundle import Bundle, Exam
from tinkit.device import sitting
from tinkit.device.runtime import OnnxRuntime, open_runtime
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, Fidelity, compare_answers
from tinkit.host.export.precision import Written
from tinkit.host.export.rehearsal import probed
from tinkit.host.export.to_onnx import shape_of
from tinkit.pixels import Preprocessing, normalise
from tinkit.target import Target

HOP = "student -> onnx"
REFERENCE = "the trained student in fp32 PyTorch, before re-parameterisation"
STRUCTURE = (
    "structure only: it runs and its answers are finite; onnxruntime on a CPU does not round between fp16 nodes, "
    "so its numbers are no proof of fp16"
)


@dataclass(frozen=True)
class Draft:
    """A bundle in the making: where its models are tried, for which target, on pictures prepared how."""

    folder: str
    target: Target
    preprocessing: Preprocessing

    def bundle(self, model) -> Bundle:
        manifest = {
            "target": self.target.to_json(),
            "tensors": tensors_of(model),
            "preprocessing": self.preprocessing.to_json(),
        }
        return Bundle(self.folder, manifest)

    def feed(self, pixels_BHWC, model) -> dict[str, np.ndarray]:
        """What the model's input takes for these pictures."""
        return sitting.network_input(self.bundle(model), pixels_BHWC)


@torch.inference_mode()
def student_answers(student, pixels_NHWC, preprocessing: Preprocessing, local: bool, batch: int = 32):
    """output -> (N, ...) float32 of the student in PyTorch, in eval mode."""
    student.eval()
    parts: dict[str, list] = {"embedding": [], "logits": [], "local": []}
    for start in range(0, len(pixels_NHWC), batch):
        features = student(torch.from_numpy(normalise(pixels_NHWC[start : start + batch], preprocessing)))
        parts["embedding"].append(features.global_BD.numpy())
        if features.logits_BC is not None:
            parts["logits"].append(features.logits_BC.numpy())
        if local:
            parts["local"].append(features.local_BLD.numpy())
    return {output: np.concatenate(answers) for output, answers in parts.items() if answers}


def host_gate(draft: Draft, written: Written, exam: Exam, judged: list[Fidelity] | None = None) -> list[Fidelity]:
    """All hops of the host. `judged`: what `judge_hops` found already.

    Raises CannotJudge without the runtime, TinkitError for a model that does not run.
    """
    shipped = draft.bundle(written.model)
    hops = [sitting.preprocessing_hop(shipped, exam, {"decoder": "tinkit.device.pictures, on the host"})]
    hops += judge_hops(draft, written, exam) if judged is None else judged
    if written.rehearsed and draft.target.precision != "bf16":  # onnxruntime has no bf16 convolution
        told = {"precision": "the file that ships, in onnxruntime's own arithmetic"}
        with _opened(draft, written.model, "shipped.onnx", "onnxruntime") as runtime:
            hops += [_structure_only(hop) for hop in _answer_hops(shipped, runtime, exam, f"{HOP}, as shipped", told)]
    return hops


def judge_hops(draft: Draft, written: Written, exam: Exam, largest_only: bool = False) -> list[Fidelity]:
    """The exam through the judged graph, at the target's smallest batch and at the largest that the exam can fill."""
    bundle = draft.bundle(written.judged)
    kind = "openvino" if draft.target.runtime == "openvino" else "onnxruntime"
    hop = f"{HOP}, rehearsed in {draft.target.precision}" if written.rehearsed else HOP
    with _opened(draft, written.judged, "judged.onnx", kind) as runtime:
        hops = _answer_hops(bundle, runtime, exam, hop, {"precision": written.how}, largest_only)
    if not largest_only and written.rehearsed:
        hops = [_with_overflow(hop, draft, exam, written.judged) for hop in hops]
    return hops


def frame_gate(draft: Draft, written: Written, exam: Exam) -> list[Fidelity]:
    """The hop of the frame: `written` (tinkit.host.export.frame.framed) on frames made of the exam's encoded pictures.

    Judged on the judged graph; where that is a rehearsal the file that ships is run on the frames, too. What a reader
    cannot know otherwise is in the conditions: the reference is Pillow's resize, the graph's is another.
    """
    told = {"reference": f"{REFERENCE}, on Pillow's preprocessing of the frame", "precision": written.how}
    kind = "openvino" if draft.target.runtime == "openvino" else "onnxruntime"
    whose = f"student, rehearsed in {draft.target.precision}" if written.rehearsed else "student"
    with _opened(draft, written.judged, "judged-frame.onnx", kind) as runtime:
        sitting.check_tensors(draft.bundle(written.judged), runtime)
        told.update(runtime.conditions, **runtime.versions())
        hops = sitting.frame_hops(draft.bundle(written.judged), runtime, exam, whose, told)
    if written.rehearsed and draft.target.precision != "bf16" and exam.encoded:
        told["precision"] = "the file that ships, in onnxruntime's own arithmetic"
        with _opened(draft, written.model, "shipped-frame.onnx", "onnxruntime") as runtime:
            shipped = sitting.frame_hops(draft.bundle(written.model), runtime, exam, "student, as shipped", told)
        hops += [_structure_only(hop) for hop in shipped]
    return hops


def tensors_of(model) -> dict[str, list[dict]]:
    """Names, dtypes and shapes of a model's inputs and outputs, as the manifest tells them."""
    return {"inputs": _tensors(model.graph.input), "outputs": _tensors(model.graph.output)}


def _tensors(values) -> list[dict]:
    return [
        {
            "name": value.name,
            "dtype": str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))),
            "shape": shape_of(value),
        }
        for value in values
    ]


def _opened(draft: Draft, model, name: str, kind: str):
    path = os.path.join(draft.folder, name)
    onnx.save(model, path)
    if draft.target.runtime == "tensorrt":  # onnxruntime would round the weights of nodes that int8 spares
        return OnnxRuntime(path, without=("WeightBiasQuantization",))
    return open_runtime(kind, path, target=draft.target)


def _answer_hops(bundle: Bundle, runtime, exam: Exam, hop: str, conditions, largest_only=False) -> list[Fidelity]:
    hops, least = [], bundle.target.batch.min
    most = min(bundle.target.batch.max, max(len(exam.pixels), least))
    sitting.check_tensors(bundle, runtime)
    for batch in sorted({most} if largest_only else {least, most}):
        answers = sitting.answer_exam(bundle, runtime, exam.pixels, batch)
        told = {"batch": batch, "reference": REFERENCE, **conditions, **runtime.conditions, **runtime.versions()}
        for output in bundle.target.outputs:
            gate, reference = bundle.target.gate_of(output), _fitting(exam.answers[output], answers[output], output)
            name = f"{hop}, batch {batch}"
            hops.append(compare_answers(name, output, answers[output], reference, exam.names, gate, told))
    return hops


def _fitting(reference, answers, output):
    if reference.shape != answers.shape:
        raise TinkitError(
            f"The exported model's `{output}` has another shape than the student's.",
            seen=f"{answers.shape}, the student gives {reference.shape}",
        )
    return reference


def _with_overflow(hop: Fidelity, draft: Draft, exam: Exam, rehearsal) -> Fidelity:
    """The hop; where its answers are not finite, with the name of the first node to blame in its reason."""
    if np.isfinite(hop.max_error):
        return hop
    node = first_overflow(draft, exam.pixels[[hop.worst[0]["index"]]], rehearsal)
    return replace(hop, reason=f"{hop.reason}; the first node that is not finite is {node}") if node else hop


def first_overflow(draft: Draft, pixels_BHWC, rehearsal) -> str:
    """The first node in the graph's order whose rehearsed answer is not finite; "" when there is none."""
    model, sources = probed(rehearsal)
    path = os.path.join(draft.folder, "probed.onnx")
    onnx.save(model, path)
    with OnnxRuntime(path) as runtime:
        seen = runtime.run(draft.feed(sitting.fill(pixels_BHWC, draft.target.batch.min), rehearsal))
    return next((node for name, node in sources.items() if not np.isfinite(seen[name]).all()), "")


def _structure_only(hop: Fidelity) -> Fidelity:
    if np.isfinite(hop.max_error):
        return replace(hop, verdict=NOT_JUDGED, reason=STRUCTURE, gate=None)
    worst = hop.worst[0]["name"]
    return replace(hop, verdict=FAILED, reason=f"answers that are not finite; worst picture {worst!r}", gate=None)
