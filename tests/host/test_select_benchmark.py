"""benchmarks/selection.py: its draws, its differences, its page, and one small seed of the real thing."""

import os
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from export_parts import ROOT
from scipy import stats

sys.path.insert(0, os.path.join(ROOT, "benchmarks"))

import selection
import selection_table as table


@pytest.fixture(scope="module")
def seeds():
    """Two seeds of 160 made-up pictures in four groups, pools of 120."""
    random = np.random.default_rng(0)
    owner = {"pool": random.integers(0, 4, 160), "held-out": random.integers(0, 4, 60)}
    rows = {
        part: (np.eye(16)[of] * 3 + random.normal(size=(len(of), 16))).astype(np.float32) for part, of in owner.items()
    }
    found = [selection.one_seed(seed, rows, owner, owner["pool"], 120) for seed in range(2)]
    return [dict(result, classes=4, kinds=4) for result in found]


def test_a_seed_has_every_row_and_budget_and_is_better_than_chance(seeds):
    for result in seeds:
        assert tuple(result["rows"]) == selection.ROWS
        for of_row in result["rows"].values():
            assert list(of_row) == [str(budget) for budget in selection.BUDGETS]
            assert all(found["knn"] > 0.4 and found["probe"] > 0.4 for found in of_row.values())
    assert all(result["rows"]["random by class"]["10"]["classes"] == 4 for result in seeds)


def test_pools_differ_by_seed_and_a_seed_repeats(seeds):
    assert seeds[0]["rows"] != seeds[1]["rows"]


def test_as_many_of_each_class_are_drawn():
    labels = np.repeat([0, 1, 2], [50, 30, 2])
    found = selection.by_class(labels, 12, seed=3)
    assert len(set(found)) == 12
    assert np.bincount(labels[found]).tolist() in ([5, 5, 2],)  # the third has no more
    assert sorted(np.bincount(labels[selection.by_class(labels, 4, 1)]).tolist()) == [1, 1, 2]


def test_a_single_class_among_the_chosen_answers_always_the_same():
    rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    truth = np.array([2] * 3 + [1] * 7)
    found = selection.judge(rows, np.full(20, 2), np.arange(5), rows[:10], truth)
    assert found == {"knn": 0.3, "probe": 0.3}


def test_paired_differences_are_scipy_s():
    ours, others = [0.5, 0.7, 0.4, 0.9], [0.4, 0.65, 0.5, 0.6]
    wanted = stats.ttest_rel(ours, others).confidence_interval(0.95)
    assert table.paired(ours, others) == pytest.approx([0.0875, wanted.low, wanted.high])
    assert table.paired([0.5], [0.25]) == [0.25, 0.25, 0.25]


def test_the_page_has_its_numbers_and_keeps_what_was_written_by_hand(seeds, tmp_path):
    summary = {"pacs": table.summarise(seeds, selection.ROWS, selection.BUDGETS, selection.RANDOM)}
    of_row = summary["pacs"]["rows"]["k-medoids"]["knn"]
    values = [result["rows"]["k-medoids"]["30"]["knn"] for result in seeds]
    assert of_row["mean"][2] == pytest.approx(np.mean(values))
    assert of_row["sd"][2] == pytest.approx(np.std(values, ddof=1))
    assert summary["pacs"]["rows"]["random"]["knn"]["over"] == [[0, 0, 0]] * 10
    path = str(tmp_path / "select.md")
    table.write(path, summary, selection.SETS, "conditions")
    with open(path, "a", encoding="utf-8") as handle:
        handle.write("by hand\n")
    table.write(path, summary, selection.SETS, "conditions")
    text = (tmp_path / "select.md").read_text()
    assert text.endswith("by hand\n")
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in text
    chart = ElementTree.parse(tmp_path / "select.svg").getroot()
    lines = [entry for entry in chart.iter() if entry.tag.endswith("polyline")]
    assert len(lines) == len(table.DRAWN) * len(table.MEASURES)
    assert all(len(line.get("points").split()) == 10 for line in lines)


def test_better_at_needs_the_whole_interval_to_be_sure():
    of_row = {"knn": {"over": [[0.1, 0.05, 0.15], [0.1, -0.05, 0.25], [-0.1, -0.2, 0.0]]}}
    assert table.better_at(of_row, "knn", [10, 20, 30]) == ([10, 20], [10])


def test_finished_seeds_are_not_made_again(seeds, tmp_path, monkeypatch):
    from tinkit import files

    arguments = SimpleNamespace(work=str(tmp_path), seeds=2, embedded=160, pool=120, held_out=60)
    folder = selection.result_folder(arguments)
    for seed, result in enumerate(seeds):
        files.write_json(os.path.join(folder, f"pacs-{seed}.json"), result)
    monkeypatch.setattr(selection, "features_of", None)
    assert selection.work_off("pacs", arguments) == seeds


def test_no_benchmark_stands_in_the_way_of_a_module_of_python():
    names = {name.removesuffix(".py") for name in os.listdir(os.path.join(ROOT, "benchmarks"))}
    assert not names & set(sys.stdlib_module_names)
