"""What llama-server's clients send to /completion is answered as it would be there, and as /v1/completions has it."""

from __future__ import annotations

import json

import pytest

from lathe.tokenizer import Tokenizer

ONCE = {"prompt": "Once upon", "temperature": 0, "n_predict": 8}


@pytest.fixture
def complete(server):
    def whole(**body):
        answer = server.client.post("/completion", json={**ONCE, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    return whole


def test_a_completion_is_that_of_openai(server, complete) -> None:
    told = complete(n_probs=2, return_tokens=True)
    body = {"prompt": "Once upon", "temperature": 0, "max_tokens": 8, "logprobs": 2, "return_token_ids": True}
    theirs = server.client.post("/v1/completions", json=body).json()
    [choice], usage = theirs["choices"], theirs["usage"]
    assert (told["content"], told["tokens"]) == (choice["text"], choice["token_ids"])
    assert [row["logprob"] for row in told["completion_probabilities"]] == choice["logprobs"]["token_logprobs"]
    assert all(len(row["top_logprobs"]) == 2 for row in told["completion_probabilities"])
    assert (told["stop"], told["stop_type"], told["truncated"]) == (True, "limit", False)
    assert (told["tokens_evaluated"], told["tokens_predicted"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert told["prompt"] == "Once upon" and told["generation_settings"]["n_predict"] == 8
    assert told["timings"]["prompt_n"] + told["timings"]["cache_n"] == usage["prompt_tokens"]


def test_chunks_come_to_the_whole(server, complete) -> None:
    whole = complete(return_tokens=True)
    answer = server.client.post("/completion", json={**ONCE, "stream": True})
    *chunks, last = (json.loads(part.removeprefix("data: ")) for part in answer.text.strip().split("\n\n"))
    assert [chunk["stop"] for chunk in chunks] == [False] * len(chunks)
    assert "".join(chunk["content"] for chunk in chunks) == whole["content"]
    assert [id for chunk in chunks for id in chunk["tokens"]] == whole["tokens"]
    assert last["stop"] and last["content"] == "" and last["generation_settings"]["stream"]


def test_prompts_are_texts_and_tokens_and_several_of_both(complete, words: Tokenizer) -> None:
    ids = words.encode("Once upon")
    alone = complete()["content"]
    assert complete(prompt=ids)["content"] == complete(prompt={"prompt_string": "Once upon"})["content"] == alone
    assert [row["content"] for row in complete(prompt=["Once upon", ids, {"prompt_string": "Once upon"}])] == [
        alone
    ] * 3
    mixed = complete(prompt=[*ids[:2], words.decode(ids[2:])])
    assert mixed["tokens_evaluated"] == len(ids)


@pytest.mark.parametrize("form", [lambda ids, _: [[id, False] for id in ids], lambda _, text: {text: -100}])
def test_texts_and_tokens_are_ruled_out(complete, words: Tokenizer, form) -> None:
    free = complete(return_tokens=True)["tokens"]
    ids = words.encode("the", special=False)
    held = complete(logit_bias=[[ids[0], 100]], return_tokens=True)["tokens"]
    assert held == [ids[0]] * 8
    banned = words.decode(free[:1])
    if "\ufffd" not in banned:
        assert complete(logit_bias=form([free[0]], banned), return_tokens=True)["tokens"][0] != free[0]


def test_the_end_is_told_and_fields_are_picked(complete) -> None:
    text = complete()["content"]
    told = complete(stop=[text[3:5]])
    assert (told["stop_type"], told["stopping_word"], told["content"]) == (
        "word",
        text[3:5],
        text[: text.index(text[3:5])],
    )
    assert complete(response_fields=["timings/predicted_n", "content", "nothing"]) == {
        "timings/predicted_n": 8,
        "content": text,
    }


@pytest.mark.parametrize(
    "body",
    [{"prompt": []}, {"prompt": [[]]}, {"prompt": None}, {"n_probs": 21}, {"mirostat": 2}, {"prompt": ["a"] * 65}],
)
def test_what_cannot_be_is_refused(server, body) -> None:
    answer = server.client.post("/completion", json={**ONCE, **body})
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith(next(iter(body)))


def test_a_server_tells_what_it_serves_and_which_seats_are_taken(server) -> None:
    told, slots = server.client.get("/props").json(), server.client.get("/slots").json()
    usual = told["default_generation_settings"]
    assert (usual["n_ctx"], told["total_slots"], len(slots)) == (512, 64, 64)
    assert (usual["params"]["temperature"], usual["params"]["top_k"]) == (0.8, 50)
    assert {slot["is_processing"] for slot in slots} == {False} and "im_start" in told["chat_template"]


def test_who_says_how_to_sample_gets_nothing_usual_beside_it(complete) -> None:
    settings = [complete(**wish)["generation_settings"] for wish in ({"temperature": 1.0}, {"temperature": None})]
    assert [(told["temperature"], told["top_k"]) for told in settings] == [(1.0, 0), (0.8, 50)]
