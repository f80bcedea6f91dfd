"""The tokenizer files of a Hugging Face folder -> vocabulary, named tokens, chat templates, ends of a turn; and back.

Knows which file wins where two say different things; knows nothing of how text is encoded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from lathe.errors import MissingError, TokenizerError
from lathe.tokenizer import bytelevel, vocab
from lathe.tokenizer.vocab import Vocab

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_TEMPLATES = ("additional_chat_templates", "chat_templates")  # folders of further templates, by newer and older name


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file} is not JSON: {error}.", fix="Download it again.") from error
    if not isinstance(value, dict):
        raise _unlike(file)
    return value


def _unlike(file: Path) -> TokenizerError:
    return TokenizerError(f"{file} is not made as such files are.", fix="Download it again.")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise _unlike(file) from None


def words(folder: Path, config: Mapping[str, Any]) -> Vocab:
    """The folder's vocabulary, with the special tokens that its configuration adds and names.

    Args:
        config: tokenizer_config.json.

    Raises:
        MissingError: there is none.
        TokenizerError: a file cannot be read, or two contradict each other.
    """
    found = _vocabulary(folder, config)
    _add(found.pipeline, folder, config)
    names, others = _named(folder, config)
    names = {**found.names, **names}
    _make_special(found.pipeline, [*names.values(), *others])
    # Beside a tokenizer.json, "add_bos_token": false is no more than a default that nobody set: what its
    # post-processor adds is what the model was trained with. A true is obeyed.
    ends = {flag: config.get(f"{flag}_token") for flag in ("add_bos", "add_eos")}
    flags = {flag: getattr(found, flag) if says is None else bool(says) for flag, says in ends.items()}
    return Vocab(found.pipeline, names, **flags, ends=found.ends, leading_space=found.leading_space)


def _vocabulary(folder: Path, config: Mapping[str, Any]) -> Vocab:
    whole, model, merges = folder / "tokenizer.json", folder / "tokenizer.model", folder / "merges.txt"
    if whole.is_file():
        try:
            return Vocab(tokenizers.Tokenizer.from_file(str(whole)), {})
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"{whole} cannot be read: {error}.", fix="Download it again.") from error
    if model.is_file():
        data = model.read_bytes()
        if vocab.is_tiktoken(data):
            return vocab.tiktoken(data)
        return vocab.sentencepiece(data, every_part=config.get("legacy") is not False)
    if merges.is_file() and (folder / "vocab.json").is_file():
        tokenizer_class = str(config.get("tokenizer_class") or "")
        return Vocab(bytelevel.from_files(folder / "vocab.json", merges, tokenizer_class), {})
    raise MissingError(
        f"There is no tokenizer in {folder}.",
        "A tokenizer.json, a tokenizer.model, or a vocab.json with merges.txt was looked for.",
        "Copy the model's tokenizer files there.",
    )


def _add(pipeline: tokenizers.Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """Adds the tokens that tokenizer_config.json or added_tokens.json lists and the vocabulary's file lacks."""
    listed = []
    for content, number in read_json(folder / "added_tokens.json").items():
        if not isinstance(number, int):
            raise _unlike(folder / "added_tokens.json")
        listed.append((number, AddedToken(content, normalized=False)))
    for number, entry in (config.get("added_tokens_decoder") or {}).items():
        if not number.isdigit() or not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise _unlike(folder / "tokenizer_config.json")
        flags = {flag: bool(entry.get(flag)) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        listed.append((int(number), AddedToken(entry["content"], **flags)))
    for number, token in sorted(listed, key=lambda pair: pair[0]):
        if pipeline.token_to_id(token.content) is None:
            pipeline.add_tokens([token])
        if (place := pipeline.token_to_id(token.content)) != number:
            raise TokenizerError(
                f"The tokenizer files in {folder} contradict each other: {token.content!r} is listed with the id "
                f"{number}, and in the vocabulary it has {place}.",
                fix="Download the tokenizer's files again, all from one place.",
            )


def _named(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The special tokens that have a name, {"bos_token": "<s>", ...}, and those that are only listed."""

    def content(value: Any) -> Any:
        return value.get("content") if isinstance(value, dict) else value

    # Where tokenizer_config.json lists the added tokens, the older special_tokens_map.json is no longer read.
    older = {} if "added_tokens_decoder" in config else read_json(folder / "special_tokens_map.json")
    entries = {**config, **older}
    names = {name: content(value) for name, value in entries.items() if name.endswith("_token")}
    others = [
        content(value)
        for name in ("additional_special_tokens", "extra_special_tokens")
        for value in entries.get(name) or ()
    ]
    return {name: text for name, text in names.items() if isinstance(text, str)}, others


def _make_special(pipeline: tokenizers.Tokenizer, tokens: Iterable[str]) -> None:
    """Has these tokens found in text and left out of decoded text, as the vocabulary's own special tokens are."""
    special = {token.content for token in pipeline.get_added_tokens_decoder().values() if token.special}
    known = [token for token in dict.fromkeys(tokens) if pipeline.token_to_id(token) is not None]
    pipeline.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in known if token not in special]
    )


def templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; files of their own come before what tokenizer_config.json holds."""
    inner = config.get("chat_template") or {}
    try:
        found = {"default": inner} if isinstance(inner, str) else {entry["name"]: entry["template"] for entry in inner}
    except (KeyError, TypeError):
        raise _unlike(folder / "tokenizer_config.json") from None
    if isinstance(older := read_json(folder / "chat_template.json").get("chat_template"), str):
        found["default"] = older
    for name in _TEMPLATES:
        found |= {file.stem: _text(file) for file in sorted((folder / name).glob("*.jinja"))}
    if (file := folder / "chat_template.jinja").is_file():
        found["default"] = _text(file)
    return found


def ends_of_turn(folder: Path) -> list[int]:
    """The ids of generation_config.json's eos_token_id, one or many; an older folder has them in config.json."""
    ends = read_json(folder / "generation_config.json").get("eos_token_id")
    if ends is None:
        config = read_json(folder / "config.json")
        ends = config.get("eos_token_id", (config.get("text_config") or {}).get("eos_token_id"))
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def copy(source: Path, target: Path) -> None:
    """Copies every file of a folder's tokenizer as it is."""
    if source.resolve() == target.resolve():
        return
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for name in _TEMPLATES:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)


def restyle(folder: Path, source: str | None) -> None:
    """Puts a chat template in the place of all those in a folder; None for none."""
    for name in _TEMPLATES:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    config = read_json(folder / "tokenizer_config.json")
    if config.pop("chat_template", None) is not None:
        _write_json(folder / "tokenizer_config.json", config)
    if source is not None:
        (folder / "chat_template.jinja").write_text(source, encoding="utf-8")


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def common(folder: Path) -> bool:
    """Whether the vocabulary is in a file that every program reads: tokenizer.json, or a SentencePiece model."""
    model = folder / "tokenizer.model"
    pieces = model.is_file() and not vocab.is_tiktoken(model.read_bytes())
    return pieces or (folder / "tokenizer.json").is_file()


def write_vocabulary(target: Path, found: Vocab, before: Sequence[str], after: Sequence[str]) -> None:
    """Writes tokenizer.json. before, after: the tokens at either end of a text, which travel in it."""
    pipeline = tokenizers.Tokenizer.from_str(found.pipeline.to_str())
    ids = {token: pipeline.token_to_id(token) for token in (*before, *after)}
    pipeline.post_processor = TemplateProcessing(single=[*before, "$A", *after], special_tokens=list(ids.items()))
    (target / "tokenizer.json").write_text(pipeline.to_str(pretty=True), encoding="utf-8")


def write(target: Path, found: Vocab, before: Sequence[str], after: Sequence[str], sources: Mapping[str, str]) -> None:
    """Writes a tokenizer that came from no such folder, so that `words` and transformers read the same ids from it.

    Args:
        before, after: the tokens at either end of a text.
        sources: chat templates by name.
    """
    write_vocabulary(target, found, before, after)
    config = {
        **found.names,
        "add_bos_token": bool(before),
        "add_eos_token": bool(after),
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(target / "tokenizer_config.json", config)
    for name, source in sources.items():
        file = target / ("chat_template.jinja" if name == "default" else f"{_TEMPLATES[0]}/{name}.jinja")
        file.parent.mkdir(exist_ok=True)
        file.write_text(source, encoding="utf-8")
