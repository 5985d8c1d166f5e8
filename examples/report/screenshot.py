"""A picture of a report's page, its head and heat maps: screenshot.py PAGE PICTURE.

Needs a Chromium (apt-get install chromium-headless-shell) and playwright (pip install playwright).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1100, 900


def screenshot(page: Path, picture: Path) -> None:
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        sys.exit("error: no Chromium\n  try: apt-get install chromium-headless-shell")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        shown.goto(page.absolute().as_uri())
        shown.wait_for_selector("html[data-ready]", state="attached")
        shown.select_option("#metric", "predicted_kl")
        end = shown.locator("#sizes").bounding_box()
        height = int(end["y"] + end["height"]) + 16 if end else HEIGHT
        shown.screenshot(
            path=picture, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height}
        )
        browser.close()


if __name__ == "__main__":
    screenshot(Path(sys.argv[1]), Path(sys.argv[2]))
