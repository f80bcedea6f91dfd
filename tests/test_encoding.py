"""The kernels that make codes of 4 and 8 bits give what the plain way gives."""

from __future__ import annotations

import pytest
import torch

from lathe.model import native
from lathe.model.native import encoding
from lathe.transforms.grids import ENDS, GROUP, halves, int4_codes, int4_scales
from lathe.transforms.kinds import KINDS

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no compiler, and so no kernel")


def plain(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scales = int4_scales(padded)
    return halves(int4_codes(padded, scales[..., None]).flatten(1)), scales


def drawn(size: float, inputs: int) -> torch.Tensor:
    return torch.randn(300, inputs, generator=torch.Generator().manual_seed(inputs)) * size


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("inputs", [256, 250, 97])
@pytest.mark.parametrize("size", [0.02, 1e-6, 100.0], ids=["usual", "below a normal half", "large"])
def test_codes_and_scales_are_those_of_the_plain_way(inputs, size, threads):
    rows = drawn(size, inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made = encoding.int4(rows, ENDS)
    finally:
        torch.set_num_threads(before)
    assert made is not None
    (codes, scales), (others, theirs) = made, plain(rows)
    # Sums in another order may tip a rounding: of one scale in ten thousand, to its neighbour.
    same = scales == theirs
    assert same.float().mean() > 0.9995
    assert (scales.view(torch.int16).int() - theirs.view(torch.int16).int()).abs().max() <= 1
    apart = codes.view(len(rows), -1, GROUP // 2) == others.view(len(rows), -1, GROUP // 2)
    assert apart[same].all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("inputs", [256, 250, 97])
@pytest.mark.parametrize("size", [0.02, 1e-6, 1e-9, 100.0], ids=["usual", "below a normal half", "no half", "large"])
@pytest.mark.parametrize("kind", ["int8", "int8-32"])
def test_codes_of_8_bits_are_those_of_the_plain_way(kind, size, inputs, threads, monkeypatch):
    rows = drawn(size, inputs)
    rows[7] = 0
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made = encoding.int8(rows, kind == "int8-32")
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(encoding, "LITTLE", rows.numel() + 1)
    assert made is not None
    assert all(map(torch.equal, made, KINDS[kind].rows(rows)))


@pytest.mark.parametrize("kind", ["int8", "int8-32", "int4"])
def test_halves_are_taken_as_the_numbers_that_they_are(kind):
    rows = drawn(0.02, 250).bfloat16()
    assert all(map(torch.equal, KINDS[kind].rows(rows), KINDS[kind].rows(rows.float())))


def test_odd_rows():
    """Zeros, one number alone, numbers of one sign, and what is on the edge between two codes."""
    rows = torch.zeros(4, 4096)
    rows[1, 5], rows[2], rows[3] = -3.0, 1.5, torch.arange(4096) % 16 - 8 + 0.5
    made = encoding.int4(rows, ENDS)
    assert made is not None
    for one, other in zip(made, plain(rows), strict=True):
        assert torch.equal(one, other)
    back = KINDS["int4"].unpack(made, 4096, torch.float32)
    assert torch.equal(back[:2], rows[:2])


def test_few_numbers_and_other_types_take_the_plain_way():
    assert encoding.int4(torch.zeros(2, 64), ENDS) is None and encoding.int8(torch.zeros(2, 64), True) is None
    assert encoding.int4(torch.zeros(4, 8192, dtype=torch.float16), ENDS) is None
    codes, scales = KINDS["int4"].rows(torch.zeros(2, 64))
    assert (codes == 0x88).all() and (scales == 0).all()
