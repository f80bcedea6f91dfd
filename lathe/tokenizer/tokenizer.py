"""One checkpoint's tokenizer: text <-> ids, messages -> text, files -> itself and back.

Does what the checkpoint's files say about chat templates and the end of a turn; knows no file's form, no model and no
tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe.errors import TokenizerError
from lathe.tokenizer import around, files, ggml_reading, ggml_writing, styles
from lathe.tokenizer.encoder import Encoder
from lathe.tokenizer.vocab import Vocab

if TYPE_CHECKING:  # jinja2 is imported when a conversation is first rendered
    from lathe.tokenizer.template import Rendered, Template

_TEMPLATE = "tokenizer.chat_template"  # GGUF's word; a named one has its name behind a dot


class Tokenizer(Encoder):
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
        super().__init__(words)
        self._templates = dict(templates or {})
        self._compiled: dict[str, Template] = {}
        self._ends, self._source, self.style = tuple(ends), source, style
        chosen = None if style is None else styles.style(style)
        if chosen:
            begin = "".join(self.token(number) for number in self._before)
            self._templates = {"default": around.source(chosen, begin)}
        stops = {stop: self.id(stop) for stop in chosen.stops} if chosen else {}
        self.stops = tuple(stop for stop, number in stops.items() if number is None)
        eos = (*self._ends, *words.ends, self.eos_id, *stops.values())
        self.eos_ids = tuple(dict.fromkeys(number for number in eos if number is not None))

    # ------------------------------------------------------------ files

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
        return cls(
            ggml_reading.read(metadata), named | ({"default": metadata[_TEMPLATE]} if _TEMPLATE in metadata else {})
        )

    def to_gguf(self) -> dict[str, Any]:
        """The tokenizer as a GGUF file's metadata: what `from_gguf` takes, and what llama.cpp gives the same ids from.

        Raises:
            TokenizerError: GGUF has no words for it.
        """
        words = ggml_writing.write(self._words, self._before, self._after, self.eos_ids)
        default = {} if self.template is None else {_TEMPLATE: self.template}
        others = {name: text for name, text in self._templates.items() if name != "default"}
        named: dict[str, Any] = {f"{_TEMPLATE}.{name}": text for name, text in others.items()}
        return {**words, **default, **named, **({f"{_TEMPLATE}s": list(others)} if others else {})}

    @property
    def source(self) -> Path | None:
        """The folder it was read from, if it was."""
        return self._source

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into `folder`, in Hugging Face's form.

        One that came from such files is copied, byte for byte, save that a prompt style takes the place of its chat
        templates. The ids that end a turn belong to generation_config.json and are not written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self._source:
            files.copy(self._source, folder)
            if self.style is not None:
                files.restyle(folder, self.template)
        else:
            files.write(folder, self._words, *self._ends_of_text(), self._templates)

    def complete(self, folder: Path) -> None:
        """Writes tokenizer.json into a folder of `save`'s where the vocabulary is only in files that few programs read
        (vocab.json with merges.txt, tiktoken's ranks), and tokenizer_config.json where there is none."""
        if files.common(folder):
            return
        if (folder / "tokenizer_config.json").is_file():
            files.write_vocabulary(folder, self._words, *self._ends_of_text())
        else:
            files.write(folder, self._words, *self._ends_of_text(), {})

    def _ends_of_text(self) -> tuple[list[str], list[str]]:
        return [self.token(number) for number in self._before], [self.token(number) for number in self._after]

    # ------------------------------------------------------------ messages

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
