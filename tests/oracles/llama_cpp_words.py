"""Let llama.cpp cut texts into tokens: only the vocabulary of a GGUF file is read.

    python tests/oracles/llama_cpp_words.py TEXTS FILE...

in llama.cpp's environment. TEXTS: a JSON file with a list. Prints, as JSON, each file's ids of every text, its own text
of these ids, whether it puts BOS before a text, and the ids that it takes for ends.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp

TEXTS = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def asked(file: str) -> dict[str, object]:
    model = llama_cpp.Llama(file, vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    ids = [model.tokenize(text.encode(), add_bos=False, special=True) for text in TEXTS]
    return {
        "ids": ids,
        "texts": [model.detokenize(row, special=True).decode(errors="replace") for row in ids],
        "begins": bool(llama_cpp.llama_vocab_get_add_bos(vocab)),
        "ends": [id for id in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, id)],
    }


print(json.dumps({Path(file).stem: asked(file) for file in sys.argv[2:]}))
