"""Charts of a report: lines over epochs, a histogram of latencies with its percentiles, reports as dots.

Values that are missing or not finite break a line; nothing is filled in. tinkit.host.report.svg draws.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tinkit.host.report import svg as draw
from tinkit.host.report.svg import BOTTOM, COLOURS, HEIGHT, LEFT, LINE, RIGHT, TOP, WIDTH, known, nice_ticks, scale

WIDE, HIGH = 400, 300  # of a scatter
DOT, LETTER = 4, 7.5  # radius of a dot, and about as wide as a letter is
KINDS = {
    "front": "on the front",
    "behind": "behind the front",
    "hollow": "not comparable",
    "alone": "nothing to compare it with",
}
BINS = 36
SPOTS = 60  # places of a line that tell their value
FAR = 2.0  # the histogram ends this many times as far from the shortest sample as p95 is; what lies beyond is counted


def line_chart(label, series: Mapping[str, Sequence[float | None]], epochs: Sequence[int], axis="epoch") -> Markup:
    """Lines over epochs, or what `axis` names, each named at its end. `label` is read out; series have one value (or None)
    an epoch."""
    seen = [value for values in series.values() for value in values if known(value)]
    ticks = nice_ticks(min(seen), max(seen)) if seen else [0.0, 1.0]
    x_of = scale(epochs[0], epochs[-1], LEFT, WIDTH - RIGHT)
    y_of = scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    svg = draw.canvas(f"{label}. {_told(series)}")
    draw.y_axis(svg, ticks, y_of, WIDTH - RIGHT)
    for epoch in sorted({epochs[0], epochs[len(epochs) // 2], epochs[-1]}):
        draw.write(svg, x_of(epoch), HEIGHT - BOTTOM + 15, str(epoch), "tick", "middle")
    draw.write(svg, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, axis, "tick", "middle")
    ends = {}
    for number, (name, values) in enumerate(series.items()):
        colour = f"s{number % COLOURS}"
        points = [(x_of(epoch), y_of(value)) if known(value) else None for epoch, value in zip(epochs, values)]
        draw.polyline(svg, points, colour)
        told = [(f"{axis} {epoch}: {name} {value:.4g}", at) for epoch, value, at in zip(epochs, values, points) if at]
        for text, at in told[:: -(-len(told) // SPOTS) or 1]:
            draw.spot(svg, *at, text)
        if told:
            ends[name, colour] = told[-1][1][1]
    draw.names_at_ends(svg, ends, WIDTH - RIGHT + 7)
    return draw.markup(svg)


def histogram(label, samples_ms: Sequence[float], marks: Mapping[str, float]) -> tuple[Markup, int]:
    """(chart, samples beyond its right end). `marks` are the percentiles to draw: name -> milliseconds;

    one that lies beyond is drawn at the end with an arrow."""
    top = TOP + LINE * len(marks) + 4
    low, high = min(samples_ms), max(samples_ms)
    far = low + FAR * (marks.get("p95", high) - low)
    high = max(min(high, far), low + max(1e-9, 1e-9 * low))
    inside = [sample for sample in samples_ms if sample <= high]
    counts = [0] * BINS
    for sample in inside:
        counts[min(int((sample - low) / (high - low) * BINS), BINS - 1)] += 1
    svg = draw.canvas(f"{label}. " + ", ".join(f"{name} {value:.4g} ms" for name, value in marks.items()))
    ticks = nice_ticks(0, max(counts), whole=True)
    right = WIDTH - 12
    x_of, y_of = scale(low, high, LEFT, right), scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, top)
    draw.y_axis(svg, ticks, y_of, right)
    width, step = (right - LEFT) / BINS, (high - low) / BINS
    for index, count in enumerate(counts):
        if count:
            place = {"x": LEFT + index * width, "y": y_of(count), "width": width - 0.6, "height": y_of(0) - y_of(count)}
            edges = f"{low + index * step:.4g} to {low + (index + 1) * step:.4g} ms: {count} samples"
            draw.add(svg, "rect", edges, **place, **{"class": "bar"})
    for tick in nice_ticks(low, high, about=6):
        if low <= tick <= high:
            draw.write(svg, x_of(tick), HEIGHT - BOTTOM + 15, f"{tick:.4g}", "tick", "middle")
    draw.write(svg, (LEFT + right) / 2, HEIGHT - 4, "ms; height is the number of samples", "tick", "middle")
    for row, (name, value) in enumerate(marks.items()):
        x, y = x_of(min(value, high)), TOP + row * LINE
        draw.add(svg, "line", x1=x, y1=y, x2=x, y2=HEIGHT - BOTTOM, **{"class": f"mark s{row + 1}"})
        anchor, gap = ("end", -4) if x > WIDTH * 0.65 else ("start", 4)
        draw.write(svg, x + gap, y + 8, f"{name} {value:.4g}{' →' * (value > high)}", f"name s{row + 1}", anchor)
    return draw.markup(svg), len(samples_ms) - len(inside)


@dataclass(frozen=True)
class Dot:
    """A report in a `scatter`. kind: one of KINDS; spread: the interval of x, () where not known."""

    name: str
    x: float
    y: float
    kind: str = "behind"
    spread: tuple[float, ...] = ()


def scatter(label, dots: Sequence[Dot], x_title, y_title) -> Markup:
    """Dots over x (linear, from 0) and y (logarithmic, above 0), with stairs along the front. `label` is read out, and so
    is every dot. A name that would lie on another one moves away and gets a line to its dot; one without room is left out."""
    powers = draw.powers([dot.y for dot in dots])
    ticks = nice_ticks(0, max(dot.x for dot in dots) * 1.02, about=6)
    right, low = WIDE - 12, HIGH - BOTTOM
    x_of, height_of = scale(0, ticks[-1], LEFT, right), scale(powers[0], powers[-1], low, TOP)
    places = [(x_of(dot.x), height_of(math.log10(dot.y))) for dot in dots]
    told = [f"{dot.name}: {x_title} {dot.x:.4g}, {y_title} {dot.y:.2g}, {KINDS[dot.kind]}" for dot in dots]
    svg = draw.canvas(f"{label}. {'; '.join(told)}", WIDE, HIGH, "chart scatter")
    draw.y_axis(svg, powers, height_of, right, draw.power_of_ten)
    for tick in ticks:
        draw.write(svg, x_of(tick), low + 15, f"{tick:.5g}", "tick", "middle")
    draw.write(svg, (LEFT + right) / 2, HIGH - 4, x_title, "tick", "middle")
    front = sorted(place for dot, place in zip(dots, places) if dot.kind == "front")
    if len(front) > 1:
        corners = [corner for (_, y), (x, lower) in itertools.pairwise(front) for corner in ((x, y), (x, lower))]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in [front[0], *corners])
        draw.add(svg, "polyline", points=path, **{"class": "stairs"})
    for dot, (x, y), text in zip(dots, places, told):
        if dot.spread:
            ends = [min(max(x_of(end), LEFT), right) for end in dot.spread]
            draw.add(svg, "line", x1=ends[0], y1=y, x2=ends[1], y2=y, **{"class": "spread"})
        draw.add(svg, "circle", text, cx=x, cy=y, r=DOT, **{"class": f"point {dot.kind}"})
    _label(svg, [dot.name for dot in dots], places, (LEFT + 2, TOP - 6, right + 8, low - 1))
    return draw.markup(svg)


def _label(svg, names, places, room):
    """Names beside their dots, none of them on another name or on a dot; lines first, so that they pass below names."""
    taken = [_around(place, 2 * DOT, 2 * DOT) for place in places]
    texts = []
    for name, (x, y) in zip(names, places):
        width = LETTER * len(name)
        aside = DOT + 3 + width / 2
        beside = {(x + aside, y): "start", (x - aside, y): "end", (x, y - LINE): "middle", (x, y + LINE): "middle"}
        grid = [
            (room[0] + width / 2 + 8 * column, room[1] + LINE * (row + 0.5))
            for column in range(44)
            for row in range(19)
        ]
        grid.sort(key=lambda middle: math.dist(middle, (x, y)))
        boxes = ((middle, _around(middle, width, LINE - 1)) for middle in [*beside, *grid])
        free = ((at, box) for at, box in boxes if _inside(box, room) and not any(_meet(box, other) for other in taken))
        middle, box = next(free, (None, None))
        if box is None:
            continue
        taken.append(box)
        anchor = beside.get(middle, "middle")
        texts.append(
            ({"start": box[0], "end": box[2], "middle": middle[0]}[anchor], middle[1] + 4, name, "label-of", anchor)
        )
        if middle not in beside:
            ends = {"x1": x, "y1": y, "x2": min(max(x, box[0]), box[2]), "y2": min(max(y, box[1]), box[3])}
            draw.add(svg, "line", **ends, **{"class": "leader"})
    for told in texts:
        draw.write(svg, *told)


def _around(middle, width, height):
    """(left, top, right, bottom)."""
    return (middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2)


def _inside(box, room):
    return box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]


def _meet(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _told(series):
    """First and last known value of each line, for those who hear the chart."""
    told = []
    for name, values in series.items():
        seen = [value for value in values if known(value)]
        told.append(f"{name} from {seen[0]:.4g} to {seen[-1]:.4g}" if seen else f"{name} not recorded")
    return "; ".join(told)
