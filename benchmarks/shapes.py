"""Shapes of real models in Hugging Face's words, and what a token costs in them. Imports nothing, as rivals read it."""

from __future__ import annotations

from typing import Any

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
