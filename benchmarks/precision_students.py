"""The students of benchmarks/precision.py: seven architectures, distilled a little on photographs.

Random weights hide what quantisation loses, so each student is trained: PACS's photographs, the part that is not held out
(400 pictures by content hash), EfficientNet-Lite0 at 128 px as the teacher, tinkit's defaults for five epochs at 160 px.
That makes no good student, but one whose activations are a trained network's. Finished runs are kept.
"""

import hashlib
import os
import tarfile

STUDENTS = (
    "mobilenetv4_conv_small",
    "mobilenetv3_small_100",
    "efficientvit_b0",
    "fastvit_t8",
    "repvit_m1_0",
    "vit_tiny_patch16_224",
    "tiny_vit_5m_224",
)
SIZE, EPOCHS, BATCH_SIZE, VIEWS = 160, 5, 32, 2
TEACHER, TEACHER_SIZE = "efficientnet-lite0", 128
HELD_OUT = 400


def lay_out(data, work):
    """work/pictures/{train,held-out}/CLASS/NAME.jpg from the photographs of PACS; a finished layout is kept."""
    root = os.path.join(work, "pictures")
    done = os.path.join(root, "complete")
    if os.path.exists(done):
        return root
    found = []
    with tarfile.open(os.path.join(data, "pacs-photo.tar")) as archive:
        for member in archive:
            if member.isfile():
                content = archive.extractfile(member).read()
                name = os.path.normpath("/" + member.name)[1:]
                found.append((hashlib.sha256(b"precision/" + content).hexdigest(), name, content))
    for rank, (_, name, content) in enumerate(sorted(found, key=lambda entry: entry[:2])):
        path = os.path.join(root, "held-out" if rank < HELD_OUT else "train", *name.split("/")[-2:])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as handle:
            handle.write(content)
    open(done, "w").close()
    return root


def run_folder(work, student):
    return os.path.join(work, "runs", f"{student}-{SIZE}px-{EPOCHS}epochs")


def train(student, work):
    """Distil one student, or go on with it; its run's folder."""
    import tinkit

    out = run_folder(work, student)
    tinkit.distill(
        os.path.join(work, "pictures", "train"),
        out=out,
        resume=os.path.exists(os.path.join(out, "run.json")),
        quiet=True,
        teacher=TEACHER,
        teacher_size=TEACHER_SIZE,
        student=student,
        student_size=SIZE,
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        views=VIEWS,
        workers=0,
        seed=0,
        store=os.path.join(work, "stores"),
    )
    return out


def finished(work, student):
    from tinkit import files

    record = os.path.join(run_folder(work, student), "run.json")
    return os.path.exists(record) and files.read_json(record, "The run's record")["status"] == "finished"
