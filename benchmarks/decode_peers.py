"""One peer answers in this process: decode_peers.py PEER MODEL. Prints what it took as JSON.

Decode is what the tokens after the first take, behind a prompt of 128 or 2,048; prefill what a prompt of 512 takes to
its first token; sixteen at once, where the peer can, counts new tokens, their prompts' time included. Memory is the
most that the process had beyond its imports, after answering alone behind 128 tokens and reading 512.

Imports nothing of Lathe: it runs in the peers' own environments.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Protocol

PROMPT, NEW, BATCH, READ, LONG = 128, int(os.environ.get("NEW", "128")), 16, 512, 2048
ENOUGH = float(os.environ.get("SECONDS_EACH", "1"))  # what is quicker is repeated


class Rival(Protocol):
    """sixteen: whether it answers several at once. reads: bytes of weights that one token takes to write."""

    sixteen: bool
    reads: int

    def answer(self, count: int, length: int, new: int) -> None:
        """So many prompts of `length` random tokens, each answered by `new`."""

    def widen(self, count: int, tokens: int) -> None:
        """Make room for so many sequences, of so many tokens together, if it is not there."""


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "2"))


def seconds(work: Callable[[], object]) -> float:
    """The median of as many times as there is patience for."""
    took: list[float] = []
    while not took or (sum(took) < ENOUGH and len(took) < 20):
        begun = time.perf_counter()
        work()
        took.append(time.perf_counter() - begun)
    return median(took)


def most() -> float:
    """The most memory that this process had so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent had when it began this process
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)


def figures(load: Callable[[], Rival]) -> None:
    """Time a peer, and print."""
    imports, begun = most(), time.perf_counter()
    rival = load()
    told = {"load, s": time.perf_counter() - begun}
    rival.answer(1, PROMPT, 1)
    told["load to first token, s"] = time.perf_counter() - begun
    rival.answer(1, PROMPT, 4)

    def decode(prompt: int) -> float:
        first = seconds(lambda: rival.answer(1, prompt, 1))
        return (NEW - 1) / max(seconds(lambda: rival.answer(1, prompt, NEW)) - first, 1e-9)

    told["first token, s"] = seconds(lambda: rival.answer(1, PROMPT, 1))
    told["decode"] = decode(PROMPT)
    told["prefill"] = READ / seconds(lambda: rival.answer(1, READ, 1))
    told["MiB"], told["own MiB"] = most(), most() - imports
    told["reads"] = rival.reads
    rival.widen(1, LONG + NEW)
    told["decode, long"] = decode(LONG)
    if rival.sixteen:
        rival.widen(BATCH, BATCH * (PROMPT + NEW))
        told["sixteen"] = BATCH * NEW / seconds(lambda: rival.answer(BATCH, PROMPT, NEW))
    print(json.dumps(told))


class Transformers:
    sixteen = True

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.model.generation_config.eos_token_id = None
        self.reads = sum(parameter.nbytes for parameter in self.model.parameters())

    def answer(self, count: int, length: int, new: int) -> None:
        prompts = torch.randint(3, 30000, (count, length), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            told = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
            self.model.generate(prompts, attention_mask=torch.ones_like(prompts), **told)

    def widen(self, count: int, tokens: int) -> None: ...


class LitGPT:
    sixteen = False

    def __init__(self, folder: str) -> None:
        from litgpt.config import Config
        from litgpt.model import GPT

        torch.set_default_dtype(torch.bfloat16)
        self.model = GPT(Config.from_file(Path(folder) / "model_config.yaml")).eval()
        self.model.load_state_dict(torch.load(Path(folder) / "lit_model.pth", mmap=True))
        self.reads = self.model.lm_head.weight.nbytes + sum(p.nbytes for p in self.model.transformer.h.parameters())
        self.widen(1, READ + NEW)

    def answer(self, count: int, length: int, new: int) -> None:
        from litgpt.generate.base import generate

        assert count == 1
        prompt = torch.randint(3, 30000, (length,), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            generate(self.model, prompt, length + new, temperature=0.0, top_k=None, top_p=0.0, eos_id=None)

    def widen(self, count: int, tokens: int) -> None:
        self.model.max_seq_length = tokens + 8
        self.model.set_kv_cache(batch_size=1)


class LlamaCpp:
    sixteen = True

    def __init__(self, file: str) -> None:
        self.quiet = L.llama_log_callback(lambda *_: None)
        L.llama_log_set(self.quiet, None)
        L.llama_backend_init()
        self.model = L.llama_model_load_from_file(file.encode(), L.llama_model_default_params())
        self.greedy, self.context, self.reads = L.llama_sampler_init_greedy(), None, Path(file).stat().st_size
        self.widen(1, READ + NEW)

    def widen(self, count: int, tokens: int) -> None:
        if self.context is not None:
            L.llama_free(self.context)
        settings = L.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = tokens, 2048, 512
        settings.n_seq_max, settings.kv_unified = count, True
        settings.n_threads = settings.n_threads_batch = threads()
        self.context = L.llama_init_from_model(self.model, settings)

    def answer(self, count: int, length: int, new: int) -> None:
        L.llama_memory_clear(L.llama_get_memory(self.context), True)
        tokens = []
        for s in range(count):
            tokens += self._batch([(3 + (s * 997 + i * 31) % 29000, i, s, i == length - 1) for i in range(length)])
        for step in range(new - 1):
            tokens = self._batch([(token, length + step, s, True) for s, token in enumerate(tokens)])

    def _batch(self, tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """One pass over (token, position, sequence, whether the next is wanted); the next tokens."""
        made = L.llama_batch_init(len(tokens), 0, 1)
        made.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            made.token[i], made.pos[i], made.n_seq_id[i], made.logits[i] = token, position, 1, wanted
            made.seq_id[i][0] = sequence
        assert L.llama_decode(self.context, made) == 0
        found = [L.llama_sampler_sample(self.greedy, self.context, i) for i, token in enumerate(tokens) if token[3]]
        L.llama_batch_free(made)
        return found


if __name__ == "__main__":
    peer, model = sys.argv[1:]
    imports = {
        "transformers": ("transformers.models.llama.modeling_llama",),
        "litgpt": ("litgpt.model", "litgpt.generate.base"),
        "llama.cpp": (),
    }
    for name in imports[peer]:  # not a part of what is timed
        import_module(name)
    if peer == "llama.cpp":
        import llama_cpp as L
    else:
        import torch

        torch.set_num_threads(threads())
    rivals = {"transformers": Transformers, "litgpt": LitGPT, "llama.cpp": LlamaCpp}
    figures(lambda: rivals[peer](model))
