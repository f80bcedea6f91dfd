"""Kernels in C++ for a CPU: addresses of tensors go in, tensors are filled. Built when first asked for, where there is
a compiler; whoever calls them has a plain way too, which gives the same within the format's precision.

A further file `*.cpp` of this folder is compiled with the others; what it offers is declared `LATHE_API` and has a row
in SIGNATURES. Sums are float32; a result does not depend on the number of threads, nor on what else is in the call.
"""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from pathlib import Path

import torch

from lathe.model.native import building

# P: the address of a tensor's first number, or of a structure. N: int64. F: float32.
SIGNATURES = {
    "lathe_product": "PPPPNNNNNN",
    "lathe_coded_product": "PPPPNNNNNN",
    "lathe_large_pages": "PN",
    "lathe_panel_bytes": "PNN",
    "lathe_panels": "PPPPNNNNN",
    "lathe_panel_rows": "PPPNNNNN",
    "lathe_layers": "PNPPPPPNN",
    "lathe_norm": "PPPPNNFNNNN",
    "lathe_norm_back": "PPPPPPNNNNNNN",
    "lathe_turn": "PPPPNNNNNFNNN",
    "lathe_gate": "PPPNNN",
    "lathe_gate_back": "PPPPPNNN",
    "lathe_judge": "PPPNNFNN",
    "lathe_add": "PPNN",
    "lathe_adamw": "PPPPPNFFFFFFNN",
    "lathe_looks": "P",
    "lathe_int4": "PPPPNNNNN",
    "lathe_int8": "PPPNNNNN",
    "lathe_look": "PPPPPPPPNNNNNNFN",
    "lathe_look_back": "PPPPPPPPPPPNNNNNNFN",
}
KINDS = {"P": ctypes.c_void_p, "N": ctypes.c_int64, "F": ctypes.c_float}
TYPES = {torch.float32: 0, torch.bfloat16: 1}  # what the kernels call types of numbers


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, whose functions are those of SIGNATURES. None where none can be built: a warning says why, unless
    there is no compiler."""
    program = building.compiler()
    if program is None:
        return None
    here = Path(__file__).parent
    try:
        path = building.library(sorted(here.glob("*.[ch]*")), program, _runtime(), building.folder())
        found = ctypes.CDLL(str(path))
    except (building.Unbuilt, OSError) as error:
        warnings.warn(f"Going on without kernels of its own, which is slower: {error}", stacklevel=2)
        return None
    for name, letters in SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = [KINDS[letter] for letter in letters], None
    return found


def _runtime() -> Path | None:
    """The OpenMP library that came with torch; None where torch uses the system's."""
    beside = Path(torch.__file__).parent / "lib"
    return next((path for name in ("libgomp*", "libiomp5*", "libomp*") for path in sorted(beside.glob(name))), None)
