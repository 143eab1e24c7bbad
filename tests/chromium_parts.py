"""Debian's Chromium, driven by selenium, and axe-core: what the tests of a page need, or the reason why it is not here."""

import base64
import json
import os
import shutil
import subprocess
import tarfile
from contextlib import contextmanager

AXE = "axe-core@4"
CHROMIUM, DRIVER = "chromium", "chromedriver"


def missing():
    """Why pages cannot be tested here, or ""."""
    for program in (CHROMIUM, DRIVER):
        if not shutil.which(program):
            return f"no {program} here: apt-get install chromium chromium-driver"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "no selenium here: it comes with the extra dev"
    return ""


@contextmanager
def chromium(width, dark, height=800):
    """A browser of this many CSS pixels that logs its console and its requests."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = Service(shutil.which(DRIVER), log_output=subprocess.DEVNULL)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()


def requests(driver):
    """Addresses that the page asked for since the last call, data: URIs left out."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [address for address in asked if not address.startswith("data:")]


def picture(driver, path, top=0, height=800, width=None):
    """A PNG of this part of the page."""
    wide = width or driver.execute_script("return innerWidth")
    clip = {"x": 0, "y": top, "width": wide, "height": height, "scale": 1}
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    with open(path, "wb") as handle:
        handle.write(base64.b64decode(taken["data"]))


def fetch_axe(folder):
    """(source of axe-core, "") or ("", why not): the file that AXE_CORE names, else npm's package into `folder`."""
    named = os.environ.get("AXE_CORE")
    if named:
        with open(named, encoding="utf-8") as handle:
            return handle.read(), ""
    if not shutil.which("npm"):
        return "", "no npm here to fetch axe-core with, and AXE_CORE names no axe.min.js"
    done = subprocess.run(["npm", "pack", AXE, "--silent"], cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        return "", f"npm could not fetch {AXE}: {done.stderr.strip()[-200:]}"
    with tarfile.open(os.path.join(folder, done.stdout.strip().splitlines()[-1])) as archive:
        return archive.extractfile("package/axe.min.js").read().decode(), ""


def violations(driver, axe):
    """What axe-core finds wrong with the page: ["rule: selector, selector"]."""
    driver.execute_script(axe)
    found = driver.execute_async_script(
        "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(found => done(found.violations));"
    )
    return [f"{one['id']}: {', '.join(str(node['target'][0]) for node in one['nodes'][:5])}" for one in found]
