"""What LitGPT and Lightning write becomes a Checkpoint: files of every kind, and folders of shards; no tensor is read.

lit_model.pth            the tensors by name (converting), {"model": ...} (finetuning), or that beside the
                         optimizer's state and counters (pretraining)
lit_model.pth/           a folder of torch.distributed.checkpoint, which each process wrote its shards to
*.ckpt                   {"state_dict": ..., ...}: Lightning's Trainer, whose options may say what the model is
model_config.yaml        what it is; before 2024 lit_config.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lathe import families
from lathe.checkpoint.documents import generation, read_json, read_yaml
from lathe.checkpoint.filling import Checkpoint, named
from lathe.errors import MissingError
from lathe.families import litgpt
from lathe.model.spec import Spec
from lathe.weights import distributed, pickled, rules
from lathe.weights.program import Record
from lathe.weights.tensors import Ref

OURS = "model.embed_tokens.weight"  # of every model, so it shows what stands before all names
CONFIGS = {"model_config.yaml": read_yaml, "lit_config.json": read_json}


def describes(folder: Path) -> bool:
    """Whether a folder says in LitGPT's words what model it holds."""
    return any((folder / name).is_file() for name in CONFIGS)


def open(folder: Path, file: Path) -> Checkpoint:
    """A checkpoint whose tensors are in `file`, which may be a folder of shards, and whose configuration in `folder`.

    Raises:
        MissingError: nothing says what model it is.
        UnsafeError: beside the tensors it holds something of a class that is not known to be plain data.
        CheckpointError, ConfigError: it is damaged, or not understood.
    """
    tree = distributed.open(file) if file.is_dir() else pickled.open(file)
    tensors = litgpt.plain(named(_state(tree), file))
    config = litgpt.config(_told(folder, file, tree))
    # LitGPT has no word for a tied head, but what it converts from one is one tensor under two names.
    ends = [tensors[name] for name in ("transformer.wte.weight", "lm_head.weight") if name in tensors]
    config["tie_word_embeddings"] = len(ends) == 2 and _one(*ends)
    spec = families.read(config)
    return Checkpoint(
        path=folder if file.is_dir() or file.name == "lit_model.pth" else file,
        form="LitGPT",
        config=config,
        spec=spec,
        tensors=rules.into([*litgpt.rules(spec), *families.tie(spec)], tensors),
        generation=generation(folder),
    )


def trained(file: Path, spec: Spec) -> dict[str, Ref]:
    """The tensors that Lightning's Trainer saved of a module that has an `LLM`, ours or LitGPT's, by their names here.

    Raises CheckpointError where there is not one model in it by either's names, and as `open`.
    """
    tensors = named(_state(pickled.open(file)), file)
    roots = [name.removesuffix(OURS) for name in tensors if name == OURS or name.endswith("." + OURS)]
    if len(roots) == 1:
        inside = {name.removeprefix(roots[0]): ref for name, ref in tensors.items() if name.startswith(roots[0])}
        return rules.into(families.tie(spec), inside)
    return rules.into([*litgpt.rules(spec), *families.tie(spec)], litgpt.plain(tensors))


def _state(tree: Any) -> Any:
    """The tensors by name, out of what else a training's state holds."""
    for key in ("model", "state_dict"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            return tree[key]
    return tree


def _told(folder: Path, file: Path, tree: Any) -> dict[str, Any]:
    """LitGPT's configuration: a file beside the tensors, or one of the options that a Trainer keeps with them."""
    for name, read in CONFIGS.items():
        if (folder / name).is_file():
            return read(folder / name)
    options = tree.get("hyper_parameters") if isinstance(tree, dict) else None
    for option in options.values() if isinstance(options, dict) else ():
        told = option.fields if isinstance(option, Record) else option
        if isinstance(told, dict) and {"n_layer", "n_embd"} <= told.keys():
            return {name: value for name, value in told.items() if name not in litgpt.DERIVED}
    raise MissingError(
        f"Nothing says what model {file} is.",
        f"Beside it there should be config.json, or LitGPT's {' or '.join(CONFIGS)}.",
        "Copy the file there from the model that the training began with.",
    )


def _one(a: Ref, b: Ref) -> bool:
    """Whether two tensors lie in the same bytes of a mapped file."""
    first_rows = [ref[0:1].read() for ref in (a, b) if ref.shape and ref.shape[0]]
    return a.shape == b.shape and len({row.data_ptr() for row in first_rows}) == 1
