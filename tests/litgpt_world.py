"""A world in which LitGPT's command lines run as they are typed, to their end, in this process and in no time.

Every name of a model is a tiny random model of that lineage at a Hub of our own, every name of a data set some rows,
every web address a file or one of LitGPT's recipes. What a line is given less of than it asks for stands in LESS.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from email.message import Message
from functools import cache
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NamedTuple
from urllib.response import addinfourl

import httpx2
import pytest
from hubserver import HubServer, Repo
from published import PUBLISHED
from serving import CHATML, SPECIALS

from lathe import checkpoint, cli, compat, families, hub
from lathe.compat.pairs import parsed
from lathe.model import initial
from lathe.options import options
from lathe.server.line import Line
from lathe.server.room import occupy
from lathe.tokenizer import Tokenizer, train_bpe
from lathe.training import curve, gauge

LICENSE = (Path(__file__).parents[1] / "LICENSE").read_text()

# What a line of each action gets, in LitGPT's own words, instead of what it says or besides: less of everything.
SHORT = {"train.global_batch_size": "2", "train.micro_batch_size": "1", "eval.max_iters": "1"}
LESS: dict[str, dict[str, str]] = {
    "finetune": {**SHORT, "train.max_steps": "1", "train.max_seq_length": "256", "eval.max_new_tokens": "2"},
    "pretrain": {**SHORT, "train.max_tokens": "128", "train.max_seq_length": "64"},
    "generate": {"max_new_tokens": "4", "temperature": "0"},
    "chat": {"max_new_tokens": "4", "temperature": "0"},
    "serve": {"max_new_tokens": "4", "accelerator": "cpu"},
    "evaluate": {"limit": "2"},
}
SAME = {"__data.max_seq_length": "__train.max_seq_length"}  # of two words for one option, the one above

# ---- models ---------------------------------------------------------------------------------------------------------
LINEAGES = {
    "llama": "Llama-2-7b-hf",
    "mistral": "Mistral-7B-v0.1",
    "gpt_neox": "pythia-160m",
    "falcon": "falcon-7b",
    "phi": "phi-2",
    "phi3": "Phi-3-mini-4k-instruct",
    "gemma": "gemma-2b",
    "gemma2": "gemma-2-2b",
}
SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,  # an adapter begins at the third
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
ASKED_IN_TURNS = re.compile(r"instruct|chat|tuned|hermes|c/d", re.IGNORECASE)  # names of models with a chat template


def shape(lineage: str) -> dict[str, Any]:
    """The published configuration of a lineage, made tiny."""
    published = PUBLISHED[LINEAGES[lineage]].config
    more = {"max_position_embeddings": 512} if lineage == "falcon" else {}
    return {**published, **{name: size for name, size in SIZES.items() if name in published}, **more}


@cache
def lineages() -> dict[str, str]:
    """The family of each well-known repo."""
    return {one.repo.casefold(): one.family for one in hub.known()}


class Shelf(dict[str, Repo]):
    """Repos of any name, each made when it is first asked for."""

    def __init__(self, place: Path) -> None:
        super().__init__({name: Repo(files) for name, files in sets().items()})
        self.place, self.made = place, dict[tuple[str, bool], dict[str, bytes]]()
        train_bpe([LICENSE], 512, SPECIALS).save(place / "words")

    def get(self, name: str, default: Repo | None = None) -> Repo:  # type: ignore[override]
        lineage = lineages().get(name.casefold(), "llama")
        kind = (lineage if lineage in LINEAGES else "llama", bool(ASKED_IN_TURNS.search(name)))
        if name not in self:
            more = {"train.jsonl": rows(INSTRUCTIONS)} if name == "c/d" else {}  # which is a data set, too
            self[name] = Repo({**self.model(*kind), **more})
        return self[name]

    def model(self, lineage: str, turns: bool) -> dict[str, bytes]:
        """The files of a model."""
        if (lineage, turns) not in self.made:
            folder, config = self.place / f"{lineage}-{turns}", shape(lineage)
            words = shutil.copytree(self.place / "words", self.place / f"words-{turns}", dirs_exist_ok=True)
            if turns:
                (words / "chat_template.jinja").write_text(CHATML)
            decoder = initial.decoder(families.read(config), seed=0)
            checkpoint.save(folder, decoder, config, tokenizer=Tokenizer.open(words))
            self.made[lineage, turns] = {file.name: file.read_bytes() for file in folder.iterdir()}
        return self.made[lineage, turns]


# ---- data -----------------------------------------------------------------------------------------------------------
INSTRUCTIONS = [{"instruction": f"Say {n}.", "input": "Now." * (n % 2), "output": f"It is {n}."} for n in range(20)]
STORIES = [{"text": f"{n}. {LICENSE[120 * n :][:400]}"} for n in range(30)]
SPLITS = """---
configs:
- config_name: default
  data_files:
  - {split: train_sft, path: train_sft.jsonl}
  - {split: test_sft, path: test_sft.jsonl}
---
"""


def rows(some: Sequence[Mapping[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, some)).encode()


def sets() -> dict[str, dict[str, bytes]]:
    """The data sets that LitGPT knows by name, as their repos have them."""
    pairs = [(f"What is {n}?", f"A number, {n}.") for n in range(20)]
    turns = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]
    parts = [f"{part}_10templates" for part in ("aeslc", "ag_news_subset", "anli_r1")] + ["one", "two"]
    flan = {
        f"{side}/{part}_{side}.jsonl": rows([{"inputs": f"{part} {q}", "targets": a} for q, a in pairs])
        for side in ("train", "test")
        for part in parts
    }
    texts = {f"{side}/a.jsonl": rows(STORIES) for side in ("train", "validation")}
    dolly = [{"instruction": q, "context": "", "response": a, "category": "qa"} for q, a in pairs]
    return {
        "mhenrichsen/alpaca_2k_test": {"train.jsonl": rows(INSTRUCTIONS)},
        "HuggingFaceH4/deita-10k-v0-sft": {
            "README.md": SPLITS.encode(),
            "train_sft.jsonl": rows(turns),
            "test_sft.jsonl": rows(turns[:2]),
        },
        "databricks/databricks-dolly-15k": {"databricks-dolly-15k.jsonl": rows(dolly)},
        "GAIR/lima": {"train.jsonl": rows([{"conversations": [q, a], "source": "x"} for q, a in pairs])},
        "Muennighoff/flan": flan,
        "roneneldan/TinyStories": texts,
        "Skylion007/openwebtext": {"train.jsonl": rows(STORIES)},
        "cerebras/SlimPajama-627B": texts,
        "bigcode/starcoderdata": {"python/train-0.jsonl": rows([{"content": row["text"]} for row in STORIES])},
    }


def laid(place: Path) -> None:
    """The files that lines name: examples, texts, tasks."""
    for name in ("d.json", "my_custom_dataset.json", "data/mydata.json", "path/to/your/data.json"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(json.dumps(INSTRUCTIONS))
    for name in ("d/x", "d/y", "v", "custom_texts", "custom_pretraining_data", "custom_pretraining_data_2"):
        (place / name).mkdir(parents=True)
        for number in (1, 2):
            (place / name / f"book{number}.txt").write_text(LICENSE)
    asks = [{"question": "Say", "choices": ["one", "two"], "answer": n % 2} for n in range(4)]
    for name in ("asks", "more", "others"):
        (place / f"{name}.jsonl").write_bytes(rows(asks))


# ---- running --------------------------------------------------------------------------------------------------------
class Ran(NamedTuple):
    """How a line ended. words: as it was run. action: of Lathe."""

    words: list[str]
    action: str
    status: int
    out: str
    err: str


class World:
    """A folder to work in, with the Hub and the web around it. recipes: text by the end of an address."""

    def __init__(self, place: Path, server: HubServer, recipes: Mapping[str, str]) -> None:
        self.place, self.server, self.recipes = place, server, recipes
        self.kept = {path.name for path in place.iterdir()} | {"checkpoints"}

    def sweep(self) -> None:
        """Leave only what was there at first, and the models that were fetched."""
        for path in self.place.iterdir():
            if path.name not in self.kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def open(self, address: str, timeout: float = 0) -> addinfourl:
        """What there is at an http(s) address."""
        name = address.rpartition("/")[2]
        long = [{"input": row["instruction"], "output": row["output"]} for row in INSTRUCTIONS]
        if name.endswith(".yaml"):
            body = next(text for end, text in self.recipes.items() if address.endswith(end)).encode()
        else:
            body = json.dumps(long if "LongForm" in address else INSTRUCTIONS).encode()
        return addinfourl(io.BytesIO(body), Message(), address)

    def run(self, line: str | Sequence[str], asked: str = "Hello\n") -> Ran:
        """A line's words, without the program, to its end. asked: what is typed while it runs."""
        words = lessened(shlex.split(line) if isinstance(line, str) else line)
        action = meant(words).words[0]
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(asked.encode())))
            patch.setattr(cli, "piped", lambda: False)  # as at a terminal
            for name in ("HF_TOKEN", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_GROUP"):
                patch.setenv(name, "")  # so that it is put back
            patch.delenv("HF_TOKEN")
            try:
                status = cli.main(words)
            except SystemExit as error:
                status = int(error.code or 0)
        return Ran(words, action, status, out.getvalue(), err.getvalue())


@contextmanager
def world(place: Path, recipes: Mapping[str, str]) -> Iterator[World]:
    """A world in a new folder, which is where the process is as long as it lasts."""
    from huggingface_hub import constants

    work = place / "work"
    work.mkdir()
    laid(work)
    server = HubServer({})
    server.repos = Shelf(place)
    made = World(work, server, recipes)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HF_ENDPOINT", server.address), ("HF_HUB_CACHE", str(place / "cache"))):
            patch.setenv(name, value)  # for processes that are begun from here
        patch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(urllib.request, "urlopen", made.open)
        patch.setattr(gauge, "BUDGET", 0.0)  # this machine's speed and loss.png have tests of their own
        patch.setattr(curve, "png", lambda *_: None)
        patch.chdir(work)
        yield made
    server.stop()


@cache
def switches(action: str) -> tuple[str, ...]:
    """The options of an action that need no value."""
    if action == "models":
        return ()
    return tuple(option.key for option in options(cli.load(action)[0]) if option.is_switch)


def meant(words: Sequence[str]) -> compat.Meant:
    return compat.meant(words, switches, piped=False)


def lessened(words: Sequence[str]) -> list[str]:
    """The words with what LESS says in the place of what they say."""
    out = list(words)
    if {"list", "--help", "-h", "--print_config"} & {*words[1:]}:
        return out
    for name, value in LESS.get(compat.action(words[0]), {}).items():
        names = [word.partition("=")[0].replace("-", "_") for word in out]
        at = next((n for n, word in enumerate(names) if SAME.get(word, word) == f"__{name}"), None)
        if at is None:
            out += [f"--{name}", value]
        elif "=" in out[at]:
            out[at] = f"--{name}={value}"
        else:
            out[at + 1] = value
    if "--tasks" in out:
        at = out.index("--tasks") + 1
        out[at] = ",".join(
            f"{name}.jsonl" for name, _ in zip(("asks", "more", "others"), out[at].split(","), strict=False)
        )
    return out


# ---- what must have come of it --------------------------------------------------------------------------------------
def told(ran: Ran, name: str) -> str | None:
    """What Lathe's words give for an option."""
    return compat.value(meant(ran.words).words, name)


def check(world: World, ran: Ran) -> None:
    """Whether a line has done its work. Raises AssertionError."""
    assert ran.status == 0, f"{shlex.join(ran.words)}\n{ran.err}"
    if {"--help", "-h", "--print_config", "list"} & {*ran.words} or ran.action == "models":
        assert len(ran.out.splitlines()) > 10
    else:
        CHECKS[ran.action](ran)


def printed(ran: Ran) -> None:
    assert ran.out.strip(), ran.err


def trained(ran: Ran) -> None:
    """The end of the run is there, opens, and is what the method makes; its loss is a number."""
    cls = cli.load(ran.action)[0]
    usual = next(option.default for option in options(cls) if option.key == "out_dir")
    recipe = compat.value(ran.words, "config")
    out = Path(told(ran, "out_dir") or usual)
    final = checkpoint.open(out / "final", Path("checkpoints"))
    method = told(ran, "method") or ("lora" if ran.action == "finetune" else "full")
    assert isinstance(final, checkpoint.Adapted) == (method != "full"), (method, recipe)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in steps if "loss" in row]
    assert losses and all(0 < loss < 20 for loss in losses)
    assert (out / "final/recipe.yaml").is_file()


def downloaded(ran: Ran) -> None:
    folder = Path(ran.out.strip())
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "tokenizer.json"} <= names
    assert told(ran, "tokenizer_only") or "model.safetensors" in names


def evaluated(ran: Ran) -> None:
    if (tasks := told(ran, "tasks")) is None:
        assert "perplexity" in ran.out
        return
    *_, place = re.findall(r"\S+results\.json", ran.err)
    out = told(ran, "out_dir")
    assert out is None or Path(place) == Path(out) / "results.json"
    assert set(tasks.split(",")) <= json.loads(Path(place).read_text())["results"].keys()


def checked(ran: Ran) -> None:
    assert "every tensor has its place" in ran.out


def to_litgpt(ran: Ran) -> None:
    folder = hub.find(meant(ran.words).words[1])
    assert (folder / "lit_model.pth").is_file() and (folder / "model_config.yaml").is_file()
    (folder / "lit_model.pth").unlink()


def from_litgpt(ran: Ran) -> None:
    folder = Path(meant(ran.words).words[2])
    assert (folder / "model.pth").is_file()
    checkpoint.open(folder)


def lean(ran: Ran) -> None:
    folder = Path(meant(ran.words).words[2])
    assert checkpoint.open(folder).form == "LitGPT" and not (folder / "state").exists()


def merged(ran: Ran) -> None:
    folder = Path(meant(ran.words).words[1])
    assert (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))


CHECKS: dict[str, Callable[[Ran], None]] = {
    **dict.fromkeys(("chat", "generate"), printed),
    **dict.fromkeys(("finetune", "pretrain"), trained),
    "download": downloaded,
    "evaluate": evaluated,
    "inspect": checked,
    "convert_to_litgpt": to_litgpt,
    "convert_from_litgpt": from_litgpt,
    "convert_pretrained_checkpoint": lean,
    "merge_lora": merged,
}


# ---- servers --------------------------------------------------------------------------------------------------------
def served(world: World, line: str | Sequence[str]) -> None:
    """Run a line that serves, ask its server by LitGPT's wires, and end it by SIGTERM. Raises AssertionError."""
    words, port = shlex.split(line) if isinstance(line, str) else list(line), free()
    words = [word for n, word in enumerate(words) if word != "--port" and words[n - 1] != "--port"]
    found: dict[str, Any] = {}
    over = threading.Event()

    def visit() -> None:
        try:
            found.update(asked(port, words, over))
        except Exception as error:  # told below, in the test's own thread
            found["error"] = error
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Line, "begin", beside)
        visitor = threading.Thread(target=visit, daemon=True)
        visitor.start()
        ran = world.run([*words, "--port", str(port)])
        over.set()
        visitor.join(30)
    assert ran.status == 0 and "Serving at" in ran.err, ran.err
    assert "error" not in found, f"{found.get('error')!r}\n{ran.err}"
    assert all(found.values()) and "output" in found, found


def beside(load: Callable[[], Any]) -> Line:
    """The engine in a thread, which needs no second import of everything."""
    mine, theirs = Pipe()
    thread = threading.Thread(target=occupy, args=(theirs, load), daemon=True)
    thread.start()
    return Line(mine, thread)


def asked(port: int, words: Sequence[str], over: threading.Event) -> dict[str, str]:
    """What a server answers by LitGPT's plain wire, and by OpenAI's where that is asked for. over: it has ended."""
    _, pairs = parsed(words[1:], ())
    given = {pair.name: pair.told for pair in pairs}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while not over.is_set():
            with suppress(httpx2.TransportError):
                if client.get("/health").status_code == 200:
                    break
            time.sleep(0.05)
        answer = client.post(given.get("api_path") or "/predict", json={"prompt": "Hello"})
        answer.raise_for_status()
        lines = answer.text.splitlines()
        assert (len(lines) > 1) == (given.get("stream") == "true"), answer.text
        output = "".join(json.loads(line)["output"] for line in lines)
        if given.get("openai_spec") != "true":
            return {"output": output}
        body = {"model": "as they like", "messages": [{"role": "user", "content": "Hello"}]}
        answer = client.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        return {"output": output, "said": answer.json()["choices"][0]["message"]["content"]}


def free() -> int:
    """A port that nobody has."""
    import socket

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
