"""Turns the table of well-known repos and the families into a list on standard output, or JSON."""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from lathe import families, hub
from lathe.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Options:
    words: tuple[str, ...] = ()
    """Show only repos whose id, family or note holds each of these words."""
    _: KW_ONLY
    family: str | None = None
    """Show only this family, by its model_type or its architecture, as in qwen3 or Qwen3ForCausalLM."""
    json: bool = False
    """Print JSON: a list of objects with repo, family, architecture, parameters, note and path."""
    checkpoints: Path = Path("checkpoints")
    """Where models are looked for that are on this machine already."""


def run(options: Options) -> None:
    """List the families and the well-known repos.

    These are repos that many people use; any other of the same families works too. "here" marks those that are on this
    machine, below checkpoints or in the Hugging Face cache.
    """
    architectures = {family.model_type: name for name, family in families.FAMILIES.items()}
    chosen = _family(options.family, architectures)
    rows = [row for row in hub.known() if row.family in architectures and chosen in (None, row.family)]
    rows = [row for row in rows if all(word.casefold() in " ".join(row).casefold() for word in options.words)]
    if not rows and options.words:
        near = did_you_mean(
            options.words[0].casefold(), re.split(r"[/_,\s-]", " ".join(row.repo for row in hub.known()).casefold())
        )
        raise UsageError(f"No well-known repo has {' and '.join(options.words)} in it.", fix=near)
    here = {row.repo: hub.placed(row.repo, options.checkpoints) for row in rows}
    if options.json:
        listed = [
            {**row._asdict(), "architecture": architectures[row.family], "path": _string(here[row.repo])}
            for row in rows
        ]
        print(json_module.dumps(listed, indent=2))
        return
    for line in _lines(rows, architectures if not options.words else {}, chosen, here):
        print(line)


def _family(typed: str | None, architectures: dict[str, str]) -> str | None:
    """The model_type of the family typed. Raises UsageError."""
    names = {name.casefold(): kind for kind, name in architectures.items()} | {kind: kind for kind in architectures}
    if typed is None or typed.casefold() in names:
        return names[typed.casefold()] if typed else None
    fix = did_you_mean(typed, names) or "`lathe models` shows them all."
    raise UsageError(f'There is no family "{typed}".', fix=fix)


def _lines(
    rows: list[hub.Known], architectures: dict[str, str], chosen: str | None, here: dict[str, Path | None]
) -> Iterator[str]:
    """One paragraph a family; those of which no repo is in the table last, in one line."""
    width = max((len(row.repo) for row in rows), default=0)
    kinds = list(dict.fromkeys(row.family for row in rows))
    for kind in kinds:
        yield kind
        for row in (row for row in rows if row.family == kind):
            notes = ", ".join(note for note in (row.note, "here" if here[row.repo] else "") if note)
            yield f"  {row.repo:{width}}  {row.parameters:>10}  {notes}".rstrip()
        yield ""
    rest = [kind for kind in architectures if kind not in kinds and chosen in (None, kind)]
    if rest:
        yield f"also: {', '.join(rest)}"


def _string(path: Path | None) -> str | None:
    return str(path) if path else None
