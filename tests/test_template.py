"""Chat templates: every rendering, span and error that transformers gives, and nothing that templates must not do."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lathe.errors import TokenizerError
from lathe.tokenizer import Tokenizer
from lathe.tokenizer.template import Template

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="session")
def goldens(shared: Path) -> dict[str, dict[str, Any]]:
    """Template -> conversation -> {"text", "assistant_spans"} or {"error"}, as transformers renders it."""
    return json.loads((shared / "data/chat_templates/expected.json").read_text(encoding="utf-8"))["templates"]


def test_every_template_renders_as_in_transformers(shared: Path, goldens: dict[str, dict[str, Any]]) -> None:
    folder = shared / "data/chat_templates"
    conversations = json.loads((folder / "conversations.json").read_text(encoding="utf-8"))
    clock = datetime(2025, 1, 31, 12)
    assert {file.stem for file in folder.glob("*.jinja")} < goldens.keys()
    assert all(found.keys() == conversations.keys() for found in goldens.values()) and len(conversations) == 5
    for name, by_conversation in goldens.items():
        if name.startswith("tokenizers/"):
            source = json.loads((shared / f"data/{name}/tokenizer_config.json").read_bytes())["chat_template"]
        else:
            source = (folder / f"{name}.jinja").read_text(encoding="utf-8")
        template = Template(source)
        for conversation, expected in by_conversation.items():
            given = {**conversations[conversation], "now": clock, "bos_token": "<s>", "eos_token": "</s>"}
            if "error" in expected:
                kind, _, said = expected["error"].partition(": ")
                with pytest.raises(TokenizerError) as caught:
                    template.render(**given)
                assert said.rstrip(".") in str(caught.value), (name, conversation)
                assert kind in ("TemplateError", "TypeError")
            else:
                rendered = template.render(**given)
                assert rendered.text == expected["text"], (name, conversation)
                spans = [list(span) for span in rendered.answers]
                assert spans == expected.get("assistant_spans", []), (name, conversation)


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "minimind", "phi-3-mini"])
def test_a_folders_template_gives_the_ids_of_transformers(shared: Path, name: str) -> None:
    folder = shared / "data/tokenizers" / name
    conversations = json.loads((shared / "data/chat_templates/conversations.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    ours = Tokenizer.open(folder)
    by_class = name == "qwen2.5"  # it has no tokenizer.json
    theirs = (AutoTokenizer if by_class else PreTrainedTokenizerFast).from_pretrained(folder)
    assert ours.has_template and ours.template == config["chat_template"]
    for conversation in conversations.values():
        text = ours.render(**conversation)
        messages, options = conversation["messages"], {k: v for k, v in conversation.items() if k != "messages"}
        assert text == theirs.apply_chat_template(messages, tokenize=False, **options)
        ids = theirs.apply_chat_template(messages, return_dict=False, **options)
        assert ours.encode(text, special=False) == ids


def render(source: str, messages: Any = HELLO, **given: Any) -> str:
    return Template(source).render(messages, **given).text


def test_what_templates_are_offered() -> None:
    assert render("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}") == "x\n"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{{ value | tojson }}", value={"a": "<é>&'", "b": [1, None]}) == '{"a": "<é>&\'", "b": [1, null]}'
    indented = '{\n "a": 1,\n "b": 2\n}'
    assert render("{{ value | tojson(indent=1, sort_keys=true) }}", value={"b": 2, "a": 1}) == indented
    assert render("{{ strftime_now('%d %b %Y') }}", now=datetime(2024, 7, 26)) == "26 Jul 2024"
    assert render("{{ strftime_now('%Y') }}") >= "2025"
    assert render("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}{{ dict(a=3).a }}") == "23"
    assert render("{{ documents }} {{ tools }} {{ add_generation_prompt }} [{{ bos_token }}]") == "None None True []"
    assert render("{{ 'content' in messages[0] }}", [{"role": "assistant", "content": None}]) == "False"
    assert render("{% generation %}a{% endgeneration %}") == "a"


def test_spans_mark_what_the_assistant_says() -> None:
    source = "{% for m in messages %}<{% generation %}{{ m.content }}{% endgeneration %}>{% endfor %}"
    rendered = Template(source).render([{"content": "é🦙"}, {"content": ""}, {"content": "abc"}])
    assert rendered.text == "<é🦙><><abc>"
    assert [rendered.text[start:end] for start, end in rendered.answers] == ["é🦙", "", "abc"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('Only user and assistant roles.') }}", r"Only user and assistant roles\. "),
        ("{{ nothing.content }}", "'nothing' is undefined"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{{ raise_exception.__globals__.x }}", "unsafe"),
        ("{{ dict.__globals__.x }}", "unsafe"),
        ("{{ strftime_now.__closure__[0] }}", "unsafe"),
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big|number above"),
        ("{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}", "writes more than"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    ],
)
def test_a_template_that_fails_or_oversteps_says_so(source: str, said: str) -> None:
    with pytest.raises(TokenizerError, match=said):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) if a is odd %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
        "{% for a in [1] recursive %}{% if loop.depth < 9 %}{{ loop(range(99999)) }}{% endif %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% set ns = namespace(s='ab') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for a in range(99) %}{% set ns.s = ns.s | replace('a', 'aa') %}{% endfor %}",
        "{% for a in range(99999) %}{{ range(99999) | sum | string | first }}{% endfor %}",
        "{% set long = range(99999) | list %}{% for a in range(99999) %}{{ (long | sum) == 1 }}{% endfor %}",
        "{{ 'x' * 10**9 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set ns = namespace(n=9) %}{% for a in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{{ 'x'.ljust(10000000000) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ ('x' * 9999999) | length }}{% for a in range(99999) %}{{ ('x' * 9999999) | length }}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_ended(source: str) -> None:
    """By counting: the same template ends at the same place on every machine."""
    with pytest.raises(TokenizerError, match=r"come to an end|RecursionError|more than|above|formats text"):
        render(source)


def test_long_conversations_are_rendered_all_the_same(shared: Path) -> None:
    """Ten thousand messages, and one of ten million characters."""
    template = Template((shared / "data/chat_templates/qwen3.jinja").read_text(encoding="utf-8"))
    roles = ("user", "assistant")
    many = [{"role": roles[turn % 2], "content": f"Message {turn}"} for turn in range(10_001)]
    text = template.render(many).text
    assert text.count("<|im_start|>") == 10_002 and "Message 10000" in text
    long = template.render([{"role": "user", "content": "word " * 2_000_000}]).text
    assert long.count("word ") == 2_000_000


def test_loops_know_where_they_are() -> None:
    source = "{% for a in value %}{{ loop.index }}/{{ loop.length }}{{ '.' if loop.last else ',' }}{% endfor %}"
    assert render(source, value=["a", "b"]) == "1/2,2/2."
    assert render("{% for k, v in value.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}", value={}) == "none"
    tree = "{% for a in value recursive %}<{{ loop(a) }}>{% endfor %}"
    assert render(tree, value=[[[], []], []]) == "<<><>><>"


def test_a_template_reads_no_files() -> None:
    for source in ("{% include 'a' %}", "{% import 'a' as a %}", "{% extends 'a' %}"):
        with pytest.raises(TokenizerError):
            render(source)


def test_a_template_that_cannot_be_read_says_where(tmp_path: Path, shared: Path) -> None:
    tokenizer = Tokenizer.open(shared / "data/models/stories260K-hf")
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}\n{% if %}")
    broken = Tokenizer.open(tmp_path)  # text can still be generated with it
    with pytest.raises(TokenizerError, match=r"cannot be read: .*line 2"):
        broken.render(HELLO)


@pytest.mark.parametrize("messages", [[], ["Hello"], [{"role": "user", "content": Path("x")}]])
def test_messages_are_plain_objects(messages: Any) -> None:
    with pytest.raises(TokenizerError):
        render("{{ messages }}", messages)


def test_where_templates_are_looked_for(shared: Path, tmp_path: Path) -> None:
    Tokenizer.open(shared / "data/models/stories260K-hf").save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    plain = json.loads(config.read_text())
    with pytest.raises(TokenizerError, match="has none\\. Generate from plain text"):
        Tokenizer.open(tmp_path).render(HELLO)
    assert not Tokenizer.open(tmp_path).has_template and Tokenizer.open(tmp_path).template is None

    def rendered(**given: Any) -> str:
        return Tokenizer.open(tmp_path).render(HELLO, **given)

    config.write_text(json.dumps({**plain, "chat_template": "in config{{ eos_token }}"}))
    assert rendered() == "in config</s>"
    assert rendered(eos_token="") == "in config"
    named = [{"name": "rag", "template": "rag"}]
    config.write_text(json.dumps({**plain, "chat_template": named}))
    with pytest.raises(TokenizerError, match=r'"default".*only rag'):
        rendered()
    named += [{"name": "default", "template": "usual"}, {"name": "tool_use", "template": "tools"}]
    config.write_text(json.dumps({**plain, "chat_template": named}))
    assert (rendered(), rendered(tools=[])) == ("usual", "tools")
    (tmp_path / "chat_template.json").write_text('{"chat_template": "of the processor"}')
    assert (rendered(), rendered(tools=[])) == ("of the processor", "tools")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_text("tools in a file")
    (tmp_path / "chat_template.jinja").write_text("in a file")
    assert (rendered(), rendered(tools=[])) == ("in a file", "tools in a file")
    config.write_text(json.dumps({**plain, "chat_template": [{"name": "default"}]}))
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is not made as"):
        Tokenizer.open(tmp_path)
