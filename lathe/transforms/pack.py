"""A decoder becomes one that answers quickly on a CPU: its layers go through kernels of our own, with LoRA beside
them, and the plain way wherever no kernel fits (gradients, other adapters, parts that are not known here, and many
tokens on processors that do not multiply pairs of bfloat16 numbers).

Nothing is copied and no name of a weight changes: the kernels read the parameters as they are stored, and look each
time whether these are still the ones they know. Codes of quantized matrices are put in another order (`panels`); the
embedding and the head of a quantized decoder become codes, too, once where they are one, if they are none yet.
"""

from __future__ import annotations

import ctypes
from typing import TypeGuard, cast

from torch import Tensor, nn

from lathe.model import attention, layers, native
from lathe.model.decoder import Block, Decoder, Embedding, Trunk
from lathe.model.native import resident
from lathe.transforms.found import hooked
from lathe.transforms.panels import CODES, InPanels, Memory, Panels, QuickPacked, QuickPackedTable, Room, fresh
from lathe.transforms.plan import NORMS
from lathe.transforms.products import QuickHead, QuickLinear, QuickTable
from lathe.transforms.quantize import Packed, PackedLinear, PackedTable
from lathe.transforms.quick import Quick, QuickTrunk

ENDS = "int8-32"  # codes of embedding and head
QUICK = CODES.keys() - {"nf4"}  # layers that these go with; nf4 is for room, and keeps them as they are


def pack(decoder: Decoder, memory: Memory = fresh) -> None:
    """Make a decoder quick, in place. Nothing happens where there are no kernels. memory: where codes lie."""
    kernels = native.library()
    if kernels is None:
        return
    moved = 0
    for name, panels in rooms(decoder, memory).items():
        module = decoder.get_submodule(name)
        assert isinstance(module, Packed)
        panels.put([cast("Tensor", module._parameters[part]) for part in module.parts])
        settle(decoder, name, panels)
        moved += panels.all.nbytes
        if moved >= resident.LIMIT:  # or codes that are no more would still take room
            resident.trim()
            moved = 0
    _ends(decoder, kernels, memory)
    folded = _folded(decoder)
    for name, module in [*decoder.named_modules()]:
        if type(module) is layers.Linear and not hooked(module) and module not in folded:
            decoder.set_submodule(name, QuickLinear(module, kernels))
    for name, module in [*decoder.model.layers.named_children()]:
        if isinstance(module, Block) and type(module) in NORMS and not hooked(module):
            decoder.model.layers.set_submodule(name, Quick(module, kernels))
    if type(decoder.model) is Trunk and not hooked(decoder.model):
        decoder.model = QuickTrunk(decoder.model, kernels)


def rooms(decoder: Decoder, memory: Memory = fresh) -> dict[str, Panels]:
    """Room for every matrix that kernels multiply as codes, by its module's name; none where there are no kernels. Of a
    decoder on the meta device, too: who fills it may put codes there at once, and let them `settle`."""
    kernels = native.library()
    if kernels is None:
        return {}
    apart, found = _folded(decoder), {}
    if decoder.spec.tied and isinstance(decoder.model.embed_tokens, Packed):
        apart.append(decoder.lm_head)
    for name, module in decoder.named_modules():
        if type(module) not in (PackedLinear, PackedTable) or module in apart or hooked(module):
            continue
        assert isinstance(module, Packed)
        if module.how in CODES:
            found[name] = module.how, module.shape
    if not found:
        return {}
    room = Room(kernels, [*found.values()], memory)
    return {name: room.panels(*matrix) for name, matrix in found.items()}


def settle(decoder: Decoder, name: str, panels: Panels) -> InPanels:
    """The module that multiplies by these panels, or looks up in them, which stands from now on in the place of the one
    of this name; a tied head has them with the embedding."""
    plain = decoder.get_submodule(name)
    assert isinstance(plain, Packed)
    made = (QuickPackedTable if isinstance(plain, PackedTable) else QuickPacked)(plain, panels)
    decoder.set_submodule(name, made)
    if plain is not decoder.lm_head and isinstance(made, QuickPackedTable) and decoder.spec.tied:
        settle(decoder, "lm_head", panels).panels = made.panels
    return made


def ends() -> tuple[str, ...]:
    """Embedding and head, where kernels look up and multiply in whatever codes of theirs there are."""
    return () if native.library() is None else ("model.embed_tokens", "lm_head")


def _ends(decoder: Decoder, kernels: ctypes.CDLL, memory: Memory) -> None:
    """Make codes of the embedding and the head of a decoder whose layers are codes."""
    if not any(isinstance(module, Packed) and module.how in QUICK for module in decoder.modules()):
        return
    every = {
        name: module
        for name, module in decoder.named_modules()
        if module in (decoder.lm_head, decoder.model.embed_tokens)
    }
    ends = {name: module for name, module in every.items() if _known(module) and not hooked(module)}
    weights = {id(module.weight): module.weight.detach() for module in ends.values()}
    if not weights:
        return
    room = Room(kernels, [(ENDS, weight.shape) for weight in weights.values()], memory)
    made, passing = {}, resident.Passing()
    for key, weight in weights.items():
        made[key] = panels = room.panels(ENDS, weight.shape)
        if not panels.filled:
            panels.rounded(passing.through(weight.split(panels.step())))
    passing.release()
    for name, module in ends.items():
        panels = made[id(module.weight)]
        quick = QuickTable(module, panels) if isinstance(module, Embedding) else QuickHead(module, kernels, panels)
        decoder.set_submodule(name, quick)
    resident.trim()


def unpack(decoder: Decoder) -> None:
    """The decoder as it was before `pack`; what was put into it since stays."""
    if isinstance(decoder.model, QuickTrunk):
        decoder.model = decoder.model.plain
    for name, module in [*decoder.model.layers.named_children()]:
        if isinstance(module, Quick):
            decoder.model.layers.set_submodule(name, module.plain)
    for name, module in [*decoder.named_modules()]:
        if isinstance(module, QuickLinear | QuickTable | InPanels):
            decoder.set_submodule(name, module.back() if isinstance(module, InPanels) else module.plain)


def _folded(decoder: Decoder) -> list[nn.Module]:
    """What no kernel multiplies: latent attention takes its matrix apart."""
    return [one.kv_b_proj for one in decoder.modules() if isinstance(one, attention.LatentAttention)]


def _known(module: nn.Module) -> TypeGuard[Embedding | layers.Linear]:
    """Whether it is a table or a map as the decoder was built with, in the memory and of a type that kernels know."""
    if type(module) not in (Embedding, layers.Linear):
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype in native.TYPES
