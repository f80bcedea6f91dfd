"""Samples -> what training will learn from them, and what is wrong with them, row by row; knows no model.

A row is at fault that cannot be read or rendered, that has nothing to learn or an empty answer, that does not teach
where an answer ends, or whose text begins with two BOS. Where the rest is as it should be, it may go without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lathe.data.formats import Samples
from lathe.data.pack import fitted
from lathe.data.render import Example, Group, Renderer, learned
from lathe.data.samples import Chat, Completion, Judged, Preference, Sample, Text
from lathe.errors import DataError, LatheError

SHOWN = 5  # rows that an error names
REPEATS = 0.3  # of the rows may say what an earlier one says


@dataclass(frozen=True)
class Fault:
    """row: counted from 1. found: what is wrong, with the row's place."""

    row: int
    found: str


@dataclass(eq=False)
class Report:
    """What samples are for a model.

    rows: how many there are. groups: what is learned, of the rows without fault. origins: the row of each, from 0.
    shapes: how many samples of each kind. cut: examples that lost their end. rewritten: conversations that became
    several examples. unwanted: answers that are marked as not wanted, and left out. repeats: rows that say what an
    earlier one says, from 0. toolless: conversations whose tools the template does not show.
    """

    rows: int
    length: int
    groups: list[Group] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    rewritten: int = 0
    unwanted: int = 0
    toolless: int = 0
    repeats: list[int] = field(default_factory=list)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64: tokens of each example, of those that remain."""
        return np.array([len(example) for group in self.groups for example in group], dtype=np.int64)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def supervised(self) -> int:
        """Tokens that are learned."""
        return learned(self.groups)

    @property
    def repeated(self) -> float:
        """The part of the rows that say what an earlier one says."""
        return len(self.repeats) / max(1, self.rows)


def examine(samples: Samples, renderer: Renderer, length: int, shown: Iterable[int] | None = None) -> Report:
    """Every sample rendered and looked at.

    Args:
        length: examples of more tokens lose their end.
        shown: the rows' numbers in order, where somebody wants to watch them pass.
    """
    report = Report(len(samples), length)
    seen: set[bytes] = set()
    for index in range(len(samples)) if shown is None else shown:
        try:
            sample = samples[index]
        except DataError as error:
            report.faults.append(Fault(index + 1, str(error)))
            continue
        report.shapes[kind(sample)] += 1
        try:
            groups = renderer.groups(sample)
            found = fault(sample, groups, renderer)
        except LatheError as error:
            groups, found = [], str(error)
        kept = [short for group in groups if (short := fitted(group, length))]
        if not found and groups and not kept:
            found = f"there is nothing to learn within {length:,} tokens."
        if found:
            report.faults.append(Fault(index + 1, f"{samples.place(index)}: {found}"))
            continue
        said = b"".join(example.ids.tobytes() for group in groups for example in group)
        if said and said in seen:
            report.repeats.append(index)
        seen.add(said)
        report.cut += sum(len(example) > length + 1 for group in groups for example in group)
        report.rewritten += len(groups) > 1
        report.unwanted += not groups
        report.toolless += not renderer.writer.shows_tools and any(chat.tools for chat in chats(sample))
        report.groups += kept
        report.origins += [index] * len(kept)
    return report


def refuse(report: Report, skip: bool = False, repeats: float = REPEATS) -> None:
    """Raise DataError where rows are at fault and not to be skipped, nothing remains, or too many rows say the same."""
    count = len(report.faults)
    if count and (not skip or not report.groups):
        named = " ".join(fault.found for fault in report.faults[:SHOWN])
        more = f" And {count - SHOWN:,} more." if count > SHOWN else ""
        found = f"{count:,} of {report.rows:,} rows cannot be learned from. {named}{more}"
        fix = "Mend them, or leave them out with --skip-bad-rows; lathe data MODEL FILE lists them all."
        raise DataError(found, fix=fix if report.groups else "")
    if not report.groups:
        raise DataError("There is nothing to learn in the data.", "It needs an answer that is wanted.")
    if found := repeating(report, repeats):
        raise DataError(found, fix="Leave them out, or allow them with --max-repeats 1.")


def repeating(report: Report, most: float) -> str:
    """What is wrong where more than the part `most` of the rows say what an earlier one says; else nothing."""
    if report.repeated <= most:
        return ""
    named = ", ".join(f"{index + 1:,}" for index in report.repeats[:SHOWN])
    more = f" and {len(report.repeats) - SHOWN:,} more" if len(report.repeats) > SHOWN else ""
    count = f"{len(report.repeats):,} of {report.rows:,} rows say what an earlier one says, and {most:.0%} may"
    return f"{count}: {named}{more}."


# ---- one sample -----------------------------------------------------------------------------------------------------
def kind(sample: Sample) -> str:
    """What a sample is, for people."""
    match sample:
        case Chat():
            return "conversations" + (" with tools" if sample.tools else "")
        case Completion():
            return "prompts with completions"
        case Text():
            return "texts"
        case Preference():
            return "pairs of answers"
        case Judged():
            return "judged answers"


def chats(sample: Sample) -> list[Chat]:
    """The conversations in a sample."""
    return [part for part in parts(sample) if isinstance(part, Chat)]


def fault(sample: Sample, groups: Sequence[Group], renderer: Renderer) -> str:
    """What is wrong with a sample, a sentence; nothing where nothing is."""
    if any(map(empty, parts(sample))):
        return "the text is empty." if isinstance(sample, Text) else "an answer is empty."
    if isinstance(sample, Preference) and sample.chosen == sample.rejected:
        return "the two answers are the same."
    tokenizer = renderer.tokenizer
    for example in (example for group in groups for example in group):
        if not example.supervised[1:].any():
            return "there is no answer to learn."
        if not example.supervised[-1] or int(example.ids[-1]) not in renderer.ends:
            return "no token ends the answer: the tokenizer names no EOS, and the template has none."
        if tokenizer.bos_id is not None and bool(np.any(np.diff(np.flatnonzero(example.ids == tokenizer.bos_id)) == 1)):
            return f"two {tokenizer.bos} follow each other."
        inside = None if isinstance(sample, Text) or renderer.loss_on == "all" else ended_early(example, renderer.ends)
        if inside is not None:
            return f"an answer holds {tokenizer.token(inside)}, at which it would end."
    return ""


def parts(sample: Sample) -> Iterator[Chat | Completion | Text]:
    match sample:
        case Preference():
            yield from (sample.chosen, sample.rejected)
        case Judged():
            yield sample.answer
        case _:
            yield sample


def empty(part: Chat | Completion | Text) -> bool:
    """Whether there is an answer without a word, or no text."""
    match part:
        case Text():
            return not part.text.strip()
        case Completion():
            return not part.completion.strip()
    answers = [m for at, m in enumerate(part.messages) if m["role"] == "assistant" and at not in part.muted]
    return any(not (answer["content"].strip() or answer.get("tool_calls")) for answer in answers)


def ended_early(example: Example, ends: Sequence[int]) -> int | None:
    """An id that ends an answer and is followed by more of it."""
    followed = example.ids[:-1][example.supervised[:-1] & example.supervised[1:]]
    return next((end for end in ends if (followed == end).any()), None)
