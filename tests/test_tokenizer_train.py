"""Texts to new tokenizers: transformers reads what was written and gives the same ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lathe.cli import main
from lathe.errors import TokenizerError
from lathe.tokenizer import Tokenizer, train_characters

TEXTS = ["First of all: ïs thïs\n\ta tèst?", "Second 世界, of 1234 words.", "Third\r\n"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS * 3))
    return tmp_path / "texts.jsonl"


@pytest.mark.parametrize("words", [["--vocab-size=280"], ["--kind=char"]])
def test_transformers_reads_what_was_trained(data: Path, tmp_path: Path, words: list[str], capsys) -> None:
    from transformers import AutoTokenizer

    out = tmp_path / "made"
    assert main(["tokenizer", "train", str(data), f"--out={out}", *words]) == 0
    ours, theirs = Tokenizer.open(out), AutoTokenizer.from_pretrained(out)
    assert f"{out}: {ours.vocab_size:,} tokens" in capsys.readouterr().out
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text)) == text
        assert ours.encode(text + "<|endoftext|>")[-1] == ours.eos_id == theirs.eos_token_id
    assert "".join(ours.stream().push(number) for number in ours.encode("Third")) == "Third"
    assert main(["tokenizer", "train", str(data), f"--out={out}", *words]) == 2
    assert "holds a tokenizer" in capsys.readouterr().err
    assert main(["tokenizer", "train", str(data), f"--out={out}", *words, "--overwrite"]) == 0


def test_specials_are_what_was_asked_for(data: Path, tmp_path: Path) -> None:
    words = ["--special=</s>", "--special=<|im_start|>", f"--out={tmp_path / 'made'}", "--vocab-size=300"]
    assert main(["tokenizer", "train", str(data), *words]) == 0
    made = Tokenizer.open(tmp_path / "made")
    assert made.eos == "</s>"
    assert made.encode("<|im_start|>") == [made.id("<|im_start|>")]


def test_shakespeare_has_65_characters(shared: Path, tmp_path: Path) -> None:
    text = (shared / "data/text/tinyshakespeare.txt").read_text(encoding="utf-8")
    made = train_characters([text])
    assert made.vocab_size == 65
    assert made.eos_id is None
    characters = sorted(set(text))
    assert made.encode(text) == [characters.index(character) for character in text]
    made.save(tmp_path)
    assert Tokenizer.open(tmp_path).encode("ROMEO:\n") == made.encode("ROMEO:\n")


def test_a_character_that_was_not_there_is_named() -> None:
    made = train_characters(["abc", "bcd"])
    assert made.eos == "<|endoftext|>"
    with pytest.raises(TokenizerError, match="no token for 'é'"):
        made.encode("abécd")
    with pytest.raises(TokenizerError, match="no characters"):
        train_characters([""])


def test_a_size_for_characters_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "train", str(data), "--kind=char", "--vocab-size=300"]) == 2
    assert "as many tokens as there are characters" in capsys.readouterr().err
