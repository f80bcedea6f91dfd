"""What README and docs/ show is run: Python as it stands, and command lines as far as their options go."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lathe import checkpoint, families
from lathe.cli import ACTIONS, load
from lathe.command import command, read
from lathe.model import initial
from lathe.tokenizer import train_bpe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch) -> Path:
    """A folder in which out/demo/final holds a model, as after `make demo`, with random weights."""
    monkeypatch.chdir(tmp_path)
    tokenizer = train_bpe([PAGES[0].read_text()], 300)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"architectures": ["LlamaForCausalLM"], **sizes, "vocab_size": tokenizer.vocab_size}
    decoder = initial.decoder(families.read(config), seed=0)
    checkpoint.save("out/demo/final", decoder, config, tokenizer=tokenizer)
    return tmp_path


def blocks(language: str) -> list[str]:
    """Fenced blocks of README.md in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[0].read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_python_in_the_readme_runs(demo, capsys):
    (program,) = blocks("python")
    exec(program, {})
    assert capsys.readouterr().out
    assert checkpoint.open("copy").spec == checkpoint.open("out/demo/final").spec


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_is_one(page):
    """Each `lathe ...` line of a code block names an action and options that it has."""
    text = "\n".join(re.findall(r"^```\w*\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL))
    lines = re.findall(r"^\s*(?:\$ )?lathe (.*)", text.replace("\\\n", " "), flags=re.MULTILINE)
    for line in lines:
        name, *words = shlex.split(line, comments=True)
        assert name in ACTIONS or name.startswith("-") or name == "ACTION", line
        if name in ACTIONS and "--temprature" not in words:
            options, run = load(name)
            assert read(command(name, options, run.__doc__), options, words) is not None, line


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{target} in {page.name}"
