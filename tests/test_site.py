"""The site of `make site`, built without a warning and looked at in a browser: phone and desk, light and dark."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
WIDER = """() => [...document.querySelectorAll("article *")]
    .filter(part => part.getBoundingClientRect().right > innerWidth && !part.closest("pre, .table-wrapper"))
    .map(part => part.outerHTML)"""


@pytest.mark.slow
def test_a_browser_shows_every_page_from_phone_to_desk(tmp_path):
    pytest.importorskip("furo", reason="needs the extra docs: make site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--quiet",
        str(ROOT / "docs"),
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"README"} | {"index"}
    built = {path.stem for path in (tmp_path / "site").glob("*.html")} - {"genindex", "search"}
    assert built == pages
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    backgrounds = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        for name in sorted(pages):
            page.goto((tmp_path / "site" / f"{name}.html").as_uri())
            for width in (1280, 400):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
                assert page.evaluate(WIDER) == [], (name, width)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            backgrounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.close()
    assert backgrounds["light"] != backgrounds["dark"]
