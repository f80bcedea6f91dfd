"""Keys and values in 8 bits: half the room, near the plain ones, and the same answers in any company and by kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import CONTEXT, SPECS, VOCAB, answers, decoder_of, prompt_of, run, whole
from test_pack import PROMPTS, made

from lathe.engine import DraftModel, Engine, Sampling
from lathe.engine.pages import Pages, token_bytes
from lathe.errors import UsageError
from lathe.llm import LLM
from lathe.model import kept, native
from lathe.model import spec as s
from lathe.transforms import pack

INT8 = torch.int8


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 6, 64, 128]), st.sampled_from([1e-20, 1e-3, 1.0, 1e4]))
def test_a_number_is_off_by_half_a_scale_at_most(seed: int, channels: int, size: float) -> None:
    x = torch.randn(5, 3, channels, generator=torch.Generator().manual_seed(seed)) * size
    x[0, 0] = 0
    rows = kept.coded(x)
    assert rows.dtype == INT8 and rows.shape == (5, 3, kept.width(channels, INT8))
    back = kept.read(rows, torch.float32)
    assert ((back - x).abs() <= x.abs().amax(-1, keepdim=True) / 253).all()  # a scale is rounded by a 256th
    assert not back[0, 0].any()
    assert torch.equal(kept.coded(back), rows) or size < 1e-10


@pytest.mark.parametrize("shape", [s.CacheShape(8, 64, 64), s.CacheShape(1, 576, 512, values_in_keys=True)])
def test_a_pool_takes_half_the_room(shape: s.CacheShape) -> None:
    def room(dtype: torch.dtype) -> int:
        pages = Pages([shape] * 3, 1024, dtype=dtype)
        held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for layer in pages.cache for x in layer}
        assert sum(held.values()) == 1024 * pages.token_bytes == 1024 * token_bytes(pages.shapes, dtype)
        return sum(held.values())

    assert room(INT8) < 0.52 * room(torch.bfloat16)


@pytest.mark.parametrize("kind", SPECS)
def test_scores_are_near_those_without_a_cache(kind: str) -> None:
    decoder = decoder_of(kind)
    engine = Engine(decoder, chunk=7, kv=INT8)
    sequence = engine.submit(prompt_of(40), Sampling(temperature=0, max_new_tokens=30, logprobs=VOCAB))
    run(engine)
    expected = whole(decoder, sequence.tokens, sequence.extent).log_softmax(-1)[sequence.prompt - 1 : -1]
    got = torch.empty(30, VOCAB)
    for row, token in zip(got, sequence.made, strict=True):
        for id, logprob in token.top:
            row[id] = logprob
    bound = 0.06 if kind in ("experts", "latent") else 0.02  # where rounding may send a token to another expert
    assert 0 < (got - expected).square().mean() <= (bound * expected.std()) ** 2


@pytest.mark.parametrize("kind", SPECS)
def test_many_at_once_is_each_alone(kind: str) -> None:
    decoder = decoder_of(kind)
    prompts = [prompt_of(length, seed=length) for length in (1, 5, 17, 33, 40)]
    wishes = [Sampling(temperature=0, max_new_tokens=n) for n in (9, 3, 14, 30, 11)]
    alone = [answers(Engine(decoder, kv=INT8), [p], [w])[0] for p, w in zip(prompts, wishes, strict=True)]
    options: list[dict[str, Any]] = [{}, {"chunk": 5, "seats": 3}, {"tokens": CONTEXT, "chunk": 16}]
    for told in options:
        assert answers(Engine(decoder, kv=INT8, **told), prompts, wishes) == alone
    assert answers(Engine(decoder, kv=INT8, drafter=DraftModel(decoder, 3)), prompts, wishes) == alone


def test_what_was_read_is_taken_over() -> None:
    decoder = decoder_of("gqa")
    engine, wish = Engine(decoder, kv=INT8), Sampling(temperature=0, max_new_tokens=20)
    first, again = (engine.submit(prompt_of(50), wish) for _ in range(2))
    run(engine)
    third = engine.submit([*first.tokens, 3], wish)
    run(engine)
    assert again.reused == 48 and third.reused == 64
    assert [t.id for t in again.made] == [t.id for t in first.made]
    [alone] = answers(Engine(decoder, kv=INT8), [[*first.tokens, 3]], [wish])
    assert [t.id for t in third.made] == alone


# ---- kernels ---------------------------------------------------------------------------------------------------------
LONG = {"max_position_embeddings": 1024}
NAMES = ("llama-biased", "smollm2", "mistral-window", "gemma2", "olmo", "qwen3", "cohere-normed-heads", "neox")


def scored(decoder: Any, prompts: list[list[int]], dtype: torch.dtype | None = INT8) -> list[torch.Tensor]:
    """Log-probabilities of what comes after each of several prompts, read a token at a time and side by side."""
    engine = Engine(decoder, kv=dtype, chunk=len(prompts))
    asked = [engine.submit(p, Sampling(temperature=0, max_new_tokens=2, logprobs=20)) for p in prompts]
    run(engine)
    return [torch.tensor([[p for _, p in sorted(token.top)] for token in one.made]) for one in asked]


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_kernels_read_codes_as_the_plain_way_does(name: str, dtype: torch.dtype) -> None:
    config = next(case.config for case in CASES if case.name == name)
    plain, quick = made(dtype, config), made(dtype, config)
    pack.pack(quick)
    tolerance = 1e-3 if dtype == torch.float32 else 0.15
    for expected, got in zip(scored(plain, PROMPTS), scored(quick, PROMPTS), strict=True):
        assert got.shape == expected.shape
        assert (got[0].sort()[0] - expected[0].sort()[0]).abs().max() <= tolerance
    alone = [scored(quick, [prompt])[0] for prompt in PROMPTS]
    assert all(map(torch.equal, scored(quick, PROMPTS), alone))


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_a_long_past_is_looked_at_in_spans() -> None:
    config = {**next(case.config for case in CASES if case.name == "llama-biased"), **LONG}
    prompt = [int(i) for i in torch.randint(0, 90, (600,), generator=torch.Generator().manual_seed(3))]
    plain, quick = made(config=config), made(config=config)
    pack.pack(quick)
    wish = [Sampling(temperature=0, max_new_tokens=12)]
    assert answers(Engine(quick, kv=INT8), [prompt], wish) == answers(Engine(plain, kv=INT8), [prompt], wish)


# ---- asking for it ---------------------------------------------------------------------------------------------------
def test_it_is_asked_for_by_name(tiny_model: Any) -> None:
    plain, half = LLM.load(tiny_model, device="cpu"), LLM.load(tiny_model, device="cpu", kv="int8")
    assert half.engine.pages.dtype == INT8 and plain.engine.pages.dtype == plain.decoder.lm_head.weight.dtype
    assert half.generate("Hello", temperature=0, max_new_tokens=5)
    with pytest.raises(UsageError, match="auto and int8"):
        LLM.load(tiny_model, kv="int4")  # type: ignore[arg-type]
