"""What a training needs to go on, besides a model's folder, becomes a folder `state/`, and is put back from it.

    optimizer.PARAMETER.SLOT    what the optimizer remembers, float32 master copies among it
    learned.PARAMETER           the learned weights, where others are frozen: files of adapters may lay them out anew
    random.DEVICE.RANK          the random generators of each process
    training.json               numbers: how far it came, and where the data is

Everything goes by names. Knows no recipe, no model's files and no loop; `stored` knows the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lathe.errors import CheckpointError
from lathe.training import stored
from lathe.training.limits import START, Reached
from lathe.training.spread import Spread
from lathe.transforms.group import Group
from lathe.weights import distributed
from lathe.weights.tensors import Ref

Beside = tuple[Tensor, tuple[str, nn.Parameter]]  # a tensor, and the parameter that it is kept for
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")  # in the names of what is compiled or computed twice


class Part(Protocol):
    """Something else that changes while training: the data's place, a loss scale."""

    def state(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class Progress:
    """How far a training came. seconds: in steps alone. best, best_step: the lowest validation loss, and when."""

    reached: Reached = START
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None


@dataclass(frozen=True)
class Training:
    """All that training changes. optimizers: one, or several that share the parameters. parts: by any names. spread:
    how the decoder lies on several processes, all of which capture and restore together."""

    decoder: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    parts: Mapping[str, Part] = field(default_factory=dict)
    spread: Spread | None = None

    def capture(self, progress: Progress) -> stored.Captured:
        """A copy of everything in the CPU's memory, which training goes on without touching."""
        values, tensors = self.parted()
        facts = {
            "version": stored.VERSION,
            "progress": asdict(progress),
            "processes": Group.joined().count,
            "optimizer": values,
            "parts": {name: part.state() for name, part in self.parts.items()},
        }
        kept = stored.copies(stored.generators())
        for name, (tensor, beside) in tensors.items():
            whole = self.whole(tensor, beside)
            if whole is not None:
                kept[name] = stored.copy(whole)
        stored.copied()
        # As text at once: what a part hands out may be what it goes on changing.
        return stored.Captured(kept, json.dumps(facts, indent=1))

    def restore(self, folder: Path) -> Progress:
        """Put back what is in a state's folder. The weights are those of the model's folder, unless only some learn.

        Raises:
            MissingError: the folder is not there, or not whole.
            CheckpointError: it is of another model or another optimizer, or damaged.
            DataError: the data are not those that the training was reading.
        """
        facts = stored.read(folder)
        for optimizer in self.optimizers:
            begin(optimizer)
        refs = distributed.open(folder)
        values, tensors = self.parted()
        lacking = sorted((tensors.keys() - refs.keys()) | (values.keys() - facts["optimizer"].keys()))
        if lacking:
            some = f"{lacking[0]}, which is one of {len(lacking)} things that this training needs"
            raise CheckpointError(
                f"{folder} lacks {some}.",
                "A run can only go on with the optimizer, the precision and the parameters that it began with.",
                "Give the options of its recipe.yaml, or take its weights alone, without --resume.",
            )
        for name, (tensor, beside) in tensors.items():
            stored.fill(tensor, self.mine(refs[name], tensor, beside))
        for name, _, slots in self.slots():
            for key in slots:
                if f"optimizer.{name}.{key}" in values:
                    slots[key] = facts["optimizer"][f"optimizer.{name}.{key}"]
        for name, generator in stored.generators().items():
            if name in refs:  # a process more than there were goes on with its own
                stored.set_generator(name, generator.copy_(refs[name].read()))
        for name, part in self.parts.items():
            if name not in facts["parts"]:
                raise CheckpointError(f"{folder} does not say where its {name} was.", "Another kind of run wrote it.")
            part.restore(facts["parts"][name])
        return Progress(**{**facts["progress"], "reached": Reached(**facts["progress"]["reached"])})

    def slots(self) -> Iterator[tuple[str, nn.Parameter, dict[str, Any]]]:
        """What the optimizers remember of each parameter, by its name."""
        owners = {id(parameter): (name, parameter) for name, parameter in self.parameters()}
        for optimizer in self.optimizers:
            for parameter, slots in optimizer.state.items():
                yield *owners[id(parameter)], slots

    def parted(self) -> tuple[dict[str, Any], dict[str, Beside]]:
        """All numbers and all tensors by their full names. The parameters themselves are among them where only some
        learn."""
        values: dict[str, Any] = {}
        tensors: dict[str, Beside] = {}
        for name, parameter, slots in self.slots():
            for key, slot in slots.items():
                if isinstance(slot, Tensor):
                    leaves = stored.leaves(f"optimizer.{name}.{key}", slot)
                    tensors |= {where: (leaf, (name, parameter)) for where, leaf in leaves.items()}
                elif slot is not None:
                    values[f"optimizer.{name}.{key}"] = slot
        if any(not p.requires_grad for p in self.decoder.parameters()):
            learned = ((name, p) for name, p in self.parameters() if p.requires_grad)
            tensors |= {f"learned.{name}": (p.detach(), (name, p)) for name, p in learned}
        return values, tensors

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.decoder.named_parameters():
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            yield name, parameter

    # ---- slices of layers ------------------------------------------------------------------------------------------
    def whole(self, tensor: Tensor, beside: tuple[str, nn.Parameter]) -> Tensor | None:
        """What this process writes: the tensor, or its shard of it. Slices are written whole, so that any number of
        processes may go on, each by who writes its parameter."""
        name, parameter = beside
        if self.spread is None or self.spread.slices is None:
            return tensor
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if tensor.shape == parameter.shape:
            # gloo sends no int16, whose bits are as good as any others of their size
            sent = full.view(torch.bfloat16) if full.dtype == torch.int16 else full
            full = self.spread.slices.gathered(name, sent).view(full.dtype)
        return full if self.spread.writes(name) else None

    def mine(self, ref: Ref, tensor: Tensor, beside: tuple[str, nn.Parameter]) -> Ref:
        """This process's slice of what was written."""
        name, parameter = beside
        if self.spread is None or self.spread.slices is None or tensor.shape != parameter.shape:
            return ref
        return self.spread.slices.mine(name, ref, tuple(tensor.shape))


def begin(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer make room for all that it will remember, by a step that changes no parameter."""
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0 * group["lr"]  # which may be a tensor
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
