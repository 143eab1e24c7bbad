"""tinkit select: the whole road on photographs with a tiny teacher, what it leaves behind, and what it refuses."""

import itertools
import json
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from export_parts import write_run
from PIL import Image
from sklearn.manifold import trustworthiness
from small_pair import TEACHER, teacher_weights

from tinkit import cli
from tinkit.errors import Interrupted, TinkitError
from tinkit.host.images import Picture, scan
from tinkit.host.labels import read_labels
from tinkit.host.run import load_run
from tinkit.host.select import command, folder, gather, manifold, select, sheet
from tinkit.host.select.points import points_of
from tinkit.host.select.result import Selection

NASTY = "a\"><script>alert(1)<b>'&.jpg"


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory):
    """A folder with the photographs, two exact copies and one of other bytes and the same pixels; and what `select` needs."""
    base = tmp_path_factory.mktemp("select")
    root = base / "pictures"
    shutil.copytree(photos, root)
    names = sorted(root.rglob("*.jpg"))
    shutil.copy(names[0], root / "copy.jpg")
    shutil.copy(names[1], root / NASTY)
    with Image.open(names[2]) as image:
        image.convert("RGB").save(root / "same.png")
    settings = {
        "teacher": TEACHER,
        "teacher_weights": teacher_weights(base),
        "teacher_size": 64,
        "store": str(base / "stores"),
        "workers": 0,
        "quiet": True,
    }
    select(root, 6, out=base / "first", **settings)
    return root, base, settings


@pytest.fixture
def chosen(prepared, tmp_path):
    """A function that selects into a new folder and gives (selection, folder)."""
    root, _, settings = prepared
    numbers = itertools.count()

    def run(budget=6, **given):
        out = tmp_path / f"out{next(numbers)}"
        return select(given.pop("root", root), budget, out=out, **{**settings, **given}), out

    return run


class Page(HTMLParser):
    """Every element of a page: (tag, attributes)."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_folder_holds_table_links_page_and_record(prepared, chosen):
    root, *_ = prepared
    selection, out = chosen(8)
    assert sorted(os.listdir(out)) == ["pictures", "selection.csv", "selection.html", "selection.json"]
    links = {name: os.readlink(out / "pictures" / name) for name in os.listdir(out / "pictures")}
    assert links == {one.link: str(root / one.name) for one in selection.chosen}
    assert len(links) == 8
    assert all(os.path.isfile(target) for target in links.values())
    assert [one.rank for one in selection.chosen] == list(range(1, 9))
    assert sum(one.stands_for for one in selection.chosen) == selection.pictures - selection.copies
    found = [one.stands_for for one in selection.chosen]
    assert found == sorted(found, reverse=True)
    assert Selection.from_json(json.loads((out / "selection.json").read_text())) == selection


def test_exact_copies_are_left_out_and_equal_features_are_said(prepared, chosen):
    root, *_ = prepared
    selection, _ = chosen(3)
    assert (selection.pictures, selection.copies) == (43, 2)
    assert selection.alike == 1  # a PNG of a JPEG's pixels is another file
    assert "pictures of other bytes with exactly the features of an earlier one: 1" in selection.notes
    unique = gather.without_copies(scan(root).usable)
    assert len(unique) == 41
    assert len({picture.content for picture in unique}) == 41
    everything, _ = chosen(41)
    assert len({one.name for one in everything.chosen}) == 41
    with pytest.raises(TinkitError, match="fewer pictures") as error:
        chosen(42)
    assert "41 different pictures" in str(error.value)


def test_alike_counts_rows_that_are_exactly_an_earlier_one():
    rows = np.array([[1, 2], [1, 2], [1, 2.0000002], [3, 4], [1, 2]], np.float32)
    assert gather.alike(rows) == 2


def test_the_table_with_labels_filled_in_is_a_file_of_labels(prepared, chosen):
    root, *_ = prepared
    selection, out = chosen(5)
    lines = (out / "selection.csv").read_text().splitlines()
    assert lines[0] == "path,label,rank,stands_for,x,y,link"
    filled = out / "labels.csv"
    empty = [line for line in lines[1:] if not line.startswith('"')]
    filled.write_text("\n".join(line.replace(",,", f",{'ab'[number % 2]},", 1) for number, line in enumerate(empty)))
    labels = read_labels(str(filled), list(scan(root).usable), str(root))
    assert set(labels.by_name) <= {one.name for one in selection.chosen}
    assert len(labels.by_name) == len(empty) >= 4


def test_labels_count_classes_and_change_nothing(prepared, chosen):
    plain, _ = chosen(6)
    told, _ = chosen(6, labels="folders")
    assert [one.name for one in told.chosen] == [one.name for one in plain.chosen]
    assert plain.classes == {}
    assert told.classes["found"] == len({one.label for one in told.chosen} - {""})
    assert {one.label for one in told.chosen} <= {*os.listdir(prepared[0]), ""}
    assert 0 < told.classes["random"] < told.classes["of"]


def test_what_random_finds_on_average_is_exact():
    classes = [0, 0, 0, 0, 1, 1, 2, None, None]
    every = [len({classes[i] for i in drawn} - {None}) for drawn in itertools.combinations(range(9), 4)]
    assert command.expected_classes([4, 2, 1], 9, 4) == pytest.approx(np.mean(every))


def test_features_and_map_are_made_once(prepared, chosen, monkeypatch):
    def never(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr(manifold, "t_sne", never)
    monkeypatch.setattr(gather, "load_teacher", lambda *a: _blind(real(*a), never))
    real = __import__("tinkit.host.teacher", fromlist=["load_teacher"]).load_teacher
    again, _ = chosen(6)
    first = Selection.from_json(json.loads((prepared[1] / "first" / "selection.json").read_text()))
    assert [one.name for one in again.chosen] == [one.name for one in first.chosen]
    with pytest.raises(AssertionError, match="made again"):
        chosen(6, seed=1)  # another map


def _blind(teacher, never):
    teacher.features = never
    return teacher


@pytest.mark.parametrize("method", ["k-centre", "mini-max", "maxi-min"])
def test_every_method_goes_the_road_with_and_without_the_map(chosen, method):
    on_map, _ = chosen(5, method=method)
    plain, _ = chosen(5, method=method, space="features")
    assert set(on_map.quality) == {"features", "map"}
    assert set(plain.quality) == {"features"}
    assert (on_map.space, plain.space) == ("t-sne", "features")
    assert any("for the eye only" in note for note in plain.notes)


def test_random_looks_at_nothing(chosen):
    first, _ = chosen(5, method="random")
    assert first.space == "none"
    assert [one.name for one in chosen(5, method="random", seed=0)[0].chosen] == [one.name for one in first.chosen]
    assert [one.name for one in chosen(5, method="random", seed=1)[0].chosen] != [one.name for one in first.chosen]


def test_the_student_of_a_run_can_be_the_eye(prepared, photos, tmp_path):
    run = write_run(tmp_path / "run", photos)
    found = select(photos, 4, run=run, out=tmp_path / "out", space="features", workers=0, quiet=True)
    assert found.features_of["weights"] == load_run(run).record["files"]["student.safetensors"]
    assert found.features_of["run"] == run
    with pytest.raises(TinkitError, match="teacher's or the student's"):
        select(photos, 4, run=run, teacher=TEACHER, out=tmp_path / "other", quiet=True)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"budget": 0}, "no budget"),
        ({"budget": 2.5}, "no budget"),
        ({"method": "kmedoids"}, "no such method"),
        ({"space": "umap"}, "no such space"),
        ({"metric": "manhattan"}, "no such metric"),
        ({"seed": -1}, "no seed"),
        ({"perplexity": 0}, "no perplexity"),
        ({"labels": "nowhere.csv"}, "labels is missing"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_read(chosen, monkeypatch, given, what):
    monkeypatch.setattr(command, "scan", None)
    with pytest.raises(TinkitError, match=what):
        chosen(**given)


def test_a_folder_that_holds_something_is_never_written_to(prepared, tmp_path):
    root, _, settings = prepared
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "labels.csv").write_text("work of a day")
    with pytest.raises(TinkitError, match="something at this place"):
        select(root, 3, out=tmp_path / "mine", **settings)
    for inside in (root, root / "chosen"):
        with pytest.raises(TinkitError, match="among the pictures"):
            select(root, 3, out=inside, **settings)
    (tmp_path / "empty").mkdir()
    assert select(root, 3, out=tmp_path / "empty", **settings).path == str(tmp_path / "empty")


def test_a_full_disk_is_said_and_leaves_no_record(prepared, tmp_path, full_disk):
    root, _, settings = prepared
    with full_disk(), pytest.raises(TinkitError, match="Could not finish"):
        select(root, 6, out=tmp_path / "out", **settings)
    assert not (tmp_path / "out" / "selection.json").exists()


def test_ctrl_c_during_the_map_is_told(chosen, monkeypatch, tmp_path):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(manifold, "t_sne", pressed)
    with pytest.raises(Interrupted, match="features so far are kept"):
        chosen(6, seed=77)
    assert not any(tmp_path.iterdir())


def test_a_map_keeps_neighbours_and_belongs_to_its_seed():
    random = np.random.default_rng(0)
    owner = np.repeat(np.arange(4), 20)
    rows = (np.eye(12)[owner] * 8 + random.normal(size=(80, 12))).astype(np.float32)
    found = manifold.t_sne(rows, seed=1)
    assert found.shape == (80, 2)
    assert trustworthiness(rows, found, n_neighbors=5, metric="cosine") > 0.85
    assert trustworthiness(rows, random.permutation(found), n_neighbors=5, metric="cosine") < 0.7  # a planted fault
    np.testing.assert_array_equal(found, manifold.t_sne(rows, seed=1))


def test_few_pictures_get_a_smaller_perplexity_and_very_few_no_map(prepared, tmp_path):
    assert manifold.perplexity_for(1000) == 40
    assert manifold.perplexity_for(10) == 3
    root, _, settings = prepared
    few = tmp_path / "few"
    few.mkdir()
    some = gather.without_copies(scan(root).usable)[:7]
    for picture in some[:4]:
        shutil.copy(picture.path, few / f"{picture.content}.jpg")
    with pytest.raises(TinkitError, match="too few pictures for a map"):
        select(few, 2, out=tmp_path / "out", **settings)
    flat = select(few, 2, out=tmp_path / "flat", space="features", **settings)
    assert [one.at for one in flat.chosen] == [(), ()]
    assert not page_of(flat).all("svg")
    for picture in some[4:]:
        shutil.copy(picture.path, few / f"{picture.content}.jpg")
    found = select(few, 2, out=tmp_path / "seven", **settings)
    assert found.notes == ["perplexity 2: 7 pictures are few"]
    with pytest.raises(TinkitError, match="same features"):
        manifold.t_sne(np.ones((9, 3)))


def page_of(selection):
    with open(os.path.join(selection.path, "selection.html"), encoding="utf-8") as handle:
        return Page(handle.read())


def test_the_sheet_shows_every_picture_and_asks_nobody(chosen):
    selection, out = chosen(41, labels="folders")  # all of them: the nasty name too
    text = (out / "selection.html").read_text()
    page = Page(text)
    assert not page.all("script")
    assert NASTY in page.text
    images = page.all("img")
    assert len(images) == 41
    assert all(image["src"].startswith("data:image/jpeg;base64,") and image["alt"] for image in images)
    ids = [entry["id"] for entry in page.all("li") if "id" in entry]
    assert [link["href"][1:] for link in page.all("a")] == ids[::-1]  # the map's, the first on top
    assert len(set(ids)) == 41
    assert "default-src 'none'" in page.all("meta")[3]["content"]
    assert not re.search(r"https?://", text)
    assert f"{selection.classes['found']} of {selection.classes['of']}" in page.text


def test_a_long_selection_shows_the_first_and_says_so(chosen, monkeypatch):
    monkeypatch.setattr(sheet, "THUMBNAILS", 3)
    monkeypatch.setattr(sheet, "POINTS", 10)
    page = page_of(chosen(7)[0])
    assert len(page.all("img")) == len(page.all("a")) == 3
    assert len(page.all("circle")) == 7
    assert "4 more are in selection.csv" in page.text
    (dots,) = [path["d"] for path in page.all("path")]
    assert dots.count("M") == 10
    assert "10 of them drawn" in page.text


def test_a_picture_that_is_gone_is_said(prepared, chosen, monkeypatch):
    monkeypatch.setattr(sheet, "decode", lambda path: (_ for _ in ()).throw(FileNotFoundError(path)))
    page = page_of(chosen(3)[0])
    assert not page.all("img")
    assert page.text.count("cannot be read any more") == 3


def test_links_have_names_of_their_own_that_fit():
    long = Picture("/x", "é" * 300 + ".jpg", "c")
    assert folder.link_name(3, Picture("/a/b.jpg", "a/b.jpg", "c")) == "00003-b.jpg"
    assert folder.link_name(4, Picture("/c/b.jpg", "c/b.jpg", "c")) == "00004-b.jpg"
    assert len(os.fsencode(folder.link_name(1, long))) <= 210
    assert folder.link_name(1, long).endswith(".jpg")


def test_names_that_are_no_utf_8_go_the_whole_road(prepared, tmp_path):
    root, _, settings = prepared
    odd = tmp_path / "odd"
    odd.mkdir()
    for number, picture in enumerate(gather.without_copies(scan(root).usable)[:8]):
        shutil.copy(picture.path, os.fsdecode(os.fsencode(odd) + b"/\xff\x01\n%d.jpg" % number))
    found = select(odd, 3, out=tmp_path / "out", **settings)
    assert len(page_of(found).all("img")) == 3
    table = (tmp_path / "out" / "selection.csv").read_bytes()
    assert table.count(b"\xff\x01\n") == 6  # path and link
    filled = tmp_path / "labels.csv"
    filled.write_bytes(table.replace(b'.jpg",,1,', b'.jpg",cat,1,').replace(b'.jpg",,2,', b'.jpg",dog,2,'))
    by_name = {one.name: one.rank for one in found.chosen}
    read = read_labels(str(filled), list(scan(odd).usable), str(odd))
    assert {by_name[name]: read.classes[number] for name, number in read.by_name.items()} == {1: "cat", 2: "dog"}
    assert all(os.path.isfile(tmp_path / "out" / "pictures" / one.link) for one in found.chosen)


def test_each_of_two_that_lie_together_stands_for_itself():
    points = points_of(np.array([[0.0, 0], [0, 0], [1, 0], [9, 0], [9, 1], [9, 2], [8, 0]]), "euclidean")
    chosen, owner = command._ranked(points, np.array([0, 1, 3]), "k-medoids")
    assert chosen.tolist() == [3, 0, 1]
    assert owner.tolist() == [1, 2, 1, 0, 0, 0, 0]


def test_the_command_says_what_it_found_in_words(prepared, tmp_path, capsys):
    root, _, settings = prepared
    words = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items() if key != "quiet"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["select", str(root), "--budget", "4", *words, "--labels", "folders", "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert re.search(r"classes  \d+ of \d+; as many random pictures find \d+\.\d on average\n", told)
    assert f"sheet    {tmp_path / 'out' / 'selection.html'}\n" in told
