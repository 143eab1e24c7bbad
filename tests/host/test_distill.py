"""The road of stage one with a tiny pair: what is written, what is equal, and what happens when something goes wrong."""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_pair import SMALL, STUDENT, stopped_after, teacher_weights

import tinkit
from tinkit import files
from tinkit.errors import Interrupted, TinkitError
from tinkit.host.distill import checkpoint, loop
from tinkit.host.distill import command as distill_command
from tinkit.host.distill import prepare as prepare_module
from tinkit.host.distill.plan import Plan
from tinkit.host.distill.ranks import alone
from tinkit.host.distill.schedule import learning_rate
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.source import Cached, Live
from tinkit.host.features import Features
from tinkit.host.progress import Progress
from tinkit.host.run import load_run
from tinkit.host.teacher import TimmTeacher
from tinkit.host.views import collate, normalise_on_device


@pytest.fixture
def pair(tmp_path):
    return {**SMALL, "teacher_weights": teacher_weights(tmp_path), "store": str(tmp_path / "stores")}


def student_of(run):
    return load_file(os.path.join(run, "student.safetensors"))


def assert_same(run, other):
    for name, tensor in student_of(run).items():
        assert torch.equal(tensor, student_of(other)[name]), name


def test_a_run_holds_what_later_commands_need(photos, pair, tmp_path):
    (photos_copy := tmp_path / "photos").mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))[:24]):
        (photos_copy / f"{number}.jpg").write_bytes(path.read_bytes())
    (photos_copy / "broken.jpg").write_text("no picture")
    result = tinkit.distill(photos_copy, out=tmp_path / "run", **pair)
    with pytest.raises(AttributeError):
        result.run = "frozen"
    run = load_run(result.run)
    assert run.record["images"]["skipped"] == [{"name": "broken.jpg", "reason": "not a picture, or a damaged header"}]
    assert result.skipped == 1
    assert len(run.record["history"]) == 2
    assert set(run.record["metrics"]) >= {
        "cosine_mean",
        "cosine_p1",
        "cosine_min",
        "cosine_difference",
        "neighbour_overlap",
    }
    assert run.record["settings"]["teacher"] == pair["teacher"]
    steps = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "event" not in line] == [1, 2, 3, 4]
    exam = run.exam()
    assert len(exam.pixels) == run.record["images"]["heldout"] == len(exam.mapped)
    assert not checkpoint.exists(result.run)
    keys = set(run.student().state_dict())
    assert all(key.startswith(("backbone.", "neck.")) for key in keys)
    assert [hop["hop"] for hop in run.record["chain"]] == ["teacher -> mapped teacher", "mapped teacher -> student"]


@pytest.mark.parametrize("mapping", [("learned", False), ("learned-pca", True), ("pca", True)])
def test_training_lowers_the_loss(photos, pair, tmp_path, mapping):
    kind, center = mapping
    result = tinkit.distill(photos, out=tmp_path / "run", **{**pair, "mapping": kind, "center": center, "epochs": 6})
    history = load_run(result.run).record["history"]
    assert history[-1]["loss"] < history[0]["loss"]


def parts_of(photos, settings, tmp_path):
    chosen = Settings(images=str(photos), **{k: v for k, v in settings.items() if k != "quiet"})
    torch.manual_seed(0)
    return chosen, prepare_module.prepare(chosen, str(tmp_path / "run"), Progress(True), lambda: False, alone())


def losses_of(photos, settings, tmp_path):
    _, parts = parts_of(photos, settings, tmp_path)
    assert isinstance(parts.source, Live if settings["online"] else Cached)
    distiller = distill_command.Distiller(parts.student, parts.method).train()
    found = []
    for batch in Plan(len(parts.views), 2, 8, 0).of_epoch(0):
        pixels, index, number = collate([parts.views[item] for item in batch])
        teacher = parts.source.lookup(pixels, index, number)
        images = normalise_on_device(pixels[0], parts.student.spec.preprocessing)
        parts_of_loss = distiller(images, teacher, index, 0, 0)
        found.append({name: value.item() for name, value in parts_of_loss.items()})
    return found


def one_by_one(self, pixels, parts=("local",), batched=TimmTeacher.features):
    """A convolution's last bits depend on the batch it ran in; alone they cannot."""
    found = [batched(self, pixels[i : i + 1], parts) for i in range(len(pixels))]
    local = torch.cat([f.local_BLD for f in found]) if "local" in parts else None
    return Features(torch.cat([f.global_BD for f in found]), local, found[0].grid)


@pytest.mark.parametrize(("mapping", "local"), [("learned", True), ("pca", True), ("learned", False)])
def test_the_loss_on_cached_views_is_the_loss_online(photos, pair, tmp_path, monkeypatch, mapping, local):
    """With a float32 store exactly: same pixels, same rows, same bits; float16 and other batches within rounding."""
    settings = {**pair, "store_dtype": "float32", "mapping": mapping, "local": local}
    batched = [losses_of(photos, {**settings, "online": online}, tmp_path / f"b{online}") for online in (False, True)]
    half = losses_of(photos, {**settings, "online": False, "store_dtype": "float16"}, tmp_path / "half")
    for cached, online, rough in zip(*batched, half, strict=True):
        assert cached == pytest.approx(online, rel=1e-4, abs=1e-5)
        assert rough == pytest.approx(online, rel=5e-3, abs=1e-3)
    monkeypatch.setattr(TimmTeacher, "features", one_by_one)
    alone = {**settings, "store": settings["store"] + "-alone"}
    cached, online = (
        losses_of(photos, {**alone, "online": online}, tmp_path / f"a{online}") for online in (False, True)
    )
    assert cached == online


def test_ema_is_what_ships(photos, pair, tmp_path):
    plain = tinkit.distill(photos, out=tmp_path / "plain", **pair)
    averaged = tinkit.distill(photos, out=tmp_path / "ema", **{**pair, "ema": 0.9})
    a, b = student_of(plain.run), student_of(averaged.run)
    assert any(not torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("extra", [{"ema": 0.9}, {"mapping": "learned", "center": True}])
def test_resume_equals_no_interruption_bit_for_bit(photos, pair, tmp_path, monkeypatch, extra):
    settings = {**pair, **extra, "epochs": 3}
    whole = tinkit.distill(photos, out=tmp_path / "whole", **settings)
    with monkeypatch.context() as patched:
        stopped_after(patched, 7)  # in the middle of an epoch
        with pytest.raises(Interrupted, match="--resume"):
            tinkit.distill(photos, out=tmp_path / "cut", **settings)
    assert not os.path.exists(tmp_path / "cut" / "student.safetensors")
    assert checkpoint.load(tmp_path / "cut")["place"]["step"] == 7
    assert checkpoint.load(tmp_path / "cut")["place"]["batch"] > 0
    resumed = tinkit.distill(out=tmp_path / "cut", resume=True, quiet=True)
    assert_same(whole.run, resumed.run)
    logs = [[json.loads(line) for line in Path(r.run, "log.jsonl").read_text().splitlines()] for r in (whole, resumed)]
    assert [(x["step"], x["loss"]) for x in logs[0]] == [(x["step"], x["loss"]) for x in logs[1]]


def test_a_resumed_run_refuses_other_pictures(photos, pair, tmp_path, monkeypatch):
    shutil.copytree(photos, tmp_path / "photos")
    with monkeypatch.context() as patched:
        stopped_after(patched, 7)
        with pytest.raises(Interrupted):
            tinkit.distill(tmp_path / "photos", out=tmp_path / "cut", **pair)
    next((tmp_path / "photos").rglob("*.jpg")).unlink()
    with pytest.raises(TinkitError, match="not those that the run was started with"):
        tinkit.distill(out=tmp_path / "cut", resume=True, quiet=True)


SCRIPT = """
import time
import torch
torch.set_num_threads(1)
import tinkit
from tinkit.host.distill import loop
{patch}
tinkit.distill({photos!r}, out={out!r}, **{settings!r})
"""
SLOW = """
real = loop.refuse_broken
def slow(batch):
    time.sleep(0.15)
    return real(batch)
loop.refuse_broken = slow
"""


def start(photos, out, settings, patch=SLOW, **options):
    script = SCRIPT.format(patch=patch, photos=str(photos), out=str(out), settings=settings)
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, **options)


def wait_for_step(out, step, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if checkpoint.exists(out):
            return
        time.sleep(0.02)
    raise AssertionError("no checkpoint came")


def test_kill_9_in_the_middle_of_an_epoch_loses_no_more_than_the_epoch(photos, pair, tmp_path):
    settings = {**pair, "epochs": 4}
    whole = tinkit.distill(photos, out=tmp_path / "whole", **settings)
    process = start(photos, tmp_path / "killed", settings)
    wait_for_step(tmp_path / "killed", 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    resumed = tinkit.distill(out=tmp_path / "killed", resume=True, quiet=True)
    assert_same(whole.run, resumed.run)


def test_ctrl_c_saves_and_says_how_to_go_on(photos, pair, tmp_path):
    settings = {**pair, "epochs": 50, "workers": 1}
    process = start(photos, tmp_path / "run", settings)
    wait_for_step(tmp_path / "run", 1)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "--resume" in text
    assert "KeyboardInterrupt" not in text
    state = checkpoint.load(tmp_path / "run")
    assert state["place"]["step"] >= 1


@pytest.mark.slow
def test_two_runs_into_one_folder(photos, pair, tmp_path):
    process = start(photos, tmp_path / "run", {**pair, "epochs": 50})
    wait_for_step(tmp_path / "run", 1)
    for resume in (False, True):
        with pytest.raises(TinkitError, match="Another tinkit"):
            tinkit.distill(photos, out=tmp_path / "run", resume=resume, **{**pair, "epochs": 50})
    process.kill()
    process.communicate()
    with pytest.raises(TinkitError, match="--resume"):
        tinkit.distill(photos, out=tmp_path / "run", **pair)


def test_a_file_size_limit_is_a_clear_error_and_keeps_the_last_checkpoint(photos, pair, tmp_path):
    """The limit of a full disk, without root: 200 kB a file is less than a checkpoint."""
    settings = {**pair, "epochs": 2, "decoded_cache_gb": 0}
    tinkit.distill(photos, out=tmp_path / "first", **settings)  # the store is finished before the limit

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    process = start(photos, tmp_path / "run", settings, patch="", preexec_fn=limit)
    _, text = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "TinkitError: Could not finish writing the checkpoint" in text
    assert not [name for name in os.listdir(tmp_path / "run") if "partial" in name]


def test_a_loss_that_is_not_finite_stops_with_step_part_and_files(photos, pair, tmp_path):
    with pytest.raises(TinkitError, match=r"(?s)not finite at step \d+.*part .*\.jpg"):
        tinkit.distill(
            photos,
            out=tmp_path / "run",
            **{**pair, "learning_rate": 9.0, "clip": 0.0, "epochs": 40, "student_weights": explosive(tmp_path)},
        )


def explosive(tmp_path):
    import timm

    from tinkit.host.weights import write_weights

    state = timm.create_model(STUDENT, num_classes=0).state_dict()
    path = str(tmp_path / "explosive.safetensors")
    write_weights(path, {name: t * 1e30 if t.is_floating_point() and t.ndim > 1 else t for name, t in state.items()})
    return path


def test_fewer_pictures_than_a_batch(photos, pair, tmp_path):
    with pytest.raises(TinkitError, match="too few pictures"):
        tinkit.distill(photos, out=tmp_path / "run", **{**pair, "batch_size": 1000})


def test_resume_refuses_other_settings_and_finished_runs(photos, pair, tmp_path):
    run = tinkit.distill(photos, out=tmp_path / "run", **pair).run
    with pytest.raises(TinkitError, match="already finished"):
        tinkit.distill(out=run, resume=True, quiet=True)
    record = files.read_json(os.path.join(run, "run.json"), "record")
    files.write_json(os.path.join(run, "run.json"), {**record, "status": "running"})
    with pytest.raises(TinkitError, match="epochs 9, recorded 2"):
        tinkit.distill(out=run, resume=True, quiet=True, epochs=9)


def test_a_flipped_byte_in_a_run_is_refused(photos, pair, tmp_path):
    run = tinkit.distill(photos, out=tmp_path / "run", **pair).run
    path = os.path.join(run, "student.safetensors")
    with open(path, "r+b") as handle:
        handle.seek(-5, os.SEEK_END)
        handle.write(b"\xff")
    with pytest.raises(TinkitError, match="damaged"):
        load_run(run).student()


def test_plan_covers_each_picture_once_and_alternates_views():
    plan = Plan(20, 2, 5, seed=1)
    first, second = list(itertools.chain(*plan.of_epoch(0))), list(itertools.chain(*plan.of_epoch(1)))
    assert sorted(i for i, _ in first) == list(range(20))
    assert dict(first) != dict(second)
    assert all(dict(second)[i] == 1 - k for i, k in first)
    assert [i for i, _ in first] != [i for i, _ in second]
    assert {k for batch in Plan(20, 0, 5, seed=1).of_epoch(7) for _, k in batch} == {7}


def test_a_plan_goes_on_from_any_batch_to_the_last_epoch():
    plan = Plan(20, 2, 5, seed=1)
    whole = [batch for epoch in range(3) for batch in plan.of_epoch(epoch)]
    assert list(plan.onwards(0, 0, 3)) == whole
    assert list(plan.onwards(1, 2, 3)) == whole[6:]
    assert list(plan.onwards(1, 4, 2)) == list(plan.onwards(3, 0, 3)) == []


def test_one_loader_serves_all_epochs(photos, pair, tmp_path, monkeypatch):
    started = []

    class Counted(loop.DataLoader):
        def __iter__(self):
            started.append(self)
            return super().__iter__()

    monkeypatch.setattr(loop, "DataLoader", Counted)
    result = tinkit.distill(photos, out=tmp_path / "run", **{**pair, "epochs": 3})
    assert [entry["epoch"] for entry in load_run(result.run).record["history"]] == [1, 2, 3]
    assert len(started) == 1


def test_learning_rate_warms_up_and_comes_down():
    settings = Settings(images="x", warmup=0.1)
    rates = [learning_rate(step, 100, 1.0, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] == pytest.approx(0.02, abs=2e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "tintm"}, "tintem"),
        ({"mapping": "pac"}, "pca"),
        ({"epochs": 0}, "epochs"),
        ({"views": 0}, "--online"),
        ({"batch_size": 1}, "batch_size"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"store_dtype": "int4"}, "float16"),
        ({"clip": -1.0}, "clip"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"seed": -1}, "seed"),
        ({"workers": -1}, "workers"),
        ({"views": -3, "online": True}, "views"),
        ({"epochs": "2"}, "whole number"),
        ({"batch_size": 8.5}, "whole number"),
        ({"epochs": True}, "whole number"),
    ],
)
def test_wrong_settings_say_what_is_wanted(wrong, message):
    with pytest.raises(TinkitError, match=message):
        Settings(images="x", **wrong)


def test_unknown_student_and_impossible_size(photos, pair, tmp_path):
    with pytest.raises(TinkitError, match="mobilenetv3_small_100"):
        tinkit.distill(photos, out=tmp_path / "a", **{**pair, "student": "mobilenetv3_smal_100"})


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB, where this machine lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_under_the_store_is_a_clear_error_and_the_rest_is_kept(photos, pair, small_disk, tmp_path):
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * 3_090_000)
    settings = {**pair, "store": str(small_disk / "stores")}
    with pytest.raises(TinkitError, match=r"(?s)feature store: No space left.*free some space"):
        tinkit.distill(photos, out=tmp_path / "run", **settings)
    filler.unlink()
    result = tinkit.distill(out=tmp_path / "run", resume=True, quiet=True)
    assert result.epochs == 2


@pytest.mark.slow
def test_a_full_disk_under_the_run_keeps_the_last_good_checkpoint(photos, pair, small_disk):
    process = start(photos, small_disk / "run", {**pair, "epochs": 200}, patch="")
    wait_for_step(small_disk / "run", 1)
    space = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"\0" * max(0, space.f_bavail * space.f_frsize - 100_000))
    _, text = process.communicate(timeout=120)
    assert "TinkitError: Could not finish writing" in text
    assert "free some space" in text
    assert checkpoint.load(small_disk / "run")["place"]["epoch"] >= 1


@pytest.mark.parametrize("folder", ["/proc/tinkit-run", "/dev/null/run"])
def test_a_folder_that_cannot_be_written(photos, pair, folder):
    with pytest.raises(TinkitError, match="Could not finish opening"):
        tinkit.distill(photos, out=folder, **pair)


def test_a_mistake_at_the_start_does_not_spoil_the_folder(photos, pair, tmp_path):
    with pytest.raises(TinkitError, match="no teacher"):
        tinkit.distill(photos, out=tmp_path / "run", **{**pair, "teacher": "nope", "teacher_weights": None})
    assert tinkit.distill(photos, out=tmp_path / "run", **pair).epochs == 2


def test_a_damaged_checkpoint_is_refused(photos, pair, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stopped_after(patched, 7)
        with pytest.raises(Interrupted):
            tinkit.distill(photos, out=tmp_path / "cut", **pair)
    path, *others = map(Path, checkpoint.paths(tmp_path / "cut"))
    for other in others:  # the one before would be taken: test_checkpoint
        other.unlink()
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damage in (bytes(flipped), whole[:-100], b"", b"no checkpoint at all"):
        path.write_bytes(damage)
        with pytest.raises(TinkitError, match="checkpoint is damaged"):
            tinkit.distill(out=tmp_path / "cut", resume=True, quiet=True)
    path.write_bytes(whole)
    assert tinkit.distill(out=tmp_path / "cut", resume=True, quiet=True).epochs == 2


def test_neighbours_mean_something_in_a_small_set():
    from tinkit.host.distill.heldout import neighbours

    assert [neighbours(n) for n in (2, 8, 15, 41, 512)] == [1, 1, 3, 10, 10]
