"""Responses that are kept for a while, so that a later request can go on from one; in memory alone, and within bounds.

Each belongs to the key that it was asked with: to another's requests it is not there.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lathe.server.refusals import Misused, Unknown

MOST_BYTES = 256 << 20  # of all together, as JSON
SECONDS = 24 * 3600.0  # since somebody last asked for it
IDS = {"reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}  # what ids begin with, beside "msg"
Items = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Kept:
    """response: as it was told. read: the items that the model read for it, earlier responses' too, with ids.

    owner: the key that it was asked with. size: bytes of it all, as JSON.
    """

    response: dict[str, Any]
    read: Items
    owner: bytes
    size: int

    @property
    def items(self) -> Items:
        """What a request that goes on from here begins with."""
        return *self.read, *self.response["output"]


class Shelf:
    """Keeps responses; the one that was asked for longest ago goes first.

    Args:
        most: how many; 0 for none.
        room: bytes of all together. What responses of one conversation have in common counts for each of them.
        patience: seconds without a question for it after which one goes.
        clock: gives seconds.
    """

    def __init__(
        self,
        most: int,
        room: int = MOST_BYTES,
        patience: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most, self.room, self.patience, self.clock = most, room, patience, clock
        self.size = 0
        self._kept: OrderedDict[str, tuple[float, Kept]] = OrderedDict()  # with when it was asked for last

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, owner: bytes, response: dict[str, Any], read: Items) -> None:
        size = sum(len(json.dumps(part)) for part in (response, *read))
        self._kept[response["id"]] = self.clock(), Kept(response, read, owner, size)
        self.size += size
        self._tidy()

    def find(self, owner: bytes, id: str) -> Kept:
        """Raises Unknown, also for another's."""
        self._tidy()
        _, kept = self._kept.get(id, (0.0, None))
        if kept is None or kept.owner != owner:
            raise Unknown(f"There is no response {id!r:.80}.", "", "It was never kept, or not for so long.")
        self._kept[id] = self.clock(), kept
        self._kept.move_to_end(id)
        return kept

    def before(self, owner: bytes, id: str) -> Items:
        """What a request begins with that names this response as the one before it. Raises Misused."""
        try:
            return self.find(owner, id).items
        except Unknown as error:
            raise Misused("previous_response_id", error.found, fix="Send its items again.") from None

    def item(self, owner: bytes, id: str) -> dict[str, Any] | None:
        """An item of any response, by its own id."""
        self._tidy()
        theirs = (kept for _, kept in reversed(self._kept.values()) if kept.owner == owner)
        return next((item for kept in theirs for item in kept.items if item["id"] == id), None)

    def drop(self, owner: bytes, id: str) -> None:
        """Raises Unknown."""
        self._forget(self.find(owner, id).response["id"])

    def _forget(self, id: str) -> None:
        self.size -= self._kept.pop(id)[1].size

    def _tidy(self) -> None:
        late = self.clock() - self.patience
        while self._kept:
            oldest, (asked, _) = next(iter(self._kept.items()))
            if asked > late and len(self._kept) <= self.most and self.size <= self.room:
                break
            self._forget(oldest)


def with_ids(items: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Items of input as they are kept: a message's text is a list of parts, and each has an id."""
    for item in items:
        kind = item.get("type") or "message"
        named = {"id": f"{IDS.get(kind, 'msg')}_{uuid.uuid4().hex}", **item, "type": kind}
        if isinstance(named.get("content"), str):
            said = "output_text" if named.get("role") == "assistant" else "input_text"
            more: dict[str, Any] = {"annotations": []} if said == "output_text" else {}
            named["content"] = [{"type": said, "text": named["content"], **more}]
        if kind == "message":
            named.setdefault("status", "completed")
        yield named


def page(items: Sequence[dict[str, Any]], order: str, after: str | None, limit: int) -> dict[str, Any]:
    """A part of a list, as OpenAI writes it. order: asc or desc. after: the id of the last of the part before.

    Raises Misused for an id that is not in it.
    """
    rows = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        ids = [row["id"] for row in rows]
        if after not in ids:
            raise Misused("after", f"There is no item {after!r:.80} in this response.")
        rows = rows[ids.index(after) + 1 :]
    data = rows[:limit]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, **ends, "has_more": len(rows) > limit}
