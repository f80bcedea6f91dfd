"""A decoder's adapters become a roster: each counts for the requests that name it, many of them in one pass.

Between passes, adapters come and go. What of a pass goes through which is put on from here, module by module, and taken
off again: a decoder that is called by itself is what its active adapters make of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate, count, pairwise

from torch import nn

from lathe.errors import UsageError, did_you_mean
from lathe.model.attention import LatentAttention
from lathe.model.decoder import Decoder, Embedding
from lathe.model.layers import NORMS, Linear
from lathe.model.mlps import Router, SparseMixer
from lathe.transforms import adapt
from lathe.transforms.adapted import Adapted, Ribbon
from lathe.transforms.lora_tables import LoraStacked
from lathe.transforms.prefix import Prefixed
from lathe.transforms.whole import Replaced

ROWS = (Linear, Embedding, Router, SparseMixer, *NORMS)  # modules that take each row by itself


class Roster:
    """The adapters of a decoder, those included that are there already. See `engine.Adapters`."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.ribbon, self.serial = decoder, Ribbon(), count()
        self.keys: dict[str, int] = {}
        self.apart: set[str] = set()
        self._notice()

    @property
    def names(self) -> list[str]:
        return list(self.keys)

    def put(self, name: str, parts: adapt.Parts) -> None:
        """Put an adapter on, for those who name it. Raises UsageError as `adapt.put`, and for numbers that are none."""
        for module, held in parts.items():
            for part in held:
                for tensor in (value for value in vars(part).values() if hasattr(value, "isfinite")):
                    if not tensor.isfinite().all():
                        raise UsageError(f'The adapter "{name}" has numbers that are not finite, for {module}.')
        adapt.check(self.decoder, name)
        active = adapt.active(self.decoder)
        try:
            adapt.put(self.decoder, name, parts)
            adapt.activate(self.decoder, active)
        except UsageError:
            if name in adapt.names(self.decoder):  # some of it is on
                adapt.remove(self.decoder, name)
            raise
        finally:
            self._notice()

    def remove(self, name: str) -> None:
        """Take an adapter off. Raises UsageError where there is none of that name."""
        adapt.remove(self.decoder, name)
        self._notice()

    def key(self, name: str) -> Hashable:
        """What changes when another adapter gets the name. Raises UsageError where there is none of that name."""
        if name not in self.keys:
            there = f"There are {', '.join(self.keys)}." if self.keys else "There is none."
            raise UsageError(f'There is no adapter called "{name}".', there, did_you_mean(name, self.keys))
        if any(isinstance(module, Adapted) and module.kept is not None for module in self.modules):
            raise UsageError("The adapters are merged into the weights.", "", "Unmerge them first.")
        return self.keys[name]

    def alone(self, name: str | None) -> bool:
        """Whether it does something that cannot be done to some rows of a pass only."""
        return name in self.apart

    def over(self, rows: Sequence[tuple[str | None, int]]) -> AbstractContextManager[None]:
        """While the block runs, so many rows of whatever is computed go through each adapter, one after the other.

        rows: names, None for the active adapters, with how many rows. Whose name is `alone` has all of them.
        """
        [first, *_] = names = [name for name, _ in rows]
        if first is not None and first in self.apart:
            assert set(names) == {first}
            return self._alone(first)
        if not any(names):
            return self.ribbon.over()
        spans = pairwise(accumulate((n for _, n in rows), initial=0))
        return self.ribbon.over(*((name, slice(a, b)) for name, (a, b) in zip(names, spans, strict=True)))

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        before = [module.active for module in self.modules]
        for module in self.modules:
            module.active = (name,) if name in module.names else ()
        try:
            yield
        finally:
            for module, active in zip(self.modules, before, strict=True):
                module.active = active

    def _notice(self) -> None:
        """See which adapters there are, and let their modules have the ribbon."""
        found = list(adapt.adapted(self.decoder))
        self.modules = [module for _, module in found]
        for module in self.modules:
            module.ribbon = self.ribbon
        there = adapt.names(self.decoder)
        self.keys = {name: self.keys[name] if name in self.keys else next(self.serial) for name in there}
        self.apart = {name for where, module in found if not self._by_rows(where, module) for name in module.names}

    def _by_rows(self, where: str, module: nn.Module) -> bool:
        above = self.decoder.get_submodule(where.rpartition(".")[0])
        if isinstance(module, Prefixed):
            return True
        if isinstance(module, LoraStacked) or isinstance(above, Adapted):
            return False  # an expert's rows are those of many tokens; one adapted thing inside another
        if isinstance(above, LatentAttention) and where.endswith("kv_b_proj"):
            return False  # attention folds its weight into the queries of all
        base = module.base_layer
        while isinstance(base, Adapted):
            base = base.base_layer
        return not isinstance(module, Replaced) or isinstance(base, ROWS)
