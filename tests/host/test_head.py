"""A head beside a run: the better of two is kept, its file is checked, it ships as logits, and the bundle says labels."""

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_pair import SMALL, teacher_weights

import tinkit
from tinkit import cli, files
from tinkit.bundle import open_bundle
from tinkit.device.predict import predict
from tinkit.errors import Interrupted, TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.host.evaluate.rows import Rows
from tinkit.host.head.command import head
from tinkit.host.head.files import put_head, read_head
from tinkit.host.head.labels import from_labels
from tinkit.host.run import load_run
from tinkit.settings_file import EXPORT, HEAD, read_section

CLASSES = {"blue": (30, 40, 200), "green": (40, 190, 50), "red": (210, 30, 40)}


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    made = tinkit.distill(photos, out=folder / "runs" / "small", **SMALL, teacher_weights=teacher_weights(folder))
    return load_run(made.run)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Three class folders of eight noisy pictures each, told apart by their colour."""
    root, random = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name, colour in CLASSES.items():
        (root / name).mkdir()
        for number in range(8):
            noise = random.integers(-30, 30, (48, 48, 3))
            Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def labelled(run, colours):
    return head(run, colours, name="colours", workers=0, quiet=True)


def prompts_for(run, pictures, path, seed=0):
    """Text vectors in the teacher's space: its own features of a picture of each class, turned a little."""
    from tinkit.device.pictures import network_pixels

    teacher, random, texts = run.teacher(), np.random.default_rng(seed), []
    for name in CLASSES:
        pixels = network_pixels(str(pictures / name / "0.png"), teacher.preprocessing)
        row = teacher.features(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], ()).global_BD[0].numpy()
        texts.append(row + 0.05 * np.linalg.norm(row) * random.normal(size=row.shape) / len(row) ** 0.5)
    np.savez(path, names=list(CLASSES), text=np.stack(texts).astype(np.float32), logit_scale=100.0)
    return str(path)


def sorted_like(counts, labels, classes):
    """What `sort_pictures` gives, as far as a head asks: three parts one after the other."""
    bounds = np.cumsum([0, *counts])
    parts = {name: slice(bounds[i], bounds[i + 1]) for i, name in enumerate(("bank", "validation", "test"))}
    return SimpleNamespace(
        classes=classes, rows_of=parts.get, labels={name: labels[part] for name, part in parts.items()}
    )


def made_up(noise_on_bank=0.0, strange_teacher=False, counts=(60, 60, 60), factor=5.0):
    """(rows, pictures): mapped rows of four classes; the student's are the same times `factor`, off by some noise."""
    random = np.random.default_rng(1)
    labels = random.integers(4, size=sum(counts))
    mapped = (random.normal(size=(4, 12))[labels] + 0.8 * random.normal(size=(len(labels), 12))).astype(np.float32)
    student = mapped + 0.3 * random.normal(size=mapped.shape)
    student[: counts[0]] += noise_on_bank * random.normal(size=(counts[0], 12))
    if strange_teacher:
        mapped = random.permutation(mapped)
    rows = Rows(np.zeros((len(labels), 3), np.float32), mapped, (factor * student).astype(np.float32))
    return rows, sorted_like(counts, labels, ["a", "b", "c", "d"])


def test_the_teacher_s_head_is_kept_where_the_student_s_own_labels_mislead():
    rows, pictures = made_up(noise_on_bank=3.0)
    found = from_labels(rows, pictures, None, 0)
    seen = found.evidence["validation"]
    assert (found.source, found.verdict, found.evidence["chosen_by"]) == ("teacher", NOT_JUDGED, "validation accuracy")
    assert seen["difference"] == pytest.approx(seen["teacher"]["accuracy"] - seen["student"]["accuracy"])
    assert 0 < seen["interval"][0] < seen["difference"] < seen["interval"][1]
    assert "within the noise" not in found.reason
    assert found.evidence["length"] == pytest.approx(5, rel=0.05)


def test_the_student_s_head_is_kept_where_the_mapped_teacher_says_nothing():
    rows, pictures = made_up(strange_teacher=True)
    found = from_labels(rows, pictures, None, 0)
    assert found.source == "student"
    assert found.evidence["validation"]["difference"] < -0.2
    assert from_labels(rows, pictures, "teacher", 0).source == "teacher"  # --from wins, and the evidence tells


def test_what_is_reported_is_what_the_kept_layer_does_on_the_student():
    """Counted again from weight and bias, with scikit-learn."""
    from sklearn.metrics import accuracy_score, log_loss

    rows, pictures = made_up(noise_on_bank=3.0)
    for source in ("teacher", "student"):
        found = from_labels(rows, pictures, source, 0)
        for part, told in (("validation", found.evidence["validation"][source]), ("test", found.evidence["test"])):
            logits = rows.student[pictures.rows_of(part)] @ found.weight_CD.T + found.bias_C
            assert told["accuracy"] == pytest.approx(accuracy_score(pictures.labels[part], logits.argmax(1)))
            if part == "validation":
                shares = np.exp(logits - logits.max(1, keepdims=True)).astype(np.float64)
                shares /= shares.sum(1, keepdims=True)
                assert told["log_loss"] == pytest.approx(
                    log_loss(pictures.labels[part], shares, labels=range(4)), rel=1e-4
                )


def test_the_teacher_s_head_is_brought_to_the_student_s_length():
    """The same student twice, once a fiftieth as long: the same answers, because the layer knows its length."""
    long, short = (from_labels(*made_up(factor=factor), "teacher", 0).evidence for factor in (5.0, 0.1))
    assert short["test"]["accuracy"] == pytest.approx(long["test"]["accuracy"], abs=0.02)
    assert short["length"] == pytest.approx(long["length"] / 50, rel=1e-3)
    assert long["test"]["accuracy"] > 0.7


def test_test_labels_move_nothing_but_the_test():
    rows, pictures = made_up(noise_on_bank=3.0)
    before = from_labels(rows, pictures, None, 0)
    pictures.labels["test"] = (pictures.labels["test"] + 1) % 4
    after = from_labels(rows, pictures, None, 0)
    assert after.evidence["test"]["accuracy"] < before.evidence["test"]["accuracy"] - 0.3
    np.testing.assert_array_equal(after.weight_CD, before.weight_CD)
    assert after.evidence["validation"] == before.evidence["validation"]


def test_one_picture_a_class_is_enough_and_nothing_is_claimed():
    rows, pictures = made_up(counts=(8, 0, 0))
    found = from_labels(rows, pictures, None, 0)
    assert found.source == "student"
    assert "no validation picture" in found.evidence["chosen_by"]
    assert found.evidence["test"] is None
    assert "no test picture" in found.reason


def test_a_run_without_a_mapping_has_its_own_features():
    rows, pictures = made_up()
    found = from_labels(Rows(rows.teacher, None, rows.student), pictures, None, 0)
    assert (found.source, found.evidence["chosen_by"]) == ("student", "the run has no mapping")
    assert "teacher" not in found.evidence["validation"]


def test_a_head_lies_beside_the_run_with_its_evidence(run, labelled):
    assert labelled.path == os.path.join(run.path, "heads", "colours.json")
    assert labelled.weights == os.path.join(run.path, "heads", "colours.safetensors")
    record = json.loads(Path(labelled.path).read_text())
    assert record["classes"] == labelled.classes == ["blue", "green", "red"]
    assert record["weights"]["sha256"] == files.sha256_of_file(labelled.weights)
    assert record["run"]["student_sha256"] == run.record["files"]["student.safetensors"]
    assert [record["pictures"][part] for part in ("bank", "validation", "test")] == [15, 3, 6]  # 5, 1 and 2 of each 8
    assert record["evidence"]["test"]["accuracy"] > 0.8  # three plain colours
    assert record["reason"] == labelled.reason
    with pytest.raises(AttributeError):
        labelled.verdict = "something else"


def test_the_same_seed_gives_the_same_head(run, colours, labelled, tmp_path):
    again = head(run, colours, out=tmp_path / "elsewhere", workers=0, quiet=True)
    assert os.path.dirname(again.path) == str(tmp_path / "elsewhere")
    first, second = (read_head(run, result.path) for result in (labelled, again))
    np.testing.assert_array_equal(first.weight, second.weight)
    assert again.evidence == labelled.evidence


def test_it_ships_as_logits_and_the_bundle_says_labels(run, colours, labelled, tmp_path):
    exported = tinkit.export(run, "onnx-fp32", out=tmp_path / "bundle", head="colours")
    assert exported.verdict == PASSED
    assert {hop.output for hop in exported.hops if hop.gate is not None} == {"pixels", "embedding", "logits"}
    bundle = open_bundle(exported.bundle)
    assert bundle.manifest["classes"] == ["blue", "green", "red"]
    assert bundle.manifest["head"]["name"] == "colours"
    assert bundle.manifest["head"]["evidence"] == labelled.evidence
    exam, layer = bundle.exam(), read_head(run, "colours")
    said = exam.answers["embedding"] @ layer.weight.T + layer.bias
    np.testing.assert_allclose(exam.answers["logits"], said, rtol=1e-3, atol=1e-3)
    answers = list(predict(bundle, [colours], top=1))
    right = [os.path.basename(os.path.dirname(answer.picture)) == answer.labels[0][0] for answer in answers]
    assert len(right) == 24
    assert np.mean(right) > 0.8


@pytest.mark.slow
def test_a_run_without_head_exports_as_before(run, tmp_path):
    bundle = open_bundle(tinkit.export(run, "onnx-fp32", out=tmp_path / "bundle").bundle)
    assert (bundle.manifest["classes"], bundle.manifest["head"]) == (None, None)
    assert [tensor["name"] for tensor in bundle.manifest["tensors"]["outputs"]] == ["embedding"]


def test_prompts_are_carried_measured_and_put_on_the_student(run, colours, tmp_path):
    prompts = prompts_for(run, colours, tmp_path / "p.npz")
    found = head(run, colours, name="zero-shot", prompts=prompts, min_agreement=0.0, workers=0, quiet=True)
    assert (found.kind, found.source, found.verdict) == ("prompts", "teacher", PASSED)
    assert found.evidence["mapped"]["agreement"] > 0.6
    assert any("unproven on real CLIP weights" in note for note in found.notes)
    student = run.student()
    assert put_head(student, run, "zero-shot").classes == list(CLASSES)
    assert student.spec.classes == 3
    assert student.head.weight.shape == (3, student.dim)


def test_below_the_limit_a_head_is_refused_and_an_older_one_of_its_name_is_gone(run, colours, tmp_path):
    prompts = prompts_for(run, colours, tmp_path / "p.npz")
    student = read_head(run, head(run, colours, name="once", workers=0, quiet=True).path)
    assert student.classes == list(CLASSES)
    turned = np.load(prompts)
    np.savez(prompts, names=turned["names"], text=np.random.default_rng(0).normal(size=turned["text"].shape))
    found = head(run, colours, name="once", prompts=prompts, min_agreement=1.0, workers=0, quiet=True)
    assert found.verdict == FAILED
    assert found.weights is None
    assert not os.path.exists(os.path.join(run.path, "heads", "once.safetensors"))
    with pytest.raises(TinkitError, match=r"(?s)was refused.*the limit is 1"):
        tinkit.export(run, "onnx-fp32", out=tmp_path / "bundle", head="once")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"labels": "folders", "prompts": "p.npz"}, "from labels or from prompts"),
        ({"min_agreement": 0.9}, "is for a head from --prompts"),
        ({"prompts": "p.npz", "min_agreement": 90.0}, "share of pictures"),
        ({"source": "both"}, "no such source"),
        ({"labels": "gone.csv"}, "file of labels is missing"),
        ({"prompts": "gone.npz"}, "array file is missing"),
        ({"name": "../out"}, "head's name"),
        ({"data": "nowhere"}, "folder is missing"),
    ],
)
def test_wrong_wishes_are_said_before_the_work(run, colours, given, words, monkeypatch):
    monkeypatch.setattr("tinkit.host.head.command.sort_pictures", lambda *given: pytest.fail("the work began"))
    with pytest.raises(TinkitError, match=words):
        head(run, **{"data": colours, **given}, quiet=True)


@pytest.mark.parametrize("given", [{"prompts": "p.npz"}, {"source": "teacher"}])
def test_without_a_mapping_nothing_is_carried(run, colours, given):
    bare = load_run(run.path)
    bare.record["files"] = {name: sha for name, sha in bare.record["files"].items() if "mapping" not in name}
    with pytest.raises(TinkitError, match="no mapping"):
        head(bare, colours, **given, quiet=True)


def test_damage_strangers_and_names_that_are_not_there_are_refused(run, labelled, tmp_path):
    record = json.loads(Path(labelled.path).read_text())
    weights = bytearray(Path(labelled.weights).read_bytes())
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(record))
    with pytest.raises(TinkitError, match="weights are missing"):
        read_head(run, copy)
    weights[-1] ^= 1
    (tmp_path / "colours.safetensors").write_bytes(weights)
    with pytest.raises(TinkitError, match="damaged"):
        read_head(run, copy)
    copy.write_text(json.dumps({**record, "run": {**record["run"], "student_sha256": "0" * 64}}))
    with pytest.raises(TinkitError, match="another student"):
        read_head(run, copy)
    copy.write_text(json.dumps({**record, "schema": "something"}))
    with pytest.raises(TinkitError, match="not a head"):
        read_head(run, copy)
    with pytest.raises(TinkitError, match=r"(?s)no head of this name.*did you mean colours"):
        read_head(run, "colour")


def test_a_kill_between_the_two_files_leaves_no_half_head(run, colours, tmp_path, monkeypatch):
    head(run, colours, out=tmp_path, workers=0, quiet=True)
    monkeypatch.setattr(
        "tinkit.host.head.files.files.write_json", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        head(run, colours, out=tmp_path, workers=0, quiet=True)
    assert not (tmp_path / "head.json").exists()


def test_two_pictures_a_class_of_the_run_s_own_are_enough_and_the_note_tells(run, tmp_path):
    found = head(run, labels="folders", out=tmp_path, workers=0, quiet=True)
    assert found.pictures["root"] == run.record["images"]["root"]
    assert found.pictures["bank"] >= len(found.classes)
    assert any("the student was trained on most of them" in note for note in found.notes)
    assert found.evidence["validation"]["pictures"] == found.pictures["validation"] > 0


def test_ctrl_c_says_how_to_go_on_and_leaves_no_head(run, colours, tmp_path, monkeypatch):
    def stopped(*given):
        raise InterruptedError

    monkeypatch.setattr("tinkit.host.head.command.Embedder.rows", stopped)
    with pytest.raises(Interrupted, match="same command"):
        head(run, colours, out=tmp_path, workers=0, quiet=True)
    assert not (tmp_path / "head.json").exists()


def test_the_settings_file_may_name_the_head_of_an_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinkit.toml").write_text('[export]\nhead = "colours"\n')
    assert read_section("export", EXPORT) == {"head": "colours"}


@pytest.mark.parametrize(("flags", "source"), [([], "teacher"), (["--from", "student"], "student")])
def test_the_settings_file_says_from_as_the_flag_does_and_the_reason_is_told_once(
    run, colours, tmp_path, monkeypatch, capsys, flags, source
):
    monkeypatch.chdir(tmp_path)
    Path("tinkit.toml").write_text(f'[head]\nfrom = "teacher"\nworkers = 0\ndata = "{colours}"\n')
    with pytest.raises(SystemExit) as ended:
        cli.main(["head", run.path, "--out", str(tmp_path / "heads"), *flags])
    assert ended.value.code == 0
    told = capsys.readouterr()
    assert files.read_json(tmp_path / "heads" / "head.json", "It")["source"] == source
    assert (told.out + told.err).count("is kept (--from)") == 1


def test_a_truth_value_is_no_number_in_the_settings_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tinkit.toml").write_text("[head]\nlimit = true\n")
    with pytest.raises(TinkitError, match=r"(?s)wrong type.*a whole number"):
        read_section("head", HEAD)


def test_prompts_on_copies_of_one_picture_are_refused(run, colours, tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes((colours / "red" / "0.png").read_bytes())
    with pytest.raises(TinkitError, match="too few different pictures"):
        head(run, tmp_path, prompts=prompts_for(run, colours, tmp_path / "p.npz"), workers=0, quiet=True)


def test_pictures_that_have_moved_ask_for_data(run, tmp_path):
    images = {**run.record["images"], "root": str(tmp_path / "gone")}
    moved = dataclasses.replace(run, record={**run.record, "images": images})
    with pytest.raises(TinkitError, match=r"(?s)not there any more.*gone.*--data FOLDER"):
        head(moved, quiet=True)
