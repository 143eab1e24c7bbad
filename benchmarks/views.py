"""How many stored views of a picture are enough? Fidelity against K, and against a fresh view in every epoch.

    python benchmarks/views.py FOLDER_WITH_TARS [--work DIR] [--seeds 3] [--epochs 20] [--write docs/views.md]

`tinkit distill` asks the teacher about K views of each picture once and trains on the stored answers (--views K); with
--online --views 0 the teacher sees a view in every epoch that was never there before, which is what a store saves. All rows
here have the same student, steps and pictures, so that what differs is what the student can see: K pictures' worth of views.

Two data sets, 1,500 pictures without labels to train on: CIFAR-10 (32 px) and PACS (375 of each of four styles, shrunk to
160 px). The pair of benchmarks/evidence.py: EfficientNet-Lite0 at 96 px, mobilenetv3_small_050 at 64 px from random weights,
tinkit's default method. All measures are of 1,000 other pictures (drawn by content hash, 100 of a class or 250 of a style)
that nothing else here reads; kNN learns from the labels of the pictures that were trained on.

Each run is a process of its own, one at a time, and is kept when done: the command goes on where it stopped.
"""

import argparse
import io
import os
import platform
import subprocess
import sys

from command import run_command
from evidence import STUDENT, STUDENT_SIZE, STYLES, TEACHER, TEACHER_SIZE, ranked, write
from PIL import Image
from views_table import page, save

from tinkit import files

VIEWS = (1, 2, 4, 8, 0)  # a picture; 0: online, a fresh one every epoch
SETS = ("cifar10", "pacs")
CLASS_TRAIN, CLASS_TEST, STYLE_TRAIN, STYLE_TEST = 150, 100, 375, 250
RATE, BATCH = 0.015, 64
SIDE, QUALITY = 160, 90  # of the PACS pictures here; they come with 227 px
MEASURES = ("cosine", "cosine_difference", "overlap@10", "knn", "agreement")


def lay_out(data, work):
    """work/SET/{train,test}/CLASS/NAME: no picture is in both, and a finished layout is kept."""
    done = os.path.join(work, "laid-out")
    if os.path.exists(done):
        return
    for archive, part, count in (("train", "train", CLASS_TRAIN), ("test", "test", CLASS_TEST)):
        taken: dict[str, int] = {}
        for name, content in ranked(os.path.join(data, f"cifar10-{archive}.tar.gz")):
            of = os.path.dirname(name)
            taken[of] = taken.get(of, 0) + 1
            if taken[of] <= count:
                write(os.path.join(work, "cifar10", part, name), content)
    for style in STYLES:
        found = ranked(os.path.join(data, f"pacs-{style}.tar"))[: STYLE_TRAIN + STYLE_TEST]
        for rank, (name, content) in enumerate(found):
            part = "train" if rank < STYLE_TRAIN else "test"
            label, file = os.path.split(name)
            write(os.path.join(work, "pacs", part, label, f"{style}-{file}"), shrink(content))
    files.write_text(done, "")


def shrink(content):
    written = io.BytesIO()
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(written, "JPEG", quality=QUALITY)
    return written.getvalue()


def train(arguments, data_set, views, seed):
    """One student; resumes. Returns its run's folder."""
    import tinkit

    out = os.path.join(arguments.work, f"runs-{arguments.epochs}", f"{data_set}-{views}-{seed}")
    record = os.path.join(out, "run.json")
    if os.path.exists(record) and files.read_json(record, "The run").get("status") == "finished":
        return out
    tinkit.distill(
        os.path.join(arguments.work, data_set, "train"),
        out=out,
        resume=os.path.exists(record),
        quiet=True,
        teacher=TEACHER,
        teacher_size=TEACHER_SIZE,
        student=STUDENT,
        student_size=STUDENT_SIZE,
        learning_rate=RATE,
        epochs=arguments.epochs,
        views=views,
        online=views == 0,
        batch_size=BATCH,
        seed=seed,
        workers=0,
    )
    return out


def examine(arguments, data_set, out):
    """{measure: student's value}, and the teacher's own kNN. Likeness is of the 1,000 pictures apart and of no others."""
    import tinkit

    common = {"quiet": True, "workers": 0, "dense": False}
    pictures = os.path.join(arguments.work, data_set)
    apart = os.path.join(pictures, "test")
    likeness = tinkit.evaluate(out, data=apart, labels="none", out=os.path.join(out, "likeness"), **common)
    answers = tinkit.evaluate(out, data=pictures, labels="folders", out=os.path.join(out, "answers"), **common)
    found = {measure.name: measure for asked in (answers, likeness) for measure in asked.measures}
    values = {name: found[name].student for name in MEASURES}
    return {
        "values": values,
        "teacher_knn": found["knn"].teacher,
        "pictures": {**answers.pictures["labelled"], "apart": likeness.pictures["unlabelled"]},
    }


def stored_bytes(runs, seed, views):
    """Bytes a picture of the store of this many views, all its files together; 0 when there is none."""
    stores = os.path.join(runs, ".stores")
    for name in os.listdir(stores) if views else ():
        path = os.path.join(stores, name)
        identity = files.read_json(os.path.join(path, "identity.json"), "A store's identity")["identity"]
        seen = identity["views"]
        if identity["local"] and seen["numbers"] == list(range(views)) and seen["policy"]["seed"] == seed:
            found = [os.path.join(folder, file) for folder, _, inside in os.walk(path) for file in inside]
            return round(sum(map(os.path.getsize, found)) / identity["pictures"]["count"])
    return 0


def result_path(arguments, job):
    return os.path.join(arguments.work, f"results-{arguments.epochs}", "-".join(map(str, job)) + ".json")


def work_off(arguments, jobs):
    """Every missing run in a process of its own, in turn; {job: result}."""
    for job in jobs:
        if os.path.exists(result_path(arguments, job)):
            continue
        command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--job", ",".join(map(str, job))]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        print("done:", *job, file=sys.stderr, flush=True)
    return {job: files.read_json(result_path(arguments, job), "A result") for job in jobs}


def one(arguments, job):
    """The run of one job, and what is kept of it."""
    data_set, views, seed = job.split(",")
    out = train(arguments, data_set, int(views), int(seed))
    found = examine(arguments, data_set, out)
    record = files.read_json(os.path.join(out, "run.json"), "The run")
    last = record["history"][-1]
    found.update(
        bytes_a_picture=stored_bytes(os.path.dirname(out), int(seed), int(views)),
        teacher_passes=int(views) or arguments.epochs,
        steps=last["step"],
        training_pictures=record["images"]["train"],
        timings=record["timings"],
    )
    files.write_json(result_path(arguments, job.split(",")), found)


def conditions(arguments, results):
    import torch

    some = next(iter(results.values()))
    return (
        f"Teacher {TEACHER} at {TEACHER_SIZE} px, student {STUDENT} at {STUDENT_SIZE} px from random weights, method tintem, "
        f"rate {RATE}, {arguments.epochs} epochs of batch {BATCH}, {some['steps']} steps in every row. "
        f"{some['training_pictures']} training pictures of each set, {some['pictures']['apart']} pictures apart for all "
        f"measures, kNN (k = 10) with a bank of {some['pictures']['bank']} training pictures. Mean ± sd over "
        f"{arguments.seeds} seeds, which draw weights, views and order. torch {torch.__version__.split('+')[0]}, "
        f"{platform.machine()} CPU, one thread."
    )


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with cifar10-{train,test}.tar.gz and pacs-*.tar")
    parser.add_argument("--work", default="runs/views", help="where pictures, runs and results go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--write", help="save the page as Markdown here, and as JSON and SVG beside it")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    arguments = parse()
    lay_out(arguments.data, arguments.work)
    if arguments.job:
        one(arguments, arguments.job)
        return 0
    jobs = [(data_set, views, seed) for seed in range(arguments.seeds) for data_set in SETS for views in VIEWS]
    results = work_off(arguments, jobs)
    tables, told = page(results), conditions(arguments, results)
    print(tables + "\n\n" + told)
    if arguments.write:
        save(arguments.write, tables, told, results)
    return 0


if __name__ == "__main__":
    run_command(main)
