"""Many adapters in one pass against each alone on a decoder of its own: token for token."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from test_engine import VOCAB, answers, decoder_of, prompt_of, run
from test_speculate import near

from lathe.engine import DraftModel, Engine, Sampling
from lathe.errors import UsageError
from lathe.model.decoder import Decoder
from lathe.transforms import adapt, begin
from lathe.transforms.roster import Roster
from lathe.transforms.standing import Parts
from lathe.transforms.terms import Lora, Prefix, Scale

METHODS: dict[str, Callable[[Decoder], Parts]] = {
    "lora": lambda decoder: begin.lora(decoder, Lora(targets="all-linear")),
    "wide": lambda decoder: begin.lora(decoder, Lora(rank=3, alpha=7, targets=("q_proj", "down_proj"))),
    "dora": lambda decoder: begin.lora(decoder, Lora(dora=True, targets="all-linear", layers=(1,))),
    "own-biases": lambda decoder: begin.lora(
        decoder, Lora(own_bias=True, targets="all-linear", excluded=("kv_b_proj",))
    ),
    "head": lambda decoder: begin.lora(decoder, Lora(targets=("lm_head", "o_proj"))),
    "whole": lambda decoder: begin.lora(decoder, Lora(targets=("v_proj", "o_proj"), whole=("lm_head", "embed_tokens"))),
    "embedding": lambda decoder: begin.lora(decoder, Lora(targets=("embed_tokens",))),
    "prefix": lambda decoder: begin.prefix(decoder, Prefix(length=4, start=0)),
    "scale": lambda decoder: begin.scale(decoder, Scale(Prefix(length=3, start=1))),
}
WISH = Sampling(temperature=0, max_new_tokens=20)


def parts_of(decoder: Decoder, method: str, seed: int) -> Parts:
    """An adapter with random numbers."""
    other = copy.deepcopy(decoder)
    adapt.put(other, "x", METHODS[method](other))
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapt.own(other, "x").values():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return adapt.parts(other, "x")


def alone(kind: str, parts: Parts | None, prompt: list[int], wish: Sampling = WISH) -> list[int]:
    decoder = decoder_of(kind)
    if parts is not None:
        adapt.put(decoder, "x", parts)
    return answers(Engine(decoder), [prompt], [wish])[0]


@pytest.mark.parametrize("options", [{}, {"tokens": 160, "chunk": 9}])
@pytest.mark.parametrize("kind", ["gqa", "window", "latent", "experts", "scaled"])
def test_sixteen_requests_of_all_kinds_get_what_each_gets_alone(kind: str, options: dict[str, int]) -> None:
    methods = [m for m in METHODS if m != "scale" and (kind, m) != ("latent", "prefix")]
    if kind == "scaled":  # which goes together with no other on the same matrices
        kind, methods = "gqa", ["scale", "prefix", "scale", "embedding", "scale"]
    decoder = decoder_of(kind)
    roster = Roster(decoder)
    adapters: dict[str | None, Parts] = {}
    for seed, method in enumerate(methods):
        adapters[f"{method}-{seed}"] = parts_of(decoder_of(kind), method, seed)
        roster.put(f"{method}-{seed}", adapters[f"{method}-{seed}"])
    asked = [*adapters, None, None, *list(adapters)[::-1]][:16]
    prompts = [prompt_of(5 + 3 * i % 31, i % 3) for i in range(len(asked))]  # some alike, for different adapters
    expected = [
        alone(kind, adapters.get(name), prompt, replace(WISH, max_new_tokens=5 + i))
        for i, (name, prompt) in enumerate(zip(asked, prompts, strict=True))
    ]
    assert len({tuple(answer[:5]) for answer in expected}) > len(asked) / 2  # they do differ
    engine = Engine(decoder, adapters=roster, **options)
    for _ in range(2):  # and again, with what is known by then
        sequences = [
            engine.submit(prompt, replace(WISH, max_new_tokens=5 + i), adapter=name)
            for i, (name, prompt) in enumerate(zip(asked, prompts, strict=True))
        ]
        run(engine)
        assert [[token.id for token in sequence.made] for sequence in sequences] == expected
        assert engine.pages.free == len(engine.pages.holders)
    assert sum(sequence.reused for sequence in sequences) > 0
    assert answers(engine, [prompt_of(9)], [WISH]) == [alone(kind, None, prompt_of(9))]


def test_with_guesses_too() -> None:
    decoder = decoder_of("gqa")
    draft, roster = near(decoder), Roster(decoder)
    adapters: dict[str | None, Parts] = {m: parts_of(decoder_of("gqa"), m, 3) for m in ("lora", "dora", "head")}
    for name, parts in adapters.items():
        assert name
        roster.put(name, parts)
    engine = Engine(decoder, adapters=roster, drafter=DraftModel(draft, 3))
    asked = [*adapters, None]
    sequences = [engine.submit(prompt_of(12), WISH, adapter=name) for name in asked]
    run(engine)
    for name, sequence in zip(asked, sequences, strict=True):
        assert [token.id for token in sequence.made] == alone("gqa", adapters.get(name), prompt_of(12))
    assert sequences[-1].accepted > 0


def test_beside_adapters_that_count_for_all() -> None:
    """A request that names none gets what is active; one that names one gets that alone."""
    decoder = decoder_of("gqa")
    a, b = (parts_of(decoder, "lora", seed) for seed in (1, 2))
    adapt.put(decoder, "a", a)
    roster = Roster(decoder)
    roster.put("b", b)
    assert adapt.active(decoder) == ["a"] and roster.names == ["a", "b"]
    engine = Engine(decoder, adapters=roster)
    sequences = [engine.submit(prompt_of(9), WISH, adapter=name) for name in (None, "a", "b")]
    run(engine)
    expected = [alone("gqa", parts, prompt_of(9)) for parts in (a, a, b)]
    assert [[token.id for token in sequence.made] for sequence in sequences] == expected
    assert engine.logits(prompt_of(9)).argmax(-1)[-1] == expected[0][0]


def test_adapters_come_and_go_while_others_answer() -> None:
    decoder = decoder_of("gqa")
    engine = Engine(decoder, adapters=(roster := Roster(decoder)))
    a, b, other = (parts_of(decoder, "lora", seed) for seed in (1, 2, 3))
    with pytest.raises(UsageError, match="no adapter called"):
        engine.submit(prompt_of(9), adapter="a")
    plain = engine.submit(prompt_of(30), replace(WISH, max_new_tokens=40))
    engine.step()
    roster.put("a", a)
    first = engine.submit(prompt_of(30), WISH, adapter="a")
    engine.step()
    roster.put("b", b)
    second = engine.submit(prompt_of(30), WISH, adapter="b")
    engine.step()
    with pytest.raises(UsageError, match=r"in use, by 1 request\."):
        engine.take_off("a")
    engine.cancel(first)
    engine.take_off("a")
    engine.step()
    with pytest.raises(UsageError, match=r'no adapter called "a".*There are b|There is b'):
        engine.submit(prompt_of(9), adapter="a")
    roster.put("a", other)  # another one of the same name does not get what was read for the first
    third = engine.submit(prompt_of(30), WISH, adapter="a")
    run(engine)
    assert third.reused == 0
    for parts, sequence in ((None, plain), (b, second), (other, third)):
        wish = sequence.chooser.sampling
        assert [token.id for token in sequence.made] == alone("gqa", parts, prompt_of(30), wish)
    engine.take_off("a")
    engine.take_off("b")
    assert not list(adapt.adapted(decoder))
    with pytest.raises(UsageError, match="There is none"):
        engine.take_off("b")
    with pytest.raises(UsageError, match="There is none"):
        Engine(decoder).submit(prompt_of(3), adapter="a")


def test_what_does_not_go_on_leaves_nothing() -> None:
    decoder = decoder_of("gqa")
    roster = Roster(decoder)
    roster.put("a", parts_of(decoder_of("gqa"), "wide", 1))
    before = {name: type(module) for name, module in decoder.named_modules()}
    with pytest.raises(UsageError, match="another kind"):
        roster.put("b", parts_of(decoder_of("gqa"), "scale", 1))
    with pytest.raises(UsageError, match="already"):
        roster.put("a", parts_of(decoder_of("gqa"), "wide", 1))
    assert roster.names == ["a"] == adapt.names(decoder)
    assert {name: type(module) for name, module in decoder.named_modules()} == before


def test_a_broken_adapter_spoils_no_other_answer() -> None:
    decoder = decoder_of("gqa")
    roster, parts = Roster(decoder), parts_of(decoder, "lora", 1)
    for held in parts.values():
        held[0].b[0, 0] = float("nan")
    with pytest.raises(UsageError, match=r'"bad" has numbers that are not finite'):
        roster.put("bad", parts)
    assert roster.names == []
    huge = parts_of(decoder, "lora", 1)
    for held in huge.values():
        held[0].a.fill_(3e38)
    roster.put("huge", huge)
    roster.put("good", good := parts_of(decoder, "lora", 2))
    engine = Engine(decoder, adapters=roster)
    sequences = [engine.submit(prompt_of(9), WISH, adapter=name) for name in ("huge", "good", None)]
    run(engine)
    made = [[token.id for token in sequence.made] for sequence in sequences]
    assert made[1:] == [alone("gqa", good, prompt_of(9)), alone("gqa", None, prompt_of(9))]
    assert all(0 <= token < VOCAB for token in made[0])


def test_adapters_of_one_kind_share_a_pass() -> None:
    decoder = decoder_of("gqa")
    roster, names = Roster(decoder), ["a", "b", "c", "d"]
    for seed, name in enumerate(names):
        roster.put(name, parts_of(decoder, "lora", seed))
    engine = Engine(decoder, adapters=roster)
    for name in names:
        engine.submit(prompt_of(9), WISH, adapter=name)

    @contextmanager
    def counted(rows: list[tuple[str | None, int]]):  # type: ignore[no-untyped-def]
        passes.append(rows)
        with Roster.over(roster, rows):
            yield

    passes: list[list[tuple[str | None, int]]] = []
    roster.over = counted  # type: ignore[method-assign,assignment]
    engine.step()
    assert passes == [[(name, 9) for name in names], [(name, 1) for name in names]]  # the decoder, and its head
