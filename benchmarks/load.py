"""Seconds and anonymous memory to load a 1.2 B-parameter bf16 Llama (Llama 3.2 1B's shape, random weights)."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from measure import compare, reported

from lathe import checkpoint, families
from lathe.weights import safetensors
from lathe.weights.tensors import Box, Ref

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}

ANONYMOUS = """
import json, sys, time
def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) / 1024
"""
LATHE = (
    ANONYMOUS
    + """
from lathe import checkpoint
before, start = anonymous(), time.perf_counter()
decoder = checkpoint.open(sys.argv[1]).load()
print(json.dumps({"seconds": time.perf_counter() - start, "MiB": anonymous() - before}))
"""
)
TRANSFORMERS = (
    ANONYMOUS
    + """
import torch
from transformers import LlamaForCausalLM
before, start = anonymous(), time.perf_counter()
model = LlamaForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
print(json.dumps({"seconds": time.perf_counter() - start, "MiB": anonymous() - before}))
"""
)


def make(folder: Path) -> None:
    """Random weights, one tensor at a time."""
    slots = checkpoint.slots(checkpoint.blank(families.read(CONFIG)))
    (folder / "config.json").write_text(json.dumps(CONFIG))

    def tensor(shape: tuple[int, ...]) -> Ref:
        def draw(box: Box) -> torch.Tensor:
            return (torch.randn([part.stop - part.start for part in box]) * 0.02).bfloat16()

        return Ref(shape, torch.bfloat16, draw)

    safetensors.write(folder / "model.safetensors", {name: tensor(tuple(slot.shape)) for name, slot in slots})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        programs = {"Lathe": LATHE, "transformers": TRANSFORMERS}
        compare(
            "load a 1.2 B bf16 Llama",
            {who: [sys.executable, "-c", program, folder] for who, program in programs.items()},
            reported,
        )
