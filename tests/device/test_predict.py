"""Labels of pictures from a bundle: worked out by hand, streamed, said where a picture cannot be read, and torch-free."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from small_parts import PREPROCESSING, SIZE, small_target

from tinkit import files
from tinkit.bundle import MANIFEST, open_bundle, write_bundle
from tinkit.device import predict as predicts
from tinkit.device.predict import Answer, as_json, class_names, in_words, main, predict, softmax
from tinkit.errors import CannotJudge, TinkitError
from tinkit.target import Batch, Gate

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
BLOCKED = ("torch", "torchvision", "timm", "lightning_fabric", "onnx", "onnxscript", "safetensors", "sklearn", "scipy",
           "click", "rich", "tomli", "tomllib", "jinja2")  # fmt: skip


def colour_model(path, batch="batch", uint8=False):
    """image -> logits: the mean of each colour, of pixels normalised to -1..1, times 5; embedding: the means alone."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    shape = [batch, SIZE, SIZE, 3] if uint8 else [batch, 3, SIZE, SIZE]
    nodes = [helper.make_node("ReduceMean", ["normal", "axes"], ["embedding"], keepdims=0)]
    nodes.append(helper.make_node("Mul", ["embedding", "five"], ["logits"]))
    if uint8:
        nodes = [
            helper.make_node("Cast", ["image"], ["grey"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["grey", "half"], ["share"]),
            helper.make_node("Sub", ["share", "one"], ["normal"]),
            *nodes,
        ]
    else:
        nodes = [helper.make_node("Identity", ["image"], ["normal"]), *nodes]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8 if uint8 else TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in ("embedding", "logits")],
        [
            numpy_helper.from_array(np.array([1, 2] if uint8 else [2, 3], np.int64), "axes"),
            numpy_helper.from_array(np.float32(5), "five"),
            numpy_helper.from_array(np.float32(127.5), "half"),
            numpy_helper.from_array(np.float32(1), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model, full_check=True)
    save(model, str(path))


def write_colours(folder, batch="batch", classes=("red", "green", "blue"), frame=(), **target):
    """A bundle that tells colours apart. With a frame the model takes frames of SIZE x SIZE."""
    source = folder / "source.onnx"
    colour_model(source, batch, uint8=bool(frame))
    shape = [batch, SIZE, SIZE, 3] if frame else [batch, 3, SIZE, SIZE]
    gate = {"embedding": Gate(min_cosine=0.9, max_error_share=0.1)}
    if frame:
        target.update(input="uint8-nhwc", frame=frame, gate={**gate, "frame": gate["embedding"]})
    manifest = {
        "name": "colours",
        "target": dataclasses.replace(small_target(**target), head=True).to_json(),
        "preprocessing": PREPROCESSING.to_json(),
        "tensors": {
            "inputs": [{"name": "image", "dtype": "uint8" if frame else "float32", "shape": shape}],
            "outputs": [{"name": n, "dtype": "float32", "shape": [batch, 3]} for n in ("embedding", "logits")],
        },
        "classes": None if classes is None else list(classes),
    }
    return write_bundle(folder / "bundle", source, manifest).path


@pytest.fixture
def bundle(tmp_path):
    return write_colours(tmp_path)


@pytest.fixture
def painted(tmp_path):
    """A folder tree of plain pictures named after their colour, with strangers among them."""
    root = tmp_path / "painted"
    (root / "deep" / "er").mkdir(parents=True)
    for place, name in (("", "red"), ("deep", "green"), ("deep/er", "blue")):
        Image.new("RGB", (40, 30), COLOURS[name]).save(root / place / f"{name}.png")
    (root / "notes.txt").write_text("not a picture")
    (root / ".hidden.png").write_bytes(b"not looked at")
    return root


def edited_manifest(bundle, **changes):
    path = os.path.join(bundle, MANIFEST)
    files.write_json(path, {**files.read_json(path, "It"), **changes})
    return bundle


def test_softmax_is_scipy_s_and_large_logits_do_not_overflow():
    from scipy.special import softmax as scipys

    logits = np.random.default_rng(0).normal(size=(5, 7)) * 400
    np.testing.assert_allclose(softmax(logits), scipys(logits, axis=1), rtol=1e-12)
    assert not np.isfinite(softmax(np.array([[np.nan, 0.0], [np.inf, 0.0]]))).any(axis=1).any()


def test_probabilities_are_those_worked_out_by_hand(bundle, painted):
    (answer,) = predict(bundle, [painted / "red.png"])
    assert [name for name, _ in answer.labels] == ["red", "green", "blue"]
    means = np.array(COLOURS["red"]) / 127.5 - 1
    powers = np.exp(5 * means)
    np.testing.assert_allclose([share for _, share in answer.labels], powers / powers.sum(), rtol=1e-5)


def test_folders_are_walked_in_order_and_strangers_are_passed_by(bundle, painted):
    answers = list(predict(bundle, [painted], top=1))
    assert [os.path.relpath(answer.picture, painted) for answer in answers] == [
        "deep/er/blue.png", "deep/green.png", "red.png"
    ]  # fmt: skip
    assert [answer.labels[0][0] for answer in answers] == ["blue", "green", "red"]
    assert {len(answer.labels) for answer in answers} == {1}


def test_a_loop_of_links_ends(bundle, painted):
    (painted / "deep" / "round").symlink_to(painted, target_is_directory=True)
    assert len(list(predict(bundle, [painted]))) == 3


@pytest.mark.parametrize("batch", [Batch(1, 1, 1), Batch(4, 4, 4), Batch(1, 2, 64)])
def test_every_batch_of_a_target_gives_the_same_answers(tmp_path, painted, batch):
    fixed = batch.min if batch.min == batch.max else "batch"
    bundle = write_fixed(tmp_path, fixed, batch)
    (painted / "a-broken.png").write_bytes(b"no")
    names = [painted / "a-broken.png", *[painted / "red.png", painted / "deep" / "green.png"] * 9]
    answers = list(predict(bundle, names))
    assert answers[0].error
    assert [answer.labels[0][0] for answer in answers[1:]] == ["red", "green"] * 9


def write_fixed(folder, fixed, batch):
    path = write_colours(folder, fixed)
    target = files.read_json(os.path.join(path, MANIFEST), "It")["target"]
    return edited_manifest(path, target={**target, "batch": dataclasses.asdict(batch)})


def test_a_picture_that_cannot_be_read_is_said_and_the_others_are_answered(bundle, painted, capsys):
    (painted / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    missing = str(painted / "gone.png")
    assert main([bundle, missing, str(painted), "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"picture": missing, "error": "there is no such file"}
    by_name = {os.path.basename(line["picture"]): line for line in lines[1:]}
    assert by_name["broken.jpg"]["error"]
    assert "labels" not in by_name["broken.jpg"]
    assert {name: line["labels"][0]["label"] for name, line in by_name.items() if "labels" in line} == {
        "red.png": "red", "green.png": "green", "blue.png": "blue"
    }  # fmt: skip


def test_answers_come_while_pictures_are_still_to_be_read(bundle, painted, monkeypatch):
    looked = []
    real = predicts.pictures.network_pixels
    monkeypatch.setattr(predicts.pictures, "network_pixels", lambda *given: looked.append(given) or real(*given))
    answers = predict(bundle, [painted / "red.png"] * 50)
    next(answers)
    assert len(looked) == 4  # the batch of the target, of 50
    assert len(list(answers)) == 49


def test_a_table_line_and_names_that_would_break_a_terminal():
    assert in_words(Answer("a.jpg", (("cat", 0.913), ("dog", 0.087)))) == "a.jpg  cat 91.3 %  dog 8.7 %"
    nasty = Answer(os.fsdecode(b"a\n\x1b[31m\xff.jpg"), error="no")
    assert in_words(nasty) == "a\\n\\x1b[31m\\udcff.jpg  not read: no"
    assert json.loads(as_json(nasty))["picture"] == nasty.picture


def test_a_model_that_takes_whole_frames_gets_them(tmp_path, painted):
    bundle = write_colours(tmp_path, frame=(SIZE, SIZE))
    assert [answer.labels[0][0] for answer in predict(bundle, [painted])] == ["blue", "green", "red"]


def test_answers_that_are_not_finite_are_no_labels(bundle, painted, monkeypatch):
    monkeypatch.setattr(predicts, "softmax", lambda logits: np.full(logits.shape, np.nan))
    (answer,) = predict(bundle, [painted / "red.png"])
    assert (answer.labels, answer.error) == ((), "the model's answer is not finite")


def test_weights_without_names_have_numbers(tmp_path, painted):
    (answer,) = predict(write_colours(tmp_path, classes=None), [painted / "deep" / "green.png"], top=1)
    assert answer.labels[0][0] == "class 1"


def test_a_bundle_without_a_head_says_how_to_get_one(bundle, painted):
    tensors = open_bundle(bundle).manifest["tensors"]
    edited_manifest(bundle, tensors={**tensors, "outputs": tensors["outputs"][:1]})
    with pytest.raises(TinkitError, match=r"(?s)without a head.*tinkit head RUN"):
        predict(bundle, [painted])


@pytest.mark.parametrize("classes", [["red", "green"], ["red", "green", 3], "red"])
def test_names_that_do_not_fit_are_refused(bundle, classes):
    with pytest.raises(TinkitError, match="do not fit its logits"):
        class_names(open_bundle(edited_manifest(bundle, classes=classes)))


@pytest.mark.parametrize(
    ("given", "words"), [({"top": 0}, "At least one label"), ({"runtime": "tflite"}, "no such runtime")]
)
def test_wrong_wishes_are_said_at_once(bundle, painted, given, words):
    with pytest.raises(TinkitError, match=words):
        predict(bundle, [painted], **given)


def test_an_empty_folder_is_said_at_once(bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TinkitError, match="no picture here"):
        predict(bundle, [tmp_path / "empty"])


def test_another_runtime_is_taken_only_when_asked_for(tmp_path, painted, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    bundle = write_colours(tmp_path, runtime="tensorrt")
    with pytest.raises(CannotJudge):
        list(predict(bundle, [painted]))
    assert len(list(predict(bundle, [painted], runtime="onnxruntime"))) == 3
    assert main([bundle, str(painted)]) == 4


def test_it_works_where_only_numpy_onnxruntime_and_pillow_are(bundle, painted):
    code = f"""
import sys
for name in {BLOCKED!r}: sys.modules[name] = None
from tinkit.device.predict import main
sys.exit(main({[bundle, str(painted), "--top", "1"]!r}))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["blue", "green", "red"]


def test_a_terminal_of_ascii_and_a_named_pipe_stop_nothing(tmp_path, painted):
    bundle = write_colours(tmp_path, classes=("r\u00f6d", "gr\u00f6n", "bl\u00e5"))
    os.mkfifo(painted / "pipe.png")
    command = [sys.executable, "-m", "tinkit.device.predict", bundle, str(painted), "--top", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stderr) == (1, "")
    told = {os.path.basename(line.split()[0]): line.split(None, 1)[1] for line in done.stdout.splitlines()}
    assert told["red.png"].startswith("r\\xf6d ")
    assert told["pipe.png"] == "not read: this is no file"


def test_a_reader_that_has_seen_enough_is_no_crash(bundle, painted):
    command = [sys.executable, "-m", "tinkit.device.predict", bundle, *[str(painted)] * 20]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert "blue" in running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 1


def test_ctrl_c_is_told_in_a_word(bundle, painted, monkeypatch, capsys):
    def stopped(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(predicts, "show", stopped)
    assert main([bundle, str(painted)]) == 130
    assert capsys.readouterr().err == "Stopped.\n"
