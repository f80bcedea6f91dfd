"""OpenAI's client over completions, models and embeddings, and what vLLM's and llama.cpp's clients ask about tokens."""

from __future__ import annotations

import openai
import pytest
import torch
from serving import in_process

from lathe.llm import LLM
from lathe.model.layout import Layout
from lathe.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "Hello there"}]
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture
def complete(client: openai.OpenAI, model: str):
    """One completion, asked for twice: whole, and in chunks that must come to the same."""

    def both(prompt, **fields):
        fields = {"model": model, "prompt": prompt, **GREEDY, **fields}
        whole = client.completions.create(**fields)
        *chunks, last = client.completions.create(**fields, stream=True, stream_options={"include_usage": True})
        assert last.choices == [] and last.usage == whole.usage
        for choice in whole.choices:
            own = [made for chunk in chunks for made in chunk.choices if made.index == choice.index]
            assert "".join(made.text for made in own) == choice.text
            assert [made.finish_reason for made in own] == [None] * (len(own) - 1) + [choice.finish_reason]
            if choice.logprobs:
                told = [made.logprobs for made in own if made.logprobs]
                for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                    assert [item for part in told for item in getattr(part, name)] == getattr(choice.logprobs, name)
        return whole

    return both


def test_every_form_of_a_prompt_is_continued_as_alone(complete, alone: LLM, words: Tokenizer) -> None:
    texts = ["Once upon", "The quick brown", "A"]
    ids = [words.encode(text) for text in texts]
    told = [alone.complete(text, raw=True, temperature=0, max_new_tokens=8) for text in texts]
    for prompt, n in ((texts[0], 1), (texts, 3), (ids[0], 1), (ids, 3), ([texts[0], ids[1]], 2)):
        whole = complete(prompt)
        assert [choice.text for choice in whole.choices] == [completion.text for completion in told[:n]]
        assert whole.usage.prompt_tokens == sum(map(len, ids[:n]))
        assert whole.usage.completion_tokens == sum(len(completion.tokens) for completion in told[:n])


def test_prompts_have_n_answers_each_in_order(complete) -> None:
    alone = [complete(prompt, n=2, seed=3, temperature=1.0) for prompt in ("Once", "Twice")]
    both = complete(["Once", "Twice"], n=2, best_of=2, seed=3, temperature=1.0)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices] == [c.text for whole in alone for c in whole.choices]


def test_an_echo_comes_first(complete, words: Tokenizer) -> None:
    for prompt in ("Once upon", words.encode("Once upon")):
        [plain], [echoed] = complete(prompt).choices, complete(prompt, echo=True).choices
        assert echoed.text == "Once upon" + plain.text


@pytest.mark.parametrize("length", [0, 4])
def test_an_echo_has_the_logprobs_of_the_prompt(complete, alone: LLM, words: Tokenizer, length: int) -> None:
    text = "Once upon a time"
    [choice] = complete(text, echo=True, logprobs=2, max_tokens=length).choices
    ids = (
        words.encode(text)
        + alone.complete(text, raw=True, temperature=0, max_new_tokens=max(length, 1)).tokens[:length]
    )
    assert len(choice.logprobs.tokens) == len(ids)
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(alone.score(ids), abs=1e-4)
    assert all(len(top) == 2 for top in choice.logprobs.top_logprobs[1:])


def test_an_answer_has_sixteen_tokens_where_it_is_not_said(complete) -> None:
    assert complete("Once", max_tokens=openai.omit).usage.completion_tokens == 16


@pytest.mark.parametrize("top", [0, 2])
def test_logprobs_say_where_in_the_text_each_token_is(complete, alone: LLM, top: int) -> None:
    [choice] = complete("Once upon", logprobs=top).choices
    told = choice.logprobs
    own = alone.complete("Once upon", raw=True, temperature=0, max_new_tokens=8)
    assert told.token_logprobs == pytest.approx(own.logprobs, abs=1e-4)
    assert len(told.tokens) == len(told.text_offset) == len(told.top_logprobs) == 8
    assert all(len(best) <= top for best in told.top_logprobs)
    assert told.text_offset == sorted(told.text_offset)
    for before, token, at in zip(["", *told.tokens], told.tokens, told.text_offset, strict=False):
        if "bytes:" not in before + token:  # what is not yet known to be no character counts with the next token
            assert choice.text[at:].startswith(token)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("suffix", "x", "unsupported_parameter"),
        ("best_of", 2, "unsupported_parameter"),
        ("prompt", [], None),
        ("prompt", [[]], None),
        ("prompt", [-1], None),
        ("prompt", {"a": 1}, None),
        ("prompt", None, None),
        ("logprobs", 21, None),
        ("logprobs", True, None),
    ],
)
def test_what_cannot_be_is_refused_by_name(server, name: str, value, code: str | None) -> None:
    answer = server.client.post("/v1/completions", json={"prompt": "Once", **GREEDY, name: value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].split(".")[0] == name and (code is None or error["code"] == code)


@pytest.mark.parametrize("prompt", ["", [512], ["Once", [4, 512]]])
def test_a_prompt_that_is_none_is_refused_before_the_stream(server, prompt) -> None:
    for stream in (False, True):
        answer = server.client.post("/v1/completions", json={"prompt": prompt, "stream": stream})
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_models_are_told_by_name(client: openai.OpenAI, model: str) -> None:
    told = client.models.retrieve(model)
    assert told in client.models.list().data
    assert (told.object, told.model_extra["max_model_len"], told.model_extra["parent"]) == ("model", 512, None)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/nothing")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody/nothing", prompt="Once")


def test_an_embedding_is_the_mean_of_what_the_decoder_sees(client, model, alone: LLM, words: Tokenizer) -> None:
    texts = ["Once upon", "A", "The quick brown fox"]
    told = client.embeddings.create(model=model, input=texts)
    plain = client.embeddings.create(model=model, input=[words.encode(text) for text in texts], encoding_format="float")
    ids = [words.encode(text) for text in texts]
    assert told.usage.prompt_tokens == told.usage.total_tokens == sum(map(len, ids))
    for index, tokens in enumerate(ids):
        with torch.no_grad():
            hidden = alone.decoder(torch.tensor(tokens), Layout.of([len(tokens)], torch.device("cpu"))).mean(0)
        mean = (hidden / hidden.norm()).tolist()
        assert told.data[index].index == index
        assert told.data[index].embedding == pytest.approx(mean, abs=1e-5)
        assert plain.data[index].embedding == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input", []),
        ("input", ""),
        ("input", "word " * 1000),
        ("input", [31720, 374]),  # of another vocabulary
        ("dimensions", 3),
        ("encoding_format", "hex"),
    ],
)
def test_an_embedding_that_cannot_be_is_refused(server, name: str, value) -> None:
    answer = server.client.post("/v1/embeddings", json={"input": "A", name: value})
    assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert server.client.post("/v1/embeddings", json={"input": "A"}).status_code == 200  # the engine is there still


def test_a_text_of_another_vocabulary_is_not_judged(server) -> None:
    asked = {"prompt": [31720, 374], "echo": True, "logprobs": 1, "max_tokens": 0}
    assert server.client.post("/v1/completions", json=asked).status_code == 400
    assert server.client.post("/v1/completions", json=asked | {"prompt": "A"}).status_code == 200


def test_many_texts_are_embedded_at_once(client, model) -> None:
    told = client.embeddings.create(model=model, input=[f"Number {n}" for n in range(400)])
    assert [item.index for item in told.data] == list(range(400))


def test_texts_of_one_request_wait_for_each_other_where_the_queue_is_short(tiny_model) -> None:
    with in_process(tiny_model, max_seqs=2, max_queue=0) as client:
        told = client.post("/v1/embeddings", json={"input": [f"Number {n}" for n in range(9)]})
    assert told.status_code == 200 and len(told.json()["data"]) == 9


def test_more_answers_than_are_ever_waited_for_are_no_matter_of_time(tiny_model) -> None:
    with in_process(tiny_model, max_seqs=2, max_queue=2) as client:
        for prompt, n in (("A", 5), (["A", "B", "C"], 2)):
            told = client.post("/v1/completions", json={"prompt": prompt, "n": n, **GREEDY})
            assert told.status_code == 400 and told.json()["error"]["param"] == "n"
        assert client.post("/v1/completions", json={"prompt": ["A", "B"], "n": 2, **GREEDY}).status_code == 200


def post(server, path: str, **body):
    answer = server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_texts_become_tokens_and_come_back(server, words: Tokenizer) -> None:
    text = "What is the capital? 媽 <|im_end|>"
    ids = words.encode(text, special=False)
    told = post(server, "/tokenize", prompt=text, return_token_strs=True)
    assert (told["tokens"], told["count"], told["max_model_len"]) == (ids, len(ids), 512)
    assert told["token_strs"] == [words.token(id) for id in ids]
    pieces = post(server, "/tokenize", content=text, with_pieces=True)["tokens"]
    assert [piece["id"] for piece in pieces] == ids
    spelt = [bytes(p["piece"]) if isinstance(p["piece"], list) else p["piece"].encode() for p in pieces]
    assert b"".join(spelt).decode() == text
    back = post(server, "/detokenize", tokens=ids)
    assert back["prompt"] == back["content"] == text


def test_messages_become_a_prompt_and_its_tokens(server, words: Tokenizer) -> None:
    for more in ({}, {"add_generation_prompt": False}):
        text = words.render(HELLO, **{"add_generation_prompt": True, **more})
        assert post(server, "/apply-template", messages=HELLO, **more)["prompt"] == text
        ids = words.encode(text, special=False)
        assert post(server, "/tokenize", messages=HELLO, **more)["tokens"] == ids
        assert post(server, "/v1/chat/completions/input_tokens", messages=HELLO, **more)["input_tokens"] == len(ids)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "content": "b"}),
        ("/tokenize", {"prompt": "a", "parse_special": False}),
        ("/detokenize", {"tokens": [512]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {}),
        ("/apply-template", {"messages": []}),
    ],
)
def test_tokens_of_nothing_are_refused(server, path: str, body: dict) -> None:
    answer = server.client.post(path, json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"]
