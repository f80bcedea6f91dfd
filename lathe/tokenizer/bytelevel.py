"""Vocabularies over bytes: how they cut text before merging, as a `tokenizers` pipeline read from files or learned.

Knows the cuts by the names GGUF gives them; knows no special token, no chat template and no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lathe.errors import TokenizerError


@dataclass(frozen=True)
class Cut:
    """How a byte-level vocabulary cuts text; merges happen within each cut.

    Args:
        patterns: applied one after another; each match is a cut of its own.
        nfc: the text is first brought to Unicode's composed form.
        whole: a cut that is itself a token is taken whole, whatever the merges would make of it.
        bos: a text begins with BOS unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole: bool = False
    bos: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELLED_SUFFIX = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_LLAMA3, _QWEN2 = _WORDS % "{1,3}", _WORDS % ""
_MARKS = r"[\p{P}$+<=>^~|`]+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)
_O200K, _TEKKEN = _CASED % (_SUFFIX + "?", _SUFFIX + "?", "{1,3}"), _CASED % ("", "", "")
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
)

# tokenizer.ggml.pre -> the cut of the tokenizer.json it was converted from. A name that is not here is an error. Of
# several names for one cut, the first is the one that llama.cpp knows and that we write.
CUTS: dict[str, Cut] = {
    **dict.fromkeys(("gpt-2", "default", "phi-2", "exaone4", "jais", "trillion"), Cut((_GPT2,))),
    **dict.fromkeys(("olmo", "mpt", "gpt-neox"), Cut((_GPT2,), nfc=True)),
    **dict.fromkeys(("starcoder", "refact", "smollm", "codeshell", "exaone"), Cut((r"\p{N}", _GPT2))),
    "command-r": Cut((r"\p{N}", _GPT2), nfc=True),
    "falcon": Cut((_MARKS, _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), Cut((_LLAMA3,), whole=True, bos=True)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), Cut((_LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), Cut((_QWEN2,), nfc=True)),
    **dict.fromkeys(("stablelm2", "hunyuan"), Cut((_QWEN2,))),
    "deepseek-coder": Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), Cut(_DEEPSEEK3)),
    **dict.fromkeys(("gpt-4o", "llama4", "minimax-m2"), Cut((_O200K,))),
    "tekken": Cut((_TEKKEN,), whole=True, bos=True),
}


def name(pipeline: Tokenizer, whole: bool, reached: bool) -> str | None:
    """The first name in `CUTS` of how a pipeline cuts text; None if there is none.

    One that brings text to its composed form may get the name of one that does not, where no other is there.

    Args:
        whole: its cuts that are tokens are taken whole.
        reached: its merges lead to every token, so that it makes no difference whether they are.
    """
    form = json.loads(pipeline.normalizer.__getstate__()) if pipeline.normalizer else {"normalizers": []}
    normal = [part["type"] for part in form.get("normalizers", [form])]
    if normal not in ([], ["NFC"]):
        return None
    patterns = _patterns(pipeline)
    found = [(name, cut) for name, cut in CUTS.items() if cut.patterns == patterns and (reached or cut.whole == whole)]
    found.sort(key=lambda pair: (pair[1].nfc != bool(normal), pair[1].whole != whole))
    return next((name for name, cut in found if normal or not cut.nfc), None)


def _patterns(pipeline: Tokenizer) -> tuple[str, ...] | None:
    """The patterns by which a pipeline cuts text, one after another; None if it does so in another way."""
    form = json.loads(pipeline.pre_tokenizer.__getstate__()) if pipeline.pre_tokenizer else {}
    patterns: list[str] = []
    for part in form.get("pretokenizers", [form]):
        match part:
            # Patterns that match all text cut it the same whether the matches stay or what is between them goes.
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": how, "invert": inverted} if (
                how,
                inverted,
            ) in (("Isolated", False), ("Removed", True)):
                patterns.append(pattern.replace(_SPELLED_SUFFIX, _SUFFIX))
            case {"type": "Digits", "individual_digits": individual}:
                patterns.append(r"\p{N}" if individual else r"\p{N}+")
            case {"type": "Punctuation", "behavior": "Contiguous"}:
                patterns.append(_MARKS)
            case {"type": "ByteLevel", "add_prefix_space": False}:
                patterns += [_GPT2] * part.get("use_regex", True)
            case _:
                return None
    return tuple(patterns)


_BETWEEN = re.compile(r"(?<=\S\n)(?=\w)")


def divisible(pipeline: Tokenizer) -> bool:
    """Whether a pipeline cuts every text between lines, so that a text's parts give its ids (see `parts`)."""
    return _patterns(pipeline) is not None


def parts(text: str, size: int) -> list[str]:
    """A text cut about every `size` characters, where every cut of `CUTS` falls: between a single line's end and a
    word. Not cut where there is none, and so one part if it has no lines."""
    found, begin = [], 0
    while begin + size < len(text) and (between := _BETWEEN.search(text, begin + size)):
        found.append(text[begin : between.start()])
        begin = between.start()
    return [*found, text[begin:]]


def letters() -> list[str]:
    """The letter that stands for each of the 256 bytes in such a vocabulary (GPT-2's choice).

    A byte that prints stands for itself, the others for U+0100 and on, in order.
    """
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]


def pipeline(model: models.BPE, cut: Cut) -> Tokenizer:
    """Text -> ids by `model` within the cuts of `cut`, and back."""
    made = Tokenizer(model)
    if cut.nfc:
        made.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns]
    to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_letters])
    made.decoder = decoders.ByteLevel()
    return made


def from_files(vocab: Path, merges: Path, tokenizer_class: str) -> Tokenizer:
    """vocab.json and merges.txt, which do not say how they cut text: the class named beside them does.

    Raises:
        TokenizerError: a class whose cut is not known, or files that do not fit together.
    """
    cuts = {"": "gpt-2", "GPT2": "gpt-2", "CodeGen": "gpt-2", "GPTNeoX": "gpt-neox", "Qwen2": "qwen2"}
    name = re.sub(r"Tokenizer(Fast)?$", "", tokenizer_class)
    if name not in cuts:
        raise TokenizerError(
            f"{vocab} belongs to a {tokenizer_class}, and how that cuts text is not known here.",
            fix="Put the model's tokenizer.json beside it.",
        )
    try:
        model = models.BPE.from_file(str(vocab), str(merges))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"{vocab} and {merges.name} do not make a vocabulary: {error}.") from error
    return pipeline(model, CUTS[cuts[name]])


def learn(texts: Iterable[str], size: int, specials: Sequence[str]) -> Tokenizer:
    """A new vocabulary of `size`: `specials` first, then the 256 bytes, then merges learned from `texts`.

    Every byte is in it, so every text round-trips exactly. The same texts give the same vocabulary.
    Source: Sennrich et al. 2016 (byte-pair encoding), Radford et al. 2019 (over bytes).
    """
    least = 256 + len(specials)
    if size < least:
        raise TokenizerError(
            f"A vocabulary of {size} is too small.", f"256 bytes and {len(specials)} special tokens need {least}."
        )
    made = pipeline(models.BPE(), CUTS["dbrx"])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(special, special=True, normalized=False) for special in specials],
        initial_alphabet=letters(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made
