"""Models and tasks become a table of figures, results.json and a record of every sample; knows no tensor."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lathe import __version__
from lathe.actions import scores, subjects
from lathe.actions.bounds import above, at_least
from lathe.actions.loading import Adapters, Loading
from lathe.errors import UsageError

if TYPE_CHECKING:
    from lathe.evaluation.asks import Subject
    from lathe.evaluation.examination import Examination, Tick
    from lathe.evaluation.results import Result

EVERY = "list"  # LitGPT's word in MODEL's place for all tasks there are


@dataclass(frozen=True)
class Options(Loading, Adapters):
    model: tuple[str, ...] = ()
    """Folders, files or repo ids of the models, one or several; with --url what the server calls them."""
    _: KW_ONLY
    tasks: tuple[str, ...] = ()
    """What is asked: files of rows (.jsonl and others), "perplexity" with --data, and names or YAML files of tasks of
    lm-evaluation-harness (the extra eval), with commas or several times. Without any, the list of all is shown."""
    data: tuple[str, ...] = ()
    """Texts for the task perplexity: a file, folder or data set. May be given several times."""
    num_fewshot: int | None = None
    """Examples before each sample; by default as a task of lm-evaluation-harness has it, and none for a file."""
    fewshot_data: str | None = None
    """Take the examples for files from this file. By default they are the file's first rows, which are not asked."""
    limit: float | None = None
    """Only so many samples of each task; below 1, this part of them."""
    batch_tokens: int | None = None
    """Tokens in one pass of the model. By default 1024 on a CPU and 16384 on a GPU."""
    max_length: int | None = None
    """The most tokens of a text that are read at once. By default the model's context."""
    max_new_tokens: int = 256
    """The longest answer to a question of a file; tasks of lm-evaluation-harness say it themselves."""
    delimiter: str = " "
    """Between a prompt of a file and how it goes on, where neither has a space there."""
    apply_chat_template: bool = False
    """Ask by the model's chat template."""
    system: str | None = None
    """A message in front of everything that is asked."""
    include_path: Path | None = None
    """A folder with more tasks for lm-evaluation-harness, as YAML."""
    out_dir: Path | None = None
    """Where results are written. By default evaluate/ in the model's folder, or, where that is a cache or cannot be
    written to, evaluate/NAME here."""
    save_filepath: Path | None = None
    """Write the figures to this file, too."""
    resume: bool = True
    """Take over the answers that the same model gave before, as when an evaluation was cut short."""
    compare: tuple[str, ...] = ()
    """Earlier results, a results.json or a folder with one: show the difference and its standard error, by pairs of
    samples. May be given several times."""
    json: bool = False
    """Print one JSON object instead of a table."""
    devices: int | Literal["auto"] = 1
    """Over how many GPUs the layers are spread, one after the other; auto takes all."""
    prompt_style: str = "auto"
    """With --apply-chat-template: write conversations in this style, as alpaca, chatml or llama3."""
    url: str | None = None
    """Ask a server instead of loading a model: lathe serve, or another with OpenAI's completions."""
    api_key: str | None = None
    """The server's key. By default what OPENAI_API_KEY in the environment says."""
    tokenizer: str | None = None
    """With --url: the folder or repo id of the model's tokenizer, for a server without /tokenize."""
    seed: int = 1234
    """For what lm-evaluation-harness draws, as examples."""

    def __post_init__(self) -> None:
        at_least(0, self, "num_fewshot")
        at_least(1, self, "batch_tokens", "max_new_tokens")
        at_least(2, self, "max_length")
        above(0, self, "limit")
        if self.tokenizer is not None and self.url is None:
            raise UsageError("--tokenizer is for --url.", "A model has its own.")
        if self.url is not None and (self.adapter or self.quantize):
            option = "--adapter" if self.adapter else "--quantize"
            raise UsageError(f"{option} does nothing with --url.", "The server has its model as it is.")


def run(options: Options) -> None:
    """Measure models on tasks: multiple choice, exact match, perplexity, and all of lm-evaluation-harness.

    A table goes to standard output, and into the model's folder results.json and a record of every sample. Adapters,
    quantized models, a training's steps and GGUF files are evaluated as they are. An evaluation that was cut short goes
    on where it was. docs/evaluate.md tells the rest.
    """
    if not options.tasks or options.model == (EVERY,):
        scores.listed(options.include_path)
        return
    if not options.model and options.url is None:
        raise UsageError("No model is named.", "", "Type lathe evaluate MODEL --tasks ..., or give a --url.")
    from lathe.evaluation import results
    from lathe.evaluation.examination import Examination
    from lathe.evaluation.tasks import Settings

    before = {place: results.load(Path(place)) for place in options.compare}
    settings = Settings(
        options.num_fewshot,
        options.fewshot_data,
        options.limit,
        options.delimiter,
        options.max_new_tokens,
        options.apply_chat_template,
        options.system,
    )
    asked = Examination.of(options.tasks, settings, data=options.data, include=options.include_path, seed=options.seed)
    found: dict[str, dict[str, Result]] = {}
    for model in options.model or (None,):
        name, made, page = evaluated(options, model, asked)
        found[_apart(name, found)] = {result.task: result for result in made}
        if options.save_filepath is not None:
            options.save_filepath.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, options.save_filepath)
    if options.json:
        print(json.dumps(scores.page(found, before), indent=2, ensure_ascii=False))
    else:
        scores.show(found, before)


def evaluated(options: Options, model: str | None, asked: Examination) -> tuple[str, list[Result], Path]:
    """One model's name, its results, and the path of results.json."""
    from lathe.evaluation import results
    from lathe.evaluation.journal import Journal

    subject, place = subjects.of(options, model)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot make {place}: {error.strerror}.", "", "Choose another --out-dir.") from None
    journal = place / f"answers-{subject.identity[:16]}.jsonl"
    if not options.resume:
        journal.unlink(missing_ok=True)
    with Journal(journal) as known, progress(subject.name) as tick:
        made = asked.run(subject, known, tick)
    path = results.save(place, made, told(options, subject))
    print(path, file=sys.stderr)
    return subject.name, made, path


def told(options: Options, subject: Subject) -> dict[str, Any]:
    """What is examined and how, for results.json."""
    names = ("adapter", "quantize", "precision", "prompt_style", "url", "seed")
    who = {"model": subject.name, "identity": subject.identity, "max_length": subject.longest}
    return {**who, **{name: getattr(options, name) for name in names}, "lathe": __version__}


@contextmanager
def progress(name: str) -> Iterator[Tick]:
    """A bar for each task on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as shown:
        bars: dict[str, Any] = {}

        def tick(task: str, done: int, total: int) -> None:
            if task not in bars:
                bars[task] = shown.add_task(f"{name}  {task}", total=total)
            shown.advance(bars[task], done)

        yield tick


def _apart(name: str, others: Mapping[str, Any]) -> str:
    """A name that no other model has."""
    found, number = name, 1
    while found in others:
        number += 1
        found = f"{name} ({number})"
    return found
