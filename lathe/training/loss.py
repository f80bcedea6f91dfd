"""Hidden states and targets become a loss, in slices of rows, so that the logits of a whole batch never exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.data.loader import Batch
from lathe.data.pack import IGNORE
from lathe.model.decoder import Decoder
from lathe.model.gradients import product_dtype
from lathe.model.layers import Linear
from lathe.model.native import learning
from lathe.training.balance import Balance

Score = Callable[[Tensor], Tensor]  # N D -> N V

# In one slice, by device: 32 MiB in bfloat16, the most that malloc keeps for the next slice; and where products are so
# fast that adding up their results counts, 256.
SCORES = {"cpu": 1 << 24, "cuda": 1 << 27}
CACHED = 1 << 19  # of them that a CPU works on at once


def next_token(
    decoder: Decoder, autocast: torch.dtype | None = None, z: float = 0.0, balance: float = 0.0
) -> Callable[[Batch], Tensor]:
    """The objective of language modelling: a batch's summed cross entropy.

    autocast: the dtype of mixed precision. z: see `cross_entropy`. balance: how much the imbalance of experts counts
    beside a token's loss. Both only where gradients are wanted: a validation's loss is without them.
    """
    imbalance = Balance(decoder) if balance else None

    def objective(batch: Batch) -> Tensor:
        with torch.autocast(batch.tokens.device.type, dtype=autocast, enabled=autocast is not None):
            total = cross_entropy(decoder, decoder(batch.tokens, batch.layout), batch.targets, z=z)
        if imbalance and torch.is_grad_enabled():
            total = total + balance * batch.supervised * imbalance()
        return total

    return objective


def cross_entropy(
    decoder: Decoder, hidden: Tensor, targets: Tensor, scores: int | None = None, z: float = 0.0
) -> Tensor:
    """-log p(target), summed over the rows whose target is not IGNORE; float32.

    hidden: T D. targets: (T,) int64. scores: how many logits may exist at once, None for
    what suits the device. z: how much the square of the logarithm
    of the softmax's denominator counts beside it, which keeps logits from drifting away (Chowdhery et al.,
    arXiv:2204.02311, take 1e-4); only where gradients are wanted. Equal to F.cross_entropy of decoder.logits(hidden)
    with reduction="sum", its gradients too.
    """
    wanted = targets != IGNORE
    if not wanted.all():
        hidden, targets = hidden[wanted], targets[wanted]
    rows = at_once(decoder, hidden, scores)
    if not torch.is_grad_enabled():
        return _total(decoder.logits, hidden, targets, rows)
    matrix = _matrix(decoder)
    if matrix is not None:
        return Product.apply(rows, z, hidden, targets, matrix)
    head = [parameter for parameter in decoder.lm_head.parameters() if parameter.requires_grad]
    return Sliced.apply(decoder.logits, rows, z, hidden, targets, *head)


def _matrix(decoder: Decoder) -> Tensor | None:
    """What rows are multiplied with to be logits, if that is all that happens to them."""
    head, spec = decoder.lm_head, decoder.spec
    plain = type(head) is Linear and head.bias is None and spec.logit_scale == 1.0 and spec.logit_softcap is None
    return head.weight if plain and not head._forward_hooks and not head._forward_pre_hooks else None


def at_once(decoder: Decoder, hidden: Tensor, scores: int | None = None) -> int:
    """How many rows have no more logits than `scores`, or than suits the device; at least one, and whole times 32 where
    they are more, as products like it."""
    rows = max(1, (scores or SCORES.get(hidden.device.type, SCORES["cpu"])) // decoder.spec.vocab)
    return rows - rows % 32 if rows > 32 else rows


def _total(score: Score, hidden: Tensor, targets: Tensor, rows: int) -> Tensor:
    total = hidden.new_zeros((), dtype=torch.float32)
    for some, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        total += F.cross_entropy(score(some).float(), wanted, reduction="sum")
    return total


class Sliced(torch.autograd.Function):
    """Loss and gradients of each slice are computed together, while its logits are there: nothing is computed twice.
    For a head of any kind; see `Product` for a plain one.

    torch's own F.linear_cross_entropy does the same for a plain matrix. It knows no soft cap, scale or LoRA on the
    head, sums bfloat16 losses in bfloat16, and is slower on CPU (measured at 2048 x 576 x 49152: 1.5 times in float32,
    5 times in bfloat16).
    """

    @staticmethod
    def forward(ctx: Any, score: Score, rows: int, z: float, hidden: Tensor, targets: Tensor, *head: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        by_hidden, by_head = torch.empty_like(hidden), list[Tensor]()
        slices = (x.split(rows) for x in (hidden, targets, by_hidden))
        for some, wanted, gradient in zip(*slices, strict=True):
            with torch.enable_grad():
                some = some.detach().requires_grad_()
                scores = score(some)
            pull = scores.detach()
            total += _judged(pull, wanted, z)
            by_some, *by_parameters = torch.autograd.grad(scores, (some, *head), pull)
            gradient.copy_(by_some)
            for sum_, part in zip(by_head, by_parameters, strict=False):
                sum_ += part
            by_head = by_head or by_parameters
        ctx.gradients = by_hidden, by_head
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_head = ctx.gradients
        del ctx.gradients  # scaled in place, so good for one backward pass
        return None, None, None, by_hidden.mul_(outer[0]), None, *(gradient.mul_(outer[0]) for gradient in by_head)


class Product(torch.autograd.Function):
    """The same for a head that is one matrix, V D: the slices share room for logits, and add to one gradient."""

    @staticmethod
    def forward(ctx: Any, rows: int, z: float, hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        kind = product_dtype(hidden)
        x, matrix = hidden.to(kind), weight.detach().to(kind)
        total = hidden.new_zeros((), dtype=torch.float32)
        room = x.new_empty(min(rows, len(x)), len(matrix))
        by_x, by_matrix = torch.empty_like(x), torch.zeros_like(weight) if weight.requires_grad else None
        wide = weight.dtype != kind
        part = torch.empty_like(matrix) if wide else by_matrix
        for some, wanted, gradient in zip(*(y.split(rows) for y in (x, targets, by_x)), strict=True):
            scores = torch.mm(some, matrix.t(), out=room[: len(some)])
            total += _judged(scores, wanted, z)
            torch.mm(scores, matrix, out=gradient)
            if by_matrix is not None and wide:
                learning.add(by_matrix, torch.mm(scores.t(), some, out=part))
            elif by_matrix is not None:
                by_matrix.addmm_(scores.t(), some)
        ctx.gradients = by_x.to(hidden.dtype), by_matrix
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_matrix = ctx.gradients
        del ctx.gradients
        by_matrix = None if by_matrix is None else by_matrix.mul_(outer[0])
        return None, None, by_hidden.mul_(outer[0]), None, by_matrix


def _judged(scores: Tensor, targets: Tensor, z: float) -> Tensor:
    """The summed loss of N V scores, which become its gradient by them in place: softmax - one hot, without z.

    Computed in float32. Without a kernel for it, on a CPU in as many rows at a time as its caches hold: four times as
    fast as whole.
    """
    losses = learning.judge(scores, targets, z)
    if losses is not None:
        return losses.sum()
    total = scores.new_zeros((), dtype=torch.float32)
    rows = max(1, CACHED // scores.shape[1]) if scores.device.type == "cpu" else max(1, len(scores))
    for some, wanted in zip(scores.split(rows), targets[:, None].split(rows), strict=True):
        logs = some.log_softmax(-1, dtype=torch.float32)
        chosen = logs.gather(1, wanted)
        total -= chosen.sum()
        if z:
            size = some.gather(1, wanted).float() - chosen  # the logarithm of the denominator, N 1
            total += z * size.square().sum()
            slope = logs.exp_().mul_(1 + 2 * z * size)
        else:
            slope = logs.exp_()
        some.copy_(slope.scatter_add_(1, wanted, logs.new_full(wanted.shape, -1.0)))
    return total
