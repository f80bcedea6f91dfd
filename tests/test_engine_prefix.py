"""What was read for one request is not read again for another, and no answer is another for it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_engine import CONTEXT, DYNAMIC, GQA, SPECS, VOCAB, answers, assert_conserved, decoder_of, prompt_of, run
from test_speculate import near

from lathe.engine import DraftModel, Engine, Sampling
from lathe.engine.names import Names
from lathe.engine.pages import Lease, Pages
from lathe.errors import PromptError
from lathe.llm import LLM
from lathe.model.decoder import Decoder

GREEDY = Sampling(temperature=0, max_new_tokens=10)


@pytest.fixture(scope="module")
def plain() -> Decoder:
    return decoder_of("gqa")


@contextmanager
def read(decoder: Decoder) -> Iterator[list[int]]:
    """How many tokens each pass had."""
    passes: list[int] = []
    handle = decoder.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    yield passes
    handle.remove()


def made(engine: Engine, prompt: list[int], wish: Sampling = GREEDY, **asked: object) -> tuple[list[int], int]:
    sequence = engine.submit(prompt, wish, **asked)  # type: ignore[arg-type]
    run(engine)
    return [token.id for token in sequence.made], sequence.reused


@pytest.fixture(params=[False, True], ids=["copied", "shared"])
def shares(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to take pages over, on the CPU."""
    init = Pages.__init__

    def made(self: Pages, *args: object, **options: object) -> None:
        init(self, *args, **options)  # type: ignore[arg-type]
        self.shares = request.param

    monkeypatch.setattr(Pages, "__init__", made)


@pytest.mark.usefixtures("shares")
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("options", [{}, {"chunk": 5}, {"tokens": CONTEXT}, {"tokens": CONTEXT, "chunk": 11}])
def test_a_conversation_reads_only_what_is_new(name: str, options: dict[str, int]) -> None:
    decoder = decoder_of(name)
    engine, said, before = Engine(decoder, **options), prompt_of(20), 0
    endless = name == "dynamic"  # its keys go by how long a sequence may become
    for turn in range(4):
        wish = Sampling(temperature=0, max_new_tokens=None if endless else 6)
        sequence = engine.submit(said, wish, range(VOCAB) if endless else ())
        with read(decoder) as passes:
            run(engine)
        assert [t.id for t in sequence.made] == answers(Engine(decoder), [said], [wish])[0][: len(sequence.made)]
        assert sequence.reused == before // 16 * 16
        assert sum(passes) == len(sequence.tokens) - 1 - sequence.reused
        before = len(sequence.tokens) - 1  # what was said last was not read
        said = [*sequence.tokens, *prompt_of(6, turn)]
        assert engine.pages.free == len(engine.pages.holders)


@pytest.mark.usefixtures("shares")
@pytest.mark.parametrize("options", [{}, {"chunk": 8}, {"seats": 3}, {"tokens": 2 * CONTEXT}])
def test_many_answers_to_one_prompt_read_it_once(plain: Decoder, options: dict[str, int]) -> None:
    prompt, n = prompt_of(50), 8
    wishes = [Sampling(seed=seed, max_new_tokens=12) for seed in range(n)]
    alone = [made(Engine(plain), prompt, wish)[0] for wish in wishes]
    engine = Engine(plain, **options)
    sequences = [engine.submit(prompt, wish) for wish in wishes]
    with read(plain) as passes:
        run(engine)
    assert [[token.id for token in sequence.made] for sequence in sequences] == alone
    assert len({tuple(answer) for answer in alone}) == n
    if "tokens" not in options:  # else some are preempted, and may have to read what was forgotten
        assert [sequence.reused for sequence in sequences] == [0] + [48] * (n - 1)
        assert sum(passes) == 50 + (n - 1) * 2 + n * 11
    assert engine.pages.free == len(engine.pages.holders)


def test_a_fork_goes_on_where_its_root_ended(plain: Decoder) -> None:
    engine = Engine(plain)
    root = engine.submit(prompt_of(30), Sampling(temperature=0, max_new_tokens=40))
    for _ in range(12):
        engine.step()
    branches = [engine.submit([*root.tokens, token], GREEDY) for token in (1, 2, 3)]
    run(engine)
    assert [branch.reused for branch in branches] == [32, 32, 32]
    for branch in branches:
        assert [t.id for t in branch.made] == made(Engine(plain), branch.tokens[: branch.prompt])[0]
    assert [t.id for t in root.made] == made(Engine(plain), prompt_of(30), root.chooser.sampling)[0]


def test_only_the_same_is_shared() -> None:
    decoder = decoder_of("gqa")
    engine, prompt = Engine(decoder), prompt_of(40)
    assert made(engine, prompt)[1] == 0
    assert made(engine, prompt)[1] == 32
    assert made(engine, prompt, salt="mine")[1] == 0
    assert made(engine, prompt, salt="mine")[1] == 32
    assert made(engine, prompt, salt="its")[1] == 0
    assert made(engine, [*prompt[:17], prompt[17] ^ 1, *prompt[18:]])[1] == 16
    assert made(engine, [prompt[0] ^ 1, *prompt[1:]])[1] == 0
    assert made(engine, prompt[16:])[1] == 0  # the same page elsewhere
    assert made(engine, prompt[:33])[1] == 32
    assert made(engine, prompt[:32])[1] == 16  # what follows the last token must be computed


def test_keys_that_go_by_the_extent_are_not_shared_with_those_of_another() -> None:
    decoder = decoder_of("dynamic")
    assert DYNAMIC.rope is not None and DYNAMIC.rope.scaling is not None
    engine, prompt = Engine(decoder), prompt_of(40)
    for n, reused in ((10, 0), (11, 0), (10, 32)):
        wish = Sampling(temperature=0, max_new_tokens=n)
        assert made(engine, prompt, wish) == (made(Engine(decoder), prompt, wish)[0], reused)


def test_a_model_that_changed_reads_again() -> None:
    decoder = decoder_of("gqa")
    engine, prompt = Engine(decoder), prompt_of(40)
    made(engine, prompt)
    decoder.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    assert made(engine, prompt) == (made(Engine(decoder), prompt)[0], 0)
    decoder.model.layers[1].self_attn.q_proj.weight.data = torch.randn(32, 32)
    assert made(engine, prompt) == (made(Engine(decoder), prompt)[0], 0)
    assert made(engine, prompt)[1] == 32


def test_what_was_used_longest_ago_is_forgotten_first(plain: Decoder) -> None:
    engine = Engine(plain, tokens=16 * 12)
    wish = Sampling(temperature=0, max_new_tokens=1)
    prompts = [prompt_of(49, seed) for seed in range(5)]  # three pages that fill, and a fourth
    for prompt in prompts[:3]:
        assert made(engine, prompt, wish)[1] == 0
    for prompt in prompts[3:]:
        assert made(engine, prompts[0], wish)[1] == 48
        assert made(engine, prompt, wish)[1] == 0  # takes the place of those that nobody came back to
    assert made(engine, prompts[0], wish)[1] == 48
    assert made(engine, prompts[1], wish)[1] + made(engine, prompts[2], wish)[1] < 96


def test_who_was_preempted_gets_back_what_is_still_there(plain: Decoder) -> None:
    engine = Engine(plain, tokens=128)
    low = engine.submit(prompt_of(40), Sampling(temperature=0, max_new_tokens=30), priority=1)
    while len(low.made) < 10:
        engine.step()
    high = engine.submit(prompt_of(75, 3), Sampling(temperature=0, max_new_tokens=5))
    with read(plain) as passes:
        run(engine)
    assert high.reused == low.reused == 0
    assert sum(passes) < 75 + 4 + 30 + 40  # low did not read all of its 50 again
    assert [t.id for t in low.made] == made(Engine(plain), prompt_of(40), low.chooser.sampling)[0]


def test_a_draft_model_takes_over_too() -> None:
    decoder = decoder_of("gqa")
    draft = near(decoder)
    engine, said = Engine(decoder, drafter=DraftModel(draft, 3)), prompt_of(30)
    for turn in range(3):
        sequence = engine.submit(said, Sampling(temperature=0, max_new_tokens=12))
        with read(draft) as passes:
            run(engine)
        assert [t.id for t in sequence.made] == made(Engine(decoder), said, sequence.chooser.sampling)[0]
        assert turn == 0 or (sequence.reused >= 16 and sum(passes) < len(said) - 16 + 4 * 12)
        said = [*sequence.tokens, *prompt_of(5, turn)]


# ---- pages -----------------------------------------------------------------------------------------------------------
def test_a_name_says_all_that_is_before_it() -> None:
    names, rng = Names(4), random.Random(0)
    tokens = [rng.randrange(200_000) for _ in range(41)]

    def of(root: bytes, tokens: list[int]) -> list[bytes]:
        made = [root]
        names.extend(made, tokens)
        return made[1:]

    root = names.root(None, "a")
    whole = of(root, tokens)
    assert len(whole) == 10 == len(set(whole))
    grown = [root]
    for n in range(len(tokens) + 1):  # token by token
        names.extend(grown, tokens[:n])
        assert grown[1:] == whole[: n // 4]
    for at in range(40):
        other = of(root, [*tokens[:at], tokens[at] ^ 1, *tokens[at + 1 :]])
        assert other[: at // 4] == whole[: at // 4] and not set(other[at // 4 :]) & set(whole)
    assert not set(of(names.root(None, "b"), tokens)) & set(whole)
    assert names.root("x", "") != names.root("", "x") != names.root(None, "x")
    assert Names(4).root(None, "a") != root  # nobody outside can tell a name


@pytest.mark.usefixtures("shares")
def test_what_is_taken_over_lies_together_with_what_follows() -> None:
    pages = Pages([GQA.cache], 16 * 12)
    a, b = Lease(), Lease()
    names = [bytes([i]) for i in range(3)]
    assert pages.begin(a, names, 50, 64) == (0, 0)
    keys = pages.cache[0][0].normal_()
    filled = keys[a.slots[:48]].clone()
    pages.keep(a, names)
    assert pages.begin(b, names, 60, 64) == (3, 0)  # while the first still has them
    assert torch.equal(keys[b.slots[:48]], filled)
    assert (b.start is None) == pages.shares and (a.pages[:3] == b.pages[:3]) == pages.shares
    assert pages.shares or not set(a.pages) & set(b.pages)
    pages.give_back(a)
    pages.give_back(b)
    assert_conserved(pages, [])
    assert pages.begin(a, names, 64, 64) == (3, 0)
    assert torch.equal(keys[a.slots[:48]], filled)
    assert pages.shares or isinstance(a.read(50), slice)


# ---- judging ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"chunk": 7}, {"tokens": CONTEXT, "seats": 3}])
@pytest.mark.parametrize("name", SPECS)
def test_continuations_are_judged_as_if_alone_and_their_beginning_is_read_once(name: str, options: dict) -> None:
    decoder = decoder_of(name)
    engine, begun = Engine(decoder, **options), prompt_of(50)
    texts = [[*begun, *prompt_of(n, n)] for n in (1, 3, 8, 1, 20)] + [prompt_of(4), [5]]
    firsts = [50, 50, 50, 50, 49, 2, 1]
    expected = []
    for tokens, first in zip(texts, firsts, strict=True):
        rows = engine.logits(tokens).log_softmax(-1)
        expected.append([(int(rows[i - 1].argmax()), float(rows[i - 1, tokens[i]])) for i in range(first, len(tokens))])
    with read(decoder) as passes:
        judged = engine.judge_all(zip(texts, firsts, strict=True), top=1)
    for tokens, first, made, wanted in zip(texts, firsts, judged, expected, strict=True):
        assert [token.id for token in made] == tokens[first:]
        assert [token.top[0][0] for token in made] == [best for best, _ in wanted]
        assert [token.logprob for token in made] == pytest.approx([logprob for _, logprob in wanted], abs=1e-5)
    if name != "dynamic" and "tokens" not in options:  # else keys are not the same, or some must be read again
        assert sum(passes) == 50 + 4 + 9 + 2 + 21 + 3  # of what they have in common, three pages are taken over
    assert engine.pages.free == len(engine.pages.holders)
    [[alone]] = engine.judge_all([(texts[0], 50)], top=1)
    assert alone.logprob == pytest.approx(expected[0][0][1], abs=1e-5)


def test_judging_beside_others_who_answer(plain: Decoder) -> None:
    engine = Engine(plain, tokens=CONTEXT)
    sequence = engine.submit(prompt_of(9), GREEDY)
    engine.step()
    text = prompt_of(30, 2)
    assert engine.score(text) == pytest.approx(Engine(plain).score(text), abs=1e-5)
    run(engine)
    assert [token.id for token in sequence.made] == made(Engine(plain), prompt_of(9))[0]


@pytest.mark.usefixtures("shares")
@pytest.mark.parametrize("options", [{}, {"chunk": 7}, {"tokens": CONTEXT, "seats": 3}])
@pytest.mark.parametrize("name", SPECS)
def test_what_whole_texts_have_in_common_is_read_once(name: str, options: dict) -> None:
    """All tokens of all are judged, with different numbers of others in their places."""
    decoder = decoder_of(name)
    engine, begun = Engine(decoder, **options), prompt_of(50)
    texts = [[*begun, *prompt_of(n, n)] for n in (1, 3, 8, 20)] + [begun, prompt_of(4)]
    with read(decoder) as passes:
        judged = [engine.read(text, top=2) for text in texts]
        run(engine)
        judged += [engine.read(text, top=top) for text, top in zip(texts, (1, 2, 0, 2, 2, 2), strict=True)]
        run(engine)
    for text in judged:
        right = Engine(decoder).logits(text.whole).log_softmax(-1)
        assert text.finish == "stop" and [token.id for token in text.judged] == text.whole[1:]
        for row, token in zip(right, text.judged, strict=False):
            assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-5)
            best = row.topk(text.top)
            assert [id for id, _ in token.top] == best.indices.tolist()
            assert [value for _, value in token.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    if name != "dynamic" and "tokens" not in options:
        # The last page that is known is read again, for what is said behind it.
        assert sum(passes) == (50 + 20 + 25 + 37 + 17 + 3) + (18 + 20 + 25 + 21 + 17 + 3)
    assert engine.pages.free == len(engine.pages.holders)
    assert set(engine.pages.notes) <= set(engine.pages.known)
    with read(decoder) as passes:
        [more] = [engine.read(texts[0], top=3)]  # more than was told before
        run(engine)
    assert sum(passes) == 50 and [len(token.top) for token in more.judged] == [3] * 50
    engine.pages.forget()
    assert not engine.pages.notes


def test_texts_are_judged_beside_who_answers_and_stall_nobody(plain: Decoder) -> None:
    engine = Engine(plain, tokens=512)
    engine.scheduler.beside = 16
    quick = engine.submit(prompt_of(9), Sampling(temperature=0, max_new_tokens=40))
    engine.step()
    texts = [engine.read(prompt_of(n, n)) for n in (60, 33, 2)]
    with read(plain) as passes:
        while not all(text.finish for text in texts):
            before = len(quick.made)
            assert [sequence for sequence, _ in engine.step()] == [quick] and len(quick.made) == before + 1
    assert max(passes) == 17 and sum(passes) == len(passes) + 59 + 32 + 1
    run(engine)
    assert [token.id for token in quick.made] == made(Engine(plain), prompt_of(9), quick.chooser.sampling)[0]
    for text in texts:
        scores = [token.logprob for token in text.judged]
        assert scores == pytest.approx(Engine(plain).score(text.whole), abs=1e-5)


def test_a_text_is_given_up_gives_way_and_goes_on(plain: Decoder) -> None:
    engine = Engine(plain, tokens=CONTEXT, chunk=8, seats=2)
    texts = [engine.read(prompt_of(60, n), priority=1) for n in range(3)]
    engine.step()
    engine.cancel(texts[1])
    urgent = engine.submit(prompt_of(70), GREEDY)
    while not urgent.finish:
        engine.step()
        assert_conserved(engine.pages, [sequence.lease for sequence in (*texts, urgent)])
    assert not texts[0].finish and texts[0] in engine.scheduler.waiting  # who has priority took its room
    run(engine)
    assert texts[1].finish == "cancelled" and not texts[1].lease.pages
    for text in (texts[0], texts[2]):
        scores = [token.logprob for token in text.judged]
        assert scores == pytest.approx(Engine(plain).score(text.whole), abs=1e-5)
    assert engine.pages.free == len(engine.pages.holders)
    with pytest.raises(PromptError, match=f"{CONTEXT + 2} tokens long"):
        engine.read(prompt_of(CONTEXT + 2))


def test_judging_that_is_interrupted_leaves_nothing(plain: Decoder) -> None:
    engine = Engine(plain, chunk=8)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = plain.lm_head.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.score(prompt_of(30))
    handle.remove()
    assert engine.pages.free == len(engine.pages.holders)
    assert engine.score(prompt_of(30)) == pytest.approx(Engine(plain).score(prompt_of(30)), abs=1e-5)


def test_the_page_runs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    page = (Path(__file__).parents[1] / "docs/engine.md").read_text()
    (tmp_path / "out/demo").mkdir(parents=True)
    (tmp_path / "out/demo/final").symlink_to(tiny_model)
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)[0], {})
    told = capsys.readouterr().out
    reused, prompt = map(int, re.search(r"(\d+) of (\d+) tokens were read before; 0 for", told).groups())  # type: ignore[union-attr]
    assert prompt - 16 <= reused < prompt


def test_a_chat_reads_only_what_is_new(tiny_model: Path) -> None:
    """Through a template, and text that is made into tokens anew for every turn."""
    llm = LLM.load(tiny_model)
    messages = [{"role": "user", "content": "word " * 40}]
    for turn in range(3):
        with read(llm.decoder) as passes:
            reply = llm.complete(messages, temperature=0, max_new_tokens=8)
        fresh = sum(passes) - (len(reply.tokens) - 1)
        assert turn == 0 or fresh < 70 < reply.usage.prompt_tokens
        messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": "word " * 3}]
        assert reply.tokens == LLM.load(tiny_model).complete(messages[:-2], temperature=0, max_new_tokens=8).tokens
