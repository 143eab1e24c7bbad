"""Charts of an evaluation: what each hop lost, teacher beside student, distributions of scores, curves over shares.

Teacher and student keep their colour and their line on the whole page: the teacher s0, drawn through, the student s1, dashed.
tinkit.host.report.svg draws; a value that is missing breaks a line and is no dot.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tinkit.host.report import svg as draw
from tinkit.host.report.svg import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    LETTER,
    LINE,
    RIGHT,
    TOP,
    WIDTH,
    known,
    nice_ticks,
    scale,
)

SPOTS = 40  # places of a line that tell their value
ROW, ROWS_TOP, ROWS_BOTTOM = 38, 4, 38
SIDE = 6  # pixels left and right of rows
LEAST = 1e-8  # a loss below it is no more than the rounding of float32 answers
RIGHT_OF_CURVE = 12
CORNER = 0.4  # side of the corners in which names may stand, as a share of the chart


Point = tuple[float | None, float | None]


@dataclass(frozen=True)
class Loss:
    """One hop in `losses`: 1 - cosine on average and of the worst picture; `limit` of its gate, None without one."""

    name: str
    mean: float
    worst: float
    limit: float | None = None


@dataclass(frozen=True)
class Pair:
    """One line of `pairs`: the two networks' values (None where not measured), and the student's interval."""

    name: str
    teacher: float | None
    student: float | None
    interval: tuple[float, ...] = ()


def losses(label, hops: Sequence[Loss]) -> Markup:
    """What each hop lost, on a logarithmic axis: a bar from the mean to the worst picture, and the gate's limit as a tick."""
    seen = [max(value, LEAST) for hop in hops for value in (hop.mean, hop.worst, hop.limit) if known(value)]
    exponents = draw.powers(seen or [LEAST])
    high = ROWS_TOP + ROW * len(hops)
    told = "; ".join(f"{hop.name}: mean {hop.mean:.2g}, worst picture {hop.worst:.2g}" for hop in hops)
    svg = draw.canvas(f"{label}. {told}", WIDTH, high + ROWS_BOTTOM, "chart rows")
    x_of = scale(exponents[0], exponents[-1], SIDE + 14, WIDTH - SIDE - 14)
    for exponent in _thinned(exponents):
        draw.add(svg, "line", x1=x_of(exponent), y1=ROWS_TOP, x2=x_of(exponent), y2=high, **{"class": "grid"})
        draw.write(svg, x_of(exponent), high + 15, draw.power_of_ten(exponent), "tick", "middle")
    draw.write(svg, WIDTH / 2, high + 32, "1 - cosine, logarithmic: left is better", "tick", "middle")
    for number, hop in enumerate(hops):
        y = ROWS_TOP + ROW * number + 27
        draw.write(svg, SIDE, y - 12, _fitting(hop.name), "label-of", "start")
        mean, worst = (x_of(math.log10(max(value, LEAST))) for value in (hop.mean, hop.worst))
        draw.add(svg, "line", x1=mean, y1=y, x2=worst, y2=y, **{"class": "range"})
        if known(hop.limit) and hop.limit > 0:
            x = x_of(math.log10(max(hop.limit, LEAST)))
            told = f"{hop.name}: the gate lets 1 - cosine up to {hop.limit:.2g} pass"
            draw.add(svg, "line", told, x1=x, y1=y - 7, x2=x, y2=y + 7, **{"class": "gate"})
        draw.add(svg, "circle", f"{hop.name}: mean {hop.mean:.2g}", cx=mean, cy=y, r=4, **{"class": "point mean"})
        draw.add(
            svg, "circle", f"{hop.name}: worst picture {hop.worst:.2g}", cx=worst, cy=y, r=4, **{"class": "point worst"}
        )
    return draw.markup(svg)


def pairs(label, rows: Sequence[Pair], x_title) -> Markup:
    """Teacher and student on one line each: a ring and a filled dot, with a bar between them as long as the change."""
    values = [value for row in rows for value in (row.teacher, row.student, *row.interval) if known(value)]
    ticks = nice_ticks(min(values), max(values), about=4) if values else [0.0, 1.0]
    high = ROWS_TOP + ROW * len(rows)
    told = "; ".join(_told_pair(row) for row in rows)
    svg = draw.canvas(f"{label}. {told}", WIDTH, high + ROWS_BOTTOM, "chart rows")
    x_of = scale(ticks[0], ticks[-1], SIDE + 10, WIDTH - SIDE - 12)
    for tick in ticks:
        draw.add(svg, "line", x1=x_of(tick), y1=ROWS_TOP, x2=x_of(tick), y2=high, **{"class": "grid"})
        draw.write(svg, x_of(tick), high + 15, f"{tick:.5g}", "tick", "middle")
    draw.write(svg, WIDTH / 2, high + 32, x_title, "tick", "middle")
    for number, row in enumerate(rows):
        y = ROWS_TOP + ROW * number + 27
        draw.write(svg, SIDE, y - 12, _fitting(row.name), "label-of", "start")
        if len(row.interval) == 2:
            low, upper = (x_of(end) for end in row.interval)
            draw.add(svg, "line", x1=low, y1=y, x2=upper, y2=y, **{"class": "spread"})
        if known(row.teacher) and known(row.student):
            draw.add(svg, "line", x1=x_of(row.teacher), y1=y, x2=x_of(row.student), y2=y, **{"class": "range"})
        for who, value, kind in (("teacher", row.teacher, "ring"), ("student", row.student, "disc")):
            if known(value):
                draw.add(
                    svg,
                    "circle",
                    f"{row.name}: {who} {value:.4g}",
                    cx=x_of(value),
                    cy=y,
                    r=4,
                    **{"class": f"point {kind}"},
                )
    return draw.markup(svg)


def curves(
    label,
    series: Mapping[str, Sequence[Point]],
    x_title,
    y_title,
    x_ticks: Sequence[float] = (),
    diagonal=False,
    told: Mapping[str, Sequence[str]] | None = None,
    y_least: Sequence[float] = (),
) -> Markup:
    """Lines through (x, y) points, each named at its end or, with a diagonal (both axes 0 to 1), in a key below.

    told: for each line the words of its points, where "x, y" is not enough. y_least: values that the y axis reaches at least.
    """
    points = [(x, y) for line in series.values() for x, y in line if known(x) and known(y)]
    ys = [*(y for _, y in points), *y_least] or [0.0, 1.0]
    xs = [x for x, _ in points] or [0.0, 1.0]
    x_ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if diagonal else list(x_ticks) or nice_ticks(min(xs), max(xs))
    y_ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if diagonal else nice_ticks(min(ys), max(ys))
    high = HEIGHT + (30 if diagonal else 0)
    right = WIDTH - (RIGHT_OF_CURVE if diagonal else RIGHT)
    x_of, y_of = scale(x_ticks[0], x_ticks[-1], LEFT, right), scale(y_ticks[0], y_ticks[-1], high - BOTTOM, TOP + LINE)
    svg = draw.canvas(f"{label}. {_told_curves(series)}", WIDTH, high)
    draw.y_axis(svg, y_ticks, y_of, right)
    draw.write(svg, 2, TOP, y_title, "tick", "start")
    for tick in x_ticks:
        draw.write(svg, x_of(tick), high - BOTTOM + 15, f"{tick:.5g}", "tick", "middle")
    draw.write(svg, (LEFT + right) / 2, high - 4, x_title, "tick", "middle")
    if diagonal:
        draw.add(svg, "line", x1=x_of(0), y1=y_of(0), x2=x_of(1), y2=y_of(1), **{"class": "leader"})
    ends = {}
    for number, (name, line) in enumerate(series.items()):
        colour = f"s{number % COLOURS}"
        places = [(x_of(x), y_of(y)) if known(x) and known(y) else None for x, y in line]
        draw.polyline(svg, places, colour)
        words = (told or {}).get(name) or [f"{x:.4g}, {y:.4g}" if at else "" for (x, y), at in zip(line, places)]
        for at, text in list(zip(places, words))[:: -(-len(places) // SPOTS) or 1]:
            if at:
                draw.spot(svg, *at, f"{name}: {text}")
        drawn = [place for place in places if place]
        if drawn:
            ends[name, colour] = drawn[-1][1]
    if diagonal:
        above = _upper_corner_is_emptier(points)
        top = TOP + LINE + 6 if above else high - BOTTOM - LINE * len(ends)
        ends = {key: top + LINE * place for place, key in enumerate(ends)}
    side = right + 7 if not diagonal else LEFT + 8 if above else right - 64
    draw.names_at_ends(svg, ends, side, TOP + LINE, high - BOTTOM - 8)
    return draw.markup(svg)


def _upper_corner_is_emptier(points: Sequence[Point]) -> bool:
    """Whether the names of a chart with a diagonal hide less at the upper left than at the lower right."""
    known_points = [(x, y) for x, y in points if x is not None and y is not None]
    above = sum(x < CORNER and y > 1 - CORNER for x, y in known_points)
    return above < sum(x > 1 - CORNER and y < CORNER for x, y in known_points)


def densities(label, edges: Sequence[float], counts: Mapping[str, Sequence[float]], x_title, ends=()) -> Markup:
    """Outlines of histograms over the same edges (one more than counts), each as shares of its own whole and named at its
    top. ends: what the axis reaches from and to, so that several charts can be compared."""
    shares = {name: [value / (sum(line) or 1) for value in line] for name, line in counts.items()}
    top = max((value for line in shares.values() for value in line), default=1.0) or 1.0
    y_ticks = nice_ticks(0, top)
    low, high = ends or (edges[0], edges[-1])
    x_of, y_of = scale(low, high, LEFT, WIDTH - 12), scale(0, y_ticks[-1], HEIGHT - BOTTOM, TOP + LINE)
    svg = draw.canvas(f"{label}. {_told_densities(edges, shares)}")
    draw.y_axis(svg, y_ticks, y_of, WIDTH - 12, lambda tick: f"{100 * tick:.4g} %")
    for tick in nice_ticks(low, high, about=6):
        if low <= tick <= high:
            draw.write(svg, x_of(tick), HEIGHT - BOTTOM + 15, f"{tick:.4g}", "tick", "middle")
    draw.write(svg, (LEFT + WIDTH - 12) / 2, HEIGHT - 4, x_title, "tick", "middle")
    tops: dict[tuple[str, str], tuple[float, float]] = {}
    for number, (name, line) in enumerate(shares.items(), 2):  # the colours of the networks are s0 and s1
        steps = [(x, y) for i, y in enumerate(line) for x in edges[i : i + 2]]
        outline = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in [(edges[0], 0), *steps, (edges[-1], 0)])
        draw.add(svg, "polygon", points=outline, **{"class": f"area s{number % COLOURS}"})
        draw.polyline(svg, [(x_of(x), y_of(y)) for x, y in steps], f"outline s{number % COLOURS}")
        peak = max(range(len(line)), key=line.__getitem__)
        x = min(max(x_of((edges[peak] + edges[peak + 1]) / 2), LEFT + 24), WIDTH - 40)
        tops[name, f"name s{number % COLOURS}"] = (x, y_of(line[peak]) - 5)
    for (name, kind), (x, y) in _cleared(tops).items():
        draw.write(svg, x, y, name, kind, "middle")
    for index in range(len(edges) - 1):
        words = ", ".join(f"{name} {100 * line[index]:.3g} %" for name, line in shares.items())
        middle, most = (edges[index] + edges[index + 1]) / 2, max(line[index] for line in shares.values())
        draw.spot(svg, x_of(middle), y_of(most), f"{edges[index]:.3g} to {edges[index + 1]:.3g}: {words}")
    return draw.markup(svg)


def _cleared(tops: Mapping[tuple[str, str], tuple[float, float]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Names at their places, the lowest first; one that would lie on another moves up, above it."""
    placed: dict[tuple[str, str], tuple[float, float]] = {}
    for key, (x, y) in sorted(tops.items(), key=lambda item: -item[1][1]):
        near = [b for other, (a, b) in placed.items() if abs(a - x) < LETTER * (len(other[0]) + len(key[0])) / 2 + 2]
        placed[key] = (x, min([y, *(b - LINE + 2 for b in near if b - y < LINE)]))
    return placed


def _thinned(exponents):
    """Every exponent, or every second or fifth one, so that their texts do not touch."""
    return exponents[:: max(1, math.ceil(len(exponents) / 8))]


def _fitting(text, width=WIDTH - 2 * SIDE):
    """A name that ends inside the chart."""
    letters = int(width / LETTER)
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _told_pair(row):
    told = ((who, value) for who, value in (("teacher", row.teacher), ("student", row.student)))
    return f"{row.name}: " + ", ".join(
        f"{who} {value:.4g}" if known(value) else f"{who} not measured" for who, value in told
    )


def _told_curves(series):
    told = []
    for name, line in series.items():
        seen = [point for point in line if all(map(known, point))]
        ends = (
            f"from {seen[0][1]:.3g} at {seen[0][0]:.3g} to {seen[-1][1]:.3g} at {seen[-1][0]:.3g}"
            if seen
            else "not recorded"
        )
        told.append(f"{name} {ends}")
    return "; ".join(told)


def _told_densities(edges, shares):
    """Where the most of each lies."""
    told = []
    for name, line in shares.items():
        most = max(range(len(line)), key=line.__getitem__)
        told.append(f"most of {name} between {edges[most]:.3g} and {edges[most + 1]:.3g}")
    return "; ".join(told)
