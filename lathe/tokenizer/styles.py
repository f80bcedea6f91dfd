"""LitGPT's prompt styles: a name becomes what stands around each message. Knows no tokenizer and no checkpoint.

Where they differ from LitGPT's own words it is said here: a system message is never dropped, an answer ends where the
model's lineage ends it, and three slips of the pen are put right.
"""

from __future__ import annotations

from lathe.errors import UsageError, did_you_mean
from lathe.tokenizer.around import Style

PLAIN = ("none", "default")  # a text is continued as it is

_TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_PAIR = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_ANSWER = ("### Response:\n", "{eos}")
_QUESTION = ("### Instruction:\n", "\n\n")
_INSTRUCTION = "\n### Instruction:"  # where a model of plain words begins to write the next question itself


def _roles(before: str, after: str, default: str = "", begin: str = "") -> Style:
    """The same marks around every message, with its role in the first; the second one ends an answer."""
    user, answer, system = ((before.format(role), after) for role in ("user", "assistant", "system"))
    return Style(user, answer, system, default=default, stops=(after.strip(),), begin=begin)


def _chatml(default: str = "") -> Style:
    return _roles("<|im_start|>{}\n", "<|im_end|>\n", default)


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
    "stablelm-zephyr": _roles("<|{}|>\n", "<|endoftext|>\n"),
    "falcon": Style(user=("", "\n"), answer=("Answer:", "\n"), stops=("\nUser", "User:")),
    "falcon3": _roles("<|{}|>\n", "<|endoftext|>\n"),
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
    "llama3": _roles(
        "<|start_header_id|>{}<|end_header_id|>\n\n",
        "<|eot_id|>",
        "You are a helpful assistant.",
        begin="<|begin_of_text|>",
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
    "phi-3": _roles("<|{}|>\n", "<|end|>\n", "You are a helpful assistant."),
    "phi-4": _roles("<|im_start|>{}<|im_sep|>", "<|im_end|>"),
    # LitGPT leaves the last bar out of the first <|im_start|>.
    "phi-4-reasoning": _roles(
        "<|im_start|>{}<|im_sep|>",
        "<|im_end|>",
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
        "Now, try to solve the following question through the above guidelines:",
    ),
    "phi-4-mini": _roles("<|{}|>", "<|end|>"),
    "phi-4-mini-reasoning": _roles("<|{}|>", "<|end|>", "Your name is Phi, an AI math expert developed by Microsoft."),
    "tinyllama": _roles(
        "<|{}|>\n", "</s>\n", "You are a friendly chatbot who always gives helpful, detailed, and polite answers."
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
