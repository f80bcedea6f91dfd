"""Quick decoders: as the plain ones in a batch and alone, whatever is put into them; nothing copied or renamed."""

from __future__ import annotations

import json

import pytest
import torch
from families import CASES

from lathe import checkpoint, families
from lathe.engine import Engine, Sampling
from lathe.model import native
from lathe.model.decoder import Decoder, Sequential
from lathe.model.layers import Linear
from lathe.model.layout import Layout
from lathe.transforms import adapt, begin, pack, panels, quantize
from lathe.transforms.kinds import KINDS, MADE
from lathe.transforms.products import QuickHead, QuickLinear, QuickTable
from lathe.transforms.quick import Quick
from lathe.transforms.roster import Roster
from lathe.transforms.terms import Lora

CPU = torch.device("cpu")
HOWS = [how for how in panels.CODES if how in MADE]
LLAMA = next(case.config for case in CASES if case.name == "llama-biased")


@pytest.fixture(scope="module", autouse=True)
def kernels():
    if native.library() is None:
        pytest.skip("no C++ compiler")


def made(dtype=torch.float32, config=LLAMA, seed=0) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(families.read(config)).to(dtype).eval()
    for parameter in decoder.parameters():
        parameter.requires_grad_(False).normal_(0, 0.2)
    return decoder


def answers(decoder: Decoder, prompts: list[list[int]], together: bool = True) -> list[list[int]]:
    engine, sampling = Engine(decoder), Sampling(temperature=0, max_new_tokens=12)
    found = []
    for group in [prompts] if together else [[prompt] for prompt in prompts]:
        asked = [engine.submit(prompt, sampling) for prompt in group]
        while engine.busy:
            engine.step()
        found += [[token.id for token in sequence.made] for sequence in asked]
    return found


PROMPTS = [[5, 9, 3], [7], [1, 2, 3, 4, 5, 6, 7, 8], [11] * 20]


def test_answers_are_the_plain_ones_alone_and_side_by_side():
    decoder = made()
    plain = answers(decoder, PROMPTS)
    pack.pack(decoder)
    assert answers(decoder, PROMPTS) == plain
    assert answers(decoder, PROMPTS, together=False) == plain


def test_scores_in_bfloat16_are_as_near_as_the_plain_ones_and_do_not_depend_on_company():
    exact, decoder = made(torch.bfloat16), made(torch.bfloat16)
    pack.pack(decoder)
    wide = exact.to(torch.float64)
    alone = scores(decoder, PROMPTS[2])
    together = scores(decoder, [*PROMPTS[2], *PROMPTS[0]], lengths=[8, 3])[:8]
    assert torch.equal(alone, together)
    plain, best = scores(made(torch.bfloat16), PROMPTS[2]), scores(wide, PROMPTS[2])
    assert (alone - best).abs().mean() <= 1.2 * (plain - best).abs().mean()


@torch.inference_mode()
def scores(decoder, tokens, lengths=None):
    whole = Layout.of(lengths or [len(tokens)])
    slots = torch.arange(len(tokens))
    read = tuple(slice(a, b) for a, b in zip(whole.seams, whole.seams[1:], strict=False))
    layout = Layout(whole.positions, whole.seams, whole.extents, slots, read)
    kind = next(decoder.parameters()).dtype
    shapes = [layer.mixer.cache for layer in decoder.spec.layers]
    cache = [tuple(torch.zeros(64, s.heads, s.key_channels, dtype=kind) for _ in range(2)) for s in shapes]
    return decoder.logits(decoder(torch.tensor(tokens), layout, cache)).double()


def test_a_long_past_is_looked_at_in_spans():
    config = {**LLAMA, "max_position_embeddings": 1024}
    decoder, prompt = made(config=config), [int(i) for i in torch.randint(0, 90, (700,))]
    plain = answers(decoder, [prompt, *PROMPTS])
    pack.pack(decoder)
    assert answers(decoder, [prompt, *PROMPTS]) == plain


def test_adapters_and_changed_weights_count_at_once():
    decoder, same = made(), made()
    pack.pack(decoder)
    answers(decoder, PROMPTS)
    for one in (decoder, same):
        torch.manual_seed(1)
        parts = begin.lora(one, Lora(rank=4, alpha=64, targets=r".*(q_proj|down_proj)"))
        for part in (part for parts_ in parts.values() for part in parts_):
            torch.nn.init.normal_(part.b)
        adapt.put(one, "first", parts)
    assert answers(decoder, PROMPTS) == answers(same, PROMPTS)
    for one in (decoder, same):
        one.model.layers[0].input_layernorm.weight = torch.nn.Parameter(torch.full((64,), 0.5), requires_grad=False)
        one.model.layers[1].mlp.up_proj.weight.mul_(0.5)
    assert answers(decoder, PROMPTS) == answers(same, PROMPTS)


def test_what_is_hooked_to_a_module_or_put_into_the_last_norm_later_counts_at_once():
    decoder, same = made(), made()
    pack.pack(decoder)
    before, passed = answers(decoder, PROMPTS), []
    decoder.model.layers[1].mlp.up_proj.register_forward_hook(lambda module, given, y: passed.append(len(y)))
    assert answers(decoder, PROMPTS) == before
    assert passed
    for one in (decoder, same):
        weight = one.model.norm.weight
        one.model.norm.weight = torch.nn.Parameter(torch.linspace(-2, 2, len(weight)), requires_grad=False)
    changed = answers(decoder, PROMPTS)
    assert changed == answers(same, PROMPTS) != before


@pytest.mark.parametrize("how", [None, "int8"])
def test_terms_of_many_adapters_are_added_by_the_kernels(how, monkeypatch):
    """Requests with an adapter, with another and with none share passes, none of which goes the plain way."""
    decoders = made(), made()
    rosters = []
    for decoder in decoders:
        if how is not None:
            quantize.pack(decoder, how)
    pack.pack(decoders[1])
    for decoder in decoders:
        roster = Roster(decoder)
        for seed, targets in enumerate((r".*_proj", r".*(q_proj|up_proj|down_proj)")):
            torch.manual_seed(seed)
            parts = begin.lora(decoder, Lora(rank=3 + seed, alpha=24, targets=targets))
            for part in (part for parts_ in parts.values() for part in parts_):
                torch.nn.init.normal_(part.b, std=0.3)
            roster.put(str(seed), parts)
        rosters.append(roster)
    asked = [(prompt, name) for prompt in PROMPTS[:2] for name in ("0", None, "1")]
    expected = scored(decoders[0], rosters[0], asked)
    monkeypatch.setattr(Sequential, "forward", None)
    found = scored(decoders[1], rosters[1], asked)
    bound = 1e-4 if how is None else 0.1
    assert (found - expected).abs().mean() <= bound * expected.std()
    assert (expected[0] - expected[1]).abs().mean() > 0.1 * expected.std()  # the adapters do something


@torch.inference_mode()
def scored(decoder, roster, asked):
    """Scores of what follows each prompt, all of which are read in one pass."""
    engine = Engine(decoder, adapters=roster)
    for prompt, name in asked:
        engine.submit(prompt, Sampling(temperature=0, max_new_tokens=1), adapter=name)
    parts = engine._parts()
    return engine.runner.scores(engine.runner.run(parts), parts)


def test_nothing_is_copied_or_renamed_and_saving_knows_no_difference(tmp_path):
    decoder = made()
    before = {name: parameter.data_ptr() for name, parameter in decoder.named_parameters()}
    modules = [name for name, _ in decoder.named_modules()]
    pack.pack(decoder)
    assert {name: parameter.data_ptr() for name, parameter in decoder.named_parameters()} == before
    assert [name for name, _ in decoder.named_modules()] == modules
    checkpoint.save(tmp_path / "saved", decoder, LLAMA)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["hidden_size"] == 64
    types = {type(module) for module in decoder.modules()}
    pack.unpack(decoder)
    assert {Quick, QuickLinear} <= types
    assert not {Quick, QuickLinear} & {type(module) for module in decoder.modules()}


def in_panels(module: quantize.PackedLinear) -> panels.QuickPacked:
    room = panels.Room(native.library(), [(module.how, module.shape)])
    found = room.panels(module.how, module.shape)
    found.put([module.get_parameter(name) for name in module.parts])
    return panels.QuickPacked(module, found)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("shape", [(5, 64), (40, 80), (49, 576), (16, 1000)])
def test_codes_are_multiplied_as_the_numbers_they_stand_for(how, shape):
    """Within what 8 bits for each 32 numbers of x, and for nf4's values, leave: 1.5 % of the product's size."""
    torch.manual_seed(0)
    linear = Linear(shape[1], shape[0], bias=True)
    for parameter in linear.parameters():
        parameter.requires_grad_(False).normal_()
    module = quantize.PackedLinear(linear, how)
    module.take(KINDS[how].pack([linear.weight], linear.weight.shape, CPU))
    x = torch.randn(7, shape[1])
    with torch.inference_mode():
        exact = module(x)
        quick = in_panels(module)
        y = quick(x)
        assert (y - exact).square().mean() <= (0.015 * exact.std()) ** 2
        for row, alone in zip(x, y, strict=True):
            assert torch.equal(quick(row[None])[0], alone)
        assert torch.equal(quick(x.repeat(11, 1)), y.repeat(11, 1))  # more than are made into codes at once


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("shape", [(5, 64), (40, 80), (16, 1000)])
def test_codes_are_there_once_and_come_back_bit_for_bit(how, shape):
    module = quantize.PackedLinear(Linear(shape[1], shape[0], bias=True), how)
    module.take(KINDS[how].pack([torch.randn(shape)], torch.Size(shape), CPU))
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    quick = in_panels(module)
    assert {name for name, _ in quick.named_parameters()} == {"panels", "bias"}
    assert {name for name, _ in module.named_parameters()} == {"bias"}
    room = sum(parameter.nbytes for name, parameter in before.items() if name != "bias")
    assert (
        quick.panels.nbytes <= room * (-(-shape[0] // 16) * 16 / shape[0]) * (-(-shape[1] // 64) * 64 / shape[1]) + 64
    )
    weight = quick.weight
    assert quick.back() is module
    after = dict(module.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(module.weight, weight)


@pytest.mark.parametrize("how", HOWS)
def test_quantized_decoders_score_as_their_plain_way(how):
    decoder, plain = made(), made()
    for one in (decoder, plain):
        quantize.pack(one, how)
    pack.pack(decoder)
    quick, exact = scores(decoder, PROMPTS[2]), scores(plain, PROMPTS[2])
    assert decoder.model.layers[0].plan().mixes
    assert (
        isinstance(decoder.lm_head, QuickHead) == isinstance(decoder.model.embed_tokens, QuickTable) == (how != "nf4")
    )
    assert "lm_head.weight" in decoder.state_dict()
    assert (quick - exact).square().mean() <= (0.05 * exact.std()) ** 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 64), (40, 80), (2500, 97)])
def test_rows_are_looked_up_as_their_codes_say(shape, dtype):
    """Bit for bit what unpacking all of them gives; made some rows at a time."""
    table = torch.randn(shape).to(dtype)
    for how in ("int8", "int8-32"):
        made = panels.Room(native.library(), [(how, table.shape)]).panels(how, table.shape)
        made.rounded(table.split(made.step()))
        whole = KINDS[how].unpack(made.parts(), shape[1], dtype)
        assert torch.equal(
            whole, KINDS[how].unpack([*KINDS[how].pack([table], table.shape, CPU).values()], shape[1], dtype)
        )
        index = torch.randint(shape[0], (3, 7))
        assert torch.equal(made.rows(index, dtype), whole[index])
        assert torch.equal(made.rows(torch.arange(shape[0]), dtype), whole)
        for wrong in (-1, shape[0]):
            with pytest.raises(IndexError, match=str(shape[0])):
                made.rows(torch.tensor([0, wrong]), dtype)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_are_codes_once_where_they_are_one(tied, tmp_path):
    """The numbers stay where they are: who learns has them, what is saved is them, and so is what comes back."""
    config = {**LLAMA, "tie_word_embeddings": tied}
    decoder, plain = made(config=config), made(config=config)
    quantize.pack(decoder, "int8")
    pack.pack(decoder)
    table, head = decoder.model.embed_tokens, decoder.lm_head
    assert (table.panels is head.panels) == tied
    index = torch.tensor([3, 1, 4, 1, 5])
    with torch.inference_mode():
        looked, exact = table(index), plain.model.embed_tokens(index)
        assert 0 < (looked - exact).square().mean() < (0.01 * exact.std()) ** 2
        assert torch.equal(looked, table.panels.rows(index, torch.float32))
    assert torch.equal(table(index), exact)  # where gradients are wanted
    table.weight = torch.nn.Parameter(torch.ones_like(table.weight), requires_grad=False)
    with torch.inference_mode():
        assert (table(index) == 1).all()  # it is another's now
    table.weight = plain.model.embed_tokens.weight
    checkpoint.save(tmp_path / "saved", decoder, config)
    again = checkpoint.open(tmp_path / "saved").tensors["model.embed_tokens.weight"].read()
    assert torch.equal(again, plain.model.embed_tokens.weight)
    pack.unpack(decoder)
    assert not isinstance(decoder.model.embed_tokens, QuickTable) and not isinstance(decoder.lm_head, QuickHead)
