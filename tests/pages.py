"""README.md and docs/*.md become blocks of code, commands and what these print; what stands for what when they are run.

Knows no process: `workshop` runs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}

# Blocks that are shown and not run, by page and how they begin, each with the reason.
RAY = "Ray has an environment of its own, in which tests/oracles/test_ray.py runs it with two workers on a CPU"
SHOWN = {
    ("adding-a-family.md", "python -m pytest tests/test_families.py"): "it runs some of these tests themselves",
    ("masks.md", "tokens  "): "a drawing; the program below it makes such a ribbon",
    ("engines.md", "lathe serve out/final --engine ray"): RAY,
    ("clusters.md", "from ray.train"): RAY,
}
# Commands whose model has not learned as long as the page's: only what Lathe itself says is compared, numbers aside.
UNLEARNED = {
    ("README.md", "make demo"): "two minutes of training are twenty steps here",
    ("first-hour.md", "lathe generate out/demo/final"): "two minutes of training are twenty steps here",
}
ELSEWHERE = {"download.md"}  # pages whose numbers belong to models that are not here
REAL = re.compile(r"stories260K|bard|tinystories")  # what is real, where the data for tests are
STRANGER = {"download.md"}  # and those on which nobody has logged in to the Hub

# What is written otherwise when it is run: addresses and paths that are ours alone, and processes for two devices where
# a page has eight.
STANDS = {
    r"\b(127\.0\.0\.1|localhost):80[08]0": r"127.0.0.1:{port}",
    r"10\.0\.0\.1:29500": r"127.0.0.1:{meet}",
    r"/shared/": r"shared/",
    r"/opt/lathe/bin/lathe": r"lathe",
    r"/srv/models/manual": r"manual",
    r"/etc/lathe/keys\.txt": r"keys.txt",
    r'api_key="KEY"': r'api_key=open("keys.txt").readline().strip()',
    r"--devices 8 --tensor-parallel 2": r"--devices 4 --tensor-parallel 2",
    r"--devices 8 --num-nodes": r"--devices 1 --num-nodes",
    r"--devices 8": r"--devices 2",
    r"--nproc-per-node 8": r"--nproc-per-node 1",
    r"--tasks hellaswag": r"--include-path tasks --tasks hellaswag",  # by the same names, on a file
    r"--prompt-tokens 2048": r"--prompt-tokens 512",
}
# So that a command of a script ends soon. What the page says wins; commands that show what they print have none of it.
SOON = {
    "generate": "--max-new-tokens 8",
    "chat": "--max-new-tokens 8",
    "serve": "--max-new-tokens 16",
    "evaluate": "--limit 3",
    "bench": "--runs 1 --new-tokens 4 --sequences 2",
    "finetune": "--train.max-steps 2 --overwrite",
    "pretrain": "--train.max-steps 2 --train.max-seq-length 64 --train.global-batch-size 4 --eval.max-iters 1"
    " --overwrite",
    "tokenizer": "--overwrite",
}
# Not beside these: how long a run is, that it goes on, and who serves.
UNLESS = {"--train.max-steps": {"--train.epochs"}, "--overwrite": {"--resume"}, "--max-new-tokens": {"--engine"}}
DEMO = ["--max-steps", "20"]

# The one rule for what a machine, or the hour, decides: times, speeds, losses, ports and percents of a peak. Lines of
# progress and a curve come as they come, and a terminal has one of speed behind an answer.
MEASURED = re.compile(
    r"\d+:\d\d:\d\d|\d[\d,.]*(?= (?:tokens/s|s\b))|(?<=loss )\d[\d.]*|(?<=perplexity )\d[\d.]*|(?<=127\.0\.0\.1:)\d+"
    r"|\d+(?=% of peak)"
)
PROGRESS = re.compile(r"step [\d,]+/[\d,]+ |Loaded in | {9}loss|[ \d.]{7} [┤└]| +0 +step [\d,]+$")
NUMBERS = re.compile(r"\b[0-9a-f]{12}\b|\d[\d,.:]*(?: [kMG]?B)?")


@dataclass(frozen=True)
class Block:
    """A fenced block. before: the paragraph above it."""

    page: str
    number: int
    language: str
    text: str
    before: str

    @property
    def first(self) -> str:
        return self.text.split("\n", 1)[0]

    @property
    def is_shown(self) -> bool:
        """Whether it is one of those that are not run."""
        return any(self.page == page and self.text.startswith(begin) for page, begin in SHOWN)


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = PAGES[page].read_text(encoding="utf-8")
    fences = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    found = [
        Block(page, number, match[1], match[2], text[: match.start()].rstrip().rpartition("\n\n")[2])
        for number, match in enumerate(fences.finditer(text))
    ]
    assert text.count("```") == 2 * len(found), f"{page} has a fence that is none"
    return found


def typed(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a transcript, those behind `$ `, each with what it printed."""
    assert text.startswith("$ ")
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command = re.match(r"(?:.*\\\n)*.*\n", part)
        assert command
        yield command[0].rstrip("\n"), part[command.end() :]


def stood_in(text: str, **places: object) -> str:
    """A block as it is run."""
    for pattern, other in STANDS.items():
        text = re.sub(pattern, other.format(**places), text)
    return text


def hurried(words: list[str]) -> list[str]:
    """The words of a command that ends soon."""
    from lathe.compat import action

    verb = action(words[0]) if words else ""
    told = {word.partition("=")[0].replace("_", "-") for word in words}
    soon = SOON.get(verb, "").split()
    more: list[str] = []
    for at, word in enumerate(soon):
        if word.startswith("--") and not told & {word, *UNLESS.get(word, ())}:
            more += soon[at : at + 2] if at + 1 < len(soon) and not soon[at + 1].startswith("--") else [word]
    return [*words, *more]


def masked(text: str, rule: re.Pattern[str] = MEASURED) -> list[str]:
    """The lines of an output, without what the machine decides."""
    lines = (line.rstrip() for line in text.split("\n") if not PROGRESS.match(line))
    return [rule.sub("#", line) for line in lines if line]


def same(shown: str, printed: str, rule: re.Pattern[str] = MEASURED) -> bool:
    """Whether a page shows what was printed; `...` on a line of its own stands for any lines."""
    pattern = "".join(r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in masked(shown, rule))
    return re.fullmatch(pattern, "".join(line + "\n" for line in masked(printed, rule))) is not None


# The pages, by the file that walks them, so that these can be walked side by side.
USING = "README adapters chat checkpoints download evaluate first-hour generate quantize"
TRAINING = "clusters continue-pretraining data distributed finetune from-litgpt runs sources training"
SERVING = "engine engines litgpt-and-ollama openai page serve team tools"
OTHERS = "adding-a-family benchmarks design index lightning masks numerics"
