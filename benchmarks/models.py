"""A shape becomes a model of random weights, in every rival's form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lathe import checkpoint, families
from lathe.checkpoint.packing import pack
from lathe.tokenizer import train_bpe
from lathe.weights import safetensors
from lathe.weights.tensors import Box, Ref

README = Path(__file__).parents[1] / "README.md"
KINDS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}  # what llama.cpp has beside each of ours


def make(folder: Path, config: dict[str, Any], kinds: list[str], litgpt: bool) -> None:
    """The model as a Hugging Face folder, as one GGUF file for each of `kinds`, and as LitGPT's folder if wanted."""
    slots = checkpoint.slots(checkpoint.blank(families.read(config)))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    train_bpe([README.read_text()], 300).save(folder)  # for those that ask with words

    def tensor(shape: tuple[int, ...]) -> Ref:
        def draw(box: Box) -> torch.Tensor:
            return (torch.randn([part.stop - part.start for part in box]) * 0.02).bfloat16()

        return Ref(shape, torch.bfloat16, draw)

    safetensors.write(folder / "model.safetensors", {name: tensor(tuple(slot.shape)) for name, slot in slots})
    tensors = checkpoint.open(folder).tensors
    # llama.cpp is given ids, and asked for ids: no vocabulary, but its size.
    words = {"tokenizer.ggml.model": "no_vocab", f"{config['model_type']}.vocab_size": config["vocab_size"]}
    for kind in kinds:
        pack(folder / f"{KINDS[kind]}.gguf", tensors, config, KINDS[kind], words)
    if litgpt:
        checkpoint.save(folder / "litgpt", tensors, config, form="litgpt")
