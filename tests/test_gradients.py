"""Gradients by hand against those that autograd makes of the plain formulas, by kernels of our own and without them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from lathe.model import gradients, rope
from lathe.model.layout import Layout
from lathe.model.native import learning, library
from lathe.model.spec import Rope


@pytest.fixture(autouse=True, params=["kernels", "plain"])
def way(request, monkeypatch):
    """How parts are computed here."""
    if request.param == "plain":
        monkeypatch.setattr(learning, "library", lambda: None)
    elif library() is None:
        pytest.skip("no C++ compiler")


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


@pytest.mark.parametrize("act", gradients.ACTIVATIONS)
def test_a_gate(act):
    plain = gradients.ACTIVATIONS[act]
    agree(lambda x, up: gradients.gate(act, x, up), lambda x, up: plain(x) * up, torch.randn(9, 12), torch.randn(9, 12))


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


def plainly(ours: Callable[..., Tensor], leaves: list[Tensor], pull: Tensor) -> list[Tensor]:
    """A function's value and gradients, of leaves as they are."""
    learned = [leaf.detach().clone().requires_grad_(leaf.is_floating_point()) for leaf in leaves]
    y = ours(*learned)
    return [y, *torch.autograd.grad(y, learned, pull.to(y.dtype))]


def test_half_precision_is_rounded_once():
    """Each part equals what it is in float64, to the nearest bfloat16 or its neighbour."""
    x, up, weight = torch.randn(33, 48).bfloat16(), torch.randn(33, 48).bfloat16(), torch.rand(48).bfloat16()
    heads = torch.randn(8, 3, 8).bfloat16()
    cos, sin = rope.angles(Rope(10_000.0, 8), Layout.of([5, 3]))
    parts: list[tuple[Callable[..., Tensor], list[Tensor]]] = [
        (lambda x, w: gradients.rms_norm(x, w, 1e-5), [x, weight]),
        (lambda x, up: gradients.gate("silu", x, up), [x, up]),
        (lambda x: gradients.turn(x, cos.to(x.dtype) if x.dtype == torch.float64 else cos, sin, False), [heads]),
    ]
    for part, leaves in parts:
        pull = torch.randn(leaves[0].shape).bfloat16()
        right = plainly(part, [leaf.double() for leaf in leaves], pull)
        for got, wanted in zip(plainly(part, leaves, pull), right, strict=True):
            assert got.dtype == torch.bfloat16
            assert_close(got.double(), wanted, rtol=2**-6, atol=2**-8)


def test_heads_that_are_parts_of_wider_rows_turn_as_if_they_were_not():
    wide = torch.randn(6, 5 * 8, requires_grad=True)
    some = wide[:, 8:32].unflatten(-1, (3, 8))
    for interleaved in (False, True):
        cos, sin = rope.angles(Rope(10_000.0, 8, interleaved=interleaved), Layout.of([6]))
        got = gradients.turn(some, cos, sin, interleaved)
        assert_close(got, gradients.turn(some.detach().clone(), cos, sin, interleaved))
        (back,) = torch.autograd.grad(got, wide, got.detach())  # turned there and back
        assert_close(back[:, 8:32], some.detach().flatten(1))


def test_the_gradient_of_a_norm_does_not_depend_on_the_number_of_threads():
    x, weight = torch.randn(100, 24).bfloat16(), torch.rand(24).bfloat16()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(plainly(lambda x, w: gradients.rms_norm(x, w, 1e-5), [x, weight], x))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        assert_close(one, three, rtol=0, atol=0)
