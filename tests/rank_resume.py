"""What the processes of test_spread_resume.py do: train, save, and go on from what others saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rank_saving
import torch
import torch.distributed as dist
from rank_training import SPECS, data, drawn, weights_of
from torch import Tensor

from lathe.training import loop, loss, optim, state
from lathe.training.grid import Grid
from lathe.training.limits import Limits
from lathe.training.schedule import Schedule
from lathe.training.spread import Spread
from lathe.transforms import adapt
from lathe.transforms.terms import Lora
from lathe.weights import safetensors
from lathe.weights.tensors import Ref

END, SAVED = 5, 2  # an epoch ends between


def trained(
    device: torch.device, name: str, grid: Grid, method: str, folder: Path, resumed: Path | None = None
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses from there on and weights at the end; what is needed to go on after step SAVED is in the folder."""
    spread = Spread(device, grid)
    dtype = torch.bfloat16 if method == "bf16" else torch.float32
    begun = safetensors.open(resumed / "weights").items() if resumed and method != "lora" else drawn(SPECS[name])
    decoder = spread.load(SPECS[name], ((n, ref.to(dtype)) for n, ref in begun), dtype)
    if method == "lora":
        torch.manual_seed(5)
        adapt.put(decoder, "default", spread.adapter(decoder, Lora(4, 8.0, "all-linear")))
        adapt.trainable(decoder)
    spread.learn(decoder)
    optimizers = optim.build(decoder, optim.Settings(lr=1e-2))
    steps = data(spread)
    training = state.Training(decoder, optimizers, {"data": steps}, spread)
    progress = training.restore(resumed / "state") if resumed else state.Progress()
    losses: list[float] = []

    def after(step: loop.Step) -> bool:
        losses.append(step.loss)
        if step.number == SAVED and resumed is None:
            group = dist.new_group(backend="gloo") if grid.size > 1 else None
            training.capture(state.Progress(step.reached)).write(folder / "state", group)
            weights = weights_of(spread, decoder)
            if spread.first:
                safetensors.write(folder / "weights", {n: Ref.of(t) for n, t in weights.items()})
        return True

    objective, schedule, begin = loss.next_token(decoder), Schedule("cosine", 2, 0.1), progress.reached
    loop.train(objective, optimizers, steps, schedule, Limits(END), 1.0, after, begin=begin, ranks=spread)
    return losses, weights_of(spread, decoder)


def each(device: torch.device, wanted: list[tuple[str, Grid, str]], one: Path, out: Path) -> None:
    """What one rank does: train each without a stop, then from its own middle, then from that of a single process; save
    models, too."""
    torch.set_num_threads(1)
    found: dict[int | str, Any] = {}
    for number, (name, grid, method) in enumerate(wanted):
        folder = out / str(number)
        through = trained(device, name, grid, method, folder)
        dist.barrier()
        again = trained(device, name, grid, method, folder, folder)
        found[number] = through, again, trained(device, name, grid, method, folder, one / f"{name}-{method}")
    found["saved"] = rank_saving.each(device, out)
    if dist.get_rank() == 0:
        torch.save(found, out / "found.pt")
