"""Charts as SVG inside the page: lines over epochs, and a histogram of latencies with its percentiles.

Drawn by hand rather than with matplotlib: colours are classes that the page's style sheet sets for light and dark, text
is text, and a chart is 320 units wide so that it is shown at its own size on a phone and side by side on a desktop.
Values that are missing or not finite break a line; nothing is filled in.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard
from xml.etree import ElementTree

from markupsafe import Markup

WIDTH, HEIGHT = 320, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 72, 10, 36
LINE = 14  # distance of two lines of text
BINS = 36
COLOURS = 5  # classes s0 to s4 of the style sheet
FAR = 2.0  # the histogram ends this many times as far from the shortest sample as p95 is; what lies beyond is counted


def line_chart(label, series: Mapping[str, Sequence[float | None]], epochs: Sequence[int]) -> Markup:
    """Lines over epochs, each named at its end. `label` is read out; series have one value (or None) an epoch."""
    known = [value for values in series.values() for value in values if _known(value)]
    ticks = nice_ticks(min(known), max(known)) if known else [0.0, 1.0]
    x_of = _scale(epochs[0], epochs[-1], LEFT, WIDTH - RIGHT)
    y_of = _scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    svg = _svg(f"{label}. {_told(series)}")
    _y_axis(svg, ticks, y_of, WIDTH - RIGHT)
    for epoch in sorted({epochs[0], epochs[len(epochs) // 2], epochs[-1]}):
        _text(svg, x_of(epoch), HEIGHT - BOTTOM + 15, str(epoch), "tick", "middle")
    _text(svg, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "epoch", "tick", "middle")
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
    high = max(min(high, far), low + 1e-9)
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


def _y_axis(svg, ticks, y_of, right):
    for tick in ticks:
        _add(svg, "line", x1=LEFT, y1=y_of(tick), x2=right, y2=y_of(tick), **{"class": "grid"})
        _text(svg, LEFT - 6, y_of(tick) + 4, f"{tick:.5g}", "tick", "end")


def _svg(label):
    attributes = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": label, "class": "chart"}
    return ElementTree.Element("svg", attributes)


def _add(parent, tag, **attributes):
    text = {name: f"{value:.1f}" if isinstance(value, float) else str(value) for name, value in attributes.items()}
    return ElementTree.SubElement(parent, tag, text)


def _text(svg, x, y, text, kind, anchor):
    _add(svg, "text", x=float(x), y=float(y), **{"class": kind, "text-anchor": anchor}).text = text


def _markup(svg):
    """ElementTree has escaped every attribute and text, so the result may stand in the page as it is."""
    return Markup(ElementTree.tostring(svg, encoding="unicode", short_empty_elements=False))
