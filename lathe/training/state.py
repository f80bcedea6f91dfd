"""What a training needs to go on, besides a model's folder, becomes a folder `state/`, and is put back from it.

    optimizer.PARAMETER.SLOT    what the optimizer remembers, float32 master copies among it
    learned.PARAMETER           the learned weights, where others are frozen: files of adapters may lay them out anew
    random.DEVICE.RANK          the random generators of each process
    training.json               numbers: how far it came, and where the data is

Tensors lie as torch.distributed.checkpoint writes them, each process its own part, by names: any number of processes
reads them, each what it needs. Knows no recipe, no model's files and no loop.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lathe.errors import CheckpointError, MissingError
from lathe.training.limits import START, Reached
from lathe.weights import distributed
from lathe.weights.tensors import Ref

FILE = "training.json"
VERSION = 1
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
    """All that training changes. optimizers: one, or several that share the parameters. parts: by any names."""

    decoder: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    parts: Mapping[str, Part] = field(default_factory=dict)

    def capture(self, progress: Progress) -> Captured:
        """A copy of everything in the CPU's memory, which training goes on without touching."""
        values, tensors = _parted(self.slots())
        tensors |= self.learned() | generators()
        facts = {
            "version": VERSION,
            "progress": asdict(progress),
            "processes": dist.get_world_size() if dist.is_initialized() else 1,
            "optimizer": values,
            "parts": {name: part.state() for name, part in self.parts.items()},
        }
        # Through text at once: what a part hands out may be what it goes on changing.
        return Captured(copies(tensors), json.dumps(facts, indent=1))

    def restore(self, folder: Path) -> Progress:
        """Put back what is in a state's folder. The weights are those of the model's folder, unless only some learn.

        Raises:
            MissingError: the folder is not there, or not whole.
            CheckpointError: it is of another model or another optimizer, or damaged.
            DataError: the data are not those that the training was reading.
        """
        facts = read(folder)
        for optimizer in self.optimizers:
            begin(optimizer)
        refs = distributed.open(folder)
        values, tensors = _parted(self.slots())
        tensors |= self.learned()
        lacking = sorted((tensors.keys() - refs.keys()) | (values.keys() - facts["optimizer"].keys()))
        if lacking:
            some = f"{lacking[0]}, which is one of {len(lacking)} things that this training needs"
            raise CheckpointError(
                f"{folder} lacks {some}.",
                "A run can only go on with the optimizer, the precision and the parameters that it began with.",
                "Give the options of its recipe.yaml, or take its weights alone, without --resume.",
            )
        for name, tensor in tensors.items():
            fill(tensor, refs[name])
        for name, slots, key in _named(self.slots()):
            if name in values:
                slots[key] = facts["optimizer"][name]
        for name, generator in generators().items():
            if name in refs:  # a process more than there were goes on with its own
                _set_generator(name, generator.copy_(refs[name].read()))
        for name, part in self.parts.items():
            if name not in facts["parts"]:
                raise CheckpointError(f"{folder} does not say where its {name} was.", "Another kind of run wrote it.")
            part.restore(facts["parts"][name])
        return Progress(**{**facts["progress"], "reached": Reached(**facts["progress"]["reached"])})

    def slots(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What the optimizers remember of each parameter, by its name."""
        names = {id(parameter): name for name, parameter in self.parameters()}
        for optimizer in self.optimizers:
            for parameter, slots in optimizer.state.items():
                yield names[id(parameter)], slots

    def learned(self) -> dict[str, Tensor]:
        """The parameters that learn, where the model's others do not."""
        learned = {f"learned.{name}": p.detach() for name, p in self.parameters() if p.requires_grad}
        return learned if any(not p.requires_grad for p in self.decoder.parameters()) else {}

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.decoder.named_parameters():
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            yield name, parameter


@dataclass(frozen=True)
class Captured:
    """A training's state at one step, apart from it. facts: training.json."""

    tensors: dict[str, Tensor]
    facts: str

    @property
    def nbytes(self) -> int:
        """Of this process's part."""
        return sum(_local(tensor).nbytes for tensor in self.tensors.values())

    def write(self, folder: Path, group: dist.ProcessGroup | None = None) -> None:
        """Write the folder, each process of `group` its part; the first one writes training.json, and it last.

        group: None is this process alone. Threads need a group of their own, of gloo's.

        Raises:
            OSError: the disk is full, or refuses.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # It is meant.
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        writer = dcp.FileSystemWriter(folder, sync_files=True, overwrite=True)
        try:
            dcp.save(self.tensors, storage_writer=writer, process_group=group, no_dist=group is None)
        except dcp.CheckpointException as error:
            raise _cause(error) from error
        if group is None or dist.get_rank(group) == 0:
            (folder / FILE).write_text(self.facts + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """training.json of a state's folder. Raises MissingError and CheckpointError as `Training.restore`."""
    file = folder / FILE
    if not file.is_file() or not distributed.is_folder(folder):
        raise MissingError(
            f"{folder} holds no state of a training.",
            "A run goes on from a step that still has its state/.",
            "Its weights alone are taken without --resume.",
        )
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        version = facts["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}.", fix="Resume from another step.") from None
    if version != VERSION:
        found = f"{file} is of version {version}, and this Lathe reads {VERSION}."
        raise CheckpointError(found, fix="Resume with the version of Lathe that wrote it.")
    return facts


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


@torch.no_grad()
def fill(tensor: Tensor, ref: Ref) -> None:
    """Read what belongs into a tensor, or into this process's part of one. Raises CheckpointError for another shape."""
    if tuple(tensor.shape) != ref.shape:
        found = f"{ref.source} has shape {list(ref.shape)}, and this training needs {list(tensor.shape)}."
        raise CheckpointError(found, "They are of another model.", "Give the options of the run's recipe.yaml.")
    if isinstance(tensor, DTensor):
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        ref = ref[tuple(slice(start, start + n) for start, n in zip(offset, shape, strict=True))]
    _local(tensor).copy_(ref.read())


def generators() -> dict[str, Tensor]:
    """The random generators of this process, on the CPU and its GPU: (n,) uint8 each."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    found = {f"random.cpu.{rank}": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found[f"random.cuda.{rank}"] = torch.cuda.get_rng_state()
    return found


def _set_generator(name: str, state: Tensor) -> None:
    if name.startswith("random.cpu."):
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same in the CPU's memory. From a GPU it takes what the bus takes, through memory that cannot be paged out."""
    made = {name: _copy(tensor) for name, tensor in tensors.items()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return made


def _copy(tensor: Tensor) -> Tensor:
    local = _local(tensor).detach()
    pinned = local.device.type == "cuda"
    apart = torch.empty(local.shape, dtype=local.dtype, pin_memory=pinned).copy_(local, non_blocking=pinned)
    if not isinstance(tensor, DTensor):
        return apart
    mesh = tensor.device_mesh
    if mesh.device_type != "cpu":  # a place in a tensor is all that is asked of it
        mesh = DeviceMesh("cpu", mesh.mesh, mesh_dim_names=mesh.mesh_dim_names, _init_backend=False)
    return DTensor.from_local(
        apart, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def _cause(error: dcp.CheckpointException) -> BaseException:
    """What the operating system refused, behind what torch made of it; else what torch says."""
    first: BaseException = next(iter(error.failures.values()))[0]
    inner: BaseException | None = first
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    return inner or first


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _named(slots: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any], str]]:
    for name, own in slots:
        for key in own:
            yield f"optimizer.{name}.{key}", own, key


def _parted(slots: Iterable[tuple[str, dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Numbers and tensors apart, by their full names; a tensor made of several, as one of 8 bits, as those."""
    values: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, own, key in _named(slots):
        if isinstance(own[key], Tensor):
            tensors |= _leaves(name, own[key])
        elif own[key] is not None:
            values[name] = own[key]
    return values, tensors


def _leaves(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if isinstance(tensor, DTensor) or not is_traceable_wrapper_subclass(tensor):
        return {name: tensor}
    inner: Callable[[], tuple[list[str], Any]] = tensor.__tensor_flatten__
    found: dict[str, Tensor] = {}
    for attribute in inner()[0]:
        found |= _leaves(f"{name}.{attribute}", getattr(tensor, attribute))
    return found
