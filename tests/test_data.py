"""Documents to rows to batches: nothing is lost or doubled, and every stage goes on from where it says it is."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.data.loader import Batch, Steps
from lathe.data.pack import IGNORE, Packed, Row
from lathe.data.stages import Blocks, InOrder, Mixed, Shuffled
from lathe.errors import DataError

lengths = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(lambda some: max(some) > 1)


def numbered(some: list[int]) -> list[np.ndarray]:
    """Documents of these lengths, no token twice: document d holds 100 d, 100 d + 1, ..."""
    return [np.arange(100 * d, 100 * d + n) for d, n in enumerate(some)]


def pieces(rows: list[Row]) -> list[list[int]]:
    """The tokens of every piece between seams."""
    cut = [np.split(row.tokens, np.cumsum(row.lengths)[:-1]) for row in rows]
    return [piece.tolist() for row in cut for piece in row]


# ---- packing --------------------------------------------------------------------------------------------------------
@given(lengths, st.integers(1, 7))
def test_every_token_but_the_first_is_predicted_once_from_the_one_before(some: list[int], length: int) -> None:
    documents = numbered(some)
    rows = list(Packed(InOrder(documents), length))
    assert all(len(row.tokens) == length for row in rows[:-1])
    assert 0 < len(rows[-1].tokens) <= length
    assert all(sum(row.lengths) == len(row.tokens) == len(row.targets) for row in rows)
    predicted = [(int(t), int(u)) for row in rows for t, u in zip(row.tokens, row.targets, strict=True)]
    assert predicted == [(a, a + 1) for document in documents for a in document[:-1].tolist()]


@given(lengths, st.integers(1, 7))
def test_a_piece_between_seams_is_of_one_document(some: list[int], length: int) -> None:
    for piece in pieces(list(Packed(InOrder(numbered(some)), length))):
        assert piece == list(range(piece[0], piece[0] + len(piece)))
        assert piece[0] // 100 == piece[-1] // 100


@settings(max_examples=50)
@given(lengths, st.integers(1, 7), st.integers(0, 30))
def test_packing_goes_on_from_its_state(some: list[int], length: int, stop: int) -> None:
    def rows() -> Packed:
        return Packed(Shuffled(numbered(some), seed=3), length)

    first = rows()
    list(islice(first, stop))
    state = json.loads(json.dumps(first.state()))
    second = rows()
    second.restore(state)
    for a, b in zip(islice(first, 20), islice(second, 20), strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        assert a.lengths == b.lengths


# ---- order ----------------------------------------------------------------------------------------------------------
def test_an_epoch_holds_every_document_once_in_an_order_of_its_own() -> None:
    stage = Shuffled(range(50), seed=1)
    epochs = [list(islice(stage, 50)) for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == list(islice(Shuffled(range(50), seed=1), 50))
    assert epochs[0] != list(islice(Shuffled(range(50), seed=2), 50))


@given(st.integers(1, 9), st.integers(0, 40))
def test_the_order_goes_on_from_its_state_also_over_the_end_of_an_epoch(items: int, stop: int) -> None:
    first, second = Shuffled(range(items), seed=5), Shuffled(range(items), seed=6)
    list(islice(first, stop))
    second.restore(json.loads(json.dumps(first.state())))
    assert list(islice(first, 30)) == list(islice(second, 30))


@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 40))
def test_blocks_hold_their_items_in_an_order_of_their_own_and_go_on(items: int, size: int, stop: int) -> None:
    def stage() -> Blocks[int]:
        return Blocks(Shuffled(range(items), seed=5, most=3), size, seed=1)

    plain, whole, first, second = list(Shuffled(range(items), seed=5, most=3)), list(stage()), stage(), stage()
    for begin in range(0, len(plain), size):
        assert sorted(whole[begin : begin + size]) == sorted(plain[begin : begin + size])
    list(islice(first, stop))
    second.restore(json.loads(json.dumps(first.state())))
    assert list(first) == list(second) == whole[stop:]
    assert first.epochs == second.epochs == 3


mixtures = st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 1)), min_size=1, max_size=4)


@given(mixtures, st.integers(0, 60))
def test_a_mixture_keeps_its_shares_of_tokens_and_goes_on(some: list[tuple[int, float]], stop: int) -> None:
    def mixture() -> Mixed[list[int]]:
        stages = [
            Shuffled([[number] * n for n in range(1, most + 1)], seed=number) for number, (most, _) in enumerate(some)
        ]
        return Mixed(stages, [weight for _, weight in some])

    given = np.zeros(len(some))
    for item in islice(mixture(), 100):
        given[item[0]] += len(item)
        due = given.sum() * np.array([weight for _, weight in some]) / sum(weight for _, weight in some)
        assert (abs(given - due) <= 10 * len(some)).all()
    first, second = mixture(), mixture()
    list(islice(first, stop))
    second.restore(json.loads(json.dumps(first.state())))
    assert list(islice(first, 30)) == list(islice(second, 30))


def test_a_mixture_of_what_ends_gives_everything_once() -> None:
    assert sorted(Mixed([InOrder(["a", "b", "c"]), InOrder(["d"]), InOrder([])], [1, 1, 1])) == ["a", "b", "c", "d"]
    limited = Mixed([Shuffled(["aa", "bb"], 0), Shuffled(["c"], 0)], [0.5, 0.5], epoch=8, most=2)
    assert len("".join(limited)) == 16
    assert limited.epochs == 2


def test_a_place_in_other_data_is_refused() -> None:
    with pytest.raises(DataError, match="was reading 7 documents, and the data now holds 8"):
        Shuffled(range(8), seed=0).restore(Shuffled(range(7), seed=0).state())


# ---- batches --------------------------------------------------------------------------------------------------------
@given(lengths, st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_a_step_has_its_rows_whatever_the_size_of_a_batch(
    some: list[int], length: int, rows: int, at_once: int
) -> None:
    documents = numbered(some)
    steps = list(Steps(Packed(InOrder(documents), length), rows, at_once))
    whole = list(Steps(Packed(InOrder(documents), length), rows, rows))
    assert [step.tokens for step in steps] == [len(step.batches[0].tokens) for step in whole]
    assert [step.supervised for step in steps] == [step.batches[0].supervised for step in whole]
    assert all(len(b.tokens) <= at_once * length for step in steps for b in step.batches)
    flat = [t for step in steps for b in step.batches for t in b.tokens.tolist()]
    assert flat == [t for document in documents for t in document[:-1].tolist()]


@given(lengths, st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.integers(1, 5))
def test_processes_divide_every_step_among_them(
    some: list[int], length: int, rows: int, at_once: int, ranks: int
) -> None:
    """Together they learn what one would, in as many passes each, and none has to ask what the others have."""

    def steps(rank: int, ranks: int) -> Steps:
        return Steps(Packed(InOrder(numbered(some)), length), rows, at_once, "cpu", rank, ranks)

    each = [steps(rank, ranks) for rank in range(ranks)]
    for alone in steps(0, 1):
        works = [next(mine) for mine in each]
        assert all((w.supervised, w.tokens) == (alone.supervised, alone.tokens) for w in works)
        assert len({len(w.batches) for w in works}) == 1
        assert all(len(b.tokens) <= at_once * length for w in works for b in w.batches)
        learned = [t for w in works for b in w.batches for t in b.targets.tolist() if t != IGNORE]
        assert sorted(learned) == sorted(t for b in alone.batches for t in b.targets.tolist())
        assert len({json.dumps(mine.state()) for mine in each}) == 1
    assert all(next(mine, None) is None for mine in each)


def test_positions_restart_at_every_seam() -> None:
    row = Row(np.array([1, 2, 3, 4]), np.array([2, IGNORE, 4, 5]), (1, 3))
    batch = Batch.of([row, row])
    assert batch.layout.seams == (0, 1, 4, 5, 8)
    assert batch.layout.positions.tolist() == [0, 0, 1, 2, 0, 0, 1, 2]
    assert batch.supervised == 6
