"""Bodies that no client would send: whatever they are, the answer is one, or an error of the client's; never a crash.

$LATHE_CASES says how many; `make oracles` takes 2,000 by the OpenAPI document and 10,000 damaged ones.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from serving import Served, serving, tiny

CASES = int(os.environ.get("LATHE_CASES", "60"))
HELLO = [{"role": "user", "content": "Hello there"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {}}}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": None}],
        "model": None,
        "max_tokens": 4,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 1,
        "seed": 1,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"5": 1},
        "tools": [TOOL],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        "chat_template_kwargs": {"a": 1},
        "continue_final_message": False,
    },
    "/v1/completions": {"prompt": ["Once", [5, 6]], "max_tokens": 3, "logprobs": 1, "echo": True, "n": 2, "min_p": 0.1},
    "/v1/embeddings": {"input": ["Once", [5, 6]], "encoding_format": "base64", "dimensions": 64},
    "/tokenize": {"prompt": "Once", "with_pieces": True, "return_token_strs": True},
    "/detokenize": {"tokens": [5, 6]},
    "/apply-template": {"messages": HELLO, "tools": [TOOL], "add_generation_prompt": True},
}
HOSTILE: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**70,
    -(2**70),
    1e308,
    -0.0,
    "",
    "a",
    "\x00",
    "媽" * 300,
    "x" * 20_000,
    "{{ 1/0 }}{% for a in range(10**9) %}x{% endfor %}",
    "(a+)+$",
    [],
    [None],
    [[]],
    ["a"] * 300,
    [{}],
    {},
    {"": None},
    {"a": {"b": {"c": [{}]}}},
    {"type": "object", "properties": {"a": {"$ref": "#"}}},
    {"$ref": "http://127.0.0.1:1/x"},
    {"type": "string", "pattern": "(a|a)*" * 50 + "$"},
    {"enum": list(range(500))},
]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose answers are short, whoever asks for how many tokens."""
    with serving(tiny(tmp_path_factory.mktemp("narrow"), max_position_embeddings=96)) as server:
        yield server


def test_no_case_of_the_document_breaks_the_server(narrow: Served) -> None:
    document = schemathesis.openapi.from_url(f"{narrow.url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    for operation in operations:

        @given(operation.as_strategy())
        @settings(
            max_examples=CASES // len(operations) + 1,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
            deadline=None,
            derandomize=True,
        )
        def holds(case: schemathesis.Case) -> None:
            answer = case.call(timeout=60)
            assert answer.status_code < 500, answer.text

        holds()


def damaged(dice: random.Random) -> tuple[str, bytes, str]:
    """A path, a body and its content type: a good body with a few things replaced, left out, added or overwritten."""
    path = dice.choice(list(BODIES))
    body = json.loads(json.dumps(BODIES[path]))
    for name in dice.sample(list(body), dice.randrange(len(body))):
        if dice.random() < 0.7:
            del body[name]
    for _ in range(dice.choice((0, 1, 1, 2, 3))):
        within: Any = body
        while isinstance(within, (dict, list)) and within:
            key: Any = dice.choice(list(within)) if isinstance(within, dict) else dice.randrange(len(within))
            if dice.random() < 0.5 or not isinstance(within[key], (dict, list)):
                within[key] = deepcopy(dice.choice(HOSTILE))
                break
            within = within[key]
    if dice.random() < 0.1:
        body[dice.choice(("größe", "functions", "prompt_logprobs", "a" * 500))] = deepcopy(dice.choice(HOSTILE))
    written = json.dumps(body).encode()
    kind = dice.choice(("application/json",) * 20 + ("text/plain", "application/x-www-form-urlencoded"))
    if dice.random() < 0.2:
        at = dice.randrange(len(written))
        junk = dice.choice((b"\xff\xfe", b"\x00", b"NaN", b"[" * 3000, b'"\\ud800"', b"9" * 5000, b"}", b"", b"\\u"))
        written = written[:at] + junk + written[at + dice.choice((0, 0, 1, 40)) :]
    return path, written, kind


def checked(client: httpx2.Client, seed: int) -> int:
    path, body, kind = damaged(random.Random(seed))
    answer = client.post(path, content=body, headers={"content-type": kind})
    told = f"{seed}: {path} {body[:500]!r} -> {answer.status_code} {answer.text[:500]}"
    assert answer.status_code < 500 and answer.status_code != 405, told
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"] and {"type", "param", "code"} <= set(error), told
    elif answer.headers["content-type"].startswith("text/event-stream"):
        frames = [frame for frame in answer.text.split("\n\n") if frame.startswith("data: ")]
        assert frames[-1] == "data: [DONE]" and all(json.loads(frame[6:]) for frame in frames[:-1]), told
    else:
        assert answer.json(), told
    return answer.status_code


def test_no_damaged_body_breaks_the_server(narrow: Served) -> None:
    asked = {"messages": HELLO, "temperature": 0, "max_tokens": 20, "logprobs": True}
    before = narrow.client.post("/v1/chat/completions", json=asked).json()["choices"]
    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(lambda seed: checked(narrow.client, seed), range(CASES * 5)))
    assert {200, 400} <= set(statuses)
    assert statuses.count(200) > len(statuses) // 20
    after = narrow.client.post("/v1/chat/completions", json=asked).json()["choices"]
    assert after == before
    assert narrow.client.get("/health").status_code == 200
