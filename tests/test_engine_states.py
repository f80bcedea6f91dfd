"""Any history of an engine: nothing is lost or lent twice, and every answer is what its request gets alone."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from test_engine import CONTEXT, answers, decoder_of, prompt_of
from test_engine_adapters import parts_of
from test_speculate import Wrong, near

from lathe.engine import DraftModel, Engine, Lookup, Sampling, Sequence
from lathe.engine.embed import Embedded
from lathe.engine.judge import Text
from lathe.errors import UsageError
from lathe.model.layout import Layout
from lathe.transforms import adapt
from lathe.transforms.roster import Roster
from lathe.transforms.standing import Parts

NAMES = ("a", "b", "apart")
METHODS = {"a": "lora", "b": "dora", "apart": "lora"}


@functools.cache
def numbers(kind: str, name: str, version: int) -> Parts:
    return parts_of(decoder_of(kind), METHODS[name], 10 * version + NAMES.index(name))


@functools.cache
def alone(
    kind: str, prompt: tuple[int, ...], wish: Sampling, adapter: tuple[str, int] | None, kv: torch.dtype | None
) -> list[int]:
    decoder = decoder_of(kind)
    if adapter is not None:
        adapt.put(decoder, "x", numbers(kind, *adapter))
    return answers(Engine(decoder, kv=kv), [list(prompt)], [wish])[0]


@functools.cache
def judged_alone(kind: str, text: tuple[int, ...], adapter: tuple[str, int] | None) -> list[float]:
    decoder = decoder_of(kind)
    if adapter is not None:
        adapt.put(decoder, "x", numbers(kind, *adapter))
    return Engine(decoder).score(text)


@functools.cache
def embedded_alone(kind: str, text: tuple[int, ...], adapter: tuple[str, int] | None) -> list[float]:
    decoder = decoder_of(kind)
    if adapter is not None:
        adapt.put(decoder, "x", numbers(kind, *adapter))
    with torch.no_grad():
        mean = decoder(torch.tensor(text), Layout.of([len(text)])).mean(0)
    return (mean / mean.norm()).tolist()


class Apart(Roster):
    """One adapter is as those that need passes of their own."""

    def _notice(self) -> None:
        super()._notice()
        self.apart |= {"apart"} & set(self.keys)


class History(RuleBasedStateMachine):
    kind: str
    kv: torch.dtype | None = None

    @initialize(
        tokens=st.none() | st.integers(CONTEXT // 2, 3 * CONTEXT),
        chunk=st.integers(1, 40),
        seats=st.integers(1, 6),
        guesser=st.sampled_from([None, None, "near", "wrong", "lookup"]),
        shares=st.booleans(),
    )
    def begin(self, tokens: int | None, chunk: int, seats: int, guesser: str | None, shares: bool) -> None:
        decoder = decoder_of(self.kind)
        guessers = {
            "near": lambda: DraftModel(near(decoder), 3, chunk=9),
            "wrong": lambda: Wrong(2, 3),
            "lookup": lambda: Lookup(4),
        }
        draft = guessers[guesser]() if guesser else None
        self.roster, self.versions = Apart(decoder), dict[str, int]()
        self.engine: Any = Engine(
            decoder, tokens=tokens, chunk=chunk, seats=seats, drafter=draft, adapters=self.roster, kv=self.kv
        )
        self.engine.pages.shares = shares
        self.load("a", 0)
        self.asked: list[tuple[Sequence, tuple[int, ...], Sampling, tuple[str, int] | None]] = []
        self.texts: list[tuple[Text | Embedded, tuple[str, int] | None]] = []

    def _submit(self, prompt: list[int], wish: Sampling, adapter: str | None, **told: Any) -> None:
        if len(prompt) >= self.engine.context:
            return
        room = self.engine.context - len(prompt)  # a pool may be smaller than a context
        wish = replace(wish, max_new_tokens=min(wish.max_new_tokens or room, room))
        version = None if adapter is None else (adapter, self.versions[adapter])
        sequence = self.engine.submit(prompt, wish, adapter=adapter, **told)
        self.asked.append((sequence, tuple(prompt), wish, version))

    @rule(
        data=st.data(),
        lengths=st.lists(st.sampled_from([1, 15, 16, 17, 33, 34, 45]), min_size=1, max_size=5),
        seed=st.integers(0, 1),
        n=st.integers(1, 25),
        salt=st.sampled_from(["", "", "mine"]),
        priority=st.integers(-1, 1),
        sampled=st.none() | st.integers(0, 3),
    )
    def submit(
        self, data: st.DataObject, lengths: list[int], seed: int, n: int, salt: str, priority: int, sampled: int | None
    ) -> None:
        """Several whose prompts begin alike, for one adapter or another."""
        wish = Sampling(temperature=0, max_new_tokens=n)
        if sampled is not None and self.engine.drafter is None:  # a draft draws from the dice, too
            wish = Sampling(seed=sampled, max_new_tokens=n, repetition_penalty=1.1)
        for length in lengths:
            adapter = data.draw(st.sampled_from([None, *self.versions]))
            self._submit(prompt_of(length, seed), wish, adapter, salt=salt, priority=priority)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), n=st.integers(1, 4), more=st.integers(0, 3))
    def fork(self, data: st.DataObject, n: int, more: int) -> None:
        """Several go on from where one is, or has ended."""
        root, _, _, version = data.draw(st.sampled_from(self.asked))
        if version is None or self.versions.get(version[0]) == version[1]:
            for i in range(n):
                wish = Sampling(temperature=0, max_new_tokens=5 + i)
                self._submit([*root.tokens, *prompt_of(more, i)], wish, version and version[0])

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.engine.cancel(data.draw(st.sampled_from(self.asked))[0])

    @rule(times=st.integers(1, 20))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.engine.step()

    @rule(name=st.sampled_from(NAMES), version=st.integers(0, 1))
    def load(self, name: str, version: int) -> None:
        if name not in self.versions:
            self.roster.put(name, numbers(self.kind, name, version))
            self.versions[name] = version

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.versions)))
        used = any(
            version and version[0] == name and not sequence.finish
            for sequence, *_, version in (*self.asked, *self.texts)
        )
        if used:
            with pytest.raises(UsageError, match="in use"):
                self.engine.take_off(name)
        else:
            self.engine.take_off(name)
            del self.versions[name]

    @rule()
    def forget(self) -> None:
        self.engine.pages.forget()

    @rule(length=st.integers(1, 60), seed=st.integers(0, 2))
    def score(self, length: int, seed: int) -> None:
        text = prompt_of(length, seed)
        scores = self.engine.score(text)
        if self.kv is None:  # else they are made of rounded keys, unless others run
            assert scores == pytest.approx(Engine(decoder_of(self.kind)).score(text), abs=1e-4)

    @rule(
        data=st.data(),
        lengths=st.lists(st.integers(1, 45), min_size=1, max_size=3),
        seed=st.integers(0, 1),
        first=st.integers(1, 40),
    )
    def read(self, data: st.DataObject, lengths: list[int], seed: int, first: int) -> None:
        """Texts are judged beside the others."""
        for length in lengths:
            name, top = data.draw(st.sampled_from([None, *self.versions])), data.draw(st.integers(0, 2))
            version = None if name is None else (name, self.versions[name])
            self.texts.append((self.engine.read(prompt_of(length, seed), first, top, adapter=name), version))

    @rule(data=st.data(), length=st.integers(1, 45), seed=st.integers(0, 1), priority=st.integers(-1, 1))
    def embed(self, data: st.DataObject, length: int, seed: int, priority: int) -> None:
        """So are texts embedded."""
        name = data.draw(st.sampled_from([None, *self.versions]))
        version = None if name is None else (name, self.versions[name])
        self.texts.append((self.engine.embedding(prompt_of(length, seed), adapter=name, priority=priority), version))

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.engine.cancel(data.draw(st.sampled_from(self.texts))[0])

    @invariant()
    def nothing_is_lost(self) -> None:
        pages, scheduler = self.engine.pages, self.engine.scheduler
        lent = [page for sequence, *_ in (*self.asked, *self.texts) for page in sequence.lease.pages]
        assert set(pages.notes) <= set(pages.known)
        assert [lent.count(page) for page in range(len(pages.holders))] == pages.holders.tolist()
        held = set(lent)
        known = set(pages.names) - held
        blank = set(range(len(pages.holders))) - held - known
        assert len(held) + len(known) + len(blank) == len(pages.holders)
        assert pages.free == len(known) + len(blank)
        assert {pages.known[name]: name for name in pages.known} == pages.names and pages.drafted <= set(pages.names)
        assert all(pages.used[page] > 0 for page in known) and all(pages.used[page] == 0 for page in blank)
        if not pages.shares:  # then who holds a page with others holds only what all of them read
            for sequence, *_ in (*self.asked, *self.texts):
                read = sequence.cached // pages.size
                assert all(lent.count(page) == 1 for page in sequence.lease.pages[read:])
        assert len(scheduler.running) <= scheduler.seats
        for sequence, *_ in self.asked:
            assert 0 <= sequence.cached <= len(sequence.tokens) <= sequence.extent
            assert 0 <= sequence.reused <= max(sequence.prompt - 1, 0)
            if sequence.finish and sequence not in (*scheduler.running, *scheduler.waiting):
                assert not sequence.lease.pages

    @invariant()
    def every_answer_is_its_own(self) -> None:
        for sequence, prompt, wish, version in self.asked:
            expected = alone(self.kind, prompt, wish, version, self.kv)
            assert [token.id for token in sequence.made] == expected[: len(sequence.made)]

    def teardown(self) -> None:
        while self.engine.busy:
            self.engine.step()
        self.engine.step()  # what was cancelled last is swept
        for sequence, prompt, wish, version in self.asked:
            if sequence.finish != "cancelled":
                assert [token.id for token in sequence.made] == alone(self.kind, prompt, wish, version, self.kv)
        for text, version in self.texts:
            if isinstance(text, Embedded):
                if text.finish != "cancelled" and self.kv is None:
                    right = embedded_alone(self.kind, tuple(text.tokens), version)
                    assert text.told == pytest.approx(right, abs=1e-5)
            elif text.finish != "cancelled":
                right = judged_alone(self.kind, tuple(text.whole), version)[text.first - 1 :]
                assert [token.id for token in text.judged] == text.whole[text.first :]
                assert all(len(token.top) == text.top for token in text.judged)
                if self.kv is None:  # else they are made of rounded keys
                    assert [token.logprob for token in text.judged] == pytest.approx(right, abs=1e-4)
        self.nothing_is_lost()
        assert self.engine.pages.free == len(self.engine.pages.holders)


@pytest.mark.parametrize(("kind", "count"), [("gqa", 12), ("window", 4), ("latent", 4), ("experts", 3)])
def test_any_history(kind: str, count: int) -> None:
    _check(type("Of" + kind, (History,), {"kind": kind}), count)


@pytest.mark.parametrize("kind", ["gqa", "latent"])
def test_any_history_of_keys_in_8_bits(kind: str) -> None:
    _check(type("Of" + kind, (History,), {"kind": kind, "kv": torch.int8}), 4)


def _check(machine: type[RuleBasedStateMachine], count: int) -> None:
    wanted = settings(
        max_examples=count, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=wanted)
