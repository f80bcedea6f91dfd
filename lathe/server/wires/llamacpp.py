"""llama.cpp's completion, as its own clients know it: a body becomes Asks, and events what llama-server writes.

Beside it, what its clients ask to know of a server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from lathe.server.ask import Ask, Begun, Ended, Event, Reading, Said, Word
from lathe.server.desk import Desk, Served
from lathe.server.refusals import Misused, Refusal
from lathe.server.wires.completions import MOST_PROMPTS
from lathe.server.wires.fields import JSON, MOST_BIASES, MOST_TOP, Bias, Wished
from lathe.server.wires.frames import frame, replied
from lathe.server.wires.head import warning
from lathe.server.wires.mixed import Piece, Prompt, Prompted, ids_of, separate
from lathe.server.wires.tally import Tally
from lathe.tokenizer import Tokenizer

PATH = "/completion"
ENDS = {"stop": "eos", "length": "limit"}

Biased = Annotated[tuple[Piece, Bias | Literal[False]], Field(strict=False)]  # JSON has lists alone


class NativeBody(Wished):
    """The body of a completion. prompt: a text, tokens, or texts and tokens in turn; or several of these.

    logit_bias: a token, or a text whose tokens are meant, and its bias; false rules it out.
    n_probs: tell so many of the likeliest tokens. response_fields: give only these, as "timings" or "timings/prompt_n".
    """

    prompt: str | Prompted | Annotated[list[Piece | Prompt], Field(min_length=1)]
    logit_bias: list[Biased] | dict[str, Bias] | None = Field(None, max_length=MOST_BIASES)  # type: ignore[assignment]
    n_probs: int | None = Field(None, ge=0, le=MOST_TOP)
    return_tokens: bool | None = None
    response_fields: list[str] | None = Field(None, max_length=64)

    def prompts(self) -> list[Prompt]:
        """Raises Misused for too many."""
        several = separate(self.prompt)
        if len(several) > MOST_PROMPTS:
            raise Misused("prompt", f"{len(several)} prompts are given.", f"At most {MOST_PROMPTS} are taken.")
        return several

    def asks(self, tokenizer: Tokenizer) -> list[Ask]:
        """Raises Misused, Unsupported."""
        wishes = self.wishes()
        most = self.longest("n_predict", "max_tokens")
        if most is not None:
            wishes["max_new_tokens"] = None if most == -1 else most
        if self.n_probs:
            wishes["logprobs"] = self.n_probs
        if self.logit_bias:
            wishes["logit_bias"] = list(self._biased(tokenizer))
        form, others = self.form(), self.others()
        return [Ask(ids_of(prompt, tokenizer), wishes=wishes, form=form, **others) for prompt in self.prompts()]

    def _biases(self) -> None:
        """Nothing: texts have ids only by a tokenizer."""

    def _biased(self, tokenizer: Tokenizer) -> Iterator[tuple[int, float]]:
        pairs: Any = self.logit_bias.items() if isinstance(self.logit_bias, dict) else self.logit_bias
        for piece, bias in pairs:
            told = [int(piece)] if isinstance(piece, int) or piece.isdecimal() else None
            for token in told or tokenizer.encode(str(piece), special=False):
                yield token, -100.0 if bias is False else bias


class Answer:
    """Writes the answers to several prompts, whole or in chunks."""

    def __init__(self, body: NativeBody, served: Served, asks: list[Ask]) -> None:
        self.body, self.served, self.n = body, served, body.n or 1
        self.prompts = [cast("list[int]", ask.prompt) for ask in asks]
        self.settings = settings(body, asks[0], served)
        self.tallies = [Tally() for _ in asks]
        self.said: dict[int, list[Said]] = {}

    def frames(self, which: int, event: Event) -> Iterator[str]:
        self.tallies[which].count(which, event)
        match event:
            case Reading() | Begun() if self.body.return_progress:
                yield frame({"prompt_progress": self.tallies[which].progress(event)})
            case Said():
                self._keep(which, event)
                timings = {"timings": self.tallies[which].timings()} if self.body.timings_per_token else {}
                yield frame({**self._chunk(which, event.index, [event]), "stop": False, **timings})
            case Ended():
                yield frame(self.told(which, event, streamed=True))

    def last(self) -> Iterator[str]:
        return iter(())

    def failed(self, refusal: Refusal) -> Iterator[str]:
        yield frame(refusal.body(PATH))

    def whole(self, events: Iterable[tuple[int, Event]]) -> Any:
        told = {}
        for which, event in events:
            self.tallies[which].count(which, event)
            if isinstance(event, Said):
                self._keep(which, event)
            elif isinstance(event, Ended):
                told[which * self.n + event.index] = self.told(which, event)
        rows = [told[at] for at in sorted(told)]
        return rows if len(rows) > 1 else rows[0]

    def _keep(self, which: int, event: Said) -> None:
        self.said.setdefault(which * self.n + event.index, []).append(event)

    def _chunk(self, which: int, index: int, said: list[Said]) -> dict[str, Any]:
        words = [word for event in said for word in event.words]
        told = {
            "index": which * self.n + index,
            "content": "".join(event.text for event in said),
            "tokens": [word.id for word in words],
            "tokens_predicted": self.tallies[which].made,
            "tokens_evaluated": len(self.prompts[which]),
        }
        if self.body.n_probs:
            told["completion_probabilities"] = [likely(word) for word in words]
        return told

    def told(self, which: int, ended: Ended, streamed: bool = False) -> dict[str, Any]:
        """All that is told of an answer at its end; `content` only where it was not in chunks before."""
        said = self.said.get(which * self.n + ended.index, [])
        told = self._chunk(which, ended.index, [] if streamed else said)
        if not self.body.return_tokens:
            told["tokens"] = []
        word = ended.stop if isinstance(ended.stop, str) else ""
        told |= {
            "stop": True,
            "stop_type": "word" if word else ENDS.get(ended.reason, "none"),
            "stopping_word": word,
            "model": self.body.model or self.served.name,
            "generation_settings": self.settings,
            "prompt": self.served.tokenizer.decode(self.prompts[which], skip_special=False),
            "has_new_line": any("\n" in event.text for event in said),
            "truncated": False,
            "tokens_cached": len(self.prompts[which]) + ended.tokens,
            "timings": self.tallies[which].timings(),
        }
        return picked(told, self.body.response_fields) if self.body.response_fields else told


def settings(body: NativeBody, ask: Ask, served: Served) -> dict[str, Any]:
    """How the answer was made, in llama.cpp's names."""
    wishes = served.wished(ask.wishes)
    most = wishes.get("max_new_tokens")
    same = ("seed", "temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty")
    return {
        **{name: wishes.get(name) for name in same},
        "n_predict": -1 if most is None else most,
        "repeat_penalty": wishes.get("repetition_penalty"),
        "logit_bias": [{"token": token, "bias": bias} for token, bias in wishes.get("logit_bias", ())],
        "stop": list(ask.stop),
        "ignore_eos": ask.ignore_eos,
        "n_probs": body.n_probs or 0,
        "stream": bool(body.stream),
    }


def picked(told: dict[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Those fields of it that are there, by their paths."""
    found: dict[str, Any] = {}
    for field in fields:
        within: Any = told
        for name in field.split("/"):
            within = within.get(name) if isinstance(within, dict) else None
        if within is not None:
            found[field] = within
    return found


def likely(word: Word) -> dict[str, Any]:
    """A token with its log-probability and the likeliest with theirs."""

    def one(id: int, text: bytes, logprob: float | None) -> dict[str, Any]:
        return {"id": id, "token": text.decode(errors="replace"), "bytes": list(text), "logprob": logprob}

    return {**one(word.id, word.text, word.logprob), "top_logprobs": [one(*best) for best in word.top]}


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["llama.cpp"])

    @routes.post(PATH, dependencies=[JSON])
    @routes.post("/completions", include_in_schema=False, dependencies=[JSON])
    async def completion(request: Request, body: NativeBody) -> Response:
        """Texts that continue prompts, whole or as a stream."""
        headers, served = warning(body.unknown(desk.strict)), desk.find(body.model)
        asks = await run_in_threadpool(body.asks, served.tokenizer)
        answer = Answer(body, served, asks)
        answers: list[AsyncIterator[Event]] = [desk.answer(ask) for ask in asks]
        return await replied(request, answers, answer, headers, body.stream)

    @routes.get("/props")
    def props() -> dict[str, Any]:
        """What is served, and how it answers where a request does not say."""
        served = desk.find()
        tokenizer, usual = served.tokenizer, settings(NativeBody.model_validate({"prompt": ""}), Ask(""), served)
        return {
            "default_generation_settings": {"n_ctx": served.context, "params": usual},
            "total_slots": served.seats,
            "model_alias": served.name,
            "model_path": served.name,
            "modalities": {"vision": False, "audio": False},
            "chat_template": tokenizer.template or "",
            "bos_token": tokenizer.bos or "",
            "eos_token": tokenizer.eos or "",
        }

    @routes.get("/slots")
    def slots() -> list[dict[str, Any]]:
        """The seats for answers, and which of them are taken."""
        served = desk.find()
        taken = served.state.get("running", 0)  # nothing is told of an engine that has not been asked yet
        return [{"id": at, "n_ctx": served.context, "is_processing": at < taken} for at in range(served.seats)]

    return routes
