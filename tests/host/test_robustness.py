"""Answers under corruption: the numbers by hand, the road they take, going on after a stop, and what is refused."""

import json

import numpy as np
import pytest

from tinkit.errors import TinkitError
from tinkit.host.evaluate import robustness as module
from tinkit.host.evaluate.corruption_block import block
from tinkit.host.evaluate.corruptions import CORRUPTIONS, NAMES, corrupt
from tinkit.host.evaluate.measure import Measure
from tinkit.host.evaluate.robustness import measures, passes, robustness

CHEAP = ("gaussian_noise", "contrast")


@pytest.fixture(scope="module")
def pictures():
    """Twelve pictures of 32 pixels, each a smooth pattern of its own in the colour of one of three classes."""
    random = np.random.default_rng(0)
    found = []
    for i in range(12):
        rough = random.uniform(0, 120, (4, 4, 3))
        rough[..., i % 3] += 120
        found.append(np.kron(rough, np.ones((8, 8, 1))).astype(np.uint8))
    return found


LABELS = np.arange(12) % 3


def shrunk(pictures, side=4):
    """Rows: the picture in 4 x 4 patches."""
    step = 32 // side
    rows = [p.reshape(side, step, side, step, 3).mean(axis=(1, 3)).ravel() - 100 for p in pictures]
    return np.array(rows, np.float32)


def embed(pictures):
    rows = shrunk(pictures)
    return {"teacher": rows, "student": rows[:, ::2] + 0.0}


def by_colour(rows):
    """The brightest channel: the teacher keeps all of them, the student's rows are read as half a picture's."""
    return {
        "teacher": rows["teacher"].reshape(-1, 16, 3).mean(axis=1).argmax(axis=1),
        "student": rows["student"][:, :3].argmax(axis=1),
    }


def test_every_cell_is_what_a_plain_loop_finds(pictures):
    found = robustness(pictures, embed, by_colour, LABELS, names=CHEAP, severities=(1, 5), seed=7)
    assert found["judged"] == "accuracy"
    for name in CHEAP:
        for place, severity in enumerate((1, 5)):
            changed = [
                corrupt(p, name, severity, np.random.default_rng([7, NAMES.index(name), severity, i]))
                for i, p in enumerate(pictures)
            ]
            answers = by_colour(embed(changed))
            for network in ("teacher", "student"):
                assert found["corruptions"][name][network][place] == pytest.approx(np.mean(answers[network] == LABELS))
            agreement = np.mean(answers["teacher"] == answers["student"])
            assert found["corruptions"][name]["agreement"][place] == pytest.approx(agreement)
            rows, clean = shrunk(changed).astype(float), shrunk(pictures).astype(float)
            cosine = (rows * clean).sum(axis=1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(clean, axis=1)
            assert found["corruptions"][name]["cosine"]["teacher"][place] == pytest.approx(cosine.mean(), abs=1e-5)
    answers = by_colour(embed(pictures))
    assert found["clean"] == {n: pytest.approx(np.mean(answers[n] == LABELS)) for n in answers}


def cells_by_hand():
    """Two corruptions, two severities, four pictures."""
    right = {
        ("gaussian_noise", 1): {"teacher": [1, 1, 1, 1], "student": [1, 1, 1, 0]},
        ("gaussian_noise", 5): {"teacher": [1, 1, 0, 0], "student": [1, 0, 0, 0]},
        ("contrast", 1): {"teacher": [1, 1, 1, 1], "student": [1, 1, 1, 1]},
        ("contrast", 5): {"teacher": [1, 1, 1, 1], "student": [1, 1, 0, 1]},
    }
    return {
        cell: {
            "right": {n: np.array(v, bool) for n, v in both.items()},
            "agreement": 0.5,
            "cosine": {"teacher": 0.9, "student": 0.8},
        }
        for cell, both in right.items()
    }


def test_the_block_by_hand():
    clean = {"teacher": np.ones(4, bool), "student": np.array([1, 1, 1, 0], bool)}
    found = block(cells_by_hand(), clean, CHEAP, (1, 5), seed=0)
    assert found["clean"] == {"teacher": 1, "student": 0.75}
    assert found["corruptions"]["gaussian_noise"]["student"] == [0.75, 0.25]
    assert found["corruptions"]["gaussian_noise"]["mean"] == {"teacher": 0.75, "student": 0.5}
    assert found["by_severity"] == {"teacher": [1, 0.75], "student": [0.875, 0.5]}
    assert found["groups"] == {
        "noise": {"teacher": 0.75, "student": 0.5},
        "digital": {"teacher": 1, "student": 0.875},
    }
    assert (found["mean"]["teacher"], found["mean"]["student"]) == (14 / 16, 11 / 16)
    assert (found["gap"]["teacher"], found["gap"]["student"]) == (1 - 14 / 16, 0.75 - 11 / 16)
    assert found["corruptions"]["gaussian_noise"]["relative_error"] == pytest.approx((0.25 + 0.75) / (0 + 0.5))
    assert found["corruptions"]["contrast"]["relative_error"] is None  # the teacher makes none
    assert found["relative_error"] == pytest.approx(2)
    assert found["corruptions"]["gaussian_noise"]["relative_gap"] == pytest.approx((0 + 0.5) / (0 + 0.5))
    assert found["agreement"] == 0.5
    low, high = found["mean"]["interval"]
    assert low <= 11 / 16 <= high
    assert found["mean"]["change"][1] <= 0  # no picture that the student survives better


def test_one_answer_more_shows_where_it_should():
    clean = {"teacher": np.ones(4, bool), "student": np.array([1, 1, 1, 0], bool)}
    before = block(cells_by_hand(), clean, CHEAP, (1, 5), seed=0)
    cells = cells_by_hand()
    cells["gaussian_noise", 5]["right"]["student"][1] = True
    after = block(cells, clean, CHEAP, (1, 5), seed=0)
    assert after["mean"]["student"] == before["mean"]["student"] + 1 / 16
    assert after["gap"]["student"] == before["gap"]["student"] - 1 / 16
    assert after["mean"]["teacher"] == before["mean"]["teacher"]
    assert after["relative_error"] < before["relative_error"]
    assert after["corruptions"]["contrast"] == before["corruptions"]["contrast"]


def test_without_labels_a_picture_is_to_be_found_again(pictures):
    found = robustness(pictures, embed, names=CHEAP, severities=(1, 5))
    assert found["judged"] == "found again"
    assert found["clean"] == {"teacher": 1, "student": 1}
    assert found["corruptions"]["gaussian_noise"]["teacher"][0] == 1
    assert measures(found)[0].title == "Found again under corruption"
    assert "nearest clean picture" in measures(found)[0].what

    def blind(pictures):
        return {**embed(pictures), "student": np.random.default_rng(0).standard_normal((len(pictures), 24))}

    lost = robustness(
        pictures, lambda p: blind(p) if (p[0] != pictures[0]).any() else embed(p), names=CHEAP, severities=(5,)
    )
    assert lost["mean"]["student"] < 0.5 < lost["mean"]["teacher"]


def test_the_block_and_its_measures_are_plain(pictures):
    found = robustness(
        pictures, embed, by_colour, LABELS, names=("contrast", "fog", "jpeg_compression"), severities=(2,)
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    told = {measure.name: measure for measure in measures(found)}
    assert set(told) == {"corruption", "corruption_gap"}
    assert told["corruption"].student == found["mean"]["student"]
    assert told["corruption"].teacher == found["mean"]["teacher"]
    assert told["corruption_gap"].student == pytest.approx(found["clean"]["student"] - found["mean"]["student"])
    assert (told["corruption"].better, told["corruption_gap"].better) == ("higher", "lower")
    assert "3 corruptions at 1 severities" in told["corruption"].what
    assert all(Measure.from_json(json.loads(json.dumps(m.to_json()))) == m for m in told.values())


def test_batches_do_not_matter_and_every_picture_is_told(pictures, monkeypatch):
    ticks = []
    whole = robustness(pictures, embed, by_colour, LABELS, names=CHEAP, tick=ticks.append)
    assert sum(ticks) == passes(CHEAP) * 12 == 11 * 12
    assert passes() == 76
    monkeypatch.setattr(module, "BATCH", 5)
    assert robustness(pictures, embed, by_colour, LABELS, names=CHEAP) == whole
    assert robustness(pictures, embed, by_colour, LABELS, names=CHEAP, seed=1) != whole


def test_a_stopped_evaluation_goes_on_where_it_was(pictures, tmp_path):
    cache, seen = tmp_path / "deep" / "corruptions.json", []

    def stopping(after):
        def run(batch):
            if len(seen) == after:
                raise InterruptedError
            seen.append(len(batch))
            return embed(batch)

        return run

    whole = robustness(pictures, embed, by_colour, LABELS, names=CHEAP)
    with pytest.raises(InterruptedError):
        robustness(pictures, stopping(8), by_colour, LABELS, cache, names=CHEAP)
    assert len(json.loads(cache.read_text())["cells"]) == 7
    seen.clear()
    ticks = []
    assert robustness(pictures, stopping(99), by_colour, LABELS, cache, names=CHEAP, tick=ticks.append) == whole
    assert len(seen) == 1 + 3
    assert sum(ticks) == passes(CHEAP) * 12
    seen.clear()
    assert robustness(pictures, stopping(99), by_colour, LABELS, cache, names=CHEAP) == whole
    assert len(seen) == 1


def test_finished_cells_of_something_else_are_not_used(pictures, tmp_path):
    """Another network, other labels, another classifier or another seed: each starts afresh."""
    cache, count = tmp_path / "corruptions.json", []

    def counted(rows_of):
        def run(batch):
            count.append(1)
            return rows_of(batch)

        return run

    def another(batch):
        return {**embed(batch), "student": embed(batch)["student"] * np.float32(1.5)}

    def other_way(rows):
        return {n: (answers + 1) % 3 for n, answers in by_colour(rows).items()}

    first = robustness(pictures, counted(embed), by_colour, LABELS, cache, names=("contrast",))
    for arguments in (
        {"embed": another}, {"labels_N": LABELS[::-1]}, {"judge": other_way}, {"seed": 1}, {"judge": None, "labels_N": None},
        {"learnt": "another bank that gives the same clean answers"},
    ):  # fmt: skip
        robustness(pictures, embed, by_colour, LABELS, cache, names=("contrast",))
        count.clear()
        settings = {"embed": embed, "judge": by_colour, "labels_N": LABELS, "seed": 0, **arguments}
        settings["embed"] = counted(settings["embed"])
        robustness(pictures, cache=cache, names=("contrast",), **settings)
        assert len(count) == 6, arguments
    assert robustness(pictures, embed, by_colour, LABELS, cache, names=("contrast",)) == first
    cache.write_text("{")
    with pytest.raises(TinkitError, match="finished corruptions"):
        robustness(pictures, embed, by_colour, LABELS, cache, names=("contrast",))


def test_bits_survive_packing():
    for count in (1, 7, 8, 9, 100):
        right = np.random.default_rng(count).random(count) < 0.5
        cell = {"right": {"teacher": module._packed(right), "student": module._packed(~right)}, "agreement": 1.0}
        opened = module._opened(cell, count)
        assert (opened["right"]["teacher"] == right).all()
        assert (opened["right"]["student"] == ~right).all()


def test_what_does_not_fit_is_refused(pictures):
    for judge, labels in ((by_colour, None), (None, LABELS), (by_colour, LABELS[:-1])):
        with pytest.raises(ValueError, match="one label a picture"):
            robustness(pictures, embed, judge, labels)

    def overflow(batch):
        rows = embed(batch)
        rows["student"][np.array([p.max() == p.min() for p in batch])] = np.inf
        return rows

    grey = [*pictures[:-1], np.full((32, 32, 3), 9, np.uint8)]
    with pytest.raises(TinkitError, match="network under evaluation gives features that are not finite"):
        robustness(grey, overflow, by_colour, LABELS)


def test_the_groups_are_those_of_the_corruptions(pictures):
    one_of_each = [members[0] for members in CORRUPTIONS.values()]
    found = robustness(pictures, embed, by_colour, LABELS, names=one_of_each, severities=(1,))
    assert [entry["group"] for entry in found["corruptions"].values()] == list(CORRUPTIONS)
    assert found["groups"] == {entry["group"]: entry["mean"] for entry in found["corruptions"].values()}
