"""The chat page with a real browser and server: what is asked is answered, shown and kept, and goes nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Page, expect
from serving import Served, adapter, serving, tiny

from lathe.llm import LLM

CONTEXT = 32768
KEY = "a key"
SETTINGS = {"wishes": {"temperature": 0, "max_tokens": 12}}
HOSTILE = '<img src="https://elsewhere.example/x" onerror="alert(1)"><script>alert(1)</script>'


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model with room for an answer that takes longer than it takes to stop it."""
    return tiny(tmp_path_factory.mktemp("model"), max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory) -> Iterator[Served]:
    """The model and a finetune of it, behind a key."""
    tuned = adapter(model, tmp_path_factory.mktemp("adapters") / "tuned", seed=1)
    with serving(model, "--served-model-name", "base", "--adapter", f"tuned={tuned}", "--api-key", KEY) as running:
        yield running


@pytest.fixture
def tab(browser, server) -> Iterator[Page]:
    """The page, in a browser that has never seen it. At the end: nobody else was asked, and nothing went wrong."""
    yield from opened(browser, server)


@pytest.fixture
def stranger(browser, server) -> Iterator[Page]:
    """The page, in a browser that knows no key."""
    yield from opened(browser, server, key="")


@pytest.fixture
def phone(browser, server) -> Iterator[Page]:
    yield from opened(browser, server, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)


def opened(browser, server, key=KEY, **options) -> Iterator[Page]:
    wrong: list[str] = []
    with browser.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(10000)
        page.add_init_script(f"localStorage['lathe.settings'] ??= JSON.stringify({json.dumps(SETTINGS)})")
        page.add_init_script(f"if ({json.dumps(key)}) sessionStorage['lathe.key'] = {json.dumps(key)}")
        page.on("request", lambda request: request.url.startswith((server.url, "blob:")) or wrong.append(request.url))
        page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto(server.url)
        if key:
            expect(page.locator("#empty h1")).to_contain_text("Talk with")
        yield page
        assert [told for told in wrong if key or "401" not in told] == []


def say(page: Page, text: str) -> None:
    """Ask, and wait until it is answered."""
    before = page.locator(".turn").count()
    page.fill("#say", text)
    page.press("#say", "Enter")
    expect(page.locator(".turn")).to_have_count(before + 1)
    finished(page)


def finished(page: Page) -> None:
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator(".answer .stats").last).to_contain_text("token")


def kept(page: Page) -> list[dict]:
    """The conversations in the browser's store."""
    talks = (
        """Object.entries(localStorage).filter(([name]) => name.startsWith("lathe.talk.")).map(([, talk]) => talk)"""
    )
    return [json.loads(talk) for talk in page.evaluate(talks)]


def answers(page: Page) -> list[dict]:
    """All answers of the one conversation that is kept."""
    [talk] = kept(page)
    return [answer for turn in talk["turns"].values() for lane in turn["answers"] for answer in lane]


def test_an_answer_is_the_models_and_outlives_the_page(tab, model):
    alone = LLM.load(model, device="cpu")
    say(tab, "Hello there")
    expected = alone.complete("Hello there", temperature=0, max_new_tokens=12)
    [answer] = answers(tab)
    assert (answer["text"], answer["state"], answer["reason"]) == (expected.text, "done", "length")
    assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    expect(tab.locator(".stats")).to_contain_text("12 tokens · ")
    expect(tab.locator("#meter")).to_contain_text(f"{expected.usage.total_tokens} of {CONTEXT:,} tokens")
    text = tab.locator("#thread").inner_text()
    tab.reload()
    expect(tab.locator(".bubble")).to_have_text("Hello there")
    assert tab.locator("#thread").inner_text() == text
    say(tab, "And then?")
    messages = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": expected.text}]
    messages.append({"role": "user", "content": "And then?"})
    again = alone.complete(messages, temperature=0, max_new_tokens=12)
    assert answers(tab)[1]["text"] == again.text


def test_it_streams_and_stops(tab):
    endless = json.dumps({"wishes": {"temperature": 0, "ignore_eos": True}})
    tab.evaluate("(settings) => { localStorage['lathe.settings'] = settings; }", endless)
    tab.reload()
    expect(tab.locator("#empty h1")).to_contain_text("Talk with")
    tab.evaluate("""() => {
        window.sizes = [];
        const watch = new MutationObserver(() => {
          const text = document.querySelector(".answer > .text")?.textContent;
          if (text) sizes.push(text.length);
          if (new Set(sizes).size < 3) return;
          watch.disconnect();
          document.getElementById("stop").click();
        });
        watch.observe(document.getElementById("thread"), { subtree: true, childList: true });
    }""")
    tab.click("#tune")
    tab.fill("#w-max_tokens", "30000")
    tab.click("#done")
    assert json.loads(tab.evaluate("localStorage['lathe.settings']"))["wishes"]["max_tokens"] == 30000
    tab.fill("#say", "Tell me all")
    tab.press("#say", "Enter")
    expect(tab.locator(".stats")).to_contain_text("stopped")
    [answer] = answers(tab)
    assert answer["state"] == "stopped" and answer["text"]
    assert len(set(tab.evaluate("sizes"))) >= 3
    tab.get_by_role("button", name="Go on from here").click()
    expect(tab.locator(".stats")).not_to_contain_text("stopped")
    tab.keyboard.press("Escape")
    expect(tab.locator(".stats")).to_contain_text("stopped")
    [further] = answers(tab)
    assert further["text"].startswith(answer["text"])
    assert further["usage"]["completion_tokens"] >= answer["usage"]["completion_tokens"]


def test_questions_and_answers_branch(tab):
    say(tab, "One")
    say(tab, "Two")
    tab.get_by_role("button", name="Answer again").first.click()
    finished(tab)
    expect(tab.locator(".turn")).to_have_count(1)  # what followed the other answer is not shown with this one
    expect(tab.locator(".answer .versions")).to_contain_text("2/2")
    tab.get_by_role("button", name="Previous answer").click()
    expect(tab.locator(".bubble")).to_have_text(["One", "Two"])
    tab.locator(".question").first.hover()
    tab.get_by_role("button", name="Edit and ask again").first.click()
    tab.get_by_label("Edit question").fill("Eins")
    tab.get_by_role("button", name="Ask again", exact=True).click()
    finished(tab)
    expect(tab.locator(".bubble")).to_have_text(["Eins"])
    tab.get_by_role("button", name="Previous wording").click()
    expect(tab.locator(".bubble")).to_have_text(["One", "Two"])


def test_the_key_is_asked_for_and_kept(stranger):
    stranger.fill("#key", "wrong")
    stranger.keyboard.press("Enter")
    expect(stranger.locator("#wrong")).to_be_visible()
    stranger.fill("#key", KEY)
    stranger.keyboard.press("Enter")
    expect(stranger.locator("#locked")).to_be_hidden()
    say(stranger, "Hello there")
    stranger.reload()
    expect(stranger.locator(".turn")).to_have_count(1)
    say(stranger, "Hello again")


def test_what_is_sent_before_the_server_has_named_its_models_is_asked_then(tab):
    held = []
    tab.route("**/v1/models", lambda route: held.append(route))
    tab.reload()
    tab.fill("#say", "Hello there")
    tab.press("#say", "Enter")
    expect(tab.locator("#say")).to_have_value("Hello there")
    expect(tab.locator(".turn")).to_have_count(0)
    held[0].continue_()
    expect(tab.locator(".turn")).to_have_count(1)
    finished(tab)
    expect(tab.locator("#say")).to_have_value("")


def test_two_answer_side_by_side(tab):
    tab.click("#beside")
    say(tab, "Hello there")
    expect(tab.locator(".lanes.two .answer")).to_have_count(2)
    left, right = answers(tab)
    assert (left["model"], right["model"]) == ("base", "tuned")
    assert left["text"] != right["text"] and left["state"] == right["state"] == "done"
    boxes = [answer.bounding_box() for answer in tab.locator(".answer").all()]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_conversations_are_found_renamed_deleted_and_travel(tab, tmp_path):
    say(tab, "About lathes")
    tab.keyboard.press("Control+Shift+O")
    say(tab, "About mills")
    tab.keyboard.press("Control+k")
    tab.keyboard.type("lathes")
    expect(tab.locator(".talk")).to_have_count(1)
    tab.locator(".talk .name").click()
    expect(tab.locator(".bubble")).to_have_text("About lathes")
    tab.fill("#search", "")
    with tab.expect_download() as download:
        tab.click("#export")
    download.value.save_as(tmp_path / "all.json")
    tab.get_by_role("button", name="Rename").first.click(force=True)
    tab.get_by_label("Name of the conversation").fill("Mills")
    tab.keyboard.press("Enter")
    expect(tab.locator(".talk .name").first).to_have_text("Mills")
    tab.get_by_role("button", name="Delete").first.click(force=True)
    expect(tab.locator(".talk")).to_have_count(1)
    tab.get_by_role("button", name="Undo").click()
    expect(tab.locator(".talk")).to_have_count(2)
    tab.set_input_files("#file", tmp_path / "all.json")
    expect(tab.locator(".talk")).to_have_count(4)
    tab.set_input_files("#file", {"name": "a.json", "mimeType": "application/json", "buffer": b"{}"})
    expect(tab.locator(".toast")).to_contain_text("not exported from this page")


def test_words_stay_words(tab):
    say(tab, HOSTILE)
    expect(tab.locator(".bubble")).to_have_text(HOSTILE)
    [talk] = kept(tab)
    for answer in (answer for turn in talk["turns"].values() for lane in turn["answers"] for answer in lane):
        calls = [{"id": HOSTILE, "name": HOSTILE, "arguments": HOSTILE}]
        answer |= {
            "text": f"{HOSTILE}\n\n```{HOSTILE}\n{HOSTILE}\n```",
            "reasoning": HOSTILE,
            "model": HOSTILE,
            "calls": calls,
        }
    talk |= {"title": f"Imported {HOSTILE}", "system": HOSTILE}
    packed = {"format": "lathe-conversations", "version": 1, "conversations": [talk]}
    name = {"name": "a.json", "mimeType": "application/json", "buffer": json.dumps(packed).encode()}
    tab.set_input_files("#file", name)
    tab.locator(".talk", has_text="Imported").locator(".name").click()
    expect(tab.locator(".answer > .text > p")).to_have_text(HOSTILE)
    assert tab.locator("main img, main script, main [onerror]").count() == 0


def test_a_phone_shows_one_column(phone):
    phone.fill("#say", "x" * 200 + "\n| a | b |\n|---|---|\n" + "y" * 200)
    phone.click("#send")
    finished(phone)
    widths = "[document.documentElement.scrollWidth, document.getElementById('scroll').scrollWidth]"
    assert max(phone.evaluate(widths)) <= 360
    phone.click("#beside")
    phone.get_by_role("button", name="Answer again").click()
    finished(phone)
    assert max(phone.evaluate(widths)) <= 360
    small = """[...document.querySelectorAll("button")].filter((one) => one.offsetWidth)
        .map((one) => [one.getAttribute("aria-label") || one.textContent, Math.min(one.offsetWidth, one.offsetHeight)])
        .filter(([, size]) => size < 34)"""
    assert phone.evaluate(small) == []
    phone.click("#unfold")
    expect(phone.locator("#search")).to_be_in_viewport()


def test_it_is_dark_when_the_system_is_or_when_told(tab):
    ground = "getComputedStyle(document.body).backgroundColor"
    tab.emulate_media(color_scheme="dark")
    assert tab.evaluate(ground) == "rgb(20, 21, 23)"
    tab.click("#theme")  # light
    assert tab.evaluate(ground) == "rgb(251, 251, 250)"
    tab.reload()
    assert tab.evaluate(ground) == "rgb(251, 251, 250)"


def test_everything_that_can_be_used_has_a_name(tab):
    say(tab, "Hello there")
    tab.click("#tune")
    unnamed = """[...document.querySelectorAll("button, input:not([type=file]), select, textarea")].filter((one) =>
        !one.ariaLabel && !one.textContent.trim() && !one.labels?.length).map((one) => one.outerHTML)"""
    assert tab.evaluate(unnamed) == []
    tab.keyboard.press("Escape")
    expect(tab.locator("#settings")).to_be_hidden()
