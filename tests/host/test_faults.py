"""Long runs meet faults: killed at any moment, a full disk, damaged pictures, a picture gone. Nothing is lost but the interval.

A run that was stopped by a fault and resumed must end with the very bytes of one that was never stopped, and the shards
of the store that were finished by then must not have been touched.
"""

import itertools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from killed_runs import forking
from safetensors.torch import load_file
from small_pair import SMALL, stopped_after, teacher_weights

import tinkit
from tinkit import files
from tinkit.errors import Interrupted
from tinkit.host.distill import best, checkpoint, heldout, records
from tinkit.host.images import scan, split
from tinkit.host.run import load_run
from tinkit.host.store import shards

TIMES = {"step_ms"}
SHIPPED = ("student.safetensors", "mapping.safetensors", "exam.npz")


@dataclass
class World:
    """Pictures, a teacher, the finished run that was never stopped, and how many events of each kind it had."""

    ask: object
    folder: Path
    photos: Path
    settings: dict
    counts: dict
    number: itertools.count

    def job(self, out, store=None, **fault):
        chosen = {**self.settings, "store": str(store or out / "stores")}
        return self.ask(root=str(out), out=str(out / "run"), photos=str(self.photos), settings=chosen, **fault)

    @property
    def whole(self):
        return self.folder / "whole" / "run"

    def fresh(self):
        folder = self.folder / f"faulty{next(self.number)}"
        folder.mkdir()
        return folder


@pytest.fixture(scope="module")
def world(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    chosen = {**SMALL, "teacher_weights": teacher_weights(folder), "checkpoint_minutes": 0, "ema": 0.9}
    with forking() as ask:
        found = World(ask, folder, photos, chosen, {}, itertools.count())
        told = found.job(folder / "whole")
        assert told["code"] == 0, told["error"]
        assert found.settings["epochs"] * 4 == told["counts"]["step"]
        found.counts.update(told["counts"])
        yield found


def history_of(run):
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in record["history"]]


def best_of(run):
    path = run / best.BEST
    return json.loads((run / "run.json").read_text())["best"], path.read_bytes() if path.exists() else None


def log_of(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_as_never_stopped(run, whole):
    for name in SHIPPED:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert history_of(run) == history_of(whole)
    assert best_of(run) == best_of(whole)
    assert log_of(run) == log_of(whole)
    assert not [path.name for path in run.rglob("*") if "partial" in path.name or path.suffix == ".pt"]


def finished_shards(out):
    """{file: (bytes, time of its last change)} of the files of all finished shards below."""
    found = {}
    for record in out.glob("stores/*/identity.json"):
        _, layout = shards.read_identity(str(record.parent))
        for shard in range(layout.shards):
            journal = Path(shards.journal_of(record.parent, shard))
            if (
                not journal.exists()
                or not shards.read_journal(journal.read_bytes(), layout.pictures_of(shard)).finished
            ):
                continue
            for path in (journal, *(Path(shards.file_of(record.parent, shard, name)) for name in layout.arrays)):
                found[path] = (path.read_bytes(), path.stat().st_mtime_ns)
    return found


def assert_untouched(before):
    for path, (data, changed) in before.items():
        assert path.read_bytes() == data, path
        assert path.stat().st_mtime_ns == changed, path


def survive(world, moments, fault="kill"):
    """A run that meets a fault at each of the moments in turn, and is resumed each time; then to its end."""
    out, before = world.fresh(), {}
    for moment in moments:
        told = world.job(out, moment=moment, fault=fault)
        if told["code"] == 0:
            break  # a resumed run has fewer events: this moment never came
        if fault == "kill":
            assert told["code"] == -9, told
        else:
            assert told["code"] == 1, told
            assert "No space left" in told["error"]
        if moment[0] == "step" and not before:  # a step was done and its checkpoint not yet begun
            steps = [int(Path(path).stem) for path in checkpoint.paths(out / "run")]
            assert max(steps, default=0) == moment[1] - 1
        assert_untouched(before)
        before = finished_shards(out)
    else:
        told = world.job(out)
        assert told["code"] == 0, told["error"]
    assert_untouched(before)
    assert_as_never_stopped(out / "run", world.whole)
    return out


def moments(world, kinds):
    """Any event of any kind, the kinds alike; now and then a second fault after the first."""
    one = st.sampled_from([kind for kind in kinds if world.counts[kind]]).flatmap(
        lambda kind: st.tuples(st.just(kind), st.sampled_from(range(1, world.counts[kind] + 1)))
    )
    return st.lists(one, min_size=1, max_size=2)


FEW = {"deadline": None, "phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}


@pytest.mark.slow
@settings(max_examples=20, **FEW)
@given(data=st.data())
def test_kill_9_at_any_moment_loses_nothing_but_the_interval(world, data):
    survive(world, data.draw(moments(world, ("open", "write", "fsync", "rename", "remove", "step"))))


@pytest.mark.slow
@settings(max_examples=10, **FEW)
@given(data=st.data())
def test_a_disk_that_fills_at_any_moment_damages_nothing(world, data):
    survive(world, data.draw(moments(world, ("write",))), fault="full")


def test_kill_9_in_the_store_in_a_checkpoint_and_at_a_step(world):
    counts = world.counts
    survive(world, [("fsync", counts["fsync"] // 4), ("step", 3), ("write", 20)])


def test_a_clock_that_goes_back_does_not_matter(world):
    """Checkpoints come as often, and the result is the same."""
    out = world.fresh()
    told = world.job(out, clock_step_s=-3600)
    assert told["code"] == 0, told["error"]
    assert_as_never_stopped(out / "run", world.whole)
    counted = [
        json.loads((run / "run.json").read_text())["timings"]["checkpoints"] for run in (out / "run", world.whole)
    ]
    assert counted[0] == counted[1] == world.counts["step"] + 2  # minutes 0: every step, the first epoch, the end


def test_a_run_that_another_process_holds_is_refused(world):
    out = world.fresh()
    with files.folder_lock(str(out / "run"), "the run's folder"):
        told = world.job(out)
    assert told["code"] == 1
    assert "Another tinkit is using the run's folder" in told["error"]
    assert os.listdir(out / "run") == [".lock"]


def test_the_best_epoch_is_kept_beside_the_last_across_a_stop(world, monkeypatch):
    """Of three epochs the first is made the best; the run stops in the second and goes on."""
    out, weights, calls = world.fresh(), [], itertools.count(1)
    real_metrics, real_weights = heldout.metrics, best.weights_of

    def keep(distiller, keep_head):
        weights.append(real_weights(distiller, keep_head))
        return weights[-1]

    monkeypatch.setattr(heldout, "metrics", lambda *a, **o: {**real_metrics(*a, **o), "cosine_mean": 1 / next(calls)})
    monkeypatch.setattr(records, "weights_of", keep)
    with monkeypatch.context() as patched:
        stopped_after(patched, 6)
        with pytest.raises(Interrupted):
            tinkit.distill(
                world.photos, out=out / "run", **{**world.settings, "epochs": 3, "store": str(out / "stores")}
            )
    run = Path(tinkit.distill(out=out / "run", resume=True, quiet=True).run)
    told = json.loads((run / "run.json").read_text())["best"]
    assert told == {
        "epoch": 1,
        "step": 4,
        "measure": "cosine_mean",
        "value": 1.0,
        "ships": "the last epoch",
        "file": best.BEST,
    }
    kept = load_file(run / best.BEST)
    assert len(weights) == 1
    assert kept.keys() == weights[0].keys() > {"mapping.mean"}
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights[0].items())
    shipped = load_file(run / "student.safetensors")
    assert {f"student.{name}" for name in shipped} == {name for name in kept if name.startswith("student.")}
    assert any(not torch.equal(kept[f"student.{name}"], tensor) for name, tensor in shipped.items())
    (run / best.BEST).unlink()
    load_run(run).student()  # it may be removed


def damage(folder):
    """Five of a hundred pictures: cut off, empty, and another kind of file."""
    paths = sorted(folder.rglob("*.jpg"))
    for path, data in zip(
        paths[3::13], (lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"<html>" + d), strict=False
    ):
        path.write_bytes(data(path.read_bytes()))
        yield path


def test_corrupt_pictures_are_named_and_the_others_make_the_same_student(world):
    out = world.fresh()
    shutil.copytree(world.photos, out / "photos")
    broken = list(damage(out / "photos"))
    chosen = {**world.settings, "store": str(out / "stores")}
    damaged = world.ask(root=str(out), out=str(out / "damaged"), photos=str(out / "photos"), settings=chosen)
    assert damaged["code"] == 0, damaged["error"]
    record = json.loads((out / "damaged" / "run.json").read_text())
    names = sorted(str(path.relative_to(out / "photos")) for path in broken)
    assert sorted(entry["name"] for entry in record["images"]["skipped"]) == names
    assert record["images"]["skipped_count"] == len(names) == 3
    lines = (out / "damaged" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == record["images"]["skipped"]
    for path in broken:
        path.unlink()
    clean = world.ask(root=str(out), out=str(out / "clean"), photos=str(out / "photos"), settings=chosen)
    assert clean["code"] == 0, clean["error"]
    for name in SHIPPED:
        assert (out / "clean" / name).read_bytes() == (out / "damaged" / name).read_bytes()


def test_a_picture_gone_before_training_is_named_and_the_run_goes_on_when_it_is_back(world):
    out = world.fresh()
    shutil.copytree(world.photos, out / "photos")
    chosen = {**world.settings, "store": str(out / "stores"), "decoded_cache_gb": 0}
    job = {"root": str(out), "out": str(out / "run"), "photos": str(out / "photos"), "settings": chosen}
    train, _ = split(scan(out / "photos").usable, seed=0)
    victim = out / "photos" / train[0].name
    kept = victim.read_bytes()
    told = world.ask(**job, moment=("step", 1), fault="gone", victim=str(victim))
    assert told["code"] == 1, told
    assert victim.name in told["error"]
    victim.write_bytes(kept)
    assert world.ask(**job)["code"] == 0
    assert_as_never_stopped(out / "run", world.whole)
