"""Rotary positions: every scaling's frequencies are transformers', and a turn changes nothing but the angle."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published import PUBLISHED
from torch.testing import assert_close
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lathe import families
from lathe.model import rope
from lathe.model.layout import Layout
from lathe.model.spec import Dynamic, LongRope, Rope, Yarn

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def agree(config: dict[str, Any], extent: int, head: int) -> None:
    """Our frequencies and our factor on cos and sin are what transformers computes for a sequence of `extent`."""
    told = AutoConfig.for_model(**copy.deepcopy(config))
    turn = families.read(config).layers[0].mixer.rope
    kind = told.rope_parameters["rope_type"]
    if kind == "default":
        n = int(head * told.rope_parameters.get("partial_rotary_factor", 1.0))
        theirs = 1.0 / told.rope_parameters["rope_theta"] ** (torch.arange(0, n, 2).float() / n)
        factor = 1.0
    else:
        theirs, factor = ROPE_INIT_FUNCTIONS[kind](told, "cpu", seq_len=extent)
    assert_close(rope.frequencies(turn, extent), theirs, rtol=1e-6, atol=0)
    cos, sin = rope.angles(turn, replace(Layout.of([1]), extents=(extent,)))
    assert_close(cos, torch.full_like(cos, factor))  # at position 0
    assert not sin.any()


HEADS = {  # published configurations of each kind, and how many channels their heads have
    "Llama-2-7b-hf": 128,
    "Llama-3.1-8B": 128,
    "Llama-3.2-1B-Instruct": 64,
    "Qwen2.5-7B": 128,
    "Phi-3-mini-128k-instruct": 96,
    "Phi-4-mini-instruct": 128,
    "pythia-160m": 64,
    "DeepSeek-V3": 64,
}


@pytest.mark.parametrize("extent", [1, 4096, 4097, 100_000])
@pytest.mark.parametrize("name", HEADS)
def test_published_frequencies(name, extent):
    agree(PUBLISHED[name].config, extent, HEADS[name])


@pytest.mark.parametrize("extent", [7, 32768, 32769, 100_000])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 8.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"type": "dynamic", "factor": 4.0},
        YARN,
        {**YARN, "original_max_position_embeddings": 4096, "factor": None},
        {**YARN, "beta_fast": 8, "beta_slow": 0.5},
        {**YARN, "attention_factor": 1.5},
        {**YARN, "mscale": 0.707, "mscale_all_dim": 0.5},
        {**YARN, "mscale": 0.707},
        {**YARN, "truncate": False},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
    ids=str,
)
def test_scalings_put_on_a_published_model(scaling, extent):
    agree(PUBLISHED["Qwen2.5-7B"].config | {"max_position_embeddings": 32768, "rope_scaling": scaling}, extent, 128)


@given(
    base=st.floats(100, 1e7),
    half=st.integers(2, 64),
    factor=st.floats(1, 64),
    original=st.integers(128, 10_000),
    fast=st.floats(4, 64),
    slow=st.floats(0.25, 2),
    truncate=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_yarn_anywhere(base, half, factor, original, fast, slow, truncate):
    scaling = {**YARN, "factor": factor, "original_max_position_embeddings": original}
    scaling |= {"beta_fast": fast, "beta_slow": slow, "truncate": truncate}
    config = PUBLISHED["Llama-3.2-1B-Instruct"].config
    agree(config | {"rope_theta": base, "head_dim": 2 * half, "rope_scaling": scaling}, 0, 2 * half)


def test_frequencies_that_depend_on_length_belong_to_each_sequence():
    """Sequences on one ribbon do not see each other's length, and a chunk has the angles of the whole."""
    for scaling in (Dynamic(4.0, 8), LongRope((1.0, 1.0), (2.0, 8.0), 8, 1.1)):
        turn = Rope(10_000.0, 4, scaling)
        together = rope.angles(turn, Layout.of([5, 20]))
        alone = rope.angles(turn, Layout.of([20]))
        for ribbon, one in zip(together, alone, strict=True):
            assert_close(ribbon[5:], one, rtol=0, atol=0)
        part = replace(Layout.of([6]), extents=(20,))
        for chunk, one in zip(rope.angles(turn, part), alone, strict=True):
            assert_close(chunk, one[:6], rtol=0, atol=0)


def test_angles_are_made_once_for_all_layers():
    turn, layout = Rope(10_000.0, 8), Layout.of([5])
    assert rope.angles(turn, layout)[0] is rope.angles(replace(turn), layout)[0]


# ---- what a turn is -------------------------------------------------------------------------------------------------

TURNS = [
    Rope(10_000.0, 16),
    Rope(10_000.0, 16, interleaved=True),
    Rope(500.0, 6),
    Rope(500.0, 6, interleaved=True),
]


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_a_turn_keeps_lengths_and_what_it_does_not_turn(turn):
    x = torch.randn(9, 3, 16)
    y = rope.rotate(rope.angles(turn, Layout.of([9])), turn, x)[0]
    assert_close(y[0], x[0])  # at position 0
    assert_close(y[..., turn.channels :], x[..., turn.channels :], rtol=0, atol=0)
    assert_close(y.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("turn", TURNS, ids=str)
@given(a=st.integers(0, 500), b=st.integers(0, 500), shift=st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_only_the_distance_between_positions_counts(turn, a, b, shift):
    q, k = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(a)).double()

    def score(m: int, n: int) -> float:
        at = (rope.angles(turn, replace(Layout.of([1]), positions=torch.tensor([p]))) for p in (m, n))
        turned_q, turned_k = (rope.rotate(angles, turn, x)[0] for x, angles in zip((q, k), at, strict=True))
        return float((turned_q * turned_k).sum())

    assert math.isclose(score(a, b), score(a + shift, b + shift), abs_tol=2e-3)  # angles are float32


def test_a_turn_by_hand():
    """Two channels and base 1 000: position 3 is an angle of 3 radians."""
    turn = Rope(1000.0, 2)
    x = torch.tensor([[[1.0, 0.0]]]).expand(4, 1, 2)
    y = rope.rotate(rope.angles(turn, Layout.of([4])), turn, x)[0]
    assert_close(y[3, 0], torch.tensor([math.cos(3), math.sin(3)]))


def test_neighbours_and_halves_are_the_same_turn_of_other_channels():
    halves = Rope(10_000.0, 8)
    neighbours = replace(halves, interleaved=True)
    order = torch.arange(8).view(2, 4).T.flatten()  # a head in halves, put in order of neighbours
    x, layout = torch.randn(5, 2, 8), Layout.of([5])
    turned = rope.rotate(rope.angles(halves, layout), halves, x)[0]
    assert_close(rope.rotate(rope.angles(neighbours, layout), neighbours, x[..., order])[0], turned[..., order])


def test_a_turn_is_rounded_once():
    turn = Rope(10_000.0, 8)
    angles = rope.angles(turn, Layout.of([50]))
    x = torch.randn(50, 2, 8).bfloat16()
    assert_close(rope.rotate(angles, turn, x)[0], rope.rotate(angles, turn, x.float())[0].bfloat16(), rtol=0, atol=0)


def test_yarn_without_stretch_is_plain():
    yarn = Yarn(1.0, 4096, 32.0, 1.0, 1.0)
    assert_close(rope.frequencies(Rope(10_000.0, 64, yarn), 0), rope.frequencies(Rope(10_000.0, 64), 0))
