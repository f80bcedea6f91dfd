"""Requests go in and tokens come out, step by step, any number of them on one ribbon; knows no text and no file."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import lru_cache, partial
from itertools import count, islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from lathe.engine import alone
from lathe.engine.choosing import Chooser, choose
from lathe.engine.constrain import Constraint
from lathe.engine.embed import Embedded, embedded
from lathe.engine.judge import Text, judged
from lathe.engine.pages import Pages
from lathe.engine.runner import Adapters, Runner
from lathe.engine.sampling import Sampling, Token
from lathe.engine.scheduler import Part, Scheduler, Sequence
from lathe.engine.speculate import Drafter, accept
from lathe.errors import CheckpointError, PromptError, UsageError
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.model.rope import frequencies
from lathe.model.spec import Rope

S = TypeVar("S", Embedded, Text)

BESIDE = 256  # tokens of prompts that a CPU reads in a pass in which others wait for their next token
AHEAD = 2  # texts to be judged that wait for each seat


class Engine:
    """Runs a decoder for many requests at once (continuous batching), on the decoder's device and in its dtype.

    Args:
        tokens: slots in the pool of keys and values, for all sequences together; None for a pool that grows.
        page: tokens of which the keys and values are taken over from another sequence together, or not at all.
        chunk: tokens in one pass. A longer prompt is read in several, on a CPU in smaller ones while others generate.
        seats: sequences that run at once; others wait.
        drafter: guesses the next tokens, so that a pass may give several; what comes out is the same without it.
        adapters: those that requests may name. They may come between steps; `take_off` lets them go.
        kv: the type that keys and values are kept in, by default the decoder's; int8 takes half the room of bfloat16.

    One thread at a time may use it. Requests: `submit`, then `step` until all have their answer, or `stream` one.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        tokens: int | None = None,
        page: int = 16,
        chunk: int = 512,
        seats: int = 64,
        drafter: Drafter | None = None,
        adapters: Adapters | None = None,
        kv: torch.dtype | None = None,
    ) -> None:
        spec, weight = decoder.spec, decoder.like
        self.decoder, self.device, self.chunk = decoder, weight.device, chunk
        self.longest = min(spec.context, spec.learned_positions or spec.context)
        self.context = min(self.longest, tokens or self.longest)
        shapes = [layer.mixer.cache for layer in spec.layers]
        more = drafter.shapes if drafter else ()
        places = [next(layer.parameters()).device for layer in decoder.model.layers] + [weight.device] * len(more)
        where: dict[str, Any] = {"device": weight.device, "dtype": kv or weight.dtype, "places": places}
        self.pages = Pages([*shapes, *more], tokens, size=page, **where)
        beside, ahead = BESIDE if weight.is_cpu else chunk, drafter.count if drafter else 0
        self.scheduler = Scheduler(self.pages, chunk, seats, ahead, beside=beside)
        self.runner, self.drafter = Runner(decoder, self.pages, adapters=adapters), drafter
        self.adapters = adapters
        self.arrivals, self.state = count(), _state(decoder)
        self.ropes = {rope for layer in spec.layers if (rope := layer.mixer.rope) and rope.scaling}
        if drafter:
            drafter.attach(self.pages, len(shapes), spec.vocab)

    def submit(
        self,
        prompt: Iterable[int],
        sampling: Sampling | None = None,
        stops: Iterable[int] = (),
        *,
        adapter: str | None = None,
        constraint: Constraint | None = None,
        salt: str = "",
        priority: int = 0,
    ) -> Sequence:
        """A new request; it runs when `step` is called.

        sampling: how its tokens are chosen; by default from the model's own distribution, as long as there is room.
        stops: tokens that end the answer. adapter: the name of one that counts for this request alone.
        constraint: what the answer must be. salt: what was read for others is taken over from those of the same salt.
        priority: lower goes first; who has a higher one gives way where seats or pages run out.

        An answer for which the context has no room ends there. Raises PromptError where there is room for none, and
        UsageError for an adapter that is not there or a bias of a token that is not.
        """
        tokens, sampling = list(prompt), sampling or Sampling()
        self._check(tokens)
        if len(tokens) >= self.context:
            found = f"The prompt is {len(tokens)} tokens long."
            fix = "Shorten the prompt."
            raise PromptError(found, f"The context holds {self.context} tokens, the answer included.", fix)
        room = self.context - len(tokens)
        extent = len(tokens) + min(sampling.max_new_tokens or room, room)
        stops = frozenset(stops)
        chooser = Chooser(sampling, tokens, self.decoder.spec.vocab, self.device, constraint, stops)
        names, rank = self._names(extent, adapter, salt), (priority, next(self.arrivals))
        sequence = Sequence(tokens, extent, stops, chooser, names, adapter, rank)
        self.scheduler.add(sequence)
        return sequence

    @property
    def busy(self) -> bool:
        """Whether anybody still waits for an answer."""
        return any(not sequence.finish for sequence in (*self.scheduler.waiting, *self.scheduler.running))

    @torch.inference_mode()
    def step(self) -> list[tuple[Sequence, Token]]:
        """One pass of the decoder over a part of every sequence that runs. Returns the tokens that came of it."""
        parts = self._parts()
        return self._pass(parts) if parts else []

    def _pass(self, parts: list[Part]) -> list[tuple[Sequence, Token]]:
        due = [part for part in parts if part.due]
        told: list[tuple[Text | Embedded, Callable[[], None]]] = []
        try:
            hidden = self.runner.run(parts)  # T D
            scores = self.runner.scores(hidden, parts) if due else None  # N V
            if len(due) < len(parts):  # of what answers nothing, nothing is due
                told += [(s, partial(s.take, tokens, s.cached)) for s, tokens in judged(hidden, parts, self.runner)]
                told += [(s, partial(s.take, total)) for s, total in embedded(hidden, parts)]
        except (MemoryError, RuntimeError) as error:
            return self._less(parts, error)
        try:
            made = [] if scores is None else self._chosen(scores, due)
        except CheckpointError as error:
            return self._apart(parts, error)
        for part in parts:  # only now, so that a step that was interrupted can be taken again
            self.scheduler.advance(part.sequence, part.length)
        for text, take in told:
            take()
            if text.finish:
                self.scheduler.remove(text, forget=text.broken)
        came: list[tuple[Sequence, Token]] = []
        for part, tokens in zip(due, made, strict=True):
            sequence = part.sequence
            for token in sequence.extend(tokens):
                came.append((sequence, token))
            if self.drafter is not None:
                # The slots of guesses that fell are written anew by what comes there.
                self.scheduler.advance(sequence, min(len(tokens) - 1, sequence.pending))
                sequence.drafted = min(max(sequence.drafted, part.draft.cached), sequence.cached)
            if sequence.finish:
                self.scheduler.remove(sequence)
        return came

    def _less(self, parts: list[Part], error: Exception) -> list[tuple[Sequence, Token]]:
        """What becomes of a pass for which there was not enough memory: two smaller ones, as long as they can be."""
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "alloc" not in str(error):
            raise error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        part, half = parts[0], len(parts) // 2
        if half:
            return self._pass(parts[:half]) + self._pass(parts[half:])
        if len(part.tokens) > 1:
            return self._pass([Part.of(part.sequence, max(part.length // 2, 1))])
        self.scheduler.fail(part.sequence)
        return []

    def _apart(self, parts: list[Part], error: CheckpointError) -> list[tuple[Sequence, Token]]:
        """What becomes of a pass in which somebody's scores are not numbers: that one fails, and the others go on."""
        if half := len(parts) // 2:
            return self._pass(parts[:half]) + self._pass(parts[half:])
        self.scheduler.fail(parts[0].sequence, error)
        return []

    def _parts(self) -> list[Part]:
        """The parts of the next pass, those of an adapter together, with guesses at what follows where it is due."""
        parts = self.scheduler.pick()
        if (adapters := self.adapters) is not None and any(part.sequence.adapter for part in parts):
            parts.sort(key=lambda part: (adapters.alone(part.sequence.adapter), part.sequence.adapter or ""))
        if self.drafter is None or not (due := [part.sequence for part in parts if part.due]):
            return parts
        drafts = iter(self.drafter.propose(due))
        return [part.guessing(next(drafts)) if part.due else part for part in parts]

    def _chosen(self, scores: Tensor, due: list[Part]) -> list[list[Token]]:
        if self.drafter is None:
            return [[token] for token in choose(scores, [part.sequence.chooser for part in due])]
        return accept(scores, due)

    def stream(self, sequence: Sequence) -> Iterator[Token]:
        """Tokens of the request `sequence` as they come; others go on meanwhile. Closing the iterator cancels it."""
        given = 0
        try:
            while given < len(sequence.made) or not sequence.finish:
                if given == len(sequence.made):
                    self.step()
                else:
                    yield sequence.made[given]
                    given += 1
        finally:
            self.cancel(sequence)

    def take_off(self, adapter: str) -> None:
        """Let an adapter go. Raises UsageError where there is none of that name, or somebody still uses it."""
        self._adapter(adapter)
        users = [s for s in (*self.scheduler.running, *self.scheduler.waiting) if s.adapter == adapter and not s.finish]
        if users:
            found = f'The adapter "{adapter}" is in use, by {len(users)} request{"s" * (len(users) > 1)}.'
            raise UsageError(found, "", "Wait until they have their answers.")
        if self.adapters is not None:
            self.adapters.remove(adapter)

    def _adapter(self, name: str | None) -> Hashable:
        """What changes when another adapter gets the name. Raises UsageError where there is none of that name."""
        if name is None:
            return None
        if self.adapters is None:
            raise UsageError(f'There is no adapter called "{name}".', "There is none.")
        return self.adapters.key(name)

    def cancel(self, sequence: Sequence) -> None:
        """End the request `sequence`, waiting or running; the next step takes its pages back. A finished one stays
        as it is."""
        if not sequence.finish:
            sequence.finish = "cancelled"  # and no more, so that it may come at any moment, even in the midst of a step

    @torch.no_grad()  # not inference_mode: the caller may want to go on computing with what is returned
    def logits(self, tokens: Iterable[int]) -> Tensor:
        """Scores of every next token of one sequence, without a cache. Returns T V, float32. Raises PromptError."""
        tokens = self._fitting(tokens)
        hidden = self.decoder(torch.tensor(tokens, device=self.device), Layout.of([len(tokens)], self.device))
        return self.decoder.logits(hidden).float()

    def score(self, tokens: Iterable[int]) -> list[float]:
        """Natural log-probability of each token after the first, given those before it. Raises PromptError."""
        return [token.logprob for token in self.judge(tokens) if token.logprob is not None]

    def judge(self, tokens: Iterable[int], top: int = 0) -> list[Token]:
        """As `score`, together with the `top` likeliest tokens in the place of each."""
        return self.judge_all([(tokens, 1)], top)[0]

    def judge_all(self, texts: Iterable[tuple[Iterable[int], int]], top: int = 0) -> list[list[Token]]:
        """As `judging`, all `texts` in their order, with the `top` likeliest tokens in the place of each."""
        judged = dict(self.judging(texts, top))
        return [judged[number] for number in range(len(judged))]

    @torch.inference_mode()
    def judging(self, texts: Iterable[tuple[Iterable[int], int]], top: int = 0) -> Iterator[tuple[int, list[Token]]]:
        """How probable the tokens of many texts are, side by side; what texts begin with alike is read once.

        texts: tokens, and the number of the first that is judged, at least 1; taken as they are needed. The last token
        of a text is not read, so that it may lie one behind the context. Gives, as they come, a text's number and its
        tokens from there on, with the `top` likeliest tokens in the place of each. Raises PromptError, and LatheError
        where there is not enough memory for one. Requests that run meanwhile go on.
        """
        coming, begun = enumerate(texts), dict[Text, int]()
        try:
            while True:
                most = AHEAD * self.scheduler.seats - len(self.scheduler.waiting)
                some = [*islice(coming, max(most, 0 if begun else 1))]
                for number, (tokens, first) in some:
                    whole = self._fitting(tokens, unread=1)
                    if len(whole) - 1 <= self.context:
                        begun[self.read(whole, first, top)] = number
                    else:  # the pool has no room for it
                        pieces = alone.read(self.decoder, self.pages, whole[:-1], len(whole), self.chunk)
                        yield number, alone.judged(self.decoder, pieces, whole, max(first, 1), top)
                for text in [text for text in begun if text.finish]:
                    if text.failure:
                        raise text.failure
                    yield begun.pop(text), text.judged
                if begun:
                    self.step()
                elif not some:
                    return
        finally:
            for text in begun:
                self.scheduler.remove(text)

    def read(
        self,
        tokens: Iterable[int],
        first: int = 1,
        top: int = 0,
        *,
        adapter: str | None = None,
        salt: str = "",
        priority: int = 0,
    ) -> Text:
        """A text of which the tokens from number `first` on are to be judged; when it has its `finish` they are.

        It is read when `step` is called, as a prompt is. The other arguments are those of `judging` and `submit`.
        Raises PromptError, also where it is longer than the pool, and UsageError for an adapter that is not there.
        """
        whole, first = self._fitting(tokens, unread=1), max(first, 1)
        told = {"whole": whole, "first": first, "top": top, "pages": self.pages}
        text = self._unanswered(Text, whole[:-1], len(whole), adapter, salt, priority, **told)
        if first < len(whole):
            self.scheduler.names.extend(text.names, text.tokens)
            self.scheduler.add(text)
        else:
            text.finish = "stop"
        return text

    def embedding(
        self, tokens: Iterable[int], *, adapter: str | None = None, salt: str = "", priority: int = 0
    ) -> Embedded:
        """A text whose hidden states' mean is wanted; when it has its `finish`, `told` is that.

        It is read when `step` is called, as a prompt is; adapter, salt and priority are those of `submit`. Raises as
        `read`.
        """
        whole = self._fitting(tokens)
        text = self._unanswered(Embedded, whole, len(whole), adapter, salt, priority)
        self.scheduler.add(text)
        return text

    def _unanswered(
        self, kind: type[S], tokens: list[int], extent: int, adapter: str | None, salt: str, priority: int, **more: Any
    ) -> S:
        """A sequence of which nothing follows."""
        if len(tokens) > self.context:
            found = f"The text is {extent} tokens long."
            raise PromptError(found, f"There is room for {self.context} tokens.", "Shorten it, or take it in pieces.")
        chooser = Chooser(Sampling(), (), self.decoder.spec.vocab, self.device)
        names, rank = self._names(extent, adapter, salt), (priority, next(self.arrivals))
        return kind(tokens, extent, frozenset(), chooser, names, adapter, rank, **more)

    def _fitting(self, tokens: Iterable[int], unread: int = 0) -> list[int]:
        tokens = list(tokens)
        self._check(tokens)
        if len(tokens) - unread > self.longest:
            found = f"The text is {len(tokens)} tokens long."
            raise PromptError(found, f"The context holds {self.longest} tokens.", "Shorten it, or take it in pieces.")
        return tokens

    def _names(self, extent: int, adapter: str | None = None, salt: str = "") -> list[bytes]:
        """The name before the first page of a sequence: all that its keys and values depend on beside its tokens."""
        self._settle()
        return [self._root(extent, adapter, salt)]

    def _settle(self) -> None:
        """Forget what is known of texts if somebody changed the decoder since."""
        if not self.busy and self.state != (state := _state(self.decoder)):
            self.pages.forget()
            if self.runner.graphs:
                self.runner.graphs.forget()
            self.state = state

    def _root(self, extent: int, adapter: str | None = None, salt: str = "") -> bytes:
        angles = [_speeds(rope, extent) for rope in self.ropes]  # some go by how long it may become
        return self.scheduler.names.root(adapter, self._adapter(adapter), salt, *angles)

    def _check(self, tokens: list[int]) -> None:
        vocab = self.decoder.spec.vocab
        if not tokens:
            raise PromptError("The prompt is empty.", "It must hold at least one token.")
        for token in (min(tokens), max(tokens)):
            if not 0 <= token < vocab:
                raise PromptError(f"Token {token} is not in the vocabulary.", f"Ids run from 0 to {vocab - 1}.")


@lru_cache(1024)
def _speeds(rope: Rope, extent: int) -> tuple[float, ...]:
    return tuple(frequencies(rope, extent).tolist())


def _state(decoder: Decoder) -> list[object]:
    """What changes when somebody changes the decoder's numbers, or which of its adapters count."""
    tensors = (*decoder.parameters(), *decoder.buffers())
    versions = [(t.data_ptr(), None if t.is_inference() else t._version) for t in tensors]
    return [versions, [getattr(module, "active", None) for module in decoder.modules()]]
