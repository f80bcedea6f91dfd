"""A layer's matrices are scaled, column by column, so that the inputs that count most lose least when they become
codes; what comes before them, a norm or the rows of another matrix, is divided by the same: it computes what it did.

AWQ (Lin et al., arXiv:2306.00978). Scales are powers of the inputs' sizes; of some powers, that is taken with which the
product errs least. The sizes, and the error of a product, come from the inputs' second moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping

import torch
from torch import Tensor, nn

from lathe.model import attention, layers, mlps
from lathe.model.decoder import Block, Parallel, PreNorm, Sandwich, Shared

POWERS = 20  # that are tried between 0, no scales, and 1
READERS: dict[type[Block], dict[str, tuple[str, ...]]] = {  # who is given what a norm makes
    PreNorm: {"input_layernorm": ("self_attn",), "post_attention_layernorm": ("mlp",)},
    Sandwich: {"input_layernorm": ("self_attn",), "pre_feedforward_layernorm": ("mlp",)},
    Parallel: {"input_layernorm": ("self_attn",), "post_attention_layernorm": ("mlp",)},
    Shared: {"input_layernorm": ("self_attn", "mlp")},
}
FIRST: dict[type[nn.Module], tuple[str, ...]] = {  # the matrices that these multiply with what they are given
    attention.Attention: ("q_proj", "k_proj", "v_proj"),
    mlps.Gated: ("gate_proj", "up_proj"),
    mlps.Plain: ("up_proj",),
}
Rounded = Callable[[Tensor], Tensor]  # a matrix into what its codes stand for


@torch.inference_mode()
def scale(block: Block, moments: MutableMapping[str, Tensor], rounded: Rounded, dtype: torch.dtype) -> list[str]:
    """Give a layer scaled matrices, and what is before them its new weights. moments: by the names of matrices the sum
    of x.T @ x over inputs x, which become those of the new inputs. dtype: what norms are stored in. Returns the names
    of what has changed and is no matrix."""
    changed = []
    if isinstance(block.mlp, mlps.Gated) and "mlp.down_proj" in moments:
        by = _best([block.mlp.down_proj], moments["mlp.down_proj"], rounded)
        _multiply(block, ["mlp.down_proj"], by, moments)
        up = block.mlp.up_proj  # what it makes is only multiplied before the other reads it
        _put(up, "weight", up.weight / by[:, None])
        if up.bias is not None:
            _put(up, "bias", (up.bias / by).to(dtype).float())
            changed.append("mlp.up_proj.bias")
    for name, readers in _norms(block, moments):
        norm = block.get_submodule(name)
        assert isinstance(norm, layers.RMSNorm | layers.LayerNorm)
        by = _best([_linear(block, reader) for reader in readers], moments[readers[0]], rounded)
        by = _divide(norm, by, dtype)
        _multiply(block, readers, by, moments)
        changed += [f"{name}.{part}" for part, _ in norm.named_parameters()]
    return changed


def _norms(block: Block, moments: MutableMapping[str, Tensor]) -> Iterator[tuple[str, list[str]]]:
    """Norms by names, and the matrices, all of those that read what each makes."""
    for name, parts in READERS.get(type(block), {}).items():
        norm, readers = getattr(block, name), [getattr(block, part) for part in parts]
        if not isinstance(norm, layers.RMSNorm | layers.LayerNorm) or norm.weight is None:
            continue
        if all(type(reader) in FIRST for reader in readers):
            each = zip(parts, readers, strict=True)
            names = [f"{part}.{one}" for part, reader in each for one in FIRST[type(reader)]]
            if all(one in moments for one in names):
                yield name, names


def _best(modules: list[layers.Linear], moments: Tensor, rounded: Rounded) -> Tensor:
    """What to multiply the columns of matrices by that are given the same."""
    sizes = moments.diagonal().sqrt()
    sizes = (sizes / sizes.mean()).clamp(min=1e-4)
    found, least = torch.ones_like(sizes), float("inf")
    for n in range(POWERS):
        by = sizes ** (n / POWERS)
        by = by / (by.max() * by.min()).sqrt()
        error = 0.0
        for module in modules:
            off = rounded(module.weight * by) / by - module.weight
            error += float(((off @ moments) * off).sum())
        if error < least:
            found, least = by, error
    return found


def _divide(norm: layers.RMSNorm | layers.LayerNorm, by: Tensor, dtype: torch.dtype) -> Tensor:
    """Divide what a norm makes. Returns by what it is divided when its weight is rounded as it is stored."""
    assert norm.weight is not None
    offset = float(getattr(norm, "offset", 0.0))
    before = offset + norm.weight
    _put(norm, "weight", (before / by - offset).to(dtype).float())
    after = offset + norm.weight
    by = torch.where(after == 0, 1, before / after)
    if isinstance(norm, layers.LayerNorm) and norm.bias is not None:
        _put(norm, "bias", (norm.bias / by).to(dtype).float())
    return by


def _multiply(block: Block, names: list[str], by: Tensor, moments: MutableMapping[str, Tensor]) -> None:
    for name in names:
        module = _linear(block, name)
        _put(module, "weight", module.weight * by)
        moments[name] = moments[name] / (by[:, None] * by)


def _linear(block: Block, name: str) -> layers.Linear:
    module = block.get_submodule(name)
    assert isinstance(module, layers.Linear)
    return module


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    """In the place of a parameter, which may be a view of a file, and is not written to."""
    setattr(module, name, nn.Parameter(value, requires_grad=False))
