"""The model card: front matter that the Hub's own reader takes, a body in which a stranger's text stays text."""

import json
import os
import re

import pytest
import yaml
from card_parts import RUN_ID, a_run, evaluation_of, record_of

from tinkit import files
from tinkit.bundle import open_bundle
from tinkit.errors import TinkitError
from tinkit.host.report.card import card
from tinkit.host.report.card_text import code, plain

HOSTILE = "a|b `c` <script>alert(1)</script> *d* [e](http://f)\n---\n# g \udce9"


def written(source, **options):
    result = card(source, **options)
    with open(result.card, encoding="utf-8") as handle:
        text = handle.read()
    return result, text


def parts(text):
    """(front matter, body) the way the Hub's reader splits a card."""
    from huggingface_hub.repocard import ModelCard

    read = ModelCard(text)
    return read.data, read.text


def rendered(body):
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": True}).enable("table").render(body)


def cells(body):
    """The rendered table rows as lists of plain text."""
    rows = re.findall(r"<tr>(.*?)</tr>", rendered(body), re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def test_a_card_and_a_bill_beside_the_report(tmp_path):
    folder, _ = a_run(tmp_path, evaluation=evaluation_of())
    result, text = written(folder / "report")
    assert result.card == str(folder / "report" / "MODEL_CARD.md")
    assert result.bill == str(folder / "report" / "bom.cdx.json")
    assert json.loads((folder / "report" / "bom.cdx.json").read_text())["specVersion"] == "1.6"
    data, body = parts(text)
    assert (data.license, data.library_name, data.pipeline_tag) == ("unknown", "tinkit", "image-feature-extraction")
    assert {"knowledge-distillation", "onnx", "fp16"} <= set(data.tags)
    assert not data.base_model
    assert "1 234 567" in body.replace("\u2009", " ")
    assert ["teacher efficientnet-lite2", "Apache-2.0"] in [row[:2] for row in cells(body)]


def test_the_model_index_holds_the_measured_numbers(tmp_path):
    folder, _ = a_run(tmp_path, evaluation=evaluation_of())
    data, _ = parts(written(folder / "report")[1])
    seen = {(one.metric_type, one.task_type): one for one in data.eval_results}
    assert seen["knn", "image-classification"].metric_value == 0.75
    assert seen["auroc", "image-feature-extraction"].metric_value == 0.9375
    assert seen["knn", "image-classification"].dataset_name == "labelled ones (labels, of the student before export)"
    report = files.read_json(folder / "report" / "report.json", "")
    gated = [hop["cosine_min"] for hop in report["chain"] if hop["gate"] and hop["output"] != "pixels"]
    cosines = {one.metric_name: one.metric_value for one in data.eval_results if one.metric_type == "cosine_min"}
    assert cosines["worst cosine, fp32 student to what ships"] == min(gated)
    assert seen["p95_ms", "image-feature-extraction"].metric_value == report["latency"][0]["p95_ms"]


@pytest.mark.parametrize("changes", [{"rehearsal": "onnxruntime-cpu"}, {"board": {"played_back": "/recorded"}}])
def test_times_of_another_machine_are_told_and_stay_out_of_the_index(tmp_path, changes):
    folder, _ = a_run(tmp_path, **changes)
    data, body = parts(written(folder / "report")[1])
    assert not [one for one in data.eval_results if one.metric_type.endswith("_ms")]
    assert "These are not the times of that device" in body
    assert "/recorded" not in body


def test_a_marked_time_is_told_with_its_mark_and_stays_out_of_the_index(tmp_path):
    folder, _ = a_run(tmp_path)
    path = folder / "report" / "report.json"
    report = files.read_json(path, "")
    report["latency"][0].update(contended=True, marks=["contended: other work had the core, 2.00 s"])
    files.write_json(path, report)
    data, body = parts(written(folder / "report")[1])
    names = [one.metric_name for one in data.eval_results if one.metric_type == "p95_ms"]
    assert f"latency p95 in ms, batch {report['latency'][0]['batch']}" not in names
    assert len(names) == len(report["latency"]) - 1
    assert "contended: other work had the core, 2.00 s" in body


def test_a_card_of_an_evaluation_is_of_what_was_evaluated(tmp_path):
    folder, bundle = a_run(tmp_path, evaluation=evaluation_of())
    for source in (folder / "evaluation", folder / "evaluation" / "evaluation.json"):
        result, text = written(source)
        assert result.card == str(folder / "MODEL_CARD.md")
        assert "student.safetensors" in text
        assert "0.75" in text
    of_file = {"kind": "bundle", "run_id": RUN_ID, "bundle": bundle.path, "model_sha256": None}
    files.write_json(folder / "evaluation-small" / "evaluation.json", evaluation_of(subject=of_file).to_json())
    assert "model.onnx" in written(folder / "evaluation-small")[1]
    (folder / "run.json").unlink()
    with pytest.raises(TinkitError, match="not here"):
        card(folder / "evaluation")


def test_which_network_was_evaluated_is_told(tmp_path):
    folder, bundle = a_run(tmp_path, evaluation=evaluation_of())
    assert "the student before export, not of the exported file" in written(folder / "report")[1]
    of_file = {"kind": "bundle", "run_id": RUN_ID, "model_sha256": bundle.manifest["files"]["model.onnx"]["sha256"]}
    files.write_json(folder / "evaluation-small" / "evaluation.json", evaluation_of(subject=of_file).to_json())
    data, body = parts(written(folder / "report")[1])
    assert "of the exported file, on pictures" in body
    assert {one.dataset_name for one in data.eval_results if one.metric_type == "knn"} == {"labelled ones (labels)"}


def test_what_was_not_looked_at_is_told(tmp_path):
    folder, _ = a_run(tmp_path)
    result, text = written(folder / "report")
    assert "Only fidelity was measured" in text
    assert result.unknown[0].startswith("Only fidelity was measured")
    files.write_json(folder / "evaluation" / "evaluation.json", evaluation_of(corruption={}).to_json())
    told = written(folder / "report")[0].unknown[0]
    assert "another domain" in told
    assert "damaged" not in told
    assert "calibration" not in told


def test_an_evaluation_of_other_weights_is_not_this_models(tmp_path):
    other = evaluation_of(subject={"kind": "student", "run_id": "another", "model_sha256": None})
    folder, _ = a_run(tmp_path, evaluation=other)
    assert "0.75" not in written(folder / "report")[1]
    assert "0.75" in written(folder / "report", evaluation=folder / "evaluation")[1]  # unless it is named


def test_another_runs_record_is_not_used(tmp_path):
    folder, _ = a_run(tmp_path, record=record_of(id="another"))
    result, text = written(folder / "report")
    assert "garden pictures" not in text
    assert any("another one" in sentence for sentence in result.unknown)


def test_licences_by_the_users_word(tmp_path):
    folder, _ = a_run(tmp_path)
    data, body = parts(written(folder / "report", licence="Apache-2.0", data_licence="CC-BY-NC-4.0")[1])
    assert data.license == "apache-2.0"
    assert ["pictures", "CC-BY-NC-4.0", "the user"] in cells(body)
    data, _ = parts(written(folder / "report", licence="ours alone")[1])
    assert (data.license, data.license_name) == ("other", "ours alone")


def test_a_licence_that_forbids_commerce_is_said_aloud(tmp_path):
    teacher = {"name": "convnextv2_atto.fcmae", "architecture": "convnextv2_atto"}
    folder, _ = a_run(tmp_path, record=record_of(teacher=teacher))
    data, body = parts(written(folder / "report")[1])
    assert "forbids commercial use" in body
    assert data.base_model == "timm/convnextv2_atto.fcmae"


def test_nothing_private_and_nothing_hostile(tmp_path):
    record = record_of(images={**record_of()["images"], "root": "/home/someone/private/" + HOSTILE.replace("/", ":")})
    folder, _ = a_run(tmp_path, record=record, manifest={"name": HOSTILE}, machine={"cpu": HOSTILE})
    result, text = written(folder / "report")
    bill = (folder / "report" / "bom.cdx.json").read_text()
    for told in (text, bill):
        assert "private" not in told
        assert "secret.jpg" not in told
        assert "picture 1.jpg" not in told
        assert str(tmp_path) not in told
    data, body = parts(text)
    assert data.eval_results
    page = rendered(body)
    assert "<script>" not in page
    assert "<a " not in page
    assert (
        "a|b `c` &lt;script&gt;alert(1)&lt;/script&gt; *d* [e](http://f) --- # g ?" in page
    )  # the title, word for word
    table = [row for row in cells(body) if row[0] == "pictures"]
    assert len(table[0]) == 2
    assert "a|b 'c' &lt;script" in table[0][1]
    assert os.path.isfile(result.bill)


def test_every_table_row_has_the_cells_of_its_head(tmp_path):
    folder, _ = a_run(tmp_path, evaluation=evaluation_of())
    _, body = parts(written(folder / "report")[1])
    tables = re.findall(r"<table>(.*?)</table>", rendered(body), re.DOTALL)
    assert len(tables) == 6
    for table in tables:
        widths = {len(re.findall(r"<t[dh][ >]", row)) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)}
        assert len(widths) == 1
    assert "\n\n\n\n" not in body
    assert "None" not in body


def test_a_bundle_stays_as_it_was(tmp_path):
    folder, bundle = a_run(tmp_path)
    before = {entry.name: entry.read_bytes() for entry in (folder / "bundle-small").iterdir()}
    result, _ = written(folder / "bundle-small", out=folder / "bundle-small")
    assert open_bundle(folder / "bundle-small").manifest == bundle.manifest
    after = {entry.name: entry.read_bytes() for entry in (folder / "bundle-small").iterdir()}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"MODEL_CARD.md", "bom.cdx.json"}
    assert any("not measured on a device" in sentence for sentence in result.unknown)


def test_a_bundles_card_goes_to_its_run_and_a_runs_beside_its_record(tmp_path):
    folder, _ = a_run(tmp_path, report=False)
    assert written(folder / "bundle-small")[0].card == str(folder / "MODEL_CARD.md")
    result, text = written(folder)
    assert result.card == str(folder / "MODEL_CARD.md")
    assert any("not exported" in sentence for sentence in result.unknown)
    assert "student.safetensors" in text
    parts(text)


def test_out_may_name_the_card(tmp_path):
    folder, _ = a_run(tmp_path)
    result, _ = written(folder / "report", out=tmp_path / "hub" / "README.md")
    assert result.card == str(tmp_path / "hub" / "README.md")
    assert result.bill == str(tmp_path / "hub" / "bom.cdx.json")


def test_a_report_without_its_bundle_still_has_a_card(tmp_path):
    folder, bundle = a_run(tmp_path)
    (folder / "bundle-small").rename(tmp_path / "elsewhere")
    result, text = written(folder / "report")
    assert any("bundle that the report was made of" in sentence for sentence in result.unknown)
    assert str(tmp_path) not in text
    _, body = parts(text)
    assert body.lstrip().startswith("# small\n")
    assert bundle.manifest["files"]["model.onnx"]["sha256"] in body
    assert "student.safetensors" not in body


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(TinkitError, match="no report"):
        card(tmp_path)
    files.write_json(tmp_path / "run.json", record_of(status="running"))
    with pytest.raises(TinkitError, match="not finished"):
        card(tmp_path)


@pytest.mark.parametrize("text", ["a_b*c", "[x](y)", "<b>&amp;", "a|b", "# t", "\\x", "~~s~~", "`q`", "1. a", "__i__"])
def test_text_is_shown_as_it_is(text):
    from html import unescape

    shown = re.sub(r"<[^>]+>", "", rendered("x " + plain(text)))
    assert unescape(shown).strip() == "x " + text


def test_code_keeps_a_name_whole_in_a_table():
    assert code("a|b\nc`d") == "`a\\|b c'd`"
    assert code(None) == code("") == "not recorded"


def test_front_matter_is_plain_yaml(tmp_path):
    folder, _ = a_run(tmp_path, evaluation=evaluation_of(), manifest={"name": "yes: [no]"})
    text = written(folder / "report")[1]
    _, head, _ = text.split("---\n", 2)
    told = yaml.safe_load(head)
    assert told["model-index"][0]["name"] == "yes: [no]"
    assert list(told)[:3] == ["license", "library_name", "pipeline_tag"]


def test_on_the_command_line_a_card_and_a_page_may_be_named_or_given_a_folder(tmp_path):
    from click.testing import CliRunner

    from tinkit.cli import cli

    folder, _ = a_run(tmp_path, evaluation=evaluation_of())
    for number, (out, card_name, page) in enumerate(
        (
            ("CARD.md", "CARD.md", "report.html"),
            ("one.html", "MODEL_CARD.md", "one.html"),
            ("", "MODEL_CARD.md", "report.html"),
        )
    ):
        place = tmp_path / str(number)
        found = CliRunner().invoke(cli, ["report", str(folder / "report"), "--card", "--out", str(place / out)])
        assert found.exit_code == 0, found.output
        assert sorted(os.listdir(place)) == sorted(["bom.cdx.json", card_name, page])
    found = CliRunner().invoke(cli, ["report", str(folder / "evaluation"), "--card"])
    assert found.exit_code == 0, found.output
    assert (folder / "MODEL_CARD.md").is_file()
    assert (folder / "evaluation" / "evaluation.html").is_file()
