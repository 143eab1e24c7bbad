"""Checkpoints, log and best epoch by themselves: what is kept and when, what damage costs, and what a kill leaves behind."""

import errno
import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.host.distill import best, checkpoint, writing
from tinkit.host.distill.log import Log
from tinkit.host.distill.records import trained_on
from tinkit.host.distill.skipped import record_skipped
from tinkit.host.images import reading


def state(step):
    return {"place": {"step": step}, "distiller": {"weight": torch.full((100,), float(step))}}


def steps(run):
    return [int(Path(path).stem) for path in checkpoint.paths(run)]


def flip(path):
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(data)


def truncate(path):
    os.truncate(path, os.path.getsize(path) - 100)


def empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_few_are_kept(tmp_path, keep):
    for step in (3, 20, 100_000_000, 100_000_001):
        checkpoint.save(tmp_path, state(step), keep)
    assert steps(tmp_path) == [100_000_001, 100_000_000, 20, 3][:keep]
    loaded = checkpoint.load(tmp_path)
    assert loaded["place"] == {"step": 100_000_001}
    assert torch.equal(loaded["distiller"]["weight"], state(100_000_001)["distiller"]["weight"])


@pytest.mark.parametrize("harm", [flip, truncate, empty])
def test_when_the_newest_is_damaged_the_one_before_is_taken_and_that_is_said(tmp_path, harm):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, state(step), keep=2)
    harm(checkpoint.paths(tmp_path)[0])
    said = []
    assert checkpoint.load(tmp_path, said.append)["place"]["step"] == 2
    assert "00000003.pt is damaged" in said[0]
    assert "00000002.pt" in said[0]
    checkpoint.save(tmp_path, state(2), keep=2)  # the run goes on from there, and is damaged nowhere
    assert steps(tmp_path) == [2]
    harm(checkpoint.paths(tmp_path)[0])
    with pytest.raises(TinkitError, match=r"(?s)checkpoint is damaged.*--resume"):
        checkpoint.load(tmp_path)


def test_all_damaged_is_an_error_that_says_what_to_remove(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, state(step))
    for path in checkpoint.paths(tmp_path):
        flip(path)
    with pytest.raises(TinkitError, match=r"(?s)All checkpoints are damaged.*remove .*checkpoints.*--resume"):
        checkpoint.load(tmp_path)


def test_an_older_runs_checkpoint_is_read_and_leaves_when_enough_new_ones_are_there(tmp_path):
    assert checkpoint.load(tmp_path) is None
    assert not checkpoint.exists(tmp_path)
    path = checkpoint.save(tmp_path, state(7))
    os.rename(path, tmp_path / checkpoint.CHECKPOINT)
    assert checkpoint.load(tmp_path)["place"]["step"] == 7
    checkpoint.save(tmp_path, state(8), keep=2)
    assert (tmp_path / checkpoint.CHECKPOINT).exists()
    assert checkpoint.load(tmp_path)["place"]["step"] == 8
    checkpoint.save(tmp_path, state(9), keep=2)
    assert not (tmp_path / checkpoint.CHECKPOINT).exists()
    checkpoint.remove(tmp_path)
    assert not checkpoint.exists(tmp_path)
    assert not (tmp_path / checkpoint.FOLDER).exists()


def test_what_a_kill_left_half_written_goes_and_other_files_stay(tmp_path):
    checkpoint.save(tmp_path, state(1))
    for place in ("checkpoints/00000002.pt.17.partial", "run.json.17.partial", "checkpoints/notes.txt"):
        (tmp_path / place).write_text("half")
    checkpoint.save(tmp_path, state(2))
    assert {path.name for path in tmp_path.rglob("*.*")} == {"00000001.pt", "00000002.pt", "notes.txt"}


def test_on_a_full_disk_the_last_good_one_stays(tmp_path, full_disk):
    small = {"place": {"step": 1}}
    checkpoint.save(tmp_path, small)
    big = {"place": {"step": 2}, "weight": torch.zeros(10_000)}
    with full_disk(), pytest.raises(TinkitError, match="Could not finish writing the checkpoint"):
        checkpoint.save(tmp_path, big, keep=1)
    assert checkpoint.load(tmp_path) == small
    assert [path.name for path in (tmp_path / checkpoint.FOLDER).iterdir()] == ["00000001.pt"]


def away(times, number=errno.ESTALE):
    """An os.replace whose disk is away for a few calls."""
    real, left = os.replace, itertools.count()

    def replace(source, target):
        if next(left) < times:
            raise OSError(number, os.strerror(number), target)
        real(source, target)

    return replace


@pytest.fixture
def pauses(monkeypatch):
    """Nobody sleeps; the clock goes on by what they would have slept."""
    now = [0.0]
    patient = reading.patiently

    def patiently(action, what, **options):
        def sleep(seconds):
            now[0] += seconds

        return patient(action, what, clock=lambda: now[0], sleep=sleep, **options)

    monkeypatch.setattr(writing, "patiently", patiently)
    return now


def test_a_share_that_is_away_for_a_minute_is_waited_for(tmp_path, pauses, monkeypatch):
    checkpoint.save(tmp_path, state(1), keep=1)
    said = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", away(10))
        checkpoint.save(tmp_path, state(2), keep=1, say=said.append)
    assert pauses[0] > 30
    assert len(said) == 2
    assert steps(tmp_path) == [2]
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", away(10_000))
        with pytest.raises(TinkitError, match="stayed away"):
            checkpoint.save(tmp_path, state(3), keep=1)
    assert checkpoint.load(tmp_path)["place"]["step"] == 2


def test_a_run_folder_that_has_gone_is_not_made_anew(tmp_path, pauses):
    gone = tmp_path / "share" / "run"
    with pytest.raises(TinkitError):
        checkpoint.save(gone, state(1))
    assert not gone.exists()
    assert pauses[0] >= reading.LIMIT_S


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_checkpoint_is_due_by_the_interval_and_after_an_epoch_where_writing_is_cheap(tmp_path, monkeypatch):
    clock = Clock()

    def slow_save(*_):
        clock.now += 3.0

    monkeypatch.setattr(checkpoint, "save", slow_save)
    saver = checkpoint.Saver(str(tmp_path), minutes=10, clock=clock)
    assert saver.due_after_epoch()  # nothing is known yet of what it costs
    assert not saver.due()
    clock.now += 600
    assert saver.due()
    saver.save(state(1))
    assert (saver.seconds, saver.count) == (3.0, 1)
    assert not saver.due()
    clock.now += 59  # less than twenty times the writing
    assert not saver.due_after_epoch()
    clock.now += 2
    assert saver.due_after_epoch()
    assert not saver.due()
    clock.now += 539
    assert saver.due()
    assert checkpoint.Saver(str(tmp_path), minutes=0, clock=clock).due()


def step_line(step, epoch, loss):
    return {"step": step, "epoch": epoch, "loss": loss}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_log_drops_what_came_after_its_step_and_takes_up_the_epoch(tmp_path):
    path = tmp_path / "log.jsonl"
    values = [0.1, 0.7, 1e-17, 0.30000000000000004]
    with Log(path, 0, 0) as log:
        for number, loss in enumerate(values, 1):
            log.write(step_line(number, 0, loss))
        expected = log.means()
    for torn in ('{"step": 5, "epoch": 0, "lo', '{"step": 3, "epoch": 0, "loss": 9.0}', "\0\0\0", "[1]\n", "\xff\n"):
        whole = path.read_bytes()
        path.write_bytes(whole + torn.encode("latin-1"))
        with Log(path, 2, 0) as log:
            for number, loss in enumerate(values[2:], 3):
                log.write(step_line(number, 0, loss))
            assert log.means() == expected
        assert path.read_bytes() == whole


def test_an_epoch_that_the_checkpoint_has_not_counted_is_told_once(tmp_path):
    path = tmp_path / "log.jsonl"
    for epochs_counted in (0, 1):
        path.write_text(
            "".join(
                json.dumps(line) + "\n" for line in (step_line(1, 0, 0.5), {"event": "epoch", "epoch": 1, "step": 1})
            )
        )
        with Log(path, 1, epochs_counted):
            assert len(lines_of(path)) == 1 + epochs_counted


def test_lines_are_in_the_file_after_two_seconds_and_at_events(tmp_path):
    clock, path = Clock(), tmp_path / "log.jsonl"
    with Log(path, 0, 0, clock=clock) as log:
        log.write(step_line(1, 0, 1.0))
        assert lines_of(path) == []
        clock.now += 2.1
        log.write(step_line(2, 0, 1.0))
        assert [line["step"] for line in lines_of(path)] == [1, 2]
        log.write(step_line(3, 0, 1.0))
        log.write({"event": "epoch", "step": 3})
        assert len(lines_of(path)) == 4
        log.write(step_line(4, 1, 1.0))
        assert len(lines_of(path)) == 4
    assert len(lines_of(path)) == 5


def test_an_append_that_broke_off_is_done_again_and_a_log_taken_away_is_begun_anew(tmp_path, pauses, monkeypatch):
    path, calls = tmp_path / "log.jsonl", itertools.count()
    real = os.fsync

    def fsync(handle):
        if next(calls) < 3:
            raise OSError(errno.EIO, "away", str(path))
        real(handle)

    with Log(path, 0, 0) as log:
        log.write(step_line(1, 0, 1.0))
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fsync)
            patched.setattr(reading, "_answers", lambda folder: False)
            log.flush(sync=True)
        assert next(calls) == 4
        assert lines_of(path) == [step_line(1, 0, 1.0)]
        path.unlink()
        log.write({"event": "epoch", "step": 1})
        log.write({"event": "epoch", "step": 2})
        assert [line["step"] for line in lines_of(path)] == [1, 2]


def epochs(*values, measure="cosine_mean"):
    return [{"epoch": n, "step": 10 * n, measure: value} for n, value in enumerate(values, 1)]


def test_the_best_epoch_is_the_later_of_equals_and_never_one_without_a_number():
    assert best.best_epoch(epochs(0.5, 0.9, 0.9, 0.1)) == {
        "epoch": 3,
        "step": 30,
        "measure": "cosine_mean",
        "value": 0.9,
    }
    assert best.best_epoch(epochs(float("nan"), 0.2, float("nan")))["epoch"] == 2
    assert best.best_epoch([]) is None
    assert best.best_epoch(epochs(0.5, 0.4, measure="neighbour_overlap"))["measure"] == "neighbour_overlap"
    both = [{"epoch": n, "step": n, "cosine_mean": c, "neighbour_overlap": 1 - c} for n, c in ((1, 0.2), (2, 0.8))]
    assert best.best_epoch(both)["epoch"] == 2  # a cosine, where there is one


def test_the_best_is_beside_the_last_only_when_it_is_another(tmp_path):
    weights = {"student.weight": torch.arange(3.0)}
    best.write_best(str(tmp_path), epochs(0.5, 0.9, 0.1), weights)
    told = best.describe_best(str(tmp_path), epochs(0.5, 0.9, 0.1))
    assert told == {
        "epoch": 2,
        "step": 20,
        "measure": "cosine_mean",
        "value": 0.9,
        "ships": "the last epoch",
        "file": "best.safetensors",
    }
    with safe_open(tmp_path / best.BEST, "pt") as opened:
        assert opened.metadata()["epoch"] == "2"
        assert torch.equal(opened.get_tensor("student.weight"), torch.arange(3.0))
    best.write_best(str(tmp_path), epochs(0.5, 0.9), weights)
    assert best.describe_best(str(tmp_path), epochs(0.5, 0.9))["file"] is None
    assert not (tmp_path / best.BEST).exists()


def test_a_hundred_thousand_skipped_files_leave_a_hundred_in_the_record(tmp_path):
    skipped = tuple((f"{number}.jpg", "empty") for number in range(100_000))
    told = record_skipped(str(tmp_path), skipped)
    assert len(json.dumps(told)) < 10_000
    assert told["skipped_count"] == 100_000
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert len(lines) == 100_000
    assert json.loads(lines[-1]) == {"name": "99999.jpg", "reason": "empty"}
    assert record_skipped(str(tmp_path), ()) == {"skipped": [], "skipped_count": 0, "skipped_file": None}


def test_the_hash_of_what_a_run_is_trained_on_is_that_of_older_runs():
    train = [SimpleNamespace(content=f"{number:064x}") for number in range(5)]
    labels = SimpleNamespace(classes=("a", "ü"), of=lambda pictures: torch.arange(len(pictures)))
    identity = {"name": "t", "weights": "12", "nested": {"b": 1, "a": [2.5, None]}}
    for chosen in (labels, None):
        parts = SimpleNamespace(train=train, labels=chosen, teacher=SimpleNamespace(identity=identity))
        value = {
            "pictures": [picture.content for picture in train],
            "labels": chosen and [["a", "ü"], [0, 1, 2, 3, 4]],
            "teacher": identity,
        }
        assert trained_on(parts) == files.sha256_of_json(value)
