"""What the processes of test_shard.py do; apart from it, because they need not import what it imports."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist

from lathe import checkpoint
from lathe.engine import DraftModel, Engine, Sampling
from lathe.errors import PromptError
from lathe.transforms.shard import Group, Share, echo

PROMPTS = [[3, 14, 15, 92, 65, 35], [8, 9, 79], list(range(40, 62))]


def greedy(engine: Engine) -> list[list[int]]:
    wishes = [Sampling(temperature=0, max_new_tokens=20), Sampling(seed=5, top_p=0.9, max_new_tokens=20)]
    sequences = [engine.submit(prompt, wish) for prompt in PROMPTS for wish in wishes]
    while engine.busy:
        engine.step()
    return [[token.id for token in sequence.made] for sequence in sequences]


def each_family(device: torch.device, folders: list[Path], out: Path) -> None:
    """What one rank does: load its part of every model, ask it, and write down what it says."""
    torch.set_num_threads(1)
    group, found = Group.joined(), {}
    for folder in folders:
        opened = checkpoint.open(folder)
        decoder = opened.load(device, share=Share(opened.spec, group))
        engine = Engine(decoder)
        draft = DraftModel(echo(opened.load(device), group), 3)
        found[folder.name] = {
            "logits": [engine.logits(prompt) for prompt in PROMPTS],
            "tokens": greedy(engine),
            "drafted": greedy(Engine(decoder, drafter=draft))[::2],
        }
    torch.save(found, out / f"{group.rank}.pt")


def one_fails(device: torch.device, how: str) -> None:
    if dist.get_rank() == 1:
        if how == "error":
            raise PromptError("The prompt is empty.", "It must hold something.", "Type one.")
        if how == "bug":
            raise ZeroDivisionError("a bug")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(7)
    dist.all_reduce(torch.zeros(1))  # waits for the one that is gone
