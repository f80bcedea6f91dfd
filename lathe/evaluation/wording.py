"""Texts become asks: a context and its continuation in ids, a long text in windows, a prompt that fits.

As lm-evaluation-harness cuts them (`lm_eval.api.model.TemplateLM`, `lm_eval.utils.get_rolling_token_windows`), so that
the figures are the same. Knows no model and no task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lathe.errors import DataError
from lathe.evaluation.asks import Generation, Likelihood, Words


def likelihoods(words: Words, pairs: Sequence[tuple[str, str]], longest: int) -> list[Likelihood]:
    """Of each context and continuation: the continuation is what is left of both together behind the context alone.

    Spaces at the context's end go to the continuation, where tokens have them. What is longer than `longest` and one
    token loses its beginning. Raises DataError for an empty continuation.
    """
    moved = [_moved(context, continuation) for context, continuation in pairs]
    texts = list(dict.fromkeys(text for context, rest in moved for text in (context, context + rest)))
    ids = dict(zip(texts, words.encode_all(texts), strict=True))
    return [_pair(words, ids[context] if context else [], ids[context + rest], longest) for context, rest in moved]


def _moved(context: str, continuation: str) -> tuple[str, str]:
    if not continuation:
        raise DataError("A continuation is empty.", "It must hold at least one character.")
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _pair(words: Words, context: list[int], whole: list[int], longest: int) -> Likelihood:
    if context:
        asked, rest = whole[: len(context)], whole[len(context) :]
    else:  # a text of its own, after the token that texts begin with
        rest = whole[len(words.begin) :]
        asked, rest = ([words.prefix], rest) if rest[:1] != [words.prefix] else (rest[:1], rest[1:])
    if not rest:  # a token of the context took it in
        asked, rest = whole[:-1], whole[-1:]
    asked = asked[-max(longest + 1 - len(rest), 1) :]
    return Likelihood(tuple(asked), tuple(rest[-longest:]))


def windows(words: Words, ids: Sequence[int], longest: int) -> list[Likelihood]:
    """A text of any length as pieces that are judged one after the other, each token once.

    ids: without what texts begin with. The first piece stands after `words.prefix`, each other one after the last token
    before it, and the last one as late as it can, so that it sees as much as there is room for.
    """
    found = []
    for start in range(0, len(ids), longest):
        end = min(start + longest, len(ids))
        begin = max(end - longest - 1, -1) if start else -1
        seen = [words.prefix, *ids[:start]] if begin < 0 else list(ids[begin:start])
        found.append(Likelihood(tuple(seen), tuple(ids[start:end])))
    return found


def fitted(ask: Generation, longest: int) -> Generation:
    """An ask whose prompt has lost its beginning, where it and the answer are longer than the context."""
    most = min(ask.most, max(longest - 1, 1))
    return replace(ask, most=most, prompt=ask.prompt[-(longest - most) :])
