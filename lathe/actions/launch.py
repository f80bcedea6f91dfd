"""An action's work becomes that of N processes on M machines: started from here, or those that a cluster started.

Knows no model; what the processes do together is `training.spread`'s.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lathe.actions import ranks
from lathe.actions.bounds import above
from lathe.errors import UsageError

if TYPE_CHECKING:
    import torch

WAIT = 600  # seconds that a save may take after a signal, before torchrun's launcher loses patience
Options = TypeVar("Options", bound="Devices")
Work = Callable[[Options, "torch.device"], "int | None"]


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Where a training computes."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute. By default on a CUDA GPU if there is one."""
    devices: str = "1"
    """How many GPUs (or processes on a CPU) of this machine to train on; auto is all GPUs."""
    num_nodes: int = 1
    """How many machines to train on. The same command is started on each, with --meet."""
    meet: str | None = None
    """Where the machines meet, HOST:PORT: one of them, and a port that is free on it."""
    strategy: Literal["auto", "ddp", "fsdp", "hybrid"] = "auto"
    """How several devices share: each has the whole model (ddp), a shard of everything (fsdp), or shards within a
    machine and copies across machines (hybrid). By default ddp where the model fits, else shards."""
    tensor_parallel: int = 1
    """Devices that compute each layer together. Beside the strategy, for models that are slow or large."""

    def check_devices(self) -> None:
        """Raise UsageError for numbers that make no sense together."""
        if self.devices != "auto" and not (self.devices.isdigit() and int(self.devices) > 0):
            raise UsageError(f"--devices is {self.devices}.", "It must be a number above 0, or auto.")
        above(0, self, "num_nodes", "tensor_parallel")
        if self.num_nodes > 1 and self.meet is None and started() is None:
            raise UsageError(
                f"--num-nodes is {self.num_nodes}, and nothing says where the machines meet.",
                fix="Add --meet HOST:PORT on each of them, or start lathe with torchrun or srun.",
            )


@dataclass(frozen=True)
class Place:
    """A process among those of a cluster."""

    rank: int
    count: int
    local: int


def started() -> Place | None:
    """Which process this is of those that torchrun, Ray or Slurm started; None where it was started alone."""
    here = os.environ
    if "RANK" in here and "WORLD_SIZE" in here:
        return Place(int(here["RANK"]), int(here["WORLD_SIZE"]), int(here.get("LOCAL_RANK", "0")))
    if int(here.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # which srun says, and a job's own script has not
        return Place(int(here["SLURM_PROCID"]), int(here["SLURM_STEP_NUM_TASKS"]), int(here["SLURM_LOCALID"]))
    return None


def near(count: int) -> int:
    """How many of so many processes are on one machine."""
    told = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # 8, 8(x2) or 8,4
    found = re.match(r"\d+", told)
    return min(int(found[0]), count) if found else count


def together(work: Work[Options], options: Options) -> int | None:
    """Call `work(options, device)` in every process that the options ask for, or in this one of those that a cluster
    started, and return the first one's status. Only the first one prints. `work` must be importable.

    Ctrl-C and SIGTERM reach all; a second one ends them. Raises the first error that one of them raises; then the
    others are ended too.
    """
    options.check_devices()
    place = started()
    if place is not None and place.count > 1:
        return _joined(work, options, place)
    kind = _kind(options.device)
    count = _count(options.devices, kind)
    if options.num_nodes > 1:
        return _elastic(work, options, kind, count)
    if count == 1:
        import torch

        return work(options, torch.device(kind))
    return ranks.run(_work, count, kind, work, options, patient=True)


def _work(device: torch.device, work: Work[Options], options: Options) -> int | None:
    import torch.distributed as dist

    if dist.get_rank() > 0:
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (to the process's end)
    return work(options, device)


def _kind(device: str) -> str:
    """cpu, cuda or mps. Raises UsageError for a device that is not there."""
    from lathe.training import precision

    return precision.choose(device, None).device.type


def _count(devices: str, kind: str) -> int:
    import torch

    there = torch.cuda.device_count() if kind == "cuda" else 1
    count = there if devices == "auto" else int(devices)
    if kind == "mps" and count > 1:
        raise UsageError(f"--devices is {count}.", "There is one such device.", "Take --devices 1.")
    if kind == "cuda" and count > there:
        raise UsageError(f"--devices is {count}, and this machine has {there}.", fix=f"Take at most {there}.")
    return count


def _joined(work: Work[Options], options: Options, place: Place) -> int | None:
    """This process's part among those that a cluster started."""
    import torch
    import torch.distributed as dist

    ranks.apart()
    kind = _kind(options.device)
    device = torch.device(kind, place.local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    mine = not dist.is_initialized()  # Ray has done it already
    if mine:
        where = "env://" if "MASTER_ADDR" in os.environ else _slurm()
        backend = "nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=where, rank=place.rank, world_size=place.count)
    status = _work(device, work, options)
    if mine:
        dist.barrier()  # whoever is done first must not close the line
        dist.destroy_process_group()
    return status


def _slurm() -> str:
    """Where the processes of a Slurm job meet: on its first machine, at a port of the job's own."""
    here = os.environ
    found = re.match(r"([^,\[]+)(?:\[([^],-]+))?", here.get("SLURM_STEP_NODELIST", "localhost"))  # node[01-04,07]
    assert found is not None
    host = found[1] + (found[2] or "")
    step = int(here.get("SLURM_JOB_ID", "0")) * 16 + int(here.get("SLURM_STEP_ID", "0")) % 16
    return f"tcp://{host}:{20_000 + step % 20_000}"


def _elastic(work: Work[Options], options: Options, kind: str, count: int) -> int | None:
    """The processes of this machine, by torchrun's own launcher, which finds those of the others."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    assert options.meet is not None
    config = LaunchConfig(
        min_nodes=options.num_nodes,
        max_nodes=options.num_nodes,
        nproc_per_node=count,
        run_id="lathe",
        rdzv_backend="c10d",
        rdzv_endpoint=options.meet,
        max_restarts=0,
        shutdown_timeout=WAIT,
    )
    try:
        results: dict[int, Any] = elastic_launch(config, _told)(work, options)
    except ChildFailedError as error:
        raise SystemExit(max(error.get_first_failure()[1].exitcode, 1)) from None  # it has said why
    return results.get(0)


def _told(work: Work[Options], options: Options) -> int | None:
    """One of them: what goes wrong is said here, where it is known."""
    from lathe.errors import LatheError

    place = started()
    assert place is not None
    said = sys.stderr
    try:
        return _joined(work, options, place)
    except LatheError as error:
        print(f"Error: {error}", file=said, flush=True)
        os._exit(2)
