"""Kernels in Triton for a GPU: what lies between the products of a pass, and products of few rows, in as few launches
as may be, since reading a few new tokens is a matter of launches and of the memory's speed.

Each stands in for a plain formula in the module that calls it, gives the same but for rounding, and is taken where
`able` says so: on cards where Triton works, and where nothing is to be learned. The tests run them on a CPU too,
through Triton's interpreter.
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache

import torch
from torch import Tensor, nn

TYPES = (torch.bfloat16, torch.float16, torch.float32)
DEVICES = {"cuda"}
FEW = 128  # rows, at most, that products of ours take
PLAIN = (Tensor, nn.Parameter)  # no tensor of others, that knows more than its numbers


def able(*tensors: Tensor | None) -> bool:
    """Whether kernels of ours may compute with these: all lie on one GPU, nothing is learned, and no compiler, which
    would rather see formulas, looks on."""
    known = [x for x in tensors if x is not None]
    first = known[0]
    if not at_hand(first) or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return all(type(x) in PLAIN and x.device == first.device and x.dtype in TYPES for x in known)


def at_hand(x: Tensor) -> bool:
    """Whether x lies where kernels of ours are: on the process's own GPU, for Triton launches on no other."""
    device = x.device
    if device.type not in DEVICES or not working(device):
        return False
    return device.type != "cuda" or device.index == torch.cuda.current_device()


@cache
def working(device: torch.device) -> bool:
    """Whether kernels run on a device. It is tried, since Triton wants a compiler of the system's too."""
    if importlib.util.find_spec("triton") is None or (device.type == "cuda" and not torch.cuda.is_available()):
        return False
    if capability(device) < (8, 0):
        return False
    try:
        from lathe.model.gpu import stream

        some = torch.ones(1, 16, device=device)
        stream.gate("silu", some, some)
    except Exception as error:  # whatever Triton, a compiler or a driver may have to say
        warnings.warn(f"Going on without kernels of its own, which is slower: {error}", stacklevel=2)
        return False
    return True


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """What an NVIDIA card can do: from 8.0 on bfloat16, from 8.9 on floats of 8 bits. Others say what they like."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def power(count: int) -> int:
    """The least power of two that is no less, as Triton wants the sides of its blocks."""
    return 1 << max(count - 1, 0).bit_length()
