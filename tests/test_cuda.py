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
from lathe.model import initial, kernels, spec
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout, Table
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
    read = families.read(config)
    prompts = [part.tolist() for part in ids(read.vocab).split(LENGTHS) if len(part) < read.context]

    def answers(device: str) -> list[list[int]]:
        engine = Engine(decoder(config, device), chunk=16)
        asked = [engine.submit(prompt, Sampling(max_new_tokens=12, temperature=0)) for prompt in prompts]
        while engine.busy:
            engine.step()
        return [[token.id for token in sequence.made] for sequence in asked]

    assert answers("cuda") == answers("cpu")


# ---- recorded steps --------------------------------------------------------------------------------------------------
@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[torch.cuda.CUDAGraph]:
    """Every replay of a graph."""
    seen: list[torch.cuda.CUDAGraph] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        seen.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return seen


def talk(engine: Engine, prompts: list[list[int]], new: int = 12) -> list[tuple[list[int], list[float | None]]]:
    """Some come while others answer; tokens and their log-probabilities."""
    asked = []
    for number, prompt in enumerate(prompts):
        wish = Sampling(temperature=0, max_new_tokens=new + 5 * (number % 3), logprobs=0)
        asked.append(engine.submit(prompt, wish))
        engine.step()
        engine.step()
    while engine.busy:
        engine.step()
    return [([token.id for token in one.made], [token.logprob for token in one.made]) for one in asked]


def prompts_of(vocab: int, context: int) -> list[list[int]]:
    drawn = torch.Generator().manual_seed(6)
    return [
        torch.randint(3, vocab, (n,), generator=drawn).tolist() for n in (1, 17, 5, 30, 2, 9, 12, 23, 4) if n < context
    ]


@pytest.mark.parametrize("kv", [None, torch.int8], ids=["kept as they are", "kept in 8 bits"])
def test_replayed_steps_say_what_others_do(config, kv, replays):
    """In float32: the same tokens, from as few launches as there are steps."""
    model = decoder(config, "cuda")
    prompts = prompts_of(model.spec.vocab, model.spec.context)
    eager = Engine(model, tokens=1024, kv=kv)
    eager.runner.graphs = None
    right = talk(eager, prompts)
    assert not replays
    engine = Engine(model, tokens=1024, kv=kv)
    ours = talk(engine, prompts)
    graphs = engine.runner.graphs
    assert graphs is not None
    if any(isinstance(layer.mlp, spec.Experts) for layer in model.spec.layers):
        assert graphs.refused and not replays  # in float32 the host deals out the tokens
    else:
        assert graphs.refused is None and len(replays) > 10
        assert {rows for rows, _ in graphs.steps} <= {1, 2, 4, 8, 16}
    for (tokens, logprobs), (theirs, told) in zip(ours, right, strict=True):
        if kv is None:
            assert tokens == theirs
            assert logprobs == pytest.approx(told, abs=1e-3)


def test_replayed_steps_in_bfloat16(config, replays):
    """Scores of the same tokens, mixtures of experts among them, whose products are one kernel then."""
    model = decoder(config, "cuda", torch.bfloat16)
    prompts = prompts_of(model.spec.vocab, model.spec.context)
    engine = Engine(model, tokens=1024)
    said = talk(engine, prompts)
    graphs = engine.runner.graphs
    assert graphs is not None
    whole = all(w % 8 == 0 for n, p in model.named_parameters() if ".experts." in n for w in p.shape[1:])
    assert (graphs.refused is None) == whole == bool(replays)
    wide = decoder(config, "cpu")
    near = []
    for prompt, (tokens, logprobs) in zip(prompts, said, strict=True):
        rows = Engine(wide).logits([*prompt, *tokens])[len(prompt) - 1 : -1].log_softmax(-1)
        near += [abs(float(row[token]) - told) for row, token, told in zip(rows, tokens, logprobs, strict=True)]
    assert torch.tensor(near).median() < 0.1


def test_a_pool_that_grows_and_weights_that_change_are_recorded_anew(replays):
    model = decoder(SPECS["smollm2"], "cuda")
    prompts = prompts_of(model.spec.vocab, model.spec.context)
    engine = Engine(model)
    for change in (False, True):
        if change:
            model.model.layers[0].mlp.up_proj.weight.data = -model.model.layers[0].mlp.up_proj.weight.data
        eager = Engine(model)
        eager.runner.graphs = None
        before = len(replays)
        assert [tokens for tokens, _ in talk(engine, prompts)] == [tokens for tokens, _ in talk(eager, prompts)]
        assert len(replays) > before + 10


@pytest.mark.parametrize("window, chunk", [(None, None), (7, None), (None, 6)])
@pytest.mark.parametrize("heads, channels", [((8, 2), 64), ((4, 4), 128), ((4, 1), 72)])
def test_a_table_of_slots_is_read_as_each_sequence_is(heads, channels, window, chunk):
    """One kernel that learns the lengths on the device, against each sequence by itself in float32 on the CPU."""
    drawn = torch.Generator().manual_seed(1)
    lengths = torch.tensor([1, 40, 7, 13])
    slots = torch.randperm(400, generator=drawn)[:256].view(4, 64)
    q = torch.randn(4, heads[0], channels, generator=drawn).bfloat16()
    k, v = (torch.randn(4, heads[1], channels, generator=drawn).bfloat16() for _ in range(2))
    cache = torch.randn(2, 400, heads[1], channels, generator=drawn).bfloat16()
    last = slots.gather(1, lengths[:, None] - 1)

    def looked(device: str, dtype: torch.dtype, **told: object) -> Tensor:
        layout = Layout((lengths - 1).to(device), (0, 1, 2, 3, 4), (64,) * 4, last[:, 0].to(device), **told)
        kept, new = tuple(cache.to(device, dtype, copy=True)), (x.to(device, dtype) for x in (q, k, v))
        return kernels.attend(*new, layout, scale=0.125, window=window, chunk=chunk, cache=kept).float().cpu()

    read = tuple(row[:n] for row, n in zip(slots, lengths.tolist(), strict=True))
    past = torch.arange(64) < lengths[:, None]
    table = Table(torch.where(past, slots, last).cuda(), lengths.cuda())
    got = looked("cuda", torch.bfloat16, table=table)
    torch.testing.assert_close(got, looked("cpu", torch.float32, read=read), rtol=2e-2, atol=2e-2)


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
