"""What llama.cpp makes of GGUF files: python llama_cpp_answers.py JSON, in its own environment; JSON on the last line.

{"logits": {FILE: [TOKEN, ...]}}                 the logits after each token, or what its log complains of
{"text": {FILE: [PROMPT, COUNT]}}                what it goes on with, greedily
{"quantize": [SOURCE, TARGET, KIND]}             has it quantize a file, by its number for the kind
{"blocks": {KIND: [[VALUE, ...], ...]}}          rows of values as it packs them, in hexadecimal digits
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp

F32 = 0
complaints: list[str] = []


@llama_cpp.llama_log_callback
def log(level: int, text: bytes, _: Any) -> None:
    if b"error" in text or b"fail" in text:
        complaints.append(text.decode(errors="replace"))


def load(file: str, length: int) -> llama_cpp.Llama:
    """In float32 all through: keys and values too, which it would keep in half precision."""
    return llama_cpp.Llama(
        file, n_ctx=max(length, 64), n_threads=1, logits_all=True, type_k=F32, type_v=F32, verbose=False
    )


def logits(asked: dict[str, list[int]]) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for file, tokens in asked.items():
        complaints.clear()
        llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
        try:
            model = load(file, len(tokens))
        except ValueError:
            answers[file] = "".join(complaints)
        else:
            model.eval(tokens)
            answers[file] = model.scores[: len(tokens)].tolist()
    return answers


def text(asked: dict[str, tuple[str, int]]) -> dict[str, str]:
    answers = {}
    for file, (prompt, count) in asked.items():
        said = load(file, 512)(prompt, max_tokens=count, temperature=0.0, top_k=1)
        answers[file] = said["choices"][0]["text"]
    return answers


def quantize(asked: tuple[str, str, int]) -> int:
    source, target, kind = asked
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = kind, 1
    return llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options))


def blocks(asked: dict[str, list[list[float]]]) -> dict[str, str]:
    library = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.glob("lib/*ggml-base.*"))))
    library.ggml_quantize_chunk.restype = library.ggml_row_size.restype = ctypes.c_size_t
    answers = {}
    for kind, rows in asked.items():
        count, width = len(rows), len(rows[0])
        values = (ctypes.c_float * (count * width))(*(value for row in rows for value in row))
        size = library.ggml_row_size(int(kind), ctypes.c_int64(width))
        out = (ctypes.c_uint8 * (count * size))()
        shape = ctypes.c_int64(0), ctypes.c_int64(count), ctypes.c_int64(width)
        library.ggml_quantize_chunk(int(kind), values, out, *shape, None)
        answers[kind] = bytes(out).hex()
    return answers


WAYS = {"logits": logits, "text": text, "quantize": quantize, "blocks": blocks}
asked = json.loads(Path(sys.argv[1]).read_text())
print(json.dumps({way: WAYS[way](question) for way, question in asked.items()}))
