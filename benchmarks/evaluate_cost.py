"""What `tinkit evaluate` costs on 10,000 pictures: the first time, and again when the features are kept.

    python benchmarks/evaluate_cost.py FOLDER_WITH_TARS [--work DIR] [--pictures 10000] [--repeats 3] [--write PAGE]

CIFAR-10's test pictures with their labels, 250 PACS pictures of each style as strange ones; teacher EfficientNet-Lite0 at 96 px
(width 1280), student mobilenetv3_small_050 at 64 px (384), distilled for one epoch on 640 of the pictures: what is found does not
matter here. Every run is a process of its own, so that its peak memory is its own; that of its
loader processes stands beside it.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tarfile
import time

from command import write_page
from evidence import STYLES, ranked, write

from tinkit import files

TEACHER, STUDENT = ("efficientnet-lite0", 96), ("mobilenetv3_small_050", 64)
TRAINED, STRANGE = 640, 250


def lay_out(data, work, pictures):
    """work/labelled/CLASS/NAME, work/few, work/strange/STYLE."""
    done = os.path.join(work, f"laid-out-{pictures}")
    if os.path.exists(done):
        return
    with tarfile.open(os.path.join(data, "cifar10-test.tar.gz")) as archive:
        members = [member for member in archive if member.isfile()]
        for number, member in enumerate(members[:: max(1, len(members) // pictures)][:pictures]):
            name, content = os.path.normpath("/" + member.name)[1:], archive.extractfile(member).read()
            write(os.path.join(work, "labelled", *name.split(os.sep)[-2:]), content)
            if number % (pictures // TRAINED) == 0:
                write(os.path.join(work, "few", f"{number}.jpg"), content)
    for style in STYLES:
        for name, content in ranked(os.path.join(data, f"pacs-{style}.tar"))[:STRANGE]:
            write(os.path.join(work, "strange", style, name.replace(os.sep, "-")), content)
    files.write_text(done, "")


def once(work, out):
    """One evaluation in this process: seconds by step, and the peak memory in MB of 10^6 bytes."""
    import tinkit
    from tinkit.device.board import peak_memory_mb

    began = time.monotonic()
    strange = [os.path.join(work, "strange", style) for style in STYLES]
    found = tinkit.evaluate(
        os.path.join(work, "runs", "short"),
        data=os.path.join(work, "labelled"),
        ood=strange,
        out=out,
        quiet=True,
    )
    loader_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1.024e-3
    return {
        "wall_s": time.monotonic() - began,
        "peak_mb": peak_memory_mb(),
        "loader_peak_mb": loader_mb,
        **found.seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with cifar10-test.tar.gz and pacs-*.tar")
    parser.add_argument("--work", default="runs/evaluate-cost")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", help="save the table as Markdown here")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(once(arguments.work, arguments.once)))
        return
    lay_out(arguments.data, arguments.work, arguments.pictures)
    _distil(arguments.work)
    saved = os.path.join(arguments.work, "first.json")
    if not os.path.exists(saved):
        files.write_json(saved, _process(arguments))
    first = files.read_json(saved, "The first run")
    again = [_process(arguments) for _ in range(arguments.repeats)]
    text, told = table(first, again), conditions(arguments)
    print(text + "\n\n" + told)
    if arguments.write:
        write_page(arguments.write, "What an evaluation costs", "python benchmarks/evaluate_cost.py FOLDER", text, told)


def _distil(work):
    import tinkit

    out = os.path.join(work, "runs", "short")
    if os.path.exists(os.path.join(out, "run.json")):
        return
    (teacher, teacher_size), (student, size) = TEACHER, STUDENT
    sizes = {"teacher_size": teacher_size, "student": student, "student_size": size}
    tinkit.distill(os.path.join(work, "few"), out=out, teacher=teacher, epochs=1, views=1, quiet=True, **sizes)


def _process(arguments):
    command = [sys.executable, os.path.abspath(__file__), arguments.data, "--work", arguments.work]
    command += ["--once", os.path.join(arguments.work, "evaluation")]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(told.splitlines()[-1])


def table(first, again):
    """Seconds by step and peak memory: the first time, and median (lowest to highest) of the others."""
    lines = ["| what | first | features kept |", "|---|---|---|"]
    for name in dict.fromkeys([*first, *again[0]]):
        values = [run.get(name, 0.0) for run in again]
        unit = "MB" if name.endswith("_mb") else "s"
        spread = f"{statistics.median(values):,.1f} ({min(values):,.1f} to {max(values):,.1f})"
        lines.append(f"| {name} ({unit}) | {first.get(name, 0.0):,.1f} | {spread} |")
    return "\n".join(lines)


def conditions(arguments):
    import torch

    return (
        f"{arguments.pictures:,} labelled pictures (60 : 20 : 20) and {4 * STRANGE:,} strange ones; widths "
        f"1280 and 384; every question but corruptions, domains and masks, 1,000 resamples; {arguments.repeats} runs with kept "
        f"features. torch {torch.__version__.split('+')[0]}, {platform.machine()} CPU, {os.cpu_count()} cores."
    )


if __name__ == "__main__":
    sys.exit(main())
