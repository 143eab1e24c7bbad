"""What a page shows of an evaluation without labels: worst pictures and their neighbours, maps, strange pictures, corruptions.

Charts come from tinkit.host.plots_evaluation, pictures from an `Album`. What a block lacks is left out of the section, and
the section of a block that was not asked for says with which option it is.
"""

from typing import Any

from tinkit.host.plots_evaluation import Pair, curves, densities, pairs
from tinkit.host.report_album import LARGE, Album, heat
from tinkit.host.report_text import number, table, tables, text, texts

NETWORKS = ("teacher", "student")
SCORES = {
    "auroc": "AUROC",
    "aupr_known": "AUPR, known",
    "aupr_strange": "AUPR, strange",
    "fpr95_known": "FPR, known",
    "fpr95_strange": "FPR, strange",
}


def similarity_of(block: dict, album: Album) -> list[dict[str, Any]]:
    """The worst pictures: each with its nearest neighbours in both networks, those that both find marked."""
    names = {str(index): str(name) for index, name in table(block.get("names")).items()}
    return [_case(entry, names, album) for entry in tables(block.get("worst"), 24)]


def _case(entry, names, album):
    near = {who: [str(one) for one in entry.get(who + "_neighbours") or []] for who in NETWORKS}
    name = text(entry.get("name"))
    return {
        "name": name,
        "cosine": number(entry.get("cosine")),
        "overlap": number(entry.get("overlap")),
        "data": album.data(name, LARGE),
        "shared": len(set(near["teacher"]) & set(near["student"])),
        **{
            who: [
                {"name": names.get(one, ""), "data": album.data(names.get(one, "")), "both": one in near[other]}
                for one in near[who]
            ]
            for who, other in (NETWORKS, NETWORKS[::-1])
        },
    }


def dense_of(block: dict, album: Album) -> dict[str, Any]:
    """Similarity maps as pictures, and what was found with masks."""
    shown = []
    for entry in tables(block.get("maps"), 8):
        name = text(entry.get("name"))
        points = [_point(one) for one in tables(entry.get("points"), 4)]
        why = {"lowest": "among the lowest", "sample": "a sample"}.get(text(entry.get("why")), "")
        shown.append(
            {
                "name": name,
                "why": why,
                "correlation": number(entry.get("correlation")),
                "data": album.data(name, LARGE),
                "points": points,
            }
        )
    return {
        "maps": shown,
        "grid": " x ".join(text(side) for side in block.get("grid") or []),
        "summary": table(block.get("map_correlation")),
        "segmentation": table(block.get("segmentation")),
        "notes": texts(block.get("notes")) + texts(table(block.get("segmentation")).get("notes")),
    }


def _point(one):
    place = int(one["row"]), int(one["column"])
    return {
        "why": "where they differ" if "differ" in text(one.get("why")) else text(one.get("why")),
        "correlation": number(one.get("correlation")),
        "low": number(one.get("low")),
        "high": number(one.get("high")),
        **{who: heat(one[who], *place) for who in NETWORKS},
    }


def ood_of(block: dict) -> dict[str, Any]:
    """Of every set: how its scores lie beside those of known pictures, and the ROC; a table of every set and k."""
    ks = [str(k) for k in block.get("ks") or []]
    sets = {str(name): table(told) for name, told in table(block.get("sets")).items()}
    told = [(name, f"{name}, k = {k}", table(one.get("k")).get(k)) for name, one in sets.items() for k in ks]
    told += [("", f"mean, k = {k}", table(block.get("mean")).get(k)) for k in ks if len(sets) > 1]
    return {
        "rank": "" if ks[:1] in ([], ["1"]) else f"{ks[0]}th ",
        "known": number(block.get("known")),
        "sets": [
            {
                "name": name,
                "group": text(one.get("group")),
                "pictures": number(one.get("pictures")),
                "charts": _set_charts(one),
            }
            for name, one in sets.items()
        ],
        "columns": list(SCORES.values()),
        "rows": [(title, _cells(table(values))) for _, title, values in told if values],
        "notes": texts(block.get("notes")),
    }


def _cells(values):
    return [
        (title, number(table(values.get("teacher")).get(score)), number(table(values.get("student")).get(score)))
        for score, title in SCORES.items()
    ]


def _set_charts(one):
    charts = []
    scores = {who: table(table(one.get("histogram")).get(who)) for who in NETWORKS}
    ends = [edge for seen in scores.values() for edge in seen.get("edges") or []]
    for who, seen in scores.items():
        if seen.get("edges"):
            counts = {"known": seen.get("known") or [], "strange": seen.get("strange") or []}
            title, axis = f"Scores, {who}", "cosine to the nearest known picture"
            charts.append((title, densities(title, seen["edges"], counts, axis, (min(ends), max(ends)))))
    lines = {who: [tuple(point) for point in line] for who, line in table(one.get("roc")).items()}
    if lines:
        told = {
            who: [
                f"{100 * known:.3g} % of the known kept, {100 * strange:.3g} % of the strange let in"
                for strange, known in line
            ]
            for who, line in lines.items()
        }
        charts.append(("ROC", curves("ROC", lines, "strange let in", "known kept", diagonal=True, told=told)))
    return charts


def orthogonality_of(block: dict) -> dict[str, Any]:
    """How far the mapping is from keeping angles, with a curve of the stretch by direction."""
    stretch = table(block.get("stretch"))
    values = [value for value in stretch.get("values") or [] if number(value) is not None]
    line = [(float(rank), value) for rank, value in enumerate(sorted(values, reverse=True), 1)]
    chart = curves(
        "Stretch of the mapping by direction", {"stretch": line}, "direction, the longest first", "of the mean"
    )
    return {"chart": chart if len(line) > 1 else "", "stretch": stretch, "block": block}


def corruption_of(block: dict) -> dict[str, Any]:
    """Curves over severity (0 is clean), a line for each corruption, the largest change first, and the same as a table."""
    what = {"accuracy": "right", "found again": "found again"}.get(text(block.get("judged")), "share")
    found = {str(name): table(one) for name, one in table(block.get("corruptions")).items()}
    rows = [_corrupted(name, one) for name, one in found.items()]
    rows.sort(key=lambda row: row["change"] if row["change"] is not None else 0.0)
    lines = [Pair(row["name"], row["teacher"], row["student"]) for row in rows]
    return {
        "judged": what,
        "pictures": number(block.get("pictures")),
        "agreement": number(block.get("agreement")),
        "relative_error": number(block.get("relative_error")),
        "relative_gap": number(block.get("relative_gap")),
        "severity": _by_severity(block, what),
        "each": pairs("By corruption", lines, f"{what}; ring: teacher, dot: student") if lines else "",
        "rows": rows,
        "notes": texts(block.get("notes")),
    }


def _by_severity(block, what):
    severities = [0, *(block.get("severities") or [])]
    lines = {}
    for who in NETWORKS:
        values = [table(block.get("clean")).get(who), *(table(block.get("by_severity")).get(who) or [])]
        lines[who] = [(float(severity), number(value)) for severity, value in zip(severities, values)]
    told = {
        who: [f"severity {severity:.0f}, {what} {value:.3f}" if value is not None else "" for severity, value in line]
        for who, line in lines.items()
    }
    return curves("By severity", lines, "severity, 0 is clean", what, [float(s) for s in severities], told=told)


def _corrupted(name, one):
    means = {who: number(table(one.get("mean")).get(who)) for who in NETWORKS}
    before, after = means["teacher"], means["student"]
    change = after - before if before is not None and after is not None else None
    told = {"name": name.replace("_", " "), "group": text(one.get("group")), "change": change, **means}
    return dict(told, relative_error=number(one.get("relative_error")))
