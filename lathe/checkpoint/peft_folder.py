"""An adapter on a decoder becomes a folder that PEFT loads: adapter_config.json and adapter_model.safetensors.

The family's rules run backwards. Where its files keep as one matrix what is several in memory, whose terms were learned
apart, the terms lie side by side in one of a rank as large as theirs together: exactly the same map.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lathe.checkpoint import placing
from lathe.checkpoint.landing import HEAD, MAGNITUDE, OWN_BIAS, ROOT, TABLE_A, TABLE_B, A, B, Landing, Parts
from lathe.errors import UsageError
from lathe.families import peft
from lathe.model.decoder import Decoder
from lathe.transforms import adapt
from lathe.transforms.lowrank import LowRank
from lathe.transforms.terms import Lora
from lathe.transforms.whole import Whole
from lathe.weights import rules, safetensors
from lathe.weights.tensors import Ref

Group = Sequence[str]  # the modules in memory that are one in the family's files, in the order of their rows


@dataclass(frozen=True, eq=False)
class Files:
    """What the folder of an adapter says and holds. settings: adapter_config.json. tensors: by their names there; those
    that the decoder holds too are the same memory."""

    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def write(self, folder: Path) -> None:
        """Write both into a folder that is there."""
        text = json.dumps(self.settings, indent=2)
        (folder / peft.FILE).write_text(text + "\n", encoding="utf-8")
        safetensors.write(folder / "adapter_model.safetensors", {k: Ref.of(t) for k, t in self.tensors.items()})


def write(
    place: Path, decoder: Decoder, name: str, config: Mapping[str, Any], base: str = "", replaces: bool = False
) -> None:
    """Write one adapter beside its place, and rename it there when it is whole. Arguments and errors as of `files`.

    Raises:
        UsageError: something is at `place` and `replaces` is not given.
    """
    made = files(decoder, name, config, base)
    with placing.beside(place, replaces) as folder:
        folder.mkdir()
        made.write(folder)


def files(decoder: Decoder, name: str, config: Mapping[str, Any], base: str = "") -> Files:
    """One adapter in PEFT's words.

    config: the base's, as config.json says it. base: what adapter_config.json calls the base, a path or a repo id.

    Raises:
        UsageError: PEFT has no such adapter.
    """
    landing = Landing(config, replace(decoder.spec, tied=False), "the base")
    parts = adapt.parts(decoder, name)
    groups = _groups(landing)
    tensors: dict[str, Tensor] = {}
    terms: dict[str, LowRank] = {}
    for module, group in groups.items():
        _add_term(decoder, module, group, parts, landing, terms, tensors)
    _add_experts(parts, landing, terms, tensors)
    whole, bias = _add_whole(decoder, parts, groups, landing, terms, tensors)
    settings = replace(_settings(terms, [*groups]), whole=tuple(whole), bias=bias)
    turned = any(landing.transposed(f"{module}.weight") for module in terms)
    named = {ROOT + key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    return Files(peft.told(settings, base, turned), named)


def _groups(landing: Landing) -> dict[str, Group]:
    """The family's modules that have a matrix, and what each is in memory."""
    matrices = {name: shape for name, shape in landing.shapes.items() if len(shape) == 2}
    skeleton = {name: Ref(shape, torch.float32, lambda _: torch.empty(0)) for name, shape in matrices.items()}
    found: dict[str, Group] = {}
    for name, ref in rules.back(landing.laws, skeleton).items():
        group = [inside.removesuffix(".weight") for inside in rules.into(landing.laws, {name: ref})]
        # transformers 5 calls the head so in every family, also where the files have another name.
        found[HEAD if group == [HEAD] else name.removesuffix(".weight")] = group
    return found


def _add_term(
    decoder: Decoder,
    module: str,
    group: Group,
    parts: Parts,
    landing: Landing,
    terms: dict[str, LowRank],
    tensors: dict[str, Tensor],
) -> None:
    """One of the family's modules: its term, and that under PEFT's names."""
    for inside in group:
        for part in parts.get(inside, ()):
            if not isinstance(part, LowRank | Whole):
                raise UsageError(f"The adapter has a {type(part).__name__} on {inside}.", "PEFT's LoRA has none.")
    own = {inside: part for inside in group for part in parts.get(inside, ()) if isinstance(part, LowRank)}
    if not own:
        return
    part = terms[module] = _joined(decoder, group, own, landing)
    if part.table:
        tensors |= {f"{module}.{TABLE_A}": part.a, f"{module}.{TABLE_B}": part.b}
        return
    tensors[f"{module}.{A}"] = part.a
    columns = {B: part.b, MAGNITUDE: part.magnitude, OWN_BIAS: part.bias}
    for key, rows in columns.items():
        if rows is not None:
            back = _back(module, group, rows if rows.ndim == 2 else rows[:, None], landing)
            tensors[f"{module}.{key}"] = back if rows.ndim == 2 else back[:, 0]


def _back(module: str, group: Group, rows: Tensor, landing: Landing) -> Tensor:
    """Rows of all of a group as the family's files have them."""
    sizes = [landing.shapes[f"{inside}.weight"][0] for inside in group]
    cut = {f"{inside}.weight": Ref.of(part) for inside, part in zip(group, rows.detach().split(sizes), strict=True)}
    [ref] = rules.back(landing.laws, cut).values()
    tensor = ref.read()
    return tensor.T if landing.transposed(f"{module}.weight") else tensor


def _joined(decoder: Decoder, group: Group, own: Mapping[str, LowRank], landing: Landing) -> LowRank:
    """The terms of a group's modules as one, with the rows of all of them."""
    first = next(iter(own.values()))
    if len(group) == 1:
        return first
    alike = len(own) == len(group) and all(p.a is first.a and p.scaling == first.scaling for p in own.values())
    rank = first.a.shape[0] if alike else sum(part.a.shape[0] for part in own.values())
    a = first.a if alike else torch.cat([part.a for part in own.values()])
    b, magnitudes, biases, start = [], [], [], 0
    for inside in group:
        rows = landing.shapes[f"{inside}.weight"][0]
        block, part = first.b.new_zeros(rows, rank), own.get(inside)
        if part is not None:
            width = part.a.shape[0]
            block[:, start : start + width] = part.b.detach() * (part.scaling / first.scaling)
            start += 0 if alike else width
        b.append(block)
        biases.append(block.new_zeros(rows) if part is None or part.bias is None else _scaled_bias(part, first))
        if first.magnitude is not None:
            base = cast("Tensor", decoder.get_submodule(inside).weight)
            length = base.detach().float().norm(dim=1) if part is None or part.magnitude is None else part.magnitude
            magnitudes.append(length.detach())
    return replace(
        first,
        a=a,
        b=torch.cat(b),
        magnitude=torch.cat(magnitudes) if magnitudes else None,
        bias=torch.cat(biases) if any(part.bias is not None for part in own.values()) else None,
    )


def _scaled_bias(part: LowRank, first: LowRank) -> Tensor:
    assert part.bias is not None
    return part.bias.detach() * (part.scaling / first.scaling)


def _add_experts(parts: Parts, landing: Landing, terms: dict[str, LowRank], tensors: dict[str, Tensor]) -> None:
    """Stacks of experts, taken apart."""
    for module, own in parts.items():
        for part in own:
            if isinstance(part, LowRank) and part.a.ndim == 3:
                for key, stack in ((A, part.a), (B, part.b)):
                    apart = rules.back(landing.laws, {f"{module}.weight": Ref.of(stack.detach())})
                    for name, ref in apart.items():
                        outside = name.removesuffix(".weight")
                        tensors[f"{outside}.{key}"] = ref.read()
                        terms[outside] = replace(part, a=part.a[0], b=part.b[0])


def _add_whole(
    decoder: Decoder,
    parts: Parts,
    groups: Mapping[str, Group],
    landing: Landing,
    terms: Mapping[str, LowRank],
    tensors: dict[str, Tensor],
) -> tuple[list[str], Any]:
    """Modules learned whole, whose names are returned, and biases, of which it is said what PEFT calls them."""
    learned: dict[str, Tensor] = {}
    for module, own in parts.items():
        for part in own:
            if isinstance(part, Whole):
                learned |= {f"{module}.{key}": tensor for key, tensor in part.tensors.items()}
    siblings = [group for group in groups.values() if len(group) > 1]
    for group in siblings:  # one bias of a group is written with the others as they are
        some = [inside for inside in group if f"{inside}.bias" in learned]
        for inside in group if some else ():
            learned.setdefault(f"{inside}.bias", cast("Tensor", decoder.get_submodule(inside).bias))
    refs = {name: Ref.of(tensor.detach()) for name, tensor in learned.items()}
    back = rules.back(landing.laws, {name: ref for name, ref in refs.items() if not name.startswith(HEAD)})
    back |= {name: ref for name, ref in refs.items() if name.startswith(HEAD)}  # as in `_groups`
    owned: dict[str, dict[str, Ref]] = defaultdict(dict)
    for name, ref in back.items():
        module, _, key = name.rpartition(".")
        owned[module][key] = ref
    whole, bias = [], "none"
    for module, own_refs in owned.items():
        only_bias = own_refs.keys() == {"bias"}
        within = f"{module}.base_layer" if module in terms else module
        tensors |= {f"{within if only_bias else module}.{key}": ref.read() for key, ref in own_refs.items()}
        if not only_bias:
            whole.append(module)
        elif module not in terms or bias == "all":
            bias = "all"
        else:
            bias = "lora_only"
    return whole, bias


def _settings(terms: Mapping[str, LowRank], modules: Sequence[str]) -> Lora:
    """What PEFT must be told so that it makes these terms and no others."""
    if not terms:
        raise UsageError("The adapter has no low-rank terms.", "PEFT's LoRA is made of them.")
    numbers = {module: (part.rank, part.scaling * part.rank) for module, part in terms.items()}
    (rank, alpha), _ = Counter(numbers.values()).most_common(1)[0]
    one = next(iter(terms.values()))
    ends = {module.rpartition(".")[2] for module in terms}
    short = {module for module in {*modules, *terms} if module.rpartition(".")[2] in ends} == terms.keys()
    odd = {module: pair for module, pair in numbers.items() if pair != (rank, alpha)}
    return Lora(
        rank=rank,
        alpha=alpha,
        targets=tuple(sorted(ends if short else terms)),
        ranks={module: pair[0] for module, pair in odd.items()},
        alphas={module: pair[1] for module, pair in odd.items()},
        dora=any(part.magnitude is not None for part in terms.values()),
        dropout=next((part.dropout for part in terms.values() if not part.table), one.dropout),
        own_bias=any(part.bias is not None for part in terms.values()),
    )
