"""What precision costs and what it brings: seven students, distilled a little, exported for every kind of target.

    python benchmarks/precision.py FOLDER_WITH_TARS [--work DIR] [--students a,b] [--targets a,b] [--write docs/precision.md]

For each student (benchmarks/precision_students.py) and target: size of the file, the exam of the export (worst picture,
1st percentile, mean), what had to be healed, the share of MACs really in that precision, whether kNN on held-out pictures
says the same as with fp32, and latency in the target's own runtime, one thread. Latencies are ratios: fp32 and the reduced
model take turns in blocks in one process; processor time decides, because other work may have the core. Each student and
target is a process and leaves a file, so the command resumes where it stopped.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from command import run_command, write_page
from methods import commit
from precision_students import EPOCHS, HELD_OUT, SIZE, STUDENTS, finished, lay_out, run_folder, train
from precision_table import goals, markdown

from tinkit import files

HERE = os.path.abspath(__file__)
TARGETS = ("onnx-fp32", "onnx-fp16", "trt-bf16", "onnx-int8", "trt-int8", "openvino-fp16", "openvino-int8")
REFERENCE = "onnx-fp32"
BANK, BLOCKS, RUNS = 400, 15, 10


def measure(student, name, work):
    """One row as plain numbers. The first one of a student must be that of the reference."""
    import tinkit

    bundle = os.path.join(work, "bundles", f"{student}-{name}")
    began = time.monotonic()
    result = tinkit.export(run_folder(work, student), target=name, out=bundle)
    seconds = time.monotonic() - began
    judged = [hop for hop in result.hops if hop.gate is not None and hop.output == "embedding"]
    model = os.path.join(bundle, "model.onnx")
    fp32 = os.path.join(work, "bundles", f"{student}-{REFERENCE}", "model.onnx")
    manifest = files.read_json(os.path.join(bundle, "manifest.json"), "The manifest")
    return {
        "student": student,
        "target": name,
        "verdict": result.verdict,
        "mb": os.path.getsize(model) / 1e6,
        "size": os.path.getsize(model) / os.path.getsize(fp32),
        "cosine_mean": min(hop.cosine_mean for hop in judged),
        "cosine_p1": min(hop.cosine_p1 for hop in judged),
        "cosine_min": min(hop.cosine_min for hop in judged),
        "pictures": judged[0].pictures,
        "macs": result.truth.macs,
        "healing": {step: brief(found) for step, found in result.healing.items()},
        "calibration": manifest["calibration"],
        "knn_agreement": agreement(bundle, os.path.dirname(fp32), work),
        "latency": latency(bundle, fp32),
        "export_s": seconds,
        "conditions": judged[0].conditions,
        "commit": commit(),
    }


def brief(found):
    return {key: found[key] for key in ("healed", "macs", "trials", "before", "after", "reason")} | {
        "kept": [(node["node"], node["op_type"], node["gain"]) for node in found["kept"]]
    }


def agreement(bundle, reference, work):
    """Share of the held-out pictures that kNN puts into the same class as with the fp32 model."""
    import numpy as np

    from tinkit.fidelity import knn_predict

    bank, held_out = pictures_of(work, "train", BANK), pictures_of(work, "held-out", HELD_OUT)
    labels = np.array([label for _, label in bank])
    said = []
    for folder in (reference, bundle):
        cache = os.path.join(folder, "embeddings.npz")
        if not os.path.exists(cache):
            found = embed(folder, [path for path, _ in bank + held_out])
            files.write_npz(cache, {"embedding": found})
        rows = files.read_npz(cache)["embedding"]
        said.append(knn_predict(rows[: len(bank)], labels, rows[len(bank) :]))
    truth = np.array([label for _, label in held_out])
    return {
        "same": float((said[0] == said[1]).mean()),
        "accuracy": float((said[1] == truth).mean()),
        "fp32_accuracy": float((said[0] == truth).mean()),
    }


def pictures_of(work, part, count):
    """[(path, class number)], spread evenly over the sorted names."""
    root = os.path.join(work, "pictures", part)
    classes = sorted(os.listdir(root))
    found = [
        (os.path.join(root, label, name), number)
        for number, label in enumerate(classes)
        for name in sorted(os.listdir(os.path.join(root, label)))
    ]
    return [found[index * len(found) // count] for index in range(min(count, len(found)))]


def embed(folder, paths):
    """(N, D) of a bundle's model as it is judged on the host: in its own runtime, or as a rehearsal."""
    import numpy as np
    import onnx

    from tinkit.bundle import open_bundle
    from tinkit.device.pictures import network_pixels
    from tinkit.device.runtime import open_runtime
    from tinkit.device.sitting import answer_exam
    from tinkit.host.export.rehearsal import rehearsal_graph

    bundle = open_bundle(folder)
    path, kind = bundle.model_path, "openvino" if bundle.target.runtime == "openvino" else "onnxruntime"
    half = bundle.target.precision in ("fp16", "bf16") or bundle.target.rest == "fp16"
    if half and kind == "onnxruntime":
        path = os.path.join(folder, "rehearsal.onnx.tmp")
        onnx.save(rehearsal_graph(onnx.load(bundle.model_path)), path)
    pixels = np.stack([network_pixels(picture, bundle.preprocessing) for picture in paths])
    with open_runtime(kind, path, target=bundle.target) as runtime:
        return answer_exam(bundle, runtime, pixels, 8)["embedding"]


def latency(bundle_path, fp32):
    """{"ratio", "low", "high", "wall_ratio", "ms", "fp32_ms"}: fp32 over reduced, quartiles over the blocks; None for
    targets whose runtime is not here."""
    import numpy as np

    from tinkit.bundle import open_bundle
    from tinkit.device.runtime import open_runtime
    from tinkit.device.sitting import network_input

    bundle = open_bundle(bundle_path)
    kind = bundle.target.runtime
    if kind == "tensorrt":
        return None
    feeds = network_input(bundle, bundle.exam().pixels[:1])
    with (
        open_runtime(kind, fp32, target=bundle.target) as plain,
        open_runtime(kind, bundle.model_path, target=bundle.target) as reduced,
    ):
        blocks = [[block(runtime, feeds) for runtime in (plain, reduced)] for _ in range(BLOCKS)]
        told = getattr(reduced, "layer_precisions", dict)()
    cpu = [first[0] / second[0] for first, second in blocks[2:]]
    wall = [first[1] / second[1] for first, second in blocks[2:]]
    low, ratio, high = (float(value) for value in np.percentile(cpu, (25, 50, 75)))
    return {
        "ratio": ratio,
        "low": low,
        "high": high,
        "wall_ratio": statistics.median(wall),
        "fp32_ms": statistics.median(first[0] for first, _ in blocks[2:]),
        "ms": statistics.median(second[0] for _, second in blocks[2:]),
        "layers": told,
    }


def block(runtime, feeds):
    """(median processor ms, median wall ms) of some runs after one that does not count."""
    runtime.run(feeds)
    cpu, wall = [], []
    for _ in range(RUNS):
        cpu_start, start = time.process_time(), time.perf_counter()
        runtime.run(feeds)
        wall.append((time.perf_counter() - start) * 1e3)
        cpu.append((time.process_time() - cpu_start) * 1e3)
    return statistics.median(cpu), statistics.median(wall)


def in_a_process(arguments, more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, HERE, arguments.data, "--work", arguments.work, *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(more)} failed with exit code {done.returncode}")
    return done.stdout


def conditions(rows):
    from tinkit.device import board

    machine = board.machine()
    seen = rows[0]["conditions"] if rows else {}
    versions = ", ".join(f"{name} {seen[name]}" for name in ("onnxruntime",) if name in seen)
    return (
        f"Students of {SIZE} px, distilled for {EPOCHS} epochs on PACS's photographs; exams of {rows[0]['pictures']} held-out "
        f"pictures; int8 calibrated on 128 others. fp16, bf16 and trt-int8 are rehearsed on the host, the others are the file "
        f"that ships in its own runtime. kNN: k = 10, {BANK} pictures in the bank, {HELD_OUT} held out. Latency: batch 1, one "
        f"thread, processor time, median over {BLOCKS - 2} blocks of {RUNS} runs in turns with fp32 in the same runtime, "
        f"quartiles in brackets. {machine['cpu']}, {', '.join(instructions())}; {versions}; "
        f"commit {', '.join(sorted({row['commit'] for row in rows}))}."
    )


def instructions():
    with open("/proc/cpuinfo", encoding="utf-8") as handle:
        flags = next((line.split() for line in handle if line.startswith("flags")), [])
    return [flag for flag in ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16") if flag in flags] or ["no x86"]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with pacs-photo.tar")
    parser.add_argument("--work", default="runs/precision", help="where pictures, runs, bundles and results go")
    parser.add_argument("--students", default=",".join(STUDENTS))
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--write", help="save the table as Markdown here, and as JSON beside it")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    arguments = parse()
    if arguments.job:
        print(json.dumps(measure(*arguments.job, arguments.work)))
        return 0
    if arguments.train:
        train(arguments.train, arguments.work)
        return 0
    lay_out(arguments.data, arguments.work)
    rows, failed = [], []
    for student in arguments.students.split(","):
        if not finished(arguments.work, student):
            in_a_process(arguments, ["--train", student])
        for target in arguments.targets.split(","):
            path = os.path.join(arguments.work, "results", f"{student}-{target}.json")
            try:
                if not os.path.exists(path):
                    found = in_a_process(arguments, ["--job", student, target])
                    files.write_json(path, json.loads(found.splitlines()[-1]))
                rows.append(files.read_json(path, "A result"))
                print(f"done: {student} {target}: {rows[-1]['verdict']}", file=sys.stderr, flush=True)
            except RuntimeError as error:
                failed.append(str(error))
                print(error, file=sys.stderr, flush=True)
    if not rows:
        return 1
    table, text = markdown(rows) + "\n\n" + goals(rows), conditions(rows)
    print(table + "\n\n" + text)
    if arguments.write:
        command = "python benchmarks/precision.py FOLDER"
        write_page(arguments.write, "What precision costs and brings", command, table, text, {"rows": rows})
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
