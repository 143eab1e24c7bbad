"""How fast tinkit is, beside what bounds it: one table, every number a ratio of two things measured in turns.

    python benchmarks/speed.py FOLDER_WITH_PACS_TARS [--work DIR] [--only step,store] [--write docs/speed.md]

What is measured, and against what (benchmarks/speed_{steps,store,road}.py):
    step     training with the store, against the bare supervised loop of the same student on the same loader (the limit)
    online   training with the store, against running the teacher at every step (ViT-S, ViT-B, ViT-L)
    compile  a step with torch.compile, and with memory that is given back to the system, against the step as it is
    store    pictures written, against the bare teacher forward on the same loader; bytes, random reads, int8's loss
    memory   peak of the process that builds a store of 1,000 to 1,000,000 made-up pictures
    start    `tinkit --help`; from the command to the first gradient, with and without the features at hand
    export   against a bare torch.onnx.export of the same student
    scaling  two processes on two cores against one on one core

Every measurement is a process of its own, saved when it is done: the command goes on where it stopped. Run it on a machine
that does nothing else.
"""

import argparse
import json
import os
import platform
import subprocess
import sys

import speed_road
import speed_steps
import speed_store
from command import run_command, write_page
from evidence import STYLES, ranked, write
from speed_table import markdown

from tinkit import files

JOBS = {
    "step": ("mobilenetv4_conv_small", "mobilenetv3_large_100", "fastvit_t8"),
    "online": ("vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224"),
    "compile": ("mobilenetv4_conv_small",),
    "store": ("efficientnet-lite0 96", "efficientnet-lite2 260"),
    "memory": ("1000", "10000", "100000", "1000000"),
    "start": ("command",),
    "export": ("mobilenetv4_conv_small",),
    "scaling": ("mobilenetv4_conv_small",),
}
MEASURES = {
    "step": speed_steps.step,
    "online": speed_steps.online,
    "compile": speed_steps.compiled,
    "store": speed_store.store,
    "memory": speed_store.memory,
    "start": speed_road.start,
    "export": speed_road.export,
    "scaling": speed_road.scaling,
}


def lay_out(data, work):
    """work/all: the 9,991 PACS pictures; work/some and work/few: 640 and 48 of them, drawn by content hash."""
    done = os.path.join(work, "laid-out")
    if os.path.exists(done):
        return
    for style in STYLES:
        for number, (name, content) in enumerate(ranked(os.path.join(data, f"pacs-{style}.tar"))):
            plain = f"{style}-{name.replace(os.sep, '-')}"
            for folder, most in (("all", 10_000), ("some", 160), ("few", 12)):
                if number < most:
                    write(os.path.join(work, folder, plain), content)
    files.write_text(done, "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with pacs-*.tar")
    parser.add_argument("--work", default="runs/speed")
    parser.add_argument("--only", help=f"some of {', '.join(JOBS)}, with commas")
    parser.add_argument("--write", help="save the table as Markdown here, and the numbers as JSON beside it")
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(MEASURES[arguments.once[0]](arguments.work, arguments.once[1])))
        return
    lay_out(arguments.data, arguments.work)
    saved = os.path.join(arguments.work, "results.json")
    results = files.read_json(saved, "Earlier results") if os.path.exists(saved) else {}
    for job in (arguments.only or ",".join(JOBS)).split(","):
        for what in JOBS[job]:
            key = f"{job}: {what}"
            if key not in results:
                print(f"measuring {key}", file=sys.stderr, flush=True)
                results[key] = _process(arguments, job, what)
                files.write_json(saved, results)
    text = markdown(results)
    print(text)
    if arguments.write:
        write_page(arguments.write, "Speed", "python benchmarks/speed.py FOLDER", text, conditions(), results)


def _process(arguments, job, what):
    command = [sys.executable, os.path.abspath(__file__), arguments.data, "--work", arguments.work]
    done = subprocess.run([*command, "--once", job, what], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def conditions():
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU, no GPU"
    return (
        f"PACS pictures (160 px JPEG). {device}, {os.cpu_count()} cores; torch {torch.__version__}, Python "
        f"{platform.python_version()}. Both sides of a ratio were measured in turns in one process; medians, in brackets "
        "lowest to highest."
    )


if __name__ == "__main__":
    run_command(main)
