"""Rows of every shape become the samples they mean, and what has no shape is said."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lathe.data import sources
from lathe.data.formats import Samples, parse_columns, sample
from lathe.data.samples import Chat, Completion, Judged, Preference, Text
from lathe.errors import DataError

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
SYSTEM = {"role": "system", "content": "Be kind."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}, "id": "call00001"}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": "Hi", "output": "Hello!"}, [USER, ANSWER]),
        ({"instruction": "Hi", "input": "", "output": "Hello!", "system": "Be kind."}, [SYSTEM, USER, ANSWER]),
        ({"instruction": "Hi", "input": "there", "output": "Hello!"}, [{**USER, "input": "there"}, ANSWER]),
        ({"instruction": "Hi", "context": "there", "response": "Hello!"}, [{**USER, "input": "there"}, ANSWER]),
        ({"input": "Hi", "output": "Hello!", "source": "C4"}, [USER, ANSWER]),
        ({"question": "Hi", "answer": "Hello!"}, [USER, ANSWER]),
        ({"query": "Hi", "response": "Hello!", "history": [["Hi", "Hello!"]]}, [USER, ANSWER, USER, ANSWER]),
        ({"inputs": "Hi", "targets": "Hello!"}, [USER, ANSWER]),
        ({"messages": [USER, ANSWER], "prompt": None}, [USER, ANSWER]),
        ({"messages": [{**USER, "content": [{"type": "text", "text": "Hi"}]}, ANSWER]}, [USER, ANSWER]),
        ({"messages": [{"role": "developer", "content": "Be kind."}, USER, ANSWER]}, [SYSTEM, USER, ANSWER]),
        ({"conversations": ["Hi", "Hello!"]}, [USER, ANSWER]),
        (
            {
                "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}],
                "system": "Be kind.",
            },
            [SYSTEM, USER, ANSWER],
        ),
        ({"prompt": [USER], "completion": [ANSWER]}, [USER, ANSWER]),
    ],
)
def test_conversations(row: dict[str, Any], messages: list[dict[str, Any]]):
    found = sample(row)
    assert isinstance(found, Chat)
    assert list(found.messages) == messages


def test_texts_and_completions():
    assert sample({"text": "Once"}) == sample("Once") == Text("Once")
    assert sample({"prompt": "One, ", "completion": "two"}) == Completion("One, ", "two")
    assert sample({"prompt": "One, ", "response": "two"}) == Completion("One, ", "two")


def test_columns():
    names = parse_columns(["prompt=q,completion=a", "system = s"])
    assert names == {"prompt": "q", "completion": "a", "system": "s"}
    assert sample({"q": "One, ", "a": "two", "s": ""}, names) == Completion("One, ", "two")
    found = sample({"q": "Hi", "a": "Hello!"}, parse_columns(["question=q,answer=a"]))
    assert isinstance(found, Chat) and list(found.messages) == [USER, ANSWER]
    with pytest.raises(DataError, match=r'no column "qq", only q, a.*Did you mean "q"'):
        sample({"q": "Hi", "a": "Hello!"}, {"prompt": "qq"})
    with pytest.raises(DataError, match='"prompt" is not a pair'):
        parse_columns(["prompt"])


# ---- tools ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arguments", [{"a": 1}, '{"a": 1}'])
@pytest.mark.parametrize(
    "turn",
    [
        lambda call: {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
        lambda call: {"role": "assistant", "content": None, "function_call": call},
        lambda call: {"from": "function_call", "value": json.dumps(call)},
        lambda call: {"role": "assistant", "content": [{"type": "tool_call", "value": json.dumps(call)}]},
        lambda call: {"role": "assistant", "content": [{"type": "tool_use", **call}]},
    ],
)
def test_calls(turn: Any, arguments: Any):
    talk = [USER, turn({"name": "add", "arguments": arguments}), {"role": "tool", "content": "2"}, ANSWER]
    found = sample({"messages": talk, "tools": json.dumps([{"name": "add", "parameters": {}}])})
    assert isinstance(found, Chat)
    assert found.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert found.messages[2] == {"role": "tool", "content": "2", "tool_call_id": "call00001"}
    assert found.tools == ({"type": "function", "function": {"name": "add", "parameters": {}}},)


def test_reasoning_stands_apart():
    for turn in (
        {"role": "assistant", "content": "Hello!", "reasoning_content": "Hm."},
        {"role": "assistant", "content": "Hello!", "thinking": "Hm."},
        {"role": "assistant", "content": [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "Hello!"}]},
    ):
        found = sample({"messages": [USER, turn]})
        assert isinstance(found, Chat)
        assert found.messages[1] == {**ANSWER, "reasoning_content": "Hm."}


@pytest.mark.parametrize(
    "switch", [{"weight": 0}, {"train": False}, {"loss_weight": 0.0}, {"loss": False}, {"masked": True}]
)
def test_switches_keep_a_message_out_of_the_loss(switch: dict[str, Any]):
    found = sample({"messages": [USER, {**ANSWER, **switch}, USER, {**ANSWER, "weight": 1}]})
    assert isinstance(found, Chat)
    assert found.muted == {1}
    assert list(found.messages) == [USER, ANSWER] * 2


# ---- preferences ----------------------------------------------------------------------------------------------------
OTHER = {"role": "assistant", "content": "What?"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
        {"prompt": "Hi", "chosen": [ANSWER], "rejected": [OTHER]},
        {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"chosen_messages": [USER, ANSWER], "rejected_messages": [USER, OTHER]},
        {"instruction": "Hi", "input": "", "output": "Hello!", "chosen": "Hello!", "rejected": "What?"},
        {"question": "Hi", "chosen": "Hello!", "rejected": "What?"},
        {"messages": [USER, ANSWER], "rejected_response": "What?"},
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello!"},
            "rejected": {"from": "gpt", "value": "What?"},
        },
    ],
)
def test_pairs_of_answers(row: dict[str, Any]):
    found = sample(row)
    assert found == Preference(Chat((USER, ANSWER), muted=frozenset([0])), Chat((USER, OTHER), muted=frozenset([0])))


def test_pairs_of_texts():
    row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
    assert sample(row) == Preference(Completion("Hi", "Hello!"), Completion("Hi", "What?"))


def test_judged_answers():
    assert sample({"prompt": "Hi", "completion": "Hello!", "label": True}) == Judged(Completion("Hi", "Hello!"), True)
    found = sample({"messages": [USER, ANSWER, USER, OTHER], "kto_tag": False})
    assert found == Judged(Chat((USER, ANSWER, USER, OTHER), muted=frozenset([0, 1, 2])), False)


# ---- real files -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("instruct/alpaca_rasbt_1100.json", Chat, 1100),
        ("instruct/dolly_hhrlhf_prompt_response.jsonl", Completion, 1000),
        ("instruct/dolly_litgpt_fixture.json", Chat, 12),
        ("instruct/glaive_toolcall_sharegpt_300.json", Chat, 300),
        ("instruct/identity_alpaca.json", Chat, 91),
        ("instruct/longform_train_fixture.json", Chat, 17),
        ("instruct/longform_val_fixture.json", Chat, 9),
        ("instruct/messages_multiturn.jsonl", Chat, 147),
        ("instruct/reason_tool_use_50.jsonl", Chat, 50),
        ("instruct/sharegpt_vicuna_identity.json", Chat, 500),
        ("preference/dpo_rasbt_1100.json", Preference, 1100),
        ("preference/dpo_sharegpt_300.json", Preference, 300),
        ("preference/v1_dpo_messages.jsonl", Preference, 10),
        ("eval/gsm8k_train_500.jsonl", Chat, 500),
        ("text/tinystories_1k.txt", Text, 1026),
    ],
)
def test_real_files(shared: Path, name: str, kind: type, count: int):
    found = Samples(sources.rows(str(shared / "data" / name)))
    assert Counter(map(type, found)) == {kind: count}
    for one in found:
        if isinstance(one, Preference) and isinstance(one.chosen, Chat) and isinstance(one.rejected, Chat):
            size = len(one.chosen.muted)
            assert one.chosen.messages[:size] == one.rejected.messages[:size]
            assert one.chosen.messages[size]["role"] == "assistant"


def test_every_call_and_every_word_of_a_real_file_is_kept(shared: Path):
    rows = json.loads((shared / "data/instruct/glaive_toolcall_sharegpt_300.json").read_text(encoding="utf-8"))
    for row in rows:
        found = sample(row)
        assert isinstance(found, Chat)
        for turn, message in zip(row["conversations"], found.messages, strict=True):
            if turn["from"] == "function_call":
                [call] = message["tool_calls"]
                assert call["function"] == json.loads(turn["value"])
            else:
                assert message["content"] == turn["value"]


# ---- what is wrong --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": "x", "b": "y"}, r"row 1: a row with a, b has no shape .* --columns prompt=a,completion=b"),
        ({"n": 1}, "row 1: a row with n has no shape"),
        (
            {"messages": [{"role": "assistent", "content": "x"}]},
            'message 1: the role "assistent" is .*Did you mean "assist',
        ),
        ({"messages": [USER, {"content": "x"}]}, "message 2: it has no role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "of the kind image"),
        ({"messages": [{"role": "user", "content": 5}]}, "its content is a number"),
        ({"messages": ["a", 1]}, "message 1: it is a text"),
        ({"instruction": "Hi", "output": 5}, '"output" is not a text: 5'),
        ({"messages": [USER, {"from": "function_call", "value": "{"}]}, "tool call should be JSON"),
        ({"messages": [USER, ANSWER], "tools": "x"}, "the tools should be JSON"),
        ({"chosen": "x", "rejected": [ANSWER]}, "not both texts or both messages"),
        ({"label": True, "text": "x"}, "there is a label, but no answer"),
        ([1], "it is a list"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row: Any, message: str):
    with pytest.raises(DataError, match=message):
        Samples([row])[0]


def test_a_row_is_named_by_its_place(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x"}\n\n{"txt": "y"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: a row with txt"):
        list(Samples(sources.rows(str(file))))
