"""A decoder on one process becomes one on many, a `Grid` of copies, shards and slices that train it together.

Every copy and every shard computes batches of its own; their gradients are added, never averaged, because the loop has
divided by the whole step's tokens. Knows no file and no action.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lathe.errors import UsageError
from lathe.model.blank import blank, emptied, slots
from lathe.model.decoder import Decoder
from lathe.model.spec import Spec
from lathe.training.buckets import Buckets
from lathe.training.grid import ONE, Grid, divide, group
from lathe.transforms import adapt, begin
from lathe.transforms.begin import Made
from lathe.transforms.parallel import Learning, Slices
from lathe.transforms.parts import local, part
from lathe.transforms.terms import Lora, Prefix, Scale
from lathe.weights.tensors import Ref

MAKERS: dict[type, Callable[..., Made]] = {Lora: begin.lora, Prefix: begin.prefix, Scale: begin.scale}


class Spread:
    """This process's place in a grid, and what it asks of the others (the loop's `Ranks`). All must ask the same in the
    same order.

    rank, count: which part of each step's rows is this process's, of how many.
    """

    def __init__(self, device: torch.device, grid: Grid = ONE) -> None:
        self.device, self.grid = device, grid
        self.count = grid.copies * grid.shards
        self.rank = 0
        self.buckets: Buckets | None = None
        self.sharded: FSDPModule | None = None
        if grid.size > 1:
            assert dist.get_world_size() == grid.size
            self.rank = dist.get_rank() // grid.slices
            sizes = (grid.copies, grid.shards, grid.slices)
            self.mesh: DeviceMesh = init_device_mesh(device.type, sizes, mesh_dim_names=("copy", "shard", "slice"))
        self.slices: Slices | None = None
        self.owners: dict[str, int] = {}

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.grid.size == 1 or dist.get_rank() == 0

    # ---- the decoder -------------------------------------------------------------------------------------------------
    def load(
        self, spec: Spec, tensors: Iterable[tuple[str, Ref]], dtype: torch.dtype, products: torch.dtype | None = None
    ) -> Decoder:
        """This process's part of a decoder. Of each tensor it reads that part and no more.

        tensors: whole, by names in memory, in any order; each is read before the next is asked for. dtype: of the
        weights. products: what they are multiplied in, where it is another (bf16-mixed).
        """
        decoder = self._decoder(spec, dtype, products)
        waiting = dict(slots(decoder))
        for name, ref in tensors:
            slot = waiting.pop(name)
            if self.slices is not None:
                ref = self.slices.mine(name, ref, tuple(slot.shape))
            with torch.no_grad():
                local(slot).copy_(ref[part(slot)].read())
        assert not waiting, f"nothing was read into {', '.join(waiting)}"
        return decoder

    def _decoder(self, spec: Spec, dtype: torch.dtype, products: torch.dtype | None = None) -> Decoder:
        """This process's part, with memory and no values. Shards are brought together in the dtype of products."""
        with torch.device("meta"):
            if self.grid.slices > 1:
                own = self.mesh["slice"]
                self.slices = Slices(spec, Learning(own.get_local_rank(), own.size(), own.get_group()))
                decoder = self.slices.share.join(self.slices.share.decoder()).to(dtype)
            else:
                decoder = Decoder(spec).to(dtype)
        if self.grid.shards > 1:
            # Block by block, so that no process ever has room for more than one that is whole.
            for block in decoder.model.layers:
                self._shard(block.to_empty(device=self.device), products)
            self._shard(emptied(decoder, self.device), None)
            assert isinstance(decoder, FSDPModule)
            self.sharded = decoder
        else:
            emptied(decoder, self.device)
        for buffer in decoder.buffers():
            buffer.data = buffer.data.float()  # facts beside the weights, which keep their precision
        return decoder

    def _shard(self, module: nn.Module, products: torch.dtype | None) -> None:
        mesh = self.mesh["copy", "shard"] if self.grid.copies > 1 else self.mesh["shard"]
        # The stream stays in the weights' precision, as it does on one process: only what is sent is narrower.
        policy = MixedPrecisionPolicy(param_dtype=products, reduce_dtype=torch.float32, cast_forward_inputs=False)
        made = fully_shard(module, mesh=mesh, mp_policy=policy)
        made.set_gradient_divide_factor(1.0)
        made.set_force_sum_reduction_for_comms(True)  # gloo has no other

    def learn(self, decoder: Decoder) -> None:
        """Take note of what learns: after adapters are put on and gradients asked for, before the first step."""
        if self.grid.size > 1:
            whole = blank(decoder.spec if self.slices is None else self.slices.share.spec)
            sizes = {name: slot.nbytes for name, slot in slots(whole)}
            self.owners = divide(sizes, self.grid.size)
        if self.slices is not None:
            self.slices.learn(decoder)
        copied = [p for p in decoder.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        if self.count > 1 and copied:
            self.buckets = Buckets(copied, self.batches)

    def adapter(self, decoder: Decoder, settings: Lora | Prefix | Scale) -> Made:
        """This process's parts of an adapter that has learned nothing yet, for `adapt.put`. It is the same adapter on
        any number of processes that draw from the same seed. Raises UsageError as `begin` does, and for one that
        slices cannot have."""
        if self.slices is None:
            return MAKERS[type(settings)](decoder, settings)
        if not isinstance(settings, Lora):
            found = f"A {type(settings).__name__.lower()} cannot be learned in slices."
            raise UsageError(found, "Tensor parallel training takes plain LoRA.", "Leave --tensor-parallel out.")
        return self.slices.lora(begin.lora(self.slices.whole, settings, self.device))

    def share(self, decoder: Decoder) -> Decoder | Iterator[tuple[str, Tensor]]:
        """What this process writes of the whole model: the decoder where it is alone, else some of the tensors, each
        brought together on this device as it is asked for. All processes must call this, and take all that comes."""
        return decoder if self.grid.size == 1 else self._share(decoder)

    def _share(self, decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
        for name, slot in slots(decoder):
            tensor = self.gathered(name, slot)
            if self.writes(name):
                yield name, tensor
            del tensor  # before there is another

    def writes(self, name: str) -> bool:
        """Whether it is this process that writes a parameter, a buffer, or what belongs to one."""
        return self.owners[group(name)] == dist.get_rank()

    def whole(self, decoder: Decoder, only: Collection[str] | None = None) -> Decoder | None:
        """The whole decoder with its adapters, on the first process's CPU; None on the others. All must call this.

        only: the names of the parameters that count; the others stay on the meta device.
        """
        if self.grid.shards == self.grid.slices == 1:
            return decoder
        spec = decoder.spec if self.slices is None else self.slices.share.spec
        made = blank(spec)
        for name in adapt.names(decoder):
            adapt.put(made, name, adapt.parts(decoder, name))
        for name, slot in slots(decoder):
            if only is None or name in only:
                tensor = self.gathered(name, slot)
                if self.first:
                    module, _, own = name.rpartition(".")
                    learns = isinstance(slot, nn.Parameter)
                    tensor = tensor.cpu()
                    setattr(made.get_submodule(module), own, nn.Parameter(tensor, False) if learns else tensor)
        if spec.tied and only is None:
            made.lm_head.weight = made.model.embed_tokens.weight
        return made.eval() if self.first else None

    def gathered(self, name: str, slot: Tensor) -> Tensor:
        """All of a parameter or buffer, or of what an optimizer keeps for each of its numbers, on this device. All
        processes must call this."""
        tensor = slot.detach()
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return tensor if self.slices is None else self.slices.gathered(name, tensor)

    # ---- the loop's questions ----------------------------------------------------------------------------------------
    @cached_property
    def batches(self) -> dist.ProcessGroup:
        """The processes with other batches and the same slices."""
        return self.mesh["copy", "shard"]._flatten("batches").get_group()

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        """What forward and backward of one micro-batch run in. After the last one gradients are those of all.

        Shards of gradients are added after every micro-batch, as whole ones would take the memory that sharding saves;
        between copies they are added once.
        """
        if self.sharded is not None:
            self.sharded.set_is_last_backward(last)
            self.sharded.set_requires_all_reduce(last)
        if self.buckets is not None and last:
            self.buckets.begin()
        yield
        if self.buckets is not None and last:
            self.buckets.finish()
        if self.slices is not None and last:
            self.slices.complete()

    def settle(self) -> None:
        """Let go of what was brought together for a forward pass that no backward pass followed."""
        if self.sharded is not None:
            self.sharded.reshard()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all that have other batches, the same bits on every process."""
        if self.grid.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.grid.slices

    def any(self, flag: bool) -> bool:
        """Whether it is true on any process."""
        return bool(self.most(flag))

    def most(self, number: int) -> int:
        """The greatest number that any process has."""
        if self.grid.size == 1:
            return number
        found = torch.tensor(number, device=self.device, dtype=torch.int64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found.item())

    @torch.no_grad()
    def norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The 2-norm of all gradients as one vector: each number of the model counts once, whoever has it."""
        learned = [p for p in parameters if p.grad is not None]
        if not learned:
            return torch.zeros((), device=self.device)
        norms = torch.stack(torch._foreach_norm([local(p.grad) for p in learned], 2, torch.float32))  # type: ignore[arg-type]
        copies = torch.tensor([self._copies(p) for p in learned], device=norms.device)
        total = (norms.square() / copies).sum()
        if self.grid.size > 1:
            dist.all_reduce(total)
        return total.sqrt()

    def _copies(self, parameter: nn.Parameter) -> float:
        """How many processes have each number of this process's part of a parameter."""
        batches = self.grid.copies if isinstance(parameter, DTensor) else self.count
        return batches * (1 if self.slices is None else self.slices.copies(parameter))
