"""A decoder's parameters that learn become optimizers: which method, and which parameters are pulled towards zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lathe.errors import UsageError
from lathe.model import layers
from lathe.model.decoder import Embedding
from lathe.training.bfloat16 import SplitAdamW

Name = Literal["adamw", "adamw-8bit", "muon", "adafactor"]
Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """lr: the highest learning rate. weight_decay: of what `decays`. betas, eps: of AdamW. momentum: of Muon.
    decay_embeddings: embeddings are pulled towards zero too. compiled: AdamW's steps on bfloat16 weights are."""

    name: Name = "adamw"
    lr: float = 4e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    decay_embeddings: bool = True
    compiled: bool = False


def build(decoder: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Optimizers for all parameters that ask for gradients; each group has its `initial_lr`.

    Weight decay is for matrices, not for norms, biases, sinks and gates.

    Raises:
        UsageError: nothing learns; the method needs a library that is not there, or another precision.
    """
    found = list(learned(decoder))
    if not found:
        raise UsageError("No parameter of the model learns.", "An optimizer needs at least one.")
    return METHODS[settings.name](found, settings)


@dataclass(frozen=True, eq=False)
class Learned:
    """A parameter and the module that holds it, under its own name in there and in the decoder."""

    parameter: nn.Parameter
    module: nn.Module
    own: str
    name: str

    def decays(self, embeddings: bool) -> bool:
        """Whether it is a matrix, or a stack of them."""
        if self.parameter.ndim < 2 or self.own == "bias" or isinstance(self.module, layers.NORMS):
            return False
        return embeddings or not isinstance(self.module, Embedding)

    @property
    def hidden(self) -> bool:
        """Whether it is the matrix of a linear map between hidden states."""
        plain = isinstance(self.module, layers.Linear) and self.own == "weight"
        return plain and self.parameter.ndim == 2 and not self.name.startswith("lm_head")


def learned(decoder: nn.Module) -> Iterator[Learned]:
    """Every parameter that asks for gradients, once: a tied head is the embedding."""
    seen: set[nn.Parameter] = set()
    for path, module in decoder.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield Learned(parameter, module, own, f"{path}.{own}")


def groups(found: list[Learned], settings: Settings) -> Groups:
    """Those that decay and those that do not."""
    parts: dict[float, list[nn.Parameter]] = {settings.weight_decay: [], 0.0: []}
    for each in found:
        parts[settings.weight_decay * each.decays(settings.decay_embeddings)].append(each.parameter)
    return [
        {"params": some, "weight_decay": decay, "lr": settings.lr, "initial_lr": settings.lr}
        for decay, some in parts.items()
        if some
    ]


def adamw(found: list[Learned], settings: Settings) -> list[torch.optim.Optimizer]:
    """torch's AdamW for float32, one that loses no small step for bfloat16."""
    narrow = [each for each in found if each.parameter.dtype == torch.bfloat16]
    wide = [each for each in found if each.parameter.dtype != torch.bfloat16]
    made: list[torch.optim.Optimizer] = []
    if wide:
        # One kernel for all where the device has one, else one operation for all.
        fused = all(each.parameter.device.type in ("cpu", "cuda", "mps") for each in wide)
        made.append(
            torch.optim.AdamW(
                groups(wide, settings), lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused
            )
        )
    if narrow:
        parts, compiled = groups(narrow, settings), settings.compiled
        made.append(SplitAdamW(parts, settings.lr, settings.betas, settings.eps, compiled=compiled))
    return made


def adamw_8bit(found: list[Learned], settings: Settings) -> list[torch.optim.Optimizer]:
    """torchao's AdamW, whose two means are 8-bit numbers with a scale per 256 (Dettmers et al., arXiv:2110.02861).
    bfloat16 weights are rounded up or down by chance, so that small steps count on average."""
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        fix = 'Install it: pip install "lathe-llm[ao]"'
        raise UsageError("--optimizer.name adamw-8bit needs torchao.", "", fix) from None
    return [
        AdamW8bit(
            groups(found, settings),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            bf16_stochastic_round=True,
        )
    ]


def muon(found: list[Learned], settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for hidden matrices, AdamW for all else: embeddings, the head, norms, biases, routers
    and stacks of experts. Its steps are as long as AdamW's (Liu et al., arXiv:2502.16982), so one learning rate and one
    decay fit both."""
    _wide(found, "muon")
    hidden, others = [each for each in found if each.hidden], [each for each in found if not each.hidden]
    made: list[torch.optim.Optimizer] = []
    if hidden:
        made.append(
            torch.optim.Muon(
                groups(hidden, settings),
                lr=settings.lr,
                momentum=settings.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return [*made, *(adamw(others, settings) if others else [])]


def adafactor(found: list[Learned], settings: Settings) -> list[torch.optim.Optimizer]:
    """torch's Adafactor (Shazeer & Stern, arXiv:1804.04235): a row and a column of squares for each matrix, and no mean
    of gradients. lr is the part of a matrix's own size that a step may change."""
    _wide(found, "adafactor")
    return [torch.optim.Adafactor(groups(found, settings), lr=settings.lr)]


METHODS: dict[Name, Callable[[list[Learned], Settings], list[torch.optim.Optimizer]]] = {
    "adamw": adamw,
    "adamw-8bit": adamw_8bit,
    "muon": muon,
    "adafactor": adafactor,
}


def _wide(found: list[Learned], name: str) -> None:
    if any(each.parameter.dtype == torch.bfloat16 for each in found):
        expected = f"{name}'s small steps on bfloat16 weights would round to nothing."
        raise UsageError(f"--optimizer.name is {name} and --precision bf16-true.", expected, "Take bf16-mixed.")
