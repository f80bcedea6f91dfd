"""Documents become rows of a fixed number of tokens: laid end to end on one ribbon, which is cut; nothing is padded.

    documents   a a a a a a │ b b b │ c c c c ...
    rows        a a a a a   ║ a│b b b│c ║ c c c ...    │ and ║ are seams: positions restart, attention stays inside

Knows ids and seams; knows no text, and not in which order the documents come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lathe.data.stages import Stage, State

IGNORE = -100  # a target that has no loss; cross_entropy's own default


@dataclass(frozen=True, eq=False)
class Row:
    """tokens: (L,) int64. targets: (L,) int64, the token that follows each, or IGNORE. lengths: of its pieces."""

    tokens: np.ndarray
    targets: np.ndarray
    lengths: tuple[int, ...]


class Packed(Iterator[Row]):
    """Rows of `length` tokens from documents of ids; the last row, if the documents end, is as long as it is.

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
