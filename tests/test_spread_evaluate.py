"""Tasks measured on a training's way (--eval-tasks) come out on several processes as they do on one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lathe import LLM
from lathe.cli import main

pytestmark = pytest.mark.usefixtures("forks")

TASKS = [{"question": f"Is {n} a word?", "choices": [" yes", " no", " it may be"], "answer": n % 3} for n in range(9)]
SHORT = "--train.max-seq-length 64 --train.max-steps 3 --train.global-batch-size 4 --train.micro-batch-size 2"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("She went home. It was late. " * 200)
    Path("asks.jsonl").write_text("\n".join(map(json.dumps, TASKS)))
    return tmp_path


def figures(out: str) -> dict[int, dict[str, float]]:
    """What was measured, by step."""
    rows = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
    told = {row["step"]: {name: value for name, value in row.items() if name.startswith("task/")} for row in rows}
    return {step: values for step, values in told.items() if values}


def test_two_processes_measure_what_one_does(tiny_model: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = f"pretrain {tiny_model} --data notes.txt {SHORT} --eval.interval 2 --eval-tasks asks.jsonl --device cpu"
    for out, more in (("one", []), ("two", ["--devices", "2", "--strategy", "ddp"])):
        assert main([*words.split(), "--out-dir", out, *more]) == 0, capfd.readouterr().err
    one, two = figures("one"), figures("two")
    assert one.keys() == two.keys() == {2, 3}
    for step, values in one.items():
        assert two[step] == pytest.approx(values, rel=1e-4)
    [result] = LLM.load("two/final", device="cpu").evaluate("asks.jsonl").values()
    assert two[3]["task/asks.jsonl/acc"] == result.metrics["acc"]
    assert '"asks.jsonl/acc"' in Path("two/report.html").read_text()
    assert capfd.readouterr().err.count("step 2  asks.jsonl/acc ") == 2  # each run says it once


def test_shards_are_not_measured(tiny_model: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = f"pretrain {tiny_model} --data notes.txt {SHORT} --eval-tasks asks.jsonl --device cpu --out-dir out"
    assert main([*words.split(), "--devices", "2", "--strategy", "fsdp"]) == 2
    assert "Take --strategy ddp" in capfd.readouterr().err
