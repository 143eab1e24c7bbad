"""Licences: read where they are declared, never guessed, never claimed for weights that were not the name's own."""

import importlib.metadata

import pytest
import timm

from tinkit.host.report.licences import Licence, licence_of, package_licence, teacher_licence
from tinkit.host.teacher import PACKAGED


@pytest.mark.parametrize(
    ("text", "name", "spdx"),
    [
        ("apache-2.0", "Apache-2.0", True),
        ("MIT", "MIT", True),
        ("cc-by-nc-4.0", "CC-BY-NC-4.0", True),
        ("MIT AND (bsd-3-clause OR ISC)", "MIT AND (BSD-3-Clause OR ISC)", True),
        ("BSD", "BSD", False),
        ("dinov3-license", "dinov3-license", False),
        ("Copyright (c) 2020\nAll rights", "Copyright (c) 2020", False),
        ("UNKNOWN", "", False),
        ("other", "", False),
        ("", "", False),
        (None, "", False),
    ],
)
def test_a_field_is_spdx_or_words_or_nothing(text, name, spdx):
    assert licence_of(text, "here") == Licence(name, "here", spdx)


def test_unknown_is_told_as_a_request():
    assert Licence("", "x").told == "unknown: ask"
    assert Licence("", "x").to_json()["known"] is False


@pytest.mark.parametrize(
    ("name", "non_commercial"),
    [
        ("CC-BY-NC-4.0", True),
        ("fair-noncommercial-research-license", True),
        ("CC-BY-4.0", False),
        ("Apache-2.0", False),
        ("NCSA", False),  # a permissive one: the two letters are not a word of it
    ],
)
def test_non_commercial_by_name(name, non_commercial):
    assert Licence(name, "x").non_commercial is non_commercial


def installed(folder, monkeypatch, *fields):
    about = folder / "acme-1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("\n".join(("Metadata-Version: 2.4", "Name: acme", "Version: 1.5", *fields)) + "\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize(
    ("fields", "name", "spdx"),
    [
        (["License-Expression: BSD-3-Clause", "License: MIT"], "BSD-3-Clause", True),
        (["License: MIT"], "MIT", True),
        (["License: Something of ours", "Classifier: License :: OSI Approved :: MIT License"], "MIT", True),
        (["Classifier: License :: OSI Approved :: BSD License"], "BSD License", False),  # which of them is not said
        (["Classifier: License :: OSI Approved :: Apache Software License"], "Apache Software License", False),
        (["License: UNKNOWN", "Classifier: Programming Language :: Python"], "", False),
    ],
)
def test_a_package_says_its_licence_in_one_of_three_places(tmp_path, monkeypatch, fields, name, spdx):
    installed(tmp_path, monkeypatch, *fields)
    assert package_licence("acme", "1.5") == Licence(name, "the metadata of acme 1.5", spdx)


def test_the_licence_of_another_version_is_given_with_a_word(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "License: MIT")
    assert "1.4 was used" in package_licence("acme", "1.4").source
    assert "was used" not in package_licence("acme", "1.5+cpu").source  # the local part is no other version


def test_a_package_that_is_not_here_has_no_licence():
    found = package_licence("no-such-package-of-tinkit", "1.0")
    assert found.name == ""
    assert "not installed" in found.source


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_weights_are_apache_as_their_own_licence_file_says(name):
    package = PACKAGED[name][0]
    assert teacher_licence({"name": name}).name == "Apache-2.0"
    try:
        listed = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    (text,) = [path.read_text() for path in listed if path.name == "LICENSE"]
    assert text.startswith("Apache Software License 2.0")


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("resnet50.a1_in1k", "Apache-2.0"),
        ("convnextv2_atto.fcmae", "CC-BY-NC-4.0"),
        ("vit_small_patch16_dinov3.lvd1689m", "dinov3-license"),
        ("dla60_res2net.in1k", ""),  # timm says "unknown"
        ("no_such_network", ""),
    ],
)
def test_a_timm_name_has_the_licence_that_timm_records(name, licence):
    assert teacher_licence({"name": name, "architecture": name}).name == licence


def test_local_weights_and_onnx_files_are_unknown_whatever_the_name():
    identity = {"name": "resnet50.a1_in1k", "architecture": "resnet50"}
    assert timm.get_pretrained_cfg("resnet50.a1_in1k").license == "apache-2.0"
    assert teacher_licence(identity, weights="mine.safetensors").name == ""
    assert teacher_licence({"name": "teacher.onnx", "architecture": "onnx"}).name == ""
    assert teacher_licence({}).told == "unknown: ask"


def test_without_the_settings_the_licence_of_a_name_is_not_claimed():
    found = teacher_licence({"name": "resnet50.a1_in1k"}, settings_known=False)
    assert found.name == ""
    assert "Apache-2.0" in found.source
    assert "not known" in found.source
    assert teacher_licence({"name": "efficientnet-lite2"}, settings_known=False).name == "Apache-2.0"
