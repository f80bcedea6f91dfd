"""Lathe answers in this process, through its engine: decode_lathe.py FOLDER bf16|int8|int4. Prints as decode_peers."""

from __future__ import annotations

import sys

import torch
from decode_peers import BATCH, NEW, PROMPT, figures, threads

from lathe import checkpoint
from lathe.engine import Engine, Sampling
from lathe.transforms import pack

if __name__ == "__main__":
    folder, kind = sys.argv[1:]
    torch.set_num_threads(threads())
    decoder = checkpoint.open(folder).load(quantize=None if kind == "bf16" else kind)
    pack.pack(decoder)
    engine = Engine(decoder)

    def answer(length: int, new: int, count: int = 1) -> None:
        engine.pages.forget()  # what was read of the same prompts before
        generator = torch.Generator().manual_seed(1)
        for _ in range(count):
            prompt = torch.randint(3, 30000, (length,), generator=generator).tolist()
            engine.submit(prompt, Sampling(temperature=0, max_new_tokens=new))
        while engine.busy:
            engine.step()

    figures(answer, lambda: answer(PROMPT, NEW, BATCH))
