"""Pictures in, report out, with a tiny pair: the one test to show a visitor."""

import json

import pytest
from product_parts import quick_profile
from small_pair import SMALL, teacher_weights

import tinkit
from tinkit import cli


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A product's folder: its settings file makes the three commands of the promise small."""
    settings = {k: v for k, v in SMALL.items() if k != "quiet"} | {"teacher_weights": teacher_weights(tmp_path)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    lines += [
        "[profile]",
        f"device = {json.dumps(quick_profile(tmp_path / 'quick.toml'))}",
        "[profile.budget]",
        "p95_ms = 1000",
    ]
    (tmp_path / "tinkit.toml").write_text("\n".join(["[distill]", *lines, ""]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return ended.value.code


def test_the_three_commands_as_written(photos, workplace, capsys):
    assert command("distill", str(photos)) == 0
    assert command("export", "--target", "trt-fp16") == 0
    assert command("profile") == 0
    said = capsys.readouterr().out
    assert "rehearsal" in said
    folder = next((workplace / "runs").glob("*/report-trt-fp16-*"))
    report = json.loads((folder / "report.json").read_text())
    assert "not the target runtime" in report["rehearsal"]
    assert "rehearsal" in report["title"]
    hops = [hop["hop"] for hop in report["chain"]]
    assert hops[:2] == ["teacher -> mapped teacher", "mapped teacher -> student"]
    assert len(report["latency"][0]["samples_ms"]) >= 200
    page = (folder / "report.html").read_text()
    assert "rehearsal" in page.lower()
    assert "<img" in page


def test_three_python_calls_each_return_a_frozen_result(photos, workplace):
    settings = {**SMALL, "teacher_weights": str(workplace / "teacher.safetensors")}
    run = tinkit.distill(photos, **settings)
    bundle = tinkit.export(run.run, target="onnx-fp32")
    assert bundle.verdict == "passed"
    report = tinkit.profile(bundle.bundle, device=str(workplace / "quick.toml"))
    assert report.verdict == "passed"
    assert report.rehearsal == ""
    for result in (run, bundle, report):
        with pytest.raises(AttributeError):
            result.verdict = "something else"


def test_a_gate_that_fails_exits_3_and_names_the_picture(photos, workplace, capsys):
    assert command("distill", str(photos)) == 0
    (workplace / "export").mkdir()
    strict = 'schema = "tinkit-target-1"\ndescription = "impossible"\nruntime = "onnxruntime"\nprecision = "fp16"\n'
    strict += "[gate.embedding]\nmin_cosine = 1.0\nmax_error_share = 1e-9\n"
    (workplace / "export" / "impossible.toml").write_text(strict)
    assert command("export", "--target", "impossible") == 3
    said = capsys.readouterr().out
    assert "failed" in said
    assert ".jpg" in said
    assert command("profile") == 1  # the failed bundle is not picked up on its own


def test_a_budget_that_is_missed_exits_3(photos, workplace):
    assert command("distill", str(photos)) == 0
    assert command("export", "--target", "onnx-fp32") == 0
    assert command("profile", "--budget", "p50_ms<0.000001") == 3
    assert command("profile", "--budget", "p50_ms<100000") == 0


def test_without_an_exam_nothing_is_judged_and_no_name_travels(photos, workplace):
    settings = workplace / "tinkit.toml"
    settings.write_text(settings.read_text().split("[profile.budget]")[0])
    assert command("distill", str(photos)) == 0
    assert command("export", "--target", "onnx-fp32", "--deploy-only") == 0
    (manifest,) = (workplace / "runs").glob("*/bundle-onnx-fp32/manifest.json")
    assert ".jpg" not in manifest.read_text()
    assert not (manifest.parent / "exam.npz").exists()
    assert command("profile") == 4
