"""Replicas of the engine behind Ray Serve answer as one engine alone, streams too, and end when told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from lathe.llm import LLM

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = [f"What is {number} and {number}?" for number in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from serving import tiny

    return tiny(tmp_path_factory.mktemp("ray"))


def python() -> Path:
    """The Python that has Ray."""
    there = Path(os.environ.get("LATHE_RAY", ROOT / ".venv-ray" / "bin" / "python"))
    if not there.is_file():
        pytest.fail(f"{there.parent.parent} is not there: run `make oracles`, which makes it.")
    return there


@pytest.fixture(scope="module")
def process(model) -> Iterator[tuple[subprocess.Popen, httpx2.Client]]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    # Three times five seconds are not enough for Ray's proxy to begin where other tests run beside it.
    environment["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"
    words = ["--engine", "ray", "--replicas", "2", "--device", "cpu", "--port", str(port)]
    process = subprocess.Popen([str(python()), "-m", "lathe", "serve", str(model), *words], env=environment)
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        until = time.monotonic() + 240
        while time.monotonic() < until and process.poll() is None:
            try:
                if client.get("/health").status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(0.2)
        yield process, client
    process.kill()
    process.wait()


def test_answers_of_replicas_are_those_of_one_engine(process, model):
    _, client = process
    alone = LLM.load(model, device="cpu")

    def answer(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        body = {"messages": messages, "max_tokens": 16, "temperature": 0}
        return client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(answer, QUESTIONS))
    assert answers == [alone.generate(question, temperature=0, max_new_tokens=16) for question in QUESTIONS]


def test_streams_and_the_page_come_through(process):
    _, client = process
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and len(lines) > 5
    assert client.get("/").text.startswith("<!doctype html>")


def test_it_ends_when_told(process):
    running, _ = process
    running.send_signal(signal.SIGTERM)
    assert running.wait(120) == 0


def test_the_program_of_the_page_trains(model, tmp_path):
    """That of docs/clusters.md, with two workers on a CPU where it has sixteen on GPUs, and two steps."""
    from pages import blocks

    [program] = [block.text for block in blocks("clusters.md") if "TorchTrainer" in block.text]
    soon = '*"--train.max-steps 2 --train.max-seq-length 64 --train.global-batch-size 4 --device cpu".split()'
    for shown, other in (
        ("num_workers=16, use_gpu=True", "num_workers=2"),
        ("meta-llama/Llama-3.1-8B", str(model)),
        ("/shared/corpus", str(tmp_path / "corpus.txt")),
        ("/shared/out/mine", str(tmp_path / "mine")),
        ("*where]", f"*where, {soon}]"),
    ):
        assert shown in program
        program = program.replace(shown, other)
    (tmp_path / "corpus.txt").write_text("The lathe turns the work, and the tool stands still.\n" * 60)
    (tmp_path / "train.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    ran = subprocess.run([str(python()), "train.py"], cwd=tmp_path, env=environment, timeout=300, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()
    assert len(LLM.load(tmp_path / "mine/final", device="cpu").score([1, 2, 3])) == 2
