"""Models in a run's folder: written from a copy by a thread beside training, and removed when enough follow.

What has its name is whole, whenever the process ends. Knows neither what a training's state holds nor what a step is.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lathe import checkpoint
from lathe.errors import UsageError
from lathe.model.decoder import Decoder
from lathe.tokenizer import Tokenizer
from lathe.training import stored
from lathe.training.background import Background
from lathe.weights.tensors import Ref

Copied = Mapping[str, Ref] | checkpoint.AdapterFiles
Model = Decoder | Copied
NAME = re.compile(r"step-(\d{6,})")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def step_name(step: int) -> str:
    return f"step-{step:06}"


def steps(folder: Path) -> list[Path]:
    """The steps saved in a run's folder, oldest first."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=number)


def number(step: Path) -> int:
    """Which one it is."""
    match = NAME.fullmatch(step.name)
    assert match is not None, step
    return int(match[1])


@dataclass(frozen=True)
class Small:
    """What a model's folder holds beside weights and configuration. recipe: the options, as YAML."""

    generation: Mapping[str, Any]
    tokenizer: Tokenizer
    recipe: str

    def write(self, folder: Path) -> None:
        """Write it into a folder that is there."""
        checkpoint.write_json(folder / "generation_config.json", self.generation)
        self.tokenizer.save(folder)
        (folder / "recipe.yaml").write_text(self.recipe, encoding="utf-8")


class Saves:
    """Saves one model after another. Where several processes train, the first writes, and the others their part of the
    state.

    replace: what is there may be replaced. keep: how many steps stay, as in `Run`; None is all. begun: the step that
    the run began at. Later ones, and in a new run all, are an earlier run's, and stay until there is one of this run.
    """

    def __init__(self, folder: Path, replace: bool, keep: int | None, begun: int) -> None:
        self.folder, self.replace, self.keep = folder, replace, keep
        self.own = {number(step) for step in steps(folder) if number(step) <= begun}
        self.first = not dist.is_initialized() or dist.get_rank() == 0
        # Its own, so that what threads say to each other is not taken for what the training says.
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.group = dist.new_group(backend="gloo") if several else None
        self.background = Background()
        self.check, self.wait = self.background.check, self.background.wait

    def begin(
        self,
        name: str,
        model: Model,
        config: Mapping[str, Any],
        small: Small,
        captured: stored.Captured | None,
        best: int | None,
    ) -> Path:
        """Copy what may change, begin to write, and return where. best: the step with the lowest validation loss.

        Raises:
            UsageError: there is no room. What the save before met is raised here, too.
        """
        self.wait()
        place, aside = self.folder / name, self.folder / f".{name}.partial-0"
        copied = copy(model) if self.first else {}
        tensors = copied.tensors if isinstance(copied, checkpoint.AdapterFiles) else copied
        if self.first:
            size = sum(tensor.nbytes for tensor in tensors.values())
            checkpoint.room(place, size + (captured.nbytes if captured else 0))

        def work() -> None:
            try:
                if captured is not None:
                    captured.write(aside, self.group)
                if self.first:
                    self.write(place, copied, config, small, aside if captured else None)
            except OSError as error:
                raise self.unsaved(place, error) from error
            finally:
                if self.first:
                    shutil.rmtree(aside, ignore_errors=True)
            if self.first and captured is not None:
                self.tidy(number(place), best)

        self.background.start(work)
        return place

    def write(self, place: Path, model: Copied, config: Mapping[str, Any], small: Small, state: Path | None) -> None:
        """The whole folder. state: that of its state, which it moves in."""

        def more(folder: Path) -> None:
            if state is not None:
                state.rename(folder / "state")

        if not isinstance(model, checkpoint.AdapterFiles):
            checkpoint.save(
                place,
                model,
                config,
                generation=small.generation,
                tokenizer=small.tokenizer,
                files={"recipe.yaml": small.recipe},
                more=more,
                replace=self.replace,
            )
            return
        with checkpoint.beside(place, self.replace) as folder:
            folder.mkdir()
            model.write(folder)
            small.write(folder)
            more(folder)

    def tidy(self, saved: int, best: int | None) -> None:
        """Remove the steps that need not stay, now that this one is there."""
        self.own.add(saved)
        last = sorted(self.own)[-self.keep :] if self.keep else self.own
        stay = {*last, *(self.own & {best})}
        for step in steps(self.folder):
            if number(step) not in stay:
                checkpoint.remove(step)
        self.own = stay

    def unsaved(self, place: Path, error: OSError) -> UsageError:
        """What to tell the user of a save that failed."""
        there = [step for step in steps(self.folder) if step != place]
        before = f"The last step that was saved, {there[-1]}, is whole." if there else "No earlier step was saved."
        full = "the disk is full" if error.errno in FULL else str(error)
        found = f"{place} could not be saved: {full}."
        return UsageError(found, before, "Make room, and go on with --resume." if there else "Make room.")


def copy(model: Model) -> Copied:
    """A model as it is now, in memory that nobody changes."""
    if isinstance(model, checkpoint.AdapterFiles):
        return replace(model, tensors=stored.copies(model.tensors))
    refs = checkpoint.weights(model) if isinstance(model, Decoder) else model
    copies = stored.copies({name: ref.read() for name, ref in refs.items()})
    return {name: Ref.of(tensor, refs[name].source) for name, tensor in copies.items()}
