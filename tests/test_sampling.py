"""Each rule against transformers' processor for it; what is drawn against the distribution it is drawn from."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as hf

from lathe.engine.choosing import Chooser, choose
from lathe.engine.rules import Candidates, MinP, TopP
from lathe.engine.sampling import Sampling
from lathe.errors import UsageError

VOCAB = 200
PAST = [3, 17, 3, 99, 150]


def scores(rows: int = 3, vocab: int = VOCAB, spread: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(5)) * spread


def choosers(sampling: Sampling, rows: int = 3, prompt: list[int] = PAST, said: tuple[int, ...] = ()) -> list[Chooser]:
    made = [Chooser(sampling, prompt, VOCAB) for _ in range(rows)]
    for chooser in made:
        for token in said:
            chooser.say(token)
    return made


def folded(sampling: Sampling, logits: Tensor, said: tuple[int, ...] = ()) -> Tensor:
    """The probabilities that the rules leave, each token in its own column."""
    candidates = Candidates(logits)
    for rule in sampling.rules:
        candidates = rule(candidates, choosers(sampling, len(logits), said=said))
    probs = candidates.logits.softmax(-1)
    if candidates.ids is None:
        return probs
    return torch.zeros_like(logits).scatter_add(-1, candidates.ids, probs)


CASES: dict[str, tuple[dict[str, Any], list[hf.LogitsProcessor]]] = {
    "nothing": ({}, []),
    "temperature": ({"temperature": 0.6}, [hf.TemperatureLogitsWarper(0.6)]),
    "top_k": ({"top_k": 7}, [hf.TopKLogitsWarper(7)]),
    "top_k of all": ({"top_k": 1000}, [hf.TopKLogitsWarper(1000)]),
    "top_p": ({"top_p": 0.8}, [hf.TopPLogitsWarper(0.8)]),
    "tiny top_p": ({"top_p": 0.01}, [hf.TopPLogitsWarper(0.01)]),
    "top_p 0": ({"top_p": 0.0}, [hf.TopPLogitsWarper(0.0)]),
    "min_p": ({"min_p": 0.05}, [hf.MinPLogitsWarper(0.05)]),
    "repetition": ({"repetition_penalty": 1.4}, [hf.RepetitionPenaltyLogitsProcessor(1.4)]),
    "all": (
        {"temperature": 1.4, "top_k": 30, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2},
        [
            hf.RepetitionPenaltyLogitsProcessor(1.2),
            hf.TemperatureLogitsWarper(1.4),
            hf.TopKLogitsWarper(30),
            hf.TopPLogitsWarper(0.9),
            hf.MinPLogitsWarper(0.1),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rules_are_those_of_transformers(name: str) -> None:
    wishes, processors = CASES[name]
    logits, ids = scores(), torch.tensor([PAST] * 3)
    expected = hf.LogitsProcessorList(processors)(ids, logits.clone()).softmax(-1)
    got = folded(Sampling(**wishes), logits)
    assert torch.equal(got > 0, expected > 0)
    assert torch.allclose(got, expected, atol=1e-6)


def test_presence_and_frequency_count_the_answer_only() -> None:
    logits = scores()
    sampling = Sampling(presence_penalty=0.7, frequency_penalty=0.2)
    expected = logits.clone()
    expected[:, 8] -= 0.7 + 0.2
    expected[:, 5] -= 0.7 + 2 * 0.2
    assert torch.allclose(folded(sampling, logits, said=(5, 8, 5)), expected.softmax(-1), atol=1e-7)


def test_repetition_counts_the_prompt_and_the_answer() -> None:
    logits, sampling = scores(), Sampling(repetition_penalty=1.3)
    ids = torch.tensor([[*PAST, 8, 5]] * 3)
    expected = hf.RepetitionPenaltyLogitsProcessor(1.3)(ids, logits.clone()).softmax(-1)
    assert torch.allclose(folded(sampling, logits, said=(8, 5)), expected, atol=1e-7)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9, 0.9999, 1 - 1e-12])
@pytest.mark.parametrize("spread", [0.0, 0.01, 2.0, 5.0, 50.0])
def test_top_p_of_a_large_vocabulary_with_and_without_its_short_cut(spread: float, p: float) -> None:
    logits = scores(vocab=3000, spread=spread)
    logits[1] *= 3  # one row whose likely tokens suffice, beside one whose do not
    logits[2, ::2] = -math.inf
    expected = torch.full_like(logits, -math.inf)
    for row in range(3):  # as it is defined
        mass = logits[row].double().softmax(-1)
        before = 0.0
        for id in logits[row].argsort(descending=True, stable=True).tolist():
            if before < p or before == 0.0:
                expected[row, id] = logits[row, id]
            before += float(mass[id])
    candidates = TopP(p)(Candidates(logits), [])
    assert candidates.ids is not None
    got = torch.full_like(logits, -math.inf).scatter_reduce(-1, candidates.ids, candidates.logits, "amax")
    mass = torch.where((got != expected), logits.softmax(-1), 0.0)
    assert mass.count_nonzero() <= 2 or mass.sum() < 1e-5  # a token on the very edge may fall to either side


def test_rules_only_for_what_is_asked() -> None:
    assert Sampling().rules == ()
    assert Sampling(temperature=0, top_k=5, top_p=0.5, min_p=0.1).rules == ()
    assert len(Sampling(temperature=0, repetition_penalty=1.1).rules) == 1
    assert Sampling(min_p=0.5, seed=1, max_new_tokens=3).rules == (MinP(0.5),)


def test_greedy_takes_the_first_of_the_best() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[0, [150, 20, 199]] = 1.0
    assert [token.id for token in choose(logits, choosers(Sampling(temperature=0), 2))] == [20, 0]
    assert choose(logits, choosers(Sampling(top_k=1), 2))[0].id in (150, 20, 199)
    penalised = choosers(Sampling(temperature=0, frequency_penalty=2.0), 2, said=(20,))
    assert [token.id for token in choose(logits, penalised)] == [150, 0]


@pytest.mark.parametrize(
    "wishes", [{}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2, "temperature": 0.7}, {"temperature": 1e-4}]
)
def test_what_is_drawn_follows_the_distribution(wishes: dict[str, Any]) -> None:
    vocab, draws = 12, 20_000
    logits = scores(1, vocab, 1.5)
    sampling, die = Sampling(**wishes), random.Random(11)
    crowd = [Chooser(sampling, [], vocab) for _ in range(draws)]
    for chooser in crowd:
        chooser.dice = die  # one, thrown again and again
    drawn = torch.tensor([token.id for token in choose(logits.expand(draws, -1), crowd)])
    expected = folded(sampling, logits)[0]
    got = drawn.bincount(minlength=vocab) / draws
    assert torch.all((got > 0) <= (expected > 0))
    sigma = (expected * (1 - expected) / draws).sqrt()
    assert torch.all((got - expected).abs() <= 5 * sigma + 1e-9)


class Loaded(random.Random):
    """A die that shows one number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def random(self) -> float:
        return self.number


@pytest.mark.parametrize("number", [0.0, 2**-53, 0.5, 1 - 2**-53])
def test_the_ends_of_the_die_draw_what_is_allowed(number: float) -> None:
    logits = scores(1)
    logits[0, [0, 1, VOCAB - 1]] = -50.0
    sampling = Sampling(min_p=0.9)
    allowed = folded(sampling, logits)[0] > 0
    [chooser] = choosers(sampling, 1)
    chooser.dice = Loaded(number)
    assert allowed[choose(logits, [chooser])[0].id]


def test_seeds() -> None:
    logits = scores(1)

    def draw(seed: int | None) -> list[int]:
        chooser = Chooser(Sampling(seed=seed), [], VOCAB)
        return [choose(logits, [chooser])[0].id for _ in range(50)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_a_choice_does_not_depend_on_its_company() -> None:
    logits = scores(5)
    wishes = [
        Sampling(seed=1, top_k=20),
        Sampling(temperature=0),
        Sampling(seed=2, top_k=20),
        Sampling(seed=3, repetition_penalty=1.3, min_p=0.01, logprobs=2),
        Sampling(seed=4, top_p=0.9),
    ]
    together = choose(logits, [Chooser(wish, PAST, VOCAB) for wish in wishes])
    alone = [choose(logits[i : i + 1], [Chooser(wish, PAST, VOCAB)])[0] for i, wish in enumerate(wishes)]
    assert together == alone


def test_logprobs_are_the_models_own() -> None:
    logits = scores(3)
    expected = logits.log_softmax(-1)
    wishes = [Sampling(temperature=0.1, top_k=3, logprobs=4, seed=0), Sampling(seed=0), Sampling(logprobs=0, seed=0)]
    four, none, own = choose(logits, [Chooser(wish, [], VOCAB) for wish in wishes])
    best = expected[0].topk(4)
    assert four.logprob == pytest.approx(float(expected[0, four.id]))
    assert [id for id, _ in four.top] == best.indices.tolist()
    assert [logprob for _, logprob in four.top] == pytest.approx(best.values.tolist())
    assert (none.logprob, none.top) == (None, ())
    assert own.logprob == pytest.approx(float(expected[2, own.id])) and own.top == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 1.5),
        ("min_p", -0.2),
        ("repetition_penalty", 0.0),
        ("presence_penalty", math.inf),
        ("max_new_tokens", 0),
        ("logprobs", -1),
        ("min_tokens", -1),
    ],
)
def test_a_number_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        Sampling(**{name: value})  # type: ignore[arg-type]


# ---- bias and length -------------------------------------------------------------------------------------------------
def test_a_bias_is_added_bans_and_forces() -> None:
    logits = scores()
    expected = logits.clone()
    expected[:, 5] += 2.5
    expected[:, 8] -= 1.5
    expected[:, 9] = -math.inf
    assert torch.allclose(
        folded(Sampling(logit_bias={8: -1.5, 5: 2.5, 9: -100}), logits), expected.softmax(-1), atol=1e-7
    )
    forced = folded(Sampling(logit_bias={3: 100.0, 4: 120, 7: 99.0}), 1000 * logits)
    assert torch.all((forced > 0).sum(-1) <= 2) and torch.allclose(forced[:, [3, 4]].sum(-1), torch.ones(3))
    assert torch.isfinite(folded(Sampling(logit_bias=dict.fromkeys(range(VOCAB), -100.0)), logits)).all()


def test_a_bias_is_a_value() -> None:
    one, other = Sampling(logit_bias={7: 1, 3: -2.0}), Sampling(logit_bias=[[3, -2], [7, 1.0]])  # type: ignore[arg-type]
    assert one == other and hash(one) == hash(other) and one.bias == ((3, -2.0), (7, 1.0))
    with pytest.raises(UsageError, match=r"token 200.*0 to 199"):
        Chooser(Sampling(logit_bias={VOCAB: 1.0}), [], VOCAB)
    with pytest.raises(UsageError, match="token 3 is nan"):
        Sampling(logit_bias={3: math.nan})


def test_stops_wait_for_the_shortest_answer() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [150, 20, 99]] = torch.tensor([9.0, 8.0, 7.0])
    chooser = Chooser(Sampling(temperature=0, min_tokens=2), PAST, VOCAB, stops=[150, 20, 7000])
    assert [choose(logits, [chooser])[0].id for _ in range(3)] == [99, 99, 150]
    alone = Chooser(Sampling(temperature=0, min_tokens=2, logit_bias={20: 100}), PAST, VOCAB, stops=[20])
    assert choose(logits, [alone])[0].id != 20


@pytest.mark.parametrize("more", [{}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("extreme", [1e-320, 1e-44, 1e38, 1e308])
@pytest.mark.parametrize("wish", ["temperature", "repetition_penalty", "presence_penalty", "frequency_penalty", "all"])
def test_wishes_beyond_all_measure_still_give_a_token_that_is_allowed(wish: str, extreme: float, more: dict) -> None:
    names = ["repetition_penalty", "presence_penalty", "frequency_penalty"] if wish == "all" else [wish]
    for sign in (1, -1) if wish in ("presence_penalty", "frequency_penalty") else (1,):
        wishes = dict.fromkeys(names, sign * extreme) | more
        sampling = Sampling(seed=1, logit_bias={3: -100.0}, **wishes)
        for token in choose(scores(), choosers(sampling, said=(2, 2, 9))):
            assert 0 <= token.id < VOCAB and token.id != 3
