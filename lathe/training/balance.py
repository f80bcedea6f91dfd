"""Routers become a loss that is least where all experts get as many tokens; watches them from outside."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.errors import UsageError
from lathe.model.decoder import Decoder
from lathe.model.mlps import Router, SparseMixer


class Balance:
    """The load balancing loss of a mixture of experts, for the ribbon that the decoder was given last.

    Per router: E times the sum over experts of (the part of tokens that chose it) x (its mean probability), as Fedus et
    al., arXiv:2101.03961, have it for one choice a token and Mixtral for several; its mean over all routers. It is the
    number of choices where all are balanced. It is of one ribbon: with smaller micro-batches it asks for more.

    Raises:
        UsageError: the decoder has no router.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.terms: list[Tensor] = []
        routers = [module for module in decoder.modules() if isinstance(module, Router | SparseMixer)]
        if not routers:
            raise UsageError("The model has no experts.", "", "Leave out --train.balance-loss.")
        for router in routers:
            router.register_forward_hook(self._note)
        decoder.register_forward_pre_hook(self._begin)

    def _begin(self, decoder: nn.Module, args: tuple[Any, ...]) -> None:
        self.terms = []

    def _note(self, router: nn.Module, args: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        if torch.is_grad_enabled():
            self.terms.append(term(probabilities(router, args[0]), output[0]))

    def __call__(self) -> Tensor:
        return torch.stack(self.terms).mean()


def probabilities(router: Any, x: Tensor) -> Tensor:
    """How much a router favours each expert, T E, in float32; each token's add up to one. x: T D."""
    bias = getattr(router, "bias", None)
    with torch.autocast(x.device.type, enabled=False):
        scores = F.linear(x.float(), router.weight.float(), None if bias is None else bias.float())
    if getattr(router.part, "score", "softmax") == "sigmoid":  # DeepSeek-V3, arXiv:2412.19437, equation 19
        scores = scores.sigmoid()
        return scores / scores.sum(-1, keepdim=True)
    return scores.softmax(-1)


def term(likely: Tensor, chosen: Tensor) -> Tensor:
    """The loss of one router. likely: T E, probabilities. chosen: T k, experts."""
    experts = likely.shape[1]
    loads = chosen.flatten().bincount(minlength=experts) / len(chosen)
    return experts * (loads * likely.mean(0)).sum()
