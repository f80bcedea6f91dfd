"""Gradients by hand against those that autograd makes of the plain formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from lathe.model import gradients, rope
from lathe.model.layout import Layout
from lathe.model.mlps import ACTIVATIONS
from lathe.model.spec import Rope


def agree(ours: Callable[..., Tensor], plain: Callable[..., Tensor], *leaves: Tensor) -> None:
    """Values and gradients of two functions of the same leaves; and those where some of them do not learn."""
    for learns in range(1, 1 << len(leaves)):
        for number, leaf in enumerate(leaves):
            leaf.requires_grad_(bool(learns >> number & 1))
        learned = [leaf for leaf in leaves if leaf.requires_grad]
        mine, right = ours(*leaves), plain(*leaves)
        assert_close(mine, right)
        pull = torch.randn_like(right)
        found = torch.autograd.grad(mine, learned, pull)
        for got, wanted in zip(found, torch.autograd.grad(right, learned, pull), strict=True):
            assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 24), (5, 3, 8)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm(shape, offset):
    x, weight = torch.randn(shape) * 3, torch.randn(shape[-1])

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * (offset + weight)

    agree(lambda x, w: gradients.rms_norm(x, offset + w, 1e-3), plain, x, weight)
    agree(lambda x: gradients.rms_norm(x, None, 1e-3), lambda x: F.rms_norm(x, shape[-1:], eps=1e-3), x)


@pytest.mark.parametrize("act", ACTIVATIONS.values(), ids=list(ACTIVATIONS))
def test_a_gate(act):
    agree(lambda x, up: gradients.gate(act, x, up), lambda x, up: act(x) * up, torch.randn(9, 12), torch.randn(9, 12))


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_turn(interleaved):
    turn = Rope(10_000.0, 8, interleaved=interleaved)
    cos, sin = rope.angles(turn, Layout.of([5, 3]))
    matrices = torch.zeros(8, 8, 8)  # each token's turn of a head
    for a in range(4):
        first, second = (2 * a, 2 * a + 1) if interleaved else (a, a + 4)
        angle = torch.tensor([*range(5), *range(3)]) * 10_000.0 ** (-2 * a / 8)
        matrices[:, first, first], matrices[:, second, second] = angle.cos(), angle.cos()
        matrices[:, first, second], matrices[:, second, first] = -angle.sin(), angle.sin()
    agree(
        lambda x: gradients.turn(x, cos, sin, interleaved),
        lambda x: torch.einsum("tij,thj->thi", matrices, x),
        torch.randn(8, 3, 8),
    )


def test_a_norm_of_what_does_not_lie_in_order():
    def turned(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: norm(x.transpose(0, 1)).transpose(0, 1)

    weight = torch.rand(8, requires_grad=True)
    ours = turned(lambda x: gradients.rms_norm(x, weight, 1e-3))
    agree(ours, turned(lambda x: F.rms_norm(x, (8,), weight, 1e-3)), torch.randn(5, 3, 8))


def test_a_norm_of_half_precision_is_rounded_once_where_its_weight_is_whole():
    x, weight = torch.randn(6, 16).bfloat16(), torch.rand(16)
    got = gradients.rms_norm(x.requires_grad_(), weight, 1e-5)
    assert got.dtype == torch.bfloat16
    assert_close(got, F.rms_norm(x.float(), (16,), weight, 1e-5).bfloat16(), rtol=0, atol=0)


def test_in_mixed_precision_a_norm_gives_what_products_take():
    """One cast for all the products that follow, instead of one each."""
    x, weight = torch.randn(6, 16, requires_grad=True), torch.rand(16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients.rms_norm(x, weight, 1e-5)
    assert got.dtype == torch.bfloat16
    assert_close(got, F.rms_norm(x, (16,), weight, 1e-5).bfloat16())
    got.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
