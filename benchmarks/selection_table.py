"""The tables and the chart of benchmarks/selection.py: mean and sd over seeds, and the difference to random, paired by seed."""

import math
import os
import statistics
from xml.sax.saxutils import escape

from command import write_page
from scipy import stats

from tinkit import files

MEASURES = (("classes", "classes found", 1), ("knn", "kNN accuracy", 3), ("probe", "linear probe accuracy", 3))
DRAWN = ("k-medoids, map", "k-medoids", "k-centre, map", "random", "random by class")
COLOURS = ("#1f5f99", "#2b6b4c", "#784893", "#a1461b", "#675f12")  # of DRAWN, on paper
LIGHT = ("#86b7e8", "#85c7a2", "#c8a1e0", "#eb9d75", "#cfc56c")  # the same on black
DASHES = ("", "7 3", "2 3", "", "9 3 2 3")
PANEL, HIGH, LEFT, TOP, BOTTOM, LEGEND = 300, 220, 44, 30, 30, 30


def summarise(results, rows, budgets, random):
    """Plain data of one set: {"budgets", "seeds", "classes", "kinds", "rows": {method: {measure: {"mean", "sd", "over"}}}}.

    Lists have one entry a budget. over: [mean difference to `random` on the same pools, low, high] with the 95 % interval of
    Student's t over seeds.
    """
    found = {}
    for row in rows:
        found[row] = {}
        for measure in ("classes", "kinds", "knn", "probe"):
            columns = [[of_seed["rows"][row][str(budget)][measure] for of_seed in results] for budget in budgets]
            against = [[of_seed["rows"][random][str(budget)][measure] for of_seed in results] for budget in budgets]
            found[row][measure] = {
                "mean": [statistics.mean(values) for values in columns],
                "sd": [statistics.stdev(values) if len(values) > 1 else 0.0 for values in columns],
                "over": [paired(*pair) for pair in zip(columns, against)],
            }
    return {
        "budgets": list(budgets),
        "seeds": len(results),
        "classes": results[0]["classes"],
        "kinds": results[0]["kinds"],
        "rows": found,
    }


def paired(values, others):
    """[mean difference, low, high]: 95 % by Student's t; the interval is the mean itself for a single seed."""
    differences = [a - b for a, b in zip(values, others)]
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return [mean, mean, mean]
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return [mean, mean - float(half), mean + float(half)]


def better_at(of_row, measure, budgets):
    """(budgets at which the mean is above random's, those at which the whole interval is)."""
    over = of_row[measure]["over"]
    return (
        [budget for budget, (mean, _, _) in zip(budgets, over) if mean > 0],
        [budget for budget, (_, low, _) in zip(budgets, over) if low > 0],
    )


def markdown(summary, titles):
    """All tables of all sets."""
    parts = []
    for name, of_set in summary.items():
        parts.append(f"## {titles[name]}: {of_set['classes']} classes, {of_set['seeds']} seeds")
        for measure, title, digits in MEASURES:
            parts.append(table(of_set, measure, title, digits))
        if of_set["kinds"] > of_set["classes"]:
            parts.append(table(of_set, "kinds", f"style and class, of {of_set['kinds']}", 1))
        parts.append(against_random(of_set))
    return "\n\n".join(parts)


def table(of_set, measure, title, digits):
    budgets = of_set["budgets"]
    lines = [f"| {title} | " + " | ".join(map(str, budgets)) + " |", "|---|" + "---|" * len(budgets)]
    for row, of_row in of_set["rows"].items():
        pairs = zip(of_row[measure]["mean"], of_row[measure]["sd"])
        cells = [f"{mean:.{digits}f} ± {sd:.{digits}f}" for mean, sd in pairs]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def against_random(of_set):
    """At how many budgets each method is above random, and how far on average over the budgets."""
    budgets = of_set["budgets"]
    titles = [f"{title}: above (surely), mean gain" for _, title, _ in MEASURES]
    lines = ["| against random | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
    for row, of_row in of_set["rows"].items():
        if row == "random":
            continue
        cells = []
        for measure, _, digits in MEASURES:
            above, surely = better_at(of_row, measure, budgets)
            gain = statistics.mean(mean for mean, _, _ in of_row[measure]["over"])
            cells.append(f"{len(above)} ({len(surely)}) of {len(budgets)}, {gain:+.{digits}f}")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(path, summary, titles, text):
    """path (Markdown), and beside it .json and .svg; what was written by hand below the mark stays."""
    stem = os.path.splitext(path)[0]
    picture = os.path.basename(stem) + ".svg"
    said = "above: budgets at which the mean is above random's on the same pools; surely: the 95 % interval of the difference is."
    table = f"![What the labels bring, against their number]({picture})\n\n{markdown(summary, titles)}"
    command = "python benchmarks/selection.py FOLDER"
    record = {"conditions": text, "sets": summary}
    write_page(path, "Which pictures to label first", command, table, f"{said}\n\n{text}", record)
    files.write_text(stem + ".svg", chart(summary, titles))


def chart(summary, titles):
    """Panels, a row a set and a column a measure: lines of the means over the budget, bands of one sd for two of them."""
    width, height = PANEL * len(MEASURES), HIGH * len(summary) + LEGEND
    parts = [_head(width, height, titles, summary)]
    for index, row in enumerate(DRAWN):
        x, y = 20 + index * (width - 40) / len(DRAWN), 16
        parts.append(f'<line x1="{x:.0f}" x2="{x + 28:.0f}" y1="{y}" y2="{y}" class="line c{index}"/>')
        parts.append(f'<text x="{x + 34:.0f}" y="{y + 4}">{escape(row)}</text>')
    for line, (name, of_set) in enumerate(summary.items()):
        for column, (measure, title, _) in enumerate(MEASURES):
            parts.append(f'<g transform="translate({column * PANEL},{LEGEND + line * HIGH})">')
            parts += _panel(of_set, measure, f"{titles[name]}: {title}")
            parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _head(width, height, titles, summary):
    lines = [f".c{i}{{stroke:{colour};stroke-dasharray:{DASHES[i] or 'none'}}}" for i, colour in enumerate(COLOURS)]
    bands = [f".b{i}{{fill:{colour};opacity:.14}}" for i, colour in enumerate(COLOURS)]
    dark = [f".c{i}{{stroke:{a}}}.b{i}{{fill:{a};opacity:.2}}" for i, a in enumerate(LIGHT)]
    style = (
        "text{font:11px system-ui,sans-serif;fill:#1d1d1b}.line{fill:none;stroke-width:1.8}.grid{stroke:#d9d7d0}"
        ".paper{fill:#fdfdfb}.soft{opacity:.75}"
        + "".join(lines + bands)
        + "@media(prefers-color-scheme:dark){text{fill:#e7e5df}"
        ".grid{stroke:#3a3935}.paper{fill:#171716}" + "".join(dark) + "}"
    )
    measures, sets = (", ".join(words) for words in ([title for _, title, _ in MEASURES], map(titles.get, summary)))
    told = f"{measures} against the number of labels: {sets}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<title>{escape(told)}</title><style>{style}</style>"
        f'<rect class="paper" width="{width}" height="{height}"/>'
    )


def _panel(of_set, measure, title):
    from tinkit.host.report.plots import nice_ticks

    budgets = of_set["budgets"]
    lows, highs = [], []
    for row in DRAWN:
        found = of_set["rows"][row][measure]
        lows += [mean - sd for mean, sd in zip(found["mean"], found["sd"])]
        highs += [mean + sd for mean, sd in zip(found["mean"], found["sd"])]
    most = of_set["classes"] if measure == "classes" else 1
    ticks = nice_ticks(max(0, min(lows)), min(most, max(highs)))
    right, low = PANEL - 10, HIGH - BOTTOM

    def place(budget, value):
        x = LEFT + (budget - budgets[0]) / max(1, budgets[-1] - budgets[0]) * (right - LEFT)
        y = low - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (low - TOP)
        return f"{x:.1f},{min(max(y, TOP), low):.1f}"

    yield f'<text x="{LEFT}" y="{TOP - 12}">{escape(title)}</text>'
    for tick in ticks:
        y = place(budgets[0], tick).split(",")[1]
        yield f'<line x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}" class="grid"/>'
        yield f'<text x="{LEFT - 5}" y="{float(y) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
    for budget in budgets[:: max(1, len(budgets) // 5)]:
        x = place(budget, ticks[0]).split(",")[0]
        yield f'<text x="{x}" y="{low + 16}" text-anchor="middle">{budget}</text>'
    yield f'<text x="{right}" y="{TOP - 12}" text-anchor="end" class="soft">against labels</text>'
    for index, row in enumerate(DRAWN):
        found = of_set["rows"][row][measure]
        triples = list(zip(budgets, found["mean"], found["sd"]))
        if row in (DRAWN[0], "random"):
            edge = [place(b, mean + sd) for b, mean, sd in triples] + [
                place(b, mean - sd) for b, mean, sd in triples[::-1]
            ]
            yield f'<polygon points="{" ".join(edge)}" class="b{index}"/>'
    for index, row in enumerate(DRAWN):
        points = " ".join(place(*pair) for pair in zip(budgets, of_set["rows"][row][measure]["mean"]))
        yield f'<polyline points="{points}" class="line c{index}"/>'
