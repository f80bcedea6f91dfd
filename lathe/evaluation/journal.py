"""Answers go to a file as they come and are found there again: an examination that was cut short goes on from there.

One JSON object a line: {"ask": its key, "answer": [logprob, greedy]} or a text. Knows no model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from lathe.errors import UsageError
from lathe.evaluation.asks import Answer, Ask, Likely


class Nothing:
    """Nothing is known, and nothing is kept."""

    def get(self, ask: Ask) -> Answer | None:
        return None

    def keep(self, ask: Ask, answer: Answer) -> None: ...


class Journal:
    """The answers in a file, which is made if it is not there. A line that was cut short counts for nothing.

    Raises UsageError where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.answers: dict[str, Answer] = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for line in text.splitlines():
            try:
                told = json.loads(line)
                answer = told["answer"]
                self.answers[told["ask"]] = answer if isinstance(answer, str) else Likely(*answer)
            except (ValueError, KeyError, TypeError):
                continue
        try:
            self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise UsageError(f"Cannot write {path}: {error.strerror}.", "", "Choose another --out-dir.") from None
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, ask: Ask) -> Answer | None:
        return self.answers.get(ask.key)

    def keep(self, ask: Ask, answer: Answer) -> None:
        self.answers[ask.key] = answer
        self._file.write(json.dumps({"ask": ask.key, "answer": answer}, ensure_ascii=False) + "\n")
