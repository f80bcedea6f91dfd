"""A decoder in training is measured on tasks, as it is and where it is: no copy, and nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lathe.errors import UsageError

if TYPE_CHECKING:
    from lathe.evaluation.examination import Examination
    from lathe.model.decoder import Decoder
    from lathe.tokenizer import Tokenizer
    from lathe.training.grid import Grid


def examination(tasks: Sequence[str], limit: float | None, grid: Grid) -> Examination | None:
    """What the names of tasks mean; None without any. Raises UsageError where no process has a whole model to ask, and
    as `Examination.of`."""
    if not tasks:
        return None
    if grid.shards > 1 or grid.slices > 1:
        found = "--eval-tasks are given, and the model is divided among processes."
        raise UsageError(found, "Each must have all of it.", "Take --strategy ddp, or evaluate the steps it saves.")
    from lathe.evaluation.examination import Examination
    from lathe.evaluation.tasks import Settings

    return Examination.of(tasks, Settings(limit=limit))


def figures(
    exam: Examination, decoder: Decoder, tokenizer: Tokenizer, generation: Mapping[str, Any]
) -> dict[str, float]:
    """The figures of a decoder that is in its state for answering, by "task/metric"."""
    from lathe.evaluation.local import Local
    from lathe.llm import ends

    results = exam.run(Local(decoder, tokenizer, ends(tokenizer, generation)))
    return {f"{each.task}/{metric}": value for each in results for metric, value in each.metrics.items()}
