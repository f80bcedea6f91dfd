"""Pairs of answers, one chosen and one rejected, become a loss that makes a model prefer the first to the second.

A batch's sequences are chosen, rejected, chosen, rejected, ... A model's own preference is measured against that of a
reference, which does not learn: the same model without its adapter, or what it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.data.loader import Batch
from lathe.data.pack import IGNORE, Row
from lathe.model.decoder import Decoder
from lathe.training.loss import Score, at_once
from lathe.transforms import adapt

Kind = Literal["dpo", "ipo", "hinge", "simpo", "orpo"]
Reference = Callable[[], AbstractContextManager[Decoder]]


def pairs(row: Row) -> int:
    """What a row weighs: its pairs."""
    return len(row.lengths) // 2


@dataclass(frozen=True)
class Settings:
    """kind: see LOSSES. beta: how much a preference counts: for dpo, ipo and hinge, how closely the model keeps to the
    reference. smoothing: the part of pairs that are taken to be the wrong way round (dpo). margin: by how much the
    chosen answer is to be likelier (simpo)."""

    kind: Kind = "dpo"
    beta: float = 0.1
    smoothing: float = 0.0
    margin: float = 0.5


@dataclass(frozen=True, eq=False)
class Answers:
    """log p of all pairs' answers: the sums over their tokens, and how many those are. All (P,), float32."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Per token."""
        return self.chosen / self.chosen_tokens.clamp(min=1), self.rejected / self.rejected_tokens.clamp(min=1)


def objective(
    decoder: Decoder, settings: Settings, reference: Reference, autocast: torch.dtype | None = None
) -> Callable[[Batch], Tensor]:
    """The summed loss of a batch's pairs. autocast: the dtype of mixed precision."""
    loss = LOSSES[settings.kind]

    def summed(batch: Batch) -> Tensor:
        with torch.autocast(batch.tokens.device.type, dtype=autocast, enabled=autocast is not None):
            own = answers(decoder, batch)
            if settings.kind not in ALONE:
                with torch.no_grad(), reference() as other:
                    theirs = answers(other, batch)
            else:
                theirs = own
        there = (own.chosen_tokens > 0) & (own.rejected_tokens > 0)  # not so where a rank only keeps step with others
        return (loss(own, theirs, settings) * there).sum()

    return summed


def without_adapters(decoder: Decoder) -> Reference:
    """The model itself, its adapters switched off."""

    @contextmanager
    def reference() -> Iterator[Decoder]:
        with adapt.disabled(decoder):
            yield decoder

    return reference


def fixed(other: Decoder) -> Reference:
    """Another model, which does not learn."""
    other.requires_grad_(False)

    @contextmanager
    def reference() -> Iterator[Decoder]:
        yield other

    return reference


def answers(decoder: Decoder, batch: Batch) -> Answers:
    """log p of each sequence's supervised tokens, with gradients where they are enabled."""
    wanted = batch.targets != IGNORE
    likely = log_probabilities(decoder, decoder(batch.tokens, batch.layout)[wanted], batch.targets[wanted])
    lengths = torch.tensor(batch.layout.lengths, device=wanted.device)
    sequence = torch.arange(len(lengths), device=wanted.device).repeat_interleave(lengths)[wanted]
    sums = likely.new_zeros(len(lengths)).index_add(0, sequence, likely)
    counts = sequence.bincount(minlength=len(lengths)).float()
    return Answers(sums[0::2], sums[1::2], counts[0::2], counts[1::2])


# ---- losses of each pair --------------------------------------------------------------------------------------------
def dpo(own: Answers, reference: Answers, settings: Settings) -> Tensor:
    """Rafailov et al., arXiv:2305.18290, equation 7; with smoothing, Mitchell's conservative form."""
    margin = settings.beta * _margin(own, reference)
    return -(1 - settings.smoothing) * F.logsigmoid(margin) - settings.smoothing * F.logsigmoid(-margin)


def ipo(own: Answers, reference: Answers, settings: Settings) -> Tensor:
    """Azar et al., arXiv:2310.12036, equation 17, of means over tokens, as its authors advise."""
    (chosen, rejected), (chosen_before, rejected_before) = own.means, reference.means
    return (chosen - rejected - (chosen_before - rejected_before) - 1 / (2 * settings.beta)).square()


def hinge(own: Answers, reference: Answers, settings: Settings) -> Tensor:
    """Zhao et al., arXiv:2305.10425, against a reference."""
    return F.relu(1 - settings.beta * _margin(own, reference))


def simpo(own: Answers, _: Answers, settings: Settings) -> Tensor:
    """Meng et al., arXiv:2405.14734, equation 6: no reference."""
    chosen, rejected = own.means
    return -F.logsigmoid(settings.beta * (chosen - rejected) - settings.margin)


def orpo(own: Answers, _: Answers, settings: Settings) -> Tensor:
    """Hong et al., arXiv:2403.07691, equations 6 and 7: the chosen answer's own loss, and the ratio of odds; no
    reference."""
    chosen, rejected = own.means
    odds = chosen - rejected - (torch.log1p(-chosen.exp()) - torch.log1p(-rejected.exp()))
    return -chosen - settings.beta * F.logsigmoid(odds)


LOSSES: dict[Kind, Callable[[Answers, Answers, Settings], Tensor]] = {
    "dpo": dpo,
    "ipo": ipo,
    "hinge": hinge,
    "simpo": simpo,
    "orpo": orpo,
}
ALONE = ("simpo", "orpo")  # without a reference


def _margin(own: Answers, reference: Answers) -> Tensor:
    """How much more the model prefers the chosen answer than the reference does."""
    return own.chosen - own.rejected - (reference.chosen - reference.rejected)


# ---- log p of single tokens -----------------------------------------------------------------------------------------
def log_probabilities(decoder: Decoder, hidden: Tensor, targets: Tensor, scores: int | None = None) -> Tensor:
    """log p of each target, (N,), float32. hidden: N D. No more than `scores` logits exist at once; for gradients they
    are computed a second time, because what each one counts is known only when all are there."""
    head = [parameter for parameter in decoder.lm_head.parameters() if parameter.requires_grad]
    rows = at_once(decoder, hidden, scores)
    made: Tensor = Likely.apply(decoder.logits, rows, hidden, targets, *head)
    return made


class Likely(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score: Score, rows: int, hidden: Tensor, targets: Tensor, *head: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, targets, *head)
        ctx.score, ctx.rows, kind = score, rows, hidden.device.type
        ctx.autocast = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
        parts = zip(hidden.split(rows), targets.split(rows), strict=True)
        return -torch.cat([F.cross_entropy(score(some).float(), wanted, reduction="none") for some, wanted in parts])

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, *head = ctx.saved_tensors
        by_hidden, by_head = torch.empty_like(hidden), [torch.zeros_like(parameter) for parameter in head]
        slices = (x.split(ctx.rows) for x in (hidden, targets, outer[0], by_hidden))
        for some, wanted, slope, gradient in zip(*slices, strict=True):
            with torch.enable_grad(), torch.autocast(hidden.device.type, **ctx.autocast):
                some = some.detach().requires_grad_()
                scores = ctx.score(some)
            pull = scores.detach().float().softmax(-1).mul_(-slope[:, None])
            pull.scatter_add_(1, wanted[:, None], slope[:, None])  # slope x (one hot - softmax)
            by_some, *by_parameters = torch.autograd.grad(scores, (some, *head), pull.to(scores.dtype))
            gradient.copy_(by_some)
            for sum_, part in zip(by_head, by_parameters, strict=True):
                sum_ += part
        return None, None, by_hidden, None, *by_head
