"""A teacher from another framework: outputs by name, weights beside the file, and what it cannot give."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tinkit.errors import TinkitError
from tinkit.host.teacher import class_names, load_teacher, require_parts

PIXELS = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def write_onnx(path, location=None, outputs=("embedding", "map")):
    """image (B,3,32,32) -> global (B,5) and map (B,3,4,4): pools and a product; optionally with external data."""
    shapes = {"embedding": ["b", 5], "map": ["b", 3, 4, 4]}
    weight = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    tensor = helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)
    nodes = [
        helper.make_node("AveragePool", ["image"], ["map"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, 32, 32])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if location:
        onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    path.write_bytes(model.SerializeToString())
    return weight


def test_onnx_teacher_by_named_outputs(tmp_path):
    weight = write_onnx(tmp_path / "teacher.onnx")
    found = load_teacher(str(tmp_path / "teacher.onnx"), mean=(0, 0, 0), std=(1, 1, 1))
    features = found.features(PIXELS)
    mean = PIXELS.float().mean((2, 3)) / 255
    np.testing.assert_allclose(features.global_BD.numpy(), mean.numpy() @ weight, rtol=1e-5)
    assert features.local_BLD.shape == (3, 16, 3)
    assert features.grid == (4, 4)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd"])
def test_onnx_external_data_outside_the_folder_are_refused(tmp_path, location):
    write_onnx(tmp_path / "teacher.onnx", location)
    with pytest.raises(TinkitError, match="outside its folder"):
        load_teacher(str(tmp_path / "teacher.onnx"))


def test_onnx_external_data_through_a_link_are_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 60)
    (folder / "data.bin").symlink_to(tmp_path / "secret.bin")
    write_onnx(folder / "teacher.onnx", "data.bin")
    with pytest.raises(TinkitError, match="outside its folder"):
        load_teacher(str(folder / "teacher.onnx"))


def test_damaged_and_missing_onnx(tmp_path):
    with pytest.raises(TinkitError, match="missing"):
        load_teacher(str(tmp_path / "none.onnx"))
    (tmp_path / "bad.onnx").write_text("this is not a model")
    with pytest.raises(TinkitError):
        load_teacher(str(tmp_path / "bad.onnx"))


@pytest.mark.parametrize("wrong", [{"weights": "w.safetensors"}, {"pooled": True}])
def test_an_onnx_teacher_refuses_what_it_would_ignore(tmp_path, wrong):
    write_onnx(tmp_path / "teacher.onnx")
    with pytest.raises(TinkitError, match="its own"):
        load_teacher(str(tmp_path / "teacher.onnx"), **wrong)


def test_an_onnx_teacher_distils(photos, tmp_path):
    """The whole of stage one with a teacher from another framework."""
    from small_pair import SMALL

    import tinkit

    write_onnx(tmp_path / "teacher.onnx")
    settings = {**SMALL, "teacher": str(tmp_path / "teacher.onnx"), "teacher_size": None, "dim": None}
    result = tinkit.distill(photos, out=tmp_path / "run", **settings)
    assert result.metrics["cosine_mean"] > -1
    assert result.epochs == 2


def test_an_onnx_teacher_s_identity_covers_its_external_data(tmp_path):
    write_onnx(tmp_path / "teacher.onnx", "teacher.data")
    seen = []
    for value in (1.0, 2.0):
        (tmp_path / "teacher.data").write_bytes(np.full(15, value, np.float32).tobytes())
        seen.append(load_teacher(str(tmp_path / "teacher.onnx")).identity["weights"])
    assert seen[0] != seen[1]
    (tmp_path / "teacher.data").unlink()
    with pytest.raises(TinkitError, match="external data is missing"):
        load_teacher(str(tmp_path / "teacher.onnx"))


def test_an_onnx_teacher_that_fails_on_a_batch_says_so(tmp_path):
    write_onnx(tmp_path / "teacher.onnx")
    found = load_teacher(str(tmp_path / "teacher.onnx"))
    with pytest.raises(TinkitError, match="failed on a batch"):
        found.features(PIXELS.repeat(1, 1, 2, 2))


def test_what_an_onnx_teacher_lacks_is_named(tmp_path):
    write_onnx(tmp_path / "teacher.onnx")
    found = load_teacher(str(tmp_path / "teacher.onnx"))
    require_parts(found, ("local",))
    for part, words in (("logits", "needs logits"), ("taps", "a timm teacher")):
        with pytest.raises(TinkitError, match=words):
            require_parts(found, ("local", part))
    write_onnx(tmp_path / "flat.onnx", outputs=("embedding",))
    flat = load_teacher(str(tmp_path / "flat.onnx"))
    require_parts(flat, ())
    with pytest.raises(TinkitError, match=r"(?s)needs local features.*`local` of \(B,L,D\)"):
        require_parts(flat, ("local",))


def test_an_onnx_teacher_s_thousand_classes_have_no_names(tmp_path):
    write_onnx(tmp_path / "teacher.onnx")
    found = load_teacher(str(tmp_path / "teacher.onnx"))
    found.classes = 1000
    assert class_names(found) is None
