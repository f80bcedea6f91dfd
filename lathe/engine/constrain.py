"""What an answer must be: a grammar, and the bytes of every token, become the tokens that may come next.

llguidance parses grammars (Lark's notation, with JSON schemas and regular expressions inside); here they are kept
within bounds, and made for one vocabulary. Knows no tokenizer and no model.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from lathe.errors import LatheError, UsageError

if TYPE_CHECKING:  # imported with the first grammar
    from llguidance import LLMatcher, LLTokenizer

LONGEST = 1 << 18  # bytes of a grammar: rules and references nested as deeply as they allow need 100 MB of STACK
STACK = 256 << 20  # bytes of stack for a thread that compiles (address space; what is not used is never allocated)
SECONDS = 10.0  # until a grammar is given up that does not get compiled, be it because of others before it
TOGETHER = 2  # grammars compiled at once
KEPT = 8  # grammars that stay compiled for the next request
# What one grammar may take, beside llguidance's own limits: compiled in about half a second, a step in some hundredths.
STEP_ITEMS = 20_000
STATES = 50_000  # 40 MB; strings with a maxLength take ten a character
PLAIN = '\n%llguidance {"no_forcing": true}'  # every way to spell what may come is allowed, not one tokenizer's only


class Constraint(Protocol):
    """What one answer must be, and how far it has come. One thread at a time may use it.

    complete: whether the answer ends here, because nothing may follow, or because of `error`.
    error: why the grammar can be followed no further; None while it can.
    """

    @property
    def complete(self) -> bool: ...

    @property
    def error(self) -> LatheError | None: ...

    def mask(self, after: Sequence[int] = ()) -> Tensor:
        """Which tokens may follow the accepted ones and `after`; V, bool. All, where `after` goes wrong or ends it."""

    def accept(self, token: int) -> None:
        """Go on behind a token, for good."""


class Grammars:
    """Makes constraints for one vocabulary. Threads may share it.

    Args:
        spell: gives the bytes of every token, by id; called once, with the first grammar, in a thread.
        special: ids that stand for no text, which a grammar can name as <|name|> or <[id]>.
        ends: ids that end an answer: allowed where the grammar may end.
        vocab: for how many ids there are scores (V).
    """

    def __init__(
        self, spell: Callable[[], Sequence[bytes]], special: Collection[int], ends: Iterable[int], vocab: int
    ) -> None:
        self._spell, self._special, self._vocab = spell, special, vocab
        self._ends = sorted(end for end in ends if end < vocab)
        self._words: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock, self._spelling = threading.Lock(), threading.Lock()
        self._turns = threading.BoundedSemaphore(TOGETHER)

    def constraint(self, grammar: str) -> Constraint:
        """What an answer by this grammar must be; waits until it is compiled.

        grammar: in Lark's notation as llguidance reads it; its rule `start` is the answer.
            https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md

        Raises UsageError for one that is not understood, too large, or takes too long.
        """
        return self.begin(grammar).result()

    def begin(self, grammar: str) -> Future[Constraint]:
        """`constraint`, in a thread: for a loop that must go on meanwhile."""
        future: Future[Constraint] = Future()
        if kept := self._kept(grammar):
            future.set_result(kept)
            return future
        timer = threading.Timer(SECONDS, _settle, [future, None, _slow()])
        timer.daemon = True
        future.add_done_callback(lambda _: timer.cancel())
        timer.start()
        thread = threading.Thread(target=self._run, args=(grammar, future), daemon=True)
        before = threading.stack_size(STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
        return future

    def prepare(self) -> LLTokenizer:
        """Do now, in this thread, what the first grammar takes once: a second for 150,000 tokens.

        Nothing else runs in this process meanwhile, in whatever thread it is done. So a server does it when it is idle.
        """
        with self._spelling:
            self._words = self._words or self._vocabulary()
            return self._words

    def _run(self, grammar: str, future: Future[Constraint]) -> None:
        try:
            with self._turns:
                if not future.done():
                    _settle(future, self._compile(grammar))
        except Exception as error:  # whatever it is, it belongs to whoever waits
            _settle(future, None, error)

    def _kept(self, grammar: str) -> Constraint | None:
        with self._lock:
            if grammar not in self._compiled:
                return None
            self._compiled.move_to_end(grammar)
            return Guided(self._compiled[grammar].deep_copy(), self._vocab)

    def _compile(self, grammar: str) -> Constraint:
        from llguidance import LLMatcher, LLParserLimits

        size = len(grammar.encode(errors="replace"))
        if size > LONGEST:
            raise UsageError(f"The grammar is {size:,} bytes long.", f"It may have {LONGEST:,}.", "Ask for less.")
        limits = LLParserLimits(step_max_items=STEP_ITEMS, max_lexer_states=STATES, verbose_errors=False)
        matcher = LLMatcher(self.prepare(), grammar + PLAIN, log_level=0, limits=limits)
        if error := matcher.get_error():
            raise UsageError(f"The grammar cannot be followed: {told(error)}")
        with self._lock:
            self._compiled[grammar] = matcher
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return Guided(matcher.deep_copy(), self._vocab)

    def _vocabulary(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        tokens = list(self._spell())[: self._vocab]
        tokens += [b""] * (self._vocab - len(tokens))
        ends = self._ends
        if not ends:  # llguidance wants one; it is behind the last score, so nothing can choose it
            tokens, ends = [*tokens, b"<end>"], [self._vocab]
        special = sorted({*ends, *(id for id in self._special if id < self._vocab)})
        return LLTokenizer(Words(tokens, special, ends[0]), eos_token=ends)  # type: ignore[arg-type]


class Words:
    """A vocabulary in the form in which llguidance takes one."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: list[int], end: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, end

    def __call__(self, text: str) -> list[int]:
        """How a tokenizer would spell a text: nobody asks as long as nothing is forced (see PLAIN)."""
        return []


class Guided:
    """A `Constraint` by one of llguidance's matchers, for V tokens."""

    def __init__(self, matcher: LLMatcher, vocab: int) -> None:
        self._matcher, self._vocab = matcher, vocab
        self.error: LatheError | None = None

    @property
    def complete(self) -> bool:
        return self._matcher.is_stopped()

    def mask(self, after: Sequence[int] = ()) -> Tensor:
        taken = self._matcher.try_consume_tokens(list(after)) if after else 0
        open = taken == len(after) and not self._matcher.is_stopped()
        bits = self._matcher.compute_bitmask() if open else b""
        if self._matcher.is_error():
            self._fail()
            open = False
        elif taken:
            self._matcher.rollback(taken)
        if not open:
            return torch.ones(self._vocab, dtype=torch.bool)
        flags = np.unpackbits(np.frombuffer(bits, np.uint8), count=self._vocab, bitorder="little")
        return torch.from_numpy(flags).view(torch.bool)

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            self._fail()

    def _fail(self) -> None:
        found = f"The grammar could be followed no further: {told(self._matcher.get_error())}"
        self.error = self.error or UsageError(found, fix="Make it simpler.")


def told(error: str) -> str:
    """What llguidance says is wrong, as a sentence, and without the lines of the grammar that it shows."""
    first, *others = error.strip().splitlines() or ["it is not said why"]
    line = " ".join([first.strip(), *(other for other in others if other.startswith("error:"))])[:300]
    return line if line.endswith((".", "?", "!")) else f"{line}."


def _slow() -> UsageError:
    found = f"The grammar was not compiled within {SECONDS:g} seconds."
    return UsageError(found, fix="Make it simpler, or ask again when the machine has less to do.")


def _settle(future: Future[Constraint], value: Constraint | None, error: BaseException | None = None) -> None:
    with suppress(InvalidStateError):  # the other was first: the compiled grammar or the end of the time for it
        if error is not None:
            future.set_exception(error)
        elif value is not None:
            future.set_result(value)
