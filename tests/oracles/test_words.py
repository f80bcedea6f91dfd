"""Other programs cut texts into tokens as we do: llama.cpp, by the vocabulary that we write."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from conftest import Ask
from test_tokenizer import FOLDERS, PLAIN

from lathe.tokenizer import Tokenizer
from lathe.weights import gguf as files

HERE = Path(__file__).parent
# A model of no tensors: what llama.cpp must be told before it reads a vocabulary.
SHAPE: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def texts_of(shared: Path) -> list[str]:
    """Hard ones, real ones in many scripts, and one of 100,000 characters. llama.cpp takes them as they are."""
    web = (shared / "data/text/c4_sample.jsonl").read_text(encoding="utf-8")
    real = [web[at : at + 500] for at in range(0, 200_000, 4_000)]
    composed = [unicodedata.normalize("NFC", text) for text in [*PLAIN, *real, web[:100_000]]]
    return [text for text in composed if "\0" not in text]


@pytest.fixture(scope="module")
def cut(llama_cpp: Ask, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Any]]:
    """Each vocabulary, and what llama.cpp makes of it."""
    place, ours = tmp_path_factory.mktemp("vocabularies"), {}
    for name in FOLDERS:
        found = Tokenizer.open(shared / "data" / name)
        file = place / f"{Path(name).name}.gguf"
        files.write(file, {**SHAPE, **found.to_gguf()}, {}, lambda *_: "F32")
        ours[file.stem] = found
    (place / "texts").write_text(json.dumps(texts_of(shared)), encoding="utf-8")
    theirs = llama_cpp(HERE / "llama_cpp_words.py", place / "texts", *(place / f"{name}.gguf" for name in ours))
    return {name: (ours[name], theirs[name]) for name in ours}


@pytest.mark.parametrize("name", [Path(name).name for name in FOLDERS])
def test_llama_cpp_gives_our_ids_from_what_we_wrote(name: str, shared: Path, cut):
    ours, theirs = cut[name]
    for text, ids in zip(texts_of(shared), theirs["ids"], strict=True):
        assert ours.encode(text, special=False) == ids, text[:200]
    assert theirs["begins"] == (ours.encode("") == [ours.bos_id])
    assert set(ours.eos_ids) <= set(theirs["ends"])
