"""One peer answers in this process: decode_peers.py PEER MODEL SIZE. Prints tokens/s and most memory as JSON.

Decode is what 127 tokens after the first take, behind a prompt of 128; prefill what a prompt of 512 takes to its first
token; sixteen at once, where the peer can, counts new tokens, their prompts' time included. Imports nothing of Lathe:
it runs in the peers' own environments.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

PROMPT, NEW, BATCH, LONG = 128, 128, 16, 512
RUNS = int(os.environ.get("REPEATS", "3"))
Answer = Callable[[int, int], None]  # a prompt of so many tokens, and how many are to follow

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
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
        "vocab_size": vocab,
    }


# Qwen's biases are left out: one configuration for all rivals.
CONFIGS = {
    "135M": LLAMA | _shape(576, 1536, 30, 9, 3, 49152),
    "0.5B": LLAMA | _shape(896, 4864, 24, 14, 2, 151936),
    "1B": LLAMA | _shape(2048, 8192, 16, 32, 8, 128256),
}


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "2"))


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def figures(answer: Answer, sixteen: Callable[[], None] | None = None) -> None:
    """Time a peer, and print."""
    answer(PROMPT, 4)
    first = median(seconds(lambda: answer(PROMPT, 1)) for _ in range(RUNS))
    whole = median(seconds(lambda: answer(PROMPT, NEW)) for _ in range(RUNS))
    prefill = median(seconds(lambda: answer(LONG, 1)) for _ in range(RUNS))
    told = {"decode tokens/s": (NEW - 1) / (whole - first), "prefill tokens/s": LONG / prefill}
    if sixteen is not None:
        told["sixteen, tokens/s"] = BATCH * NEW / seconds(sixteen)
    told["MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(told))


def transformers(folder: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None

    def answer(length: int, new: int, count: int = 1) -> None:
        prompts = torch.randint(3, 30000, (count, length), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            told = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
            model.generate(prompts, attention_mask=torch.ones_like(prompts), **told)

    figures(answer, lambda: answer(PROMPT, NEW, BATCH))


def litgpt(folder: str) -> None:
    from pathlib import Path

    import torch
    from litgpt.config import Config
    from litgpt.generate.base import generate
    from litgpt.model import GPT

    torch.set_num_threads(threads())
    torch.set_default_dtype(torch.bfloat16)
    model = GPT(Config.from_file(Path(folder) / "model_config.yaml")).eval()
    model.load_state_dict(torch.load(Path(folder) / "lit_model.pth", mmap=True))
    model.max_seq_length = LONG + 8
    model.set_kv_cache(batch_size=1)

    def answer(length: int, new: int) -> None:
        prompt = torch.randint(3, 30000, (length,), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            generate(model, prompt, length + new, temperature=0.0, top_k=None, top_p=0.0, eos_id=None)

    figures(answer)


def llamacpp(file: str) -> None:
    import llama_cpp as L

    quiet = L.llama_log_callback(lambda *_: None)
    L.llama_log_set(quiet, None)
    L.llama_backend_init()
    model = L.llama_model_load_from_file(file.encode(), L.llama_model_default_params())
    settings = L.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = BATCH * (PROMPT + NEW), 2048, 512
    settings.n_seq_max, settings.kv_unified = BATCH, True
    settings.n_threads = settings.n_threads_batch = threads()
    context = L.llama_init_from_model(model, settings)
    greedy, memory = L.llama_sampler_init_greedy(), L.llama_get_memory(context)

    def batch(tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """One pass over (token, position, sequence, whether the next is wanted); the next tokens."""
        made = L.llama_batch_init(len(tokens), 0, 1)
        made.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            made.token[i], made.pos[i], made.n_seq_id[i], made.logits[i] = token, position, 1, wanted
            made.seq_id[i][0] = sequence
        assert L.llama_decode(context, made) == 0
        found = [L.llama_sampler_sample(greedy, context, i) for i, token in enumerate(tokens) if token[3]]
        L.llama_batch_free(made)
        return found

    def answer(length: int, new: int, count: int = 1) -> None:
        L.llama_memory_clear(memory, True)
        tokens = []
        for s in range(count):
            tokens += batch([(3 + (s * 997 + i * 31) % 29000, i, s, i == length - 1) for i in range(length)])
        for step in range(new - 1):
            tokens = batch([(token, length + step, s, True) for s, token in enumerate(tokens)])

    figures(answer, lambda: answer(PROMPT, NEW, BATCH))


def limits(_: str) -> None:
    """What the machine reads and multiplies."""
    import torch

    torch.set_num_threads(threads())
    much = torch.zeros(1 << 27)
    a = torch.randn(2048, 2048).bfloat16()
    read = min(seconds(much.sum) for _ in range(5))
    product = min(seconds(lambda: a @ a) for _ in range(5))
    print(json.dumps({"GB/s": much.nbytes / read / 1e9, "bf16 GFLOP/s": 2 * 2048**3 / product / 1e9}))


if __name__ == "__main__":
    peer, model, size = sys.argv[1:]
    {"transformers": transformers, "litgpt": litgpt, "llama.cpp": llamacpp, "limits": limits}[peer](model)
