"""Products with codes, on every kind of processor that this machine can stand in for: those of the numbers that codes
and rounded rows stand for."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lathe.model import native
from lathe.model.native import building
from lathe.transforms.kinds import KINDS
from lathe.transforms.panels import CODES

INTEL = platform.machine() in ("x86_64", "AMD64")
PROCESSORS = {  # by which of the files sixteen_*.h is compiled: what the compiler is told, and the processor must have
    "any": ((), ()),
    **({
        "AVX2": (("-march=x86-64-v3",), ("avx2", "fma", "f16c")),
        "AVX-VNNI": (("-march=x86-64-v3", "-mavx512vl", "-mavx512vnni"), ("avx2", "avx512vl", "avx512_vnni")),
    } if INTEL else {}),
}  # fmt: skip


@pytest.fixture(scope="module", params=["this one", *PROCESSORS])
def kernels(request, tmp_path_factory) -> ctypes.CDLL:
    if request.param == "this one":
        if native.library() is None:
            pytest.skip("no C++ compiler, and so no kernels")
        return native.library()
    program, (flags, needed) = building.compiler(), PROCESSORS[request.param]
    info = Path("/proc/cpuinfo")
    if program is None or not {*needed} <= {*(info.read_text().split() if info.is_file() else ())}:
        pytest.skip("no C++ compiler, or a processor without these instructions")
    made = tmp_path_factory.mktemp("codes") / "codes.so"
    sources = [str(Path(native.__file__).parent / name) for name in ("codes.cpp", "panels.cpp")]
    # -O2 takes half as long as -O3; -Wno-psabi: these are not called by what another compiler made
    command = [program, *building.FLAGS, "-O2", "-fopenmp-simd", "-Wno-psabi", *flags, *sources, "-o", str(made)]
    subprocess.run(command, check=True)
    found = ctypes.CDLL(str(made))
    for name in ("lathe_panels", "lathe_panel_bytes", "lathe_panel_rows", "lathe_coded_product"):
        function = getattr(found, name)
        function.argtypes = [native.KINDS[letter] for letter in native.SIGNATURES[name]]
        function.restype = None
    return found


def drawn(how: str, shape: tuple[int, int]) -> list[Tensor]:
    """Parts of a matrix in which every code occurs, those that no rounding gives among them."""
    random = torch.Generator().manual_seed(shape[1])
    parts = []
    for name, part in KINDS[how].blank(torch.Size(shape)).items():
        if part.dtype.is_floating_point:
            parts.append((torch.rand(part.shape, generator=random) + 0.1).to(part.dtype))
        else:
            low, high = {"zeros": (0, 17)}.get(name, (-128, 128) if part.dtype == torch.int8 else (0, 256))
            parts.append(torch.randint(low, high, part.shape, generator=random).to(part.dtype))
    return parts


def numbers(how: str, parts: list[Tensor], inputs: int) -> Tensor:
    """What the kernels take the codes for; the values of nf4 are rounded to 127ths."""
    found = KINDS[how].unpack(parts, inputs, torch.float32).double()
    if how != "nf4":
        return found
    scales = parts[1].double().repeat_interleave(64, 1)[:, :inputs]
    return (found / scales * 127).round() / 127 * scales


def rounded(x: Tensor) -> Tensor:
    """Rows as they are multiplied: in groups of 32, whole numbers of 127ths of the largest."""
    groups = torch.nn.functional.pad(x, (0, -x.shape[1] % 32)).unflatten(1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True)
    return ((groups * (127 / largest)).round().double() * largest.double() / 127).flatten(1)[:, : x.shape[1]]


def in_panels(kernels: ctypes.CDLL, how: str, parts: list[Tensor], shape: tuple[int, int]) -> Tensor:
    size = torch.zeros(1, dtype=torch.int64)
    kernels.lathe_panel_bytes(size.data_ptr(), shape[1], CODES[how])
    panels = torch.empty(-(-shape[0] // 16) * int(size), dtype=torch.uint8)
    moved(kernels, how, parts, panels, shape, back=False)
    return panels


def moved(kernels: ctypes.CDLL, how: str, parts: list[Tensor], panels: Tensor, shape: tuple[int, int], back: bool):
    places = [part.data_ptr() for part in parts] + [None] * (3 - len(parts))
    kernels.lathe_panels(*places, panels.data_ptr(), *shape, CODES[how], back, 1)


@pytest.mark.parametrize("how", CODES)
@pytest.mark.parametrize("shape", [(5, 64), (40, 80), (49, 576), (16, 1000)])
def test_products_are_those_of_what_codes_stand_for(kernels, how, shape):
    parts = drawn(how, shape)
    panels = in_panels(kernels, how, parts, shape)
    for kind in (torch.float32, torch.bfloat16):
        x = torch.randn(70, shape[1], generator=torch.Generator().manual_seed(0)).clamp(-3.9, 3.9).to(kind)
        x[:, ::32], x[3, ::2] = 127 / 32, -127 / 32  # the largest, by which no product is rounded before it is a code
        bias, y = torch.randn(shape[0]).to(kind), torch.empty(70, shape[0], dtype=kind)
        exact = rounded(x.float()) @ numbers(how, parts, shape[1]).T + bias.double()
        for rows in (70, 7, 1):
            places = [one.data_ptr() for one in (x, panels, bias, y)]
            kernels.lathe_coded_product(*places, rows, *shape, CODES[how], native.TYPES[kind], 1)
            near = 2**-8 if kind == torch.bfloat16 else 1e-5
            torch.testing.assert_close(y[:rows].double(), exact[:rows], rtol=near, atol=1e-5 * float(exact.std()))


@pytest.mark.parametrize("how", CODES)
def test_codes_come_back_bit_for_bit(kernels, how):
    shape = (40, 96)
    parts = drawn(how, shape)
    again = [torch.empty_like(part) for part in parts]
    moved(kernels, how, again, in_panels(kernels, how, parts, shape), shape, back=True)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("how", [how for how in CODES if how != "nf4"])
@pytest.mark.parametrize("shape", [(5, 64), (49, 576), (16, 1000)])
def test_rows_are_the_numbers_that_codes_stand_for(kernels, how, shape):
    """To the last digit, for a minimum may be taken away before a product is rounded."""
    parts = drawn(how, shape)
    panels, index = in_panels(kernels, how, parts, shape), torch.tensor([shape[0] - 1, 0, 3, 3])
    for dtype in (torch.float32, torch.bfloat16):
        y = torch.empty(len(index), shape[1], dtype=dtype)
        sizes = len(index), shape[1], CODES[how], native.TYPES[dtype], 1
        kernels.lathe_panel_rows(panels.data_ptr(), index.data_ptr(), y.data_ptr(), *sizes)
        exact = KINDS[how].unpack(parts, shape[1], dtype)[index]
        near = 2 * torch.finfo(dtype).eps if KINDS[how].others else 0.0
        torch.testing.assert_close(y, exact, rtol=near, atol=near * float(exact.abs().max()))
