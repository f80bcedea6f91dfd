"""In an engine process: options of `lathe serve` become a model that is ready to answer, with adapters by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lathe.actions.serve import Options
    from lathe.server.room import Loaded


def load(options: Options, place: Path, adapters: Mapping[str, Path] | None = None) -> Loaded:
    """adapters: folders, by what clients call them."""
    from lathe import checkpoint
    from lathe.checkpoint.adapters import read
    from lathe.engine import Engine
    from lathe.engine.memory import fitting
    from lathe.server.line import key
    from lathe.server.room import Loaded
    from lathe.server.served import NEUTRAL
    from lathe.transforms.roster import Roster

    llm = options.load(place, devices=options.devices)
    roster = Roster(llm.decoder)

    def adapt(name: str, path: Path) -> None:
        roster.put(name, read(path, checkpoint.open(place, options.checkpoints)).parts)

    for name, path in (adapters or {}).items():
        adapt(key(name), path)
    drafter = llm.engine.drafter
    kv = llm.engine.pages.dtype
    pool = options.cache_tokens or fitting(llm.decoder, options.max_seqs, drafter, kv)
    engine = Engine(llm.decoder, tokens=pool, seats=options.max_seqs, adapters=roster, drafter=drafter, kv=kv)
    defaults = {**llm.defaults, "logprobs": None, "seed": options.seed}
    defaults["max_new_tokens"] = llm.generation.get("max_new_tokens")
    told = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p")}
    asked = {name: value for name, value in told.items() if value is not None}
    defaults |= asked
    says = any(llm.generation.get(name) is not None for name in (*NEUTRAL, "do_sample"))
    usual = tuple(name for name in NEUTRAL if name in llm.defaults and not says and name not in asked)
    weight = llm.decoder.like
    about = {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": str(weight.device),
        "family": llm.config.get("model_type") or llm.config["architectures"][0].removesuffix("ForCausalLM").lower(),
        "parameters": sum(one.numel() for one in llm.decoder.parameters()),
        "tokens": pool,
        "bytes": sum(one.numel() * one.element_size() for one in llm.decoder.parameters()),
    }
    return Loaded(engine, llm.tokenizer, llm.grammars, adapt, tuple(adapters or ()), defaults, usual, llm.stops, about)
