"""A server answers over HTTP: OpenAI's completions with echoed log-probabilities, and vLLM's /tokenize for the ids.

`lathe serve` has both, and so has vLLM. Knows no tensor.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from lathe.errors import LatheError, MissingError, PromptError, TokenizerError, UsageError
from lathe.evaluation.asks import Answer, Ask, Generation, Likelihood, Likely, Words
from lathe.evaluation.spelling import Spelt
from lathe.tokenizer import StopStrings, Tokenizer

ATONCE = 8  # requests
TRIES = 6  # of one, while the server has too much to do
SECONDS = 600.0  # that an answer may take
STOPS = 4  # OpenAI's most


@dataclass(frozen=True)
class Server:
    """Where requests go. key: sent as Authorization: Bearer KEY."""

    url: str
    key: str | None = None

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that is answered. body: sent by POST. Raises LatheError."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        for left in reversed(range(TRIES)):
            try:
                with urlopen(Request(self.url + path, data, headers), timeout=SECONDS) as answer:
                    return json.load(answer)
            except HTTPError as error:
                if error.code not in (429, 503) or not left:
                    raise self._refused(path, error) from None
                time.sleep(float(error.headers.get("Retry-After") or 1))
            except (OSError, HTTPException, ValueError) as error:
                raise MissingError(f"{self.url}{path} does not answer: {error}.", fix="Is the server there?") from None
        raise AssertionError

    def _refused(self, path: str, error: HTTPError) -> LatheError:
        text = error.read().decode("utf-8", "replace")
        try:
            told = json.loads(text)
            text = told["error"]["message"] if isinstance(told["error"], dict) else told["error"]
        except (ValueError, KeyError, TypeError):
            pass
        found = f"{self.url}{path} answers {error.code}: {' '.join(text.split())[:300]}"
        if error.code in (401, 403):
            return UsageError(found, "", "Give its key with --api-key.")
        return MissingError(found) if error.code == 404 else PromptError(found)


class Remote:
    """A model behind a URL, see `asks.Subject`.

    Args:
        url: of the server, with or without /v1.
        model: as the server calls it; by default its first.
        tokenizer: the model's; without one the server is asked, which must have /tokenize then.
        longest: tokens that it judges at once; by default as many as its context holds.

    Raises MissingError, UsageError.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        key: str | None = None,
        tokenizer: Tokenizer | None = None,
        longest: int | None = None,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise UsageError(f'"{url}" is no URL.', "It looks like http://127.0.0.1:8000.")
        self.server = Server(url.rstrip("/").removesuffix("/v1"), key)
        listed = self.server.ask("/v1/models")["data"]
        found = next((each for each in listed if model in (None, each["id"])), None)
        if found is None:
            names = ", ".join(each["id"] for each in listed[:8])
            raise MissingError(f"{url} has no model {model}.", f"It has {names}.")
        self.name = str(found["id"])
        state = found.get(
            "created" if found.get("owned_by") == "lathe" else "root"
        )  # others tell the time as `created`
        self.identity = blake2b(repr((self.server.url, self.name, state)).encode(), digest_size=16).hexdigest()
        self.words: Words = Served(self.server, self.name) if tokenizer is None else Spelt(tokenizer)
        context = found.get("max_model_len") or (self.words.context if isinstance(self.words, Served) else None)
        if not (context or longest):
            fix = "Say how many tokens it takes, with --max-length."
            raise UsageError(f"{url} does not say how long its context is.", "", fix)
        self.longest = min(x for x in (context and context - 1, longest) if x)  # of what is echoed all is read

    def answers(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer]]:
        with ThreadPoolExecutor(ATONCE) as pool:
            coming = {pool.submit(self._answer, ask): number for number, ask in enumerate(asks)}
            try:
                for future in as_completed(coming):
                    yield coming[future], future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, ask: Ask) -> Answer:
        return self._likelihood(ask) if isinstance(ask, Likelihood) else self._generation(ask)

    def _likelihood(self, ask: Likelihood) -> Likely:
        prompt = [*ask.context, *ask.continuation]
        told = self._completion(prompt=prompt, max_tokens=0, temperature=0, echo=True, logprobs=1)["logprobs"]
        if not told or len(told["token_logprobs"] or ()) < len(prompt):
            expected = "Likelihoods need a completions server that echoes log-probabilities, as lathe serve and vLLM."
            raise UsageError(f"{self.server.url} tells no log-probabilities of a prompt.", expected)
        rows = range(len(ask.context), len(prompt))
        own, best = told["token_logprobs"], told["top_logprobs"]
        greedy = all(own[row] >= max(best[row].values()) for row in rows)
        return Likely(sum(own[row] for row in rows), greedy)

    def _generation(self, ask: Generation) -> str:
        wishes = {"temperature": ask.temperature, "top_p": ask.top_p, "top_k": ask.top_k or None, "seed": ask.seed}
        stop = list(ask.stops[:STOPS]) or None
        made = self._completion(prompt=list(ask.prompt), max_tokens=ask.most, stop=stop, **wishes)
        stops = StopStrings(ask.stops)  # of which the server may have been told some only
        return stops.push(made["text"]) + stops.flush()

    def _completion(self, **body: Any) -> dict[str, Any]:
        told = {name: value for name, value in body.items() if value is not None}
        [choice] = self.server.ask("/v1/completions", {"model": self.name, **told})["choices"]
        return choice


class Served:
    """The words of a model behind a URL, see `asks.Words`."""

    def __init__(self, server: Server, model: str) -> None:
        self.server, self.model = server, model

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        with ThreadPoolExecutor(ATONCE) as pool:
            return list(pool.map(self._encode, texts))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenized(prompt=text)["tokens"])

    @cached_property
    def begin(self) -> tuple[int, ...]:
        return tuple(self._encode(""))

    @property
    def prefix(self) -> int:
        if not self.begin:
            raise TokenizerError(
                f"{self.server.url} begins texts with no token, and does not say which one ends them.",
                "One must stand before a text that is judged from its first token on.",
                "Name the model's folder with --tokenizer.",
            )
        return self.begin[0]

    @cached_property
    def context(self) -> int | None:
        return self._tokenized(prompt="").get("max_model_len")

    def render(self, messages: Sequence[dict[str, str]], open_ended: bool) -> str:
        ended = {"add_generation_prompt": not open_ended, "continue_final_message": open_ended}
        ids = self._tokenized(messages=list(messages), add_special_tokens=False, **ended)["tokens"]
        return str(self.server.ask("/detokenize", {"model": self.model, "tokens": ids})["prompt"])

    def _tokenized(self, **body: Any) -> dict[str, Any]:
        try:
            return self.server.ask("/tokenize", {"model": self.model, **body})
        except MissingError as error:
            fix = "Name the model's folder with --tokenizer."
            raise MissingError(error.found, "Without a tokenizer the server must have /tokenize.", fix) from None
