"""The network under evaluation, as the feature store wants to see one: a run's PyTorch student, or a bundle in its runtime.

Both take the pixels that the student takes and give `Features`, and each has an identity, so that its rows are kept and
never mistaken for another's. The teacher comes from the run (tinkit.host.run).
"""

import os

import numpy as np
import torch

from tinkit import files
from tinkit.bundle import Bundle
from tinkit.device.runtime import open_runtime
from tinkit.device.sitting import check_tensors, fill, network_input
from tinkit.errors import CannotJudge, TinkitError
from tinkit.host.evaluate.finite import require_finite
from tinkit.host.features import LOCAL_ONLY, Features
from tinkit.host.run import STUDENT, Run
from tinkit.host.views import normalise_on_device

REHEARSAL = "rehearsal: onnxruntime-cpu, not the target runtime ({})"


class StudentNetwork:
    """The student of a run in PyTorch."""

    kind, runtime, rehearsal = "student", None, ""

    def __init__(self, run: Run):
        self.path, self.student = run.path, run.student()
        self.preprocessing = self.student.spec.preprocessing
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student.to(self.device).to(memory_format=torch.channels_last)
        self.identity = {
            "name": "student",
            "weights": run.record["files"][STUDENT],
            "preprocessing": self.preprocessing.to_json(),
            "arithmetic": f"float32 on {self.device.type}",
        }

    @torch.no_grad()
    def features(self, pixels_BCHW, parts=LOCAL_ONLY) -> Features:
        """uint8 (B,3,S,S) -> float32 `Features`; local only when asked for."""
        features = self.student(normalise_on_device(pixels_BCHW.to(self.device), self.preprocessing)).to("cpu")
        if "local" not in parts:
            features.local_BLD = None
        features.logits_BC = None
        return _finite(features, self.path)

    def close(self):
        """Nothing to let go of."""


class BundleNetwork:
    """A bundle's model in its target's runtime; where that is not here, in onnxruntime, and `rehearsal` says so.

    Raises CannotJudge when only a rehearsal is possible and `require_target_runtime` is set, TinkitError for a model that takes
    camera frames, because evaluation feeds pictures at network size.
    """

    kind = "bundle"

    def __init__(self, bundle: Bundle, require_target_runtime=False, say=None):
        target = bundle.target
        if target.frame:
            raise TinkitError(
                "This bundle takes whole camera frames; pictures of other sizes cannot be evaluated through it.",
                where=bundle.path,
                next_step="evaluate the run, or a bundle of a target without `frame`",
            )
        self.bundle, self.preprocessing, self.rehearsal = bundle, bundle.preprocessing, ""
        threads, fp32_nodes = os.cpu_count() or 1, bundle.manifest.get("fp32_nodes", ())
        try:
            self.opened = open_runtime(target.runtime, bundle.model_path, threads, target, fp32_nodes, say)
        except CannotJudge as error:
            if require_target_runtime or target.runtime == "onnxruntime":
                raise
            self.rehearsal = REHEARSAL.format(error.what)
            self.opened = open_runtime("onnxruntime", bundle.model_path, threads, target)
        check_tensors(bundle, self.opened)
        self.runtime = self.opened.name
        self.identity = {
            "name": "bundle",
            "weights": files.sha256_of_file(bundle.model_path),
            "preprocessing": self.preprocessing.to_json(),
            "arithmetic": ", ".join(f"{name} {version}" for name, version in sorted(self.opened.versions().items())),
        }

    def features(self, pixels_BCHW, parts=LOCAL_ONLY) -> Features:
        """uint8 (B,3,S,S) -> float32 `Features`: the output `embedding`."""
        rows = self._answers(np.ascontiguousarray(pixels_BCHW.permute(0, 2, 3, 1).numpy()))
        return _finite(Features(torch.from_numpy(rows["embedding"]).flatten(1)), self.bundle.path)

    def _answers(self, pixels_BHWC) -> dict[str, np.ndarray]:
        """float32 outputs by name, in batches that the target takes."""
        batch = self.bundle.target.batch
        found: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(pixels_BHWC), batch.max):
            part = pixels_BHWC[start : start + batch.max]
            for name, answer in self.opened.run(network_input(self.bundle, fill(part, batch.min))).items():
                found.setdefault(name, []).append(np.asarray(answer[: len(part)], np.float32))
        return {name: np.concatenate(answers) for name, answers in found.items()}

    def close(self):
        """Give the runtime's memory back."""
        self.opened.__exit__(None, None, None)


def _finite(features: Features, where) -> Features:
    """The same; TinkitError when one is NaN or infinite: the store would call it the teacher's."""
    rows = {"student": features.global_BD.numpy()}
    if features.local_BLD is not None:
        rows["student, local"] = features.local_BLD.flatten(1).numpy()
    require_finite(rows, where)
    return features
