"""What torch.save names in its pickle programs: storages, and the functions that make tensors of them; here, Refs.

It knows no file: a storage says how to get its bytes. Nothing that a program chose is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lathe.weights.program import Function
from lathe.weights.safetensors import view
from lathe.weights.tensors import Box, Ref, possible

KINDS = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
DTYPES = (
    *KINDS.values(),
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)


@dataclass(frozen=True)
class Kind:
    """The class of a storage: the dtype of the elements it counts."""

    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Storage:
    """Bytes that tensors lie in; `data()` gives them as uint8, mapped where the file allows it."""

    dtype: torch.dtype
    nbytes: int
    data: Callable[[], Tensor]


Locate = Callable[[str, int], Callable[[], Tensor]]  # a storage's key and how many bytes it has -> how to get them


def storage(pid: Any, locate: Locate) -> Storage:
    """The storage that a persistent id of torch.save means; its device is not asked for.

    LitGPT's converter wrote numbers for keys.

    Raises:
        ValueError: the id is not one of a whole storage.
    """
    if type(pid) is tuple and len(pid) == 6 and pid[5] is None:
        pid = pid[:5]  # in the older layout: not a part of another storage
    match pid:
        case ("storage", Kind(dtype), str() | int() as key, str(), count) if _whole(count):
            nbytes = count * dtype.itemsize
            return Storage(dtype, nbytes, locate(str(key), nbytes))
    raise ValueError("a persistent id that is not a storage's")


def _whole(n: Any) -> bool:
    return type(n) is int and 0 <= n < 1 << 62


def _tensor(storage: Storage, dtype: torch.dtype, offset: Any, size: tuple, stride: tuple) -> Ref:
    """A Ref to the elements of a storage at `offset` + index * stride."""
    if not (possible(size) and len(size) == len(stride) and all(map(_whole, (offset, *stride)))):
        raise ValueError("a tensor of no possible shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if all(size) and last >= storage.nbytes // dtype.itemsize:
        raise ValueError(f"a tensor that reaches to element {last} of a storage with {storage.nbytes} bytes")

    def fetch(box: Box) -> Tensor:
        lengths = [part.stop - part.start for part in box]
        if not all(lengths):
            return torch.empty(lengths, dtype=dtype)
        first = offset + sum(part.start * step for part, step in zip(box, stride, strict=True))
        span = 1 + sum((n - 1) * step for n, step in zip(lengths, stride, strict=True))
        return view(storage.data(), first * dtype.itemsize, dtype, (span,)).as_strided(lengths, stride)

    return Ref(size, dtype, fetch)


def _tensor_v2(args: tuple) -> Ref:
    match args:
        case (Storage() as storage, offset, tuple(size), tuple(stride), bool(), dict()):
            return _tensor(storage, storage.dtype, offset, size, stride)
    raise ValueError("a tensor not described as torch.save does")


def _tensor_v3(args: tuple) -> Ref:
    match args:
        case (Storage() as storage, offset, tuple(size), tuple(stride), bool(), dict(), torch.dtype() as dtype):
            return _tensor(storage, dtype, offset, size, stride)
    raise ValueError("a tensor not described as torch.save does")


def _parameter(args: tuple) -> Ref:
    match args:
        case (Ref() as data, bool(), dict()) | (Ref() as data, bool(), dict(), _):  # the last: Python attributes
            return data
    raise ValueError("a parameter not described as torch.save does")


def _with_attributes(args: tuple) -> Ref:
    """A tensor with Python attributes: the function that builds it, its class, that function's arguments, they."""
    match args:
        case (Function(call=build), "Tensor" | "Parameter", tuple(inner), _) if build in (_tensor_v2, _tensor_v3):
            return build(inner)
    raise ValueError("a tensor not described as torch.save does")


def _ordered(args: tuple) -> dict:
    if args:
        raise ValueError("an OrderedDict that is not made empty")
    return {}


def _size(args: tuple) -> tuple:
    match args:
        case (tuple(size),):
            return size
    raise ValueError("a size that is no tuple")


NAMES: dict[str, Any] = {
    "collections.OrderedDict": Function(_ordered),
    "torch.Size": Function(_size),
    "torch._utils._rebuild_tensor_v2": Function(_tensor_v2),
    "torch._utils._rebuild_tensor_v3": Function(_tensor_v3),
    "torch._utils._rebuild_parameter": Function(_parameter),
    "torch._utils._rebuild_parameter_with_state": Function(_parameter),
    "torch._tensor._rebuild_from_type_v2": Function(_with_attributes),
    "torch._tensor.Tensor": "Tensor",
    "torch.Tensor": "Tensor",
    "torch.nn.parameter.Parameter": "Parameter",
    "torch.storage.UntypedStorage": Kind(torch.uint8),
    **{f"torch.{name}": Kind(dtype) for name, dtype in KINDS.items()},
    **{str(dtype): dtype for dtype in DTYPES},
}
