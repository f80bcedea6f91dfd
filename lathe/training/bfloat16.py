"""Small steps on bfloat16 weights are not lost: AdamW that keeps the bits that bfloat16 has no room for.

A bfloat16 weight has 8 significant bits, so that a step smaller than 1/512 of it rounds to no step at all, however
often it is made. Here each weight is the upper half of a float32 number, and the optimizer keeps the lower half: the
model computes with the nearest bfloat16, and updates act on the float32 number, as if it were the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lathe.model.native import learning
from lathe.transforms.parts import local

CHUNK = {"cpu": 1 << 20, "cuda": 1 << 24}  # numbers that are float32 at once: as many as stay in a CPU's cache


def join(upper: Tensor, lower: Tensor) -> Tensor:
    """bfloat16 numbers and int16 ones, as `split` gives them, become float32."""
    return ((upper.view(torch.int16).to(torch.int32) << 16) + lower).view(torch.float32)


def split(wide: Tensor, upper: Tensor, lower: Tensor) -> None:
    """Write float32 numbers as the nearest bfloat16 (halves away from zero) and what is missing, as int16."""
    bits = wide.view(torch.int32)
    near = (bits + (1 << 15)) >> 16
    upper.copy_(near.to(torch.int16).view(torch.bfloat16))
    lower.copy_(bits - (near << 16))


class SplitAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101) for bfloat16 parameters, or shards of them.

    A parameter takes 12 bytes: itself 2, its gradient 2, the lower half of its float32 value 2, the mean of gradients 2
    (bfloat16: a tenth of it is new at every step) and of their squares 4 (float32: a thousandth may be).
    """

    def __init__(
        self,
        groups: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
        compiled: bool = False,
    ) -> None:
        """compiled: one kernel for all that happens to a weight, made by torch's compiler; else see `passed`."""
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.move: Callable[..., None] = torch.compile(plain, dynamic=True) if compiled else passed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (beta1, beta2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
            numbers = Numbers(beta1, beta2, eps, decay)
            rates = {}  # as tensors: a compiler would make new code for every number
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter] or self._begin(parameter)
                    state["step"] += 1
                    weight = local(parameter)
                    if weight.device not in rates:
                        rates[weight.device] = torch.as_tensor(group["lr"], dtype=torch.float32, device=weight.device)
                    beside = (local(state[name]).view(-1) for name in ("lower", "exp_avg", "exp_avg_sq"))
                    kept, slope = Kept(weight.view(-1), *beside), local(parameter.grad).reshape(-1)
                    self.move(kept, slope, state["step"].to(weight.device), rates[weight.device], numbers)

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        state["step"] = torch.zeros(())
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
        state["lower"] = torch.zeros_like(parameter, dtype=torch.int16)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As any optimizer's, but what is kept beside a parameter keeps its own dtype."""
        super().load_state_dict(state_dict)
        mine = [parameter for group in self.param_groups for parameter in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for parameter, number in zip(mine, numbers, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                device = "cpu" if name == "step" else parameter.device
                self.state[parameter][name] = value.detach().to(device, copy=True)


class Kept(NamedTuple):
    """Of (n,) weights: their upper and lower halves, the means of their gradients and of the squares of those."""

    upper: Tensor
    lower: Tensor
    mean: Tensor
    square: Tensor


class Numbers(NamedTuple):
    """AdamW's, but its learning rate."""

    beta1: float
    beta2: float
    eps: float
    decay: float


def passed(kept: Kept, slope: Tensor, step: Tensor, lr: Tensor, by: Numbers) -> None:
    """Step number `step` by the gradient `slope`: in one pass over memory where there is a kernel, else `chunked`."""
    if slope.device.type != "cpu" or not learning.adamw(kept, slope, step.item(), lr.item(), by):
        chunked(kept, slope, step, lr, by)


def chunked(kept: Kept, slope: Tensor, step: Tensor, lr: Tensor, by: Numbers) -> None:
    """The same with torch's own AdamW; no more than a chunk of the weights is ever float32."""
    numbers: Any = {"beta1": by.beta1, "beta2": by.beta2, "lr": lr, "weight_decay": by.decay, "eps": by.eps}
    chunk = CHUNK.get(slope.device.type, CHUNK["cuda"])
    for gradient, high, low, mean, square in zip(*(x.split(chunk) for x in (slope, *kept)), strict=True):
        wide, moved = join(high, low), mean.float()
        counted = [step - 1]  # which it counts up
        fixed: Any = {"fused": True, "amsgrad": False, "maximize": False}
        adamw([wide], [gradient.float()], [moved], [square], [], counted, **fixed, **numbers)
        mean.copy_(moved)
        split(wide, high, low)


def plain(kept: Kept, slope: Tensor, step: Tensor, lr: Tensor, by: Numbers) -> None:
    """The same as formulas, of which a compiler makes one kernel."""
    wide, gradient = join(kept.upper, kept.lower) * (1 - lr * by.decay), slope.float()
    moved = torch.lerp(kept.mean.float(), gradient, 1 - by.beta1)
    squares = torch.lerp(kept.square, gradient * gradient, 1 - by.beta2)
    size = (squares / (1 - by.beta2**step)).sqrt() + by.eps
    kept.mean.copy_(moved)
    kept.square.copy_(squares)
    split(wide - lr / (1 - by.beta1**step) * moved / size, kept.upper, kept.lower)
