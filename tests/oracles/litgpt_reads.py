"""Let LitGPT read folders of its own form and answer: with its own loader, nothing forgiven.

    python tests/oracles/litgpt_reads.py FOLDER TOKENS

in LitGPT's environment. FOLDER: one with a checkpoint folder in each of its own; TOKENS: as JSON. Prints, as JSON, the
logits of each, or what LitGPT raised.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from litgpt import GPT, Config
from litgpt.utils import lazy_load

PLACE, TOKENS = Path(sys.argv[1]), json.loads(sys.argv[2])


def answer(folder: Path) -> list[list[float]]:
    model = GPT(Config.from_checkpoint(folder)).eval()
    model.load_state_dict(lazy_load(folder / "lit_model.pth"), strict=True)
    safe = torch.load(folder / "lit_model.pth", weights_only=True, mmap=True)
    assert all(torch.equal(tensor, safe[name]) for name, tensor in model.state_dict().items())
    with torch.inference_mode():
        return model(torch.tensor([TOKENS]))[0].tolist()


print(json.dumps({folder.name: answer(folder) for folder in sorted(PLACE.iterdir())}))
