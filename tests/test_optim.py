"""Which parameters an optimizer gets and how; small steps on bfloat16 weights are as those on float32 ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from families import CASES
from test_training import CONSTANT, LLAMA, TIED, VOCAB, decoder, documents

from lathe import families
from lathe.data.loader import Batch, Steps
from lathe.data.pack import Packed
from lathe.data.stages import InOrder, Shuffled
from lathe.errors import UsageError
from lathe.model import initial
from lathe.model.decoder import Decoder
from lathe.model.native import learning
from lathe.training import loop, loss, optim
from lathe.training.bfloat16 import Kept, Numbers, SplitAdamW, chunked, join, passed, plain, split
from lathe.training.limits import Limits
from lathe.training.optim import Settings
from lathe.transforms import adapt, begin
from lathe.transforms.terms import Lora

SOME = {case.name: case.config for case in CASES}


def decays(model: Decoder, settings: Settings) -> dict[str, float]:
    made = optim.build(model, settings)
    by = {p: g["weight_decay"] for o in made for g in o.param_groups for p in g["params"]}
    return {name: by[p] for name, p in model.named_parameters()}


# ---- groups ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_only_matrices_decay(name: str) -> None:
    settings = Settings(name, lr=1.0, weight_decay=0.3)
    for config in (LLAMA, TIED):
        found = decays(decoder(config), settings)
        assert found == {name: 0.0 if "norm" in name else 0.3 for name in found}
    kept = decays(decoder(TIED), Settings(name, weight_decay=0.3, decay_embeddings=False))
    assert [name for name, decay in kept.items() if not decay and "norm" not in name] == ["model.embed_tokens.weight"]


def test_biases_of_experts_sinks_and_norms_of_heads_do_not_decay() -> None:
    for name in ("gpt-oss", "cohere-normed-heads", "llama-biased", "deepseek-v3"):
        found = decays(initial.decoder(families.read(SOME[name]), seed=0), Settings(weight_decay=0.3))
        flat = {name for name, decay in found.items() if not decay}
        assert flat == {name for name in found if name.endswith(("bias", "sinks")) or "norm" in name}


def test_muon_gets_the_hidden_matrices_and_adamw_the_rest() -> None:
    model = initial.decoder(families.read(SOME["qwen2-moe"]), seed=0)
    names = {p: name for name, p in model.named_parameters()}
    muon, adamw = optim.build(model, Settings("muon"))
    hidden = {names[p] for group in muon.param_groups for p in group["params"]}
    others = {names[p] for group in adamw.param_groups for p in group["params"]}
    assert isinstance(muon, torch.optim.Muon)
    assert hidden | others == set(names.values())
    assert not hidden & others
    assert {name.split(".", 3)[-1] for name in hidden} == {
        *(f"self_attn.{x}_proj.weight" for x in "qkvo"),
        *(f"mlp.shared_experts.{x}_proj.weight" for x in ("gate", "up", "down")),
        "mlp.shared_expert_gate.weight",
    }


def test_an_optimizer_gets_what_an_adapter_learns() -> None:
    model = decoder(LLAMA)
    adapt.put(model, "a", begin.lora(model, Lora(targets="all-linear")))
    learned = adapt.trainable(model)
    (made,) = optim.build(model, Settings())
    assert {p for group in made.param_groups for p in group["params"]} == set(learned.values())
    adapt.trainable(model, ())
    with pytest.raises(UsageError, match="No parameter of the model learns"):
        optim.build(model, Settings())


# ---- methods --------------------------------------------------------------------------------------------------------
METHODS = {"adamw": 1e-2, "muon": 1e-2, "adafactor": 5e-2}
METHODS |= dict.fromkeys(("adam", "nadam", "radam", "adamax", "rmsprop"), 1e-2)
METHODS |= {"sgd": 0.1, "adagrad": 0.1, "adadelta": 1.0, "asgd": 0.5}
MORE = {"sgd": {"momentum": 0.9, "more": {"nesterov": True}}}


@pytest.mark.parametrize("name", METHODS)
def test_each_method_learns_a_small_text_by_heart(name: str) -> None:
    text = np.frombuffer(b"It is never too late to be what you might have been.", dtype=np.uint8) % VOCAB
    model = initial.decoder(families.read(LLAMA), seed=0)
    optimizers = optim.build(model, Settings(name, METHODS[name], weight_decay=0.0, **MORE.get(name, {})))
    data = Steps(Packed(Shuffled([text], seed=0), 64), 1, 1)
    seen: list[loop.Step] = []
    after = lambda step: seen.append(step) or step.loss > 0.1  # noqa: E731
    loop.train(loss.next_token(model), optimizers, data, CONSTANT, Limits(200), 1.0, after)
    assert seen[0].loss == pytest.approx(math.log(VOCAB), rel=0.1)
    assert seen[-1].loss <= 0.1


def test_eight_bits_are_nearly_as_good() -> None:
    pytest.importorskip("torchao")
    wide = {**LLAMA, "hidden_size": 64, "intermediate_size": 64}  # matrices of 4,096 numbers: smaller ones stay 32 bits
    losses = {}
    for name in ("adamw", "adamw-8bit"):
        model = initial.decoder(families.read(wide), seed=0)
        model.requires_grad_(False)
        model.model.layers[0].mlp.requires_grad_(True)
        seen: list[float] = []
        batch = Batch.of(list(Packed(InOrder(documents()), 16)))
        work = [loop.Work([batch], batch.supervised, len(batch.tokens))] * 30
        after = lambda step: seen.append(step.loss) or True  # noqa: E731, B023
        with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():  # the same, without half a minute
            warnings.simplefilter("ignore")
            made = optim.build(model, Settings(name, lr=1e-2))
            loop.train(loss.next_token(model), made, work, CONSTANT, Limits(30), 1.0, after)
        losses[name] = seen
    state = made[0].state[model.model.layers[0].mlp.up_proj.weight]
    assert type(state["exp_avg"]).__name__ == "OptimState8bit"
    assert losses["adamw-8bit"] == pytest.approx(losses["adamw"], rel=0.01)
    assert losses["adamw-8bit"][-1] < losses["adamw-8bit"][0] - 0.3


@pytest.mark.parametrize("name", ["muon", "adafactor", "sgd"])
def test_small_steps_on_bfloat16_weights_are_refused_where_they_would_be_lost(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} and --precision bf16-true.*Take bf16-mixed"):
        optim.build(decoder(LLAMA).bfloat16(), Settings(name))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings("adam", momentum=0.9), "--optimizer.momentum is given, and Adam has none"),
        (Settings("sgd", more={"nestrov": True}), "--optimizer.more is nestrov=..., and SGD has none.*nesterov"),
        (Settings("sgd", more={"nesterov": True}), "SGD is not to be had so"),
        (Settings("adamw", more={"lr": 1.0}), "--optimizer.more is lr=..., and AdamW has none"),
        (Settings("muon", more={"nesterov": True}), "--optimizer.more is given, and --optimizer.name is muon"),
    ],
)
def test_what_an_optimizer_has_not_is_refused(settings: Settings, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        optim.build(decoder(LLAMA), settings)


def test_further_arguments_reach_torchs_class() -> None:
    [made] = optim.build(decoder(LLAMA), Settings("adamw", more={"amsgrad": True}))
    assert made.defaults["amsgrad"] is True
    [made] = optim.build(decoder(LLAMA), Settings("rmsprop", eps=0.5, more={"alpha": 0.5}))
    assert (type(made), made.defaults["alpha"], made.defaults["eps"]) == (torch.optim.RMSprop, 0.5, 0.5)


# ---- bfloat16 -------------------------------------------------------------------------------------------------------
def test_a_number_is_its_two_halves() -> None:
    bits = torch.randint(-(1 << 31), 1 << 31, (100_000,), generator=torch.Generator().manual_seed(0))
    wide = bits.to(torch.int32).view(torch.float32)
    wide = wide[wide.abs() < 3e38]  # not nan, and not what rounds to infinity
    upper, lower = torch.empty(len(wide), dtype=torch.bfloat16), torch.empty(len(wide), dtype=torch.int16)
    split(wide, upper, lower)
    assert torch.equal(join(upper, lower), wide)
    nearest = wide.bfloat16().double()
    assert torch.equal((upper.double() - wide).abs(), (nearest - wide).abs())  # where two are as near, either


def gradients_of(parameter: torch.Tensor, steps: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    drift = torch.randn(parameter.shape, generator=draw)
    return [(drift + torch.randn(parameter.shape, generator=draw)).bfloat16() for _ in range(steps)]


def stepped(made: torch.optim.Optimizer, parameter: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    for gradient in gradients:
        parameter.grad = gradient.to(parameter.dtype)
        made.step()
    return parameter.detach()


def test_small_steps_on_bfloat16_weights_are_those_on_float32_weights() -> None:
    """Steps of 3e-5 on weights about 1, whose neighbours in bfloat16 are 4e-3 away."""
    begin = (1 + torch.rand(40, 50, generator=torch.Generator().manual_seed(1))).bfloat16()
    betas, gradients = (0.9, 0.999), gradients_of(begin, 300)

    def one(dtype: torch.dtype) -> torch.nn.Parameter:
        return torch.nn.Parameter(begin.to(dtype, copy=True))

    def plain(parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
        return torch.optim.AdamW([parameter], lr=3e-5, betas=betas, weight_decay=0.1)

    exact, naive, halves = one(torch.float32), one(torch.bfloat16), one(torch.bfloat16)
    stepped(plain(exact), exact, gradients)
    stepped(plain(naive), naive, gradients)
    made = SplitAdamW([halves], lr=3e-5, betas=betas, eps=1e-8, weight_decay=0.1)
    stepped(made, halves, gradients)
    ours = join(halves.detach(), made.state[halves]["lower"])

    way = (exact - begin.float()).norm()
    assert way > 0
    assert torch.equal(naive, begin)  # nothing was learned
    assert (ours - exact).norm() < 0.01 * way
    assert torch.equal(halves, ours.bfloat16())
    assert (halves != begin).float().mean() > 0.2


def test_a_model_in_bfloat16_learns_what_one_in_float32_learns() -> None:
    batch = Batch.of(list(Packed(InOrder(documents(count=4)), 200)))

    def trained(kind: str) -> list[float]:
        model = initial.decoder(families.read(LLAMA), seed=0)
        if kind != "exact":
            model.bfloat16()
        made = optim.build(model, Settings(lr=2e-4, weight_decay=0.0))
        if kind == "naive":
            made = [torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0)]
            made[0].param_groups[0]["initial_lr"] = 2e-4
        work, seen = [loop.Work([batch], batch.supervised, len(batch.tokens))] * 80, []
        after = lambda step: seen.append(step.loss) or True  # noqa: E731
        loop.train(loss.next_token(model), made, work, CONSTANT, Limits(80), 1.0, after)
        return seen[-5:]

    exact, ours, naive = (np.mean(trained(kind)) for kind in ("exact", "ours", "naive"))
    assert ours == pytest.approx(exact, abs=0.01)
    assert naive > exact + 0.05


def test_a_resumed_optimizer_goes_on_bit_for_bit() -> None:
    begin = torch.randn(300, generator=torch.Generator().manual_seed(1)).bfloat16()
    gradients = gradients_of(begin, 20)

    def fresh(weights: torch.Tensor) -> tuple[SplitAdamW, torch.nn.Parameter]:
        parameter = torch.nn.Parameter(weights.clone())
        return SplitAdamW([parameter], lr=1e-4, betas=(0.9, 0.95), eps=1e-8), parameter

    whole, expected = fresh(begin)
    stepped(whole, expected, gradients)
    first, halfway = fresh(begin)
    stepped(first, halfway, gradients[:10])
    second, resumed = fresh(halfway.detach())
    second.load_state_dict(first.state_dict())
    stepped(second, resumed, gradients[10:])
    assert torch.equal(resumed, expected)
    for name, value in whole.state[expected].items():
        assert second.state[resumed][name].dtype == value.dtype
        assert torch.equal(second.state[resumed][name], value)


def test_weights_longer_than_a_chunk_are_stepped_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "library", lambda: None)
    begin = torch.randn(7, 11, generator=torch.Generator().manual_seed(1)).bfloat16()
    results = []
    for chunk in (1 << 20, 10):
        monkeypatch.setattr("lathe.training.bfloat16.CHUNK", {"cpu": chunk, "cuda": chunk})
        parameter = torch.nn.Parameter(begin.clone())
        made = SplitAdamW([parameter], lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
        results.append(stepped(made, parameter, gradients_of(begin, 5)))
    assert torch.equal(*results)


@pytest.mark.parametrize("other", [plain, passed], ids=["formulas for a compiler", "kernel"])
def test_a_step_is_the_same_each_way(other: Callable[..., None]) -> None:
    drawn = torch.Generator().manual_seed(2)
    weights = torch.randn(500, generator=drawn)
    gradients = [0.1 * torch.randn(500, generator=drawn).bfloat16() for _ in range(20)]
    results = []
    for move in (chunked, other):
        upper, lower = torch.empty(500, dtype=torch.bfloat16), torch.empty(500, dtype=torch.int16)
        split(weights, upper, lower)
        mean, square = torch.zeros_like(upper), torch.zeros_like(weights)
        for number, gradient in enumerate(gradients, 1):
            at = (torch.tensor(float(number)), torch.tensor(1e-2))
            move(Kept(upper, lower, mean, square), gradient, *at, Numbers(0.9, 0.95, 1e-8, 0.1))
        results.append((join(upper, lower), mean.float(), square))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-5)
    assert (results[0][0] - results[1][0]).norm() < 1e-4 * (results[0][0] - weights).norm()
