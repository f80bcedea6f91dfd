"""A decoder's parameters that learn become optimizers: which method, and which parameters are pulled towards zero."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lathe.errors import UsageError, did_you_mean
from lathe.model import layers
from lathe.model.decoder import Embedding
from lathe.training.bfloat16 import SplitAdamW
from lathe.training.methods import CLASSES, Name

TOLD = ("params", "lr", "betas", "eps", "momentum", "weight_decay", "fused")  # arguments that other options are
EPS, MOMENTUM = 1e-8, 0.95  # of AdamW and of Muon
Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """lr: the highest learning rate. weight_decay: of what `decays`. betas, eps: of AdamW. momentum: of Muon. None:
    what the method has. decay_embeddings: embeddings are pulled towards zero too. more: further arguments of torch's
    class. compiled: AdamW's steps on bfloat16 weights are."""

    name: Name = "adamw"
    lr: float = 4e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float | None = None
    momentum: float | None = None
    decay_embeddings: bool = True
    more: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = False


def build(decoder: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Optimizers for all parameters that ask for gradients; each group has its `initial_lr`.

    Weight decay is for matrices, not for norms, biases, sinks and gates.

    Raises:
        UsageError: nothing learns; the method needs a library that is not there, or another precision, or has no such
            argument.
    """
    found = list(learned(decoder))
    if not found:
        raise UsageError("No parameter of the model learns.", "An optimizer needs at least one.")
    if settings.more and settings.name not in ("adamw", *CLASSES):
        told = f"--optimizer.more is given, and --optimizer.name is {settings.name}."
        raise UsageError(told, "It is for adamw, and for others of torch's.", "Leave it out.")
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
    eps = EPS if settings.eps is None else settings.eps
    made: list[torch.optim.Optimizer] = []
    if wide:
        # One kernel for all where the device has one, else one operation for all.
        fused = all(each.parameter.device.type in ("cpu", "cuda", "mps") for each in wide)
        made.append(
            constructed(torch.optim.AdamW, groups(wide, settings), settings, betas=settings.betas, eps=eps, fused=fused)
        )
    if narrow:
        if settings.more:
            told = f"--optimizer.more is {', '.join(settings.more)}, and --precision bf16-true."
            raise UsageError(told, "AdamW on bfloat16 weights has no such argument.", "Take bf16-mixed.")
        parts, compiled = groups(narrow, settings), settings.compiled
        made.append(SplitAdamW(parts, settings.lr, settings.betas, eps, compiled=compiled))
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
            eps=EPS if settings.eps is None else settings.eps,
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
                momentum=MOMENTUM if settings.momentum is None else settings.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return [*made, *(adamw(others, settings) if others else [])]


def adafactor(found: list[Learned], settings: Settings) -> list[torch.optim.Optimizer]:
    """torch's Adafactor (Shazeer & Stern, arXiv:1804.04235): a row and a column of squares for each matrix, and no mean
    of gradients. lr is the part of a matrix's own size that a step may change."""
    _wide(found, "adafactor")
    return [torch.optim.Adafactor(groups(found, settings), lr=settings.lr)]


def of_torch(found: list[Learned], settings: Settings) -> list[torch.optim.Optimizer]:
    """Another of torch.optim's. It is given what is said of AdamW and Muon as far as it has the like."""
    _wide(found, settings.name)
    kind = getattr(torch.optim, CLASSES[settings.name])  # type: ignore[index]
    takes = inspect.signature(kind).parameters
    told = {"betas": settings.betas, "eps": settings.eps, "momentum": settings.momentum}
    if settings.momentum is not None and "momentum" not in takes:
        raise UsageError(f"--optimizer.momentum is given, and {kind.__name__} has none.", fix="Leave it out.")
    given = {name: value for name, value in told.items() if name in takes and value is not None}
    return [constructed(kind, groups(found, settings), settings, **given)]


def constructed(
    kind: type[torch.optim.Optimizer], parts: Groups, settings: Settings, **given: Any
) -> torch.optim.Optimizer:
    """An optimizer of a class of torch's, with `settings.more`. Raises UsageError for arguments that it has not, or
    that do not go together."""
    free = [name for name in inspect.signature(kind).parameters if name not in TOLD]
    if unknown := [name for name in settings.more if name not in free]:
        fix = did_you_mean(unknown[0], free)
        raise UsageError(
            f"--optimizer.more is {unknown[0]}=..., and {kind.__name__} has none.", f"It has {', '.join(free)}.", fix
        )
    try:
        return kind(parts, lr=settings.lr, **given, **settings.more)  # type: ignore[call-arg]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{kind.__name__} is not to be had so: {error}.") from None


METHODS: dict[Name, Callable[[list[Learned], Settings], list[torch.optim.Optimizer]]] = {
    "adamw": adamw,
    "adamw-8bit": adamw_8bit,
    "muon": muon,
    "adafactor": adafactor,
    **dict.fromkeys(CLASSES, of_torch),
}


def _wide(found: list[Learned], name: str) -> None:
    if any(each.parameter.dtype == torch.bfloat16 for each in found):
        expected = f"{name}'s small steps on bfloat16 weights would round to nothing."
        raise UsageError(f"--optimizer.name is {name} and --precision bf16-true.", expected, "Take bf16-mixed.")
