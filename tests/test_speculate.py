"""Speculative decoding against the model alone: token for token where it is greedy, else in distribution."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import CONTEXT, SPECS, VOCAB, WIDTH, answers, assert_conserved, decoder_of, prompt_of, run
from torch import Tensor

from lathe.engine import DraftModel, Engine, Sampling
from lathe.engine.choosing import chances
from lathe.engine.lookup import PATIENCE, ROWS, Lookup, Memory
from lathe.engine.scheduler import NOTHING, Draft, Sequence
from lathe.errors import LatheError, UsageError
from lathe.model import spec as s
from lathe.model.decoder import Decoder
from lathe.model.spec import CacheShape


def near(decoder: Decoder, noise: float = 0.02, seed: int = 5) -> Decoder:
    """A decoder that mostly, but not always, says the same."""
    other = Decoder(decoder.spec)
    generator = torch.Generator().manual_seed(seed)
    for mine, theirs in zip(other.parameters(), decoder.parameters(), strict=True):
        mine.data = theirs + noise * torch.randn(theirs.shape, generator=generator)
    return other.requires_grad_(False)


def other_shape(vocab: int = VOCAB, context: int = CONTEXT) -> Decoder:
    """One layer, half as wide, with its own heads and channels."""
    mixer = s.Attention(heads=2, kv_heads=1, channels=12, scale=0.3, rope=s.Rope(500.0, 12))
    decoder = Decoder(
        s.Spec(vocab, WIDTH // 2, (s.Layer(mixer, s.Gated(20), s.RMSNorm(1e-6)),), s.RMSNorm(1e-6), context)
    )
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.4)
    return decoder.requires_grad_(False)


class Wrong:
    """A drafter without a model, that guesses a token nobody would say."""

    shapes: tuple[CacheShape, ...] = ()

    def __init__(self, count: int, token: int) -> None:
        self.count, self.token = count, token

    def attach(self, *_: object) -> None:
        pass

    def propose(self, sequences: list[Sequence]) -> list[Draft]:
        room = [min(self.count, s.extent - len(s.tokens) - 1) for s in sequences]
        return [Draft([self.token] * n) if n > 0 else NOTHING for n in room]


# ---- greedy: the same tokens -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("kind", ["itself", "near", "other shape"])
def test_greedy_is_greedy(name: str, kind: str) -> None:
    decoder = decoder_of(name)
    draft = {"itself": lambda: decoder, "near": lambda: near(decoder), "other shape": other_shape}[kind]()
    prompts = [prompt_of(length, seed=length) for length in (1, 2, 5, 17, 33, 40)]
    wishes = [Sampling(temperature=0, max_new_tokens=n) for n in (9, 50, 1, 2, 14, 55)]
    wishes[1] = replace(wishes[1], repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.1)
    expected = answers(Engine(decoder), prompts, wishes)
    ways = [(1, {}), (3, {"chunk": 7}), (4, {"tokens": CONTEXT}), (60, {"seats": 2})]
    for count, options in ways if kind == "near" else ways[1:3]:
        engine = Engine(decoder, drafter=DraftModel(draft, count, chunk=16), **options)
        sequences = [engine.submit(prompt, wish) for prompt, wish in zip(prompts, wishes, strict=True)]
        run(engine)
        assert [[token.id for token in sequence.made] for sequence in sequences] == expected
        assert engine.pages.free == len(engine.pages.holders)
        if kind == "itself":
            assert all(sequence.accepted == sequence.proposed for sequence in sequences)
        if kind == "near":
            assert 0 < sum(x.accepted for x in sequences) < sum(x.proposed for x in sequences)


def test_a_draft_saves_passes() -> None:
    decoder = decoder_of("gqa")
    passes = Counter[str]()
    decoder.model.register_forward_hook(lambda *_: passes.update(["any"]))
    handle = decoder.lm_head.register_forward_hook(lambda *_: passes.update(["target"]))
    engine = Engine(decoder, drafter=DraftModel(near(decoder, 0.0), 4))
    [answer] = answers(engine, [prompt_of(9)], [Sampling(temperature=0, max_new_tokens=51)])
    handle.remove()
    assert len(answer) == 51 and passes["target"] == 1 + 50 // 5  # the first alone, then five at a time


def test_an_answer_ends_where_it_would_without_a_draft() -> None:
    decoder = decoder_of("gqa")
    [greedy] = answers(Engine(decoder), [prompt_of(5)], [Sampling(temperature=0, max_new_tokens=30)])
    for at in range(1, 20):
        engine = Engine(decoder, drafter=DraftModel(decoder, 6))
        stop = engine.submit(prompt_of(5), Sampling(temperature=0), stops=(greedy[at],))
        length = engine.submit(prompt_of(5), Sampling(temperature=0, max_new_tokens=at))
        full = engine.submit(prompt_of(CONTEXT - at), Sampling(temperature=0))
        run(engine)
        assert (stop.finish, [t.id for t in stop.made]) == ("stop", greedy[: greedy.index(greedy[at]) + 1])
        assert (length.finish, [t.id for t in length.made]) == ("length", greedy[:at])
        assert (full.finish, len(full.tokens), len(full.made)) == ("length", CONTEXT, at)
        assert engine.pages.free == len(engine.pages.holders)


def test_log_probabilities_are_the_models_own() -> None:
    decoder, wish = decoder_of("gqa"), Sampling(temperature=0, max_new_tokens=30, logprobs=2)
    plain, drafted = Engine(decoder), Engine(decoder, drafter=DraftModel(near(decoder), 3))
    a, b = plain.submit(prompt_of(9), wish), drafted.submit(prompt_of(9), wish)
    run(plain)
    run(drafted)
    for mine, theirs in zip(a.made, b.made, strict=True):
        assert mine.id == theirs.id and mine.logprob == pytest.approx(theirs.logprob, abs=1e-5)
        assert [id for id, _ in mine.top] == [id for id, _ in theirs.top]


@pytest.mark.parametrize("vocab", [VOCAB - 8, VOCAB + 40])
def test_a_draft_whose_table_is_padded_otherwise(vocab: int) -> None:
    decoder = decoder_of("gqa")
    prompts = [prompt_of(length, seed=length) for length in (2, 9, 30)]
    wishes = [Sampling(temperature=0, max_new_tokens=40)] * 3
    expected = answers(Engine(decoder), prompts, wishes)
    assert answers(Engine(decoder, drafter=DraftModel(other_shape(vocab), 4)), prompts, wishes) == expected


def test_a_draft_of_shorter_context_stops_guessing() -> None:
    decoder = decoder_of("gqa")
    spec = replace(decoder.spec, learned_positions=20, context=20)
    draft = Decoder(spec)
    draft.load_state_dict({**draft.state_dict(), **decoder.state_dict()})
    torch.nn.init.zeros_(draft.model.embed_positions.weight)
    [expected] = answers(Engine(decoder), [prompt_of(5)], [Sampling(temperature=0, max_new_tokens=60)])
    engine = Engine(decoder, drafter=DraftModel(draft.requires_grad_(False), 4))
    sequence = engine.submit(prompt_of(5), Sampling(temperature=0, max_new_tokens=60))
    run(engine)
    assert [token.id for token in sequence.made] == expected
    assert 10 <= sequence.accepted <= 20


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_schedule_conserves_pages_and_answers(data: st.DataObject) -> None:
    decoder = decoder_of("gqa")
    tokens, count = data.draw(st.none() | st.integers(20, 100)), data.draw(st.integers(1, 7))
    drafter = data.draw(st.sampled_from([DraftModel(near(decoder), count, chunk=9), Wrong(count, 3)]))
    engine = Engine(decoder, tokens=tokens, chunk=data.draw(st.integers(1, 40)), seats=3, drafter=drafter)
    sequences: list[Sequence] = []
    for act in data.draw(st.lists(st.sampled_from(["submit", "step", "step", "cancel"]), max_size=25)):
        if act == "submit":
            length, n = data.draw(st.integers(1, 19)), data.draw(st.integers(1, 30))
            sequences.append(engine.submit(prompt_of(length, length), Sampling(temperature=0, max_new_tokens=n)))
        elif act == "step":
            engine.step()
        elif sequences:
            engine.cancel(data.draw(st.sampled_from(sequences)))
        assert_conserved(engine.pages, [sequence.lease for sequence in sequences])
    run(engine)
    engine.step()
    assert engine.pages.free == len(engine.pages.holders)
    for sequence in sequences:
        scores = engine.logits(sequence.tokens)
        assert [token.id for token in sequence.made] == scores.argmax(-1).tolist()[sequence.prompt - 1 : -1]


def test_a_step_that_was_interrupted_can_be_taken_again() -> None:
    decoder = decoder_of("gqa")
    draft, wishes = near(decoder), [Sampling(temperature=0, max_new_tokens=20), Sampling(seed=3, max_new_tokens=20)]
    prompts = [prompt_of(5), prompt_of(8)]
    expected = answers(Engine(decoder, drafter=DraftModel(draft, 3)), prompts, wishes)

    def interrupt(*_: object) -> None:
        handle.remove()
        raise KeyboardInterrupt

    for model in (decoder, draft):
        engine = Engine(decoder, drafter=DraftModel(draft, 3))
        sequences = [engine.submit(prompt, wish) for prompt, wish in zip(prompts, wishes, strict=True)]
        engine.step()
        engine.step()
        handle = model.lm_head.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
        run(engine)
        assert [[token.id for token in sequence.made] for sequence in sequences] == expected


# ---- sampled: the same distribution ----------------------------------------------------------------------------------
SMALL, LENGTH = 5, 3


def tiny(seed: int) -> Decoder:
    """Five tokens, so that every answer of three can be counted."""
    mixer = s.Attention(heads=2, kv_heads=1, channels=4, scale=0.5, rope=s.Rope(100.0, 4))
    decoder = Decoder(s.Spec(SMALL, 8, (s.Layer(mixer, s.Gated(8), s.RMSNorm(1e-6)),), s.RMSNorm(1e-6), 16))
    generator = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.7, generator=generator)
    return decoder.requires_grad_(False)


class Unlike:
    """A constraint: no token twice in a row."""

    complete, error = False, None

    def __init__(self) -> None:
        self.last: int | None = None

    def mask(self, after: tuple[int, ...] = ()) -> Tensor:
        return torch.arange(SMALL) != (after[-1] if after else -1 if self.last is None else self.last)

    def accept(self, token: int) -> None:
        assert token != self.last
        self.last = token


def exact(decoder: Decoder, prompt: list[int], wish: Sampling, unlike: bool = False) -> dict[tuple[int, ...], float]:
    """How probable each answer of three tokens is, from the model's scores and the rules alone."""
    engine, found = Engine(decoder), {}
    for answer in product(range(SMALL), repeat=LENGTH):
        chooser, probability = engine.submit(prompt, wish, constraint=Unlike() if unlike else None).chooser, 1.0
        for n, token in enumerate(answer):
            row = engine.logits([*prompt, *answer[:n]])[-1:]
            probability *= float(chances(row, [chooser.after(answer[:n])])[0, token])
        found[answer] = probability
    return found


WISHES = {
    "plain": Sampling(),
    "cold": Sampling(temperature=0.6),
    "hot": Sampling(temperature=1.7),
    "top-k": Sampling(top_k=3),
    "top-p": Sampling(top_p=0.8),
    "min-p": Sampling(min_p=0.25),
    "penalties": Sampling(repetition_penalty=1.5, presence_penalty=0.4, frequency_penalty=0.3),
    "bias": Sampling(logit_bias={1: 1.5, 4: -100}),
    "constraint": Sampling(top_p=0.9),
    "all": Sampling(temperature=1.3, top_k=4, top_p=0.95, min_p=0.05, repetition_penalty=1.3, frequency_penalty=0.2),
}


@pytest.mark.parametrize(
    ("name", "kind"), [*product(WISHES, ["another", "near", "certain"]), ("all", "lookup"), ("constraint", "lookup")]
)
def test_what_is_sampled_has_the_models_distribution(name: str, kind: str) -> None:
    """Pearson's chi-square over all answers; its bound leaves an exact sampler about one chance in a million to fail,
    and the seeds are fixed."""
    decoder, n, unlike = tiny(1), 2000, name == "constraint"
    prompt = [2, 0, 3, 1, 2, 4, 2, 0, 3] if kind == "lookup" else [2, 0, 3]
    wish = replace(WISHES[name], max_new_tokens=LENGTH)
    expected = exact(decoder, prompt, wish, unlike)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    drafters = {
        "another": lambda: DraftModel(tiny(2), 2),
        "near": lambda: DraftModel(near(decoder, 0.1), 2),
        "certain": lambda: Wrong(2, 1),
        "lookup": lambda: Lookup(2),
    }
    engine = Engine(decoder, drafter=drafters[kind](), chunk=2048, seats=2 if kind == "lookup" else 500)
    sequences = [
        engine.submit(prompt, replace(wish, seed=seed), constraint=Unlike() if unlike else None) for seed in range(n)
    ]
    run(engine)
    got = Counter(tuple(token.id for token in sequence.made) for sequence in sequences)
    assert all(expected[answer] > 0 for answer in got)
    assert 0 < sum(x.accepted for x in sequences) < sum(x.proposed for x in sequences)
    cells, rare = [], [0.0, 0]  # cells too rare for the statistic are one
    for answer, probability in expected.items():
        if probability * n >= 5:
            cells.append((probability * n, got[answer]))
        else:
            rare[0] += probability * n
            rare[1] += got[answer]
    if rare[0] >= 5:
        cells.append((rare[0], int(rare[1])))
    statistic = sum((seen - mean) ** 2 / mean for mean, seen in cells)
    freedom = len(cells) - 1
    z = 4.75  # the one-in-a-million quantile of the normal, by Wilson and Hilferty's cube
    assert statistic < freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3


def test_the_statistic_notices_a_wrong_distribution() -> None:
    """The same sum for answers drawn from the draft's distribution is far out."""
    expected, other = (exact(tiny(seed), [2, 0, 3], Sampling()) for seed in (1, 2))
    n, rng = 4000, random.Random(0)
    got = Counter(rng.choices(list(other), list(other.values()), k=n))
    statistic = sum((got[a] - p * n) ** 2 / (p * n) for a, p in expected.items())
    assert statistic > 10 * len(expected)


def test_a_seed_gives_the_same_tokens_in_any_company() -> None:
    decoder = decoder_of("gqa")
    draft, wish = near(decoder), Sampling(temperature=1.3, top_k=20, top_p=0.9, seed=7, max_new_tokens=40)
    [alone] = answers(Engine(decoder, drafter=DraftModel(draft, 4)), [prompt_of(9)], [wish])
    company = [Sampling(seed=1, max_new_tokens=30), wish, Sampling(temperature=0), replace(wish, seed=8)]
    prompts = [prompt_of(30, 5), prompt_of(9), prompt_of(2), prompt_of(9)]
    for options in ({}, {"chunk": 4}, {"tokens": CONTEXT}):
        together = answers(Engine(decoder, drafter=DraftModel(draft, 4), **options), prompts, company)
        assert together[1] == alone != together[3]


def test_a_draft_must_guess_something() -> None:
    for make in (lambda: DraftModel(decoder_of("gqa"), 0), lambda: Lookup(0)):
        with pytest.raises(UsageError, match=r"guess 0 tokens.*at least 1"):
            make()


# ---- looked up: the same tokens --------------------------------------------------------------------------------------
EVERYTHING = Sampling(
    temperature=0.3, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.02, presence_penalty=0.1,
    frequency_penalty=0.01, logit_bias={3: 1.0, 5: -100}, min_tokens=20, max_new_tokens=60, logprobs=2,
)  # fmt: skip


class Least:
    """A constraint: from the second token on, none less than the one before the last less three."""

    complete: bool = False
    error: LatheError | None = None

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def mask(self, after: tuple[int, ...] = ()) -> Tensor:
        said = [*self.accepted, *after]
        return torch.arange(VOCAB) >= (min(said[-2], 50) - 3 if len(said) > 1 else 0)

    def accept(self, token: int) -> None:
        assert self.mask()[token]
        self.accepted.append(token)


@pytest.mark.parametrize("name", SPECS)
def test_a_seed_gives_the_same_tokens_with_and_without_guesses_in_any_company(name: str) -> None:
    decoder, looped = decoder_of(name), prompt_of(7) * 3
    prompts = [looped, prompt_of(5), looped, prompt_of(30), prompt_of(9) * 2, looped]
    wishes = [replace(EVERYTHING, seed=seed) for seed in range(4)]
    wishes += [Sampling(temperature=0, max_new_tokens=50), Sampling(temperature=0.1, seed=9, max_new_tokens=60)]
    held = [None, Least, Least, None, None, None]
    stops = prompt_of(2, 3)

    def told(wanted: list[int], **options: object) -> tuple[list[list[int]], int]:
        engine = Engine(decoder, **options)  # type: ignore[arg-type]
        sequences = [
            engine.submit(prompts[i], wishes[i], stops, constraint=held[i] and held[i]())  # type: ignore[misc]
            for i in wanted
        ]
        run(engine)
        assert engine.pages.free == len(engine.pages.holders)
        return [[token.id for token in s.made] for s in sequences], sum(s.accepted for s in sequences)

    everyone = list(range(len(prompts)))
    expected, none = told(everyone)
    alone, stood = zip(*[told([i], drafter=Lookup(6)) for i in everyone], strict=True)
    assert none == 0 < sum(stood)
    assert [tokens for [tokens] in alone] == expected
    for options in ({}, {"chunk": 7}, {"tokens": 2 * CONTEXT}, {"seats": 2}):
        assert told(everyone, drafter=Lookup(3), **options)[0] == expected


def test_a_draft_model_follows_constraints() -> None:
    decoder, prompts = decoder_of("gqa"), [prompt_of(length) for length in (3, 9, 20)]
    for wish in (Sampling(temperature=0, max_new_tokens=40), replace(EVERYTHING, seed=5)):
        made = []
        for drafter in (None, DraftModel(near(decoder), 3)):
            engine = Engine(decoder, drafter=drafter)
            sequences = [engine.submit(prompt, wish, constraint=Least()) for prompt in prompts]  # asserts what is said
            run(engine)
            made.append([[token.id for token in sequence.made] for sequence in sequences])
        assert 0 < sum(sequence.accepted for sequence in sequences) < sum(sequence.proposed for sequence in sequences)
        assert made[0] == made[1] or not wish.greedy


def sequence_of(tokens: list[int], context: int = CONTEXT) -> Sequence:
    decoder = Decoder(replace(decoder_of("gqa").spec, context=context))
    return Engine(decoder.requires_grad_(False)).submit(tokens)


def test_guesses_are_what_followed_before() -> None:
    memory = Memory(3)
    tokens = [1, 2, 3, 4, 5, 9, 2, 3, 7, 8, 1, 2, 3]
    memory.learn(sequence_of(tokens), 4)
    assert memory.guess(tokens, 3) == [4, 5, 9]  # behind 1 2 3, not what last came behind 2 3
    assert memory.guess([*tokens[:-3], 6, 2, 3], 2) == [7, 8]
    assert memory.guess([*tokens, 6], 2) == []
    round = [5, 6, 7, 5, 6, 7]
    memory = Memory(3)
    memory.learn(sequence_of(round), 4)
    assert memory.guess(round, 8) == [5, 6, 7, 5, 6, 7, 5, 6]  # it goes on with what it guessed


def test_who_guesses_badly_guesses_seldom_and_who_guesses_well_guesses_more() -> None:
    lookup, drafts = Lookup(), []
    sequence = sequence_of([1, 2] * 200, 2000)
    for _ in range(600):
        [draft] = lookup.propose([sequence])
        drafts.append(len(draft.tokens))
        sequence.proposed += len(draft.tokens)
        sequence.tokens += [1, 2] if len(sequence.tokens) % 2 else [2, 1]  # never what came before
    assert 0 < sum(n > 0 for n in drafts[200:]) <= 2 * 400 // PATIENCE + 2
    drafts.clear()
    sequence = sequence_of([1, 2] * 20)
    for _ in range(5):
        [draft] = lookup.propose([sequence])
        drafts.append(len(draft.tokens))
        sequence.proposed += len(draft.tokens)
        sequence.accepted += len(draft.tokens)
        sequence.tokens += draft.tokens
    assert drafts == [2, 4, 8, 8, 8]
    assert [len(draft.tokens) for draft in lookup.propose([sequence] * 3)] == [ROWS // 3] * 3
    assert lookup.propose([sequence] * (ROWS + 1)) == [NOTHING] * (ROWS + 1)
