"""Look at recipes/space in a headless Chromium as a person does: it clicks, types, and leaves two screenshots.

    pip install -e ".[space]" playwright
    python tests/recipes/look_at_space.py --browser /usr/bin/chromium --output_dir outputs/space

What follows `--` goes to the app: `-- --after outputs/quickstart`.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
QUIETLY = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PLACE = re.compile(r"^\d+ of \d+$")


def look(page: Page, output: Path) -> None:
    """Both tabs."""
    page.locator(".thumbnail-item").nth(2).click()
    places = page.get_by_label("Rank of the picture when CLIP searches by this caption")
    expect(places).to_have_count(2)
    for number in range(2):
        expect(places.nth(number)).to_have_value(PLACE, timeout=60_000)
    said = [page.locator("textarea").nth(number).input_value() for number in range(4)]
    page.screenshot(path=output / "before_and_after.png")

    page.get_by_role("tab", name="Find a picture").click()
    page.get_by_role("textbox", name="Caption").fill(said[2])
    page.keyboard.press("Enter")
    found = page.get_by_role("tabpanel").locator(".thumbnail-item img:visible")
    expect(found).to_have_count(10, timeout=60_000)
    for number in range(10):
        expect(found.nth(number)).to_have_js_property("complete", True)
        assert found.nth(number).evaluate("picture => picture.naturalWidth") > 0
    page.screenshot(path=output / "find.png")


def main() -> None:
    """Serve the app, look at it, end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", required=True, help="the executable of a Chromium")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("app", nargs="*", help="settings of the app")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "recipes" / "space" / "app.py"), *arguments.app]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            told = iter(server.stdout.readline, "")
            address = next(found[0] for line in told if (found := re.search(r"http://\S+", line)))
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=arguments.browser, args=QUIETLY)
                page = browser.new_page(viewport={"width": 1280, "height": 860})
                errors: list[object] = []
                page.on("pageerror", lambda error: errors.append(error))
                page.goto(address)
                look(page, arguments.output_dir)
                browser.close()
                assert not errors, errors
        finally:
            server.kill()


if __name__ == "__main__":
    main()
