"""``python docs/draw_report.py REPORT.html``: the picture of a report in README, docs/report.jpg, by headless Chromium.

Three columns: where the page begins, and two of its headings. docs/evaluation.md says which commands the report is of.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
HEADINGS = ("Measures", "Where the time went")  # of the second column and the third
WIDTH, HEIGHT, SHOWN = 1180, 1500, 0.42  # px of the page a column, and how much smaller they are shown
GAP = 12


def columns_of(report: Path) -> list[Image.Image]:
    browser_path = os.environ.get("SLIDEFIELD_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.goto(report.resolve().as_uri())
        whole = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        tops = [page.get_by_role("heading", name=name).bounding_box()["y"] for name in HEADINGS]
        browser.close()
    starts = [0, *(int(top) - 20 for top in tops)]
    return [whole.crop((0, start, WIDTH, start + HEIGHT)) for start in starts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "report.jpg")
    arguments = parser.parse_args()
    size = (int(WIDTH * SHOWN), int(HEIGHT * SHOWN))
    columns = [column.resize(size, Image.Resampling.LANCZOS) for column in columns_of(arguments.report)]
    picture = Image.new("RGB", (len(columns) * (size[0] + GAP) - GAP, size[1]), "#c8c8c8")
    for index, column in enumerate(columns):
        picture.paste(column, (index * (size[0] + GAP), 0))
    picture.save(arguments.out, quality=82, optimize=True)


if __name__ == "__main__":
    main()
