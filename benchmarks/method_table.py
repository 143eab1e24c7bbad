"""The table of benchmarks/methods.py, as Markdown and as JSON: a row a method, mean and sd over its seeds."""

import statistics

from method_rows import RATES, plan

# key, title, digits; the first ones are of the held-out pictures, one value a seed
MEASURES = (
    ("knn", "kNN", 3),
    ("probe", "linear probe", 3),
    ("agreement", "agreement with the teacher", 3),
    ("cosine_difference", "mean abs diff of cosines", 3),
    ("cosine_difference_centred", "same, both centred", 3),
    ("spearman", "Spearman of cosines", 3),
    ("cka", "linear CKA", 3),
    ("auroc", "AUROC", 3),
    ("corrupted", "kNN, corrupted", 3),
)
# of all runs of a row, tuning runs too: the median
COSTS = (
    ("step_ms", "ms a step", 0),
    ("extra_parameters", "extra parameters", 0),
    ("peak_mb", "peak MB", 0),
)


def summarise(rows, results, failed, budget):
    """One dict a row: seeds done and wanted, chosen rate, failure, {"mean", "sd", "values"} of each measure, costs."""
    found = []
    for name, row in rows.items():
        stand = plan(row, results, failed, budget)
        finals = [results[job.key] for job in stand.finals if "knn" in results.get(job.key, {})]
        runs = finals + [results[job.key] for job in stand.tuning if job.key in results]
        found.append(
            {
                "row": name,
                "settings": row[0],
                "seeds": len(finals),
                "seeds_wanted": min(row[1], budget.seeds),
                "rate": stand.rate,
                "failed": stand.failed,
                "tuning": {
                    f"{job.rate:g}": results[job.key].get("knn_validation")
                    for job in stand.tuning
                    if job.key in results
                },
                "measures": {key: spread([run[key] for run in finals]) for key, _, _ in MEASURES if finals},
                "costs": {key: median([run.get(key) for run in runs]) for key, _, _ in COSTS},
                "runs": finals,
            }
        )
    return found


def spread(values):
    """Mean, and with several values their standard deviation (n - 1)."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": sd, "values": values}


def median(values):
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def markdown(summary, teacher):
    """The table; the teacher's own numbers are its first line. `teacher` holds a value for each measure."""
    titles = ["row", "seeds", "rate", *(title for _, title, _ in MEASURES + COSTS)]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    own = [f"{teacher[key]:.{digits}f}" for key, _, digits in MEASURES] + ["-"] * len(COSTS)
    lines.append("| " + " | ".join(["teacher", "-", "-", *own]) + " |")
    for row in summary:
        cells = [_spread(row["measures"].get(key), digits) for key, _, digits in MEASURES]
        cells += [_number(row["costs"][key], digits) for key, _, digits in COSTS]
        lines.append("| " + " | ".join([row["row"], _seeds(row), _rate(row["rate"]), *cells]) + " |")
    return "\n".join(lines)


def _seeds(row):
    done = str(row["seeds"]) if row["seeds"] == row["seeds_wanted"] else f"{row['seeds']} of {row['seeds_wanted']}"
    return f"failed ({done})" if row["failed"] else done


def _rate(rate):
    if rate is None:
        return "-"
    return f"{rate:g}" + {RATES[0]: " (lowest)", RATES[-1]: " (highest)"}.get(rate, "")


def _spread(value, digits):
    if value is None:
        return "-"
    text = f"{value['mean']:.{digits}f}"
    return text if value["sd"] is None else f"{text} ± {value['sd']:.{digits}f}"


def _number(value, digits):
    return "-" if value is None else f"{value:,.{digits}f}"
