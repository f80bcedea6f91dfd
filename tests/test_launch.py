"""Actions on several processes: who starts them, how they divide a training, and how they stop and go on together."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_work import one_is_late

from lathe.actions import launch, ranks
from lathe.actions.launch import Place, near, started
from lathe.cli import main
from lathe.errors import UsageError
from lathe.training.grid import Grid, divided

CLUSTERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CLUSTERS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ({}, None),
        ({"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}, Place(5, 16, 1)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # a job's script, which srun has not started
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "6", "SLURM_LOCALID": "2"}, Place(6, 8, 2)),
    ],
)
def test_a_cluster_says_which_process_this_is(
    told: dict[str, str], place: Place | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert started() == place


def test_processes_of_a_slurm_job_meet_at_a_port_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for nodes, first in (("a[01-04,07]", "a01"), ("gpu-a,gpu-b", "gpu-a"), ("rack1-[3,5]", "rack1-3"), ("one", "one")):
        monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
        assert launch._slurm().startswith(f"tcp://{first}:")
    places = set()
    for job in range(100):
        monkeypatch.setenv("SLURM_JOB_ID", str(4_000_000 + job))
        places.add(launch._slurm())
    assert len(places) == 100
    assert all(20_000 <= int(place.rpartition(":")[2]) < 40_000 for place in places)


@pytest.mark.parametrize(
    ("count", "machine", "slices", "strategy", "need", "grid"),
    [
        (1, 1, 1, "auto", 9, Grid()),
        (8, 8, 1, "auto", 9, Grid(8)),
        (8, 8, 1, "auto", 11, Grid(1, 8)),
        (8, 8, 2, "auto", 11, Grid(4, 1, 2)),  # half of it fits
        (16, 8, 1, "auto", 11, Grid(2, 8)),  # it fits a machine
        (16, 8, 1, "auto", 81, Grid(1, 16)),
        (16, 8, 2, "hybrid", 0, Grid(2, 4, 2)),
        (8, 8, 1, "hybrid", 0, Grid(1, 8)),
        (4, 4, 4, "fsdp", 0, Grid(1, 1, 4)),
    ],
)
def test_how_processes_divide_a_training(
    count: int, machine: int, slices: int, strategy: str, need: int, grid: Grid
) -> None:
    assert divided(count, machine, slices, strategy, need, 10) == grid
    assert grid.size == count


def test_numbers_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UsageError, match="--tensor-parallel is 3, and there are 8 devices"):
        divided(8, 8, 3, "auto", 0, math.inf)
    with pytest.raises(UsageError, match="Every machine must have as many"):
        divided(12, 8, 1, "hybrid", 0, math.inf)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--devices", "none"], "--devices is none. It must be a number above 0, or auto."),
        (["--tensor-parallel", "0"], "--tensor-parallel is 0. It must be above 0."),
        (["--num-nodes", "2"], "Add --meet HOST:PORT on each of them"),
    ],
)
def test_what_cannot_be_started(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "llama", "--data", "x", *words]) == 2
    assert says in capsys.readouterr().err


def test_machines_have_as_many_processes_as_a_cluster_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert near(4) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert near(16) == 8
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "4(x2)")
    assert near(8) == 4


# ---- whole trainings -------------------------------------------------------------------------------------------------
SIZES = {"hidden-size": 32, "intermediate-size": 64, "num-hidden-layers": 2, "num-attention-heads": 4}


def words(place: Path, out: str, *more: str) -> list[str]:
    shape = [word for name, size in SIZES.items() for word in (f"--shape.{name}", str(size))]
    run = "--train-tokenizer 300 --train.max-seq-length 64 --train.global-batch-size 5 --train.micro-batch-size 2"
    run += " --optimizer.lr 1e-2 --eval.interval 3 --train.keep none --device cpu"
    where = ["--data", str(place / "texts.jsonl"), "--out-dir", str(place / out)]
    return ["pretrain", "llama", *shape, *where, *run.split(), *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    draw, nouns = random.Random(0), "the cat sat on a mat and saw the dog run over hills while rain fell".split()
    rows = [json.dumps({"text": " ".join(draw.choices(nouns, k=draw.randint(5, 60)))}) for _ in range(150)]
    (folder / "texts.jsonl").write_text("\n".join(rows))
    return folder


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_run_goes_on_with_another_number_of_processes(place: Path) -> None:
    """One process, then two that have shards, then one again: the losses are those of one."""
    assert main(words(place, "alone", "--train.max-steps", "9", "--train.save-interval", "3")) == 0
    expected = losses(place / "alone")
    shutil.copytree(place / "alone", place / "moved")
    for name in ("final", "step-000006", "step-000009"):
        shutil.rmtree(place / "moved" / name, ignore_errors=True)
    more = ["--resume", "auto", "--train.save-interval", "3", "--devices", "2"]
    assert main(words(place, "moved", "--train.max-steps", "9", *more, "--strategy", "fsdp")) == 0
    assert losses(place / "moved") == pytest.approx(expected, rel=2e-5)
    for name in ("final", "step-000009"):
        shutil.rmtree(place / "moved" / name, ignore_errors=True)
    assert main(words(place, "moved", "--train.max-steps", "9", *more[:2])) == 0
    assert losses(place / "moved") == pytest.approx(expected, rel=2e-5)


def test_what_processes_refuse_is_said_once(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = ["--devices", "2", "--strategy", "fsdp", "--optimizer.name", "adafactor"]
    assert main(words(place, "refused", *more)) == 2
    said = capfd.readouterr().err
    assert said.count("Error:") == 1
    assert "no device has the whole of a matrix" in said
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_what_a_run_begins_with_is_the_same_for_one_that_looks_late(tmp_path: Path) -> None:
    ranks.run(one_is_late, 2, "cpu", tmp_path / "out")


def test_all_stop_at_the_same_step_when_one_is_asked_to(place: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lathe",
        *words(place, "stopped", "--devices", "2", "--train.max-steps", "1000000"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        until = time.monotonic() + 90
        file = place / "stopped" / "metrics.jsonl"
        while not (file.exists() and file.stat().st_size) and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(60) == 128 + signal.SIGTERM, said
    last = max(losses(place / "stopped"))
    step = place / "stopped" / f"step-{last:06}"
    assert f"Saved {step}" in said
    assert (step / "state" / "training.json").is_file()
    assert not [path for path in step.parent.iterdir() if path.name.startswith(".")]
