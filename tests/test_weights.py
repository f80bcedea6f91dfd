"""Refs and rules against the same operations on tensors; safetensors against the reference library; damaged files."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import torch as reference
from samples import damaged, draw_box, random_tensor, same_bits
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.weights import rules, safetensors
from lathe.weights.rules import (
    Adopt,
    Drop,
    Microscaled,
    Prefix,
    Rename,
    Reorder,
    Rule,
    Shift,
    Split,
    Stack,
    Tie,
    Top,
    Transpose,
)
from lathe.weights.tensors import Box, Ref


def counted(tensor: Tensor) -> tuple[Ref, list[int]]:
    """A Ref and the list to which it adds how many elements each fetch asks of it."""
    asked: list[int] = []

    def fetch(box: Box) -> Tensor:
        asked.append(tensor[box].numel())
        return tensor[box]

    return Ref(tuple(tensor.shape), tensor.dtype, fetch), asked


# ---- Refs -----------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_operations_on_a_ref_equal_those_on_its_tensor(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(0, 5), st.integers(0, 5)))
    tensor = torch.arange(shape[0] * shape[1], dtype=torch.float32).view(shape)
    ref = Ref.of(tensor)
    for _ in range(data.draw(st.integers(0, 5))):
        match data.draw(st.sampled_from(["slice", "transpose", "cat", "stack", "reorder", "plus", "to"])):
            case "slice":
                box = draw_box(data, ref.shape)
                ref, tensor = ref[box], tensor[box]
            case "transpose":
                ref, tensor = ref.transposed(), tensor.T
            case "cat":
                dim = data.draw(st.integers(0, 1))
                rows = (*[slice(None)] * dim, slice(0, data.draw(st.integers(0, ref.shape[dim]))))
                ref, tensor = ref.cat(ref[rows], ref, dim=dim), torch.cat([tensor, tensor[rows], tensor], dim)
            case "stack":
                whole, many = ref.stack(ref.plus(1), ref), torch.stack([tensor, tensor + 1, tensor])
                assert whole.shape == many.shape
                box = draw_box(data, whole.shape)
                assert torch.equal(whole.fetch(box), many[box])
                assert torch.equal(whole.transposed().read(), many.transpose(1, 2))
                ref, tensor = whole.unstack()[1], many[1]
            case "reorder" if ref.shape[0] % 2 == 0:
                half = ref.shape[0] // 2
                tensor = tensor.reshape(2, half, ref.shape[1]).transpose(0, 1).reshape(ref.shape)
                ref = ref.reordered((2, half), (1, 0))
            case "reorder" if ref.shape[1] % 2 == 0:
                half = ref.shape[1] // 2
                tensor = tensor.reshape(ref.shape[0], 2, half).transpose(1, 2).reshape(ref.shape)
                ref = ref.reordered((2, half), (1, 0), dim=1)
            case "plus":
                ref, tensor = ref.plus(3), tensor + 3
            case "to":
                ref, tensor = ref.to(torch.float64).to(torch.float32), tensor
        assert ref.shape == tuple(tensor.shape)
        assert ref.dtype == tensor.dtype
    box = draw_box(data, ref.shape)
    assert torch.equal(ref.fetch(box), tensor[box])
    assert torch.equal(ref.read(), tensor)


def test_a_slice_reads_no_more_than_itself() -> None:
    ref, asked = counted(torch.arange(100.0).view(10, 10))
    ref[2:4, 1:5].read()
    ref.transposed()[3:4].read()
    ref.cat(ref, ref)[12:15].read()  # rows 2 to 5 of the second
    ref.stack(ref, ref)[1:2, 0:1].read()
    ref.reordered((2, 5), (1, 0))[8:10, 0:2].read()  # rows 4 and 9, and what lies between
    ref[5:5].read()
    assert asked == [8, 10, 30, 10, 12, 0]


def test_making_refs_reads_nothing() -> None:
    ref, asked = counted(torch.zeros(4, 4))
    ref[1:].cat(ref).transposed().plus(1).to(torch.float16).stack()[0:1].unstack()
    assert asked == []


def test_a_large_tensor_is_converted_piece_by_piece() -> None:
    tensor = torch.arange(3.0)[:, None].expand(3, 1 << 23)
    ref, asked = counted(tensor)
    assert torch.equal(ref.to(torch.float16).read(), tensor.half())
    assert max(asked) == 1 << 24


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0), (1,), (7,), (5, 6), (1, 40), (3, 2, 9)])
def test_pieces_are_contiguous_small_and_the_whole(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lathe.weights.tensors.PIECE", 16)
    tensor = random_tensor(shape, torch.int16, 0)
    pieces = list(Ref.of(tensor).pieces())
    assert all(piece.is_contiguous() for piece in pieces)
    assert all(piece.numel() <= 16 or len(piece) == 1 for piece in pieces)
    assert same_bits(torch.cat([piece.flatten() for piece in pieces] or [tensor.flatten()]).view(shape), tensor)


def test_parts_of_different_dtypes_are_joined_without_loss() -> None:
    small = torch.tensor([[1.5, 1e-7]], dtype=torch.float16)
    large = torch.tensor([[3e38, 1.0]], dtype=torch.bfloat16)
    eighth = torch.tensor([[448.0, 0.5]]).to(torch.float8_e4m3fn)
    joined = Ref.of(small).cat(Ref.of(large), Ref.of(eighth))
    assert joined.dtype == torch.float32
    assert torch.equal(joined.read(), torch.cat([small.float(), large.float(), eighth.float()]))


@pytest.mark.parametrize("other", [(2, 3), (4,), (2, 4, 1), ()])
def test_parts_that_do_not_fit_are_named(other: tuple[int, ...]) -> None:
    one, two = Ref.of(torch.zeros(2, 4), '"a" in x'), Ref.of(torch.zeros(other), '"b" in y')
    with pytest.raises(CheckpointError, match=r'"a" in x has shape .* and "b" in y has'):
        one.stack(two)
    with pytest.raises(CheckpointError, match='"b" in y'):
        one.cat(two)


# ---- rules ----------------------------------------------------------------------------------------------------------

RULES: list[tuple[Rule, dict[str, tuple[int, ...]], set[str]]] = [
    (
        Rename("h.{i}.ln.weight", "layers.{i}.norm.weight"),
        {"h.0.ln.weight": (4,), "h.11.ln.weight": (4,)},
        {"layers.0.norm.weight", "layers.11.norm.weight"},
    ),
    (Prefix("transformer.", "model."), {"transformer.a": (2,), "transformer.b.c": (3, 1)}, {"model.a", "model.b.c"}),
    (
        Split("{i}.qkv", ("{i}.q", "{i}.k", "{i}.v"), (4, 2, 2)),
        {"0.qkv": (8, 3), "1.qkv": (8,)},
        {"0.q", "0.k", "0.v", "1.q", "1.k", "1.v"},
    ),
    (
        Stack("{i}.experts.{e}.up", "{i}.up", 3),
        {f"{i}.experts.{e}.up": (2, 5) for i in range(2) for e in range(3)},
        {"0.up", "1.up"},
    ),
    (Transpose("{i}.fc.weight"), {"0.fc.weight": (3, 5), "1.fc.weight": (2, 3, 5)}, {"0.fc.weight", "1.fc.weight"}),
    (Split("{i}.both", ("{i}.gate", "{i}.up"), (2, 2), 1), {"0.both": (3, 4, 5)}, {"0.gate", "0.up"}),
    (Reorder("{i}.both", (3, 2), (1, 0), 1), {"0.both": (2, 6, 5)}, {"0.both"}),
    (
        Reorder("{i}.qkv.weight", (2, 3, 4), (1, 0, 2)),
        {"0.qkv.weight": (24, 5), "1.qkv.weight": (24,)},
        {"0.qkv.weight", "1.qkv.weight"},
    ),
    (Shift("norm.weight", 1.0), {"norm.weight": (7,)}, {"norm.weight"}),
]


@pytest.mark.parametrize(("rule", "shapes", "memory"), RULES, ids=lambda value: type(value).__name__)
def test_a_rule_run_both_ways_is_the_identity(rule: Rule, shapes: dict[str, tuple[int, ...]], memory: set[str]) -> None:
    disk = {name: torch.randint(-8, 8, shape).float() for name, shape in shapes.items()}
    into = rules.into([rule], {name: Ref.of(tensor) for name, tensor in disk.items()})
    assert into.keys() == memory
    back = rules.back([rule], into)
    assert back.keys() == disk.keys()
    assert all(same_bits(back[name].read(), disk[name]) for name in disk)


@pytest.mark.parametrize(("rule", "shapes", "memory"), RULES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("wrong", [(), (1,), (5, 1), (2, 3, 4)])
def test_a_rule_survives_tensors_of_any_shape(
    rule: Rule, shapes: dict[str, tuple[int, ...]], memory: set[str], wrong: tuple[int, ...]
) -> None:
    out = rules.into([rule], {name: Ref.of(torch.zeros(wrong)) for name in shapes})
    assert all(ref.read().shape == ref.shape for ref in out.values())


def test_what_the_rules_say() -> None:
    x = torch.arange(24.0).view(12, 2)
    qkv = rules.into([Reorder("w", (2, 3, 2), (1, 0, 2)), Split("w", ("q", "k", "v"), (4, 4, 4))], {"w": Ref.of(x)})
    # GPT-NeoX: head by head, q k v of each
    assert torch.equal(qkv["q"].read(), torch.cat([x[0:2], x[6:8]]))
    assert torch.equal(qkv["v"].read(), torch.cat([x[4:6], x[10:12]]))
    norm = rules.into([Shift("n", 1.0)], {"n": Ref.of(torch.tensor([1.5]))})
    assert norm["n"].read().item() == 0.5
    pairs = rules.into(
        [Reorder("w", (2, 2), (1, 0), 1), Split("w", ("gate", "up"), (2, 2), 1)], {"w": Ref.of(x.view(2, 4, 3))}
    )
    assert torch.equal(pairs["gate"].read(), x.view(2, 4, 3)[:, ::2])
    assert torch.equal(pairs["up"].read(), x.view(2, 4, 3)[:, 1::2])
    assert torch.equal(rules.into([Top("w", 3)], {"w": Ref.of(x)})["w"].read(), x[:3])
    written = dict.fromkeys(["model.embed", "head", "rope.inv"], Ref.of(x))
    tied = rules.into([Tie("embed", "head"), Drop("rope.*"), Adopt("model.", "")], written)
    assert list(tied) == ["embed"]


def test_blocks_of_four_bit_floats_with_a_scale_are_dequantized_as_they_are_read() -> None:
    blocks = torch.randint(256, (2, 3, 4, 16), dtype=torch.uint8)
    scales = torch.randint(120, 130, (2, 3, 4), dtype=torch.uint8)
    right = torch.empty(2, 3, 4, 32)
    for place in np.ndindex(2, 3, 4, 32):
        *block, n = place
        code = int(blocks[(*block, n // 2)]) >> 4 * (n % 2) & 15
        size = [0, 0.5, 1, 1.5, 2, 3, 4, 6][code % 8]
        right[place] = (-size if code > 7 else size) * 2.0 ** (int(scales[tuple(block)]) - 127)
    rule = Microscaled("{i}.w_blocks", "{i}.w_scales", "{i}.w")
    read = rules.into([rule], {"0.w_blocks": Ref.of(blocks), "0.w_scales": Ref.of(scales)})
    assert read.keys() == {"0.w"}
    assert torch.equal(read["0.w"].read().float(), right.flatten(-2))
    assert torch.equal(read["0.w"][1:2, 1:3, 30:70].read().float(), right.flatten(-2)[1:2, 1:3, 30:70])
    for other in (Ref.of(scales[0]), Ref.of(scales.int())):
        assert rules.into([rule], {"0.w_blocks": Ref.of(blocks), "0.w_scales": other}).keys() == {
            "0.w_blocks",
            "0.w_scales",
        }


def test_rules_run_in_order_and_back_in_reverse() -> None:
    chain = [Prefix("a.", "b."), Rename("b.{i}.w", "c.{i}.w"), Transpose("c.{i}.w")]
    disk = {"a.3.w": Ref.of(torch.arange(6.0).view(2, 3))}
    memory = rules.into(chain, disk)
    assert memory["c.3.w"].shape == (3, 2)
    assert torch.equal(rules.back(chain, memory)["a.3.w"].read(), disk["a.3.w"].read())
    assert list(disk) == ["a.3.w"], "the caller's mapping is left as it was"


def test_a_stack_with_a_part_missing_is_left_for_the_checkpoint_to_report() -> None:
    parts = {f"experts.{e}": Ref.of(torch.zeros(2)) for e in (0, 2)}
    assert rules.into([Stack("experts.{e}", "experts", 3)], parts).keys() == parts.keys()


def test_a_hole_takes_numbers_only_and_a_pattern_takes_whole_names() -> None:
    assert list(rules.matches("h.{i}.w", ["h.1.w", "h.x.w", "ah.1.w", "h.1.w.b", "hX1Xw", "h..w"])) == [
        ("h.1.w", {"i": "1"})
    ]


# ---- safetensors ----------------------------------------------------------------------------------------------------

REFERENCE_DTYPES = sorted((d for d in safetensors.NAMES if d != torch.float8_e8m0fnu), key=str)


def tensors_by_name() -> st.SearchStrategy[dict[str, Tensor]]:
    shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
    one = st.builds(random_tensor, shapes, st.sampled_from(REFERENCE_DTYPES), st.integers(0, 99))
    return st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), one, max_size=6)


@given(tensors_by_name(), st.data())
@settings(deadline=None, max_examples=100)
def test_both_libraries_read_what_both_write(tensors: dict[str, Tensor], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        our_file, their_file = Path(folder) / "ours", Path(folder) / "theirs"
        safetensors.write(our_file, {name: Ref.of(tensor) for name, tensor in tensors.items()})
        reference.save_file(tensors, their_file)
        loaded = reference.load_file(our_file)
        assert loaded.keys() == tensors.keys()
        assert all(same_bits(loaded[name], tensors[name]) for name in tensors)
        for file in (our_file, their_file):
            refs = safetensors.open(file)
            assert refs.keys() == tensors.keys()
            for name, tensor in tensors.items():
                assert same_bits(refs[name].read(), tensor)
                box = draw_box(data, refs[name].shape)
                assert same_bits(refs[name].fetch(box), tensor[box])


def test_every_dtype_round_trips(tmp_path: Path) -> None:
    tensors = {str(dtype): random_tensor((3, 5), dtype, 1) for dtype in safetensors.NAMES}
    safetensors.write(tmp_path / "a", {name: Ref.of(tensor) for name, tensor in tensors.items()})
    back = safetensors.open(tmp_path / "a")
    assert all(same_bits(back[name].read(), tensors[name]) for name in tensors)


def test_tensors_that_do_not_lie_in_one_piece_are_written(tmp_path: Path) -> None:
    x = torch.arange(24.0).view(4, 6)
    tensors = {"t": x.T, "column": x[:, 1], "lone": x[0, ::3][:1], "none": x[:0, ::2], "repeated": x[:1].expand(3, 6)}
    safetensors.write(tmp_path / "a", {name: Ref.of(tensor) for name, tensor in tensors.items()})
    back = reference.load_file(tmp_path / "a")
    assert all(same_bits(back[name], tensors[name]) for name in tensors)


def test_a_real_file(shared: Path) -> None:
    file = shared / "data/models/stories260K-hf/model.safetensors"
    refs, expected = safetensors.open(file), reference.load_file(file)
    assert refs.keys() == expected.keys()
    assert all(same_bits(refs[name].read(), expected[name]) for name in expected)


def test_a_read_is_a_view_of_the_mapped_file_and_private(tmp_path: Path) -> None:
    file = tmp_path / "a"
    safetensors.write(file, {"x": Ref.of(torch.ones(4, 4))})
    before = file.read_bytes()
    ref = safetensors.open(file)["x"]
    whole, rows = ref.read(), ref[2:].read()
    assert rows.data_ptr() == whole.data_ptr() + 2 * 4 * 4
    whole.zero_()
    assert rows.sum() == 0
    assert file.read_bytes() == before


def test_opening_maps_nothing(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "a", {"x": Ref.of(torch.ones(4))})
    ref = safetensors.open(tmp_path / "a")["x"]
    (tmp_path / "a").unlink()
    with pytest.raises(FileNotFoundError):
        ref.read()


def test_a_slice_of_a_file_larger_than_memory(tmp_path: Path) -> None:
    rows, header = 1 << 22, {"x": {"dtype": "F32", "shape": [1 << 22, 1 << 14], "data_offsets": [0, 1 << 38]}}
    file = tmp_path / "sparse"
    start = put(file, header)
    os.truncate(file, start + (1 << 38))  # 256 GiB of nothing, but for one number
    with file.open("r+b") as out:
        out.seek(start + ((rows - 1) << 16) + 8)
        out.write(b"\0\0\x80\x3f")
    part = safetensors.open(file)["x"][rows - 2 :, 1:4].read()
    assert part.tolist() == [[0, 0, 0], [0, 1, 0]]


def test_a_file_whose_tensors_are_not_aligned(tmp_path: Path) -> None:
    one, two = torch.tensor([7], dtype=torch.uint8), torch.tensor([[1.5, -2.0]])
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [1, 2], "data_offsets": [1, 9]},
    }
    put(tmp_path / "a", header, one.numpy().tobytes() + two.numpy().tobytes())
    refs = safetensors.open(tmp_path / "a")
    assert refs["a"].read().item() == 7
    assert torch.equal(refs["b"].read(), two)


def put(file: Path, header: object, data: bytes = b"") -> int:
    """Write a safetensors file around any header; returns where its tensors begin."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return 8 + len(text)


def entry(shape: object, begin: object, end: object, dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE = {
    "no header": b"",
    "half a length": b"\1\0\0\0",
    "a header of 2^63 bytes": (1 << 63).to_bytes(8, "little") + b"{}",
    "a header longer than the file": (100).to_bytes(8, "little") + b"{}",
    "no JSON": b"{",
    "JSON nested without end": b"[" * 200_000,
    "a list": [],
    "an entry that is no object": {"a": 3},
    "an entry nested deeply": b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 4]}},
    "an unknown dtype": {"a": entry([1], 0, 4, "F33")},
    "a dtype that is a list": {"a": entry([1], 0, 4, ["F32"])},
    "a negative size": {"a": entry([-1], 0, 4)},
    "a size that is no number": {"a": entry(["1"], 0, 4)},
    "a size that is true": {"a": entry([True], 0, 4)},
    "a size of 10^4000": {"a": entry([10**4000], 0, 4 * 10**4000)},
    "a million sizes": {"a": entry([1 << 58] * 1_000_000, 0, 4)},
    "a product past 2^63": {"a": entry([1 << 40, 1 << 40], 0, 4)},
    "a product past 2^63, times zero": {"a": entry([1 << 40, 1 << 40, 0], 0, 0)},
    "offsets backwards": {"a": entry([1], 4, 0)},
    "offsets before the file": {"a": entry([1], -4, 0)},
    "offsets of another size": {"a": entry([1], 0, 8)},
    "offsets of 10^4000": {"a": entry([1], 10**4000, 10**4000 + 4)},
    "three offsets": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}},
    "two tensors in one place": {"a": entry([1], 0, 4), "b": entry([1], 0, 4)},
    "two tensors that overlap": {"a": entry([4], 0, 16), "b": entry([4], 8, 24)},
    "a hole": {"a": entry([1], 0, 4), "b": entry([1], 12, 16)},
    "a tensor that ends behind the file": {"a": entry([1 << 20], 0, 4 << 20)},
    "bytes that belong to no tensor": {"a": entry([1], 0, 4)},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_an_error(name: str, tmp_path: Path) -> None:
    file, header = tmp_path / "a.safetensors", HOSTILE[name]
    if isinstance(header, bytes) and not header.startswith((b"{", b"[")):
        file.write_bytes(header)
    else:
        put(file, header, bytes(24))
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        safetensors.open(file)


def test_no_damage_makes_anything_but_an_error_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "a"
    kinds = (torch.float32, torch.bfloat16, torch.int8)
    safetensors.write(file, {f"layer.{n}": Ref.of(torch.rand(n, 3).to(kind)) for n, kind in enumerate(kinds)})
    refused = 0
    for bad in damaged(file.read_bytes(), 1500, 0):
        file.write_bytes(bad)
        try:
            for ref in safetensors.open(file).values():
                assert ref.read().shape == ref.shape
        except CheckpointError:
            refused += 1
    assert refused > 500
