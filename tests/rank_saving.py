"""What the processes of test_spread_resume.py save together; apart from it, because they import less."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_training import drawn
from torch import Tensor, nn

from lathe import families
from lathe.errors import UsageError
from lathe.tokenizer import train_bpe
from lathe.training import optim, saves, state
from lathe.training.grid import Grid
from lathe.training.limits import Reached
from lathe.training.run import Run
from lathe.training.spread import Spread

SIZES = {
    "vocab_size": 288,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "fused": {**SIZES, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "tie_word_embeddings": True},
    "stacked": {
        **SIZES,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}
GRIDS = [Grid(2), Grid(1, 2), Grid(1, 1, 2)]
TOKENIZER = train_bpe(["one and two make three; three and four make seven."], 280)


class Kept:
    """What this process has in hand of a model while it saves it, beyond what was there before: in bytes, at most."""

    def __init__(self, spread: Spread) -> None:
        self.alive: dict[int, weakref.ref[Tensor]] = {}
        self.sizes: dict[int, int] = {}
        self.most, self.largest, self.gather = 0, 0, spread.gathered
        spread.gathered = self.gathered  # type: ignore[method-assign]

    def gathered(self, name: str, slot: nn.Parameter) -> Tensor:
        tensor = self.gather(name, slot)
        number = len(self.alive)
        self.alive[number], self.sizes[number] = weakref.ref(tensor), tensor.nbytes
        self.largest = max(self.largest, tensor.nbytes)
        self.most = max(self.most, sum(self.sizes[n] for n, ref in self.alive.items() if ref() is not None))
        return tensor


def saved(device: torch.device, name: str, grid: Grid, out: Path) -> dict[str, list[int]]:
    """Save a model and its state, and fail to save a second one. Gives of each process how many bytes it has in hand at
    most, the largest tensor's, its share's, and all's."""
    spread, spec = Spread(device, grid), families.read(CONFIGS[name])
    decoder = spread.load(spec, drawn(spec), torch.float32)
    spread.learn(decoder)
    [optimizer] = optim.build(decoder, optim.Settings())
    state.begin(optimizer)
    training = state.Training(decoder, [optimizer], {}, spread)
    kept = Kept(spread)
    with Run(out) as run:

        def save(step: int) -> None:
            run.progress = state.Progress(Reached(step, 8 * step))
            small: dict[str, Any] = {"generation": {}, "tokenizer": TOKENIZER, "recipe": "seed: 1\n"}
            share = spread.share(decoder)
            run.save(saves.step_name(step), share, CONFIGS[name], **small, training=training)
            run.wait()

        save(1)
        if sys.platform != "win32":
            fail(save, out)
    mine = sum(tensor.nbytes for tensor in saves.copy(spread.share(decoder)).values())
    figures: list[Any] = [None] * grid.size
    dist.all_gather_object(figures, (kept.most, kept.largest, mine))
    return {key: [one[n] for one in figures] for n, key in enumerate(("most", "largest", "share"))}


def fail(save: Any, out: Path) -> None:
    """On the second process the disk is full: both end with that."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        save(2)
    except UsageError as error:
        assert "step-000002 could not be saved: the disk is full." in error.found, error.found
        assert f"{out / 'step-000001'}, is whole" in error.expected, error.expected
    else:
        raise AssertionError("it fitted")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    dist.barrier()  # until the first has put away what there was


def each(device: torch.device, out: Path) -> dict[str, dict[str, list[int]]]:
    """What one rank does: save every model on every grid."""
    return {
        f"{name}-{number}": saved(device, name, grid, out / f"{name}-{number}")
        for name in CONFIGS
        for number, grid in enumerate(GRIDS)
    }
