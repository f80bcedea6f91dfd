"""Prompt styles: what each writes, where its answers end, and how a folder, an option or the default chooses one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lathe import LLM, checkpoint
from lathe.cli import main
from lathe.errors import ConfigError, TokenizerError, UsageError
from lathe.families import litgpt
from lathe.tokenizer import Tokenizer, train_bpe
from lathe.tokenizer.around import source
from lathe.tokenizer.styles import PLAIN, STYLES, style
from lathe.tokenizer.template import Template

HELLO = [{"role": "user", "content": "Hello"}]
TALK = [*HELLO, {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "Who are you?"}]
BRIEF = {"role": "system", "content": "Be brief."}


def render(name: str, messages: list[dict[str, str]], **given: Any) -> str:
    given = {"bos_token": "<s>", "eos_token": "</s>", **given}
    return Template(source(STYLES[name])).render(messages, **given).text


def test_litgpts_29_names_are_here_and_the_four_that_it_does_not_name():
    assert len(STYLES) == 32 and {"falcon3", "r1-base", "chatml"} < STYLES.keys()


@pytest.mark.parametrize("name", STYLES)
def test_a_conversation_goes_on_as_it_began(name: str):
    """Every turn's text is there, in order, once; what was said before a question stays as it was."""
    first, whole = render(name, HELLO), render(name, TALK)
    assert whole.startswith(first)
    for messages in (TALK, [BRIEF, *TALK]):
        text = render(name, messages)
        places = [text.index(message["content"]) for message in messages]
        assert places == sorted(places)
        assert all(text.count(message["content"]) == 1 for message in messages)
    assert STYLES[name].default not in render(name, [BRIEF, *HELLO]) or not STYLES[name].default
    assert whole.startswith(render(name, TALK[:2], add_generation_prompt=False))


@pytest.mark.parametrize("name", STYLES)
def test_what_the_assistant_said_is_marked_with_its_end(name: str):
    rendered = Template(source(STYLES[name])).render(TALK[:2], eos_token="</s>", add_generation_prompt=False)
    [(start, end)] = rendered.answers
    after = STYLES[name].answer[1].replace("{eos}", "</s>")
    assert rendered.text[start:end] == "Hi!" + after


@pytest.mark.parametrize("name", STYLES)
def test_the_end_of_a_turn_is_a_stop(name: str):
    """What stands after an answer, or EOS, or what begins the next question, ends the answer."""
    known = STYLES[name]
    after = known.answer[1].strip()
    assert after in ("", "{eos}", *known.stops)
    assert known.stops or after == "{eos}"


def test_alpacas_input():
    message = {"role": "user", "content": "Sum up.", "input": "A long text."}
    assert render("alpaca", [message]) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nSum up.\n\n### Input:\nA long text."
        "\n\n### Response:\n"
    )
    assert "Sum up.\n\nA long text." in render("phi-2", [message])


def test_several_turns_in_llamas_styles():
    assert render("llama2", [BRIEF, *TALK]) == (
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hello [/INST] Hi!</s><s>[INST] Who are you? [/INST] "
    )
    assert render("gemma", [BRIEF, *HELLO]) == (
        "<start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n<start_of_turn>model\n"
    )


def test_a_role_without_a_place_is_refused():
    with pytest.raises(TokenizerError, match="no place for a message of the role tool"):
        render("chatml", [*HELLO, {"role": "tool", "content": "3"}])


@pytest.mark.parametrize("name", STYLES)
def test_transformers_reads_a_style_that_was_saved_as_we_do(name: str, tmp_path: Path):
    words = train_bpe(["Hello, hello"], 300, ("</s>", "<s>", "<|end|>", "<|im_end|>"))
    styled = words.styled(name)
    styled.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for messages in (TALK, [BRIEF, *TALK]):
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == styled.render(messages) == Tokenizer.open(tmp_path).render(messages)


def test_stops_are_tokens_where_the_vocabulary_has_them_and_else_strings():
    words = train_bpe(["Hello, hello"], 300, ("</s>", "<|im_end|>"))
    chatml, falcon, phi = words.styled("chatml"), words.styled("falcon"), words.styled("phi-3")
    assert (chatml.eos_ids, chatml.stops) == ((0, 1), ())
    assert (falcon.eos_ids, falcon.stops) == ((0,), ("\nUser", "User:"))
    assert phi.stops == ("<|end|>",)
    assert chatml.styled("falcon").eos_ids == (0,)


def test_bos_stands_where_the_files_put_it_and_once(shared: Path):
    llama3 = Tokenizer.open(shared / "data/tokenizers/llama-3")
    for name, begins in (("llama3", "<|begin_of_text|><|start_header_id|>"), ("alpaca", "<|begin_of_text|>Below")):
        assert llama3.styled(name).render(HELLO).startswith(begins)
    gpt2 = Tokenizer.open(shared / "data/tokenizers/gpt2")
    assert gpt2.styled("alpaca").render(HELLO).startswith("Below")


def test_plain_text_and_names_that_are_none(shared: Path):
    qwen = Tokenizer.open(shared / "data/tokenizers/qwen3")
    for name in PLAIN:
        assert style(name) is None and not qwen.styled(name).has_template
    assert qwen.styled("chatml").template != qwen.template
    with pytest.raises(UsageError, match=r"no prompt style alpacca.*\"alpaca\"\?"):
        qwen.styled("alpacca")


def test_every_class_that_litgpts_files_name_has_a_style():
    assert set(litgpt.styles.STYLES.values()) == {*STYLES, "default"}


def test_a_style_goes_into_gguf_files():
    styled = train_bpe(["Hello"], 300).styled("phi-2")
    again = Tokenizer.from_gguf(json.loads(json.dumps(styled.to_gguf())))
    assert again.render(TALK) == styled.render(TALK)


# ---------------------------------------------------------------- which style is taken


@pytest.fixture
def litgpts(shared: Path, tmp_path: Path) -> Path:
    """LitGPT's folder of a small model that was finetuned with Alpaca's style."""
    folder = tmp_path / "litgpt"
    shutil.copytree(shared / "data/models/stories260K-litgpt", folder)
    (folder / "prompt_style.yaml").write_text("class_path: litgpt.prompts.Alpaca\n")
    return folder


def test_a_folder_of_litgpts_says_its_style_and_an_option_says_another(litgpts: Path):
    llm = LLM.load(litgpts)
    assert llm.tokenizer.style == "alpaca" and llm.tokenizer.stops == ("\n### Instruction:",)
    assert llm.tokenizer.render(HELLO).startswith("<s>Below is an instruction")
    assert LLM.load(litgpts, prompt_style="phi-2").tokenizer.render(HELLO) == "<s>Instruct: Hello\nOutput:"
    assert not LLM.load(litgpts, prompt_style="none").tokenizer.has_template
    (litgpts / "prompt_style.yaml").write_text("class_path: mine.Style\n")  # Python, of which nothing is run
    with pytest.raises(ConfigError, match="none of LitGPT's"):
        LLM.load(litgpts)
    assert LLM.load(litgpts, prompt_style="alpaca").tokenizer.style == "alpaca"
    with pytest.raises(UsageError, match="no prompt style"):
        LLM.load(litgpts, prompt_style="phi-9")


def test_the_prompt_is_what_the_style_writes_and_its_stop_ends_the_answer(litgpts: Path, monkeypatch):
    llm = LLM.load(litgpts)
    text = llm.tokenizer.render(HELLO)
    ids = llm.tokenizer.encode(text, special=False)
    wishes: Any = {"temperature": 0, "max_new_tokens": 40}
    answer = llm.complete("Hello", **wishes)
    assert answer.usage.prompt_tokens == len(ids) and ids[0] == 1 and ids[1] != 1
    assert answer.tokens == llm.complete(ids, **wishes).tokens and answer.finish_reason == "length"
    word = answer.text[8:14]
    llm.tokenizer.stops = (word,)
    assert llm.complete("Hello", **wishes).text == answer.text[: answer.text.index(word)]
    assert llm.complete("Hello", **wishes).finish_reason == "stop"
    raw = llm.complete("Hello", raw=True, **wishes)  # which is no turn of a conversation
    assert raw.finish_reason == "length"


def test_generate_and_chat_take_the_option(litgpts: Path, capsys):
    few = ["--temperature", "0", "--max-new-tokens", "4"]
    counts = []
    for option in ([], ["--prompt-style", "none"], ["--prompt-style", "chatml"]):
        assert main(["generate", str(litgpts), "--prompt", "Hello", "--json", *few, *option]) == 0
        counts.append(json.loads(capsys.readouterr().out)["samples"][0]["prompt_tokens"])
    assert len(set(counts)) == 3 and counts[1] == min(counts)
    assert main(["chat", str(litgpts), "Hello", "--prompt-style", "none", *few]) == 0
    assert "no chat template" in capsys.readouterr().err
    assert main(["generate", str(litgpts), "--prompt", "Hello", "--prompt-style", "chatlm"]) == 2
    assert 'Did you mean "chatml"?' in capsys.readouterr().err


def test_a_converted_folder_keeps_the_style(litgpts: Path, tmp_path: Path):
    found = checkpoint.open(litgpts)
    checkpoint.save(tmp_path / "hf", found.tensors, found.config, tokenizer=found.tokenizer())
    again = Tokenizer.open(tmp_path / "hf")
    assert again.render(TALK) == found.tokenizer().render(TALK)
