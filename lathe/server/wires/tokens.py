"""Text and messages become token ids, ids text, and messages a prompt: in vLLM's shapes and in llama.cpp's."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from lathe.server.ask import Ask
from lathe.server.desk import Desk, Served
from lathe.server.refusals import Misused, Unsupported
from lathe.server.wires.chat import ChatBody
from lathe.server.wires.fields import JSON, TokenId
from lathe.server.wires.messages import MOST_MESSAGES, Conversation, Message


class TokenizeBody(Conversation):
    """prompt (vLLM) or content (llama.cpp): a text; or messages, as in a chat completion.

    add_special_tokens, add_special: put what the tokenizer does at the ends of a text; where it is not said, true for
    `prompt` and false for the others. with_pieces: give each token with its text. return_token_strs: give the names
    that the vocabulary has for them, too.
    """

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MOST_MESSAGES)
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    def ids(self, desk: Desk, served: Served) -> list[int]:
        """Raises Misused, Unsupported."""
        told = [name for name in ("prompt", "content", "messages") if getattr(self, name) is not None]
        if len(told) != 1:
            found = f"{' and '.join(told) or 'Nothing'} is to be tokenized."
            raise Misused(told[-1] if told else "prompt", found, "One of prompt, content and messages must be there.")
        if self.parse_special is False:
            raise Unsupported("parse_special", "Special tokens are always read as such.", fix="Leave it out.")
        if self.messages is not None:
            text = desk.render(served, Ask(**self.rendering(self.messages)))
        else:
            text = str(self.content if self.prompt is None else self.prompt)
        special = self.add_special if self.add_special_tokens is None else self.add_special_tokens
        return served.tokenizer.encode(text, special=self.prompt is not None if special is None else special)


class DetokenizeBody(BaseModel):
    model_config = ConfigDict(strict=True)

    model: str | None = None
    tokens: list[TokenId]


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["Tokens"], dependencies=[JSON])

    # Plain functions, which run in threads: a long text takes its time.

    @routes.post("/tokenize")
    def tokenize(body: TokenizeBody) -> dict[str, Any]:
        """The token ids of a text or a conversation."""
        served = desk.find(body.model)
        ids = body.ids(desk, served)
        told: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": served.context}
        if body.with_pieces:
            told["tokens"] = [{"id": id, "piece": _piece(served.tokenizer.spelling(id))} for id in ids]
        if body.return_token_strs:
            told["token_strs"] = [served.tokenizer.token(id) for id in ids]
        return told

    @routes.post("/detokenize")
    def detokenize(body: DetokenizeBody) -> dict[str, Any]:
        """The text of token ids, special tokens included."""
        served = desk.find(body.model)
        if body.tokens and max(body.tokens) >= served.vocab:
            raise Misused(
                "tokens", f"Token {max(body.tokens)} is not in the vocabulary.", f"It has {served.vocab} tokens."
            )
        text = served.tokenizer.decode(body.tokens, skip_special=False)
        return {"prompt": text, "content": text}

    @routes.post("/apply-template")
    def apply_template(body: ChatBody) -> dict[str, str]:
        """The prompt that a chat completion of the same body is answered from."""
        return {"prompt": desk.render(desk.find(body.model), body.ask())}

    @routes.post("/v1/chat/completions/input_tokens")
    @routes.post("/chat/completions/input_tokens", include_in_schema=False)
    def input_tokens(body: ChatBody) -> dict[str, Any]:
        """How many tokens the prompt of a chat completion of the same body has."""
        ids = desk.read(desk.find(body.model), body.ask()).tokens
        return {"object": "response.input_tokens", "input_tokens": len(ids)}

    return routes


def _piece(text: bytes) -> str | list[int]:
    """A token's text, or its bytes where they are no whole characters."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return list(text)
