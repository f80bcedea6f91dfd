"""What `lathe data` and the check before training find: every fault is named by its row, and sound data have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lathe.actions import marked
from lathe.cli import main
from lathe.data import check, sources
from lathe.data.formats import Samples
from lathe.data.render import Example, Renderer
from lathe.errors import DataError
from lathe.tokenizer import Tokenizer, train_bpe

GOOD = {"instruction": "Name a prime.", "output": "Seven."}
ALL = [
    "instruct/alpaca_rasbt_1100.json",
    "instruct/dolly_hhrlhf_prompt_response.jsonl",
    "instruct/dolly_litgpt_fixture.json",
    "instruct/glaive_toolcall_sharegpt_300.json",
    "instruct/identity_alpaca.json",
    "instruct/longform_train_fixture.json",
    "instruct/longform_val_fixture.json",
    "instruct/messages_multiturn.jsonl",
    "instruct/reason_tool_use_50.jsonl",
    "instruct/sharegpt_vicuna_identity.json",
    "preference/dpo_rasbt_1100.json",
    "preference/dpo_sharegpt_300.json",
    "preference/v1_dpo_messages.jsonl",
]


@pytest.fixture(scope="module")
def minimind(shared: Path) -> Renderer:
    return Renderer(Tokenizer.open(shared / "data/tokenizers/minimind"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with only a tokenizer, which has no chat template."""
    train_bpe(["Name a prime. Seven."], 300).save(tmp_path / "model")
    return tmp_path / "model"


def written(folder: Path, *rows: Any) -> str:
    """A file with these rows, texts as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "some.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "some.jsonl")


@pytest.mark.parametrize("name", ALL)
def test_real_data_are_sound(shared: Path, minimind: Renderer, name: str):
    report = check.examine(Samples(sources.rows(str(shared / "data" / name))[:60]), minimind, 8192)
    same = [fault for fault in report.faults if "two answers are the same" not in fault.found]
    assert not same
    assert len(report.groups) + len(report.faults) == report.rows
    assert 0 < report.supervised < report.tokens
    check.refuse(report, skip=True)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("{", "line 2: this is not JSON"),
        ({"a": "x"}, "line 2: a row with a has no shape"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 'line 2: message 1: the role "wizard" is unknown'),
        ({"messages": [{"role": "user", "content": "x"}]}, "line 2: there is no answer to learn"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "line 2: there is no answer to learn"),
        ({"instruction": "x", "output": "  "}, "line 2: an answer is empty"),
        ({"prompt": "x", "completion": ""}, "line 2: an answer is empty"),
        ({"instruction": "x", "output": "\ud83d"}, "line 2: The text holds half a character"),
        ({"text": " "}, "line 2: the text is empty"),
        ({"question": "x", "chosen": "y", "rejected": "y"}, "line 2: the two answers are the same"),
        ({"instruction": "x", "output": "a<|endoftext|>b"}, r"line 2: an answer holds <\|endoftext\|>, at which"),
        ({"instruction": "x " * 200, "output": "y"}, "line 2: there is nothing to learn within 256 tokens"),
        ({"messages": [{"role": "tool", "content": "x"}, *GOOD]}, "line 2: message 2: it is a text"),
        (
            {"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "x"}]},
            "line 2: The chat templ",
        ),
    ],
)
def test_a_fault_is_named_by_its_row(model: Path, tmp_path: Path, capsys, row: Any, found: str):
    file = written(tmp_path, GOOD, row, {**GOOD, "output": "Eleven."})
    report = check.examine(Samples(sources.rows(file)), Renderer(Tokenizer.open(model)), 256)
    assert [fault.row for fault in report.faults] == [2]
    assert report.origins == [0, 2]
    with pytest.raises(
        DataError, match=rf"1 of 3 rows cannot be learned from\. .*some\.jsonl, {found}.*--skip-bad-rows"
    ):
        check.refuse(report)
    check.refuse(report, skip=True)
    assert main(["data", str(model), file, "--max-seq-length", "256", "--json"]) == 1
    assert [fault["row"] for fault in json.loads(capsys.readouterr().out)["faults"]] == [2]


def test_a_tokenizer_without_eos_teaches_no_end(tmp_path: Path):
    renderer = Renderer(train_bpe(["some text"], 300, specials=()))
    report = check.examine(Samples([GOOD]), renderer, 256)
    assert "no token ends the answer" in report.faults[0].found


def test_two_bos_are_a_fault(shared: Path):
    renderer = Renderer(Tokenizer.open(shared / "data/tokenizers/llama-2"), style="none")
    once, twice = ({"prompt": f"{begin}One, ", "completion": "two"} for begin in ("<s>", "<s><s>"))
    report = check.examine(Samples([once, twice]), renderer, 256)
    assert [fault.found for fault in report.faults] == ["row 2: two <s> follow each other."]


def test_repeats_are_counted_and_refused_when_they_are_many(model: Path, tmp_path: Path, capsys):
    file = written(tmp_path, GOOD, GOOD, {**GOOD, "output": "Eleven."})
    report = check.examine(Samples(sources.rows(file)), Renderer(Tokenizer.open(model)), 256)
    assert report.repeats == [1]
    with pytest.raises(DataError, match=r"1 of 3 rows say what an earlier one says, and 30% may: 2."):
        check.refuse(report)
    check.refuse(report, repeats=0.5)
    assert main(["data", str(model), file]) == 1
    assert "wrong 1 of 3 rows say what an earlier one says, and 30% may: 2." in capsys.readouterr().out
    assert main(["data", str(model), file, "--max-repeats", "0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["repeats"] == [2]


def test_truncation_is_counted(model: Path):
    renderer = Renderer(Tokenizer.open(model))
    rows = [{**GOOD, "output": "Seven. " * 3}, {**GOOD, "output": "Seven. " * 99}]
    sizes = [len(group[0]) for row in Samples(rows) for group in renderer.groups(row)]
    report = check.examine(Samples(rows), renderer, sizes[0])
    assert report.cut == 1 and sizes[1] > sizes[0]
    assert report.lengths.tolist() == [sizes[0], sizes[0] + 1]  # the token that is only a target comes on top


def test_answers_that_are_not_wanted_are_left_out(model: Path):
    rows = [{**GOOD, "label": True}, {**GOOD, "output": "Eight.", "label": False}]
    report = check.examine(Samples(rows), Renderer(Tokenizer.open(model)), 256)
    assert (report.origins, report.unwanted, report.faults) == ([0], 1, [])
    with pytest.raises(DataError, match="nothing to learn"):
        check.refuse(check.examine(Samples(rows[1:]), Renderer(Tokenizer.open(model)), 256))


# ---- what is shown --------------------------------------------------------------------------------------------------
def test_what_is_learned_is_marked(shared: Path, capsys):
    folder, file = shared / "data/tokenizers/minimind", shared / "data/instruct/identity_alpaca.json"
    assert main(["data", str(folder), str(file), "--row", "2"]) == 0
    page = capsys.readouterr().out
    assert "identity_alpaca.json, row 2 · 47 tokens, 29 learned" in page
    answer = "Hello! I am {{name}}, an AI assistant developed by {{author}}. How can I assist you today?"
    assert f"</think>\n\n{{+{answer}<|im_end|>+}}" in page
    assert "91 rows; 91 conversations" in page
    assert "sound" in page


def test_a_character_of_several_tokens_is_shown_once_and_whole():
    tokenizer = train_bpe(["plain"], 260)
    ids = tokenizer.encode("é→𝄞!")
    example = Example(np.array(ids, dtype=np.int32), np.arange(len(ids)) > 1)
    assert marked.plain(example, tokenizer) == "é{+→𝄞!+}"
    assert marked.coloured(example, tokenizer).plain == "é→𝄞!"


def test_memory_and_time_are_reckoned_where_there_is_a_model(shared: Path, capsys):
    folder, file = shared / "data/models/stories260K-hf", shared / "data/instruct/identity_alpaca.json"
    assert main(["data", str(folder), str(file), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["max_seq_length"] == 512 and page["cut"] == 0 and page["faults"] == []
    assert page["memory"]["lora"] < page["memory"]["full, bf16-true"] < page["memory"]["full, 32-true"]
    assert page["seconds_per_epoch"].keys() == {"lora", "full"}
    assert sum(page["histogram"].values()) == page["examples"] == 91


def test_a_row_that_is_not_there(model: Path, tmp_path: Path, capsys):
    assert main(["data", str(model), written(tmp_path, GOOD), "--row", "2"]) == 2
    assert "There is no row 2. The data has 1." in capsys.readouterr().err


# ---- before training ------------------------------------------------------------------------------------------------
def test_finetuning_makes_the_same_check_first(shared: Path, tmp_path: Path, capsys):
    base, out = shared / "data/models/stories260K-hf", tmp_path / "out"
    file = written(tmp_path, {"q": "Name a prime.", "a": "Seven."}, {"q": "x", "a": ""}, {"q": "Hi", "a": "Hello!"})
    words = ["finetune", str(base), "--data", file, "--out-dir", str(out), "--columns", "question=q,answer=a"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "1 of 3 rows cannot be learned from." in said and "some.jsonl, line 2: an answer is empty." in said
    words += ["--skip-bad-rows", "--train.max-steps=1", "--eval.max-new-tokens=0"]
    assert main(words) == 0
    assert "1 rows left out" in capsys.readouterr().err
    pair = written(tmp_path, {"question": "x", "chosen": "y", "rejected": "z"})
    assert main(["finetune", str(base), "--data", pair, "--out-dir", str(tmp_path / "other")]) == 2
    assert "holds pairs of answers" in capsys.readouterr().err
