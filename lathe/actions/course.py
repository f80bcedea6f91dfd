"""A decoder, rows and an objective become a finished run: what every action that trains does the same way.

Knows no method and no format of data: those come in a `Course`, which the action makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lathe.actions import examined, launch
from lathe.actions.training import Eval, Optimizer, Train
from lathe.errors import CheckpointError, UsageError
from lathe.options import to_yaml

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from lathe.checkpoint import Checkpoint
    from lathe.data.loader import Steps, Work
    from lathe.evaluation.examination import Examination
    from lathe.model.decoder import Decoder
    from lathe.model.spec import Spec
    from lathe.tokenizer import Tokenizer
    from lathe.training import loop, saves
    from lathe.training.precision import Precision
    from lathe.training.progress import Display
    from lathe.training.run import Run
    from lathe.training.spread import Spread


UNSAVED = 1 << 16  # beyond every signal: a save has failed
WHOLE_ONLY = ("adafactor",)  # optimizers that do not work on shards
FROM_ZERO = ("lr_warmup_steps", "lr_warmup_fraction", "z_loss", "balance_loss")  # what may be 0 but not less


@dataclass(frozen=True, kw_only=True)
class Options(launch.Devices):
    """What can be asked of every training."""

    data: tuple[str, ...]
    """What is learned from. May be given several times."""
    out_dir: Path = Path("out")
    """Where the run writes; its model is OUT_DIR/final."""
    overwrite: bool = False
    """Replace the model of an earlier run in OUT_DIR, once the new one is finished."""
    resume: str | None = None
    """Go on from the newest step in OUT_DIR; or from a step's folder that is named. With auto, begin where there is
    none. Everything goes on as if it had never stopped."""
    precision: Literal["32-true", "bf16-true", "bf16-mixed", "16-mixed"] | None = None
    """Number format. By default bf16-mixed on a GPU, 32-true on a CPU."""
    activation_checkpointing: bool = False
    """Compute what is between layers twice instead of remembering it: less memory, a third more time."""
    compile: bool = False
    """Compile the layers: a minute or more at first, then faster steps."""
    float8: bool = False
    """Compute the products of layers in 8-bit floats, on GPUs from Ada and Hopper on. Faster with --compile only."""
    logger: tuple[Literal["csv", "tensorboard", "wandb", "mlflow"], ...] = ()
    """Also tell these what metrics.jsonl is told."""
    seed: int = 42
    """For the weights, the order of the data and what is held out."""
    checkpoints: Path = Path("checkpoints")
    """Where models named by their repo id are looked for and downloaded to."""
    val_split_fraction: float | None = None
    """The part of the data that is held out for validation. By default 0.05, or what the data says: a folder with train
    and val in it, or a name (see docs/sources.md)."""
    val_data: tuple[str, ...] = ()
    """Data to validate on, instead of a part of the other."""
    eval_tasks: tuple[str, ...] = ()
    """Tasks to measure the model on whenever it is validated, as lathe evaluate has them: files of rows, and names."""
    eval_limit: float | None = None
    """Only so many samples of each of them; below 1, this part of them."""
    train: Train = field(default_factory=Train)
    """How long and how much."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """The method, and how far its steps go."""
    eval: Eval = field(default_factory=Eval)
    """Validation."""

    def __post_init__(self) -> None:
        self.check_devices()
        above = [f"train.{name}" for name in ("max_steps", "max_tokens", "epochs", "max_seconds")]
        above += ["train.max_seq_length", "train.max_norm", "train.decay_fraction", "optimizer.eps"]
        above += ["train.global_batch_size", "train.micro_batch_size"]
        above += ["eval.interval", "eval.max_iters", "optimizer.lr", "train.save_interval", "train.keep"]
        for name in (*above, *(f"train.{name}" for name in FROM_ZERO), "optimizer.weight_decay"):
            check(self, name, above=name in above)
        if not 0 <= (self.val_split_fraction or 0) < 1:
            raise UsageError(f"--val-split-fraction is {self.val_split_fraction}.", "It must be from 0 to below 1.")
        if not 0 <= self.train.min_lr <= self.optimizer.lr:
            found = f"--train.min-lr is {self.train.min_lr} and --optimizer.lr is {self.optimizer.lr}."
            raise UsageError(found, "The learning rate falls to min-lr, so it cannot be higher.")

    def bound(self) -> list[str]:
        """The options that must not change in a run."""
        return [
            "model",
            "data",
            "seed",
            "val_split_fraction",
            "precision",
            "optimizer.name",
            *(f"train.{name}" for name in ("global_batch_size", "max_seq_length")),
        ]


def check(options: object, name: str, above: bool) -> None:
    """Raise UsageError where an option is a number below 0, or is 0 and has to be above it."""
    value = attrgetter(name)(options)
    if value is not None and (value < 0 or (above and value == 0)):
        spelt = f"--{name.replace('_', '-')}"
        raise UsageError(f"{spelt} is {value}.", f"It must be {'above' if above else 'at least'} 0.")


@dataclass(frozen=True)
class Course:
    """What one training is made of.

    title: of its curve. plan: what is about to happen, for the user. steps: of the optimizer.
    data: what each of them learns from. held: what is held out, from its beginning; None where nothing is.
    spread: how the decoder lies on the processes that train it.
    model: what its folder shall hold of it, as it is now: all of it, of several processes from each what it writes; or
    an adapter's files, from the first. Asked of all. config: config.json.
    generation: generation_config.json.
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


def begun(options: Options) -> Path | None:
    """The step that --resume goes on from; None for a new run.

    Raises UsageError where the run's folder holds another one, and as `resume.find` and `resume.check`.
    """
    import yaml

    from lathe.training import resume
    from lathe.training.run import refuse

    wanted: bool | str = {None: False, "false": False, "true": True}.get(options.resume, options.resume or False)
    step = resume.find(options.out_dir, wanted)
    refuse(options.out_dir, options.overwrite or step is not None)
    if step is not None:
        resume.check(step, yaml.safe_load(to_yaml(options)), options.bound())
    return step


def row(options: Options, context: int, usual: int) -> int:
    """Tokens in a row: as many as asked for, else `usual`. Raises UsageError where the model has fewer positions."""
    length = options.train.max_seq_length or usual
    if length > context:
        found = f"--train.max-seq-length is {length}, and the model has {context} positions."
        raise UsageError(found, fix=f"Take at most {context}.")
    return length


def fits(tokenizer: Tokenizer, spec: Spec, fix: str) -> None:
    """Raise CheckpointError where the model has no row for a token."""
    if tokenizer.vocab_size > spec.vocab:
        found = f"The tokenizer has {tokenizer.vocab_size:,} tokens, and the model rows for {spec.vocab:,}."
        raise CheckpointError(found, fix=fix)


def spread(options: Options, device: torch.device, spec: Spec, weight_bytes: int, all_learn: bool) -> Spread:
    """How a model shall lie on the processes there are. weight_bytes: of one number of a weight. all_learn: each has a
    gradient and two numbers of an optimizer's beside it.

    Raises UsageError where so many processes cannot divide it so.
    """
    import torch.distributed as dist

    from lathe import checkpoint
    from lathe.training.spread import Spread, divided, room

    count = dist.get_world_size() if dist.is_initialized() else 1
    size = sum(slot.numel() for _, slot in checkpoint.slots(checkpoint.blank(spec)))
    need = size * weight_bytes * (4 if all_learn else 1)
    grid = divided(count, launch.near(count), options.tensor_parallel, options.strategy, need, room(device))
    method = options.optimizer.name
    if (grid.shards > 1 and method in WHOLE_ONLY) or (grid.slices > 1 and method != "adamw"):
        found = f"--optimizer.name is {method}, and no device has the whole of a matrix."
        raise UsageError(found, "It takes all of it together.", "Take adamw, or --strategy ddp.")
    if grid.slices > 1 and options.train.balance_loss:
        found = "--train.balance-loss is not to be had with --tensor-parallel."
        raise UsageError(found, "", "Take --strategy fsdp for a model with experts.")
    return Spread(device, grid)


def loaded(
    spread: Spread, given: Checkpoint, chosen: Precision, quantize: str | None = None, dense: bool = False
) -> Decoder:
    """This process's part of a model on disk, of which it reads no more. Nothing of it asks for gradients.

    quantize: how its matrices are packed. dense: none is, for all of them shall learn. Raises UsageError where packed
    ones would be divided among processes, too.
    """
    if spread.grid.shards == spread.grid.slices == 1:
        return given.load(chosen.device, chosen.weights, quantize=quantize, dense=dense)
    if quantize:
        found = f"--quantize {quantize} is asked for, and the model is to be divided among processes."
        raise UsageError(found, "Packed weights are not divided.", "Give each process all of them: --strategy ddp.")
    tensors = given.fitting(chosen.weights)
    return spread.load(given.spec, tensors, chosen.weights, chosen.autocast).requires_grad_(False).eval()


def follow(course: Course, options: Options, step: Path | None, out: Console) -> int | None:
    """Train, validate and save as `options` say, from the beginning or from a step of the same run. Returns 128 and the
    signal that ended it early, or None."""
    import yaml

    from lathe.training import blocks, float8, loggers, loop, optim, state
    from lathe.training.about import About
    from lathe.training.progress import Display
    from lathe.training.run import Run, interruptible
    from lathe.training.saves import step_name

    train, recipe = options.train, to_yaml(options)
    if options.float8:
        float8.put(course.decoder)
    if options.compile:
        blocks.compiled(course.decoder)
    if options.activation_checkpointing:
        blocks.checkpointed(course.decoder)
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
            told = spread.most(UNSAVED if record.saves.failed else stopped())
            if told == UNSAVED:
                record.wait()  # which raises it, and on all at the same step
            ended = told
            record.step(at)
            display.step(at)
            if at.number % options.eval.interval == 0:
                look(course, options, record, display, exam)
            if at.number % train.save_interval == 0 and not ended:
                save(step_name(at.number), training)
            return not ended

        def save(name: str, whole: state.Training | None) -> Path:
            small: dict[str, Any] = {"generation": course.generation, "tokenizer": course.tokenizer, "recipe": recipe}
            return record.save(name, course.model(), course.config, **small, training=whole)

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
    if not spread.first:
        return 128 + early if early else None
    out.print(record.draw(course.title))
    time = timedelta(seconds=round(record.seconds))
    out.print(f"Saved {place} after {reached.steps:,} steps in {time}, {record.tokens / record.seconds:,.0f} tokens/s")
    return 128 + early if early else None


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
