"""Which picture serves for what: by content, class by class, copies on one side, and a user's own parts kept."""

import numpy as np
import pytest
from PIL import Image

from tinkit.errors import TinkitError
from tinkit.host.evaluate.others import read_others
from tinkit.host.evaluate.pictures import BANK, PARTS, TEST, VALIDATION, require_bank_and_test, sort_pictures


def paint(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for number in range(30):
        paint(tmp_path / "data" / ("cat" if number % 3 else "dog") / f"{number:02}.png", number)
    return tmp_path / "data"


def names(found, part):
    return [picture.name for picture in found.parts[part]]


def test_sixty_twenty_twenty_of_every_class(folder):
    found = sort_pictures(folder)
    assert found.classes == ("cat", "dog")
    assert [np.bincount(found.labels[part]).tolist() for part in PARTS] == [[12, 6], [4, 2], [4, 2]]
    everything = [name for part in PARTS for name in names(found, part)]
    assert len(set(everything)) == len(everything) == 30
    assert [found.all[i].name for i in range(*found.rows_of(TEST).indices(30))] == names(found, TEST)
    for part in PARTS:
        assert [found.classes[n] for n in found.labels[part]] == [name.split("/")[0] for name in names(found, part)]


def test_the_split_is_by_content_and_copies_stay_together(folder, tmp_path):
    before = sort_pictures(folder)
    for number in range(30):
        name = folder / ("cat" if number % 3 else "dog") / f"{number:02}.png"
        (name.parent / f"copy-{number:02}.png").write_bytes(name.read_bytes())
    after = sort_pictures(folder)
    contents = {part: {picture.content for picture in before.parts[part]} for part in PARTS}
    assert {part: {picture.content for picture in after.parts[part]} for part in PARTS} == contents
    assert len(after.all) == 60


def test_a_class_of_three_is_in_every_part_and_one_of_one_is_in_the_bank(folder):
    for number in range(3):
        paint(folder / "ant" / f"{number}.png", 100 + number)
    paint(folder / "bee" / "0.png", 200)
    found = sort_pictures(folder)
    ant, bee = found.classes.index("ant"), found.classes.index("bee")
    assert [int((found.labels[part] == ant).sum()) for part in PARTS] == [1, 1, 1]
    assert [int((found.labels[part] == bee).sum()) for part in PARTS] == [1, 0, 0]


def test_own_parts_are_kept_and_a_copy_in_test_is_left_out(tmp_path):
    for number in range(20):
        for part, offset in (("train", 0), ("test", 100)):
            paint(tmp_path / part / ("cat" if number % 2 else "dog") / f"{number}.png", offset + number)
    paint(tmp_path / "test" / "cat" / "seen.png", 1)  # also in train
    found = sort_pictures(tmp_path)
    assert len(found.parts[BANK]) == 16
    assert len(found.parts[VALIDATION]) == 4
    assert len(found.parts[TEST]) == 20
    assert all(name.startswith("test/") for name in names(found, TEST))
    assert any("left out" in note for note in found.notes)
    assert any("validation" in note for note in found.notes)


def test_own_validation_is_kept(tmp_path):
    for number in range(6):
        for part, offset in (("train", 0), ("val", 50), ("test", 100)):
            paint(tmp_path / part / ("cat" if number % 2 else "dog") / f"{number}.png", offset + number)
    found = sort_pictures(tmp_path)
    assert [len(found.parts[part]) for part in PARTS] == [6, 6, 6]
    assert found.notes == ()


def test_one_folder_is_no_label_and_none_asks_for_none(folder, tmp_path):
    for number in range(8):
        paint(tmp_path / "plain" / f"{number}.png", number)
    assert sort_pictures(tmp_path / "plain").classes == ()
    found = sort_pictures(folder, labels="none")
    assert found.classes == ()
    assert found.labels == {}
    assert [len(found.parts[part]) for part in PARTS] == [18, 6, 6]


def test_labels_that_are_asked_for_and_not_there_are_an_error(tmp_path):
    for number in range(8):
        paint(tmp_path / f"{number}.png", number)
    with pytest.raises(TinkitError, match="two classes"):
        sort_pictures(tmp_path, labels="folders")


def test_a_limit_is_drawn_by_content_and_said_of_too_few(folder):
    found = sort_pictures(folder, limit=10)
    assert len(found.all) == 10
    again = {picture.content for picture in sort_pictures(folder, limit=20).all}
    assert {picture.content for picture in found.all} <= again
    with pytest.raises(TinkitError, match="too few"):
        sort_pictures(folder, limit=3)


def test_what_lies_beside_the_parts_is_left_out_and_a_part_is_no_class(tmp_path):
    for number in range(12):
        for part, offset in (("train", 0), ("test", 100)):
            paint(tmp_path / part / ("cat" if number % 2 else "dog") / f"{number}.png", offset + number)
    paint(tmp_path / "loose.png", 500)
    paint(tmp_path / "train" / "loose.png", 501)
    found = sort_pictures(tmp_path)
    assert found.classes == ("cat", "dog")
    assert len(found.all) == 24
    assert sum("left out" in note for note in found.notes) == 2
    without = sort_pictures(tmp_path, labels="none")
    assert len(without.all) == 25
    assert any("in no part" in note for note in without.notes)
    with pytest.raises(TinkitError, match="two classes"):
        sort_pictures(plain_parts(tmp_path / "plain"), labels="folders")


def plain_parts(folder):
    for number in range(8):
        for part in ("train", "test"):
            paint(folder / part / f"{number}.png", number + 700 * (part == "test"))
    return folder


def test_a_picture_with_two_labels_is_left_out_with_its_copies(folder):
    paint(folder / "cat" / "seen.png", 900)
    paint(folder / "dog" / "seen.png", 900)
    found = sort_pictures(folder)
    assert len(found.all) == 30
    assert "2 pictures with copies in other classes were left out" in found.notes


def test_a_copy_in_validation_is_left_out(tmp_path):
    for number in range(6):
        for part, offset in (("train", 0), ("val", 50), ("test", 100)):
            paint(tmp_path / part / ("cat" if number % 2 else "dog") / f"{number}.png", offset + number)
    paint(tmp_path / "val" / "dog" / "seen.png", 0)  # also in train
    found = sort_pictures(tmp_path)
    assert [len(found.parts[part]) for part in PARTS] == [6, 6, 6]
    assert "1 validation pictures are also in another part and were left out" in found.notes


def test_lines_of_labels_that_fit_nothing_are_said(folder, tmp_path):
    pictures = [picture.name for picture in sort_pictures(folder).all]
    lines = [f"{name},{name.split('/')[0]}" for name in pictures] + ["typo.png,cat", "other.png,dog"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    found = sort_pictures(folder, labels=str(tmp_path / "labels.csv"))
    assert any(note.startswith("2 lines of the labels") for note in found.notes)


def test_nothing_to_judge_on_is_said_before_the_work(tmp_path):
    for number in range(9):
        paint(tmp_path / str(number) / "one.png", number)
    found = sort_pictures(tmp_path, labels="folders")  # a head may still be fitted
    with pytest.raises(TinkitError, match="nothing to judge on") as error:
        require_bank_and_test(found)
    assert "--labels none" in str(error.value)
    assert "9 bank, 0 validation, 0 test, 9 classes" in str(error.value)


def test_folders_of_few_pictures_are_not_taken_for_classes_unasked(tmp_path):
    for number in range(16):
        paint(tmp_path / str(number // 2) / f"{number}.png", number)
    found = sort_pictures(tmp_path)
    assert found.classes == ()
    assert found.labels == {}
    assert any("not taken for classes" in note for note in found.notes)
    require_bank_and_test(found)


def others(entries, known, labelled, limit=None):
    return read_others(entries, known, labelled, limit, lambda name: lambda total: None, lambda: False)


def test_a_domain_has_the_same_classes_and_others_are_left_out(folder, tmp_path):
    for number in range(6):
        paint(tmp_path / "art" / ("dog" if number % 2 else "owl") / f"{number}.png", 300 + number)
    (found,) = others([tmp_path / "art"], sort_pictures(folder), True)
    assert [picture.name.split("/")[0] for picture in found.pictures] == ["dog"] * 3
    assert found.numbers_N.tolist() == [1, 1, 1]
    assert found.notes == ("art: 3 pictures of no class of --data were left out",)
    for number in range(3):
        paint(tmp_path / "sea" / "fish" / f"{number}.png", 400 + number)
    with pytest.raises(TinkitError, match="no picture of a known class"):
        others([tmp_path / "sea"], sort_pictures(folder), True)


def test_strange_pictures_need_no_classes_and_folders_of_one_name_are_told_apart(folder, tmp_path):
    for number in range(6):
        for place in "ab":
            paint(tmp_path / place / "noise" / f"{number}.png", ord(place) * 10 + number)
    found = others([tmp_path / "a" / "noise", f"near:{tmp_path / 'b' / 'noise'}"], sort_pictures(folder), False, 4)
    assert [(other.name, other.group, len(other.pictures)) for other in found] == [
        ("noise", "", 4),
        ("noise 2", "near", 4),
    ]
    assert set(found[0].numbers_N.tolist()) == {-1}


def test_pictures_of_data_are_no_strange_ones_and_no_other_domain(folder, tmp_path):
    known = sort_pictures(folder)
    for labelled in (False, True):
        with pytest.raises(TinkitError, match="is in --data too"):
            others([folder], known, labelled)
    paint(tmp_path / "art" / "dog" / "new.png", 600)
    paint(tmp_path / "art" / "dog" / "seen.png", 0)
    (found,) = others([tmp_path / "art"], known, True)
    assert [picture.name for picture in found.pictures] == ["dog/new.png"]
    assert found.notes == ("art: 1 pictures are in --data too and were left out",)


def test_files_of_a_further_folder_that_cannot_be_read_are_counted(folder, tmp_path):
    paint(tmp_path / "noise" / "0.png", 1000)
    (tmp_path / "noise" / "empty.jpg").write_bytes(b"")
    (found,) = others([tmp_path / "noise"], sort_pictures(folder), False)
    assert found.notes == ("noise: 1 files cannot be read",)
