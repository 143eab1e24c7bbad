"""The OOD block: scores against scikit-learn's neighbours, two networks side by side, intervals, sets and what is refused."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from tinkit.errors import TinkitError
from tinkit.host.evaluate.ood import measures, ood

WIDTHS = {"teacher": 12, "student": 6}


def cloud(seed, count, direction, spread=0.5):
    """Rows about one axis of the space: the larger the spread, the less of it is left."""
    random = np.random.default_rng(seed)
    rows = {}
    for network, width in WIDTHS.items():
        rows[network] = spread * random.standard_normal((count, width)).astype(np.float32)
        rows[network][:, direction] += 1
    return rows


@pytest.fixture(scope="module")
def parts():
    bank, known = cloud(0, 90, 0), cloud(1, 70, 0)
    strange = {"paintings": cloud(2, 60, 1), "similar": cloud(3, 50, 0, 0.9)}
    return bank, known, strange


def by_sklearn(bank, known, strange, k):
    """AUROC of the cosine to the k-th neighbour by two other libraries' functions."""
    search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(bank)
    scores = [1 - search.kneighbors(rows)[0][:, -1] for rows in (known, strange)]
    return roc_auc_score(np.r_[np.ones(len(known)), np.zeros(len(strange))], np.concatenate(scores))


def test_scores_are_the_kth_cosine_of_each_networks_own_bank(parts):
    bank, known, strange = parts
    block = ood(bank, known, strange)
    for network in WIDTHS:
        for k in (1, 50):
            expected = [by_sklearn(bank[network], known[network], rows[network], k) for rows in strange.values()]
            for name, value in zip(strange, expected):
                assert block["sets"][name]["k"][str(k)][network]["auroc"] == pytest.approx(value, abs=1e-9)
            assert block["mean"][str(k)][network]["auroc"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert block["mean"]["1"]["student"] != block["mean"]["1"]["teacher"]


def test_the_block_is_plain_finite_and_small(parts):
    block = ood(*parts, groups={"similar": "near", "paintings": "far"})

    def numbers(value):
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value)
        for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from numbers(entry)
        if isinstance(value, float):
            yield value

    assert all(math.isfinite(number) for number in numbers(block))
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    assert len(json.dumps(block)) < 24_000
    for entry in block["sets"].values():
        for network in WIDTHS:
            histogram = entry["histogram"][network]
            assert len(histogram["edges"]) == 31
            assert sum(histogram["known"]) == 70
            assert sum(histogram["strange"]) == entry["pictures"]
            assert len(entry["roc"][network]) <= 100


def test_near_and_far_are_means_of_their_sets(parts):
    bank, known, strange = parts
    strange = {**strange, "drawings": cloud(7, 40, 2)}
    block = ood(bank, known, strange, groups={"similar": "near", "paintings": "far", "drawings": "far"})
    of = {name: entry["k"]["1"]["student"]["auroc"] for name, entry in block["sets"].items()}
    assert block["near"]["1"]["student"]["auroc"] == of["similar"]
    assert block["far"]["1"]["student"]["auroc"] == pytest.approx((of["paintings"] + of["drawings"]) / 2)
    assert block["mean"]["1"]["student"]["auroc"] == pytest.approx(np.mean(list(of.values())))
    assert [block["sets"][name]["group"] for name in strange] == ["far", "near", "far"]
    assert not {"near", "far"} & set(ood(bank, known, strange))
    assert {m.name for m in measures(block)} == {"auroc", "fpr95", "aupr", "auroc@50", "auroc_near", "auroc_far"}


def test_intervals_are_those_of_a_plain_bootstrap(parts):
    """A loop over drawn pictures that compares each with each: ends within Monte Carlo error of 2000 draws of another seed."""
    bank, known, strange = parts
    block = ood(bank, known, strange)
    random = np.random.default_rng(99)
    search = {n: NearestNeighbors(n_neighbors=1, metric="cosine").fit(bank[n]) for n in WIDTHS}
    score = {n: [-search[n].kneighbors(rows[n])[0] for rows in (known, strange["similar"])] for n in WIDTHS}
    passes = {n: (score[n][0] > score[n][1].T) + 0.5 * (score[n][0] == score[n][1].T) for n in WIDTHS}
    drawn = {n: [] for n in WIDTHS}
    for _ in range(2000):
        pairs = np.ix_(random.integers(70, size=70), random.integers(50, size=50))
        for n in WIDTHS:
            drawn[n].append(passes[n][pairs].mean())
    told = block["sets"]["similar"]["k"]["1"]
    change = np.subtract(drawn["student"], drawn["teacher"])
    assert told["interval"]["auroc"] == pytest.approx(np.percentile(drawn["student"], (2.5, 97.5)), abs=0.02)
    assert told["change"]["auroc"] == pytest.approx(np.percentile(change, (2.5, 97.5)), abs=0.02)
    apart = np.subtract(drawn["student"], np.random.default_rng(1).permutation(drawn["teacher"]))
    wider = np.percentile(apart, (2.5, 97.5))
    assert np.ptp(told["change"]["auroc"]) < np.ptp(wider)  # the same pictures for both: less is left to chance


def test_the_same_network_twice_has_no_change(parts):
    bank, known, strange = ({**rows, "student": rows["teacher"]} for rows in (parts[0], parts[1], parts[2]["similar"]))
    told = ood(bank, known, {"similar": strange})["mean"]["1"]
    assert told["student"] == told["teacher"]
    assert set(told["difference"].values()) == {0.0}
    assert all(ends == [0.0, 0.0] for ends in told["change"].values())


def test_a_worse_student_is_told_so(parts):
    """The fault: a student that sees known pictures in strange ones."""
    bank, known, strange = parts
    blind = {"paintings": {**strange["paintings"], "student": known["student"][:60]}}
    before, after = (
        {m.name: m for m in measures(ood(bank, known, sets))} for sets in ({"paintings": strange["paintings"]}, blind)
    )
    assert before["auroc"].student > 0.8
    assert after["auroc"].student == pytest.approx(0.5, abs=0.12)
    assert after["auroc"].change[1] < 0
    assert after["fpr95"].student > before["fpr95"].student
    assert after["auroc"].teacher == before["auroc"].teacher


def test_measures_say_their_convention(parts):
    block = ood(*parts)
    found = {measure.name: measure for measure in measures(block)}
    assert found["auroc"].student == block["mean"]["1"]["student"]["auroc"]
    assert found["auroc@50"].student == block["mean"]["50"]["student"]["auroc"]
    assert found["fpr95"].student == block["mean"]["1"]["student"]["fpr95_known"]
    assert found["fpr95"].better == "lower"
    assert found["aupr"].teacher == block["mean"]["1"]["teacher"]["aupr_known"]
    assert {found[name].better for name in ("auroc", "aupr", "auroc@50")} == {"higher"}
    assert "k = 50" in found["auroc@50"].what
    assert "recall of known" in found["fpr95"].what
    assert all(m.group == "ood" and m.interval[0] <= m.student <= m.interval[1] for m in found.values())


def test_a_seed_repeats_and_sets_do_not_disturb_each_other(parts):
    bank, known, strange = parts
    first = ood(bank, known, strange, seed=3)
    assert ood(bank, known, strange, seed=3) == first
    assert ood(bank, known, strange, seed=4)["mean"]["1"]["interval"] != first["mean"]["1"]["interval"]
    alone = ood(bank, known, {"paintings": strange["paintings"]}, seed=3)
    assert alone["sets"]["paintings"] == first["sets"]["paintings"]


def test_length_of_rows_does_not_count(parts):
    bank, known, strange = parts
    longer = [{n: 7 * rows[n] for n in WIDTHS} for rows in (bank, known, strange["similar"])]
    mean = ood(bank, known, {"similar": strange["similar"]})["mean"]["1"]["student"]
    assert ood(longer[0], longer[1], {"similar": longer[2]})["mean"]["1"]["student"] == pytest.approx(mean, abs=1e-6)


def test_a_small_bank_and_known_pictures_in_it_are_said(parts):
    _, known, strange = parts
    bank = {n: known[n][:20] for n in WIDTHS}
    notes = " ".join(ood(bank, known, strange)["notes"])
    assert "k = 50 is more than the 20 pictures" in notes
    assert "20 of the known pictures" in notes
    assert ood(*parts)["notes"] == []


def test_what_does_not_fit_is_refused(parts):
    bank, known, strange = parts
    short = {"teacher": known["teacher"], "student": known["student"][:-1]}
    nothing = {n: rows[:0] for n, rows in known.items()}
    holes = {n: np.where(np.arange(len(rows))[:, None] == 3, np.nan, rows) for n, rows in known.items()}
    for arguments in ((bank, short, strange), (bank, nothing, strange), (nothing, known, strange), (bank, known, {}),
                      (bank, known, {"empty": nothing})):  # fmt: skip
        with pytest.raises(ValueError, match=r"rows of the teacher|no strange"):
            ood(*arguments)
    for arguments in ((holes, known, strange), (bank, holes, strange), (bank, known, {"broken": holes})):
        with pytest.raises(TinkitError, match="not finite") as error:
            ood(*arguments)
        assert error.value.seen.startswith("1 of")
    with pytest.raises(ValueError, match="group"):
        ood(bank, known, strange, groups={"similar": "middling"})
