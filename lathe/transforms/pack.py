"""A decoder becomes one that answers quickly on a CPU: its layers go through kernels of our own, with LoRA beside
them, and the plain way wherever no kernel fits (gradients, other adapters, parts that are not known here, and many
tokens on processors that do not multiply pairs of bfloat16 numbers).

Nothing is copied and no name of a weight changes: the kernels read the parameters as they are stored, and look each
time whether these are still the ones they know. Codes of quantized matrices are put in another order (`panels`); the
embedding and the head of a quantized decoder become codes, too, once where they are one.
"""

from __future__ import annotations

import torch
from torch import nn

from lathe.model import attention, layers, native
from lathe.model.decoder import Block, Decoder, Embedding, Trunk
from lathe.model.native import resident
from lathe.transforms.panels import CODES, QuickPacked, Room
from lathe.transforms.plan import NORMS, hooked
from lathe.transforms.products import QuickHead, QuickLinear, QuickTable
from lathe.transforms.quantize import Packed, PackedLinear
from lathe.transforms.quick import Quick, QuickTrunk

ENDS = "int8-32"  # codes of embedding and head
QUICK = {
    "int8",
    "int8-32",
    "int4",
    "int4-zp",
}  # decoders that these go with; nf4 is for room, and keeps them as they are


def pack(decoder: Decoder) -> None:
    """Make a decoder quick, in place. Nothing happens where there are no kernels."""
    kernels = native.library()
    if kernels is None:
        return
    # What no kernel multiplies: latent attention takes its matrix apart.
    folded = [one.kv_b_proj for one in decoder.modules() if isinstance(one, attention.LatentAttention)]
    packed: dict[str, PackedLinear] = {}
    ends: dict[str, Embedding | layers.Linear] = {}
    quick = any(isinstance(one, Packed) and one.how in QUICK for one in decoder.modules())
    for name, module in [*decoder.named_modules()]:
        if module in folded or hooked(module):
            continue
        if type(module) is PackedLinear and module.how in CODES:
            packed[name] = module
        elif quick and (module is decoder.lm_head or module is decoder.model.embed_tokens) and _known(module):
            ends[name] = module
        elif type(module) is layers.Linear:
            decoder.set_submodule(name, QuickLinear(module, kernels))
    weights = {id(module.weight): module.weight for module in ends.values()}
    matrices = [(module.how, module.shape) for module in packed.values()]
    room = Room(kernels, [*matrices, *((ENDS, weight.shape) for weight in weights.values())])
    moved = 0
    for name, module in packed.items():
        panels = room.panels(module.how, module.shape)
        decoder.set_submodule(name, QuickPacked(module, kernels, panels))
        moved += panels.all.nbytes
        if moved >= resident.LIMIT // 4:  # or codes that are no more would still take room
            resident.trim()
            moved = 0
    made = {key: room.panels(ENDS, weight.shape).rounded(weight.detach()) for key, weight in weights.items()}
    for name, module in ends.items():
        own = made[id(module.weight)]
        quick_end = QuickTable(module, own) if isinstance(module, Embedding) else QuickHead(module, kernels, own)
        decoder.set_submodule(name, quick_end)
    for name, module in [*decoder.model.layers.named_children()]:
        if isinstance(module, Block) and type(module) in NORMS and not hooked(module):
            decoder.model.layers.set_submodule(name, Quick(module, kernels))
    if type(decoder.model) is Trunk and not hooked(decoder.model):
        decoder.model = QuickTrunk(decoder.model, kernels)


def unpack(decoder: Decoder) -> None:
    """The decoder as it was before `pack`; what was put into it since stays."""
    if isinstance(decoder.model, QuickTrunk):
        decoder.model = decoder.model.plain
    for name, module in [*decoder.model.layers.named_children()]:
        if isinstance(module, Quick):
            decoder.model.layers.set_submodule(name, module.plain)
    for name, module in [*decoder.named_modules()]:
        if isinstance(module, QuickLinear | QuickTable | QuickPacked):
            decoder.set_submodule(name, module.back() if isinstance(module, QuickPacked) else module.plain)


def _known(module: nn.Module) -> bool:
    """Whether it is a table or a map as the decoder was built with, in the memory and of a type that kernels know."""
    if type(module) not in (Embedding, layers.Linear):
        return False
    weight = module.weight
    return isinstance(weight, torch.Tensor) and weight.device.type == "cpu" and weight.dtype in native.TYPES
