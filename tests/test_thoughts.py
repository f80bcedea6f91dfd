"""An answer thinks for as long as it may: whatever it would say, the mark that ends its thought comes in time."""

from __future__ import annotations

import random
import string

import pytest
import torch

from lathe.engine.thoughts import Bound, Bounded

VOCAB = 256
LETTERS = string.ascii_lowercase.encode()


def spell(token: int) -> bytes:
    """Bytes; and two tokens of several, one of which ends within a mark."""
    return {1: b"<think>\n", 2: b"so</thi"}.get(token, bytes([token]))


def bounded(most: int, begin: str = "", inner=None) -> Bounded:
    return Bounded(Bound(most, begin.encode(), b"</think>", tuple(b"</think>")), spell, VOCAB, inner)


def said(constraint: Bounded, dice: random.Random, count: int, words: bytes) -> list[int]:
    """What a model says that chooses among the words, as far as it may."""
    tokens: list[int] = []
    for _ in range(count):
        allowed = constraint.mask().nonzero()[:, 0].tolist()
        token = dice.choice([id for id in allowed if id in words] or allowed)
        constraint.accept(token)
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("begin", ["", "<think>"])
def test_a_thought_has_an_end(begin: str, seed: int) -> None:
    dice = random.Random(seed)
    most = dice.randrange(12)
    constraint = bounded(most, begin)
    if begin:
        for token in dice.choice([b"\n<think>", b"\x01"]):
            assert constraint.mask().all()
            constraint.accept(token)
    tokens = said(constraint, dice, 40, LETTERS + b"\x02</>")
    text = b"".join(map(spell, tokens))
    thought = text.partition(b"</think>")[0]
    lengths = [len(b"".join(map(spell, tokens[:n]))) for n in range(41)]
    assert sum(length < len(thought) for length in lengths) <= most + 7  # the mark may have begun before
    assert constraint.mask().all()


def test_what_is_no_thought_is_let_be() -> None:
    constraint = bounded(0, "<think>")
    for token in b"Hello <think> and so on":
        constraint.accept(token)
        assert constraint.mask().all()
    early = bounded(30)
    for token in b"ok</think>" + LETTERS * 2:
        early.accept(token)
        assert early.mask().all()


@pytest.mark.parametrize("seed", range(20))
def test_looking_ahead_is_as_going_on(seed: int) -> None:
    """For guesses: what may follow tokens is what may follow when they have been said."""
    dice = random.Random(seed)
    constraint = bounded(dice.randrange(6), dice.choice(["", "<think>"]))
    tokens = [dice.choice(b"\x01\x02ab</think>") for _ in range(12)]
    ahead = [constraint.mask(tokens[:n]) for n in range(12)]
    for token, mask in zip(tokens, ahead, strict=True):
        assert torch.equal(constraint.mask(), mask)
        constraint.accept(token)


class Pairs:
    """Letters in twos: in the midst of two, no mark may come."""

    complete, error = False, None

    def __init__(self) -> None:
        self.count = 0

    def mask(self, after=()) -> torch.Tensor:
        allowed = torch.zeros(VOCAB, dtype=torch.bool)
        allowed[list(LETTERS if (self.count + len(after)) % 2 else LETTERS + b"<>/")] = True
        return allowed

    def accept(self, token: int) -> None:
        self.count += token in LETTERS


def test_another_constraint_says_when() -> None:
    constraint = bounded(3, inner=Pairs())
    for token in b"abc":
        assert not constraint.mask()[ord("<")] or constraint.inner.count % 2 == 0
        constraint.accept(token)
    assert constraint.mask()[ord("d")] and not constraint.mask()[ord("<")]
    constraint.accept(ord("d"))
    assert constraint.mask().nonzero().tolist() == [[ord("<")]]
