"""LitGPT's prompt styles, as data: a name -> what stands around each message -> the source of a chat template.

Knows no tokenizer and no checkpoint. Where they differ from LitGPT's own words it is said here: a system message is
never dropped, an answer ends where the model's lineage ends it, and three slips of the pen are put right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lathe.errors import UsageError, did_you_mean

PLAIN = ("none", "default")  # a text is continued as it is

Around = tuple[str, str]


@dataclass(frozen=True)
class Style:
    """What stands before and after each message. {bos} and {eos} are the tokenizer's.

    Args:
        user, answer, system: around a message of each role. What stands before an answer begins the assistant's turn.
        default: the system message of a conversation that has none.
        stops: texts or tokens, besides EOS, at which an answer ends.
        begin: before everything.
        between: before every question but the first.
        inside: the system message stands within the first question, before its text.
        extra: around the further `input` that a message has in instruction sets.
        default_with_extra: the default system message where there is one.
    """

    user: Around
    answer: Around
    system: Around = ("", "\n\n")
    default: str = ""
    stops: tuple[str, ...] = ()
    begin: str = ""
    between: str = ""
    inside: bool = False
    extra: Around = ("\n\n", "")
    default_with_extra: str = ""


_TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_PAIR = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_ANSWER = ("### Response:\n", "{eos}")
_QUESTION = ("### Instruction:\n", "\n\n")
_INSTRUCTION = "\n### Instruction:"  # where a model of plain words begins to write the next question itself


def _chatml(default: str = "") -> Style:
    return Style(
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        answer=("<|im_start|>assistant\n", "<|im_end|>\n"),
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        default=default,
        stops=("<|im_end|>",),
    )


def _phi4(default: str = "") -> Style:
    return Style(
        user=("<|im_start|>user<|im_sep|>", "<|im_end|>"),
        answer=("<|im_start|>assistant<|im_sep|>", "<|im_end|>"),
        system=("<|im_start|>system<|im_sep|>", "<|im_end|>"),
        default=default,
        stops=("<|im_end|>",),
    )


def _phi4_mini(default: str = "") -> Style:
    return Style(
        user=("<|user|>", "<|end|>"),
        answer=("<|assistant|>", "<|end|>"),
        system=("<|system|>", "<|end|>"),
        default=default,
        stops=("<|end|>",),
    )


STYLES: dict[str, Style] = {
    "alpaca": Style(
        user=_QUESTION,
        answer=_ANSWER,
        default=_TASK,
        stops=(_INSTRUCTION,),
        between="\n\n",
        extra=("\n\n### Input:\n", ""),
        default_with_extra=_PAIR,
    ),
    "flan": Style(user=_QUESTION, answer=_ANSWER, default=_TASK, stops=(_INSTRUCTION,), between="\n\n"),
    "longform": Style(user=_QUESTION, answer=_ANSWER, default=_PAIR, stops=(_INSTRUCTION,), between="\n\n"),
    "stablelm-alpha": Style(
        user=("<|USER|>", ""),
        answer=("<|ASSISTANT|>", ""),
        system=("<|SYSTEM|>", ""),
        default=(
            "# StableLM Tuned (Alpha version)\n"
            "- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.\n"
            "- StableLM is excited to be able to help the user, but will refuse to do anything that could be "
            "considered harmful to the user.\n"
            "- StableLM is more than just an information source, StableLM is also able to write poetry, short "
            "stories, and make jokes.\n"
            "- StableLM will refuse to participate in anything that could harm a human."
        ),
        stops=("<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>"),
    ),
    "stablelm-zephyr": Style(
        user=("<|user|>\n", "<|endoftext|>\n"),
        answer=("<|assistant|>\n", "<|endoftext|>\n"),
        system=("<|system|>\n", "<|endoftext|>\n"),
        stops=("<|endoftext|>",),
    ),
    "falcon": Style(user=("", "\n"), answer=("Answer:", "\n"), stops=("\nUser", "User:")),
    "falcon3": Style(
        user=("<|user|>\n", "<|endoftext|>\n"),
        answer=("<|assistant|>\n", "<|endoftext|>\n"),
        system=("<|system|>\n", "<|endoftext|>\n"),
        stops=("<|endoftext|>",),
    ),
    "llama2-function-calling": Style(
        # LitGPT doubles the braces of this sample.
        begin=(
            '<FUNCTIONS>{"function": "search_bing", "description": "Search the web for content on Bing. This allows '
            'users to search online/the internet/the web for content.", "arguments": [{"name": "query", "type": '
            '"string", "description": "The search query string"}]}</FUNCTIONS>\n\n'
        ),
        user=("[INST]", "[/INST]\n\n"),
        answer=("", "{eos}"),
        system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        default=(
            "You are a helpful, respectful and honest assistant. Always answer as helpfully aspossible. "
            "Your only response should be JSON formatted functions"
        ),
        between="{bos}",
        inside=True,
    ),
    "llama2": Style(
        user=("[INST] ", " [/INST] "),
        answer=("", "{eos}"),
        system=("<<SYS>>\n", "\n<</SYS>>\n\n "),
        default=(
            "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
            "safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or "
            "illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n\n"
            "If a question does not make any sense, or is not factually coherent, explain why instead of answering "
            "something not correct. If you don't know the answer to a question, please don't share false information."
        ),
        between="{bos}",
        inside=True,
    ),
    "llama3": Style(
        begin="<|begin_of_text|>",
        user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        answer=("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        default="You are a helpful assistant.",
        stops=("<|eot_id|>",),
    ),
    "r1-base": Style(
        user=("<｜User｜>", ""),
        answer=("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        system=("", ""),
        stops=("<｜end▁of▁sentence｜>",),
    ),
    "freewilly2": Style(
        user=("### User:\n", "\n\n"),
        answer=("### Assistant:\n", "{eos}"),
        system=("### System:\n", "\n\n"),
        default="This is a system prompt, please behave and help the user.",
        stops=("\n### User:",),
        between="\n\n",
    ),
    "platypus": Style(user=("### Instruction:\n\n", "\n\n"), answer=_ANSWER, stops=(_INSTRUCTION,), between="\n\n"),
    "stablecode": Style(
        user=("###Instruction\n", ""),
        answer=("###Response\n", "{eos}"),
        stops=("###Instruction", "<|endoftext|>"),
        between="\n",
    ),
    "codellama": Style(
        user=("[INST] ", " [/INST]"),
        answer=("", "{eos}"),
        system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        between="{bos}",
        inside=True,
    ),
    "phi-1": Style(user=("", "\n\n"), answer=("Answer:", "\n\n"), stops=("\nAnswer:", "Answer:")),
    "phi-2": Style(user=("Instruct: ", "\n"), answer=("Output:", "\n"), stops=("\nInstruct:",)),
    "phi-3": Style(
        user=("<|user|>\n", "<|end|>\n"),
        answer=("<|assistant|>\n", "<|end|>\n"),
        system=("<|system|>\n", "<|end|>\n"),
        default="You are a helpful assistant.",
        stops=("<|end|>",),
    ),
    "phi-4": _phi4(),
    # LitGPT leaves the last bar out of the first <|im_start|>.
    "phi-4-reasoning": _phi4(
        "You are Phi, a language model trained by Microsoft to help users. Your role as an assistant involves "
        "thoroughly exploring questions through a systematic thinking process before providing the final precise and "
        "accurate solutions. This requires engaging in a comprehensive cycle of analysis, summarizing, exploration, "
        "reassessment, reflection, backtracing, and iteration to develop well-considered thinking process. Please "
        "structure your response into two main sections: Thought and Solution using the specified format: <think> "
        "{Thought section} </think> {Solution section}. In the Thought section, detail your reasoning process in "
        "steps. Each step should include detailed considerations such as analysing questions, summarizing relevant "
        "findings, brainstorming new ideas, verifying the accuracy of the current steps, refining any errors, and "
        "revisiting previous steps. In the Solution section, based on various attempts, explorations, and reflections "
        "from the Thought section, systematically present the final solution that you deem correct. The Solution "
        "section should be logical, accurate, and concise and detail necessary steps needed to reach the conclusion. "
        "Now, try to solve the following question through the above guidelines:"
    ),
    "phi-4-mini": _phi4_mini(),
    "phi-4-mini-reasoning": _phi4_mini("Your name is Phi, an AI math expert developed by Microsoft."),
    "tinyllama": Style(
        user=("<|user|>\n", "</s>\n"),
        answer=("<|assistant|>\n", "</s>\n"),
        system=("<|system|>\n", "</s>\n"),
        default="You are a friendly chatbot who always gives helpful, detailed, and polite answers.",
        stops=("</s>",),
    ),
    "gemma": Style(
        user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        answer=("<start_of_turn>model\n", "<end_of_turn>\n"),
        stops=("<end_of_turn>",),
        inside=True,
    ),
    "olmo": Style(
        begin="<|endoftext|>",
        user=("<|user|>\n", "\n"),
        answer=("<|assistant|>\n", "<|endoftext|>\n"),
        system=("<|system|>\n", "\n"),
        stops=("<|endoftext|>",),
    ),
    "chatml": _chatml(),
    "qwen2.5": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen2.5-math": _chatml("Please reason step by step, and put your final answer within \\boxed{}."),
    "qwq": _chatml(
        "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. You should think step-by-step."
    ),
    "qwen3": _chatml(),
    "smollm2": _chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "salamandra": _chatml(
        "I am Salamandra, an AI language model developed at the Barcelona Supercomputing Centre (BSC) by the Language "
        "Technologies Unit. My knowledge base was last updated on August 2023. Today Date: 2024-09-30\n"
        "Soy Salamandra, un modelo lingüístico de IA desarrollado en el Barcelona Supercomputing Centre (BSC) por la "
        "Language Technologies Unit. Mi base de conocimientos se actualizó por última vez en agosto de 2023.\n"
        "Soc Salamandra, un model de llenguatge d'IA desenvolupat al Barcelona Supercomputing Centre (BSC) per la "
        "Language Technologies Unit."
    ),
}


def style(name: str) -> Style | None:
    """The style of a name; None for plain text.

    Raises:
        UsageError: there is none of that name.
    """
    if name in PLAIN:
        return None
    if name not in STYLES:
        known = ", ".join((PLAIN[0], *STYLES))
        raise UsageError(f"There is no prompt style {name}.", f"There are {known}.", did_you_mean(name, STYLES))
    return STYLES[name]


_SOURCE = """\
{%- if messages[0].role == 'system' %}{% set system, turns = messages[0].content, messages[1:] %}
{%- elif DEFAULT_WITH_EXTRA and messages[0].input %}{% set system, turns = DEFAULT_WITH_EXTRA, messages %}
{%- else %}{% set system, turns = DEFAULT, messages %}
{%- endif %}
{%- set system = SYSTEM_BEFORE ~ system ~ SYSTEM_AFTER if system else '' %}
{{- BEGIN ~ (system if not INSIDE or not turns else '') }}
{%- for message in turns %}
    {%- if message.role == 'user' %}
        {{- (BETWEEN if not loop.first else '') ~ USER_BEFORE ~ (system if INSIDE and loop.first else '') }}
        {{- message.content ~ (EXTRA_BEFORE ~ message.input ~ EXTRA_AFTER if message.input else '') ~ USER_AFTER }}
    {%- elif message.role == 'assistant' %}
        {{- ANSWER_BEFORE }}
        {%- generation %}{{ message.content ~ ANSWER_AFTER }}{% endgeneration %}
    {%- else %}
        {{- raise_exception('This prompt style has no place for a message of the role ' ~ message.role) }}
    {%- endif %}
{%- endfor %}
{{- ANSWER_BEFORE if add_generation_prompt else '' }}
"""


def source(style: Style, bos: str = "") -> str:
    """A style as a chat template, which transformers and llama.cpp understand too.

    Args:
        bos: what the tokenizer puts before every text; not a second time, if the style begins with it.
    """
    words = {name: value for name, value in vars(style).items() if isinstance(value, str)}
    for name in ("user", "answer", "system", "extra"):
        words[f"{name}_before"], words[f"{name}_after"] = getattr(style, name)
    words["begin"] = ("" if style.begin.startswith(bos) else bos) + style.begin
    given: Mapping[str, str] = {name.upper(): _quoted(text) for name, text in words.items()}
    given = {**given, "INSIDE": "true" if style.inside else "false"}
    return re.sub(r"\b[A-Z_]{5,}\b", lambda found: given.get(found[0], found[0]), _SOURCE)


def _quoted(text: str) -> str:
    """A text as Jinja writes it, with the tokenizer's own tokens where {bos} and {eos} stand."""
    parts: list[Any] = re.split(r"\{(bos|eos)\}", text)
    quoted = [
        f"({part}_token or '')" if at % 2 else json.dumps(part, ensure_ascii=False) for at, part in enumerate(parts)
    ]
    return f"({' ~ '.join(quoted)})" if len(quoted) > 1 else quoted[0]
