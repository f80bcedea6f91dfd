"""Constrained answers: always what the schema, expression or grammar says, for every tokenizer."""

from __future__ import annotations

import json
import random
import re
import time
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lathe.engine import Engine, Sampling
from lathe.engine.choosing import Chooser, choose
from lathe.engine.constrain import KEPT, Constraint, Grammars
from lathe.errors import UsageError
from lathe.model import spec as s
from lathe.model.decoder import Decoder
from lathe.tokenizer import Tokenizer, forms

DATA = Path(__file__).parents[2] / "shared" / "data"
# Every byte, pieces of JSON and of words (some across both), a token that writes nothing, and one that ends.
PIECES = [
    b'{"',
    b'": ',
    b'", "',
    b'":',
    b'"}',
    b"}}",
    b", ",
    b"true",
    b"fal",
    b"null",
    b"12",
    b"ab",
    b"abc",
    b"a ",
    b"[[",
    b"]}",
]
TOKENS = [bytes([byte]) for byte in range(256)] + PIECES + [b"<tool>", b"</s>"]
TOOL, END = len(TOKENS) - 2, len(TOKENS) - 1
VOCAB = len(TOKENS) + 3  # scores that no token has


@cache
def grammars() -> Grammars:
    return Grammars(lambda: TOKENS, {TOOL, END}, [END], VOCAB)


def text_of(tokens: list[int]) -> str:
    return b"".join(TOKENS[token] for token in tokens if token != END).decode()


def answer(constraint: Constraint, wish: Sampling, score: Any, longest: int = 400) -> list[int]:
    """The tokens that `choose` makes of scores, to the end of what is allowed."""
    chooser, made = Chooser(wish, [], VOCAB, constraint=constraint, stops=[END]), list[int]()
    while not chooser.ended and (not made or made[-1] != END) and len(made) < longest:
        made.append(choose(score(made)[None], [chooser])[0].id)
    return made


def drawn(seed: int, fluent: float = 3.0) -> Any:
    """Scores by chance, with a liking for what closes and ends, so that answers do end."""
    liked = [id for id, token in enumerate(TOKENS) if set(token) & set(b'"}],') and len(token) < 3]

    def score(made: list[int]) -> Tensor:
        scores = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed * 1000 + len(made)))
        scores[liked] += fluent
        scores[END] += 2 * fluent
        return scores

    return score


# ---- JSON schemas ----------------------------------------------------------------------------------------------------
names = st.sampled_from(["a", "b", "name", 'say "hi"', "é", "x y"])
scalars = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "maxLength": 5},
        {"type": "string", "pattern": "^[a-c]{1,3}$"},
        {"type": "integer"},
        {"type": "integer", "minimum": -3, "maximum": 40},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "null"},
        {"type": ["integer", "null"]},
        {"enum": ["red", 1, None, "gr\u00fcn"]},
        {"const": {"a": [1, 2]}},
        {"type": "string", "format": "date"},
    ]
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def made(properties: dict[str, Any], optional: set[str]) -> dict[str, Any]:
        required = [name for name in properties if name not in optional]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return st.builds(made, st.dictionaries(names, inner, max_size=3), st.sets(names))


schemas = st.recursive(
    scalars,
    lambda inner: (
        objects(inner)
        | st.builds(lambda i, n: {"type": "array", "items": i, "minItems": n, "maxItems": 3}, inner, st.integers(0, 2))
        | st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner)
    ),
    max_leaves=6,
)  # fmt: skip
wishes = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([1.0, 0.5]),
    min_p=st.sampled_from([0.0, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    min_tokens=st.sampled_from([0, 30]),
    logit_bias=st.sampled_from([(), {34: -100.0}, {65: 100.0}, {END: 5.0, 34: -3.0}]),
    seed=st.integers(0, 1000),
)


@settings(max_examples=150, deadline=None)
@given(schema=schemas, wish=wishes, seed=st.integers(0, 10_000))
def test_any_sampling_gives_what_the_schema_allows(schema: dict[str, Any], wish: Sampling, seed: int) -> None:
    constraint = grammars().constraint(forms.of_schema(schema))
    made = answer(constraint, wish, drawn(seed))
    assert constraint.error is None
    if not constraint.complete:  # an endless string, cut off
        return
    jsonschema.validate(json.loads(text_of(made)), schema, format_checker=jsonschema.FormatChecker())


@settings(max_examples=12, deadline=None)
@given(schema=schemas, seed=st.integers(0, 10_000))
def test_greedy_is_the_best_of_what_an_oracle_allows(schema: dict[str, Any], seed: int) -> None:
    """The oracle tries every token: allowed is what a fresh constraint goes on behind."""
    text, score = forms.of_schema(schema), drawn(seed)
    made = answer(grammars().constraint(text), Sampling(temperature=0), score, longest=8)
    for at, token in enumerate(made):
        for other in score(made[:at]).argsort(descending=True, stable=True).tolist():
            judge = grammars().constraint(text)
            for before in [*made[:at], other]:
                judge.accept(before)
            if judge.error is None:
                break
        assert other == token


# ---- expressions and grammars ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("pattern", ["(foo|bar)/[0-9]{2,3}", r"\d+\.\d\s?[€$]", "a*b", "[^a-z]{3}", '"\\\\"'])
def test_a_regular_expression_matches_the_whole_answer(pattern: str) -> None:
    for seed in range(20):
        constraint = grammars().constraint(forms.of_regex(pattern))
        made = answer(constraint, Sampling(seed=seed), drawn(seed))
        assert constraint.complete and re.fullmatch(pattern, text_of(made))


def test_a_grammar_may_name_special_tokens() -> None:
    constraint = grammars().constraint('start: "x" <tool> "ab" "</s>"?')
    assert constraint.mask().nonzero().flatten().tolist() == [ord("x")]
    constraint.accept(ord("x"))
    assert constraint.mask().nonzero().flatten().tolist() == [TOOL]
    constraint.accept(TOOL)
    assert {TOKENS[id] for id in constraint.mask().nonzero().flatten().tolist()} == {b"a", b"ab"}
    constraint.accept(TOKENS.index(b"ab"))
    assert constraint.mask()[END] and not constraint.complete
    constraint.accept(END)
    assert constraint.complete and constraint.error is None


def test_a_mask_after_guesses_changes_nothing() -> None:
    rng = random.Random(3)
    text = forms.of_schema({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}})
    constraint, accepted = grammars().constraint(text), list[int]()
    while not constraint.complete and len(accepted) < 60:
        guesses = [
            rng.randrange(VOCAB - 3) if rng.random() < 0.2 else rng.choice([123, 34, 97, 91, 49, END]) for _ in range(3)
        ]
        before = constraint.mask()
        allowed = constraint.mask(guesses)
        assert torch.equal(constraint.mask(), before)
        fresh = grammars().constraint(text)
        for token in [*accepted, *guesses]:
            fresh.accept(token)
        expected = torch.ones(VOCAB, dtype=torch.bool) if fresh.complete else fresh.mask()
        assert torch.equal(allowed, expected)
        accepted.append(rng.choice(before.nonzero().flatten().tolist()))
        constraint.accept(accepted[-1])


# ---- whole engine ----------------------------------------------------------------------------------------------------
def decoder_of(seed: int = 1) -> Decoder:
    mixer = s.Attention(heads=2, kv_heads=1, channels=8, scale=0.5, rope=s.Rope(100.0, 8))
    decoder = Decoder(s.Spec(VOCAB, 16, (s.Layer(mixer, s.Gated(24), s.RMSNorm(1e-6)),), s.RMSNorm(1e-6), 128))
    generator = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.5, generator=generator)
    return decoder.requires_grad_(False)


def test_an_answer_that_is_whole_ends_without_an_end_token() -> None:
    engine = Engine(decoder_of())
    sequence = engine.submit([1, 2], stops=[END], constraint=grammars().constraint('start: "abc"'))
    list(engine.stream(sequence))
    assert sequence.finish == "stop" and text_of([token.id for token in sequence.made]) == "abc"
    assert END not in [token.id for token in sequence.made]


def test_what_can_be_followed_no_further_fails_alone() -> None:
    engine = Engine(decoder_of())
    bad = engine.submit([1, 2], constraint=grammars().constraint('start: "a" B\nB: /b/ & /c/'))
    good = engine.submit([1, 2], Sampling(temperature=0, max_new_tokens=5))
    while engine.busy:
        engine.step()
    assert (bad.finish, good.finish) == ("failed", "length")
    assert isinstance(bad.error, UsageError) and good.error is None


# ---- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("start: foo", 'unknown name: "foo"'),
        ("%%%", "lexer error"),
        ("start: <nope>", "unknown special token"),
        (forms.of_regex("("), "unclosed group"),
        (forms.of_regex("a(?=b)"), "look-ahead"),
        (forms.of_schema({"type": "hiccup"}), "Invalid type: hiccup"),
        (forms.of_schema({"type": "integer", "minimum": 5, "maximum": 3}), "Unsatisfiable"),
        (forms.of_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (forms.of_schema(False), "not"),
    ],
)
def test_what_is_not_understood_is_named(grammar: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        grammars().constraint(grammar)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("schema", ["{", "[1]", '"a"', {"type": {1, 2}}])
def test_what_is_no_schema(schema: Any) -> None:
    with pytest.raises(UsageError, match="JSON schema"):
        forms.of_schema(schema)


def nested(depth: int) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": nested(depth - 1)}} if depth else {"type": "string"}


def chain(count: int) -> str:
    return "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(count)) + f'\nr{count}: "z"'


HOSTILE = {
    "deep": lambda: forms.of_schema(nested(300)),
    "references": lambda: forms.of_schema(
        {"$ref": "#/d/0", "d": {str(i): {"items": {"$ref": f"#/d/{i + 1}"}, "type": "array"} for i in range(3500)}}
    ),
    "rules": lambda: chain(12_000),
    "too large": lambda: chain(30_000),
    "wide": lambda: forms.of_schema({"properties": {f"k{i}": {"type": ["string", "integer"]} for i in range(2000)}}),
    "values": lambda: forms.of_schema({"enum": [f"{i * 0.37}" for i in range(15_000)]}),
    "states": lambda: forms.of_regex("(.*a.{1000}){50}"),
    "repeats": lambda: forms.of_regex("((((a{1,100}){1,100}){1,100}){1,100})"),
    "choices": lambda: f"start: {' '.join(['x?'] * 2000)}\nx: /a+/ | /a*b?/",
    "both": lambda: "start: A\nA: /(.*a.{20})/ & /(.*b.{25})/ & /(.*c.{30})/",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_take_bounded_time(name: str) -> None:
    """Refused, or failed when followed, or just followed: but neither slow nor a crash."""
    before = time.process_time()
    try:
        constraint = grammars().constraint(HOSTILE[name]())
    except UsageError:
        pass
    else:
        answer(constraint, Sampling(seed=1), drawn(1), longest=20)
    assert time.process_time() - before < 5


def test_a_grammar_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lathe.engine.constrain.SECONDS", 0.05)
    slow = Grammars(lambda: time.sleep(1) or TOKENS, (), (), VOCAB)  # type: ignore[func-returns-value]
    with pytest.raises(UsageError, match=r"within 0\.05 seconds"):
        slow.constraint('start: "a"')


def test_few_grammars_stay_compiled() -> None:
    made = Grammars(lambda: TOKENS, (), (), VOCAB)
    for number in range(40):
        assert made.constraint(f'start: "{number}"').mask().any()
    assert len(made._compiled) == KEPT


# ---- every tokenizer -------------------------------------------------------------------------------------------------
FOLDERS = sorted((DATA / "tokenizers").glob("*")) if DATA.exists() else []
TEXT = '{"name": "J\u00fcrgen \u65e5\u672c", "n": [1, -2.5], "ok": true}'


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_tokenizer_spells_json(folder: Path) -> None:
    tokenizer = Tokenizer.open(folder)
    if tokenizer.vocab_size > 60_000:
        pytest.skip("A large vocabulary takes a second; the small ones have the same forms.")
    made = Grammars(tokenizer.spellings, tokenizer.special_ids, tokenizer.eos_ids, tokenizer.vocab_size)
    constraint = made.constraint(forms.of_schema({"type": "object"}))
    ids = tokenizer.encode("x" + TEXT, special=False)[len(tokenizer.encode("x", special=False)) :]
    if tokenizer.decode(ids).strip() != TEXT:
        ids = [id for char in TEXT for id in tokenizer.encode(char, special=False)[-len(char.encode()) :]]
    for id in ids:
        assert constraint.mask()[id], tokenizer.token(id)
        constraint.accept(id)
    assert constraint.complete and constraint.error is None
