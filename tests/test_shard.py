"""Tensor parallelism with real processes on CPU: every part of every kind of model, together, is the model alone."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import Counter
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from families import CASES, Case, reference
from published import PUBLISHED
from rank_work import PARTS, PROMPTS, each, one_fails, opened, said

from lathe import checkpoint, families
from lathe.actions import ranks
from lathe.engine import Engine
from lathe.errors import LatheError, PromptError, UsageError
from lathe.model import spec as s
from lathe.model.decoder import Decoder
from lathe.transforms.cuts import PLAN
from lathe.transforms.group import Group
from lathe.transforms.shard import Share
from lathe.weights.tensors import Ref

pytestmark = pytest.mark.usefixtures("forks")

FOUR = {"num_attention_heads": 4, "num_key_value_heads": 4}
EIGHT = {"num_attention_heads": 8, "num_key_value_heads": 4}
NAMES = (
    "llama-2 llama-3.2-tied-llama3-rope llama-biased gemma gemma2 gemma3 mixtral qwen3-moe olmo2 olmoe neox gpt2 "
    "gpt-bigcode phi-2 phi-normed-heads phi3-window phi4-mini falcon-7b falcon-40b stablelm-parallel-normed-heads "
    "cohere-normed-heads nemotron olmo qwen2-moe gpt-oss deepseek-v2 deepseek-v3 deepseek-v3-plain granite smollm3 "
    "minimax-m2 llama4 ernie-moe"
).split()


def chosen() -> list[Case]:
    found = [case for case in CASES if case.name in NAMES]
    assert len(found) == len(NAMES)
    odd = {"intermediate_size": 83, "vocab_size": 97}  # what no number of ranks divides
    return [
        *found,
        replace(next(c for c in CASES if c.name == "llama-2"), name="multi-query", changes={"num_key_value_heads": 1}),
        replace(next(c for c in CASES if c.name == "llama-2"), name="uneven", changes={**EIGHT, **odd}),
    ]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path | str]:
    place = tmp_path_factory.mktemp("families")
    return [*(reference(case, place / case.name).folder for case in chosen()), *PARTS]


@pytest.mark.parametrize("count", [2, 4])
def test_parts_together_are_the_whole(sources: list[Path | str], count: int, tmp_path: Path) -> None:
    """Scores without a cache, and greedy and sampled tokens with one, for models of every shape, on every rank."""
    ranks.run(each, count, "cpu", sources, tmp_path)
    first, *others = (torch.load(tmp_path / f"{rank}.pt") for rank in range(count))
    for source in map(str, sources):
        engine = Engine(opened(source if source in PARTS else Path(source)).load())
        for prompt, theirs in zip(PROMPTS, first[source]["logits"], strict=True):
            mine = engine.logits(prompt)
            assert float((mine - theirs).abs().max()) < 1e-4 * float(mine.abs().max()), source
        tokens = said(engine)
        assert first[source]["tokens"] == tokens, source
        for other in others:  # the same bits, or the ranks would part
            assert other[source]["tokens"] == tokens
            assert all(torch.equal(a, b) for a, b in zip(first[source]["logits"], other[source]["logits"], strict=True))
    assert first["drafted"][::2] == tokens[::2]
    assert all(other["drafted"] == first["drafted"] for other in others)


def counted(ref: Ref, name: str, read: Counter[str]) -> Ref:
    def fetch(box: tuple[slice, ...]) -> torch.Tensor:
        piece = ref.fetch(box)
        read[name] += piece.numel()
        return piece

    return replace(ref, fetch=fetch)


@pytest.mark.parametrize("count", [2, 4])
def test_a_rank_reads_its_slices_and_nothing_else(sources: list[Path | str], count: int) -> None:
    model = opened(sources[0])
    assert model.path.name == "llama-2"
    width, mlp, vocab = model.spec.width, model.spec.layers[0].mlp.width, model.spec.vocab  # type: ignore[union-attr]
    total: Counter[str] = Counter()
    for rank in range(count):
        read: Counter[str] = Counter()
        tensors = {name: counted(ref, name, read) for name, ref in model.tensors.items()}
        replace(model, tensors=tensors).load(share=Share(model.spec, Group(rank, count)))
        assert read["model.embed_tokens.weight"] == read["lm_head.weight"] == vocab * width // count
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            assert read[f"model.layers.1.self_attn.{name}.weight"] == width * width // count
        for name in ("gate_proj", "up_proj", "down_proj"):
            assert read[f"model.layers.0.mlp.{name}.weight"] == width * mlp // count
        total += read
    for name, ref in model.tensors.items():
        times = count if "norm" in name else 1  # every rank has the norms; of all else each number is read once
        assert total[name] == times * torch.Size(ref.shape).numel(), name


def test_every_parameter_of_every_family_is_in_the_plan(sources: list[Path | str]) -> None:
    """No parameter is without a pattern, and no pattern without a parameter: what stands above proves each."""
    used = set()
    for source in sources:
        for name in opened(source).tensors:
            used.add(next(pattern for pattern in PLAN if fnmatchcase(name, pattern)))
    assert used == set(PLAN)


def test_every_family_can_be_divided() -> None:
    """All that are known, in their published sizes, also those that are not computed here."""
    for family, published in PUBLISHED.items():
        spec = families.read(published.config)
        try:
            share = Share(spec, Group(1, 2))
        except UsageError as error:
            assert "cannot be divided among 2 devices" in str(error), family
            continue
        with torch.device("meta"):
            whole, part = Decoder(spec), share.decoder()
        shapes = {name: tuple(slot.shape) for name, slot in checkpoint.slots(part)}
        for name, slot in checkpoint.slots(whole):
            ref = Ref(tuple(slot.shape), slot.dtype, lambda box: pytest.fail("read"))
            assert share.mine(name, ref, shapes[name]).shape == shapes[name], f"{family}: {name}"


def test_what_cannot_be_divided_is_refused() -> None:
    norm = s.RMSNorm(1e-6)
    mixer = s.Attention(9, 3, 8, 0.3, None)
    spec = s.Spec(50, 72, (s.Layer(mixer, s.Gated(16), norm),), norm, 32)
    assert Share(spec, Group(0, 3)) and Share(spec, Group(0, 9))
    with pytest.raises(UsageError, match=r"9 heads, 3 for keys and values.*among 4 devices.*Take 1 or 3 or 9, or"):
        Share(spec, Group(0, 4))
    ref = Ref.of(torch.zeros(3))
    with pytest.raises(UsageError, match=r"how model\.layers\.0\.mlp\.novelty\.weight is divided"):
        Share(spec, Group(0, 3)).mine("model.layers.0.mlp.novelty.weight", ref, (1,))


# ---- the processes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ("error", PromptError, "The prompt is empty. It must hold something. Type one."),
        ("bug", RuntimeError, "ZeroDivisionError: a bug"),
        ("killed", UsageError, "signal 9"),
        ("exit", UsageError, "Process 2 of 2 ended with status 7; the others were ended too."),
    ],
)
def test_one_that_fails_ends_all_with_one_message(
    how: str, kind: type[Exception], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind) as raised:
        ranks.run(one_fails, 2, "cpu", how)
    assert says in str(raised.value)
    assert isinstance(raised.value, LatheError) == (kind is not RuntimeError)
    assert "Traceback" not in capfd.readouterr().err


def test_a_death_is_told_though_what_came_of_it_is_heard_first() -> None:
    context = multiprocessing.get_context("spawn")
    gone = context.Process(target=os._exit, args=(7,))
    (first, report), (second, end) = (context.Pipe(duplex=False) for _ in range(2))
    report.send(("failed", 0.0, "Connection closed by peer"))
    gone.start()
    threading.Timer(0.2, end.close).start()
    with pytest.raises(UsageError, match="Process 2 of 2 ended with status 7"):
        ranks._watch([gone, gone], [first, second])
