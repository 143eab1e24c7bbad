"""report.html: everything inside, a stranger's text escaped, nothing invented, and it says so when something is missing."""

import base64
import io
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from tinkit import files
from tinkit.bundle import Exam, write_bundle
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED, compare_answers
from tinkit.host import plots
from tinkit.host.report import load_report, report, worst_hop
from tinkit.host.report_pictures import THUMBNAILS
from tinkit.host.report_precision import percent
from tinkit.host.report_text import cut, flat, short
from tinkit.pixels import Preprocessing
from tinkit.results import Latency, Report
from tinkit.target import Gate, Target

HOSTILE = "<script>alert(1)</script>\"' onerror=x.jpg"
VOID = {"meta", "img", "br", "link", "input", "hr", "source"}
N, WIDTH = 40, 16
GATE = Gate(min_cosine=0.9, max_error_share=1.0)
TARGET = Target(description="for tests", runtime="tensorrt", precision="fp16", gate={"embedding": GATE}, name="small")
HISTORY = [
    {
        "epoch": e,
        "step": 9 * e,
        "lr": 1e-3,
        "loss": 5.0 / e,
        "token": 3.0 / e,
        "cosine_mean": 1 - 0.5 / e,
        "cosine_p1": 0.2,
    }
    for e in (1, 2, 3)
]


class Page(HTMLParser):
    """A strict little reader: every element must be closed in order; keeps tags with attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def colour_of(index):
    """Every exam picture is of one colour that tells its index."""
    return np.array([index * 6, 255 - index * 6, 128], np.uint8)


def small_exam():
    rng = np.random.default_rng(0)
    pixels = np.tile(np.stack([colour_of(i) for i in range(N)])[:, None, None], (1, 160, 160, 1))
    names = np.array([HOSTILE, *(f"picture {i}.jpg" for i in range(1, N))])
    answers = rng.normal(size=(N, WIDTH)).astype(np.float32)
    encoded = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "the garden of number 7"
    Image.fromarray(pixels[0]).save(encoded, "JPEG", exif=exif)
    return Exam(pixels, names, {"embedding": answers}, answers + 0.1, {0: encoded.getvalue()})


def small_bundle(folder, exam="small", **manifest):
    model = folder / "model"
    model.write_bytes(b"not a network, but a file of 33 B")
    facts = {
        "name": "small",
        "target": TARGET.to_json(),
        "tensors": {},
        "preprocessing": Preprocessing(160, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).to_json(),
        "student": {"architecture": "tiny", "parameters": 1_234_567, "macs": 89_000_000},
        "run": {
            "name": "one",
            "id": "abc123",
            "method": {"name": "tintem"},
            "metrics": {"cosine_mean": 0.83},
            "history": HISTORY,
        },
        "teacher": {"name": "a teacher of note"},
        "host_gate": {"verdict": PASSED},
        "privacy": "These are the user's own pictures.",
    }
    facts = {key: value for key, value in {**facts, **manifest}.items() if value is not None}
    return write_bundle(folder / "bundle-small", model, facts, small_exam() if exam == "small" else exam)


def chain_of(exam, noise=0.05):
    """Four hops; the first over held-out pictures, of which the exam's are the last ones in reverse order."""
    rng = np.random.default_rng(1)
    answers = exam.answers["embedding"]

    def near(share):
        return answers + share * rng.normal(size=answers.shape)

    others = [f"not in the exam {i}" for i in range(3)]
    held = [*others, *exam.names[::-1]]
    both = np.concatenate([answers[:3], answers[::-1]])
    return [
        compare_answers("mapped teacher -> student", "embedding", both + rng.normal(size=both.shape), both, held),
        compare_answers("student -> ONNX", "embedding", near(noise), answers, exam.names, GATE),
        compare_answers("encoded picture -> pixels", "pixels", exam.pixels[:1], exam.pixels[:1], exam.names[:1]),
        compare_answers(
            "student -> onnxruntime", "embedding", near(noise), answers, exam.names, GATE, {"device": "here"}
        ),
    ]


def latency(batch=1, **changes):
    samples = [2.0 + 0.01 * i for i in range(200)] + [50.0]
    p50, p90, p95, p99 = (float(value) for value in np.percentile(samples, (50, 90, 95, 99)))
    facts = Latency(
        batch, 1, 201, 1.0, float(np.mean(samples)), 2.0, p50, p90, p95, p99, 20, True, False, 1.02, samples,
        conditions={"runtime": "onnxruntime", "copies": "included"},
    )  # fmt: skip
    return replace(facts, **changes)


def small_report(folder, bundle, **changes):
    exam = bundle.exam() or small_exam()
    facts = Report(
        title="small on here",
        verdict=PASSED,
        rehearsal="",
        bundle={
            "name": "small",
            "path": str(bundle.path),
            "target": TARGET.to_json(),
            "model_sha256": bundle.manifest["files"]["model.onnx"]["sha256"],
            "file_mb": 3.3e-5,
        },
        device={"name": "here", "runtime": "onnxruntime"},
        chain=chain_of(exam),
        latency=[latency()],
        budgets=[{"name": "p95_ms", "limit": 5.0, "measured": 3.9, "verdict": PASSED, "reason": "batch 1"}],
        load_ms=12.5,
        peak_mb=99.0,
        machine={"cpu": "a processor of note"},
        versions={"onnxruntime": "1.0"},
        created="2025-01-02T03:04:05+00:00",
        notes=["a note of note"],
    )
    facts = replace(facts, **changes)
    files.write_json(folder / "report" / "report.json", facts.to_json())
    return facts


def written(folder, source=None):
    result = report(source or folder / "report")
    with open(result.path, encoding="utf-8") as handle:
        return handle.read()


def images(page):
    """index of the exam picture by its colour -> decoded thumbnail."""
    found = {}
    for attributes in page.all("img"):
        kind, data = attributes["src"].split(",", 1)
        assert kind == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        red = np.asarray(image.convert("RGB"))[:, :, 0].mean()
        index = round(red / 6)
        assert index not in found, "a picture is shown twice"
        found[index] = (attributes, image)
    return found


@pytest.fixture
def usual(tmp_path):
    small_report(tmp_path, small_bundle(tmp_path))
    return tmp_path


def test_one_well_formed_file_that_asks_for_nothing(usual):
    text = written(usual)
    page = Page(text)
    assert len(text) < 2_000_000
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert {"script", "link", "iframe", "object", "base", "form"}.isdisjoint(tag for tag, _ in page.tags)
    for _, attributes in page.tags:
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]


def test_structure_for_those_who_listen_and_for_small_screens(usual):
    page = Page(written(usual))
    assert page.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert len(page.all("h1")) == 1
    assert all(attributes["alt"] for attributes in page.all("img"))
    charts = page.all("svg")
    assert len(charts) >= 4
    assert all(chart["aria-label"] and chart["role"] == "img" for chart in charts)
    assert len(page.all("caption")) == len(page.all("table")) >= 4
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link["href"][1:] for link in page.all("a")} <= targets


def test_a_hostile_name_is_only_text(usual):
    facts = load_report(usual / "report" / "report.json")
    evil = replace(
        facts.chain[1],
        verdict=FAILED,
        reason=f"cosine of {HOSTILE!r}",
        worst=[{"index": 0, "name": HOSTILE, "cosine": 0.1}],
    )
    evil_facts = replace(
        facts, title=HOSTILE, chain=[evil], verdict=FAILED, notes=[HOSTILE], machine={HOSTILE: HOSTILE},
        budgets=[{"name": HOSTILE, "limit": 1, "measured": 2, "verdict": FAILED, "reason": HOSTILE}],
    )  # fmt: skip
    files.write_json(usual / "report" / "report.json", evil_facts.to_json())
    text = written(usual)
    page = Page(text)
    assert "<script" not in text
    assert not page.all("script")
    assert any(HOSTILE in attributes["alt"] for attributes in page.all("img"))
    assert page.text.count("<script>") >= 6


def test_names_of_the_history_are_text_too(tmp_path):
    run = {"history": [{"epoch": 1, "loss": 1.0, "</text><script>": 2.0}]}
    small_report(tmp_path, small_bundle(tmp_path, run=run))
    assert "<script" not in written(tmp_path)


def test_names_that_are_no_unicode_are_written(usual):
    facts = load_report(usual / "report" / "report.json")
    files.write_json(usual / "report" / "report.json", replace(facts, notes=["caf\udce9.jpg"]).to_json())
    assert "caf?.jpg" in written(usual)


def test_worst_pictures_are_the_right_ones_small_and_without_exif(usual):
    page = Page(written(usual))
    shown = images(page)
    assert 8 <= len(shown) <= THUMBNAILS
    exam = small_exam()
    for index, (attributes, image) in shown.items():
        assert attributes["alt"].endswith(str(exam.names[index]))
        assert max(image.size) <= 128
        assert dict(image.getexif()) == {}
        assert "exif" not in image.info
    for hop in load_report(usual / "report" / "report.json").chain:
        worst = hop.worst[0]["name"]
        if hop.output != "pixels" and not worst.startswith("not in"):
            assert list(exam.names).index(worst) in shown
    assert "the garden" not in written(usual)


def test_never_more_thumbnails_than_agreed(usual):
    facts = load_report(usual / "report" / "report.json")
    every = [{"index": i, "name": str(name), "cosine": 0.5} for i, name in enumerate(small_exam().names)]
    files.write_json(
        usual / "report" / "report.json", replace(facts, chain=[replace(facts.chain[1], worst=every)] * 3).to_json()
    )
    assert len(images(Page(written(usual)))) == THUMBNAILS


def test_verdicts_in_plain_words(usual):
    text = Page(written(usual)).text
    assert "Verdict: passed" in text
    assert "rehearsal." not in text
    facts = load_report(usual / "report" / "report.json")
    bad = replace(facts.chain[3], verdict=FAILED, reason="cosine 0.1 of picture 'x.jpg' is below 0.9")
    over = {"name": "peak_mb", "limit": 5.0, "measured": 99.0, "verdict": FAILED}
    failed = replace(facts, verdict=FAILED, chain=[*facts.chain[:3], bad], budgets=[over])
    files.write_json(usual / "report" / "report.json", failed.to_json())
    text = Page(written(usual)).text
    assert "Verdict: failed" in text
    assert "cosine 0.1 of picture 'x.jpg' is below 0.9" in text
    assert "budget peak_mb: 99, the limit is 5" in text


def test_a_rehearsal_says_so_before_any_number(usual):
    facts = load_report(usual / "report" / "report.json")
    files.write_json(
        usual / "report" / "report.json",
        replace(facts, verdict=NOT_JUDGED, rehearsal="onnxruntime-cpu, not the target runtime").to_json(),
    )
    text = Page(written(usual)).text
    assert "This is a rehearsal. It ran in onnxruntime-cpu, not the target runtime" in text
    assert text.index("This is a rehearsal") < text.index("Verdict: not judged") < text.index("Worst picture")
    assert "The host gate, at the export, says: passed" in text


def test_a_bundle_that_is_gone_is_no_error(usual):
    shutil.rmtree(usual / "bundle-small")
    page = Page(written(usual))
    assert "The bundle is no longer at" in page.text
    assert "not recorded" in page.text
    assert not page.all("img")
    assert "picture" in page.text  # the names are still there


def test_a_bundle_that_moved_with_its_report_is_found(usual):
    moved = usual / "elsewhere"
    moved.mkdir()
    shutil.move(usual / "bundle-small", moved / "bundle-small")
    shutil.move(usual / "report", moved / "report")
    assert images(Page(written(moved)))


def test_another_bundle_in_the_same_place_is_not_believed(usual):
    facts = load_report(usual / "report" / "report.json")
    files.write_json(
        usual / "report" / "report.json", replace(facts, bundle=dict(facts.bundle, model_sha256="0" * 64)).to_json()
    )
    page = Page(written(usual))
    assert "another one than was examined" in page.text
    assert "1.235 million" not in page.text
    assert not page.all("img")


def test_a_damaged_bundle_is_named_not_raised(usual):
    with open(usual / "bundle-small" / "exam.npz", "r+b") as handle:
        handle.seek(200)
        byte = handle.read(1)
        handle.seek(200)
        handle.write(bytes([byte[0] ^ 1]))
    page = Page(written(usual))
    assert "cannot be used" in page.text
    assert not page.all("img")


def test_a_bundle_without_an_exam(tmp_path):
    small_report(tmp_path, small_bundle(tmp_path, exam=None))
    page = Page(written(tmp_path))
    assert "carries no exam" in page.text
    assert "1.235 million parameters" in page.text
    assert not page.all("img")


def test_what_is_missing_is_said_and_nothing_invented(tmp_path):
    bare = dict.fromkeys(("student", "run", "teacher", "host_gate", "privacy"))
    small_report(
        tmp_path, small_bundle(tmp_path, **bare), latency=[], budgets=[], chain=[], machine={}, versions={}, device={}
    )
    text = Page(written(tmp_path)).text
    assert "number of parameters: not recorded" in text
    assert "No batch was timed." in text
    assert "Curves: not recorded." in text
    assert "Whose pictures the bundle carries: not recorded." in text
    assert "carries 40 pictures, 1 of them also as encoded files" in text
    assert "No budgets were given." in text
    assert not re.search(r"\b(None|Undefined|nan)\b", text)


def test_a_hole_in_a_list_is_said_too(usual):
    facts = load_report(usual / "report" / "report.json")
    hop = replace(facts.chain[1], worst=[{"index": 0, "cosine": 0.5}], reason="")
    holes = replace(facts, chain=[hop], budgets=[{"name": "p95_ms"}], bundle={"path": facts.bundle["path"]})
    files.write_json(usual / "report" / "report.json", holes.to_json())
    rows = Page(written(usual)).text
    assert "p95_ms not recorded not recorded not recorded" in rows
    assert "Not in the bundle's exam: not recorded 0.50000" in rows


def test_the_facts_are_in_the_page(usual):
    text = Page(written(usual)).text
    expected = (
        "1.235 million parameters", "89 000 000", "abc123", "a teacher of note", "a processor of note", "a note of note",
        "These are the user's own pictures", "tensorrt",
        "batch 1, 1 thread, 201 samples, onnxruntime on a processor of note", "gate.embedding.min_cosine",
        "1 beyond the right end, the longest 50 ms",
    )  # fmt: skip
    assert [words for words in expected if words not in text] == []


def test_hops_that_find_the_same_pictures_hard_share_a_strip(usual):
    facts = load_report(usual / "report" / "report.json")
    hop = facts.chain[1]
    chain = [
        replace(hop, hop="batch 1", conditions={"batch": 1, "via": "x"}),
        replace(hop, hop="batch 8", conditions={"via": "x"}),
    ]
    files.write_json(usual / "report" / "report.json", replace(facts, chain=[*chain, facts.chain[3]]).to_json())
    text = Page(written(usual)).text
    assert re.search(r"1\s+batch 1\s+\(embedding\);\s+2\s+batch 8\s+\(embedding\)", text)
    assert "Exam, hops 1, 2 via x" in text


def test_marks_of_doubtful_latency(usual):
    facts = load_report(usual / "report" / "report.json")
    assert "not settled" not in Page(written(usual)).text.split("What the numbers mean")[0]
    files.write_json(
        usual / "report" / "report.json", replace(facts, latency=[latency(contended=True, stable=False)]).to_json()
    )
    text = Page(written(usual)).text.split("What the numbers mean")[0]
    assert text.count("contended") >= 2
    assert text.count("not settled") >= 2


GRAPH = {
    "subject": "graph", "precision": "fp16", "layers": {"fp16": 0.61, "fp32": 0.39}, "macs": {"fp16": 0.912345, "fp32": 0.087655},
    "floor": 0.9, "verdict": PASSED, "reason": "the graph's own reason", "notes": ["a note on the graph"],
    "weights": {"fp16": 0.75, "fp32": 0.25}, "computed": "",
}  # fmt: skip
ENGINE = {**GRAPH, "subject": "engine", "macs": {"fp32": 0.999999, "fp16": 0.000001}, "layers": {}, "verdict": FAILED,
          "reason": "the engine's own reason", "notes": [], "weights": {}, "computed": "bf16"}  # fmt: skip
SUSPECT = {"node": "blocks.3/<Conv>", "op_type": "Conv", "added": "inf"}
HEALED = {
    "healed": True, "reason": "2 nodes went back", "macs": 0.03, "trials": 17, "before": -1.0, "after": 0.99987,
    "ranking": [SUSPECT],
    "kept": [
        {"node": "stem.0/Conv", "op_type": "Conv", "macs": 0.0254, "added": 0.321, "gain": 1.99871},
        {"node": "stem.1/Add", "op_type": "Add", "macs": 0.0, "added": 0.0512, "gain": None},
    ],
}  # fmt: skip
UNHEALED = {**HEALED, "healed": False, "reason": "not healed with little", "kept": [], "after": 0.41}
CALIBRATED = {
    "chosen": "entropy",
    "worst_cosine": {"minmax": 0.811119, "percentile": 0.822229, "entropy": 0.833339},
    "pictures": 123,
}


def precision_section(folder, report_changes=None, **manifest):
    """The text of the section "Precision" and of the whole page."""
    small_report(folder, small_bundle(folder, **manifest), **(report_changes or {}))
    text = Page(written(folder)).text
    return re.search(r"Precision Asked for (.*?) Training ", text).group(1), text


def test_precision_asked_for_and_found_in_graph_and_engine(tmp_path):
    target = {**TARGET.to_json(), "rest": "fp16", "weakly_typed": True, "heal": 0.0, "unproven": "no such board here"}
    changes = {"truth": ENGINE, "verdict": FAILED}
    section, text = precision_section(tmp_path, changes, target=target, precision=GRAPH, node_macs={"secret/node": 5})
    expected = (
        "precision fp16", "what is not int8 fp16", "weakly typed (TensorRT 8 is asked by flags, and decides itself) yes",
        "in this precision 90.00 %", "healing may return 0.00 %", "unproven no such board here",
        "the graph fp16 91.23 %, fp32 8.76 % fp16 61.00 %, fp32 39.00 % fp16 75.00 %, fp32 25.00 % passed the graph's own reason",
        "a note on the graph",
        "this device fp32 99.99 %, fp16 less than 0.01 % none counted none counted failed the engine's own reason",
        "arithmetic asked of the runtime: bf16",
    )  # fmt: skip
    assert [words for words in expected if words not in section] == []
    assert "precision in this device: the engine's own reason" in text  # among what was missed
    assert text.count("the graph's own reason") == 1  # not again among the conditions
    assert "secret/node" not in text
    assert "weakly typed" not in precision_section(other(tmp_path))[0]


def other(folder):
    (folder / "other").mkdir()
    return folder / "other"


def test_a_device_that_does_not_tell_is_said_with_the_reason(tmp_path):
    macs = {"node_macs": {"a": 1}, "precision": GRAPH}
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    assert "onnxruntime does not tell in which precision" in precision_section(folders[0], **macs)[0]
    assert (
        "a rehearsal: the target's own runtime" in precision_section(folders[1], {"rehearsal": "elsewhere"}, **macs)[0]
    )
    assert "does not tell the MACs of its nodes" in precision_section(folders[2], precision=GRAPH)[0]


def test_calibration_shows_every_way_and_the_one_chosen(tmp_path):
    section = precision_section(tmp_path, calibration=CALIBRATED)[0]
    assert "Ranges from 123 pictures" in section
    assert "minmax 0.81111 percentile 0.82222 entropy 0.83333 chosen" in section
    assert section.count("0.8") == 3
    assert "Calibration" not in precision_section(other(tmp_path), calibration={})[0]


def test_healed_nodes_are_listed_with_share_and_gain(tmp_path):
    section, text = precision_section(tmp_path, healing={"fp16": HEALED}, precision=GRAPH)
    assert "fp16 , healed : 2 nodes went back" in section
    assert "Worst cosine -1.00000 before, 0.99987 after; 17 graphs judged" in section
    assert "stem.0/Conv Conv 2.54 % 0.321 +1.998710" in section
    assert "stem.1/Add Add 0.00 % 0.0512 not judged" in section
    assert "blocks.3" not in section  # the ranking is for what could not be healed
    assert text.count("stem.0/Conv") == 1


def test_what_was_not_healed_shows_its_ranking_as_text(tmp_path):
    section = precision_section(tmp_path, healing={"int8": UNHEALED})[0]
    assert "int8 , not healed : not healed with little" in section
    assert "0.41000 at best" in section
    assert "blocks.3/<Conv> Conv overflows" in section
    assert "Gain" not in section


def test_nodes_that_tensorrt_8_keeps_in_fp32(tmp_path):
    section = precision_section(tmp_path, fp32_nodes=[f"node/{index}" for index in range(30)])[0]
    assert "node/23 and 6 more" in section
    assert "node/24" not in section
    assert "TensorRT 8" not in precision_section(other(tmp_path), fp32_nodes=[])[0]


def test_nothing_healed_is_not_the_same_as_not_recorded(tmp_path):
    assert "No node was sent back" in precision_section(tmp_path, healing={})[0]
    section = precision_section(other(tmp_path))[0]
    assert "No node was sent back" not in section
    assert "Healing not recorded" in section


def test_an_older_bundle_keeps_what_it_recorded(tmp_path):
    section = precision_section(tmp_path, precision={"fp16": 0.75, "fp32": 0.25})[0]
    assert "recorded without a verdict" in section
    assert "fp16 0.75 fp32 0.25" in section
    shutil.rmtree(tmp_path / "bundle-small")
    assert "the graph none counted none counted none counted none not recorded" in Page(written(tmp_path)).text


def test_a_share_never_looks_larger_than_it_was():
    assert percent(0.99999) == "99.99 %"
    assert percent(1.0) == "100.00 %"
    assert percent(0.07) == "7.00 %"  # 0.07 * 100 is 7.000000000000001, and 0.29 * 100 is less than 29
    assert percent(0.29) == "29.00 %"
    assert percent(1e-6) == "less than 0.01 %"
    assert percent(0.0) == "0.00 %"
    assert percent(None) == "not recorded"


def test_report_round_trip_through_json(tmp_path):
    facts = small_report(tmp_path, small_bundle(tmp_path))
    assert Report.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    result = report(tmp_path / "report" / "report.json", out=tmp_path / "out")
    assert result == replace(facts, path=str(tmp_path / "out" / "report.html"))
    assert report(tmp_path / "report", out=tmp_path / "mine.html").path == str(tmp_path / "mine.html")


def test_the_newest_report_by_its_date(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TinkitError, match="no report here"):
        report()
    bundle = small_bundle(tmp_path)
    for name, created in (("b", "2025-01-01"), ("a", "2025-03-01"), ("c", "2025-02-01")):
        facts = small_report(tmp_path, bundle, created=created)
        files.write_json(tmp_path / "runs" / name / "report-small-here" / "report.json", facts.to_json())
    (tmp_path / "runs" / "d").mkdir()
    (tmp_path / "runs" / "d" / "report.json").write_text('{"half": ')
    assert report().path == str(tmp_path / "runs" / "a" / "report-small-here" / "report.html")


def test_reports_that_are_none(usual):
    path = usual / "report" / "report.json"
    good = files.read_json(path, "The report")
    for planted, words in (
        (dict(good, schema="other"), "schema"),
        ({key: good[key] for key in good if key != "chain"}, "not complete"),
        (dict(good, surprise=1), "not complete"),
    ):
        files.write_json(path, planted)
        with pytest.raises(TinkitError, match=words):
            report(path)
    with pytest.raises(TinkitError, match="no report here"):
        report(usual / "nowhere")


def test_a_cosine_never_looks_better_than_it_was():
    assert cut(0.99989) == "0.99989"
    assert cut(0.899999) == "0.89999"
    assert cut(0.99999999) == "0.9999999"
    assert cut(0.29) == "0.29000"
    assert cut(1 - 2e-16) == "1.0000000"  # equal answers, but for float64
    assert cut(-0.999999) == "-1.00000"
    assert cut(float("nan")) == "not a number"


def test_numbers_as_text():
    assert short(None) == short("") == "not recorded"
    assert short(float("inf")) == "infinite"
    assert short(1234567) == "1\u2009234\u2009567"
    assert short(0) == "0"
    assert short(True) == "yes"
    assert short(3.14159) == "3.142"


def test_flat_keeps_every_fact_and_counts_long_lists():
    value = {"a": {"b": [1, 2], "c": {}}, "d": None, "e": list(range(100)), "f": [{"g": 0.1}], "history": [1]}
    assert flat(value) == [
        ("a.b", "1, 2"),
        ("a.c", "none"),
        ("d", "not recorded"),
        ("e", "100 entries"),
        ("f.0.g", "0.1"),
    ]


def test_the_headline_is_the_worst_gated_hop():
    exam = small_exam()
    held, onnx, _, device = chain_of(exam)
    lower, higher = replace(onnx, cosine_min=0.91), replace(device, cosine_min=0.99)
    assert worst_hop([held, higher, lower]) is lower
    failed = replace(higher, verdict=FAILED)
    assert worst_hop([held, failed, lower]) is failed
    assert worst_hop([held, replace(lower, pictures=0)]) is None


def test_ticks_are_round_and_cover_the_range():
    for low, high in ((0, 1), (0.31, 0.87), (-5.5, 12345), (3, 3), (0, 0), (1e-9, 2e-9)):
        ticks = plots.nice_ticks(low, high)
        steps = {round(b - a, 12) for a, b in pairwise(ticks)}
        assert ticks[0] <= low <= high <= ticks[-1]
        assert len(steps) <= 2  # one but for rounding
        assert 2 <= len(ticks) <= 8


def test_names_at_the_line_ends_do_not_touch():
    placed = plots.apart({"a": 50.0, "b": 50.0, "c": 51.0, "d": 199.0, "e": 199.5}, 10, 200, gap=13)
    heights = sorted(placed.values())
    assert all(b - a >= 13 - 1e-9 for a, b in pairwise(heights))
    assert list(placed) == ["a", "b", "c", "d", "e"]
    assert heights[0] >= 10
    assert heights[-1] <= 200


def test_a_missing_value_breaks_the_line():
    chart = plots.line_chart("x", {"y": [1.0, 2.0, None, float("nan"), 3.0, 2.0, None, 5.0]}, list(range(1, 9)))
    assert chart.count("<polyline") == 2
    assert chart.count("<circle") == 1
    assert "nan" not in chart


def test_the_histogram_counts_every_sample():
    samples = [1.0] * 30 + [1.2] * 10 + [9.0]
    chart, beyond = plots.histogram("x", samples, {"p50": 1.0, "p95": 1.2, "p99": 6.0})
    heights = [float(value) for value in re.findall(r'height="([\d.]+)" class="bar"', chart)]
    assert beyond == 1
    assert len(heights) == 2
    assert heights[0] / heights[1] == pytest.approx(3, rel=0.01)
    assert "p99 6 →" in chart
    assert "p95 1.2<" in chart
    assert plots.histogram("x", [2.0] * 200, {"p50": 2.0})[1] == 0


def test_contrast_is_enough_in_light_dark_and_print(usual):
    style = re.search(r"<style>(.*?)</style>", written(usual), re.S).group(1)
    themes = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(themes) == 3
    for theme in themes:
        for name in ("ink", "soft", "passed", "failed", "unjudged", "s0", "s1", "s2", "s3", "s4"):
            assert contrast(theme[name], theme["paper"]) >= 4.5, name
        assert contrast(theme["ink"], theme["wash"]) >= 4.5


def contrast(one, other):
    """WCAG 2 contrast ratio of two #rgb or #rrggbb colours."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(d * 2 for d in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else math.pow((c + 0.055) / 1.055, 2.4) for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
