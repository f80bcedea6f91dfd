"""What a training has to settle before its first step: where it goes on from, how long rows are, what lies where.

Options and a model on disk become a step's folder, a length, and this process's part of the decoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lathe.actions import launch
from lathe.actions.training import Options
from lathe.errors import CheckpointError, UsageError
from lathe.options import to_yaml

if TYPE_CHECKING:
    import torch

    from lathe.checkpoint import Checkpoint
    from lathe.model.decoder import Decoder
    from lathe.model.spec import Spec
    from lathe.tokenizer import Tokenizer
    from lathe.training.precision import Precision
    from lathe.training.spread import Spread

WHOLE_ONLY = ("adafactor",)  # optimizers that do not work on shards


def begun(options: Options) -> Path | None:
    """The step that --resume goes on from; None for a new run. Of several processes the first one looks.

    Raises UsageError where the run's folder holds another one, and as `resume.find` and `resume.check`.
    """
    import yaml

    from lathe.training import agreement, resume
    from lathe.training.run import refuse

    wanted: bool | str = {None: False, "false": False, "true": True}.get(options.resume, options.resume or False)

    def look() -> Path | None:
        step = resume.find(options.out_dir, wanted)
        refuse(options.out_dir, options.overwrite or step is not None)
        if step is not None:
            resume.check(step, yaml.safe_load(to_yaml(options)), options.bound())
        return step

    return agreement.first(look)


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
    """How a model is to lie on the processes there are. weight_bytes: of one number of a weight. all_learn: each number
    has a gradient and two of an optimizer's beside it.

    Raises UsageError where so many processes cannot divide it so.
    """
    from lathe import checkpoint
    from lathe.training.grid import divided, room
    from lathe.training.spread import Spread
    from lathe.transforms.group import Group

    count = Group.joined().count
    size = sum(slot.numel() for _, slot in checkpoint.slots(checkpoint.blank(spec)))
    need = size * weight_bytes * (4 if all_learn else 1)
    grid = divided(count, launch.near(count), options.tensor_parallel, options.strategy, need, room(device))
    method = options.optimizer.name
    if (grid.shards > 1 and method in WHOLE_ONLY) or (grid.slices > 1 and method != "adamw"):
        found = f"--optimizer.name is {method}, and no device has the whole of a matrix."
        raise UsageError(found, "It takes all of it together.", "Take adamw, or --strategy ddp.")
    if grid.slices > 1 and options.train.balance_loss:
        found = "--train.balance-loss does not go together with --tensor-parallel."
        raise UsageError(found, "", "Take --strategy fsdp for a model with experts.")
    return Spread(device, grid)


def loaded(
    spread: Spread, given: Checkpoint, chosen: Precision, quantize: str | None = None, dense: bool = False
) -> Decoder:
    """This process's part of a model on disk, of which it reads no more. Nothing of it asks for gradients.

    quantize: how its matrices are packed. dense: none is, for all of them are to learn. Raises UsageError where packed
    ones would be divided among processes, too.
    """
    if spread.grid.shards == spread.grid.slices == 1:
        return given.load(chosen.device, chosen.weights, quantize=quantize, dense=dense)
    if quantize:
        found = f"--quantize {quantize} is asked for, and the model is to be divided among processes."
        raise UsageError(found, "Packed weights are not divided.", "Give each process all of them: --strategy ddp.")
    tensors = given.fitting(chosen.weights)
    return spread.load(given.spec, tensors, chosen.weights, chosen.autocast).requires_grad_(False).eval()
