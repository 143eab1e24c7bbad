"""Charts as SVG inside the page: lines over epochs, a histogram of latencies with its percentiles, reports as dots.

Drawn by hand rather than with matplotlib: colours are classes that the page's style sheet sets for light and dark, text
is text, and a chart is 320 units wide so that it is shown at its own size on a phone and side by side on a desktop.
Values that are missing or not finite break a line; nothing is filled in.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard
from xml.etree import ElementTree

from markupsafe import Markup

WIDTH, HEIGHT = 320, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 72, 10, 36
WIDE, HIGH = 400, 300  # of a scatter
DOT, LETTER = 4, 7.5  # radius of a dot, and about as wide as a letter is
KINDS = {
    "front": "on the front",
    "behind": "behind the front",
    "hollow": "not comparable",
    "alone": "nothing to compare it with",
}
LINE = 14  # distance of two lines of text
BINS = 36
COLOURS = 5  # classes s0 to s4 of the style sheet
FAR = 2.0  # the histogram ends this many times as far from the shortest sample as p95 is; what lies beyond is counted


def line_chart(label, series: Mapping[str, Sequence[float | None]], epochs: Sequence[int], axis="epoch") -> Markup:
    """Lines over epochs, or what `axis` names, each named at its end. `label` is read out; series have one value (or None)
    an epoch."""
    known = [value for values in series.values() for value in values if _known(value)]
    ticks = nice_ticks(min(known), max(known)) if known else [0.0, 1.0]
    x_of = _scale(epochs[0], epochs[-1], LEFT, WIDTH - RIGHT)
    y_of = _scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    svg = _svg(f"{label}. {_told(series)}")
    _y_axis(svg, ticks, y_of, WIDTH - RIGHT)
    for epoch in sorted({epochs[0], epochs[len(epochs) // 2], epochs[-1]}):
        _text(svg, x_of(epoch), HEIGHT - BOTTOM + 15, str(epoch), "tick", "middle")
    _text(svg, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, axis, "tick", "middle")
    ends = {}
    for number, (name, values) in enumerate(series.items()):
        colour = f"s{number % COLOURS}"
        points = [(x_of(epoch), y_of(value)) if _known(value) else None for epoch, value in zip(epochs, values)]
        _draw_line(svg, points, colour)
        drawn = [point for point in points if point]
        if drawn:
            ends[name, colour] = drawn[-1][1]
    for (name, colour), y in apart(ends, TOP + 4, HEIGHT - BOTTOM + 4).items():
        _text(svg, WIDTH - RIGHT + 7, y + 4, name, f"name {colour}", "start")
    return _markup(svg)


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
    svg = _svg(f"{label}. " + ", ".join(f"{name} {value:.4g} ms" for name, value in marks.items()))
    ticks = nice_ticks(0, max(counts), whole=True)
    right = WIDTH - 12
    x_of, y_of = _scale(low, high, LEFT, right), _scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, top)
    _y_axis(svg, ticks, y_of, right)
    width = (right - LEFT) / BINS
    for index, count in enumerate(counts):
        if count:
            place = {"x": LEFT + index * width, "y": y_of(count), "width": width - 0.6, "height": y_of(0) - y_of(count)}
            _add(svg, "rect", **place, **{"class": "bar"})
    for tick in nice_ticks(low, high, about=6):
        if low <= tick <= high:
            _text(svg, x_of(tick), HEIGHT - BOTTOM + 15, f"{tick:.4g}", "tick", "middle")
    _text(svg, (LEFT + right) / 2, HEIGHT - 4, "ms; height is the number of samples", "tick", "middle")
    for row, (name, value) in enumerate(marks.items()):
        x, y = x_of(min(value, high)), TOP + row * LINE
        _add(svg, "line", x1=x, y1=y, x2=x, y2=HEIGHT - BOTTOM, **{"class": f"mark s{row + 1}"})
        anchor, gap = ("end", -4) if x > WIDTH * 0.65 else ("start", 4)
        _text(svg, x + gap, y + 8, f"{name} {value:.4g}{' →' * (value > high)}", f"name s{row + 1}", anchor)
    return _markup(svg), len(samples_ms) - len(inside)


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
    powers = _powers([dot.y for dot in dots])
    ticks = nice_ticks(0, max(dot.x for dot in dots) * 1.02, about=6)
    right, low = WIDE - 12, HIGH - BOTTOM
    x_of, height_of = _scale(0, ticks[-1], LEFT, right), _scale(powers[0], powers[-1], low, TOP)
    places = [(x_of(dot.x), height_of(math.log10(dot.y))) for dot in dots]
    told = (f"{dot.name}: {x_title} {dot.x:.4g}, {y_title} {dot.y:.2g}, {KINDS[dot.kind]}" for dot in dots)
    svg = _svg(f"{label}. {'; '.join(told)}", WIDE, HIGH, "chart scatter")
    _y_axis(svg, powers, height_of, right, _power_of_ten)
    for tick in ticks:
        _text(svg, x_of(tick), low + 15, f"{tick:.5g}", "tick", "middle")
    _text(svg, (LEFT + right) / 2, HIGH - 4, x_title, "tick", "middle")
    front = sorted(place for dot, place in zip(dots, places) if dot.kind == "front")
    if len(front) > 1:
        corners = [corner for (_, y), (x, lower) in itertools.pairwise(front) for corner in ((x, y), (x, lower))]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in [front[0], *corners])
        _add(svg, "polyline", points=path, **{"class": "stairs"})
    for dot, (x, y) in zip(dots, places):
        if dot.spread:
            ends = [min(max(x_of(end), LEFT), right) for end in dot.spread]
            _add(svg, "line", x1=ends[0], y1=y, x2=ends[1], y2=y, **{"class": "spread"})
        _add(svg, "circle", cx=x, cy=y, r=DOT, **{"class": f"point {dot.kind}"})
    _label(svg, [dot.name for dot in dots], places, (LEFT + 2, TOP - 6, right + 8, low - 1))
    return _markup(svg)


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
            _add(svg, "line", **ends, **{"class": "leader"})
    for told in texts:
        _text(svg, *told)


def _around(middle, width, height):
    """(left, top, right, bottom)."""
    return (middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2)


def _inside(box, room):
    return box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]


def _meet(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _powers(values):
    """Exponents of ten from at most the smallest value to at least the largest, two at least."""
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)
    return list(range(low, high + 1))


def _power_of_ten(exponent):
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def nice_ticks(low, high, about=4, whole=False):
    """Round numbers (1, 2 or 5 times a power of ten apart) from at most `low` to at least `high`."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1):
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
        low = max(low, 0) if whole else low
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def apart(wanted: Mapping, top, bottom, gap=LINE):
    """key -> height near the wanted one, `gap` apart where there is room, between `top` and `bottom`; order is kept."""
    placed, last = {}, top - gap
    for key, height in sorted(wanted.items(), key=lambda item: item[1]):
        placed[key] = last = max(height, last + gap)
    limit = bottom
    for key in reversed(placed):
        placed[key] = limit = min(placed[key], limit)
        limit -= gap
    return placed


def _known(value) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _told(series):
    """First and last known value of each line, for those who hear the chart."""
    told = []
    for name, values in series.items():
        known = [value for value in values if _known(value)]
        told.append(f"{name} from {known[0]:.4g} to {known[-1]:.4g}" if known else f"{name} not recorded")
    return "; ".join(told)


def _scale(low, high, start, end):
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _draw_line(svg, points, colour):
    """A line through the points; None breaks it, a point without neighbours becomes a dot."""
    piece = []
    for point in [*points, None]:
        if point:
            piece.append(point)
        elif len(piece) == 1:
            _add(svg, "circle", cx=piece[0][0], cy=piece[0][1], r=2.5, **{"class": f"dot {colour}"})
            piece = []
        elif piece:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in piece)
            _add(svg, "polyline", points=path, **{"class": f"line {colour}"})
            piece = []


def _y_axis(svg, ticks, y_of, right, told=lambda tick: f"{tick:.5g}"):
    for tick in ticks:
        _add(svg, "line", x1=LEFT, y1=y_of(tick), x2=right, y2=y_of(tick), **{"class": "grid"})
        _text(svg, LEFT - 6, y_of(tick) + 4, told(tick), "tick", "end")


def _svg(label, width=WIDTH, height=HEIGHT, kind="chart"):
    attributes = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": label, "class": kind}
    return ElementTree.Element("svg", attributes)


def _add(parent, tag, **attributes):
    text = {name: f"{value:.1f}" if isinstance(value, float) else str(value) for name, value in attributes.items()}
    return ElementTree.SubElement(parent, tag, text)


def _text(svg, x, y, text, kind, anchor):
    _add(svg, "text", x=float(x), y=float(y), **{"class": kind, "text-anchor": anchor}).text = text


def _markup(svg):
    """ElementTree has escaped every attribute and text, so the result may stand in the page as it is."""
    return Markup(ElementTree.tostring(svg, encoding="unicode", short_empty_elements=False))
