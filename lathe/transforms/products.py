"""Linear maps and tables with the parameters of others, which kernels of our own multiply by and look up in: as they
are stored, or as codes of 8 bits that are made of them.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.model import layers, native
from lathe.model.decoder import Embedding
from lathe.transforms.panels import Panels

FEW = 32  # rows that kernels of our own multiply sooner than torch's wherever they run
MANY = 2**40  # any number of them


@cache
def most(kernels: ctypes.CDLL) -> dict[torch.dtype, int]:
    """Up to how many rows of each type kernels of our own are quicker than torch's."""
    pairs = ctypes.c_int64()
    kernels.lathe_looks(ctypes.byref(pairs))  # whether the processor multiplies pairs of bfloat16 numbers
    tiles = torch.cpu._is_amx_tile_supported()  # which torch uses, and they do not
    return {torch.float32: FEW, torch.bfloat16: MANY if pairs.value and not tiles else FEW}


class QuickLinear(layers.Linear):
    """A linear map with the parameters of another."""

    plain: layers.Linear

    def __init__(self, plain: layers.Linear, kernels: ctypes.CDLL) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= {"_parameters": plain._parameters, "plain": plain, "training": plain.training}
        self.product, self.most = kernels.lathe_product, most(kernels)

    def forward(self, x: Tensor) -> Tensor:
        w, bias = self.weight, self.bias
        known = x.dtype == w.dtype and x.dtype in native.TYPES and x.device.type == w.device.type == "cpu"
        if not known or torch.is_grad_enabled() or x.numel() > self.most[x.dtype] * w.shape[1] or not w.is_contiguous():
            return F.linear(x, w, bias)
        rows = x.contiguous()
        n, k = w.shape
        y = x.new_empty(*x.shape[:-1], n)
        places = (rows.data_ptr(), w.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr())
        self.product(*places, x.numel() // k, n, k, k, native.TYPES[x.dtype], torch.get_num_threads())
        return y


class QuickHead(QuickLinear):
    """A head that is also multiplied as codes. panels: those of its weight."""

    def __init__(self, plain: layers.Linear, kernels: ctypes.CDLL, panels: Panels) -> None:
        super().__init__(plain, kernels)
        self.panels, self.made_of = panels, self.weight.data_ptr()  # no parameter: never saved

    def forward(self, x: Tensor) -> Tensor:
        same = self.weight.data_ptr() == self.made_of
        if not same or torch.is_grad_enabled() or x.dtype not in native.TYPES or x.device.type != "cpu":
            return super().forward(x)
        return self.panels.product(x, self.bias)


class QuickTable(Embedding):
    """A table that is looked up in as codes. panels: those of its weight, of which a tied head has the same.

    So the table itself, where it is a mapped file's, is never read and takes no memory.
    """

    plain: Embedding

    def __init__(self, plain: Embedding, panels: Panels) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= {"_parameters": plain._parameters, "plain": plain, "training": plain.training}
        self.panels, self.made_of = panels, self.weight.data_ptr()

    def forward(self, index: Tensor) -> Tensor:
        same = self.weight.data_ptr() == self.made_of
        if not same or torch.is_grad_enabled() or index.device.type != "cpu":
            return super().forward(index)
        return self.panels.rows(index, self.weight.dtype)
