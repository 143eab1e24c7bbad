"""Every TensorRT target of every student that tinkit names is taken by a real parser and builder, without a GPU.

TensorRT-RTX 1.7 is of TensorRT 11's generation: it proves the strongly typed graphs, and of those for TensorRT 8 that they
are sound; what an old parser reads is held against its lists (tinkit.host.export.legality).
"""

import numpy as np
import onnx
import pytest
import torch
from export_parts import students_benchmark

from tinkit import recipes
from tinkit.host.export.calibration import calibrate
from tinkit.host.export.check_build import check_build
from tinkit.host.export.command import check_legal, write_fp32
from tinkit.host.export.graph_truth import graph_truth
from tinkit.host.export.graphs import node_macs
from tinkit.host.export.precision import write_precision
from tinkit.host.student import build_student
from tinkit.pixels import normalise

STUDENTS = {  # architecture -> pixels: small ones build faster, and the nodes are the same
    "mobilenetv4_conv_small": 96,
    "mobilenetv3_small_100": 96,
    "efficientvit_b0": 96,
    "fastvit_t8": 128,
    "repvit_m1_0": 96,
    "vit_tiny_patch16_224": 96,
    "tiny_vit_5m_224": 224,
}
TARGETS = [name for name, path in recipes.known("target").items() if recipes.load_target(path).runtime == "tensorrt"]

pytestmark = [pytest.mark.slow, pytest.mark.tensorrt]


@pytest.mark.parametrize("architecture", STUDENTS)
def test_every_tensorrt_target_builds(architecture, tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings", reason="the TensorRT-RTX wheels are not installed")
    torch.manual_seed(0)
    size = STUDENTS[architecture]
    student = build_student(architecture, size)
    preprocessing = student.spec.preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (16, size, size, 3), dtype=np.uint8)
    inputs = normalise(pixels, preprocessing)
    deployed = students_benchmark().lively(student, torch.from_numpy(inputs)).deploy()
    graphs = {}
    built = {}
    for name in TARGETS:
        target, path = recipes.load_target(name), tmp_path / f"{name}.onnx"
        form = (target.opset, target.exporter, target.batch)
        if form not in graphs:
            write_fp32(deployed, preprocessing, target, path)
            graphs[form] = onnx.load(path)
        fp32 = graphs[form]
        ranges = calibrate(fp32, [{"image": inputs[:8]}]).ranges("minmax") if target.precision == "int8" else None
        model = write_precision(fp32, target, ranges=ranges).model
        check_legal(model, target)
        truth = graph_truth(model, target, node_macs(fp32, size))
        assert truth.verdict == ("not judged" if target.weakly_typed else "passed"), truth.reason
        onnx.save(model, path)
        built[name] = check_build(path, target).megabytes
    assert {"trt-fp32", "trt-fp16", "trt-bf16", "trt-int8", "trt86-fp16", "trt86-int8", "trt85-fp16"} <= set(built)
    assert built["trt-fp16"] < built["trt-fp32"]  # the builder took the precision, too
