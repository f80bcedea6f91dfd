"""A decoder and its tokenizer become a torch module, which LitGPT's methods place and train.

What `lathe.LLM` is beside answering. Shapes: B texts, T tokens each, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe import processes
from lathe.data.pack import IGNORE
from lathe.engine import Drafter, Engine
from lathe.errors import PromptError, UsageError, did_you_mean
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.source import Place, Source, places
from lathe.tokenizer import Tokenizer
from lathe.transforms.group import Group

ACCELERATORS = {"auto": "auto", "cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "mps": "mps"}
STRATEGIES: dict[str | None, Literal["layers", "tensor"]] = {
    None: "layers",
    "sequential": "layers",
    "tensor_parallel": "tensor",
}
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Preprocessor:
    """Text to a tensor of ids and back, by a tokenizer. device: where the tensors are."""

    tokenizer: Tokenizer
    device: torch.device

    def encode(self, text: str) -> Tensor:
        """The ids of `text`: T, int64. Raises TokenizerError for half a character."""
        return torch.tensor(self.tokenizer.encode(text), device=self.device)

    def decode(self, token_ids: Tensor) -> str:
        """token_ids: (T,) int64, or one id."""
        return self.tokenizer.decode(token_ids.reshape(-1).tolist())


@dataclass(frozen=True)
class PromptStyle:
    """How a question is written for the model: by the chat template or prompt style of its tokenizer, or as it is where
    there is none."""

    tokenizer: Tokenizer

    def apply(self, prompt: str | Sequence[Mapping[str, Any]], *, sys_prompt: str | None = None) -> str:
        """The text that the model reads. prompt: a question, or messages. sys_prompt: a system message before it.

        Raises TokenizerError as `Tokenizer.render`.
        """
        if isinstance(prompt, str) and not self.tokenizer.has_template and sys_prompt is None:
            return prompt
        return self.tokenizer.render(messages(prompt, sys_prompt))


class Module(nn.Module):
    """See `lathe.LLM`."""

    def __init__(
        self, decoder: Decoder | None, tokenizer: Tokenizer, drafter: Drafter | None, source: Source | None
    ) -> None:
        super().__init__()
        self.register_module("_decoder", decoder)
        self._decoder: Decoder | None
        self.tokenizer = tokenizer
        self._drafter, self._source = drafter, source
        self._tokens: int | None = None  # of all prompts and answers, as many as the engine has room for
        self._kv: torch.dtype | None = None
        self._engine: Engine | None = None
        self._running_at: tuple[torch.device, torch.dtype] | None = None
        self._dice: random.Random | None = None  # the same on all processes that divide the model
        self.register_load_state_dict_pre_hook(_named)

    @property
    def decoder(self) -> Decoder:
        """The model itself. Raises UsageError where it is not loaded yet."""
        if self._decoder is None:
            found = "The model is not loaded: it was opened with distribute=None."
            raise UsageError(found, fix="Call .distribute() to answer with it, or .trainer_setup() to train it.")
        return self._decoder

    @property
    def model(self) -> Decoder | None:
        """The model itself, or None where it is not loaded yet."""
        return self._decoder

    @property
    def engine(self) -> Engine:
        """What makes the answers. It is made anew when the weights have moved to another device or dtype."""
        weight = next(self.decoder.parameters())
        place = (weight.device, weight.dtype)
        if self._engine is None or self._running_at != place:
            self._engine = Engine(self.decoder, tokens=self._tokens, drafter=self._drafter, kv=self._kv)
            self._running_at = place
        return self._engine

    @property
    def preprocessor(self) -> Preprocessor:
        """Text to tensors of ids and back. The tensors are on the model's device, or where it would be loaded to."""
        here = places("auto")[0] if self._decoder is None else next(self._decoder.parameters()).device
        return Preprocessor(self.tokenizer, here)

    @property
    def prompt_style(self) -> PromptStyle:
        """How a question is written for the model."""
        return PromptStyle(self.tokenizer)

    # ------------------------------------------------------------ placing

    def distribute(
        self,
        accelerator: str = "auto",
        devices: int | Literal["auto"] = "auto",
        precision: str | torch.dtype | None = None,
        quantize: str | None = None,
        generate_strategy: Literal["sequential", "tensor_parallel"] | None = None,
        fixed_kv_cache_size: int | Literal["max_model_supported"] | None = None,
    ) -> None:
        """Load the weights anew, onto the devices that are to answer.

        accelerator: the kind of device, "cpu", "cuda" or "gpu", "mps", or "auto". devices: how many, or "auto" for all.
        precision: as `dtype` of `LLM.load`; None keeps that of the files. quantize: as there.
        generate_strategy: "sequential" spreads the layers over `devices` GPUs, one after the other;
            "tensor_parallel" divides each layer among as many processes that run this script; the first call starts
            them (`processes.join`). None: one device.
        fixed_kv_cache_size: how many tokens of all prompts and answers are kept at once, which none may exceed; None
            for as many as are needed.

        Raises:
            UsageError: the device is not available, or a word is not known.
            CheckpointError: the files are damaged.
        """
        for word, known in ((accelerator, ACCELERATORS), (generate_strategy, STRATEGIES)):
            if word not in known:
                every = ", ".join(str(name) for name in known)
                fix = did_you_mean(str(word), [str(name) for name in known])
                raise UsageError(f'"{word}" is not known to distribute.', f"Known are {every}.", fix)
        if generate_strategy is None and devices not in (1, "auto"):
            fix = 'Add generate_strategy="sequential" or "tensor_parallel".'
            raise UsageError(f"devices is {devices}, and nothing says how they share the model.", "", fix)
        source, kind = self._known(), ACCELERATORS[accelerator]
        device: str | torch.device = kind
        if generate_strategy is None:
            devices = 1
        elif generate_strategy == "tensor_parallel":
            around = places(kind, devices)
            devices = len(around)
            device = processes.join(devices, around[0].type)
        place = Place(device, precision or "auto", quantize, devices, STRATEGIES[generate_strategy])
        self._put(source.decoder(place), place)
        context = self.decoder.spec.context
        self._tokens = context if fixed_kv_cache_size == "max_model_supported" else fixed_kv_cache_size

    def trainer_setup(self, trainer_ckpt: str | Path | None = None) -> None:
        """Load the weights to train all of them: in float32, on the CPU, from where a Trainer moves them.

        trainer_ckpt: take the weights from a checkpoint in which Lightning's Trainer saved a module that holds this
            object, or LitGPT's.

        Raises:
            UsageError: the object was not made by `load`.
            CheckpointError: the file holds another model, or none.
        """
        self._put(self._known().trainable(None if trainer_ckpt is None else Path(trainer_ckpt)), Place())

    def _known(self) -> Source:
        if self._source is None:
            raise UsageError("Where the model's weights come from is not known.", "It was not made by LLM.load.")
        return self._source

    def _put(self, decoder: Decoder, place: Place) -> None:
        """Take another decoder in the place of the one there is, if there is one."""
        self._decoder, self._engine, self._tokens, self._dice = decoder, None, None, None
        self._kv = torch.int8 if place.kv == "int8" else None
        group = Group.joined()
        if place.strategy == "tensor" and group.count > 1:  # all must throw the same dice
            seed = torch.tensor([random.getrandbits(32)], device=next(decoder.parameters()).device)
            self._dice = random.Random(int(group.firsts(seed)))

    # ------------------------------------------------------------ training

    def forward(
        self, input_ids: Tensor, target_ids: Tensor | None = None, loss_fn: Loss | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Scores of every next token and, with targets, their loss; differentiable after `trainer_setup`.

        input_ids: (B, T) or (T,) int64, on the model's device. target_ids: of the same shape, the token in each place
        (they are shifted by one here), or -100 where nothing is learned. loss_fn: from scores, ... T-1 V, and targets,
        ... T-1, to a loss; by default the mean natural cross-entropy over those that are not -100.

        Returns B T V or T V, in the model's dtype; with targets, also the loss. Raises PromptError for no tokens or
        more than the context holds.
        """
        count, context = input_ids.shape[-1], self.decoder.spec.context
        if not 0 < count <= context:
            raise PromptError(f"The texts have {count} tokens.", f"There must be 1 to {context}.", "Cut them.")
        layout = Layout.of([count] * (input_ids.numel() // count), input_ids.device)
        hidden = self.decoder(input_ids.reshape(-1), layout)  # B*T D
        logits = self.decoder.logits(hidden).view(*input_ids.shape, -1)
        if target_ids is None:
            return logits
        return logits, (loss_fn or _cross_entropy)(logits[..., :-1, :], target_ids[..., 1:])

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The weights by their names on disk, as `model.embed_tokens.weight`.

        destination: a mapping that they are put into. prefix: what stands before each name. keep_vars: the parameters
            themselves instead of their detached values.
        """
        return self.decoder.state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)


def messages(prompt: str | Sequence[Mapping[str, Any]], system: str | None) -> list[Mapping[str, Any]]:
    """A question, or a conversation, as messages, after a system message if there is one."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, *([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)]


def _cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    rows, wanted = scores.reshape(-1, scores.shape[-1]).float(), targets.reshape(-1)
    total = F.cross_entropy(rows, wanted, ignore_index=IGNORE, reduction="sum")
    return total / (wanted != IGNORE).sum().clamp(min=1)


def _named(module: Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Weights by the names that `state_dict` gives them, as torch looks for them below this module."""
    inside = prefix + "_decoder."
    for name in [name for name in state if name.startswith(prefix) and not name.startswith(inside)]:
        state[inside + name.removeprefix(prefix)] = state.pop(name)
    module.decoder  # noqa: B018  which says so where nothing is loaded that could take them
