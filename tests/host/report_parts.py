"""A small bundle with its report, a strict reader of the page, and its pictures by their colour."""

import base64
import html
import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from tinkit import files
from tinkit.bundle import Exam, write_bundle
from tinkit.fidelity import PASSED, compare_answers
from tinkit.host.report.command import report
from tinkit.host.report.page import page_script
from tinkit.pixels import Preprocessing
from tinkit.results import Latency, Report
from tinkit.target import Gate, Target

HOSTILE = "<script>alert(1)</script>\"' onerror=x.jpg"
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr", "source"}
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
        if self.open and self.open[-1] not in ("style", "script"):
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
    percentiles = (float(value) for value in np.percentile(samples, (50, 90, 95, 99, 99.9)))
    facts = Latency(
        batch, 1, 201, 1.0, float(np.mean(samples)), 2.0, *percentiles, 20, True, False, 1.02, samples,
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
        device={"name": "here", "runtimes": ["onnxruntime"]},
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


def without_own_script(text):
    """The page less the one script that tinkit puts there; whatever else is a script stays."""
    script, allowed = page_script()
    assert text.count(f"<script>{script}</script>") == 1
    assert f"script-src '{allowed}'" in html.unescape(text)
    return text.replace(f"<script>{script}</script>", "")


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
