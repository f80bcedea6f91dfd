"""The GGUF reader against the `gguf` package: metadata, tensors, every quantized type bit for bit; hostile headers."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import damaged, draw_box, same_bits

from lathe.errors import CheckpointError, MissingError
from lathe.transforms.kinds import KINDS
from lathe.weights import gguf
from lathe.weights.blocks import PACKINGS
from lathe.weights.coded import Coded
from lathe.weights.gguf.codes import WAYS
from lathe.weights.tensors import Ref

# ---- against the reference ------------------------------------------------------------------------------------------


def check(file: Path) -> gguf.Gguf:
    """Open a file, and hold its metadata and tensors against what the reference reader says."""
    ours, theirs = gguf.open(file), reference.GGUFReader(file)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert repr(ours.metadata) == repr(fields)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        ref = ours.tensors[tensor.name]
        packed = tensor.data.dtype == np.uint8
        expected = reference.dequantize(tensor.data, tensor.tensor_type) if packed else tensor.data
        assert ref.shape == tuple(reversed(tensor.shape.tolist()))
        value = ref.read().float() if ref.dtype == torch.bfloat16 else ref.read()  # numpy has no bfloat16
        assert same_bits(value, torch.from_numpy(expected.copy()))
    return ours


REAL = [
    "models/stories260K-gguf/stories260K-f32.gguf",
    "models/stories260K-gguf/stories260K-q8_0.gguf",
    "formats/gguf-vocab/ggml-vocab-deepseek-coder.gguf",
    "formats/gguf-vocab/ggml-vocab-gpt-2.gguf",
    "formats/gguf-vocab/ggml-vocab-llama-spm.gguf",
]


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared: Path, name: str) -> None:
    file = check(shared / "data" / name)
    assert file.metadata["tokenizer.ggml.tokens"]


def written(file: Path, alignment: int | None = None) -> Path:
    """A file with metadata of every kind and tensors of several types."""
    writer = GGUFWriter(file, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_uint8("k.uint8", 250)
    writer.add_int8("k.int8", -5)
    writer.add_uint16("k.uint16", 65_000)
    writer.add_int16("k.int16", -300)
    writer.add_uint32("k.uint32", 1 << 31)
    writer.add_int32("k.int32", -7)
    writer.add_uint64("k.uint64", 1 << 63)
    writer.add_int64("k.int64", -(1 << 62))
    writer.add_float32("k.float32", 0.1)
    writer.add_float64("k.float64", 0.1)
    writer.add_bool("k.bool", True)
    writer.add_string("k.string", "a text, ü and 🙂")
    writer.add_string("k.empty", "")
    writer.add_array("k.strings", ["", "a", "▁the", "🙂"])
    writer.add_array("k.integers", [1, -2, 3])
    writer.add_array("k.floats", [0.5, -1e30])
    writer.add_array("k.bools", [True, False])
    rng = np.random.default_rng(0)
    writer.add_tensor("vector", rng.standard_normal(5, dtype=np.float32))
    writer.add_tensor("matrix", rng.standard_normal((3, 7), dtype=np.float32).astype(np.float16))
    writer.add_tensor("cube", rng.standard_normal((2, 3, 4), dtype=np.float32))
    writer.add_tensor("integers", np.arange(6, dtype=np.int32).reshape(2, 3))
    short = reference.quantize(rng.standard_normal((4, 6), dtype=np.float32), GGMLQuantizationType.BF16)
    writer.add_tensor("short", short, raw_dtype=GGMLQuantizationType.BF16)
    packed = reference.quantize(rng.standard_normal((2, 3, 96), dtype=np.float32), GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("alignment", [None, 8, 256])
def test_every_kind_of_metadata_and_tensor(tmp_path: Path, alignment: int | None) -> None:
    file = check(written(tmp_path / "a", alignment))
    assert file.metadata["k.float32"] == struct.unpack("<f", struct.pack("<f", 0.1))[0]
    assert file.metadata["k.bools"] == [True, False]
    assert type(file.metadata["k.bool"]) is bool
    kinds = {name: ref.dtype for name, ref in file.tensors.items()}
    assert kinds["matrix"] == torch.float16
    assert kinds["short"] == torch.bfloat16
    assert kinds["packed"] == torch.float32


def test_version_two_is_read_alike(tmp_path: Path) -> None:
    file = written(tmp_path / "a")
    content = bytearray(file.read_bytes())
    content[4] = 2
    file.write_bytes(content)
    check(file)


def raw_blocks(kind: int, rows: tuple[int, ...], blocks: int, seed: int) -> np.ndarray:
    """Rows of random blocks of a quantized type, whose scales are random too, but finite."""
    size = PACKINGS[kind].nbytes
    raw = np.random.default_rng(seed).integers(0, 256, (*rows, blocks, size), dtype=np.uint8)
    for at in SCALES[PACKINGS[kind].name]:
        raw[..., at + 1] &= 0xBB  # without one bit of its exponent a half is finite
    return raw.reshape(*rows, -1)


# Where each type keeps half-precision numbers in a block.
SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("kind", PACKINGS, ids=lambda kind: PACKINGS[kind].name)
def test_a_quantized_type_is_the_reference_s_bit_for_bit(kind: int) -> None:
    packing, theirs = PACKINGS[kind], GGMLQuantizationType(kind)
    assert (packing.name, packing.values, packing.nbytes) == (theirs.name, *reference.GGML_QUANT_SIZES[theirs])
    raw = raw_blocks(kind, (500,), 1, 0)
    expected = torch.from_numpy(reference.dequantize(raw, theirs))
    assert not expected.isnan().any()
    assert same_bits(packing.expand(torch.from_numpy(raw)), expected)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("kind", [n for n, one in PACKINGS.items() if one.name in WAYS], ids=lambda n: PACKINGS[n].name)
def test_codes_stand_for_the_very_numbers(kind: int, tmp_path: Path) -> None:
    """All of them, some rows of a stack, and those of a file's rows in another order."""
    raw = raw_blocks(kind, (2, 6), 2, 3)
    one_tensor(tmp_path / "a", raw.tobytes(), (2, 6, 2 * PACKINGS[kind].values), kind)
    ref = gguf.open(tmp_path / "a").tensors["x"]
    whole = torch.from_numpy(reference.dequantize(raw, GGMLQuantizationType(kind)))
    order = [0, 2, 4, 1, 3, 5]
    for some, wanted in (
        (ref, whole),
        (ref[1:, 2:5], whole[1:, 2:5]),
        (ref.unstack()[1].reordered((3, 2), (1, 0)), whole[1, order]),
    ):
        assert isinstance(some, Coded)
        parts = [part.read() for part in some.parts.values()]
        blank = KINDS[some.kind].blank(torch.Size(some.shape))
        assert [(name, part.shape, part.dtype) for name, part in blank.items()] == [
            (name, part.shape, part.dtype) for name, part in zip(some.parts, parts, strict=True)
        ]
        assert same_bits(KINDS[some.kind].unpack(parts, some.shape[-1], torch.float32), wanted)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("kind", PACKINGS, ids=lambda kind: PACKINGS[kind].name)
@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_a_box_of_a_quantized_tensor(kind: int, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    raw = raw_blocks(kind, (2, 3), 2, 1)
    file = tmp_path_factory.mktemp("box") / "a"
    one_tensor(file, raw.tobytes(), (2, 3, 2 * PACKINGS[kind].values), kind)
    ref = gguf.open(file).tensors["x"]
    box = draw_box(data, ref.shape)
    whole = torch.from_numpy(reference.dequantize(raw, GGMLQuantizationType(kind)))
    assert same_bits(ref.fetch(box), whole[box])


def test_a_read_is_a_view_of_the_mapped_file_and_private(tmp_path: Path) -> None:
    file = written(tmp_path / "a")
    before = file.read_bytes()
    ref = gguf.open(file).tensors["cube"]
    whole, rows = ref.read(), ref[1:].read()
    assert rows.data_ptr() == whole.data_ptr() + 12 * 4
    whole.zero_()
    assert rows.sum() == 0
    assert file.read_bytes() == before


def test_opening_maps_no_tensor(tmp_path: Path) -> None:
    ref = gguf.open(written(tmp_path / "a")).tensors["cube"]
    (tmp_path / "a").unlink()
    with pytest.raises(FileNotFoundError):
        ref.read()


@pytest.mark.parametrize("kind", [0, 8])
def test_a_slice_of_a_tensor_larger_than_memory(tmp_path: Path, kind: int) -> None:
    shape = (1 << 22, 1 << 14)
    one_tensor(tmp_path / "a", b"", shape, kind)
    nbytes = (1 << 38) if kind == 0 else (1 << 31) * 34
    os.truncate(tmp_path / "a", (tmp_path / "a").stat().st_size + nbytes)
    part = gguf.open(tmp_path / "a").tensors["x"][shape[0] - 2 :, 100:103].read()
    assert torch.equal(part, torch.zeros(2, 3))


def test_a_large_vocabulary(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "a", "llama")
    writer.add_token_list([f"token {n} ▁" for n in range(150_000)])
    writer.add_token_scores([n / 7 for n in range(150_000)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = gguf.open(tmp_path / "a").metadata
    assert metadata["tokenizer.ggml.tokens"][149_999] == "token 149999 ▁"
    assert metadata["tokenizer.ggml.scores"][7] == 1


# ---- hostile files --------------------------------------------------------------------------------------------------


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int, dims: int | None = None) -> bytes:
    count = len(shape) if dims is None else dims
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *reversed(shape), kind, offset)


def header(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    version: int = 3,
    count: int | None = None,
    keys: int | None = None,
) -> bytes:
    counts = len(tensors) if count is None else count, len(pairs) if keys is None else keys
    return struct.pack("<4sIQQ", b"GGUF", version, *counts) + b"".join(pairs) + b"".join(tensors)


def padded(head: bytes, alignment: int = 32) -> bytes:
    return head + bytes(-len(head) % alignment)


def one_tensor(file: Path, data: bytes, shape: tuple[int, ...], kind: int) -> None:
    file.write_bytes(padded(header(tensors=[tensor("x", shape, kind, 0)])) + data)


DATA = bytes(64)
X = tensor("x", (4,), 0, 0)
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "the beginning of a header": b"GGUF\3\0\0\0",
    "another magic number": b"GGML" + header()[4:] + DATA,
    "version 1": header(version=1) + DATA,
    "version 4": header(version=4) + DATA,
    "a big-endian file": struct.pack(">4sIQQ", b"GGUF", 3, 0, 0) + DATA,
    "2^63 pairs": header(keys=1 << 63) + DATA,
    "2^63 tensors": header(count=1 << 63) + DATA,
    "a key of 2^63 bytes": header([text("k", 1 << 63)]) + DATA,
    "a key that is not UTF-8": header([pair("k", 0, b"\1").replace(b"k", b"\xff")]) + DATA,
    "a key twice": header([pair("k", 0, b"\1"), pair("k", 0, b"\1")]) + DATA,
    "a value of an unknown kind": header([pair("k", 13, b"\1")]) + DATA,
    "a value cut off": header([pair("k", 12, b"\1")]),
    "a text of 2^63 bytes": header([pair("k", 8, text("v", 1 << 63))]) + DATA,
    "an array of 2^63 bytes": header([pair("k", 9, array(0, 1 << 63))]) + DATA,
    "an array of 2^40 texts": header([pair("k", 9, array(8, 1 << 40))]) + DATA,
    "an array of 2^40 arrays": header([pair("k", 9, array(9, 1 << 40))]) + DATA,
    "an array of doubles, longer than the file": header([pair("k", 9, array(12, 60))]) + DATA,
    "an array of an unknown kind": header([pair("k", 9, array(13, 1))]) + DATA,
    "arrays in arrays without end": header([pair("k", 9, array(9, 1) * 100_000)]) + DATA,
    "an alignment of 0": header([pair("general.alignment", 4, bytes(4))]) + DATA,
    "an alignment of 33": header([pair("general.alignment", 4, b"\x21\0\0\0")]) + DATA,
    "an alignment that is text": header([pair("general.alignment", 8, text("32"))]) + DATA,
    "five dimensions": padded(header(tensors=[tensor("x", (1,) * 5, 0, 0)])) + DATA,
    "2^32 dimensions": padded(header(tensors=[tensor("x", (), 0, 0, (1 << 32) - 1)])) + DATA,
    "a tensor twice": padded(header(tensors=[X, tensor("x", (4,), 0, 32)])) + DATA,
    "two tensors in one place": padded(header(tensors=[X, tensor("y", (4,), 0, 0)])) + DATA,
    "two tensors that overlap": padded(header(tensors=[tensor("y", (4,), 0, 8), X])) + DATA,
    "a tensor behind the file": padded(header(tensors=[tensor("x", (4,), 0, 1 << 40)])) + DATA,
    "an offset of 2^64": padded(header(tensors=[tensor("x", (4,), 0, (1 << 64) - 32)])) + DATA,
    "a tensor longer than the file": padded(header(tensors=[tensor("x", (17,), 0, 0)])) + DATA,
    "a product past 2^64": padded(header(tensors=[tensor("x", (1 << 40, 1 << 40), 0, 0)])) + DATA,
    "a product of 2^64": padded(header(tensors=[tensor("x", (1 << 32, 1 << 32), 0, 0)])) + DATA,
    "a product past 2^64, times zero": padded(header(tensors=[tensor("x", (0, 1 << 40, 1 << 40), 0, 0)])) + DATA,
    "an unknown type": padded(header(tensors=[tensor("x", (4,), 99, 0)])) + DATA,
    "a type that is gone": padded(header(tensors=[tensor("x", (32,), 4, 0)])) + DATA,
    "rows that are no whole blocks": padded(header(tensors=[tensor("x", (2, 48), 8, 0)])) + bytes(1000),
    "a quantized scalar": padded(header(tensors=[tensor("x", (), 8, 0)])) + DATA,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.gguf").write_bytes(HOSTILE[name])
    with pytest.raises(CheckpointError, match=r"a\.gguf"):
        gguf.open(tmp_path / "a.gguf")


def test_a_type_that_is_not_read_is_named_with_its_tensor(tmp_path: Path) -> None:
    one_tensor(tmp_path / "a", bytes(66), (256,), GGMLQuantizationType.IQ2_XXS)
    with pytest.raises(CheckpointError, match='tensor "x" is IQ2_XXS'):
        gguf.open(tmp_path / "a")


def test_tensors_without_elements_and_without_dimensions(tmp_path: Path) -> None:
    head = header(tensors=[tensor("none", (0, 3), 0, 0), tensor("one", (), 0, 0), tensor("packed", (0, 32), 8, 32)])
    (tmp_path / "a").write_bytes(padded(head) + struct.pack("<f", 2.5) + bytes(28))
    tensors = gguf.open(tmp_path / "a").tensors
    assert tensors["none"].read().shape == (0, 3)
    assert tensors["packed"].read().shape == (0, 32)
    assert tensors["one"].read().item() == 2.5


def test_arrays_of_arrays(tmp_path: Path) -> None:
    nested = array(9, 2, array(5, 2, struct.pack("<2i", 1, -1)) + array(8, 1, text("a")))
    (tmp_path / "a").write_bytes(header([pair("k", 9, nested)]))
    assert gguf.open(tmp_path / "a").metadata == {"k": [[1, -1], ["a"]]}


def test_no_damage_makes_anything_but_an_error_of_ours(tmp_path: Path) -> None:
    file = written(tmp_path / "a")
    good = file.read_bytes()
    refused = 0
    for bad in damaged(good, 1000, 2):
        file.write_bytes(bad)
        try:
            for ref in gguf.open(file).tensors.values():
                assert ref.read().shape == ref.shape
        except CheckpointError:
            refused += 1
    assert refused > 500


# ---- writing --------------------------------------------------------------------------------------------------------
METADATA = {
    "k.small": 7,
    "k.large": (1 << 32) - 1,
    "k.huge": 1 << 63,
    "k.negative": -5,
    "k.real": 0.5,
    "k.flag": True,
    "k.text": "a text, ü and 🙂",
    "k.empty": "",
    "k.texts": ["", "a", "▁the"],
    "k.numbers": [1, -2, 3],
    "k.reals": [0.5, -(2.0**90), 0.0],
    "k.flags": [True, False],
    "k.none": [],
}
WRITTEN = ["F32", "F16", "BF16", *(packing.name for packing in PACKINGS.values() if packing.pack)]


def bell(*shape: int, seed: int = 0, spread: float = 0.05) -> torch.Tensor:
    """Numbers as weights are: normal, of another size in each row; some rows are zero, constant, or one-sided."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=random) * spread * torch.rand(*shape[:-1], 1, generator=random)
    rows = values.view(-1, shape[-1])
    if len(rows) > 6:
        rows[0], rows[1], rows[2] = 0, 0.25, -3
        rows[3], rows[4] = rows[3].abs(), -rows[4].abs()
        rows[5, 1:] = 0
    return values


def write(file: Path, refs: dict[str, Ref], kind: str, metadata: dict | None = None) -> None:
    gguf.write(file, metadata or {}, refs, lambda name, ref: kind)


def test_metadata_is_written_as_the_reference_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "a", {"x": Ref.of(torch.ones(3))}, "F32", METADATA)
    found = check(tmp_path / "a")
    assert found.metadata == METADATA


@pytest.mark.parametrize("kind", WRITTEN)
def test_tensors_are_written_as_the_reference_quantizes_them(tmp_path: Path, kind: str) -> None:
    values = {"matrix": bell(9, 512), "vector": bell(256), "experts": bell(3, 4, 256)}
    write(tmp_path / "a", {name: Ref.of(value) for name, value in values.items()}, kind)
    check(tmp_path / "a")
    for tensor in reference.GGUFReader(tmp_path / "a").tensors:
        assert tensor.tensor_type.name == kind
        if not kind.endswith("_K"):  # it has no quantizer of its own for these
            expected = reference.quantize(values[tensor.name].numpy(), tensor.tensor_type)
            assert np.array_equal(tensor.data, expected.reshape(tensor.data.shape))


@pytest.mark.parametrize("kind", [n for n, packing in PACKINGS.items() if packing.pack], ids=lambda n: PACKINGS[n].name)
def test_what_is_packed_is_near_what_was_given(kind: int) -> None:
    """Off by no more than a step of the grid in each block: its range, in as many steps as there are bits."""
    packing = PACKINGS[kind]
    values = bell(4000, packing.values, spread=1.0)
    found = packing.expand(packing.pack(values))
    reach = values.amax(1).clamp(min=0) - values.amin(1).clamp(max=0)
    assert ((found - values).abs().amax(1) <= reach * STEP[packing.name]).all()
    assert found[0].abs().max() == 0


STEP = {"Q4_0": 1 / 8, "Q4_1": 1 / 14, "Q5_0": 1 / 16, "Q5_1": 1 / 30, "Q8_0": 1 / 127}
STEP |= {"Q4_K": 1 / 10, "Q5_K": 1 / 20, "Q6_K": 1 / 30}


@pytest.mark.parametrize(
    ("fine", "coarse", "least"), [("Q4_K", "Q4_0", 1.1), ("Q5_K", "Q5_0", 1.1), ("Q6_K", "Q5_K", 1.9)]
)
def test_the_search_for_scales_is_worth_its_time(fine: str, coarse: str, least: float) -> None:
    """Root mean square errors on normally distributed weights, compared."""
    by_name = {packing.name: packing for packing in PACKINGS.values()}
    values = torch.randn(2000, 256, generator=torch.Generator().manual_seed(0))

    def error(name: str) -> float:
        packing = by_name[name]
        rows = values.view(-1, packing.values)
        return (packing.expand(packing.pack(rows)) - rows).square().mean().sqrt().item()

    assert error(coarse) / error(fine) > least


def test_a_large_tensor_is_quantized_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lathe.weights.tensors.PIECE", 512)
    asked = []
    values = bell(40, 256)

    def fetch(box: tuple[slice, ...]) -> torch.Tensor:
        asked.append((box[0].stop - box[0].start) * 256)
        return values[box]

    write(tmp_path / "a", {"x": Ref((40, 256), torch.float32, fetch)}, "Q8_0")
    assert max(asked) == 512
    check(tmp_path / "a")
    whole = reference.quantize(values.numpy(), GGMLQuantizationType.Q8_0)
    assert np.array_equal(reference.GGUFReader(tmp_path / "a").tensors[0].data, whole)


@pytest.mark.parametrize(("kind", "value"), [("F16", 1e5), ("Q8_0", float("nan")), ("Q4_K", float("inf"))])
def test_numbers_that_a_type_cannot_hold_are_an_error(tmp_path: Path, kind: str, value: float) -> None:
    values = torch.ones(2, 256)
    values[1, 3] = value
    with pytest.raises(CheckpointError, match=rf"the\.tensor holds .*which {kind} cannot hold"):
        write(tmp_path / "a", {"the.tensor": Ref.of(values)}, kind)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
@pytest.mark.parametrize("shape", [(2, 48), ()])
def test_rows_that_are_no_whole_blocks_are_an_error(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"the\.tensor .*whole blocks"):
        write(tmp_path / "a", {"the.tensor": Ref.of(torch.ones(shape))}, kind)
    assert not (tmp_path / "a").exists()


def test_any_float_is_written(tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        values = bell(2, 32, spread=1.0).to(dtype)
        write(tmp_path / "a", {"x": Ref.of(values)}, "Q8_0")
        expected = reference.quantize(values.float().numpy(), GGMLQuantizationType.Q8_0)
        assert np.array_equal(reference.GGUFReader(tmp_path / "a").tensors[0].data, expected)


# ---- files in parts -------------------------------------------------------------------------------------------------
def cut(folder: Path, name: str = "model") -> list[Path]:
    """Five tensors in three files, as the reference writes them."""
    writer = GGUFWriter(folder / f"{name}.gguf", "llama", split_max_tensors=2)
    writer.add_token_list(["a", "b"])
    for n in range(5):
        writer.add_tensor(f"t{n}", np.full((2, 3), n, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{name}-*.gguf"))


@pytest.mark.parametrize("part", range(3))
def test_a_file_in_parts_is_one_by_any_of_its_names(tmp_path: Path, part: int) -> None:
    files = cut(tmp_path)
    assert [file.name for file in files] == [f"model-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    found = gguf.whole(files[part])
    assert found.metadata["tokenizer.ggml.tokens"] == ["a", "b"]
    assert not [key for key in found.metadata if key.startswith("split.")]
    assert [ref.read().mean().item() for ref in found.tensors.values()] == [0, 1, 2, 3, 4]


def test_models_in_a_folder_are_counted_once_each(tmp_path: Path) -> None:
    files = [*cut(tmp_path), *cut(tmp_path, "other"), written(tmp_path / "single.gguf")]
    names = ["model-00001-of-00003.gguf", "other-00001-of-00003.gguf", "single.gguf"]
    assert [file.name for file in gguf.models(files)] == names


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    files = cut(tmp_path)
    files[1].unlink()
    with pytest.raises(MissingError, match=r"model-00002-of-00003\.gguf, 1 of 3 parts"):
        gguf.whole(files[0])


def test_parts_of_two_models(tmp_path: Path) -> None:
    ours, theirs = cut(tmp_path), cut(tmp_path, "other")
    theirs[0].replace(ours[1])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.gguf is not part 2 of 3"):
        gguf.whole(ours[0])


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    files = cut(tmp_path)
    content = bytearray(files[1].read_bytes())
    at = content.index(b"t2")
    content[at : at + 2] = b"t0"
    files[1].write_bytes(content)
    with pytest.raises(CheckpointError, match=r"t0 in .*model-00002-of-00003\.gguf also stands"):
        gguf.whole(files[0])


@pytest.mark.parametrize(("kind", "count"), [(8, text("3")), (12, struct.pack("<d", 3.0)), (10, bytes(7) + b"\x40")])
def test_a_count_of_parts_that_is_none(tmp_path: Path, kind: int, count: bytes) -> None:
    (tmp_path / "a-00001-of-00003.gguf").write_bytes(header([pair("split.count", kind, count)]))
    with pytest.raises(CheckpointError, match="its name does not say which"):
        gguf.whole(tmp_path / "a-00001-of-00003.gguf")


def test_a_part_under_another_name(tmp_path: Path) -> None:
    files = cut(tmp_path)
    files[1].rename(tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError, match=r"renamed\.gguf is one of 3 parts"):
        gguf.whole(tmp_path / "renamed.gguf")
