"""Our prompt styles write what LitGPT's own write, save where we say otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Ask

from lathe.families import litgpt as hand
from lathe.tokenizer.around import source
from lathe.tokenizer.styles import STYLES
from lathe.tokenizer.template import Template

QUESTION = {"role": "user", "content": "What is it?"}
SYSTEM = {"role": "system", "content": "Be brief."}

# Slips of the pen: LitGPT's words -> ours.
CORRECTED = {
    "Phi4Reasoning": ("<|im_start>system", "<|im_start|>system"),
    "Llama2FunctionCalling": ("{{", "{"),
}
# LitGPT drops the system message of these.
DROPPED = {
    "StableLMZephyr", "Falcon", "Falcon3", "Platypus", "StableCode", "Phi1", "Phi2", "Gemma", "OLMo",
}  # fmt: skip
# LitGPT sets the system message right before the first word that follows; here a line is left free.
JOINED = {"Alpaca", "FLAN", "Longform"}


@pytest.fixture(scope="module")
def theirs(litgpt: Ask) -> dict[str, Any]:
    return litgpt(Path(__file__).with_name("litgpt_styles.py"))


def ours(kind: str, *messages: dict[str, str]) -> str:
    return Template(source(STYLES[hand.styles.STYLES[kind]])).render(messages, eos_token="</s>").text


def corrected(kind: str, text: str) -> str:
    wrong, right = CORRECTED.get(kind, ("", ""))
    text = text.replace(wrong, right) if wrong else text
    return text.replace("}}", "}") if wrong == "{{" else text


KINDS = [kind for kind in hand.styles.STYLES if kind != "Default"]


def test_no_style_is_missing_and_all_have_litgpts_names(theirs: dict[str, Any]):
    assert theirs.keys() == hand.styles.STYLES.keys()
    named = {kind: told["name"] for kind, told in theirs.items() if told["name"]}
    assert len(named) == 29 and named == {kind: hand.styles.STYLES[kind] for kind in named}


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_alone(kind: str, theirs: dict[str, Any]):
    assert ours(kind, QUESTION) == corrected(kind, theirs[kind]["alone"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_with_a_system_message(kind: str, theirs: dict[str, Any]):
    text, told = ours(kind, SYSTEM, QUESTION), corrected(kind, theirs[kind]["system"])
    if kind in DROPPED:
        assert "Be brief." in text and "Be brief." not in told
    elif kind in JOINED:
        assert text == told.replace("Be brief.", "Be brief.\n\n")
    else:
        assert text == told


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_with_an_input(kind: str, theirs: dict[str, Any]):
    text, told = ours(kind, {**QUESTION, "input": "A thing."}), theirs[kind]["input"]
    if kind == "Alpaca":
        assert text == told
    else:  # where LitGPT drops the input
        assert "A thing." in text and "A thing." not in told
