"""Tokens/s, memory and start of training: LoRA, full finetuning and pretraining of 15 M and 135 M parameters.

Rows of 512 tokens, four in a step, on two threads (OMP_NUM_THREADS). Rivals: a loop as one writes it by hand, compiled,
as nanoGPT is; transformers, with PEFT for LoRA; LitGPT, where `make oracles` has made its environment. `train.py 15M
lora` runs one of the six.
"""

from __future__ import annotations

import os
import sys
from itertools import product
from pathlib import Path

from measure import compare, reported

HERE = Path(__file__).parent
LITGPT = Path(os.environ.get("LITGPT_PYTHON", HERE.parent / ".venv-litgpt" / "bin" / "python"))
SIZES, TASKS = ("15M", "135M"), {"lora": "bf16-true", "full": "bf16-true", "pretrain": "bf16-mixed"}
RUNS = int(os.environ.get("RUNS", "3"))

if __name__ == "__main__":
    threads = os.environ.setdefault("OMP_NUM_THREADS", "2")
    for size, task in product(SIZES, TASKS):
        if not {*sys.argv[1:]} <= {size, task}:
            continue
        peers = [str(HERE / "train_peers.py")]
        words = [size, task, TASKS[task]]
        rivals = {
            "Lathe": [sys.executable, str(HERE / "train_lathe.py"), *words],
            "by hand, compiled": [sys.executable, *peers, "nanogpt-compiled", *words],
            "transformers": [sys.executable, *peers, "transformers", *words],
        }
        if LITGPT.exists():
            rivals["LitGPT"] = [str(LITGPT), "-E", *peers, "litgpt", *words]
        compare(f"{task}, {size}, {TASKS[task]}, {threads} threads", rivals, reported, RUNS, warm=0)
