"""The comparison of the methods, without training: who is in which part, what runs next, which rate wins, what is shown."""

import io
import json
import os
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "benchmarks")
if not os.path.isdir(BENCHMARKS):
    pytest.skip("the benchmarks are in the checkout only", allow_module_level=True)
sys.path.insert(0, BENCHMARKS)

from command import BY_HAND, write_page  # noqa: E402
from method_cost import BARE, interleaved_ms, table  # noqa: E402
from method_measures import auroc, knn_accuracy, measure  # noqa: E402
from method_pictures import CORRUPTIONS, STYLES, UNKNOWN, choose, lay_out, shrink  # noqa: E402
from method_rows import RATES, ROWS, STUDY, Budget, Job, choose_rate, plan, ready_jobs, written_runs  # noqa: E402
from method_table import markdown, summarise  # noqa: E402
from methods import taken_over, work_off  # noqa: E402

from tinkit.errors import TinkitError  # noqa: E402

BUDGET = Budget(epochs=6, seeds=3, per_class=40)
TRAINED = ({"method": "cosine"}, 3)
MEASURED = dict.fromkeys(
    ("knn", "probe", "agreement", "cosine_difference", "cosine_difference_centred", "spearman", "cka", "auroc",
     "corrupted"), 0.5
)  # fmt: skip


def names(group, *contents):
    return [(group, content) for content in contents]


def test_choosing_is_by_content_disjoint_and_balanced():
    found = names("cat", *"abcdefgh") + names("dog", *"ijklmnop")
    first, second = choose(found, (3, 2))
    assert len(first) == 6
    assert len(second) == 4
    assert not set(first) & set(second)
    assert [found[i][0] for i in first] == ["cat"] * 3 + ["dog"] * 3

    def contents(of, indices):
        return {of[index][1] for index in indices}

    other = found[::-1]  # another order of the files, the same pictures
    assert contents(other, choose(other, (3, 2))[0]) == contents(found, first)
    assert contents(other, choose(other, (3, 2))[1]) == contents(found, second)


def test_equal_contents_are_drawn_once_and_taken_ones_never():
    found = names("cat", "a", "a", "a", "b", "c")
    (chosen,) = choose(found, (2,), taken={"b"})
    assert sorted(found[i][1] for i in chosen) == ["a", "c"]
    with pytest.raises(ValueError, match="fewer than 3"):
        choose(found, (3,), taken={"b"})


def picture(seed, size=(32, 32)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG")
    return written.getvalue()


def write_tar(path, names_and_contents):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in names_and_contents:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_the_layout_is_kept_apart_and_strange_pictures_look_like_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("method_pictures.VALIDATION", 1)
    monkeypatch.setattr("method_pictures.HELD_OUT", 1)
    monkeypatch.setattr("method_pictures.OOD", 1)
    shared = picture(100)
    train = [(f"{c}/{i}.jpg", picture(10 * i + k)) for k, c in enumerate(("cat", "dog")) for i in range(3)]
    write_tar(tmp_path / "cifar10-train.tar.gz", [*train, ("cat/9.jpg", shared)])
    write_tar(
        tmp_path / "cifar10-test.tar.gz",
        [("cat/0.jpg", shared), ("cat/1.jpg", picture(101)), ("dog/0.jpg", picture(102))],
    )
    for number, style in enumerate(STYLES):
        of_style = [(f"{c}/0.jpg", picture(200 + 10 * number + k, (50, 40))) for k, c in enumerate((*UNKNOWN, "dog"))]
        write_tar(tmp_path / f"pacs-{style}.tar", of_style)
    root = tmp_path / "pictures"
    lay_out(tmp_path, root, 2)
    found = {part: sorted((root / part).rglob("*.jpg")) for part in ("train", "validation", "held-out", "ood")}
    assert {part: len(paths) for part, paths in found.items()} == {
        "train": 4,
        "validation": 2,
        "held-out": 2,
        "ood": 20,
    }
    contents = [path.read_bytes() for paths in found.values() for path in paths]
    assert len(set(contents)) == len(contents)
    assert shared not in [path.read_bytes() for path in found["held-out"]]  # it is in the train archive
    assert not [path for path in found["ood"] if path.parent.name == "dog"]
    assert {Image.open(io.BytesIO(path.read_bytes())).size for path in found["ood"]} == {(32, 32)}
    (root / "train" / "cat").rename(root / "train" / "moved")
    lay_out(tmp_path, root, 2)  # a finished layout is left alone
    assert not (root / "train" / "cat").exists()


def test_shrinking_keeps_the_middle_and_the_quality():
    image = Image.new("RGB", (96, 64), "red")
    image.paste("blue", (16, 0, 80, 64))  # the centred square
    written = io.BytesIO()
    image.save(written, "PNG")
    small = Image.open(io.BytesIO(shrink(written.getvalue())))
    assert np.asarray(small)[..., 2].min() > 200
    assert (
        small.quantization == Image.open(io.BytesIO(picture(0))).quantization
    )  # Pillow's own: 75, as CIFAR-10's files


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_the_picture_and_is_the_same_every_time(name):
    image = Image.open(io.BytesIO(picture(3))).convert("RGB")
    first, second = (np.asarray(CORRUPTIONS[name](image, "ab" * 32), np.int64) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (32, 32, 3)
    assert np.abs(first - np.asarray(image, np.int64)).mean() > 2


def tuned(accuracies, row=TRAINED):
    """Results of a row's tuning runs."""
    jobs = plan(row, {}, {}, BUDGET).ready
    return {job.key: {"knn_validation": accuracy} for job, accuracy in zip(jobs, accuracies)}


def test_the_best_rate_is_taken_and_of_equals_the_lowest():
    assert choose_rate({1e-3: 0.1, 1e-2: 0.3, 1e-1: 0.2}) == 1e-2
    assert choose_rate({1e-1: 0.3, 1e-2: 0.3, 1e-3: None}) == 1e-2
    assert choose_rate({1e-3: None}) is None
    assert choose_rate({}) is None


def test_a_row_is_tuned_first_and_then_run_with_every_seed():
    stand = plan(TRAINED, {}, {}, BUDGET)
    assert [(job.rate, job.seed, job.epochs, job.final) for job in stand.ready] == [(r, 0, 2, False) for r in RATES]
    results = tuned((0.1, 0.3, 0.2))
    partly = dict(list(results.items())[:2])
    assert [job.rate for job in plan(TRAINED, partly, {}, BUDGET).ready] == [RATES[2]]
    stand = plan(TRAINED, results, {}, BUDGET)
    assert stand.rate == RATES[1]
    assert [(job.rate, job.seed, job.epochs, job.final) for job in stand.ready] == [
        (RATES[1], s, 6, True) for s in range(3)
    ]
    results[stand.ready[1].key] = MEASURED
    assert [job.seed for job in plan(TRAINED, results, {}, BUDGET).ready] == [0, 2]
    assert len(plan(TRAINED, results, {}, Budget(6, 2, 40)).finals) == 2


def test_the_student_as_it_is_born_has_no_rate_to_choose():
    stand = plan((None, 3), {}, {}, BUDGET)
    assert [(job.rate, job.final) for job in stand.ready] == [(None, True)] * 3
    assert stand.failed is None


def test_a_failure_is_not_tried_twice_and_a_diverged_rate_is_not_chosen():
    jobs = plan(TRAINED, {}, {}, BUDGET).ready
    stand = plan(TRAINED, {}, {jobs[0].key: "out of memory"}, BUDGET)
    assert stand.failed == "out of memory"
    assert [job.rate for job in stand.ready] == list(RATES[1:])
    results = tuned((0.1, 0.3, 0.2))
    results[jobs[1].key] = {"diverged": "not finite"}
    assert plan(TRAINED, results, {}, BUDGET).rate == RATES[2]
    for job in jobs:
        results[job.key] = {"diverged": "not finite"}
    stand = plan(TRAINED, results, {}, BUDGET)
    assert (stand.ready, stand.failed) == ((), "the loss was not finite at any of the rates")


def test_equal_settings_share_their_runs_and_other_settings_do_not():
    rows = {"a": TRAINED, "the same": TRAINED, "b": ({"method": "mse"}, 1)}
    assert len(ready_jobs(rows, {}, {}, BUDGET)) == 2 * len(RATES)
    default, same = ROWS["tintem (default)"], STUDY["pca centred + 1 cosines"]
    assert [j.key for j in plan(default, {}, {}, BUDGET).ready] == [j.key for j in plan(same, {}, {}, BUDGET).ready]
    keys = [job.key for job in ready_jobs({**ROWS, **STUDY}, {}, {}, BUDGET)]
    assert len(keys) == len(set(keys))
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-+.") for key in keys)  # file names
    longer = plan(TRAINED, {}, {}, Budget(9, 3, 40)).ready + plan(TRAINED, {}, {}, Budget(6, 3, 50)).ready
    assert not set(keys) & {job.key for job in longer}


def test_a_job_survives_its_way_to_another_process():
    for job in ready_jobs(ROWS, {}, {}, BUDGET):
        again = Job.from_json(job.to_json())
        assert again.key == job.key
        assert again.epochs == job.epochs


def test_every_row_is_something_that_distill_takes():
    from tinkit.host.distill.settings import Settings

    assert not [name for name in (*ROWS, *STUDY) if "," in name]  # --rows has commas between
    for settings, seeds in [*ROWS.values(), *STUDY.values()]:
        assert seeds in (1, 3)
        if settings is not None:
            Settings(images="somewhere", **settings)


class Arguments:
    jobs = 2


def fake_runs(monkeypatch, broken=""):
    """Jobs by key, in the order in which they were run; those with `broken` in their key fail."""
    ran = []

    def run(_, job):
        ran.append(job.key)
        if broken and broken in job.key:
            raise RuntimeError("as told")
        return {"knn_validation": 0.5, "knn": 0.5} if job.final else {"knn_validation": job.rate}

    monkeypatch.setattr("methods.in_a_process", run)
    return ran


def test_work_goes_on_where_it_stopped_and_past_a_failure(monkeypatch):
    rows = {"a": TRAINED, "b": ({"method": "mse"}, 1), "born": (None, 1)}
    ran, results = fake_runs(monkeypatch, broken="mse"), {}
    failed = work_off(rows, results, BUDGET, Arguments)
    assert len(ran) == 3 + 3 + 3 + 1
    assert len(set(ran)) == len(ran)
    assert set(failed) == {key for key in ran if "mse" in key}
    assert plan(rows["a"], results, failed, BUDGET).rate == RATES[2]
    again = fake_runs(monkeypatch)
    assert work_off(rows, results, BUDGET, Arguments) == {}
    assert sorted(again) == sorted([*failed, *(job.key for job in plan(rows["b"], results, {}, BUDGET).finals)])


def test_the_table_says_what_is_missing_and_what_failed():
    rows = {"whole": TRAINED, "half": ({"method": "mse"}, 3), "broken": ({"method": "vkd"}, 1)}
    results = {**tuned((0.1, 0.2, 0.3)), **tuned((0.3, 0.2, 0.1), rows["half"])}
    for key in results:
        results[key].update(step_ms=100.0, peak_mb=800.0, extra_parameters=1234)
    for name, values in (("whole", (0.5, 0.6, 0.7)), ("half", (0.4,))):
        for job, value in zip(plan(rows[name], results, {}, BUDGET).finals, values):
            results[job.key] = {**MEASURED, "knn": value, "step_ms": 300.0}
    broken = plan(rows["broken"], results, {}, BUDGET).ready[0].key
    summary = summarise(rows, results, {broken: "out of memory"}, BUDGET)
    lines = [line.split(" | ") for line in markdown(summary, MEASURED).splitlines()]
    assert len({len(cells) for cells in lines[:1] + lines[2:]}) == 1
    assert lines[2][:4] == ["| teacher", "-", "-", "0.500"]
    assert lines[3][:4] == ["| whole", "3", "0.015 (highest)", "0.600 ± 0.100"]
    assert lines[4][:4] == ["| half", "1 of 3", "0.0017 (lowest)", "0.400"]
    assert lines[5][:4] == ["| broken", "failed (0 of 1)", "-", "-"]
    assert lines[3][-3:] == ["200", "1,234", "800 |"]  # medians over all runs: three of 100 ms, three of 300


def test_a_page_keeps_what_was_written_by_hand(tmp_path):
    page = str(tmp_path / "methods.md")
    write_page(page, "T", "command", "| old |", "with care.", {"a": 1})
    with open(page, "a", encoding="utf-8") as handle:
        handle.write("\nMy reading of it.\n")
    write_page(page, "T", "command", "| new |", "with care.", {"a": 2})
    with open(page, encoding="utf-8") as handle:
        text = handle.read()
    assert "| new |" in text
    assert "| old |" not in text
    assert text.count(BY_HAND) == 1
    assert text.endswith("My reading of it.\n")
    assert json.loads((tmp_path / "methods.json").read_text()) == {"a": 2}


def written_page(tmp_path, rows, teacher):
    """A page's JSON with everything done but the last seed."""
    results = tuned((0.1, 0.3, 0.2))
    for job in plan(TRAINED, results, {}, BUDGET).finals[:2]:
        results[job.key] = {"rate": job.rate, "seed": job.seed, "epochs": job.epochs, "commit": "abc", **MEASURED}
    path = tmp_path / "methods.json"
    summary = summarise(rows, results, {}, BUDGET)
    path.write_text(json.dumps({"conditions": "", "teacher": teacher, "rows": summary}))
    return str(path), results


def test_a_written_page_is_gone_on_from(tmp_path):
    rows = {"cosine": TRAINED}
    path, results = written_page(tmp_path, rows, MEASURED)
    taken = taken_over(path, rows, MEASURED, BUDGET)
    assert set(taken) == set(results)
    assert [job.seed for job in ready_jobs(rows, taken, {}, BUDGET)] == [2]
    again, once = summarise(rows, taken, {}, BUDGET)[0], summarise(rows, results, {}, BUDGET)[0]
    assert again["measures"] == once["measures"]
    assert again["runs"] == once["runs"]
    with open(path) as handle:
        assert written_runs({"cosine": ({"method": "mse"}, 3)}, json.load(handle), BUDGET) == {}


def test_a_page_with_another_teacher_is_refused(tmp_path):
    rows = {"cosine": TRAINED}
    path, _ = written_page(tmp_path, rows, MEASURED)
    with pytest.raises(TinkitError, match="another") as caught:
        taken_over(path, rows, {**MEASURED, "auroc": 0.6}, BUDGET)
    assert "AUROC" in str(caught.value)


def clusters(seed, count, width=8, classes=3, noise=0.1):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return np.eye(width)[labels] + noise * generator.normal(size=(count, width)), labels


def test_the_teacher_against_itself_is_perfect_and_noise_is_not():
    rows = {
        part: clusters(seed, count)
        for seed, (part, count) in enumerate((("train", 60), ("validation", 30), ("held-out", 30)))
    }
    labels = {part: label for part, (_, label) in rows.items()}
    teacher = {part: row for part, (row, _) in rows.items()}
    teacher["ood"] = -np.ones((20, 8))
    teacher["dark"] = np.random.default_rng(9).normal(size=(30, 8))
    found = measure(teacher, teacher, labels, ["dark"])
    perfect = ("knn", "probe", "agreement", "spearman", "cka", "auroc")
    assert {name: found[name] for name in perfect} == pytest.approx(dict.fromkeys(perfect, 1))
    assert found["cosine_difference"] == found["cosine_difference_centred"] == 0
    assert (
        found["corrupted"]
        == found["corrupted_each"]["dark"]
        == knn_accuracy(teacher, labels, "held-out", teacher["dark"])
    )
    assert found["corrupted"] < 0.8
    generator = np.random.default_rng(5)
    student = {part: generator.normal(size=(len(row), 4)) for part, row in teacher.items()}
    found = measure(student, teacher, labels, ["dark"])
    assert found["agreement"] < 0.8
    assert found["cka"] < 0.5
    assert abs(found["spearman"]) < 0.3
    shifted = {part: row + 3 for part, row in teacher.items()}
    found = measure(shifted, teacher, labels, ["dark"])
    assert found["cosine_difference"] > 0.3
    assert found["cosine_difference_centred"] == pytest.approx(0, abs=1e-12)


def test_auroc_by_hand():
    bank = [[1.0, 0.0]]
    known, strange = [[1, 0], [1, 1]], [[1, 0.5], [0, 1]]  # cosines 1, 0.71 against 0.89, 0
    assert auroc(bank, known, strange) == 3 / 4


def test_steps_take_turns_and_the_first_rounds_do_not_count():
    now, order = [0.0], []

    def step(name, first, later):
        def run():
            order.append(name)
            now[0] += first if order.count(name) <= 2 else later

        return run

    found = interleaved_ms({"a": step("a", 9, 0.001), "b": step("b", 9, 0.003)}, 3, clock=lambda: now[0])
    assert order == ["a", "b"] * 5
    assert found == {"a": pytest.approx(1), "b": pytest.approx(3)}


def test_the_cost_is_told_against_the_bare_step():
    text = table({BARE: 100.0, "crd": 130.0}, {BARE: 0, "crd": 1500})
    assert text.splitlines()[-1] == "| crd | 130 | 30 | 1.30 | 1,500 |"
