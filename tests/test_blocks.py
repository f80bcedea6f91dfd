"""Compiled blocks, and blocks that are computed twice, have the loss and the gradients of plain ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import CASES
from test_training import documents, gradients, same

from lathe import families
from lathe.data.loader import Batch
from lathe.data.pack import Packed
from lathe.data.stages import InOrder
from lathe.model import initial
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.training import blocks, loss
from lathe.transforms import adapt, begin
from lathe.transforms.terms import Lora

SOME = {case.name: case.config for case in CASES}
KINDS = ["llama-2", "gemma2", "gemma3", "qwen3-moe", "gpt-oss", "deepseek-v3", "ministral3", "llama-dynamic", "neox"]

QUICK = "eager"  # the graphs as they are: the code that inductor makes of them takes minutes to build


@pytest.fixture(autouse=True)
def _afresh() -> None:
    torch.compiler.reset()


def ribbon(seed: int, count: int = 4) -> Batch:
    (row,) = Packed(InOrder(documents(seed, count)), 10_000)
    return Batch.of([row])


def results(model: Decoder, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    got = loss.next_token(model)(batch)
    got.backward()
    return got.detach(), gradients(model)


PUT_ON: dict[str, Callable[[Decoder], Decoder]] = {
    "compiled": lambda model: blocks.compiled(model, QUICK),
    "checkpointed": blocks.checkpointed,
    "both": lambda model: blocks.checkpointed(blocks.compiled(model, QUICK)),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("checkpointed", name) for name in KINDS),
        ("compiled", "deepseek-v3"),
        ("both", "ministral3"),
    ],
)
def test_results_stay_what_they_were(kind: str, name: str) -> None:
    model = initial.decoder(families.read(SOME[name]), seed=0)
    names = [name for name, _ in model.named_parameters()]
    expected = [results(model, ribbon(seed)) for seed in (0, 1)]
    PUT_ON[kind](model)
    assert [name for name, _ in model.named_parameters()] == names
    for seed, (value, by_parameter) in enumerate(expected):
        got, slopes = results(model, ribbon(seed))
        torch.testing.assert_close(got, value, rtol=1e-5, atol=0)
        same(slopes, by_parameter, 1e-4)
    with torch.no_grad():
        batch = ribbon(0)
        torch.testing.assert_close(loss.next_token(model)(batch), expected[0][0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["gemma3", "qwen3-moe"])
def test_no_ribbon_needs_code_of_its_own(name: str) -> None:
    model = blocks.compiled(initial.decoder(families.read(SOME[name]), seed=0), QUICK)
    counted = torch._dynamo.utils.counters["stats"]
    made = []
    for seed in range(4):  # of so many sequences, of other lengths each time
        results(model, ribbon(seed, 2 + seed))
        made.append(counted["unique_graphs"])
    assert made[0] > 0
    assert made[1:] == [made[0]] * 3


def test_dropout_falls_alike_both_times() -> None:
    model = initial.decoder(families.read(SOME["llama-2"]), seed=0)
    adapt.put(model, "a", begin.lora(model, Lora(targets="all-linear", dropout=0.5)))
    for parameter in adapt.trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    model.train()
    torch.manual_seed(3)
    expected = results(model, ribbon(0))
    blocks.checkpointed(model)
    torch.manual_seed(3)
    got = results(model, ribbon(0))
    torch.testing.assert_close(got[0], expected[0])
    same(got[1], expected[1])


def test_only_what_goes_into_a_block_is_kept() -> None:
    def kept(model: Decoder) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden = model(torch.arange(64), Layout.of([64]))
        assert hidden.requires_grad
        return sum(size for pointer, size in sizes.items() if pointer not in own)

    deep = {**SOME["llama-2"], "num_hidden_layers": 6}
    model = initial.decoder(families.read(deep), seed=0)
    plain = kept(model)
    assert kept(blocks.checkpointed(model)) < plain / 8
