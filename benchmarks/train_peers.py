"""One peer trains on random tokens in this process; prints tokens/s, peak memory and the first step's seconds as JSON.

Each does what its users would have it do: nanogpt is the loop that one would write by hand, compiled; transformers and
PEFT run under a plain loop; LitGPT's is the inner loop of its pretrain and finetune commands, under Fabric. Imports
nothing of Lathe: it runs in the peers' own environments.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from shapes import SHAPES
from torch import Tensor, nn

LENGTH, ROWS = 512, 4  # tokens in a row, rows in a step
WARM, TIMED = 2, 4  # steps
LORA = {"r": 8, "alpha": 16, "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")}


def config(size: str) -> dict[str, Any]:
    """A Llama of the shape of Karpathy's stories15M or of SmolLM2-135M, in Hugging Face's words."""
    return SHAPES[size] | {"max_position_embeddings": 2048}


def batches(size: str) -> Iterator[Tensor]:
    """Rows of random tokens, one more than a step predicts."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(WARM + TIMED):
        yield torch.randint(3, config(size)["vocab_size"], (ROWS, LENGTH + 1), generator=generator)


def tick() -> tuple[float, float]:
    """Seconds on the clock, and seconds that this process has computed."""
    return time.perf_counter(), time.process_time()


def report(times: Sequence[tuple[float, float]]) -> None:
    """times: before the first step, and after every one."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, computed = ([b[i] - a[i] for a, b in pairwise(times)] for i in (0, 1))
    tokens = ROWS * LENGTH
    figures = {"tokens/s": tokens / median(wall[WARM:]), "tokens/CPU s": tokens / median(computed[WARM:])}
    print(json.dumps(figures | {"MiB": peak, "first step, s": wall[0]}))


def loop(loss: Callable[[Tensor], Tensor], model: nn.Module, size: str, mixed: bool) -> None:
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, fused=True)
    times = [tick()]
    for batch in batches(size):
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value.item()
        times.append(tick())
    report(times)


class Block(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.h, self.k, self.d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        width, mlp = c["hidden_size"], c["intermediate_size"]
        self.n1, self.n2 = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.qkv = nn.Linear(width, (self.h + 2 * self.k) * self.d, bias=False)
        self.o, self.down = nn.Linear(width, width, bias=False), nn.Linear(mlp, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * mlp, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x.shape
        qkv = self.qkv(self.n1(x)).view(rows, length, -1, self.d).transpose(1, 2)
        q, k, v = qkv.split([self.h, self.k, self.k], 1)

        def turn(t: Tensor) -> Tensor:
            a, b = t.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(v.dtype)

        y = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True, enable_gqa=self.h != self.k)
        x = x + self.o(y.transpose(1, 2).reshape(x.shape))
        gate, up = self.gate_up(self.n2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Plain(nn.Module):
    """A Llama as one would write it in a page: fused q, k, v and gate, up; tied head."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.embed = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], eps=1e-5)
        nn.init.normal_(self.embed.weight, std=0.02)
        speed = c["rope_theta"] ** (-torch.arange(0, c["head_dim"], 2).float() / c["head_dim"])
        turn = torch.outer(torch.arange(LENGTH).float(), speed)
        self.register_buffer("cos", turn.cos())
        self.register_buffer("sin", turn.sin())

    def forward(self, batch: Tensor) -> Tensor:
        x = self.embed(batch[:, :-1])
        for block in self.blocks:
            x = block(x, self.cos.to(self.embed.weight.dtype), self.sin.to(self.embed.weight.dtype))
        logits = F.linear(self.norm(x), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


class WithTerm(nn.Module):
    """A frozen linear map and a low-rank term that learns."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, rank = base, LORA["r"]
        self.a = nn.Parameter(torch.randn(rank, base.in_features, dtype=base.weight.dtype) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, dtype=base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.a), self.b) * (LORA["alpha"] / LORA["r"])


def nanogpt(size: str, task: str, mixed: bool, compiled: bool) -> None:
    model = Plain(config(size)).to(torch.float32 if mixed else torch.bfloat16)
    if task == "lora":
        model.requires_grad_(False)
        for block in model.blocks:
            for name in ("qkv", "o", "gate_up", "down"):
                setattr(block, name, WithTerm(getattr(block, name)))
    loop(torch.compile(model) if compiled else model, model, size, mixed)


def transformers(size: str, task: str, mixed: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    known = LlamaConfig(**{key: value for key, value in config(size).items() if key != "torch_dtype"})
    model: Any = LlamaForCausalLM(known).to(torch.float32 if mixed else torch.bfloat16).train()
    if task == "lora":
        from peft import LoraConfig, get_peft_model

        terms = LoraConfig(r=LORA["r"], lora_alpha=LORA["alpha"], target_modules=list(LORA["targets"]))
        model = get_peft_model(model, terms)

    def loss(batch: Tensor) -> Tensor:
        ids = batch[:, :-1].contiguous()
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    loop(loss, model, size, mixed)


def litgpt(size: str, task: str, mixed: bool) -> None:
    import lightning
    from litgpt.utils import chunked_cross_entropy

    c = config(size)
    known = {
        "block_size": 2048,
        "vocab_size": c["vocab_size"],
        "padded_vocab_size": c["vocab_size"],
        "n_layer": c["num_hidden_layers"],
        "n_head": c["num_attention_heads"],
        "n_query_groups": c["num_key_value_heads"],
        "n_embd": c["hidden_size"],
        "intermediate_size": c["intermediate_size"],
        "rotary_percentage": 1.0,
        "parallel_residual": False,
        "bias": False,
        "norm_class_name": "RMSNorm",
        "mlp_class_name": "LLaMAMLP",
    }
    fabric = lightning.Fabric(devices=1, accelerator="cpu", precision="bf16-mixed" if mixed else "bf16-true")
    with fabric.init_module(empty_init=False):
        if task == "lora":
            from litgpt.lora import GPT, Config, mark_only_lora_as_trainable

            names = ("query", "key", "value", "projection", "mlp")
            on = {f"lora_{name}": True for name in names}
            model = GPT(Config(**known, lora_r=LORA["r"], lora_alpha=LORA["alpha"], lora_dropout=0.0, **on))
            mark_only_lora_as_trainable(model)
        else:
            from litgpt.config import Config
            from litgpt.model import GPT

            model = GPT(Config(**known))
    head = model.lm_head.linear if task == "lora" else model.lm_head
    model.transformer.wte.weight = head.weight  # tied, as the shape is
    model.max_seq_length = LENGTH
    model = fabric.setup(model)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(learned, lr=1e-4, fused=True))
    times = [tick()]
    for batch in batches(size):
        if task == "lora":  # as finetune_lora does
            logits = model(batch[:, :-1].contiguous(), lm_head_chunk_size=128)
            logits[-1] = logits[-1][..., :-1, :]
            value = chunked_cross_entropy(logits, batch[:, 1:-1].contiguous())
        else:
            value = chunked_cross_entropy(model(batch[:, :-1].contiguous()), batch[:, 1:].contiguous())
        fabric.backward(value)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        value.item()
        times.append(tick())
    report(times)


if __name__ == "__main__":
    who, size, task, precision = sys.argv[1:]
    torch.manual_seed(0)
    mixed = precision == "bf16-mixed"
    if who.startswith("nanogpt"):
        nanogpt(size, task, mixed, compiled=who == "nanogpt-compiled")
    else:
        {"transformers": transformers, "litgpt": litgpt}[who](size, task, mixed)
