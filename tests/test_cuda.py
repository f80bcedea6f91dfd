"""On a GPU every family gives what it gives on the CPU: scores, gradients and tokens."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from families import CASES
from torch import Tensor

from lathe import families
from lathe.data.loader import Batch
from lathe.data.pack import Row
from lathe.engine.engine import Engine
from lathe.engine.sampling import Sampling
from lathe.model import initial, kernels
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.training import loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LENGTHS = (17, 5, 40, 1)
SPECS = {case.name: case.config for case in CASES}


@pytest.fixture(params=SPECS)
def config(request) -> dict:
    return SPECS[request.param]


@cache
def ids(vocab: int) -> Tensor:
    return torch.randint(3, vocab, (sum(LENGTHS),), generator=torch.Generator().manual_seed(5))


def decoder(config: dict, device: str, dtype: torch.dtype = torch.float32) -> Decoder:
    """Random weights, the same ones everywhere, in which no norm is the identity."""
    made = initial.decoder(families.read(config), 3)
    drawn = torch.Generator().manual_seed(4)
    for _, parameter in sorted(made.named_parameters()):
        if parameter.ndim < 2:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=drawn)
        else:
            parameter.data *= 3
    return made.to(device, dtype)


def scores(model: Decoder, device: str) -> Tensor:
    tokens = ids(model.spec.vocab).to(device)
    return model.logits(model(tokens, Layout.of(LENGTHS, device))).float().cpu()


def close(ours: Tensor, right: Tensor, part: float) -> bool:
    return bool((ours - right).abs().max() <= part * (right.max() - right.min()))


@torch.inference_mode()
def test_scores(config):
    assert close(scores(decoder(config, "cuda"), "cuda"), scores(decoder(config, "cpu"), "cpu"), 1e-4)


@torch.inference_mode()
def test_scores_in_bfloat16(config):
    """As near to float32 as the CPU's own bfloat16, for the mean token: where rounding sends one to another expert, it
    is chance who is nearer."""
    right = scores(decoder(config, "cpu"), "cpu")
    ours, cpus = (
        (scores(decoder(config, device, torch.bfloat16), device) - right).abs().mean(-1).median()
        for device in ("cuda", "cpu")
    )
    assert ours <= 1.5 * cpus


def test_gradients(config):
    def gradients(device: str) -> tuple[Tensor, list[Tensor]]:
        model = decoder(config, device).requires_grad_()
        tokens = ids(model.spec.vocab).numpy()
        row = Row(tokens, (tokens * 7 + 1) % model.spec.vocab, LENGTHS)
        total = loss.next_token(model)(Batch.of([row], device)) / len(tokens)
        total.backward()
        return total.detach().cpu(), [p.grad.cpu() for _, p in sorted(model.named_parameters()) if p.grad is not None]

    (ours, mine), (right, theirs) = gradients("cuda"), gradients("cpu")
    torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-4)
    scale = max(float(gradient.abs().max()) for gradient in theirs)
    for gradient, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4 * scale)


def test_tokens(config):
    """Greedy answers to several prompts at once, of which long ones are read in chunks."""
    spec = families.read(config)
    prompts = [part.tolist() for part in ids(spec.vocab).split(LENGTHS) if len(part) < spec.context]

    def answers(device: str) -> list[list[int]]:
        engine = Engine(decoder(config, device), chunk=16)
        asked = [engine.submit(prompt, Sampling(max_new_tokens=12, temperature=0)) for prompt in prompts]
        while engine.busy:
            engine.step()
        return [[token.id for token in sequence.made] for sequence in asked]

    assert answers("cuda") == answers("cpu")


@pytest.mark.parametrize("heads, channels, window", [((4, 4), 64, None), ((8, 2), 128, None), ((6, 1), 80, 7)])
def test_ragged_sequences_are_one_kernel(heads, channels, window):
    """A ribbon of many lengths in half precision, and its gradients, against each sequence alone in float32."""
    drawn = torch.Generator().manual_seed(1)
    shapes = [(sum(LENGTHS), n, channels) for n in (heads[0], heads[1], heads[1])]
    plain = [torch.randn(shape, generator=drawn).bfloat16().float().requires_grad_() for shape in shapes]
    half = [x.detach().cuda().bfloat16().requires_grad_() for x in plain]
    scale, outer = channels**-0.5, torch.randn(sum(LENGTHS), heads[0], channels, generator=drawn)
    right = kernels.attend(*plain, Layout.of(LENGTHS), scale=scale, window=window)
    (right * outer).sum().backward()
    got = kernels.attend(*half, Layout.of(LENGTHS, "cuda"), scale=scale, window=window)
    (got.float() * outer.cuda()).sum().backward()
    torch.testing.assert_close(got.float().cpu(), right, rtol=2e-2, atol=2e-2)
    for mine, theirs in zip(half, plain, strict=True):
        torch.testing.assert_close(mine.grad.float().cpu(), theirs.grad, rtol=4e-2, atol=6e-2)


@pytest.mark.parametrize("window", [None, 7])
def test_ragged_sequences_read_a_cache_in_one_kernel(window):
    """Each sequence's last tokens, its past in slots that lie together or scattered, against float32 on the CPU."""
    drawn = torch.Generator().manual_seed(1)
    pasts, fresh = (30, 0, 12, 20), (1, 5, 3, 1)
    slots = torch.randperm(200, generator=drawn)
    reads = (slice(40, 71), slots[:5], slots[5:20], slice(100, 121))
    ends = [torch.arange(read.start, read.stop) if isinstance(read, slice) else read for read in reads]
    write = torch.cat([end[past:] for end, past in zip(ends, pasts, strict=True)])
    q, k, v = (torch.randn(10, heads, 64, generator=drawn).bfloat16() for heads in (8, 2, 2))
    cache = torch.randn(2, 200, 2, 64, generator=drawn).bfloat16()

    def looked(device: str, dtype: torch.dtype) -> Tensor:
        layout = Layout(
            torch.cat([torch.arange(past, past + n) for past, n in zip(pasts, fresh, strict=True)]).to(device),
            (0, 1, 6, 9, 10), (64,) * 4, write.to(device),
            tuple(read if isinstance(read, slice) else read.to(device) for read in reads),
        )  # fmt: skip
        kept = tuple(cache.to(device, dtype, copy=True))
        new = (x.to(device, dtype) for x in (q, k, v))
        return kernels.attend(*new, layout, scale=0.125, window=window, cache=kept).float().cpu()

    torch.testing.assert_close(looked("cuda", torch.bfloat16), looked("cpu", torch.float32), rtol=2e-2, atol=2e-2)
