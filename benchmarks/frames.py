"""How near a resize inside the graph comes to Pillow's: the demo's photographs as camera frames, in grey levels.

    python benchmarks/frames.py [--size 160]

A graph that does nothing but take frames (tinkit.host.export.input_form) against Pillow's antialiased bicubic on the same frames.
Each target's form runs where it can be run here: onnxruntime's and TensorRT's in onnxruntime, OpenVINO's in OpenVINO.
"""

import argparse
import os
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper

from tinkit.device.pictures import Unreadable, frame_pixels, network_pixels_of_frame
from tinkit.device.runtime import open_runtime
from tinkit.host.demo_pictures import photographs
from tinkit.host.export.input_form import with_input_form
from tinkit.pixels import Preprocessing
from tinkit.target import Gate, Target

FRAMES = ((480, 640), (240, 320))
FORMS = {"onnxruntime": "onnxruntime", "tensorrt": "onnxruntime", "openvino": "openvino"}  # whose -> where it is run
GREY = (1 / 255,) * 3  # the graph's normalisation then leaves 0..255 as it is


def resize_alone(frame, whose, preprocessing):
    """A graph from uint8 frames to what a network of `preprocessing.size` would see, 0..255."""
    size = preprocessing.size
    gate = Gate(min_cosine=0.0, max_error_share=1.0)
    target = Target(
        description="frames alone",
        runtime=whose,
        precision="fp32",
        gate={"embedding": gate, "frame": gate},
        input="uint8-nhwc",
        frame=frame,
        compute="fp32" if whose == "openvino" else "",
    )
    image, pixels = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, size, size]) for name in ("image", "pixels")
    )
    node = helper.make_node("Identity", ["image"], ["pixels"], "nothing")
    graph = helper.make_graph([node], "frames", [image], [pixels])
    opset = [helper.make_opsetid("", target.opset)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    return with_input_form(model, target, size, preprocessing), target


def differences(frame, whose, preprocessing):
    """(mean, worst picture's mean, largest) difference to Pillow over the photographs, in grey levels."""
    model, target = resize_alone(frame, whose, preprocessing)
    frames = []
    for path in photographs():
        try:
            frames.append(frame_pixels(path, frame))
        except Unreadable:
            continue
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "frames.onnx")
        onnx.save(model, path)
        with open_runtime(FORMS[whose], path, target=target) as runtime:
            answers = [runtime.run({"image": one[None]}) for one in frames]
    seen = [next(iter(answer.values()))[0].transpose(1, 2, 0) for answer in answers]  # the only output
    apart = [np.abs(ours - network_pixels_of_frame(one, preprocessing)) for ours, one in zip(seen, frames)]
    means = [float(one.mean()) for one in apart]
    return np.mean(means), max(means), max(float(one.max()) for one in apart), len(frames)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=160, help="of the network, in pixels")
    size = parser.parse_args().size
    preprocessing = Preprocessing(size=size, mean=(0.0, 0.0, 0.0), std=GREY, crop_pct=0.95)
    print("| frame | form of | run in | photographs | mean | worst picture's mean | largest |")
    print("|---|---|---|---|---|---|---|")
    for height, width in FRAMES:
        for whose, where in FORMS.items():
            mean, worst, largest, count = differences((height, width), whose, preprocessing)
            cells = (f"{height} x {width}", whose, where, count, f"{mean:.2f}", f"{worst:.2f}", f"{largest:.0f}")
            print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
