"""The bundle: complete or not there, refused when a byte has changed, and nothing in it is trusted before it is checked."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tinkit import bundle as bundles
from tinkit import files
from tinkit.bundle import Exam, open_bundle, write_bundle
from tinkit.errors import TinkitError
from tinkit.pixels import Preprocessing
from tinkit.recipes import load_target

MODEL = b"any bytes will do: a bundle does not look into its model" * 100
PARTS = ["exam.npz", "manifest.json", "model.onnx"]


def small_exam():
    random = np.random.default_rng(0)
    return Exam(
        pixels=random.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8),
        names=np.array(["a.jpg", "b/c.png", "ü.jpg"]),
        answers={"embedding": random.normal(size=(3, 8)).astype(np.float32)},
        mapped=random.normal(size=(3, 8)).astype(np.float32),
        encoded={0: b"\xff\xd8 not really a jpeg", 2: b""},
    )


@pytest.fixture
def manifest():
    return {
        "name": "small",
        "target": load_target("onnx-fp32").to_json(),
        "preprocessing": Preprocessing(4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).to_json(),
        "tensors": {"inputs": [], "outputs": []},
    }


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "some.onnx"
    path.write_bytes(MODEL)
    return path


@pytest.fixture
def written(tmp_path, model, manifest):
    return write_bundle(tmp_path / "bundle", model, manifest, small_exam())


def change_manifest(bundle, **changes):
    path = os.path.join(bundle.path, bundles.MANIFEST)
    files.write_json(path, {**files.read_json(path, "It"), **changes})


def test_round_trip(written):
    opened = open_bundle(written.path)
    assert sorted(os.listdir(opened.path)) == PARTS
    assert opened.name == "small"
    assert opened.target == load_target("onnx-fp32")
    assert opened.preprocessing == Preprocessing(4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with open(opened.model_path, "rb") as handle:
        assert handle.read() == MODEL
    exam, first = opened.exam(), small_exam()
    np.testing.assert_array_equal(exam.pixels, first.pixels)
    assert exam.names.tolist() == first.names.tolist()
    np.testing.assert_array_equal(exam.answers["embedding"], first.answers["embedding"])
    np.testing.assert_array_equal(exam.mapped, first.mapped)
    assert exam.encoded == first.encoded


def test_answers_on_frames_come_back_and_an_exam_without_them_is_one_as_before(tmp_path, model, manifest, written):
    answers = np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)  # of the two encoded pictures
    framed = dataclasses.replace(small_exam(), frame_answers={"embedding": answers})
    opened = write_bundle(tmp_path / "framed", model, manifest, framed)
    np.testing.assert_array_equal(opened.exam().frame_answers["embedding"], answers)
    assert list(opened.exam().answers) == ["embedding"]
    assert written.exam().frame_answers == {}
    assert not [key for key in small_exam().to_arrays() if key.startswith("frame/")]


def test_deploy_only_carries_no_pictures(tmp_path, model, manifest):
    opened = write_bundle(tmp_path / "bundle", model, manifest)
    assert sorted(os.listdir(opened.path)) == ["manifest.json", "model.onnx"]
    assert opened.exam() is None


def test_a_bundle_can_be_moved(written, tmp_path):
    os.rename(written.path, tmp_path / "elsewhere")
    assert open_bundle(tmp_path / "elsewhere").name == "small"


@pytest.mark.parametrize("part", ["exam.npz", "model.onnx"])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_flipped_byte_is_refused_and_the_file_named(written, part, place):
    path = os.path.join(written.path, part)
    with open(path, "r+b") as handle:
        content = bytearray(handle.read())
        content[int(place * len(content))] ^= 1
        handle.seek(0)
        handle.write(content)
    with pytest.raises(TinkitError, match="damaged") as caught:
        open_bundle(written.path)
    assert caught.value.where == path


def test_a_hash_changed_in_the_manifest_is_refused(written):
    record = dict(written.manifest["files"])
    record["model.onnx"] = dict(record["model.onnx"], sha256="0" * 64)
    change_manifest(written, files=record)
    with pytest.raises(TinkitError, match="damaged"):
        open_bundle(written.path)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_file_is_named(written, part):
    os.remove(os.path.join(written.path, part))
    with pytest.raises(TinkitError, match="missing") as caught:
        open_bundle(written.path)
    assert caught.value.where == os.path.join(written.path, part)


def test_a_manifest_cut_short_is_refused(written):
    path = os.path.join(written.path, bundles.MANIFEST)
    with open(path, "r+") as handle:
        handle.truncate(os.path.getsize(path) // 2)
    with pytest.raises(TinkitError, match="manifest cannot be read"):
        open_bundle(written.path)


@pytest.mark.parametrize("chain", [[{"hop": "teacher -> mapped teacher"}], [3], 7, [None]])
def test_damaged_hops_are_told_when_the_bundle_is_opened(written, chain):
    change_manifest(written, chain=chain)
    with pytest.raises(TinkitError, match="hops") as caught:
        open_bundle(written.path)
    assert caught.value.where.endswith("manifest.json")


def test_another_schema_is_refused(written):
    change_manifest(written, schema="tinkit-bundle-99")
    with pytest.raises(TinkitError, match="schema") as caught:
        open_bundle(written.path)
    assert "tinkit-bundle-99" in caught.value.seen


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/model.onnx", ".."])
def test_a_file_outside_the_bundle_is_refused(written, tmp_path, name):
    (tmp_path / "outside").write_bytes(MODEL)
    record = {**written.manifest["files"], name: {"sha256": files.sha256_of_file(tmp_path / "outside"), "bytes": 1}}
    change_manifest(written, files=record)
    with pytest.raises(TinkitError):
        open_bundle(written.path)


@pytest.mark.parametrize("key", ["name", "target", "preprocessing", "tensors", "files"])
def test_a_manifest_without_a_part_is_refused_and_names_it(written, key):
    path = os.path.join(written.path, bundles.MANIFEST)
    value = files.read_json(path, "It")
    del value[key]
    files.write_json(path, value)
    with pytest.raises(TinkitError, match="lacks a part") as caught:
        open_bundle(written.path)
    assert caught.value.seen == f"no {key}"


def test_a_model_that_is_not_listed_is_refused(written):
    change_manifest(written, files={"exam.npz": written.manifest["files"]["exam.npz"]})
    with pytest.raises(TinkitError, match="does not list its files"):
        open_bundle(written.path)


@pytest.mark.parametrize(
    "record", [[], "model.onnx", {"model.onnx": "abc"}, {"model.onnx": {}}, {"model.onnx": {"sha256": 5}}]
)
def test_a_list_of_files_without_hashes_is_refused(written, record):
    change_manifest(written, files=record)
    with pytest.raises(TinkitError, match="does not list its files"):
        open_bundle(written.path)


def test_a_folder_that_is_no_bundle_says_so(tmp_path):
    with pytest.raises(TinkitError, match="There is no bundle here"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(TinkitError, match="manifest is missing"):
        open_bundle(tmp_path)


def test_a_failure_while_writing_leaves_the_older_bundle(written, model, manifest, tmp_path):
    before = open_bundle(written.path).manifest
    with pytest.raises(TinkitError, match="No such file"):
        write_bundle(written.path, tmp_path / "missing.onnx", dict(manifest, name="new"))
    assert open_bundle(written.path).manifest == before
    assert sorted(os.listdir(tmp_path)) == ["bundle", "some.onnx"]


def test_a_newer_bundle_replaces_the_older_one_whole(written, model, manifest, tmp_path):
    newer = write_bundle(written.path, model, dict(manifest, name="newer"))  # without exam
    assert newer.name == "newer"
    assert sorted(os.listdir(newer.path)) == ["manifest.json", "model.onnx"]
    assert sorted(os.listdir(tmp_path)) == ["bundle", "some.onnx"]


def test_a_folder_with_something_else_is_not_replaced(tmp_path, model, manifest):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.txt").write_text("dear")
    with pytest.raises(TinkitError, match="holds something else"):
        write_bundle(tmp_path / "bundle", model, manifest)
    assert (tmp_path / "bundle" / "thesis.txt").read_text() == "dear"
    assert sorted(os.listdir(tmp_path)) == ["bundle", "some.onnx"]


KILLED = """
import os, signal, sys
import numpy as np
from tinkit import bundle, files
bundle.files.write_json = lambda *given: os.kill(os.getpid(), signal.SIGKILL)  # all is written but the manifest
bundle.write_bundle(sys.argv[1], sys.argv[2], {})
"""


def test_a_process_killed_while_writing_leaves_no_half_bundle(written, model):
    before = open_bundle(written.path).manifest
    done = subprocess.run([sys.executable, "-c", KILLED, written.path, str(model)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert open_bundle(written.path).manifest == before


def exam_arrays(**changes):
    arrays = {**small_exam().to_arrays(), **changes}
    return {name: array for name, array in arrays.items() if array is not None}


def with_exam(bundle, arrays, pickled=False):
    """Put other arrays into the bundle, with a manifest that fits them: damage that hashes do not see."""
    path = os.path.join(bundle.path, bundles.EXAM)
    if pickled:
        np.savez(path, **arrays)
    else:
        files.write_npz(path, arrays)
    change_manifest(bundle, files={**bundle.manifest["files"], bundles.EXAM: {"sha256": files.sha256_of_file(path)}})
    return open_bundle(bundle.path)


def test_a_pickle_in_the_exam_is_refused(written):
    opened = with_exam(written, exam_arrays(names=np.array([{"an": "object"}] * 3, dtype=object)), pickled=True)
    with pytest.raises(TinkitError, match="cannot be read"):
        opened.exam()


def test_an_exam_larger_than_the_cap_is_refused(written, monkeypatch):
    monkeypatch.setattr(files.read_npz, "__defaults__", (500,))
    with pytest.raises(TinkitError, match="larger than tinkit reads"):
        written.exam()


@pytest.mark.parametrize(
    "changes",
    [
        {"pixels": None},
        {"names": None},
        {"pixels": np.zeros((3, 4, 4, 3), np.float32)},
        {"pixels": np.zeros((3, 4, 3), np.uint8)},
        {"answer/embedding": np.zeros((2, 8), np.float32)},
        {"encoded/one": np.zeros(3, np.uint8)},
        {"encoded/3": np.zeros(3, np.uint8)},
        {"names": np.array(["a.jpg"])},
        {"mapped/embedding": np.zeros((2, 8), np.float32)},
        {"answer/embedding": np.float32(1)},
        {"frame/embedding": np.zeros((3, 8), np.float32)},  # two pictures are encoded
        {"frame/embedding": np.float32(1)},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_an_exam_whose_arrays_do_not_fit_is_refused(written, changes):
    opened = with_exam(written, exam_arrays(**changes))
    with pytest.raises(TinkitError, match="exam"):
        opened.exam()


def test_the_manifest_is_plain_json_with_a_hash_for_every_other_file(written):
    with open(os.path.join(written.path, bundles.MANIFEST)) as handle:
        manifest = json.load(handle)
    assert manifest["schema"] == "tinkit-bundle-1"
    assert sorted(manifest["files"]) == ["exam.npz", "model.onnx"]
    for name, record in manifest["files"].items():
        path = os.path.join(written.path, name)
        assert record == {"sha256": files.sha256_of_file(path), "bytes": os.path.getsize(path)}
