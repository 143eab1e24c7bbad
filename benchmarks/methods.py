"""Every method on the same pictures: one student, one teacher, the same cached views, the same budget, several seeds.

    python benchmarks/methods.py FOLDER_WITH_TARS [--rows a,b] [--study] [--jobs 2] [--write docs/methods.md]
                                 [--go-on docs/methods.json]

CIFAR-10: 3,000 training pictures (a twentieth of them is distill's own monitor), 1,000 for choosing the learning rate,
2,000 held out; out of distribution 1,000 of PACS. Teacher EfficientNet-Lite0 (ImageNet) at 96 px, student
mobilenetv3_small_050 at 64 px from random weights, 2 cached views, batch 64. Every row gets the same three rates, each a
third of the length with seed 0; the best kNN on the validation pictures is taken. Held-out pictures are looked at once,
by each finished final run. --study compares the mappings of tintem instead (docs/mapping.md).

Each run is a process of one thread and leaves a file when done, so the command resumes where it stopped; a run that fails
is told and holds up no other (exit code 1 at the end). --go-on takes the runs of a written page instead of making them
again, when the teacher measures the same to 1e-3 here as there; each run keeps the commit that made it.
Two runs that want the same feature store: the second waits for it.
"""

import argparse
import concurrent.futures
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time

from command import run_command, write_page
from method_pictures import CORRUPTIONS, PARTS, lay_out, render_all
from method_rows import (
    RATES,
    ROWS,
    STUDENT,
    STUDENT_SIZE,
    STUDY,
    TEACHER,
    TEACHER_SIZE,
    Budget,
    Job,
    ready_jobs,
    written_runs,
)
from method_table import MEASURES, markdown, summarise

from tinkit import files
from tinkit.errors import TinkitError

HERE = os.path.abspath(__file__)


def prepare(data, work, per_class):
    """Lay the pictures out, render what is looked at, and measure the teacher itself; kept once done."""
    from method_measures import measure

    from tinkit.host.student import build_student
    from tinkit.host.teacher import load_teacher

    root, cache = pictures_folder(work, per_class), evaluation_folder(work, per_class)
    lay_out(data, root, per_class)
    render_all(
        root, cache, lambda: load_teacher(TEACHER, size=TEACHER_SIZE), lambda: build_student(STUDENT, STUDENT_SIZE)
    )
    own = os.path.join(cache, "teacher.json")
    if not os.path.exists(own):
        _, teacher, labels = looked_at(cache)
        files.write_json(own, measure(teacher, teacher, labels, CORRUPTIONS))


def refuse_other_networks(work):
    """A work folder belongs to one pair of networks at one size: results of another would be taken for these."""
    path = os.path.join(work, "networks.json")
    ours = {"teacher": TEACHER, "teacher_size": TEACHER_SIZE, "student": STUDENT, "student_size": STUDENT_SIZE}
    if not os.path.exists(path):
        files.write_json(path, ours)
    theirs = files.read_json(path, "The networks of the work folder")
    if theirs != ours:
        raise TinkitError(
            "This work folder belongs to other networks.", where=work, seen=str(theirs), next_step="another --work"
        )


def pictures_folder(work, per_class):
    return os.path.join(work, f"pictures-{per_class}")


def evaluation_folder(work, per_class):
    return os.path.join(work, f"evaluation-{per_class}")


def looked_at(cache):
    """(pixels by part, the teacher's features by part, labels by part)."""
    arrays = files.read_npz(os.path.join(cache, "pixels.npz"))
    labels = {part: arrays.pop(f"labels {part}") for part in PARTS if part != "ood"}
    return arrays, files.read_npz(os.path.join(cache, "teacher.npz")), labels


def run_job(job, work):
    """Train and measure one job; returns plain numbers. A loss that is not finite is a result: {"diverged": why}."""
    began, out = time.monotonic(), os.path.join(work, "runs", job.key)
    result = {"rate": job.rate, "seed": job.seed, "epochs": job.epochs, "commit": commit()}
    if job.settings is not None and not finished(out):
        try:
            train(job, out, work)
        except TinkitError as error:
            if "not finite" not in error.what:
                raise
            return {**result, "diverged": str(error)}
        result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    trained = time.monotonic()
    result.update(examine(job, out, evaluation_folder(work, job.per_class)))
    return {**result, "train_s": trained - began, "measure_s": time.monotonic() - trained}


def train(job, out, work):
    import tinkit

    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in job.settings.items()}
    tinkit.distill(
        os.path.join(pictures_folder(work, job.per_class), "train"),
        out=out,
        resume=os.path.exists(os.path.join(out, "run.json")),
        quiet=True,
        teacher=TEACHER,
        teacher_size=TEACHER_SIZE,
        student=STUDENT,
        student_size=STUDENT_SIZE,
        epochs=job.epochs,
        views=2,
        batch_size=64,
        learning_rate=job.rate,
        seed=job.seed,
        workers=0,
        store=os.path.join(work, "stores"),
        **settings,
    )


def finished(out):
    record = os.path.join(out, "run.json")
    return os.path.exists(record) and files.read_json(record, "The run's record")["status"] == "finished"


def examine(job, out, cache):
    """The measures of a trained student, or of one as it is born."""
    import torch
    from method_measures import embed, knn_accuracy, measure

    from tinkit.host.run import load_run
    from tinkit.host.student import build_student

    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    run = None if job.settings is None else load_run(out)
    student = build_student(STUDENT, STUDENT_SIZE).eval() if run is None else run.student()
    pixels, teacher, labels = looked_at(cache)
    wanted = pixels if job.final else ("train", "validation")
    features = {part: embed(student, pixels[part]) for part in wanted}
    found = {"knn_validation": knn_accuracy(features, labels, "validation")}
    if job.final:
        found.update(measure(features, teacher, labels, CORRUPTIONS))
    if run is not None:
        found.update(step_ms=step_ms(out), extra_parameters=run.record["method"].get("extra_parameters"))
    if run is not None and job.final and run.record["method"]["mapping"] is not None:
        found.update(to_mapped(run, features["held-out"], teacher["held-out"]))
    return found


def step_ms(out):
    """Median over the steps of a run; pictures are decoded before its clock starts."""
    with open(os.path.join(out, "log.jsonl"), encoding="utf-8") as handle:
        records = [json.loads(line) for line in handle]
    return statistics.median(record["step_ms"] for record in records if "step_ms" in record)


def to_mapped(run, student_ND, teacher_ND):
    """Cosine with the mapped teacher; in the JSON alone, because each method has a mapping of its own."""
    import torch

    from tinkit.fidelity import cosine_difference, cosine_per_picture
    from tinkit.host.features import Features
    from tinkit.host.mapping import Mapping, MappingSpec
    from tinkit.host.weights import load_into, read_weights

    path = os.path.join(run.path, "mapping.safetensors")
    mapping = Mapping(MappingSpec(**run.record["method"]["mapping"]))
    load_into(mapping, read_weights(path), path)
    with torch.no_grad():
        mapped_ND = mapping(Features(torch.from_numpy(teacher_ND))).numpy()
    return {
        "mapped_cosine": float(cosine_per_picture(student_ND, mapped_ND).mean()),
        "mapped_cosine_difference": cosine_difference(student_ND, mapped_ND),
        "fitted_afterwards": run.record["method"].get("fitted_afterwards"),
    }


def commit():
    """The checkout's commit, with a plus when it was changed; "unknown" outside of one."""
    try:
        command = ["git", "-C", os.path.dirname(HERE), "describe", "--always", "--dirty=+"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def work_off(rows, results, budget, arguments):
    """Run what is ready, `jobs` at once, until nothing is left. Fills `results`; returns failures by job key."""
    failed, running = {}, {}
    with concurrent.futures.ThreadPoolExecutor(max(1, arguments.jobs)) as pool:
        while True:
            for job in ready_jobs(rows, results, failed, budget):
                if len(running) < arguments.jobs and job.key not in running:
                    running[job.key] = pool.submit(in_a_process, arguments, job)
            if not running:
                return failed
            done, _ = concurrent.futures.wait(running.values(), return_when=concurrent.futures.FIRST_COMPLETED)
            for key in [key for key, future in running.items() if future in done]:
                try:
                    results[key] = running.pop(key).result()
                    said = {
                        name: results[key][name]
                        for name in ("diverged", "knn_validation", "knn", "train_s")
                        if name in results[key]
                    }
                    print(f"done: {key}: {said}", file=sys.stderr, flush=True)
                except RuntimeError as error:
                    failed[key] = str(error)
                    print(f"failed: {key}: {error}", file=sys.stderr, flush=True)


def in_a_process(arguments, job):
    """The result of a job, run by this file in a process of one thread and saved. RuntimeError when it fails."""
    log = os.path.join(arguments.work, "logs", job.key + ".txt")
    text = this_file(arguments, ["--job", job.to_json()], log)
    try:
        result = json.loads(text.splitlines()[-1])
    except (IndexError, ValueError):
        raise RuntimeError(f"it gave no result: {log}") from None
    files.write_json(saved(arguments.work, job.key), result)
    if not job.final:
        shutil.rmtree(os.path.join(arguments.work, "runs", job.key), ignore_errors=True)
    return result


def this_file(arguments, more, log):
    """What this file prints when called with `more`; its errors go to `log`."""
    os.makedirs(os.path.dirname(log), exist_ok=True)
    command = [sys.executable, HERE, arguments.data, "--work", arguments.work, "--pictures", str(arguments.pictures)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w", encoding="utf-8") as errors:
        done = subprocess.run(command + more, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    if done.returncode:
        with open(log, encoding="utf-8") as handle:
            last = (handle.read().strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"{last.strip()} (exit code {done.returncode}; {log})")
    return done.stdout


def saved(work, key):
    return os.path.join(work, "results", key + ".json")


def load_results(work):
    folder = os.path.join(work, "results")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return {
        name[: -len(".json")]: files.read_json(os.path.join(folder, name), "A result")
        for name in names
        if name.endswith(".json")
    }


def taken_over(path, rows, teacher, budget):
    """The runs of a written page by job key; refused when its teacher measured otherwise than `teacher` does here."""
    record = files.read_json(path, "The written page")
    for key, title, _ in MEASURES:
        if abs(record["teacher"][key] - teacher[key]) > 1e-3:
            raise TinkitError(
                "The page's teacher is another, or it saw other pictures.",
                where=f"{path}, {title}",
                seen=f"{record['teacher'][key]:.4f} there, {teacher[key]:.4f} here",
                next_step="leave --go-on out",
            )
    return written_runs(rows, record, budget)


def conditions(budget, summary):
    import torch

    commits = sorted({run["commit"] for row in summary for run in row["runs"]})
    where = "CUDA" if torch.cuda.is_available() else f"{platform.machine()} CPU, one thread a run"
    return (
        f"CIFAR-10: {10 * budget.per_class:,} training pictures (95 % of them trained on, all in the bank), 1,000 for the "
        f"choice of the rate, 2,000 held out; PACS: 1,000 pictures of 5 classes that CIFAR-10 does not have, shrunk to 32 "
        f"px. {TEACHER} at {TEACHER_SIZE} px, {STUDENT} at {STUDENT_SIZE} px from random weights; {budget.epochs} epochs, "
        f"2 cached views, batch 64; rate by validation kNN after {budget.tuning_epochs} epochs with seed 0, from "
        f"{', '.join(f'{rate:g}' for rate in RATES)}. Mean ± sd over seeds. kNN: k = 10; AUROC: cosine to the nearest "
        f"training picture; corruptions of the held-out pictures at 32 px, mean of {', '.join(CORRUPTIONS)}. "
        f"ms a step (other runs went on beside it: benchmarks/method_cost.py compares the methods' cost), parameters and "
        f"peak memory of the process: medians over a row's runs. torch {torch.__version__.split('+')[0]}, {where}, "
        f"{os.cpu_count()} cores; commit {', '.join(commits) or 'unknown'}."
    )


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with cifar10-{train,test}.tar.gz and pacs-*.tar")
    parser.add_argument("--work", default="runs/methods", help="where pictures, runs and results go")
    parser.add_argument("--rows", help="some rows only, with commas between")
    parser.add_argument("--study", action="store_true", help="the study of the mapping instead")
    parser.add_argument("--seeds", type=int, default=3, help="at most so many")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--pictures", type=int, default=300, help="training pictures a class")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once; 0: only the table of what is there")
    parser.add_argument("--write", help="save the table as Markdown here, and as JSON beside it")
    parser.add_argument("--go-on", metavar="JSON", help="take the runs that a page written by --write holds")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows = STUDY if arguments.study else ROWS
    unknown = [name for name in (arguments.rows or "").split(",") if name and name not in rows]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; rows: {', '.join(rows)}")
    return arguments, {name: rows[name] for name in arguments.rows.split(",")} if arguments.rows else rows


def main():
    arguments, rows = parse()
    if arguments.prepare:
        prepare(arguments.data, arguments.work, arguments.pictures)
        return 0
    if arguments.job:
        print(json.dumps(run_job(Job.from_json(arguments.job), arguments.work)))
        return 0
    refuse_other_networks(arguments.work)
    budget = Budget(arguments.epochs, arguments.seeds, arguments.pictures)
    this_file(arguments, ["--prepare"], os.path.join(arguments.work, "logs", "prepare.txt"))
    own = os.path.join(evaluation_folder(arguments.work, arguments.pictures), "teacher.json")
    teacher = files.read_json(own, "The teacher's numbers")
    results = load_results(arguments.work)
    if arguments.go_on:
        results = {**taken_over(arguments.go_on, rows, teacher, budget), **results}
    failed = work_off(rows, results, budget, arguments)
    summary = summarise(rows, results, failed, budget)
    text = conditions(budget, summary)
    table = markdown(summary, teacher)
    print(table + "\n\n" + text)
    for row in summary:
        if row["failed"]:
            print(f"{row['row']} failed: {row['failed']}", file=sys.stderr)
    if arguments.write:
        study = " --study" * arguments.study
        title = "The mapping of tintem, compared" if study else "The methods, compared"
        record = {"conditions": text, "teacher": teacher, "rows": summary}
        write_page(arguments.write, title, f"python benchmarks/methods.py FOLDER{study}", table, text, record)
    return 1 if any(row["failed"] for row in summary) else 0


if __name__ == "__main__":
    run_command(main)
