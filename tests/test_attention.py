"""Attention over a ribbon against its definition, one query at a time; and that it cannot see what it must not."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lathe.model import attention, blockwise, kernels, spec
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.model.native import looking


def by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(q k) v of every head and token in turn, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    share, rows = q.shape[1] // k.shape[1], []
    for low, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
        for t in range(low, low + length):
            first = low if window is None else max(low, t + 1 - window)
            first = first if chunk is None else t - (t - low) % chunk
            heads = []
            for h in range(q.shape[1]):
                scores = k[first : t + 1, h // share] @ q[t, h] * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                past = scores.exp().sum() + (0 if sinks is None else sinks[h].double().exp())
                heads.append(scores.exp() / past @ v[first : t + 1, h // share])
            rows.append(torch.stack(heads))
    return torch.stack(rows).float()


@dataclass
class Problem:
    """Queries, keys and values of some sequences, and how they attend."""

    lengths: tuple[int, ...]
    q: Tensor
    k: Tensor
    v: Tensor
    how: dict[str, object]

    def answer(self) -> Tensor:
        return by_definition(self.q, self.k, self.v, self.lengths, **self.how)

    def attend(self, layout: Layout, rows: Tensor | slice = slice(None), cache: kernels.Cache | None = None) -> Tensor:
        return kernels.attend(self.q[rows], self.k[rows], self.v[rows], layout, cache=cache, **self.how)


def problem(lengths: tuple[int, ...], heads: int = 4, kv_heads: int = 2, sinks: bool = False, **how: object) -> Problem:
    generator = torch.Generator().manual_seed(sum(lengths))
    q, k, v = (
        torch.randn(sum(lengths), h, c, generator=generator) for h, c in ((heads, 8), (kv_heads, 8), (kv_heads, 6))
    )
    drain = torch.randn(heads, generator=generator) if sinks else None
    return Problem(lengths, q, k, v, {"scale": 0.4, "sinks": drain, **how})


problems = st.builds(
    lambda lengths, heads, sinks, reach, softcap: problem(tuple(lengths), *heads, sinks, softcap=softcap, **reach),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from([(1, 1), (3, 3), (4, 2), (4, 1)]),
    st.booleans(),
    st.just({})
    | st.fixed_dictionaries({"window": st.integers(1, 10)})
    | st.fixed_dictionaries({"chunk": st.integers(1, 5)}),
    st.none() | st.just(1.5),
)


@given(problems)
@settings(max_examples=80, deadline=None)
def test_any_ribbon_is_its_definition(p):
    assert_close(p.attend(Layout.of(p.lengths)), p.answer(), rtol=1e-5, atol=1e-5)


@given(problems, st.data())
@settings(max_examples=80, deadline=None)
def test_any_cuts_through_a_cache_are_its_definition(p, data):
    """Sequences come in chunks of any size, several on a ribbon, and lie in the cache in a run or scattered."""
    starts = tuple(accumulate(p.lengths, initial=0))
    mixed = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32), label="slots"))
    slots = torch.randperm(sum(p.lengths) + 3, generator=mixed)
    runs = data.draw(st.booleans(), label="runs")
    cache = (
        torch.full((len(slots), *p.k.shape[1:]), float("nan")),
        torch.full((len(slots), *p.v.shape[1:]), float("nan")),
    )
    done, got = [0] * len(p.lengths), torch.empty(*p.q.shape[:2], p.v.shape[-1])
    while left := [s for s, n in enumerate(p.lengths) if done[s] < n]:
        now = {
            s: data.draw(st.integers(1, p.lengths[s] - done[s]))
            for s in left
            if len(left) == 1 or data.draw(st.booleans())
        }
        if not now:
            continue
        rows = torch.cat([torch.arange(starts[s] + done[s], starts[s] + done[s] + n) for s, n in now.items()])
        for s, n in now.items():
            done[s] += n
        layout = Layout(
            positions=rows,  # attention does not look at positions: the rope did
            seams=tuple(accumulate(now.values(), initial=0)),
            extents=tuple(p.lengths[s] for s in now),
            write=rows if runs else slots[rows],
            read=tuple(
                slice(starts[s], starts[s] + done[s]) if runs else slots[starts[s] : starts[s] + done[s]] for s in now
            ),
        )
        got[rows] = p.attend(layout, rows, cache)
    assert_close(got, p.answer(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reach", [{}, {"window": 3}, {"chunk": 3}], ids=str)
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("lengths", [(7,), (5, 5), (2, 6, 1), (1, 1, 2, 13, 3)], ids=str)
@pytest.mark.parametrize("block", [128, 4])
def test_gradients_are_those_of_the_definition(block, lengths, reach, softcap, sinks, monkeypatch):
    """Also where a sequence is cut into several blocks, and where several share one."""
    monkeypatch.setattr(blockwise, "QUERIES", block)
    p = problem(lengths, sinks=sinks, softcap=softcap, **reach)
    leaves = [x.requires_grad_() for x in (p.q, p.k, p.v, *((p.how["sinks"],) if sinks else ()))]
    pull = torch.randn(*p.q.shape[:2], p.v.shape[-1])
    got = p.attend(Layout.of(lengths))
    assert_close(got, p.answer(), rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad((got * pull).sum(), leaves)
    theirs = torch.autograd.grad((p.answer() * pull).sum(), leaves)
    for mine, right in zip(ours, theirs, strict=True):
        assert_close(mine, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "reach", [blockwise.Reach(), blockwise.Reach(window=20), blockwise.Reach(chunk=24)], ids=["all", "window", "chunk"]
)
@pytest.mark.parametrize("lengths", [(130,), (40, 1, 33, 97), (64, 64)], ids=str)
@pytest.mark.parametrize(("kv_heads", "channels", "value_channels"), [(2, 16, 32), (1, 48, 48), (4, 64, 80)])
def test_the_kernel_is_as_near_to_the_definition_as_torch(
    lengths, reach, kv_heads, channels, value_channels, monkeypatch
):
    """Values and gradients, in bfloat16; keys and values are parts of wider rows."""
    layout, n = Layout.of(lengths), sum(lengths)
    q = torch.randn(n, 4, channels).bfloat16()
    kv = torch.randn(n, kv_heads, channels + value_channels).bfloat16()
    pull = torch.randn(n, 4, value_channels).bfloat16()

    def found(dtype: torch.dtype) -> list[torch.Tensor]:
        """As float32: what is gathered, and the gradients."""
        leaves = [x.to(dtype).requires_grad_() for x in (q, kv)]
        k, v = leaves[1].split([channels, value_channels], dim=-1)
        y = blockwise.attend(leaves[0], k, v, layout, channels**-0.5, reach)
        return [x.float() for x in (y, *torch.autograd.grad(y, leaves, pull.to(dtype)))]

    if not looking.takes(q, *kv.split([channels, value_channels], dim=-1), len(lengths)):
        pytest.skip("no kernel for this processor, or too many threads")
    right, kernel = found(torch.float32), found(torch.bfloat16)
    monkeypatch.setattr(looking, "takes", lambda *_: False)
    for wanted, got, plain in zip(right, kernel, found(torch.bfloat16), strict=True):
        assert (got - wanted).norm() < 1.1 * (plain - wanted).norm() < 0.01 * wanted.norm()


def test_a_cache_of_fewer_bits_rounds_keys_and_values():
    p = problem((6,))
    cache = (torch.zeros(6, 2, 8, dtype=torch.bfloat16), torch.zeros(6, 2, 6, dtype=torch.bfloat16))
    layout = Layout(torch.arange(6), (0, 6), (6,), torch.arange(6), (slice(0, 6),))
    got = p.attend(layout, cache=cache)
    p.k, p.v = p.k.bfloat16().float(), p.v.bfloat16().float()
    assert got.dtype == torch.float32
    assert_close(got, p.answer(), rtol=1e-5, atol=1e-5)


def test_a_window_counts_the_query_itself():
    assert kernels.Seen(1.0, 2, None, None).mask(3, 5, torch.device("cpu")).int().tolist() == [
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    p = problem((6,), window=1)
    assert_close(p.attend(Layout.of((6,))), p.v.repeat_interleave(2, dim=1))


def test_a_chunk_begins_where_its_last_ended():
    assert kernels.Seen(1.0, None, 3, None).mask(5, 5, torch.device("cpu")).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


# ---- latent attention -----------------------------------------------------------------------------------------------


def latent(q_rank: int | None, **changes: object) -> attention.LatentAttention:
    part = spec.LatentAttention(
        heads=3, q_rank=q_rank, kv_rank=10, plain_channels=6, value_channels=5, scale=0.3,
        rope=spec.Rope(10_000.0, 4, interleaved=True), norm=spec.RMSNorm(1e-6), **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    module = attention.LatentAttention(part, 16)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module


@torch.inference_mode()
@pytest.mark.parametrize("q_rank", [None, 7])
@pytest.mark.parametrize("changes", [{}, {"window": 3}, {"softcap": 1.5}, {"bias": True}], ids=str)
def test_folding_queries_into_latents_changes_nothing(q_rank, changes):
    """With a cache only latents are kept; without one keys and values are unfolded. Both are the same attention."""
    module = latent(q_rank, **changes)
    x, lengths = torch.randn(9, 16), (2, 7)
    whole = module(x, Layout.of(lengths), None)
    shape = module.part.cache
    keys = torch.full((9, shape.heads, shape.key_channels), float("nan"))
    cache = (keys, keys[..., : shape.value_channels])
    first = Layout(torch.tensor([0, 1, 0, 1, 2]), (0, 2, 5), lengths, torch.arange(5), (slice(0, 2), slice(2, 5)))
    rest = Layout(torch.arange(3, 7), (0, 4), (7,), torch.arange(5, 9), (torch.arange(2, 9),))
    got = torch.cat((module(x[:5], first, cache), module(x[5:], rest, cache)))
    assert_close(got, whole, rtol=1e-4, atol=1e-5)


# ---- what a decoder must not see ------------------------------------------------------------------------------------


def tiny(window: int | None) -> Decoder:
    mixer = spec.Attention(4, 2, 8, 8**-0.5, spec.Rope(10_000.0, 8), window=window)
    layer = spec.Layer(mixer, spec.Gated(24), spec.RMSNorm(1e-5))
    torch.manual_seed(0)
    decoder = Decoder(spec.Spec(vocab=30, width=32, layers=(layer,) * 2, norm=spec.RMSNorm(1e-5), context=64))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return decoder


@torch.inference_mode()
def test_tokens_see_neither_the_future_nor_other_sequences():
    decoder, tokens, lengths = tiny(None), torch.randint(30, (14,)), [5, 9]
    before = decoder(tokens, Layout.of(lengths))
    for changed in range(14):
        other = tokens.clone()
        other[changed] = (other[changed] + 1) % 30
        moved = (decoder(other, Layout.of(lengths)) - before).abs().amax(-1) > 1e-5
        end = 5 if changed < 5 else 14
        assert moved.tolist() == [changed <= t < end for t in range(14)]


@torch.inference_mode()
def test_through_two_layers_a_window_reaches_twice_as_far():
    decoder, tokens = tiny(3), torch.randint(30, (12,))
    before = decoder(tokens, Layout.of([12]))
    tokens[4] = (tokens[4] + 1) % 30
    moved = (decoder(tokens, Layout.of([12])) - before).abs().amax(-1) > 1e-5
    assert moved.tolist() == [4 <= t <= 4 + 2 * 2 for t in range(12)]


@pytest.mark.parametrize("product", [kernels.expert_products, kernels.grouped_products])
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_rows_meet_their_own_expert(product, counts, biased):
    """Also in the form for GPUs, of which torch has a plain one for the CPU."""
    x, weight, bias = torch.randn(sum(counts), 16), torch.randn(len(counts), 8, 16), torch.randn(len(counts), 8)
    of = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    right = torch.einsum("nd,nfd->nf", x, weight[of]) + (bias[of] if biased else 0)
    groups = kernels.Groups(torch.tensor(counts))
    assert_close(product(x, weight, bias if biased else None, groups), right, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("counts", [(3, 0, 5), (0, 0, 1), (128, 7, 64)], ids=str)
def test_one_kernel_for_all_experts_is_one_product_each(counts):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x, weight, bias = (torch.randn(*shape).bfloat16() for shape in ((sum(counts), 64), (3, 32, 64), (3, 32)))
    sizes = torch.tensor(counts)
    right = kernels.expert_products(x, weight, bias, kernels.Groups(sizes))
    got = kernels.expert_products(x.cuda(), weight.cuda(), bias.cuda(), kernels.Groups(sizes.cuda()))
    assert_close(got.cpu(), right, rtol=2e-2, atol=2e-2)
