"""A script becomes several processes that run it together, one for each device: the one that asks starts the others.

For a script that loads a model (`LLM.distribute`); commands start their processes by `actions.ranks`.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading

import torch
import torch.distributed as dist

from lathe.errors import UsageError


def join(count: int, kind: str) -> torch.device:
    """Bring `count` processes together and return this one's device: cuda:0 and on, or cpu for all.

    Where nobody started this process as one of several (torchrun did, or an earlier call), it runs its script again,
    `count` - 1 times; these come to the same call, and what they print is not shown.

    Raises UsageError in an interactive session, which has no script, and where others than `count` are joined.
    """
    if not dist.is_initialized():
        here = os.environ
        if "RANK" in here:
            where, rank, size = "env://", int(here["RANK"]), int(here["WORLD_SIZE"])
        else:
            where, rank, size = _start(count), 0, count
        if kind == "cuda":
            torch.cuda.set_device(int(here.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", init_method=where, rank=rank, world_size=size)
        atexit.register(_leave)
    if dist.get_world_size() != count:
        found = f"{count} devices are asked for, and {dist.get_world_size()} processes are joined."
        raise UsageError(found, fix=f"Take devices={dist.get_world_size()}.")
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def _start(count: int) -> str:
    """Run this process's script `count` - 1 more times. Returns where all of them meet."""
    if hasattr(sys, "ps1") or len(sys.orig_argv) < 2:
        found = "A model is divided among processes that run one script, and this session has none."
        raise UsageError(found, "", 'Put it into a file, or take generate_strategy="sequential".')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(1, count):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env={**os.environ, **{name: str(value) for name, value in told.items()}},
            stdout=subprocess.DEVNULL,
        )
        threading.Thread(target=_watch, args=(process,), daemon=True).start()
        atexit.register(process.wait)
    return f"tcp://127.0.0.1:{port}"


def _watch(process: subprocess.Popen[bytes]) -> None:
    if status := process.wait():
        print(f"One of the processes of this model ended with status {status}.", file=sys.stderr, flush=True)
        os._exit(1)  # the others would wait for it


def _leave() -> None:
    dist.barrier()  # whoever is done first must not close the line
    dist.destroy_process_group()
