"""A folder or a weight file is recognised and its headers read; no tensor is.

Two questions are kept apart: the container (safetensors, pickle, GGUF), seen from a file's first bytes, and the hand
that named the tensors (Hugging Face, LitGPT, ggml), seen from which configuration lies beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lathe import families
from lathe.checkpoint import adapters, lightning, links, quantized
from lathe.checkpoint.documents import generation, read_json
from lathe.checkpoint.filling import Checkpoint, named, some
from lathe.errors import CheckpointError, MissingError, UsageError
from lathe.families import ggml
from lathe.weights import distributed, gguf, pickled, rules, safetensors
from lathe.weights.tensors import Ref


def open(path: Path | str, checkpoints: Path = Path("checkpoints")) -> Checkpoint:
    """Recognise what lies at `path`, a folder or a weight file, and read its headers.

    An adapter opens as its base with the adapter on it; a base that is named by a repo id is looked for below
    `checkpoints` too.

    Raises:
        MissingError: nothing is there, or nothing that holds a model.
        CheckpointError, ConfigError: it is damaged, or not understood.
    """
    path = Path(path)
    if path.is_dir():
        links.refuse(path)
        return _open_folder(path, checkpoints)
    if not path.exists():
        raise MissingError(f"{path} does not exist.", "A model is a folder or a weight file.")
    if adapters.describes(path):
        return _open_adapter(path, checkpoints)
    with path.open("rb") as file:
        magic = file.read(9)
    if magic[:4] == b"GGUF":
        return _open_gguf(path)
    # A zip, or a bare pickle, whose first byte could also be the length of a safetensors header: JSON follows that one.
    pickle = magic[:2] == b"PK" or (magic[:1] == b"\x80" and magic[8:] != b"{")
    read = pickled.open if pickle else safetensors.open
    # What LitGPT downloads has both: the Hub's files, and its own under its own names.
    if lightning.describes(path.parent) and (
        path.suffix == ".pth" or not (path.parent / "model.safetensors").is_file()
    ):
        return lightning.open(path.parent, path)
    if pickle and not (path.parent / "config.json").is_file():
        return lightning.open(path.parent, path)  # whose options may say what it is
    return _open_hugging_face(path.parent, [path], read, path)


def shape(place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json and generation_config.json say of the model at `place`, which may have no weights: a folder, a
    weight file, or the config.json itself. Raises LatheError as `open`."""
    if place.suffix == ".json":
        return read_json(place), generation(place.parent)
    if (place / "config.json").is_file():
        return read_json(place / "config.json"), generation(place)
    found = open(place)  # LitGPT's or GGUF's hand
    return found.config, found.generation


def _open_adapter(path: Path, checkpoints: Path) -> Checkpoint:
    place = adapters.base(path, checkpoints)
    if adapters.describes(place):
        raise CheckpointError(f"{path} is an adapter of {place}, which is an adapter itself.", "A base is a model.")
    return adapters.put_on(open(place), {"default": path}, path)


def _open_folder(folder: Path, checkpoints: Path) -> Checkpoint:
    def present(pattern: str) -> list[Path]:
        return sorted(p for p in folder.glob(pattern) if p.is_file() and not p.name.startswith("."))

    for index, single, pattern, read in (
        ("model.safetensors.index.json", "model.safetensors", "*.safetensors", safetensors.open),
        ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model*.bin", pickled.open),
    ):
        if (folder / index).is_file():
            return _open_hugging_face(folder, _shards(folder, index), read)
        files = present(single) or [p for p in present(pattern) if not p.name.startswith("adapter_")]
        if files:
            return _open_hugging_face(folder, files, read)
    if (folder / "lit_model.pth").exists() and not adapters.beside_base(folder):
        return lightning.open(folder, folder / "lit_model.pth")
    if distributed.is_folder(folder):
        return lightning.open(folder if lightning.describes(folder) else folder.parent, folder)
    if adapters.describes(folder):
        return _open_adapter(folder, checkpoints)
    packed = gguf.models(present("*.gguf"))
    if len(packed) == 1:
        return _open_gguf(packed[0])
    if packed:
        names = ", ".join(p.name for p in packed)
        raise UsageError(f"{folder} holds several GGUF files: {names}.", "", f"Name one of them, as in {packed[0]}.")
    inside = sorted({p.parent for pattern in ("config.json", "model_config.yaml") for p in folder.glob(f"*/{pattern}")})
    inside = [p for p in inside if p.name == "final"] or inside
    raise MissingError(
        f"{folder} holds no weights.",
        "A model's folder has model.safetensors (or shards with an index), lit_model.pth, or a .gguf file.",
        f"Did you mean {inside[-1]}?" if inside else "",
    )


def _shards(folder: Path, index: str) -> list[Path]:
    """The files that an index of shards names, each once."""
    names = read_json(folder / index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
        raise CheckpointError(f'{folder / index} has no "weight_map" from tensors to files of its folder.')
    files = [folder / name for name in sorted(set(names.values()))]
    gone = [file.name for file in files if not file.is_file()]
    if gone:
        raise MissingError(
            f"{folder} lacks {', '.join(gone[:3])}, {len(gone)} of {len(files)} files of weights.",
            fix="Finish the download or copy.",
        )
    return files


def _open_hugging_face(
    folder: Path, files: list[Path], read: Callable[[Path], Any], path: Path | None = None
) -> Checkpoint:
    config = quantized.amended(folder, read_json(folder / "config.json"))
    spec = families.read(config)
    laws = families.rules(config, spec)
    method, unpacking = quantized.rules(config, laws)
    tensors: dict[str, Ref] = {}
    for file in files:
        found = named(read(file), file)
        twice = tensors.keys() & found.keys()
        if twice:
            raise CheckpointError(f"{some(sorted(twice))} in {file} also stands in another file of {folder}.")
        tensors |= found
    return Checkpoint(
        path=path or folder,
        form=f"Hugging Face, {'safetensors' if read is safetensors.open else 'pickle'}{method and f', {method}'}",
        config=families.plain(config),
        spec=spec,
        tensors=rules.into([*unpacking, *laws], tensors),
        generation=generation(folder),
        quantized=method,
    )


def _open_gguf(path: Path) -> Checkpoint:
    file = gguf.whole(path)
    small = {name: file.tensors[name] for name in ggml.SETTINGS if name in file.tensors}
    settings = {
        name: ref.read().tolist() for name, ref in small.items() if len(ref.shape) == 1 and ref.nbytes < 1 << 20
    }
    config = ggml.config({**file.metadata, **settings}, {name: ref.shape for name, ref in file.tensors.items()})
    spec = families.read(config)
    return Checkpoint(
        path=path,
        form="GGUF",
        config=config,
        spec=spec,
        tensors=rules.into([*ggml.rules(config, spec), *families.tie(spec)], file.tensors),
        metadata=file.metadata,
    )
