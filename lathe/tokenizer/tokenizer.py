"""One checkpoint's tokenizer: text <-> ids, ids -> text as they arrive, messages -> text.

Does what the checkpoint's files say about the ends of a text; knows no file's form, no model and no tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe.errors import TokenizerError
from lathe.tokenizer import bytelevel, characters, files, ggml, styles
from lathe.tokenizer.stream import Spelling, TextStream
from lathe.tokenizer.vocab import Vocab

if TYPE_CHECKING:  # jinja2 is imported when a conversation is first rendered
    from tokenizers import Encoding

    from lathe.tokenizer.template import Rendered, Template

PART = 1 << 18  # characters encoded at once
_TEMPLATE = "tokenizer.chat_template"  # GGUF's word; a named one has its name behind a dot


class Tokenizer:
    """Text <-> ids, and messages -> text.

    Args:
        words: the vocabulary, and what its files say about special tokens and the ends of a text.
        templates: chat templates by name; "default" is the usual one, "tool_use" the one with tools.
        ends: ids that end a turn, besides those of `words`.
        source: the folder it was read from, if it was.
        style: the name of a prompt style that takes the place of the templates.

    Attributes:
        bos, bos_id: the token that begins a text, by name and id, if the files name one (whether or not it is used).
        eos, eos_id: the token that ends a document, by name and id, if the files name one.
        eos_ids: every id that ends a turn.
        stops: texts that end a turn and are no tokens.
        special_ids: the tokens that write nothing.
        marks: the tokens that are found in a text as they are spelt, and whether each is left out of decoded text.
        vocab_size: how many tokens there are, added ones included; a model often has a few more rows.
    """

    def __init__(
        self,
        words: Vocab,
        templates: Mapping[str, str] | None = None,
        ends: Iterable[int] = (),
        source: Path | None = None,
        style: str | None = None,
    ) -> None:
        self._words, self._pipeline = words, words.pipeline
        # Files may carry the truncation and padding of somebody's training run.
        self._pipeline.no_truncation()
        self._pipeline.no_padding()
        self._templates = dict(templates or {})
        self._compiled: dict[str, Template] = {}
        self._source = source
        self._spell = Spelling(self._pipeline)
        added = self._pipeline.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self._added = tuple(token.content for token in added.values())
        self.marks = {token.content: token.special for token in added.values()}

        self.bos, self.bos_id = self._named("bos_token")
        self.eos, self.eos_id = self._named("eos_token")
        self._ends = tuple(ends)
        self.vocab_size: int = self._pipeline.get_vocab_size()
        self._before, self._after = self._both_ends()
        self.style = style
        chosen = None if style is None else styles.style(style)
        if chosen:
            begin = "".join(self.token(number) for number in self._before)
            self._templates = {"default": styles.source(chosen, begin)}
        stops = {stop: self.id(stop) for stop in chosen.stops} if chosen else {}
        self.stops = tuple(stop for stop, number in stops.items() if number is None)
        eos = (*self._ends, *words.ends, self.eos_id, *stops.values())
        self.eos_ids = tuple(dict.fromkeys(number for number in eos if number is not None))

    def _named(self, name: str) -> tuple[str | None, int | None]:
        token = self._words.names.get(name)
        number = None if token is None else self.id(token)
        return (None if number is None else token), number

    def _both_ends(self) -> tuple[list[int], list[int]]:
        """The ids put before and after a text: the post-processor's of the pipeline, then those `words` asks for."""
        probe = self._pipeline.encode(characters.sample(self._pipeline))
        text = [at for at, added in enumerate(probe.special_tokens_mask) if not added] or [len(probe.ids)]
        before, after = probe.ids[: text[0]], probe.ids[text[-1] + 1 :]
        if self._words.add_bos and self.bos_id is not None and self.bos_id not in before:
            before = [self.bos_id, *before]
        if self._words.add_eos and self.eos_id is not None and self.eos_id not in after:
            after = [*after, self.eos_id]
        return before, after

    @classmethod
    def open(cls, folder: Path) -> Tokenizer:
        """The tokenizer in a Hugging Face folder, or in LitGPT's, which keeps the same files.

        The vocabulary is that of tokenizer.json, else of tokenizer.model (SentencePiece, or Llama 3's tiktoken
        ranks), else of vocab.json with merges.txt. A text begins with BOS if tokenizer.json's post-processor adds one
        or tokenizer_config.json says `"add_bos_token": true`; for a SentencePiece file, unless it says false.

        Raises:
            MissingError: there is no vocabulary in the folder.
            TokenizerError: a file cannot be read, or two contradict each other.
        """
        config = files.read_json(folder / "tokenizer_config.json")
        return cls(files.words(folder, config), files.templates(folder, config), files.ends_of_turn(folder), folder)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer in a GGUF file's metadata: `tokenizer.ggml.*` and `tokenizer.chat_template*`, as plain values.

        Raises:
            TokenizerError: a tokenizer of a kind that is not known, or one that does not fit together.
        """
        named = {
            name[len(_TEMPLATE) + 1 :]: text for name, text in metadata.items() if name.startswith(_TEMPLATE + ".")
        }
        return cls(ggml.read(metadata), named | ({"default": metadata[_TEMPLATE]} if _TEMPLATE in metadata else {}))

    def to_gguf(self) -> dict[str, Any]:
        """The tokenizer as a GGUF file's metadata: what `from_gguf` takes, and what llama.cpp gives the same ids from.

        Raises:
            TokenizerError: GGUF has no words for it.
        """
        words = ggml.write(self._words, self._before, self._after, self.eos_ids)
        default = {} if self.template is None else {_TEMPLATE: self.template}
        others = {name: text for name, text in self._templates.items() if name != "default"}
        named: dict[str, Any] = {f"{_TEMPLATE}.{name}": text for name, text in others.items()}
        return {**words, **default, **named, **({f"{_TEMPLATE}s": list(others)} if others else {})}

    # ------------------------------------------------------------ text and ids

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Text -> ids. Special tokens written in the text become their ids.

        Args:
            text: any string of whole characters.
            special: put what the files say at either end (BOS, EOS); BOS not twice, if the text begins with it.
        """
        (ids,) = self._ids([self._prepared(text)])
        return self._ended(ids) if special else ids

    @property
    def begin(self) -> tuple[int, ...]:
        """The ids that the files say a text begins with."""
        return tuple(self._before)

    def encode_all(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """What `encode` gives for each text, on all processors.

        A long text is encoded in parts, where that gives the same ids, because a part takes a hundred times its size in
        memory.
        """
        prepared = [self._prepared(text) for text in texts]
        if self._divisible:
            parts = [bytelevel.parts(text, PART) for text in prepared]
        else:
            parts = [[text] for text in prepared]
        ids = self._ids([part for some in parts for part in some])
        found = [[number for _ in some for number in next(ids)] for some in parts]
        return [self._ended(numbers) for numbers in found] if special else found

    @cached_property
    def _divisible(self) -> bool:
        return bytelevel.divisible(self._pipeline)

    def _prepared(self, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"The text holds half a character (a lone surrogate) at position {error.start}.",
                fix="Read it as UTF-8.",
            ) from None
        if self._words.leading_space and text and not text.startswith(self._added):
            return " " + text
        return text

    def _ids(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """The ids of texts, as many encoded at once as have PART characters together."""
        begin = size = 0
        for end, text in enumerate(texts, 1):
            size += len(text)
            if size >= PART or end == len(texts):
                yield from (encoded.ids for encoded in self._batch(self._pipeline.encode_batch_fast, texts[begin:end]))
                begin, size = end, 0

    def _batch(self, encode: Callable[..., list[Encoding]], texts: Sequence[str]) -> list[Encoding]:
        try:
            return encode(texts, add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            lacking = characters.missing(self._pipeline, texts)
            if lacking is None:
                raise
            fix = "It knows the characters of the texts that it was made from, and no others."
            raise TokenizerError(f"The tokenizer has no token for {lacking!r}.", fix=fix) from error

    def _ended(self, ids: list[int]) -> list[int]:
        begun = ids[: len(self._before)] == self._before
        return [*([] if begun else self._before), *ids, *self._after]

    @cached_property
    def digest(self) -> str:
        """32 hex digits that are others where any text's ids may be."""
        told = (self._pipeline.to_str(), self._before, self._after, self._words.leading_space, self.eos_id)
        return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()

    def placed(self, text: str) -> tuple[list[int], list[int]]:
        """Text -> ids, without any at either end, and the place in the text where each begins, in characters."""
        led = self._prepared(text)
        (found,) = self._batch(self._pipeline.encode_batch, [led])
        return found.ids, [start - (len(led) - len(text)) for start, _ in found.offsets]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Ids -> text; U+FFFD for bytes that are no characters, nothing for ids that no token has.

        skip_special: special tokens show nothing.
        """
        stream = self.stream(skip_special=skip_special)
        return "".join([stream.push(number) for number in ids]) + stream.flush()

    def stream(
        self, after: Iterable[int] = (), *, skip_special: bool = True, shown: Collection[int] = ()
    ) -> TextStream:
        """Ids -> text one at a time: the pieces end to end are what `decode` gives.

        Args:
            after: the ids that the text continues, if their text is already shown. Then `decode` of these and the
                pieces make `decode` of all, where the pieces alone would lose the space before a first word.
            skip_special: special tokens show nothing, but for those that are `shown`.
        """
        return TextStream(self._spell, self.special_ids.difference(shown) if skip_special else (), after)

    def token(self, number: int) -> str:
        """The token that has the id `number`, as the vocabulary writes it (with Ġ or ▁ for a space).

        Raises:
            TokenizerError: no token has this id.
        """
        token = self.get(number)
        if token is None:
            raise TokenizerError(f"No token has the id {number}.", f"The tokenizer has {self.vocab_size:,} tokens.")
        return token

    def spellings(self) -> list[bytes]:
        """The bytes that each token writes, by id: nothing for ids that no token has."""
        return [self._spell(number) for number in range(max(self._pipeline.get_vocab().values(), default=-1) + 1)]

    def get(self, number: int) -> str | None:
        """The token of an id as the vocabulary writes it, or None."""
        token: str | None = self._pipeline.id_to_token(number) if number >= 0 else None
        return token

    def spelling(self, number: int) -> bytes:
        """What a token writes, in bytes, which may be part of a character; none for an id that no token has."""
        return self._spell(number)

    def id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, or None."""
        number: int | None = self._pipeline.token_to_id(token)
        return number

    # ------------------------------------------------------------ messages

    @property
    def source(self) -> Path | None:
        """The folder it was read from, if it was."""
        return self._source

    @property
    def has_template(self) -> bool:
        return bool(self._templates)

    @property
    def template(self) -> str | None:
        """The source of the usual chat template, if there is one."""
        return self._templates.get("default")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
        **variables: Any,
    ) -> str:
        """Messages -> the text the model was trained on, by the checkpoint's chat template.

        The text holds every special token it needs: encode it with `special=False`.

        Args:
            messages: {"role": ..., "content": ...} and what else the template knows.
            tools: JSON schemas of the functions on offer.
            add_generation_prompt: end with the words that begin the assistant's turn.
            now: what the template's clock shows; the time of the call by default.
            variables: further names the template may use, as enable_thinking.

        Raises:
            TokenizerError: there is no template, or it refuses the messages.
        """
        variables.update(tools=tools, add_generation_prompt=add_generation_prompt, now=now)
        return self.render_marked(messages, **variables).text

    def render_marked(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> Rendered:
        """As `render`, together with the parts that the template marks as the assistant's own, for training."""
        name = "tool_use" if variables.get("tools") is not None and "tool_use" in self._templates else "default"
        tokens = {name: token for name, token in self._words.names.items() if self.id(token) is not None}
        return self._template(name).render(messages, **{**tokens, **variables})

    def _template(self, name: str) -> Template:
        from lathe.tokenizer.template import Template

        if name not in self._templates:
            others = f" of that name, only {', '.join(sorted(self._templates))}" if self._templates else ""
            raise TokenizerError(
                f'The conversation needs a chat template, "{name}", and the checkpoint has none{others}.',
                fix="Generate from plain text instead, or put a chat_template.jinja into the model's folder.",
            )
        if name not in self._compiled:
            self._compiled[name] = Template(self._templates[name])
        return self._compiled[name]

    def styled(self, name: str) -> Tokenizer:
        """This tokenizer with a prompt style for its chat template, or with none for "none": plain text.

        The style's stops that are tokens of the vocabulary join `eos_ids`, the others are `stops`.

        Raises:
            UsageError: there is no style of that name.
        """
        return Tokenizer(self._words, {}, self._ends, self._source, name)

    # ------------------------------------------------------------ writing

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into `folder`, in Hugging Face's form.

        One that came from such files is copied, byte for byte, save that a prompt style takes the place of its chat
        templates. The ids that end a turn are generation_config.json's
        and are not written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self._source:
            files.copy(self._source, folder)
            if self.style is not None:
                files.restyle(folder, self.template)
        else:
            before, after = ([self.token(number) for number in ids] for ids in (self._before, self._after))
            files.write(folder, self._words, before, after, self._templates)


def train_bpe(texts: Iterable[str], vocab_size: int, specials: Sequence[str] = ("<|endoftext|>",)) -> Tokenizer:
    """A new byte-level BPE tokenizer: any text round-trips exactly; EOS is the first special, if any; there is no BOS.

    The same texts give the same tokenizer.

    Raises:
        TokenizerError: `vocab_size` has no room for the 256 bytes and the specials.
    """
    names = {"eos_token": specials[0]} if specials else {}
    return Tokenizer(Vocab(bytelevel.learn(texts, vocab_size, specials), names))


def train_characters(texts: Iterable[str], specials: Sequence[str] | None = None) -> Tokenizer:
    """A new tokenizer with a token for each character of `texts`; EOS is the first special, if any; there is no BOS.

    specials: by default <|endoftext|> where there are several texts, and none for a single one, which has no end to be
    learned.

    Raises:
        TokenizerError: there are no characters.
    """
    pipeline, found = characters.learn(texts, specials)
    return Tokenizer(Vocab(pipeline, {"eos_token": found[0]} if found else {}))
