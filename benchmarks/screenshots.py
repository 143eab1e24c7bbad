"""Pictures of a page for the docs: desktop and phone, light and dark, by Debian's Chromium.

    python benchmarks/screenshots.py runs/one/report-onnx-fp32-here/report.html --out docs/screenshots --name report

Writes NAME-desktop-light.png, NAME-desktop-dark.png, NAME-phone-light.png and NAME-phone-dark.png, in few colours so that they
stay small. `--at worst` begins at the element of that id instead of the top.
"""

import argparse
import base64
import io
import os
import shutil
import subprocess
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

SIZES = {"desktop": (1200, 1000), "phone": (360, 1100)}
COLOURS = 176


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page")
    parser.add_argument("--out", default="docs/screenshots")
    parser.add_argument("--name", default="report")
    parser.add_argument("--at", default="", help="id of the element to begin at")
    asked = parser.parse_args()
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing or not os.path.isfile(asked.page):
        parser.error(f"not found: {', '.join(missing) or asked.page}")
    os.makedirs(asked.out, exist_ok=True)
    for room, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
            path = os.path.join(asked.out, f"{asked.name}-{room}-{scheme}.png")
            image = taken(Path(asked.page).resolve().as_uri(), width, height, scheme, asked.at)
            image.quantize(COLOURS).save(path, optimize=True)
            print(f"{os.path.getsize(path) / 1e3:6.0f} kB  {path}")


def taken(address, width, height, scheme, at) -> Image.Image:
    """The page from its top, or from an element on."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver"), log_output=subprocess.DEVNULL))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        driver.get(address)
        top = driver.execute_script(
            "const at = document.getElementById(arguments[0]) ?? (arguments[0] ? null : document.documentElement);"
            "return at && at.getBoundingClientRect().top + scrollY",
            at,
        )
        if top is None:
            raise SystemExit(f"the page has no element with the id {at}")
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        found = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        return Image.open(io.BytesIO(base64.b64decode(found["data"]))).convert("RGB")
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
