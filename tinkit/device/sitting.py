"""Sitting the exam: the bundle's pictures through the runtime of this machine, compared with the answers it carries.

Three hops. Preprocessing: an encoded picture, decoded here, must give the exam's pixels. Answers: what the runtime
says must be what the fp32 PyTorch student said, at the smallest and the largest batch of the target. Mapped teacher:
the same answers against the teacher, as evidence. A graph that takes whole frames cannot be fed the exam's pixels: its
answers are asked for on frames made of the encoded pictures. The comparison is tinkit.fidelity, as in the host gate.
"""

from dataclasses import replace

import numpy as np

from tinkit.device import pictures
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED, Fidelity, compare_answers
from tinkit.pixels import normalise

NO_EXAM = "the bundle carries no exam (it was exported with --deploy-only)"
NO_PIXELS = "the model takes whole frames, not the exam's pixels at network size: the hop of the frame examines it"
NO_FRAMES = "the exam has no encoded picture that a frame could be made of"


def sit_exam(bundle, runtime, conditions=None, rehearsal=""):
    """The device's hops as a list of `Fidelity`, preprocessing first.

    `rehearsal` says why nothing may be judged (another runtime than the target's); then all evidence is there and every
    verdict is "not judged". Raises TinkitError when model, manifest and exam do not fit each other.
    """
    check_tensors(bundle, runtime)
    exam, target = bundle.exam(), bundle.target
    hop = "student -> {}".format(runtime.name)
    if exam is None:
        return [_nothing(hop, output, NO_EXAM, conditions) for output in target.outputs]
    hops = [preprocessing_hop(bundle, exam, conditions)]
    if target.frame:
        hops += [_nothing(hop, output, NO_PIXELS, conditions) for output in target.outputs]
        hops += frame_hops(bundle, runtime, exam, runtime.name, conditions)
        return [unjudged(hop, rehearsal) for hop in hops] if rehearsal else hops
    for batch in batches_of(target, len(exam.pixels)):
        answers = answer_exam(bundle, runtime, exam.pixels, batch)
        at = dict(conditions or {}, batch=batch)
        for output in target.outputs:
            reference = _reference(exam.answers, output, answers)
            gate = target.gate_of(output)
            name = "{}, batch {}".format(hop, batch)
            hops.append(compare_answers(name, output, answers[output], reference, exam.names, gate, at))
    if rehearsal:
        hops = [unjudged(hop, rehearsal) for hop in hops]
    if exam.mapped is not None and exam.mapped.shape == answers["embedding"].shape:
        name = "mapped teacher -> {}".format(runtime.name)
        seen = compare_answers(name, "embedding", answers["embedding"], exam.mapped, exam.names, None, at)
        hops.append(replace(seen, reason="evidence: how near the student is to its teacher has no gate"))
    return hops


def batches_of(target, pictures):
    """The batch sizes of an exam: the target's smallest, and its largest that so many pictures can fill."""
    return sorted({target.batch.min, min(target.batch.max, max(pictures, target.batch.min))})


def frame_hops(bundle, runtime, exam, whose, conditions=None):
    """Frames made here of the exam's encoded pictures, through a graph that resizes them itself, as hops "frame -> whose".

    The reference are the student's answers on the same frames after Pillow's preprocessing; every output is held to the
    gate of the frame. Without encoded pictures or Pillow: not judged. A picture that cannot be decoded here fails.
    """
    hop, target = "frame -> {}".format(whose), bundle.target
    order = sorted(exam.encoded)
    try:
        frames = np.stack([_frame(exam, index, target.frame) for index in order]) if order else None
    except pictures.Unreadable as error:
        return [replace(_nothing(hop, output, str(error), conditions), verdict=FAILED) for output in target.outputs]
    except TinkitError as error:  # no Pillow
        reason = "{} ({})".format(error.what, error.next_step)
        return [_nothing(hop, output, reason, conditions) for output in target.outputs]
    if frames is None:
        return [_nothing(hop, output, NO_FRAMES, conditions) for output in target.outputs]
    hops = []
    for batch in batches_of(target, len(frames)):
        answers = answer_exam(bundle, runtime, frames, batch)
        at = dict(conditions or {}, batch=batch, frame="{} x {} pixels".format(*target.frame))
        for output in target.outputs:
            reference = _reference(exam.frame_answers, output, answers)
            name, names = "{}, batch {}".format(hop, batch), exam.names[order]
            seen = compare_answers(name, output, answers[output], reference, names, target.gate["frame"], at)
            hops.append(replace(seen, worst=_counted_in_exam(seen.worst, order)))
    return hops


def _frame(exam, index, frame):
    try:
        return pictures.frame_pixels(exam.encoded[index], frame)
    except pictures.Unreadable as error:
        raise pictures.Unreadable(_unreadable(exam, index, error)) from None


def _unreadable(exam, index, error):
    return "picture {!r} cannot be decoded here: {}".format(str(exam.names[index]), error)


def _counted_in_exam(worst, order):
    """The worst pictures of some of the exam, by their place in the whole of it."""
    return [dict(entry, index=order[entry["index"]]) for entry in worst]


def unjudged(hop, rehearsal):
    """The hop with all its evidence and without its verdict, which the reason still tells."""
    if hop.verdict == NOT_JUDGED:
        return hop
    reason = "rehearsal: {}; here it {}: {}".format(rehearsal, hop.verdict, hop.reason)
    return replace(hop, verdict=NOT_JUDGED, reason=reason)


def answer_exam(bundle, runtime, pixels_NHWC, batch):
    """output -> (N, ...) float32, in batches of at most `batch`; the last one filled to the target's smallest."""
    parts = {}
    for start in range(0, len(pixels_NHWC), batch):
        pixels = pixels_NHWC[start : start + batch]
        answers = runtime.run(network_input(bundle, fill(pixels, bundle.target.batch.min)))
        for output, answer in answers.items():
            parts.setdefault(output, []).append(np.asarray(answer[: len(pixels)], np.float32))
    return {output: np.concatenate(answers) for output, answers in parts.items()}


def network_input(bundle, pixels_BHWC):
    """uint8 pictures at network size -> {input name: array in the dtype that the manifest names}.

    A uint8 NHWC input takes the pixels as they are: the graph normalises. One of a frame's size takes frames of just that
    size. Raises TinkitError for pictures of another size.
    """
    tensor = bundle.manifest["tensors"]["inputs"][0]
    if tensor["dtype"] == "uint8":
        if len(tensor["shape"]) != 4 or tensor["shape"][3] != 3:
            raise TinkitError(
                "A uint8 input must be NHWC with three colours.",
                where=bundle.path,
                seen="{} {}".format(tensor["name"], tensor["shape"]),
            )
        height, width = tensor["shape"][1:3]
        if pixels_BHWC.shape[1:3] != (height, width):
            raise TinkitError(
                "The pictures are not of the size that the model takes.",
                where=bundle.path,
                seen="{} x {} pixels, the model takes {} x {}".format(*pixels_BHWC.shape[1:3], height, width),
                next_step="feed whole frames: this model resizes them itself" if bundle.target.frame else None,
            )
        return {tensor["name"]: np.ascontiguousarray(pixels_BHWC)}
    return {tensor["name"]: normalise(pixels_BHWC, bundle.preprocessing).astype(tensor["dtype"], copy=False)}


def fill(pixels_BHWC, least):
    """At least `least` pictures, the last one repeated."""
    missing = least - len(pixels_BHWC)
    return pixels_BHWC if missing <= 0 else np.concatenate([pixels_BHWC, np.repeat(pixels_BHWC[-1:], missing, axis=0)])


def check_tensors(bundle, runtime):
    """The model's inputs and outputs are the manifest's, by name and dtype. Raises TinkitError."""
    for side, tensors in (("inputs", runtime.inputs), ("outputs", runtime.outputs)):
        wanted = {tensor["name"]: tensor["dtype"] for tensor in bundle.manifest["tensors"][side]}
        seen = {tensor.name: tensor.dtype for tensor in tensors}
        lacks = sorted(set(bundle.target.outputs) - set(seen)) if side == "outputs" else []
        if wanted != seen or lacks:
            raise TinkitError(
                "The {} of the model are not those of the manifest.".format(side),
                where=bundle.path,
                seen="{}, manifest {}".format(seen, wanted),
                next_step="export the bundle again",
            )


def _reference(expected, output, answers):
    """The exam's answers for an output, of the shape that the runtime gave."""
    reference = expected.get(output)
    if reference is None or reference.shape != answers[output].shape:
        raise TinkitError(
            "The exam's answers do not fit the model's output `{}`.".format(output),
            seen="answers {}, model {}".format(getattr(reference, "shape", "none"), answers[output].shape),
            next_step="export the bundle again",
        )
    return reference


def preprocessing_hop(bundle, exam, conditions):
    """Encoded pictures decoded here against the exam's pixels; judged on the largest difference in grey levels."""
    hop, limit = "encoded picture -> pixels", bundle.target.pixel_gate
    decoded, unreadable = {}, ""
    for index, data in sorted(exam.encoded.items()):
        try:
            decoded[index] = pictures.network_pixels(data, bundle.preprocessing)
        except pictures.Unreadable as error:
            unreadable = _unreadable(exam, index, error)
        except TinkitError as error:  # no Pillow: frames can still be fed, so the rest of the exam goes on
            return _nothing(hop, "pixels", "{} ({})".format(error.what, error.next_step), conditions)
    if not decoded:
        verdict, reason = (FAILED, unreadable) if unreadable else (NOT_JUDGED, "the exam has no encoded picture")
        return replace(_nothing(hop, "pixels", reason, conditions), verdict=verdict)
    order = sorted(decoded)
    answers = np.stack([decoded[index] for index in order])
    seen = compare_answers(hop, "pixels", answers, exam.pixels[order], exam.names[order], None, conditions)
    verdict, reason = judge_pixels(seen.max_error, limit)
    if unreadable:
        verdict, reason = FAILED, unreadable
    return replace(
        seen, worst=_counted_in_exam(seen.worst, order), verdict=verdict, reason=reason, gate={"max_grey_levels": limit}
    )


def judge_pixels(grey_levels, limit):
    """(verdict, reason); exactly at the limit passes."""
    told = "a pixel is off by {:g} grey levels, the limit is {:g}".format(grey_levels, limit)
    return (PASSED if grey_levels <= limit else FAILED), told


def _nothing(hop, output, reason, conditions):
    """A hop without evidence: no picture was compared and its numbers are zeros that mean nothing."""
    return Fidelity(
        hop=hop,
        output=output,
        pictures=0,
        cosine_mean=0.0,
        cosine_p1=0.0,
        cosine_min=0.0,
        max_error=0.0,
        max_error_share=0.0,
        worst=[],
        verdict=NOT_JUDGED,
        reason=reason,
        conditions=dict(conditions or {}),
    )
