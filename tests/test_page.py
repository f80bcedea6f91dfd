"""The chat page in a real browser: what a model writes is shown and stays text, and nothing leaves the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Page

from lathe.server import page


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    """A server of the page's files alone."""
    app = FastAPI()
    app.include_router(page.router())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def shown(browser, files) -> Iterator[Page]:
    """A page in which `html(text)` gives what a text in Markdown becomes."""
    tab = browser.new_page()
    tab.goto(f"{files}/page/nothing")
    tab.evaluate("""async () => {
        const { show } = await import("/page/markdown.js");
        window.html = (text) => {
          const place = document.createElement("div");
          show(place, text);
          return place.innerHTML;
        };
        window.grown = (text) => {
          const place = document.createElement("div");
          for (let at = 0; at <= text.length; at++) show(place, text.slice(0, at));
          return place.innerHTML;
        };
    }""")
    yield tab
    tab.close()


# What CommonMark and GFM say of these; but a line's end is a line's end, as in every chat.
MARKDOWN = {
    "a *b* **c** ***d*** ~~e~~": "<p>a <em>b</em> <strong>c</strong> <strong><em>d</em></strong> <del>e</del></p>",
    "**a *b* c** and *a **b** c*": "<p><strong>a <em>b</em> c</strong> and <em>a <strong>b</strong> c</em></p>",
    "2 * 3 * 4, a_b_c, __init__.py": "<p>2 * 3 * 4, a_b_c, __init__.py</p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "# A\n### B ###\n#no": '<h3 class="h1">A</h3><h5 class="h3">B</h5><p>#no</p>',
    "`a*b*` ``c`d`` \\*no\\*": "<p><code>a*b*</code> <code>c`d</code> *no*</p>",
    "- a\n- b\n  1. c\n  2. d\n- e": "<ul><li>a</li><li>b<ol><li>c</li><li>d</li></ol></li><li>e</li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "1. a\n\n   more\n\n2. b": "<ol><li><p>a</p><p>more</p></li><li><p>b</p></li></ol>",
    "> a\nb\n\nc": "<blockquote><p>a<br>b</p></blockquote><p>c</p>",
    "a\n\n---\n\nb": "<p>a</p><hr><p>b</p>",
    "[a](https://b.c/d_(e)) <https://f.g>": (
        '<p><a href="https://b.c/d_(e)" target="_blank" rel="noopener noreferrer">a</a> '
        '<a href="https://f.g/" target="_blank" rel="noopener noreferrer">https://f.g</a></p>'
    ),
    "\\(x_1^2\\), $a=b$, $5 and $6, $$\\nothing$$": (
        "<p><math><msubsup><mi>x</mi><mn>1</mn><mn>2</mn></msubsup></math>, <math><mrow><mi>a</mi><mo>=</mo><mi>b</mi>"
        '</mrow></math>, $5 and $6, <span class="formula">$$\\nothing$$</span></p>'
    ),
    "see https://a.b/c_d, ok": (
        '<p>see <a href="https://a.b/c_d" target="_blank" rel="noopener noreferrer">https://a.b/c_d</a>, ok</p>'
    ),
}
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "**<svg onload=alert(1)>**",
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt&colon;alert(1))",
    "[a](\tjavascript:alert(1))",
    "[a](data:text/html,<script>alert(1)</script>)",
    "<javascript:alert(1)>",
    "![a](https://elsewhere.example/pixel.png)",
    '[a](https://b.c "x" onmouseover="alert(1)")',
    "```html\n<script>alert(1)</script>\n```",
    '```"><img src=x onerror=alert(1)>\ncode\n```',
    "| a |\n|---|\n| <img src=x onerror=alert(1)> |",
    "- <iframe src=javascript:alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<!-- --><style>*{display:none}</style>",
    "$$\\text{<img src=x onerror=alert(1)>} \\frac{<script>alert(1)</script>}{2}$$",
]


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown_becomes_elements(shown, text):
    assert shown.evaluate("html", text) == MARKDOWN[text]


@pytest.mark.parametrize("text", [*MARKDOWN, *HOSTILE, "a\n```py\nx = 1\n```\n| a | b |\n|:-|-:|\n| c\\|d | e |"])
def test_what_grows_letter_by_letter_ends_as_what_was_there_at_once(shown, text):
    assert shown.evaluate("grown", text) == shown.evaluate("html", text)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_an_element_that_acts(shown, text):
    acting = r"""(text) => {
        const place = new DOMParser().parseFromString(html(text), "text/html");
        const all = [...place.body.querySelectorAll("*")].filter((one) => !one.closest("svg"));
        const acting = /SCRIPT|IMG|IFRAME|STYLE|OBJECT|EMBED|LINK|FORM/;
        return {
          names: all.map((one) => one.tagName).filter((name) => acting.test(name)),
          attributes: all.flatMap((one) => one.getAttributeNames()).filter((name) => name.startsWith("on")),
          links: all.map((one) => one.protocol).filter((name) => name && !/^(https?|mailto):$/.test(name)),
        };
    }"""
    assert shown.evaluate(acting, text) == {"names": [], "attributes": [], "links": []}


@pytest.mark.parametrize(
    "text",
    [
        "*" * 20000,
        "[" * 20000,
        "`a" * 10000,
        "> " * 5000 + "a",
        "- " * 3000,
        "_a*" * 5000,
        "|a" * 5000,
        "$a^" * 5000,
        "$$" + "{" * 1900 + "$$",
    ],
)
def test_no_text_makes_it_slow(shown, text):
    """It may take some tenths of a second, not minutes."""
    shown.set_default_timeout(10000)
    assert shown.evaluate("(text) => html(text).length", text) > 0


def test_files_may_be_kept_and_are_asked_for_again(browser, files):
    with browser.new_context() as context:
        first = context.request.get(f"{files}/")
        assert first.headers["content-security-policy"].startswith("default-src 'self'")
        again = context.request.get(f"{files}/", headers={"If-None-Match": first.headers["etag"]})
        assert (first.status, again.status) == (200, 304)
        assert context.request.get(f"{files}/page/__init__.py").status == 404
        assert context.request.get(f"{files}/page/..%2f__init__.py").status == 404


def test_a_branch_hears_what_was_said_on_it_and_a_model_without_a_template_a_text(shown):
    told = shown.evaluate("""async () => {
        const { ask, begin, freshTalk, messages, path, plain, show } = await import("/page/talk.js");
        const talk = freshTalk("Be brief.");
        const answer = (turn, lane, text) => Object.assign(begin(talk, turn, lane, "m"), { text, state: "done" });
        const first = ask(talk, "One");
        answer(first, 0, "Eins");
        answer(first, 1, "Un");
        const second = ask(talk, "Two");
        answer(second, 0, "Zwei");
        const sides = [0, 1].map((lane) => messages(talk, second, lane).map((one) => one.content));
        answer(first, 0, "Uno");
        const third = ask(talk, "Three");
        const branch = messages(talk, third, 0);
        first.shown[0] = 0;
        const old = path(talk).map((turn) => turn.text);
        show(talk, ask(talk, "Other", { instead: second }));
        return { sides, branch: plain(branch, false), old, other: path(talk).map((turn) => turn.text) };
    }""")
    assert told["sides"] == [["Be brief.", "One", "Eins", "Two"], ["Be brief.", "One", "Un", "Two"]]
    assert told["branch"] == "Be brief.\nOneUno\nThree"
    assert (told["old"], told["other"]) == (["One", "Two"], ["One", "Other"])
