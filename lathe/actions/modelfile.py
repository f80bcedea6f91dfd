"""A GGUF file and the tokenizer in it become an Ollama Modelfile: the template in Ollama's words, and every stop.

The template is found by having the model's own render a conversation of marks, and looking at what stands between them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lathe.errors import UsageError

if TYPE_CHECKING:
    from lathe.tokenizer import Tokenizer

SYSTEM, QUESTION, ANSWER, AGAIN = "\ue000", "\ue001", "\ue002", "\ue003"  # which no template holds


def text(file: Path, tokenizer: Tokenizer) -> str:
    """The Modelfile for a GGUF file in the same folder. Raises UsageError for a template that Ollama cannot have."""
    from lathe.data.render import Renderer

    lines = [f"FROM ./{file.name}"]
    if tokenizer.has_template:
        lines.append(f'TEMPLATE """{template(tokenizer)}"""')
    stops = [tokenizer.get(number) for number in Renderer(tokenizer).ends]
    for stop in dict.fromkeys((*filter(None, stops), *tokenizer.stops)):
        lines.append(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def template(tokenizer: Tokenizer) -> str:
    """The chat template as Ollama writes one (Go's text/template), for a system message, questions and answers."""
    talk = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": AGAIN},
    ]
    begin, asked, answered, between, ended = _between(tokenizer.render(talk), SYSTEM, QUESTION, ANSWER, AGAIN)
    alone, ended_alone = _between(tokenizer.render(talk[1:2]), QUESTION)
    if not answered == ended == ended_alone:
        found = "The chat template writes a question's end in several ways."
        raise UsageError(found, "Ollama's template has one.", "Leave out --modelfile: Ollama may know the template.")
    if tokenizer.bos and tokenizer.encode("a")[0] == tokenizer.bos_id:  # llama.cpp puts it there itself
        begin, alone = (part.removeprefix(tokenizer.bos) for part in (begin, alone))
    return (
        f"{{{{ if .System }}}}{begin}{{{{ .System }}}}{asked}{{{{ else }}}}{alone}{{{{ end }}}}"
        f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{answered}'
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{between}{{{{ end }}}}{{{{ end }}}}'
    )


def _between(text: str, *marks: str) -> list[str]:
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise UsageError("The chat template leaves messages out.", "", "Leave out --modelfile.")
        parts.append(before)
    return [*parts, text]
