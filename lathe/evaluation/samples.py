"""A row of a file becomes a sample: what is asked of it, and what the answers are worth.

What a row is, is seen from its keys:

query (or question), choices, gold (or answer)    several ways to go on, one of them right
question, choices, answer, subject                the same with letters for the choices (MMLU's form)
context, continuation                             a text and how it goes on; also prompt, canonical_solution
question, answer                                  a question and its answer, word for word, or the number behind ####
text                                              a document
prompt, or turns                                  something to be answered, without a right answer

Knows no file and no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from lathe.errors import DataError
from lathe.evaluation.asks import Answer, Likely
from lathe.evaluation.figures import Measure

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MARK = "####"  # before the number that a solution comes to
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
ABOUT = "The following are multiple choice questions (with answers) about {}.\n\n"
GROUP = "subject"  # examples are of the sample's own


@dataclass(frozen=True)
class Sample:
    """number: of the row in its file, from 0. row: as the file has it. prompt: what is asked. target: the right answer,
    as an example shows it."""

    number: int
    row: Mapping[str, Any]
    prompt: str
    target: str
    kind: ClassVar[str]

    @property
    def group(self) -> str:
        return str(self.row.get(GROUP, ""))

    @property
    def heading(self) -> str:
        """What stands before the examples."""
        return ABOUT.format(self.group.replace("_", " ")) if self.group else ""

    @property
    def stops(self) -> tuple[str, ...]:
        """Where an answer that is written ends."""
        return ()

    def continuations(self) -> Sequence[str]:
        """Texts after the prompt whose likelihoods are wanted; none where an answer is to be written."""
        return ()

    def measures(self, answers: Sequence[Answer], tokens: int) -> dict[str, Measure]:
        """What the answers are worth, by metrics. tokens: how many were judged."""
        raise NotImplementedError


@dataclass(frozen=True)
class Choice(Sample):
    choices: tuple[str, ...]
    gold: int
    kind: ClassVar[str] = "multiple choice"

    def continuations(self) -> Sequence[str]:
        return self.choices

    def measures(self, answers: Sequence[Answer], tokens: int) -> dict[str, Measure]:
        likely = np.array([cast("Likely", answer).logprob for answer in answers])
        sizes = np.array([max(len(choice.encode()), 1) for choice in self.choices])
        return {"acc": float(likely.argmax() == self.gold), "acc_norm": float((likely / sizes).argmax() == self.gold)}


@dataclass(frozen=True)
class Continuation(Sample):
    kind: ClassVar[str] = "continuation"

    def continuations(self) -> Sequence[str]:
        return (self.target,)

    def measures(self, answers: Sequence[Answer], tokens: int) -> dict[str, Measure]:
        [found] = cast("Sequence[Likely]", answers)
        return {
            "acc": float(found.greedy),
            "perplexity": found.logprob,
            "token_perplexity": (found.logprob, tokens),
        }


@dataclass(frozen=True)
class Question(Sample):
    kind: ClassVar[str] = "exact match"

    @property
    def right(self) -> str:
        return self.target.rpartition(MARK)[2].strip()

    @property
    def stops(self) -> tuple[str, ...]:
        return ("Question:",) if MARK in self.target else ("\n",)

    def measures(self, answers: Sequence[Answer], tokens: int) -> dict[str, Measure]:
        [said] = cast("Sequence[str]", answers)
        return {"exact_match": float(self.found(said) == _plain(self.right))}

    def found(self, said: str) -> str:
        """The answer in what was said: all of it, or where a number is wanted, the one behind #### or the last one."""
        if MARK not in self.target:
            return _plain(said)
        _, marked, after = said.partition(MARK)
        numbers = NUMBER.findall(after.strip().splitlines()[0] if marked and after.strip() else said)
        return _plain((numbers[0] if marked else numbers[-1]) if numbers else "")


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".").replace(",", "")


@dataclass(frozen=True)
class Document(Sample):
    kind: ClassVar[str] = "perplexity"

    def measures(self, answers: Sequence[Answer], tokens: int) -> dict[str, Measure]:
        found = sum(cast("Likely", answer).logprob for answer in answers)
        size = len(self.target.encode())
        return {
            "token_perplexity": (found, tokens),
            "word_perplexity": (found, len(re.split(r"\s+", self.target))),
            "byte_perplexity": (found, size),
            "bits_per_byte": (found, size),
        }


@dataclass(frozen=True)
class Open(Sample):
    kind: ClassVar[str] = "generation"

    def measures(self, answers: Sequence[Answer], tokens: int) -> dict[str, Measure]:
        [said] = cast("Sequence[str]", answers)
        return {"words": float(len(said.split()))}


def sample(number: int, row: Mapping[str, Any]) -> Sample:
    """What a row is. Raises DataError, not naming the row."""
    if "choices" in row:
        return _choice(number, row)
    if "context" in row and "continuation" in row:
        return Continuation(number, row, _text(row, "context"), _text(row, "continuation"))
    if "prompt" in row and "canonical_solution" in row:
        return Continuation(number, row, _text(row, "prompt"), _text(row, "canonical_solution"))
    if "question" in row and "answer" in row:
        return Question(number, row, f"Question: {_text(row, 'question')}\nAnswer:", _text(row, "answer"))
    if "text" in row:
        return Document(number, row, "", _text(row, "text"))
    if "prompt" in row:
        return Open(number, row, _text(row, "prompt"), "")
    if isinstance(turns := row.get("turns"), list) and turns and isinstance(turns[0], str):
        return Open(number, row, turns[0], "")
    expected = "A row has query, choices and gold; context and continuation; question and answer; text; or prompt."
    raise DataError(f"a row with {', '.join(map(str, row)) or 'nothing'} is no sample that is known.", expected)


def _choice(number: int, row: Mapping[str, Any]) -> Choice:
    choices = row["choices"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise DataError('"choices" is no list of at least two texts.')
    gold = row.get("gold", row.get("answer", row.get("label")))
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        expected = f"It must be the number of a choice, from 0 to {len(choices) - 1}."
        raise DataError(f'the right choice, "gold", is {gold!r}.', expected)
    if "query" in row:
        return Choice(number, row, _text(row, "query"), choices[gold], tuple(choices), gold)
    if len(choices) > len(LETTERS):
        raise DataError(f"there are {len(choices)} choices, and {len(LETTERS)} letters for them.")
    letters = LETTERS[: len(choices)]
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(letters, choices, strict=True))
    prompt = f"{_text(row, 'question').strip()}\n{listed}Answer:"
    return Choice(number, row, prompt, letters[gold], tuple(letters), gold)


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(value := row.get(name), str):
        raise DataError(f'"{name}" is {type(value).__name__ if name in row else "missing"}.', "It must be text.")
    return value
