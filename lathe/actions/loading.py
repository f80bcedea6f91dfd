"""Options that say how a model is kept in memory -> the LLM in its place; imports no torch before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lathe.actions.place import Places

if TYPE_CHECKING:
    import torch

    from lathe.llm import LLM


@dataclass(frozen=True, kw_only=True)
class Loading(Places):
    """What every action that runs a model has in common."""

    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""
    precision: str = "auto"
    """Number format of the weights: bf16, fp16, fp32; auto keeps that of the files."""
    quantize: str | None = None
    """Keep the matrices of layers in fewer bits: int8 or int4, which answer sooner on a CPU, nf4, or nf4-dq, which
    is a little smaller."""
    native: bool = True
    """On a CPU, compute by kernels that are compiled for this processor when they are first used (some 20 seconds)."""
    keep_packed: bool = False
    """Keep the codes of a quantized model as a CPU multiplies by them, in a folder .lathe beside it, and from then on
    map them: it loads at once."""

    def load(self, place: Path, device: str | torch.device | None = None, **more: Any) -> LLM:
        """The model that lies there. device: instead of --device. more: further arguments of `LLM.load`."""
        from lathe.llm import LLM

        return LLM.load(
            place,
            device=self.device if device is None else device,
            dtype=self.precision,
            quantize=self.quantize,
            native=self.native,
            keep_packed=self.keep_packed,
            checkpoints=self.checkpoints,
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class Speaking(Loading):
    """What every action that lets a model speak has in common."""

    draft: str | None = None
    """A smaller model with the same vocabulary that guesses ahead. The answers stay the same, or of the same
    distribution where they are drawn; they come sooner where it guesses well. Or "ngram": no model guesses, but what
    followed the last words before; the answers stay the same."""
    prompt_style: str = "auto"
    """Write conversations in this style, as alpaca, chatml or llama3; none for plain text; auto goes by the style
    that LitGPT left beside the weights, else by the model's chat template."""
    kv: Literal["auto", "int8"] = "auto"
    """How keys and values of what was read are kept: in 8 bits (int8), which takes half the room of bf16, or in the
    number format of the weights (auto)."""

    def load(self, place: Path, device: str | torch.device | None = None, **more: Any) -> LLM:
        return super().load(place, device, kv=self.kv, draft=self.draft, prompt_style=self.prompt_style, **more)


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """What actions have in common whose model may have adapters on it."""

    adapter: tuple[str, ...] = ()
    """A LoRA or another adapter for the model, a folder or repo id, or NAME=PATH. May be given several times: then
    what they do adds up."""
