"""A decoder, rows and an objective become a finished run: what every action that trains does the same way.

Knows no method and no format of data: those come in a `Course`, which the action makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe.actions import examined
from lathe.actions.training import Options
from lathe.options import to_yaml

if TYPE_CHECKING:
    from rich.console import Console

    from lathe.data.loader import Steps, Work
    from lathe.evaluation.examination import Examination
    from lathe.model.decoder import Decoder
    from lathe.tokenizer import Tokenizer
    from lathe.training import loop, saves
    from lathe.training.precision import Precision
    from lathe.training.progress import Display
    from lathe.training.run import Run
    from lathe.training.spread import Spread

UNSAVED = 1 << 16  # beyond every signal: a save has failed


@dataclass(frozen=True)
class Course:
    """What one training is made of.

    title: of its curve. plan: what is about to happen, for the user. steps: of the optimizer.
    spread: how the decoder lies on the processes that train it.
    data: what each step learns from. held: what is held out, from its beginning; None where nothing is.
    model: what is saved of it as it is now. All processes call it: each gets the tensors of the whole model that it
        writes, or the first one gets an adapter's files.
    config, generation: config.json and generation_config.json of what is saved.
    say: what the model writes at the moment, as text for the user; None where nothing is to be shown.
    perplexity: whether the loss is that of tokens.
    """

    title: str
    plan: str
    decoder: Decoder
    spread: Spread
    precision: Precision
    objective: loop.Objective
    data: Steps
    held: Callable[[], Iterator[Work]] | None
    steps: int
    model: Callable[[], saves.Model]
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tokenizer: Tokenizer
    say: Callable[[], str] | None = None
    perplexity: bool = True


def console() -> Console:
    """Where a training says what it does."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def follow(course: Course, options: Options, step: Path | None, out: Console) -> int | None:
    """Train, validate and save as `options` say, from the beginning or from a step of the same run. Returns 128 and the
    signal that ended it early, or None."""
    import yaml

    from lathe.training import loggers, loop, optim, state
    from lathe.training.about import About
    from lathe.training.progress import Display
    from lathe.training.run import Run, interruptible
    from lathe.training.saves import step_name

    train, recipe = options.train, to_yaml(options)
    prepare(course.decoder, options)
    optimizers = optim.build(course.decoder, replace(options.optimizer.settings(), compiled=options.compile))
    schedule, limits = train.rates(course.steps, options.optimizer.lr), train.limits(course.steps)
    spread, scale = course.spread, course.precision.scale()
    spread.learn(course.decoder)
    training = state.Training(course.decoder, optimizers, {"data": course.data, "scale": scale}, spread)
    progress = training.restore(step / "state") if step else state.Progress()
    exam = examined.examination(options.eval_tasks, options.eval_limit, spread.grid)
    out.print(course.plan if step is None else f"{course.plan}\nResume from {step}")
    others = loggers.open(options.logger, options.out_dir, course.title, yaml.safe_load(recipe)) if spread.first else []
    about = About.of(course.title, recipe, course.decoder, course.precision, others, spread.grid.size)
    with (
        Run(options.out_dir, options.overwrite, (step, progress) if step else None, train.keep, about) as record,
        interruptible() as stopped,
        Display(out, course.steps, about.gauge) as display,
    ):
        ended = 0  # by which signal, on any process

        def after(at: loop.Step) -> bool:
            nonlocal ended
            ended = spread.most(UNSAVED if record.saves.failed else stopped())
            if ended == UNSAVED:
                record.wait()  # which raises it, and on all at the same step
            record.step(at)
            display.step(at)
            if at.number % options.eval.interval == 0:
                look(course, options, record, display, exam)
            if at.number % train.save_interval == 0 and not ended:
                save(step_name(at.number), training)
            return not ended

        def save(name: str, whole: state.Training | None) -> Path:
            return record.save(
                name,
                course.model(),
                course.config,
                generation=course.generation,
                tokenizer=course.tokenizer,
                recipe=recipe,
                training=whole,
            )

        course.decoder.train()
        reached = loop.train(
            course.objective,
            optimizers,
            course.data,
            schedule,
            limits,
            train.max_norm,
            after,
            begin=progress.reached,
            ranks=spread,
            scale=scale,
        )
        early = 0 if limits.over(reached) else ended
        if not early and reached.steps % options.eval.interval:
            look(course, options, record, display, exam)
        place = save(step_name(reached.steps), training) if early else save("final", None)
    if spread.first:
        out.print(record.draw(course.title))
        time, speed = timedelta(seconds=round(record.seconds)), record.tokens / record.seconds
        out.print(f"Saved {place} after {reached.steps:,} steps in {time}, {speed:,.0f} tokens/s")
    return 128 + early if early else None


def prepare(decoder: Decoder, options: Options) -> None:
    """Change how the layers compute, where that is asked for: in 8-bit floats, compiled, in less memory."""
    from lathe.training import blocks, float8

    if options.float8:
        float8.put(decoder)
    if options.compile:
        blocks.compiled(decoder)
    if options.activation_checkpointing:
        blocks.checkpointed(decoder)


def look(course: Course, options: Options, record: Run, display: Display, exam: Examination | None) -> None:
    """Validate the model as it is now, measure it on tasks, and show what it writes. Raises UsageError for a loss that
    is no number."""
    from lathe.training import loop

    course.decoder.eval()
    step = record.progress.reached.steps
    if course.held:
        mean = loop.mean(course.objective, islice(course.held(), options.eval.max_iters), course.spread)
        course.spread.settle()
        loop.check(mean, step)
        record.validated(step, mean)
        more = f"  perplexity {math.exp(mean):.1f}" if course.perplexity else ""
        display.say(f"step {step}  validation loss {mean:.3f}{more}")
    if exam is not None:
        figures = examined.figures(exam, course.decoder, course.tokenizer, course.generation)
        record.examined(step, figures)
        display.say("\n".join(f"step {step}  {name} {value:.4f}" for name, value in figures.items()))
    if course.say:
        said = course.say()
        record.sample(step, said)
        display.say(said)
    course.decoder.train()
