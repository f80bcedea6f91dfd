"""Lathe answers in this process, through its engine: decode_lathe.py FOLDER bf16|int8|int4. Prints as decode_peers.

`decode_lathe.py limits` prints what the machine reads and multiplies, as `lathe bench` measures it.
"""

from __future__ import annotations

import json
import sys

import torch
from decode_peers import figures, threads

from lathe import checkpoint
from lathe.actions.roofline import Machine, Work
from lathe.engine import Engine
from lathe.engine.pace import pace


class Lathe:
    sixteen = True

    def __init__(self, folder: str, kind: str) -> None:
        decoder = checkpoint.open(folder).load(quantize=None if kind == "bf16" else kind, quick=True)
        self.engine, self.reads = Engine(decoder), Work.of(decoder).weights

    def answer(self, count: int, length: int, new: int) -> None:
        pace(self.engine, length, new, count)

    def widen(self, count: int, tokens: int) -> None: ...


if __name__ == "__main__":
    torch.set_num_threads(threads())
    if sys.argv[1:] == ["limits"]:
        machine = Machine.measured(torch.device("cpu"), torch.bfloat16)
        print(json.dumps({"GB/s": machine.read / 1e9, "bf16 GFLOP/s": machine.multiply / 1e9}))
    else:
        figures(lambda: Lathe(*sys.argv[1:]))
