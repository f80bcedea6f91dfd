"""Names of tasks become what is asked, and, of a subject, results: files by our own hand, others by lm-eval's.

Everything that can be wrong with a name or a file is said when an `Examination` is made, before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lathe.errors import MissingError, UsageError
from lathe.evaluation import tasks
from lathe.evaluation.asks import Known, Subject
from lathe.evaluation.journal import Nothing
from lathe.evaluation.results import Result
from lathe.evaluation.tasks import Settings, Task

if TYPE_CHECKING:
    from lathe.evaluation.harness import Harness

PERPLEXITY = "perplexity"
Tick = Callable[[str, int, int], None]  # the task, how many more asks have their answer, and how many there are


def quiet(task: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Examination:
    """own: tasks from files. harness: those of lm-evaluation-harness; None where there are none."""

    own: Sequence[Task]
    harness: Harness | None

    @staticmethod
    def of(
        names: Sequence[str],
        settings: Settings | None = None,
        *,
        data: Sequence[str] = (),
        include: Path | None = None,
        seed: int = 1234,
    ) -> Examination:
        """What the names of tasks mean.

        names: "perplexity", which is that of the texts in `data`; files of rows, see `evaluation.samples`; and tasks of
        lm-evaluation-harness, by their names or as YAML files. include: a folder with more of the latter.

        Raises UsageError, MissingError, DataError.
        """
        settings = settings or Settings()
        own: list[Task] = []
        others: list[str] = []
        for name in dict.fromkeys(part for word in names for part in word.split(",") if part):
            if name == PERPLEXITY:
                own += _perplexity(data, settings)
            elif tasks.is_file(name):
                own.append(tasks.read(Path(name).name, name, settings))
            elif Path(name).suffix.lower() not in ("", ".yaml", ".yml") and "/" in name:
                raise MissingError(f"There is no file {name}.", "A task is a file of rows, or a name.")
            else:
                others.append(name)
        if data and PERPLEXITY not in names:
            raise UsageError(f"--data {data[0]} is for the task perplexity.", "", "Add --tasks perplexity.")
        if not (own or others):
            raise UsageError("No task is named.", "", "Name files or tasks with --tasks.")
        if not others:
            return Examination(own, None)
        from lathe.evaluation.harness import Harness

        return Examination(own, Harness.of(others, settings, include, seed))

    def run(self, subject: Subject, known: Known | None = None, tick: Tick = quiet) -> list[Result]:
        """Ask a subject. known: answers of before, and where new ones go."""
        known = known or Nothing()
        found = [
            tasks.examine(task, subject, known, lambda done, total, name=task.name: tick(name, done, total))  # type: ignore[misc]
            for task in self.own
        ]
        return found if self.harness is None else found + self.harness.run(subject, known, tick)


def _perplexity(data: Sequence[str], settings: Settings) -> list[Task]:
    if not data:
        raise UsageError("The task perplexity needs texts.", "", "Name them with --data FILE.")
    plain = Settings(limit=settings.limit)
    return [tasks.read(f"{PERPLEXITY} {Path(each).name}", each, plain, whole=True) for each in data]
