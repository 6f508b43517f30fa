"""Take a picture of a report's first screen, and check that no element is wider than the page.

    pip install playwright
    python tools/picture.py runs/digits/report.html --to tools/results/report.png
    python tools/picture.py runs/digits/report.html --to pictures --all

It needs Chromium or Chrome. With `--all` it takes eight pictures: four widths, light and dark.
"""

import argparse
import shutil
import sys
from pathlib import Path

WIDTHS = (400, 900, 1400, 2200)
README_SIZE = (1000, 800)
# Elements that reach beyond the page and are not in a part that scrolls.
TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = element => {
    for (let e = element; e && e !== document.body; e = e.parentElement) {
      if (["auto", "scroll"].includes(getComputedStyle(e).overflowX)) return true;
    }
    return false;
  };
  return [...document.querySelectorAll("body *:not(svg *)")]
    .filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e))
    .map(e => e.tagName + " " + e.textContent.trim().slice(0, 40));
}"""


def main() -> None:
    """Take the pictures; exit with 1 if an element is too wide."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("--to", type=Path, required=True, help="PNG file; with --all, a folder")
    parser.add_argument("--all", action="store_true", help="all widths, light and dark")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright  # not a dependency of distill

    pictures = {arguments.to: (*README_SIZE, "light")}
    if arguments.all:
        pictures = {
            arguments.to / f"{scheme}-{width}.png": (width, 900, scheme)
            for scheme in ("light", "dark")
            for width in WIDTHS
        }
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for path, (width, height, scheme) in pictures.items():
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            page.goto(arguments.report.resolve().as_uri())
            path.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=path)
            too_wide = page.evaluate(TOO_WIDE)
            print(f"{path}: {len(too_wide)} elements are too wide", *too_wide[:5], sep="\n  ")
            found += too_wide
            page.close()
        browser.close()
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
