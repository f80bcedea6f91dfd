"""Kernels in C++: the same numbers as torch's, whatever the company of a row; built once, and anew where damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lathe.model import native
from lathe.model.native import building

HELD = """if True:
    import sys
    from pathlib import Path
    from lathe.model.native import building
    print(building.library([Path(sys.argv[1])], sys.argv[2], None, Path(sys.argv[3])))
"""


@pytest.fixture(scope="module")
def kernels():
    if building.compiler() is None:
        pytest.skip("no C++ compiler")
    found = native.library()
    assert found is not None
    return found


@pytest.fixture
def small(tmp_path) -> Path:
    """A source that is compiled soon."""
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" __attribute__((visibility("default"))) int answer() { return 42; }')
    return source


# ---- building --------------------------------------------------------------------------------------------------------
def test_a_library_is_built_once_and_anew_where_it_is_damaged_or_its_source_another(small, tmp_path):
    program = building.compiler()
    if program is None:
        pytest.skip("no C++ compiler")
    place = building.library([small], program, None, tmp_path / "kept")
    whole, made = place.read_bytes(), place.stat().st_mtime_ns
    assert building.library([small], program, None, tmp_path / "kept") == place
    assert place.stat().st_mtime_ns == made
    place.write_bytes(whole[: len(whole) // 2])
    assert building.library([small], program, None, tmp_path / "kept").read_bytes() == whole
    small.write_text(small.read_text().replace("42", "43"))
    assert building.library([small], program, None, tmp_path / "kept") != place


def test_processes_that_build_at_once_get_one_library(small, tmp_path):
    program = building.compiler()
    if program is None:
        pytest.skip("no C++ compiler")
    command = [sys.executable, "-c", HELD, str(small), program, str(tmp_path / "kept")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    places = {process.communicate()[0].strip() for process in both}
    assert len(places) == 1
    assert Path(places.pop()).is_file()
    assert not [path for path in (tmp_path / "kept").iterdir() if path.is_dir()]  # nothing half made is left


def test_a_source_that_does_not_compile_says_what_the_compiler_says(small, tmp_path):
    program = building.compiler()
    if program is None:
        pytest.skip("no C++ compiler")
    small.write_text("int wrong(")
    with pytest.raises(building.Unbuilt, match=r"answer\.cpp"):
        building.library([small], program, None, tmp_path / "kept")
    assert not [*(tmp_path / "kept").glob("*.so")]


SOURCES = sorted(map(str, Path(native.__file__).parent.glob("*.cpp")))


@pytest.mark.parametrize("program, flags", [("g++", []), ("clang++", []), ("clang++", ["-march=native"])])
def test_the_kernels_are_for_any_compiler_and_processor(program, flags):
    """Without the instructions that this one may have, they are still C++. With them g++ has built what is tested."""
    if shutil.which(program) is None:
        pytest.skip(f"no {program}")
    subprocess.run([program, "-std=c++17", "-fsyntax-only", "-fopenmp", *flags, *SOURCES], check=True)


@pytest.mark.parametrize("kind", ["armv8-a", "armv8.2-a+dotprod"])
def test_another_processor_multiplies_the_same(kind, tmp_path):
    """One that is only emulated here, with and without its instructions for codes."""
    program, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if program is None or emulator is None:
        pytest.skip("no compiler for Arm, or no qemu")
    some = [path for path in SOURCES if Path(path).stem in ("codes", "panels", "products")]
    alone = Path(__file__).parent / "native_alone.cpp"
    flags = ["-std=c++17", "-O2", "-fopenmp-simd", f"-march={kind}", "-static", "-w"]
    subprocess.run([program, *flags, *some, str(alone), "-o", str(tmp_path / "alone")], check=True)
    ran = subprocess.run(
        [emulator, "-cpu", "max", str(tmp_path / "alone")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0 and "WRONG" not in ran.stdout, ran.stdout


def test_without_a_compiler_there_are_no_kernels(monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CXX", raising=False)
    assert native.library.__wrapped__() is None


# ---- products --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (49, 80), (64, 576)])
def test_a_linear_map_is_torchs_and_its_rows_do_not_know_each_other(kernels, dtype, shape):
    """Within a rounding of the type, and bit for bit the same alone, among others, and on another number of threads."""
    torch.manual_seed(0)
    n, k = shape
    w, bias, x = (torch.randn(*size).to(dtype) for size in ((n, k), (n,), (15, k)))
    y = product(kernels, x, w, bias)
    exact = F.linear(x.double(), w.double(), bias.double())
    bound = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    assert ((y - exact).abs() <= bound * exact.abs() + 1e-6 * k**0.5).all()
    for row, alone in zip(x, y, strict=True):
        assert torch.equal(product(kernels, row[None], w, bias, threads=1)[0], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [5, 33, 61, 104, 576, 1536])
def test_any_number_of_rows_is_each_alone(kernels, dtype, k):
    torch.manual_seed(0)
    w, bias, x = (torch.randn(*size).to(dtype) for size in ((75, k), (75,), (600, k)))
    alone = torch.cat([product(kernels, row[None], w, bias) for row in x])
    for rows in (2, 5, 6, 7, 12, 13, 31, 47, 48, 49, 64, 100, 257, 600):
        assert torch.equal(product(kernels, x[:rows], w, bias), alone[:rows])


def product(kernels, x, w, bias, threads=2):
    y = x.new_empty(len(x), len(w))
    places = (tensor.data_ptr() for tensor in (x, w, bias, y))
    kernels.lathe_product(*places, len(x), *w.shape, x.stride(0), native.TYPES[x.dtype], threads)
    return y
