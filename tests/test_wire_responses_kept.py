"""Responses are kept: a request goes on from an earlier one as if it had sent its items again, and nobody else can."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from lathe.server.refusals import Misused, Unknown
from lathe.server.wires.responses_kept import Shelf, page, with_ids

GREEDY: dict[str, Any] = {"model": "model", "max_output_tokens": 12, "temperature": 0}


def client_of(server, key: str = "one") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(tool_server) -> openai.OpenAI:
    return client_of(tool_server)


@pytest.fixture
def ask(client: openai.OpenAI):
    def asked(input: Any, **fields: Any):
        return client.responses.create(**{**GREEDY, "input": input, **fields})

    return asked


def test_a_request_goes_on_from_an_earlier_one(client: openai.OpenAI, ask) -> None:
    first = ask("Hello there", instructions="Be brief.")
    second = ask("And then?", previous_response_id=first.id)
    told = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": first.output_text}]
    told.append({"role": "user", "content": "And then?"})
    again = ask(told, store=False)
    assert (second.output_text, second.previous_response_id) == (again.output_text, first.id)  # without instructions
    assert second.usage.input_tokens == again.usage.input_tokens
    stream = client.responses.create(**GREEDY, input="So?", previous_response_id=second.id, stream=True)
    third = list(stream)[-1].response
    told += [{"role": "assistant", "content": second.output_text}, {"role": "user", "content": "So?"}]
    assert third.output_text == ask(told).output_text
    assert client.responses.retrieve(third.id).output_text == third.output_text
    counted = client.responses.input_tokens.count(model="model", input="So?", previous_response_id=second.id)
    assert counted.input_tokens == third.usage.input_tokens


def test_calls_and_their_results_go_on_too(ask) -> None:
    tool = {"type": "function", "name": "now", "strict": True, "parameters": {"type": "object", "properties": {}}}
    call = ask("Time?", tools=[tool], tool_choice="required", max_output_tokens=120)
    [called] = [item for item in call.output if item.type == "function_call"][:1]
    result = {"type": "function_call_output", "call_id": called.call_id, "output": "noon"}
    earlier = [{"role": "user", "content": "Time?"}, *(item.model_dump(exclude_none=True) for item in call.output)]
    told = ask([result], previous_response_id=call.id, tools=[tool])
    assert told.usage.input_tokens == ask([*earlier, result], tools=[tool]).usage.input_tokens


def test_what_was_kept_is_shown_and_forgotten(client: openai.OpenAI, ask) -> None:
    first = ask("Hello there", metadata={"a": "b"})
    second = ask([{"role": "user", "content": "And then?"}], previous_response_id=first.id)
    assert client.responses.retrieve(first.id).model_dump() == first.model_dump() and first.store
    items = client.responses.input_items.list(second.id, order="asc").data
    texts = [item.content[0].text for item in items if item.type == "message"]
    assert texts == ["Hello there", first.output_text, "And then?"] or len(items) == 3
    assert all(item.id for item in items)
    assert [item.id for item in client.responses.input_items.list(second.id, limit=1)] == [
        item.id for item in reversed(items)
    ]  # page after page
    reference = [{"type": "item_reference", "id": items[0].id}]
    assert ask(reference).output_text == first.output_text
    client.responses.delete(first.id)
    for gone in (first.id, ask("Hello", store=False).id, "resp_none"):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone)
        with pytest.raises(openai.BadRequestError, match="no response") as refused:
            ask("And?", previous_response_id=gone)
        assert refused.value.param == "previous_response_id"
    assert ask("So?", previous_response_id=second.id).output_text  # it holds what it needs


def test_another_key_finds_nothing(tool_server, ask) -> None:
    kept, other = ask("Hello there"), client_of(tool_server, "another")
    with pytest.raises(openai.NotFoundError):
        other.responses.retrieve(kept.id)
    with pytest.raises(openai.NotFoundError):
        other.responses.delete(kept.id)
    with pytest.raises(openai.BadRequestError, match="no response"):
        other.responses.create(**GREEDY, input="And?", previous_response_id=kept.id)
    [item] = client_of(tool_server, "one").responses.input_items.list(kept.id).data
    with pytest.raises(openai.BadRequestError, match="no item"):
        other.responses.create(**GREEDY, input=[{"type": "item_reference", "id": item.id}])


def response(id: str, text: str = "") -> dict[str, Any]:
    return {"id": id, "output": [{"id": f"{id}.0", "type": "message", "text": text}]}


def test_a_shelf_has_bounds() -> None:
    now = 0.0
    shelf = Shelf(3, room=10_000, patience=60, clock=lambda: now)
    for id in "abcd":
        shelf.keep(b"me", response(id), ())
    assert len(shelf) == 3 and shelf.find(b"me", "b").response["id"] == "b"
    with pytest.raises(Unknown):
        shelf.find(b"me", "a")
    shelf.keep(b"me", response("e"), ())
    assert shelf.find(b"me", "b")  # it was asked for after c
    with pytest.raises(Misused):
        shelf.before(b"me", "c")
    now = 59.0
    shelf.find(b"me", "d")
    now = 61.0
    assert [id for id in "bde" if shelf.item(b"me", f"{id}.0")] == ["d"] and len(shelf) == 1
    for id in "fgh":
        shelf.keep(b"me", response(id, "x" * 4000), ())
    assert shelf.size <= 10_000 and len(shelf) == 2
    shelf.keep(b"me", response("i", "x" * 20_000), ())
    assert (shelf.size, len(shelf)) == (0, 0)
    nothing = Shelf(0)
    nothing.keep(b"me", response("a"), ())
    assert len(nothing) == 0


def test_pages_of_a_list() -> None:
    rows = list(with_ids({"role": "user", "content": str(n)} for n in range(5)))
    ids = [row["id"] for row in rows]
    first = page(rows, "asc", None, 2)
    assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[0], ids[1], True)
    last = page(rows, "desc", ids[1], 2)
    assert ([row["id"] for row in last["data"]], last["has_more"]) == ([ids[0]], False)
    assert page([], "asc", None, 2)["data"] == []
    with pytest.raises(Misused):
        page(rows, "asc", "none", 2)
