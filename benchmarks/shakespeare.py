"""Seconds until a small model has learned Shakespeare by characters, and how well: Lathe beside nanoGPT's own recipe.

nanoGPT's setting for small CPUs: 4 layers of width 128, 4 heads, 12 rows of 64 characters, 2,000 steps of AdamW. The
same characters, steps, rates and held-out tenth for all; Lathe learns a Llama of that size, in mixed precision. Give it
the text: `shakespeare.py input.txt`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import compare, reported
from torch import Tensor, nn

from lathe import families
from lathe.data.loader import Batch, Work
from lathe.model import initial
from lathe.model.layout import Layout
from lathe.training import loop, loss, optim
from lathe.training.limits import Limits
from lathe.training.schedule import Schedule

ROWS, LENGTH, WIDTH, LAYERS, HEADS, STEPS = 12, 64, 128, 4, 4, int(os.environ.get("STEPS", "2000"))
TOP, FLOOR, WARMUP, DECAY, BETAS = 1e-3, 1e-4, 100, 0.1, (0.9, 0.99)


class Text:
    """Characters as ids; the last tenth is held out."""

    def __init__(self, path: str) -> None:
        text = Path(path).read_text(encoding="utf-8")
        known = sorted(set(text))
        ids = torch.tensor([known.index(letter) for letter in text])
        cut = int(0.9 * len(ids))
        self.vocab, self.train, self.held = len(known), ids[:cut], ids[cut:]

    def batch(self, ids: Tensor) -> Tensor:
        starts = torch.randint(len(ids) - LENGTH, (ROWS,))
        return torch.stack([ids[start : start + LENGTH + 1] for start in starts])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.ln_1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class Gpt(nn.Module):
    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if deep else 0.02)

    def forward(self, batch: Tensor) -> Tensor:
        x = self.blocks(self.tokens(batch[:, :-1]) + self.positions.weight)
        return F.cross_entropy(F.linear(self.norm(x), self.tokens.weight).flatten(0, 1), batch[:, 1:].flatten())


def nanogpt(text: Text, compiled: bool) -> Callable[[Tensor], Tensor]:
    model = Gpt(text.vocab)
    loss = torch.compile(model) if compiled else model
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=TOP, betas=BETAS, fused=True)
    for step in range(STEPS):
        done = (step - WARMUP) / (STEPS - WARMUP)
        rate = TOP * (step + 1) / (WARMUP + 1) if step < WARMUP else None
        for group in optimizer.param_groups:
            group["lr"] = rate or FLOOR + 0.5 * (1 + math.cos(math.pi * done)) * (TOP - FLOOR)
        loss(text.batch(text.train)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model


def lathe(text: Text) -> Callable[[Tensor], Tensor]:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": text.vocab,
        "hidden_size": WIDTH,
        "intermediate_size": 344,  # three matrices with as many weights as GPT's two
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": True,
    }
    decoder = initial.decoder(families.read(config), 0)
    objective = loss.next_token(decoder, torch.bfloat16)  # mixed precision, which nanoGPT takes on GPUs only

    def made(rows: Tensor) -> Batch:
        return Batch(rows[:, :-1].flatten(), rows[:, 1:].flatten(), Layout.of([LENGTH] * ROWS), ROWS * LENGTH)

    def data() -> Iterator[Work]:
        while True:
            yield Work([made(text.batch(text.train))], ROWS * LENGTH, ROWS * LENGTH)

    optimizers = optim.build(decoder, optim.Settings(lr=TOP, weight_decay=DECAY, betas=BETAS))
    schedule = Schedule("cosine", warmup=WARMUP, floor=FLOOR / TOP)
    loop.train(objective, optimizers, data(), schedule, Limits(steps=STEPS), 1.0, lambda step: True)
    return lambda rows: objective(made(rows)) / (ROWS * LENGTH)


if __name__ == "__main__":
    path, *who = sys.argv[1:]
    if not who:
        rivals = {name: [sys.executable, __file__, path, name] for name in ("Lathe", "nanoGPT", "nanoGPT, compiled")}
        compare(f"tiny Shakespeare, {STEPS} steps", rivals, reported, int(os.environ.get("RUNS", "3")), warm=0)
        sys.exit()
    torch.manual_seed(1337)
    text = Text(path)
    begin = time.perf_counter(), time.process_time()
    loss = lathe(text) if who == ["Lathe"] else nanogpt(text, compiled="compiled" in who[0])
    seconds, computed = time.perf_counter() - begin[0], time.process_time() - begin[1]
    torch.manual_seed(0)
    with torch.no_grad():
        held = sum(loss(text.batch(text.held)).item() for _ in range(200)) / 200
    print(json.dumps({"seconds": seconds, "CPU seconds": computed, "validation loss": held}))
