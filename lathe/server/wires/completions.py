"""OpenAI's completions: a body becomes an Ask for each prompt, and their events one completion or chunks of it."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from lathe.server.ask import Ask, Begun, Ended, Event, Reading, Said, Word
from lathe.server.desk import Desk, Served
from lathe.server.refusals import Unsupported
from lathe.server.wires.chunks import Chunks
from lathe.server.wires.fields import JSON, MOST_TOP, Text, Wished, several
from lathe.server.wires.frames import replied
from lathe.server.wires.head import head, warning
from lathe.server.wires.messages import Format, formed

PATH = "/v1/completions"
MOST_PROMPTS = 64
LENGTH = 16  # tokens of an answer where the body does not say, as OpenAI has it


class CompletionBody(Wished):
    """The body of a completion. prompt: a text or token ids, or several of either; each is continued n times."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
    best_of: int | None = Field(None, ge=1)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    response_format: Format | None = None

    def asks(self) -> list[Ask]:
        """Raises Misused, Unsupported."""
        if self.best_of not in (None, self.n or 1):
            raise Unsupported("best_of", "best_of other than n is not supported.", "All answers are given.")
        wishes = self.wishes()
        most = self.longest("max_tokens", "n_predict", least=0 if self.echo else 1)
        wishes["max_new_tokens"] = LENGTH if most is None else None if most == -1 else most
        if self.logprobs is not None:
            wishes["logprobs"] = self.logprobs
        form, others = self.form(formed(self.response_format)), self.others()
        return [Ask(prompt, wishes=wishes, form=form, **others) for prompt in several(self.prompt)]


class Echo(Said):
    """The prompt, said before what continues it."""


async def echoed(desk: Desk, ask: Ask) -> AsyncIterator[Event]:
    """What the desk answers, with the prompt said first; and nothing else where the answer is to have no tokens."""
    prompt = cast("Text", ask.prompt)
    decode = desk.find(ask.model).tokenizer.decode
    text = prompt if isinstance(prompt, str) else decode(prompt)
    top = ask.wishes.get("logprobs")
    if ask.wishes["max_new_tokens"] == 0:
        words = await desk.judge(prompt, ask.model, top or 0, ask.salt)
        yield Begun(len(words), 0, [word.id for word in words])
        for index in range(ask.n):
            yield Echo(index, text, words=tuple(words))
            yield Ended(index, "length", 0)
        return
    words = [] if top is None else await desk.judge(prompt, ask.model, top, ask.salt)
    async with aclosing(desk.answer(ask)) as answer:
        async for event in answer:
            yield event
            if isinstance(event, Begun):
                for index in range(ask.n):
                    yield Echo(index, text, words=tuple(words))


class Answer(Chunks):
    """Writes one completion, whole or in chunks."""

    def __init__(self, body: CompletionBody, served: Served) -> None:
        super().__init__(body, PATH, {**head("cmpl", body.model, served), "object": "text_completion"})
        self.body, self.n = body, body.n or 1
        self.offsets: dict[int, Offsets] = {}
        self.prompts: dict[int, list[int]] = {}  # ids of those that were read
        self.named: set[int] = set()  # answers whose prompt was told

    # ------------------------------------------------------------ in chunks

    def frames(self, which: int, event: Event) -> Iterator[str]:
        self._count(which, event)
        match event:
            case Reading() | Begun():
                yield from self.progress(event)
            case Said():
                index = which * self.n + event.index
                yield self._chunk(index, event.text, **self._told(index, event.words))
            case Ended():
                more = {"stop_reason": event.stop} if event.stop is not None else {}
                yield self._chunk(which * self.n + event.index, "", event.reason, **more)

    def _count(self, which: int, event: Event) -> None:
        if isinstance(event, Begun):
            self.prompts[which] = list(event.tokens)
        if not isinstance(event, Echo):
            self.tally.count(which, event)

    def _chunk(self, index: int, text: str, reason: str | None = None, **more: Any) -> str:
        logprobs = more.pop("logprobs", None)
        return self.chunk([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason, **more}])

    def _told(self, index: int, words: Sequence[Word]) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if self.body.logprobs is not None:
            more["logprobs"] = self.offsets.setdefault(index, Offsets()).logprobs(words)
        if self.body.return_token_ids:
            more["token_ids"] = [word.id for word in words]
            if index not in self.named:  # once, in the first chunk
                self.named.add(index)
                more["prompt_token_ids"] = self.prompts[index // self.n]
        return more

    # ------------------------------------------------------------ whole

    def whole(self, events: Iterable[tuple[int, Event]]) -> dict[str, Any]:
        said: dict[int, list[Said]] = {}
        ended: dict[int, Ended] = {}
        for which, event in events:
            self._count(which, event)
            if isinstance(event, Said):
                said.setdefault(which * self.n + event.index, []).append(event)
            elif isinstance(event, Ended):
                ended[which * self.n + event.index] = event
        choices = [self._choice(index, said.get(index, []), ended[index]) for index in sorted(ended)]
        return {**self.head, "choices": choices, "usage": self.tally.usage(), "timings": self.tally.timings()}

    def _choice(self, index: int, said: Sequence[Said], ended: Ended) -> dict[str, Any]:
        text = "".join(event.text for event in said)
        more = {"stop_reason": ended.stop} if ended.stop is not None else {}
        told = self._told(index, [word for event in said for word in event.words])
        return {"index": index, "text": text, "logprobs": None, "finish_reason": ended.reason, **told, **more}


class Offsets:
    """Where each token of one answer begins in its text, in characters."""

    def __init__(self) -> None:
        self.at, self.characters = 0, codecs.getincrementaldecoder("utf-8")("replace")

    def logprobs(self, words: Sequence[Word]) -> dict[str, Any]:
        """Tokens with their log-probabilities, as OpenAI writes them in completions."""
        offsets = []
        for word in words:
            offsets.append(self.at)
            self.at += len(self.characters.decode(word.text))
        return {
            "tokens": [_text(word.text) for word in words],
            "token_logprobs": [word.logprob for word in words],
            "top_logprobs": [{_text(text): value for _, text, value in word.top} for word in words],
            "text_offset": offsets,
        }


def _text(token: bytes) -> str:
    """A token as OpenAI writes it here: where it is no whole characters, as bytes:\\xe2\\x80."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["OpenAI"], dependencies=[JSON])

    @routes.post(PATH)
    async def completions(request: Request, body: CompletionBody) -> Response:
        """Texts that continue prompts, whole or as a stream of chunks."""
        headers, asks = warning(body.unknown(desk.strict)), body.asks()
        served = desk.find(body.model)
        desk.fits(served, sum(ask.n for ask in asks))
        answer = Answer(body, served)
        answers = [echoed(desk, ask) if body.echo else desk.answer(ask) for ask in asks]
        return await replied(request, answers, answer, headers, body.stream)

    return routes
