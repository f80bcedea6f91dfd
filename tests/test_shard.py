"""Tensor parallelism with real processes on CPU: every part of every kind of model, together, is the model alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from families import CASES, Case, reference
from rank_work import PROMPTS, each_family, greedy, one_fails

from lathe import checkpoint
from lathe.actions import ranks
from lathe.engine import Engine
from lathe.errors import LatheError, PromptError, UsageError
from lathe.model import spec as s
from lathe.transforms.shard import PLAN, Group, Share
from lathe.weights.tensors import Ref

FOUR = {"num_attention_heads": 4, "num_key_value_heads": 4}
EIGHT = {"num_attention_heads": 8, "num_key_value_heads": 4}
NAMES = (
    "llama-2 llama-3.2-tied-llama3-rope llama-biased gemma gemma2 gemma3 mixtral qwen2 qwen3 qwen3-moe olmo2 neox "
    "gpt2 phi3-window phi4-mini deepseek-v3 deepseek-v3-plain granite smollm3"
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
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("families")
    return [reference(case, place / case.name).folder for case in chosen()]


@pytest.mark.parametrize("count", [2, 4])
def test_parts_together_are_the_whole(folders: list[Path], count: int, tmp_path: Path) -> None:
    """Scores without a cache, and greedy and sampled tokens with one, for models of every shape, on every rank."""
    ranks.run(each_family, count, "cpu", folders, tmp_path)
    said = [torch.load(tmp_path / f"{rank}.pt") for rank in range(count)]
    for folder in folders:
        engine = Engine(checkpoint.open(folder).load())
        first, *others = (answers[folder.name] for answers in said)
        for mine, theirs in zip([engine.logits(p) for p in PROMPTS], first["logits"], strict=True):
            torch.testing.assert_close(theirs, mine, atol=2e-4, rtol=2e-4, msg=lambda m: f"{folder.name}: {m}")  # noqa: B023
        tokens = greedy(engine)
        assert first["tokens"] == tokens, folder.name
        assert first["drafted"] == tokens[::2], folder.name
        for other in others:  # the same bits, or the ranks would part
            assert other["tokens"] == first["tokens"] and other["drafted"] == first["drafted"]
            assert all(torch.equal(a, b) for a, b in zip(first["logits"], other["logits"], strict=True))


def counted(ref: Ref, name: str, read: Counter[str]) -> Ref:
    def fetch(box: tuple[slice, ...]) -> torch.Tensor:
        piece = ref.fetch(box)
        read[name] += piece.numel()
        return piece

    return replace(ref, fetch=fetch)


@pytest.mark.parametrize("count", [2, 4])
def test_a_rank_reads_its_slices_and_nothing_else(folders: list[Path], count: int) -> None:
    opened = checkpoint.open(next(folder for folder in folders if folder.name == "llama-2"))
    width, mlp, vocab = opened.spec.width, opened.spec.layers[0].mlp.width, opened.spec.vocab  # type: ignore[union-attr]
    total: Counter[str] = Counter()
    for rank in range(count):
        read: Counter[str] = Counter()
        tensors = {name: counted(ref, name, read) for name, ref in opened.tensors.items()}
        replace(opened, tensors=tensors).load(share=Share(opened.spec, Group(rank, count)))
        assert read["model.embed_tokens.weight"] == read["lm_head.weight"] == vocab * width // count
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            assert read[f"model.layers.1.self_attn.{name}.weight"] == width * width // count
        for name in ("gate_proj", "up_proj", "down_proj"):
            assert read[f"model.layers.0.mlp.{name}.weight"] == width * mlp // count
        total += read
    for name, ref in opened.tensors.items():
        times = count if "norm" in name else 1  # every rank has the norms; of all else each number is read once
        assert total[name] == times * torch.Size(ref.shape).numel(), name


def test_every_parameter_of_every_family_is_in_the_plan(folders: list[Path]) -> None:
    """No pattern is idle, and the parts of a cut dimension make the whole."""
    used = set()
    for folder in folders:
        opened = checkpoint.open(folder)
        for rank in range(2):
            share = Share(opened.spec, Group(rank, 2))
            with torch.device("meta"):
                slots = dict(share.decoder().named_parameters())
            for name, slot in slots.items():
                share.mine(name, opened.tensors[name], tuple(slot.shape))
                used.add(next(pattern for pattern in PLAN if fnmatchcase(name, pattern)))
    assert used == set(PLAN)


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
