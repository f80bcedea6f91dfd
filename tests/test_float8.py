"""Products of 8-bit floats are nearly those of the numbers that they stand for, gradients too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_training import LLAMA, decoder, documents, gradients

from lathe.data.loader import Batch
from lathe.data.pack import Packed
from lathe.data.stages import InOrder
from lathe.errors import UsageError
from lathe.model.layers import Linear
from lathe.training import float8, loss


@pytest.mark.parametrize("rows", [32, 45])  # whole sixteens, and not
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_and_its_gradients_are_near_the_exact_ones(rows: int, bias: bool) -> None:
    module = Linear(64, 48, bias)
    draw = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=draw)
    x, slope = torch.randn(rows, 64, generator=draw, requires_grad=True), torch.randn(rows, 48, generator=draw)
    leaves = [x, *module.parameters()]
    exact = module(x)
    expected = torch.autograd.grad(exact, leaves, slope)
    with torch.autocast("cpu", torch.bfloat16):
        got = float8.linear(module, x)
    assert (got.shape, got.dtype) == (exact.shape, torch.bfloat16)
    found = torch.autograd.grad(got, leaves, slope.bfloat16())
    for ours, right in zip((got, *found), (exact, *expected), strict=True):
        assert F.cosine_similarity(ours.float().flatten(), right.flatten(), dim=0) > 0.995
        assert ours.norm().item() == pytest.approx(right.norm().item(), rel=0.02)
    assert [slope.dtype for slope in found] == [torch.float32] * len(leaves)


def test_the_largest_number_is_the_largest_of_eight_bits() -> None:
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)) * 1e-3
    for dtype, most in ((torch.float8_e4m3fn, 448), (torch.float8_e5m2, 57344)):
        small, scale = float8.narrow(x, dtype)
        assert small.float().abs().max() == most
        assert torch.allclose(small.float() * scale, x, rtol=2**-3, atol=scale.item() * 2**-6)
    assert not float8.narrow(torch.zeros(4, 4), torch.float8_e4m3fn)[0].float().any()


def test_a_cpu_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Ada and Hopper on.*The model is on cpu.*--float8"):
        float8.put(decoder(LLAMA))


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs 8-bit floats"
)
def test_a_model_learns_much_the_same() -> None:
    model = decoder({**LLAMA, "hidden_size": 256, "intermediate_size": 512}).to("cuda", torch.bfloat16)
    batch = Batch.of(list(Packed(InOrder(documents()), 16)), "cuda")
    exact = loss.next_token(model)(batch)
    exact.backward()
    expected = gradients(model)
    float8.put(model)
    got = loss.next_token(model)(batch)
    got.backward()
    torch.testing.assert_close(got, exact, rtol=0.02, atol=0)
    for name, slope in gradients(model).items():
        assert F.cosine_similarity(slope.float().flatten(), expected[name].float().flatten(), dim=0) > 0.9, name
