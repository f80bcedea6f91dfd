"""Ask LitGPT for every prompt style's own words.

    python tests/oracles/litgpt_styles.py

in LitGPT's environment. Prints, as JSON, by the name of the class: the prompt of a question alone, with a system
message, and with an input; and the name, for those that LitGPT names.
"""

from __future__ import annotations

import json

from litgpt import prompts

CLASSES = [kind for kind in vars(prompts).values() if isinstance(kind, type) and issubclass(kind, prompts.PromptStyle)]
NAMES = {kind: name for name, kind in prompts.prompt_styles.items()}


def asked(kind: type) -> dict[str, str | None]:
    style = kind()
    return {
        "name": NAMES.get(kind),
        "alone": style.apply("What is it?"),
        "system": style.apply("What is it?", sys_prompt="Be brief."),
        "input": style.apply("What is it?", input="A thing."),
    }


print(json.dumps({kind.__name__: asked(kind) for kind in CLASSES if kind is not prompts.PromptStyle}))
