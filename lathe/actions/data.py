"""Turns a model's tokenizer and a data set into a page about what training would see, and its exit status."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from lathe import hub
from lathe.actions import estimate, marked
from lathe.actions.bounds import at_least
from lathe.actions.place import Places
from lathe.actions.written import ROW, Written
from lathe.errors import LatheError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from lathe.data.check import Report
    from lathe.data.formats import Samples
    from lathe.data.render import Renderer

LISTED = 20  # rows at fault that a page names
WIDTH = 17  # of the names of facts


@dataclass(frozen=True)
class Options(Places, Written):
    model: str
    """Folder, file or repo id of the model that is to learn. Its weights are not needed."""
    data: tuple[str, ...]
    """Files, folders or names of data."""
    _: KW_ONLY
    max_seq_length: int | None = None
    """Longer examples lose their end. By default 2048, or the model's context where it is shorter."""
    global_batch_size: int = 16
    """Examples in an optimizer step."""
    micro_batch_size: int = 1
    """Rows of max-seq-length tokens at once, for the memory that training takes."""
    show: int = 3
    """Show this many examples, learned parts marked; 0 shows none."""
    row: tuple[int, ...] = ()
    """Show these rows, counted from 1."""
    json: bool = False
    """Print one JSON object instead of a page."""

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("No data is named.", fix="Write lathe data MODEL FILE.")
        at_least(1, self, "max_seq_length", "global_batch_size", "micro_batch_size")
        if any(row < 1 for row in self.row):
            raise UsageError("--row is below 1.", "Rows are counted from 1.")


def run(options: Options) -> int:
    """Show what training would see in a data set, and check it.

    Conversations are written by the model's chat template and what is learned of them is marked; lengths, truncation,
    steps, memory and time are reckoned. The exit status is 1 when rows are at fault: they cannot be read, have nothing
    to learn, an empty answer or no end; or when too many say the same. lathe finetune makes the same check first.
    """
    from rich.console import Console
    from rich.progress import track

    from lathe.actions.shape import open_tokenizer
    from lathe.data import check, formats, sources
    from lathe.data.render import Renderer

    place = hub.find(options.model, options.checkpoints, weights=False)
    renderer = Renderer(open_tokenizer(place), options.loss_on, options.prompt_style)
    model = estimate.Model.at(place)
    length = options.max_seq_length or min(ROW, model.context if model else ROW)
    samples = formats.Samples(sources.rows(options.data), formats.parse_columns(options.columns))
    stderr = Console(stderr=True)
    numbers = track(range(len(samples)), "reading", console=stderr, transient=True, disable=not stderr.is_terminal)
    report = check.examine(samples, renderer, length, numbers)
    page = facts(options, report, renderer, model)
    if options.json:
        print(json.dumps(page, ensure_ascii=False, indent=2))
        return 1 if page["faults"] or page["problems"] else 0
    console = Console(highlight=False, markup=False, soft_wrap=True)
    first = dict.fromkeys(report.origins)
    for row in options.row or [index + 1 for index in islice(first, options.show)]:
        example(console, samples, renderer, row)
    show(console, page)
    return 1 if page["faults"] or page["problems"] else 0


def facts(options: Options, report: Report, renderer: Renderer, model: estimate.Model | None) -> dict[str, Any]:
    """What the page says, by name."""
    import numpy as np

    from lathe.data import check
    from lathe.data.pack import laid

    lengths = report.lengths
    each, groups = options.global_batch_size, report.groups
    rows = [row for at in range(0, len(groups), each) for row in laid(groups[at : at + each], report.length)]
    room = report.length * max((len(group) for group in groups), default=1)
    quantiles = np.quantile(lengths, (0.5, 0.9, 0.99, 1)).astype(int).tolist() if len(lengths) else [0] * 4
    repeating = check.repeating(report, options.max_repeats)
    problems = [repeating] if repeating else []
    if not report.groups:
        problems.append("There is nothing to learn.")
    page = {
        "data": list(options.data),
        "rows": report.rows,
        "shapes": dict(report.shapes),
        "template": template(renderer),
        "ends": [renderer.tokenizer.get(number) for number in renderer.ends],
        "examples": len(groups),
        "tokens": report.tokens,
        "learned": report.supervised,
        "lengths": dict(zip(("half", "90%", "99%", "longest"), quantiles, strict=True)),
        "histogram": histogram(lengths.tolist()),
        "max_seq_length": report.length,
        "cut": report.cut,
        "rewritten": report.rewritten,
        "unwanted": report.unwanted,
        "tools_not_shown": report.toolless,
        "repeats": [index + 1 for index in report.repeats],
        "packed_rows": len(rows),
        "filled": round(sum(len(row.tokens) for row in rows) / max(1, len(rows) * room), 4),
        "steps_per_epoch": -(-len(groups) // each),
        "problems": problems,
        "faults": [{"row": fault.row, "found": fault.found} for fault in report.faults],
    }
    if model is not None:
        page["memory"] = model.bytes(report.length, options.micro_batch_size)
        page["seconds_per_epoch"] = model.seconds(report)
    return page


def template(renderer: Renderer) -> str:
    """What writes the conversations, in words."""
    style = renderer.tokenizer.style
    if style is None:
        return "the model's chat template"
    return "none: plain text" if not renderer.tokenizer.has_template else f"the prompt style {style}"


def histogram(lengths: Sequence[int]) -> dict[int, int]:
    """How many examples have at most so many tokens, for each power of two, and more than half as many."""
    counts = Counter(1 << max(0, length - 1).bit_length() for length in lengths)
    sizes = [1 << power for power in range(min(counts).bit_length() - 1, max(counts).bit_length())] if counts else []
    return {size: counts[size] for size in sizes}


# ---- the page -------------------------------------------------------------------------------------------------------
def example(console: Console, samples: Samples, renderer: Renderer, row: int) -> None:
    """One row as training sees it."""
    from rich.text import Text

    if row > len(samples):
        raise UsageError(f"There is no row {row:,}.", f"The data has {len(samples):,}.")
    try:
        groups = renderer.groups(samples[row - 1])
    except LatheError as error:
        console.print(Text(f"row {row:,}: {error}", "red"))
        return
    for group in groups:
        for name, one in zip(("chosen", "rejected") if len(group) == 2 else ("",), group, strict=True):
            learned = f"{len(one):,} tokens, {int(one.supervised.sum()):,} learned"
            console.print(Text(" · ".join(filter(None, (samples.place(row - 1), name, learned))), "cyan"))
            shown = marked.coloured if console.is_terminal else marked.plain
            console.print(shown(one, renderer.tokenizer))
            console.print()


def show(console: Console, page: dict[str, Any]) -> None:
    from rich.text import Text

    for name, value in lines(page).items():
        console.print(Text.assemble((f"{name:<{WIDTH}}", "dim"), value.replace("\n", "\n" + " " * WIDTH)))
    for fault in page["faults"][:LISTED]:
        console.print(Text.assemble(("wrong ", "red"), fault["found"]))
    if len(page["faults"]) > LISTED:
        console.print(Text.assemble(("wrong ", "red"), f"and {len(page['faults']) - LISTED:,} more; --json lists all."))
    for problem in page["problems"]:
        console.print(Text.assemble(("wrong ", "red"), problem))
    if not page["faults"] and not page["problems"]:
        console.print(
            Text.assemble((f"{'sound':<{WIDTH}}", "green"), "every row has something to learn and ends as it should")
        )


def lines(page: dict[str, Any]) -> dict[str, str]:
    """The facts in words."""
    shapes = ", ".join(f"{count:,} {name}" for name, count in page["shapes"].items())
    steps, share = page["steps_per_epoch"], page["learned"] / max(1, page["tokens"])
    found = {
        "data": f"{', '.join(page['data'])}: {page['rows']:,} rows; {shapes or 'nothing'}",
        "written by": f"{page['template']}; answers end with {' or '.join(page['ends']) or 'nothing'}",
        "examples": f"{page['examples']:,}, {page['tokens']:,} tokens, {page['learned']:,} ({share:.0%}) learned",
        "lengths": ", ".join(f"{name} {count:,}" for name, count in page["lengths"].items()),
        "of these": bars(page["histogram"]),
        "cut": f"{page['cut']:,} at {page['max_seq_length']:,} tokens",
        "packed": f"{page['packed_rows']:,} rows of {page['max_seq_length']:,} tokens, {page['filled']:.0%} full",
        "an epoch": f"{steps:,} steps of {page['packed_rows'] / max(1, steps):.3g} rows",
    }
    notes = {
        "rewritten": "conversations become several examples, since the template changes what it wrote before",
        "unwanted": "answers are marked as not wanted, and left out",
        "tools_not_shown": "conversations have tools that the template does not write",
        "repeats": "rows say what an earlier one says",
    }
    counts = {**page, "repeats": len(page["repeats"])}
    found |= {name.replace("_", " "): f"{counts[name]:,} {words}" for name, words in notes.items() if page[name]}
    if "memory" in page:
        found["memory"] = "; ".join(f"{name} {hub.amount(size)}" for name, size in page["memory"].items())
        times = {name: timedelta(seconds=round(value)) for name, value in page["seconds_per_epoch"].items()}
        found["time"] = "an epoch here, about: " + ", ".join(f"{name} {time}" for name, time in times.items())
    return found


def bars(histogram: dict[int, int], width: int = 40) -> str:
    """A histogram as lines of characters."""
    most = max(histogram.values(), default=1)
    return "\n".join(
        f"{f'to {size:,}':<10} {count:>9,} {'█' * -(-count * width // most)}" for size, count in histogram.items()
    )
