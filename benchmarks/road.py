"""The whole of stage one on real pictures: PACS, four styles and seven classes, no labels used in training.

    python benchmarks/road.py FOLDER_WITH_PACS_TARS [--work DIR] [--seeds 3] [--write docs/road.md]

Teacher EfficientNet-Lite0 (ImageNet weights) at 144 px, student mobilenetv3_small_100 at 96 px from random weights, 20
epochs over 7,991 pictures with 2 cached views each. The 2,000 held-out pictures are drawn by content hash and are read
by this command only, after training. Rows: the default with several seeds, the released form, and the same student with
random weights. Each row runs in a process of its own and is saved when done, so the command resumes where it stopped.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tarfile
import time

STYLES = ("photo", "art_painting", "cartoon", "sketch")
HELD_OUT = 2000
TEACHER, TEACHER_SIZE, STUDENT, STUDENT_SIZE = "efficientnet-lite0", 144, "mobilenetv3_small_100", 96
ROWS = {
    "tintem (default)": {},
    "tintem (released)": {"mapping": "learned", "center": False, "cosines_weight": 0.0},
    "random weights": None,
}


def lay_out(data, work):
    """work/pictures/{train,test}/STYLE/CLASS/NAME.jpg, split by content hash; a finished layout is kept."""
    root = os.path.join(work, "pictures")
    done = os.path.join(root, "complete")
    if os.path.exists(done):
        return root
    found = []
    for style in STYLES:
        with tarfile.open(os.path.join(data, f"pacs-{style}.tar")) as archive:
            for member in archive:
                if member.isfile():
                    content = archive.extractfile(member).read()
                    found.append(
                        (
                            hashlib.sha256(b"road/" + hashlib.sha256(content).digest()).hexdigest(),
                            os.path.join(style, member.name),
                            content,
                        )
                    )
    for rank, (_, name, content) in enumerate(sorted(found, key=lambda entry: entry[:2])):
        path = os.path.join(root, "test" if rank < HELD_OUT else "train", os.path.normpath("/" + name)[1:])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as handle:
            handle.write(content)
    open(done, "w").close()
    return root


def run_row(name, seed, work, epochs):
    """Train (unless it is the control) and examine one row; returns plain numbers."""
    import tinkit

    pictures = os.path.join(work, "pictures")
    plain = name.replace(" ", "-").replace("(", "").replace(")", "")
    out = os.path.join(work, "runs", f"{plain}-seed{seed}-{epochs}epochs")
    began = time.monotonic()
    if ROWS[name] is not None and not finished(out):
        tinkit.distill(
            os.path.join(pictures, "train"),
            out=out,
            resume=os.path.exists(os.path.join(out, "run.json")),
            teacher=TEACHER,
            teacher_size=TEACHER_SIZE,
            student=STUDENT,
            student_size=STUDENT_SIZE,
            epochs=epochs,
            views=2,
            seed=seed,
            **ROWS[name],
        )
    found = examine(None if ROWS[name] is None else out, pictures, work, seed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"row": name, "seed": seed, "seconds_in_all": time.monotonic() - began, "peak_mb": peak, **found}


def examine(run_path, pictures, work, seed):
    """kNN of teacher and student on the held-out pictures with the training pictures as the bank."""
    import numpy as np
    import torch

    from tinkit.fidelity import cosine_difference, cosine_per_picture, knn_predict
    from tinkit.host.features import Features
    from tinkit.host.images import scan
    from tinkit.host.mapping import Mapping, MappingSpec
    from tinkit.host.run import load_run
    from tinkit.host.store import open_or_build
    from tinkit.host.student import build_student
    from tinkit.host.teacher import load_teacher
    from tinkit.host.views import EVALUATION, AllViews, ViewPolicy
    from tinkit.host.weights import load_into, read_weights

    torch.manual_seed(seed)
    run = None if run_path is None else load_run(run_path)
    student = build_student(STUDENT, STUDENT_SIZE).eval() if run is None else run.student()
    teacher = load_teacher(TEACHER, size=TEACHER_SIZE)
    crop_pct, policy = student.spec.preprocessing.crop_pct, ViewPolicy()
    bank, held_out = (scan(os.path.join(pictures, part)).usable for part in ("train", "test"))
    classes = sorted({picture.name.split("/")[1] for picture in bank})
    labels = [np.array([classes.index(picture.name.split("/")[1]) for picture in part]) for part in (bank, held_out)]

    def teacher_features(part):
        views = AllViews(part, policy, [teacher.preprocessing], crop_pct, numbers=[EVALUATION])
        store = open_or_build(os.path.join(work, "evaluation"), teacher, views, parts=(), dtype="float32")
        return np.array(store.global_rows())

    teacher_bank, teacher_held = teacher_features(bank), teacher_features(held_out)
    student_bank, student_held = embed_pictures(student, bank), embed_pictures(student, held_out)
    teacher_says = knn_predict(teacher_bank, labels[0], teacher_held)
    student_says = knn_predict(student_bank, labels[0], student_held)
    found = {
        "teacher_knn": float((teacher_says == labels[1]).mean()),
        "student_knn": float((student_says == labels[1]).mean()),
        "agreement": float((student_says == teacher_says).mean()),
        "cosine_difference": cosine_difference(student_held, teacher_held),
    }
    if run is not None:
        spec = MappingSpec(**run.record["method"]["mapping"])
        mapping = Mapping(spec)
        load_into(mapping, read_weights(os.path.join(run_path, "mapping.safetensors")), run_path)
        with torch.no_grad():
            mapped = mapping(Features(torch.from_numpy(teacher_held))).numpy()
        cosine = cosine_per_picture(student_held, mapped)
        timings = run.record["timings"]
        found.update(
            cosine_mean=float(cosine.mean()),
            cosine_p1=float(np.percentile(cosine, 1)),
            cosine_difference_mapped=cosine_difference(student_held, mapped),
            images_per_s=timings["images_per_s"],
            train_s=timings["train_s"],
            prepare_s=timings["prepare_s"],
        )
    return found


def embed_pictures(student, pictures):
    """The student's embeddings of pictures through the evaluation view, (N, D)."""
    import numpy as np
    import torch

    from tinkit.host.views import EVALUATION, ViewPolicy, Views, collate, normalise_on_device

    views = Views(pictures, ViewPolicy(), [student.spec.preprocessing], student.spec.preprocessing.crop_pct)
    items = [
        [(i, EVALUATION) for i in range(start, min(start + 64, len(pictures)))] for start in range(0, len(pictures), 64)
    ]
    loader = torch.utils.data.DataLoader(views, batch_sampler=items, collate_fn=collate, num_workers=1)
    with torch.no_grad():
        parts = [
            student(normalise_on_device(pixels[0], student.spec.preprocessing)).global_BD for pixels, _, _ in loader
        ]
    return np.concatenate([part.numpy() for part in parts])


def finished(out):
    path = os.path.join(out, "run.json")
    if not os.path.exists(path):
        return False
    with open(path, encoding="utf-8") as handle:
        return json.load(handle)["status"] == "finished"


COLUMNS = (
    ("student_knn", "student kNN"),
    ("kept", "of teacher's"),
    ("agreement", "agreement"),
    ("cosine_difference", "mean abs diff of cosines"),
    ("cosine_difference_mapped", "same, to mapped teacher"),
    ("cosine_mean", "cosine to mapped"),
    ("cosine_p1", "p1"),
    ("images_per_s", "images/s"),
    ("train_s", "training s"),
    ("peak_mb", "peak MB of the main process"),
)


def table(results):
    """A Markdown table: a row a method, mean and (with several seeds) standard deviation."""
    lines = [
        "| row | seeds | " + " | ".join(title for _, title in COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for name in ROWS:
        found = [dict(r, kept=r["student_knn"] / r["teacher_knn"]) for r in results if r["row"] == name]
        if found:
            cells = [spread([r[key] for r in found if key in r], key) for key, _ in COLUMNS]
            lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values, key):
    if not values:
        return "-"
    digits = 0 if key in ("images_per_s", "train_s", "peak_mb") else 3
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with pacs-*.tar")
    parser.add_argument("--work", default="runs/road", help="where pictures, runs and results go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--write", help="save the table as Markdown here")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    lay_out(arguments.data, arguments.work)
    if arguments.row:
        print(json.dumps(run_row(arguments.row, arguments.seed, arguments.work, arguments.epochs)))
        return
    results = []
    jobs = [("random weights", 0), ("tintem (default)", 0), ("tintem (released)", 0)]
    jobs += [("tintem (default)", seed) for seed in range(1, arguments.seeds)]
    for name, seed in jobs:
        saved = os.path.join(arguments.work, f"result-{name}-{seed}-{arguments.epochs}.json")
        if not os.path.exists(saved):
            command = [
                sys.executable,
                __file__,
                arguments.data,
                "--work",
                arguments.work,
                "--epochs",
                str(arguments.epochs),
                "--row",
                name,
                "--seed",
                str(seed),
            ]
            text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            with open(saved + ".partial", "w", encoding="utf-8") as handle:
                handle.write(text)
            os.replace(saved + ".partial", saved)
        with open(saved, encoding="utf-8") as handle:
            results.append(json.load(handle))
        print(f"done: {name}, seed {seed}: {results[-1]}", file=sys.stderr, flush=True)
    import torch

    conditions = (
        f"PACS, 7,991 pictures to train on (5 % of them for the monitor), 2,000 held out; {TEACHER} at {TEACHER_SIZE} px, "
        f"{STUDENT} at {STUDENT_SIZE} px from random weights, {arguments.epochs} epochs, 2 cached views; "
        f"teacher kNN {results[0]['teacher_knn']:.3f} (k = 10); torch {torch.__version__.split('+')[0]}, "
        f"{'CUDA' if torch.cuda.is_available() else platform.machine() + ' CPU'}, {os.cpu_count()} cores."
    )
    text = table(results) + "\n\n" + conditions
    print(text)
    if arguments.write:
        with open(arguments.write, "w", encoding="utf-8") as handle:
            handle.write(f"# The road on real pictures\n\n`python benchmarks/road.py FOLDER`\n\n{text}\n")


if __name__ == "__main__":
    main()
