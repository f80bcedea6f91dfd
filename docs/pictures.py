"""A demo's model becomes the pictures in docs/pictures/: the page of a server, of a run, and of several runs.

    python docs/pictures.py FOLDER        where `make demo` and the tutorial's finetuning left out/demo and out/who

Light and dark, in a headless Chromium, through Playwright.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURES = Path(__file__).parent / "pictures"
SIZE = {"width": 1000, "height": 640}
QUESTIONS = ("Who are you?", "Who made you?")


@contextmanager
def running(folder: Path, *words: str) -> Iterator[str]:
    """`lathe ...` in a folder, in a process of its own; gives the address that it tells."""
    command = [sys.executable, "-m", "lathe", *words]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(r"http://[\d.]+:\d+", line):
                    yield found[0]
                    return
            raise SystemExit(f"{' '.join(command)} told no address")
        finally:
            process.terminate()


def take(page: Page, name: str) -> None:
    page.wait_for_timeout(500)  # until what moves stands still
    page.screenshot(path=PICTURES / name)


def talk(page: Page, address: str) -> None:
    """Ask the questions, and wait for the answers, of which each token is the likeliest."""
    page.goto(address)
    page.get_by_label("Settings").first.click()
    page.get_by_label("Temperature").fill("0")
    page.keyboard.press("Escape")
    page.mouse.move(500, 400)
    for question in QUESTIONS:
        page.get_by_role("textbox").last.fill(question)
        page.keyboard.press("Enter")
        page.wait_for_timeout(4000)


def main(folder: Path) -> None:
    PICTURES.mkdir(exist_ok=True)
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        with (
            running(folder, "serve", "out/who/final", "--port", "0") as server,
            running(folder, "runs", "out", "--port", "0", "--no-open") as runs,
        ):
            for scheme in ("light", "dark"):
                page = chromium.new_page(viewport=SIZE, color_scheme=scheme)
                talk(page, server)
                take(page, f"page-{scheme}.png")
                page.goto((folder / "out/demo/report.html").resolve().as_uri())
                take(page, f"report-{scheme}.png")
                page.goto(runs)
                take(page, f"runs-{scheme}.png")
        chromium.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
