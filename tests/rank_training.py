"""What the processes of test_spread_training.py do; apart from it, because they need not import what it imports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lathe.data.examples import Examples
from lathe.data.loader import Steps
from lathe.data.pack import IGNORE, Packed, Row
from lathe.data.render import Example
from lathe.data.stages import Shuffled
from lathe.model import spec as s
from lathe.model.decoder import Decoder
from lathe.training import blocks, loop, loss, optim, preference
from lathe.training.grid import Grid
from lathe.training.limits import Limits
from lathe.training.precision import Precision
from lathe.training.schedule import Schedule
from lathe.training.spread import Spread
from lathe.transforms import adapt
from lathe.transforms.terms import Lora
from lathe.weights.tensors import Ref

Wanted = tuple[Any, ...]  # model, grid, how many steps, and perhaps in which way, as `trained` takes them
VOCAB, WIDTH = 61, 32
NORM, ROPE = s.RMSNorm(1e-5), s.Rope(1e4, 8)
GROUPED = s.Attention(4, 2, 8, 0.35, ROPE)
PLAIN = s.Spec(VOCAB, WIDTH, (s.Layer(GROUPED, s.Gated(48), NORM),) * 2, NORM, 64)


def of(mixer: s.Mixer, mlp: s.Mlp, norm: s.Norm = NORM, order: s.Order = "pre", **more: Any) -> s.Spec:
    return replace(PLAIN, layers=(s.Layer(mixer, mlp, norm, order),) * 2, norm=norm, **more)


OFFSET = s.RMSNorm(1e-6, offset=1.0)
ROUTER = s.Router(4, 2, bias=True)
SPECS = {
    "llama": PLAIN,
    "shallow": replace(PLAIN, layers=PLAIN.layers[:1]),
    "gemma": of(  # one head of keys, which all ranks have; norms over each head; a tied head; caps
        replace(GROUPED, kv_heads=1, qk_norm=s.QKNorm(OFFSET), softcap=5.0, window=6),
        s.Gated(50, "gelu_tanh"),
        OFFSET,
        "sandwich",
        tied=True,
        embed_scale=WIDTH**0.5,
        logit_softcap=5.0,
    ),
    "olmo": of(replace(GROUPED, qk_norm=s.QKNorm(NORM, "row")), s.Gated(48), order="post"),
    "experts": of(replace(GROUPED, qkv_bias=True, out_bias=True, sinks=True), s.Experts(s.Clamped(20), ROUTER)),
    "shared expert": of(
        replace(GROUPED, kv_heads=4, qk_norm=s.QKNorm(s.LayerNorm(1e-5, bias=False), "own head")),
        s.Experts(s.Gated(20), s.Router(4, 2), shared=s.Gated(24), shared_gate=True),
    ),
    "latent": of(s.LatentAttention(4, 12, 16, 8, 8, 0.25, ROPE, NORM), s.Gated(48)),
    "gpt": of(
        replace(GROUPED, qkv_bias=True, out_bias=True),
        s.Plain(48, "gelu"),
        s.LayerNorm(1e-5),
        "parallel",
        learned_positions=64,
        head_bias=True,
    ),
}


def drawn(spec: s.Spec) -> Iterator[tuple[str, Ref]]:
    """Random weights, the same in every process, larger than a sound start."""
    from lathe.model.blank import blank, slots

    generator = torch.Generator().manual_seed(3)
    for name, slot in slots(blank(spec)):
        mean = float("norm" in name and "offset" not in repr(spec.norm))
        yield name, Ref.of(torch.empty(slot.shape).normal_(mean, 0.2, generator=generator))


class Uneven(Packed):
    """Rows of which some have few tokens with a loss."""

    def __next__(self) -> Row:
        row = super().__next__()
        targets = row.targets.copy()
        targets[:: len(row.lengths) + 1] = IGNORE
        return replace(row, targets=targets)


def data(spread: Spread, per_batch: int = 1) -> Steps:
    draw = np.random.default_rng(0)
    documents = [draw.integers(0, VOCAB, draw.integers(2, 40)) for _ in range(12)]
    rows = Uneven(Shuffled(documents, seed=1), 16)
    return Steps(rows, 5, per_batch, spread.device, spread.rank, spread.count)


def opinions(spread: Spread) -> Steps:
    """Pairs of answers, one chosen and one rejected, some to a row."""
    draw = np.random.default_rng(0)

    def example(length: int) -> Example:
        return Example(draw.integers(0, VOCAB, length + 5).astype(np.int32), np.arange(length + 5) >= 5)

    pairs = [(example(draw.integers(1, 9)), example(draw.integers(1, 9))) for _ in range(12)]
    where = {"device": spread.device, "rank": spread.rank, "ranks": spread.count}
    return Examples(pairs, 40).training(5, rows=1, seed=1, weigh=preference.pairs, **where)


def weights_of(spread: Spread, decoder: Decoder) -> dict[str, Tensor]:
    """All parameters of the whole model, as the first process has them; the others have none."""
    whole = spread.whole(decoder)
    return {n: p.detach().clone() for n, p in whole.named_parameters()} if whole is not None else {}


PRODUCTS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def trained(device: torch.device, name: str, grid: Grid, steps: int, way: str = "") -> dict[str, Any]:
    """Losses and gradient norms of each step, and all tensors at the end. way: of PRODUCTS, and other words."""
    words = way.split()
    chosen = Precision(device, torch.float32, next((PRODUCTS[word] for word in words if word in PRODUCTS), None))
    spread = Spread(device, grid)
    decoder = spread.load(SPECS[name], drawn(SPECS[name]), chosen.weights, chosen.autocast)
    if "lora" in words:
        torch.manual_seed(5)
        adapt.put(decoder, "default", spread.adapter(decoder, Lora(4, 8.0, "all-linear")))
        adapt.trainable(decoder)
    if "compiled" in words:
        blocks.compiled(decoder, "eager")
    if "checkpointed" in words:
        blocks.checkpointed(decoder)
    spread.learn(decoder)
    seen: list[loop.Step] = []
    objective, rows = loss.next_token(decoder, chosen.autocast), data(spread, 2 if "wide" in words else 1)
    if "dpo" in words:
        reference = preference.without_adapters(decoder)
        if "lora" not in words:
            other = Spread(device, grid).load(SPECS[name], drawn(SPECS[name]), chosen.weights, chosen.autocast)
            reference = preference.fixed(other)
        objective, rows = preference.objective(decoder, preference.Settings(), reference), opinions(spread)
    loop.train(
        objective,
        optim.build(decoder, optim.Settings(lr=1e-2)),
        rows,
        Schedule("cosine", 4, 0.1),
        Limits(steps),
        1.0,
        lambda step: seen.append(step) or True,
        ranks=spread,
        scale=chosen.scale(),
    )
    tensors = weights_of(spread, decoder)
    return {"loss": [step.loss for step in seen], "norm": [step.gradient_norm for step in seen], "tensors": tensors}


def read(device: torch.device, grid: Grid) -> list[int]:
    """How many numbers each rank reads of the model that it loads its part of."""
    counts = [0]

    def counted(ref: Ref) -> Ref:
        def fetch(box: tuple[slice, ...]) -> Tensor:
            piece = ref.fetch(box)
            counts[0] += piece.numel()
            return piece

        return replace(ref, fetch=fetch)

    Spread(device, grid).load(PLAIN, ((name, counted(ref)) for name, ref in drawn(PLAIN)), torch.float32)
    every: list[int] = [0] * grid.size
    dist.all_gather_object(every, counts[0])
    return every


def each(device: torch.device, wanted: list[Wanted], out: Path) -> None:
    """What one rank does: train every model on every grid, and have the first say how it went."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {repr(some): trained(device, *some) for some in wanted}
    count = dist.get_world_size()
    found["shards"], found["slices"] = read(device, Grid(1, count)), read(device, Grid(1, 1, count))
    if dist.get_rank() == 0:
        torch.save(found, out / "found.pt")


tell = partial(trained, torch.device("cpu"))
