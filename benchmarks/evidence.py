"""Is TinTeM's student more faithful than the students of MSE and Proteus at the same budget? The evidence table.

    python benchmarks/evidence.py FOLDER_WITH_TARS [--work DIR] [--seeds 3] [--jobs 2] [--write docs/evidence.md]

Two data sets, no labels in training, one teacher (EfficientNet-Lite0, ImageNet, 96 px), one student (mobilenetv3_small_050 at
64 px from random weights), 6 epochs, 2 cached views, batch 64. CIFAR-10: 3,000 pictures to train on; 1,000 validation and
2,000 test pictures apart; strange pictures are the PACS classes that CIFAR-10 does not have, 250 of each style, at CIFAR's size
(as in benchmarks/methods.py, whose layout this is). PACS: pictures of all four styles to train on, and for labels the photographs
only: probe and neighbours learn on photographs and are tried on art, cartoons and sketches.

Each method has the learning rate that won for it on the validation pictures of benchmarks/methods.py (docs/methods.md);
nothing is chosen here, and test pictures are read by this command's `tinkit.evaluate` calls only. Each run and each
evaluation is a process of its own and is kept when done, so the command goes on where it stopped.
"""

import argparse
import concurrent.futures
import hashlib
import os
import platform
import statistics
import subprocess
import sys
import tarfile

from command import run_command, write_page
from method_pictures import lay_out as lay_out_cifar

from tinkit import files

TEACHER, TEACHER_SIZE, STUDENT, STUDENT_SIZE = "efficientnet-lite0", 96, "mobilenetv3_small_050", 64
PER_CLASS, PER_STYLE, CORRUPTED = 300, 750, 200
RATES = {"tintem": 0.015, "mse": 0.005, "proteus": 0.005}
STYLES = ("photo", "art_painting", "cartoon", "sketch")
SETS = ("cifar10", "pacs")
COLUMNS = {  # measure -> (title, digits, share of the teacher's shown)
    "knn": "kNN",
    "probe": "linear probe",
    "agreement": "agreement with the teacher",
    "cosine": "cosine to the mapped teacher",
    "fitted_cosine": "cosine to a mapping fitted afterwards",
    "cosine_difference": "mean abs diff of cosines",
    "spearman": "Spearman of cosines",
    "cka_debiased": "CKA, debiased",
    "overlap@10": "neighbours in common (10)",
    "auroc": "AUROC",
    "fpr95": "FPR at 95 %",
    "corruption": "kNN, corrupted",
    "corruption_gap": "clean minus corrupted",
    "domain": "probe, other styles",
    "ece": "ECE of the probe",
}


def lay_out(data, work):
    """work/cifar10/{train,val,test}/CLASS, work/strange/STYLE/CLASS, work/pacs/unlabelled, work/styles/STYLE/CLASS."""
    done = os.path.join(work, "laid-out")
    if os.path.exists(done):
        return
    root = os.path.join(work, "methods-layout")
    lay_out_cifar(data, root, PER_CLASS)
    for ours, theirs in (("train", "train"), ("val", "validation"), ("test", "held-out")):
        link(os.path.join(root, theirs), os.path.join(work, "cifar10", ours))
    for style in STYLES:
        link(os.path.join(root, "ood", style), os.path.join(work, "strange", style))
        for rank, (name, content) in enumerate(ranked(os.path.join(data, f"pacs-{style}.tar"))):
            if rank < PER_STYLE:
                write(os.path.join(work, "pacs", "unlabelled", style, name.replace("/", "-")), content)
            else:
                write(os.path.join(work, "styles", style, name), content)
    files.write_text(done, "")


def ranked(path):
    """[(name, bytes)] of a tar, by the hash of their content; copies once."""
    with tarfile.open(path) as archive:
        found = [(member.name, archive.extractfile(member).read()) for member in archive if member.isfile()]
    by_hash = {
        hashlib.sha256(b"evidence/" + content).hexdigest(): (os.path.normpath("/" + name)[1:], content)
        for name, content in found
    }
    return [by_hash[rank] for rank in sorted(by_hash)]


def link(source, place):
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if not os.path.lexists(place):
        os.symlink(os.path.abspath(source), place)


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as handle:
        handle.write(content)


def run_of(work, data_set, method, seed):
    return os.path.join(work, "runs", f"{data_set}-{method}-{seed}")


def train(work, data_set, method, seed):
    """One student; resumes."""
    import tinkit

    out = run_of(work, data_set, method, seed)
    record = os.path.join(out, "run.json")
    if os.path.exists(record) and files.read_json(record, "The run").get("status") == "finished":
        return
    pictures = (
        os.path.join(work, "cifar10", "train") if data_set == "cifar10" else os.path.join(work, "pacs", "unlabelled")
    )
    tinkit.distill(
        pictures,
        out=out,
        resume=os.path.exists(record),
        quiet=True,
        teacher=TEACHER,
        teacher_size=TEACHER_SIZE,
        student=STUDENT,
        student_size=STUDENT_SIZE,
        method=method,
        learning_rate=RATES[method],
        epochs=6,
        views=2,
        batch_size=64,
        seed=seed,
        workers=0,
    )


def examine(work, data_set, method, seed):
    """One evaluation; returns the measures as plain data."""
    import tinkit

    out = run_of(work, data_set, method, seed)
    common = {"quiet": True, "workers": 0, "dense": False}
    if data_set == "cifar10":
        strange = [os.path.join(work, "strange", style) for style in STYLES]
        found = tinkit.evaluate(
            out,
            data=os.path.join(work, "cifar10"),
            ood=strange,
            corruptions=True,
            corruption_pictures=CORRUPTED,
            **common,
        )
    else:
        others = [os.path.join(work, "styles", style) for style in STYLES[1:]]
        found = tinkit.evaluate(out, data=os.path.join(work, "styles", "photo"), domains=others, **common)
    return {
        "measures": [measure.to_json() for measure in found.measures],
        "pictures": {part: found.pictures["labelled"][part] for part in ("bank", "validation", "test")},
        "seconds": found.seconds,
        "domains": found.domains,
        "conditions": found.conditions,
    }


def result_path(work, data_set, method, seed):
    return os.path.join(work, "results", f"{data_set}-{method}-{seed}.json")


def work_off(arguments, jobs):
    """Every missing run in a process of its own; returns {(data set, method, seed): result}."""

    def one(job):
        path = result_path(arguments.work, *job)
        if not os.path.exists(path):
            command = [
                sys.executable,
                os.path.abspath(__file__),
                arguments.data,
                "--work",
                arguments.work,
                "--job",
                ",".join(map(str, job)),
            ]
            log = os.path.join(arguments.work, "logs", "-".join(map(str, job)) + ".txt")
            os.makedirs(os.path.dirname(log), exist_ok=True)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with open(log, "w", encoding="utf-8") as handle:
                command += ["--train-only"] if arguments.train_only else []
                code = subprocess.run(
                    command, stdout=handle, stderr=subprocess.STDOUT, env=environment, check=False
                ).returncode
            if code:
                raise RuntimeError(f"{job}: exit code {code}, see {log}")
            print("done:", *job, file=sys.stderr, flush=True)
        return None if arguments.train_only else files.read_json(path, "A result")

    with concurrent.futures.ThreadPoolExecutor(max(1, arguments.jobs)) as pool:
        return dict(zip(jobs, pool.map(one, jobs)))


def table(results, data_set):
    """A Markdown table: a row a method, mean and standard deviation over the seeds; the teacher's own first."""
    mine = {job: found for job, found in results.items() if job[0] == data_set}
    measured = {measure["name"] for found in mine.values() for measure in found["measures"]}
    shown = [name for name in COLUMNS if name in measured]
    lines = [
        "| method | seeds | " + " | ".join(COLUMNS[name] for name in shown) + " |",
        "|---|---|" + "---|" * len(shown),
    ]
    rows: dict[str, list[dict]] = {}
    for (_, method, _), found in mine.items():
        rows.setdefault(method, []).append({measure["name"]: measure for measure in found["measures"]})
    first = next(iter(rows.values()))[0]
    teacher = [first[name]["teacher"] if name in first else None for name in shown]
    lines.append("| teacher | - | " + " | ".join("-" if value is None else f"{value:.3f}" for value in teacher) + " |")
    for method, seeds in rows.items():
        cells = [spread([seed[name]["student"] for seed in seeds if name in seed]) for name in shown]
        lines.append(f"| {method} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def styles_table(results):
    """Probe on photographs, accuracy by style."""
    rows: dict[str, dict[str, list[float]]] = {}
    for (data_set, method, _), found in results.items():
        if data_set == "pacs" and found["domains"]:
            for seen in found["domains"]["domains"]:
                rows.setdefault(method, {}).setdefault(seen["name"], []).append(seen["student"])
                rows.setdefault("teacher", {})[seen["name"]] = [seen["teacher"]]
    if not rows:
        return ""
    styles = list(rows["teacher"])
    lines = [
        "| probe learned on photographs, accuracy on | " + " | ".join(styles) + " |",
        "|---|" + "---|" * len(styles),
    ]
    for method, seen in sorted(rows.items(), key=lambda entry: entry[0] != "teacher"):
        lines.append(f"| {method} | " + " | ".join(spread(seen[style]) for style in styles) + " |")
    return "\n".join(lines)


def spread(values):
    if not values:
        return "-"
    text = f"{statistics.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.3f}"


def page(results, arguments):
    """(the tables, the conditions) as Markdown."""
    import torch

    counts = {job[0]: found["pictures"] for job, found in results.items()}
    told = "; ".join(
        f"{name}: {c['bank']} bank, {c['validation']} validation, {c['test']} test pictures"
        for name, c in counts.items()
    )
    rates = ", ".join(f"{name} {rate}" for name, rate in RATES.items())
    conditions = (
        f"Teacher {TEACHER} at {TEACHER_SIZE} px, student {STUDENT} at {STUDENT_SIZE} px from random weights, 6 epochs, "
        f"2 cached views, batch 64, rates {rates}; mean ± sd over {arguments.seeds} seeds. {told}. kNN k = 10; AUROC: cosine "
        f"to the nearest bank picture, mean over four styles of strange pictures; corruptions: 15 at 5 severities of "
        f"{CORRUPTED} test pictures. torch {torch.__version__.split('+')[0]}, {platform.machine()} CPU, one thread a run."
    )
    parts = [
        "## CIFAR-10",
        table(results, "cifar10"),
        "## PACS: labels of photographs only",
        table(results, "pacs"),
        styles_table(results),
    ]
    return "\n\n".join(part for part in parts if part), conditions


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with cifar10-{train,test}.tar.gz and pacs-*.tar")
    parser.add_argument("--work", default="runs/evidence", help="where pictures, runs and results go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--train-only", action="store_true", help="distil, evaluate later")
    parser.add_argument("--write", help="save the page as Markdown here, and as JSON beside it")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    arguments = parse()
    lay_out(arguments.data, arguments.work)
    if arguments.job:
        data_set, method, seed = arguments.job.split(",")
        train(arguments.work, data_set, method, int(seed))
        if not arguments.train_only:
            found = examine(arguments.work, data_set, method, int(seed))
            files.write_json(result_path(arguments.work, data_set, method, int(seed)), found)
        return 0
    jobs = [(data_set, method, seed) for seed in range(arguments.seeds) for data_set in SETS for method in RATES]
    results = work_off(arguments, jobs)
    if arguments.train_only:
        return 0
    tables, conditions = page(results, arguments)
    print(tables + "\n\n" + conditions)
    if arguments.write:
        record = {"-".join(map(str, job)): found for job, found in results.items()}
        write_page(arguments.write, "The evidence", "python benchmarks/evidence.py FOLDER", tables, conditions, record)
    return 0


if __name__ == "__main__":
    run_command(main)
