"""Take the two pictures of the page that README and Space show, from a page that runs.

python spaces_demo/app.py &
python scripts/checks/page_pictures.py http://127.0.0.1:7860
"""

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
WIDTH = 1280
QUALITY = 82  # of WebP; each picture is below 100 KB


def take(page: Any, path: Path, height: int) -> None:
    """Save the upper `height` pixels of the page."""
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1500)  # bars grow, posters give way to clips
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(path, "WEBP", quality=QUALITY, method=6)
    print(f"{path}: {path.stat().st_size >> 10} KB")


def main() -> None:
    """Open the page, show an example on two tabs, and take a picture of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="where the page runs, such as http://127.0.0.1:7860")
    args = parser.parse_args()
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.set_default_timeout(120_000)
        page.goto(f"{args.address}/?__theme=light")
        page.wait_for_selector(".pick")
        page.click("role=tab[name='Opposites']")
        page.click(".kind:has-text('left or right')")
        page.wait_for_selector(".verdict:has-text('the chicken runs to the right')")
        take(page, ROOT / "spaces_demo" / "page.webp", 940)
        page.click("role=tab[name='Look inside']")
        page.click(".chip:has-text('the balloon sways')")
        page.wait_for_selector(".words")
        take(page, ROOT / "docs" / "_static" / "page.webp", 1400)
        browser.close()


if __name__ == "__main__":
    main()
