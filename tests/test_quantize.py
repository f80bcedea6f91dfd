"""Packed matrices: the codes of nf4 and int8, products and gradients, loading without the whole, adapters on top."""

from __future__ import annotations

import re
from pathlib import Path

import memory
import pytest
import torch
from families import CASES
from torch import Tensor

from lathe import LLM, checkpoint, cli, families
from lathe.errors import UsageError
from lathe.model import native
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.model.mlps import Router
from lathe.transforms import adapt, begin, pack, panels, quantize
from lathe.transforms.adapted import Adapted
from lathe.transforms.grids import NF4
from lathe.transforms.kinds import KINDS, MADE
from lathe.transforms.quantize import Packed
from lathe.transforms.terms import Lora
from lathe.weights.tensors import Ref

CPU = torch.device("cpu")
PROGRAM = """
import sys
import memory
from lathe import checkpoint
found = checkpoint.open(sys.argv[1])
print(memory.grown(lambda: found.load(quantize=sys.argv[2], quick=sys.argv[3:] == ["quick"])))
"""


def packed(name: str, weight: Tensor) -> dict[str, Tensor]:
    return KINDS[name].pack([weight], weight.shape, CPU)


def again(name: str, weight: Tensor) -> Tensor:
    return KINDS[name].unpack([*packed(name, weight).values()], weight.shape[-1], torch.float32)


# ---- codes -----------------------------------------------------------------------------------------------------------
def test_the_values_of_nf4_are_quantiles_of_a_normal_distribution():
    """The paper's section 3: halves of the distribution cut evenly in probability, 8 values above zero and 7 below,
    from an outermost quantile that lies half a step inside, on average of the two; scaled to reach one."""
    outer = 1 - (1 / 32 + 1 / 30) / 2
    above, below = (torch.linspace(outer, 0.5, n, dtype=torch.float64)[:-1] for n in (9, 8))
    values = torch.cat([torch.special.ndtri(above), torch.zeros(1, dtype=torch.float64), -torch.special.ndtri(below)])
    values = values.sort().values
    torch.testing.assert_close(torch.tensor(NF4, dtype=torch.float64), values / values.max(), rtol=0, atol=1e-6)


def test_nf4_codes_are_those_of_bitsandbytes():
    """What its quantize_4bit 0.50.2 gives for two blocks of numbers between -1 and 1, as bytes."""
    row = ((torch.arange(128) * 37) % 101 - 50).float() / 50
    theirs = (
        "04c16e29f3b05d17e29f3c05d18e2af4c16e18e3b05d17e29f3b05d18e2af4c1"
        "6d18e3b04c17e29f3b05d17e2af4c06d18e2a04c16e29f3b05d17e29f3c05d18"
    )
    parts = packed("nf4", row[None])
    assert bytes(parts["codes"].flatten().tolist()).hex() == theirs
    assert parts["scales"].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("shape", [(40, 192), (40, 80), (3, 5, 64)])
def test_every_weight_becomes_the_nearest_of_what_can_be_said(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[0, :64] = 0
    rows, found = weight.view(-1, shape[-1]), again("nf4", weight).view(-1, shape[-1])
    for start in range(0, shape[-1], 64):
        block = rows[:, start : start + 64]
        said = block.abs().amax(1)[:, None, None] * torch.tensor(NF4)
        best = (block[..., None] - said).abs().amin(-1)
        torch.testing.assert_close((block - found[:, start : start + 64]).abs(), best)
    for kind, width in (("int8", shape[-1]), ("int8-32", 32)):
        for part in zip(weight.split(width, -1), again(kind, weight).split(width, -1), strict=True):
            bound = part[0].abs().amax(-1, keepdim=True) / 254 * 1.001  # int8-32 rounds its scale, too
            assert ((part[1] - part[0]).abs() <= bound).all()


def test_double_quantization_is_near_and_small():
    """Of 256 sizes of blocks none is off by more than half a 127th of the farthest from their mean."""
    weight = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 1, 64)[:, None]
    parts, plain = packed("nf4-dq", weight), packed("nf4", weight)
    assert torch.equal(parts["codes"], plain["codes"])
    ones = torch.full_like(parts["codes"], 0xFF)  # the code of 1, twice
    scales = KINDS["nf4-dq"].unpack([*(parts | {"codes": ones}).values()], 4096, torch.float32)[:, ::64]
    off = (scales - plain["scales"]).abs().view(-1, 256)
    bound = (plain["scales"] - plain["scales"].mean()).abs().view(-1, 256).amax(1) / 254
    assert (off <= bound[:, None] * 1.001).all()
    bits = {name: sum(p.nbytes for p in packed(name, weight).values()) * 8 / weight.numel() for name in MADE}
    assert bits["nf4"] == 4.5 and bits["nf4-dq"] == pytest.approx(4.127, abs=1e-3)  # the paper's figures
    assert bits["int8"] == 8 + 32 / 4096


@pytest.mark.parametrize("name", MADE)
def test_pieces_and_parts_of_a_matrix(name):
    """However it is cut when it is read, and of whatever type; and some of it alone, when it is unpacked."""
    stack = torch.randn(6, 10, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    kind, whole = KINDS[name], packed(name, stack)
    for pieces in (stack.split(1), stack.float().split([1, 3, 2])):
        parts = kind.pack(pieces, stack.shape, CPU)
        assert parts.keys() == whole.keys() and all(torch.equal(parts[key], whole[key]) for key in parts)
    parts = [*whole.values()]
    every = kind.unpack(parts, 96, torch.bfloat16)
    assert every.dtype == torch.bfloat16 and every.shape == stack.shape
    assert torch.equal(kind.unpack(parts, 96, torch.bfloat16, 4), every[4])
    assert torch.equal(kind.unpack(parts, 96, torch.bfloat16, slice(2, 5)), every[2:5])


# ---- models ----------------------------------------------------------------------------------------------------------
NAMES = ("llama-biased", "qwen3-moe", "gpt-oss", "deepseek-v3", "gpt2")


def model(name: str) -> checkpoint.Checkpoint:
    """A tiny model with random weights."""
    config = families.plain(next(case for case in CASES if case.name == name).config)
    spec, random = families.read(config), torch.Generator().manual_seed(0)
    slots = checkpoint.slots(checkpoint.blank(spec))
    tensors = {name: Ref.of(torch.randn(slot.shape, generator=random) * 0.15, name) for name, slot in slots}
    return checkpoint.Checkpoint(Path(name), "made", config, spec, tensors)


def unpacked(decoder: Decoder) -> Decoder:
    """The same, its weights dense."""
    return checkpoint.Checkpoint(Path(), "made", {}, decoder.spec, checkpoint.weights(decoder)).load()


def ask(decoder: Decoder) -> Tensor:
    return decoder.logits(decoder(torch.arange(20) * 7 % 96, Layout.of([13, 7])))


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("name", NAMES)
def test_a_packed_model_is_its_unpacked_one_and_near_the_original(name, kind):
    found = model(name)
    decoder = found.load(quantize=kind)
    made = {type(m).__name__ for _, m in decoder.named_modules() if isinstance(m, Packed)}
    assert made == {"PackedLinear"} | ({"PackedStacked"} if name in ("qwen3-moe", "gpt-oss", "deepseek-v3") else set())
    assert all(not isinstance(m, Packed) for m in (decoder.lm_head, decoder.model.embed_tokens))
    assert not any(isinstance(m, Packed) for m in decoder.modules() if isinstance(m, Router))
    with torch.inference_mode():
        ours, dense, original = ask(decoder), ask(unpacked(decoder)), ask(found.load())
        torch.testing.assert_close(ours, dense, rtol=0, atol=1e-5)
        if name == "llama-biased":
            assert (ours - original).std() < (0.02 if kind == "int8" else 0.5) * original.std()
    in_place = found.load()
    quantize.pack(in_place, kind)  # after loading instead of meanwhile
    assert all(torch.equal(a, b) for a, b in zip(in_place.parameters(), decoder.parameters(), strict=True))


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize(("name", "settings"), [
    ("llama-biased", Lora(targets="all-linear", bias="all")),
    ("llama-biased", Lora(targets="all-linear", dora=True)),
    ("qwen3-moe", Lora(targets=r".*(_proj|experts\..*)")),
    ("deepseek-v3", Lora(targets="all-linear")),
])  # fmt: skip
def test_gradients_over_packed_weights_are_those_over_their_unpacked_ones(name, settings, kind):
    grads = []
    decoder = model(name).load(quantize=kind)
    for each in (unpacked(decoder), decoder):
        torch.manual_seed(0)
        adapt.put(each, "default", begin.lora(each, settings))
        learned = adapt.trainable(each)
        with torch.no_grad():
            for parameter in learned.values():
                parameter.add_(torch.randn(parameter.shape) * 0.05)  # so that both terms have gradients
        ask(each).square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in learned.items()})
    dense, ours = grads
    assert dense.keys() == ours.keys() and len(ours) > 10
    for key, grad in dense.items():
        assert (grad is None) == (ours[key] is None)
        if grad is not None:
            torch.testing.assert_close(ours[key], grad, rtol=1e-5, atol=1e-6 * grad.abs().max().item())


def test_nothing_unpacked_is_kept_for_the_way_back():
    decoder = model("llama-biased").load(quantize="nf4")
    adapt.put(decoder, "default", begin.lora(decoder, Lora(targets="all-linear")))
    adapt.trainable(decoder)
    matrices = {tuple(m.shape) for m in decoder.modules() if isinstance(m, Packed)}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ask(decoder)
    shapes = {tuple(t.shape) for t in kept if t.is_floating_point()}
    assert shapes and not matrices & {*shapes, *(shape[::-1] for shape in shapes)}


@pytest.mark.parametrize("one", [quantize.ALL, 2])
def test_a_compiler_may_take_the_product_as_it_is(one):
    """Torch's own checks of an operation: what it promises of shapes, gradients and graphs is so."""
    weight = torch.randn(10, 96) if one == quantize.ALL else torch.randn(4, 10, 96)
    x, bias = torch.randn(5, 96, requires_grad=True), torch.randn(10, requires_grad=True)
    torch.library.opcheck(quantize.product, (x, bias, [*packed("nf4-dq", weight).values()], "nf4-dq", 96, one))


def test_what_learned_over_packed_weights_is_saved_and_merged(tmp_path):
    """The adapter alone, for its base; and the whole model, as it computes."""
    found = model("llama-biased")
    decoder = found.load(quantize="nf4")
    adapt.put(decoder, "default", begin.lora(decoder, Lora(targets="all-linear")))
    with torch.no_grad():
        for parameter in adapt.trainable(decoder).values():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    with torch.inference_mode():
        wanted = ask(decoder)
    checkpoint.save(tmp_path / "whole", decoder, found.config)
    with torch.inference_mode():
        torch.testing.assert_close(ask(checkpoint.open(tmp_path / "whole").load()), wanted, rtol=1e-4, atol=1e-4)
    checkpoint.write_adapter(tmp_path / "adapter", decoder, "default", found.config)
    dense = checkpoint.put_on(found, {"default": tmp_path / "adapter"})
    with torch.inference_mode():
        torch.testing.assert_close(ask(dense.load(quantize="nf4")), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="quantized"):
        adapt.merge(decoder)
    assert not any(module.kept for module in decoder.modules() if isinstance(module, Adapted))


def test_memory_while_loading_is_the_packed_model_and_a_piece(tmp_path):
    """67 MB in bfloat16 become 19."""
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 64, "max_position_embeddings": 64,
    }  # fmt: skip
    slots = checkpoint.slots(checkpoint.blank(families.read(config)))
    tensors = {name: Ref.of(torch.full(slot.shape, 0.02, dtype=torch.bfloat16)) for name, slot in slots}
    checkpoint.save(tmp_path / "model", tensors, config)
    sizes = {name: ref.nbytes / 2**20 for name, ref in tensors.items()}
    whole, layer = sum(sizes.values()), sum(size for name, size in sizes.items() if ".0." in name)
    assert memory.printed(PROGRAM, tmp_path / "model", "nf4") < whole * 4.5 / 16 + layer < whole


@pytest.mark.skipif(native.library() is None, reason="there is no compiler, and so no kernel")
@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("int4", 4.5)])
def test_memory_while_loading_for_kernels_is_their_codes_and_little_more(tmp_path, kind, bits):
    """Codes of every matrix, and of the table that is the head, too, once; and what is made of some rows on the way."""
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 32000,
        "num_hidden_layers": 6, "num_attention_heads": 8, "max_position_embeddings": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    spec = families.read(config)
    slots = [*checkpoint.slots(checkpoint.blank(spec))]
    tensors = {name: Ref.of(torch.full(slot.shape, 0.02, dtype=torch.bfloat16)) for name, slot in slots}
    checkpoint.save(tmp_path / "model", tensors, config)
    head = tensors["model.embed_tokens.weight"].nbytes
    codes = (sum(ref.nbytes for ref in tensors.values()) - head) * bits / 16 + head * 8.5 / 16
    assert memory.printed(PROGRAM, tmp_path / "model", kind, "quick") < 1.08 * codes / 2**20 + 4


@pytest.mark.skipif(native.library() is None, reason="there is no compiler, and so no kernel")
@pytest.mark.parametrize("kind", ["int8", "int8-32", "int4", "nf4"])
@pytest.mark.parametrize("name", NAMES)
def test_codes_that_go_straight_into_panels_are_those_that_are_moved_there(name, kind, monkeypatch):
    monkeypatch.setattr(panels, "CHUNK", 1)  # sixteen rows at a time
    found = model(name)
    quick, moved = found.load(quantize=kind, quick=True), found.load(quantize=kind)
    pack.pack(moved)
    assert [type(one) for one in quick.modules()] == [type(one) for one in moved.modules()]
    ours, theirs = dict(quick.named_parameters()), dict(moved.named_parameters())
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    pack.unpack(quick)
    plain = dict(found.load(quantize=kind).named_parameters())
    again = dict(quick.named_parameters())
    assert again.keys() == plain.keys() and all(torch.equal(again[key], plain[key]) for key in plain)


# ---- in use ----------------------------------------------------------------------------------------------------------
def test_a_real_model_speaks_on(shared, capsys):
    folder = str(shared / "data/models/stories260K-hf")
    words = (
        "generate",
        folder,
        "--prompt",
        "Once upon a time",
        "--temperature",
        "0",
        "--max-new-tokens",
        "20",
        "--raw",
    )
    assert cli.main([*words]) == 0
    plain = capsys.readouterr().out
    assert cli.main([*words, "--quantize", "int8"]) == 0
    assert capsys.readouterr().out == plain
    for name in ("nf4", "bnb.nf4", "nf4-dq", "bnb.nf4-dq"):
        assert cli.main([*words, "--quantize", name]) == 0
        assert capsys.readouterr().out.startswith(", there was a little girl named Lily.")


def test_a_way_that_is_not_known_is_named(shared, capsys):
    folder = str(shared / "data/models/stories260K-hf")
    with pytest.raises(UsageError, match=r'"nf5" is no way to quantize.*nf4, nf4-dq, fp4.*Did you mean "nf4"'):
        LLM.load(folder, quantize="nf5")
    assert cli.main(["chat", folder, "Hello", "--quantize", "int5"]) == 2
    assert re.search(r'"int5" is no way to quantize', capsys.readouterr().err)


def test_an_adapter_goes_on_a_packed_base(shared):
    data = shared / "data"
    base, place = data / "models/stories260K-hf", data / "formats/peft-lora-stories260K"
    tokens = [1, 403, 407, 261, 378]
    packed, plain, without = (
        LLM.load(base, adapter=adapter, quantize=how).logits(tokens)
        for adapter, how in ((place, "int8"), (place, None), (None, None))
    )
    assert 0 < (packed - plain).std() < 0.05 * (plain - without).std()


def test_zero_points_are_for_groups_that_lie_to_one_side_of_zero():
    """Then they make errors half as large; and numbers that are on a grid already are found again."""
    weight = torch.rand(64, 256, generator=torch.Generator().manual_seed(0)) + 0.2
    errors = {kind: float((again(kind, weight) - weight).square().mean().sqrt()) for kind in ("int4", "int4-zp")}
    assert errors["int4-zp"] < 0.7 * errors["int4"]
    codes = torch.randint(0, 16, (64, 8, 32), generator=torch.Generator().manual_seed(1))
    codes[..., 0], codes[..., 1] = 0, 15
    grid = ((codes - 5) * 0.25).flatten(1)
    assert torch.equal(again("int4-zp", grid), grid)
