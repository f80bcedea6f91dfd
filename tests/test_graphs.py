"""Steps that a GPU records and replays, computed on the CPU: the same answers, in shapes that stay, with no look at a
number. Recording itself is tested in test_cuda.py."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import CASES, Case
from test_engine import (
    CONTEXT,
    DYNAMIC,
    GATED,
    GQA,
    LATENT,
    NORM,
    ROPE,
    SOFTCAP,
    VOCAB,
    WIDTH,
    WINDOW,
    filled,
    prompt_of,
    run,
)
from test_speculate import near
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lathe import families
from lathe.engine import DraftModel, Engine, Sampling, Sequence
from lathe.engine.graphs import LEAST, MOST, Graphs, Step, Varying, Watch, able
from lathe.engine.pages import Pages
from lathe.engine.runner import Runner
from lathe.engine.scheduler import Part
from lathe.model import gradients, initial, kernels
from lathe.model import spec as s
from lathe.model.decoder import Decoder
from lathe.transforms import begin
from lathe.transforms.roster import Roster
from lathe.transforms.terms import Lora

SMALL = s.Gated(24)
EXPERTS = s.Experts(SMALL, s.Router(count=4, chosen=2), shared=s.Gated(16))
LONG = s.Rope(100.0, 8, s.LongRope((1.0, 1.1, 1.2, 1.5), (1.0, 1.5, 4.0, 9.0), 40, 1.2))


def attention(**changes: Any) -> s.Attention:
    return s.Attention(**{"heads": 4, "kv_heads": 2, "channels": 8, "scale": 8**-0.5, "rope": ROPE, **changes})


MIXERS: dict[str, list[s.Mixer]] = {
    "gqa": [GQA],
    "window": [WINDOW, GQA],
    "chunks": [attention(chunk=7), attention(rope=None, temperature=s.Temperature(0.5, 8))],
    "softcap": [SOFTCAP],
    "sinks": [attention(sinks=True, window=9), attention(sinks=True)],
    "normed": [attention(heads=4, kv_heads=4, qk_norm=s.QKNorm(NORM))],
    "latent": [LATENT],
    "dynamic": [DYNAMIC],
    "long": [attention(rope=LONG), GQA],
    "experts": [GQA],
}


def spec_of(name: str) -> s.Spec:
    mlp = EXPERTS if name == "experts" else GATED
    layers = tuple(s.Layer(mixer, mlp, NORM) for mixer in (MIXERS[name] * 2)[:2])
    return s.Spec(VOCAB, WIDTH, layers, NORM, CONTEXT, embed_scale=1.5)


def decoder_of(name: str) -> Decoder:
    return filled(Decoder(spec_of(name)))


@pytest.fixture(scope="module", params=MIXERS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return decoder_of(request.param)


class Recorder:
    """What a GPU's does, without a GPU: the step is computed once under watch, and then again in each replay."""

    def __init__(self) -> None:
        self.recorded: list[tuple[int, int]] = []
        self.replays = 0

    def __call__(self, device: torch.device) -> Callable[[Step], Callable[[], Tensor]]:
        def record(step: Step) -> Callable[[], Tensor]:
            with Watch():
                step.compute()
            self.recorded.append(step.told.shape)

            def replay() -> Tensor:
                self.replays += 1
                return step.compute()

            return replay

        return record


def recording(engine: Engine) -> Recorder:
    recorder = Recorder()
    runner = engine.runner
    runner.graphs = Graphs(runner.decoder, engine.pages, runner.layers, recorder)
    return recorder


def talk(engine: Engine) -> list[Sequence]:
    """Nine who come one after the other and end at different times, with every token's scores."""
    lengths = (1, 30, 5, 17, 2, 40, 9, 23, 12)
    said = []
    for number, length in enumerate(lengths):
        wish = Sampling(temperature=0, max_new_tokens=5 + 3 * (number % 4), logprobs=2)
        said.append(engine.submit(prompt_of(length, number), wish))
        for _ in range(2):
            engine.step()
    run(engine)
    return said


def assert_alike(ours: list[Sequence], right: list[Sequence], within: float = 1e-5) -> None:
    for mine, theirs in zip(ours, right, strict=True):
        assert [token.id for token in mine.made] == [token.id for token in theirs.made]
        told = [[token.logprob for token in sequence.made] for sequence in (mine, theirs)]
        assert told[0] == pytest.approx(told[1], abs=within)


# ---- the same answers ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"tokens": CONTEXT, "chunk": 16}, {"kv": torch.int8, "page": 4}])
def test_answers_are_those_of_steps_that_are_not_recorded(decoder: Decoder, options: dict[str, Any]) -> None:
    """Any number at once, who come and go, and in a pool so small that some give way."""
    engine = Engine(decoder, **options)
    recorder = recording(engine)
    for keys, values in engine.pages.cache:  # blank slots may hold anything
        if keys.is_floating_point():
            keys.fill_(float("nan"))
            values.fill_(float("nan"))
    assert_alike(talk(engine), talk(Engine(decoder, **options)), 2e-3 if "kv" in options else 1e-5)
    assert engine.runner.graphs is not None and engine.runner.graphs.refused is None
    assert recorder.replays > 10
    assert {rows for rows, _ in recorder.recorded} <= {1, 2, 4, 8, 16}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_family(case: Case) -> None:
    model = initial.decoder(families.read(case.config), 3)
    prompts = [[n * k % (model.spec.vocab - 3) + 3 for n in range(k)] for k in (1, 9, 26) if k < model.spec.context]
    said = []
    for recorded in (False, True):
        engine = Engine(model, tokens=256)
        recorder = recording(engine) if recorded else None
        wish = Sampling(temperature=0, max_new_tokens=4, logprobs=0)
        said.append([engine.submit(prompt, wish) for prompt in prompts])
        run(engine)
    assert_alike(said[1], said[0])
    assert recorder is not None and recorder.replays >= 3


def test_every_step_without_a_prompt_is_one(decoder: Decoder) -> None:
    engine = Engine(decoder, tokens=1024)
    recorder = recording(engine)
    asked = [engine.submit(prompt_of(3 + n, n), Sampling(temperature=0, max_new_tokens=20)) for n in range(9)]
    engine.step()
    assert recorder.replays == 0 and all(sequence.made for sequence in asked)
    for _ in range(19):
        engine.step()
    assert recorder.replays == 19 and not engine.busy
    assert recorder.recorded == [(16, 2 + LEAST // engine.pages.size)]


def test_guesses_are_those_of_steps_that_are_not_recorded() -> None:
    """A draft model's tokens, too, are made one by one."""
    plain, replays = decoder_of("gqa"), []
    for recorded in (False, True):
        drafter = DraftModel(near(plain), 3)
        engine = Engine(plain, tokens=512, drafter=drafter)
        recorder = Recorder()
        if recorded:
            drafter.runner.graphs = Graphs(drafter.decoder, engine.pages, drafter.runner.layers, recorder)
        replays.append((talk(engine), recorder.replays))
    (right, none), (ours, some) = replays
    assert_alike(ours, right)
    assert none == 0 and some > 10
    assert [s.proposed for s in ours] == [s.proposed for s in right]


def test_who_names_an_adapter_is_not_replayed() -> None:
    plain = decoder_of("gqa")
    roster = Roster(plain)
    generator = torch.Generator().manual_seed(2)
    parts = begin.lora(plain, Lora(rank=2))
    for held in parts.values():
        for part in held:
            torch.nn.init.normal_(part.b, std=0.5, generator=generator)
    roster.put("one", parts)

    def answers(engine: Engine, name: str | None) -> list[int]:
        sequence = engine.submit(prompt_of(9), Sampling(temperature=0, max_new_tokens=8), adapter=name)
        run(engine)
        return [token.id for token in sequence.made]

    engine, eager = Engine(plain, adapters=roster), Engine(plain, adapters=roster)
    recorder = recording(engine)
    assert answers(engine, "one") == answers(eager, "one")
    assert recorder.replays == 0
    assert answers(engine, None) == answers(eager, None) != answers(eager, "one")
    assert recorder.replays == 7


def test_what_is_another_now_is_recorded_anew() -> None:
    plain = decoder_of("gqa")
    engine = Engine(plain)  # whose pool grows
    recorder = recording(engine)

    def answer(length: int) -> list[int]:
        sequence = engine.submit(prompt_of(length), Sampling(temperature=0, max_new_tokens=5))
        run(engine)
        return [token.id for token in sequence.made]

    first = answer(4)
    again = answer(4)
    assert again == first and len(recorder.recorded) == 1
    engine.pages._grow(4 * len(engine.pages.holders))
    assert answer(4) == first and len(recorder.recorded) == 2
    plain.lm_head.weight.mul_(-1)
    plain.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        -plain.model.layers[0].mlp.up_proj.weight, requires_grad=False
    )
    changed = answer(4)
    assert len(recorder.recorded) == 3
    other = Engine(plain)
    sequence = other.submit(prompt_of(4), Sampling(temperature=0, max_new_tokens=5))
    run(other)
    assert changed == [token.id for token in sequence.made]


def test_more_slots_than_are_worth_it_are_left_to_the_plain_way() -> None:
    plain = decoder_of("gqa")
    runner = Runner(plain, Pages([layer.mixer.cache for layer in plain.spec.layers], 64))
    graphs = Graphs(plain, runner.pages, runner.layers, Recorder())
    rows = 2 * MOST // LEAST
    sequences = [Engine(plain).submit(prompt_of(2)) for _ in range(2)]
    for sequence in sequences:
        runner.pages.reserve(sequence.lease, 2, 2)
        sequence.cached = 1
    assert graphs.run([Part.of(sequences[0], 1)] * rows) is None
    assert graphs.run([Part.of(sequence, 1) for sequence in sequences]) is not None


# ---- nothing depends on a number -------------------------------------------------------------------------------------
class Shapes(TorchDispatchMode):
    """Every operation with the shapes of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.seen.append((str(func), [x.shape for x in tree_leaves(made) if isinstance(x, Tensor)]))
        return made


@pytest.mark.parametrize("name", [name for name in MIXERS if name != "experts"])  # those differ on a CPU
def test_operations_and_shapes_stay_while_sequences_grow_and_change(name: str) -> None:
    engine = Engine(decoder_of(name), tokens=2048)
    recording(engine)
    asked = [engine.submit(prompt_of(n, n), Sampling(temperature=0)) for n in (3, 50, 20)]
    while not all(sequence.made for sequence in asked):
        engine.step()
    traces = []
    for change in (False, True):
        if change:
            engine.cancel(asked[0])
            for _ in range(20):
                engine.step()
            asked.append(engine.submit(prompt_of(33, 7), Sampling(temperature=0)))
            engine.step()
        engine.step()
        step, _ = engine.runner.graphs.steps[4, 16]
        with torch.inference_mode(), Shapes() as shapes:
            step.compute()
        traces.append(shapes.seen)
    assert len(traces[0]) > 20 and traces[0] == traces[1]


by_host = kernels.expert_products


@pytest.mark.parametrize("name", MIXERS)
def test_a_gpu_would_wait_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways of a GPU, on tensors without numbers: whoever looks at one, or makes a shape of it, fails."""
    taken = []

    def flash(q: Tensor, v: Tensor, seen: kernels.Seen) -> bool:
        taken.append(q.shape[-1] == v.shape[-1] and seen.softcap is None and seen.chunk is None)
        return taken[-1]

    monkeypatch.setattr(kernels, "_flash", flash)
    monkeypatch.setattr(kernels, "expert_products", kernels.grouped_products)
    monkeypatch.setattr(gradients, "product_dtype", lambda x: x.dtype)  # no autocast for such tensors
    with torch.device("meta"), torch.inference_mode():
        decoder = Decoder(spec_of(name)).to(torch.bfloat16)
        shapes = [layer.mixer.cache for layer in decoder.spec.layers]
        step = Step(decoder, Pages(shapes, 512, device="meta", dtype=torch.bfloat16), slice(0, len(shapes)), 4, 16)
        assert step.compute().shape == (4, WIDTH)
    assert any(taken) == (name not in ("softcap", "sinks", "latent"))
    if name == "experts":  # which the host deals out itself where there is no such product
        monkeypatch.setattr(kernels, "expert_products", by_host)
        with torch.device("meta"), torch.inference_mode(), pytest.raises(NotImplementedError, match="meta"):
            step.compute()


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0.5],
        lambda x: x.long().bincount(),
        lambda x: x.repeat_interleave(x.long()),
    ],
)
def test_looks_at_numbers_are_found(look: Callable[[Tensor], object]) -> None:
    with Watch():
        (torch.rand(4) * 2).softmax(-1).sort()
        with pytest.raises(Varying):
            look(torch.rand(4))


def test_what_cannot_be_recorded_is_computed_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, right = decoder_of("experts"), talk(Engine(decoder_of("experts")))
    forward = type(plain.model.layers[0].mlp).forward
    monkeypatch.setattr(
        type(plain.model.layers[0].mlp), "forward", lambda self, x: forward(self, x) + 0 * x.sum().item()
    )
    engine = Engine(plain)
    recorder = recording(engine)
    with pytest.warns(UserWarning, match="not recorded as CUDA graphs: aten.item") as told:
        assert_alike(talk(engine), right)
    assert len(told) == 1 and recorder.recorded == [] and recorder.replays == 0


def test_only_a_gpu_records_and_only_what_it_has_for_itself() -> None:
    plain = decoder_of("gqa")
    assert Engine(plain).runner.graphs is None
    here, there = torch.device("cuda", 0), torch.device("cuda", 1)
    assert able(plain, pool(here, here, here))
    assert not able(plain, pool(torch.device("cpu"), torch.device("cpu")))
    assert not able(plain, pool(here, here, there))
    plain.model.layers[0].mlp.register_forward_hook(lambda *_: None)  # as where ranks add up what they computed
    assert not able(plain, pool(here, here, here))


def pool(device: torch.device, *places: torch.device) -> Any:
    return SimpleNamespace(device=device, places=places)
