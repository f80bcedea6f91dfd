"""Models in a run's folder: written from a copy by a thread beside training, and removed when enough follow.

What has its name is whole, whenever the process ends. Knows neither what a training's state holds nor what a step is.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from lathe import checkpoint
from lathe.errors import UsageError
from lathe.model.decoder import Decoder
from lathe.tokenizer import Tokenizer
from lathe.training import agreement, stored
from lathe.training.background import Background
from lathe.transforms.group import Group
from lathe.weights.tensors import Ref

Copied = dict[str, Ref] | checkpoint.AdapterFiles
Model = Decoder | Iterable[tuple[str, Tensor]] | checkpoint.AdapterFiles
T = TypeVar("T")
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
        if self.generation:
            checkpoint.write_json(folder / "generation_config.json", self.generation)
        self.tokenizer.save(folder)
        (folder / "recipe.yaml").write_text(self.recipe, encoding="utf-8")


class Saves:
    """Saves one model after another. Where several processes train, each writes its part, and the first joins them;
    what one of them meets is raised on all.

    replace: what is there may be replaced. keep: how many steps stay, as in `Run`; None is all. begun: the step that
    the run began at. Later ones, and in a new run all, are an earlier run's, and stay until there is one of this run.
    """

    def __init__(self, folder: Path, replace: bool, keep: int | None, begun: int) -> None:
        self.folder, self.replace, self.keep = folder, replace, keep
        self.own = {number(step) for step in steps(folder) if number(step) <= begun}
        self.rank = Group.joined().rank
        self.first = self.rank == 0
        # Its own, so that what threads say to each other is not taken for what the training says.
        several = Group.joined().count > 1
        self.group = dist.new_group(backend="gloo") if several else None
        self.background = Background()
        self.wait = self.background.wait

    @property
    def failed(self) -> bool:
        """Whether the last save has failed by now; `wait` raises how."""
        return self.background.failed

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
        if isinstance(model, checkpoint.AdapterFiles) and not self.first:
            model = ()
        copied = copy(model)
        if isinstance(copied, checkpoint.AdapterFiles):
            adapter, files, size = copied, [], sum(tensor.nbytes for tensor in copied.tensors.values())
        else:
            adapter, files = None, checkpoint.parts.files(copied, config)
            size = sum(ref.nbytes for ref in copied.values())
        size += captured.nbytes if captured else 0
        every = self.together(place, lambda: (size, len(files)))
        self.together(place, lambda: checkpoint.room(place, sum(size for size, _ in every)))
        before, count = sum(n for _, n in every[: self.rank]), sum(n for _, n in every)

        def part() -> None:
            (aside / "state" if captured else aside).mkdir(parents=True, exist_ok=True)
            checkpoint.parts.write(aside, files, before, count)

        def rest() -> None:
            if captured is not None:
                captured.write(aside / "state", self.group)
            if not self.first:
                return
            with checkpoint.beside(place, self.replace) as folder:
                aside.rename(folder)
                if adapter is None:
                    checkpoint.parts.join(folder, config, count)
                else:
                    adapter.write(folder)
                small.write(folder)
            if captured is not None:
                self.tidy(number(place), best)

        def work() -> None:
            try:
                self.together(place, part)
                self.together(place, rest)
            finally:
                if self.first:
                    shutil.rmtree(aside, ignore_errors=True)

        self.background.start(work)
        return place

    def together(self, place: Path, work: Callable[[], T]) -> list[T]:
        """What it gives on each process. Raises on all what one of them meets, OSError in words about `place`."""

        def said() -> T:
            try:
                return work()
            except OSError as error:
                raise self.unsaved(place, error) from error

        return agreement.all(said, self.group)

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
    """A model as it is now, in memory that nobody changes. One that comes tensor by tensor has one of them in hand."""
    if isinstance(model, checkpoint.AdapterFiles):
        return replace(model, tensors=stored.copies(model.tensors))
    if isinstance(model, Decoder):
        model = ((name, ref.read()) for name, ref in checkpoint.weights(model).items())
    copies: dict[str, Tensor] = {}
    for name, tensor in model:
        copies[name] = stored.copy(tensor)
        del tensor  # before there is another
    stored.copied()
    return {name: Ref.of(tensor, name) for name, tensor in copies.items()}
