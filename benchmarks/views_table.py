"""The tables and the chart of benchmarks/views.py: mean and sd over seeds, and the difference to fresh views, paired by seed."""

import os
from xml.sax.saxutils import escape

from command import write_page
from evidence import spread
from selection_table import paired

from tinkit import files

ONLINE = 0
TITLES = {"cifar10": "CIFAR-10", "pacs": "PACS"}
COLUMNS = {  # measure -> title
    "cosine": "cosine to the mapped teacher",
    "cosine_difference": "mean abs diff of cosines",
    "overlap@10": "neighbours in common (10)",
    "knn": "kNN",
    "agreement": "agreement with the teacher",
}
LOWER = ("cosine_difference",)  # is better
DRAWN = ("cosine", "overlap@10", "agreement")
PANEL, HIGH, LEFT, TOP, BOTTOM, FOOT = 290, 200, 46, 30, 30, 22
STYLE = (
    "text{font:12px sans-serif;fill:#222}.soft{fill:#666}.grid{stroke:#ddd}.line{fill:none;stroke:#1f5f99;stroke-width:2}"
    ".seed{fill:#1f5f99;fill-opacity:.45}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.soft{fill:#999}.grid{stroke:#444}.line{stroke:#86b7e8}.seed{fill:#86b7e8}}"
)


def by_row(results):
    """{data set: {views: [its results, by seed]}}, fresh views last."""
    found: dict[str, dict[int, list]] = {}
    for (data_set, views, _), result in sorted(results.items(), key=lambda entry: (entry[0][1] == ONLINE, entry[0])):
        found.setdefault(data_set, {}).setdefault(views, []).append(result)
    return {name: found[name] for name in TITLES if name in found}


def page(results):
    parts = []
    for name, rows in by_row(results).items():
        parts += [f"## {TITLES[name]}", means(rows), differences(rows), told_apart(rows)]
    return "\n\n".join(parts)


def title_of(views):
    return str(views) if views != ONLINE else "fresh in every epoch (--online)"


def means(rows):
    heads = ["views", "seeds", "teacher passes a picture", "bytes a picture", *COLUMNS.values()]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for views, seeds in rows.items():
        cells = [title_of(views), str(len(seeds)), str(seeds[0]["teacher_passes"]), f"{seeds[0]['bytes_a_picture']:,}"]
        cells += [spread(values(seeds, measure)) for measure in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def values(seeds, measure):
    return [seed["values"][measure] for seed in seeds]


def differences(rows):
    """Stored minus fresh on the same seed: mean, and the 95 % interval of Student's t."""
    heads = ["views, minus fresh ones", *COLUMNS.values()]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for views, seeds in rows.items():
        if views != ONLINE:
            found = [paired(values(seeds, measure), values(rows[ONLINE], measure)) for measure in COLUMNS]
            cells = [
                f"{mean:+.3f}" + (f" ({low:+.3f} to {high:+.3f})" if len(seeds) > 1 else "")
                for mean, low, high in found
            ]
            lines.append(f"| {views} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def told_apart(rows):
    """One line a number of views: by which measures its whole interval is on the bad side of fresh views."""
    if len(rows[ONLINE]) == 1:
        return "One seed: its spread is not known, and so nothing is told apart."
    lines = []
    for views, seeds in rows.items():
        if views == ONLINE:
            continue
        worse = [title for measure, title in COLUMNS.items() if worse_by(seeds, rows[ONLINE], measure)]
        said = "worse than fresh views by " + ", ".join(worse) if worse else "not told apart from fresh views"
        lines.append(f"* {views} {'view' if views == 1 else 'views'}: {said}")
    return "\n".join(lines)


def worse_by(seeds, fresh, measure):
    """The whole interval is on the bad side of 0; never with a single seed."""
    _, low, high = paired(values(seeds, measure), values(fresh, measure))
    return len(seeds) > 1 and (low > 0 if measure in LOWER else high < 0)


def save(path, tables, told, results):
    """path (Markdown), and beside it .json and .svg; what was written by hand below the mark stays."""
    stem = os.path.splitext(path)[0]
    files.write_text(stem + ".svg", chart(by_row(results)))
    compared = sum(len(rows) - 1 for rows in by_row(results).values()) * len(COLUMNS)
    if all(len(seeds) > 1 for rows in by_row(results).values() for seeds in rows.values()):
        told += (
            " In brackets, and for the lists: 95 % intervals of the paired difference, Student's t over the seeds. They are wide "
            f"with few seeds, so that not told apart is not the same as equal; of {compared} comparisons about one in forty is "
            "worse by chance."
        )
    told += f"\n\n![three measures against the number of views]({os.path.basename(stem)}.svg)"
    record = {"-".join(map(str, job)): found for job, found in results.items()}
    write_page(path, "How many stored views", "python benchmarks/views.py FOLDER", tables, told, record)


def chart(sets):
    """Panels, a row a set and a column a measure: a line through the means, a dot a seed."""
    width, height = PANEL * len(DRAWN), HIGH * len(sets) + FOOT
    title = "fidelity against the number of stored views: " + ", ".join(TITLES[name] for name in sets)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    ]
    for line, (name, rows) in enumerate(sets.items()):
        for column, measure in enumerate(DRAWN):
            parts.append(f'<g transform="translate({column * PANEL},{line * HIGH})">')
            parts += panel(rows, measure, f"{TITLES[name]}: {COLUMNS[measure]}")
            parts.append("</g>")
    parts.append(
        f'<text x="{LEFT}" y="{height - 6}" class="soft">views of each picture; a dot a seed, the line their mean</text>'
    )
    return "\n".join([*parts, "</svg>", ""])


def panel(rows, measure, title):
    from tinkit.host.report.plots import nice_ticks

    found = {views: values(seeds, measure) for views, seeds in rows.items()}
    every = [value for seeds in found.values() for value in seeds]
    ticks = nice_ticks(min(every), max(every))
    right, low, high = PANEL - 20, HIGH - BOTTOM, max(*ticks, *every)
    bottom = min(*ticks, *every)

    def y_of(value):
        return low - (value - bottom) / max(high - bottom, 1e-9) * (low - TOP)

    yield f'<text x="{LEFT}" y="{TOP - 12}">{escape(title)}</text>'
    for tick in ticks:
        yield f'<line x1="{LEFT}" x2="{right}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}" class="grid"/>'
        yield f'<text x="{LEFT - 5}" y="{y_of(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
    points = []
    for place, (views, seeds) in enumerate(found.items()):
        x = LEFT + 16 + place * (right - LEFT - 32) / max(1, len(found) - 1)
        points.append(f"{x:.1f},{y_of(sum(seeds) / len(seeds)):.1f}")
        yield f'<text x="{x:.1f}" y="{low + 16}" text-anchor="middle">{views or "fresh"}</text>'
        yield from (f'<circle cx="{x:.1f}" cy="{y_of(value):.1f}" r="3" class="seed"/>' for value in seeds)
    yield f'<polyline points="{" ".join(points)}" class="line"/>'
