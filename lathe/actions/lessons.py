"""A model and files of examples become what it learns from and what is held out, written as the model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lathe.actions import outset
from lathe.actions.methods import Finetune
from lathe.actions.written import ROW
from lathe.errors import DataError

if TYPE_CHECKING:
    from lathe.checkpoint import Checkpoint
    from lathe.data.examples import Examples
    from lathe.data.render import Group, Renderer


def lessons(options: Finetune, base: Checkpoint) -> tuple[Renderer, Examples, Examples]:
    """What writes examples for the model, those to train on, and those held out.

    Raises:
        UsageError: the model has fewer positions than are asked for.
        CheckpointError: it has no row for a token of the tokenizer beside it.
        DataError, TokenizerError: there is nothing to learn, or a row is broken.
    """
    from lathe.data import check, sources
    from lathe.data.examples import Examples
    from lathe.data.formats import Samples, parse_columns
    from lathe.data.presets import sides
    from lathe.data.render import Renderer

    length = outset.row(options, base.spec.context, min(base.spec.context, ROW))
    renderer = Renderer(base.tokenizer(), options.loss_on, options.prompt_style)
    outset.fits(renderer.tokenizer, base.spec, "The tokenizer's files in the model's folder should be its own.")

    def examined(data: Sequence[str]) -> Examples:
        samples = Samples(sources.rows(data), parse_columns(options.columns))
        report = check.examine(samples, renderer, length)
        check.refuse(report, options.skip_bad_rows, options.max_repeats)
        agree(options, report.groups)
        return Examples(report.groups, length, report.cut, len(report.faults) + report.unwanted)

    data, held = sides(options.data, options.val_split_fraction, options.val_data)
    if isinstance(held, float):
        return renderer, *examined(data).split(held, options.seed)
    return renderer, examined(data), examined(held)


def agree(options: Finetune, groups: Sequence[Group]) -> None:
    """Raise DataError where the data are not what the objective learns from."""
    name, paired = " ".join(options.data), options.objective != "next-token"
    if paired and any(len(group) == 1 for group in groups):
        expected = "Each row must have two answers, chosen and rejected."
        raise DataError(f"{name} holds answers without another to compare them with.", expected)
    if not paired and any(len(group) > 1 for group in groups):
        found = f"{name} holds pairs of answers, chosen and rejected, to learn a preference from."
        raise DataError(found, "", "Add --objective dpo.")
