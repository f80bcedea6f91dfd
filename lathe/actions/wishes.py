"""Options that say how answers are made -> what an LLM is asked for; knows no model and no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lathe.errors import MissingError, UsageError
from lathe.options import fields

FORMS = ("schema", "regex", "grammar")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How answers are made; what is None is as the checkpoint says."""

    max_new_tokens: int | None = None
    """The longest answer in tokens. By default what the model's generation_config.json says; where it says
    nothing, 256, and in a chat by template as long as the context allows."""
    min_tokens: int | None = None
    """An answer does not end before it has so many tokens. By default 0."""
    temperature: float | None = None
    """0 takes the likeliest token each time, more is more varied. By default, and the next three, what the
    model's generation_config.json says; where it says nothing, 0.8 among the 50 likeliest."""
    top_k: int | None = None
    """Choose among the K likeliest tokens only; 0 for all."""
    top_p: float | None = None
    """Choose among the likeliest tokens that together have this probability."""
    min_p: float | None = None
    """Choose among tokens at least this fraction as likely as the likeliest."""
    repetition_penalty: float | None = None
    """Above 1, makes tokens that the prompt or the answer holds less likely. By default 1: no difference."""
    presence_penalty: float | None = None
    """Taken off the scores of tokens that the answer holds. By default 0, as the next."""
    frequency_penalty: float | None = None
    """The same, once for each time that the answer holds them."""
    logit_bias: tuple[str, ...] = ()
    """Added to the score of a token, as ID=NUMBER: from -100, never, to 100, always. May be given several times."""
    seed: int | None = None
    """The same seed gives the same answer to the same words. By default every answer is new."""
    stop: tuple[str, ...] = ()
    """End an answer where this text would come. May be given several times."""
    schema: str | None = None
    """Answer in JSON that a JSON schema allows: a file, or the schema itself."""
    regex: str | None = None
    """Answer in text that this regular expression matches from beginning to end."""
    grammar: str | None = None
    """Answer in text that a grammar allows, in Lark's notation, from its rule start on: a file, or the grammar
    itself."""

    def wishes(self) -> dict[str, Any]:
        """What is told, as `LLM.stream` takes it. Raises UsageError, MissingError."""
        return self.sampling() | self.form() | ({"stop": self.stop} if self.stop else {})

    def sampling(self) -> dict[str, Any]:
        """What is told, as fields of `engine.Sampling`. Raises UsageError."""
        told = {name: getattr(self, name) for name in SETTINGS if name not in (*FORMS, "stop", "logit_bias")}
        bias = dict(_pair(pair) for text in self.logit_bias for pair in text.split(","))
        return {name: wish for name, wish in told.items() if wish is not None} | ({"logit_bias": bias} if bias else {})

    def form(self) -> dict[str, str]:
        """What the answer must be, of `FORMS`, as text. Raises UsageError, MissingError."""
        told = [name for name in FORMS if getattr(self, name) is not None]
        if len(told) > 1:
            raise UsageError(f"There are a --{told[0]} and a --{told[1]}.", fix="Leave one of them out.")
        return {name: getattr(self, name) if name == "regex" else _text(name, getattr(self, name)) for name in told}


SETTINGS = {option.name[0]: option for option in fields(Settings)}


def _pair(text: str) -> tuple[int, float]:
    id, _, by = text.partition("=")
    try:
        return int(id), float(by)
    except ValueError:
        raise UsageError(f'--logit-bias is "{text}".', "It must be ID=NUMBER, as in 1234=-100.") from None


def _text(name: str, told: str) -> str:
    """A schema or grammar, from its file unless it is there itself."""
    if ("{" if name == "schema" else "start:") in told:
        return told
    try:
        return Path(told).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise MissingError(f"--{name} {told} cannot be read: {why}.") from None
