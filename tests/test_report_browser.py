"""The pages in a real browser: no error, no request, every picture decoded, nothing wrong for axe-core, and the keyboard does it.

Debian's Chromium in light and dark, on a desktop and on a phone of 360 pixels. TINKIT_SCREENSHOTS=FOLDER keeps what was seen.
"""

import os
from pathlib import Path

import pytest
from chromium_parts import chromium, fetch_axe, missing, picture, requests, violations
from evaluation_parts import evaluation, write_pictures, written_evaluation
from report_board_parts import board_report
from report_parts import small_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "no reason")]

DESKTOP, PHONE, PAPER = 1200, 360, 718  # CSS pixels; an A4 sheet has 718 between a browser's own margins
ROOMS = [
    pytest.param(width, dark, id=f"{width}-{'dark' if dark else 'light'}")
    for width in (DESKTOP, PHONE)
    for dark in (False, True)
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """name -> address: an evaluation alone, a report alone, and a board's report with evaluation and siblings."""
    from dataclasses import replace

    from tinkit import files
    from tinkit.host.report.command import report
    from tinkit.host.report.evaluation import evaluation_page

    root = tmp_path_factory.mktemp("pages")
    write_pictures(root / "pictures")
    run = root / "run"
    run.mkdir()
    files.write_json(run / "run.json", {"id": "abc123", "teacher": {"name": "efficientnet-lite0"}, "settings": {}})
    facts = board_report(run)
    files.write_json(run / "report-quick-here" / "report.json", replace(facts, latency=facts.latency[:1]).to_json())
    written_evaluation(run / "evaluation", evaluation(root / "pictures"))
    alone = root / "alone"
    alone.mkdir()
    return {
        "evaluation": Path(evaluation_page(run / "evaluation")).as_uri(),
        "report": Path(report(run / "report").path).as_uri(),
        "plain": Path(report(_plain(alone, small_report)).path).as_uri(),
    }


def _plain(folder, write):
    from report_parts import small_bundle

    write(folder, small_bundle(folder))
    return folder / "report"


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    source, why = fetch_axe(tmp_path_factory.mktemp("axe"))
    if not source:
        pytest.skip(why)
    return source


@pytest.mark.parametrize(("width", "dark"), ROOMS)
@pytest.mark.parametrize("name", ["evaluation", "report", "plain"])
def test_a_page_is_whole_quiet_and_readable(pages, axe, name, width, dark):
    with chromium(width, dark) as driver:
        driver.get(pages[name])
        assert driver.get_log("browser") == []
        assert requests(driver) == [pages[name]]
        undecoded = "return [...document.images].filter(one => !(one.complete && one.naturalWidth)).map(one => one.alt)"
        assert driver.execute_script(undecoded) == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        keep(driver, f"{name}-{width}-{'dark' if dark else 'light'}")
        assert violations(driver, axe) == []


def keep(driver, name):
    """The whole page in pieces of 2000 pixels, for who wants to look."""
    folder = os.environ.get("TINKIT_SCREENSHOTS")
    if folder:
        whole = driver.execute_script("return document.documentElement.scrollHeight")
        for number, top in enumerate(range(0, whole, 2000)):
            picture(driver, os.path.join(folder, f"{name}-{number}.png"), top, min(2000, whole - top))


@pytest.fixture(scope="module")
def driver(pages):
    with chromium(DESKTOP, False) as opened:
        yield opened


def column(driver, table, number):
    """The texts of one column of a table of this heading."""
    script = "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(row => row.cells[arguments[1]].textContent)"
    return driver.execute_script(script, table, number)


def press(driver, key, selector=""):
    """A key, at this element if one is named."""
    from selenium.webdriver.common.action_chains import ActionChains

    if selector:
        driver.execute_script("document.querySelector(arguments[0]).focus()", selector)
    ActionChains(driver).send_keys(key).perform()


def test_a_table_sorts_by_keyboard_and_says_so(driver, pages):
    from selenium.webdriver.common.keys import Keys

    driver.get(pages["evaluation"])
    table, heading = "[aria-labelledby=classes]", "[aria-labelledby=classes] th:nth-child(4) button"
    before = column(driver, table, 3)
    press(driver, Keys.ENTER, heading)
    down = column(driver, table, 3)
    assert down == sorted(before, reverse=True) != before
    press(driver, Keys.SPACE)
    assert column(driver, table, 3) == sorted(before)
    assert (
        driver.execute_script("return document.querySelector(arguments[0]).parentNode.ariaSort", heading) == "ascending"
    )
    press(driver, Keys.ENTER, "[aria-labelledby=classes] th:nth-child(1) button")
    names = column(driver, table, 0)
    assert names == sorted(names)
    assert (
        driver.execute_script("return document.querySelectorAll('[aria-labelledby=classes] [aria-sort]').length") == 1
    )


def test_what_is_not_known_is_last_whichever_way(driver, pages):
    from selenium.webdriver.common.keys import Keys

    driver.get(pages["evaluation"])
    table, heading = "[aria-labelledby=by-corruption]", "[aria-labelledby=by-corruption] th:nth-child(6) button"
    for _ in range(2):
        press(driver, Keys.ENTER, heading)
        assert column(driver, table, 5)[-1] == "none"


def test_the_churn_is_filtered_by_keyboard(driver, pages):
    from selenium.webdriver.common.keys import Keys

    driver.get(pages["evaluation"])
    shown = "return [...document.querySelectorAll('.flips li')].filter(one => one.checkVisibility()).map(one => one.dataset.kind)"
    everything = driver.execute_script(shown)
    assert set(everything) == {"lost", "won", "both wrong"}
    press(driver, "w", ".controls select")  # a list is chosen from by its first letter
    won = driver.execute_script(shown)
    assert set(won) == {"won"}
    press(driver, Keys.TAB)
    press(driver, "TRAM")
    found = driver.execute_script(
        "return [...document.querySelectorAll('.flips li:not([hidden])')].map(one => one.textContent)"
    )
    assert 0 < len(found) < len(won)
    assert all("tram" in text for text in found)
    told = driver.execute_script("return document.querySelector('.controls [role=status]').textContent")
    assert told == f"{len(found)} of {len(everything)}"


def test_a_chart_tells_its_values_to_the_keyboard_and_to_the_pointer(driver, pages):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver.get(pages["evaluation"])
    said = "const tip = document.querySelector('.tip.shown'); return tip ? tip.textContent : ''"
    chart = "svg[aria-label^='By severity']"
    assert driver.execute_script(said) == ""
    press(driver, Keys.ARROW_RIGHT, chart)
    assert driver.execute_script(said) == "teacher: severity 0, right 0.910"
    press(driver, Keys.ARROW_RIGHT)
    assert driver.execute_script(said).startswith("teacher: severity 1, right")
    far = (
        "const tip = document.querySelector('.tip').getBoundingClientRect(), point = document.querySelector('.spot.on')"
        ".getBoundingClientRect(); return Math.abs(tip.bottom - point.top)"
    )
    before = driver.execute_script(far)
    driver.execute_script("scrollBy(0, 60)")
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert driver.execute_script(said).startswith("teacher: severity 1, right")  # what is told stays beside its point
    assert abs(driver.execute_script(far) - before) < 2
    press(driver, Keys.ESCAPE)
    assert driver.execute_script(said) == ""
    spot = driver.find_elements("css selector", f"{chart} .spot")[-1]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", spot)
    # a page that scrolls says so only with the next frame
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    ActionChains(driver).move_to_element(spot).perform()
    assert driver.execute_script(said).startswith("student: severity 5, right")
    box = driver.execute_script(
        "const box = document.querySelector('.tip').getBoundingClientRect(); return [box.left, box.right]"
    )
    assert 0 <= box[0] < box[1] <= DESKTOP


def test_axe_finds_what_is_planted(driver, pages, axe):
    driver.get(pages["plain"])
    driver.execute_script(
        "const grey = document.querySelector('main p'); grey.style.color = '#999'; grey.style.background = '#aaa';"
        "document.querySelector('main').append(new Image())"
    )
    found = " ".join(violations(driver, axe))
    assert "color-contrast" in found
    assert "image-alt" in found


def test_only_our_script_runs(driver, pages):
    driver.get(pages["evaluation"])
    driver.execute_script(
        "const own = document.createElement('script'); own.textContent = 'window.planted = 1'; document.body.append(own)"
    )
    assert driver.execute_script("return window.planted === undefined")
    assert any("Content Security Policy" in entry["message"] for entry in driver.get_log("browser"))


def test_the_page_is_whole_without_its_script(tmp_path, driver, pages):
    from urllib.parse import unquote, urlparse

    text = Path(unquote(urlparse(pages["evaluation"]).path)).read_text(encoding="utf-8")
    quiet = tmp_path / "quiet.html"
    quiet.write_text(text.replace("script-src 'sha256-", "script-src 'sha256-not"), encoding="utf-8")
    driver.get(quiet.as_uri())
    assert not driver.find_elements("css selector", "th button, .controls, .tip")
    assert len(driver.find_elements("css selector", ".flips li")) == 60
    assert driver.execute_script("return document.querySelectorAll('svg title').length") > 50


@pytest.mark.parametrize("name", ["evaluation", "report", "plain"])
def test_printed_it_is_black_on_white_and_nothing_is_cut_off(pages, name):
    with chromium(PAPER, True) as driver:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        driver.get(pages[name])
        script = "return [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        assert driver.execute_script(script) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
        cut_off = (
            "return [...document.querySelectorAll('.tall, .scroll')].filter(one => one.scrollWidth > one.clientWidth + 1"
            " || one.scrollHeight > one.clientHeight + 1 || getComputedStyle(one).overflow !== 'visible')"
            ".map(one => one.textContent.trim().slice(0, 60))"
        )
        assert driver.execute_script(cut_off) == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= PAPER
        shown = "return [...document.querySelectorAll('.controls')].filter(one => one.checkVisibility()).length"
        assert driver.execute_script(shown) == 0
