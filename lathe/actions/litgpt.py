"""LitGPT's verbs that write models, as its users type them: `lathe convert` and `lathe merge` with LitGPT's places."""

from __future__ import annotations

import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lathe import hub
from lathe.actions import convert, merge
from lathe.actions.place import Places


@dataclass(frozen=True)
class ToLitgpt(Places):
    checkpoint_dir: str
    """Folder or repo id of a model in Hugging Face form."""
    _: KW_ONLY
    dtype: str = "auto"
    """bf16, fp16 or fp32; auto keeps every tensor as it is."""


def to_litgpt(options: ToLitgpt) -> None:
    """Write lit_model.pth and model_config.yaml into a model's folder, for LitGPT itself.

    Lathe needs neither: it opens the folder as it is. `lathe convert` writes a LitGPT folder elsewhere.
    """
    from lathe import checkpoint

    dtype = convert.known(options.dtype, "litgpt")
    source = checkpoint.open(hub.find(options.checkpoint_dir, options.checkpoints), options.checkpoints)
    with TemporaryDirectory(dir=source.folder, prefix=".litgpt-") as beside:
        convert.write(source, Path(beside) / "whole", "litgpt", dtype)
        whole = Path(beside) / "whole"
        lacking = [n for n in ("tokenizer.json", "tokenizer_config.json") if not (source.folder / n).exists()]
        for name in ("model_config.yaml", *lacking, "lit_model.pth"):
            if (whole / name).exists():
                (whole / name).replace(source.folder / name)
    print(f"Wrote lit_model.pth and model_config.yaml into {source.folder}", file=sys.stderr)


@dataclass(frozen=True)
class FromLitgpt(Places):
    checkpoint_dir: str
    """LitGPT's folder."""
    output_dir: Path
    """A folder for the model in Hugging Face form."""
    _: KW_ONLY
    model_pth: bool = True
    """Write model.pth too, which LitGPT writes and programs made for it read; it takes the weights' size again."""


def from_litgpt(options: FromLitgpt) -> None:
    """Write a LitGPT model in Hugging Face form, which from_pretrained reads.

    LitGPT writes model.pth alone, without a configuration; here the folder is whole, and has that file besides.
    """
    from lathe import checkpoint, families
    from lathe.weights import pickled, rules

    source = checkpoint.open(hub.find(options.checkpoint_dir, options.checkpoints), options.checkpoints)
    convert.write(source, options.output_dir, "hf", None)
    if options.model_pth:
        named = rules.back(families.rules(source.config, source.spec), source.tensors)
        with checkpoint.beside(options.output_dir / "model.pth") as written:
            pickled.write(written, named)
    print(f"Wrote {options.output_dir}", file=sys.stderr)


@dataclass(frozen=True)
class Pretrained(Places):
    checkpoint_dir: str
    """The folder that pretraining or finetuning wrote, with or without the optimizer's state."""
    output_dir: Path
    """A folder for the model alone, in LitGPT's form."""


def pretrained(options: Pretrained) -> None:
    """Write a model without the state of its training, in LitGPT's form.

    Lathe needs no such step: it opens the folder as it is and never reads the optimizer's state.
    """
    from lathe import checkpoint

    source = checkpoint.open(hub.find(options.checkpoint_dir, options.checkpoints), options.checkpoints)
    told = source.folder / "model_config.yaml"
    settings = told.read_text(encoding="utf-8") if source.form == "LitGPT" and told.is_file() else None
    convert.write(source, options.output_dir, "litgpt", None, settings=settings)
    print(f"Wrote {options.output_dir}", file=sys.stderr)


@dataclass(frozen=True)
class MergeLora(Places):
    checkpoint_dir: str
    """The folder of the adapter."""
    _: KW_ONLY
    pretrained_checkpoint_dir: str | None = None
    """The model to merge it into. By default the one that the adapter names."""
    precision: str | None = None
    """What weights become: bf16-true, 16-true, 32-true. By default what they are in the base."""


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
