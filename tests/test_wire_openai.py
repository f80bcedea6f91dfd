"""OpenAI's own client against a running server: every field does what it says, streamed or not, or is refused."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import openai
import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from serving import Served, in_process, serving, tiny

from lathe.llm import LLM
from lathe.server.wires.chat import ChatBody
from lathe.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
HELLO = [{"role": "user", "content": "Hello there"}]
GREEDY = {"messages": HELLO, "temperature": 0, "max_tokens": 12}


@pytest.fixture
def chat(client: openai.OpenAI, model: str):
    """One completion, asked for twice: whole, and in chunks that must come to the same."""

    def both(**fields) -> ChatCompletion:
        fields = {"model": model, **GREEDY, **fields}
        extra = {name: fields.pop(name) for name in list(fields) if name in EXTRAS}
        whole = client.chat.completions.create(**fields, extra_body=extra)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(**fields, **options, extra_body=extra))
        agree(whole, chunks)
        return whole

    return both


EXTRAS = frozenset(
    "top_k min_p repetition_penalty repeat_penalty n_predict stop_token_ids ignore_eos min_tokens return_token_ids"
    " include_stop_str_in_output skip_special_tokens cache_salt priority chat_template_kwargs continue_final_message"
    " add_generation_prompt structured_outputs guided_regex guided_choice guided_json grammar json_schema".split()
)


def agree(whole: ChatCompletion, chunks: list[ChatCompletionChunk]) -> None:
    """The chunks are in OpenAI's order, and say what the whole says."""
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    *chunks, last = chunks
    assert last.choices == [] and last.usage is not None and whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    for choice in whole.choices:
        own = [made for chunk in chunks for made in chunk.choices if made.index == choice.index]
        assert own[0].delta.role == "assistant" and not own[0].delta.content
        assert all(made.delta.role is None for made in own[1:])
        assert [made.finish_reason for made in own] == [None] * (len(own) - 1) + [choice.finish_reason]
        assert own[-1].delta.model_dump(exclude_none=True) == {}
        texts = [made.delta.content for made in own if made.delta.content is not None]
        assert all(texts) and "".join(texts) == (choice.message.content or "")
        if choice.logprobs:
            told = [word for made in own if made.logprobs for word in made.logprobs.content or ()]
            assert told == choice.logprobs.content


def test_the_answer_is_what_the_model_says_alone(chat, alone: LLM) -> None:
    whole, told = chat(), alone.complete(HELLO, temperature=0, max_new_tokens=12)
    assert whole.choices[0].message.content == told.text
    assert whole.choices[0].finish_reason == told.finish_reason
    assert whole.usage.prompt_tokens == told.usage.prompt_tokens
    assert whole.usage.completion_tokens == told.usage.completion_tokens
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.object == "chat.completion" and whole.id.startswith("chatcmpl-")


def test_the_page_on_it_is_true(server, capsys) -> None:
    page = (ROOT / "docs" / "openai.md").read_text()
    [program] = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    exec(program.replace("http://127.0.0.1:8000", server.url), {})
    assert capsys.readouterr().out
    table = page[page.index("| what | fields |") : page.index("What is not said")]
    assert set(re.findall(r"`(\w+)`", table)) == set(ChatBody.model_fields)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_an_answer_is_as_long_as_it_may_be(chat, name: str) -> None:
    whole = chat(**{"max_tokens": openai.omit, name: 5})
    assert whole.usage.completion_tokens == 5 and whole.choices[0].finish_reason == "length"


def test_an_answer_without_a_limit_ends_with_the_context(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=HELLO, temperature=0, extra_body={"ignore_eos": True})
    assert whole.usage.total_tokens == 512 and whole.choices[0].finish_reason == "length"


def test_seeds_repeat_and_n_answers_are_others(chat) -> None:
    told = [[c.message.content for c in chat(temperature=1.0, seed=seed, n=3).choices] for seed in (7, 7, 8)]
    assert told[0] == told[1] and len({*told[0], *told[2]}) > 3
    assert told[0][1:] != told[0][:2]


@pytest.mark.parametrize("listed", [False, True])
def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(chat, listed: bool) -> None:
    free = chat().choices[0].message.content
    stop = free[6:9]
    held = chat(stop=[stop, "never said"] if listed else stop)
    assert held.choices[0].message.content == free[: free.index(stop)]
    assert held.choices[0].finish_reason == "stop" and held.choices[0].model_extra["stop_reason"] == stop
    kept = chat(stop=stop, include_stop_str_in_output=True)
    assert kept.choices[0].message.content == free[: free.index(stop) + len(stop)]


def test_a_stop_token_ends_the_answer(chat, words: Tokenizer) -> None:
    free = chat(return_token_ids=True)
    ids = free.choices[0].model_extra["token_ids"]
    held = chat(stop_token_ids=[ids[4]])
    assert held.choices[0].finish_reason == "stop" and held.choices[0].model_extra["stop_reason"] == ids[4]
    assert held.usage.completion_tokens == ids.index(ids[4]) + 1
    assert held.choices[0].message.content == words.decode(ids[: ids.index(ids[4])])


@pytest.mark.parametrize("top", [None, 0, 3, 20])
def test_logprobs_are_the_models_own(chat, alone: LLM, top: int | None) -> None:
    asked = {"logprobs": True} if top is None else {"logprobs": True, "top_logprobs": top}
    told = chat(**asked).choices[0].logprobs.content
    own = alone.complete(HELLO, temperature=0, max_new_tokens=12)
    assert [word.logprob for word in told] == pytest.approx(own.logprobs, abs=1e-4)
    assert b"".join(bytes(word.bytes) for word in told).decode(errors="replace") == own.text
    assert all(len(word.top_logprobs) == (top or 0) for word in told)
    if top:
        assert all(word.top_logprobs[0].logprob == max(t.logprob for t in word.top_logprobs) for word in told)
        assert all(word.top_logprobs[0].token == word.token for word in told)  # greedy


def test_the_client_has_its_own_ways(client: openai.OpenAI, model: str, server) -> None:
    raw = client.chat.completions.with_raw_response.create(model=model, **GREEDY)
    assert raw.status_code == 200 and raw.parse().choices[0].message.content

    async def apart() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as other:
            whole = await other.chat.completions.create(model=model, **GREEDY)
            chunks = await other.chat.completions.create(model=model, **GREEDY, stream=True)
            texts = [chunk.choices[0].delta.content or "" async for chunk in chunks]
            return whole.choices[0].message.content, "".join(texts)

    whole, streamed = asyncio.run(apart())
    assert whole == streamed == raw.parse().choices[0].message.content
    with client.chat.completions.stream(model=model, **GREEDY, stop=whole[-3:]) as stream:
        assert stream.get_final_completion().choices[0].message.content == whole[: whole.index(whole[-3:])]


def test_biases_rule_tokens_out_and_in(chat, words: Tokenizer) -> None:
    first = chat(return_token_ids=True).choices[0].model_extra["token_ids"][0]
    for bias, same in ((-100, False), (0, True), (100, True)):
        told = chat(logit_bias={str(first): bias}, return_token_ids=True, max_tokens=4).choices[0]
        assert (told.model_extra["token_ids"][0] == first) is same
    other = words.encode("the", special=False)[0]
    assert chat(logit_bias={str(other): 100}, return_token_ids=True).choices[0].model_extra["token_ids"] == [other] * 12


def test_penalties_keep_tokens_from_coming_again(chat) -> None:
    for name, value in (("frequency_penalty", 2), ("presence_penalty", 2), ("repetition_penalty", 1e6)):
        told = chat(**{name: value}, max_tokens=40, return_token_ids=True).choices[0].model_extra["token_ids"]
        free = chat(max_tokens=40, return_token_ids=True).choices[0].model_extra["token_ids"]
        assert len(set(told)) >= len(set(free)) and told != free


def test_the_least_of_an_answer_comes_before_its_end(chat, words: Tokenizer) -> None:
    end = words.id("<|im_end|>")
    biased = {"logit_bias": {str(end): 100}}
    assert chat(**biased).usage.completion_tokens == 1
    told = chat(**biased, min_tokens=5)
    assert told.usage.completion_tokens == 6 and told.choices[0].finish_reason == "stop"
    assert chat(**biased, ignore_eos=True).choices[0].finish_reason == "length"
    shown = chat(**biased, ignore_eos=True, skip_special_tokens=False, max_tokens=2)
    assert shown.choices[0].message.content == "<|im_end|>" * 2


def test_few_candidates_leave_the_best(chat) -> None:
    best = chat().choices[0].message.content
    for name, value in (("top_k", 1), ("top_p", 0), ("min_p", 1)):
        assert chat(temperature=1.5, **{name: value}).choices[0].message.content == best


def test_a_last_message_goes_on(chat, alone: LLM) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "I am"}]
    told = chat(messages=begun, continue_final_message=True, add_generation_prompt=False)
    text = "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\nI am"
    ids = alone.tokenizer.encode(text, special=False)
    own = alone.complete(ids, temperature=0, max_new_tokens=12)
    assert (told.choices[0].message.content, told.usage.prompt_tokens) == (own.text, len(ids))


def test_parts_of_a_content_are_lines(chat) -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    told, plain = (chat(messages=[{"role": "user", "content": text}]) for text in (parts, "Hello\nthere"))
    assert told.choices == plain.choices and told.usage.prompt_tokens == plain.usage.prompt_tokens


REFUSALS = {
    "n": [0, 17, "2", 1.5],
    "temperature": [-1, "hot", [0]],
    "top_p": [-0.1, 1.1],
    "top_k": [-2],
    "min_p": [2],
    "seed": ["x", 2**70],
    "frequency_penalty": [3],
    "presence_penalty": [-3],
    "repetition_penalty": [0],
    "max_tokens": [0, -2, 2**40],
    "stop": [[""], [""] * 17, 5, [5]],
    "stop_token_ids": [[-1], ["a"]],
    "logit_bias": [{"a": 1}, {"5": 101}, [5], {"-1": 1}],
    "top_logprobs": [21, -1, 5],
    "stream_options": [{"include_usage": True}],
    "tool_choice": ["required", {"type": "function", "function": {"name": "f"}}],
    "response_format": [{"type": "sound"}, {"type": "json_schema"}, 5],
    "reasoning_effort": ["enormous"],
    "chat_template_kwargs": [{"messages": []}, {"tokenize": True}, {"bos_token": "x"}, {"chat_template": "x"}],
    "messages": [[], None, "text", [5], [{}], [{"role": "king", "content": "x"}], [{"role": "user", "content": 5}]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSALS.items() for value in values])
def test_what_cannot_be_is_refused_by_name(server, name: str, value) -> None:
    answer = server.client.post("/v1/chat/completions", json={**GREEDY, name: value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["param"].split(".")[0] == name and error["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 3),
        ("functions", [{"name": "f"}]),
        ("audio", {"voice": "alloy"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {}),
        ("mirostat", 2),
        ("suffix", "x"),
        ("echo", True),
        ("use_beam_search", True),
        ("prompt_logprobs", 1),
        ("chat_template", "{{ 1 }}"),
        ("tools", [{"type": "web_search"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]),
        (
            "messages",
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}],
        ),
    ],
)
def test_what_is_not_there_is_refused_as_unsupported(server, name: str, value) -> None:
    answer = server.client.post("/v1/chat/completions", json={**GREEDY, name: value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "unsupported_parameter" and error["param"].split(".")[0] == name


def test_what_changes_nothing_is_taken(server) -> None:
    cosmetic = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "x"}
    neutral = {"best_of": 1, "modalities": ["text"], "functions": None, "suffix": None, "verbosity": "medium"}
    answer = server.client.post("/v1/chat/completions", json={**GREEDY, **cosmetic, **neutral})
    assert answer.status_code == 200 and "x-lathe-unknown-fields" not in answer.headers


def test_what_nobody_knows_is_told(server) -> None:
    answer = server.client.post("/v1/chat/completions", json={**GREEDY, "temprature": 0, "größe\n": 1})
    assert answer.status_code == 200
    assert json.loads(answer.headers["x-lathe-unknown-fields"]) == ["temprature", "größe\n"]


def test_a_strict_server_refuses_what_it_does_not_know(tiny_model: Path) -> None:
    with in_process(tiny_model, strict=True, any_model_name=True, max_queue=0, max_seqs=2, seed=5) as client:
        refused = client.post("/v1/chat/completions", json={**GREEDY, "temprature": 0})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "temprature"
        assert 'Did you mean "temperature"?' in refused.json()["error"]["message"]
        taken = client.post("/v1/chat/completions", json={**GREEDY, "model": "gpt-4.1", "user": "me"})
        assert taken.status_code == 200 and taken.json()["model"] == "gpt-4.1"
        warm = {"messages": HELLO, "max_tokens": 12, "n": 2}  # by the server's own seed, and the next
        again = [client.post("/v1/chat/completions", json=warm).json()["choices"] for _ in range(2)]
        seeded = client.post("/v1/chat/completions", json={**warm, "seed": 5}).json()["choices"]
        assert again[0] == again[1] == seeded and seeded[0]["message"] != seeded[1]["message"]
        much = client.post("/v1/chat/completions", json={**GREEDY, "n": 3})  # and would be at any time
        assert much.status_code == 400 and much.json()["error"]["param"] == "n"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with one seat, and a context that it takes minutes to fill."""
    model = tiny(tmp_path_factory.mktemp("narrow"), max_position_embeddings=1 << 16)
    with serving(model, "--max-queue", "0", "--max-seqs", "1") as server:
        yield server


def test_the_client_comes_again_when_the_server_is_full(narrow: Served) -> None:
    """Of four at once one is taken; the others are told to wait, and the client does."""

    async def many() -> list[ChatCompletion]:
        async with openai.AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key="none", max_retries=20) as client:
            asked = {"model": "model", **GREEDY, "max_tokens": 64}
            return await asyncio.gather(*(client.chat.completions.create(**asked) for _ in range(4)))

    told = asyncio.run(many())
    assert len({whole.choices[0].message.content for whole in told}) == 1


def test_a_client_that_goes_away_ends_its_answer(narrow: Served) -> None:
    """Whole or streamed: the one seat is free again at once, and not after the minutes that the answer would take."""
    endless = {"messages": HELLO, "ignore_eos": True}

    def taken() -> bool:
        brief = narrow.client.post("/v1/completions", json={"prompt": "A", "max_tokens": 1})
        assert brief.status_code == 200 or (brief.status_code, brief.headers["retry-after"]) == (429, "1")
        return brief.status_code == 429

    def until(taken_or_not: bool) -> None:
        end = time.monotonic() + 30
        while taken() is not taken_or_not:
            assert time.monotonic() < end

    with narrow.client.stream("POST", "/v1/chat/completions", json={**endless, "stream": True}) as answer:
        chunks = answer.iter_raw()  # kept, for the connection goes with it
        assert next(chunks) and taken()
    until(False)
    with ThreadPoolExecutor(1) as thread, httpx2.Client(base_url=narrow.url, timeout=1.5) as other:

        def ask() -> None:
            while other.post("/v1/chat/completions", json=endless).status_code == 429:
                pass  # the seat was taken for a moment by who asked whether it is

        asked = thread.submit(ask)
        until(True)
        with pytest.raises(httpx2.TimeoutException):
            asked.result()
    until(False)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b"{",
        b'{"messages": "\xff"}',
        b"[" * 100_000,
        b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"\\ud800","messages":[{"role":"user","content":"a"}]}',
        b'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}',
        b'{"messages":[{"role":"user","content":"a"}],"max_tokens":1' + b"0" * 5000 + b"}",
        b'{"\\ud800":1,"messages":[{"role":"user","content":"a"}]}',
    ],
)
def test_a_body_that_is_none_is_refused(server, body: bytes) -> None:
    answer = server.client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_that_does_not_say_that_it_is_json_is_not_read(server, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/completion"):
        answer = server.client.post(path, content=json.dumps(GREEDY).encode(), headers=headers)
        assert answer.status_code == 415 and answer.json()["error"]["message"]


def test_a_prompt_too_long_is_told_in_tokens(server) -> None:
    body = {"messages": [{"role": "user", "content": "word " * 1000}]}
    for stream in (False, True):
        answer = server.client.post("/v1/chat/completions", json={**body, "stream": stream})
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["type"] == "exceed_context_size_error"
        assert error["n_ctx"] == 512 and error["n_prompt_tokens"] > 1000


def test_frames_are_as_clients_expect(server) -> None:
    body = {**GREEDY, "stream": True, "stream_options": {"include_usage": True}}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-accel-buffering"] == "no"
        frames = b"".join(answer.iter_raw()).decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    told = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]
    assert [chunk["usage"] for chunk in told[:-1]] == [None] * (len(told) - 1) and told[-1]["usage"]
    assert told[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}


SAID = {"logprobs": True, "top_logprobs": 2, "n": 2, "return_token_ids": True}


@pytest.mark.parametrize(
    "more", [{}, SAID, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}]
)
def test_answers_are_of_openais_schema(server, more: dict) -> None:
    """Held to it strictly, as the client itself does not."""
    if "stream_options" not in more:
        ChatCompletion.model_validate_json(
            server.client.post("/v1/chat/completions", json={**GREEDY, **more}).text, strict=True
        )
    answer = server.client.post("/v1/chat/completions", json={**GREEDY, **more, "stream": True})
    for frame in answer.text.split("\n\n")[:-2]:
        ChatCompletionChunk.model_validate_json(frame.removeprefix("data: "), strict=True)
    asked = {"prompt": ["Once", "A"], "max_tokens": 3, "logprobs": 2}
    Completion.model_validate_json(server.client.post("/v1/completions", json=asked).text, strict=True)
    answer = server.client.post("/v1/completions", json={**asked, "stream": True})
    for frame in answer.text.split("\n\n")[:-2]:
        told = frame.removeprefix("data: ")  # OpenAI's own chunks have null for a reason, too; its schema has not
        Completion.model_validate_json(told.replace('"finish_reason":null', '"finish_reason":"stop"'), strict=True)
    CreateEmbeddingResponse.model_validate_json(
        server.client.post("/v1/embeddings", json={"input": "A"}).text, strict=True
    )
    for told in server.client.get("/v1/models").json()["data"]:
        Model.model_validate(told, strict=True)


def test_usage_can_be_in_every_chunk(server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = server.client.post("/v1/chat/completions", json={**GREEDY, "stream": True, "stream_options": options})
    told = [json.loads(frame[6:])["usage"]["completion_tokens"] for frame in answer.text.split("\n\n")[:-2]]
    assert told == sorted(told) and told[0] == 0 and told[-1] == 12


def test_times_can_be_in_every_chunk(server) -> None:
    answer = server.client.post("/v1/chat/completions", json={**GREEDY, "stream": True, "timings_per_token": True})
    first, *rest = [json.loads(frame[6:]) for frame in answer.text.split("\n\n")[:-2]]
    assert "timings" not in first
    made = [chunk["timings"]["predicted_n"] for chunk in rest]
    assert made == sorted(made) and made[-1] == 12 and all(chunk["timings"]["prompt_ms"] > 0 for chunk in rest)
