"""Codes in panels, once made of a model's weights, become files beside it, which are mapped instead of made anew.

They lie in a folder `.lathe`, which can be deleted at any time. Their names say what they were made of and how: other
weights, another way or kernels that want another order have other files.
"""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from lathe.errors import UsageError
from lathe.transforms.panels import Matrices

FOLDER = ".lathe"
WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.ckpt", "*.gguf")
LATHE = Path(__file__).parents[1]
# What decides which codes are made of numbers, and how they lie in panels.
SOURCES = [
    LATHE / "weights/gguf/codes.py",
    *(LATHE / "transforms" / name for name in ("grids.py", "kinds.py", "minima.py")),
    *(LATHE / "model/native" / name for name in ("encoding.py", "encoding.cpp", "panels.cpp", "codes.h")),
]


class PanelCache:
    """The files of one model. Where a file is not there, `memory` is empty, and `keep` writes it once it is filled.

    model: its folder, or its one file. dtype: of the numbers that codes are made of.
    """

    def __init__(self, model: Path, dtype: torch.dtype) -> None:
        self.folder, self.stem = (model, "") if model.is_dir() else (model.parent, f"{model.name}.")
        self.dtype = dtype
        self.used: set[Path] = set()
        self.made: dict[Path, Tensor] = {}

    def memory(self, matrices: Matrices, size: int) -> tuple[Tensor, bool]:
        """So many bytes for these matrices, and whether they are filled: then they are a file's, mapped."""
        files = sorted(found for some in WEIGHTS for found in self.folder.glob(some))  # also further parts of one file
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        facts = stats, self.dtype, matrices, [file.read_bytes() for file in SOURCES]
        key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        ways = "+".join(sorted({how for how, _ in matrices}))
        file = self.folder / FOLDER / f"{self.stem}{ways}.{key}.panels"
        self.used.add(file)
        if file.is_file() and file.stat().st_size == size:
            return torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8), True
        self.made[file] = torch.empty(size, dtype=torch.uint8)
        return self.made[file], False

    def keep(self) -> None:
        """Write what was not there, whole or not at all, in the place of what was made of other weights. Raises
        UsageError where that cannot be, or where there is nothing to keep."""
        if not self.used:
            found = "Nothing of this model is packed: its weights are multiplied as they are stored."
            expected = "--keep-packed keeps what a CPU's kernels multiply by in place of quantized matrices."
            raise UsageError(found, expected, "Load it on a CPU with --quantize int8 or int4, or leave it out.")
        try:
            for file, panels in self.made.items():
                file.parent.mkdir(exist_ok=True)
                way = file.name.rsplit(".", 2)[0]
                before = {one for one in file.parent.glob("*.panels") if one.name.rsplit(".", 2)[0] == way}
                with tempfile.TemporaryDirectory(dir=file.parent) as beside:
                    panels.numpy().tofile(Path(beside) / file.name)
                    (Path(beside) / file.name).replace(file)
                for other in before - self.used:
                    with suppress(OSError):  # Windows keeps what another process has mapped
                        other.unlink()
        except OSError as error:
            found = f"Cannot write to {self.folder / FOLDER}: {error.strerror}."
            raise UsageError(found, "--keep-packed keeps codes beside the model.", "Leave it out.") from None
        self.made = {}
