"""Results of several models become a table, with differences from the first and from earlier ones; knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from lathe.evaluation.results import Result

Found = Mapping[str, Mapping[str, "Result"]]  # by models, then by tasks


def show(found: Found, before: Found) -> None:
    """Print the table."""
    from rich.console import Console

    console, made = Console(highlight=False), table(found, before)
    widest = console.measure(made, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, widest)  # a figure is not to be broken
    console.print(made)


def table(found: Found, before: Found) -> Table:
    """A row for each figure of each task, a column for each model and each comparison."""
    from rich.table import Table

    from lathe.evaluation.results import shown

    made = Table(box=None, pad_edge=False, header_style="dim")
    made.add_column("task")
    made.add_column("n", justify="right")
    made.add_column("shots", justify="right")
    made.add_column("metric")
    for title in (*found, *(title for title, _, _ in _compared(found, before))):
        made.add_column(title, justify="right")
    last = ""
    for task, name in _rows(found):
        first = next(made_of[task] for made_of in found.values() if task in made_of)
        cells = [shown(model[task].figures[name]) if _has(model, task, name) else "" for model in found.values()]
        for _, now, then in _compared(found, before):
            change = _difference(now, then, task, name)
            cells.append("" if change is None else shown(change, signed=True))
        head = (task, f"{first.count:,}", str(first.shots)) if task != last else ("", "", "")
        made.add_row(*head, _metric(name), *cells)
        last = task
    return made


def page(found: Found, before: Found) -> dict[str, Any]:
    """The same as JSON."""
    models = {
        model: {task: {name: figure._asdict() for name, figure in each.figures.items()} for task, each in tasks.items()}
        for model, tasks in found.items()
    }
    differences = []
    for title, now, then in _compared(found, before):
        for task, name in _rows(found):
            if (change := _difference(now, then, task, name)) is not None:
                differences.append({"of": title, "task": task, "metric": name, **change._asdict()})
    return {"results": models, "differences": differences}


def _rows(found: Found) -> Iterator[tuple[str, str]]:
    """Tasks and the names of their figures, each once."""
    names = ((task, name) for tasks in found.values() for task, each in tasks.items() for name in each.figures)
    yield from dict.fromkeys(names)


def _compared(found: Found, before: Found) -> Iterator[tuple[str, Mapping[str, Result], Mapping[str, Result]]]:
    """Every model but the first with the first, and the first with each of the earlier ones: title, now, before."""
    [(first, results), *others] = found.items()
    for name, each in others:
        yield f"{name} - {first}", each, results
    for place, each in before.items():
        yield f"{first} - {_short(place)}", results, each


def _difference(now: Mapping[str, Result], then: Mapping[str, Result], task: str, name: str) -> Any:
    from lathe.evaluation.results import paired

    return paired(now[task], then[task], name) if task in now and task in then else None


def _has(model: Mapping[str, Result], task: str, name: str) -> bool:
    return task in model and name in model[task].figures


def _metric(name: str) -> str:
    return name.removesuffix(",none")


def _short(place: str) -> str:
    """What stands for the path of earlier results: the model's folder, where they are in it."""
    parts = [part for part in Path(place).parts if part not in ("evaluate", "results.json")]
    return parts[-1] if parts else place


def listed(include: Path | None) -> None:
    """Print what tasks there are."""
    print("perplexity    of the texts in --data FILE")
    print("FILE.jsonl    rows with query, choices, gold; context, continuation; question, answer; text; or prompt")
    from lathe.errors import MissingError

    try:
        from lathe.evaluation.harness import names

        found = names(include)
    except MissingError as error:
        print(f"\n{error}")
        return
    print("\nOf lm-evaluation-harness:")
    print("\n".join(found))
