"""Kernels in Triton say what the plain formulas say: on a GPU where there is one, else through Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from families import CASES
from torch import Tensor

from lathe import families
from lathe.engine import Engine, Sampling
from lathe.engine.graphs import Graphs, Watch
from lathe.model import gpu, gradients, initial, kept, layers, rope, spec, tables
from lathe.model.decoder import Decoder
from lathe.model.gpu.matrix import Matrix
from lathe.model.kernels import Seen
from lathe.model.layout import Layout, Table
from lathe.transforms import quantize

pytest.importorskip("triton", reason="Triton is for Linux")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WITHIN = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# The interpreter multiplies blocks of bfloat16 as if they were whole numbers, and cuts what it should round.
HALVES = (torch.bfloat16, torch.float16) if DEVICE == "cuda" else (torch.float16,)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels are taken, wherever the tensors are."""
    monkeypatch.setattr(gpu, "DEVICES", {DEVICE})
    with torch.inference_mode():
        yield


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed))
    return made.to(DEVICE, dtype)


def assert_near(ours: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    assert ours.dtype == dtype and ours.shape == right.shape
    torch.testing.assert_close(ours.float(), right.float(), rtol=WITHIN[dtype], atol=WITHIN[dtype])


@pytest.fixture(params=WITHIN, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


# ---- between products ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(3, 100), (1, 64), (5, 3, 40)])
@pytest.mark.parametrize("wide", [None, False, True], ids=["no weight", "weight", "float32 weight"])
def test_norm(on: None, dtype: torch.dtype, shape: tuple[int, ...], wide: bool | None) -> None:
    x = drawn(*shape, dtype=dtype)
    weight = None if wide is None else drawn(shape[-1], dtype=torch.float32 if wide else dtype)
    right = F.rms_norm(x.float(), shape[-1:], None if weight is None else weight.float(), 1e-5)
    assert_near(gradients.rms_norm(x, weight, 1e-5), right, dtype)


def test_norm_of_heads_that_lie_apart(on: None) -> None:
    """As queries and keys do that are parts of one product."""
    both = drawn(3, 7 * 16)
    x = both[:, 32:80].unflatten(-1, (3, 16))
    assert_near(gradients.rms_norm(x, None, 1e-6), F.rms_norm(x, (16,), None, 1e-6), torch.float32)


@pytest.mark.parametrize("act", get_args(spec.Activation))
def test_gate(on: None, dtype: torch.dtype, act: spec.Activation) -> None:
    x, up = 3 * drawn(3, 1300, dtype=dtype), drawn(3, 1300, dtype=dtype, seed=1)
    right = gradients.ACTIVATIONS[act](x.float()) * up.float()
    assert_near(gradients.gate(act, x, up), right, dtype)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("heads, channels, turned", [(4, 64, 64), (3, 80, 32), (1, 12, 12), (40, 128, 128)])
def test_turn(
    on: None, dtype: torch.dtype, heads: int, channels: int, turned: int, interleaved: bool, monkeypatch
) -> None:
    """Heads that lie apart; channels that stay; queries and keys together, and one alone."""
    part = spec.Rope(100.0, turned, interleaved=interleaved)
    layout = Layout.of([3, 2], DEVICE)
    both = drawn(5, (heads + 3) * channels, dtype=dtype)[:, channels:].unflatten(-1, (-1, channels))
    xs, angles = both.split([heads, 2], dim=1), rope.angles(part, layout)
    ours = [*rope.rotate(angles, part, *xs), *rope.rotate(angles, part, xs[0])]
    monkeypatch.setattr(gpu, "DEVICES", set())
    for mine, right in zip(ours, rope.rotate(angles, part, *xs, xs[0]), strict=True):
        assert_near(mine, right, dtype)


def test_keys_and_values_are_kept(on: None, dtype: torch.dtype) -> None:
    cache = torch.zeros(9, 2, 24, dtype=dtype, device=DEVICE), torch.zeros(9, 2, 16, dtype=dtype, device=DEVICE)
    k, v = drawn(3, 2, 24, dtype=dtype), drawn(3, 48, dtype=dtype)[:, 16:].unflatten(-1, (2, 16))
    slots = torch.tensor([7, 0, 3], device=DEVICE)
    kept.write_both(cache, slots, k, v)
    for one, new in zip(cache, (k, v), strict=True):
        assert torch.equal(one[slots], new)
        assert not one[[1, 2, 4, 5, 6, 8]].any()


# ---- attention -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("half", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("most", [64, 300])
@pytest.mark.parametrize("heads, channels", [((8, 2), 64), ((4, 4), 24), ((3, 1), 80)])
@pytest.mark.parametrize(
    "window, chunk, softcap, sunk", [(None, None, None, False), (7, None, 3.0, True), (None, 6, None, True)]
)
def test_look(
    on: None, monkeypatch: pytest.MonkeyPatch, half: torch.dtype, most: int, heads: tuple[int, int], channels: int,
    window: int | None, chunk: int | None, softcap: float | None, sunk: bool,
) -> None:  # fmt: skip
    """Sequences of many lengths, in one span of slots and in several, whatever lies in slots that are blank."""
    lengths = torch.tensor([1, most, 13], device=DEVICE)
    slots = torch.randperm(3 * most, generator=torch.Generator().manual_seed(1)).view(3, most).to(DEVICE)
    q = drawn(3, (heads[0] + 1) * channels, dtype=half)[:, channels:].unflatten(-1, (heads[0], channels))
    cache = drawn(3 * most, heads[1], channels, dtype=half), drawn(3 * most, heads[1], channels, dtype=half, seed=1)
    for one in cache:
        for row, length in zip(slots, lengths.tolist(), strict=True):
            one[row[length:]] = float("nan")
    sinks = drawn(heads[0], dtype=half) if sunk else None
    last = slots.gather(1, lengths[:, None] - 1)
    behind = torch.arange(most, device=DEVICE) >= lengths[:, None]
    layout = Layout(lengths - 1, (0, 1, 2, 3), (most,) * 3, table=Table(torch.where(behind, last, slots), lengths))
    seen = Seen(0.125, window, chunk, softcap)
    ours = tables.attend(q, cache, channels, layout, seen, sinks, False)
    monkeypatch.setattr(gpu, "DEVICES", set())
    layout.made.clear()
    wide = tuple(x.float() for x in cache)
    right = tables.attend(q.float(), wide, channels, layout, seen, None if sinks is None else sinks.float(), False)
    assert_near(ours, right, half)


# ---- products --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("inputs, outputs", [(64, (24, 1, 8)), (1100, (33,)), (96, (1,))])
@pytest.mark.parametrize("bias", [False, True])
def test_maps_share_a_launch(
    on: None, half: torch.dtype, rows: int, inputs: int, outputs: tuple[int, ...], bias: bool
) -> None:
    maps = [layers.Linear(inputs, n, bias) for n in outputs]
    for number, one in enumerate(maps):
        one.weight.data = drawn(one.weight.shape[0], inputs, dtype=half, seed=number) * inputs**-0.5
        if one.bias is not None:
            one.bias.data = drawn(len(one.bias), dtype=half)
    x = drawn(rows, inputs, dtype=half)
    ours = layers.few(x, None, *maps)
    assert ours is not None
    for y, one in zip(ours, maps, strict=True):
        right = F.linear(x.float(), one.weight.float(), None if one.bias is None else one.bias.float())
        assert_near(y, right, half)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("act", get_args(spec.Activation))
def test_gated_pairs_are_one_launch(on: None, rows: int, act: spec.Activation) -> None:
    maps = [layers.Linear(80, 50, True) for _ in range(2)]
    for number, one in enumerate(maps):
        one.weight.data, one.bias.data = (
            drawn(*p.shape, dtype=torch.float16, seed=number) / 9 for p in one.parameters()
        )
    x = drawn(rows, 80, dtype=torch.float16)
    gate, up = (F.linear(x.float(), one.weight.float(), one.bias.float()) for one in maps)
    ours = layers.few(x, act, *maps)
    assert ours is not None
    assert_near(ours[0], gradients.ACTIVATIONS[act](gate) * up, torch.float16)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("how", quantize.LAYOUTS)
@pytest.mark.parametrize("rows, inputs", [(1, 64), (1, 288), (1, 1120), (3, 288), (16, 1120), (40, 64), (70, 1120)])
def test_codes_are_multiplied_as_they_are(on: None, half: torch.dtype, how: str, rows: int, inputs: int) -> None:
    plain = layers.Linear(inputs, 37, True).to(DEVICE, half)
    plain.weight.data = drawn(37, inputs, dtype=half) * inputs**-0.5
    plain.bias.data = drawn(37, dtype=half)
    packed = quantize.PackedLinear(plain, how)
    packed.take(quantize.KINDS[how].pack([plain.weight], plain.weight.shape, plain.weight.device))
    x = drawn(rows, inputs, dtype=half)
    made = layers.few(x, None, packed)
    assert made is not None
    assert_near(made[0], F.linear(x.float(), packed.unpacked(torch.float32), plain.bias.float()), half)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("how", quantize.LAYOUTS)
@pytest.mark.parametrize("inputs", [64, 1120])
def test_codes_of_many_rows_become_numbers_in_one_launch(on: None, half: torch.dtype, how: str, inputs: int) -> None:
    """The same numbers, of a matrix and of one of a stack."""
    shape = torch.Size((3, 40, inputs))
    parts = [*quantize.KINDS[how].pack([drawn(*shape)], shape, torch.device(DEVICE)).values()]
    for one in (1, quantize.ALL):
        ours = quantize._unpacked(parts, how, inputs, half, one)
        right = quantize.KINDS[how].unpack(parts, inputs, half, slice(None) if one == quantize.ALL else one)
        torch.testing.assert_close(ours, right, rtol=8e-3, atol=0)  # a bit where a sum is rounded otherwise
        assert (ours != right).float().mean() < 0.01


def test_what_no_kernel_takes_goes_the_plain_way(on: None) -> None:
    one, other = (layers.Linear(64, 16).to(DEVICE, torch.float16) for _ in range(2))
    for map_ in (one, other):
        map_.weight.data.zero_()
    x = drawn(2, 64, dtype=torch.float16)
    assert layers.few(x, None, one, other) is not None
    assert layers.few(drawn(17, 64, dtype=torch.float16), None, one) is None  # many rows
    assert layers.few(drawn(2, 64), None, one) is None  # other types
    assert layers.few(x, None, one, layers.Linear(64, 16, True).to(DEVICE, torch.float16)) is None  # one has a bias
    with torch.inference_mode(False), torch.enable_grad():
        assert layers.few(x, None, one) is None
    one.register_forward_hook(lambda module, given, made: made + 1)
    assert layers.few(x, None, one, other) is None and layers.few(x, None, one) is not None
    assert isinstance(other.matrix, Matrix)


# ---- whole models ----------------------------------------------------------------------------------------------------
class Recorder:
    """Computes each step anew, once under watch."""

    def __init__(self, device: torch.device) -> None: ...

    def __call__(self, step):
        with Watch():
            step.compute()
        return step.compute


# The interpreter takes seconds for each: soft caps and windows, sinks and experts, one key for all, turned in pairs.
SOME = ("gemma2", "gpt-oss", "falcon-7b", "glm4")


@pytest.mark.parametrize(
    "case", [case for case in CASES if DEVICE == "cuda" or case.name in SOME], ids=lambda case: case.name
)
@torch.no_grad()
def test_every_family_says_the_same(monkeypatch: pytest.MonkeyPatch, case) -> None:
    """In float16, a step of two sequences in the shapes that are recorded, against float32 without kernels."""
    read = families.read(case.config)
    model = initial.decoder(read, 3).to(DEVICE)
    prompts = [[3 + (7 * i + n) % (read.vocab - 3) for i in range(n)] for n in (2, 9)]

    def said(decoder: Decoder) -> tuple[list[list[int]], Tensor]:
        engine = Engine(decoder, tokens=512)
        engine.runner.graphs = Graphs(decoder, engine.pages, engine.runner.layers, Recorder)
        asked = [engine.submit(ids, Sampling(temperature=0, max_new_tokens=3, logprobs=0)) for ids in prompts]
        while engine.busy:
            engine.step()
        told = [token.logprob for one in asked for token in one.made]
        return [[token.id for token in one.made] for one in asked], torch.tensor(told)

    monkeypatch.setattr(gpu, "DEVICES", set())
    right, near = said(model)
    taken = []
    monkeypatch.setattr(gpu, "DEVICES", {DEVICE})
    able = gpu.able
    monkeypatch.setattr(gpu, "able", lambda *x: able(*x) and not taken.append(1))
    ours, told = said(model.half())
    assert taken
    same = sum(a == b for mine, theirs in zip(ours, right, strict=True) for a, b in zip(mine, theirs, strict=True))
    assert same >= 4  # of 6: of two tokens that are as likely, either, and then others follow
    assert (told - near).abs().median() < 0.02


def test_a_card_on_which_no_kernel_runs_goes_the_plain_way(on: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Triton finds no compiler; a warning says so, once."""
    from lathe.model.gpu import stream

    def broken(*_: object) -> Tensor:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(stream, "gate", broken)
    gpu.working.cache_clear()
    x = drawn(2, 16)
    try:
        with pytest.warns(UserWarning, match="without kernels of its own, which is slower: Failed to find C compiler"):
            assert torch.equal(gradients.gate("silu", x, x), F.silu(x) * x)
        assert not gpu.able(x)
    finally:
        gpu.working.cache_clear()


def test_floats_of_8_bits_are_for_cards_that_have_them(on: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = layers.Linear(64, 16).to(DEVICE, torch.float16)
    plain.weight.data = drawn(16, 64, dtype=torch.float16)
    packed = quantize.PackedLinear(plain, "fp8")
    packed.take(quantize.KINDS["fp8"].pack([plain.weight], plain.weight.shape, plain.weight.device))
    x = drawn(2, 64, dtype=torch.float16)
    right = packed(x)
    monkeypatch.setattr("lathe.model.gpu.products.capability", lambda device: (8, 0))
    assert layers.few(x, None, packed) is None
    assert_near(packed(x), right.float(), torch.float16)
