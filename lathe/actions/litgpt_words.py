"""A training's command line as LitGPT's users type it becomes one in Lathe's words; other words stay as they are.

--data JSON --data.json_path F --data.val_split_fraction X    --data F --val-split-fraction X
--data Alpaca2k --data.download_dir D                         --data Alpaca2k
--lora_query true --lora_key false --lora_value true          --lora-targets q_proj --lora-targets v_proj
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lathe.errors import UsageError

TARGETS = {  # LitGPT's names, whether they get a LoRA unless it is said, and what they are called in memory
    "query": (True, ("q_proj",)),
    "key": (False, ("k_proj",)),
    "value": (True, ("v_proj",)),
    "projection": (False, ("o_proj",)),
    "mlp": (False, ("gate_proj", "up_proj", "down_proj")),
    "head": (False, ("lm_head",)),
}
RENAMED = {
    "--initial-checkpoint-dir": "--initial-checkpoint",
    "--tokenizer-dir": "--tokenizer",
    "--train.max-time": "--train.max-seconds",
    "--data.val-split-fraction": "--val-split-fraction",
    "--data.prompt-style": "--prompt-style",
    "--data.val-data-path": "--val-data",
    "--optimizer": "--optimizer.name",
    "--logger-name": "--logger",
}
# What is done anyway, or needs no word.
NEEDLESS = (
    *(f"--data.{name}" for name in ("download-dir", "num-workers", "ignore-index", "seed", "file-url", "file-name")),
    "--train.log-interval",
    "--eval.initial-validation",
    "--eval.final-validation",
    "--eval.evaluate-example",
)
PATHS = ("--data.json-path", "--data.train-data-path", "--data.data-path")


def ours(words: Sequence[str]) -> list[str]:
    """The words, LitGPT's in Lathe's. Raises UsageError where a target of a LoRA is neither on nor off."""
    made: list[str] = []
    wanted: dict[str, bool] = {}
    place = value(words, *PATHS)
    for name, told, written in spelt(words):
        if name in PATHS or name in NEEDLESS:
            continue
        if name == "--data" and told is not None:
            made += ["--data", place or told.removeprefix("litgpt.data.")]
        elif name.removeprefix("--lora-") in TARGETS and name.startswith("--lora-"):
            if told not in ("true", "false", None):
                raise UsageError(f'{name} is "{told}".', "It must be true or false.")
            wanted[name.removeprefix("--lora-")] = told != "false"
        elif name == "--data.mask-prompt":
            made += ["--loss-on", "all" if told == "false" else "assistant"]
        elif name == "--resume" and told is None:
            made += ["--resume", "true"]
        elif name in RENAMED and told is not None:
            made += [RENAMED[name], told.lower() if name == "--optimizer" else told]
        else:
            made += written
    if wanted:
        chosen = [names for key, (usual, names) in TARGETS.items() if wanted.get(key, usual)]
        made += [word for names in chosen for target in names for word in ("--lora-targets", target)]
    return made


def value(words: Sequence[str], *names: str) -> str | None:
    """What is given for the first of these options that is there."""
    return next((told for name, told, _ in spelt(words) if name in names), None)


def spelt(words: Sequence[str]) -> Iterator[tuple[str, str | None, list[str]]]:
    """Each option, spelt with hyphens, what is given for it, and the words that were typed; other words by themselves,
    as options without a name."""
    at = 0
    while at < len(words):
        name, equals, told = words[at].partition("=")
        if not name.startswith("--"):
            yield "", None, [words[at]]
            at += 1
        elif equals:
            yield name.replace("_", "-"), told, [words[at]]
            at += 1
        else:
            follows = at + 1 < len(words) and not words[at + 1].startswith("--")
            yield name.replace("_", "-"), words[at + 1] if follows else None, [*words[at : at + 1 + follows]]
            at += 1 + follows
