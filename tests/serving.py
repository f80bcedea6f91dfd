"""A tiny model with a chat template, and two ways to serve it: as `lathe serve` does, and within this process."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import httpx2
import torch
import uvicorn
from starlette.testclient import TestClient

from lathe import checkpoint, families
from lathe.actions.occupant import load
from lathe.actions.serve import Options
from lathe.llm import LLM
from lathe.model.decoder import Decoder
from lathe.server.app import application
from lathe.server.ask import Begun, Called, Ended, Event, Said, Word
from lathe.server.desk import Desk
from lathe.server.line import Line
from lathe.server.room import occupy
from lathe.tokenizer import Tokenizer, train_bpe
from lathe.transforms import adapt, begin
from lathe.transforms.terms import Lora

ROOT = Path(__file__).parents[1]
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What a desk tells of an answer that thinks, speaks and calls two tools.
EVENTS: list[Event] = [
    Begun(20, 8),
    Said(0, "Hm", "reasoning"),
    Said(0, "m.", "reasoning"),
    Said(0, "Let me", words=(Word(1, b"Let me", -0.5),)),
    Said(0, " see."),
    Called(0, 0, id="call_a", name="get_weather"),
    Called(0, 0, '{"city": '),
    Called(0, 0, '"Oslo"}'),
    Called(0, 1, id="call_b", name="now"),
    Called(0, 1, "{}"),
    Ended(0, "tool_calls", 9, reasoning=3),
]
TOOLS = (  # a template that knows tools, as Hermes writes them, and reasoning
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ message.content }}{% for call in message.tool_calls %}<tool_call>\n"
    "{{ '{\"name\": \"' + call.function.name + '\", \"arguments\": ' + call.function.arguments | tojson + '}' }}"
    "\n</tool_call>{{ '\n' if not loop.last }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "<think>\n{{ '\n</think>\n\n' if not enable_thinking }}{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


def tiny(folder: Path, template: str = CHATML, marks: Sequence[str] = (), **changes: Any) -> Path:
    """A model of random weights, always the same, in float32: its greedy answers are long and vary with the prompt.

    marks: further special tokens. changes: keys of its config.json.
    """
    trained = train_bpe([(ROOT / "LICENSE").read_text()], 512, [*SPECIALS, *marks])  # a text that does not change
    trained.save(folder)
    (folder / "chat_template.jinja").write_text(template)
    config = {**CONFIG, **changes}
    torch.manual_seed(0)
    decoder = Decoder(families.read(config))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    generation = {"eos_token_id": [trained.id("<|im_end|>"), trained.id("<|endoftext|>")]}
    checkpoint.save(folder / "model", decoder, config, generation=generation, tokenizer=Tokenizer.open(folder))
    return folder / "model"


def adapter(model: Path, folder: Path, seed: int) -> Path:
    """A LoRA with random numbers, as a folder."""
    llm = LLM.load(model, device="cpu")
    adapt.put(llm.decoder, "default", begin.lora(llm.decoder, Lora(targets="all-linear")))
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapt.own(llm.decoder, "default").values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    folder.parent.mkdir(exist_ok=True)
    checkpoint.write_adapter(folder, llm.decoder, "default", llm.config)
    return folder


class Served:
    """A server that runs. `url`: http://127.0.0.1:PORT. `said`: what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.said, self._lines = process, "", queue.Queue[str]()
        threading.Thread(target=self._read, daemon=True).start()
        self.url = self._until(r"(http://\S+)")
        self.client = httpx2.Client(base_url=self.url, timeout=60)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)

    def _until(self, pattern: str) -> str:
        until = time.monotonic() + 60
        while not (found := re.search(pattern, self.said)):
            try:
                self.said += self._lines.get(timeout=0.1)
            except queue.Empty:
                assert self.process.poll() is None and time.monotonic() < until, self.said
        return found[1]

    def ended(self, timeout: float = 30) -> int:
        """The exit status, when it has ended; all it has said is in `said` then."""
        status = self.process.wait(timeout)
        while True:
            try:
                self.said += self._lines.get(timeout=0.2)
            except queue.Empty:
                return status


def begun(model: Path, *options: str) -> subprocess.Popen[str]:
    """`lathe serve MODEL OPTIONS`, as soon as it is a process."""
    command = [sys.executable, "-m", "lathe", "serve", str(model), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Served]:
    """`lathe serve MODEL OPTIONS` on a free port, from when it is ready."""
    process = begun(model, "--port", "0", "--device", "cpu", *options)
    try:
        yield Served(process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def in_process(model: Path, *wires: Any, **options: Any) -> Iterator[TestClient]:
    """A client of the application with these wires (by default all), its engine in a thread of this process.

    `client.desk` is its desk. options: those of `lathe serve`, by their names.
    """
    mine, theirs = Pipe()
    told = Options(str(model), device="cpu", **options)
    thread = threading.Thread(target=occupy, args=(theirs, lambda: load(told, model)), daemon=True)
    thread.start()
    desk = Desk({"tiny": Line(mine, thread)}, told.max_queue, told.strict, told.any_model_name)
    with TestClient(application(desk, *([wires] if wires else [])), raise_server_exceptions=False) as client:
        client.desk = desk  # type: ignore[attr-defined]
        while client.get("/health").status_code == 503:
            time.sleep(0.01)
        yield client


@contextmanager
def at_port(models: Mapping[str, Path]) -> Iterator[str]:
    """The address of the application over several models, by their names: all in threads of this process."""
    lines = {}
    for name, model in models.items():
        mine, theirs = Pipe()
        told = Options(str(model), device="cpu", max_seqs=4)
        thread = threading.Thread(target=occupy, args=(theirs, partial(load, told, model)), daemon=True)
        thread.start()
        lines[name] = Line(mine, thread)
    app = uvicorn.Server(uvicorn.Config(application(Desk(lines)), port=0, log_level="warning"))
    thread = threading.Thread(target=app.run)
    thread.start()
    while not app.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{app.servers[0].sockets[0].getsockname()[1]}"
    try:
        while httpx2.get(f"{url}/health").status_code == 503:
            time.sleep(0.02)
        yield url
    finally:
        app.should_exit = True
        thread.join()
