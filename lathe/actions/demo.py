"""Turns nothing into a small model that has read Python's manual, by the same actions that a user types."""

from __future__ import annotations

import shlex
import sys
from dataclasses import KW_ONLY, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from lathe.actions import pretrain
from lathe.actions.shape import Shape
from lathe.actions.training import Eval, Optimizer, Train
from lathe.hub.bar import say
from lathe.options import options as fields

# The best that was measured for this text in about 90 seconds on two cores: a wider model sees fewer tokens in them,
# and larger steps are fewer; both learn less.
SHAPE = Shape(hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4)
OPTIMIZER = Optimizer(lr=3e-3, weight_decay=0.05, beta2=0.99)
TOKENS = 2048  # in the vocabulary
STEPS = 1050
PROMPT = 'The "with" statement'


@dataclass(frozen=True)
class Options:
    _: KW_ONLY
    out_dir: Path = Path("out/demo")
    """Where the run writes. What an earlier demo left there is replaced."""
    max_steps: int = STEPS
    """Optimizer steps; fewer are quicker, and the model less fluent."""
    prompt: str = PROMPT
    """What the trained model continues."""


def run(options: Options) -> int | None:
    """Train a small model on Python's own manual and let it speak: offline, in about two minutes.

    It shows the command that it runs, and ends with commands to go on from.
    """
    asked = pretraining(options)
    say("A model learns to write, from random weights and the manual inside this Python. The same by hand:\n")
    say(indented(command(asked)) + "\n")
    if status := pretrain.run(asked):
        return status
    final = options.out_dir / "final"
    say(f"\n{final} is a model's folder like any other. Loaded, it continues a text:\n")
    speak(final, options.prompt)
    say("\nGo on with:\n")
    say(indented(["lathe", "generate", str(final), "--prompt", "A class definition"]))
    say(indented(["lathe", "chat", str(final)]))
    return None


def pretraining(options: Options) -> pretrain.Options:
    """The run that the demo is."""
    return pretrain.Options(
        "llama",
        data=("python-manual",),
        train_tokenizer=TOKENS,
        out_dir=options.out_dir,
        overwrite=True,
        device="cpu",
        shape=SHAPE,
        train=Train(max_steps=options.max_steps, global_batch_size=4, max_seq_length=256, lr_warmup_steps=50),
        optimizer=OPTIMIZER,
        eval=Eval(interval=210),
    )


def command(options: pretrain.Options) -> list[str]:
    """The words that give these options: all that are not as they are anyway."""
    words = ["lathe", "pretrain", options.model]
    for option in fields(type(options)):
        value: Any = attrgetter(option.key)(options)
        if option.is_section or option.positional or value == option.default:
            continue
        if isinstance(value, bool):
            section, _, name = option.spelling[2:].rpartition(".")
            words.append(option.spelling if value else f"--{section}{'.' if section else ''}no-{name}")
        else:
            for each in value if isinstance(value, tuple) else (value,):
                words += [option.spelling, str(each)]
    return words


def indented(words: list[str], width: int = 100) -> str:
    """A command over as many lines as it needs, ready to be copied into a shell."""
    lines = [""]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + len(word) > width and word.startswith("--"):
            lines.append("  ")
        lines[-1] += word + " "
    return " \\\n".join("  " + line.rstrip() for line in lines)


def speak(model: Path, prompt: str) -> None:
    """Stream what the model makes of the prompt to stdout."""
    from lathe.llm import LLM

    sys.stdout.write(prompt)
    for piece in LLM.load(model, device="cpu").stream(prompt, raw=True, max_new_tokens=160, temperature=0.7, seed=1):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
