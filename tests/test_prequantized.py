"""Checkpoints that others quantized: every format's numbers, from packings worked out here or made by its own library,
and which of them are kept in codes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from published import PUBLISHED
from safetensors.torch import load_file, save_file
from torch import Tensor

from lathe import checkpoint, families
from lathe.checkpoint import quantized
from lathe.errors import CheckpointError, ConfigError
from lathe.model import native
from lathe.model.layers import Linear
from lathe.model.layout import Layout
from lathe.transforms import pack, panels
from lathe.transforms.grids import NF4
from lathe.transforms.kinds import KINDS
from lathe.transforms.quantize import Packed, PackedLinear, matrices
from lathe.weights import rules
from lathe.weights.coded import Coded
from lathe.weights.tensors import Ref

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "torch_dtype": "float32", "tie_word_embeddings": False,
}  # fmt: skip
Made = tuple[dict[str, Tensor], Tensor]  # a matrix's parts, and its numbers


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(folder: Path, told: dict[str, Any], make: Callable[[str, int, int], Made]) -> dict[str, Tensor]:
    """A folder whose matrices of layers are quantized as told; returns what each is, by names. make: from a module and
    its rows and columns."""
    spec = families.read(CONFIG)
    decoder = checkpoint.blank(spec)
    coded = {name for name, _ in matrices(decoder)}
    tensors, numbers, generator = {}, {}, random()
    for name, slot in checkpoint.slots(decoder):
        module = name.removesuffix(".weight")
        if module in coded:
            parts, numbers[name] = make(module, *slot.shape)
            tensors |= {f"{module}.{part}": value for part, value in parts.items()}
        else:
            tensors[name] = numbers[name] = torch.randn(slot.shape, generator=generator) * 0.3
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | ({"quantization_config": told} if told else {})))
    return numbers


def same(folder: Path, numbers: dict[str, Tensor], atol: float = 1e-6) -> checkpoint.Checkpoint:
    """Every tensor is as it should be, whole, and in a box of it."""
    found = checkpoint.open(folder)
    assert found.tensors.keys() == numbers.keys()
    for name, ref in found.tensors.items():
        torch.testing.assert_close(ref.read(), numbers[name].to(ref.dtype), rtol=0, atol=atol)
        if len(ref.shape) == 2:
            box = (slice(3, 17), slice(5, 40))
            torch.testing.assert_close(ref.fetch(box), numbers[name][box].to(ref.dtype), rtol=0, atol=atol)
    return found


def kept(found: checkpoint.Checkpoint, **how: Any) -> dict[str, int]:
    """How many matrices a decoder has in which kind; it answers as its numbers would, dense."""
    decoder = found.load(**how)
    dense = found.load(dense=True)
    tokens = torch.arange(20) * 7 % 96
    with torch.inference_mode():
        ours, theirs = (each.logits(each(tokens, Layout.of([20]))) for each in (decoder, dense))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    kinds = [module.how for module in decoder.modules() if isinstance(module, Packed)]
    return {kind: kinds.count(kind) for kind in {*kinds}}


# ---- GPTQ and AWQ ----------------------------------------------------------------------------------------------------
def words(columns: list[list[int]], bits: int) -> Tensor:
    """Numbers in words of 32 bits, down each column: the first in the lowest bits, as one long number."""
    packed = []
    for column in columns:
        stream = sum(value << bits * n for n, value in enumerate(column))
        count = len(column) * bits // 32
        packed.append([stream >> 32 * n & 0xFFFFFFFF for n in range(count)])
    return torch.tensor(packed, dtype=torch.int64).to(torch.int32).T


def gptq(bits: int, group: int, *, v1: bool, sorted_columns: bool = False, symmetric: bool = False) -> Any:
    def make(module: str, rows: int, inputs: int) -> Made:
        generator = random(rows + inputs)
        size = group if group > 0 else inputs
        count = inputs // size
        codes = torch.randint(0, 1 << bits, (inputs, rows), generator=generator)
        low = 1 if v1 else 0  # which the first format cannot say to be 0
        zeros = torch.randint(low, 1 << bits, (count, rows), generator=generator)
        if symmetric:
            zeros[:] = 1 << bits - 1
        scales = (torch.rand(count, rows, generator=generator) * 0.05).half()
        groups = torch.arange(inputs) // size
        if sorted_columns:
            groups = groups[torch.randperm(inputs, generator=generator)]
        parts = {
            "qweight": words(codes.T.tolist(), bits),
            "qzeros": words((zeros - low).tolist(), bits).T,
            "scales": scales,
            "g_idx": groups.int(),
        }
        return parts, ((codes - zeros[groups]) * scales.float()[groups]).T

    return make


def told_gptq(bits: int, group: int, form: str = "gptq", **more: Any) -> dict[str, Any]:
    made = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": True}
    return made | {"damp_percent": 0.01, "checkpoint_format": form, "pack_dtype": "int32", "meta": {"by": "x"}} | more


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("group", "v1", "ordered"), [(32, True, False), (64, False, False), (32, True, True), (-1, True, False)]
)
def test_gptq(tmp_path, bits, group, v1, ordered):
    told = told_gptq(bits, group, "gptq" if v1 else "gptq_v2", sym=False)
    found = same(tmp_path, model(tmp_path, told, gptq(bits, group, v1=v1, sorted_columns=ordered)))
    assert found.quantized == "gptq" and "gptq" in found.form
    if bits == 4 and not ordered:
        assert kept(found) == {"int4-zp": 14}
    else:
        with pytest.warns(UserWarning, match="unpacked"):
            assert kept(found) == {}


def test_a_gptq_that_is_not_as_symmetric_as_it_says_is_unpacked(tmp_path):
    found = same(tmp_path, model(tmp_path, told_gptq(4, 32), gptq(4, 32, v1=True)))
    with pytest.warns(UserWarning, match="unpacked"):
        assert kept(found) == {}


@pytest.mark.parametrize("group", [32, 64, -1])
@pytest.mark.parametrize(("bits", "kind"), [(4, "int4"), (8, "int8-32")])
def test_a_symmetric_gptq_stays_in_its_codes(tmp_path, group, bits, kind):
    numbers = model(tmp_path, told_gptq(bits, group), gptq(bits, group, v1=True, symmetric=True))
    found = same(tmp_path, numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kept(found) == {kind: 14}
    decoder = found.load(quantize="int8")  # which is asked for, and rounds once more
    assert {module.how for module in decoder.modules() if isinstance(module, Packed)} == {"int8"}


def test_in_float16_which_kernels_do_not_know_its_codes_are_multiplied_too(tmp_path):
    if native.library() is None:
        pytest.skip("no C++ compiler")
    model(tmp_path, told_gptq(4, 64), gptq(4, 64, v1=True, symmetric=True))
    decoder, tokens = checkpoint.open(tmp_path).load(dtype=torch.float16), torch.arange(20) * 7 % 96
    with torch.inference_mode():
        plain = decoder.logits(decoder(tokens, Layout.of([20])))
        pack.pack(decoder)
        assert {type(one) for one in decoder.modules() if isinstance(one, Packed)} == {pack.QuickPacked}
        quick = decoder.logits(decoder(tokens, Layout.of([20])))
    assert quick.dtype == torch.float16
    assert 0 < (quick - plain).float().std() < 0.05 * plain.float().std()


def test_the_text_model_of_a_multimodal_one(tmp_path):
    """Whose tensors have a prefix, and whose outer configuration says how they are quantized."""
    numbers = model(tmp_path, told_gptq(4, 32), gptq(4, 32, v1=True, symmetric=True))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({f"language_model.{name}": part for name, part in tensors.items()}, tmp_path / "model.safetensors")
    text = {**CONFIG, "model_type": "mistral"}
    outer = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps({**outer, "quantization_config": told_gptq(4, 32)}))
    found = same(tmp_path, numbers)
    assert "quantization_config" not in found.config and kept(found) == {"int4": 14}


def test_a_gptq_of_other_bits_in_some_modules(tmp_path):
    """As GPTQModel's `dynamic` says, and the shapes do."""
    make4, make8 = (gptq(bits, 32, v1=True) for bits in (4, 8))
    numbers = model(
        tmp_path, told_gptq(4, 32, dynamic={"+:.*o_proj": {"bits": 8}}),
        lambda module, *shape: (make8 if "o_proj" in module else make4)(module, *shape),
    )  # fmt: skip
    same(tmp_path, numbers)


def test_autogptq_before_it_wrote_into_config_json(tmp_path):
    numbers = model(tmp_path, {}, gptq(4, 32, v1=True))
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "desc_act": False}))
    same(tmp_path, numbers)


def awq(module: str, rows: int, inputs: int, group: int = 32) -> Made:
    generator = random(rows + inputs)
    codes = torch.randint(0, 16, (inputs, rows), generator=generator)
    zeros = torch.randint(0, 16, (inputs // group, rows), generator=generator)
    scales = (torch.rand(inputs // group, rows, generator=generator) * 0.05).half()

    def pack(some: Tensor) -> Tensor:  # a word has columns 0, 2, 4, 6, 1, 3, 5, 7, from its lowest bits up
        order = [block + n for block in range(0, rows, 8) for n in (0, 2, 4, 6, 1, 3, 5, 7)]
        return words(some[:, order].tolist(), 4).T

    parts = {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales}
    return parts, ((codes - zeros.repeat_interleave(group, 0)) * scales.float().repeat_interleave(group, 0)).T


def test_awq(tmp_path):
    told = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
    numbers = model(tmp_path, told | {"modules_to_not_convert": None}, awq)
    assert kept(same(tmp_path, numbers)) == {"int4-zp": 14}


def coded(told: dict[str, Any], parts: dict[str, Tensor]) -> Ref:
    """One matrix of a checkpoint."""
    _, laws = quantized.rules(CONFIG | {"quantization_config": told}, [])
    return rules.into(laws, {f"some.{name}": Ref.of(part.contiguous()) for name, part in parts.items()})["some.weight"]


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2", "awq", "compressed-tensors"])
def test_products_of_codes_with_zero_points(form, group):
    """Those of the numbers, within what rounding the other factor to 8 bits leaves; alone, and many at once."""
    if form == "compressed-tensors":
        told, make = compressed("pack-quantized", num_bits=4, symmetric=False, strategy="group", group_size=group)
    elif form == "awq":
        told = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
        make = partial(awq, group=group)
    else:
        told, make = told_gptq(4, group, form, sym=False), gptq(4, group, v1=form == "gptq")
    parts, exact = make("some", 48, 256)
    ref = coded(told, parts)
    assert isinstance(ref, Coded) and ref.kind == "int4-zp" and ref.sure()
    module = PackedLinear(Linear(256, 48), "int4-zp")
    module.take({name: part.read().contiguous() for name, part in ref.parts.items()})
    torch.testing.assert_close(module.weight, exact, rtol=0, atol=1e-6)
    if (kernels := native.library()) is None:
        pytest.skip("no C++ compiler")
    x = torch.randn(70, 256, generator=random())
    room = panels.Room(kernels, [("int4-zp", module.shape)])
    found = room.panels("int4-zp", module.shape)
    found.put([module.get_parameter(name) for name in module.parts])
    quick = panels.QuickPacked(module, found)
    with torch.inference_mode():
        product, y = x @ exact.T, quick(x)
        assert (y - product).square().mean() <= (0.01 * product.std()) ** 2
        assert torch.equal(quick(x[5:6])[0], y[5])


# ---- floats of 8 bits ------------------------------------------------------------------------------------------------
def float8(block: tuple[int, int], name: str, shape: Callable[[int, int], tuple[int, ...]] | None = None) -> Any:
    def make(module: str, rows: int, inputs: int) -> Made:
        generator = random(rows + inputs)
        codes = torch.randn(rows, inputs, generator=generator).to(torch.float8_e4m3fn)
        high, wide = block[0] or rows, block[1] or inputs
        scales = torch.rand(-(-rows // high), -(-inputs // wide), generator=generator) + 0.1
        spread = scales.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :inputs]
        stored = scales.reshape(shape(rows, inputs)) if shape else scales
        return {"weight": codes, name: stored, "input_scale": torch.ones(1)}, codes.float() * spread

    return make


@pytest.mark.parametrize(("told", "make"), [
    ({"weight_block_size": [48, 32]}, float8((48, 32), "weight_scale_inv")),
    ({"weight_block_size": [128, 128]}, float8((128, 128), "weight_scale_inv")),
    ({}, float8((0, 0), "weight_scale", lambda r, k: ())),
    ({}, float8((0, 0), "weight_scale_inv", lambda r, k: (1,))),
    ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, float8((1, 0), "weight_scale")),
])  # fmt: skip
def test_floats_of_8_bits(tmp_path, told, make):
    told = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", **told}
    found = same(tmp_path, model(tmp_path, told, make), atol=1e-5)
    with pytest.warns(UserWarning, match="unpacked"):
        assert kept(found) == {}
    if told["quant_method"] == "fbgemm_fp8":  # kept where it is asked for, and as it was
        assert kept(found, quantize="fp8") == {"fp8": 14}


def test_transformers_reads_the_same_floats(tmp_path):
    transformers = pytest.importorskip("transformers")
    told = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [64, 64]}
    model(tmp_path, told, float8((64, 64), "weight_scale_inv", None))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.arange(20) * 7 % 96
    decoder = checkpoint.open(tmp_path).load(dense=True)
    with torch.inference_mode():
        ours = decoder.logits(decoder(tokens, Layout.of([20])))
        torch.testing.assert_close(ours, theirs(tokens[None]).logits[0], rtol=1e-4, atol=1e-4)


# ---- compressed-tensors ----------------------------------------------------------------------------------------------
def compressed(form: str, **weights: Any) -> tuple[dict[str, Any], Any]:
    """What the library makes of matrices, and their numbers as it gives them back."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    library = BaseCompressor.get_value_from_registry(form)

    def make(module: str, rows: int, inputs: int) -> Made:
        generator = random(rows + inputs)
        weight = torch.randn(rows, inputs, generator=generator) * 0.1
        shape = {
            "tensor": (1,),
            "channel": (rows, 1),
            "group": (rows, inputs // (args.group_size or inputs)),
            "block": tuple(-(-n // b) for n, b in zip((rows, inputs), args.block_structure or (1, 1), strict=True)),
        }[args.strategy]
        top = 448 if args.type == "float" else 2 ** (args.num_bits - 1) - 1
        scale = (torch.rand(shape, generator=generator) * 0.1 / top + 0.2 / top).half().float()  # as int4 has them
        state = {"weight": weight, "weight_scale": scale}
        if not args.symmetric:
            state["weight_zero_point"] = torch.randint(-4, 4, shape, generator=generator).to(torch.int8)
        parts = library.compress(dict(state), scheme)
        return parts, library.decompress(dict(parts), scheme)["weight"].float()

    told = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed"}
    group = {"targets": ["Linear"], "weights": json.loads(args.model_dump_json()), "input_activations": None}
    return told | {"config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None}, make


GROUP_32 = {"strategy": "group", "group_size": 32}


@pytest.mark.parametrize(("form", "weights", "kinds"), [
    ("pack-quantized", {"num_bits": 4, **GROUP_32}, {"int4": 14}),
    ("pack-quantized", {"num_bits": 4, "strategy": "channel"}, {"int4": 14}),
    ("pack-quantized", {"num_bits": 4, "symmetric": False, **GROUP_32}, {"int4-zp": 14}),
    ("pack-quantized", {"num_bits": 4, "symmetric": False, "strategy": "channel"}, {"int4-zp": 14}),
    ("pack-quantized", {"num_bits": 8, "symmetric": False, **GROUP_32}, {}),
    ("pack-quantized", {"num_bits": 8, "strategy": "channel"}, {"int8": 14}),
    ("pack-quantized", {"num_bits": 8, **GROUP_32}, {"int8-32": 14}),
    ("int-quantized", {"num_bits": 8, "strategy": "channel"}, {"int8": 14}),
    ("int-quantized", {"num_bits": 8, **GROUP_32}, {"int8-32": 14}),
    ("int-quantized", {"num_bits": 8, "strategy": "tensor"}, {}),
    ("naive-quantized", {"num_bits": 8, "strategy": "channel"}, {"int8": 14}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, {}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}, {}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 32]}, {}),
])  # fmt: skip
def test_compressed_tensors(tmp_path, form, weights, kinds):
    told, make = compressed(form, **weights)

    found = same(tmp_path, model(tmp_path, told, make), atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert kept(found) == kinds


# ---- bitsandbytes ----------------------------------------------------------------------------------------------------
def nested(module: str, rows: int, inputs: int) -> Made:
    """Its parts with the sizes of blocks quantized too, and numbers after its own description."""
    generator = random(rows + inputs)
    count = rows * inputs
    codes = torch.randint(0, 16, (count,), generator=generator)
    sizes = torch.randint(0, 256, (count // 64,), generator=generator, dtype=torch.uint8)
    values = torch.linspace(-1, 1, 256)
    coarse = torch.rand(-(-len(sizes) // 256), generator=generator)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [rows, inputs]}
    state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 1.25}
    largest = values[sizes.int()] * coarse[torch.arange(len(sizes)) // 256] + 1.25
    numbers = torch.tensor(NF4)[codes] * largest.repeat_interleave(64)
    parts = {
        "weight": (codes[::2] * 16 + codes[1::2]).to(torch.uint8)[:, None],
        "weight.absmax": sizes,
        "weight.quant_map": torch.tensor(NF4),
        "weight.nested_absmax": coarse,
        "weight.nested_quant_map": values,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor([*json.dumps(state).encode()], dtype=torch.uint8),
    }
    return parts, numbers.view(rows, inputs)


def eight(module: str, rows: int, inputs: int) -> Made:
    generator = random(rows + inputs)
    codes = torch.randint(-127, 128, (rows, inputs), generator=generator).to(torch.int8)
    largest = torch.rand(rows, generator=generator)
    parts = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, codes * largest[:, None] / 127


@pytest.mark.parametrize(("told", "make", "kinds"), [
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, nested, {"nf4": 14}),
    ({"load_in_8bit": True, "llm_int8_threshold": 6.0}, eight, {"int8": 14}),
])  # fmt: skip
def test_bitsandbytes(tmp_path, told, make, kinds):
    found = same(tmp_path, model(tmp_path, {"quant_method": "bitsandbytes", **told}, make))
    assert kept(found) == kinds


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_what_bitsandbytes_makes(tmp_path, kind, double):
    library = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")

    def make(module: str, rows: int, inputs: int) -> Made:
        weight = torch.randn(rows, inputs, generator=random(rows + inputs)) * 0.1
        codes, state = library.quantize_4bit(weight, quant_type=kind, compress_statistics=double)
        parts = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
        return {"weight": codes, **parts}, library.dequantize_4bit(codes, state)

    told = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    found = same(tmp_path, model(tmp_path, told, make))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert kept(found) == ({"nf4": 14} if kind == "nf4" else {})
    weight = torch.randn(40, 192, generator=random())
    ours = KINDS[kind].pack([weight], weight.shape, torch.device("cpu"))
    codes, state = library.quantize_4bit(weight, quant_type=kind)
    torch.testing.assert_close(
        KINDS[kind].unpack([*ours.values()], 192, torch.float32), library.dequantize_4bit(codes, state)
    )


# ---- what is wrong is said -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("told", "said"), [
    ({"quant_method": "quip"}, "quip.*Known are gptq"),
    ({"quant_method": "gptqq"}, 'Did you mean "gptq"'),
    (told_gptq(5, 32), '"quantization_config.bits": 5.*2, 3, 4, 8'),
    (told_gptq(4, 32, "marlin"), "checkpoint_format.*gptq_v2"),
    (told_gptq(4, 32, twist=3), "quantization_config.twist"),
    ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version.*gemm"),
    ({"quant_method": "fp8", "weight_block_size": [0, 1]}, "weight_block_size"),
    ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"g": {}}}, "nvfp4"),
    ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24"),
])  # fmt: skip
def test_a_method_that_is_not_known_is_named(tmp_path, told, said):
    model(tmp_path, told, awq)
    with pytest.raises(ConfigError, match=said):
        checkpoint.open(tmp_path)


@pytest.mark.parametrize(("change", "said"), [
    (lambda parts: parts.pop("scales"), "scales is missing"),
    (lambda parts: parts.update(qzeros=parts["qzeros"][:, :1].clone()), "qzeros.*has shape"),
    (lambda parts: parts.update(qweight=parts["qweight"][:, :8].clone()), "qweight.*has shape"),
    (lambda parts: parts.update(qweight=parts["qweight"].float()), "qweight.*holds float32.*int32"),
    (lambda parts: parts.update(scales=parts["scales"].int()), "scales.*holds int32.*float16"),
])  # fmt: skip
def test_parts_that_do_not_belong_together_are_named(tmp_path, change, said):
    def make(*given: Any) -> Made:
        parts, numbers = gptq(4, 32, v1=True)(*given)
        change(parts)
        return parts, numbers

    model(tmp_path, told_gptq(4, 32), make)
    with pytest.raises(CheckpointError, match=said):
        checkpoint.open(tmp_path)


def test_a_group_that_is_not_there_is_named(tmp_path):
    def make(*given: Any) -> Made:
        parts, numbers = gptq(4, 32, v1=True)(*given)
        return parts | {"g_idx": parts["g_idx"] + 7}, numbers

    model(tmp_path, told_gptq(4, 32), make)
    with pytest.raises(CheckpointError, match="names groups from"):
        checkpoint.open(tmp_path).load(dense=True)


def test_families_that_keep_matrices_the_other_way_round_are_refused():
    config = PUBLISHED["gpt2"].config | {"quantization_config": told_gptq(4, 32)}
    with pytest.raises(ConfigError, match="the other way round"):
        quantized.rules(config, families.rules(config, families.read(config)))


def test_mxfp4_is_left_to_gpt_oss():
    told = {"quantization_config": {"quant_method": "mxfp4"}}
    assert quantized.rules({"architectures": ["GptOssForCausalLM"], **told}, []) == ("", [])
    with pytest.raises(ConfigError, match="mxfp4"):
        quantized.rules({**CONFIG, **told}, [])
