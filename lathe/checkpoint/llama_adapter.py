"""A LLaMA-Adapter, or its second version, becomes a folder in the manner of PEFT's, and is read from one.

Tensors have the names of the modules in memory: adapter_wte and gating_factor of an attention, adapter_scale and
adapter_bias of a matrix, weight (and bias) of a norm. PEFT has no such method. LitGPT's own files cannot hold what is
learned here: it cuts the keys and values of a prefix from other rows than its attention does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from lathe.checkpoint.filling import Checkpoint
from lathe.checkpoint.landing import Landing, Parts, whole
from lathe.checkpoint.peft_folder import Files
from lathe.errors import CheckpointError, UsageError
from lathe.model.decoder import Decoder
from lathe.model.spec import Attention
from lathe.transforms import adapt
from lathe.transforms.prefix import Tokens
from lathe.transforms.whole import Scaled, Whole
from lathe.weights.rules import Refs
from lathe.weights.tensors import Ref

KIND = "LLAMA_ADAPTER"  # in adapter_config.json
PREFIX, SCALED = ("adapter_wte", "gating_factor"), ("adapter_scale", "adapter_bias")


def files(decoder: Decoder, name: str, base: str) -> Files:
    """One adapter. base: what adapter_config.json calls the base. Raises UsageError for one of another kind."""
    tensors: dict[str, Tensor] = {}
    for module, parts in adapt.parts(decoder, name).items():
        for part in parts:
            tensors |= {f"{module}.{key}": tensor.detach().contiguous() for key, tensor in _named(part, module).items()}
    return Files({"peft_type": KIND, "task_type": "CAUSAL_LM", "base_model_name_or_path": base}, tensors)


def _named(part: adapt.Part, module: str) -> Mapping[str, Tensor]:
    match part:
        case Tokens(tokens, gates, as_litgpt=False):
            return dict(zip(PREFIX, (tokens, gates), strict=True))
        case Scaled(scale, bias):
            return dict(zip(SCALED, (scale, bias), strict=True))
        case Whole(tensors):
            return tensors
    raise UsageError(f"{module} has a part that a LLaMA-Adapter has not.", "It has prefixes, scales and norms.")


def read(tensors: Refs, model: Checkpoint) -> Parts:
    """The parts in a folder's tensors, for this base. Raises CheckpointError where they do not belong to it."""
    landing = Landing.of(model, [])
    found: Parts = defaultdict(list)
    owned: dict[str, Refs] = defaultdict(dict)
    rest: Refs = {}
    for name, ref in tensors.items():
        module, _, key = name.rpartition(".")
        if key in (*PREFIX, *SCALED):
            owned[module][key] = ref
        else:
            rest[name] = ref
    for module, own in owned.items():
        for kind in (PREFIX, SCALED):
            if here := [own.pop(key) for key in kind if key in own]:
                found[module].append(_part(module, kind, here, landing))
    whole(rest, landing, found)
    return dict(found)


def _part(module: str, kind: tuple[str, str], own: list[Ref], landing: Landing) -> Tokens | Scaled:
    if len(own) != 2:
        found = f"{own[0].source} has no partner."
        raise CheckpointError(found, f"{module} has both, {' and '.join(kind)}.", "Copy the adapter's files again.")
    if kind == SCALED:
        rows = landing.shapes.get(f"{module}.weight", ())[:1]
        for ref in own:
            landing.fit(module, ref, rows)
        return Scaled(own[0].read(), own[1].read())
    mixers = {f"model.layers.{n}.self_attn": layer.mixer for n, layer in enumerate(landing.spec.layers)}
    mixer, tokens = mixers.get(module), own[0]
    if not isinstance(mixer, Attention) or len(tokens.shape) != 2:
        raise landing.foreign(tokens)
    landing.fit(module, tokens, (tokens.shape[0], landing.spec.width))
    landing.fit(module, own[1], (mixer.heads,))
    return Tokens(tokens.read(), own[1].read())
