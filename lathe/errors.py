"""What a user can put right, as a small tree of exceptions: each says what was found, what was expected, what to do.

LatheError                  anything below; the command line prints it as one paragraph and exits with 2
├── UsageError              an option, a recipe key or a combination of them
├── MissingError            a file, folder, model or dependency that is not there
├── CheckpointError         a weight file that cannot be read as what it claims to be, or does not fit the model
│   └── UnsafeError         a file that would run code when read; nothing of it was run
├── ConfigError             a model configuration with a key, value or architecture that is not understood
├── TokenizerError          a tokenizer or chat template that cannot be read or refuses its input
├── PromptError             an empty prompt, or one longer than the context
└── DataError               training or evaluation data that cannot be used
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LatheError(Exception):
    """Something the user can put right.

    Args:
        found: what is the matter, naming the file, tensor, key or option; a sentence.
        expected: what would have been right; a sentence, or empty where `found` says it.
        fix: what to do or type next; a sentence, or empty.
    """

    def __init__(self, found: str, expected: str = "", fix: str = "") -> None:
        self.found, self.expected, self.fix = found, expected, fix
        super().__init__(" ".join(part.strip() for part in (found, expected, fix) if part))


class UsageError(LatheError): ...


class MissingError(LatheError): ...


class CheckpointError(LatheError): ...


class UnsafeError(CheckpointError): ...


class ConfigError(LatheError): ...


class TokenizerError(LatheError): ...


class PromptError(LatheError): ...


class DataError(LatheError): ...


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'Did you mean "x"?' for the known word nearest to `word`, or '' when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'Did you mean "{near[0]}"?' if near else ""
