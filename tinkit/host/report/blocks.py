"""What a page shows of an evaluation without labels: worst pictures and their neighbours, maps, strange pictures, corruptions.

Charts come from tinkit.host.report.plots_evaluation, pictures from an `Album`. What a block lacks is left out of the section, and
the section of a block that was not asked for says with which option it is.
"""

import math
from typing import Any

from tinkit.host.report.album import LARGE, Album, heat
from tinkit.host.report.plots_evaluation import Pair, curves, densities, pairs
from tinkit.host.report.text import number, pair, share, short, table, tables, text, texts

NETWORKS = ("teacher", "student")
STRETCH_SHOWN = (0.9, 1.1)  # the least that the axis of stretches spans: what is equal but for rounding is drawn flat
FEW_PLACES = 16  # of a map: below it there is little to correlate over, and little to see
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
    shown: list[dict[str, Any]] = []
    sides = [number(side) for side in block.get("grid") or []]
    positions = math.prod(side for side in sides if side is not None) if sides else None
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
        "summary": _maps_told(table(block.get("map_correlation"))),
        "few": positions is not None and positions < FEW_PLACES,
        "segmentation": table(block.get("segmentation")),
        "notes": texts(block.get("notes")) + texts(table(block.get("segmentation")).get("notes")),
    }


def _maps_told(told: dict) -> dict[str, Any]:
    """The mean correlation; `by_place`: no more than with the map of another picture, so the place alone explains it."""
    other, ends = number(told.get("other_picture")), pair(told.get("interval"))
    return {**told, "by_place": other is not None and len(ends) == 2 and ends[0] <= other} if told else {}


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
            edges, counts = coarser(seen["edges"], counts)
            charts.append((title, densities(title, edges, counts, axis, (min(ends), max(ends)))))
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


def coarser(edges, counts):
    """(edges, counts) with neighbouring bins together, all of one width: at most 2 n^(1/3) bins (Rice's rule) for the smaller
    sample of n, so that few pictures do not look like a comb."""
    smaller = min((sum(line) for line in counts.values() if sum(line)), default=0)
    bins, most = len(edges) - 1, max(1, round(2 * smaller ** (1 / 3)))
    step = next(step for step in range(1, bins + 1) if bins % step == 0 and bins // step <= most)
    joined = {name: [sum(line[at : at + step]) for at in range(0, len(line), step)] for name, line in counts.items()}
    return edges[::step], joined


def orthogonality_of(block: dict) -> dict[str, Any]:
    """How far the mapping is from keeping angles, with a curve of the stretch by direction."""
    stretch = table(block.get("stretch"))
    values = sorted((value for value in stretch.get("values") or [] if number(value) is not None), reverse=True)
    line = [(place / max(1, len(values) - 1), value) for place, value in enumerate(values)]
    chart = curves(
        "Stretch of the mapping by direction",
        {"stretch": line},
        "share of the directions, the longest first",
        "of the mean",
        (0.0, 0.25, 0.5, 0.75, 1.0),
        y_least=STRETCH_SHOWN,
    )
    return {"chart": chart if len(line) > 1 else "", "facts": _mapping_told(block)}


def _mapping_told(block: dict) -> list[tuple[str, str]]:
    """[(what, value)] about the mapping, in words."""
    stretch = table(block.get("stretch"))
    told = [
        ("kind", text(block.get("kind")) + (", fitted afterwards" if block.get("fitted") else "")),
        ("width, teacher to student", f"{short(block.get('teacher_dim'))} to {short(block.get('dim'))}"),
        ("directions that it sees", f"{short(block.get('seen'))} of {short(block.get('directions'))}"),
        ("stretch, least and most", f"{short(stretch.get('min'))} to {short(stretch.get('max'))} of the mean"),
        (
            "distance from keeping angles",
            f"{short(block.get('distance'))}, by direction {short(block.get('distance_rms'))}",
        ),
        ("teacher's variance that it sees", short(block.get("variance_kept"))),
        ("mean change of a pair's cosine", _with_ends(block.get("cosine_change"))),
        ("the same without the mean picture", _with_ends(block.get("cosine_change_centred"))),
        ("pictures in pairs", short(block.get("pair_pictures"))),
    ]
    return [(what, value) for what, value in told if value]


def _with_ends(told) -> str:
    ends = pair(table(told).get("interval"))
    return short(table(told).get("value")) + (f" ({short(ends[0])} to {short(ends[1])})" if ends else "")


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
        "lost": _lost(table(block.get("gap"))),
        "severity": _by_severity(block, what),
        "each": pairs("By corruption", lines, f"{what}; ring: teacher, dot: student") if lines else "",
        "rows": rows,
        "notes": texts(block.get("notes")),
    }


def _lost(gap: dict) -> str:
    """What corruption costs each network, in words. A ratio of the two says nothing where one of them is about 0."""
    teacher, student = (number(gap.get(who)) for who in NETWORKS)
    return f"the student {share(student)}, the teacher {share(teacher)}" if None not in (teacher, student) else ""


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
