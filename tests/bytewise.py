"""A tokenizer of single bytes, as small as one that begins a text with BOS can be."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing


def plain_tokenizer(folder: Path) -> Path:
    """A folder with a tokenizer of single bytes, which begins a text with BOS as its post-processor says."""
    tokens = {"<bos>": 0, "<eos>": 1} | {char: n for n, char in enumerate(sorted(ByteLevel.alphabet()), 2)}
    pipeline = tokenizers.Tokenizer(BPE(vocab=tokens, merges=[]))
    pipeline.pre_tokenizer, pipeline.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    pipeline.add_special_tokens(["<bos>", "<eos>"])
    pipeline.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    folder.mkdir()
    pipeline.save(str(folder / "tokenizer.json"))
    told = {"bos_token": "<bos>", "eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder
