"""Packing, slicing and accumulating change nothing; twenty steps are those of a plain transformers and torch loop."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import CASES, Case
from torch import nn

from lathe import families
from lathe.data.loader import Batch, Steps
from lathe.data.pack import IGNORE, Packed, Row
from lathe.data.stages import InOrder, Shuffled
from lathe.errors import UsageError
from lathe.model import initial, layers, mlps
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.model.native import learning
from lathe.training import loop, loss, optim, precision
from lathe.training.balance import Balance
from lathe.training.limits import Limits, Reached
from lathe.training.optim import Settings
from lathe.training.schedule import FALLS, Schedule
from lathe.transforms import adapt, begin
from lathe.transforms.terms import Lora

VOCAB = 61
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GEMMA2 = {
    **LLAMA,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "final_logit_softcapping": 3.0,
    "attn_logit_softcapping": 5.0,
    "sliding_window": 8,
}
GRANITE = {**LLAMA, "architectures": ["GraniteForCausalLM"], "model_type": "granite", "logits_scaling": 4.0}
TIED = {**LLAMA, "tie_word_embeddings": True}
CONSTANT = Schedule("constant", warmup=0)
CONFIGS = pytest.mark.parametrize("config", [LLAMA, TIED, GEMMA2, GRANITE], ids=["llama", "tied", "gemma2", "granite"])


def decoder(config: dict, seed: int = 0) -> Decoder:
    made = initial.decoder(families.read(config), seed)
    with torch.no_grad():  # larger than a sound start, so that caps bend, and differences would show
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)), alpha=0.2)
    return made


def documents(seed: int = 0, count: int = 12) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, VOCAB, draw.integers(2, 40)) for _ in range(count)]


def masked(row: Row) -> Row:
    """The same row with a loss on two of three tokens."""
    targets = row.targets.copy()
    targets[::3] = IGNORE
    return Row(row.tokens, targets, row.lengths)


def gradients(model: Decoder) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance * b[name].abs().max().item())


# ---- loss -----------------------------------------------------------------------------------------------------------
@CONFIGS
@pytest.mark.parametrize("scores", [1, 7 * VOCAB, 1 << 24])
def test_the_sliced_loss_is_the_plain_one(config: dict, scores: int) -> None:
    model = decoder(config)
    batch = Batch.of([masked(row) for row in Packed(InOrder(documents()), 16)])
    plain = F.cross_entropy(
        model.logits(model(batch.tokens, batch.layout)), batch.targets, ignore_index=IGNORE, reduction="sum"
    )
    (plain / 3).backward()
    expected = gradients(model)
    sliced = loss.cross_entropy(model, model(batch.tokens, batch.layout), batch.targets, scores)
    (sliced / 3).backward()
    torch.testing.assert_close(sliced, plain)
    same(gradients(model), expected)
    with torch.no_grad():
        torch.testing.assert_close(
            loss.cross_entropy(model, model(batch.tokens, batch.layout), batch.targets, scores), plain
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_judged_alike_with_and_without_a_kernel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, targets = (5 * torch.randn(40, 301)).to(dtype), torch.randint(301, (40,))
    wide = scores.double().requires_grad_()
    right = F.cross_entropy(wide, targets, reduction="sum") + 1e-2 * wide.logsumexp(-1).square().sum()
    right.backward()
    for kernels in (learning.library, lambda: None):
        monkeypatch.setattr(learning, "library", kernels)
        pull = scores.clone()
        torch.testing.assert_close(loss._judged(pull, targets, 1e-2).double(), right.detach(), rtol=1e-5, atol=0)
        exact = dtype == torch.float32
        torch.testing.assert_close(
            pull.double(), wide.grad, rtol=1e-5 if exact else 2**-8, atol=1e-6 if exact else 2**-10
        )


def test_a_frozen_head_gets_no_gradient_and_passes_it_on() -> None:
    model = decoder(LLAMA)
    model.lm_head.requires_grad_(False)
    batch = Batch.of(list(Packed(InOrder(documents()), 16)))
    F.cross_entropy(model.logits(model(batch.tokens, batch.layout)), batch.targets, reduction="sum").backward()
    expected = gradients(model)
    loss.next_token(model)(batch).backward()
    same(gradients(model), expected)
    assert "lm_head.weight" not in expected


def test_mixed_precision_multiplies_in_bfloat16_and_keeps_float32_gradients() -> None:
    model = decoder(LLAMA)
    batch = Batch.of(list(Packed(InOrder(documents()), 16)))
    exact = loss.next_token(model)(batch)
    exact.backward()
    expected = gradients(model)
    mixed = loss.next_token(model, torch.bfloat16)(batch)
    mixed.backward()
    assert mixed.item() != exact.item()
    torch.testing.assert_close(mixed, exact, rtol=0.02, atol=0)
    for name, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32
        assert F.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0) > 0.99


def test_logits_of_the_whole_batch_never_exist() -> None:
    config = {**LLAMA, "vocab_size": 5000}
    model = decoder(config)
    hidden, targets = torch.randn(512, 32, requires_grad=True), torch.randint(5000, (512,))
    largest = 0

    def watch(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.numel())

    model.lm_head.register_forward_hook(watch)
    loss.cross_entropy(model, hidden, targets, scores=100_000).backward()
    assert largest == 20 * 5000


# ---- packing --------------------------------------------------------------------------------------------------------
@CONFIGS
def test_packed_documents_have_the_loss_and_gradients_of_each_alone(config: dict) -> None:
    model, some = decoder(config), documents()
    objective = loss.next_token(model)
    (row,) = Packed(InOrder(some), 10_000)
    together = objective(Batch.of([row]))
    together.backward()
    packed = gradients(model)
    alone = []
    for document in some:
        layout, ids = Layout.of([len(document) - 1]), torch.from_numpy(document)
        scores = model.logits(model(ids[:-1], layout))
        alone.append(F.cross_entropy(scores, ids[1:], reduction="sum"))
    torch.testing.assert_close(together, torch.stack(alone).sum())
    torch.stack(alone).sum().backward()
    same(packed, gradients(model))


# ---- the loop -------------------------------------------------------------------------------------------------------
class Uneven(Packed):
    """Rows of which every other has few tokens with a loss."""

    def __next__(self) -> Row:
        row = super().__next__()
        return masked(row) if len(row.lengths) % 2 else row


def trained(config: dict, at_once: int, steps: int = 3, rows: int = 6) -> tuple[Decoder, list[loop.Step]]:
    model, seen = decoder(config), []
    data = Steps(Uneven(Shuffled(documents(), seed=1), 16), rows, at_once)
    optimizers = optim.build(model, Settings(lr=1e-2, weight_decay=0.1))
    loop.train(
        loss.next_token(model),
        optimizers,
        data,
        Schedule(warmup=1, floor=0.1),
        Limits(steps),
        1.0,
        lambda step: seen.append(step) or True,
    )
    return model, seen


@pytest.mark.parametrize("at_once", [1, 2, 4])  # 4: the last batch of a step is smaller
def test_accumulated_batches_are_one_batch(at_once: int) -> None:
    model, steps = trained(LLAMA, at_once)
    whole, expected = trained(LLAMA, 6)
    for step, other in zip(steps, expected, strict=True):
        assert step.loss == pytest.approx(other.loss, rel=1e-5)
        assert step.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)
        assert (step.tokens, step.supervised) == (other.tokens, other.supervised) != (96, 96)
    same(dict(model.named_parameters()), dict(whole.named_parameters()), 1e-3)


def test_twenty_steps_are_those_of_a_plain_transformers_and_torch_loop() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model, some = decoder(LLAMA), documents(count=8)
    theirs = LlamaForCausalLM(LlamaConfig(**LLAMA))
    theirs.load_state_dict(model.state_dict())
    schedule = Schedule(warmup=4, floor=0.1)
    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    others = [p for p in theirs.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95)
    )
    expected = []
    for step in range(20):
        for group in adamw.param_groups:
            group["lr"] = 3e-3 * schedule(step, 20)
        total = sum(len(document) - 1 for document in some)
        mean = torch.zeros(())
        for document in some:
            ids = torch.from_numpy(document)
            mean = mean + F.cross_entropy(theirs(ids[None, :-1]).logits[0], ids[1:], reduction="sum") / total
        mean.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        expected.append(mean.item())

    seen: list[loop.Step] = []
    epoch = list(Steps(Packed(InOrder(some), 10_000), 1, 1))
    loop.train(
        loss.next_token(model),
        optim.build(model, Settings(lr=3e-3)),
        epoch * 20,
        schedule,
        Limits(20),
        1.0,
        lambda step: seen.append(step) or True,
    )
    assert [step.loss for step in seen] == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0] - 0.5


def test_twenty_steps_of_a_lora_are_those_of_peft_and_a_plain_loop() -> None:
    """The same A and B at first, the same examples with the loss on a part of them, several to a step."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    model, some = decoder(LLAMA), documents(count=6)
    theirs = LlamaForCausalLM(LlamaConfig(**LLAMA))
    theirs.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    adapt.put(model, "default", begin.lora(model, Lora(rank=4, alpha=8.0, targets="all-linear")))
    adapt.trainable(model)
    theirs = get_peft_model(theirs, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"))
    names = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            names[f"base_model.model.{name}"].data.copy_(parameter.data)
    learned = [p for p in theirs.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learned) == sum(p.numel() for p in model.parameters() if p.requires_grad)

    adamw = torch.optim.AdamW(learned, lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0)
    rows = [masked(row) for row in Packed(InOrder(some), 10_000)]
    (row,) = rows
    expected = []
    for _ in range(20):
        pieces = np.split(np.arange(len(row.tokens)), np.cumsum(row.lengths)[:-1])
        mean = torch.zeros(())
        for piece in pieces:
            scores = theirs(torch.from_numpy(row.tokens[piece])[None]).logits[0]
            mean = mean + F.cross_entropy(
                scores, torch.from_numpy(row.targets[piece]), ignore_index=IGNORE, reduction="sum"
            )
        mean = mean / (row.targets != IGNORE).sum()
        mean.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        adamw.step()
        adamw.zero_grad()
        expected.append(mean.item())

    seen: list[loop.Step] = []
    batch = Batch.of(rows)
    work = [loop.Work([batch], batch.supervised, len(batch.tokens))] * 20
    made = optim.build(model, Settings(lr=1e-2, weight_decay=0.0, betas=(0.9, 0.999)))
    after = lambda step: seen.append(step) or True  # noqa: E731
    loop.train(loss.next_token(model), made, work, CONSTANT, Limits(20), 1.0, after)
    assert [step.loss for step in seen] == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0] - 0.5
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter, names[f"base_model.model.{name}"], rtol=1e-2, atol=1e-3)


def test_a_tiny_model_learns_a_small_text_by_heart() -> None:
    text = np.frombuffer(b"It is never too late to be what you might have been.", dtype=np.uint8) % VOCAB
    model = initial.decoder(families.read(LLAMA), seed=0)
    data = Steps(Packed(Shuffled([text], seed=0), 64), 1, 1)
    seen: list[loop.Step] = []
    optimizers = optim.build(model, Settings(lr=1e-2, weight_decay=0.0))
    constant = Schedule("constant", warmup=10)
    after = lambda step: seen.append(step) or step.loss > 0.02  # noqa: E731
    loop.train(loss.next_token(model), optimizers, data, constant, Limits(150), 1.0, after)
    assert seen[0].loss == pytest.approx(math.log(VOCAB), rel=0.1)
    assert seen[-1].loss <= 0.02


def test_validation_is_the_mean_over_tokens_not_over_batches() -> None:
    model = decoder(LLAMA)
    objective = loss.next_token(model)
    one = loop.mean(objective, Steps(Packed(InOrder(documents()), 16), 100, 100))
    many = loop.mean(objective, Steps(Packed(InOrder(documents()), 16), 3, 2))
    assert many == pytest.approx(one, rel=1e-5)
    assert not gradients(model)
    assert math.isnan(loop.mean(objective, []))


def test_a_loss_that_is_no_number_stops_the_run_before_it_spoils_the_weights() -> None:
    model = decoder(LLAMA)
    with torch.no_grad():
        model.model.norm.weight[0] = math.inf
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    optimizers = optim.build(model, Settings(lr=1e-2, weight_decay=0.1))
    data = Steps(Packed(InOrder(documents()), 16), 2, 2)
    with pytest.raises(UsageError, match=r"The loss is nan at step 1\. Lower the learning rate"):
        loop.train(loss.next_token(model), optimizers, data, CONSTANT, Limits(3), 1.0, lambda step: True)
    assert torch.equal(before, model.model.layers[0].mlp.up_proj.weight)


# ---- the optimizer --------------------------------------------------------------------------------------------------
def test_the_schedule_rises_to_one_and_falls_to_its_floor() -> None:
    factor = partial(Schedule("cosine", warmup=10, floor=0.1), steps=101)
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([1 / 11, 5 / 11, 10 / 11])
    assert factor(10) == 1
    assert factor(55) == pytest.approx(0.55)
    assert factor(100) == pytest.approx(0.1)
    assert all(factor(a) > factor(a + 1) for a in range(10, 100))
    assert Schedule(warmup=0, floor=0.1)(0, 1) == 1


@pytest.mark.parametrize(
    ("shape", "expected"),
    [  # at 0, 50, 80, 90 and 100 of the way, down to a tenth
        ("linear", [1, 0.55, 0.28, 0.19, 0.1]),
        ("constant", [1, 1, 1, 1, 1]),
        ("wsd", [1, 1, 1, 0.1 + 0.9 * (1 - 0.5**0.5), 0.1]),
    ],
)
def test_schedules_fall_as_they_are_drawn(shape: str, expected: list[float]) -> None:
    factor = Schedule(shape, warmup=0, floor=0.1, decay=0.2)
    assert [factor(step, 101) for step in (0, 50, 80, 90, 100)] == pytest.approx(expected)


def test_a_rise_may_be_a_part_of_the_way_and_the_way_without_end() -> None:
    assert Schedule(warmup=0.1)(9, 100) == 10 / 11
    assert Schedule(warmup=0.1)(10, 100) == 1
    assert Schedule(warmup=0.1)(1999, math.inf) == 2000 / 2001
    assert {Schedule(shape)(10**6, math.inf) for shape in FALLS} == {1}


@pytest.mark.parametrize(
    ("limits", "total"),
    [
        (Limits(), math.inf),
        (Limits(steps=50), 50),
        (Limits(tokens=1000), 10),  # of 100 tokens each
        (Limits(tokens=1001), 11),
        (Limits(epochs=3), 12),  # of a quarter each
        (Limits(seconds=100), 40),
        (Limits(50, 1000, 3, 100), 10),
    ],
)
def test_how_long_a_run_will_be(limits: Limits, total: float) -> None:
    assert limits.total(Reached(steps=4, tokens=400, epochs=1.0, seconds=10.0)) == total


@pytest.mark.parametrize(
    ("limits", "most", "steps"),
    [
        (Limits(steps=3), None, 3),
        (Limits(tokens=65), None, 5),  # of 16 tokens
        (Limits(), 1, 17),  # times 16 tokens are an epoch, and the last step is smaller
        (Limits(steps=9), 1, 9),
        (Limits(seconds=1e-9), None, 1),
    ],
)
def test_a_run_ends_at_the_first_limit(limits: Limits, most: int | None, steps: int) -> None:
    model, seen = decoder(LLAMA), []
    some = [np.arange(18) % VOCAB] * 16  # 272 targets
    data = Steps(Packed(Shuffled(some, 0, most), 16), 1, 1)
    optimizers = optim.build(model, Settings(lr=1e-3, weight_decay=0.1))
    after = lambda step: seen.append(step) or True  # noqa: E731
    arguments = (loss.next_token(model), optimizers, data, CONSTANT, limits, 1.0, after)
    reached = loop.train(*arguments)
    assert len(seen) == steps == reached.steps
    assert seen[-1].reached == reached
    assert reached.tokens == sum(step.tokens for step in seen)
    if most is not None and limits.steps is None:
        assert reached.epochs == 1
    else:
        assert seen[-1].total == steps
        assert loop.train(*arguments, begin=reached) == reached  # nothing is left to do
    assert len(seen) == steps


# ---- the beginning --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_family_begins_near_chance_and_all_of_it_can_learn(case: Case) -> None:
    spec = families.read(case.config)
    model, drawn = initial.decoder(spec, seed=0), dict(initial.drawn(spec, 0))
    assert drawn.keys() == {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    assert all(values.isfinite().all() for values in drawn.values())  # every weight got a value
    tokens = torch.randint(model.spec.vocab, (64,), generator=torch.Generator().manual_seed(0))
    mean = loss.cross_entropy(model, model(tokens, Layout.of([40, 24])), tokens.roll(1)) / 64
    mean.backward()
    assert mean.item() == pytest.approx(math.log(model.spec.vocab), abs=0.25)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3", "granite", "llama-3.2-tied-llama3-rope"])
def test_no_token_predicts_itself_at_first_in_wider_models_either(name: str) -> None:
    config = {**next(case.config for case in CASES if case.name == name), "hidden_size": 512, "vocab_size": 1000}
    config |= {"rms_norm_eps": 1e-6}  # as they have it: what is normed is not small
    model = initial.decoder(families.read(config), seed=0)
    tokens = torch.randint(1000, (64,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = loss.cross_entropy(model, model(tokens, Layout.of([64])), tokens.roll(1)) / 64
    assert mean.item() == pytest.approx(math.log(1000), abs=0.5)


@pytest.mark.parametrize("name", ["llama-2", "gemma2", "nemotron", "cohere-normed-heads"])
def test_norms_begin_as_the_identity(name: str) -> None:
    config = next(case.config for case in CASES if case.name == name)
    model = initial.decoder(families.read(config), seed=0)
    norms = [module for module in model.modules() if isinstance(module, layers.NORMS)]
    assert norms
    for module in norms:
        x = F.layer_norm(torch.randn(5, *module.weight.shape), module.weight.shape[-1:])
        torch.testing.assert_close(module(x), x / (1 + module.eps) ** 0.5, rtol=1e-4, atol=1e-4)


def test_what_adds_to_the_stream_is_smaller_in_a_deeper_model() -> None:
    wide = {**LLAMA, "hidden_size": 160, "intermediate_size": 400, "num_hidden_layers": 8}
    model = initial.decoder(families.read(wide), seed=0)
    std = (2 / 5 / 160) ** 0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            into = name.endswith(("o_proj.weight", "down_proj.weight"))
            assert parameter.std().item() == pytest.approx(std / 4 if into else std, rel=0.03)


def test_a_seed_is_a_model() -> None:
    a, b, c = (initial.decoder(families.read(TIED), seed) for seed in (1, 1, 2))
    same(dict(a.named_parameters()), dict(b.named_parameters()), 0)
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)
    assert a.lm_head.weight is a.model.embed_tokens.weight


# ---- terms beside the loss ------------------------------------------------------------------------------------------
@CONFIGS
def test_the_size_of_logits_counts_as_its_formula_has_it(config: dict) -> None:
    model = decoder(config)
    batch = Batch.of([masked(row) for row in Packed(InOrder(documents()), 16)])
    wanted = batch.targets != IGNORE
    scores = model.logits(model(batch.tokens, batch.layout))[wanted]
    plain = F.cross_entropy(scores, batch.targets[wanted], reduction="sum")
    (plain + 0.3 * scores.logsumexp(-1).square().sum()).backward()
    expected = gradients(model)
    objective = loss.next_token(model, z=0.3)
    total = objective(batch)
    total.backward()
    torch.testing.assert_close(total, plain + 0.3 * scores.logsumexp(-1).square().sum())
    same(gradients(model), expected)
    with torch.no_grad():
        torch.testing.assert_close(objective(batch), plain)  # not where it is only measured


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "phi-moe"])
def test_imbalance_is_what_transformers_computes(name: str) -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = next(case.config for case in CASES if case.name == name)
    model = decoder(config)
    routers = [module for module in model.modules() if isinstance(module, mlps.Router | mlps.SparseMixer)]
    seen: list[torch.Tensor] = []
    for router in routers:
        router.register_forward_hook(lambda r, x, _: seen.append(F.linear(x[0].float(), r.weight)))
    batch = Batch.of(list(Packed(InOrder(documents()), 16)))
    plain = loss.next_token(model)(batch)
    expected = torch.stack(
        [load_balancing_loss_func((logits,), logits.shape[1], routers[0].part.chosen) for logits in seen]
    ).mean()
    (plain + 0.5 * batch.supervised * expected).backward()
    slopes = gradients(model)
    objective = loss.next_token(model, balance=0.5)
    for _ in range(2):  # of each ribbon anew
        total = objective(batch)
        torch.testing.assert_close(total, plain + 0.5 * batch.supervised * expected)
        total.backward()
        same(gradients(model), slopes, 1e-4)
    with torch.no_grad():
        torch.testing.assert_close(objective(batch), plain)


def test_experts_of_sigmoids_are_balanced_at_the_number_of_choices() -> None:
    config = next(case.config for case in CASES if case.name == "deepseek-v3")
    model = initial.decoder(families.read(config), seed=0)
    imbalance = Balance(model)
    model(torch.arange(90) % 90, Layout.of([90]))
    chosen = next(module for module in model.modules() if isinstance(module, mlps.Router)).part.chosen
    assert imbalance().item() == pytest.approx(chosen, rel=0.1)
    with pytest.raises(UsageError, match="has no experts"):
        loss.next_token(decoder(LLAMA), balance=0.1)


# ---- 16 bits --------------------------------------------------------------------------------------------------------
def test_float16_gradients_do_not_vanish_and_steps_that_overflow_are_left_out() -> None:
    model, seen = decoder(LLAMA), []
    batch = Batch.of(list(Packed(InOrder(documents()), 16)))
    scale = precision.Dynamic(2.0**40, patience=4)  # which nothing bears
    objective = loss.next_token(model, torch.float16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    moved = []

    def after(step: loop.Step) -> bool:
        seen.append(step)
        moved.append(not torch.equal(before["lm_head.weight"], model.lm_head.weight))
        return True

    work = [loop.Work([batch], batch.supervised, len(batch.tokens))] * 40
    made = optim.build(model, Settings(lr=1e-3))
    loop.train(objective, made, work, CONSTANT, Limits(40), 1.0, after, scale=scale)
    assert not moved[0]
    assert moved[-1]
    assert math.isinf(seen[0].gradient_norm) or math.isnan(seen[0].gradient_norm)
    assert seen[-1].loss < seen[0].loss - 0.3
    exact = decoder(LLAMA)
    (loss.next_token(exact)(batch) / batch.supervised).backward()
    norm = nn.utils.get_total_norm([p.grad for p in exact.parameters()])
    first = next(step for step in seen if math.isfinite(step.gradient_norm))
    assert first.gradient_norm == pytest.approx(norm.item(), rel=0.02)


def test_the_factor_rises_where_it_is_borne_falls_where_not_and_is_resumed() -> None:
    scale = precision.Dynamic(4.0, patience=3)
    assert [scale.sound(norm, 1) for norm in (1.0, math.inf, 1.0, 1.0)] == [True, False, True, True]
    assert scale.factor == 2
    again = precision.Dynamic(patience=3)
    again.restore(scale.state())
    assert again.sound(1.0, 1)
    assert again.factor == 4
    assert not again.sound(math.nan, 1)
    assert not again.sound(math.nan, 1)
    with pytest.raises(UsageError, match="The gradient is nan at step 7"):
        again.sound(math.nan, 7)


def test_a_gradient_that_is_no_number_stops_the_run_before_it_spoils_the_weights() -> None:
    model = decoder(LLAMA)
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    data = Steps(Packed(InOrder(documents()), 16), 2, 2)
    optimizers = optim.build(model, Settings(lr=1e-2))
    with pytest.raises(UsageError, match="The gradient is nan at step 1"):
        loop.train(loss.next_token(model), optimizers, data, CONSTANT, Limits(3), 1.0, lambda step: True)
    same(dict(model.named_parameters()), before, 0)
