"""lm-evaluation-harness asks, and a subject of ours answers: its tasks, prompts and figures, our engine.

The library is an extra and is imported when this file's functions are called.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe.errors import DataError, MissingError, UsageError, did_you_mean
from lathe.evaluation.asks import Known, Subject
from lathe.evaluation.figures import Figure
from lathe.evaluation.results import Result
from lathe.evaluation.tasks import Settings

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from lathe.evaluation.examination import Tick

DRAWS = 1000  # for the standard error of figures that have no formula


@dataclass(frozen=True)
class Harness:
    """Tasks by their names, or paths, which `manager` has loaded."""

    names: Sequence[str]
    settings: Settings
    manager: TaskManager
    seed: int

    @staticmethod
    def of(words: Sequence[str], settings: Settings, include: Path | None, seed: int) -> Harness:
        """Load tasks with their data. words: names, with * too, and YAML files. include: a folder with more tasks.

        Raises MissingError, UsageError; DataError where a task's data cannot be had.
        """
        files = [word for word in words if Path(word).suffix in (".yaml", ".yml")]
        manager = _manager(include, every=len(files) < len(words))
        names: list[str] = []
        for word in words:
            if word in files:
                if not Path(word).is_file():
                    raise MissingError(f"There is no file {word}.", "A task is a YAML file, a file of rows, or a name.")
                names.append(word)
            elif found := manager.match_tasks([word]):
                names += found
            else:
                fix = did_you_mean(word, manager.all_tasks) or "lathe evaluate list shows all."
                raise UsageError(f'There is no task "{word}".', "A task is a file of rows, or a name.", fix)
        with _told(names):
            loaded = manager.load(names)
        if unsafe := next(
            (name for name, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)), None
        ):
            found = f"The task {unsafe} runs programs that the model writes."
            raise UsageError(found, "Lathe runs none.", "Leave it out.")
        return Harness(names, settings, manager, seed)

    def run(self, subject: Subject, known: Known, tick: Tick) -> list[Result]:
        """Ask a subject."""
        from lm_eval import simple_evaluate

        from lathe.evaluation.answering import Answering

        settings = self.settings
        page = simple_evaluate(
            model=Answering(subject, known, tick),
            tasks=[*self.names],
            task_manager=self.manager,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            apply_chat_template=settings.chat,
            fewshot_as_multiturn=settings.chat,
            system_instruction=settings.system,
            bootstrap_iters=DRAWS,
            random_seed=self.seed,
            numpy_random_seed=self.seed,
            torch_random_seed=self.seed,
            fewshot_random_seed=self.seed,
        )
        return [_result(page, task) for task in page["results"]]


def names(include: Path | None) -> list[str]:
    """Of all tasks and groups. Raises MissingError."""
    return sorted(_manager(include).all_tasks)


def _manager(include: Path | None, every: bool = True) -> TaskManager:
    """every: find the thousands of the harness's own, too."""
    try:
        from lathe.evaluation.answering import Loaded
    except ImportError as error:
        found = f"Tasks by name need lm-evaluation-harness, which is not installed ({error})."
        raise MissingError(found, "Files of rows and perplexity do not.", 'pip install "lathe-llm[eval]"') from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return Loaded(include, every)


@contextmanager
def _told(names: Sequence[str]) -> Iterator[None]:
    """What goes wrong with a task's data set, in our words."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (DatasetsError, HfHubHTTPError, OSError) as error:
        found = f"The data of {', '.join(names)} cannot be had: {' '.join(str(error).split())[:300]}."
        fix = "Go online once, so that it comes into the cache; or name files of rows as tasks."
        raise DataError(found, "Tasks by name fetch their data from the Hub.", fix) from None


def _result(page: Mapping[str, Any], task: str) -> Result:
    figures = {}
    numbers = page["results"][task]
    for name, value in numbers.items():
        metric, comma, chosen = name.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            error = numbers.get(f"{metric}_stderr,{chosen}")
            figures[name] = Figure(float(value), float(error) if isinstance(error, (int, float)) else None)
    count = page["n-samples"].get(task, {})
    shots = page["n-shot"].get(task, 0)
    samples = page.get("samples", {}).get(task, [])
    config = page["configs"].get(task, {})
    return Result(task, figures, samples, count.get("effective", 0), count.get("original", 0), shots, config)
