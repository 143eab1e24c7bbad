"""What a model is made of, as plain data: weights, teacher, pictures and code, each with identity and licence.

The facts behind the model card, the bill of materials and the provenance section of the page. They come from the bundle's
manifest and from run.json; what neither holds is in `unknown`, in words. Nothing private is told: a folder by its name
without the path, pictures by their number and by the hash of their listing.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from tinkit.bundle import MODEL
from tinkit.host.images import Picture
from tinkit.host.images.catalogue import names_of
from tinkit.host.report.licences import Licence, licence_of, package_licence, teacher_licence
from tinkit.host.report.text import table

STUDENT = "student.safetensors"
PACKAGES = (  # names of versions that are Python packages in the public registry; others (python, or TensorRT,
# which a board brings) are not
    "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow", "onnx", "onnxscript", "ml_dtypes",
    "onnxruntime", "onnxruntime-gpu", "openvino", "scikit-learn", "safetensors", "faiss-cpu",
)  # fmt: skip
OWN, OWN_LICENCE = "tinkit", "Apache-2.0"


def provenance_of(manifest, record=None, measured=None, licence="", data_licence="") -> dict[str, Any]:
    """{"model", "teacher", "initial_weights", "data", "code", "unknown"} of a bundle, a run, or both.

    manifest: of the bundle, {} without one; record: run.json, None when it is not here; measured: versions of a report.
    licence, data_licence: what the user says about the model and the pictures. Everything is JSON.
    """
    manifest, record = table(manifest), table(record)
    settings, trained = table(record.get("settings")), table(record.get("images"))
    model = _model(manifest, record, licence)
    teacher = _teacher(table(manifest.get("teacher") or record.get("teacher")), settings)
    start = _initial_weights(settings)
    data = _data(trained, record, data_licence)
    used = {
        "training": table(record.get("versions")),
        "export": table(manifest.get("versions")),
        "measuring": table(measured),
    }
    code = _code(used)
    return {
        "model": model,
        "teacher": teacher,
        "initial_weights": start,
        "data": data,
        "code": code,
        "unknown": _unknown(record, model, teacher, start, data, code),
    }


def listing_sha256(pictures: Iterable[Picture]) -> str:
    """The identity of a folder's pictures: sha256 over the lines that `sha256sum` prints for them, in order of name."""
    digest = hashlib.sha256()
    for picture in _by_name(pictures):
        digest.update(f"{picture.content}  {picture.name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _by_name(pictures: Iterable[Picture]) -> Iterable[Picture]:
    """In order of name: a listing is already, and is then walked without a list of a million pictures."""
    if not isinstance(pictures, Sequence):
        pictures = list(pictures)
    if all(one <= other for one, other in pairwise(names_of(pictures))):
        return pictures
    return sorted(pictures, key=lambda picture: picture.name)


def _model(manifest, record, licence) -> dict[str, Any]:
    """The exported file where there is a bundle, else the student's weights."""
    exported, run = table(table(manifest.get("files")).get(MODEL)), table(manifest.get("run"))
    student, weights = table(manifest.get("student") or record.get("student")), table(record.get("files"))
    told = (
        licence_of(licence, "the user") if licence else Licence("", "nobody has said under which licence it is given")
    )
    return {
        "name": manifest.get("name") or f"{student.get('architecture', 'student')}-{record.get('id', '')}".rstrip("-"),
        "file": MODEL if manifest else STUDENT,
        "sha256": exported.get("sha256") if manifest else weights.get(STUDENT),
        "bytes": exported.get("bytes"),
        "architecture": student.get("architecture"),
        "dim": student.get("dim"),
        "size": student.get("size"),
        "parameters": student.get("parameters"),
        "macs": student.get("macs"),
        "run": run.get("id") or record.get("id"),
        "created": manifest.get("created") or record.get("finished"),
        "licence": told.to_json(),
    }


def _teacher(identity, settings) -> dict[str, Any]:
    from tinkit.host.teacher import PACKAGED  # torch and timm

    name, weights = identity.get("name"), settings.get("teacher_weights")
    package = PACKAGED[name][0] if name in PACKAGED else None
    licence = teacher_licence(identity, weights, settings_known=bool(settings))
    from_hub = bool(settings) and name and not package and weights is None and identity.get("architecture") != "onnx"
    return {
        "name": name,
        "architecture": identity.get("architecture"),
        "weights_sha256": identity.get("weights"),  # over names, shapes and values, not over a file
        "file": None if weights is None else os.path.basename(str(weights)),
        "package": package,
        "package_version": _installed(package),
        "hub": _hub_of(name) if from_hub else None,
        "licence": licence.to_json(),
        "non_commercial": licence.non_commercial,
    }


def _initial_weights(settings) -> dict[str, Any] | None:
    """What the student began with: None for random weights, and when it is not recorded (then `unknown` says so)."""
    weights = settings.get("student_weights")
    if weights is None:
        return None
    licence = Licence("", "the weights that the student began with are a local file")
    return {"file": os.path.basename(str(weights)), "licence": licence.to_json()}


def _data(images, record, data_licence) -> dict[str, Any]:
    told = licence_of(data_licence, "the user") if data_licence else Licence("", "a folder of pictures does not say it")
    skipped = images.get("skipped")
    return {
        "folder": os.path.basename(str(images["root"]).rstrip(os.sep)) if images.get("root") else None,
        "pictures": images.get("usable"),
        "train": images.get("train"),
        "heldout": images.get("heldout"),
        "skipped": images.get("skipped_count", len(skipped) if isinstance(skipped, list) else None),
        "listing_sha256": images.get("listing_sha256"),
        "labelled": table(record.get("labels")).get("labelled", 0 if record else None),
        "licence": told.to_json(),
    }


def _code(used: dict[str, dict]) -> list[dict[str, Any]]:
    """One entry for each version of each name, with what it was used for; in order of name."""
    found: dict[tuple[str, str], list[str]] = {}
    for what, versions in used.items():
        for name, version in versions.items():
            found.setdefault((str(name), str(version)), []).append(what)
    return [
        {
            "name": name,
            "version": version,
            "used": what,
            "package": name in PACKAGES,
            "licence": _licence_of_code(name, version).to_json(),
        }
        for (name, version), what in sorted(found.items())
    ]


def _licence_of_code(name, version) -> Licence:
    if name == OWN:
        return Licence(OWN_LICENCE, "its LICENSE file", spdx=True)
    if name == "python":
        return Licence("Python-2.0", "the LICENSE file of CPython", spdx=True)
    if name in PACKAGES:
        return package_licence(name, version)
    return Licence("", "it is no Python package, and its licence is not looked up")


def _unknown(record, model, teacher, start, data, code) -> list[str]:
    """Sentences about what a reader must ask for."""
    told = []
    if not record:
        told.append("The run's own record is not here: pictures, settings and training are not described.")
    if not model["licence"]["known"]:
        told.append(f"The licence of the model: {model['licence']['source']}.")
    if not teacher["licence"]["known"]:
        told.append(f"The licence of the teacher: {teacher['licence']['source']}.")
    if start is not None:
        told.append(f"The licence of {start['file']}: {start['licence']['source']}.")
    if not data["licence"]["known"]:
        told.append(f"The licence of the pictures: {data['licence']['source']}.")
    if record and not data["listing_sha256"]:
        told.append("Which pictures they were: the run does not record the hash of their listing.")
    lacks = sorted({entry["name"] for entry in code if not entry["licence"]["known"]})
    if lacks:
        told.append(f"The licence of {', '.join(lacks)}: not declared where it could be read.")
    return told


def _installed(package) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package) if package else None
    except metadata.PackageNotFoundError:
        return None


def _hub_of(name) -> str | None:
    import timm

    config = timm.get_pretrained_cfg(name)
    return config.hf_hub_id if config is not None else None
