"""Devices that a machine does not have: tensors stay on the CPU and compute, and remember where they were said to be.

As on real devices, an operation on tensors of two of them is an error, and only `to` brings them together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

CPU = torch.device("cpu")


class Pretend(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.homes = WeakTensorKeyDictionary()

    def home(self, tensor: Tensor) -> torch.device:
        return self.homes.get(tensor, CPU)

    def put(self, thing: Any, device: torch.device) -> Any:
        def one(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                self.homes[leaf] = device
            return leaf

        return tree_map(one, thing)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # made anew at every access
            return self.home(args[0])
        wanted = kwargs.pop("device", None)
        if func is Tensor.to:
            wanted = next((arg for arg in args[1:] if isinstance(arg, (str, torch.device))), wanted)
            args = tuple(arg for arg in args if not isinstance(arg, (str, torch.device)))
            if wanted is not None and torch.device(wanted) != self.home(args[0]):
                return self.put(
                    args[0].clone() if len(args) == 1 else func(*args, **kwargs).clone(), torch.device(wanted)
                )
        # A number in a tensor without dimensions may be anywhere.
        homes = {self.home(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim}
        if len(homes) > 1:
            raise RuntimeError(f"{func.__name__} of tensors on {' and '.join(sorted(map(str, homes)))}")
        out = func(*args, **kwargs)
        return self.put(out, torch.device(wanted) if wanted is not None else next(iter(homes), CPU))
