"""What the processes of test_shard.py do; apart from it, because they need not import what it imports."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist

from lathe import checkpoint
from lathe.actions import outset, pretrain
from lathe.engine import DraftModel, Engine, Sampling
from lathe.errors import PromptError
from lathe.model import spec as s
from lathe.model.decoder import Decoder
from lathe.transforms.group import Group
from lathe.transforms.shard import Share, echo
from lathe.weights.tensors import Ref

PROMPTS = [[3, 14, 15, 92, 65, 35], [8, 9, 79], list(range(40, 62))]

NORM, ROPE = s.RMSNorm(1e-6), s.Rope(1e4, 8)
SINKS = s.Attention(8, 2, 8, 0.3, ROPE, qkv_bias=True, out_bias=True, sinks=True)
CLAMPED = s.Experts(s.Clamped(20), s.Router(4, 2, bias=True))
SHARED = s.Experts(s.Gated(20), s.SparseMixer(4), shared=s.Gated(24), shared_gate=True, weighs="input")
GROUPED = s.Attention(8, 4, 8, 0.3, ROPE)
# Models without a family, most with parts that few families have.
PARTS = {
    "grouped queries": (GROUPED, s.Gated(20)),
    "sinks and clamped experts": (SINKS, CLAMPED),
    "gated shared expert": (SINKS, SHARED),
}


def made(name: str) -> checkpoint.Checkpoint:
    """A model of two such layers with random weights, the same in every process."""
    mixer, mlp = PARTS[name]
    spec = s.Spec(97, 32, (s.Layer(mixer, mlp, NORM),) * 2, NORM, 64)
    decoder = Decoder(spec).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3, generator=generator)
    return checkpoint.Checkpoint(Path(name), "made", {}, spec, {n: Ref.of(p) for n, p in decoder.named_parameters()})


def opened(source: Path | str) -> checkpoint.Checkpoint:
    return made(source) if isinstance(source, str) else checkpoint.open(source)


def said(engine: Engine) -> list[list[int]]:
    """Greedy and drawn answers."""
    wishes = [Sampling(temperature=0, max_new_tokens=8), Sampling(seed=5, top_p=0.9, max_new_tokens=8)]
    sequences = [engine.submit(prompt, wish) for prompt in PROMPTS for wish in wishes]
    while engine.busy:
        engine.step()
    return [[token.id for token in sequence.made] for sequence in sequences]


def each(device: torch.device, sources: list[Path | str], out: Path) -> None:
    """What one rank does: load its part of every model, ask it, and write down what it says."""
    torch.set_num_threads(1)
    group, found = Group.joined(), {}
    for source in sources:
        model = opened(source)
        decoder = model.load(device, share=Share(model.spec, group))
        engine = Engine(decoder)
        found[str(source)] = {"logits": [engine.logits(prompt) for prompt in PROMPTS], "tokens": said(engine)}
    draft = DraftModel(echo(opened(sources[0]).load(device), group), 3)  # of the last, by the first
    found["drafted"] = said(Engine(decoder, drafter=draft))
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


def one_is_late(device: torch.device, out: Path) -> None:
    """It looks when the other has begun to write."""
    if dist.get_rank() == 1:
        time.sleep(0.5)
    assert outset.begun(pretrain.Options("llama", data=("texts",), out_dir=out, resume="auto")) is None
    (out / "final").mkdir(parents=True, exist_ok=True)
