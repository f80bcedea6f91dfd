"""Tensor parallelism: a decoder becomes one of N that compute a part of every layer each, and together the whole.

After Shoeybi et al., arXiv:1909.08053: heads, MLP widths and rows of the vocabulary are divided; what every rank has
computed of a mixer or an MLP is added up, so that the stream is whole, and the same, on all ranks. Where a decoder has
fewer kv heads than there are ranks, several ranks hold the same one. `cuts` says which dimension of which parameter is
divided, `group` what ranks tell each other. Knows no file: `Share.mine` slices what can be sliced, and the rest is not
read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.errors import UsageError
from lathe.model import layers
from lathe.model.decoder import Block, Decoder, Embedding
from lathe.model.spec import Attention, Clamped, Experts, Gated, LatentAttention, Layer, Mixer, Mlp, Plain, Spec
from lathe.transforms.cuts import Cut, cut_of
from lathe.transforms.group import Group, span

if TYPE_CHECKING:
    from lathe.weights.tensors import Ref


Narrow = TypeVar("Narrow", bound=Clamped | Gated | Plain)


@dataclass(frozen=True)
class Share:
    """One rank's part of a model. Raises UsageError for one that cannot be divided evenly among so many."""

    spec: Spec
    group: Group

    def __post_init__(self) -> None:
        count = self.group.count
        most = max(layer.mixer.heads for layer in self.spec.layers)
        fits = [n for n in range(1, most + 1) if all(_divides(layer.mixer, n) for layer in self.spec.layers)]
        if count not in fits:
            heads = " and ".join(sorted({_heads(layer.mixer) for layer in self.spec.layers}))
            some = " or ".join(map(str, fits))
            found = f"A layer of {heads} cannot be divided among {count} devices."
            raise UsageError(found, "Every device must get as many heads.", f"Take {some}, or --strategy layers.")

    def decoder(self) -> Decoder:
        """The part as a decoder; call it under `torch.device("meta")`, then fill it, then `join` it."""
        start, end = self._span(self.spec.vocab)
        small = replace(self.spec, vocab=end - start, layers=tuple(map(self._layer, self.spec.layers)))
        decoder = Decoder(small)
        decoder.spec = replace(small, vocab=self.spec.vocab)  # what comes in and out are still all ids
        decoder.model.embed_tokens = Rows(decoder.model.embed_tokens, start, self.group)
        return decoder

    def mine(self, name: str, ref: Ref, shape: tuple[int, ...]) -> Ref:
        """This rank's slice of a parameter, of which the rank's decoder wants `shape`."""
        cut = cut_of(name)
        if cut.once and self.group.rank > 0:
            return type(ref).of(torch.zeros(shape, dtype=ref.dtype), ref.source)
        if cut.unit is None or ref.shape == shape:
            return ref
        start, end = self.place(name, cut, ref.shape[cut.dim])
        return ref[(*(slice(None) for _ in range(cut.dim)), slice(start, end))]

    def join(self, decoder: Decoder) -> Decoder:
        """Make a filled part add to the others' whatever is a part of a sum, and gather the scores."""
        group, vocab = self.group, self.spec.vocab
        for block, layer in zip(decoder.model.layers, self.spec.layers, strict=True):
            assert isinstance(block, Block)
            for module in (block.self_attn, block.mlp):
                module.register_forward_pre_hook(lambda _, given: (group.enter(given[0]), *given[1:]))
                module.register_forward_hook(lambda _, __, y: group.sum(y))
            if isinstance(layer.mixer, Attention) and layer.mixer.qk_norm and layer.mixer.qk_norm.over == "row":
                for name in ("q_norm", "k_norm"):
                    setattr(block.self_attn, name, RowNorm(getattr(block.self_attn, name), group))
        decoder.lm_head.register_forward_pre_hook(lambda _, given: (group.enter(given[0]),))
        decoder.lm_head.register_forward_hook(lambda _, __, y: group.side_by_side(y, vocab))
        return decoder

    def _span(self, size: int) -> tuple[int, int]:
        return span(size, self.group.rank, self.group.count)

    def on(self, rank: int) -> Share:
        """The same on another rank."""
        return replace(self, group=replace(self.group, rank=rank))

    def place(self, name: str, cut: Cut, size: int) -> tuple[int, int]:
        """From where to where this rank has the dimension of a parameter that is cut, which is `size` long."""
        if cut.unit == "rows":
            return self._span(size)
        mixer = self.spec.layers[int(name.split(".")[2])].mixer
        heads = mixer.kv_heads if cut.unit == "kv_heads" and isinstance(mixer, Attention) else mixer.heads
        channels = size // heads
        if heads < self.group.count:  # several ranks have the same
            start = self.group.rank * heads // self.group.count
            return start * channels, (start + 1) * channels
        start, end = self._span(heads)
        return start * channels, end * channels

    def _layer(self, layer: Layer) -> Layer:
        return replace(layer, mixer=self._mixer(layer.mixer), mlp=self._mlp(layer.mlp))

    def _mixer(self, part: Mixer) -> Mixer:
        heads = part.heads // self.group.count
        if isinstance(part, LatentAttention):
            return replace(part, heads=heads)
        return replace(part, heads=heads, kv_heads=max(part.kv_heads // self.group.count, 1))

    def _mlp(self, part: Mlp) -> Mlp:
        if isinstance(part, Experts):
            return replace(part, each=self._narrow(part.each), shared=part.shared and self._narrow(part.shared))
        return self._narrow(part)

    def _narrow(self, part: Narrow) -> Narrow:
        start, end = self._span(part.width)
        return replace(part, width=end - start)


def _divides(part: Mixer, count: int) -> bool:
    keys = part.kv_heads if isinstance(part, Attention) else part.heads
    return part.heads % count == 0 and (keys % count == 0 or count % keys == 0)


def _heads(part: Mixer) -> str:
    return f"{part.heads} heads" + (f", {part.kv_heads} for keys and values" if isinstance(part, Attention) else "")


class Rows(Embedding):
    """Rows `first` and on of an embedding's table; the other ranks look up the others."""

    def __init__(self, table: Embedding, first: int, group: Group) -> None:
        super().__init__(*table.weight.shape)
        self.weight, self.first, self.group = table.weight, first, group

    def forward(self, index: Tensor) -> Tensor:
        at = index - self.first
        elsewhere = (at < 0) | (at >= len(self.weight))
        return self.group.sum(F.embedding(at.masked_fill(elsewhere, 0), self.weight).masked_fill(elsewhere[:, None], 0))


class RowNorm(nn.Module):
    """An RMS norm over rows of which every rank has an equally long part (OLMo 2's queries and keys)."""

    def __init__(self, norm: nn.Module, group: Group) -> None:
        super().__init__()
        if type(norm) is not layers.RMSNorm or norm.weight is None:
            raise UsageError(f"A {type(norm).__name__} over all heads cannot be divided.", "", "Use --strategy layers.")
        self.weight, self.eps, self.group = norm.weight, norm.eps, group

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        mean = self.group.shared(y.square().mean(-1, keepdim=True)) / self.group.count
        return (y * torch.rsqrt(mean + self.eps)).type_as(x) * self.weight


def echo(decoder: Decoder, group: Group) -> Decoder:
    """A whole decoder whose scores are the first rank's on all ranks, whatever another's arithmetic gives."""
    decoder.lm_head.register_forward_hook(lambda _, __, y: group.firsts(y.contiguous()))
    return decoder
