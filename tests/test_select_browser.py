"""The contact sheet in a real browser: whole, quiet and right for axe-core, and its map can be read on a phone."""

from pathlib import Path

import numpy as np
import pytest
from chromium_parts import chromium, fetch_axe, missing, requests, violations
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "no reason")]

PHONE = 360
READABLE = 9  # CSS pixels of a rank on the map


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from tinkit.host.select import sheet
    from tinkit.host.select.result import Chosen, Selection

    root, random = tmp_path_factory.mktemp("sheet"), np.random.default_rng(0)
    map_N2, chosen = random.normal(size=(300, 2)), []
    for rank in range(1, 31):
        name = f"a rather long folder/{'long' * 20} & {rank}.png"
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8)).save(root / name)
        chosen.append(Chosen(rank, name, str(root / name), f"{rank}.png", 10, tuple(map_N2[rank].tolist()), "cat"))
    selection = Selection(
        path=str(root), root=str(root), chosen=chosen, pictures=310, copies=10, alike=2, skipped=1,
        features_of={"name": "teacher", "weights": "0" * 64}, method="k-medoids", space="t-sne", metric="cosine", seed=0,
        quality={space: {"max_radius": 1.0, "min_gap": 0.1, "sum": 9.0, "mean": 0.3} for space in ("features", "map")},
        classes={"found": 1, "of": 2, "random": 1.5}, notes=["a note"], seconds={"total": 1.0},
    )  # fmt: skip
    Path(selection.page).write_text(sheet.render(selection, map_N2, random.integers(30, size=300)), encoding="utf-8")
    return Path(selection.page).as_uri()


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    source, why = fetch_axe(tmp_path_factory.mktemp("axe"))
    if not source:
        pytest.skip(why)
    return source


@pytest.mark.parametrize("width", [1200, PHONE])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_sheet_is_whole_quiet_and_readable(page, axe, width, dark):
    with chromium(width, dark) as driver:
        driver.get(page)
        assert driver.get_log("browser") == []
        assert requests(driver) == [page]
        whole = "return [...document.images].map(one => one.complete && one.naturalWidth > 0)"
        assert driver.execute_script(whole) == [True] * 30
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert violations(driver, axe) == []


@pytest.mark.parametrize("width", [1200, PHONE])
def test_the_numbers_on_the_map_can_be_read_and_lie_in_their_circles(page, width):
    with chromium(width, False) as driver:
        driver.get(page)
        size = """const text = document.querySelector('.map .rank');
        return parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a"""
        assert driver.execute_script(size) >= READABLE - 0.1
        inside = """return [...document.querySelectorAll('.map a')].every(link => {
            const ring = link.querySelector('circle').getBoundingClientRect();
            const text = link.querySelector('text').getBoundingClientRect();
            return Math.abs(ring.top + ring.bottom - text.top - text.bottom) < 4 && text.width < ring.width; })"""
        assert driver.execute_script(inside)
