"""Loaders that only read, as with a GPU: what is decoded where the networks are is what the loaders would have decoded.

The decoding place is the CPU here all the same: that the batches go the other way is what these tests hold.
"""

import os
import shutil

import torch
from small_pair import SMALL, teacher_weights

import tinkit
from tinkit.host.images import scan
from tinkit.host.store.pixels import readable, rendered
from tinkit.host.views import EVALUATION, AllViews, ViewPolicy, Views
from tinkit.pixels import Preprocessing

SIZE = Preprocessing(16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 0.9)


def test_a_store_decoded_elsewhere_is_that_of_decoding_loaders(tmp_path, photos, monkeypatch):
    shutil.copytree(photos, tmp_path / "photos")
    views = AllViews(
        scan(tmp_path / "photos").usable, ViewPolicy(), [SIZE], 0.9, decoder="torchvision", numbers=[0, 2, EVALUATION]
    )
    here = torch.cat(list(readable(views, 0, size=5)))
    monkeypatch.setattr(Views, "reads_only", property(lambda views: True))
    assert torch.equal(torch.cat(list(readable(views, 0, size=5))), here)
    cut = tmp_path / "photos" / views.pictures[3].name
    cut.write_bytes(cut.read_bytes()[:200])
    os.unlink(tmp_path / "photos" / views.pictures[1].name)
    (found,) = rendered(views, [[0, 1, 2, 3, 4]], 1)
    assert set(found.bad) == {1, 3}
    assert torch.equal(found.pixels[[0, 2, 4]], here[[0, 2, 4]])
    assert not found.pixels[[1, 3]].any()


def test_a_run_decoded_elsewhere_is_that_of_decoding_loaders(tmp_path, photos, monkeypatch):
    """Training, held-out pictures and the sample: the same student to the bit, cached and online."""
    for online in (False, True):
        weights = []
        for number, reads_only in enumerate((True, False)):
            monkeypatch.setattr(Views, "reads_only", property(lambda views, value=reads_only: value))
            out = tmp_path / f"{online}-{number}"
            settings = {**SMALL, "epochs": 1, "teacher_weights": teacher_weights(tmp_path), "decoder": "torchvision"}
            tinkit.distill(photos, out=out, store=str(tmp_path / str(number)), online=online, **settings)
            weights.append((out / "student.safetensors").read_bytes())
        assert weights[0] == weights[1]
