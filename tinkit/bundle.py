"""The bundle: one folder that ships to a board and carries its own exam.

    model.onnx     the student, precision written into the graph
    manifest.json  target, tensors, preprocessing, identities, versions, host gate, whose pictures are inside, sha256 of all
    exam.npz       pixels (N, size, size, 3) uint8; names (N,); answer/<output> of the fp32 PyTorch student;
                   mapped/embedding of the mapped teacher; encoded/<i> the encoded bytes of picture i, whose decoding must
                   give pixels[i] again (so that the board's preprocessing is examined too); frame/<output>, of a target
                   with a frame, the student's answers on the frames made of the encoded pictures, in their order

Written by the host, read by the board: standard library and numpy only. Engines are never in a bundle.
"""

import contextlib
import os
import shutil
from dataclasses import dataclass, field
from typing import Any, Dict, Optional

import numpy as np

from tinkit import files
from tinkit.errors import TinkitError, from_os_error
from tinkit.fidelity import Fidelity
from tinkit.pixels import Preprocessing
from tinkit.target import Target

SCHEMA = "tinkit-bundle-1"
MODEL, MANIFEST, EXAM = "model.onnx", "manifest.json", "exam.npz"


@dataclass(frozen=True)
class Exam:
    """N pictures with the answers that the deployed student must give again."""

    pixels: np.ndarray  # (N, size, size, 3) uint8
    names: np.ndarray  # (N,) str
    answers: Dict[str, np.ndarray]  # output -> (N, ...) float32, of the fp32 PyTorch student
    mapped: Optional[np.ndarray]  # (N, D) float32, of the mapped teacher; None without a mapping
    encoded: Dict[int, bytes]  # picture index -> encoded file
    # output -> (len(encoded), ...) float32: of the fp32 student on a frame of each encoded picture, in order of index
    frame_answers: Dict[str, np.ndarray] = field(default_factory=dict)

    def to_arrays(self):
        arrays = {"pixels": self.pixels, "names": np.asarray(self.names, dtype=np.str_)}
        arrays.update({"answer/" + output: answer for output, answer in self.answers.items()})
        arrays.update({"frame/" + output: answer for output, answer in self.frame_answers.items()})
        if self.mapped is not None:
            arrays["mapped/embedding"] = self.mapped
        for index, data in self.encoded.items():
            arrays["encoded/{}".format(index)] = np.frombuffer(data, np.uint8)
        return arrays

    @classmethod
    def from_arrays(cls, arrays, where):
        try:
            pixels, names = arrays["pixels"], arrays["names"]
            answers = {key[len("answer/") :]: arrays[key] for key in arrays if key.startswith("answer/")}
            framed = {key[len("frame/") :]: arrays[key] for key in arrays if key.startswith("frame/")}
            encoded = {
                int(key[len("encoded/") :]): arrays[key].tobytes() for key in arrays if key.startswith("encoded/")
            }
        except (KeyError, ValueError) as error:
            raise TinkitError("The exam is not complete.", where=where, seen=str(error)) from None
        mapped = arrays.get("mapped/embedding")
        if pixels.dtype != np.uint8 or pixels.ndim != 4:
            raise TinkitError(
                "The exam's pixels are not (N, size, size, 3) uint8.", where=where, seen=str(pixels.shape)
            )
        others = [names, *answers.values()] + ([] if mapped is None else [mapped])
        if any(a.shape[:1] != pixels.shape[:1] for a in others) or any(not 0 <= i < len(pixels) for i in encoded):
            raise TinkitError("The exam's arrays do not fit each other.", where=where, seen=str(pixels.shape))
        if any(answer.shape[:1] != (len(encoded),) for answer in framed.values()):
            raise TinkitError(
                "The exam's answers on frames do not fit its encoded pictures.",
                where=where,
                seen="{} encoded pictures".format(len(encoded)),
            )
        return cls(pixels, names, answers, mapped, encoded, framed)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; every file was checked against its sha256 in the manifest."""

    path: str
    manifest: Dict[str, Any]

    @property
    def model_path(self):
        return os.path.join(self.path, MODEL)

    @property
    def name(self):
        return self.manifest["name"]

    @property
    def target(self):
        return Target.from_json(self.manifest["target"])

    @property
    def preprocessing(self):
        return Preprocessing.from_json(self.manifest["preprocessing"])

    @property
    def chain(self):
        """The hops that the host examined, as `Fidelity`s."""
        return _read_chain(self.manifest, os.path.join(self.path, MANIFEST))

    def exam(self):
        """The `Exam`, or None for a bundle exported with --deploy-only."""
        if EXAM not in self.manifest["files"]:
            return None
        path = os.path.join(self.path, EXAM)
        return Exam.from_arrays(files.read_npz(path), path)


def open_bundle(path):
    """Open a bundle folder and check every hash. Raises TinkitError for damage, naming the file."""
    path = os.fspath(path)
    if not os.path.isdir(path):
        raise TinkitError("There is no bundle here.", where=path, next_step="tinkit export writes one")
    manifest_path = os.path.join(path, MANIFEST)
    manifest = files.read_record(manifest_path, "The bundle's manifest", SCHEMA, "export it again with this version")
    lacks = [key for key in ("name", "target", "preprocessing", "tensors", "files") if key not in manifest]
    if lacks:
        raise TinkitError("The bundle's manifest lacks a part.", where=manifest_path, seen="no " + ", no ".join(lacks))
    if not _is_list_of_hashes(manifest["files"]):
        raise TinkitError("The bundle's manifest does not list its files with their hashes.", where=manifest_path)
    for name, record in manifest["files"].items():
        if os.path.basename(name) != name:
            raise TinkitError("A file of the bundle lies outside it.", where=manifest_path, seen=name)
        file_path = os.path.join(path, name)
        if not os.path.isfile(file_path):
            raise TinkitError(
                "A file of the bundle is missing.", where=file_path, next_step="copy the whole folder again"
            )
        seen = files.sha256_of_file(file_path)
        if seen != record["sha256"]:
            raise TinkitError(
                "A file of the bundle is damaged: its hash is not the manifest's.",
                where=file_path,
                seen="sha256 {}..., expected {}...".format(seen[:12], record["sha256"][:12]),
                next_step="copy the bundle again, or export it again",
            )
    _read_chain(manifest, manifest_path)  # a damaged one is told now, not after an hour
    return Bundle(path, manifest)


def _read_chain(manifest, where):
    try:
        return [Fidelity.from_json(hop) for hop in manifest.get("chain", [])]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise TinkitError(
            "The hops in the bundle's manifest cannot be read.",
            where=where,
            seen="{}: {}".format(type(error).__name__, error),
            next_step="export it again with this version",
        ) from None


def _is_list_of_hashes(listed):
    """A model that is not listed would be used unchecked."""
    if not isinstance(listed, dict) or MODEL not in listed:
        return False
    return all(isinstance(record, dict) and isinstance(record.get("sha256"), str) for record in listed.values())


def write_bundle(path, model_path, manifest, exam=None):
    """Write a bundle folder at once: it is complete under its final name, or it is not there.

    `model_path` is copied; an older bundle at `path` is replaced. Returns the opened `Bundle`.
    """
    path = os.path.abspath(os.fspath(path))
    partial = "{}.{}.partial".format(path, os.getpid())
    try:
        os.makedirs(partial)
        shutil.copyfile(model_path, os.path.join(partial, MODEL))
        if exam is not None:
            files.write_npz(os.path.join(partial, EXAM), exam.to_arrays())
        record = {
            name: {
                "sha256": files.sha256_of_file(os.path.join(partial, name)),
                "bytes": os.path.getsize(os.path.join(partial, name)),
            }
            for name in sorted(os.listdir(partial))
        }
        files.write_json(os.path.join(partial, MANIFEST), dict(manifest, schema=SCHEMA, files=record))
        _replace_folder(partial, path)
    except OSError as error:
        raise from_os_error(error, "writing the bundle {}".format(path)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_bundle(path)


def refuse_occupied(path):
    """Raises TinkitError when a bundle cannot be written to `path`, because the folder there holds something else."""
    if os.path.isdir(path) and os.listdir(path) and not os.path.isfile(os.path.join(path, MANIFEST)):
        raise TinkitError(
            "The folder for the bundle holds something else.", where=path, next_step="choose another with --out"
        )


def _replace_folder(new, path):
    refuse_occupied(path)
    if os.path.lexists(path):
        old = "{}.{}.old".format(path, os.getpid())
        os.replace(path, old)
        with contextlib.suppress(OSError):
            os.replace(new, path)
            shutil.rmtree(old)
            return
        os.replace(old, path)
        raise TinkitError("The older bundle could not be replaced.", where=path)
    os.replace(new, path)
