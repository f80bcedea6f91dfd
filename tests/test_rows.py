"""Passes of many rows through the kernels: what comes of a token is bit for bit the same whatever passes with it, and
as near to the exact numbers as torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pytest
import torch
from families import CASES

from lathe import families
from lathe.model import native
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.transforms import pack, plan, products

LENGTHS = (60, 7, 33)
WHOLE = [LENGTHS]
ALONE = [tuple(int(i == s) for i in range(3)) for s, n in enumerate(LENGTHS) for _ in range(n)]
MIXED = [(1, 0, 0), (41, 1, 0), (1, 1, 30), (16, 5, 3), (1, 0, 0)]


@pytest.fixture(scope="module", autouse=True)
def kernels():
    if native.library() is None:
        pytest.skip("no C++ compiler")
    return native.library()


def made(config: dict, kind: torch.dtype) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(families.read(config)).to(kind).eval()
    for parameter in decoder.parameters():
        parameter.requires_grad_(False).normal_(0, 0.2)
    return decoder


@torch.inference_mode()
def scores(decoder: Decoder, passes: Sequence[Sequence[int]], lengths: Sequence[int] = LENGTHS) -> torch.Tensor:
    """Of every token, in passes that take so many of each sequence; the first lies scattered, the others in runs."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, decoder.spec.vocab, (sum(lengths),), generator=generator)
    starts = [0, *accumulate(lengths)]
    slots = torch.arange(sum(lengths))
    slots[: lengths[0]] = torch.randperm(lengths[0], generator=generator)
    kind = next(decoder.parameters()).dtype
    shapes = [layer.mixer.cache for layer in decoder.spec.layers]
    cache = [
        tuple(torch.full((len(slots), s.heads, c), torch.nan, dtype=kind) for c in (s.key_channels, s.value_channels))
        for s in shapes
    ]
    done, found = [0] * len(lengths), None
    for counts in passes:
        now = [(s, done[s], done[s] + n) for s, n in enumerate(counts) if n]
        rows = torch.cat([torch.arange(starts[s] + a, starts[s] + b) for s, a, b in now])
        layout = Layout(
            positions=torch.cat([torch.arange(a, b) for _, a, b in now]),
            seams=tuple(accumulate((b - a for _, a, b in now), initial=0)),
            extents=tuple(lengths[s] for s, _, _ in now),
            write=slots[rows],
            read=tuple(slots[:b] if s == 0 else slice(starts[s], starts[s] + b) for s, _, b in now),
        )
        y = decoder.logits(decoder(tokens[rows], layout, cache))
        found = y.new_empty(len(tokens), y.shape[-1]) if found is None else found
        found[rows] = y
        done = [before + n for before, n in zip(done, counts, strict=True)]
    assert found is not None
    assert done == list(lengths)
    return found


def known(case) -> bool:
    """Whether the kernels know all parts of all layers."""
    decoder = made(case.config, torch.bfloat16)
    return all(type(block) in plan.NORMS and plan.Plan(block).whole for block in decoder.model.layers)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # the exact scores are in float64
@pytest.mark.parametrize("case", list(filter(known, CASES)), ids=lambda case: case.name)
def test_every_family_in_any_company(case, kernels):
    """One after the other, all at once and mixed; the kernels' error is no larger than torch's. bfloat16."""
    plain, decoder = (made(case.config, torch.bfloat16) for _ in range(2))
    pack.pack(decoder)
    at_once = scores(decoder, WHOLE)
    if products.most(kernels)[torch.bfloat16] > sum(LENGTHS):
        assert torch.equal(at_once, scores(decoder, ALONE))
        assert torch.equal(at_once, scores(decoder, MIXED))
    other = scores(plain, WHOLE)
    exact = scores(plain.double(), WHOLE)
    assert (at_once - exact).abs().mean() <= 1.3 * (other - exact).abs().mean()


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (9, 3), (8, 1), (56, 1)], ids=str)
def test_hundreds_of_tokens_as_one_by_one(heads, kernels):
    """Of heads with keys of their own, shared by some or by all; longer than a span, in chunks of every kind."""
    config = {
        **next(case.config for case in CASES if case.name == "llama-2"),
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": 24,
        "max_position_embeddings": 1024,
        "num_hidden_layers": 1,
    }
    plain, decoder = (made(config, torch.bfloat16) for _ in range(2))
    pack.pack(decoder)
    lengths = (601, 300)
    at_once = scores(decoder, [lengths], lengths)
    if products.most(kernels)[torch.bfloat16] > sum(lengths):
        assert torch.equal(at_once, scores(decoder, [(1, 0), (255, 1), (2, 130), (1, 1), (300, 1), (42, 167)], lengths))
    other, exact = scores(plain, [lengths], lengths), scores(plain.double(), [lengths], lengths)
    assert (at_once - exact).abs().mean() <= 1.2 * (other - exact).abs().mean()
