"""What README and docs/ show is run: Python as it stands, the ways through from their beginning to their end, and every
other command line as far as its options go."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from lathe import checkpoint, families
from lathe.cli import ACTIONS, load, main
from lathe.command import command, read
from lathe.compat.table import VERBS
from lathe.model import initial
from lathe.tokenizer import train_bpe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCS = {page.name: page for page in PAGES}
WAITING = ("serve", "chat", "demo", "runs")  # commands that somebody has to end, or that take minutes
SERVER = "http://127.0.0.1:8000"  # as the pages call it


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


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """The fenced blocks of a page: what stands before it, the language, and what is in it."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield text[: match.start()], match[1], match[2]


def commands(block: str) -> list[list[str]]:
    """The words after `lathe` of each command line in a block."""
    lines = re.findall(r"^\s*(?:\$ )?lathe (.*)", block.replace("\\\n", " "), flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def programs(page: Path) -> list[str]:
    """The blocks of a page that are programs."""
    return [block for _, language, block in blocks(page) if language == "python"]


def test_the_python_in_the_readme_runs(demo, capsys):
    (program,) = programs(PAGES[0])
    exec(program, {})
    assert capsys.readouterr().out
    assert checkpoint.open("copy").spec == checkpoint.open("out/demo/final").spec


@pytest.mark.parametrize("name", ["first-hour.md", "continue-pretraining.md", "team.md"])
def test_a_way_through_is_walked(name: str, demo: Path, capsys):
    """Files are written, commands run and programs executed, in the order of the page."""
    (demo / "notes.txt").write_text("The lathe turns the work, and the tool stands still.\n" * 60)
    for before, language, block in blocks(DOCS[name]):
        if language == "json":
            (demo / re.findall(r"`([\w.]+\.json)`", before)[-1]).write_text(block)
        elif language == "python" and SERVER not in block:
            exec(block, {})
        elif language == "":
            for words in commands(block):
                assert words[0] in WAITING or not main(words), f"lathe {shlex.join(words)}\n{capsys.readouterr().err}"


# What the pages name, and this checkout has not: a small model stands for every model, and little data for all.
MODELS = "stories260K MODEL SMALL llama checkpoints/Qwen/Qwen3-0.6B checkpoints/meta-llama/Llama-3.1-8B".split()
TEXTS = "story.txt corpus/a.txt books/a.txt code/a.py web/a.txt notes.txt shakespeare.txt".split()
ROWS = {"instruction": "Who?", "output": "Me."}, {"instruction": "What?", "output": "A lathe."}
PAIRS = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "No."} for row in ROWS]
# So that a command ends soon, and needs nobody. What the page says wins.
SOON = {
    "generate": ["--max-new-tokens=4", "--prompt=Once"],
    "finetune": ["--train.max-steps=1", "--val-split-fraction=0", "--max-repeats=1"],
    "tokenizer": ["--overwrite"],
    "pretrain": ["--train.max-steps=1", "--train.max-seq-length=64", "--train.global-batch-size=2"],
}


@pytest.fixture
def workshop(demo: Path) -> Path:
    """A folder with all that the commands of the pages name."""
    for name in MODELS:
        shutil.copytree("out/demo/final", name)
    for name in TEXTS:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("The lathe turns the work, and the tool stands still.\n" * 40)
    for name in ("who.json", "examples.json"):
        Path(name).write_text(json.dumps(ROWS))
    for name, rows in (
        ("faq.jsonl", ROWS * 120),
        ("opinions.json", PAIRS),
        ("heldout.jsonl", [{"text": "A tool."}] * 9),
    ):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [{"text": f"The lathe turns {number} times."} for number in range(40)]
    Path("texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    Path("web.jsonl.zst").write_bytes(zstandard.compress(Path("texts.jsonl").read_bytes()))
    parquet.write_table(pyarrow.Table.from_pylist(texts), "big.parquet")
    Path("table.csv").write_text("Q,A\nWho?,Me.\nWhat?,A lathe.\n")
    Path("person.json").write_text('{"type": "object", "properties": {"name": {"type": "string"}}}')
    assert not main(["finetune", "stories260K", "--data=who.json", "--out-dir=out/finetune", *SOON["finetune"]])
    shutil.copytree("out/finetune/final", "bard")
    assert not main(["convert", "MODEL", "model-Q8_0.gguf", "--dtype=Q8_0"])
    return demo


def hurried(words: list[str]) -> list[str]:
    """A command line that ends soon, where it does not say for itself when."""
    told = {word.partition("=")[0] for word in words}
    soon = [word for word in SOON.get(words[0], []) if word.partition("=")[0] not in told]
    return [*words, *(word for word in soon if word != "--prompt=Once" or not {"--prompt", "--prompt-file"} & told)]


@pytest.mark.parametrize(
    "name", ["adapters.md", "checkpoints.md", "generate.md", "data.md", "training.md", "runs.md", "sources.md"]
)
def test_commands_run(name: str, workshop: Path, capsys):
    for _, language, block in blocks(DOCS[name]):
        for number, words in enumerate(commands(block) if language != "python" else ()):
            if words[0] in WAITING:
                continue
            if words[0] in ("pretrain", "finetune") and "--out-dir" not in words:
                words += ["--out-dir", f"out/{name}-{len(block)}-{number}"]
            status = main(hurried(words))
            assert not status or words[0] == "data", f"lathe {shlex.join(words)}\n{capsys.readouterr().err}"


@pytest.mark.parametrize(
    "name, number",
    [(name, n) for name in ("masks.md", "numerics.md", "lightning.md") for n in range(len(programs(DOCS[name])))],
)
def test_programs_run(name: str, number: int, demo: Path):
    program = programs(DOCS[name])[number]
    if "meta-llama/" in program:
        pytest.skip("its model is large; tests/test_api.py runs these lines with a small one")
    if "import lightning" in program:
        pytest.importorskip("lightning", reason="lightning is not installed")
    exec(program, {"__name__": "example"})


def test_adapters_are_switched_as_shown(workshop: Path):
    (program,) = programs(DOCS["adapters.md"])
    exec(program, {})


@pytest.mark.parametrize("name", ["openai.md", "team.md", "tools.md"])
def test_programs_that_ask_a_server_run(name: str, tool_server):
    model = tool_server.client.get("/v1/models").json()["data"][0]["id"]
    (program,) = programs(DOCS[name])
    exec(re.sub(r'model="[\w/.-]+"', f'model="{model}"', program.replace(SERVER, tool_server.url)), {})


@pytest.mark.parametrize("name", ["first-hour.md", "litgpt-and-ollama.md"])
def test_requests_are_answered(name: str, tool_server):
    """Each `curl` line, as it stands but for the port and the model's name."""
    model = tool_server.client.get("/v1/models").json()["data"][0]["id"]
    asked = 0
    for _, _, block in blocks(DOCS[name]):
        for line in re.findall(r"^curl (.*)", block.replace("\\\n", " "), flags=re.MULTILINE):
            words = shlex.split(line)
            body = json.loads(words[words.index("-d") + 1])
            body |= {"model": model} if "model" in body else {}
            answer = tool_server.client.post(words[0].removeprefix(SERVER), json=body | {"max_tokens": 8})
            assert answer.status_code == 200, answer.text
            asked += 1
    assert asked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_is_one(page):
    """Each `lathe ...` line of a code block names an action and options that it has, and programs are Python."""
    for _, language, block in blocks(page):
        if language == "python":
            compile(block if not block.startswith(" ") else "if True:\n" + block, page.name, "exec")
            continue
        for name, *words in commands(block):
            assert name in (*ACTIONS, *VERBS) or name.startswith("-") or name == "ACTION", name
            if name in ACTIONS and "--temprature" not in words:
                options, run = load(name)
                if hasattr(options, "understood"):
                    options, words = options.understood(words)
                assert (
                    read(command(name, options, run.__doc__), options, words) is not None or "--print-config" in words
                )


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            made = target.startswith("reference/")  # when the site is built, which tells of broken ones
            assert made or target.startswith("http") or (page.parent / target).exists(), f"{target} in {page.name}"
