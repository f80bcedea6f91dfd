"""Examples to rows: each whole, in one row, next to those of its group, and never more than a row holds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.data.pack import IGNORE, Row, fitted, laid
from lathe.data.render import Example, Group

LENGTH = 9
sizes = st.lists(st.integers(2, LENGTH + 1), min_size=1, max_size=30)


def example(number: int, size: int) -> Example:
    """Ids that no other example has; every second one is supervised."""
    ids = np.arange(100 * number, 100 * number + size, dtype=np.int32)
    return Example(ids, ids % 2 == 1)


def singles(some: list[int]) -> list[Group]:
    return [(example(number, size),) for number, size in enumerate(some)]


def pieces(rows: list[Row]) -> list[tuple[list[int], list[int]]]:
    """Tokens and targets of every piece between seams."""
    cuts = [np.cumsum(row.lengths)[:-1] for row in rows]
    both = [
        zip(np.split(row.tokens, cut), np.split(row.targets, cut), strict=True)
        for row, cut in zip(rows, cuts, strict=True)
    ]
    return [(tokens.tolist(), targets.tolist()) for row in both for tokens, targets in row]


def expected(one: Example) -> tuple[list[int], list[int]]:
    ids = one.ids.tolist()
    return ids[:-1], [number if number % 2 else IGNORE for number in ids[1:]]


@given(sizes)
def test_every_example_is_in_one_row_whole(some: list[int]) -> None:
    groups = singles(some)
    rows = laid(groups, LENGTH)
    assert all(0 < sum(row.lengths) == len(row.tokens) == len(row.targets) <= LENGTH for row in rows)
    assert sorted(pieces(rows)) == sorted(expected(one) for [one] in groups)


@given(sizes)
def test_no_two_rows_would_fit_in_one(some: list[int]) -> None:
    rows = laid(singles(some), LENGTH)
    filled = sorted(sum(row.lengths) for row in rows)
    assert all(a + b > LENGTH for a, b in pairwise(filled))


@given(st.lists(st.tuples(st.integers(2, LENGTH + 1), st.integers(2, LENGTH + 1)), min_size=1, max_size=20))
def test_chosen_and_rejected_take_turns(some: list[tuple[int, int]]) -> None:
    groups = [(example(2 * at, a), example(2 * at + 1, b)) for at, (a, b) in enumerate(some)]
    rows = laid(groups, LENGTH)
    assert all(len(row.tokens) <= 2 * LENGTH for row in rows)
    for row in rows:
        numbers = [tokens[0] // 100 for tokens, _ in pieces([row])]
        assert all(a % 2 == 0 and b == a + 1 for a, b in zip(numbers[::2], numbers[1::2], strict=True))
    assert sum(len(row.lengths) for row in rows) == 2 * len(some)


@pytest.mark.parametrize(("size", "length", "kept"), [(5, 9, 5), (10, 9, 10), (12, 9, 10)])
def test_what_is_too_long_loses_its_end(size: int, length: int, kept: int) -> None:
    group = fitted((example(0, size),), length)
    assert group is not None
    assert group[0].ids.tolist() == list(range(kept))


def test_what_has_no_loss_left_is_left_out() -> None:
    late = Example(np.arange(12, dtype=np.int32), np.arange(12) > 9)
    assert fitted((late,), 9) is None
    assert fitted((late,), 10) is not None
    assert fitted((late, example(0, 4)), 9) is None
