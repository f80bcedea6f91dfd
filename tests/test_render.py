"""Samples to masks: what is learned is what the model will be asked to write, token by token, and nothing else."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lathe.data.formats import Samples
from lathe.data.render import Example, Renderer
from lathe.data.samples import Chat, Completion, Preference, Sample, Text
from lathe.errors import TokenizerError
from lathe.tokenizer import Tokenizer, train_bpe
from lathe.tokenizer.styles import STYLES

NOW = datetime(2025, 1, 31, 12)
Templated = Callable[..., Tokenizer]


def rows(shared: Path, name: str) -> list[dict[str, Any]]:
    text = (shared / "data" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)


@pytest.fixture(scope="module")
def templated(shared: Path, tmp_path_factory) -> Templated:
    """Minimind's small tokenizer with another chat template, whose marks it knows as tokens."""
    made: dict[str, Tokenizer] = {}

    def make(name: str, source: str = "") -> Tokenizer:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            source = source or (shared / f"data/chat_templates/{name}.jinja").read_text(encoding="utf-8")
            shutil.copy(shared / "data/tokenizers/minimind/tokenizer.json", folder)
            whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            known = {token["content"] for token in whole["added_tokens"]}
            found = re.findall(r"<[|｜]\w+?[|｜]>|<(?:start|end)_of_turn>|\[/?[A-Z_]+\]", source)
            number = len(whole["model"]["vocab"]) + len(known)
            plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for token in sorted({*found, "<s>", "</s>"} - known):
                number += 1
                whole["added_tokens"].append({"id": number, "content": token, **plain})
            (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
            config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": source}
            (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
            made[name] = Tokenizer.open(folder)
        return made[name]

    return make


@pytest.fixture(scope="module")
def opened(shared: Path) -> Callable[[str], Tokenizer]:
    return cache(lambda name: Tokenizer.open(shared / "data/tokenizers" / name))


def spans(example: Example) -> list[tuple[int, int]]:
    """Where the supervised parts begin and end."""
    edges = np.flatnonzero(np.diff(np.r_[0, example.supervised, 0]))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def learned(examples: Sequence[Example], tokenizer: Tokenizer) -> list[str]:
    """The texts that are supervised."""
    parts = [example.ids[a:b].tolist() for example in examples for a, b in spans(example)]
    return [tokenizer.decode(ids, skip_special=False) for ids in parts]


def examples(renderer: Renderer, sample: Sample) -> list[Example]:
    return [example for group in renderer.groups(sample) for example in group]


# ---- against the marks in templates ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["llama3_training", "qwen3_training"])
@pytest.mark.parametrize(
    "data", ["messages_multiturn.jsonl", "glaive_toolcall_sharegpt_300.json", "reason_tool_use_50.jsonl"]
)
def test_the_mask_is_that_of_generation_marks(shared: Path, templated: Templated, name: str, data: str):
    """As in transformers, but that nothing after the token that ends a turn is learned: the model never writes it."""
    tokenizer = templated(name)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._pipeline, chat_template=tokenizer.template, bos_token="<s>", eos_token="</s>"
    )
    ends = {tokenizer.id(token) for token in ("<|eot_id|>", "<|im_end|>")}
    renderer = Renderer(tokenizer)
    count = 0
    for sample in Samples(rows(shared, f"instruct/{data}")[:25]):
        assert isinstance(sample, Chat)
        if name == "llama3_training" and any("tool_calls" in message for message in sample.messages):
            with pytest.raises(TokenizerError, match="no words for tool calls"):
                renderer.groups(sample)
            continue
        [ours] = examples(renderer, sample)
        messages = renderer.writer.talk(sample).messages
        told = theirs.apply_chat_template(
            messages, tools=list(sample.tools) or None, return_assistant_tokens_mask=True, return_dict=True
        )
        ids, mask = told["input_ids"], list(told["assistant_masks"])
        for at, number in enumerate(ids):
            if number in ends and mask[at]:
                after = at + 1
                while after < len(ids) and mask[after]:  # a line's end
                    assert theirs.decode(ids[after]) == "\n"
                    mask[after] = 0
                    after += 1
        size = len(ours)
        assert ours.ids.tolist() == ids[:size]
        assert ours.supervised.tolist() == [bool(x) for x in mask[:size]]
        assert not any(mask[size:])
        count += 1
    assert count >= 4


# ---- what holds for every template ----------------------------------------------------------------------------------
TALK = [
    {"role": "user", "content": "Name a prime.  "},
    {"role": "assistant", "content": "  Seven, I think.\n"},
    {"role": "user", "content": "Another."},
    {"role": "assistant", "content": "Eleven"},
    {"role": "user", "content": "Thanks!"},
    {"role": "assistant", "content": "\n\nWith pleasure :)"},
]
PLAIN = [*TALK[2:5], {"role": "assistant", "content": "With pleasure :)"}]
SYSTEM = {"role": "system", "content": "You know numbers."}
TEMPLATES = (
    "alpaca chatml deepseek-r1-distill-qwen deepseekv3 falcon-instruct gemma gemma3 granite-3.3 llama3 llama3_1 "
    "llama3_2 llama3_training mistral-instruct mistral-nemo mistral-v3-spm phi-4-mini-reasoning phi3 qwen2_5 qwen3 "
    "qwen3_instruct_2507 qwen3_training smollm3 vicuna"
).split()


def holds(renderer: Renderer, messages: list[dict[str, Any]]) -> int:
    """Before every learned part stands, id by id, what the model will be asked with; every answer is learned once, with
    an end; nothing else is. Returns how many examples it took."""
    tokenizer = renderer.tokenizer
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    asked = [tokenizer.encode(tokenizer.render(messages[:at], now=NOW), special=False) for at in answers]
    found = examples(renderer, Chat(tuple(messages)))
    parts = [(example.ids[:a].tolist(), example.ids[a:b].tolist()) for example in found for a, b in spans(example)]
    parts.sort(key=lambda part: len(part[0]))
    assert [before for before, _ in parts] == asked
    for at, (before, ids) in zip(answers, parts, strict=True):
        assert ids[-1] in renderer.ends
        assert sum(number in renderer.ends for number in ids) == 1
        stream = tokenizer.stream(before)
        said = "".join(map(stream.push, ids)) + stream.flush()
        said = said.strip().removeprefix("<think>\n\n</think>").removeprefix("</think>")
        assert said.split() == messages[at]["content"].split()
    assert all(len(example) == spans(example)[-1][1] for example in found)
    return len(found)


def test_all_templates_are_tried(shared: Path):
    assert {file.stem for file in (shared / "data/chat_templates").glob("*.jinja")} == set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_before_an_answer_stands_what_it_will_be_asked_with(templated: Templated, name: str):
    renderer = Renderer(templated(name), now=NOW)
    for size in (2, 4, 6):
        holds(renderer, TALK[:size])
    try:
        renderer.tokenizer.render([SYSTEM, TALK[0]])
    except TokenizerError:
        assert name == "gemma"
    else:
        holds(renderer, [SYSTEM, *TALK])


@pytest.mark.parametrize("name", TEMPLATES)
def test_whatever_is_said(templated: Templated, name: str):
    renderer, draw = Renderer(templated(name), now=NOW), random.Random(name)
    bits = [
        " ",
        "\n",
        "\n\n",
        "\t",
        " x",
        "Hello",
        "é",
        "日本",
        "1",
        ".",
        ":",
        "🙂",
        "\u200b",
        '"',
        "{",
        "\r\n",
        "### Response:",
        "<|",
    ]
    for _ in range(6):
        texts = ["".join(draw.choices(bits, k=draw.randint(1, 6))) for _ in range(4)]
        holds(
            renderer,
            [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=True)],
        )


LAST_ENDS_OTHERWISE = """\
{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}\
{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}\
{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"""
COUNTS = """\
{{ messages | length }} messages{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
NO_END = """\
{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
NO_QUESTION = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"


@pytest.mark.parametrize(
    ("name", "source", "count"),
    [
        ("last", LAST_ENDS_OTHERWISE, 3),  # as gpt-oss
        ("counts", COUNTS, 3),
        ("no_end", NO_END, 3),  # EOS, which the template never writes, can follow the last answer only
        ("no_question", NO_QUESTION, 1),  # the model writes the header, too
    ],
)
def test_templates_at_fault(templated: Templated, name: str, source: str, count: int):
    renderer = Renderer(
        templated(name, source + "{# <|user|><|assistant|><|end|><|start|><|message|><|return|> #}"), now=NOW
    )
    assert holds(renderer, TALK) == count


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("vocabulary", ["llama-2", "minimind"])
def test_styles_too(opened: Callable[[str], Tokenizer], name: str, vocabulary: str):
    renderer = Renderer(opened(vocabulary), style=name)
    holds(renderer, TALK)
    holds(renderer, [SYSTEM, *TALK[:2]])


# ---- texts ----------------------------------------------------------------------------------------------------------
def test_a_completion_is_learned_with_eos_and_a_text_whole(opened: Callable[[str], Tokenizer]):
    tokenizer = opened("llama-2")  # it has no template: texts stay as they are
    renderer = Renderer(tokenizer)
    [found] = examples(renderer, Completion("The capital of France is", " Paris."))
    assert found.ids.tolist() == [*tokenizer.encode("The capital of France is Paris."), tokenizer.eos_id]
    assert learned([found], tokenizer) == ["Paris.</s>"]
    [found] = examples(renderer, Text("Paris."))
    assert found.ids.tolist() == [*tokenizer.encode("Paris."), tokenizer.eos_id]
    assert found.supervised.tolist() == [False, *[True] * (len(found) - 1)]


def test_a_prompt_ends_as_it_is_asked_with_even_where_a_token_would_lie_across(opened: Callable[[str], Tokenizer]):
    tokenizer = opened("llama-2")
    for prompt, completion in (("Say: ", "Paris"), ("Unbeliev", "able"), ("One\n", "\nTwo"), ("a", "")):
        [found] = examples(Renderer(tokenizer), Completion(prompt, completion))
        asked = tokenizer.encode(prompt)
        assert found.ids[: len(asked)].tolist() == asked
        assert tokenizer.decode(found.ids.tolist()) == prompt + completion
        assert found.supervised.tolist() == [False] * len(asked) + [True] * (len(found) - len(asked))


def test_with_a_template_a_prompt_is_what_the_user_says(templated: Templated):
    tokenizer = templated("qwen2_5")
    [found] = examples(Renderer(tokenizer), Completion("Hi", "Hello!"))
    assert tokenizer.decode(found.ids.tolist(), skip_special=False).endswith("<|im_start|>assistant\nHello!<|im_end|>")
    assert learned([found], tokenizer) == ["Hello!<|im_end|>"]
    [plain] = examples(Renderer(tokenizer, style="none"), Completion("Hi ", "Hello!"))
    assert tokenizer.decode(plain.ids.tolist(), skip_special=False) == "Hi Hello!</s>"


def test_two_answers_share_their_prompt(templated: Templated):
    talk, shared_part = tuple(TALK[:4]), frozenset(range(3))
    other = (*talk[:3], {"role": "assistant", "content": "Twelve"})
    pair = Preference(Chat(talk, muted=shared_part), Chat(other, muted=shared_part))
    [(chosen, rejected)] = Renderer(templated("qwen2_5")).groups(pair)
    assert learned([chosen], templated("qwen2_5")) == ["Eleven<|im_end|>"]
    assert learned([rejected], templated("qwen2_5")) == ["Twelve<|im_end|>"]
    [(start, _)], [(other_start, _)] = spans(chosen), spans(rejected)
    assert chosen.ids[:start].tolist() == rejected.ids[:other_start].tolist()


# ---- what is learned of a conversation ------------------------------------------------------------------------------
def test_loss_on(templated: Templated):
    tokenizer, chat = templated("qwen2_5"), Chat(tuple(PLAIN))
    by_name = {name: examples(Renderer(tokenizer, name), chat) for name in ("assistant", "last", "all")}
    assert learned(by_name["assistant"], tokenizer) == ["Eleven<|im_end|>", "With pleasure :)<|im_end|>"]
    assert learned(by_name["last"], tokenizer) == ["With pleasure :)<|im_end|>"]
    assert [found.ids.tolist() for [found] in by_name.values()] == [by_name["last"][0].ids.tolist()] * 3
    assert by_name["all"][0].supervised[1:].all()


def test_a_muted_answer_is_read_and_not_learned(templated: Templated):
    chat = Chat(tuple(PLAIN), muted=frozenset([1]))
    [found] = examples(Renderer(templated("qwen2_5")), chat)
    assert learned([found], templated("qwen2_5")) == ["With pleasure :)<|im_end|>"]
    assert "Eleven" in templated("qwen2_5").decode(found.ids.tolist())


@pytest.mark.parametrize("name", ["qwen3", "llama3", "deepseek-r1-distill-qwen", "smollm3", "granite-3.3"])
def test_reasoning_is_learned_whatever_the_template_makes_of_it(templated: Templated, name: str):
    first, second = ({"role": "assistant", "content": "Seven.", "reasoning_content": f"Hm, {n}."} for n in "12")
    chat = Chat((TALK[0], first, TALK[2], second))
    renderer = Renderer(templated(name))
    parts = learned(examples(renderer, chat), templated(name))
    assert len(parts) == 2
    for part, said in zip(parts, "12", strict=True):
        begun = part.removeprefix("<think>").strip()
        assert re.match(rf"Hm, {said}\.\s+</think>\s+Seven\.", begun), part


def test_an_input_stands_where_the_style_has_a_place_for_it(templated: Templated):
    asked = {"role": "user", "content": "Sum up.", "input": "Long text."}
    chat = Chat((asked, {"role": "assistant", "content": "Text."}))
    for style, text in (("alpaca", "Sum up.\n\n### Input:\nLong text."), (None, "Sum up.\nLong text.")):
        renderer = Renderer(templated("qwen2_5"), style=style)
        [found] = examples(renderer, chat)
        assert text in renderer.tokenizer.decode(found.ids.tolist())


def test_the_end_of_a_turn_joins_the_ends(templated: Templated):
    """A base model's files often name only the end of a document; generation has to stop at the template's end too."""
    tokenizer = templated("qwen2_5")
    assert tokenizer.eos_ids == (tokenizer.id("</s>"),)
    assert Renderer(tokenizer).ends == (tokenizer.id("</s>"), tokenizer.id("<|im_end|>"))


def test_the_template_of_a_style_is_kept_with_the_model(tmp_path: Path):
    renderer = Renderer(train_bpe(["some text"], 300))
    renderer.tokenizer.save(tmp_path)
    again = Renderer(Tokenizer.open(tmp_path))
    assert again.tokenizer.style is None
    chat = Chat(tuple(TALK))
    before, after = examples(renderer, chat), examples(again, chat)
    assert [found.ids.tolist() for found in before] == [found.ids.tolist() for found in after]
    asked = Tokenizer.open(tmp_path).encode(Tokenizer.open(tmp_path).render(TALK[:1]), special=False)
    assert before[0].ids[: len(asked)].tolist() == asked


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "mistral-instruct", "phi3", "gemma", "smollm3"])
def test_reading_a_turn_off_the_whole_is_encoding_it(
    shared: Path, templated: Templated, opened: Callable[[str], Tokenizer], name: str, monkeypatch
):
    samples = Samples(rows(shared, "instruct/messages_multiturn.jsonl")[:6])
    for tokenizer in (templated(name), opened("llama-2").styled("tinyllama")):
        read = [examples(Renderer(tokenizer), sample) for sample in samples]
        with monkeypatch.context() as patch:
            patch.setattr(Renderer, "_standing", lambda *_: None)
            encoded = [examples(Renderer(tokenizer), sample) for sample in samples]
        for some, others in zip(read, encoded, strict=True):
            assert [one.ids.tolist() for one in some] == [one.ids.tolist() for one in others]
            assert [one.supervised.tolist() for one in some] == [one.supervised.tolist() for one in others]
