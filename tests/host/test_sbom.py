"""The bill of materials: CycloneDX 1.6 by the published schema, with what is known and with nothing."""

import copy
import json

import pytest
from card_parts import evaluation_of, measures, record_of
from report_parts import chain_of, latency, small_exam

from tinkit.host.report.provenance import provenance_of
from tinkit.host.report.sbom import bill_of_materials

CREATED = "2025-01-02T03:04:05+00:00"
MANIFEST = {
    "name": "small-onnx-fp32",
    "files": {"model.onnx": {"sha256": "ef" * 32, "bytes": 123}},
    "student": {"architecture": "tiny", "dim": 16, "size": 160},
    "run": {"id": "abc123"},
    "teacher": record_of()["teacher"],
    "target": {"name": "onnx-fp32", "runtime": "onnxruntime", "precision": "fp32"},
    "tensors": {
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 160, 160]}],
        "outputs": [{"name": "embedding", "dtype": "float32", "shape": ["batch", 16]}],
    },
    "versions": {"tinkit": "0.1.0", "torch": "2.15.0", "numpy": "2.4.6"},
}
MEASURED = {"onnxruntime": "1.31.1", "numpy": "2.0.0", "python": "3.8.10"}


def a_bill(manifest=MANIFEST, record=None, measured=MEASURED, licence="", **changes):
    record = record_of() if record is None else record
    provenance = provenance_of(manifest, record, measured, licence)
    told = {"chain": chain_of(small_exam()), "measures": measures(), "latency": [latency()], "created": CREATED}
    return bill_of_materials(provenance, manifest, **{**told, **changes})


def problem(bill):
    """What the schema has against a bill, None for nothing; formats (dates, addresses) are checked too."""
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    schema = pytest.importorskip("cyclonedx.schema").SchemaVersion.V1_6
    return validation.JsonStrictValidator(schema).validate_str(json.dumps(bill))


def component(bill, ref):
    (found,) = [part for part in [bill["metadata"]["component"], *bill["components"]] if part["bom-ref"] == ref]
    return found


def properties(part):
    return {entry["name"]: entry["value"] for entry in part["properties"]}


@pytest.mark.parametrize(
    "bill",
    [
        a_bill(),
        a_bill(licence="Apache-2.0"),
        a_bill(licence="our own"),
        a_bill(record=record_of(settings={"student_weights": "s.pth", "teacher_weights": "t.pth"})),
        a_bill(record={}, chain=(), measures=(), latency=()),
        a_bill({}, measured=None, chain=(), latency=()),
        a_bill({}, record={}, measured=None, chain=(), measures=(), latency=()),
    ],
)
def test_the_schema_has_nothing_against_it(bill):
    assert problem(bill) is None


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ((), "bomFormat", "SPDX"),
        (("metadata",), "timestamp", "yesterday"),
        (("metadata", "component"), "type", "network"),
        (("metadata", "component", "modelCard", "modelParameters", "approach"), "type", "distillation"),
        (("components", 0), "licenses", [{"expression": "MIT"}, {"expression": "ISC"}]),
    ],
)
def test_the_schema_is_really_asked(where, key, value):
    bill = copy.deepcopy(a_bill())
    place = bill
    for step in where:
        place = place[step]
    place[key] = value
    assert problem(bill) is not None


def test_the_library_reads_it_back():
    pytest.importorskip("cyclonedx")
    from cyclonedx.model.bom import Bom

    bom = Bom.from_json(json.loads(json.dumps(a_bill())))
    assert bom.metadata.component.name == "small-onnx-fp32"
    assert {part.name for part in bom.components} >= {"efficientnet-lite2", "garden pictures", "onnxruntime", "torch"}
    bom.validate()


def test_the_model_has_its_hash_its_card_and_its_parts():
    bill = a_bill()
    model = bill["metadata"]["component"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": "ef" * 32}]
    card = model["modelCard"]
    assert card["modelParameters"]["approach"] == {"type": "unsupervised"}
    assert card["modelParameters"]["inputs"] == [{"format": "image: float32 batch x 3 x 160 x 160"}]
    metrics = {entry["type"]: entry for entry in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["knn"]["value"] == "0.75"
    assert metrics["knn"]["confidenceInterval"] == {"lowerBound": "0.7", "upperBound": "0.8"}
    assert "confidenceInterval" not in metrics["auroc"]
    assert float(metrics["latency p95, ms"]["value"]) == latency().p95_ms
    (told,) = bill["dependencies"]
    assert {"teacher", "pictures", "code:onnxruntime@1.31.1", "code:numpy@2.0.0"} == set(told["dependsOn"])


def test_labels_make_it_supervised():
    card = a_bill(record=record_of(labels={"labelled": 100}))["metadata"]["component"]["modelCard"]
    assert card["modelParameters"]["approach"] == {"type": "supervised"}


def test_required_is_what_a_board_needs_in_the_version_that_it_had():
    scopes = {part["bom-ref"]: part["scope"] for part in a_bill()["components"] if "scope" in part}
    assert {ref for ref, scope in scopes.items() if scope == "required"} == {
        "code:onnxruntime@1.31.1",
        "code:numpy@2.0.0",
    }
    assert scopes["code:numpy@2.4.6"] == scopes["code:torch@2.15.0"] == "excluded"


def test_an_unknown_licence_is_a_property_and_no_licence():
    unknown, known = a_bill()["metadata"]["component"], a_bill(licence="our own")["metadata"]["component"]
    assert "licenses" not in unknown
    assert properties(unknown)["tinkit:licence"] == "unknown: ask"
    assert known["licenses"] == [{"license": {"name": "our own", "acknowledgement": "declared"}}]
    assert component(a_bill(), "teacher")["licenses"] == [{"expression": "Apache-2.0", "acknowledgement": "declared"}]


def test_gaps_are_told_in_the_bill():
    bill = a_bill(record={})
    told = [entry["value"] for entry in bill["properties"] if entry["name"] == "tinkit:unknown"]
    assert any("record is not here" in sentence for sentence in told)
    assert {entry["aggregate"] for entry in bill["compositions"]} == {"incomplete", "unknown"}


def test_a_package_of_a_registry_has_an_address_and_nothing_else_has():
    parts = {part["name"]: part for part in a_bill()["components"]}
    assert parts["onnxruntime"]["purl"] == "pkg:pypi/onnxruntime@1.31.1"
    assert "purl" not in parts["python"]
    assert "purl" not in parts["tinkit"]
    local = a_bill(measured={"torch": "2.8.0+cpu"})
    assert "pkg:pypi/torch@2.8.0%2Bcpu" in {part.get("purl") for part in local["components"]}


def test_equal_contents_have_an_equal_serial_number():
    assert a_bill()["serialNumber"] == a_bill()["serialNumber"]
    assert a_bill()["serialNumber"] != a_bill(created="2025-01-02T03:04:06+00:00")["serialNumber"]


def test_a_rehearsal_is_told_beside_its_latency():
    metrics = a_bill(instead="a rehearsal: onnxruntime")["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]
    slices = [entry["slice"] for entry in metrics["performanceMetrics"] if entry["type"].startswith("latency")]
    assert slices
    assert all("a rehearsal: onnxruntime" in told for told in slices)


def test_pixels_are_no_metric_and_infinity_is_text():
    assert evaluation_of().measures == measures()
    told = a_bill(measures=[measures()[0].__class__("x", "ood", "x", float("inf"))])
    values = told["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert next(entry["value"] for entry in values if entry["type"] == "x") == "inf"
    assert not [entry for entry in values if "pixels" in entry["type"]]
