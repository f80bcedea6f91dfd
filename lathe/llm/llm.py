"""A model's name becomes an LLM, loaded where it is wanted; an LLM becomes files, or figures on tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lathe import checkpoint, engine
from lathe.errors import UsageError
from lathe.llm.answering import Answering
from lathe.model.decoder import Decoder
from lathe.source import Place, Source
from lathe.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lathe.evaluation.results import Result


class LLM(Answering):
    """A language model with its tokenizer. One thread at a time may use it.

    Args:
        decoder: the model; None while it is not loaded.
        config, generation: the checkpoint's config.json and generation_config.json, for `save`; the latter also says
            how answers are sampled and which tokens end them.
        drafter: guesses tokens ahead, for speed alone.
        source: where `distribute` and `trainer_setup` load the weights from again.

    `prompt` is a string (a user's message where the model has a chat template, unless `raw`; else the beginning of a
    text), a list of messages {"role": ..., "content": ...}, or a list of token ids, taken as they are.

    An LLM is also a torch module with the model's parameters: called with tokens it returns scores and a loss
    (`forward`), so any training loop or Trainer can train it.
    """

    def __init__(
        self,
        decoder: Decoder | None,
        tokenizer: Tokenizer,
        config: Mapping[str, Any],
        generation: Mapping[str, Any] | None = None,
        drafter: engine.Drafter | None = None,
        source: Source | None = None,
    ) -> None:
        super().__init__(decoder, tokenizer, generation or {}, drafter, source)
        self.config = config

    @staticmethod
    def load(
        model: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        quantize: str | None = None,
        kv: Literal["auto", "int8"] = "auto",
        adapter: checkpoint.Named | None = None,
        draft: str | Path | None = None,
        draft_tokens: int | None = None,
        prompt_style: str = "auto",
        devices: int | Literal["auto"] = 1,
        strategy: Literal["tensor", "layers"] = "layers",
        native: bool = True,
        keep_packed: bool = False,
        checkpoints: str | Path = "checkpoints",
        init: Literal["pretrained", "random"] = "pretrained",
        tokenizer_dir: str | Path | None = None,
        access_token: str | None = None,
        distribute: Literal["auto"] | None = "auto",
    ) -> LLM:
        """The model in a folder or file, or with a repo id: found below `checkpoints` or in the cache, or downloaded.

        device: "auto" takes a GPU where there is one. dtype: "auto" keeps that of the files; "bf16", "fp16", "fp32".
        quantize: keep the matrices of layers in 4 bits ("int4", "nf4", "nf4-dq") or 8 ("int8") to save memory
            (docs/quantize.md says where this also saves time). LitGPT's "bnb.nf4" and the like are understood.
        kv: "int8" keeps keys and values in 8 bits, half the memory of bf16 (docs/engine.md); "auto" keeps them in the
            weights' number format.
        devices: with strategy "layers", the GPUs over which the layers are spread, one after the other ("auto": all).
            With "tensor" every layer is divided among as many processes, each of which calls this with its own device
            (`lathe generate --devices` starts them; or torchrun and `torch.distributed.init_process_group`).
        adapter: a folder or repo with an adapter for the model. Several, whose effects add up, are given by name: in a
            mapping, or as "NAME=PATH". `transforms.adapt` switches them, on `LLM.decoder`. `model` may be an adapter,
            too.
        draft: a smaller model with the same vocabulary, which guesses `draft_tokens` tokens ahead (4 by default).
            Answers come sooner; greedy ones stay the same, sampled ones keep their distribution. "ngram" needs no
            model: it guesses what followed the last tokens before, and leaves every answer the same.
        native: on a CPU, compute with kernels that are compiled for this processor when they are first used.
        keep_packed: keep the codes that these kernels multiply by in a folder .lathe beside the model, from where they
            are mapped from then on.
        prompt_style: "auto" writes conversations in the style that LitGPT left beside the weights, else by the chat
            template; the name of a style takes the place of both, and "none" is plain text.
        init: "random" takes only the shape from the model (of which a name like "pythia-160m" is enough) and draws
            float32 weights from torch's generator, so that `torch.manual_seed` repeats them.
        tokenizer_dir: a folder or repo whose tokenizer takes the place of the model's.
        access_token: for repos of the Hub that are gated or private; by default $HF_TOKEN.
        distribute: None reads no weights yet: `distribute` or `trainer_setup` will.

        Raises:
            MissingError: there is no such model.
            CheckpointError, ConfigError, TokenizerError: its files are damaged or not understood.
            UsageError: the device or dtype is not available; the draft has another vocabulary; the adapters do not go
                together; the weights cannot be quantized so, or the keys and values or packed codes kept so; the
                tokenizer has more tokens than the model.
        """
        below = Path(checkpoints)
        if init == "random":
            if adapter is not None or draft is not None:
                raise UsageError("Random weights have no adapter and no draft.", fix='Leave init="random" out.')
            source = Source.random(str(model), prompt_style, tokenizer_dir, below, access_token)
        elif init == "pretrained":
            source = Source.files(str(model), adapter, prompt_style, tokenizer_dir, below, access_token)
        else:
            raise UsageError(f'init is "{init}".', 'It must be "pretrained" or "random".')
        place = Place(device, dtype, quantize, devices, strategy, native, kv, keep_packed)
        drafter = None if draft is None else source.drafter(draft, draft_tokens, place, below)
        llm = LLM(None, source.tokenizer, source.config, source.generation, drafter, source)
        if distribute is not None:
            llm._put(source.decoder(place), place)
        return llm

    def save(self, path: str | Path, format: str = "hf") -> None:
        """Write the model for transformers ("hf", a folder), for LitGPT ("litgpt", a folder) or as a "gguf" file.

        Raises:
            UsageError: something is at `path` already, or there is no such format.
            ConfigError: the format cannot express this model.
        """
        checkpoint.save(
            path, self.decoder, self.config, form=format, generation=self.generation, tokenizer=self.tokenizer
        )

    def evaluate(
        self,
        tasks: str | Sequence[str],
        *,
        data: str | Sequence[str] = (),
        num_fewshot: int | None = None,
        fewshot_data: str | None = None,
        limit: float | None = None,
        apply_chat_template: bool = False,
        batch_tokens: int | None = None,
        out_dir: str | Path | None = None,
    ) -> dict[str, Result]:
        """Measure the model on tasks. Returns the results by the tasks' names.

        tasks: files of rows, "perplexity" of the texts in `data`, and tasks of lm-evaluation-harness; docs/evaluate.md
        tells what each measures. The other options are those of `lathe evaluate`; without `out_dir` nothing is written.

        Raises UsageError, MissingError, DataError.
        """
        from lathe.evaluation import results
        from lathe.evaluation.examination import Examination
        from lathe.evaluation.local import Local
        from lathe.evaluation.tasks import Settings

        settings = Settings(num_fewshot, fewshot_data, limit, chat=apply_chat_template)
        names, texts = ([word] if isinstance(word, str) else word for word in (tasks, data))
        subject = Local(self.decoder, self.tokenizer, self.stops, batch_tokens=batch_tokens)
        made = Examination.of(names, settings, data=texts).run(subject)
        if out_dir is not None:
            Path(out_dir).mkdir(parents=True, exist_ok=True)
            results.save(Path(out_dir), made, {"model": None, "identity": None})
        return {result.task: result for result in made}
