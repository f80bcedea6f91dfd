"""Lathe trains on random tokens in this process, through its own loop; prints the figures that its peers print."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from train_peers import LENGTH, LORA, ROWS, batches, config, report, tick

from lathe import families
from lathe.data.loader import Batch, Work
from lathe.model import initial
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.training import loop, loss, optim, precision
from lathe.training.limits import Limits
from lathe.training.schedule import Schedule
from lathe.transforms import adapt, begin
from lathe.transforms.terms import Lora


def data(size: str) -> Iterator[Work]:
    for rows in batches(size):
        layout = Layout.of([LENGTH] * ROWS)
        batch = Batch(rows[:, :-1].flatten(), rows[:, 1:].flatten(), layout, ROWS * LENGTH)
        yield Work([batch], ROWS * LENGTH, ROWS * LENGTH, 0.0)


def learner(decoder: Decoder, task: str) -> None:
    """With LoRA, only the terms learn."""
    if task == "lora":
        decoder.requires_grad_(False)
        terms = Lora(rank=LORA["r"], alpha=LORA["alpha"], targets=LORA["targets"])
        adapt.put(decoder, "default", begin.lora(decoder, terms))
        for parameter in adapt.own(decoder, "default").values():
            parameter.requires_grad_(True)


if __name__ == "__main__":
    size, task, named = sys.argv[1:]
    chosen = precision.choose("cpu", named)
    decoder = initial.decoder(families.read(config(size)), 0).to(chosen.weights)
    learner(decoder, task)
    times = [tick()]

    def after(step: loop.Step) -> bool:
        times.append(tick())
        return True

    objective = loss.next_token(decoder, chosen.autocast)
    optimizers = optim.build(decoder, optim.Settings(lr=1e-4))
    loop.train(objective, optimizers, data(size), Schedule("constant"), Limits(), 1.0, after)
    report(times)
