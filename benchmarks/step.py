"""What of a decode step is not the kernels' own: step.py FOLDER bf16|int8|int4. Prints one JSON line.

A step of one sequence behind a prompt of 128 tokens is timed, and every call into the kernels within it; what is left
is Python, and PyTorch's small operations between them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from decode_peers import threads

from lathe import checkpoint
from lathe.engine import Engine, Sampling
from lathe.model import native

PROMPT, NEW = 128, 256


class Clock:
    """Seconds spent in functions, of which it makes timed ones."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            begun = time.thread_time()
            function(*args)
            self.seconds += time.thread_time() - begun

        return call


def shares(folder: str, kind: str) -> dict[str, float]:
    """Milliseconds of a step, and of what is outside the kernels in it: processor time of the thread that takes it, as
    the mean of the quickest tenth of an answer's steps, so that others on the machine count as little as can be."""
    clock, kernels = Clock(), native.library()
    assert kernels is not None, "There are no kernels here."
    for name in native.SIGNATURES:
        setattr(kernels, name, clock.timed(getattr(kernels, name)))
    decoder = checkpoint.open(folder).load(quantize=None if kind == "bf16" else kind, quick=True)
    engine = Engine(decoder)
    prompt = torch.randint(decoder.spec.vocab, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
    engine.submit(prompt, Sampling(temperature=0, max_new_tokens=NEW))
    engine.step()
    steps = []
    while engine.busy:
        clock.seconds, begun = 0.0, time.thread_time()
        engine.step()
        took = time.thread_time() - begun
        steps.append((took, took - clock.seconds))
    whole, outside = zip(*sorted(steps)[: len(steps) // 10], strict=True)
    return {"step, ms": mean(whole) * 1e3, "outside, ms": mean(outside) * 1e3, "share": sum(outside) / sum(whole)}


if __name__ == "__main__":
    torch.set_num_threads(threads())
    print(json.dumps(shares(*sys.argv[1:])))
