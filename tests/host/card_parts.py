"""A run's record, its bundle with a report, and an evaluation, as a card is written from them."""

from dataclasses import replace

from report_parts import small_bundle, small_report

from tinkit import files
from tinkit.host.evaluate.evaluation import Evaluation
from tinkit.host.evaluate.measure import Measure

RUN_ID = "abc123"  # small_bundle's
TEACHER = {"name": "efficientnet-lite2", "architecture": "tf_efficientnet_lite2", "weights": "77" * 32}
VERSIONS = {"tinkit": "0.1.0", "python": "3.11.7", "torch": "2.15.0", "numpy": "2.4.6", "timm": "1.0.31"}


def record_of(**changes):
    record = {
        "schema": "tinkit-run-1",
        "status": "finished",
        "id": RUN_ID,
        "finished": "2025-01-02T00:00:00+00:00",
        "settings": {
            "teacher": TEACHER["name"],
            "teacher_weights": None,
            "student_weights": None,
            "epochs": 5,
            "seed": 0,
            "center": True,
            "images": "/home/someone/private/garden pictures",
        },
        "student": {"architecture": "tiny", "size": 160, "dim": 16},
        "teacher": TEACHER,
        "method": {"name": "tintem"},
        "images": {
            "root": "/home/someone/private/garden pictures",
            "usable": 1270,
            "train": 1206,
            "heldout": 64,
            "skipped": [{"name": "secret.jpg", "reason": "damaged"}],
            "listing_sha256": "ab" * 32,
        },
        "labels": None,
        "timings": {"train_s": 294.7},
        "machine": {"device": "cpu"},
        "versions": VERSIONS,
        "files": {"student.safetensors": "cd" * 32},
        "chain": [],
    }
    return {**record, **changes}


def measures():
    return [
        Measure("knn", "labels", "kNN accuracy", 0.75, 0.875, interval=(0.7, 0.8), what="k = 10, top 1"),
        Measure("auroc", "ood", "AUROC", 0.9375, 0.96875, what="k = 1"),
        Measure("cosine", "similarity", "cosine to the mapped teacher", 0.5),
    ]


def evaluation_of(**changes):
    facts = Evaluation(
        title="small",
        verdict="passed",
        created="2025-01-03T00:00:00+00:00",
        subject={"kind": "student", "run_id": RUN_ID, "model_sha256": None},
        pictures={"root": "/home/someone/private/labelled ones"},
        measures=measures(),
        budget=[],
        similarity={},
        orthogonality=None,
        labels={},
        ood={},
        corruption=None,
        domains=None,
        dense=None,
        conditions={},
        seconds={},
    )
    return replace(facts, **changes)


def a_run(tmp_path, record=None, evaluation=None, report=True, manifest=None, **changes):
    """RUN/{run.json,bundle-small/,report/report.json,evaluation/evaluation.json}; returns (folder, bundle)."""
    folder = tmp_path / "run"
    folder.mkdir()
    record = record_of() if record is None else record
    files.write_json(folder / "run.json", record)
    told = {"teacher": record["teacher"], "versions": {"tinkit": "0.1.0", "onnx": "1.23.2"}, **(manifest or {})}
    bundle = small_bundle(folder, **told)
    if report:
        small_report(folder, bundle, versions={"onnxruntime": "1.31.1", "numpy": "2.4.6"}, **changes)
    if evaluation is not None:
        (folder / "evaluation").mkdir()
        files.write_json(folder / "evaluation" / "evaluation.json", evaluation.to_json())
    return folder, bundle
