"""A bill of materials of a model: CycloneDX 1.6 in JSON, the model with its card, teacher, pictures and code as components.

Plain data by the published schema (a test holds it against the schema itself). What is not known is said the way the format
has for it: no `licenses` and a property `tinkit:licence` "unknown: ask", and `compositions` that call the list incomplete:
packages are those that the run, the export and the report record, not all that were installed (cyclonedx-py lists those).
"""

import json
import math
import uuid
from typing import Any
from urllib.parse import quote

import tinkit
from tinkit.fidelity import Fidelity
from tinkit.host.evaluate.measure import Measure

SPEC = "1.6"
NAME = "bom.cdx.json"
MODEL, TEACHER, START, DATA = "model", "teacher", "initial-weights", "pictures"
ON_BOARD = {  # runtime of a target -> what a board needs of the packages
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "numpy"),
    "openvino": ("openvino", "numpy"),
    "tensorrt": ("tensorrt", "numpy"),
}
LIMITS = (
    "It was trained to answer as its teacher does, on one folder of pictures; on other pictures it was not examined, "
    "unless the metrics say so.",
    "It inherits what its teacher does badly.",
)


def bill_of_materials(
    provenance, manifest, chain=(), measures=(), latency=(), created="", instead=""
) -> dict[str, Any]:
    """The bill as JSON. provenance: `tinkit.host.report.provenance.provenance_of`; manifest: of the bundle, {} without one.

    chain: `Fidelity`s; measures: `Measure`s of an evaluation; latency: `Latency`s; created: ISO 8601 with a zone;
    instead: why the latency is not of its device, "" when it is. Equal contents have an equal serial number.
    """
    target = manifest.get("target") or {}
    code = [_package(entry, _scope(entry, provenance["code"], target)) for entry in provenance["code"]]
    parts = [_teacher(provenance["teacher"]), *_start(provenance["initial_weights"]), _pictures(provenance["data"])]
    metrics = [*_of_chain(chain), *_of_measures(measures), *_of_latency(latency, instead)]
    model = _model(provenance, manifest, metrics)
    needed = [entry["bom-ref"] for entry in code if entry["scope"] == "required"]
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "version": 1,
        "metadata": {
            "timestamp": created,
            "lifecycles": [{"phase": "post-build"}],
            "tools": {"components": [{"type": "application", "name": "tinkit", "version": tinkit.__version__}]},
            "component": model,
        },
        "components": [*parts, *code],
        "dependencies": [{"ref": MODEL, "dependsOn": [*(part["bom-ref"] for part in parts), *needed]}],
        "compositions": [
            {"aggregate": "incomplete", "assemblies": [entry["bom-ref"] for entry in code]},
            {"aggregate": "unknown", "assemblies": [part["bom-ref"] for part in parts]},
        ],
        "properties": _properties(unknown=provenance["unknown"]),
    }
    text = json.dumps(bill, sort_keys=True)
    return {"$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json", "serialNumber": _serial(text), **bill}


def _serial(text) -> str:
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, text)}"


def _model(provenance, manifest, metrics) -> dict[str, Any]:
    facts, teacher, data = provenance["model"], provenance["teacher"], provenance["data"]
    tensors = manifest.get("tensors") or {}
    labelled = bool(data["labelled"])
    card = {
        "modelParameters": {
            "approach": {"type": "supervised" if labelled else "unsupervised"},
            "task": "image-classification" if _classifies(tensors) else "image-feature-extraction",
            **_filled(modelArchitecture=facts["architecture"]),
            "datasets": [{"ref": DATA}],
            **_filled(inputs=_formats(tensors.get("inputs")), outputs=_formats(tensors.get("outputs"))),
        },
        **_filled(quantitativeAnalysis={"performanceMetrics": metrics} if metrics else None),
        "considerations": {"technicalLimitations": list(LIMITS)},
    }
    component = {
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": facts["name"],
        **_filled(version=facts["run"]),
        "description": f"Student distilled from {teacher['name'] or 'a teacher that is not recorded'}",
        "modelCard": card,
    }
    told = {name: facts[name] for name in ("file", "bytes", "parameters", "macs", "dim", "size")}
    return _with_identity(component, facts["licence"], facts["sha256"], told)


def _teacher(facts) -> dict[str, Any]:
    component = {
        "type": "machine-learning-model",
        "bom-ref": TEACHER,
        "name": facts["name"] or "not recorded",
        **_filled(version=facts["package_version"], purl=_purl_of_teacher(facts)),
        "description": "The teacher: its features were the training targets; none of its weights are in the model",
    }
    told = {name: facts[name] for name in ("architecture", "file", "weights_sha256", "package", "hub")}
    return _with_identity(component, facts["licence"], None, told)


def _start(facts) -> list[dict[str, Any]]:
    if facts is None:
        return []
    component = {"type": "machine-learning-model", "bom-ref": START, "name": facts["file"]}
    component["description"] = "The weights that the student began with"
    return [_with_identity(component, facts["licence"], None, {})]


def _pictures(facts) -> dict[str, Any]:
    name = facts["folder"] or "not recorded"
    counts = {key: facts[key] for key in ("pictures", "train", "heldout", "skipped", "labelled", "listing_sha256")}
    contents = {"properties": _properties(**counts)} if any(value is not None for value in counts.values()) else None
    component = {
        "type": "data",
        "bom-ref": DATA,
        "name": name,
        "description": "The folder of pictures that the student was trained on; the pictures are not in the model file",
        "data": [{"type": "dataset", "name": name, **_filled(contents=contents)}],
    }
    return _with_identity(component, facts["licence"], None, {})


def _package(entry, scope) -> dict[str, Any]:
    name, version = entry["name"], entry["version"]
    component = {
        "type": "library" if entry["package"] else "framework" if name == "tinkit" else "platform",
        "bom-ref": f"code:{name}@{version}",
        "name": name,
        "version": version,
        "scope": scope,
        **_filled(purl=_purl(name, version) if entry["package"] else None),
    }
    return _with_identity(component, entry["licence"], None, {"used": ", ".join(entry["used"])})


def _scope(entry, code, target) -> str:
    """Required to run the model, or excluded: it only made or measured it. The last step's versions are the board's."""
    steps = {step for other in code for step in other["used"]}
    last = next((step for step in ("measuring", "export", "training") if step in steps), "")
    needed = ON_BOARD.get(target.get("runtime"), ("torch", "timm"))
    return "required" if entry["name"] in needed and last in entry["used"] else "excluded"


def _with_identity(component, licence, sha256, told) -> dict[str, Any]:
    """The component with hash, licence and properties, as far as they are known."""
    if sha256:
        component["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    if licence["known"]:
        component["licenses"] = [_licence(licence)]
    component["properties"] = _properties(licence=licence["name"], **{"licence-source": licence["source"]}, **told)
    return component


def _licence(licence) -> dict[str, Any]:
    if licence["spdx"]:
        return {"expression": licence["name"], "acknowledgement": "declared"}
    return {"license": {"name": licence["name"], "acknowledgement": "declared"}}


def _properties(**told) -> list[dict[str, str]]:
    """[{"name": "tinkit:...", "value": text}]: lists become several, what is None is left out."""
    pairs = [(name, entry) for name, value in told.items() for entry in (value if isinstance(value, list) else [value])]
    return [{"name": f"tinkit:{name}", "value": str(entry)} for name, entry in pairs if entry is not None]


def _filled(**fields) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _classifies(tensors) -> bool:
    return any(output.get("name") == "logits" for output in tensors.get("outputs") or [])


def _formats(tensors) -> list[dict[str, str]]:
    shape = lambda tensor: " x ".join(str(side) for side in tensor.get("shape") or [])  # noqa: E731
    return [{"format": f"{t.get('name')}: {t.get('dtype')} {shape(t)}"} for t in tensors or []]


def _of_chain(chain: tuple[Fidelity, ...] | list[Fidelity]) -> list[dict[str, Any]]:
    hops = [hop for hop in chain if hop.output != "pixels" and hop.pictures]
    return [
        _metric(f"{name} of a picture's cosine, {hop.output}", value, f"{hop.hop}, {hop.pictures} pictures")
        for hop in hops
        for name, value in (("mean", hop.cosine_mean), ("minimum", hop.cosine_min))
    ]


def _of_measures(measures: tuple[Measure, ...] | list[Measure]) -> list[dict[str, Any]]:
    return [_metric(one.name, one.student, one.what or one.title, one.interval) for one in measures]


def _of_latency(latency, instead) -> list[dict[str, Any]]:
    return [
        _metric(
            f"latency {name}, ms",
            getattr(run, name + "_ms"),
            ", ".join(filter(None, (f"batch {run.batch}", run.conditions.get("device", "device not told"), instead))),
            run.intervals.get(name + "_ms", ()),
        )
        for run in latency
        for name in ("p50", "p95")
    ]


def _metric(kind, value, where, interval=()) -> dict[str, Any]:
    metric = {"type": kind, "value": _number(value), "slice": where}
    if len(interval) == 2:
        metric["confidenceInterval"] = {"lowerBound": _number(interval[0]), "upperBound": _number(interval[1])}
    return metric


def _number(value) -> str:
    return repr(float(value)) if math.isfinite(value) else str(value)


def _purl(name, version) -> str:
    return f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(version, safe='')}"


def _purl_of_teacher(facts) -> str | None:
    if facts["package"]:
        version = facts["package_version"]
        return _purl(facts["package"], version) if version else None
    return f"pkg:huggingface/{facts['hub']}" if facts["hub"] else None
