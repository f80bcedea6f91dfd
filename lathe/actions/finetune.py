"""A model and examples of what it is to answer become an adapter for it, or the model changed whole."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lathe.actions import course, launch, outset
from lathe.actions.lessons import lessons
from lathe.actions.methods import Adapter, Finetune, Full, Lora
from lathe.actions.place import weights_at
from lathe.errors import UsageError

if TYPE_CHECKING:
    import torch

    from lathe.checkpoint import Checkpoint
    from lathe.data.examples import Examples
    from lathe.data.render import Renderer
    from lathe.model.decoder import Decoder
    from lathe.training import saves
    from lathe.training.loop import Objective
    from lathe.training.precision import Precision
    from lathe.training.spread import Spread

NAME = "default"  # of the adapter that learns, as PEFT calls one alone

Options = Lora


def run(options: Finetune) -> int | None:
    """Teach a model by examples.

    LoRA learns a small adapter beside the model, --method full changes the model itself. OUT_DIR/final is a model's
    folder or an adapter's, which opens like a model; OUT_DIR/metrics.jsonl gets a line for every step. Ctrl-C ends the
    run after the step at hand and saves what there is.
    """
    return launch.together(work, options)


def work(options: Finetune, device: torch.device) -> int | None:
    """One process of it."""
    import torch

    from lathe import checkpoint
    from lathe.training import precision, preference

    out, train, full = course.console(), options.train, isinstance(options, Full)
    step = outset.begun(options)
    base = opened(options)
    chosen = replace(precision.choose(device.type, options.precision or stored(options, base)), device=device)
    spread = outset.spread(options, device, base.spec, chosen.weights.itemsize, all_learn=full)
    renderer, examples, held = lessons(options, base)
    torch.manual_seed(options.seed)
    begin = checkpoint.open(step) if step and full else base
    given = outset.loaded(spread, begin, chosen, packed(options), dense=full)
    decoder = adapted(options, spread, given, base, renderer.ends)
    steps = train.steps_of(examples)
    generation = {**base.generation, "eos_token_id": list(renderer.ends)}
    torch.manual_seed(options.seed + spread.rank)  # each process leaves out what it learns without
    where: dict[str, Any] = {"rows": train.micro_batch_size, "device": device}
    where |= {"rank": spread.rank, "ranks": spread.count}
    if options.objective != "next-token":
        where["weigh"] = preference.pairs
    # What shards hold is brought together for learning only: answers by it would come too slowly.
    shown = options.eval.max_new_tokens and spread.grid.shards == 1
    made = course.Course(
        title=f"{options.model} on {' '.join(options.data)}",
        plan=plan(options, renderer, examples, held, decoder, steps),
        decoder=decoder,
        spread=spread,
        precision=chosen,
        objective=objective(options, decoder, base, chosen, spread),
        perplexity=options.objective == "next-token",
        data=examples.training(train.global_batch_size, seed=options.seed, **where),
        held=partial(held.validation, train.global_batch_size, **where) if len(held) else None,
        steps=steps,
        model=partial(saved, options, decoder, base, spread),
        config=base.config,
        generation=generation,
        tokenizer=renderer.tokenizer,
        say=partial(answers, options, decoder, renderer, held, generation) if shown else None,
    )
    return course.follow(made, options, step, out)


def saved(options: Finetune, decoder: Decoder, base: Checkpoint, spread: Spread) -> saves.Model:
    """What a step's folder gets of the decoder as it is now: all of it, or the adapter's files. See `Course.model`."""
    from lathe import checkpoint

    if isinstance(options, Full):
        return spread.share(decoder)
    whole = spread.whole(decoder, [name for name, slot in decoder.named_parameters() if slot.requires_grad])
    if whole is None:
        return ()
    named = str(base.path.resolve()) if Path(options.model).exists() else options.model
    if isinstance(options, Adapter):
        return checkpoint.llama_adapter_files(whole, NAME, named)
    return checkpoint.adapter_files(whole, NAME, base.config, named)


def objective(options: Finetune, decoder: Decoder, base: Checkpoint, chosen: Precision, spread: Spread) -> Objective:
    """What the decoder learns. A preference is held against the model without its adapter, or, where all of it learns,
    against a second one, which lies on the processes as the first does."""
    from lathe.training import loss, preference
    from lathe.training.spread import Spread

    if options.objective == "next-token":
        return loss.next_token(decoder, chosen.autocast, options.train.z_loss, options.train.balance_loss)
    wanted = options.preference
    settings = preference.Settings(options.objective, wanted.beta, wanted.label_smoothing, wanted.margin)
    if isinstance(options, Full) and options.objective not in preference.ALONE:
        other = outset.loaded(Spread(spread.device, spread.grid), base, chosen)
        # A copy, because weights that are loaded twice from one file may lie in the same memory.
        reference = preference.fixed(copy.deepcopy(other) if spread.grid.shards == spread.grid.slices == 1 else other)
    else:
        reference = preference.without_adapters(decoder)
    return preference.objective(decoder, settings, reference, chosen.autocast)


def opened(options: Finetune) -> Checkpoint:
    """The model to begin with. Raises UsageError for an adapter."""
    from lathe import checkpoint

    base = checkpoint.open(weights_at(options.model, options.checkpoints), options.checkpoints)
    if isinstance(base, checkpoint.Adapted):
        fix = f"Merge it first: lathe merge {options.model} MERGED. Then finetune MERGED."
        raise UsageError(f"{options.model} is an adapter.", "What is finetuned is a model.", fix)
    return base


def packed(options: Finetune) -> str | None:
    """How the model is kept beside what learns."""
    return options.quantize if isinstance(options, Lora | Adapter) else None


def stored(options: Finetune, base: Checkpoint) -> Literal["32-true", "bf16-true"] | None:
    """The precision that a model beside an adapter is kept in: that of its files. None where all of it learns."""
    if isinstance(options, Full):
        return None
    return "bf16-true" if base.dtype.itemsize == 2 else "32-true"


def adapted(options: Finetune, spread: Spread, decoder: Decoder, base: Checkpoint, ends: Sequence[int]) -> Decoder:
    """The decoder with what the method learns, and nothing else, asking for gradients.

    ends: ids that end an answer. A LoRA is by default on every matrix but the head, and on the head, too, where that
    never learned to tell one of `ends` from other tokens: no hidden state could make it the likeliest.
    """
    from lathe.transforms import adapt

    if isinstance(options, Full):
        return decoder.requires_grad_()
    assert isinstance(options, Lora | Adapter)
    parts = spread.adapter(decoder, options.settings())
    if isinstance(options, Lora) and not options.lora_targets and untaught(base, ends):
        parts |= spread.adapter(decoder, replace(options.settings(), targets=("lm_head",)))
    adapt.put(decoder, NAME, parts)
    adapt.trainable(decoder, [NAME])
    return decoder


def untaught(base: Checkpoint, ids: Sequence[int]) -> bool:
    """Whether the head's row of one of these tokens points the same way as another token's, as rows of tokens do that a
    model never saw."""
    rows = base.tensors["model.embed_tokens.weight" if base.spec.tied else "lm_head.weight"].read()
    lengths = rows.norm(dim=1)
    alike = [(rows @ rows[id] > 0.999 * lengths * lengths[id]).sum().item() for id in ids]
    return any(count != 1 for count in alike)


def answers(
    options: Finetune, decoder: Decoder, renderer: Renderer, held: Examples, generation: Mapping[str, Any]
) -> str:
    """What the model answers at the moment, to the questions of --eval.prompt or to the first that is held out."""
    from lathe.llm import LLM

    llm = LLM(decoder, renderer.tokenizer, {}, generation)
    room = decoder.spec.context - options.eval.max_new_tokens
    questions = [question for question in held.questions() if len(question) < room][:1]
    asked: list[str] = [*options.eval.prompt] or [renderer.tokenizer.decode(question) for question in questions]
    made = llm.batch(options.eval.prompt or questions, max_new_tokens=options.eval.max_new_tokens, temperature=0.0)
    shown = []
    for question, said in zip(asked, made, strict=True):
        shown += [f"  > {' '.join(question.split())[-100:]}", f"    {' '.join(said.text.split())}"]
    return "\n".join(shown)


def plan(
    options: Finetune,
    renderer: Renderer,
    examples: Examples,
    held: Examples,
    decoder: Decoder,
    steps: int,
) -> str:
    """What is about to happen, in three lines."""
    learned = sum(p.numel() for p in decoder.parameters() if p.requires_grad)
    size = sum(p.numel() for p in decoder.parameters())
    written = "by the model's chat template" if renderer.own else f"in the prompt style {renderer.tokenizer.style}"
    told = f"{examples.tokens:,} tokens, {examples.supervised:,} of them learned, {written}"
    less = f"; {examples.cut:,} cut to {examples.length} tokens" if examples.cut else ""
    less += f"; {examples.left_out:,} rows left out" if examples.left_out else ""
    epochs = steps * options.train.global_batch_size / len(examples)
    named = " ".join(options.data)
    return (
        f"Data   {named}: {len(examples):,} examples, {told}; {len(held):,} more to validate on{less}\n"
        f"Model  {options.model}: {size:,} parameters, of which {learned:,} learn ({options.method})\n"
        f"Plan   {steps:,} steps of {options.train.global_batch_size} examples, {epochs:.1f} times through the data"
    )
