"""The whole of `tinkit evaluate` on a tiny pair: what is asked, kept, judged and refused."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image, ImageOps
from small_pair import SMALL, teacher_weights
from test_onnx_teacher import write_onnx

import tinkit
from tinkit import cli, files
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.host.evaluate import networks
from tinkit.host.evaluate.evaluation import find_evaluation, load_evaluation
from tinkit.host.evaluate.names import NAMES
from tinkit.host.evaluate.questions import MODULES
from tinkit.host.evaluate.rows import Embedder

CLASSES = 3


@pytest.fixture(scope="module")
def place(photos, tmp_path_factory):
    """A folder with a finished run, labelled pictures of three classes, the same in negative, strange pictures and masks."""
    folder = tmp_path_factory.mktemp("evaluate")
    tinkit.distill(photos, out=folder / "runs" / "tiny", **{**SMALL, "teacher_weights": teacher_weights(folder)})
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    for number, name in enumerate(names):
        image = Image.open(photos / name)
        label = f"class-{number % CLASSES}"
        for part, picture in (("data", image), ("negative", ImageOps.invert(image))):
            path = folder / part / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        mask = np.zeros((image.height, image.width), np.uint8)
        mask[: image.height // 2] = 1
        (folder / "masks" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / "masks" / label / f"{number}.png")
    random = np.random.default_rng(0)
    for number in range(12):
        path = folder / "noise" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def whole(place):
    """Every question at once."""
    return tinkit.evaluate(
        place / "runs" / "tiny",
        data=place / "data",
        ood=[place / "noise", f"near:{place / 'negative'}"],
        domains=[place / "negative"],
        masks=place / "masks",
        corruptions=True,
        corruption_pictures=3,
        budget="agreement>0,auroc>-1,cosine>0.9999",
        workers=0,
        quiet=True,
    )


def test_every_question_is_answered_and_every_name_of_a_budget_is_measured(whole):
    for name in MODULES:
        assert getattr(whole, name), name
    names = {measure.name for measure in whole.measures}
    missing = {name for name in NAMES if name not in names and not name.startswith("fitted_")}
    assert missing == {"overlap@50", "auroc_far", "map_correlation"}  # few pictures, no far set, a grid of one
    assert names <= set(NAMES)
    for measure in whole.measures:
        assert measure.better == NAMES[measure.name][0], measure.name
        assert measure.what, measure.name
        assert np.isfinite(measure.student), measure.name


def test_it_is_written_as_it_was_returned(whole):
    assert load_evaluation(whole.path) == whole
    told = files.read_json(whole.path, "it")
    assert told["schema"] == "tinkit-evaluation-1"
    assert set(told["subject"]) >= {"kind", "run", "run_id", "bundle", "model_sha256", "student", "teacher", "method"}


def test_the_budget_is_judged(whole):
    assert [rule["verdict"] for rule in whole.budget] == [PASSED, PASSED, FAILED]
    assert whole.verdict == FAILED


def test_pictures_are_counted(whole):
    assert sum(whole.pictures["labelled"].values()) == 40
    assert whole.pictures["classes"] == [f"class-{n}" for n in range(CLASSES)]
    assert {entry["name"] for entry in whole.domains["domains"]} == {"data", "negative"}


def test_again_is_the_same_from_kept_rows(place, whole, monkeypatch):
    from tinkit.host import teacher

    def refuse(*arguments):
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(teacher.TimmTeacher, "features", refuse)
    again = tinkit.evaluate(
        place / "runs" / "tiny", data=place / "data", out=place / "again", dense=False, workers=0, quiet=True
    )
    assert again.similarity == whole.similarity
    assert again.labels == whole.labels
    assert again.verdict == NOT_JUDGED


def test_without_labels_only_what_needs_none(place):
    found = tinkit.evaluate(
        place / "runs" / "tiny", data=place / "noise", out=place / "plain", dense=False, workers=0, quiet=True
    )
    assert found.labels is None
    assert found.pictures["labelled"] == {}
    assert found.pictures["unlabelled"] == 12
    assert {measure.group for measure in found.measures} == {"similarity"}


def test_a_bundle_is_evaluated_in_its_runtime(place):
    run = place / "runs" / "tiny"
    bundle = tinkit.export(run, target="onnx-fp32").bundle
    student = tinkit.evaluate(run, data=place / "data", out=place / "as-student", dense=False, workers=0, quiet=True)
    found = tinkit.evaluate(bundle, data=place / "data", workers=0, quiet=True)
    assert found.subject["kind"] == "bundle"
    assert found.subject["runtime"] == "onnxruntime"
    assert os.path.dirname(found.path) == str(run / "evaluation-onnx-fp32")
    assert found.measure("cosine").student == pytest.approx(student.measure("cosine").student, abs=1e-5)
    manifest = files.read_json(os.path.join(bundle, "manifest.json"), "it")
    sha = manifest["files"]["model.onnx"]["sha256"]
    assert find_evaluation(run, manifest["run"]["id"], sha) == found.path
    assert find_evaluation(run, manifest["run"]["id"], "another") == str(run / "evaluation" / "evaluation.json")
    assert find_evaluation(run, "another", sha) == ""


def test_a_target_without_its_runtime_is_a_rehearsal_and_says_so(place):
    bundle = tinkit.export(place / "runs" / "tiny", target="trt-fp16").bundle
    found = tinkit.evaluate(bundle, data=place / "data", workers=0, quiet=True)
    assert "not the target runtime" in found.title
    assert "not the target runtime" in found.subject["rehearsal"]
    with pytest.raises(TinkitError) as error:
        tinkit.evaluate(bundle, data=place / "data", require_target_runtime=True, workers=0, quiet=True)
    assert error.value.exit_code == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"budget": "auroc>0.9"}, "--ood"),
        ({"budget": "corruption>-2%"}, "--corruptions"),
        ({"budget": "auroc>0.9", "ood": ["missing"]}, "missing"),
        ({"budget": "agreement>0.9", "data": "noise"}, "class folders"),
        ({"domains": ["negative"], "data": "noise"}, "class folders"),
        ({"domains": ["noise"]}, "class folders named as in --data"),
        ({"masks": "noise"}, "mask"),
        ({"data": "nowhere"}, "nowhere"),
        ({"limit": 2}, "at least"),
        ({"labels": "nothing.csv"}, "nothing.csv"),
        ({"limit": -5}, "--limit is a number from 1 on"),
        ({"workers": -1}, "--workers"),
        ({"seed": -1}, "--seed"),
        ({"corruptions": True, "corruption_pictures": 0}, "--corruption-pictures"),
        ({"ood": [7]}, "A folder is a text"),
        ({"ood": "nowhere"}, "--ood: The folder is missing"),
        ({"masks": "runs/tiny/run.json"}, "The folder of --masks is a file"),
        ({"ood": ["data"]}, "is in --data too"),
        ({"domains": ["data"]}, "is in --data too"),
    ],
)
def test_a_mistake_is_told(place, monkeypatch, options, told):
    monkeypatch.chdir(place)
    with pytest.raises(TinkitError) as error:
        tinkit.evaluate(
            place / "runs" / "tiny", **{"data": "data", "out": place / "x", "workers": 0, "quiet": True, **options}
        )
    assert told in str(error.value)


def test_a_wrong_folder_is_told_before_the_work(place, monkeypatch):
    monkeypatch.setattr(Embedder, "rows", lambda *arguments: pytest.fail("the work began"))
    for options in ({"domains": [place / "noise"]}, {"masks": place / "noise"}, {"ood": [place / "data"]}):
        with pytest.raises(TinkitError):
            tinkit.evaluate(
                place / "runs" / "tiny", data=place / "data", out=place / "x", workers=0, quiet=True, **options
            )


def test_a_bundle_that_overflows_is_named_and_not_the_teacher(place, monkeypatch):
    real = networks.BundleNetwork._answers

    def overflow(network, pixels):
        rows = real(network, pixels)
        rows["embedding"][0, 0] = np.nan
        return rows

    bundle = tinkit.export(place / "runs" / "tiny", target="onnx-fp32").bundle
    monkeypatch.setattr(networks.BundleNetwork, "_answers", overflow)
    fresh = place / "fresh"
    shutil.copytree(place / "noise", fresh)
    Image.new("RGB", (64, 64), "red").save(fresh / "red.png")
    with pytest.raises(TinkitError, match="network under evaluation gives features that are not finite") as error:
        tinkit.evaluate(bundle, data=fresh, out=place / "x", workers=0, quiet=True)
    assert error.value.where == bundle


def test_a_teacher_without_local_features_is_asked_for_none(photos, tmp_path):
    write_onnx(tmp_path / "teacher.onnx", outputs=("embedding",))
    run = tmp_path / "runs" / "flat"
    tinkit.distill(
        photos, out=run, **{**SMALL, "teacher": str(tmp_path / "teacher.onnx"), "teacher_size": 32, "method": "mse"}
    )
    found = tinkit.evaluate(run, workers=0, quiet=True)
    assert found.dense is None
    assert found.similarity
    for options in ({"masks": photos}, {"budget": "map_correlation>0.5"}):
        with pytest.raises(TinkitError, match=r"local features|not measured"):
            tinkit.evaluate(run, workers=0, quiet=True, **options)


def test_notes_of_blocks_are_on_the_screen(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    arguments = ["evaluate", "--data", "data", "--ood", "noise", "--no-dense", "--workers", "0", "--out", "notes"]
    with pytest.raises(SystemExit):
        cli.main(arguments)
    said = capsys.readouterr().out
    assert "ood: k = 50 is more than the" in said
    assert "test pictures are few" in said


def test_a_bundle_away_from_its_run_is_told(place, tmp_path):
    bundle = tinkit.export(place / "runs" / "tiny", target="onnx-fp16").bundle
    shutil.copytree(bundle, tmp_path / "bundle")
    with pytest.raises(TinkitError, match="does not lie in its run's folder"):
        tinkit.evaluate(tmp_path / "bundle")


def test_the_command_line_exits_3_for_a_broken_budget(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    arguments = ["evaluate", "--data", "data", "--no-dense", "--workers", "0", "--out", "by-command"]
    for budget, code in (("agreement>0", 0), ("cosine>0.9999", 3), ("cosine<0.9", 1)):
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, "--budget", budget])
        assert ended.value.code == code
    said = capsys.readouterr().out
    assert "agreement" in said
    assert "failed     cosine>0.9999" in said
