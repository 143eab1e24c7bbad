"""The strokes that every chart of a page is made of: an SVG element, texts, lines, axes and points with a word.

Drawn by hand rather than with matplotlib: colours are classes that the page's style sheet sets for light and dark, text
is text, and a chart is about 320 units wide so that it is shown at its own size on a phone and side by side on a desktop.
A point carries its value as the text of a <title>: a browser shows it below the mouse, and the page's script beside the
point, for the keyboard and for fingers too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard
from xml.etree import ElementTree

from markupsafe import Markup

WIDTH, HEIGHT = 320, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 72, 10, 36
LINE = 14  # distance of two lines of text
LETTER = 6.4  # about as wide as a letter of the charts' text is
COLOURS = 5  # classes s0 to s4 of the style sheet


def canvas(label, width=WIDTH, height=HEIGHT, kind="chart"):
    """An empty chart; `label` is what those hear who do not see it."""
    attributes = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": label, "class": kind}
    return ElementTree.Element("svg", attributes)


def add(parent, tag, told="", **attributes):
    """A child with these attributes; `told` is what it says when it is pointed at."""
    text = {name: f"{value:.1f}" if isinstance(value, float) else str(value) for name, value in attributes.items()}
    child = ElementTree.SubElement(parent, tag, text)
    if told:
        ElementTree.SubElement(child, "title").text = told
    return child


def write(svg, x, y, text, kind, anchor):
    add(svg, "text", x=float(x), y=float(y), **{"class": kind, "text-anchor": anchor}).text = text


def spot(svg, x, y, told):
    """A place that is seen only when it is pointed at; it says `told`."""
    add(svg, "path", told, d=f"M{x:.1f},{y:.1f}h0", **{"class": "spot"})


def markup(svg) -> Markup:
    """ElementTree has escaped every attribute and text, so the result may stand in the page as it is."""
    return Markup(ElementTree.tostring(svg, encoding="unicode", short_empty_elements=False))


def scale(low, high, start, end):
    """A function from values to places: low -> start, high -> end."""
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def y_axis(svg, ticks, y_of, right, told=lambda tick: f"{tick:.5g}", left=LEFT):
    for tick in ticks:
        add(svg, "line", x1=left, y1=y_of(tick), x2=right, y2=y_of(tick), **{"class": "grid"})
        write(svg, left - 6, y_of(tick) + 4, told(tick), "tick", "end")


def polyline(svg, points, colour):
    """A line through the points; None breaks it, a point without neighbours becomes a dot."""
    piece = []
    for point in [*points, None]:
        if point:
            piece.append(point)
        elif len(piece) == 1:
            add(svg, "circle", cx=piece[0][0], cy=piece[0][1], r=2.5, **{"class": f"dot {colour}"})
            piece = []
        elif piece:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in piece)
            add(svg, "polyline", points=path, **{"class": f"line {colour}"})
            piece = []


def names_at_ends(svg, ends: Mapping[tuple[str, str], float], x, top=TOP, bottom=HEIGHT - BOTTOM):
    """The names of lines beside their ends: (name, colour) -> height."""
    for (name, colour), y in apart(ends, top + 4, bottom + 4).items():
        write(svg, x, y + 4, name, f"name {colour}", "start")


def nice_ticks(low, high, about=4, whole=False) -> list[float]:
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


def apart(wanted: Mapping, top, bottom, gap=LINE) -> dict:
    """key -> height near the wanted one, `gap` apart where there is room, between `top` and `bottom`; order is kept."""
    placed, last = {}, top - gap
    for key, height in sorted(wanted.items(), key=lambda item: item[1]):
        placed[key] = last = max(height, last + gap)
    limit = bottom
    for key in reversed(placed):
        placed[key] = limit = min(placed[key], limit)
        limit -= gap
    return placed


def powers(values: Sequence[float]) -> list[int]:
    """Exponents of ten from at most the smallest value (above 0) to at least the largest, two at least."""
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)
    return list(range(low, high + 1))


def power_of_ten(exponent) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def known(value) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
