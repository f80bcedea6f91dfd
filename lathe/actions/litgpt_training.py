"""LitGPT's finetuning verbs and merge_lora, as its users type them: our actions, writing where LitGPT writes."""

from __future__ import annotations

import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lathe.actions import convert, merge
from lathe.actions.finetune import Adapter, AdapterV2, Full, Lora
from lathe.actions.finetune import run as finetune

__all__ = [
    "FinetuneAdapter",
    "FinetuneAdapterV2",
    "FinetuneFull",
    "FinetuneLora",
    "MergeLora",
    "finetune",
    "merge_lora",
]


@dataclass(frozen=True)
class FinetuneLora(Lora):
    _: KW_ONLY
    out_dir: Path = Path("out/finetune/lora")


@dataclass(frozen=True)
class FinetuneFull(Full):
    _: KW_ONLY
    out_dir: Path = Path("out/finetune/full")


@dataclass(frozen=True)
class FinetuneAdapter(Adapter):
    _: KW_ONLY
    out_dir: Path = Path("out/finetune/adapter")


@dataclass(frozen=True)
class FinetuneAdapterV2(AdapterV2):
    _: KW_ONLY
    out_dir: Path = Path("out/finetune/adapter-v2")


@dataclass(frozen=True)
class MergeLora:
    checkpoint_dir: str
    """The folder of the adapter."""
    _: KW_ONLY
    pretrained_checkpoint_dir: str | None = None
    """The model to merge it into. By default the one that the adapter names."""
    precision: str | None = None
    """What weights become: bf16-true, 16-true, 32-true. By default what they are in the base."""
    checkpoints: Path = Path("checkpoints")
    """Where models named by their repo id are looked for."""


def merge_lora(options: MergeLora) -> None:
    """Write the merged model into the adapter's own folder, where LitGPT has it.

    `lathe merge` writes a folder elsewhere, and Lathe opens the adapter as it is.
    """
    name = {"bf16-true": "bf16", "16-true": "fp16", "32-true": "fp32"}.get(options.precision or "", options.precision)
    dtype = convert.known(name or "auto", "hf")
    asked = merge.Options(
        options.checkpoint_dir,
        Path(),
        base=options.pretrained_checkpoint_dir,
        checkpoints=options.checkpoints,
    )
    source = merge.opened(asked)
    folder = Path(options.checkpoint_dir)
    litgpts = (folder / "lit_model.pth.lora").is_file()
    with TemporaryDirectory(dir=folder, prefix=".merged-") as beside:
        whole = Path(beside) / "whole"
        convert.write(source, whole, "litgpt" if litgpts else "hf", dtype)
        weights = sorted(whole.glob("lit_model.pth" if litgpts else "model*.safetensors*"))
        for file in (whole / ("model_config.yaml" if litgpts else "config.json"), *weights):
            file.replace(folder / file.name)
    print(f"Wrote {', '.join(file.name for file in weights)} into {folder}", file=sys.stderr)
