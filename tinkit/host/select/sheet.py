"""The contact sheet of a selection: one page with the map, the chosen points on it, and a thumbnail of each.

Self-contained (no script, no request); thumbnails are made from pixels, so without EXIF; file names are a stranger's text
and the template escapes them.
"""

import numpy as np
from markupsafe import Markup

from tinkit.device.pictures import Unreadable, decode
from tinkit.host.report import svg
from tinkit.host.report.page import page_of
from tinkit.host.report.pictures import thumbnail
from tinkit.host.select.result import Selection

TEMPLATE = "select/sheet.html.j2"
THUMBNAILS = 400  # in the whole page, about 4 KB each
POINTS = 6000  # pictures that are drawn on the map besides the chosen; more would only be slower to look at
SIDE, EDGE = 640, 16  # of the map


def render(selection: Selection, map_N2, owner_N) -> str:
    """The page as text. map_N2: where each picture lies, None without a map; owner_N: its nearest chosen one."""
    shown = [dict(vars(one), data=_thumbnail(one.picture)) for one in selection.chosen[:THUMBNAILS]]
    drawn = 0 if map_N2 is None else min(POINTS, len(map_N2))
    return page_of(
        TEMPLATE,
        selection=selection,
        shown=shown,
        rest=selection.chosen[THUMBNAILS:],
        map=None if map_N2 is None else draw_map(selection, map_N2),
        drawn=drawn,
        pictures=len(owner_N),
        largest=max(one.stands_for for one in selection.chosen),
    )


def draw_map(selection: Selection, map_N2) -> Markup:
    """All pictures as small dots (a sample of many), the chosen ones numbered and linked to their thumbnails."""
    low, high = map_N2.min(0), map_N2.max(0)
    size = max(float((high - low).max()), 1e-9)
    width, height = (2 * EDGE + (high - low) / size * (SIDE - 2 * EDGE)).tolist()

    def place(at_N2):
        spots = EDGE + (np.asarray(at_N2) - low) / size * (SIDE - 2 * EDGE)
        return np.stack([spots[:, 0], height - spots[:, 1]], axis=1)

    label = (
        f"Map of {len(map_N2)} pictures, {len(selection.chosen)} of them chosen and numbered; the list below tells them"
    )
    picture = svg.canvas(label, round(width), round(height), "chart map")
    picture.set("role", "group")
    background = np.random.default_rng(selection.seed).permutation(len(map_N2))[:POINTS]
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in place(map_N2[np.sort(background)]))
    svg.add(picture, "path", d=dots, **{"class": "all"})
    for one, (x, y) in reversed(list(zip(selection.chosen, place([one.at for one in selection.chosen])))):
        linked = one.rank <= THUMBNAILS
        parent = svg.add(picture, "a", href=f"#p{one.rank}") if linked else picture
        svg.add(
            parent, "circle", f"{one.rank}: {_plain(one.name)}", cx=float(x), cy=float(y), r=9.0, **{"class": "one"}
        )
        svg.write(parent, x, y, str(one.rank), "rank", "middle")
    return svg.markup(picture)


def _plain(name) -> str:
    """Without what XML cannot hold: control characters and bytes that are no UTF-8."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


def _thumbnail(picture) -> str:
    """A data: URI; "" for a picture that cannot be read any more."""
    try:
        return thumbnail(np.asarray(decode(picture.read())))
    except (Unreadable, OSError):
        return ""
