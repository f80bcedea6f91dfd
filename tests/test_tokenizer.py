"""Tokenizers against what defines them: transformers, sentencepiece, and llama.cpp's table of texts and ids."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lathe.errors import MissingError, TokenizerError, UsageError
from lathe.tokenizer import StopStrings, Tokenizer, train_bpe
from lathe.tokenizer.bytelevel import CUTS, letters

WHOLE = ["gpt2", "minimind", "phi-3-mini", "pythia-gpt-neox-20b", "qwen3"]  # folders with a tokenizer.json
SENTENCEPIECE = ["llama-2", "mistral-7b-v0.1"]

HELLO = [{"role": "user", "content": "Hello"}]
PLAIN = [
    *("", " ", "  ", "a", " a", "a ", "   leading", "trailing   ", "two  three   four    spaces", "\t", "\n", "\r\n"),
    *("\n\n\n x", " \t \n", "tabs\t\tand\nlines\r\nof\x0ball\x0ckinds", "nul \x00 bell \x07 escape \x1b delete \x7f"),
    *(
        "Hello, World! It's we'LL you'Ve 'S 't",
        "12 123 1234 12345 3.14 ½ ² ٣٤ १२",
        "naïve café Führer œuvre",
        "e\u0301 ﬁ ﷺ",
    ),
    *(
        "日本語のテキスト、漢字かな交じり文。",
        "中文字符　全角空格",
        "한국어 문장입니다",
        "กำลังทดสอบ",
        "កាន់តែពិសេស",
        "नमस्ते दुनिया",
    ),
    *(
        "שלום עולם",
        "مرحبا بالعالم",
        "\u202eright to left\u202c \u200fmark",
        "a\u200bb\u200dc\ufeffd\u00a0e\u2028f\u3000g",
    ),
    *("🦙", "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪", "é🦙é", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈", "\U0010ffff\ufffd\ufffe", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!"),
    *(
        "▁ ▁▁ ▁x▁",
        "Ġ Ċ Ã©",
        "<0x0A> <0xZZ> <0x41>",
        "def f(x):\n    return x ** 2  # 100%\n\n\n",
        "https://a.b/c?d=e&f=%20",
    ),
    *("!!!!!!", "=" * 100, "x" * 1000, "ab" * 700, "aAaA" * 99, *(f"x{' ' * size}y" for size in range(2, 70))),
]


@pytest.fixture(scope="session")
def long(shared: Path) -> list[str]:
    """Real text in many scripts: short stretches, and one of 100,000 characters."""
    web = (shared / "data/text/c4_sample.jsonl").read_text(encoding="utf-8")
    play = (shared / "data/text/tinyshakespeare.txt").read_text(encoding="utf-8")
    return [*(web[at : at + 500] for at in range(0, 200_000, 4_000)), (play + web)[1_065_394:1_165_394]]


def gguf(file: Path) -> Tokenizer:
    """The tokenizer of a GGUF file, as the reader made by the format's authors sees its metadata."""
    reader = GGUFReader(file)
    return Tokenizer.from_gguf({key: field.contents() for key, field in reader.fields.items()})


@pytest.fixture(scope="session")
def ggufs(shared: Path) -> dict[str, Tokenizer]:
    files = [*(shared / "data/formats/gguf-vocab").glob("*.gguf")]
    files += (shared / "data/models/stories260K-gguf").glob("*f32.gguf")
    return {file.stem: gguf(file) for file in files}


@pytest.fixture(scope="session")
def llama3(shared: Path) -> Tokenizer:
    return Tokenizer.open(shared / "data/tokenizers/llama-3")


def with_specials(tokens: Iterable[str]) -> list[str]:
    """Texts with every special token in them: alone, at the ends, between words and with spaces around."""
    texts = [f"{token}a {token} b{token}{token}\n{token} " for token in tokens]
    return [*texts, "".join(tokens), " x ".join(tokens)]


# ---------------------------------------------------------------- the same ids


@pytest.mark.parametrize("name", WHOLE)
def test_ids_and_text_are_those_of_transformers(shared: Path, long: list[str], name: str) -> None:
    folder = shared / "data/tokenizers" / name
    ours, theirs = Tokenizer.open(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    assert ours.vocab_size == len(theirs)
    assert (ours.bos, ours.bos_id) == (theirs.bos_token, theirs.bos_token_id)
    assert (ours.eos, ours.eos_id) == (theirs.eos_token, theirs.eos_token_id)
    assert ours.eos_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    for text in [*PLAIN, *long, *with_specials(theirs.added_tokens_encoder)]:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, special=False) == ids
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids)


def test_vocab_and_merges_are_read_as_their_class_cuts_text(shared: Path, long: list[str]) -> None:
    folder = shared / "data/tokenizers/qwen2.5"
    ours, theirs = Tokenizer.open(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(theirs)
    for text in [*PLAIN, *long, *with_specials(theirs.added_tokens_encoder)]:
        assert ours.encode(text) == theirs.encode(text)


def test_vocab_and_merges_of_gpt2_are_its_tokenizer_json(shared: Path, long: list[str], tmp_path: Path) -> None:
    folder = shared / "data/tokenizers/gpt2"
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(folder / file, tmp_path)
    pair, whole = Tokenizer.open(tmp_path), Tokenizer.open(folder)
    assert all(pair.encode(text) == whole.encode(text) for text in [*PLAIN, *long])


def spelled(model: sentencepiece.SentencePieceProcessor, text: str, first_only: bool = False) -> list[int]:
    """The ids of a text with special tokens in it, by encoding the parts between them on their own."""
    specials = {model.id_to_piece(number): number for number in range(3)}
    ids = []
    for at, part in enumerate(re.split("(<unk>|<s>|</s>)", text)):
        if part in specials:
            ids.append(specials[part])
        elif first_only and at:  # a line before it keeps the model from putting a space there
            ids += model.encode("\n" + part)[len(model.encode("\n")) :]
        else:
            ids += model.encode(part)
    return ids


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_ids_are_those_of_sentencepiece(shared: Path, long: list[str], name: str) -> None:
    # transformers 5 is no oracle here: it takes one space from every text that begins with spaces, where the models
    # were trained with sentencepiece's ids.
    folder = shared / "data/tokenizers" / name
    model = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    ours = Tokenizer.open(folder)
    assert (ours.bos, ours.bos_id, ours.eos_ids, ours.vocab_size) == ("<s>", 1, (2,), len(model))
    for text in [*PLAIN, *long, *with_specials(["<s>", "</s>", "<unk>"])]:
        ids = spelled(model, text)
        assert ours.encode(text, special=False) == ids
        assert ours.encode(text) == (ids if ids[:1] == [1] else [1, *ids])
    pieces = [model.id_to_piece(number).replace("▁", " ") for number in range(259, len(model))]
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices(pieces, k=draw.randint(1, 20)))
        assert ours.encode(text, special=False) == model.encode(text)


def test_without_legacy_only_the_first_part_gets_a_space(shared: Path, tmp_path: Path) -> None:
    shutil.copy(shared / "data/tokenizers/llama-2/tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "legacy": false}')
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    ours = Tokenizer.open(tmp_path)
    for text in [*PLAIN, "a<s>b</s> c", "<s>[INST] hi [/INST]"]:
        assert ours.encode(text, special=False) == spelled(model, text, first_only=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byte_fallback": True, "normalization_rule_name": "identity"},
        {"remove_extra_whitespaces": False, "add_dummy_prefix": False, "normalization_rule_name": "identity"},
        {"normalization_rule_name": "nfkc_cf", "split_by_whitespace": False},
    ],
    ids=lambda options: " ".join(options) or "defaults",
)
def test_any_kind_of_sentencepiece_bpe(shared: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    lines = (shared / "data/text/tinyshakespeare.txt").read_text()[:60_000].split("\n")
    with (tmp_path / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*lines, "ﬁ ① ｆｕｌｌ width é e\u0301 日本語"] * 2),
            model_writer=file,
            model_type="bpe",
            vocab_size=600,
            minloglevel=2,
            **options,
        )
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    ours = Tokenizer.open(tmp_path)
    draw = random.Random(0)
    mixed = ("".join(draw.choices(" \n\tabthé中🦙①ﬁ▁\u00a0", k=draw.randint(1, 40))) for _ in range(1000))
    for text in [*PLAIN, *lines, *mixed]:
        assert ours.encode(text, special=False) == model.encode(text)


def test_ids_are_the_table_that_llama_cpp_tests_with(
    shared: Path, ggufs: dict[str, Tokenizer], llama3: Tokenizer
) -> None:
    data = shared / "data"
    pairs = [
        *((tokenizer, name[11:]) for name, tokenizer in ggufs.items() if name.startswith("ggml-vocab-")),
        (Tokenizer.open(data / "tokenizers/gpt2"), "gpt-2"),
        (Tokenizer.open(data / "tokenizers/llama-2"), "llama-spm"),
        (llama3, "llama-bpe"),  # Meta's own file of tiktoken ranks
        (Tokenizer.open(data / "tokenizers/phi-3-mini"), "phi-3"),
        (Tokenizer.open(data / "tokenizers/qwen2.5"), "qwen2"),
        (Tokenizer.open(data / "tokenizers/qwen3"), "qwen2"),
    ]
    for tokenizer, name in pairs:
        texts = data / f"formats/gguf-vocab/ggml-vocab-{name}.gguf.inp"
        ids = texts.with_suffix(".out").read_text().split("\n")
        with texts.open(encoding="utf-8", newline="") as file:
            for text, expected in zip(file.read().split("\n__ggml_vocab_test__\n"), ids, strict=True):
                assert tokenizer.encode(text, special=False) == [int(number) for number in expected.split()], (
                    name,
                    text,
                )


# ---------------------------------------------------------------- GGUF


def test_gguf_gives_the_ids_of_the_files_it_was_made_from(
    shared: Path, long: list[str], ggufs: dict[str, Tokenizer]
) -> None:
    made = {
        "ggml-vocab-gpt-2": "tokenizers/gpt2",
        "ggml-vocab-llama-spm": "tokenizers/llama-2",
        "stories260K-f32": "models/stories260K-hf",
    }
    for name, source in made.items():
        theirs, ours = Tokenizer.open(shared / "data" / source), ggufs[name]
        assert ours.vocab_size == theirs.vocab_size
        for text in [*PLAIN, *long, *with_specials(["<s>", "</s>", "<unk>", "<|endoftext|>"])]:
            ids = theirs.encode(text)
            assert ours.encode(text) == ids
            assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("with_model", [False, True], ids=["alone", "in a Llama's folder"])
def test_gguf_saved_is_read_the_same_by_lathe_and_transformers(
    ggufs: dict[str, Tokenizer], long: list[str], tmp_path: Path, with_model: bool
) -> None:
    for name, tokenizer in ggufs.items():
        folder = tmp_path / name
        tokenizer.save(folder)
        if with_model:
            (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
        again, theirs = Tokenizer.open(folder), AutoTokenizer.from_pretrained(folder)
        assert (again.bos, again.bos_id, again.eos_ids) == (tokenizer.bos, tokenizer.bos_id, tokenizer.eos_ids)
        assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_ids[0])
        assert again.vocab_size == tokenizer.vocab_size == len(theirs)
        specials = list(theirs.added_tokens_encoder)[:20]
        for text in [*PLAIN, long[0], long[-1][:5000], *with_specials(specials)]:
            ids = tokenizer.encode(text, special=False)
            assert again.encode(text, special=False) == ids == theirs.encode(text, add_special_tokens=False)
            if not text.startswith(tokenizer.bos or "\0"):
                assert again.encode(text) == tokenizer.encode(text) == theirs.encode(text)


FOLDERS = [f"tokenizers/{name}" for name in (*WHOLE, *SENTENCEPIECE, "llama-3", "qwen2.5")]


@pytest.mark.parametrize("name", [*FOLDERS, "models/stories260K-hf"])
def test_gguf_metadata_of_ours_gives_our_ids_again(shared: Path, long: list[str], name: str) -> None:
    ours = Tokenizer.open(shared / "data" / name)
    metadata = ours.to_gguf()
    again = Tokenizer.from_gguf(metadata)
    assert again.to_gguf() == metadata
    assert again.eos_ids == ours.eos_ids and again.template == ours.template
    assert (again.bos, again.vocab_size) == (ours.bos, ours.vocab_size)
    specials = [ours.token(number) for number in range(ours.vocab_size) if number in ours.special_ids][:40]
    for text in [*PLAIN, *long, *with_specials(specials)]:
        # Phi-3's special tokens take the spaces after them, for which GGUF has no word.
        text = re.sub(r"(?<=>)\s+", "", text) if name.endswith("phi-3-mini") else text
        ids = ours.encode(text)
        assert again.encode(text) == ids
        assert again.decode(ids) == ours.decode(ids)
        assert again.decode(ids, skip_special=False) == ours.decode(ids, skip_special=False)
    if ours.has_template:
        assert again.render(HELLO) == ours.render(HELLO)


def test_gguf_metadata_of_a_gguf_file_says_the_same(ggufs: dict[str, Tokenizer], shared: Path) -> None:
    for file in (shared / "data/formats/gguf-vocab").glob("*.gguf"):
        told = {key: field.contents() for key, field in GGUFReader(file).fields.items() if key.startswith("tokenizer")}
        written = ggufs[file.stem].to_gguf()
        for key in told.keys() - {"tokenizer.ggml.scores", "tokenizer.ggml.merges"}:
            assert written[key] == told[key], key
        assert set(written.get("tokenizer.ggml.merges", ())) == set(told.get("tokenizer.ggml.merges", ()))


@pytest.mark.parametrize("name", ["gpt2", "pythia-gpt-neox-20b", "qwen3", "minimind", "llama-3"])
def test_how_text_is_cut_is_recognised_and_not_guessed_from_a_name(shared: Path, name: str) -> None:
    pre = {"pythia-gpt-neox-20b": "olmo", "qwen3": "qwen2", "llama-3": "llama-bpe"}.get(name, "gpt-2")
    assert Tokenizer.open(shared / "data/tokenizers" / name).to_gguf()["tokenizer.ggml.pre"] == pre


@pytest.mark.parametrize("name", CUTS)
def test_every_cut_that_is_read_is_written_as_one_of_its_names(name: str) -> None:
    metadata = {"model": "gpt2", "pre": name, "tokens": [*letters(), "ab"], "merges": ["a b"]}
    read = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    written = read.to_gguf()["tokenizer.ggml.pre"]
    assert CUTS[written].patterns == CUTS[name].patterns and CUTS[written].whole == CUTS[name].whole


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "cuts text in a way"),
        ({"normalizer": {"type": "NFKC"}}, "cuts text in a way"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "<s>": 1, "</s>": 2}, "unk_token": "a"}}, "kind WordLevel"),
        (
            {
                "model": {
                    "type": "BPE",
                    "vocab": {t: n for n, t in enumerate(["<s>", "</s>", "a", "▁", "▁a"])},
                    "merges": [],
                },
                "decoder": {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            },
            "no scores",
        ),
    ],
)
def test_what_gguf_cannot_say_is_not_written(tmp_path: Path, parts: dict[str, Any], said: str) -> None:
    with pytest.raises(TokenizerError, match=said):
        Tokenizer.open(small(tmp_path, **parts)).to_gguf()


@pytest.mark.parametrize("cut", CUTS)
def test_no_cut_loses_a_character(cut: str) -> None:
    metadata = {"model": "gpt2", "pre": cut, "tokens": [*letters(), "ab"], "merges": ["a b"]}
    tokenizer = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    for text in PLAIN:
        whole = unicodedata.normalize("NFC", text) if CUTS[cut].nfc else text
        assert tokenizer.decode(tokenizer.encode(text)) == whole


def test_gguf_special_ids_and_templates() -> None:
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<turn>", "a", "▁", "▁a", "  ", "<pad>"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, -2.0, -3.0, -1.0, 0.0, 0.0],
        "tokenizer.ggml.token_type": [2, 3, 3, 3, 1, 1, 1, 4, 5],
        "tokenizer.ggml.eot_token_id": 3,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.chat_template": "usual",
        "tokenizer.chat_template.tool_use": "with tools",
    }
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.eos_ids == (3, 2)
    assert tokenizer.encode("a a  a<turn>") == [1, 4, 6, 7, 4, 3, 2]
    assert tokenizer.encode("z", special=False) == [0]
    assert tokenizer.render([{"role": "user"}]) == "usual"
    assert tokenizer.render([{"role": "user"}], tools=[]) == "with tools"
    with_prefix = Tokenizer.from_gguf({**metadata, "tokenizer.ggml.add_space_prefix": True})
    assert with_prefix.encode("a", special=False) == [6]
    without_bos = Tokenizer.from_gguf({**metadata, "tokenizer.ggml.add_bos_token": False})
    assert without_bos.encode("a") == [4, 2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "bert"}, "'bert'"),
        ({"tokens": []}, "no tokenizer"),
        ({"pre": "a-new-one"}, "'a-new-one'"),
        ({"merges": None}, "lacks its merges"),
        ({"merges": ["a z"]}, "merges do not fit"),
        ({"tokens": ["a", "b", "a"]}, "'a' twice"),
        ({"token_type": [1]}, "differ in number"),
    ],
)
def test_gguf_that_does_not_fit_together_is_refused(changed: dict[str, Any], said: str) -> None:
    metadata = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "merges": ["a b"], **changed}
    with pytest.raises((MissingError, TokenizerError), match=said):
        Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})


# ---------------------------------------------------------------- the ends of a text


def small(tmp_path: Path, config: dict[str, Any] | None = None, **parts: Any) -> Path:
    """A folder with a small tokenizer.json: `a` is 2, <s> is 0, </s> is 1; `parts` replace parts of the file."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    form = {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "<s>", **special}, {"id": 1, "content": "</s>", **special}],
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {"<s>": 0, "</s>": 1, "a": 2, "<end>": 3}, "merges": []},
        **parts,
    }
    tmp_path.mkdir(parents=True, exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(json.dumps(form))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return tmp_path


def adds(*tokens: str) -> dict[str, Any]:
    """A post-processor that puts the tokens around the text, which is called A."""
    single = [
        {"Sequence": {"id": "A", "type_id": 0}} if t == "A" else {"SpecialToken": {"id": t, "type_id": 0}}
        for t in tokens
    ]
    names = {"<s>": 0, "</s>": 1}
    special = {t: {"id": t, "ids": [names[t]], "tokens": [t]} for t in tokens if t != "A"}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}


@pytest.mark.parametrize(
    ("config", "processor", "expected"),
    [
        ({}, None, [2]),
        ({}, adds("<s>", "A"), [0, 2]),
        ({}, adds("<s>", "A", "</s>"), [0, 2, 1]),
        ({"bos_token": "<s>"}, adds("A"), [2]),
        ({"bos_token": "<s>", "add_bos_token": True}, None, [0, 2]),
        ({"bos_token": "<s>", "add_bos_token": True}, adds("<s>", "A"), [0, 2]),
        ({"bos_token": {"content": "<s>"}, "add_bos_token": True}, adds("A"), [0, 2]),
        ({"bos_token": "<s>", "add_bos_token": False}, adds("<s>", "A"), [0, 2]),
        ({"eos_token": "</s>", "add_eos_token": True}, adds("<s>", "A"), [0, 2, 1]),
        ({"bos_token": None, "add_bos_token": True}, None, [2]),
        ({"bos_token": "<not there>", "add_bos_token": True}, None, [2]),
    ],
)
def test_the_files_say_what_stands_at_the_ends(
    tmp_path: Path, config: dict[str, Any], processor: dict[str, Any] | None, expected: list[int]
) -> None:
    tokenizer = Tokenizer.open(small(tmp_path, config, post_processor=processor))
    assert tokenizer.encode("a") == expected
    assert tokenizer.encode("a", special=False) == [2]


def test_bos_is_never_doubled(tmp_path: Path) -> None:
    tokenizer = Tokenizer.open(small(tmp_path, post_processor=adds("<s>", "A")))
    assert tokenizer.encode("<s>a") == tokenizer.encode("a") == [0, 2]
    assert tokenizer.encode("a<s>") == [0, 2, 0]
    assert tokenizer.encode("") == [0]


def test_the_folders_name_says_nothing(llama3: Tokenizer, tmp_path: Path) -> None:
    # LitGPT adds BOS to Llama 3 by the name of the folder, so that the model finetuned into out/.../final has none.
    for folder in (tmp_path / "Llama-3-8B", tmp_path / "final"):
        llama3.save(folder)
        assert Tokenizer.open(folder).encode("Hello") == [128000, 9906]


def test_ends_of_a_turn(tmp_path: Path) -> None:
    folder = small(tmp_path, {"eos_token": "</s>"})
    assert Tokenizer.open(folder).eos_ids == (1,)
    (folder / "config.json").write_text('{"eos_token_id": 3}')
    assert Tokenizer.open(folder).eos_ids == (3, 1)
    (folder / "config.json").write_text('{"text_config": {"eos_token_id": [3, 2]}}')
    assert Tokenizer.open(folder).eos_ids == (3, 2, 1)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 3]}')
    assert Tokenizer.open(folder).eos_ids == (1, 3)


def test_special_tokens_named_or_listed_beside_the_vocabulary(tmp_path: Path) -> None:
    folder = small(tmp_path, {"eos_token": "<old>"})
    (folder / "special_tokens_map.json").write_text(
        '{"eos_token": {"content": "<end>"}, "additional_special_tokens": ["<extra>"]}'
    )
    (folder / "added_tokens.json").write_text('{"<extra>": 4}')
    tokenizer = Tokenizer.open(folder)
    assert tokenizer.eos_ids == (3,)
    assert tokenizer.encode("a<end>a<extra>") == [2, 3, 2, 4]
    assert tokenizer.decode([2, 3, 2, 4]) == "aa"
    assert tokenizer.decode([2, 3, 2, 4], skip_special=False) == "a<end>a<extra>"
    assert tokenizer.vocab_size == 5


def test_truncation_and_padding_of_a_training_run_are_not_obeyed(tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"}
    assert Tokenizer.open(small(tmp_path, truncation=truncation, padding=padding)).encode("aaa") == [2, 2, 2]


def test_tokens_by_id_and_ids_by_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer.open(small(tmp_path))
    assert (tokenizer.token(3), tokenizer.id("<end>"), tokenizer.id("b")) == ("<end>", 3, None)
    for number in (4, -1):
        with pytest.raises(TokenizerError, match="No token has the id"):
            tokenizer.token(number)


# ---------------------------------------------------------------- ids -> text


@pytest.mark.parametrize("name", WHOLE)
def test_random_ids_decode_as_transformers_decodes_them(shared: Path, name: str) -> None:
    folder = shared / "data/tokenizers" / name
    ours, theirs = Tokenizer.open(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    draw = random.Random(0)
    for _ in range(1000):
        ids = draw.choices(range(ours.vocab_size + 5), k=draw.randint(0, 12))
        for skip in (True, False):
            text = theirs.decode(ids, skip_special_tokens=skip)
            # Where byte tokens make no character, transformers gives up all of their neighbours with them.
            assert ours.decode(ids, skip_special=skip) == text or (name == "phi-3-mini" and "\ufffd" in text)


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_random_ids_decode_as_sentencepiece_decodes_them(shared: Path, name: str) -> None:
    folder = shared / "data/tokenizers" / name
    ours = Tokenizer.open(folder)
    model = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    draw = random.Random(0)
    for ids in (draw.choices(range(3, size), k=draw.randint(0, 14)) for size in [300, len(model)] * 1000):
        if model.id_to_piece(ids[:1]) != ["<0x20>"]:  # a space spelled as a byte is dropped at the beginning by us
            assert ours.decode(ids) == model.decode(ids)


@pytest.fixture(scope="session")
def streamed(shared: Path) -> list[Tokenizer]:
    names = ("minimind", "phi-3-mini", "llama-2")
    return [Tokenizer.open(shared / "data/tokenizers" / name) for name in names]


@settings(max_examples=200, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 33_000) | st.integers(0, 270), max_size=30),
    skip=st.booleans(),
    cut=st.integers(0, 30),
)
def test_pieces_end_to_end_are_the_text(streamed: list[Tokenizer], numbers: list[int], skip: bool, cut: int) -> None:
    for tokenizer in streamed:
        stream = tokenizer.stream(skip_special=skip)
        pieces = [*map(stream.push, numbers), stream.flush()]
        text = tokenizer.decode(numbers, skip_special=skip)
        assert "".join(pieces) == text
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)
        shown = tokenizer.stream(skip_special=skip)
        before = "".join(map(shown.push, numbers[:cut]))
        rest = tokenizer.stream(after=numbers[:cut], skip_special=skip)
        assert before + "".join(map(rest.push, numbers[cut:])) + rest.flush() == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_text_streams_character_by_character(streamed: list[Tokenizer], text: str) -> None:
    for tokenizer in streamed[:2]:
        stream, shown = tokenizer.stream(), ""
        for number in tokenizer.encode(text, special=False):
            shown += stream.push(number)
            assert text.startswith(shown)
        assert shown + stream.flush() == text


def test_characters_appear_when_whole_and_words_with_their_space(shared: Path) -> None:
    tokenizer = Tokenizer.open(shared / "data/tokenizers/llama-2")
    ids = tokenizer.encode("né 🔥 fire", special=False)
    stream = tokenizer.stream()
    assert [stream.push(number) for number in ids] == ["né", " ", "", "", "", "🔥", " fire"]
    stream = tokenizer.stream(after=tokenizer.encode("Once upon"))
    assert [stream.push(number) for number in tokenizer.encode("a time", special=False)] == [" a", " time"]
    # A text that ends within a character keeps all its whole ones.
    assert tokenizer.decode(ids[:-2]) == "né \ufffd\ufffd\ufffd"


def test_a_decoder_that_is_not_known_is_named(tmp_path: Path) -> None:
    ctc = json.loads(decoders.CTC().__getstate__())
    with pytest.raises(TokenizerError, match="CTC"):
        Tokenizer.open(small(tmp_path, decoder=ctc))
    assert Tokenizer.open(small(tmp_path, decoder=json.loads(decoders.Metaspace().__getstate__()))).decode([2]) == "a"


# ---------------------------------------------------------------- stop strings


@settings(max_examples=500)
@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_show_what_comes_before_the_first_to_be_complete(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    complete = [(at, text[:at]) for at in range(len(text) + 1) if text[:at].endswith(tuple(stops))] if stops else []
    if complete:
        end, begun = complete[0]
        expected = text[: end - max(len(stop) for stop in stops if begun.endswith(stop))]
    else:
        expected = text
    held = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += held.push(piece)
        assert expected.startswith(shown)
    assert held.stopped == bool(complete)
    assert shown + held.flush() == expected


def test_text_is_held_no_longer_than_it_must_be() -> None:
    held = StopStrings(["</end>", "STOP"])
    pieces = ["a <", "b", "> ST", "AND <", "/en", "d", "> more", "more"]
    assert [held.push(piece) for piece in pieces] == ["a ", "<b", "> ", "STAND ", "", "", "", ""]
    assert held.stopped and held.flush() == ""
    with pytest.raises(UsageError, match="empty"):
        StopStrings([""])


# ---------------------------------------------------------------- files that cannot be used


def test_files_that_cannot_be_used_are_named(shared: Path, tmp_path: Path) -> None:
    def refuses(error: type[Exception], said: str, **files: bytes | str) -> None:
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (folder / name.replace("__", ".")).write_bytes(data)
        with pytest.raises(error, match=said):
            Tokenizer.open(folder)

    whole = (shared / "data/tokenizers/llama-2/tokenizer.model").read_bytes()
    ranks = (shared / "data/tokenizers/llama-3/tokenizer.model").read_bytes()
    unigram = io.BytesIO()
    lines = (shared / "data/text/the-verdict.txt").read_text().split("\n")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=unigram, vocab_size=200, minloglevel=2
    )
    small(tmp_path / "small")
    good = (tmp_path / "small/tokenizer.json").read_bytes()

    refuses(MissingError, "no tokenizer in")
    refuses(TokenizerError, "tokenizer.json cannot be read", tokenizer__json="{")
    refuses(TokenizerError, "tokenizer_config.json is not JSON", tokenizer__json=good, tokenizer_config__json="{,")
    refuses(TokenizerError, "is not made as", tokenizer__json=good, tokenizer_config__json="[]")
    refuses(TokenizerError, "is not made as", tokenizer__json=good, added_tokens__json='{"a": "2"}')
    refuses(TokenizerError, "is not made as", tokenizer__json=good, chat_template__jinja=b"\xff")
    listed = '{"added_tokens_decoder": {"2": {"text": "a"}}}'
    refuses(TokenizerError, "is not made as", tokenizer__json=good, tokenizer_config__json=listed)
    refuses(TokenizerError, "contradict each other", tokenizer__json=good, added_tokens__json='{"a": 7}')
    lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 499723\n"
    refuses(TokenizerError, "Git LFS", tokenizer__model=lfs)
    refuses(TokenizerError, "cut short", tokenizer__model=whole[:1000])
    refuses(TokenizerError, "unigram", tokenizer__model=unigram.getvalue())
    refuses(TokenizerError, "breaks off", tokenizer__model=ranks[:1000])
    refuses(TokenizerError, "does not say how text is cut", tokenizer__model=ranks[: ranks.index(b"\n", 1000)])
    pair = {"vocab__json": '{"a": 0}', "merges__txt": "#version: 0.2\n"}
    refuses(TokenizerError, "NewTokenizer", **pair, tokenizer_config__json='{"tokenizer_class": "NewTokenizer"}')
    refuses(TokenizerError, "do not make a vocabulary", vocab__json='{"a": 0}', merges__txt="#version: 0.2\na b\n")


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60))
def test_no_bytes_make_sentencepieces_reader_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "bytes"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerError):
        Tokenizer.open(folder)


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="position 2"):
        Tokenizer.open(small(tmp_path)).encode("aa\ud800")


# ---------------------------------------------------------------- writing, learning, importing


def test_files_are_copied_as_they_are(shared: Path, tmp_path: Path) -> None:
    source = shutil.copytree(shared / "data/tokenizers/minimind", tmp_path / "source")
    (source / "chat_template.jinja").write_text("usual")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tool_use.jinja").write_text("with tools")
    Tokenizer.open(source).save(tmp_path / "copy")
    Tokenizer.open(source).save(source)

    def files(folder: Path) -> dict[str, bytes]:
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    assert files(source) == files(tmp_path / "copy") and len(files(source)) == 4


@pytest.fixture(scope="module")
def learned(shared: Path) -> Tokenizer:
    return train_bpe([(shared / "data/text/tinyshakespeare.txt").read_text()[:200_000]], 1000, ("<|end|>", "<|turn|>"))


def test_learned_vocabulary(shared: Path, learned: Tokenizer, tmp_path: Path) -> None:
    assert (learned.vocab_size, learned.bos, learned.eos_ids) == (1000, None, (0,))
    assert learned.encode("<|turn|>Hello<|end|>")[0] == 1
    text = (shared / "data/text/tinyshakespeare.txt").read_text()
    assert len(learned.encode(text[:50_000])) < 20_000
    again = train_bpe([text[:200_000]], 1000, ("<|end|>", "<|turn|>"))
    for name, tokenizer in (("one", learned), ("two", again)):
        tokenizer.save(tmp_path / name)
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()
    (tmp_path / "one/config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    theirs, read = AutoTokenizer.from_pretrained(tmp_path / "one"), Tokenizer.open(tmp_path / "one")
    assert (theirs.eos_token_id, read.eos_ids, len(theirs)) == (0, (0,), 1000)
    for text in [*PLAIN, "<|turn|>Hello<|end|>"]:
        assert learned.encode(text) == read.encode(text) == theirs.encode(text)
    with pytest.raises(TokenizerError, match="too small"):
        train_bpe(["text"], 256)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60).filter(lambda text: "<|" not in text))
def test_any_text_round_trips_through_a_learned_vocabulary(learned: Tokenizer, text: str) -> None:
    assert learned.decode(learned.encode(text)) == text


def test_importing_is_cheap() -> None:
    heavy = "{'torch', 'jinja2', 'sentencepiece', 'transformers', 'huggingface_hub'}"
    code = f"import sys, lathe.tokenizer; sys.exit(', '.join({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""
