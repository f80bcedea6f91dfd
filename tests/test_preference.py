"""Losses of pairs are their papers' formulas, worked by hand; no logits of a whole batch; the margin grows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_training import CONFIGS, CONSTANT, LLAMA, VOCAB, decoder, gradients, same
from torch import nn

from lathe.cli import main
from lathe.data.examples import Examples
from lathe.data.loader import Batch
from lathe.data.pack import IGNORE, Row, laid
from lathe.data.render import Example
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.training import blocks, loop, optim, preference
from lathe.training.limits import Limits
from lathe.training.preference import Answers, Settings
from lathe.transforms import adapt, begin
from lathe.transforms.terms import Lora


def groups(seed: int = 0, count: int = 9) -> list[tuple[Example, Example]]:
    """Pairs of answers to the same prompt."""
    draw = np.random.default_rng(seed)

    def example(prompt: np.ndarray) -> Example:
        answer = draw.integers(0, VOCAB, draw.integers(1, 9))
        supervised = np.arange(len(prompt) + len(answer)) >= len(prompt)
        return Example(np.concatenate((prompt, answer)).astype(np.int32), supervised)

    prompts = [draw.integers(0, VOCAB, draw.integers(2, 12)) for _ in range(count)]
    return [(example(prompt), example(prompt)) for prompt in prompts]


def rows(some: list[tuple[Example, Example]], length: int = 40) -> list[Row]:
    return laid(some, length)


def alone(model: Decoder, example: Example) -> torch.Tensor:
    """log p of an example's answer, computed plainly."""
    ids = torch.from_numpy(example.ids).long()
    likely = model.logits(model(ids[:-1], Layout.of([len(ids) - 1]))).float().log_softmax(-1)
    picked = likely.gather(1, ids[1:, None])[:, 0]
    return picked[torch.from_numpy(example.supervised[1:])].sum()


# ---- formulas -------------------------------------------------------------------------------------------------------
OWN = Answers(*(torch.tensor([x]) for x in (-6.0, -8.0, 3.0, 4.0)))
BEFORE = Answers(*(torch.tensor([x]) for x in (-7.0, -7.5, 3.0, 4.0)))
# The model prefers the chosen answer by 2, the reference by 0.5: a margin of 1.5. Means: -2 and -2, -7/3 and -1.875.
ODDS = (-2 - math.log(1 - math.exp(-2))) - (-2 - math.log(1 - math.exp(-2)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings("dpo", 0.1), -math.log(sigmoid(0.15))),
        (Settings("dpo", 2.0), -math.log(sigmoid(3.0))),
        (Settings("dpo", 0.1, smoothing=0.2), -0.8 * math.log(sigmoid(0.15)) - 0.2 * math.log(sigmoid(-0.15))),
        (Settings("ipo", 0.5), (0 - (-7 / 3 + 1.875) - 1) ** 2),
        (Settings("hinge", 0.5), 0.25),
        (Settings("hinge", 1.0), 0.0),
        (Settings("simpo", 2.0, margin=0.5), -math.log(sigmoid(-0.5))),
        (Settings("orpo", 0.1), 2 - 0.1 * math.log(sigmoid(ODDS))),
    ],
)
def test_a_pair_has_the_loss_that_its_formula_gives(settings: Settings, expected: float) -> None:
    got = preference.LOSSES[settings.kind](OWN, BEFORE, settings)
    assert got.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


# ---- batches --------------------------------------------------------------------------------------------------------
@CONFIGS
@pytest.mark.parametrize("kind", ["dpo", "orpo"])
def test_a_batch_has_the_loss_and_gradients_of_its_answers_alone(kind: str, config: dict) -> None:
    model, before, settings = decoder(config), decoder(config, seed=1), Settings(kind, beta=0.3)
    some = groups()
    batch = Batch.of(rows(some))
    assert len(batch.layout.lengths) == 2 * len(some)

    def answered(which: Decoder) -> Answers:
        chosen, rejected = (torch.stack([alone(which, pair[side]) for pair in some]) for side in (0, 1))
        counts = [torch.tensor([float(pair[side].supervised[1:].sum()) for pair in some]) for side in (0, 1)]
        return Answers(chosen, rejected, *counts)

    with torch.no_grad():
        theirs = answered(before)
    expected = preference.LOSSES[settings.kind](answered(model), theirs, settings).sum()
    expected.backward()
    slopes = gradients(model)
    objective = preference.objective(model, settings, preference.fixed(before))
    got = objective(batch)
    got.backward()
    torch.testing.assert_close(got, expected)
    same(gradients(model), slopes, 1e-4)
    assert not gradients(before)
    with torch.no_grad():
        torch.testing.assert_close(objective(batch), expected)


def test_slices_change_nothing_and_logits_of_the_whole_batch_never_exist() -> None:
    model, targets = decoder({**LLAMA, "vocab_size": 5000}), torch.randint(5000, (512,))
    largest = 0

    def watch(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.numel())

    handle = model.lm_head.register_forward_hook(watch)
    results = []
    counts = torch.rand(512, generator=torch.Generator().manual_seed(1))
    for scores in (100_000, 10_000_000):
        hidden = torch.randn(512, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
        likely = preference.log_probabilities(model, hidden, targets, scores)
        (likely * counts).sum().backward()
        results.append({"likely": likely.detach(), "hidden": hidden.grad, **gradients(model)})
        if scores == 100_000:
            assert largest == 20 * 5000
    same(*results)
    handle.remove()
    plain = -F.cross_entropy(model.logits(hidden), targets, reduction="none")
    torch.testing.assert_close(results[0]["likely"], plain.detach())


def test_a_row_that_only_keeps_step_with_other_ranks_has_no_loss() -> None:
    model = decoder(LLAMA)
    (row,) = rows(groups(count=2))
    blank = Row(row.tokens, np.full_like(row.targets, IGNORE), row.lengths)
    objective = preference.objective(model, Settings(), preference.fixed(decoder(LLAMA)))
    alone, both = objective(Batch.of([row])), objective(Batch.of([row, blank]))
    torch.testing.assert_close(alone, both)
    nothing = objective(Batch.of([blank]))
    nothing.backward()
    assert nothing.item() == 0
    assert all(not slope.any() for slope in gradients(model).values())


# ---- learning -------------------------------------------------------------------------------------------------------
def with_lora(model: Decoder) -> Decoder:
    torch.manual_seed(0)
    adapt.put(model, "default", begin.lora(model, Lora(targets="all-linear", dropout=0.1)))
    adapt.trainable(model)
    return model.train()


@pytest.mark.parametrize("kind", ["dpo", "ipo", "hinge", "simpo", "orpo"])
def test_the_chosen_answers_become_likelier_than_the_rejected_ones(kind: str) -> None:
    model = with_lora(decoder(LLAMA))
    batch = Batch.of(rows(groups()))
    settings = Settings(kind, beta=2.0 if kind == "simpo" else 0.1)
    objective = preference.objective(model, settings, preference.without_adapters(model))
    data = Examples(list(groups()), 40).training(4, 1, seed=0, weigh=preference.pairs)
    seen: list[loop.Step] = []
    after = lambda step: seen.append(step) or True  # noqa: E731
    with torch.no_grad():
        before = preference.answers(model.eval(), batch)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    loop.train(objective, optim.build(model.train(), optim.Settings(lr=1e-2)), data, CONSTANT, Limits(25), 1.0, after)
    with torch.no_grad():
        learned = preference.answers(model.eval(), batch)
    if kind == "dpo":
        assert seen[0].loss == pytest.approx(math.log(2), abs=1e-5)  # nothing is preferred yet
        assert {step.supervised for step in seen} == {4}

    def margin(of: Answers) -> torch.Tensor:
        chosen, rejected = of.means if kind in ("ipo", "simpo", "orpo") else (of.chosen, of.rejected)
        return (chosen - rejected).mean()

    assert margin(learned) > margin(before) + 0.2
    assert np.mean([step.loss for step in seen[-3:]]) < seen[0].loss
    same({name: p for name, p in model.named_parameters() if name in frozen}, frozen, 0)


def test_blocks_computed_twice_know_the_adapter_from_the_reference() -> None:
    batch = Batch.of(rows(groups()))
    results = []
    for put_on in (lambda model: model, blocks.checkpointed):
        model = with_lora(decoder(LLAMA)).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        put_on(model)
        got = preference.objective(model, Settings(), preference.without_adapters(model))(batch)
        got.backward()
        results.append({"loss": got.detach(), **gradients(model)})
    assert results[0]["loss"] != pytest.approx(9 * math.log(2))
    same(*results)


def test_mixed_precision_is_that_of_the_way_back_too() -> None:
    model = decoder(LLAMA)
    batch = Batch.of(rows(groups()))
    exact = preference.objective(model, Settings(), preference.fixed(decoder(LLAMA, 1)))(batch)
    exact.backward()
    expected = gradients(model)
    mixed = preference.objective(model, Settings(), preference.fixed(decoder(LLAMA, 1)), torch.bfloat16)(batch)
    mixed.backward()
    torch.testing.assert_close(mixed, exact, rtol=0.05, atol=0.05)
    for name, slope in gradients(model).items():
        assert slope.dtype == torch.float32
        assert F.cosine_similarity(slope.flatten(), expected[name].flatten(), dim=0) > 0.98


# ---- from the command line ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def opinions(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pairs of polite and rude answers."""
    rows = json.loads((shared / "data/preference/dpo_rasbt_1100.json").read_text(encoding="utf-8"))
    file = tmp_path_factory.mktemp("pairs") / "opinions.json"
    file.write_text(json.dumps([row for row in rows if len(row["chosen"] + row["rejected"]) < 200][:40]))
    return file


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_model_learns_opinions(
    method: str, shared: Path, opinions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", shared / "data/models/stories260K-hf", "--data", opinions, "--out-dir", tmp_path / "out"]
    words += ["--method", method, "--objective=dpo", "--train.max-steps=6", "--val-split-fraction=0.2"]
    words += ["--optimizer.lr=1e-3" if method == "lora" else "--optimizer.lr=1e-4", "--eval.max-new-tokens=0"]
    words += ["--preference.beta=0.1", "--train.lr-warmup-steps=0", "--train.micro-batch-size=4"]
    words += ["--train.global-batch-size=8"]
    assert main(list(map(str, words))) == 0
    said = capsys.readouterr().err
    assert "perplexity" not in said
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < 0.65
    assert [line["validation_loss"] for line in lines if "validation_loss" in line][-1] < math.log(2)


@pytest.mark.parametrize(
    ("data", "objective", "message"),
    [
        ("opinions", "next-token", "chosen and rejected, to learn a preference from. Add --objective dpo"),
        ("identity", "dpo", "holds answers without another to compare them with"),
    ],
)
def test_data_must_be_what_the_objective_learns_from(
    data: str,
    objective: str,
    message: str,
    shared: Path,
    opinions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = opinions if data == "opinions" else shared / "data/instruct/identity_alpaca.json"
    words = ["finetune", shared / "data/models/stories260K-hf", "--data", file, "--out-dir", tmp_path / "out"]
    assert main([*map(str, words), f"--objective={objective}"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
