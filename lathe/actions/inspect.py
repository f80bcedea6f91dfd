"""Turns a checkpoint's headers into a page about it: what model it is, how large, whether its parts fit together."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import KW_ONLY, asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from lathe import hub
from lathe.actions import adapters, memory, soundness
from lathe.actions.bounds import at_least
from lathe.actions.place import Places
from lathe.errors import LatheError

if TYPE_CHECKING:
    from lathe.checkpoint import Checkpoint
    from lathe.model.spec import Layer, Spec
    from lathe.weights.tensors import Ref


@dataclass(frozen=True)
class Options(Places):
    model: str
    """Folder, file or repo id."""
    _: KW_ONLY
    deep: bool = False
    """Read every tensor too: no number may be infinite or none, no matrix all zero, no file cut short."""
    max_seq_length: int | None = None
    """Tokens in a row, for the memory that training takes. By default 2048, or the context where it is shorter."""
    micro_batch_size: int = 1
    """Rows at once, for the same."""
    draft: str | None = None
    """Check that this model can guess for MODEL (see lathe generate --draft)."""
    json: bool = False
    """Print one JSON object instead of a page."""

    def __post_init__(self) -> None:
        at_least(1, self, "max_seq_length", "micro_batch_size")


def run(options: Options) -> int:
    """Show what a model is, what it takes to run and to train it, and check its files.

    Reads headers only, so it takes a moment for a model of any size; --deep reads all. The exit status is 1 when
    something is wrong. The memory is reckoned, not measured; lathe/actions/memory.py says how.
    """
    from lathe import checkpoint

    found = checkpoint.open(hub.find(options.model, options.checkpoints), options.checkpoints)
    problems = soundness.check(found)
    if options.deep:
        problems += soundness.faults(found)
    page = describe(found, options.max_seq_length, options.micro_batch_size)
    if options.draft is not None:
        small = checkpoint.open(hub.find(options.draft, options.checkpoints), options.checkpoints)
        page["draft"] = told(small)
        problems += soundness.mismatch(found, small)
    if options.json:
        print(json.dumps({**page, "problems": problems}, indent=2, ensure_ascii=False))
    else:
        show(page, problems, options.deep)
    return 1 if problems else 0


def told(found: Checkpoint) -> dict[str, Any]:
    """A model in few words: those of another that goes with it."""
    total = sum(prod(ref.shape) for ref in found.tensors.values())
    return {"path": str(found.path), "form": found.form, "architecture": architecture(found), "parameters": total}


def architecture(found: Checkpoint) -> str:
    return (found.config.get("architectures") or [found.config.get("model_type")])[0]


def describe(found: Checkpoint, length: int | None = None, batch: int = 1) -> dict[str, Any]:
    """The facts, by name. length, batch: what a training step holds."""
    from lathe import checkpoint

    spec, decoder = found.spec, checkpoint.blank(found.spec)
    total = sum(slot.numel() for _, slot in checkpoint.slots(decoder))
    sizes = memory.Sizes.of(decoder)
    length = min(length or 2048, spec.context)
    ways = memory.training(spec, sizes, length, batch)
    kept = [stored(ref) for ref in found.tensors.values()]
    return {
        **told(found),
        "family": found.config.get("model_type"),
        "parameters": total,
        "active_parameters": total - idle(spec),
        "layers": layers(spec),
        "width": spec.width,
        "vocabulary": spec.vocab,
        "context": spec.context,
        "tied_head": spec.tied,
        "tokenizer": words(found),
        "adapter": adapters.facts(found) if isinstance(found, checkpoint.Adapted) else None,
        "tensors": dict(Counter(kind for kind, _ in kept)),
        "bytes": sum(size for _, size in kept),
        "cache_bytes_per_token": memory.cached(spec) * found.dtype.itemsize,
        "memory": {
            "running": memory.running(spec, sizes, spec.context),
            "training": {name: way.facts() for name, way in ways.items()},
            "max_seq_length": length,
            "micro_batch_size": batch,
        },
    }


def stored(ref: Ref) -> tuple[str, int]:
    """What a tensor is in memory when it is loaded as it is, the type of its numbers or a kind of codes; its bytes."""
    from lathe.transforms.kinds import KEPT
    from lathe.weights.coded import Coded

    if isinstance(ref, Coded) and ref.kind in KEPT:
        return ref.kind, sum(part.nbytes for part in ref.parts.values())
    return str(ref.dtype).removeprefix("torch."), ref.nbytes


def words(found: Checkpoint) -> dict[str, Any] | None:
    """What the tokenizer is like; None where it cannot be read, which is reported as a problem."""
    try:
        tokenizer = found.tokenizer()
    except LatheError:
        return None
    ends = [tokenizer.get(id) for id in tokenizer.eos_ids]
    return {
        "size": tokenizer.vocab_size,
        "bos": tokenizer.bos,
        "ends": [end for end in ends if end is not None],
        "chat_template": tokenizer.has_template,
    }


def show(page: dict[str, Any], problems: list[str], deep: bool) -> None:
    """The page in the terminal, problems in red at its end."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    facts = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows(page).items():
        facts.add_row(f"[dim]{name}", Text(value))
    console.print(facts)
    kept = page["memory"]
    training = f"To train, {kept['micro_batch_size']} x {kept['max_seq_length']:,} tokens"
    for title, some in ((f"To run, context {page['context']:,}", kept["running"]), (training, kept["training"])):
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column(title)
        for part in next(iter(some.values())):
            table.add_column(part, justify="right", style="bold" if part == "total" else "")
        for name, sizes in some.items():
            table.add_row(f"  {name}", *(hub.amount(size) for size in sizes.values()))
        console.print()
        console.print(table)
    console.print()
    for problem in problems:
        console.print(Text.assemble(("wrong ", "red"), problem), soft_wrap=True)
    if not problems:
        every = "every number is finite" if deep else "every tensor has its place"
        console.print(f"[green]whole[/] {every}, and the tokenizer gives back what it is given")


def rows(page: dict[str, Any]) -> dict[str, str]:
    """The facts in words."""
    total, active = page["parameters"], page["active_parameters"]
    words, adapter, draft = page["tokenizer"], page["adapter"], page.get("draft")
    found = {
        "path": page["path"],
        "form": page["form"],
        "family": f"{page['family']} ({page['architecture']})",
        "parameters": f"{total:,}" + (f", {active:,} active per token" if active != total else ""),
        "layers": "\n".join(f"{count} x {words}" for words, count in page["layers"].items()),
        "width": str(page["width"]),
        "vocabulary": f"{page['vocabulary']:,}" + (", head tied to the embedding" if page["tied_head"] else ""),
        "context": f"{page['context']:,} tokens",
    }
    if words:
        ends = f", ends with {', '.join(words['ends'])}" if words["ends"] else ""
        begins = f", begins with {words['bos']}" if words["bos"] else ""
        template = "has a chat template" if words["chat_template"] else "no chat template"
        found["tokenizer"] = f"{words['size']:,} tokens{begins}{ends}; {template}"
    stored = ", ".join(f"{count} {dtype}" for dtype, count in page["tensors"].items())
    found["read as"] = f"{stored}; {hub.amount(page['bytes'])}"
    found["cache"] = f"{hub.amount(page['cache_bytes_per_token'])} per token"
    if adapter:
        found["adapter"] = f"{adapters.words(adapter)}, {hub.amount(adapter['bytes'])}"
    if draft:
        found["draft"] = f"{draft['path']}, {draft['architecture']} of {draft['parameters']:,} parameters"
    return found


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
