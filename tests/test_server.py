"""The server's core: what an Ask gets is what the engine says alone; the process begins, drains and ends as told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import serving, tiny

from lathe.actions.occupant import load
from lathe.actions.serve import Options
from lathe.engine.engine import BESIDE
from lathe.errors import LatheError, PromptError, TokenizerError, UsageError
from lathe.llm import LLM
from lathe.model.layout import Layout
from lathe.server import served
from lathe.server.ask import Ask, Begun, Called, Ended, Event, Form, Reading, Said, Tool, ToolChoice, Word
from lathe.server.desk import Desk
from lathe.server.line import Line
from lathe.server.refusals import Broken, Full, Overflow, Unknown, Unready
from lathe.server.room import Loaded, occupy

HELLO = [{"role": "user", "content": "Hello there"}]
GREEDY = {"temperature": 0.0, "max_new_tokens": 24}


@contextmanager
def desk_of(model: Path, change: Callable[[Loaded], None] = lambda _: None, **options: Any) -> Iterator[Any]:
    """A function that runs a coroutine function on a desk, whose engine is in a thread; `change` meets it first."""
    mine, theirs = Pipe()

    def loading() -> Loaded:
        loaded = load(Options(str(model), device="cpu", **options), model)
        change(loaded)
        return loaded

    thread = threading.Thread(target=occupy, args=(theirs, loading), daemon=True)
    thread.start()

    async def all_of(work: Callable[[Desk], Any]) -> Any:
        desk = Desk({"tiny": Line(mine, thread)}, options.get("max_queue", 256))
        desk.open()
        try:
            await desk.loaded()
            return await work(desk)
        finally:
            await desk.close()

    yield lambda work: asyncio.run(all_of(work))


async def events(desk: Desk, ask: Ask) -> list[Event]:
    return [event async for event in desk.answer(ask) if not isinstance(event, Reading)]


def text(events: list[Event], index: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, Said) and event.index == index)


def end(events: list[Event], index: int = 0) -> Ended:
    [ended] = [event for event in events if isinstance(event, Ended) and event.index == index]
    return ended


async def settled(desk: Desk) -> dict[str, int]:
    """What the engine says of its state when nothing is left to do."""
    served = desk.find()
    while served.state.get("running") or served.state.get("waiting") or served.state.get("held"):
        await asyncio.sleep(0.01)
    return served.state


def test_an_answer_is_what_the_model_says_alone(tiny_model: Path) -> None:
    """Whatever else is asked at the same time."""
    llm = LLM.load(tiny_model, device="cpu")
    prompts = [HELLO, "Once upon", [5, 6, 7], *([{"role": "user", "content": f"Say {n}"}] for n in range(13))]
    asks = [Ask(prompt, wishes=GREEDY, n=1 + (n == 2)) for n, prompt in enumerate(prompts)]

    async def work(desk: Desk) -> list[list[Event]]:
        return await asyncio.gather(*(events(desk, ask) for ask in asks))

    with desk_of(tiny_model) as run:
        for ask, made in zip(asks, run(work), strict=True):
            alone = llm.complete(ask.prompt, raw=isinstance(ask.prompt, str), **GREEDY)
            assert isinstance(made[0], Begun) and made[0].prompt == alone.usage.prompt_tokens
            for index in range(ask.n):
                assert text(made, index) == alone.text
                words = [w for e in made if isinstance(e, Said) and e.index == index for w in e.words]
                assert [word.id for word in words] == alone.tokens[: len(words)]
                ended = end(made, index)
                assert (ended.reason, ended.tokens) == (alone.finish_reason, alone.usage.completion_tokens)


def test_an_answer_that_a_stop_string_ends_is_not_made_any_further(tiny_model: Path) -> None:
    async def work(desk: Desk) -> tuple[list[Event], list[Event], dict[str, int]]:
        whole = await events(desk, Ask(HELLO, wishes=GREEDY))
        stop = text(whole)[3:6]
        with_stop = await events(desk, Ask(HELLO, wishes={**GREEDY, "max_new_tokens": 400}, stop=(stop,), n=2))
        return whole, with_stop, await settled(desk)

    with desk_of(tiny_model) as run:
        whole, stopped, state = run(work)
    at = text(whole).index(text(whole)[3:6])
    for index in range(2):
        assert text(stopped, index) == text(whole)[:at]
        assert (end(stopped, index).reason, end(stopped, index).stop) == ("stop", text(whole)[3:6])
    assert state["held"] == 0


def test_further_answers_take_over_what_was_read_for_the_first(tiny_model: Path) -> None:
    read: list[int] = []

    def count(loaded: Loaded) -> None:
        run = loaded.engine.runner.run
        loaded.engine.runner.run = lambda parts: (read.append(sum(len(part.tokens) for part in parts)), run(parts))[1]

    with desk_of(tiny_model, count) as run:
        made = run(lambda desk: events(desk, Ask("word " * 60, wishes={"max_new_tokens": 4, "seed": 1}, n=4)))
    prompt = made[0].prompt
    assert sum(read) < prompt + 3 * 32 + 16  # and not four times the prompt
    assert len({text(made, index) for index in range(4)}) > 1  # from seeds that differ


def test_a_client_that_goes_is_forgotten_within_a_step(tiny_model: Path) -> None:
    async def work(desk: Desk) -> dict[str, int]:
        async with aclosing(desk.answer(Ask(HELLO, wishes={**GREEDY, "max_new_tokens": 450}, n=3))) as answer:
            async for event in answer:
                if isinstance(event, Said):
                    break
        assert desk.find().held == 0
        return await settled(desk)

    with desk_of(tiny_model) as run:
        assert run(work)["held"] == 0


def test_who_has_no_memory_fails_alone(tiny_model: Path) -> None:
    def tighten(loaded: Loaded) -> None:
        run = loaded.engine.runner.run

        def tight(parts: Any) -> Any:
            if any(7 in part.sequence.tokens[:2] for part in parts):
                raise MemoryError
            return run(parts)

        loaded.engine.runner.run = tight

    made, state = _asked_at_once(tiny_model, tighten)
    assert [type(one) for one in made] == [list, list, Unready, list] and state["held"] == 0
    assert "memory" in str(made[2])


def test_an_engine_that_stumbles_goes_on(tiny_model: Path) -> None:
    """Whoever was in the step is told, and nothing of the inside; the next requests are answered."""

    def spoil(loaded: Loaded) -> None:
        run, calls = loaded.engine.runner.run, iter(range(10**6))

        def spoilt(parts: Any) -> Any:
            if next(calls) == 3:
                raise ValueError("a secret of the inside")
            return run(parts)

        loaded.engine.runner.run = spoilt

    async def work(desk: Desk) -> tuple[list[Any], list[Event]]:
        asks = [Ask([n, n], wishes=GREEDY) for n in range(5, 9)]
        made = await asyncio.gather(*(events(desk, ask) for ask in asks), return_exceptions=True)
        return made, await events(desk, asks[0])

    with desk_of(tiny_model, spoil) as run:
        made, after = run(work)
    broken = [one for one in made if isinstance(one, Broken)]  # those who had come by then
    assert broken and all(one in broken or text(one) for one in made) and text(after)
    assert not any("secret" in str(one) for one in broken)


def _asked_at_once(model: Path, change: Callable[[Loaded], None]) -> tuple[list[Any], dict[str, int]]:
    async def work(desk: Desk) -> tuple[list[Any], dict[str, int]]:
        asks = [Ask([n, n], wishes=GREEDY) for n in range(5, 9)]
        made = await asyncio.gather(*(events(desk, ask) for ask in asks), return_exceptions=True)
        return made, await settled(desk)

    with desk_of(model, change) as run:
        return run(work)


def test_what_one_request_does_wrong_is_its_own(tiny_model: Path) -> None:
    wrong = [
        (Ask(HELLO, wishes={"temperature": -1.0}), UsageError),
        (Ask([7] * 600), Overflow),
        (Ask(""), PromptError),
        (Ask([600]), PromptError),
        (Ask("a \ud800 b"), TokenizerError),
        (Ask(HELLO, model="other"), Unknown),
        (Ask(HELLO, form=Form("regex", "(a")), LatheError),
    ]

    async def work(desk: Desk) -> list[Any]:
        asked = [ask for ask, _ in wrong] + [Ask(HELLO, wishes=GREEDY)]
        return await asyncio.gather(*(events(desk, ask) for ask in asked), return_exceptions=True)

    with desk_of(tiny_model) as run:
        *errors, good = run(work)
    for error, (ask, kind) in zip(errors, wrong, strict=True):
        assert isinstance(error, kind), (ask, error)
    assert text(good)


def test_the_queue_is_bounded_and_recovers(tiny_model: Path) -> None:
    async def work(desk: Desk) -> tuple[list[Any], list[Event]]:
        long = Ask(HELLO, wishes={**GREEDY, "max_new_tokens": 30})
        made = await asyncio.gather(*(events(desk, long) for _ in range(8)), return_exceptions=True)
        return made, await events(desk, long)

    with desk_of(tiny_model, max_seqs=2, max_queue=3) as run:
        made, after = run(work)
    full = [one for one in made if isinstance(one, Full)]
    assert len(full) == 3 and all(one.after >= 1 for one in full)
    assert {text(one) for one in made if isinstance(one, list)} == {text(after)}


def test_an_answer_is_held_to_its_form(tiny_model: Path) -> None:
    ask = Ask(HELLO, wishes=GREEDY, form=Form("regex", "(yes|no)!"), n=2)
    with desk_of(tiny_model) as run:
        made = run(lambda desk: events(desk, ask))
    assert {text(made, index) for index in range(2)} <= {"yes!", "no!"}


def test_a_call_is_an_event_of_its_own(tiny_model: Path) -> None:
    at = {"type": "object", "properties": {"at": {"enum": ["sky", "sea"]}}}
    tool = Tool("look", "", {**at, "required": ["at"], "additionalProperties": False})
    wishes = {**GREEDY, "max_new_tokens": 200}
    ask = Ask(HELLO, wishes=wishes, tools=(tool,), choice=ToolChoice("required", parallel=False))
    with desk_of(tiny_model) as run:
        made = run(lambda desk: events(desk, ask))
    called = [event for event in made if isinstance(event, Called)]
    assert called[0].name == "look" and called[0].id
    assert json.loads("".join(event.arguments for event in called))["at"] in ("sky", "sea")
    assert end(made).reason == "tool_calls" and not text(made)


def test_a_long_text_is_read_in_pieces_between_the_steps_of_others(tmp_path: Path) -> None:
    model = tiny(tmp_path, max_position_embeddings=1 << 16)  # the answer meanwhile has no end
    llm, text = LLM.load(model, device="cpu"), [n * 7 % 500 + 3 for n in range(4 * BESIDE)]
    sizes: list[int] = []

    def watched(loaded: Loaded) -> None:
        loaded.engine.decoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))

    async def work(desk: Desk) -> tuple[list[float], list[Word], list[int]]:
        async with aclosing(desk.answer(Ask(HELLO, ignore_eos=True))) as answer:
            async for event in answer:
                if isinstance(event, Said):
                    break
            sizes.clear()
            (_, embedding), words = await asyncio.gather(desk.embed(text), desk.judge(text, top=2))
            return embedding, words, list(sizes)

    with desk_of(model, watched) as run:
        embedding, words, sizes = run(work)
    hidden = llm.decoder(torch.tensor(text), Layout.of([len(text)]))
    assert torch.allclose(torch.tensor(embedding), torch.nn.functional.normalize(hidden.mean(0), dim=0), atol=1e-5)
    alone = llm.engine.judge(text, top=2)
    assert [word.id for word in words] == text
    for word, token in zip(words[1:], alone, strict=True):
        assert word.logprob == pytest.approx(token.logprob, abs=1e-4)
        assert [id for id, _, _ in word.top] == [id for id, _ in token.top]
    assert max(sizes) <= 1 + BESIDE and sum(size % BESIDE == 1 for size in sizes) >= 4


def test_texts_are_judged_together_as_in_process_and_their_beginning_is_read_once(tmp_path: Path) -> None:
    model = tiny(tmp_path, max_position_embeddings=2048)
    llm, sizes = LLM.load(model, device="cpu"), list[int]()
    begun = [n * 7 % 500 + 3 for n in range(600)]
    texts = [[*begun, *(n * k % 500 + 3 for n in range(10 + k))] for k in range(8)]

    def watched(loaded: Loaded) -> None:
        loaded.engine.decoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))

    async def work(desk: Desk) -> tuple[list[list[Word]], list[Word], list[Event]]:
        words = await asyncio.gather(*(desk.judge(text, top=2) for text in texts))
        again, _ = await asyncio.gather(desk.judge(texts[3]), desk.judge(texts[3], salt="mine"))
        return words, again, await events(desk, Ask(texts[3], wishes=GREEDY))

    with desk_of(model, watched) as run:
        judged, again, made = run(work)
    for text, words, right in zip(
        texts, judged, llm.engine.judge_all([(text, 1) for text in texts], top=2), strict=True
    ):
        assert [word.id for word in words] == text
        assert [word.logprob for word in words[1:]] == pytest.approx([token.logprob for token in right], abs=1e-5)
        for word, token in zip(words[1:], right, strict=True):
            assert [id for id, _, _ in word.top] == [id for id, _ in token.top]
            assert [value for _, _, value in word.top] == pytest.approx([value for _, value in token.top], abs=1e-5)
    assert [word.logprob for word in again[1:]] == pytest.approx([word.logprob for word in judged[3][1:]], abs=1e-5)
    read = [len(text) - 1 for text in texts]
    assert sum(read) + read[3] > 5000  # so many tokens they are, and one of them is read whole for another salt
    assert sum(sizes) < len(begun) + 8 * 48 + 32 + read[3] + 32 + 24
    assert made[0].cached >= 608


def test_texts_are_embedded_together_as_alone(tmp_path: Path) -> None:
    model = tiny(tmp_path, max_position_embeddings=2048)
    llm, sizes = LLM.load(model, device="cpu"), list[int]()
    texts = [[n * (k + 3) % 500 + 3 for n in range(1 + 13 * k)] for k in range(24)]
    texts[-1] *= 3  # longer than a pass

    def watched(loaded: Loaded) -> None:
        loaded.engine.decoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))

    async def work(desk: Desk) -> list[tuple[int, list[float]]]:
        return await asyncio.gather(*(desk.embed(text) for text in texts))

    with desk_of(model, watched) as run:
        told = run(work)
    for text, (count, embedding) in zip(texts, told, strict=True):
        hidden = llm.decoder(torch.tensor(text), Layout.of([len(text)]))
        right = torch.nn.functional.normalize(hidden.mean(0), dim=0).tolist()
        assert count == len(text) and embedding == pytest.approx(right, abs=1e-5)
    assert sum(sizes) == sum(map(len, texts)) and len(sizes) < len(texts) / 2


def test_a_text_that_nobody_waits_for_is_not_judged(tmp_path: Path) -> None:
    model = tiny(tmp_path, max_position_embeddings=1 << 16)
    text = [n * 7 % 500 + 3 for n in range(1 << 15)]

    async def work(desk: Desk) -> tuple[dict[str, int], list[Word]]:
        judging = asyncio.create_task(desk.judge(text))
        while not desk.find().state.get("running"):
            await asyncio.sleep(0.01)
        judging.cancel()
        state = await settled(desk)
        with pytest.raises(Overflow):
            await desk.judge([5] * ((1 << 16) + 1))
        with pytest.raises(PromptError):
            await desk.judge([1 << 20])
        return state, await desk.judge(text[:9])

    with desk_of(model) as run:
        state, words = run(work)
    assert state["held"] == 0 and len(words) == 9


def test_a_template_that_does_what_nobody_thought_of_ends_the_loading(tiny_model: Path, monkeypatch, capsys) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(served, "learn", broken)
    with desk_of(tiny_model) as run, pytest.raises(Broken, match="chat template cannot be read"):
        run(lambda desk: events(desk, Ask(HELLO)))
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_an_engine_that_dies_takes_the_server_with_it(tiny_model: Path) -> None:
    with serving(tiny_model) as server:
        [engine] = subprocess.run(
            ["pgrep", "-P", str(server.process.pid), "-f", "spawn_main"], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(engine), signal.SIGKILL)
        assert server.ended() == 1
        assert "Error: The engine process has ended by itself, with status -9." in server.said
