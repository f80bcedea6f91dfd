"""A decoder becomes one that answers quickly on a CPU: its layers go through kernels of our own, with LoRA beside
them, and the plain way wherever no kernel fits (gradients, other adapters, parts that are not known here, and many
tokens on processors that do not multiply pairs of bfloat16 numbers).

Nothing is copied and no name of a weight changes: the kernels read the parameters as they are stored, and look each
time whether these are still the ones they know. Codes of quantized matrices are put in another order (`panels`).
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from operator import eq, is_
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.model import attention, layers, mlps, native, rope, spec
from lathe.model.decoder import Block, Decoder, Parallel, PostNorm, PreNorm, Sandwich, Sequential, Shared, Trunk
from lathe.model.kernels import Cache
from lathe.model.layout import Layout
from lathe.model.native import resident, structures
from lathe.transforms import quantize
from lathe.transforms.adapted import shape_of
from lathe.transforms.lowrank import LoraLinear, Terms
from lathe.transforms.panels import CODES, Panels, QuickPacked, Room

FEW = 32  # rows that kernels of our own multiply sooner than torch's wherever they run
MANY = 2**40  # any number of them
ROWS = 4096  # of a head that are made into codes at once
WIDEST = 512  # channels of a head, as in attention.h
NORMS = {  # where a block's norms stand
    PreNorm: {"before_mixer": "input_layernorm", "before_mlp": "post_attention_layernorm"},
    PostNorm: {"after_mixer": "post_attention_layernorm", "after_mlp": "post_feedforward_layernorm"},
    Sandwich: {
        "before_mixer": "input_layernorm",
        "after_mixer": "post_attention_layernorm",
        "before_mlp": "pre_feedforward_layernorm",
        "after_mlp": "post_feedforward_layernorm",
    },
    Parallel: {"before_mixer": "input_layernorm", "before_mlp": "post_attention_layernorm"},
    Shared: {"before_mixer": "input_layernorm", "before_mlp": "input_layernorm"},
}
NORMED = {None: 0, "rows": 1, "heads": 2, "turned heads": 3}


def pack(decoder: Decoder) -> None:
    """Make a decoder quick, in place. Nothing happens where there are no kernels."""
    kernels = native.library()
    if kernels is None:
        return
    ways = {module.how for module in decoder.modules() if isinstance(module, quantize.Packed)}
    quickened = ways & {"int8", "int8-32", "int4"}  # nf4 is for room: its head stays as it is
    coded = bool(quickened and kernels.lathe_codes())
    # What no kernel multiplies: latent attention takes its matrix apart.
    folded = [one.kv_b_proj for one in decoder.modules() if isinstance(one, attention.LatentAttention)]
    packed: dict[str, tuple[layers.Linear, str, torch.Size]] = {}
    for name, module in [*decoder.named_modules()]:
        if module in folded:
            continue
        if type(module) is layers.Linear and not _hooked(module):
            known = module.weight.device.type == "cpu" and module.weight.dtype in native.TYPES
            if coded and known and module is decoder.lm_head:
                packed[name] = module, "int8", module.weight.shape
            else:
                decoder.set_submodule(name, QuickLinear(module, kernels))
        elif type(module) is quantize.PackedLinear and module.how in CODES and kernels.lathe_codes():
            packed[name] = module, module.how, module.shape
    room = Room(kernels, [(how, shape) for _, how, shape in packed.values()])
    moved = 0
    for name, (module, how, shape) in packed.items():
        told = kernels, room.panels(how, shape)
        quick = QuickPacked(module, *told) if isinstance(module, quantize.PackedLinear) else QuickHead(module, *told)
        decoder.set_submodule(name, quick)
        if (
            moved := moved + told[1].all.nbytes
        ) >= resident.LIMIT // 4:  # or codes that are no more would still take room
            resident.trim()
            moved = 0
    for name, module in [*decoder.model.layers.named_children()]:
        if isinstance(module, Block) and type(module) in NORMS and not _hooked(module):
            decoder.model.layers.set_submodule(name, Quick(module, kernels))
    if type(decoder.model) is Trunk and not _hooked(decoder.model):
        decoder.model = QuickTrunk(decoder.model, kernels)


def unpack(decoder: Decoder) -> None:
    """The decoder as it was before `pack`; what was put into it since stays."""
    if isinstance(decoder.model, QuickTrunk):
        decoder.model = decoder.model.plain
    for name, module in [*decoder.model.layers.named_children()]:
        if isinstance(module, Quick):
            decoder.model.layers.set_submodule(name, module.plain)
    for name, module in [*decoder.named_modules()]:
        if isinstance(module, QuickLinear | QuickPacked):
            decoder.set_submodule(name, module.plain if isinstance(module, QuickLinear) else module.back())


@cache
def most(kernels: ctypes.CDLL) -> dict[torch.dtype, int]:
    """Up to how many rows of each type kernels of our own are quicker than torch's."""
    pairs = ctypes.c_int64()
    kernels.lathe_looks(ctypes.byref(pairs))  # whether the processor multiplies pairs of bfloat16 numbers
    tiles = torch.cpu._is_amx_tile_supported()  # which torch uses, and they do not
    return {torch.float32: FEW, torch.bfloat16: MANY if pairs.value and not tiles else FEW}


def _hooked(module: nn.Module) -> bool:
    """Whether something is done before or after it that a kernel would not do."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class QuickLinear(layers.Linear):
    """A linear map with the parameters of another."""

    plain: layers.Linear

    def __init__(self, plain: layers.Linear, kernels: ctypes.CDLL) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= {"_parameters": plain._parameters, "plain": plain, "training": plain.training}
        self.product, self.most = kernels.lathe_product, most(kernels)

    def forward(self, x: Tensor) -> Tensor:
        w, bias = self.weight, self.bias
        known = x.dtype == w.dtype and x.dtype in native.TYPES and x.device.type == w.device.type == "cpu"
        if not known or torch.is_grad_enabled() or x.numel() > self.most[x.dtype] * w.shape[1] or not w.is_contiguous():
            return F.linear(x, w, bias)
        rows = x.contiguous()
        n, k = w.shape
        y = x.new_empty(*x.shape[:-1], n)
        places = (rows.data_ptr(), w.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr())
        self.product(*places, x.numel() // k, n, k, k, native.TYPES[x.dtype], torch.get_num_threads())
        return y


class QuickHead(QuickLinear):
    """The head of a quantized decoder, which is also multiplied as codes, of 8 bits, that are made of it here."""

    def __init__(self, plain: layers.Linear, kernels: ctypes.CDLL, panels: Panels) -> None:
        super().__init__(plain, kernels)
        w = self.weight.detach()
        passing = resident.Passing()
        for start, rows in enumerate(passing.through(w.split(ROWS))):  # a piece at a time: it is not to be there twice
            panels.put([*quantize.KINDS["int8"].pack([rows], rows.shape, w.device).values()], start * ROWS)
        passing.release()
        self.panels, self.made_of = panels, w.data_ptr()  # no parameter: never saved

    def forward(self, x: Tensor) -> Tensor:
        same = self.weight.data_ptr() == self.made_of
        if not same or torch.is_grad_enabled() or x.dtype not in native.TYPES or x.device.type != "cpu":
            return super().forward(x)
        return self.panels.product(x, self.bias)


class Quick(Block):
    """A block with the modules of another, which it asks wherever it has no quick way."""

    plain: Block

    def __init__(self, plain: Block, kernels: ctypes.CDLL) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= {"_modules": plain._modules, "plain": plain, "training": plain.training}
        self.residual, self.kernels, self.most = plain.residual, kernels, most(kernels)
        self.kept: Plan | None = None

    def plan(self, x: Tensor, cache: Cache | None) -> Plan | None:
        """What the kernels are told, where they do some of it."""
        if cache is None or torch.is_grad_enabled() or x.device.type != "cpu" or len(x) > self.most.get(x.dtype, 0):
            return None
        if self.kept is None or not self.kept.stands():
            self.kept = Plan(self.plain)
        plan = self.kept
        known = plan.type == native.TYPES.get(x.dtype) and cache[0].dtype in (x.dtype, torch.int8)
        known = known and (plan.mixes or plan.feeds)
        return plan if known and (not plan.adapted or plan.adapt(x.dtype)) else None

    def forward(self, x: Tensor, layout: Layout, cache: Cache | None) -> Tensor:
        plan = self.plan(x, cache)
        if plan is None or cache is None:
            return self.plain(x, layout, cache)
        if not plan.mixes:
            assert isinstance(self.plain, Sequential)
            x = self.plain.mix(x, layout, cache)
        y = run(self.kernels, [plan.layer(layout, cache)], x, layout, cache)
        if not plan.feeds:
            assert isinstance(self.plain, Sequential)
            return self.plain.feed(y)
        return y


class QuickTrunk(Trunk):
    """A trunk with the modules of another, whose quick layers follow each other without coming back to Python."""

    plain: Trunk

    def __init__(self, plain: Trunk, kernels: ctypes.CDLL) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= {"_modules": plain._modules, "plain": plain, "training": plain.training}
        self.kernels = kernels

    def through(self, x: Tensor, layout: Layout, cache: Sequence[Cache] | None) -> Tensor:
        if cache is None:
            return super().through(x, layout, cache)
        together: list[tuple[int, ...]] = []
        for layer, kept in zip(self.layers, cache, strict=True):
            plan = layer.plan(x, kept) if isinstance(layer, Quick) and not _hooked(layer) else None
            if plan is not None and plan.whole:
                together.append(plan.layer(layout, kept))
                continue
            x = layer(self._run(together, x, layout, kept), layout, kept)
            together = []
        return self._run(together, x, layout, cache[-1])

    def _run(self, together: list[tuple[int, ...]], x: Tensor, layout: Layout, cache: Cache) -> Tensor:
        return run(self.kernels, together, x, layout, cache) if together else x


def run(kernels: ctypes.CDLL, together: list[tuple[int, ...]], x: Tensor, layout: Layout, cache: Cache) -> Tensor:
    """The stream behind some layers, whose caches are of the kind of this one. T D"""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    x = x.contiguous()
    seats = layout.once("native", lambda: Seats(layout))
    told = array("q", chain.from_iterable(together))
    places = seats.address, x.data_ptr(), y.data_ptr()
    coded = cache[0].dtype == torch.int8
    kernels.lathe_layers(told.buffer_info()[0], len(together), *places, native.TYPES[x.dtype], coded)
    return y


class Seats:
    """Where the tokens of a pass sit in a cache, as the kernels want it."""

    def __init__(self, layout: Layout) -> None:
        assert layout.write is not None and layout.read is not None
        starts: list[int] = []
        tables: list[int] = []
        lengths: list[int] = []
        for read, n in zip(layout.read, layout.lengths, strict=True):
            if isinstance(read, slice):
                m, start, table = read.stop - read.start, read.start, 0
            else:
                assert read.dtype == torch.int64 and read.is_contiguous()
                m, start, table = len(read), -1, read.data_ptr()
            starts += [start] * n
            tables += [table] * n
            lengths += range(m - n + 1, m + 1)
        self.kept = torch.tensor([starts, tables, lengths]), layout.write.contiguous(), layout.read
        rows = [row.data_ptr() for row in self.kept[0]]
        self.told = structures.Pass(len(starts), torch.get_num_threads(), self.kept[1].data_ptr(), *rows)
        self.address = ctypes.addressof(self.told)


class Unknown(Exception):
    """A part that the kernels do not know."""


class Plan:
    """A block as the kernels are told of it, and the parameters that it was made of.

    mixes, feeds: whether the kernels do the mixer, and the MLP. type: of all numbers, as in native.TYPES. adapted:
    matrices with terms of low rank beside them.
    """

    def __init__(self, block: Block) -> None:
        self.holders: list[dict[str, Any]] = []  # where something was found, by which name, and what
        self.names: list[str] = []
        self.ones: list[Any] = []
        self.parameters: list[Tensor] = []
        self.places: list[int] = []
        self.types: set[torch.dtype] = set()
        self.told = structures.Block(residual=block.residual, parallel=not isinstance(block, Sequential))
        self.address = ctypes.addressof(self.told)
        self.adapted: list[tuple[LoraLinear, Any]] = []  # modules, and what is told of their matrices
        self.rope: spec.Rope | None = None
        self.heat: spec.Temperature | None = None
        self.cache: Cache | None = None
        stands = NORMS[type(block)]
        self.mixes = self._known(lambda: self._mixer(block, stands))
        self.feeds = self._known(lambda: self._mlp(block, stands))
        self.type = native.TYPES.get(next(iter(self.types))) if len(self.types) == 1 else None
        if not isinstance(block, Sequential) and not (self.mixes and self.feeds):
            self.mixes = self.feeds = False
        self.told.mixer.there, self.told.mlp.there = self.mixes, self.feeds
        self.whole = self.mixes and self.feeds
        self.turns = "native", id(self.rope), id(self.heat)

    def stands(self) -> bool:
        """Whether the block still has the modules and parameters that this was made of."""
        found = map(dict.get, self.holders, self.names)  # without a step of Python for each: it is asked every time
        return all(map(is_, found, self.ones)) and all(map(eq, map(Tensor.data_ptr, self.parameters), self.places))

    def adapt(self, kind: torch.dtype) -> bool:
        """Tell of the adapters that count in this pass. False where the kernels do not know one."""
        self.terms: list[Terms] = []  # kept, as it is addresses that are told
        for module, told in self.adapted:
            names = module.counting
            if not names:
                told.rank = 0
                continue
            if module.training or not all(module.plain[name] for name in names):
                return False
            a, b, others = terms = module.together(names, kind)
            self.terms.append(terms)
            told.a, told.b, told.others = a.data_ptr(), b.data_ptr(), 0 if others is None else others.data_ptr()
            told.rank = len(a)
        return True

    def layer(self, layout: Layout, cache: Cache) -> tuple[int, ...]:
        """What lathe_layers is told of the layer in this pass."""
        return (self.address, *self._room(cache), *layout.once(self.turns, lambda: self._turn(layout)))

    def _room(self, cache: Cache) -> tuple[int, ...]:
        """Addresses of keys, values and of the steps between their numbers."""
        keys, values = cache
        if self.cache is None or self.cache[0] is not keys or self.cache[1] is not values:
            self.cache = cache
            assert keys.stride(-1) == values.stride(-1) == 1
            self.steps = structures.Steps(keys.stride(0), keys.stride(1), values.stride(0), values.stride(1))
            self.kept = (keys.data_ptr(), values.data_ptr(), ctypes.addressof(self.steps))
        return self.kept

    def _turn(self, layout: Layout) -> tuple[int, ...]:
        """Addresses of cosines, sines and temperatures of the pass's tokens, which the layout keeps."""
        cos, sin = (None, None) if self.rope is None else rope.angles(self.rope, layout)
        warm = None if self.heat is None else attention.heat(self.heat, layout)
        return tuple(0 if x is None else x.data_ptr() for x in (cos, sin, warm))

    def _known(self, tell: Callable[[], None]) -> bool:
        try:
            tell()
        except Unknown:
            return False
        return True

    def _mixer(self, block: Block, stands: dict[str, str]) -> None:
        told, one = self.told.mixer, self._module(block, "self_attn", attention.Attention)
        part = one.part
        turned = part.rope.channels if part.rope else 0
        if part.channels > WIDEST or turned % 2 or one.__dict__.get("look"):
            raise Unknown
        for name in ("q", "k", "v", "o"):
            self._matrix(one, f"{name}_proj", getattr(told, name))
        self._alike(told.q, told.k, told.v)
        if part.qk_norm is not None:
            for name in ("q_norm", "k_norm"):
                self._norm(one, name, getattr(told, name))
            told.own = part.qk_norm.over == "own head"
        told.normed = NORMED[one.normed]
        told.look = structures.Look(
            part.heads, part.kv_heads, part.channels, part.window or 0, part.chunk or 0, part.scale, part.softcap or 0
        )
        told.rope_channels, told.interleaved = turned, bool(part.rope and part.rope.interleaved)
        told.clip = part.clip or 0
        told.sinks = self._parameter(one, "sinks")
        for place, name in stands.items():
            if place.endswith("mixer"):
                self._norm(block, name, getattr(self.told, place))
        self.told.width, self.rope, self.heat = shape_of(one.q_proj)[1], part.rope, part.temperature

    def _mlp(self, block: Block, stands: dict[str, str]) -> None:
        told, one = self.told.mlp, self._module(block, "mlp", mlps.Gated, mlps.Plain)
        for name in ("gate", "up", "down") if isinstance(one, mlps.Gated) else ("up", "down"):
            self._matrix(one, f"{name}_proj", getattr(told, name))
        if isinstance(one, mlps.Gated):
            self._alike(told.gate, told.up)
        found = [name for name in get_args(spec.Activation) if mlps.ACTIVATIONS[name] is one.act]
        if not found:
            raise Unknown
        told.act = get_args(spec.Activation).index(found[0])
        told.width, self.told.width = shape_of(one.up_proj)
        for place, name in stands.items():
            if place.endswith("mlp"):
                self._norm(block, name, getattr(self.told, place))

    def _note(self, holder: dict[str, Any], name: str, one: Any) -> None:
        self.holders.append(holder)
        self.names.append(name)
        self.ones.append(one)

    def _module(self, holder: nn.Module, name: str, *kinds: type[nn.Module]) -> Any:
        one: Any = holder._modules.get(name)
        self._note(holder._modules, name, one)
        if type(one) not in kinds or _hooked(one):
            raise Unknown
        return one

    def _parameter(self, holder: nn.Module, name: str, code: bool = False) -> int | None:
        one = holder._parameters.get(name)
        self._note(holder._parameters, name, one)
        if one is None:
            return None
        if not one.is_contiguous() or one.device.type != "cpu":
            raise Unknown
        self.parameters.append(one)
        self.places.append(one.data_ptr())
        if not code:
            self.types.add(one.dtype)
        return one.data_ptr()

    def _matrix(self, holder: nn.Module, name: str, told: Any) -> None:
        one = self._module(holder, name, layers.Linear, QuickLinear, QuickPacked, LoraLinear)
        if isinstance(one, LoraLinear):
            self.adapted.append((one, told))
            one = self._module(one, "base_layer", layers.Linear, QuickLinear, QuickPacked)
        if isinstance(one, QuickPacked):
            told.weight, told.kind = self._parameter(one, "panels", True), CODES[one.how]
        else:
            told.weight = self._parameter(one, "weight")
        told.bias, told.rows = self._parameter(one, "bias"), shape_of(one)[0]

    def _alike(self, *matrices: Any) -> None:
        """What is given to several matrices is made into codes once, for all of them."""
        if len({matrix.kind for matrix in matrices}) > 1:
            raise Unknown

    def _norm(self, holder: nn.Module, name: str, told: Any) -> None:
        kinds = (layers.RMSNorm, layers.OffsetRMSNorm, layers.LayerNorm, layers.OffsetLayerNorm, layers.OwnLayerNorm)
        one = self._module(holder, name, *kinds)
        told.kind = 1 if isinstance(one, layers.RMSNorm) else 2
        told.weight, told.bias = self._parameter(one, "weight"), self._parameter(one, "bias")
        told.eps, told.offset = one.eps, getattr(one, "offset", 0.0)
