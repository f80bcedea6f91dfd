"""Turns a model into a table of how quickly it answers here, beside what the machine could do at most."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from lathe.actions.bounds import at_least
from lathe.actions.loading import Loading
from lathe.actions.place import weights_at
from lathe.actions.roofline import Machine, Work
from lathe.errors import UsageError

if TYPE_CHECKING:
    import torch

    from lathe.engine import Engine

PREFILL = 512


@dataclass(frozen=True)
class Options(Loading):
    model: str
    """Folder, file or repo id."""
    _: KW_ONLY
    prompt_tokens: tuple[int, ...] = (128,)
    """Tokens of the prompt before an answer. May be given several times."""
    new_tokens: int = 128
    """Tokens of an answer."""
    prefill_tokens: int | None = None
    """Tokens of the prompt whose reading is timed. By default 512, or what the context has room for."""
    sequences: int = 16
    """How many sequences are also answered at once; 1 leaves that out."""
    runs: int = 3
    """How often each is timed, in turn, after one round that does not count."""
    json: bool = False
    """Print one JSON object with every single value instead of a table."""

    def __post_init__(self) -> None:
        at_least(1, self, "prompt_tokens", "prefill_tokens", "sequences", "runs")
        at_least(2, self, "new_tokens")


@dataclass
class Row:
    """One line of the table. most: the machine's limit for it, where there is one."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)
    most: float | None = None

    def facts(self) -> dict[str, Any]:
        middle = median(self.values)
        told = {"name": self.name, "unit": self.unit, "median": middle, "values": self.values}
        return told if self.most is None else {**told, "limit": self.most, "of_limit": middle / self.most}


def run(options: Options) -> None:
    """Time a model on this machine: loading, reading a prompt, writing an answer, alone and several at once.

    Prompts are random tokens, and answers have a fixed length, so what the model says does not matter. Beside each
    speed stands what the machine allows: bytes that must be read and products that must be computed, at the rates at
    which it reads memory and multiplies matrices, measured in the same rounds.
    """
    path = weights_at(options.model, options.checkpoints)
    from lathe import checkpoint
    from lathe.engine import Engine
    from lathe.source import number_format, places
    from lathe.training import gauge

    device, dtype = places(options.device)[0], number_format(options.precision)
    before, begun = gauge.memory(device), time.perf_counter()
    opened = checkpoint.open(path, options.checkpoints)
    decoder = opened.load(device, dtype, quantize=options.quantize, quick=options.native, keep=options.keep_packed)
    engine = Engine(decoder)
    rows = [Row("load", "s", [time.perf_counter() - begun])]
    bench = Bench(engine, options)
    bench.alone()
    after = gauge.memory(device)
    if before is not None and after is not None:
        rows.append(Row("memory", "MiB", [(after - before) / 2**20]))
    bench.forget()
    for _ in range(options.runs):
        bench.alone()
        bench.crowd()
        bench.limits()
    rows += bench.rows()
    page = {"model": options.model, **facts(engine, options, bench.work), "rows": [row.facts() for row in rows]}
    if options.json:
        print(json.dumps(page, indent=2))
    else:
        show(page)


class Bench:
    """The cases, each timed once a round, and the machine beside them."""

    def __init__(self, engine: Engine, options: Options) -> None:
        self.engine, self.options = engine, options
        self.work = Work.of(engine.decoder)
        self.machines: list[Machine] = []
        self.prefill = options.prefill_tokens or min(PREFILL, engine.context - 1)
        longest = max(self.prefill + 1, *(n + options.new_tokens for n in options.prompt_tokens))
        if longest > engine.context:
            found = f"{longest} tokens are to be timed, and the context has room for {engine.context}."
            raise UsageError(found, fix="Lower --prompt-tokens, --new-tokens or --prefill-tokens.")
        self.forget()

    def forget(self) -> None:
        """Leave out what was timed so far."""
        self.reading: list[float] = []
        self.first: dict[int, list[float]] = {n: [] for n in self.options.prompt_tokens}
        self.writing: dict[int, list[float]] = {n: [] for n in self.options.prompt_tokens}
        self.together: list[float] = []

    def alone(self) -> None:
        """Time what one sequence takes."""
        from lathe.engine.pace import pace

        self.reading.append(pace(self.engine, self.prefill, 1).prefill)
        for n in self.options.prompt_tokens:
            took = pace(self.engine, n, self.options.new_tokens)
            self.first[n].append(took.first)
            self.writing[n].append(took.decode)

    def crowd(self) -> None:
        """Time several sequences at once."""
        from lathe.engine.pace import pace

        options = self.options
        if options.sequences > 1:
            took = pace(self.engine, options.prompt_tokens[0], options.new_tokens, options.sequences)
            self.together.append(took.together)

    def limits(self) -> None:
        weight = self.engine.decoder.like
        self.machines.append(Machine.measured(weight.device, weight.dtype))

    def rows(self) -> list[Row]:
        options, work = self.options, self.work
        best = Machine(max(m.read for m in self.machines), max(m.multiply for m in self.machines))
        new, count, short = options.new_tokens, options.sequences, options.prompt_tokens[0]
        rows = [Row(f"first token after {n:,}", "s", self.first[n]) for n in options.prompt_tokens]
        rows.append(Row(f"prefill of {self.prefill:,}", "tokens/s", self.reading, work.prefill(best, self.prefill)))
        for n in options.prompt_tokens:
            name = f"decode, {n:,} in, {new:,} out"
            rows.append(Row(name, "tokens/s", self.writing[n], work.decode(best, n, new)))
        if count > 1:
            name = f"{count} at once, {short:,} in, {new:,} out"
            rows.append(Row(name, "tokens/s", self.together, work.together(best, short, new, count)))
        rows.append(Row("the machine reads", "GB/s", [m.read / 1e9 for m in self.machines]))
        rows.append(Row("the machine multiplies", "GFLOP/s", [m.multiply / 1e9 for m in self.machines]))
        return rows


def facts(engine: Engine, options: Options, work: Work) -> dict[str, Any]:
    """What was timed, and where."""
    import torch

    weight = engine.decoder.like
    return {
        "device": str(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "quantize": options.quantize,
        "native": options.native,
        "threads": torch.get_num_threads(),
        "machine": machine(weight.device),
        "torch": torch.__version__,
        "weights_bytes": weights(engine),
        "read_bytes": work.weights,
    }


def weights(engine: Engine) -> int:
    """Bytes of all parameters, a tied head and its embedding once."""
    return sum(parameter.nbytes for parameter in engine.decoder.parameters())


def machine(device: torch.device) -> str:
    """The processor's name, as its maker wrote it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, platform.processor() or platform.machine())}, {os.cpu_count()} cores"


def show(page: dict[str, Any]) -> None:
    """The table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    how = page["quantize"] or page["dtype"]
    size = page["weights_bytes"] / 2**20
    console.print(f"{page['model']}, {how}, {size:,.0f} MiB of weights, on {page['device']}: {page['machine']}", end="")
    console.print(f", {page['threads']} threads, torch {page['torch']}\n")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for title in ("median", "min", "max"):
        table.add_column(title, justify="right", style="bold" if title == "median" else "")
    table.add_column("")
    table.add_column("of the limit", justify="right")
    for row in page["rows"]:
        share = f"{row['of_limit']:.0%} of {brief(row['limit'])}" if "limit" in row else ""
        if row["name"] == "memory":
            share = f"{row['median'] / size:.2f} x the weights"
        spread = (row["median"], min(row["values"]), max(row["values"]))
        table.add_row(row["name"], *map(brief, spread), f"[dim]{row['unit']}", share)
    console.print(table)


def brief(value: float) -> str:
    """A number in three digits, or whole where it has more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
