"""The site is whole: everything the code has is told, every link leads somewhere, and nothing comes from elsewhere."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from lathe import cli
from lathe.options import options

ROOT = Path(__file__).parents[1]
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "use": "href"}


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """docs/reference.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", cli.available())
def test_every_option_is_told(name: str, reference: ModuleType):
    page, (cls, _) = reference.command(name), cli.load(name)
    words = cls.understood([])[0] if hasattr(cls, "understood") else cls
    told = set(re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE))
    assert {option.spelling for option in options(words) if not option.is_section} <= told


def public(reference: ModuleType) -> list[tuple[str, object, type | None]]:
    """What the page of the Python API tells of: names, things, and the class of a method."""
    found: list[tuple[str, object, type | None]] = []
    for thing, names in (entry for entries in reference.API.values() for entry in entries):
        found.append((thing.__qualname__, thing, None))
        found += [(f"{thing.__qualname__}.{n}", inspect.getattr_static(thing, n), thing) for n in names.split()]
    return found


def test_every_parameter_of_the_python_api_is_told(reference: ModuleType):
    """In the docstring of a function, or of its class."""
    silent = []
    for name, thing, owner in public(reference):
        plain = getattr(thing, "__func__", getattr(thing, "fget", thing))
        words = " ".join(filter(None, (plain.__doc__, owner.__doc__ if owner else "")))
        if not words:
            silent.append(name)
        elif isinstance(thing, property) or thing in reference.GIVEN or getattr(plain, "__total__", None) is not None:
            continue
        else:
            given = [p for p in inspect.signature(plain).parameters if p not in ("self", "cls", "wishes", "args")]
            silent += [f"{name}({p})" for p in given if not re.search(rf"\b{p}\b", words)]
    assert not silent


class Loads(HTMLParser):
    """What a page loads, and whether it is told from where."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag in LOADED and told.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(told.get(LOADED[tag]) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    return out


def test_pages_load_nothing_from_elsewhere(site: Path):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        for target in loads.found:
            assert not re.match(r"\w+:|//", target) or target.startswith("data:"), f"{target} in {page.name}"
            place = page.parent / target.partition("?")[0].partition("#")[0]
            assert not target or target.startswith("data:") or page.name == "404.html" or place.exists(), target


def test_a_browser_shows_it_without_a_network(site: Path, browser):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    for name in ("index.html", "first-hour.html", "reference/python.html", "reference/commands/finetune.html"):
        page.goto((site / name).as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{name} is {wide} pixels wide on a phone"
    page.set_viewport_size({"width": 1280, "height": 800})
    page.keyboard.press("f")
    page.keyboard.type("lora rank")
    page.locator(".md-search-result__link").first.wait_for()
    page.close()
    assert not wrong and all(url.startswith(("file:", "data:", "blob:")) for url in asked)
