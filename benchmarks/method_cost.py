"""What a method adds to a training step: the student alone with the cheapest loss there is, against the student and each.

    python benchmarks/method_cost.py [--rounds 15] [--write docs/method-cost.md]

Student, sizes and batch of benchmarks/methods.py; the teacher's features are random numbers of the right shapes, so
neither pictures nor the teacher's own pass count. One thread; a step is forward, loss, backward, AdamW. The steps of all
methods take turns, so that a machine that slows down slows all alike, and the clock counts this process's own time.
A method that trains the lower layers alone (fitnet) can be cheaper than the bare step, which goes back through all.
Parameters are those that are trained beside the student, its classifier included where a method wants one.
"""

import argparse
import os
import platform
import statistics
import time

from command import run_command, write_page
from method_rows import LABELLED, RELEASED, STUDENT, STUDENT_SIZE, TEACHER_SIZE

BATCH, CLASSES, TEACHER_ARCHITECTURE = 64, 1000, "tf_efficientnet_lite0"
BARE = "student alone"


def costed():
    """name -> settings: every method with its defaults, without labels where it can, and the forms that differ much."""
    from tinkit.host.methods import METHODS, method_class

    labelled = {name: "labels" in method_class(name).needs for name in METHODS}
    found = {name: {"method": name, **(LABELLED if labelled[name] else {})} for name in METHODS}
    return {"tintem": found.pop("tintem"), "tintem (released)": RELEASED, **found}


def bare_step(images_BCHW):
    """The step that costs least."""
    import torch

    student = new_student()
    optimizer = torch.optim.AdamW(student.parameters(), fused=True)

    def step():
        student(images_BCHW).global_BD.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, 0


def method_step(settings, images_BCHW, teacher):
    """(a function that takes one step, parameters trained beside the student) of one method."""
    import torch

    from tinkit.host.distill.objective import Objective, label_weight, wanted
    from tinkit.host.distill.pair import Pair
    from tinkit.host.distill.schedule import make_optimizer
    from tinkit.host.distill.settings import Settings
    from tinkit.host.distill.state import Distiller
    from tinkit.host.taps import side_of, tap_indices

    settings = Settings(images="none", **settings)
    terms, labelled = settings.terms(), settings.labels is not None
    needed = wanted(terms, settings.local, settings.logits, labelled)
    share = label_weight(terms, settings.label_weight) if labelled else 0.0
    classes = 10 if labelled else CLASSES
    student, teacher = new_student(), only(teacher, needed, classes)
    if "student_taps" in needed:
        student.tapped = tap_indices(student.backbone)
    if "logits" in needed or share > 0:
        student.set_head(torch.nn.Linear(student.dim, classes))
    with torch.no_grad():
        ours = student.eval()(images_BCHW)
    pair = Pair(side_of(ours), side_of(teacher), classes, 4000, 9)
    head = sum(p.numel() for p in student.head.parameters()) if student.head is not None else 0
    distiller = Distiller(student.train(), Objective(terms, pair, share).train()).to(memory_format=torch.channels_last)
    distiller.method.fit(lambda: iter([teacher] * 4))
    optimizer = make_optimizer(distiller, settings)
    index_B, labels_B = torch.arange(BATCH), torch.arange(BATCH) % 10 if labelled else None
    count = 0

    def step():
        nonlocal count
        distiller(images_BCHW, teacher, index_B, count, 0, labels_B, index_B)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        count += 1

    return step, head + sum(p.numel() for p in distiller.method.parameters() if p.requires_grad)


def new_student():
    import torch

    from tinkit.host.student import build_student

    torch.manual_seed(0)
    return build_student(STUDENT, STUDENT_SIZE).train().to(memory_format=torch.channels_last)


def made_up_teacher():
    """Random `Features` of the teacher's shapes, all parts."""
    import torch

    from tinkit.host.features import Features
    from tinkit.host.student import create_backbone, preprocessing_of
    from tinkit.host.teacher import TimmTeacher

    backbone = create_backbone(TEACHER_ARCHITECTURE, TEACHER_SIZE, CLASSES)
    teacher = TimmTeacher("random", TEACHER_ARCHITECTURE, backbone, preprocessing_of(backbone, TEACHER_SIZE), False)
    blank = torch.zeros(BATCH, 3, TEACHER_SIZE, TEACHER_SIZE, dtype=torch.uint8)
    found = teacher.features(blank, ("local", "logits", "taps"))
    taps = {name: torch.randn(tap.shape) for name, tap in found.taps.items()}
    random = [torch.randn(part.shape) for part in (found.global_BD, found.local_BLD, found.logits_BC)]
    return Features(random[0], random[1], found.grid, random[2], taps)


def only(features, needed, classes):
    """What a method is given: the parts that it needs."""
    from tinkit.host.features import Features

    return Features(
        features.global_BD,
        features.local_BLD if "local" in needed else None,
        features.grid if "local" in needed else None,
        features.logits_BC[:, :classes] if "logits" in needed else None,
        features.taps if "teacher_taps" in needed else {},
    )


def interleaved_ms(steps, rounds, clock=time.process_time):
    """Median milliseconds of each step, taken in turns; two rounds before that do not count."""
    samples = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            began = clock()
            step()
            if number >= 2:
                samples[name].append(1e3 * (clock() - began))
    return {name: statistics.median(values) for name, values in samples.items()}


def table(medians, parameters):
    """Markdown; the bare step first, then what each method adds to it."""
    bare = medians[BARE]
    lines = ["| method | ms a step | extra ms | times the bare step | parameters trained beside the student |"]
    lines += ["|---|---|---|---|---|", f"| {BARE} | {bare:.0f} | - | - | - |"]
    for name, value in medians.items():
        if name != BARE:
            lines.append(
                f"| {name} | {value:.0f} | {round(value - bare)} | {value / bare:.2f} | {parameters[name]:,} |"
            )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", help="save the table as Markdown here")
    parser.add_argument("--methods", help="some only, with commas between")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images_BCHW = torch.randn(BATCH, 3, STUDENT_SIZE, STUDENT_SIZE).contiguous(memory_format=torch.channels_last)
    teacher = made_up_teacher()
    chosen = {name: s for name, s in costed().items() if not arguments.methods or name in arguments.methods.split(",")}
    made = {BARE: bare_step(images_BCHW)}
    made.update({name: method_step(settings, images_BCHW, teacher) for name, settings in chosen.items()})
    medians = interleaved_ms({name: step for name, (step, _) in made.items()}, arguments.rounds)
    text = table(medians, {name: count for name, (_, count) in made.items()})
    conditions = (
        f"{STUDENT} at {STUDENT_SIZE} px, features of {TEACHER_ARCHITECTURE} at {TEACHER_SIZE} px, batch {BATCH}, "
        f"{CLASSES} classes (10 where there are labels); processor time of one thread, median of {arguments.rounds} "
        f"rounds in turns. torch {torch.__version__.split('+')[0]}, {platform.machine()} CPU, {os.cpu_count()} cores."
    )
    print(f"{text}\n\n{conditions}")
    if arguments.write:
        title = "What a method adds to a training step"
        write_page(arguments.write, title, "python benchmarks/method_cost.py", text, conditions)


if __name__ == "__main__":
    run_command(main)
