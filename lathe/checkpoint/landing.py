"""The tensors of a PEFT file become parts of a decoder's modules, by the rules of the base's family.

Adapters are written in the names of the family's files. Where those keep as one tensor what is several in memory, or in
another order, the same rules say what becomes of the rows of B; A is then shared by all of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from lathe import families
from lathe.checkpoint.filling import Checkpoint
from lathe.errors import CheckpointError
from lathe.families import peft
from lathe.model.blank import blank, slots
from lathe.model.spec import Spec
from lathe.transforms.lowrank import LowRank
from lathe.transforms.standing import Part
from lathe.transforms.terms import Lora
from lathe.transforms.whole import Whole
from lathe.weights import rules
from lathe.weights.rules import Refs, Rule, Transpose
from lathe.weights.tensors import Box, Ref

Parts = dict[str, list[Part]]
ROOT = "base_model.model."  # what PEFT puts before the names of a model's modules
A, B, OWN_BIAS, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"
TABLE_A, TABLE_B = "lora_embedding_A", "lora_embedding_B"
NAME = re.compile(
    rf"(?P<module>.+)\.((?P<part>lora_[AB]\.weight|{OWN_BIAS}|{TABLE_A}|{TABLE_B})|(?P<magnitude>{MAGNITUDE})(\.weight)?)"
)
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


class Landing:
    """Where in memory the modules are that a base's family names; or another hand, whose rules are given."""

    def __init__(
        self, config: Mapping[str, Any], spec: Spec, base: str, laws: list[Rule] | None = None, own: Refs | None = None
    ) -> None:
        """base: what the model is called in messages. own: its tensors, where what is beside them is to be known."""
        self.spec, self.base, self.own = spec, base, own or {}
        apart = replace(spec, tied=False)  # an adapter may part the head from the embedding
        self.laws = families.rules(config, apart) if laws is None else laws
        self.shapes = {name: tuple(slot.shape) for name, slot in slots(blank(apart))}

    @staticmethod
    def of(model: Checkpoint, laws: list[Rule] | None = None) -> Landing:
        return Landing(model.config, model.spec, str(model.path), laws, model.tensors)

    def rows(self, module: str, ref: Ref) -> Refs:
        """What becomes of a tensor that has the rows of a module's weight, by the names of modules in memory; nothing
        where the module is none by itself."""
        name = module + ".weight"
        return self._modules(rules.into(self.laws, {name: ref.transposed() if self.transposed(name) else ref}))

    def together(self, tensors: Refs) -> Refs:
        """The same of many modules' tensors that are stacked in memory."""
        return self._modules(rules.into(self.laws, {f"{module}.weight": ref for module, ref in tensors.items()}))

    def _modules(self, landed: Refs) -> Refs:
        if not landed.keys() <= self.shapes.keys():
            return {}
        return {name.removesuffix(".weight"): ref for name, ref in landed.items()}

    def transposed(self, name: str) -> bool:
        """Whether the family's files keep this matrix as inputs x outputs."""
        probe = {name: Ref.of(torch.zeros(1, 1))}
        for law in self.laws:
            if isinstance(law, Transpose) and any(rules.matches(law.name, probe)):
                return True
            law.into(probe)
        return False

    def fit(self, module: str, ref: Ref, shape: tuple[int, ...]) -> None:
        """Raise CheckpointError where a tensor has another shape than the module in memory asks for."""
        if ref.shape != shape:
            found = f"{ref.source} has shape {list(ref.shape)}."
            expected = f"For {module} of {self.base} it should have {list(shape)}."
            raise CheckpointError(found, expected, "Check that the adapter was made for this model.")

    def foreign(self, ref: Ref) -> CheckpointError:
        found = f"{ref.source}, of shape {list(ref.shape)}, has no place in {self.base}."
        return CheckpointError(found, "It belongs to another model.", "Check that the adapter was made for this one.")


def parts(tensors: Refs, settings: Lora, landing: Landing) -> Parts:
    """All tensors of a PEFT file as parts, by the names of modules in memory.

    Raises:
        CheckpointError: one is missing, too many, of a wrong shape, or of a module that the base does not have.
    """
    modules: dict[str, Refs] = defaultdict(dict)
    fused: dict[str, Refs] = defaultdict(dict)
    rest: Refs = {}
    for name, ref in tensors.items():
        name = name.removeprefix(ROOT)
        if match := NAME.fullmatch(name):
            module = match["module"].removesuffix(".base_layer")
            key = match["part"] or match["magnitude"]
            if f"{module}.gate_proj.weight" in landing.shapes:  # one term for all experts, or two, one in the other
                fused[match["module"]][key] = ref
            else:
                modules[module][key] = ref
        else:
            rest[name] = ref
    found: Parts = defaultdict(list)
    whole(rest, landing, found)
    for module, own in fused.items():
        _fused(module.removesuffix(".base_layer"), own, settings, landing, found)
    stacked: dict[str, Refs] = {}
    for module, own in modules.items():
        if own.keys() == {TABLE_A, TABLE_B}:
            _table(module, own, settings, landing, found)
        else:
            _check(module, own, settings)
            if not _matrix(module, own, settings, landing, found):
                stacked[module] = own
    if stacked:
        _experts(stacked, settings, landing, found)
    return dict(found)


def _check(module: str, own: Refs, settings: Lora) -> None:
    """Whether a module has all tensors that the settings ask for and no others, of the rank they give."""
    wanted = {A, B} | ({MAGNITUDE} if settings.dora else set()) | ({OWN_BIAS} if settings.own_bias else set())
    one, rank = next(iter(own.values())), settings.rank_of(module)
    if own.keys() != wanted:
        odd = ", ".join(sorted(own.keys() ^ wanted))
        raise CheckpointError(f"{one.source}: beside it {odd} is missing, or there against {peft.FILE}.")
    for ref, dim in ((own[A], 0), (own[B], 1)):
        if len(ref.shape) != 2 or ref.shape[dim] != rank:
            raise CheckpointError(
                f"{ref.source} has shape {list(ref.shape)}.", f"{peft.FILE} gives it the rank {rank}."
            )


def _matrix(module: str, own: Refs, settings: Lora, landing: Landing, found: Parts) -> bool:
    """One module's low-rank term; False where the module is none by itself."""
    rows = landing.rows(module, own[B])
    extra = {key: landing.rows(module, column(own[key])) for key in (MAGNITUDE, OWN_BIAS) if key in own}
    a, rank = own[A].read(), own[A].shape[0]
    for name, b in rows.items():
        shape = landing.shapes[name + ".weight"]
        if len(shape) != 2:
            return False
        landing.fit(name, own[A], (rank, shape[1]))
        landing.fit(name, b, (shape[0], rank))
        more = {}
        for key, landed in extra.items():
            if name not in landed:
                raise landing.foreign(own[key])
            landing.fit(name, landed[name], (shape[0], 1))
            more[key] = landed[name].read()[:, 0]
        scaling = settings.scaling(module, rank)
        term = LowRank(a, b.read(), scaling, settings.dropout, more.get(MAGNITUDE), more.get(OWN_BIAS))
        found[name].append(term)
    return bool(rows)


def column(ref: Ref) -> Ref:
    """A vector as a matrix with one column."""
    if len(ref.shape) != 1:
        raise CheckpointError(f"{ref.source} has shape {list(ref.shape)}.", "It should be one number for each row.")

    def fetch(box: Box) -> torch.Tensor:
        return ref.fetch(box[:1])[:, None][:, box[1]]

    return Ref((*ref.shape, 1), ref.dtype, fetch, ref.source)


def _experts(modules: Mapping[str, Refs], settings: Lora, landing: Landing, found: Parts) -> None:
    """Modules that are one stack in memory, all of which must have a term, and of one rank."""
    one = next(iter(modules.values()))[B]
    rows = landing.together({module: own[B] for module, own in modules.items()})
    inputs = landing.together({module: own[A] for module, own in modules.items()})
    scalings = {settings.scaling(module, own[A].shape[0]) for module, own in modules.items()}
    if not rows or rows.keys() != inputs.keys():
        raise landing.foreign(one)
    if len(scalings) > 1 or settings.dora or settings.own_bias:
        what = "magnitudes, biases, or ranks and alphas that differ"
        raise CheckpointError(f"{one.source} is of one expert of many.", f"They are not read with {what}.")
    for name, b in rows.items():
        count, outputs, width = landing.shapes[name + ".weight"]
        rank = b.shape[-1]
        landing.fit(name, b, (count, outputs, rank))
        landing.fit(name, inputs[name], (count, rank, width))
        found[name].append(LowRank(inputs[name].read(), b.read(), scalings.copy().pop(), settings.dropout))


def _fused(module: str, own: Refs, settings: Lora, landing: Landing, found: Parts) -> None:
    """A term of a parameter that holds all experts, gates above ups, or the downs: a: E r rows, b: out rows, r E."""
    one = next(iter(own.values()))
    count, width, inputs = landing.shapes.get(f"{module}.gate_proj.weight", (0, 0, 0))
    if own.keys() != {A, B} or settings.dora or f"{module}.gate_proj.bias" in landing.shapes or not count:
        raise landing.foreign(one)
    a, b = own[A], own[B]
    up = b.shape[:1] == (2 * width,)
    parameter = f"{module}.{'gate_up' if up else 'down'}_proj"
    rank = settings.rank_of(parameter)
    landing.fit(parameter, a, (count * rank, inputs if up else width))
    landing.fit(parameter, b, (2 * width if up else inputs, rank * count))
    each = b.read().unflatten(1, (rank, count)).permute(2, 0, 1)  # E out r
    apart = each.split(width, dim=1) if up else [each]
    shared = a.read().unflatten(0, (count, rank))
    for name, rows in zip(("gate_proj", "up_proj") if up else ("down_proj",), apart, strict=True):
        term = LowRank(shared, rows.contiguous(), settings.scaling(parameter, rank), settings.dropout)
        found[f"{module}.{name}"].append(term)


def _table(module: str, own: Refs, settings: Lora, landing: Landing, found: Parts) -> None:
    """An embedding's term: a has its rows as columns."""
    a, b, rank = own[TABLE_A], own[TABLE_B], settings.rank_of(module)
    if settings.dora:
        raise CheckpointError(f"{a.source} is of an embedding.", "DoRA is not read on one.")
    if len(a.shape) != 2 or a.shape[0] != rank:
        raise CheckpointError(f"{a.source} has shape {list(a.shape)}.", f"{peft.FILE} gives it the rank {rank}.")
    rows = landing.rows(module, a.transposed())
    if not rows:
        raise landing.foreign(a)
    for name, turned in rows.items():
        count, width = landing.shapes[name + ".weight"]
        landing.fit(name, turned, (count, rank))
        landing.fit(name, b, (width, rank))
        found[name].append(LowRank(a.read(), b.read(), settings.scaling(module, rank), table=True))


def whole(tensors: Refs, landing: Landing, found: Parts) -> None:
    """Modules and biases that were learned whole, and the embedding that PEFT writes beside its terms."""
    beside = {name for name in tensors if name.endswith(".base_layer.weight")}
    plain = {name.replace(".base_layer.", "."): ref for name, ref in tensors.items()}
    landed = rules.into(landing.laws, plain)
    whole: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, ref in landed.items():
        if name not in landing.shapes:
            raise landing.foreign(ref)
        module, _, key = name.rpartition(".")
        landing.fit(module, ref, landing.shapes[name])
        if beside and _same(ref, landing.own.get(name)):
            continue
        whole[module][key] = ref.read()
    if beside and landing.spec.tied and EMBEDDING in whole:
        whole.setdefault(HEAD, whole[EMBEDDING])
    for module, own in whole.items():
        found[module].append(Whole(own))


def _same(ref: Ref, other: Ref | None) -> bool:
    """Whether two tensors hold the same numbers."""
    if other is None or ref.shape != other.shape:
        return False
    return all(torch.equal(a, b.to(a.dtype)) for a, b in zip(ref.pieces(), other.pieces(), strict=True))
