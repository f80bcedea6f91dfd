"""What LitGPT 0.5.13 gets wrong, by the numbers of our list of its defects, and Lathe does not.

That LitGPT fails is shown, in its own environment, by tests/oracles/test_litgpt_defects.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bytewise import plain_tokenizer
from families import Case
from published import PUBLISHED
from rank_work import PROMPTS, each, opened, said
from test_engine import answers, decoder_of, prompt_of, run, whole

from lathe import checkpoint, families
from lathe.actions import inspect, ranks
from lathe.engine import DraftModel, Engine, Sampling
from lathe.tokenizer import Tokenizer
from lathe.training import initial


def test_1_a_prompt_read_into_the_cache_is_causal_under_a_soft_cap() -> None:
    """LitGPT adds its boolean mask to capped scores, so that a prompt sees what follows in it."""
    decoder = decoder_of("softcap")
    engine, prompt = Engine(decoder), prompt_of(40)
    engine.submit(prompt)
    [part] = engine.scheduler.pick()
    cached = decoder.logits(engine.runner.run([part]))
    assert part.length == 40
    assert torch.allclose(cached, whole(decoder, prompt, 96), atol=1e-5)
    changed = [*prompt[:-1], (prompt[-1] + 1) % decoder.spec.vocab]
    assert torch.allclose(cached[:-1], whole(decoder, changed, 96)[:-1], atol=1e-5)


@pytest.mark.parametrize("chunk", [4, 512])
def test_2_a_prompt_may_be_longer_than_the_sliding_window(chunk: int) -> None:
    """LitGPT refuses one: "use chunked prefill", which it does not have."""
    decoder = decoder_of("window")
    engine = Engine(decoder, chunk=chunk)
    sequence = engine.submit(prompt_of(60), Sampling(temperature=0, max_new_tokens=20))
    run(engine)
    expected = whole(decoder, sequence.tokens, sequence.extent).argmax(-1).tolist()
    assert [token.id for token in sequence.made] == expected[59:-1]


def test_3_two_processes_answer_what_one_answers(tmp_path: Path) -> None:
    """LitGPT cuts the rows of queries, keys and values as if they were one matrix. tests/test_shard.py has the rest."""
    source = "grouped queries"
    ranks.run(each, 2, "cpu", [source], tmp_path)
    engine = Engine(opened(source).load())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")[source]
        assert found["tokens"] == said(engine)
        for prompt, theirs in zip(PROMPTS, found["logits"], strict=True):
            torch.testing.assert_close(theirs, engine.logits(prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cold", [0.0, 1.0])
def test_7_speculative_decoding_loses_no_token(cold: float) -> None:
    """LitGPT drops the first token of an answer, and its greedy answers are not the target's."""
    decoder = decoder_of("gqa")
    [expected] = answers(Engine(decoder), [prompt_of(9)], [Sampling(temperature=0, max_new_tokens=50)])
    for draft in (decoder, decoder_of("experts")):
        wish = Sampling(temperature=cold, seed=1, max_new_tokens=50)
        [made] = answers(Engine(decoder, drafter=DraftModel(draft, 3)), [prompt_of(9)], [wish])
        assert len(made) == 50
        assert cold or made == expected


def test_8_the_name_of_a_folder_does_not_say_how_a_text_begins(tmp_path: Path) -> None:
    """LitGPT begins a text with BOS in a folder called Llama-3-8B, and in out/final not."""
    ids = [Tokenizer.open(plain_tokenizer(tmp_path / name)).encode("a") for name in ("Llama-3-8B", "final")]
    assert ids[0] == ids[1]
    assert ids[0][0] == 0


@pytest.mark.parametrize("text", ["né 🔥", "日本語 naïve", "👩‍👩‍👧‍👦"])
def test_9_characters_of_several_tokens_stream_whole(text: str, tmp_path: Path) -> None:
    """LitGPT decodes token by token: a character of several tokens comes out as so many question marks."""
    tokenizer = Tokenizer.open(plain_tokenizer(tmp_path / "bytes"))
    stream = tokenizer.stream()
    pieces = [stream.push(id) for id in tokenizer.encode(text, special=False)]
    assert "".join(pieces) + stream.flush() == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


@pytest.mark.parametrize("name", ["gemma-2b", "gemma-2-2b", "gemma-3-1b-it", "Llama-2-7b-hf"])
def test_15_norms_of_a_new_model_begin_as_the_identity(name: str) -> None:
    """LitGPT starts Gemma's norm weights, to which one is added, at one: every norm doubles."""
    decoder = initial.decoder(families.read(Case("", name).config), seed=0)
    x = torch.randn(100, decoder.spec.width) * 3
    for norm in (decoder.model.norm, decoder.model.layers[0].input_layernorm):
        size = norm(x).square().mean(-1).sqrt()
        assert torch.allclose(size, torch.ones(100), atol=0.02)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        # 32 layers, in each 6 of 8 experts of 3 x 14,336 x 4,096 stay idle.
        ("Mixtral-8x7B-v0.1", 46_702_792_704, 46_702_792_704 - 32 * 6 * 3 * 14_336 * 4_096),
        # 48 layers, in each 120 of 128 experts of 3 x 768 x 2,048 stay idle.
        ("Qwen3-30B-A3B", 30_532_122_624, 30_532_122_624 - 48 * 120 * 3 * 768 * 2_048),
    ],
)
def test_16_all_experts_count(name: str, total: int, active: int) -> None:
    """LitGPT's estimate has one expert in each layer: 7.2 B for Mixtral 8x7B, 3.3 B for Qwen3 30B."""
    spec = families.read(PUBLISHED[name].config)
    assert sum(slot.numel() for _, slot in checkpoint.slots(checkpoint.blank(spec))) == total
    assert total - inspect.idle(spec) == active
