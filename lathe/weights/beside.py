"""What checkpoints hold beside tensors, the options of the programs that wrote them, as plain data: no class is run.

A class that is not listed is refused by its name.
"""

from __future__ import annotations

from typing import Any

from lathe.weights.program import Class, Function


def _path(args: tuple) -> str:
    """A path as text: its parts with slashes between, in the manner of either system."""
    if not all(type(part) is str for part in args):
        raise ValueError("a path that is not text")
    first, rest = (args[0], args[1:]) if args and args[0].endswith(("/", "\\")) else ("", args)
    return first + "/".join(rest)


PATHS = ("PurePosixPath", "PosixPath", "PureWindowsPath", "WindowsPath")
# LitGPT, by the names that the package has had.
OPTIONS = {"args": ("TrainArgs", "EvalArgs", "LogArgs"), "config": ("Config",)}
CONFIGS = ("lora", "adapter", "adapter_v2")  # whose Config has further fields

NAMES: dict[str, Any] = {
    **{f"{module}.{name}": Function(_path) for module in ("pathlib", "pathlib._local") for name in PATHS},
    **{
        f"{package}.{module}.{name}": Class(name)
        for package in ("litgpt", "lit_gpt")
        for module, names in (*OPTIONS.items(), *((module, ("Config",)) for module in CONFIGS))
        for name in names
    },
    "argparse.Namespace": Class("Namespace"),
}
