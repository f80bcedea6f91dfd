"""A PyTorch checkpoint (lit_model.pth, pytorch_model.bin, *.ckpt) becomes the tree it holds, each tensor in it a Ref.

Only the pickle program is read, by `program`, which can run nothing of Python's; the tensors stay in the mapped file.
Both layouts of torch.save: a zip archive, and the older row of pickles. It does not know what the tree means.
https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.weights import beside
from lathe.weights.pickling import write
from lathe.weights.program import run
from lathe.weights.safetensors import mapped
from lathe.weights.storage import NAMES, Locate, storage
from lathe.weights.tensors import Ref
from lathe.weights.window import window

__all__ = ["open", "part", "write"]

MAX_PROGRAM = 32 << 20  # bytes, some 250,000 tensors: it bounds the time and memory that a hostile program can take
MAX_DEFLATE = 1032  # no deflated byte stands for more bytes than this: an entry that claims more is lying
OLD_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # in the first pickle of the older layout

# All that zipfile raises when it meets damage: OSError where a directory sends it before the file's beginning.
UNZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError)


def open(path: Path) -> Any:
    """What torch.save put into the file, with a Ref for every tensor, and dict for OrderedDict. Reads no tensor.

    A tensor saved on any device is read on the CPU, with the stride and offset it had; shared storages stay shared.
    What else the tree may hold is said at `program.run`. The zip's check sums of tensors are not verified.

    Raises:
        UnsafeError: the file wants something called or imported that no plain checkpoint does.
        CheckpointError: the file is damaged or cut short, or a tensor does not lie inside its storage.
    """
    with path.open("rb") as file:
        start = file.read(16)
        file.seek(0)
        if start[:2] == b"PK":
            return _named(_archive(path, file, cache(partial(mapped, path))), path)
        if OLD_MAGIC in start:
            return _named(_row(path, file), path)
    raise CheckpointError(
        f"{path} is not a PyTorch checkpoint: it is no zip archive and does not begin as torch.save's older files do.",
        fix="Download or copy it again, or check that it is the file you meant.",
    )


def _named(tree: Any, path: Path) -> Any:
    """The tree, its Refs told their names: those of a flat state dict, and of state dicts one level down."""
    for branch in (tree, *tree.values()) if type(tree) is dict else ():
        for name, value in branch.items() if type(branch) is dict else ():
            if isinstance(value, Ref):
                branch[name] = replace(value, source=f'"{name}" in {path}')
    return tree


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a whole PyTorch checkpoint: {why}.", fix="Download or copy it again.")


def _foreign(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} was saved on a big-endian machine; only little-endian checkpoints are read.",
        fix="Load it with torch.load and save it again with torch.save, on any usual machine.",
    )


def part(path: Path, begin: int, length: int, whole: Callable[[], Tensor]) -> Any:
    """The same of what torch.save put into a part of a larger file, `length` bytes from byte `begin` on, as a zip.

    whole: how to get all the file's bytes, mapped.
    """
    with window(path, begin, length) as file:
        return _archive(path, file, whole, begin)


def _load(program: BytesIO, locate: Locate, path: Path) -> Any:
    return run(program, {**NAMES, **beside.NAMES}, lambda pid: storage(pid, locate), path)


def _archive(path: Path, file: IO[bytes], whole: Callable[[], Tensor], base: int = 0) -> Any:
    """The layout since PyTorch 1.6: NAME/data.pkl is the program, NAME/data/KEY the bytes of each storage.

    base: where in the file at `path` the archive begins, which `file` is.
    """
    try:
        size = file.seek(0, os.SEEK_END)
        archive = zipfile.ZipFile(file)
        entries = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1 or len(entries) != len(archive.infolist()):
            raise ValueError("it should hold one data.pkl, and every name once")
        root = roots[0]
        program = _text(archive, f"{root}/data.pkl")
        order = _text(archive, f"{root}/byteorder") if f"{root}/byteorder" in entries else b"little"
    except UNZIP_ERRORS as error:
        raise _damaged(path, f"its zip archive cannot be read ({error})") from error
    if order == b"big":
        raise _foreign(path)

    @cache
    def locate(key: str, nbytes: int) -> Callable[[], Tensor]:
        info = entries.get(f"{root}/data/{key}")
        if info is None or info.file_size != nbytes:
            holds = "is not in the archive" if info is None else f"holds {info.file_size}"
            raise _damaged(path, f"storage {key} should hold {nbytes} bytes and {holds}")
        if info.compress_type == zipfile.ZIP_DEFLATED and nbytes <= info.compress_size * MAX_DEFLATE:
            return partial(_unpacked, path, base, size, info)
        begin = _begin(file, info)
        if begin is None or begin + nbytes > size:
            raise _damaged(path, f"storage {key} does not lie where the archive's directory says")
        return lambda: whole()[base + begin : base + begin + nbytes]

    return _load(BytesIO(program), locate, path)


def _text(archive: zipfile.ZipFile, name: str) -> bytes:
    """A small entry, its check sum verified."""
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in a way that torch.save never does")
    with archive.open(name) as entry:
        text = entry.read(MAX_PROGRAM + 1)
    if len(text) > MAX_PROGRAM:
        raise ValueError(f"{name} is longer than {MAX_PROGRAM} bytes")
    return text


def _begin(file: IO[bytes], info: zipfile.ZipInfo) -> int | None:
    """Where the bytes of a stored entry begin: behind its own header, which need not be as long as the directory's."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.header_offset < 0:
        return None
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        return None
    name, extra = struct.unpack("<HH", header[26:])
    return info.header_offset + 30 + name + extra


def _unpacked(path: Path, base: int, size: int, info: zipfile.ZipInfo) -> Tensor:
    """The bytes of a compressed storage: torch.save never compresses, but an archive may have been packed again."""
    try:
        with window(path, base, size) as file, zipfile.ZipFile(file) as archive:
            data = archive.read(info)
    except UNZIP_ERRORS as error:
        raise _damaged(path, f"{info.filename} cannot be unpacked ({error})") from error
    if len(data) != info.file_size:
        raise _damaged(path, f"{info.filename} unpacks to {len(data)} bytes, not {info.file_size}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _row(path: Path, file: IO[bytes]) -> Any:
    """The layout before PyTorch 1.6: pickles in a row, then of each storage the number of elements and the bytes."""
    program, size = BytesIO(file.read(MAX_PROGRAM)), path.stat().st_size
    sizes: dict[str, int] = {}
    begins: dict[str, int] = {}
    whole = cache(partial(mapped, path))

    def locate(key: str, nbytes: int) -> Callable[[], Tensor]:
        if sizes.setdefault(key, nbytes) != nbytes:
            raise ValueError("one storage of two sizes")
        return lambda: whole()[begins[key] : begins[key] + nbytes]

    _magic, _version, machine, tree, keys = (_load(program, locate, path) for _ in range(5))
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise _foreign(path)
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(sizes):
        raise _damaged(path, "the storages at its end are not those that its tensors lie in")
    end = program.tell()
    for key in keys:
        begins[key] = end + 8  # behind the number of elements, which the tensors told already
        end = begins[key] + sizes[key]
    if end > size:
        raise CheckpointError(
            f"{path} is cut short: its storages end at byte {end}, the file at {size}.",
            fix="Download or copy it again.",
        )
    return tree
