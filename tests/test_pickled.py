"""The safe reader of PyTorch checkpoints against torch.save and torch.load; payloads, shown to be real, are refused."""

from __future__ import annotations

import builtins
import collections
import copyreg
import io
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import damaged, draw_box, random_tensor, same_bits

from lathe.errors import CheckpointError, UnsafeError
from lathe.weights import pickled
from lathe.weights.storage import DTYPES
from lathe.weights.tensors import Ref

LAYOUTS: dict[str, dict[str, Any]] = {
    "zip": {},
    "zip, protocol 3": {"pickle_protocol": 3},
    "zip, protocol 4": {"pickle_protocol": 4},
    "zip, protocol 5": {"pickle_protocol": 5},
    "row": {"_use_new_zipfile_serialization": False},
}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> dict[str, Any]:
    return LAYOUTS[request.param]


def same(ours: Any, theirs: Any) -> bool:
    """Whether a tree of Refs is the tree of tensors that torch.load gives, strides included."""
    if isinstance(theirs, torch.Tensor):
        return isinstance(ours, Ref) and same_bits(ours.read(), theirs) and ours.read().stride() == theirs.stride()
    if isinstance(theirs, dict):
        return type(ours) is dict and list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return type(ours) is type(theirs) and ours == theirs


def trained() -> dict[str, Any]:
    """What pretraining saves: a state dict, the optimizer's, counters."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3)).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4).bfloat16()).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": 7, "step_count": 3}


# ---- what torch.save writes -----------------------------------------------------------------------------------------


def test_a_training_state(tmp_path: Path, layout: dict[str, Any]) -> None:
    file = tmp_path / "lit_model.pth"
    torch.save(trained(), file, **layout)
    tree = pickled.open(file)
    assert same(tree, torch.load(file, weights_only=False))
    assert tree["model"]["0.weight"].source == f'"0.weight" in {file}'


def test_everything_else_a_tree_may_hold(tmp_path: Path, layout: dict[str, Any]) -> None:
    parameter, tensor = torch.nn.Parameter(torch.ones(3)), torch.ones(2)
    parameter.note, tensor.note = "attributes", "are dropped"
    tree = {
        "plain": torch.nn.Parameter(torch.ones(2, 2)),
        "parameter": parameter,
        "tensor": tensor,
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.0),
        "values": [
            1,
            -5,
            300,
            70_000,
            1 << 40,
            2.5,
            True,
            None,
            "text",
            "ü",
            (),
            (1,),
            (1, 2),
            (1, 2, 3),
            (1, 2, 3, 4),
        ],
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        3: collections.OrderedDict(a=1),
    }
    torch.save(tree, tmp_path / "a", **layout)
    ours = pickled.open(tmp_path / "a")
    theirs = torch.load(tmp_path / "a", weights_only=False)
    assert same(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = random_tensor((3, 5), dtype, 0)
    torch.save({"a": tensor[1:]}, tmp_path / "a")
    assert same_bits(pickled.open(tmp_path / "a")["a"].read(), tensor[1:])


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_any_stride_and_offset_and_any_box_of_it(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4).map(tuple))
    stride = [data.draw(st.integers(0, 5)) for _ in shape]
    tensor = torch.arange(100.0).as_strided(shape, stride, data.draw(st.integers(0, 5)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a"
        torch.save([tensor], file, _use_new_zipfile_serialization=data.draw(st.booleans()))
        (ref,) = pickled.open(file)
        assert same_bits(ref.read(), tensor)
        box = draw_box(data, ref.shape)
        assert same_bits(ref.fetch(box), tensor[box])


LITGPT = [
    "models/stories260K-litgpt/lit_model.pth",
    "formats/litgpt-lora-finetune/final/lit_model.pth",
    "formats/litgpt-lora-finetune/final/lit_model.pth.lora",
]


@pytest.mark.parametrize("name", LITGPT)
def test_what_litgpt_wrote(shared: Path, name: str) -> None:
    file = shared / "data" / name
    assert same(pickled.open(file), torch.load(file))


def test_shared_storages_and_views_of_the_mapped_file(tmp_path: Path) -> None:
    weight = torch.arange(12.0).view(3, 4)
    torch.save({"embed": weight, "head": weight, "row": weight[1]}, tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    tree = pickled.open(tmp_path / "a")
    embed, head, row = (tree[name].read() for name in ("embed", "head", "row"))
    assert embed.data_ptr() == head.data_ptr() == row.data_ptr() - 16
    embed.zero_()
    assert row.sum() == 0
    assert (tmp_path / "a").read_bytes() == before


def test_opening_maps_nothing(tmp_path: Path, layout: dict[str, Any]) -> None:
    torch.save(trained(), tmp_path / "a", **layout)
    tree = pickled.open(tmp_path / "a")
    (tmp_path / "a").unlink()
    with pytest.raises(FileNotFoundError):
        tree["model"]["0.weight"].read()


def test_tensors_of_another_device(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3.0)}, tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a") as archive:
        program = archive.read("a/data.pkl")
    gpu = program.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:7")
    assert gpu != program
    repack(tmp_path / "a", program=gpu)
    assert pickled.open(tmp_path / "a")["a"].read().tolist() == [0, 1, 2]


# ---- archives -------------------------------------------------------------------------------------------------------


def repack(file: Path, program: bytes | None = None, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> None:
    """Write a checkpoint's archive again by Python's own library, which aligns nothing."""
    with zipfile.ZipFile(file) as archive:
        old = {info.filename: archive.read(info) for info in archive.infolist()}
        root = next(iter(old)).split("/")[0]
    changed = {f"{root}/{name}": data for name, data in entries.items()}
    if program is not None:
        changed[f"{root}/data.pkl"] = program
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in (old | changed).items():
            archive.writestr(name, data)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_packed_again(tmp_path: Path, compression: int) -> None:
    file, tree = tmp_path / "a", trained() | {"byte": torch.ones(1, dtype=torch.uint8)}
    torch.save(tree, file)
    repack(file, compression=compression)
    assert same(pickled.open(file), tree)


def saved(file: Path) -> Path:
    torch.save({"a": torch.zeros(100)}, file)
    return file


def test_a_big_endian_archive_is_refused(tmp_path: Path) -> None:
    repack(saved(tmp_path / "a"), byteorder=b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        pickled.open(tmp_path / "a")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a/data.pkl", "b/data.pkl", "a/data/0"])
def test_an_archive_that_can_be_read_in_two_ways(tmp_path: Path, second: str) -> None:
    with zipfile.ZipFile(saved(tmp_path / "a"), "a") as archive:
        archive.writestr(second, b"N.")
    with pytest.raises(CheckpointError, match=r"one data\.pkl"):
        pickled.open(tmp_path / "a")


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("readme.txt", b"hello")
    with pytest.raises(CheckpointError, match=r"one data\.pkl"):
        pickled.open(tmp_path / "a")


def test_an_entry_that_lies_about_its_size(tmp_path: Path) -> None:
    file = saved(tmp_path / "a")
    for size in (1 << 40, 404, 396):
        program = tensor_program(("storage", torch.FloatStorage, "0", "cpu", size // 4), 0, (size // 4,), (1,))
        repack(file, program, zipfile.ZIP_DEFLATED)
        with zipfile.ZipFile(file, "a") as archive:
            archive.getinfo("a/data/0").file_size = size
            archive._didModify = True  # have the directory written again
        with pytest.raises(CheckpointError, match=r"storage 0|data/0"):
            pickled.open(file).read()


def test_a_program_that_unpacks_to_no_end(tmp_path: Path) -> None:
    repack(saved(tmp_path / "a"), bytes(40 << 20), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "a").stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="longer than"):
        pickled.open(tmp_path / "a")


def test_a_program_packed_by_another_method(tmp_path: Path) -> None:
    repack(saved(tmp_path / "a"), compression=zipfile.ZIP_LZMA)
    with pytest.raises(CheckpointError, match="compressed"):
        pickled.open(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\3\4" + bytes(100), b"<!DOCTYPE html>", b"\x80\x02}."])
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        pickled.open(tmp_path / "a.pth")


# ---- payloads -------------------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.function, self.args


def by_load_from_bytes(marker: Path) -> bytes:
    """A name inside torch that unpickles anything: the hole that a careless list of allowed names has."""
    inner = io.BytesIO()
    torch.save(Calls(os.system, f"touch {marker}"), inner)
    return pickle.dumps(Calls(torch.storage._load_from_bytes, inner.getvalue()), 2)


def by_extension(marker: Path) -> bytes:
    return b"\x80\x02\x82\xc8X" + len(f"touch {marker}").to_bytes(4, "little") + f"touch {marker}".encode() + b"\x85R."


PAYLOADS: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda marker: pickle.dumps(Calls(os.system, f"touch {marker}"), 2),
    "by two strings": lambda marker: pickle.dumps(Calls(os.system, f"touch {marker}"), 4),
    "eval": lambda marker: pickle.dumps(Calls(builtins.eval, f"open({str(marker)!r}, 'w').close()"), 2),
    "inside a state dict": lambda marker: pickle.dumps({"a.weight": [Calls(os.system, f"touch {marker}")]}, 2),
    "as an OrderedDict's attributes": lambda marker: (
        b"\x80\x02ccollections\nOrderedDict\n)R"
        + pickle.dumps({"x": Calls(os.system, f"touch {marker}")}, 2)[2:-1]
        + b"b."
    ),
    "text protocol": lambda marker: f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode(),
    "INST": lambda marker: f"(Vtouch {marker}\niposix\nsystem\n.".encode(),
    "OBJ": lambda marker: f"(cposix\nsystem\nVtouch {marker}\no.".encode(),
    "getattr": lambda marker: (
        b"cbuiltins\ngetattr\n(cos\npath\nVos\ntRp0\n0"
        + f"cbuiltins\ngetattr\n(g0\nVsystem\ntR(Vtouch {marker}\ntR.".encode()
    ),
    "torch.storage._load_from_bytes": by_load_from_bytes,
    "an extension code": by_extension,
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("where", ["zip", "row"])
def test_a_payload_is_refused_and_not_run(tmp_path: Path, name: str, where: str) -> None:
    marker, file = tmp_path / "marker", tmp_path / "model.pth"
    program = PAYLOADS[name](marker)
    if where == "zip":
        repack(saved(file), program)
    else:
        torch.save({}, file, _use_new_zipfile_serialization=False)
        file.write_bytes(file.read_bytes().replace(b"\x80\x02}q\x00.\x80\x02]q\x00.", program + b"\x80\x02]q\x00."))
        assert program in file.read_bytes()
    copyreg.add_extension("posix", "system", 200)
    try:
        with pytest.raises(UnsafeError, match="nothing of it was run") as refusal:
            pickled.open(file)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(file, weights_only=True)
        assert not marker.exists()
        pickle.loads(program)
        assert marker.exists(), "the payload of this test does nothing: it proves nothing"
    finally:
        copyreg.remove_extension("posix", "system", 200)
    assert str(file) in str(refusal.value)
    if name in ("os.system", "by two strings", "text protocol", "OBJ"):
        assert "system" in str(refusal.value)
    if name == "torch.storage._load_from_bytes":
        assert name in str(refusal.value)


NAMES_REFUSED = ["torch.load", "torch.hub.load", "torch._utils._rebuild_tensor_v2.__globals__", "collections.Counter"]


@pytest.mark.parametrize("name", NAMES_REFUSED)
def test_a_name_beside_the_allowed_ones_is_refused_by_name(tmp_path: Path, name: str) -> None:
    module, _, last = name.partition("_utils.") if "_utils" in name else name.rpartition(".")
    module = "torch._utils" if "_utils" in name else module
    repack(saved(tmp_path / "a"), f"c{module}\n{last}\n.".encode())
    with pytest.raises(UnsafeError, match=name):
        pickled.open(tmp_path / "a")


# ---- programs that make no sense ------------------------------------------------------------------------------------

TENSOR, ORDERED = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"
TYPED = b"ctorch._tensor\n_rebuild_from_type_v2\n"
DEEP = b")q\0" + b"".join(b"h\0h\0\x86q\0" for _ in range(100))  # each a pair of the one before: 2^100 leaves

PROGRAMS = {
    "nothing": b"",
    "no end": b"}q\0",
    "an end without a value": b".",
    "an instruction there is not": b"\xff.",
    "a call without arguments": TENSOR + b")R.",
    "a call with no tuple": TENSOR + b"K\1R.",
    "a call of a number": b"K\1)R.",
    "a call of a dict": b"})R.",
    "a tensor of numbers": TENSOR + b"(K\1K\2K\3K\4\x89}tR.",
    "a parameter of a number": b"ctorch._utils\n_rebuild_parameter\nK\1\x89}\x87R.",
    "a tensor of a type, of nothing": TYPED + b")R.",
    "a tensor of a type, by OrderedDict": TYPED + b"(" + ORDERED + b"ctorch\nTensor\n)}tR.",
    "an OrderedDict of something": ORDERED + b"K\1\x85R.",
    "a size of nothing": b"ctorch\nSize\n)R.",
    "attributes for a function": TENSOR + b"}X\4\0\0\0callNsb.",
    "attributes for a list": b"]}b.",
    "attributes for nothing": b"}b.",
    "a persistent number": b"K\1Q.",
    "a persistent tuple of too few": b"X\7\0\0\0storage\x85Q.",
    "a persistent list": b"]Q.",
    "an item for a dict": b"}K\1a.",
    "items for a tuple": b")(K\1e.",
    "an entry for a list": b"]K\1K\1s.",
    "an odd number of entries": b"}(K\1u.",
    "a list as a key": b"}]K\1s.",
    "a float as a key": b"}G\x3f\xf0\0\0\0\0\0\0K\1s.",
    "a key of 2000 bits": b"}\x8a\xfa" + b"\x7f" * 250 + b"K\1s.",
    "a tuple of 2^100 parts as a key": b"}" + DEEP + b"K\1s.",
    "what is not in the memo": b"h\5.",
    "a mark that is not there": b"K\1t.",
    "a name that is a number": b"K\1K\2\x93.",
    "a text that is not UTF-8": b"X\2\0\0\0\xff\xff.",
    "bytes of 2^60": b"\x8e" + (1 << 60).to_bytes(8, "little") + b".",
    "a text of 2^32": b"X\xff\xff\xff\xff.",
    "a number of 2^31 bytes": b"\x8b\xff\xff\xff\x7f.",
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_makes_no_sense_is_an_error(tmp_path: Path, name: str) -> None:
    repack(saved(tmp_path / "a"), PROGRAMS[name])
    with pytest.raises(CheckpointError):
        pickled.open(tmp_path / "a")


COSTLY = {
    "the memo's last place, for which pickle makes 4,294,967,295 others": b"K\1r\xff\xff\xff\xff.",
    "a frame of 2^64 bytes": b"\x80\x04\x95" + b"\xff" * 8 + b"K\1.",
    "a list in a list, 300,000 deep": b"K\1" + b"]" * 300_000 + b"a" * 299_999 + b"\x85q\0\x86q\0K\1.",
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_program_that_would_cost_pickle_dear_costs_nothing(tmp_path: Path, name: str) -> None:
    repack(saved(tmp_path / "a"), COSTLY[name])
    assert pickled.open(tmp_path / "a") == 1


def tensor_program(pid: object, offset: object, size: object, stride: object) -> bytes:
    """The program of one tensor, with anything at all in its places."""

    class Storage: ...

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return pid if isinstance(obj, Storage) else None

    out = io.BytesIO()
    args = (Storage(), offset, size, stride, False, collections.OrderedDict())
    Pickler(out, 2).dump(Calls(torch._utils._rebuild_tensor_v2, *args))
    return out.getvalue()


FLOATS = ("storage", torch.FloatStorage, "0", "cpu", 100)
LYING: dict[str, tuple[object, object, object, object]] = {
    "more elements than its storage": (FLOATS, 0, (101,), (1,)),
    "an offset too far": (FLOATS, 1, (100,), (1,)),
    "a stride too long": (FLOATS, 0, (2, 50), (51, 1)),
    "a product past 2^64": (FLOATS, 0, (1 << 32, 1 << 32), (0, 0)),
    "a size past 2^64": (FLOATS, 0, (1 << 70,), (0,)),
    "a negative size": (FLOATS, 0, (-1,), (1,)),
    "a negative offset": (FLOATS, -1, (1,), (1,)),
    "a negative stride": (FLOATS, 99, (100,), (-1,)),
    "fewer strides than sizes": (FLOATS, 0, (10, 10), (1,)),
    "a hundred dimensions": (FLOATS, 0, (1,) * 100, (1,) * 100),
    "a size that is text": (FLOATS, 0, ("1",), (1,)),
    "a size that is a list": (FLOATS, 0, [1], (1,)),
    "an offset that is a float": (FLOATS, 0.5, (1,), (1,)),
    "a storage longer than its bytes": ((*FLOATS[:4], 101), 0, (1,), (1,)),
    "a storage shorter than its bytes": ((*FLOATS[:4], 99), 0, (1,), (1,)),
    "a storage of 2^70": ((*FLOATS[:4], 1 << 70), 0, (1,), (1,)),
    "a storage of -1": ((*FLOATS[:4], -1), 0, (1,), (1,)),
    "a storage that is not there": (("storage", torch.FloatStorage, "1", "cpu", 100), 0, (1,), (1,)),
    "a storage outside": (("storage", torch.FloatStorage, "../byteorder", "cpu", 100), 0, (1,), (1,)),
    "a storage of no class": (("storage", "FloatStorage", "0", "cpu", 100), 0, (1,), (1,)),
    "a part of a storage": ((*FLOATS, ("0", 0, 10)), 0, (1,), (1,)),
    "a storage with more to it": ((*FLOATS, *[None] * 1000), 0, (1,), (1,)),
    "a module": (("module", torch.FloatStorage, "0", "cpu", 100), 0, (1,), (1,)),
}


@pytest.mark.parametrize("name", LYING)
def test_a_tensor_that_lies_is_an_error(tmp_path: Path, name: str) -> None:
    repack(saved(tmp_path / "a"), tensor_program(*LYING[name]))
    with pytest.raises(CheckpointError):
        pickled.open(tmp_path / "a")


# ---- damage ---------------------------------------------------------------------------------------------------------


def small(file: Path, **options: Any) -> bytes:
    torch.save({"model": {"a": torch.rand(3, 2), "b": torch.rand(5).half()[1:]}, "step": 3}, file, **options)
    return file.read_bytes()


def read_all(file: Path) -> None:
    tree = pickled.open(file)
    for branch in (tree, *tree.values()) if type(tree) is dict else ():
        for ref in branch.values() if type(branch) is dict else ():
            if isinstance(ref, Ref):
                assert ref.read().shape == ref.shape


@pytest.mark.parametrize("where", ["zip", "deflated", "row", "program"])
def test_no_damage_makes_anything_but_an_error_of_ours(tmp_path: Path, where: str) -> None:
    file = tmp_path / "a"
    good = small(file, _use_new_zipfile_serialization=where != "row")
    if where == "deflated":
        repack(file, compression=zipfile.ZIP_DEFLATED)
        good = file.read_bytes()
    write: Callable[[bytes], object] = file.write_bytes
    if where == "program":
        with zipfile.ZipFile(file) as archive:
            good = archive.read("a/data.pkl")
        write = partial(repack, file)
    refused = 0
    for bad in damaged(good, 1000, 1):
        write(bad)
        try:
            read_all(file)
        except CheckpointError:
            refused += 1
    assert refused > 500


# ---- writing --------------------------------------------------------------------------------------------------------
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_we_write_torch_load_reads(data):
    """Names, order, types, shapes and every bit; safely, mapped or not; and we read it too."""
    kinds = st.sampled_from(DTYPES)
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    names = data.draw(st.lists(st.text(max_size=8), max_size=6, unique=True))
    tensors = {name: random_tensor(data.draw(shapes), data.draw(kinds), n) for n, name in enumerate(names)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pth"
        pickled.write(path, {name: Ref.of(tensor) for name, tensor in tensors.items()})
        for mapped in (False, True):
            loaded = torch.load(path, weights_only=True, mmap=mapped)
            assert list(loaded) == names
            assert all(same_bits(loaded[name], tensor) for name, tensor in tensors.items())
        assert same(pickled.open(path), loaded)


def test_one_tensor_under_two_names_is_written_once(tmp_path):
    one, turned = Ref.of(torch.randn(300, 200)), Ref.of(torch.randn(7, 5).T)
    pickled.write(tmp_path / "x.pth", {"a": one, "b": turned, "c": one})
    assert (tmp_path / "x.pth").stat().st_size < one.nbytes * 1.1
    loaded = torch.load(tmp_path / "x.pth", weights_only=True)
    assert loaded["a"].data_ptr() == loaded["c"].data_ptr()
    assert torch.equal(loaded["b"], turned.read())


def test_what_we_write_is_aligned_and_the_same_each_time(tmp_path):
    tensors = {f"layer.{n}": Ref.of(torch.randn(n + 1, 3).to(kind)) for n, kind in enumerate(DTYPES[:4])}
    for name in ("x", "y"):
        pickled.write(tmp_path / name, tensors)
    loaded = torch.load(tmp_path / "x", weights_only=True, mmap=True)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.values())
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_large_tensor_is_written_in_pieces(tmp_path):
    """Only some rows at a time are asked for, and what comes of them is the whole."""
    whole, asked = torch.arange(3 << 24).view(3, -1), []

    def fetch(box: Any) -> torch.Tensor:
        asked.append(box[0].stop - box[0].start)
        return whole[box]

    pickled.write(tmp_path / "x", {"a": Ref(tuple(whole.shape), whole.dtype, fetch)})
    assert asked == [1, 1, 1]
    assert torch.equal(torch.load(tmp_path / "x", mmap=True)["a"], whole)
