"""A checkpoint whose headers are read becomes a decoder: every tensor is read once, to where it stays."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lathe.checkpoint.documents import read_yaml
from lathe.checkpoint.panel_cache import PanelCache
from lathe.errors import CheckpointError, UsageError
from lathe.families import litgpt
from lathe.model.blank import blank, slots
from lathe.model.decoder import Decoder
from lathe.model.native.resident import Passing
from lathe.model.spec import Spec
from lathe.transforms import pack as packing
from lathe.transforms import quantize as quantizing
from lathe.transforms import spread
from lathe.transforms.kinds import KEPT, KINDS, known
from lathe.transforms.panels import fresh
from lathe.weights.coded import Coded
from lathe.weights.tensors import Ref

if TYPE_CHECKING:
    from lathe.tokenizer import Tokenizer
    from lathe.transforms.panels import Panels
    from lathe.transforms.shard import Share


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, its headers read and none of its tensors.

    path: the folder or file. form: what it was recognised as, in words. quantized: the method by which its files'
    weights are, or "".
    config, generation: as config.json and generation_config.json say it, also where another hand wrote the files.
    spec: what the configuration means. tensors: by their names in memory, none of them read.
    metadata: a GGUF file's own, by its keys.
    """

    path: Path
    form: str
    config: dict[str, Any]
    spec: Spec
    tensors: dict[str, Ref]
    generation: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)  # a GGUF file's own
    quantized: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in."""
        return main_dtype(self.tensors.values())

    def load(
        self,
        device: torch.device | str | Sequence[torch.device] = "cpu",
        dtype: torch.dtype | None = None,
        share: Share | None = None,
        quantize: str | None = None,
        dense: bool = False,
        quick: bool = False,
        keep: bool = False,
    ) -> Decoder:
        """A decoder filled from the files, without gradients. `dtype` None: as stored.

        device: several have the layers one after the other. share: load one rank's part, and read nothing else.
        quantize: one of `transforms.kinds.KINDS`; matrices are packed as they are read, some rows at a time. None
        leaves those in codes that the files have in one of `transforms.kinds.KEPT`, unless all shall be `dense`.
        quick: on a CPU, as `transforms.pack` makes it, and codes are put where kernels want them as they come, those of
        embedding and head too where the files have them, or are mapped where they were once kept. keep: keep them
        beside the model.
        On CPU a tensor already in `dtype` stays a view of the mapped file, which is private to this process.

        Raises:
            CheckpointError: tensors are missing, left over, or of another shape than the configuration says.
            UsageError: no such way to quantize; or what shall be kept cannot be.
        """
        if keep and share is not None:
            found = "This process loads its part of a model that is divided among several."
            fix = "Leave --keep-packed out, or take --devices 1 or --strategy layers."
            raise UsageError(found, "--keep-packed keeps the codes of a whole model.", fix)
        how = None if quantize is None else known(quantize)
        decoder, tensors = blank(self.spec), self.tensors
        fit(decoder, tensors, self.path)
        if share is not None:
            with torch.device("meta"):
                decoder = share.decoder()
            tensors = {name: share.mine(name, tensors[name], tuple(slot.shape)) for name, slot in slots(decoder)}
            fit(decoder, tensors, self.path)
        dtype = dtype or self.dtype
        devices = [torch.device(device)] if isinstance(device, (str, torch.device)) else device
        place = spread.places({name: tensors[name].nbytes for name, _ in slots(decoder)}, devices)
        state: dict[str, torch.Tensor] = {}
        unpacked = [*slots(decoder)]
        quick = quick and devices[0].type == "cpu"
        kinds = {} if dense else self._kinds(decoder, tensors, how)
        if quick and not dense and share is None and len(devices) == 1:
            kinds |= _end_kinds(decoder, tensors)
        quantizing.pack(decoder.to(dtype), kinds)
        cache = PanelCache(self.path, dtype)
        memory = cache.memory if share is None else fresh  # a part of a model is never kept
        rooms = packing.rooms(decoder, memory) if quick else {}
        passing = Passing()
        for name, slot in unpacked:
            module = name.removesuffix(".weight")
            if module != name and module in rooms:
                fill(rooms[module], tensors[name], passing)
                state[f"{module}.panels"] = packing.settle(decoder, module, rooms[module]).panels
                continue
            if module != name and module in kinds:
                for key, part in packed(tensors[name], kinds[module], place(name), passing).items():
                    state[f"{module}.{key}"] = nn.Parameter(part, requires_grad=False)
                continue
            learned = isinstance(slot, nn.Parameter)
            # Buffers are float32 facts beside the weights and keep their precision.
            tensor = tensors[name].to(dtype if learned else torch.float32).read().to(place(name))
            state[name] = nn.Parameter(tensor, requires_grad=False) if learned else tensor
        passing.release()
        if self.spec.tied:  # one parameter under two names
            kept = "panels" if "model.embed_tokens.panels" in state else "weight"
            state[f"lm_head.{kept}"] = state[f"model.embed_tokens.{kept}"]
        decoder.load_state_dict(state, assign=True)
        if share is not None:
            share.join(decoder)
        if len(devices) > 1:
            spread.seams(decoder)
        if quick:
            packing.pack(decoder, memory)
        if keep:
            cache.keep()
        return decoder.eval()

    def _kinds(self, decoder: Decoder, tensors: Mapping[str, Ref], how: str | None) -> dict[str, str]:
        """How each matrix is packed, by its module's name: those that are. Of codes that are unpacked it is said."""
        names = [module for module, _ in quantizing.matrices(decoder)]
        if how is not None:
            return dict.fromkeys(names, how)
        refs = {name: tensors[f"{name}.weight"] for name in names}
        coded = {name: ref for name, ref in refs.items() if isinstance(ref, Coded)}
        kinds = {name: ref.kind for name, ref in coded.items() if ref.kind in KEPT and ref.sure()}
        if unpacked := coded.keys() - kinds.keys():
            floats = {coded[name].kind for name in unpacked} == {"fp8"}
            fix = "fp8 they stay as they are" if floats else "they stay small, and are rounded once more"
            warnings.warn(
                f"{self.path} is quantized in a way ({self.quantized}) in which nothing is multiplied here: "
                f"{len(unpacked)} of its {len(names)} matrices are unpacked, and take the room they took before. "
                f"With --quantize {fix}.",
                stacklevel=3,
            )
        return kinds

    def fitting(self, dtype: torch.dtype) -> Iterator[tuple[str, Ref]]:
        """What a decoder is filled with, by names: weights become `dtype`, buffers keep their precision.

        Raises CheckpointError as `load`.
        """
        decoder = blank(self.spec)
        fit(decoder, self.tensors, self.path)
        for name, slot in slots(decoder):
            yield name, self.tensors[name].to(dtype if isinstance(slot, nn.Parameter) else torch.float32)

    def prompt_style(self) -> str | None:
        """The name of LitGPT's style that its prompt_style.yaml asks for; None where there is no such file.

        Raises:
            ConfigError: the file names a class that is none of LitGPT's styles; it is not imported.
        """
        file = self.folder / "prompt_style.yaml"
        return litgpt.style(read_yaml(file)) if file.is_file() else None

    def tokenizer(self, style: str = "auto") -> Tokenizer:
        """The tokenizer, with a prompt style: "auto" is the one that LitGPT left beside the weights, if it did."""
        from lathe.tokenizer import Tokenizer

        found = Tokenizer.from_gguf(self.metadata) if self.metadata else Tokenizer.open(self.folder)
        named = self.prompt_style() if style == "auto" else style
        return found if named is None else found.styled(named)

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent


def _end_kinds(decoder: Decoder, tensors: Mapping[str, Ref]) -> dict[str, str]:
    """The codes that embedding and head have in the files, where kernels take them."""
    found = {}
    for name in packing.ends():
        ref = tensors["model.embed_tokens.weight" if decoder.spec.tied else f"{name}.weight"]
        if isinstance(ref, Coded) and ref.kind in packing.QUICK and ref.sure():
            found[name] = ref.kind
    return found


def fill(panels: Panels, ref: Ref, passing: Passing) -> None:
    """Put a matrix into its panels, if they are empty: the codes that it is stored as, if they are of their kind."""
    if panels.filled:
        return
    step = panels.step()
    if isinstance(ref, Coded) and ref.kind == panels.how and ref.sure():
        for start in range(0, ref.shape[0], step):
            parts = [part[start : start + step].read().contiguous() for part in ref.parts.values()]
            panels.put(parts, start)
            if ref.stored is not None:
                read = ref.stored[start : start + step].read()
                passing.done(read.data_ptr(), read.nbytes)
        return
    pieces = (ref[start : start + step].read().contiguous() for start in range(0, ref.shape[0], step))
    panels.rounded(passing.through(pieces))


def packed(ref: Ref, kind: str, device: torch.device, passing: Passing) -> dict[str, torch.Tensor]:
    """The parts of a matrix, or of a stack of them: those that it is stored as, if they are of this kind."""
    if isinstance(ref, Coded) and ref.kind == kind and ref.sure():
        return {name: part.read().contiguous().to(device) for name, part in ref.parts.items()}
    return KINDS[kind].pack(passing.through(ref.pieces()), torch.Size(ref.shape), device)


def main_dtype(refs: Iterable[Ref]) -> torch.dtype:
    """The floating-point type that most of the bytes are in."""
    sizes: Counter[torch.dtype] = Counter()
    for ref in refs:
        if ref.dtype.is_floating_point:
            sizes[ref.dtype] += ref.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


def fit(decoder: Decoder, tensors: Mapping[str, Ref], path: Path) -> None:
    """Every slot has a tensor of its shape and every tensor a slot, or an error names those that do not."""
    wanted = {name: tuple(slot.shape) for name, slot in slots(decoder)}
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        lacks = f"lacks {some(missing)}" if missing else ""
        has = f"holds {some(extra)}, which the model has no place for" if extra else ""
        raise CheckpointError(
            f"{path} {' and '.join(filter(None, (lacks, has)))}.",
            "The tensors do not belong to the model that the configuration describes.",
            "Check that all files of the checkpoint are there and of one model.",
        )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{name} has shape {list(tensors[name].shape)} ({tensors[name].source}).",
                f"The configuration asks for {list(shape)}.",
                "Check that config and weights are of one model.",
            )


def named(tree: Any, file: Path) -> dict[str, Ref]:
    """A mapping of names to tensors, or an error that says what stands there instead."""
    if isinstance(tree, dict) and all(isinstance(k, str) and isinstance(v, Ref) for k, v in tree.items()):
        return dict(tree)
    raise CheckpointError(f"{file} holds something else than tensors by name.", "It should be a model's weights.")


def some(names: list[str]) -> str:
    """The first few of many names."""
    rest = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
