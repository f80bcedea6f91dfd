"""C++ sources become a shared library for this very processor, once: it is kept in the user's cache, and made anew
where a source, the compiler or the processor is another. Knows nothing of what the sources compute.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-ffp-contract=fast", "-fvisibility=hidden")
PATIENCE = 600  # seconds for a compiler, or for another process that builds the same


class Unbuilt(Exception):
    """The compiler could not make a library of the sources; says what it wrote."""


def compiler() -> str | None:
    """The path of a C++ compiler that understands GCC's options: $CXX, or the first that is found."""
    names = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name]
    return next((path for name in names if (path := shutil.which(name))), None)


def folder() -> Path:
    """Where libraries are kept, and can be deleted: $LATHE_CACHE or ~/.cache/lathe, and in it `native`."""
    return Path(os.environ.get("LATHE_CACHE") or Path.home() / ".cache" / "lathe") / "native"


def library(sources: Sequence[Path], program: str, runtime: Path | None, into: Path) -> Path:
    """A library of all sources (headers among them), built if it is not there or damaged.

    program: the compiler. runtime: the file of the OpenMP library that the process has loaded, so that there is one
    pool of threads and not two that fight. What stands at its place is whole: it is built beside and renamed, by one
    process at a time, and never replaced under those who have it loaded.

    Raises Unbuilt, and OSError where `into` cannot be written.
    """
    into.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = into / f"{_key(sources, program, runtime)}.so"
    with FileLock(place.with_suffix(".lock"), timeout=PATIENCE):
        if not _whole(place):
            _build([str(path) for path in sources if path.suffix == ".cpp"], program, runtime, place)
    return place


def _build(sources: Sequence[str], program: str, runtime: Path | None, place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=place.parent) as beside:
        made = Path(beside) / place.name
        # The others are for compilers without OpenMP's library, or that know neither: slower, and right.
        for more in ((*_threads(runtime), "-march=native"), ("-fopenmp-simd", "-march=native"), ()):
            command = [program, *FLAGS, *sources, *more, "-o", str(made)]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
            if ran.returncode == 0:
                break
        else:
            raise Unbuilt(ran.stderr.strip() or f"{program} ended with code {ran.returncode}")
        place.with_suffix(".sha256").write_text(_digest(made))
        made.replace(place)


def _threads(runtime: Path | None) -> tuple[str, ...]:
    if sys.platform == "darwin":  # Apple's compiler knows OpenMP and brings no library for it
        return ("-Xclang", "-fopenmp", str(runtime)) if runtime else ()
    return ("-fopenmp", *(["-Wl,--as-needed", str(runtime)] if runtime else []))


def _whole(place: Path) -> bool:
    told = place.with_suffix(".sha256")
    return place.is_file() and told.is_file() and told.read_text() == _digest(place)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _key(sources: Sequence[Path], program: str, runtime: Path | None) -> str:
    """What a library depends on, as a file's name."""
    real = Path(program).resolve()
    stat = real.stat()
    facts = [*FLAGS, str(real), str(stat.st_size), str(stat.st_mtime_ns), str(runtime), _processor()]
    key = hashlib.sha256("\0".join(facts).encode())
    for path in sorted(sources):
        key.update(path.name.encode() + b"\0" + path.read_bytes())
    return key.hexdigest()[:32]


def _processor() -> str:
    """What tells processors apart that need different code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    told = {line for line in lines if line.split("\t")[0] in ("flags", "Features", "model", "cpu family")}
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *sorted(told)])
