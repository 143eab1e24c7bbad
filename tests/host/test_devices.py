"""Several devices: shares of a batch, what is refused, and real runs of two gloo processes that are stopped and killed.

The runs are slow (a process imports torch first); what they share is made once.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from small_pair import SMALL, stopped_after, teacher_weights

import tinkit
from tinkit.errors import Interrupted, TinkitError
from tinkit.host.distill import checkpoint, launch, ranks
from tinkit.host.distill.command import distill
from tinkit.host.distill.launch import Process
from tinkit.host.distill.pictures import FOUND
from tinkit.host.distill.plan import Plan
from tinkit.host.distill.settings import MAY_CHANGE, Settings
from tinkit.host.run import load_run

PATIENCE_S = 240
LONG = {"epochs": 2000, "checkpoint_minutes": 0.0, "micro_batch": 2}  # more than a run gets to see before it is stopped
SCRIPT = "import json, sys, tinkit; open(sys.argv[2], 'a').write('.'); tinkit.distill(**json.loads(sys.argv[1]))"
CLI = """
import json, sys
from tinkit.errors import TinkitError
import tinkit
try:
    tinkit.distill(**json.loads(sys.argv[1]))
except TinkitError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def shares(ranks, views=2, pictures=23, batch=8, epoch=1, first=0):
    found = []
    for rank in range(ranks):
        found.append(list(Plan(pictures, views, batch, 5, rank, ranks).of_epoch(epoch, first)))
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_shares_put_together_in_order_of_rank_are_the_batches_of_one_process(ranks):
    (whole,) = shares(1)
    assert [list(chain(*batch)) for batch in zip(*shares(ranks))] == whole
    assert [list(chain(*batch)) for batch in zip(*shares(ranks, first=1))] == whole[1:]


def test_a_plan_uses_the_pictures_it_is_given_and_no_other():
    numbers = np.array([3, 4, 8, 9, 20])
    plan = Plan(numbers, 2, 2, 0)
    assert plan.batches == len(list(plan.of_epoch(0))) == 2
    seen = {picture for epoch in range(9) for batch in plan.of_epoch(epoch) for picture, _ in batch}
    assert seen == set(numbers)
    with pytest.raises(ValueError, match="share"):
        Plan(9, 2, 3, 0, 0, 2)


@pytest.mark.parametrize(
    ("given", "next_step"),
    [
        ({"batch_size": 10, "devices": 4}, "--batch-size 8 or 12"),
        ({"batch_size": 4, "devices": 4}, "--batch-size 8"),
        ({"batch_size": 9, "devices": 2, "num_nodes": 2}, "--batch-size 8 or 12"),
    ],
)
def test_a_batch_without_equal_shares_is_refused_with_the_next_that_has(given, next_step):
    with pytest.raises(TinkitError) as caught:
        Settings(images="", **given)
    assert caught.value.next_step == next_step


@pytest.mark.parametrize(
    "wrong",
    [
        {"devices": 0},
        {"num_nodes": 0},
        {"micro_batch": 0},
        {"teacher_batch": 0},
        {"store_grid": 0},
        {"store_limit_gb": 0.0},
        {"store_limit_gb": float("inf")},
        {"decoded_cache_gb": -1.0},
        {"decoder": "opencv"},
        {"scan": "slow"},
        {"compile": "always"},
        {"store_dtype": "int4"},
        {"checkpoint_minutes": -1.0},
        {"keep_checkpoints": 0},
        {"sync_batchnorm": 1},
    ],
)
def test_wrong_settings_are_refused_by_name(wrong):
    with pytest.raises(TinkitError) as caught:
        Settings(images="", **wrong)
    assert next(iter(wrong)) in caught.value.what


@pytest.mark.parametrize(("older", "now"), [(True, "on"), (False, "off")])
def test_compile_as_older_records_have_it(older, now):
    assert Settings.from_json({"images": "x", "compile": older}).compile == now


def test_several_nodes_are_for_torchrun_or_slurm(photos, tmp_path):
    with pytest.raises(TinkitError, match="torchrun or SLURM"):
        distill(photos, out=tmp_path / "run", num_nodes=2, quiet=True)


def test_where_torchrun_or_slurm_have_started_the_processes(monkeypatch):
    assert ranks.started_by_others() is None
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "8", "RANK": "3", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert ranks.started_by_others() == (4, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(TinkitError, match="equally many"):
        ranks.started_by_others()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    for name, value in {"SLURM_NTASKS": "6", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train"}.items():
        monkeypatch.setenv(name, value)
    assert ranks.started_by_others() == (2, 3)
    with pytest.raises(TinkitError, match="another number of processes"):
        distill("pictures", devices=4)


class Ended:
    """A process that has ended, as subprocess tells it."""

    def __init__(self, code):
        self.returncode = code

    def poll(self):
        return self.returncode


def ended(tmp_path, *found, stopped=False):
    """What the starter makes of processes that ended with (exit code, outcome)."""
    started = []
    for rank, (code, outcome) in enumerate(found):
        path = tmp_path / f"{rank}.json"
        path.unlink(missing_ok=True)
        if outcome is not None:
            path.write_text(json.dumps(outcome))
        started.append(Process(rank, Ended(code), str(tmp_path / f"{rank}.log"), str(path)))
    return launch._result(started, stopped, "runs/a")


def error(at, what="a full disk"):
    return {
        "kind": "error",
        "class": "TinkitError",
        "what": what,
        "where": None,
        "seen": None,
        "next_step": None,
        "at": at,
    }


def lost(at):
    return {"kind": "failed", "what": "RuntimeError: Connection closed by peer", "at": at}


def test_the_first_to_fail_is_the_one_that_is_told_of(tmp_path):
    for outcomes in ([(0, error(1.0)), (0, lost(2.0))], [(0, lost(2.0)), (0, error(1.0))]):
        with pytest.raises(TinkitError, match="a full disk"):
            ended(tmp_path, *outcomes)
    with pytest.raises(TinkitError, match="Process 1 of 2 was killed by signal 9") as caught:
        ended(tmp_path, (0, lost(1.0)), (-9, None))
    assert "--resume" in caught.value.next_step
    assert "--devices" in caught.value.next_step
    with pytest.raises(TinkitError, match="Process 0 of 2 ended with exit code 3"):
        ended(tmp_path, (3, None), (0, {"kind": "finished", "result": {}}))


def test_one_that_finds_the_others_gone_after_ctrl_c_has_not_failed(tmp_path):
    with pytest.raises(InterruptedError):
        ended(tmp_path, (0, {"kind": "interrupted", "at": 1.0}), (0, lost(2.0)), stopped=True)
    with pytest.raises(InterruptedError):
        ended(tmp_path, (1, None), (0, lost(2.0)), stopped=True)  # asked while it was still starting
    with pytest.raises(InterruptedError):
        ended(tmp_path, (0, lost(2.0)), (0, {"kind": "interrupted", "at": 1.0}))  # that one alone was asked
    with pytest.raises(TinkitError, match="Process 0 of 2 failed"):
        ended(tmp_path, (0, lost(1.0)), (0, {"kind": "interrupted", "at": 2.0}))
    with pytest.raises(TinkitError, match="a full disk"):
        ended(tmp_path, (0, error(1.0)), (0, lost(2.0)), stopped=True)


@pytest.fixture(scope="module")
def some_photos(photos, tmp_path_factory):
    """28 pictures: 20 to train on, which 8 do not divide, and 8 held out."""
    folder = tmp_path_factory.mktemp("devices") / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))[:28]):
        (folder / f"{number}.jpg").write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def job(some_photos, tmp_path_factory):
    """The arguments of a run, without `out`."""
    base = tmp_path_factory.mktemp("pair")
    return {
        **SMALL,
        "images": str(some_photos),
        "teacher_weights": teacher_weights(base),
        "store": str(base / "stores"),
        "epochs": 3,
        "decoded_cache_gb": 0.01,
    }


@pytest.fixture(scope="module")
def two(job, tmp_path_factory):
    """A finished run on two devices with a store of its own, started by a script without a main guard."""
    base = tmp_path_factory.mktemp("two")
    script = base / "script.py"
    script.write_text(SCRIPT)
    told = {**job, "out": str(base / "run"), "store": str(base / "stores"), "devices": 2, "quiet": False}
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(told), str(base / "runs_of_script")],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return base, done.stderr


@pytest.fixture(scope="module")
def one(job, tmp_path_factory):
    """The same on one device."""
    out = tmp_path_factory.mktemp("one") / "run"
    tinkit.distill(**{**job, "out": str(out)})
    return out


def weights(run):
    return load_file(os.path.join(run, "student.safetensors"))


def assert_near(run, other):
    """The weights of both up to rounding, which AdamW makes steps of: a batch norm of half a batch is 0.09 away."""
    mine, theirs = weights(run), weights(other)
    assert list(mine) == list(theirs)
    for kind, share in (("running_var", 0.01), ("weight", 0.01)):
        names = [name for name in mine if name.endswith(kind)]
        apart = sum(float((mine[name] - theirs[name]).pow(2).sum()) for name in names)
        assert apart < share**2 * sum(float(mine[name].pow(2).sum()) for name in names), kind


def log_of(run):
    lines = [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "event" not in line]


def alive(pids):
    """Those of the processes that still run (a zombie does not)."""
    return [pid for pid in pids if _state(pid) not in (None, "Z")]


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return None


def wait_until(question, seconds=PATIENCE_S):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := question():
            return found
        time.sleep(0.1)
    raise AssertionError("waited too long")


def start(told):
    return subprocess.Popen([sys.executable, "-c", CLI, json.dumps(told)], stderr=subprocess.PIPE, text=True,
                            start_new_session=True)  # fmt: skip


def rank_pids(parent):
    """{rank: pid} of the processes that a starter has started."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _parent(entry) == parent.pid:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"tinkit-rank" in words:
                found[int(words[words.index(b"tinkit-rank") + 1])] = int(entry.name)
    return found


def _parent(entry):
    try:
        return int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def running(told):
    """A run on two devices that has a checkpoint of some steps: (starter, {rank: pid})."""
    process = start({**told, "devices": 2, **LONG})
    try:
        wait_until(lambda: process.poll() is not None or len(checkpoint.paths(told["out"])) > 1)
        assert process.poll() is None, process.stderr.read()
        return process, rank_pids(process)
    except BaseException:
        process.kill()
        process.communicate()
        raise


@pytest.mark.slow
def test_two_devices_give_the_student_of_one(two, one, job):
    base, said = two
    run = load_run(base / "run")
    assert_near(base / "run", one)
    assert (base / "runs_of_script").read_text() == ".", "a user's script runs once"
    assert run.record["settings"]["devices"] == 2
    assert run.record["images"] == {**load_run(one).record["images"]}
    assert [line["step"] for line in log_of(base / "run")] == [1, 2, 3, 4, 5, 6]
    assert len(re.findall("epoch 1/3", said)) == 1, "one process prints"
    assert "Warning" not in said
    assert not os.path.exists(base / "run" / FOUND)
    assert not os.path.exists(base / "run" / "decoded")
    assert not checkpoint.paths(base / "run")
    for name in ("cosine_mean", "neighbour_overlap"):
        assert run.record["metrics"][name] == pytest.approx(load_run(one).record["metrics"][name], abs=0.15)


@pytest.mark.slow
def test_a_store_filled_by_two_is_that_of_one(two, one, job):
    base, _ = two
    ours, theirs = stores(base / "stores"), stores(job["store"])
    assert ours.keys() == theirs.keys()
    for name, rows in theirs.items():
        mine = np.frombuffer(ours[name], np.float16).astype(np.float32)
        np.testing.assert_allclose(mine, np.frombuffer(rows, np.float16).astype(np.float32), rtol=2e-3, atol=2e-3)


def stores(root):
    """{(store, array): bytes of all its shards in order}."""
    found = {}
    for path in sorted(Path(root).rglob("*.bin")):
        key = (path.relative_to(root).parts[0], re.sub(r"\d+", "", path.name))
        found[key] = found.get(key, b"") + path.read_bytes()
    assert len(found) >= 3
    return found


@pytest.mark.slow
def test_a_killed_rank_stops_the_others_and_one_device_goes_on(job, tmp_path):
    told = {**job, "out": str(tmp_path / "run")}
    process, pids = running(told)
    assert sorted(pids) == [0, 1]
    os.kill(pids[1], signal.SIGKILL)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "Process 1 of 2 was killed by signal 9" in said
    assert f"tinkit distill --out {tmp_path / 'run'} --resume, also with another --devices" in said
    assert not alive(pids.values())
    steps = checkpoint.load(told["out"])["place"]["step"]
    stopped = goes_on(told["out"], devices=1, more=3)
    logged = [line["step"] for line in log_of(told["out"])]
    assert logged == list(range(1, stopped + 1)), "every step once"
    assert stopped >= steps + 3


def goes_on(out, devices, more):
    """Resume and stop after some more steps; returns the step it stopped at."""
    with pytest.MonkeyPatch.context() as patched:
        stopped_after(patched, more)
        with pytest.raises(Interrupted):
            tinkit.distill(out=out, resume=True, devices=devices, quiet=True)
    return checkpoint.load(out)["place"]["step"]


@pytest.mark.slow
def test_ctrl_c_saves_and_stops_all(job, tmp_path):
    told = {**job, "out": str(tmp_path / "run")}
    process, pids = running(told)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    assert "Stopped; what is done is saved." in said
    assert not alive(pids.values())
    saved = checkpoint.load(told["out"])["place"]["step"]
    assert [line["step"] for line in log_of(told["out"])] == list(range(1, saved + 1)), "saved after its last step"


@pytest.mark.slow
def test_asking_one_process_to_stop_stops_all_at_the_same_step(job, tmp_path):
    told = {**job, "out": str(tmp_path / "run")}
    process, pids = running(told)
    os.kill(pids[1], signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    saved = checkpoint.load(told["out"])["place"]["step"]
    assert log_of(told["out"])[-1]["step"] == saved


@pytest.mark.slow
def test_when_the_starter_is_killed_no_process_stays(job, tmp_path):
    process, pids = running({**job, "out": str(tmp_path / "run")})
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    wait_until(lambda: not alive(pids.values()), seconds=60)
    assert not alive(pids.values())


@pytest.mark.slow
def test_a_run_on_one_device_goes_on_with_two(job, one, tmp_path, monkeypatch):
    out = str(tmp_path / "run")
    with monkeypatch.context() as patched:
        stopped_after(patched, 3)  # inside the second epoch
        with pytest.raises(Interrupted):
            tinkit.distill(**{**job, "out": out})
    result = tinkit.distill(out=out, resume=True, devices=2, quiet=True)
    assert result.epochs == 3
    assert [line["step"] for line in log_of(out)] == [1, 2, 3, 4, 5, 6]
    assert load_run(out).record["settings"]["devices"] == 2
    assert_near(out, one)


@pytest.mark.slow
def test_an_error_of_one_process_is_the_error_of_the_run(job, some_photos, tmp_path):
    with pytest.raises(TinkitError, match="There are too few pictures"):
        tinkit.distill(**{**job, "out": str(tmp_path / "run"), "devices": 2, "batch_size": 32})


@pytest.mark.slow
def test_torchrun_starts_the_processes(job, one, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys, tinkit; result = tinkit.distill(**json.loads(sys.argv[1]));"
        "open(sys.argv[2], 'a').write(result.run + '\\n')"
    )
    told = {**job, "out": str(tmp_path / "run")}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
         json.dumps(told), str(tmp_path / "results")],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results").read_text() == 2 * f"{tmp_path / 'run'}\n", "the same result in both"
    assert load_run(tmp_path / "run").record["settings"]["devices"] == 2
    assert_near(tmp_path / "run", one)


def test_what_a_resumed_run_may_change_are_settings():
    assert set(MAY_CHANGE) <= set(Settings(images="").to_json())
