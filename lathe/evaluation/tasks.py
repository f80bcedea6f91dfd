"""A file of rows becomes a task, and a task and a subject what came of it; no library of tasks is needed.

Knows which texts are asked: examples, delimiters, the chat template. Knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from lathe.data import sources
from lathe.data.files import Record
from lathe.errors import DataError
from lathe.evaluation import wording
from lathe.evaluation.asks import Answer, Ask, Generation, Known, Likelihood, Subject, Words, ask_all
from lathe.evaluation.figures import Figure, Measure, figure
from lathe.evaluation.results import ITSELF, Result
from lathe.evaluation.samples import Choice, Document, Sample, sample

BETWEEN = "\n\n"  # examples


@dataclass(frozen=True)
class Settings:
    """How tasks are asked.

    num_fewshot: examples before each sample; None as the task has it, of files none. fewshot: a file to take them
    from, always its first; else they are the first rows of the task's own file, which are not asked then.
    limit: only so many samples of each task, or, below 1, this part of them.
    delimiter: between a prompt and how it goes on, where neither has a space there.
    max_new_tokens: of an answer that is written. chat: by the model's chat template. system: a message in front.
    """

    num_fewshot: int | None = None
    fewshot: str | None = None
    limit: float | None = None
    delimiter: str = " "
    max_new_tokens: int = 256
    chat: bool = False
    system: str | None = None


@dataclass(frozen=True)
class Task:
    """Samples of a file. shots: examples, by the samples' group. of: samples there are without a limit."""

    name: str
    samples: Sequence[Sample]
    shots: Mapping[str, Sequence[Sample]]
    settings: Settings
    of: int

    def prompt(self, words: Words, asked: Sample) -> str:
        """What is read before an answer, or before what it may be."""
        shots, settings = self.shots.get(asked.group, ()), self.settings
        heading = asked.heading
        if not settings.chat:
            told = "".join(self._joined(shot.prompt, shot.target) + BETWEEN for shot in shots)
            return (f"{settings.system}{BETWEEN}" if settings.system else "") + heading + told + asked.prompt
        messages = [{"role": "system", "content": settings.system}] if settings.system else []
        for shot in shots:
            messages.append({"role": "user", "content": heading + shot.prompt})
            messages.append({"role": "assistant", "content": shot.target})
            heading = ""
        return words.render([*messages, {"role": "user", "content": heading + asked.prompt}], open_ended=False)

    def pair(self, context: str, continuation: str) -> tuple[str, str]:
        """A prompt and how it goes on, with what stands between them."""
        if self.settings.chat:  # whose template ends where the answer begins
            return context, continuation
        return context, self._joined(context, continuation)[len(context) :]

    def _joined(self, prompt: str, continuation: str) -> str:
        seam = prompt[-1:].isspace() or continuation[:1].isspace()
        return prompt + ("" if seam or not prompt else self.settings.delimiter) + continuation


def read(name: str, data: str | Sequence[str], settings: Settings, whole: bool = False) -> Task:
    """The task in a file, or in several, or in a data set at the Hub: whatever `lathe.data.sources` reads.

    whole: rows are texts to be judged, of which the column `text` or `content` is taken, whatever else they have.
    Raises DataError, naming the row; MissingError.
    """
    if whole:
        texts = [text for text in sources.texts(data) if text]
        samples: list[Sample] = [Document(at, {"text": text}, "", text) for at, text in enumerate(texts)]
    else:
        samples = list(_samples(sources.rows(data)))
    if not samples:
        raise DataError(f"{name} holds no samples.", "There must be at least one.")
    count = settings.num_fewshot or 0
    others = list(_samples(sources.rows(settings.fewshot))) if count and settings.fewshot else None
    shots = _shots(samples if others is None else others, count)
    if lacking := next((s for s in samples if len(shots.get(s.group, ())) < count), None):
        where = f' of "{lacking.group}"' if lacking.group else ""
        raise DataError(f"{settings.fewshot or name} has not {count} examples{where}.", "", "Ask for fewer.")
    if count and others is None:
        taken = {shot.number for some in shots.values() for shot in some}
        samples = [asked for asked in samples if asked.number not in taken]
    if not samples:
        raise DataError(f"{name} has no samples left beside its {count} examples.", "", "Name a file of --fewshot.")
    limit, of = settings.limit, len(samples)
    if limit is not None:
        samples = samples[: int(limit) if limit >= 1 else max(int(limit * of), 1)]
    return Task(name, samples, shots, settings, of)


def _samples(rows: Sequence[Record]) -> Iterator[Sample]:
    for number, record in enumerate(rows):
        try:
            yield sample(number, record.fields)
        except DataError as error:
            raise DataError(f"{record.place}: {error.found}", error.expected, error.fix) from None


def _shots(samples: Sequence[Sample], count: int) -> dict[str, list[Sample]]:
    """The first `count` of each group."""
    found: dict[str, list[Sample]] = {}
    for shot in samples if count else ():
        some = found.setdefault(shot.group, [])
        if len(some) < count:
            some.append(shot)
    return found


def examine(
    task: Task, subject: Subject, known: Known, tick: Callable[[int, int], None] = lambda done, total: None
) -> Result:
    """Ask a subject all of a task. tick: how many more asks have their answer, and how many there are."""
    asked = [*_asks(task, subject)]
    asks = [ask for some, _ in asked for ask in some]
    answers = iter(ask_all(subject, asks, known, lambda count: tick(count, len(asks))))
    records, measured = [], dict[str, list[Measure]]()
    for found, (some, arguments) in zip(task.samples, asked, strict=True):
        told = list(islice(answers, len(some)))
        tokens = sum(len(ask.continuation) for ask in some if isinstance(ask, Likelihood))
        measures = found.measures(told, tokens)
        for metric, measure in measures.items():
            measured.setdefault(metric, []).append(measure)
        records.append(_record(found, arguments, told, measures))
    figures: dict[str, Figure] = {f"{name},{ITSELF}": figure(name, values) for name, values in measured.items()}
    kinds = sorted({found.kind for found in task.samples})
    config = {"task": task.name, "kinds": kinds, **asdict(task.settings)}
    shots = max(map(len, task.shots.values()), default=0)
    return Result(task.name, figures, records, len(task.samples), task.of, shots, config)


def _asks(task: Task, subject: Subject) -> Iterator[tuple[list[Ask], list[Any]]]:
    """Of each sample what is asked, and the same as text."""
    words, longest = subject.words, subject.longest
    pairs: list[tuple[str, str]] = []
    for asked in task.samples:
        if continuations := asked.continuations():
            prompt = task.prompt(words, asked)
            pairs += [task.pair(prompt, continuation) for continuation in continuations]
    likely = iter(zip(wording.likelihoods(words, pairs, longest), pairs, strict=True))
    for asked in task.samples:
        if isinstance(asked, Document):
            [ids] = words.encode_all([asked.target])
            yield list(wording.windows(words, ids[len(words.begin) :], longest)), [[asked.target]]
        elif count := len(asked.continuations()):
            some = list(islice(likely, count))
            yield [ask for ask, _ in some], [list(pair) for _, pair in some]
        else:
            prompt = task.prompt(words, asked)
            [ids] = words.encode_all([prompt])
            ask = Generation(tuple(ids), asked.stops, task.settings.max_new_tokens)
            yield [wording.fitted(ask, longest)], [[prompt, {"until": list(ask.stops), "max_gen_toks": ask.most}]]


def _record(
    asked: Sample, arguments: Sequence[Any], answers: Sequence[Answer], measures: Mapping[str, Measure]
) -> dict[str, Any]:
    target = asked.gold if isinstance(asked, Choice) else asked.target
    told = [list(answer) if isinstance(answer, tuple) else answer for answer in answers]
    return {
        "doc_id": asked.number,
        "doc": dict(asked.row),
        "target": target,
        "arguments": arguments,
        "resps": [[answer] for answer in told],
        "filtered_resps": told,
        "filter": ITSELF,
        "metrics": list(measures),
        "doc_hash": _hash(asked.row),
        "prompt_hash": _hash(arguments[0][0]),
        "target_hash": _hash(target),
        **measures,
    }


def _hash(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def is_file(task: str) -> bool:
    """Whether a task is named by a file of rows."""
    return Path(task).suffix.lower() not in ("", ".yaml", ".yml") and Path(task).exists()
