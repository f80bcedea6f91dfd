"""An embedding, or a stack of experts' matrices, becomes one with low-rank terms by name.

Parameters are called what PEFT calls them: lora_embedding_A.NAME, lora_embedding_B.NAME; of experts lora_A.NAME,
lora_B.NAME, with a first dimension of experts.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lathe.model import kernels
from lathe.transforms.adapted import joined, kind_of
from lathe.transforms.lowrank import LoraModule, LowRank


class LoraEmbedding(LoraModule):
    """Rows of a table, plus those of a low-rank one."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.lora_embedding_A, self.lora_embedding_B = nn.ParameterDict(), nn.ParameterDict()

    def put(self, name: str, part: LowRank) -> None:
        device, dtype = kind_of(self.base_layer)
        self.lora_embedding_A[name] = nn.Parameter(part.a.to(device, dtype))
        self.lora_embedding_B[name] = nn.Parameter(part.b.to(device, dtype))
        self.scaling[name] = part.scaling

    def drop(self, name: str) -> None:
        del self.lora_embedding_A[name], self.lora_embedding_B[name], self.scaling[name]

    def part_of(self, name: str) -> LowRank:
        return LowRank(self.lora_embedding_A[name], self.lora_embedding_B[name], self.scaling[name], table=True)

    def forward(self, index: Tensor) -> Tensor:
        y = self.base_layer(index)
        if self.kept is not None:
            return y
        return joined([self._with(names, index[rows], y[rows]) for names, rows in self.spans])

    def _with(self, names: tuple[str, ...], index: Tensor, y: Tensor) -> Tensor:
        total = y
        for name in names:
            a, b = self.lora_embedding_A[name], self.lora_embedding_B[name]
            total = total + F.embedding(index, a.T) @ b.T * self.scaling[name]
        return total.type_as(y)


class LoraStacked(LoraModule):
    """A matrix per expert, each with a low-rank term of its own."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self.dropout: dict[str, float] = {}

    def put(self, name: str, part: LowRank) -> None:
        device, dtype = kind_of(self.base_layer)
        self.lora_A[name], self.lora_B[name] = (nn.Parameter(t.to(device, dtype)) for t in (part.a, part.b))
        self.scaling[name], self.dropout[name] = part.scaling, part.dropout

    def drop(self, name: str) -> None:
        del self.lora_A[name], self.lora_B[name], self.scaling[name], self.dropout[name]

    def part_of(self, name: str) -> LowRank:
        return LowRank(self.lora_A[name], self.lora_B[name], self.scaling[name], self.dropout[name])

    def forward(self, x: Tensor, groups: kernels.Groups) -> Tensor:
        y = self.base_layer(x, groups)
        if self.kept is not None or not self.active:
            return y
        total = y
        for name in self.active:
            a, b = self.lora_A[name], self.lora_B[name]
            given = F.dropout(x, self.dropout[name], self.training).to(a.dtype)
            low = kernels.expert_products(kernels.expert_products(given, a, None, groups), b, None, groups)
            total = total + low * self.scaling[name]
        return total.type_as(y)
