"""The LLM object on a real small model, against what transformers computed from the same files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lathe import families
from lathe.engine import Engine
from lathe.errors import MissingError, PromptError, TokenizerError, UsageError
from lathe.llm import LLM, Completion, Reply, defaults
from lathe.model.decoder import Decoder
from lathe.tokenizer import Tokenizer

FORMS = ["stories260K-hf", "stories260K-litgpt", "stories260K-gguf/stories260K-f32.gguf"]
ONCE = "Once upon a time"


@pytest.fixture(scope="module")
def models(shared: Path) -> Path:
    return shared / "data/models"


@pytest.fixture(scope="module")
def expected(models: Path) -> dict[str, Any]:
    return json.loads((models / "stories260K/expected.json").read_text())


@pytest.fixture(scope="module")
def golden(models: Path) -> str:
    return (models / "stories260K/expected_greedy.txt").read_text()


@pytest.fixture(scope="module")
def llm(models: Path) -> LLM:
    return LLM.load(models / "stories260K-hf", device="cpu")


@pytest.fixture(scope="module")
def chatty(shared: Path) -> LLM:
    """Random weights under a real tokenizer with a chat template."""
    torch.manual_seed(3)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 6400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    decoder = Decoder(families.read(config))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    return LLM(decoder.requires_grad_(False), Tokenizer.open(shared / "data/tokenizers/minimind"), config)


def assert_nothing_left(llm: LLM) -> None:
    engine = llm.engine
    engine.step()
    assert not engine.busy and engine.pages.free == len(engine.pages.holders)


# ---- the golden story ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
def test_the_golden_story_token_for_token(models: Path, expected: dict[str, Any], golden: str, form: str) -> None:
    ids = expected["greedy"]["ids"]
    llm = LLM.load(str(models / form), device="cpu")
    answer = llm.complete(ids[:1], temperature=0, max_new_tokens=len(ids) - 1)
    assert [*ids[:1], *answer.tokens] == ids
    assert answer.text == golden
    logits = llm.logits(expected["logits"]["ids"])
    assert logits.dtype == torch.float32 and logits.shape == (len(expected["logits"]["ids"]), 512)
    assert torch.allclose(logits[-1], torch.tensor(expected["logits"]["last_position"]), atol=2e-5)


def test_eight_bits_tell_a_story(models: Path, llm: LLM, golden: str) -> None:
    packed = LLM.load(models / "stories260K-gguf/stories260K-q8_0.gguf", device="cpu")
    story = packed.generate([1], temperature=0, max_new_tokens=150)
    assert story.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
    ids = llm.tokenizer.encode(golden)
    assert sum(packed.score(ids)) == pytest.approx(sum(llm.score(ids)), rel=0.02)


def test_scores_are_those_of_transformers(shared: Path, llm: LLM, expected: dict[str, Any]) -> None:
    stories = (shared / "data/text/tinystories_1k.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    scores = [llm.score(llm.tokenizer.encode(story.strip())[:512]) for story in stories[:100]]
    told = expected["loss"]["tinystories_1k.txt, first 100 stories, each <s>+story cut at 512 tokens"]
    assert sum(map(len, scores)) == told["tokens"]
    assert -sum(map(sum, scores)) / told["tokens"] == pytest.approx(told["nll_per_token"], abs=1e-5)


# ---- answers ---------------------------------------------------------------------------------------------------------
def test_all_ways_to_ask_give_one_answer(llm: LLM, golden: str) -> None:
    wishes: dict[str, Any] = {"temperature": 0, "max_new_tokens": 60}
    answer = llm.complete(ONCE, **wishes)
    assert golden.startswith(ONCE + answer.text)
    assert llm.generate(ONCE, **wishes) == "".join(llm.stream(ONCE, **wishes)) == answer.text
    assert llm.generate(llm.tokenizer.encode(ONCE), **wishes) == answer.text
    assert llm.batch([ONCE], **wishes)[0].tokens == answer.tokens
    assert (answer.finish_reason, answer.usage.prompt_tokens, answer.usage.completion_tokens) == ("length", 5, 60)
    assert answer.usage.total_tokens == 65
    assert answer.prefill_seconds > 0 and answer.decode_seconds > 0


def test_logprobs_are_the_scores(llm: LLM) -> None:
    prompt = llm.tokenizer.encode(ONCE)
    answer = llm.complete(prompt, seed=4, temperature=1.1, top_k=30, max_new_tokens=25)
    scores = llm.score([*prompt, *answer.tokens])
    assert answer.logprobs == pytest.approx(scores[len(prompt) - 1 :], abs=1e-4)


def test_a_continued_text_keeps_its_space_and_an_answer_to_a_lone_bos_has_none(llm: LLM) -> None:
    assert llm.generate("Once upon a time, there was a", temperature=0, max_new_tokens=2) == " little g"
    assert llm.generate([1], temperature=0, max_new_tokens=4) == ONCE


def test_seeds(llm: LLM) -> None:
    texts = [llm.generate(ONCE, seed=seed, max_new_tokens=30) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert llm.generate(ONCE, max_new_tokens=30) != llm.generate(ONCE, max_new_tokens=30)


def test_a_batch_is_each_alone(llm: LLM) -> None:
    prompts = [ONCE, "The dog", [1], "Lily and Tom went to the park. They saw a big", [1, 403]]
    wishes: dict[str, Any] = {"temperature": 0.9, "seed": 5, "max_new_tokens": 40, "stop": ["dog", "the"]}
    together = llm.batch(prompts, **wishes)
    assert [answer.tokens for answer in together] == [llm.complete(prompt, **wishes).tokens for prompt in prompts]
    assert [answer.text for answer in together] == [llm.generate(prompt, **wishes) for prompt in prompts]
    assert "stop" in [answer.finish_reason for answer in together]
    assert_nothing_left(llm)


@pytest.mark.parametrize("stop", ["Lily", " park. One", ["nowhere", "big, red"], ["play outside", "pl"], "O"])
def test_a_stop_string_ends_the_text_and_is_never_seen(llm: LLM, golden: str, stop: str | list[str]) -> None:
    stops = [stop] if isinstance(stop, str) else stop
    reply = llm.stream([1], temperature=0, stop=stop)
    pieces = list(reply)
    end = min(at for at in map(golden.find, stops) if at >= 0)
    assert "".join(pieces) == reply.completion.text == golden[:end]
    assert reply.completion.finish_reason == "stop"
    assert all(pieces)
    assert llm.tokenizer.decode(reply.completion.tokens).startswith(golden[:end])
    assert_nothing_left(llm)


def test_every_end_token_of_the_generation_config_is_honoured(llm: LLM, expected: dict[str, Any], golden: str) -> None:
    ids = expected["greedy"]["ids"]
    ends = LLM(llm.decoder, llm.tokenizer, llm.config, {"eos_token_id": [2, 426]})  # 426: "."
    answer = ends.complete([1], temperature=0)
    assert answer.finish_reason == "stop"
    assert [1, *answer.tokens] == ids[: ids.index(426) + 1]
    assert answer.text == golden[: golden.index(".")]
    assert llm.stops == {2}


def test_streams_side_by_side_stopped_and_given_up(llm: LLM, golden: str) -> None:
    first = llm.stream([1], temperature=0, max_new_tokens=30)
    second = llm.stream(ONCE, temperature=0, max_new_tokens=30)
    forgotten: Iterator[str] | None = llm.stream(ONCE)
    assert forgotten is not None and next(forgotten)
    unread: Reply | None = llm.stream(ONCE)
    del forgotten, unread
    text = ["", ONCE]
    for one, two in zip(first, second, strict=False):
        text[0] += one
        text[1] += two
    assert golden.startswith(text[0]) and golden.startswith(text[1])
    stopped = llm.stream([1], temperature=0)
    assert next(stopped) == "Once"
    assert stopped.completion.finish_reason is None
    stopped.close()
    assert list(stopped) == []
    assert (stopped.completion.text, stopped.completion.finish_reason) == ("Once", "cancelled")
    del first, second
    assert_nothing_left(llm)


def test_an_answer_ends_where_the_context_does(llm: LLM) -> None:
    prompt = llm.tokenizer.encode(ONCE * 99)[:500]
    answer = llm.complete(prompt, temperature=0, max_new_tokens=100)
    assert answer.finish_reason == "length"
    assert answer.usage.total_tokens == 512 == llm.engine.context


# ---- conversations ---------------------------------------------------------------------------------------------------
def test_a_string_is_a_message_where_there_is_a_template(chatty: LLM) -> None:
    wishes: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12}
    messages = [{"role": "user", "content": "Hello there"}]
    rendered = chatty.tokenizer.render(messages)
    ids = chatty.tokenizer.encode(rendered, special=False)
    assert rendered.count("Hello there") == 1 and len(rendered) > len("Hello there")
    answer = chatty.complete("Hello there", **wishes)
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.tokens == chatty.complete(messages, **wishes).tokens == chatty.complete(ids, **wishes).tokens
    raw = chatty.complete("Hello there", raw=True, **wishes)
    assert raw.usage.prompt_tokens == len(chatty.tokenizer.encode("Hello there"))


def test_the_template_alone_says_where_bos_stands(llm: LLM, models: Path, tmp_path: Path) -> None:
    for file in (models / "stories260K-hf").iterdir():
        shutil.copy(file, tmp_path)
    template = tmp_path / "chat_template.jinja"
    for source, begins in (("{{ messages[0].content }}", [403]), ("{{ bos_token + messages[0].content }}", [1, 403])):
        template.write_text(source)
        again = LLM.load(tmp_path, device="cpu")
        assert again.tokenizer.encode(ONCE)[:2] == [1, 403]  # a text of its own would begin with BOS
        ids = [*begins, *again.tokenizer.encode(ONCE)[2:]]
        answer = again.complete(ONCE, temperature=0, max_new_tokens=8)
        assert answer.usage.prompt_tokens == len(ids)
        assert answer.tokens == again.complete(ids, temperature=0, max_new_tokens=8).tokens


def test_text_of_any_bytes_streams_in_whole_characters(chatty: LLM) -> None:
    for seed in range(5):
        reply = chatty.stream("日本", seed=seed, temperature=3.0, max_new_tokens=60, raw=True)
        text = "".join(reply)
        assert text == chatty.tokenizer.decode(reply.completion.tokens)


def test_messages_without_a_template(llm: LLM) -> None:
    with pytest.raises(TokenizerError, match="template"):
        llm.generate([{"role": "user", "content": "Hi"}])


# ---- what is not told ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("generation", "told"),
    [
        ({}, {"temperature": 0.8, "top_k": 50}),
        ({"max_length": 512, "temperature": None}, {"temperature": 0.8, "top_k": 50}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"do_sample": True}, {}),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"top_k": 64, "top_p": 0.95}, {"top_k": 64, "top_p": 0.95}),
        ({"do_sample": True, "min_p": 0.1, "repetition_penalty": 1.1}, {"min_p": 0.1, "repetition_penalty": 1.1}),
        ({"max_new_tokens": 2048}, {"temperature": 0.8, "top_k": 50, "max_new_tokens": 2048}),
    ],
)
def test_defaults_come_from_the_generation_config(generation: dict[str, Any], told: dict[str, Any]) -> None:
    neutral = {"repetition_penalty": 1.0, "max_new_tokens": 256, "logprobs": 0}
    assert defaults(generation) == neutral | told


def test_what_is_told_wins_over_the_defaults(llm: LLM, golden: str) -> None:
    greedy = LLM(llm.decoder, llm.tokenizer, llm.config, {"do_sample": False, "max_new_tokens": 7})
    assert greedy.complete([1], temperature=None, stop=None).tokens == llm.complete([1], temperature=0).tokens[:7]
    warm = [greedy.generate([1], temperature=1.5, seed=seed) for seed in range(3)]
    assert len(set(warm)) == 3


# ---- saving and bad input --------------------------------------------------------------------------------------------
def test_a_saved_model_is_the_same_model(llm: LLM, golden: str, tmp_path: Path) -> None:
    llm.save(tmp_path / "copy")
    again = LLM.load(tmp_path / "copy", device="cpu")
    assert torch.equal(again.logits([1, 403, 407]), llm.logits([1, 403, 407]))
    assert again.generate([1], temperature=0, max_new_tokens=50) == llm.generate([1], temperature=0, max_new_tokens=50)
    assert (again.config, again.generation) == (llm.config, llm.generation)
    with pytest.raises(UsageError, match="exists"):
        llm.save(tmp_path / "copy")
    with pytest.raises(UsageError, match=r'"gguff" is no format'):
        llm.save(tmp_path / "other", format="gguff")
    assert not (tmp_path / "other").exists()


def test_a_dtype_is_that_of_the_weights(models: Path) -> None:
    for name in ("bf16", "bf16-true", torch.bfloat16):
        llm = LLM.load(models / "stories260K-hf", device=torch.device("cpu"), dtype=name)
        assert {parameter.dtype for parameter in llm.decoder.parameters()} == {torch.bfloat16}
        assert llm.logits([1]).dtype == torch.float32
    assert llm.generate([1], temperature=0, max_new_tokens=10) == "Once upon a time, there was a little g"


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"quantize": "int5"}, '"int5" is no way to quantize'),
        ({"device": "gpu"}, '"gpu" is not a device.*cpu, cuda'),
        ({"device": "cuda:99"}, "cuda:99 is not there"),
        ({"dtype": "bf17"}, '"bf17".*Did you mean "bf16"'),
    ],
)
def test_what_loading_refuses(models: Path, wishes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        LLM.load(models / "stories260K-hf", **wishes)


def test_bad_prompts_and_wishes(llm: LLM, tmp_path: Path) -> None:
    for prompt in ("", []):
        with pytest.raises(PromptError, match="empty"):
            llm.generate(prompt)
    with pytest.raises(PromptError, match=r"tokens long.*holds 512"):
        llm.batch([ONCE, ONCE * 200])
    with pytest.raises(PromptError, match="512 is not in the vocabulary"):
        llm.generate([512])
    with pytest.raises(UsageError, match="top_p"):
        llm.generate(ONCE, top_p=1.1)
    with pytest.raises(UsageError, match="stop string"):
        llm.generate(ONCE, stop=[".", ""])
    with pytest.raises(TypeError, match="temprature"):
        llm.generate(ONCE, temprature=1.0)  # type: ignore[call-arg]
    with pytest.raises(MissingError):
        LLM.load(tmp_path / "nothing")
    assert_nothing_left(llm)


def test_the_public_names(llm: LLM) -> None:
    import lathe

    assert lathe.LLM is LLM and lathe.Completion is Completion
    assert isinstance(llm.engine, Engine)


def test_answers_in_a_form_beside_others(llm: LLM, golden: str) -> None:
    schema = {"type": "array", "items": {"enum": ["cat", "dog"]}, "minItems": 2, "maxItems": 3}
    held = llm.stream(ONCE, schema=schema, seed=3, max_new_tokens=200)
    free = llm.stream(ONCE, temperature=0, max_new_tokens=20)
    brief = llm.stream(ONCE, regex="[a-z]{4}-[a-z]{4}", stop="-", seed=4)
    pieces = {"held": "", "free": "", "brief": ""}
    going = {"held": held, "free": free, "brief": brief}
    while going:
        for name, reply in list(going.items()):
            if (piece := next(reply, None)) is None:
                del going[name]
            else:
                pieces[name] += piece
    assert 2 <= len(json.loads(pieces["held"])) <= 3 and held.completion.finish_reason == "stop"
    assert golden.startswith(ONCE + pieces["free"])
    assert len(pieces["brief"]) == 4 and brief.completion.finish_reason == "stop"
    with pytest.raises(UsageError, match="a schema and a regex"):
        llm.generate(ONCE, schema=schema, regex="a")


def test_wishes_about_tokens(llm: LLM) -> None:
    answer = llm.complete(ONCE, temperature=0, max_new_tokens=5, logprobs=2)
    assert [top[0][0] for top in answer.top] == answer.tokens
    assert [top[0][1] for top in answer.top] == pytest.approx(answer.logprobs)
    first = answer.tokens[0]
    other = llm.complete(ONCE, temperature=0, max_new_tokens=5, logit_bias={first: -100})
    assert first not in other.tokens and other.top == [()] * 5
    end = next(iter(llm.stops))
    forced = llm.complete(ONCE, temperature=0, logit_bias={end: 100}, min_tokens=3)
    assert len(forced.tokens) == 4 and forced.tokens[-1] == end
