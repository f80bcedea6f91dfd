"""Documents become token ids, encoded once and kept end to end in one array; knows no text format and no model."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from lathe.tokenizer import Tokenizer


class Tokens(Sequence[np.ndarray]):
    """Documents of ids, one after another.

    ids: uint16 or uint32, in memory or mapped. ends: int64, where each document stops.
    """

    def __init__(self, ids: np.ndarray, ends: np.ndarray) -> None:
        self.ids, self.ends = ids, ends

    @staticmethod
    def encode(texts: Iterable[str], tokenizer: Tokenizer) -> Tokens:
        """Every text's ids, with EOS after them: where a text ends has to be learned too."""
        wide = tokenizer.vocab_size > 1 << 16
        ids, lengths = array("I" if wide else "H"), []
        for text in texts:
            document = tokenizer.encode(text)
            if tokenizer.eos_id is not None and document[-1:] != [tokenizer.eos_id]:
                document.append(tokenizer.eos_id)
            ids.extend(document)
            lengths.append(len(document))
        kind = np.uint32 if wide else np.uint16
        together = np.frombuffer(ids, dtype=kind) if ids else np.empty(0, kind)
        return Tokens(together, np.cumsum(np.array(lengths, dtype=np.int64)))

    @property
    def targets(self) -> int:
        """How many tokens are predicted: all but each document's first."""
        lengths = np.diff(self.ends, prepend=0)
        return int((lengths - 1).clip(0).sum())

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self.ids[self.ends[index - 1] if index else 0 : self.ends[index]]
