"""Seconds and the most anonymous memory to convert a 1.2 B-parameter bf16 Llama between every two forms.

LitGPT's own conversion of the same folder runs beside it where `make oracles` has made its environment.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from load import make
from measure import compare

LITGPT = Path(__file__).parents[1] / ".venv-litgpt" / "bin" / "litgpt"
NAME = "Llama-3.2-1B"  # LitGPT goes by the name of the folder


def watched(command: Sequence[str]) -> dict[str, float]:
    """Seconds of a process, and the most memory of its own that it had at any time, in MiB."""
    begun, most = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            lines = status.read_text().splitlines() if status.exists() else []
            most = max([most, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
            time.sleep(0.005)
        assert process.stderr
        assert process.returncode == 0, process.stderr.read()[-2000:]
    return {"seconds": time.perf_counter() - begun, "MiB": most / 1024}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as place:
        source, forms = Path(place) / NAME, {"hf": "out-hf", "litgpt": "out-litgpt", "gguf": "out.gguf"}
        source.mkdir()
        make(source)

        def lathe(first: Path, form: str, dtype: str = "auto") -> list[str]:
            target = str(Path(place) / forms[form])
            words = ["convert", str(first), target, "--to", form, "--dtype", dtype, "--force"]
            return [sys.executable, "-m", "lathe", *words]

        sources = {"hf": source}
        for form in ("litgpt", "gguf"):
            sources[form] = Path(place) / f"source-{form}{'.gguf' if form == 'gguf' else ''}"
            subprocess.run([*lathe(source, form)[:5], str(sources[form]), "--to", form], check=True)
        rivals = {f"{first} to {form}": lathe(path, form) for first, path in sources.items() for form in forms}
        rivals |= {f"hf to gguf, {dtype}": lathe(source, "gguf", dtype) for dtype in ("Q8_0", "Q4_0", "Q4_K_M")}
        rivals["hf to hf, fp32"] = lathe(source, "hf", "fp32")
        if LITGPT.exists():
            rivals["LitGPT: hf to litgpt"] = [str(LITGPT), "convert_to_litgpt", str(source)]
        compare("convert a 1.2 B bf16 Llama", rivals, watched, runs=3)
