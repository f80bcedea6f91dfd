"""The engine against the decoder alone: cached, chunked, batched and preempted equals whole; no page is ever lost."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.engine import memory
from lathe.engine.engine import Engine
from lathe.engine.pages import Lease, Pages
from lathe.engine.sampling import Sampling
from lathe.engine.scheduler import Sequence
from lathe.errors import PromptError
from lathe.model import spec as s
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout

VOCAB, WIDTH, CONTEXT = 61, 32, 96
NORM = s.RMSNorm(1e-6)
ROPE = s.Rope(10000.0, 8)
GQA = s.Attention(heads=4, kv_heads=2, channels=8, scale=8**-0.5, rope=ROPE)
WINDOW = s.Attention(heads=4, kv_heads=2, channels=8, scale=8**-0.5, rope=ROPE, window=5)
SOFTCAP = s.Attention(heads=4, kv_heads=2, channels=8, scale=8**-0.5, rope=ROPE, softcap=3.0)
DYNAMIC = s.Attention(heads=4, kv_heads=4, channels=8, scale=8**-0.5, rope=s.Rope(100.0, 8, s.Dynamic(2.0, 16)))
LATENT = s.LatentAttention(
    heads=4, q_rank=12, kv_rank=16, plain_channels=8, value_channels=6, scale=16**-0.5, rope=ROPE, norm=NORM
)
GATED = s.Gated(48)
EXPERTS = s.Experts(s.Gated(24), s.Router(count=4, chosen=2), shared=s.Gated(16))

SPECS = {
    "gqa": (s.Layer(GQA, GATED, NORM), s.Layer(GQA, GATED, NORM)),
    "window": (s.Layer(WINDOW, GATED, NORM), s.Layer(GQA, GATED, NORM)),
    "softcap": (s.Layer(SOFTCAP, GATED, NORM, order="sandwich"), s.Layer(SOFTCAP, GATED, NORM, order="sandwich")),
    "latent": (s.Layer(LATENT, GATED, NORM), s.Layer(LATENT, EXPERTS, NORM)),
    "experts": (s.Layer(GQA, EXPERTS, NORM), s.Layer(GQA, EXPERTS, NORM)),
    "dynamic": (s.Layer(DYNAMIC, GATED, NORM), s.Layer(DYNAMIC, GATED, NORM)),
}


def decoder_of(name: str) -> Decoder:
    cap = 5.0 if name == "softcap" else None
    return filled(Decoder(s.Spec(VOCAB, WIDTH, SPECS[name], NORM, CONTEXT, logit_softcap=cap)))


def filled(decoder: Decoder) -> Decoder:
    """With random numbers, always the same ones."""
    generator = torch.Generator().manual_seed(1)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.25, generator=generator)
    return decoder.requires_grad_(False)


@pytest.fixture(scope="module", params=SPECS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return decoder_of(request.param)


@pytest.fixture(scope="module")
def plain() -> Decoder:
    return decoder_of("gqa")


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [random.Random(seed + i * 1000).randrange(VOCAB) for i in range(length)]


def whole(decoder: Decoder, tokens: list[int], extent: int) -> torch.Tensor:
    """Scores without a cache, in one piece, of a sequence that may become `extent` tokens long. T V"""
    layout = Layout(torch.arange(len(tokens)), (0, len(tokens)), (extent,))
    return decoder.logits(decoder(torch.tensor(tokens), layout))


def run(engine: Engine) -> None:
    while engine.busy:
        engine.step()


def answers(engine: Engine, prompts: list[list[int]], sampling: list[Sampling]) -> list[list[int]]:
    sequences = [engine.submit(prompt, wish) for prompt, wish in zip(prompts, sampling, strict=True)]
    run(engine)
    return [[token.id for token in sequence.made] for sequence in sequences]


def assert_conserved(pages: Pages, leases: list[Lease]) -> None:
    lent = [page for lease in leases for page in lease.pages]
    assert [lent.count(page) for page in range(len(pages.holders))] == pages.holders.tolist()
    assert pages.free + len(set(lent)) == len(pages.holders)


# ---- the same numbers ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunk", [1, 3, 7, 512])
def test_scores_with_a_cache_are_those_without(decoder: Decoder, chunk: int) -> None:
    engine = Engine(decoder, chunk=chunk)
    sequence = engine.submit(prompt_of(23), Sampling(temperature=0, max_new_tokens=12, logprobs=VOCAB))
    run(engine)
    expected = whole(decoder, sequence.tokens, sequence.extent).log_softmax(-1)
    assert len(sequence.made) == 12
    for at, token in enumerate(sequence.made, start=sequence.prompt - 1):
        got = torch.zeros(VOCAB)
        for id, logprob in token.top:
            got[id] = logprob
        assert torch.allclose(got, expected[at], atol=1e-5)
        assert token.id == int(expected[at].argmax())
        assert token.logprob == pytest.approx(float(expected[at, token.id]), abs=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 7, 512])
def test_every_hidden_state_of_a_chunked_prompt(decoder: Decoder, chunk: int) -> None:
    engine = Engine(decoder, chunk=chunk)
    sequence = engine.submit(prompt_of(23))
    hidden = []
    while sequence.pending:
        parts = engine.scheduler.pick()
        hidden.append(engine.runner.run(parts))
        sequence.cached += parts[0].length
    expected = whole(decoder, sequence.tokens, sequence.extent)
    assert torch.allclose(decoder.logits(torch.cat(hidden)), expected, atol=1e-5)


def test_many_at_once_is_each_alone(decoder: Decoder) -> None:
    prompts = [prompt_of(length, seed=length) for length in (1, 2, 5, 17, 33, 8, 40)]
    wishes = [Sampling(temperature=0, max_new_tokens=n) for n in (9, 20, 3, 1, 14, 30, 11)]
    alone = [answers(Engine(decoder), [prompt], [wish])[0] for prompt, wish in zip(prompts, wishes, strict=True)]
    assert [len(answer) for answer in alone] == [9, 20, 3, 1, 14, 30, 11]
    assert answers(Engine(decoder), prompts, wishes) == alone
    assert answers(Engine(decoder, chunk=5, seats=3), prompts, wishes) == alone
    preempting = Engine(decoder, tokens=CONTEXT, chunk=16)  # room for two or three of them
    assert answers(preempting, prompts, wishes) == alone


def test_a_seed_gives_the_same_tokens_in_any_company(plain: Decoder) -> None:
    wish = Sampling(temperature=1.3, top_k=20, top_p=0.9, seed=7, max_new_tokens=16)
    [alone] = answers(Engine(plain), [prompt_of(9)], [wish])
    company = [
        Sampling(temperature=1.0, seed=1, max_new_tokens=30),
        wish,
        Sampling(temperature=0, max_new_tokens=4),
        Sampling(temperature=1.3, top_k=20, top_p=0.9, seed=8, max_new_tokens=16),
        Sampling(repetition_penalty=1.2, presence_penalty=0.5, max_new_tokens=25),
    ]
    prompts = [prompt_of(30, 5), prompt_of(9), prompt_of(2), prompt_of(9), prompt_of(4)]
    for engine in (Engine(plain), Engine(plain, chunk=4), Engine(plain, tokens=CONTEXT)):
        together = answers(engine, prompts, company)
        assert together[1] == alone
        assert together[3] != alone


def test_a_request_that_was_preempted_says_the_same(plain: Decoder) -> None:
    engine = Engine(plain, tokens=CONTEXT)
    first = engine.submit(prompt_of(20), Sampling(temperature=0, max_new_tokens=60))
    second = engine.submit(prompt_of(10, 3), Sampling(seed=1, max_new_tokens=60))
    waited = False
    while engine.busy:
        engine.step()
        waited |= bool(second.made) and second in engine.scheduler.waiting
        assert_conserved(engine.pages, [first.lease, second.lease])
    assert waited
    assert [t.id for t in second.made] == answers(Engine(plain), [prompt_of(10, 3)], [second.chooser.sampling])[0]


def test_score_and_logits(decoder: Decoder) -> None:
    tokens = prompt_of(30)
    expected = whole(decoder, tokens, len(tokens))
    engine = Engine(decoder, chunk=7)
    assert torch.equal(engine.logits(tokens), expected)
    rows = expected.log_softmax(-1)
    assert engine.score(tokens) == pytest.approx(
        [float(rows[i, token]) for i, token in enumerate(tokens[1:])], abs=1e-5
    )
    assert engine.score([3]) == []
    engine.logits(tokens).requires_grad_()  # what is handed out is an ordinary tensor


# ---- how a request ends ----------------------------------------------------------------------------------------------
def test_finish_reasons(plain: Decoder) -> None:
    engine = Engine(plain)
    greedy = answers(engine, [prompt_of(5)], [Sampling(temperature=0, max_new_tokens=10)])[0]
    stop = engine.submit(prompt_of(5), Sampling(temperature=0), stops=(greedy[3], VOCAB + 5))
    length = engine.submit(prompt_of(5), Sampling(temperature=0, max_new_tokens=4))
    full = engine.submit(prompt_of(CONTEXT - 1), Sampling(temperature=0, max_new_tokens=10))
    endless = engine.submit(prompt_of(5), Sampling(temperature=0))
    run(engine)
    assert (stop.finish, [t.id for t in stop.made]) == ("stop", greedy[: greedy.index(greedy[3]) + 1])
    assert (length.finish, [t.id for t in length.made]) == ("length", greedy[:4])
    assert (full.finish, len(full.made)) == ("length", 1)
    assert (endless.finish, len(endless.tokens)) == ("length", CONTEXT)
    assert length.started <= length.first <= length.ended  # type: ignore[operator]
    assert engine.pages.free == len(engine.pages.holders)


def test_cancel_in_every_phase(plain: Decoder) -> None:
    engine = Engine(plain, chunk=8, seats=2)
    generating, reading, waiting = (engine.submit(prompt_of(n), Sampling(seed=0)) for n in (3, 30, 5))
    engine.step()
    assert generating.made and not reading.made and 0 < reading.cached < 30
    assert waiting in engine.scheduler.waiting
    for sequence in (generating, reading, waiting):
        engine.cancel(sequence)
        engine.cancel(sequence)
        assert sequence.finish == "cancelled"
    assert not engine.busy
    assert engine.step() == []
    assert not engine.scheduler.running and not engine.scheduler.waiting
    assert engine.pages.free == len(engine.pages.holders)


def test_streams_side_by_side_and_given_up(plain: Decoder) -> None:
    engine = Engine(plain)
    expected = answers(engine, [prompt_of(5), prompt_of(8)], [Sampling(temperature=0, max_new_tokens=12)] * 2)
    a, b = (engine.submit(prompt_of(n), Sampling(temperature=0, max_new_tokens=12)) for n in (5, 8))
    pairs = list(zip(engine.stream(a), engine.stream(b), strict=True))
    assert [[token.id for token in made] for made in zip(*pairs, strict=True)] == expected
    c = engine.submit(prompt_of(5), Sampling(temperature=0))
    stream = engine.stream(c)
    assert next(stream).id == expected[0][0]
    stream.close()
    assert c.finish == "cancelled" and not engine.busy


def test_a_long_prompt_does_not_stall_the_others(plain: Decoder) -> None:
    engine = Engine(plain, chunk=8)
    quick = engine.submit(prompt_of(3), Sampling(temperature=0, max_new_tokens=20))
    engine.step()
    slow = engine.submit(prompt_of(60), Sampling(temperature=0, max_new_tokens=2))
    while not slow.made:
        assert next(sequence for sequence, _ in engine.step()) is quick
    assert len(quick.made) == 1 + -(-60 // 7)  # 7 of 8 tokens a step are left for the prompt


def test_who_has_priority_takes_seats_and_pages_from_who_has_not(plain: Decoder) -> None:
    wish = Sampling(temperature=0, max_new_tokens=30)
    prompts = [prompt_of(20, seed) for seed in range(4)]
    expected = answers(Engine(plain), prompts, [wish] * 4)
    for options in ({"seats": 2}, {"tokens": 112}, {"seats": 2, "chunk": 3}):
        engine = Engine(plain, **options)
        ended: list[int] = []
        sequences = [engine.submit(prompts[i], wish, priority=5) for i in (0, 1)]
        engine.step()
        sequences += [engine.submit(prompts[i], wish, priority=p) for i, p in ((2, 0), (3, -1))]
        while engine.busy:
            engine.step()
            ended += [i for i, sequence in enumerate(sequences) if sequence.finish and i not in ended]
        assert set(ended[:2]) == {2, 3}
        assert [[token.id for token in sequence.made] for sequence in sequences] == expected


def test_a_prompt_is_read_in_smaller_pieces_while_others_generate(plain: Decoder) -> None:
    engine = Engine(plain)
    engine.scheduler.beside = 16
    [expected] = answers(Engine(plain), [prompt_of(60, 1)], [Sampling(temperature=0, max_new_tokens=3)])
    quick = engine.submit(prompt_of(40), Sampling(temperature=0, max_new_tokens=6))
    engine.step()
    assert quick.cached == 40  # nobody waited
    slow = engine.submit(prompt_of(60, 1), Sampling(temperature=0, max_new_tokens=3))
    for cached in (16, 32, 48, 60):
        engine.step()
        assert slow.cached == cached
    run(engine)
    assert [token.id for token in slow.made] == expected


def test_bad_prompts(plain: Decoder) -> None:
    engine = Engine(plain, tokens=32)
    with pytest.raises(PromptError, match="empty"):
        engine.submit([])
    with pytest.raises(PromptError, match=r"32 tokens long.*holds 32"):
        engine.submit(prompt_of(32))
    for token in (-1, VOCAB):
        with pytest.raises(PromptError, match=rf"Token {token} .*0 to {VOCAB - 1}"):
            engine.submit([1, token])
        with pytest.raises(PromptError, match="not in the vocabulary"):
            engine.score([token])
    with pytest.raises(PromptError, match=rf"{CONTEXT + 2} tokens long.*holds {CONTEXT}"):
        engine.score(prompt_of(CONTEXT + 2))  # the last token is not read
    assert len(engine.score(prompt_of(CONTEXT + 1))) == CONTEXT
    with pytest.raises(PromptError, match="empty"):
        engine.logits([])
    assert not engine.busy


class Tight:
    """A machine whose memory suffices for passes of so many tokens; like PyTorch's allocators it says so."""

    def __init__(self, decoder: Decoder, tokens: int, error: Exception) -> None:
        self.tokens, self.error = tokens, error
        self.handle = decoder.register_forward_pre_hook(self)

    def __call__(self, _: object, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > self.tokens:
            raise self.error


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError()]
)
def test_who_finds_no_memory_takes_no_other_along(error: Exception) -> None:
    decoder = decoder_of("gqa")
    prompts, wish = [prompt_of(30), prompt_of(3, 1), prompt_of(17, 2)], Sampling(temperature=0, max_new_tokens=20)
    expected = answers(Engine(decoder), prompts, [wish] * 3)
    tight = Tight(decoder, 2, error)
    assert answers(Engine(decoder), prompts, [wish] * 3) == expected  # in smaller passes
    tight.tokens = 0
    engine = Engine(decoder)
    sequences = [engine.submit(prompt, wish) for prompt in prompts]
    run(engine)
    assert [sequence.finish for sequence in sequences] == ["failed"] * 3
    assert "not enough memory" in str(sequences[0].error)
    assert engine.pages.free == len(engine.pages.holders)
    tight.error, tight.tokens = RuntimeError("shapes do not match"), 2
    engine.submit(prompts[0], wish)
    with pytest.raises(RuntimeError, match="shapes"):
        engine.step()
    tight.handle.remove()
    assert answers(engine, prompts, [wish] * 3) == expected


def test_a_pool_that_cannot_grow_serves_who_fits(plain: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, grow = Engine(plain), Pages._grow
    small = Sampling(temperature=0, max_new_tokens=4)
    monkeypatch.setattr(Pages, "_grow", lambda pages, count: count <= 4 and grow(pages, count))
    large = engine.submit(prompt_of(70), small)
    others = [engine.submit(prompt_of(30, seed), small) for seed in range(3)]
    run(engine)
    assert large.finish == "failed" and large.error is not None
    assert [other.finish for other in others] == ["length"] * 3
    assert engine.pages.free == len(engine.pages.holders)


def test_a_pool_that_fits(plain: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    each = 2 * (2 * 2 * 8) * 4  # layers, keys and values of 2 heads of 8 channels, float32
    for free, seats, expected in ((10**12, 3, 3 * CONTEXT), (400 * each, 64, 200), (0, 1, 16)):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        assert memory.fitting(plain, seats) == expected
        assert len(Engine(plain, tokens=expected).pages.holders) == -(-expected // 16)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 10**12)
    monkeypatch.setattr(memory, "MODEST", 300 * each)
    assert memory.fitting(plain, 64) == 300
    monkeypatch.setattr(memory, "MODEST", each)
    assert memory.fitting(plain, 64) == CONTEXT
    monkeypatch.undo()
    free = memory.free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50


# ---- pages -----------------------------------------------------------------------------------------------------------
def test_a_pool_grows_with_what_is_asked_and_keeps_what_it_holds() -> None:
    pages = Pages([GQA.cache, LATENT.cache])
    lease = Lease()
    assert pages.reserve(lease, 10, extent=60)
    assert len(pages.holders) * pages.size == 64  # not a context's worth
    assert lease.read(10) == slice(0, 10)
    for keys, values in pages.cache:
        keys.normal_()
        assert keys.shape[0] == values.shape[0] == 64
    before = [keys.clone() for keys, _ in pages.cache]
    assert pages.reserve(lease, 65, extent=1000)
    assert lease.read(65) == slice(0, 65)
    for old, (keys, values) in zip(before, pages.cache, strict=True):
        assert torch.equal(keys[:64], old)
        assert keys.shape[0] == values.shape[0] == len(pages.holders) * pages.size
    keys, values = pages.cache[1]
    assert values.data_ptr() == keys.data_ptr() and values.shape[-1] == LATENT.kv_rank
    pages.give_back(lease)
    assert pages.free == len(pages.holders)


def test_pages_lie_together_while_there_is_room_and_anywhere_after_that() -> None:
    pages = Pages([GQA.cache], 16 * 8)
    a, b, c = Lease(), Lease(), Lease()
    assert pages.reserve(a, 32, 32) and pages.reserve(b, 16, 16) and pages.reserve(c, 80, 80)
    assert (a.pages, b.pages, c.pages) == ([0, 1], [2], [3, 4, 5, 6, 7])
    pages.give_back(a)
    pages.give_back(c)
    assert not pages.reserve(a, 16 * 8, 16 * 8)
    assert a.pages == [] and pages.free == 7
    assert pages.reserve(a, 16 * 6, 16 * 6)
    assert a.pages == [0, 1, 3, 4, 5, 6]
    slots = [slot for page in a.pages for slot in range(page * 16, page * 16 + 16)]
    assert torch.equal(a.read(50), torch.tensor(slots[:50]))  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), bound=st.none() | st.integers(1, 60), size=st.sampled_from([1, 4, 16]))
def test_leases_never_overlap_and_nothing_is_lost(data: st.DataObject, bound: int | None, size: int) -> None:
    pages = Pages([s.CacheShape(1, 1, 1)], bound, size=size)
    leases = [Lease() for _ in range(4)]
    for _ in range(data.draw(st.integers(1, 30))):
        lease = data.draw(st.sampled_from(leases))
        if data.draw(st.booleans()):
            pages.give_back(lease)
        else:
            tokens = data.draw(st.integers(1, 80))
            free, had = pages.free, len(lease.pages)
            room = pages.reserve(lease, tokens, tokens + data.draw(st.integers(0, 50)))
            assert room or (bound is not None and -(-tokens // size) > free + had)
            if room:
                read = lease.read(tokens)
                slots = torch.arange(10_000)[read]
                assert torch.equal(slots, lease.slots[:tokens]) and len(slots) == tokens
        assert_conserved(pages, leases)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_schedule_ends_with_the_same_answers_and_all_pages_free(data: st.DataObject) -> None:
    decoder = decoder_of("gqa")
    tokens = data.draw(st.none() | st.integers(20, 100))
    engine = Engine(decoder, tokens=tokens, chunk=data.draw(st.integers(1, 40)), seats=data.draw(st.integers(1, 5)))
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
    engine.step()  # what was cancelled last is swept
    assert engine.pages.free == len(engine.pages.holders)
    for sequence in sequences:
        expected = whole(decoder, sequence.tokens, sequence.extent).argmax(-1).tolist()
        assert [token.id for token in sequence.made] == expected[sequence.prompt - 1 : -1]


def test_a_step_that_was_interrupted_can_be_taken_again(plain: Decoder) -> None:
    engine = Engine(plain)
    wishes = [Sampling(temperature=0, max_new_tokens=6), Sampling(seed=3, max_new_tokens=6)]
    expected = answers(engine, [prompt_of(5), prompt_of(8)], wishes)

    def interrupt(*_: object) -> None:
        handle.remove()
        raise KeyboardInterrupt

    sequences = [engine.submit(prompt_of(n), wish) for n, wish in zip((5, 8), wishes, strict=True)]
    engine.step()
    handle = plain.lm_head.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    run(engine)
    assert [[token.id for token in sequence.made] for sequence in sequences] == expected
