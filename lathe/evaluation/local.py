"""A decoder in this process answers: likelihoods many at once, their common beginnings read once; texts side by side.

Knows no task and no file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lathe.engine import Engine, Sampling, Token
from lathe.engine import Sequence as Running
from lathe.evaluation.asks import Answer, Ask, Generation, Likelihood, Likely
from lathe.evaluation.spelling import Spelt
from lathe.model.decoder import Decoder
from lathe.tokenizer import StopStrings, TextStream, Tokenizer

PAGE = 4  # tokens: short, because what choices have in common ends anywhere
TOKENS = {"cpu": 1024, "mps": 4096, "cuda": 16384}  # of one pass, unless it is said
EACH = 16  # tokens that a text in a pass is reckoned to have, for how many run at once


class Local:
    """A decoder with its tokenizer, see `asks.Subject`.

    Args:
        stops: ids that end an answer.
        batch_tokens: of how many tokens one pass is.
        longest: no text may be longer, where the context would have room.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        stops: Iterable[int],
        *,
        name: str = "model",
        identity: str = "",
        batch_tokens: int | None = None,
        longest: int | None = None,
    ) -> None:
        chunk = batch_tokens or TOKENS.get(decoder.like.device.type, TOKENS["cpu"])
        self.engine = Engine(decoder, page=PAGE, chunk=chunk, seats=max(chunk // EACH, 1))
        self.name, self.identity, self.stops = name, identity, frozenset(stops)
        self.longest = min(self.engine.context, longest or self.engine.context)
        self.tokenizer, self.words = tokenizer, Spelt(tokenizer)

    def answers(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer]]:
        judged = [(number, ask) for number, ask in enumerate(asks) if isinstance(ask, Likelihood)]
        texts = (((*ask.context, *ask.continuation), len(ask.context)) for _, ask in judged)
        for at, tokens in self.engine.judging(texts, top=1):
            yield judged[at][0], likely(tokens)
        yield from self._generated((number, ask) for number, ask in enumerate(asks) if isinstance(ask, Generation))

    def _generated(self, asks: Iterable[tuple[int, Generation]]) -> Iterator[tuple[int, str]]:
        waiting, running = deque(asks), dict[Running, Writing]()
        while waiting or running:
            while waiting and len(running) < self.engine.scheduler.seats:
                number, ask = waiting.popleft()
                sampling = Sampling(ask.temperature, ask.top_k, ask.top_p, seed=ask.seed, max_new_tokens=ask.most)
                text = self.tokenizer.stream(after=ask.prompt)
                sequence = self.engine.submit(ask.prompt, sampling, self.stops)
                running[sequence] = Writing(number, text, StopStrings(ask.stops), self.stops)
            for sequence, token in self.engine.step():
                running[sequence].read(token.id)
                if running[sequence].stops.stopped:
                    self.engine.cancel(sequence)
            for sequence in [sequence for sequence in running if sequence.finish]:
                if sequence.error:
                    raise sequence.error
                writing = running.pop(sequence)
                yield writing.number, writing.end()


@dataclass
class Writing:
    """A text that comes token by token. ends: tokens that are no part of it."""

    number: int
    stream: TextStream
    stops: StopStrings
    ends: frozenset[int]
    text: str = ""

    def read(self, token: int) -> None:
        if token not in self.ends:
            self.text += self.stops.push(self.stream.push(token))

    def end(self) -> str:
        """All of it."""
        return self.text + self.stops.push(self.stream.flush()) + self.stops.flush()


def likely(tokens: Sequence[Token]) -> Likely:
    """What the tokens of a continuation make of it, each with the likeliest one in its place."""
    greedy = all(token.top[0][0] == token.id for token in tokens)
    return Likely(sum(token.logprob for token in tokens if token.logprob is not None), greedy)
