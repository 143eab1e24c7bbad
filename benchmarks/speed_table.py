"""The table of benchmarks/speed.py: a section a question, a goal beside the number where there is one."""

import statistics


def markdown(results):
    """Markdown of whatever is measured so far."""
    sections = (_step, _online, _compile, _store, _memory, _start, _export, _scaling)
    found = [section(_of(results, section.__name__[1:])) for section in sections if _of(results, section.__name__[1:])]
    return "\n\n".join(found)


def _of(results, job):
    return {key.split(": ", 1)[1]: value for key, value in results.items() if key.startswith(f"{job}: ")}


def spread(values, digits=1):
    """Median, and in brackets lowest to highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(ours, bound):
    """The ratio of each round, in turns."""
    return [one / other for one, other in zip(ours, bound)]


def table(title, head, rows):
    lines = [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _step(found):
    rows = []
    for name, one in found.items():
        row = [name, str(one["size"]), str(one["local positions"]), spread(one["bare"]), f"{one['first']:.1f}"]
        rows.append([*row, spread(one["cached"]), spread(ratios(one["cached"], one["bare"]), 2)])
    head = [
        "student",
        "px",
        "teacher's positions",
        "bare supervised loop, images/s",
        "tinkit, first epoch",
        "tinkit, later",
        "ratio",
    ]
    return table("The step: against the bare supervised loop (goal 0.90)", head, rows)


def _online(found):
    rows = [
        [name, spread(one["online"], 2), spread(one["cached"]), spread(ratios(one["cached"], one["online"]))]
        for name, one in found.items()
    ]
    head = ["teacher", "--online, images/s", "with the store, images/s", "times"]
    return table("With the store against the teacher at every step (goal 5 at ViT-B)", head, rows)


def _compile(found):
    rows = []
    for name, one in found.items():
        for what, title in COMPILED.items():
            times = statistics.median(one[what]) / statistics.median(one["plain"])
            rows.append([name, title, spread(one[what], 3), f"{times:.2f}"])
            rows[-1].append(f"{statistics.median(one['faults'][what]):,.0f}")
        rows.append([name, "--compile on, the first step", f"{one['first']:.0f}", "", ""])
    head = ["student", "how", "seconds", "times the step as it is", "page faults"]
    return table("A step of tinkit's, done otherwise", head, rows)


def _store(found):
    rows = []
    for name, one in found.items():
        int8 = one["int8"]
        rows.append([
            name, spread(one["bare"]), spread(one["written"]), spread(ratios(one["written"], one["bare"]), 2),
            spread(one["given back"]), f"{one['pictures']} in {one['pictures'] / one['whole']:.0f} s",
            f"{one['bytes'] / 1e3:.1f} kB",
            spread(one["reads"], 0), f"{int8['bytes'] / 1e3:.1f} kB",
            f"{int8['global']['worst']:.5f}, {int8['local']['worst']:.5f}",
        ])  # fmt: skip
    head = ["teacher", "bare forward, pictures/s", "written, pictures/s", "ratio",
            "written, memory given back", "whole", "a picture (float16)",
            "random reads, rows/s", "a picture (int8)", "int8: worst cosine, global and local"]  # fmt: skip
    return table("The store: against the bare teacher forward (goal 0.95)", head, rows)


def _memory(found):
    rows = [
        [f"{one['pictures']:,}", f"{one['listing_mb']:.0f}", f"{one['peak_mb']:.0f}",
         f"{one['peak_mb'] - one['listing_mb']:.0f}", f"{one['per_s']:,.0f}"]
        for one in found.values()
    ]  # fmt: skip
    head = ["pictures (made up)", "peak with the listing, MB", "peak with the store, MB", "for the store", "rows/s"]
    return table("Memory of building a store", head, rows)


def _start(found):
    one = found["command"]
    rows = [
        ["tinkit --help", spread(one["help"], 2)],
        [f"first gradient, {one['pictures']} pictures, features to be made", f"{one['first']:.1f}"],
        ["first gradient, features kept", spread(one["again"])],
    ]
    return table("Start, seconds", ["what", "seconds"], rows)


COMPILED = {"plain": "as it is", "given back": "memory given back after every step", "compiled": "--compile on"}
EXPORTS = {
    "bare": "bare torch.onnx.export",
    "file": "tinkit's ONNX file (goal 1.3)",
    "onnx-fp32": "onnx-fp32, gate included (goal 2)",
    "trt-fp16": "trt-fp16, gates included (goal 2)",
}


def _export(found):
    rows = [
        [name, title, spread(one[what], 2), spread(ratios(one[what], one["bare"]), 2)]
        for name, one in found.items()
        for what, title in EXPORTS.items()
    ]
    return table("Export", ["student", "what", "seconds", "times the bare export"], rows)


SCALED = {
    "1": "one process, one core",
    "2": "two processes, two cores (--devices 2)",
    "2, a batch norm each": "two processes, --no-sync-batchnorm (another training)",
    "apart": "two runs that know nothing of each other, together",
}


def _scaling(found):
    rows = [
        [name, title, spread(one[how]), spread(ratios(one[how], one["1"]), 2)]
        for name, one in found.items()
        for how, title in SCALED.items()
    ]
    return table("Many devices: gloo, the same batch", ["student", "what", "images/s", "times one process"], rows)
