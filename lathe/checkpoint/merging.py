"""A base's tensors and an adapter's parts become those of the model that merging gives, computed as they are read.

A row is computed in float32 and rounded once, so that a whole model is merged a piece of a tensor at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from lathe.errors import UsageError
from lathe.model.decoder import Decoder
from lathe.transforms import adapt
from lathe.transforms.adapted import Adapted
from lathe.transforms.lowrank import LowRank
from lathe.transforms.panels import same
from lathe.transforms.prefix import Tokens
from lathe.transforms.quantize import Packed
from lathe.transforms.standing import Part
from lathe.transforms.whole import Scaled, Whole
from lathe.weights.rules import Refs
from lathe.weights.tensors import Box, Ref


def weights(decoder: Decoder) -> Refs:
    """A decoder's tensors with its active adapters merged, by the names they have where there are none.

    Raises UsageError where an adapter cannot be put into weights.
    """
    adapt.mergeable(decoder)
    found: Refs = {}
    whole = ""  # the prefix of the names below a module whose tensors are found
    for name, module in decoder.named_modules():
        if (whole and name.startswith(whole)) or isinstance(module, nn.ParameterDict):
            continue
        whole = f"{name}." if isinstance(module, Adapted) else ""
        own = module.own if isinstance(module, Adapted) else module
        if isinstance(own, Packed):
            ref = _unpacked(own, f"{name}.weight")
            found[f"{name}.weight"] = _live(ref, module, "weight") if isinstance(module, Adapted) else ref
        for key, tensor in (*own._parameters.items(), *own._buffers.items()):
            if tensor is not None and not (isinstance(own, Packed) and key != "bias"):
                ref = Ref.of(tensor.detach(), f"{name}.{key}")
                found[f"{name}.{key}"] = _live(ref, module, key) if isinstance(module, Adapted) else ref
    head, embedding = decoder.lm_head, decoder.model.embed_tokens
    if decoder.spec.tied and same(head, embedding):
        del found["lm_head.weight"]
    return found


def _unpacked(module: Packed, source: str) -> Ref:
    def fetch(box: Box) -> Tensor:
        return module.unpacked(module.dtype, box[0])[(slice(None), *box[1:])]

    return Ref(tuple(module.shape), module.dtype, fetch, source)


def _live(ref: Ref, module: Adapted, key: str) -> Ref:
    """A tensor as the module makes it out of its adapters when it is read."""

    def fetch(box: Box) -> Tensor:
        if key == "weight":
            return module.rows(box[0]).detach()[(slice(None), *box[1:])]
        return cast("Tensor", module.bias).detach()[box]

    return replace(ref, fetch=fetch) if key in ("weight", "bias") else ref


def merge(tensors: Refs, module: str, parts: Sequence[Part]) -> None:
    """Put the parts that a module has into its tensors, in a mapping of all of the model's."""
    for part in parts:
        if isinstance(part, Whole):
            for key, tensor in part.tensors.items():
                name = f"{module}.{key}"
                tensors[name] = Ref.of(tensor, tensors[name].source).to(tensors[name].dtype)
    terms = [part for part in parts if not isinstance(part, Whole)]
    if not terms:
        return
    if any(isinstance(part, Tokens) for part in terms):  # which no weight can say
        name = f"{module}.o_proj.weight"
        tensors[name] = _refused(tensors[name], f"lets {module} look at a learned prefix")
        return
    weight, bias = f"{module}.weight", f"{module}.bias"
    tensors[weight] = _merged(tensors[weight], terms)
    if any(isinstance(part, Scaled) or (isinstance(part, LowRank) and part.bias is not None) for part in terms):
        if bias not in tensors:
            tensors[weight] = _refused(tensors[weight], f"gives {module} a bias, which the model has no place for")
        else:
            tensors[bias] = _shifted(tensors[bias], terms)


def _merged(ref: Ref, terms: Sequence[Part]) -> Ref:
    def fetch(box: Box) -> Tensor:
        rows = ref.fetch((box[0], *(slice(0, n) for n in ref.shape[1:]))).float()
        changed = rows
        for part in terms:
            if isinstance(part, Scaled):
                changed = rows = rows * part.scale[box[0], None].float()
            elif isinstance(part, LowRank):
                changed = changed + part.change(rows, box[0])
        return changed[(slice(None), *box[1:])].to(ref.dtype)

    return Ref(ref.shape, ref.dtype, fetch, ref.source)  # whose codes, if it had any, are no longer its


def _shifted(ref: Ref, terms: Sequence[Part]) -> Ref:
    def fetch(box: Box) -> Tensor:
        bias = ref.fetch(box).float()
        for part in terms:
            if isinstance(part, Scaled):
                bias = part.scale[box[0]].float() * (bias + part.bias[box[0]].float())
            elif isinstance(part, LowRank) and part.bias is not None:
                bias = bias + part.scaling * part.bias[box[0]].float()
        return bias.to(ref.dtype)

    return replace(ref, fetch=fetch)


def _refused(ref: Ref, why: str) -> Ref:
    def fetch(_: Box) -> Tensor:
        found = f"The adapter {why}."
        raise UsageError(found, "That cannot be put into the model's weights.", "Use it beside its base.")

    return replace(ref, fetch=fetch)
