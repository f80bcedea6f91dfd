"""Tokens/s of answering on a CPU: decode alone, prefill, and sixteen at once, as parts of what the machine can do.

    python benchmarks/decode.py [135M] [0.5B] [1B] [bf16] [int8] [int4]       (all of them by default)

Random weights in the shapes of SmolLM2-135M, Qwen2.5-0.5B and Llama-3.2-1B, on two threads (OMP_NUM_THREADS). Rivals:
llama.cpp (as bf16, Q8_0 and Q4_0) and LitGPT, where `make oracles` has made their environments, and transformers. The
limits (reading memory; a bf16 product of 2048 x 2048 x 2048) are measured among them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from decode_peers import CONFIGS
from measure import compare, reported

from lathe import checkpoint, families
from lathe.checkpoint.packing import pack
from lathe.weights import safetensors
from lathe.weights.tensors import Box, Ref

HERE = Path(__file__).parent
LITGPT = Path(os.environ.get("LITGPT_PYTHON", HERE.parent / ".venv-litgpt" / "bin" / "python"))
LLAMACPP = Path(os.environ.get("LLAMACPP_PYTHON", HERE.parent / ".venv-llamacpp" / "bin" / "python"))
KINDS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}  # what llama.cpp has beside each of ours
RUNS = int(os.environ.get("RUNS", "3"))


def make(folder: Path, config: dict[str, Any]) -> None:
    """The model in every rival's form."""
    slots = checkpoint.slots(checkpoint.blank(families.read(config)))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))

    def tensor(shape: tuple[int, ...]) -> Ref:
        def draw(box: Box) -> torch.Tensor:
            return (torch.randn([part.stop - part.start for part in box]) * 0.02).bfloat16()

        return Ref(shape, torch.bfloat16, draw)

    safetensors.write(folder / "model.safetensors", {name: tensor(tuple(slot.shape)) for name, slot in slots})
    tensors = checkpoint.open(folder).tensors
    # llama.cpp is given ids, and asked for ids: no vocabulary, but its size.
    words = {"tokenizer.ggml.model": "no_vocab", f"{config['model_type']}.vocab_size": config["vocab_size"]}
    for kind in KINDS.values():
        pack(folder / f"{kind}.gguf", tensors, config, kind, words)
    if LITGPT.exists():
        checkpoint.save(folder / "litgpt", tensors, config, form="litgpt")


if __name__ == "__main__":
    threads = os.environ.setdefault("OMP_NUM_THREADS", "2")
    wanted = {*sys.argv[1:]}
    peers = str(HERE / "decode_peers.py")
    for size, config in CONFIGS.items():
        if wanted & {*CONFIGS} and size not in wanted:
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / size
            make(folder, config)
            for kind, theirs in KINDS.items():
                if wanted & {*KINDS} and kind not in wanted:
                    continue
                rivals = {"Lathe": [sys.executable, str(HERE / "decode_lathe.py"), str(folder), kind]}
                if LLAMACPP.exists():
                    file = str(folder / f"{theirs}.gguf")
                    rivals[f"llama.cpp, {theirs}"] = [str(LLAMACPP), "-E", peers, "llama.cpp", file, size]
                if kind == "bf16":
                    rivals["transformers"] = [sys.executable, peers, "transformers", str(folder), size]
                    if LITGPT.exists():
                        rivals["LitGPT"] = [str(LITGPT), "-E", peers, "litgpt", str(folder / "litgpt"), size]
                rivals["the machine"] = [sys.executable, peers, "limits", "", size]
                compare(f"answering, {size}, {kind}, {threads} threads", rivals, reported, RUNS, warm=0)
