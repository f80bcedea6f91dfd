"""Layers on several devices: the same numbers, on the device where each layer is, and balanced.

A machine without GPUs has one device, so here devices are pretended: tensors compute on the CPU and refuse to meet
those said to be elsewhere. Real GPUs are left to the tests marked gpu.
"""

from __future__ import annotations

import pytest
import torch
from pretend import Pretend
from test_engine import CONTEXT, SPECS, answers, decoder_of, prompt_of, whole

from lathe.engine import DraftModel, Engine, Sampling
from lathe.model import spec as s
from lathe.model.decoder import Decoder
from lathe.transforms import spread

PROMPTS = [prompt_of(n, n) for n in (3, 17, 40)]
WISHES = [Sampling(temperature=0, max_new_tokens=20), Sampling(seed=1, max_new_tokens=9), Sampling(seed=2)]
GPUS = [torch.device("cuda", index) for index in range(3)]


def sizes(decoder: Decoder) -> dict[str, int]:
    return {name: parameter.nbytes for name, parameter in decoder.named_parameters()}


@pytest.mark.parametrize("name", SPECS)
def test_the_numbers_do_not_change(name: str) -> None:
    expected = answers(Engine(decoder_of(name)), PROMPTS, WISHES)
    decoder = spread.seams(decoder_of(name))
    assert answers(Engine(decoder), PROMPTS, WISHES) == expected
    assert answers(Engine(decoder, drafter=DraftModel(decoder, 3)), PROMPTS[:1], WISHES[:1]) == expected[:1]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("tied", [True, False])
def test_nothing_meets_that_is_not_moved(name: str, tied: bool) -> None:
    """The whole engine on three pretended devices, with slots in one piece and, when they run out, scattered."""
    [layer, _] = SPECS[name]
    layers = (layer,) * 5
    spec = s.Spec(61, 32, layers, layer.norm, CONTEXT, tied=tied, learned_positions=CONTEXT)
    decoder = Decoder(spec).requires_grad_(False)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    pool = 2 * CONTEXT
    expected = answers(Engine(decoder, tokens=pool), PROMPTS, WISHES), Engine(decoder).score(PROMPTS[2])
    place = spread.places(sizes(decoder), GPUS)
    with Pretend() as pretend:
        for parameter_name, parameter in decoder.named_parameters():
            pretend.put(parameter, place(parameter_name))
        with pytest.raises(RuntimeError, match="of tensors on cuda:0 and cuda:1"):
            Engine(decoder).score(PROMPTS[2])
        spread.seams(decoder)
        engine = Engine(decoder, tokens=pool)
        homes = [next(block.parameters()).device for block in decoder.model.layers]
        assert set(homes) == set(GPUS)
        assert [keys.device for keys, _ in engine.pages.cache] == homes
        assert answers(engine, PROMPTS, WISHES) == expected[0]
        assert engine.score(PROMPTS[2]) == expected[1]
        assert engine.logits(PROMPTS[2]).device == GPUS[0]
        draft = DraftModel(pretended(decoder_of("gqa"), pretend), 3)
        assert answers(Engine(decoder, drafter=draft), PROMPTS[:1], WISHES[:1]) == expected[0][:1]


def pretended(decoder: Decoder, pretend: Pretend) -> Decoder:
    """All of a decoder on the first device."""
    for parameter in decoder.parameters():
        pretend.put(parameter, GPUS[0])
    return decoder


def test_bytes_are_balanced_and_in_order() -> None:
    layer = SPECS["gqa"][0]
    decoder = Decoder(s.Spec(61, 32, (layer,) * 12, layer.norm, CONTEXT))
    names = sizes(decoder)
    for count in (1, 2, 3):
        place = spread.places(names, GPUS[:count])
        homes = [place(f"model.layers.{n}.mlp.up_proj.weight") for n in range(12)]
        assert homes == sorted(homes, key=GPUS.index) and set(homes) == set(GPUS[:count])
        assert {place(name) for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")} == {
            GPUS[0]
        }
        shares = [sum(size for name, size in names.items() if place(name) == gpu) for gpu in GPUS[:count]]
        assert max(shares) - min(shares) <= 2 * sum(names.values()) / 12


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_real_gpus() -> None:
    expected = whole(decoder_of("gqa"), PROMPTS[2], 40)
    decoder = decoder_of("gqa")
    place = spread.places(sizes(decoder), GPUS[:2])
    for name, parameter in decoder.named_parameters():
        parameter.data = parameter.data.to(place(name))
    spread.seams(decoder)
    engine = Engine(decoder)
    torch.testing.assert_close(engine.logits(PROMPTS[2]).cpu(), expected, atol=1e-3, rtol=1e-3)
    assert answers(engine, PROMPTS[:1], WISHES[:1]) == answers(Engine(decoder_of("gqa")), PROMPTS[:1], WISHES[:1])
