"""tinkit beside LightlyTrain's distillation: same teacher, student, pictures, batch, cores, and one clock.

    python benchmarks/lightly.py FOLDER_WITH_PACS_TARS [--work DIR] [--venv DIR] [--teacher dinov2] [--write docs/lightly.md]

LightlyTrain (AGPL-3.0, https://docs.lightly.ai/train) is installed in a virtual environment of its own, with its events
switched off, and used as documented: `pretrain(method="distillation")`, its defaults for the loss, augmentation and optimiser.
Its teacher here is a timm network with local weights (`teacher_weights`); tinkit reads the same file. Nothing is fetched
from a model hub. Both run with two threads and no loader processes on the same two cores, in turns, each run a process from
command to exit, and tinkit's time includes its store unless the row says otherwise.

Learning rate: tinkit's default. LightlyTrain's default is made for batches of 1,536, so it gets a sweep as its documentation
advises, chosen on validation pictures and not counted in its time; its default is reported too.

The machine must be idle (about 20 minutes on two cores). Every run is kept when done: the command goes on where it stopped.
"""

import argparse
import itertools
import os
import platform
import shutil
import statistics
import sys

import lightly_parts as parts
from command import run_command, write_page

from tinkit import files

HERE = os.path.dirname(os.path.abspath(__file__))
LENGTHS = {"lightly": (5, 10, 20), "tinkit": (5, 10, 20, 40)}  # epochs, the schedule made for each
TINY = {"lightly": (2,), "tinkit": (2, 3)}
SWEEP_EPOCHS, DEFAULT_RATE, FACTORS = 10, 5e-4, (1, 10, 30)  # of LightlyTrain; the default as its log resolves it
OPTED_OUT = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}
FRESH, AGAIN = "fresh", "again"  # a tinkit run that builds its store, and one that finds that of an earlier one


def job_name(tool, epochs, how):
    return f"{tool}-{epochs}-{how}"


def run(arguments, tool, epochs, how):
    """One finished run and what is known of it. how: LightlyTrain's factor on the rate; "fresh" or "again" of tinkit's store."""
    name = job_name(tool, epochs, how)
    path = os.path.join(arguments.work, arguments.teacher, "results", name + ".json")
    if os.path.exists(path):
        return files.read_json(path, "A result")
    print("running", arguments.teacher, name, file=sys.stderr, flush=True)
    out = os.path.join(arguments.work, arguments.teacher, "runs", name)
    asked, log = out + ".arguments.json", out + ".log"
    if tool == "lightly":
        rate = None if how == 1 else how * DEFAULT_RATE
        parts.write_arguments(asked, parts.lightly_arguments(out, arguments.work, arguments.teacher, epochs, rate))
        child = os.path.join(HERE, "lightly_child.py")
        command = [parts.environment(arguments.venv), "-I", child, asked]  # -I: we are not its `lightly`
        seen = parts.exports_seen(os.path.join(out, "exported_models", "exported_last.pt"))
    else:
        parts.write_arguments(
            asked, parts.tinkit_arguments(out, arguments.work, arguments.teacher, epochs, store_of(arguments, epochs))
        )
        command = [sys.executable, os.path.abspath(__file__), arguments.data, "--distill", asked]
        seen = parts.epochs_logged(os.path.join(out, "log.jsonl"))
    shutil.rmtree(out, ignore_errors=True)  # what a run that was cut off left behind: it is timed from its start
    if how == FRESH:
        shutil.rmtree(store_of(arguments, epochs), ignore_errors=True)
    found = parts.watched(command, arguments.cores, log, seen, **OPTED_OUT)
    found.update(tool=tool, epochs=epochs, how=how, **parts.judge(tool, out, arguments.work, arguments.teacher))
    files.write_json(path, found)
    return found


def store_of(arguments, epochs):
    """A folder of its own for each length, so that each fresh run pays for its store."""
    return os.path.join(arguments.work, arguments.teacher, "stores", str(epochs))


def all_runs(arguments):
    """Every run, the tools in turns; {"runs": [...], "factor": the one that won on the validation pictures}."""
    lengths, sweep, factors = (TINY, 2, (1, 10)) if arguments.tiny else (LENGTHS, SWEEP_EPOCHS, FACTORS)
    ours = [("tinkit", length, FRESH) for length in lengths["tinkit"]] + [("tinkit", lengths["tinkit"][-2], AGAIN)]
    done = []
    for factor in factors:
        done.append(run(arguments, "lightly", sweep, factor))
        done.append(run(arguments, *ours.pop(0)))
    best = max(done[::2], key=lambda found: found["knn_validation"])["how"]
    for length, factor in dict.fromkeys(
        [(length, best) for length in lengths["lightly"]] + [(lengths["lightly"][-1], 1)]
    ):
        if not (length == sweep and factor in factors):
            done.append(run(arguments, "lightly", length, factor))
        if ours:
            done.append(run(arguments, *ours.pop(0)))
    done += [run(arguments, *job) for job in ours]
    return {"runs": done, "factor": best}


def images_per_second(found):
    """Of each epoch after the first."""
    marks = found["marks"]
    return [parts.IMAGES / (later - earlier) for earlier, later in itertools.pairwise(marks) if later > earlier]


def row_title(found):
    if found["tool"] == "tinkit":
        return "tinkit, store at hand" if found["how"] == AGAIN else "tinkit"
    return "LightlyTrain, default rate" if found["how"] == 1 else f"LightlyTrain, rate x {found['how']}"


def table(found):
    titles = [
        "run",
        "epochs",
        "seconds, all",
        "processor seconds",
        "until the first epoch's end",
        "images/s after it",
        "images/s, all",
        "peak MB",
        "kNN",
        "agreement",
    ]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for one in sorted(found["runs"], key=lambda one: (one["tool"], str(one["how"]), one["epochs"])):
        speeds = images_per_second(one)
        cells = [
            row_title(one),
            str(one["epochs"]),
            f"{one['seconds']:.0f}",
            f"{one['processor_seconds']:.0f}",
            f"{one['marks'][0]:.0f}",
            f"{statistics.median(speeds):.0f} ({min(speeds):.0f}-{max(speeds):.0f})" if speeds else "-",
            f"{one['epochs'] * parts.IMAGES / one['seconds']:.0f}",
            f"{one['peak_mb']:.0f}",
            f"{one['knn']:.3f}",
            f"{one['agreement']:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speed_line(found):
    """Median and spread of images a second over the runs of each tool, and the ratio."""
    said, middle = [], {}
    for tool, name in (("lightly", "LightlyTrain"), ("tinkit", "tinkit")):
        runs = [statistics.median(images_per_second(one)) for one in found["runs"] if one["tool"] == tool]
        middle[tool] = statistics.median(runs)
        said.append(f"{name} {middle[tool]:.0f} ({min(runs):.0f} to {max(runs):.0f}, {len(runs)} runs)")
    ratio = middle["tinkit"] / middle["lightly"]
    return f"Images a second after the first epoch, median of the runs' medians: {'; '.join(said)}; ratio {ratio:.1f}."


def reach_lines(found):
    """When each tool got to what both reached: the better tool's best is not asked of the other."""
    lines = ["| to reach, from the command on | LightlyTrain | tinkit | ratio |", "|---|---|---|---|"]
    fresh = [one for one in found["runs"] if one["how"] != AGAIN]
    for measure, title in (("knn", "kNN accuracy"), ("agreement", "agreement with the teacher")):
        level = min(max(one[measure] for one in fresh if one["tool"] == tool) for tool in LENGTHS)
        times = {
            tool: min((one["seconds"], one["epochs"]) for one in fresh if one["tool"] == tool and one[measure] >= level)
            for tool in LENGTHS
        }
        cells = [f"{times[tool][0]:.0f} s ({times[tool][1]} epochs)" for tool in LENGTHS]
        lines.append(
            f"| {title} {level:.3f} | " + " | ".join(cells) + f" | {times['lightly'][0] / times['tinkit'][0]:.1f} |"
        )
    return "\n".join(lines)


def conditions(arguments, found):
    import torch

    told, some = parts.TEACHERS[arguments.teacher], found["runs"][0]
    source = f"weights of {parts.FOCUS}" if arguments.teacher == "dinov2" else "ImageNet weights"
    pictures = {part: len(parts.STYLES) * count for part, count in parts.PARTS.items()}
    others = 100 * max(one["others"] for one in found["runs"])
    return (
        f"Teacher {told['timm']} ({source}), itself kNN {some['teacher_knn']:.3f}; student {parts.STUDENT} from random weights, "
        f"{told['size']} px for both; {pictures['train']} PACS pictures of four styles, batch {parts.BATCH}, {parts.STEPS} steps "
        f"an epoch for both, float32. {parts.LIGHTLY.replace('[timm]', '')}: defaults, but its rate x {found['factor']} won a "
        f"sweep of {FACTORS} on {pictures['val']} validation pictures. tinkit: method, rate and views are its defaults. kNN "
        f"(k = 10) on {pictures['test']} other pictures, bank: the training pictures; LightlyTrain's embedding is the mean of "
        f"the exported model's map, as its `embed` gives it. One seed: small differences of kNN mean nothing. Cores "
        f"{arguments.cores}, a thread on each, no loader processes; peak: VmHWM of the process. Other processes had at most "
        f"{others:.0f} % of the machine's busy time. torch {torch.__version__.split('+')[0]}, {platform.machine()} CPU."
    )


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with pacs-*.tar")
    parser.add_argument("--work", default="runs/lightly", help="where pictures, weights, runs and results go")
    parser.add_argument("--venv", help="LightlyTrain's virtual environment (default: WORK/venv, made when missing)")
    parser.add_argument("--teacher", choices=tuple(parts.TEACHERS), default="dinov2")
    parser.add_argument("--cores", default="0,1")
    parser.add_argument("--anyway", action="store_true", help="also on a busy machine: to try it out, not to measure")
    parser.add_argument("--tiny", action="store_true", help="two or three epochs: to try it out, not to measure")
    parser.add_argument("--write", help="save the page as Markdown here, and as JSON beside it")
    parser.add_argument("--distill", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    arguments = parse()
    if arguments.distill:
        import tinkit

        tinkit.distill(**files.read_json(arguments.distill, "The arguments"), quiet=True)
        return 0
    parts.require_idle(arguments.anyway)
    arguments.venv = arguments.venv or os.path.join(arguments.work, "venv")
    parts.environment(arguments.venv)
    parts.lay_out(arguments.data, arguments.work)
    parts.teacher_weights(arguments.teacher, arguments.work)
    found = all_runs(arguments)
    tables = "\n\n".join([table(found), speed_line(found), reach_lines(found)])
    told = conditions(arguments, found)
    print(tables + "\n\n" + told)
    if arguments.write:
        write_page(arguments.write, "Beside LightlyTrain", "python benchmarks/lightly.py FOLDER", tables, told, found)
    return 0


if __name__ == "__main__":
    run_command(main)
