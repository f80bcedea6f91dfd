"""A training's tensors and numbers become the folder `state/` and are read from it; knows not what they are for.

Tensors lie as torch.distributed.checkpoint writes them, each process its own part, by names: any number of processes
reads them, each what it needs. `training.json` holds the numbers, and is written last.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lathe.errors import CheckpointError, MissingError
from lathe.transforms.group import Group
from lathe.transforms.parts import local, part
from lathe.weights import distributed
from lathe.weights.tensors import Ref

FILE = "training.json"
VERSION = 1


@dataclass(frozen=True)
class Captured:
    """A training's state at one step, apart from it. facts: training.json."""

    tensors: dict[str, Tensor]
    facts: str

    @property
    def nbytes(self) -> int:
        """Of this process's part."""
        return sum(local(tensor).nbytes for tensor in self.tensors.values())

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


@torch.no_grad()
def fill(tensor: Tensor, ref: Ref) -> None:
    """Read what belongs into a tensor, or into this process's part of one. Raises CheckpointError for another shape."""
    if tuple(tensor.shape) != ref.shape:
        found = f"{ref.source} has shape {list(ref.shape)}, and this training needs {list(tensor.shape)}."
        raise CheckpointError(found, "They are of another model.", "Give the options of the run's recipe.yaml.")
    local(tensor).copy_(ref[part(tensor)].read())


def generators() -> dict[str, Tensor]:
    """The random generators of this process, on the CPU and its GPU: (n,) uint8 each."""
    rank = Group.joined().rank
    found = {f"random.cpu.{rank}": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found[f"random.cuda.{rank}"] = torch.cuda.get_rng_state()
    return found


def set_generator(name: str, state: Tensor) -> None:
    if name.startswith("random.cpu."):
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same in the CPU's memory. From a GPU it takes what the bus takes, through memory that cannot be paged out."""
    made = {name: copy(tensor) for name, tensor in tensors.items()}
    copied()
    return made


def copied() -> None:
    """Wait for copies that are under way."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def copy(tensor: Tensor) -> Tensor:
    mine = local(tensor).detach()
    pinned = mine.device.type == "cuda"
    apart = torch.empty(mine.shape, dtype=mine.dtype, pin_memory=pinned).copy_(mine, non_blocking=pinned)
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


def leaves(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if isinstance(tensor, DTensor) or not is_traceable_wrapper_subclass(tensor):
        return {name: tensor}
    inner: Callable[[], tuple[list[str], Any]] = tensor.__tensor_flatten__
    found: dict[str, Tensor] = {}
    for attribute in inner()[0]:
        found |= leaves(f"{name}.{attribute}", getattr(tensor, attribute))
    return found
