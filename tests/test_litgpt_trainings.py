"""Every line of LitGPT's that trains runs to its end, as it is typed, and leaves a model; see `litgpt_world`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch
from litgpt_lines import TRAININGS
from litgpt_world import World, check, world

pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    # torchao has its steps compiled: the same, half a minute later
    with world(tmp_path_factory.mktemp("world"), {}) as made, torch.compiler.set_stance("force_eager"):
        yield made


@pytest.fixture(autouse=True)
def wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the hosted service's package."""
    run = SimpleNamespace(log=lambda values, step: None, finish=lambda: None)
    stand_in = ModuleType("wandb")
    stand_in.init, stand_in.Html = lambda **settings: run, str  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)


@pytest.mark.parametrize("line", TRAININGS)
def test_a_line_trains(here: World, line: str) -> None:
    here.sweep()
    alone, several, _ = line.partition(" --devices 2")
    if several:  # other processes do not see this one's web, but what was fetched from it
        check(here, here.run(alone))
        here.sweep()
    if line.endswith("--resume"):  # there is something to go on from
        check(here, here.run(f"{line.removesuffix('--resume')} --train.save_interval 1"))
    check(here, here.run(line))
