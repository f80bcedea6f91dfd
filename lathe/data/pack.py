"""Documents and examples become rows: laid end to end on one ribbon; nothing is padded.

Between documents and between rows are seams, where positions restart and attention ends. Knows ids and seams; knows no
text, and not in which order the documents come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lathe.data.render import Example, Group
from lathe.data.stages import Stage, State

IGNORE = -100  # a target that has no loss; cross_entropy's own default


@dataclass(frozen=True, eq=False)
class Row:
    """tokens: (L,) int64. targets: (L,) int64, the token that follows each, or IGNORE. lengths: of its pieces."""

    tokens: np.ndarray
    targets: np.ndarray
    lengths: tuple[int, ...]

    @staticmethod
    def of(examples: Sequence[Example]) -> Row:
        """Examples end to end. One of n ids has n - 1 tokens: its last id only is a target."""
        tokens = np.concatenate([example.ids[:-1] for example in examples]).astype(np.int64)
        after = [np.where(example.supervised[1:], example.ids[1:], IGNORE) for example in examples]
        return Row(tokens, np.concatenate(after).astype(np.int64), tuple(len(example) - 1 for example in examples))


class Packed(Iterator[Row]):
    """Rows of `length` tokens from documents of ids; the last row, if the documents end, is as long as it is.

        documents   a a a a a a │ b b b │ c c c c ...
        rows        a a a a a   ║ a│b b b│c ║ c c c ...

    A document of n ids lays n - 1 tokens on the ribbon, each with the id after it as its target: the last id predicts
    nothing and only is a target. So no target crosses a seam between documents, and none is lost where a row is cut.
    """

    def __init__(self, documents: Stage[np.ndarray], length: int) -> None:
        self.documents, self.length = documents, length
        self.begin = documents.state()  # where the document on hand came from
        self.document = np.empty(0, dtype=np.int64)
        self.used = 0  # how many of its tokens lie in rows already

    def __next__(self) -> Row:
        pieces: list[np.ndarray] = []
        room = self.length
        while room and self.more():
            piece = self.document[self.used : self.used + room + 1]  # one more than tokens: the last one's target
            self.used += len(piece) - 1
            room -= len(piece) - 1
            pieces.append(piece)
        if not pieces:
            raise StopIteration
        tokens = np.concatenate([piece[:-1] for piece in pieces]).astype(np.int64)
        targets = np.concatenate([piece[1:] for piece in pieces]).astype(np.int64)
        return Row(tokens, targets, tuple(len(piece) - 1 for piece in pieces))

    def more(self) -> bool:
        """Whether a document with unused tokens is on hand; fetches the next where this one is used up."""
        while self.used >= len(self.document) - 1:
            begin = self.documents.state()
            document = next(self.documents, None)
            if document is None:
                return False
            self.begin, self.document, self.used = begin, document, 0
        return True

    @property
    def epochs(self) -> float:
        return self.documents.epochs

    def state(self) -> State:
        return {"documents": self.begin, "used": self.used}

    def restore(self, state: State) -> None:
        self.documents.restore(state["documents"])
        self.begin, self.used = state["documents"], state["used"]
        self.document = next(self.documents) if self.used else self.document[:0]


def laid(groups: Sequence[Group], length: int) -> list[Row]:
    """Rows of whole examples, so many in each as fit into `length` tokens; none is cut, none is padded.

        examples    a a a a │ b b b │ c c │ d d d d d
        rows        d d d d d ║ a a a a│c c ║ b b b

    The longest is laid first, and each in the first row that has room (first fit decreasing: at most 11/9 of the fewest
    rows, Johnson 1973). The rows come in the order in which the groups that opened them came.

    Args:
        groups: examples that go into one row, next to each other: one, or one chosen and one rejected. Each has at most
            `length` tokens, as `fitted` makes them.
        length: tokens in a row for each example of a group: a row of pairs holds twice as many.
    """
    sizes = [sum(len(example) - 1 for example in group) for group in groups]
    rows: dict[int, list[Example]] = {}  # by the group that opened them
    room: dict[int, int] = {}
    for at in sorted(range(len(groups)), key=lambda at: -sizes[at]):
        row = next((row for row, left in room.items() if sizes[at] <= left), at)
        rows.setdefault(row, []).extend(groups[at])
        room[row] = room.get(row, length * len(groups[at])) - sizes[at]
    return [Row.of(rows[at]) for at in sorted(rows)]


def fitted(group: Group, length: int) -> Group | None:
    """A group whose examples have at most `length` tokens: longer ones lose their end. None if one has no loss left."""
    cut = tuple(Example(example.ids[: length + 1], example.supervised[: length + 1]) for example in group)
    return cut if all(example.supervised[1:].any() for example in cut) else None
