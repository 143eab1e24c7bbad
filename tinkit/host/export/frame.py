"""A graph that takes whole camera frames: what is put in front of the settled network, and what it is compared with.

The network is settled and judged at network size, where the exam's pixels are; only then the resize comes in front, so
precision and resize are never mixed up in one number. The hop of the frame is a comparison with Pillow: frames made of
the exam's encoded pictures, answered by the student after Pillow's antialiased bicubic, and by the graph after its own.

Measured against Pillow on the demo's 20 photographs, each as a frame of 480 x 640, for a network of 160 (crop 0.95), in
grey levels, mean / worst picture's mean / largest: onnxruntime (cubic, antialiased) 0.28 / 0.31 / 18, without antialiasing
(linear, as for TensorRT and OpenVINO, run in onnxruntime) 2.6 / 6.7 / 112. Frames of 240 x 320: 0.30 / 0.32 / 10 and
1.1 / 2.6 / 43. Large frames alias: a target without antialiasing wants one near 1.5 times the network's size.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from tinkit.bundle import Exam
from tinkit.device.pictures import frame_pixels, network_pixels_of_frame
from tinkit.fidelity import Fidelity
from tinkit.host.export.gate import student_answers
from tinkit.host.export.input_form import with_resize
from tinkit.host.export.precision import Written
from tinkit.pixels import Preprocessing
from tinkit.target import Target

LEFT_OUT = "left out: pixels at network size, the model that ships has it in front"


def without_frame(target: Target) -> Target:
    """The same target at network size; the target itself where it has no frame."""
    if not target.frame:
        return target
    return replace(target, frame=(), gate={key: gate for key, gate in target.gate.items() if key != "frame"})


def framed(written: Written, target: Target, preprocessing: Preprocessing) -> Written:
    """The settled graphs, the shipped and the judged one, with the resize of `target.frame` in front; copies.

    `written` itself where the target has no frame.
    """
    if not target.frame:
        return written
    model = with_resize(_copy(written.model), target, preprocessing)
    judged = with_resize(_copy(written.judged), target, preprocessing) if written.rehearsed else model
    return replace(written, model=model, judged=judged)


def frame_answers(student, exam: Exam, preprocessing: Preprocessing, target: Target) -> dict[str, np.ndarray]:
    """output -> (len(exam.encoded), ...) of the student in PyTorch, on Pillow's own preprocessing of each frame.

    {} for a target without a frame and for an exam without encoded pictures.
    """
    if not target.frame or not exam.encoded:
        return {}
    frames = (frame_pixels(exam.encoded[index], target.frame) for index in sorted(exam.encoded))
    pixels = np.stack([network_pixels_of_frame(frame, preprocessing) for frame in frames])
    return student_answers(student, pixels, preprocessing, target.local)


def without_resize(hops: Sequence[Fidelity]) -> list[Fidelity]:
    """The hops of the network at network size, which say in their conditions that the resize was not in front."""
    return [
        hop if hop.output == "pixels" else replace(hop, conditions={**hop.conditions, "resize": LEFT_OUT})
        for hop in hops
    ]


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
