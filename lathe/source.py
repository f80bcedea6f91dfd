"""A model's name becomes what decoders are made from, as often as one is wanted: its files, or random weights.

Knows no prompt and no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lathe import checkpoint, engine, families, hub
from lathe.errors import UsageError, did_you_mean
from lathe.model import initial
from lathe.model.decoder import Decoder
from lathe.model.spec import Spec
from lathe.tokenizer import Tokenizer
from lathe.transforms import pack
from lathe.transforms.group import Group
from lathe.transforms.shard import Share, echo

DTYPES = {
    **dict.fromkeys(("bf16", "bfloat16", "bf16-true"), torch.bfloat16),
    **dict.fromkeys(("fp16", "float16", "16-true"), torch.float16),
    **dict.fromkeys(("fp32", "float32", "32-true"), torch.float32),
}


@dataclass(frozen=True)
class Place:
    """Where a decoder is to be, and in what numbers; the fields are `LLM.load`'s."""

    device: str | torch.device = "auto"
    dtype: str | torch.dtype = "auto"
    quantize: str | None = None
    devices: int | Literal["auto"] = 1
    strategy: Literal["tensor", "layers"] = "layers"
    native: bool = True
    kv: Literal["auto", "int8"] = "auto"
    keep_packed: bool = False

    def __post_init__(self) -> None:
        if self.kv not in ("auto", "int8"):
            raise UsageError(f'Keys and values are to be kept as "{self.kv}".', "Known are auto and int8.")


@dataclass(frozen=True)
class Source:
    """A model of which no weight is read yet.

    opened: its files; None where the weights are to be random.
    config, generation: as config.json and generation_config.json say it.
    seed: of random weights.
    """

    config: dict[str, Any]
    generation: Mapping[str, Any]
    spec: Spec
    tokenizer: Tokenizer
    opened: checkpoint.Checkpoint | None = None
    seed: int = 0

    @classmethod
    def files(
        cls,
        model: str,
        adapter: checkpoint.Named | None,
        prompt_style: str,
        tokenizer: str | Path | None,
        checkpoints: Path,
        token: str | None = None,
    ) -> Source:
        """The model in a folder or file, or with a repo id, with adapters on it. Raises LatheError as `LLM.load`."""
        opened = checkpoint.open(hub.find(model, checkpoints, token=token), checkpoints)
        if adapter is not None:
            named = checkpoint.by_name(adapter).items()
            opened = checkpoint.put_on(
                opened, {name: hub.find(str(at), checkpoints, token=token) for name, at in named}
            )
        # Before the weights: it is read sooner, and may be what is wrong.
        if tokenizer is None:
            words = opened.tokenizer(prompt_style)
        else:
            style = opened.prompt_style() if prompt_style == "auto" else prompt_style
            words = _words(tokenizer, style, checkpoints, token)
            _fits(words, opened.spec)
        return cls(opened.config, opened.generation, opened.spec, words, opened)

    @classmethod
    def random(
        cls, model: str, prompt_style: str, tokenizer: str | Path | None, checkpoints: Path, token: str | None = None
    ) -> Source:
        """Random weights, drawn by torch's own dice, in the shape of a model, whose weights are not looked for.

        model: as for `files`, or the last part of a well-known repo's id. tokenizer: by default the model's.

        Raises:
            MissingError: there is no such model, or it has no tokenizer.
            UsageError: the tokenizer has more tokens than the model.
        """
        here = Path(model).exists() or (checkpoints / model).exists()
        same = (row.repo for row in hub.known() if row.repo.partition("/")[2].casefold() == model.casefold())
        place = hub.find(model if here else next(same, model), checkpoints, weights=False, token=token)
        config, generation = checkpoint.shape(place)
        spec = families.read(config)
        words = _words(tokenizer or place, None if prompt_style == "auto" else prompt_style, checkpoints, token)
        _fits(words, spec)
        return cls(config, generation, spec, words, seed=int(torch.randint(2**62, ())))

    def decoder(self, place: Place) -> Decoder:
        """A decoder to answer with, without gradients. Raises LatheError as `LLM.load`."""
        group, tensor = Group.joined(), place.strategy == "tensor"
        if tensor and place.devices not in (group.count, "auto"):
            found = f"The model is to be divided among {place.devices} processes, and {group.count} are joined."
            raise UsageError(found, "Each of them loads its part.", "Use lathe generate --devices, or torchrun.")
        around, kind = places(place.device, 1 if tensor else place.devices), number_format(place.dtype)
        if self.opened is None:
            if len(around) > 1 or (tensor and group.count > 1) or place.quantize is not None or place.keep_packed:
                found = "Random weights are neither divided among devices nor quantized nor kept."
                raise UsageError(found, fix="Save the model, and load it from there.")
            made = initial.decoder(self.spec, self.seed, around[0]).to(kind).requires_grad_(False).eval()
        else:
            share = Share(self.spec, group) if tensor and group.count > 1 else None
            return self.opened.load(around, kind, share, place.quantize, quick=place.native, keep=place.keep_packed)
        if place.native and around[0].type == "cpu":
            pack.pack(made)
        return made

    def drafter(self, draft: str | Path, count: int | None, place: Place, checkpoints: Path) -> engine.Drafter:
        """Who guesses ahead for this model: a smaller one, or for "ngram" none but the text itself.

        count: how many tokens at once; None for the usual number. Raises LatheError as `LLM.load`.
        """
        if draft == "ngram":
            return engine.Lookup(8 if count is None else count)
        group, small = Group.joined(), checkpoint.open(hub.find(str(draft), checkpoints))
        assert self.opened is not None  # random weights have no draft
        same_vocabulary(small, self.tokenizer, self.opened.path)
        tensor = place.strategy == "tensor"
        device = places(place.device, 1 if tensor else place.devices)[0]
        guesser = small.load(device, number_format(place.dtype))
        if place.native and device.type == "cpu":
            pack.pack(guesser)
        divided = tensor and group.count > 1
        return engine.DraftModel(echo(guesser, group) if divided else guesser, 4 if count is None else count)

    def trainable(self, saved: Path | None = None) -> Decoder:
        """A float32 decoder on the CPU, all of whose parameters learn.

        saved: take its weights from there, a file of Lightning's Trainer. Raises CheckpointError.
        """
        if saved is not None:
            tensors = checkpoint.trained(saved, self.spec)
            opened = checkpoint.Checkpoint(saved, "Lightning", self.config, self.spec, tensors)
        elif self.opened is None:
            return initial.decoder(self.spec, self.seed)
        else:
            opened = self.opened
        made = opened.load("cpu", torch.float32, dense=True).requires_grad_()
        for parameter in made.parameters():  # not a view of the file: a Trainer would save all of that
            parameter.data = parameter.data.clone()
        return made.train()


def _words(at: str | Path, style: str | None, checkpoints: Path, token: str | None) -> Tokenizer:
    place = hub.find(str(at), checkpoints, weights=False, token=token)
    words = Tokenizer.open(place) if place.is_dir() else checkpoint.open(place).tokenizer()
    return words if style is None else words.styled(style)


def _fits(words: Tokenizer, spec: Spec) -> None:
    if words.vocab_size > spec.vocab:
        found = f"The tokenizer has {words.vocab_size:,} tokens, and the model {spec.vocab:,}."
        raise UsageError(found, "Each needs a row in the embedding.", "Name the model's own tokenizer.")


def same_vocabulary(draft: checkpoint.Checkpoint, words: Tokenizer, model: Path) -> None:
    """A draft's ids must mean what the model's mean; some more or fewer at the end do no harm. Raises UsageError."""
    theirs = draft.tokenizer()
    shared = min(words.vocab_size, theirs.vocab_size)
    both = ((id, words.get(id), theirs.get(id)) for id in range(shared))
    if other := next((row for row in both if None not in row and row[1] != row[2]), None):
        id, mine, its = other
        found = f"The draft {draft.path} has another vocabulary: its token {id} is {its!r}, that of {model} {mine!r}."
        raise UsageError(found, "A draft guesses in tokens.", "Name a smaller model of the same lineage.")


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        known = "auto, cpu, cuda, cuda:1 (the second GPU) or mps"
        raise UsageError(f'"{device}" is not a device.', f"Known are {known}.") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        found = f"The device {device} is not there: PyTorch sees {torch.cuda.device_count()} CUDA GPUs."
        raise UsageError(found, fix="Choose another device, or auto.")
    return place


def places(device: str | torch.device, count: int | Literal["auto"] = 1) -> list[torch.device]:
    """The devices that `count` of a kind are; "auto": all GPUs there are, else one. Raises UsageError."""
    place = _device(device)
    there = torch.cuda.device_count() if place.type == "cuda" and place.index is None else 1
    wanted = there if count == "auto" else count
    if wanted == 1:
        return [place]
    if place.type == "cpu" and wanted > 1:
        return [place] * wanted
    if not 1 <= wanted <= there:
        found = f"{wanted} devices are asked for, and {device} is {there}."
        raise UsageError(found, "A model is divided among GPUs, or among processes on the CPU.", "Add --device cpu.")
    return [torch.device("cuda", index) for index in range(wanted)]


def number_format(name: str | torch.dtype) -> torch.dtype | None:
    """A number format by its name; None for "auto". Raises UsageError."""
    if isinstance(name, torch.dtype) or name == "auto":
        return name if isinstance(name, torch.dtype) else None
    if name not in DTYPES:
        fix = did_you_mean(name, DTYPES)
        raise UsageError(f'"{name}" is not a number format for weights.', "Known are auto, bf16, fp16 and fp32.", fix)
    return DTYPES[name]
