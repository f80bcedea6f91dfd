"""Shapes of real models, and models of random weights in them, in every rival's form."""

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
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "attention_bias": False,
    "mlp_bias": False,
}


def _shape(width: int, mlp: int, layers: int, heads: int, kv_heads: int, vocab: int) -> dict[str, Any]:
    return LLAMA | {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width // heads,
        "vocab_size": vocab,
    }


# Qwen's biases are left out: one configuration for all rivals.
SHAPES = {
    "15M": _shape(288, 768, 6, 6, 6, 32000),
    "135M": _shape(576, 1536, 30, 9, 3, 49152),
    "0.5B": _shape(896, 4864, 24, 14, 2, 151936),
    "1B": _shape(2048, 8192, 16, 32, 8, 128256),
}
NAMES = {"15M": "stories15M", "135M": "SmolLM2-135M", "0.5B": "Qwen2.5-0.5B", "1B": "Llama-3.2-1B"}


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


class Cost:
    """What a token costs in a shape. matrices: numbers in the matrices of layers. head: in the head, which is the
    embedding. cache: bytes that a token leaves, in bfloat16. looking: operations for each token that it sees."""

    def __init__(self, config: dict[str, Any]) -> None:
        width, mlp, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        channels = config["head_dim"]
        self.matrices = layers * (2 * width * (heads + kv_heads) * channels + 3 * width * mlp)
        self.head = config["vocab_size"] * width
        self.cache = layers * 2 * kv_heads * channels * 2
        self.looking = layers * 4 * heads * channels

    def decode(self, weights: float, prompt: int, new: int) -> float:
        """Bytes that a token takes to write, on average."""
        return weights + self.cache * (prompt + new / 2)

    def prefill(self, prompt: int) -> float:
        """Operations for a token of a prompt, the scores of the next one included."""
        return 2 * self.matrices + self.looking * prompt / 2 + 2 * self.head / prompt
