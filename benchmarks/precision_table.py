"""The table of benchmarks/precision.py and the goals it is held against, each told with what was reached."""

import statistics

HALF, INT8 = ("fp16", "bf16"), "int8"


def markdown(rows):
    """One line a student and target."""
    head = ["student", "target", "gate", "MB", "size", "cosine mean", "p1", "worst", "MACs in it", "healed nodes"]
    head += ["of the MACs", "kNN as fp32", "times fp32's speed"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        healed = [found for found in row["healing"].values() if found["healed"]]
        tried = [found for found in row["healing"].values() if not found["healed"]]
        nodes = str(sum(len(found["kept"]) for found in healed)) + (" (not healed)" if tried else "")
        cells = [row["student"], row["target"], row["verdict"], f"{row['mb']:.2f}", f"{row['size']:.2f}"]
        cells += [f"{row[key]:.5f}" for key in ("cosine_mean", "cosine_p1", "cosine_min")]
        cells += [_share(row), nodes, f"{sum(found['macs'] for found in healed):.1%}"]
        cells += [f"{row['knn_agreement']['same']:.3f}", _ratio(row["latency"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(row):
    precision = row["target"].rsplit("-", 1)[1]
    return f"{row['macs'].get(precision, 0):.1%}" if row["macs"] else "-"


def _ratio(latency):
    if latency is None:
        return "-"
    return f"{latency['ratio']:.2f} ({latency['low']:.2f} to {latency['high']:.2f})"


def goals(rows):
    """What was aimed at, and for how many students it was reached."""
    half = [row for row in rows if row["target"].endswith(HALF) and not row["target"].startswith("openvino")]
    fp16 = [row for row in half if row["target"].endswith("fp16")]
    int8 = [row for row in rows if row["target"].endswith(INT8)]
    small = [row for row in int8 if not row["target"].startswith("trt")]
    fast = [row for row in rows if row["target"] == "openvino-int8"]
    lines = [
        _goal("fp16, rehearsed: worst picture at least 0.9999", fp16, lambda row: row["cosine_min"] >= 0.9999),
        _goal("int8: worst picture at least 0.98", int8, lambda row: row["cosine_min"] >= 0.98),
        _goal("int8: mean at least 0.995", int8, lambda row: row["cosine_mean"] >= 0.995),
        _goal("int8: at least 85 % of the MACs", int8, lambda row: row["macs"].get(INT8, 0) >= 0.85),
        _goal("onnx-int8 and openvino-int8: at most 0.30 of the size", small, lambda row: row["size"] <= 0.30),
    ]
    failed = [f"{row['student']} {row['target']}" for row in rows if row["verdict"] == "failed"]
    lines.append(
        f"* Exports that failed a gate of their target or their precision truth: {', '.join(failed) or 'none'}."
    )
    if fast:
        median = statistics.median(row["latency"]["ratio"] for row in fast)
        slower = [row["student"] for row in fast if row["latency"]["ratio"] < 1]
        told = f", slower than fp32: {', '.join(slower)}" if slower else ", none slower than fp32"
        lines.append(f"* openvino-int8 at least 1.8 times as fast as fp32, as the median: {median:.2f}{told}.")
    return "\n".join(lines)


def _goal(words, rows, reached):
    misses = [f"{row['student']} {row['target']}" for row in rows if not reached(row)]
    told = f"* {words}: {len(rows) - len(misses)} of {len(rows)}"
    return told + (f"; not {', '.join(misses)}." if misses else ".")
