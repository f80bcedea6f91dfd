"""Turns a checkpoint's headers into a page about it: what model it is, how large, whether its parts fit together."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import KW_ONLY, asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe import hub
from lathe.errors import LatheError

if TYPE_CHECKING:
    from lathe.checkpoint import Checkpoint
    from lathe.model.spec import Layer, Spec

SENTENCE = "A lathe turns; 3.14 is π, naïve 日本語 🙂.\n"


@dataclass(frozen=True)
class Options:
    model: str
    """Folder, file or repo id."""
    _: KW_ONLY
    checkpoints: Path = Path("checkpoints")
    """Where models named by their repo id are looked for and downloaded to."""
    json: bool = False
    """Print one JSON object instead of a page."""


def run(options: Options) -> int:
    """Show what a model is and check its files.

    Reads headers only, so it takes a moment for a model of any size. The exit status is 1 when something is wrong.
    """
    from lathe import checkpoint

    found = checkpoint.open(hub.find(options.model, options.checkpoints))
    page = describe(found)
    problems = check(found)
    if options.json:
        print(json.dumps({**page, "problems": problems}, indent=2, ensure_ascii=False))
    else:
        show(page, problems)
    return 1 if problems else 0


def describe(found: Checkpoint) -> dict[str, Any]:
    """The facts, by name."""
    spec = found.spec
    total = sum(prod(ref.shape) for ref in found.tensors.values())
    stored = Counter(str(ref.dtype).removeprefix("torch.") for ref in found.tensors.values())
    return {
        "path": str(found.path),
        "form": found.form,
        "architecture": (found.config.get("architectures") or [found.config.get("model_type")])[0],
        "parameters": total,
        "active_parameters": total - idle(spec),
        "layers": layers(spec),
        "width": spec.width,
        "vocabulary": spec.vocab,
        "context": spec.context,
        "tied_head": spec.tied,
        "tensors": dict(stored),
        "bytes": sum(ref.nbytes for ref in found.tensors.values()),
        "cache_bytes_per_token": cache_size(spec) * found.dtype.itemsize,
    }


def check(found: Checkpoint) -> list[str]:
    """What does not fit together, a sentence each."""
    from lathe import checkpoint

    problems = []
    try:
        checkpoint.fit(checkpoint.blank(found.spec), found.tensors, found.path)
    except LatheError as error:
        problems.append(str(error))
    try:
        tokenizer = found.tokenizer()
        if tokenizer.vocab_size > found.spec.vocab:
            size = f"The tokenizer has {tokenizer.vocab_size} tokens, the model rows for {found.spec.vocab}."
            problems.append(f"{size} Texts with the last ones cannot be run.")
        # A vocabulary without some of these characters loses them; one that has them all gives the sentence back.
        again = tokenizer.decode(tokenizer.encode(tokenizer.decode(tokenizer.encode(SENTENCE))))
        if again != tokenizer.decode(tokenizer.encode(SENTENCE)):
            problems.append(f"The tokenizer does not give back what it was given: {again!r} for {SENTENCE!r}.")
        if tokenizer.has_template:
            tokenizer.render([{"role": "user", "content": "Hello"}])
    except LatheError as error:
        problems.append(str(error))
    return problems


def show(page: dict[str, Any], problems: list[str]) -> None:
    """The page in the terminal, problems in red at its end."""
    from rich.console import Console
    from rich.table import Table

    total, active = page["parameters"], page["active_parameters"]
    rows = {
        "path": page["path"],
        "form": page["form"],
        "architecture": page["architecture"],
        "parameters": f"{total:,}" + (f", {active:,} active per token" if active != total else ""),
        "layers": "\n".join(f"{count} x {words}" for words, count in page["layers"].items()),
        "width": str(page["width"]),
        "vocabulary": f"{page['vocabulary']:,}" + (", head tied to the embedding" if page["tied_head"] else ""),
        "context": f"{page['context']:,} tokens",
        "read as": ", ".join(f"{count} {dtype}" for dtype, count in page["tensors"].items()),
        "memory": f"{_human(page['bytes'])} of weights, {_human(page['cache_bytes_per_token'])} of cache per token",
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(f"[dim]{name}", value)
    console = Console(highlight=False)
    console.print(table)
    for problem in problems:
        console.print(f"[red]wrong[/] {problem}", soft_wrap=True)
    if not problems:
        console.print("[green]whole[/] every tensor has its place, and the tokenizer gives back what it is given")


def layers(spec: Spec) -> dict[str, int]:
    """How many layers of each kind, the kinds in words."""
    return dict(Counter(_words(layer) for layer in spec.layers))


def _words(layer: Layer) -> str:
    from lathe.model.spec import Attention, Experts

    mixer, mlp = layer.mixer, layer.mlp
    words = [f"{mixer.heads} heads"]
    if isinstance(mixer, Attention):
        words[0] += f" of {mixer.channels}, {mixer.kv_heads} for keys and values"
    else:
        words.append(f"latent of {mixer.kv_rank}")
    if mixer.window:
        words.append(f"window {mixer.window}")
    if mixer.rope is None:
        words.append("no rotary positions")
    elif mixer.rope.scaling is not None:
        factors = {k: v for k, v in asdict(mixer.rope.scaling).items() if isinstance(v, (int, float))}
        shown = " ".join(f"{name} {value:g}" for name, value in factors.items())
        words.append(f"{type(mixer.rope.scaling).__name__.lower()} rope ({shown})")
    if isinstance(mlp, Experts):
        words.append(f"{mlp.router.chosen} of {mlp.router.count} experts of {mlp.each.width}")
    else:
        words.append(f"mlp {mlp.width}")
    return ", ".join(words)


def idle(spec: Spec) -> int:
    """Parameters of the experts that a token does not visit."""
    from lathe.model.spec import Experts

    mixed = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, Experts)]
    return sum((mlp.router.count - mlp.router.chosen) * 3 * mlp.each.width * spec.width for mlp in mixed)


def cache_size(spec: Spec) -> int:
    """Numbers that one token leaves in the cache, all layers together."""
    shapes = [layer.mixer.cache for layer in spec.layers]
    return sum(s.heads * (s.key_channels + (0 if s.values_in_keys else s.value_channels)) for s in shapes)


def _human(count: float) -> str:
    """Bytes in the unit that suits them: 2.47 GB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
