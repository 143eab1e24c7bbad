"""What a run will take, told before it: right about what can be counted, and nothing is written."""

import os
import tarfile

import pytest
from click.testing import CliRunner
from PIL import Image
from small_pair import SMALL, teacher_weights

from tinkit.cli.group import cli
from tinkit.errors import TinkitError
from tinkit.host.distill.command import distill
from tinkit.host.distill.estimate import Estimate, estimate

COUNT, HELD_OUT = 24, 8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with pictures/ (two class folders), one.tar of them, and the teacher's weights."""
    folder = tmp_path_factory.mktemp("estimate")
    for number in range(COUNT):
        path = folder / "pictures" / f"class{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((40, 30)).rotate(7 * number).convert("RGB").save(path)  # no two alike
    with tarfile.open(folder / "one.tar", "w") as shard:
        shard.add(folder / "pictures", arcname=".")
    teacher_weights(folder)
    return folder


def asked(place, images="pictures", **settings):
    given = {"teacher_weights": str(place / "teacher.safetensors"), "out": str(place / "runs" / "dry"), **settings}
    return estimate(str(place / images), **{**SMALL, **given})


def everything_in(place):
    return sorted((str(path), path.lstat().st_mtime_ns) for path in place.rglob("*"))


@pytest.mark.parametrize(
    "settings",
    [{}, {"store_dtype": "int8", "store_grid": 1}, {"labels": "folders", "method": "dist", "label_weight": 1.0}],
    ids=["plain", "int8, pooled", "labels"],
)
def test_the_store_takes_the_bytes_that_were_told(place, tmp_path, settings):
    told = asked(place, out=str(tmp_path / "run"), **settings)
    weights = str(place / "teacher.safetensors")
    distill(str(place / "pictures"), out=str(tmp_path / "run"), teacher_weights=weights, **{**SMALL, **settings})
    rows = [path.stat().st_size for path in (tmp_path / ".stores").rglob("[0-9]*.bin")]
    assert (told.store_bytes, told.store_root) == (sum(rows), str(tmp_path / ".stores"))


def test_what_can_be_counted_is_counted(place):
    told = asked(place)
    assert (told.pictures, told.train, told.views) == (COUNT, COUNT - HELD_OUT, SMALL["views"])
    assert told.steps == SMALL["epochs"] * ((COUNT - HELD_OUT) // SMALL["batch_size"])
    assert told.decoded_bytes == COUNT * 40 * 30 * 3


def test_a_tar_is_told_like_its_folder(place):
    folder, tar = asked(place), asked(place, "one.tar")
    assert (tar.pictures, tar.store_bytes) == (folder.pictures, folder.store_bytes)


def test_a_live_teacher_needs_no_disk_and_works_in_the_steps(place):
    told = asked(place, online=True, views=0)
    assert (told.store_bytes, told.online) == (0, True)
    assert told.seconds == told.training_s
    assert told.training_s > told.teacher_s > 0
    assert not any(line.startswith("disk") for line in told.in_words())


def test_torchvision_can_make_the_views(place):
    assert asked(place, decoder="torchvision").train == COUNT - HELD_OUT


@pytest.mark.parametrize("online", [False, True])
def test_nothing_is_written(place, monkeypatch, online):
    monkeypatch.chdir(place)
    before = everything_in(place)
    asked(place, online=online, out=None)
    assert everything_in(place) == before


def test_the_slower_of_network_and_loaders_sets_the_pace():
    counted = {"pictures": 9, "train": 8, "views": 2, "store_bytes": 10, "store_root": "s", "free_bytes": 100}
    quick = Estimate(**counted, teacher_s=5, decoded_bytes=1, step_s=2, loading_s=1, steps=3, online=False)
    waiting = Estimate(**counted, teacher_s=5, decoded_bytes=1, step_s=2, loading_s=7, steps=3, online=False)
    assert (quick.seconds, waiting.seconds) == (11, 26)
    assert "waiting for pictures" in "".join(waiting.in_words())


@pytest.mark.parametrize(("free", "word"), [(94, "DOES NOT FIT"), (110, ": fits")])
def test_a_disk_that_is_too_small_is_said(free, word):
    told = Estimate(9, 8, 2, 5.0, 100, "s", free, 1, 2.0, 1.0, 3, False)
    assert next(line for line in told.in_words() if line.startswith("disk")).endswith(word)


@pytest.mark.parametrize(
    ("images", "settings", "word"),
    [
        ("gone", {}, "missing"),
        ("gone-{000..003}.tar", {}, "missing"),
        ("pictures", {"batch_size": 64}, "too few"),
        ("pictures", {"resume": True}, "--dry-run"),
        ("pictures", {"labels": "gone.csv"}, "labels is missing"),
    ],
)
def test_what_would_stop_the_run_is_said(place, images, settings, word):
    with pytest.raises(TinkitError, match=word):
        asked(place, images, **settings)


def test_files_that_are_no_pictures_are_told_by_name(tmp_path, place):
    for number in range(COUNT):
        (tmp_path / f"{number:02d}.jpg").write_text("no picture")
    with pytest.raises(TinkitError, match="None of the pictures") as told:
        asked(place, str(tmp_path))
    assert told.value.seen.startswith(f"16 tried, the first {tmp_path}")


def test_a_few_damaged_pictures_do_not_matter(tmp_path, place):
    for number in range(COUNT):
        kept = number % 2 == 0
        Image.new("RGB", (32, 32), (9 * number, 0, 0)).save(tmp_path / f"{number:02d}.png")
        if not kept:
            os.truncate(tmp_path / f"{number:02d}.png", 40)
    assert asked(place, str(tmp_path)).pictures == COUNT


def test_no_pictures_given():
    with pytest.raises(TinkitError, match="No pictures given"):
        estimate()


def test_the_command_knows_where_the_store_would_be(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items() if name != "quiet"]
    flags += [f"--teacher-weights={place / 'teacher.safetensors'}", f"--out={tmp_path / 'there' / 'run'}"]
    done = CliRunner().invoke(cli, ["distill", str(place / "pictures"), *flags, "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"in {tmp_path / 'there' / '.stores'}," in done.output
    assert list(tmp_path.iterdir()) == []
