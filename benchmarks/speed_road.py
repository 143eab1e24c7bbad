"""The rest of the road of benchmarks/speed.py: start, export, and two processes beside one."""

import os
import subprocess
import sys
import time

from speed_turns import in_turns

from tinkit import files

BATCH, STUDENT_SIZE = 64, 224


def start(work, _):
    """Seconds of `tinkit --help`, and from the command to the first gradient: at first, and with the features kept."""
    import shutil

    shown = []
    for _ in range(9):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "tinkit", "--help"], check=True, stdout=subprocess.DEVNULL)
        shown.append(time.monotonic() - began)
    shutil.rmtree(os.path.join(work, "first"), ignore_errors=True)
    first = [_first_gradient(work) for _ in range(4)]
    return {
        "help": shown[2:],
        "first": first[0],
        "again": first[1:],
        "pictures": len(os.listdir(os.path.join(work, "some"))),
    }


def _first_gradient(work):
    """Seconds from starting the process to the end of the first backward pass; it then leaves at once."""
    import shutil

    code = (
        "import os, sys, lightning_fabric as lf\n"
        "real = lf.Fabric.backward\n"
        "def backward(*arguments, **named):\n"
        "    real(*arguments, **named)\n"
        "    print('gradient', flush=True)\n"
        "    os._exit(0)\n"
        "lf.Fabric.backward = backward\n"
        "from tinkit.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    out = os.path.join(work, "first", "run")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", code, "distill", os.path.join(work, "some"), "--teacher", "efficientnet-lite0"]
    command += ["--teacher-size", "128", "--student-size", "128", "--views", "2", "--out", out]
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if "gradient" not in done.stdout:
        raise RuntimeError(f"no first gradient: {done.stdout}")
    return time.monotonic() - began


def export(work, student):
    """Seconds of a bare torch.onnx.export, of tinkit's ONNX file, and of whole exports with their gates."""
    import logging
    import shutil
    import warnings

    import torch

    import tinkit
    from tinkit.host.export.command import load_target
    from tinkit.host.export.to_onnx import student_to_onnx
    from tinkit.host.run import load_run

    run = os.path.join(work, "runs", f"export-{student}")
    if not os.path.exists(os.path.join(run, "student.safetensors")):
        tinkit.distill(os.path.join(work, "some"), out=run, student=student, student_size=STUDENT_SIZE, epochs=1, views=1,
                       teacher="efficientnet-lite0", teacher_size=128, quiet=True)  # fmt: skip
    logging.disable(logging.CRITICAL)
    target = load_target("onnx-fp32")
    deployed = load_run(run).student().eval().deploy()

    def bare():
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example = torch.zeros(2, 3, STUDENT_SIZE, STUDENT_SIZE)
            program = torch.onnx.export(deployed, (example,), dynamo=True, opset_version=target.opset, optimize=True,
                                        dynamic_shapes=({0: "batch"},), verbose=False)  # fmt: skip
            program.save(os.path.join(work, "bare.onnx"))

    def whole(name):
        shutil.rmtree(os.path.join(work, "bundle"), ignore_errors=True)
        tinkit.export(run, target=name, out=os.path.join(work, "bundle"))

    def seconds(action, *arguments):
        began = time.monotonic()
        action(*arguments)
        return time.monotonic() - began

    return in_turns(
        {
            "bare": lambda: seconds(bare),
            "file": lambda: seconds(student_to_onnx, deployed, STUDENT_SIZE, target, os.path.join(work, "ours.onnx")),
            "onnx-fp32": lambda: seconds(whole, "onnx-fp32"),
            "trt-fp16": lambda: seconds(whole, "trt-fp16"),
        },
        5,
    )


def scaling(work, student):
    """Images/s of one process on one core, of two on two, and of two runs that know nothing of each other, together.

    One thread and no loader process each; the two share a batch of the same size, with one batch norm for both and with
    one each (another training). Two runs apart are what the machine can give.
    """
    return {
        **in_turns({how: lambda how=how: _trained_on(work, student, how) for how in RUNS}, 2),
        "batch": BATCH,
        "size": 128,
    }


RUNS = {  # how -> (cores, options of tinkit distill) of each run
    "1": [("0", ["--devices", "1"])],
    "2": [("0,1", ["--devices", "2"])],
    "2, a batch norm each": [("0,1", ["--devices", "2", "--no-sync-batchnorm"])],
    "apart": [("0", ["--devices", "1"]), ("1", ["--devices", "1"])],
}


def _trained_on(work, student, how):
    """Images/s that run.json tells after two epochs, the sum of both runs where there are two."""
    outs = [os.path.join(work, "runs", f"scaling-{number}") for number in range(len(RUNS[how]))]
    started = [_start(work, student, out, *run) for out, run in zip(outs, RUNS[how])]
    codes = [process.wait() for process in started]
    if any(codes):
        raise RuntimeError(f"scaling, {how}: exit codes {codes}")
    return sum(files.read_json(os.path.join(out, "run.json"), "The run")["timings"]["images_per_s"] for out in outs)


def _start(work, student, out, cores, options):
    import shutil

    shutil.rmtree(out, ignore_errors=True)
    teacher = ["--teacher", "efficientnet-lite0", "--teacher-size", "128"]
    training = ["--views", "1", "--epochs", "2", "--workers", "0", "--batch-size", str(BATCH), *options]
    command = [sys.executable, "-m", "tinkit", "distill", os.path.join(work, "some"), "--out", out, *teacher, *training]
    return subprocess.Popen(
        ["taskset", "-c", cores, *command, "--student", student, "--student-size", "128"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
