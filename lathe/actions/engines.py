"""A model and how it is to be served become the commands with which another engine serves it; runs none of them.

Knows each engine's words, and no model from the inside: what an engine cannot read, `lathe convert` writes first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lathe.actions.place import plain
from lathe.errors import UsageError

Command = list[str]
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Wanted:
    """What is to be served, in no engine's words.

    place: where its weights lie. name: what clients call it. adapters: folders, by the names
    that clients call them. made: a folder for what has to be converted. seats: how many answers are made at once.
    precision: bf16, fp16, fp32 or auto. device: cpu, cuda, mps or auto.
    keys: any of them lets a client in; none: everybody may.
    """

    place: Path
    name: str
    made: Path
    host: str = "127.0.0.1"
    port: int = 8000
    adapters: Mapping[str, Path] = field(default_factory=dict)
    seats: int = 64
    precision: str = "auto"
    device: str = "auto"
    keys: tuple[str, ...] = ()


def vllm(wanted: Wanted) -> list[Command]:
    if wanted.device != "auto":
        raise UsageError(f"--device is {wanted.device}.", "vLLM runs on what it was built for.", "Leave it out.")
    before, folder = as_folder(wanted)
    options = told(wanted, "--served-model-name", "--max-num-seqs", "--dtype")
    command = ["vllm", "serve", str(folder), *options, *(["--api-key", *wanted.keys] if wanted.keys else [])]
    if wanted.adapters:
        rank = max(lora_rank(place) for place in wanted.adapters.values())
        room = next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), None)
        if room is None:
            fix = "Merge it, as by lathe merge, and serve that."
            raise UsageError(f"An adapter has rank {rank}.", "vLLM takes ranks up to 512.", fix)
        modules = [json.dumps({"name": name, "path": str(place)}) for name, place in wanted.adapters.items()]
        command += ["--enable-lora", "--max-lora-rank", str(room), "--lora-modules", *modules]
    return [*before, command]


def sglang(wanted: Wanted) -> list[Command]:
    before, folder = as_folder(wanted)
    options = told(wanted, "--served-model-name", "--max-running-requests", "--dtype")
    if len(wanted.keys) > 1:
        raise UsageError(f"{len(wanted.keys)} keys are given, and SGLang knows one.", "", "Add --gate.")
    options += ["--api-key", *wanted.keys] if wanted.keys else []
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(folder), *options]
    command += [] if wanted.device == "auto" else ["--device", wanted.device]
    if wanted.adapters:
        ranks = [lora_rank(place) for place in wanted.adapters.values()]  # each is one that it can have
        modules = [f"{name}={place}" for name, place in wanted.adapters.items()]
        command += ["--enable-lora", "--max-lora-rank", str(max(ranks)), "--lora-paths", *modules]
    return [*before, command]


def llamacpp(wanted: Wanted) -> list[Command]:
    """One GGUF file, into which an adapter is merged: the server cannot choose among several by a model's name."""
    if len(wanted.adapters) > 1:
        found = f"{len(wanted.adapters)} adapters are given."
        raise UsageError(found, "llama.cpp serves one model under one name.", "Give one, and it is merged.")
    name, before, file = wanted.name, list[Command](), wanted.place
    if wanted.adapters or file.suffix != ".gguf":
        [(name, adapter)] = wanted.adapters.items() if wanted.adapters else [(name, None)]
        kept = "" if wanted.precision == "auto" else f"-{wanted.precision}"
        file = wanted.made / f"{plain(name)}{kept}.gguf"
        before = converted(wanted, file, adapter, wanted.precision)
    elif wanted.precision != "auto":
        found = f"--precision is {wanted.precision}, and {file.name} is served as it is."
        raise UsageError(found, "", "Leave it out, or write another file by lathe convert.")
    options = ["--alias", name, "--host", wanted.host, "--port", str(wanted.port), "--jinja"]
    options += ["--api-key", ",".join(wanted.keys)] if wanted.keys else []
    options += ["--parallel", str(wanted.seats), "--kv-unified"]  # else each has only its part of the context
    options += ["--n-gpu-layers", "0"] if wanted.device == "cpu" else []
    return [*before, ["llama-server", "--model", str(file), *options]]


@dataclass(frozen=True)
class Engine:
    """commands: what serves a model, the conversions it needs before. module, program: what must be there, of which it
    has one. how: to install it."""

    commands: Callable[[Wanted], list[Command]]
    module: str
    program: str
    how: str


ENGINES = {
    "vllm": Engine(vllm, "", "vllm", "pip install vllm"),
    "sglang": Engine(sglang, "sglang", "", 'pip install "sglang[all]"'),
    "llamacpp": Engine(llamacpp, "", "llama-server", "Install llama.cpp, or put its llama-server on the PATH."),
}


def as_folder(wanted: Wanted) -> tuple[list[Command], Path]:
    """The model in Hugging Face form, and what makes it, if it is not. Raises UsageError for what is no LoRA."""
    for name, place in wanted.adapters.items():
        if not is_lora(place):
            fix = f"Merge it, as by lathe merge {place} OUT, and serve that."
            raise UsageError(f"The adapter {name} is no LoRA that other engines read.", "", fix)
    if is_folder(wanted.place):
        return [], wanted.place
    folder = wanted.made / plain(wanted.name)
    return converted(wanted, folder, None), folder


def is_folder(place: Path) -> bool:
    """Whether a model lies there whole, in Hugging Face form."""
    return (place / "config.json").is_file() and any(place.glob("*.safetensors")) and not is_adapter(place)


def is_adapter(place: Path) -> bool:
    return (place / "adapter_config.json").is_file()


def is_lora(place: Path) -> bool:
    config = _adapter(place)
    return config.get("peft_type") == "LORA" and not config.get("use_dora")


def lora_rank(place: Path) -> int:
    config = _adapter(place)
    return max([config.get("r", 8), *(config.get("rank_pattern") or {}).values()])


def _adapter(place: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((place / "adapter_config.json").read_text()) if is_adapter(place) else {}
    return told


def converted(wanted: Wanted, target: Path, adapter: Path | None, dtype: str = "auto") -> list[Command]:
    """What writes a target anew, if it is not there or older than what it is made of."""
    sources = [wanted.place, *([adapter] if adapter else [])]
    if target.exists() and newest(target) >= max(map(newest, sources)):
        return []
    command = [sys.executable, "-m", "lathe", "convert", str(wanted.place), str(target)]
    command += ["--adapter", str(adapter)] if adapter else []
    command += ["--dtype", dtype] if dtype != "auto" else []
    return [[*command, "--force"]]


def newest(place: Path) -> float:
    """When a file, or any in a folder, was last written."""
    files = [path for path in place.iterdir() if path.is_file()] if place.is_dir() else [place]
    return max((path.stat().st_mtime for path in files), default=0.0)


def told(wanted: Wanted, name: str, seats: str, dtype: str) -> list[str]:
    """What every engine that reads the folder is told, with the words that differ."""
    words = [name, wanted.name, "--host", wanted.host, "--port", str(wanted.port), seats, str(wanted.seats)]
    return words if wanted.precision == "auto" else [*words, dtype, PRECISIONS[wanted.precision]]
