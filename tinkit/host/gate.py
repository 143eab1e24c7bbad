"""The host gate: the exported model sits the exam in onnxruntime before it leaves the workstation.

The reference is the trained student in fp32 PyTorch, before re-parameterisation, so that folding branches is inside
the gate. An fp32 graph is judged as it ships. A reduced graph is judged as a rehearsal (tinkit.host.precision), because
onnxruntime on a CPU does not round between fp16 nodes; the file that ships is run as well, to see that it is whole.
"""

import os
from dataclasses import replace

import numpy as np
import onnx
import torch

from tinkit.bundle import Bundle, Exam
from tinkit.device import sitting
from tinkit.device.runtime import open_runtime
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, Fidelity, compare_answers
from tinkit.host.precision import probed, rehearsal_graph
from tinkit.pixels import Preprocessing, normalise

HOP = "student -> onnx"
REFERENCE = "the trained student in fp32 PyTorch, before re-parameterisation"
STRUCTURE = (
    "structure only: it runs and its answers are finite; onnxruntime on a CPU does not round between fp16 nodes, "
    "so its numbers are no proof of fp16"
)


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


def host_gate(draft: Bundle, exam: Exam) -> list[Fidelity]:
    """All hops of the host. `draft` is the bundle in the making: its folder holds model.onnx, its manifest the target.

    Raises CannotJudge without onnxruntime, TinkitError for a model that does not load, run or fit the manifest.
    """
    hops = [sitting.preprocessing_hop(draft, exam, {"decoder": "tinkit.device.pictures, on the host"})]
    if draft.target.precision == "fp32":
        return hops + answer_hops(draft, exam, draft.model_path, HOP, {"precision": "fp32, the file that ships"})
    rehearsal = os.path.join(draft.path, "rehearsal.onnx")
    onnx.save(rehearsal_graph(onnx.load(draft.model_path)), rehearsal)
    told = {"precision": "rehearsed: fp32 arithmetic, rounded to fp16 after every fp16 node"}
    rehearsed = answer_hops(draft, exam, rehearsal, f"{HOP}, rehearsed in fp16", told)
    hops += [_with_overflow(hop, draft, exam, rehearsal) for hop in rehearsed]
    told = {"precision": "the file that ships, in onnxruntime's own arithmetic"}
    shipped = answer_hops(draft, exam, draft.model_path, f"{HOP}, as shipped", told)
    return hops + [_structure_only(hop) for hop in shipped]


def answer_hops(draft: Bundle, exam: Exam, model_path, hop: str, conditions) -> list[Fidelity]:
    """The exam through one ONNX file, at the target's smallest batch and at its largest that the exam can fill."""
    hops, least = [], draft.target.batch.min
    most = min(draft.target.batch.max, max(len(exam.pixels), least))
    with open_runtime("onnxruntime", model_path) as runtime:
        sitting.check_tensors(draft, runtime)
        for batch in sorted({least, most}):
            answers = sitting.answer_exam(draft, runtime, exam.pixels, batch)
            told = {"batch": batch, "reference": REFERENCE, **conditions, **runtime.conditions, **runtime.versions()}
            for output in draft.target.outputs:
                gate, reference = draft.target.gate_of(output), _fitting(exam.answers[output], answers[output], output)
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


def _with_overflow(hop: Fidelity, draft: Bundle, exam: Exam, rehearsal) -> Fidelity:
    """The hop; where its answers are not finite, with the name of the first node to blame in its reason."""
    if np.isfinite(hop.max_error):
        return hop
    node = first_overflow(draft, exam.pixels[[hop.worst[0]["index"]]], rehearsal)
    return replace(hop, reason=f"{hop.reason}; the first node that is not finite in fp16 is {node}")


def first_overflow(draft: Bundle, pixels_BHWC, rehearsal) -> str:
    """The first node in the graph's order whose rehearsed answer is not finite; "" when there is none."""
    model, sources = probed(onnx.load(rehearsal))
    path = os.path.join(draft.path, "probed.onnx")
    onnx.save(model, path)
    with open_runtime("onnxruntime", path) as runtime:
        pixels = sitting.fill(pixels_BHWC, draft.target.batch.min)
        seen = runtime.run(sitting.network_input(draft, pixels))
    return next((node for name, node in sources.items() if not np.isfinite(seen[name]).all()), "")


def _structure_only(hop: Fidelity) -> Fidelity:
    if np.isfinite(hop.max_error):
        return replace(hop, verdict=NOT_JUDGED, reason=STRUCTURE, gate=None)
    worst = hop.worst[0]["name"]
    return replace(hop, verdict=FAILED, reason=f"answers that are not finite; worst picture {worst!r}", gate=None)
