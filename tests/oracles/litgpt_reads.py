"""Let LitGPT read folders of its own form and answer: with its own loader, nothing forgiven.

    python tests/oracles/litgpt_reads.py FOLDER TOKENS OUT

in LitGPT's environment. FOLDER: one with a checkpoint folder for each model; TOKENS: as JSON; OUT: where each is
exported to, again by LitGPT. Prints, as JSON, of each the logits, and what exporting it raised, or nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from litgpt import GPT, Config
from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
from litgpt.utils import lazy_load

PLACE, TOKENS, OUT = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])


def answer(folder: Path) -> list[list[float]]:
    model = GPT(Config.from_checkpoint(folder)).eval()
    model.load_state_dict(lazy_load(folder / "lit_model.pth"), strict=True)
    safe = torch.load(folder / "lit_model.pth", weights_only=True, mmap=True)
    assert all(torch.equal(tensor, safe[name]) for name, tensor in model.state_dict().items())
    with torch.inference_mode():
        return model(torch.tensor([TOKENS]))[0].tolist()


def export(folder: Path) -> str:
    try:
        convert_lit_checkpoint(folder, OUT / folder.name)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


print(json.dumps({folder.name: [answer(folder), export(folder)] for folder in sorted(PLACE.iterdir())}))
