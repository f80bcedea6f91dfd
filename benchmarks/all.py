"""Lathe and its peers in one go, round by round in turn; what comes of it goes into docs/benchmarks.md.

    python benchmarks/all.py [--quick] [--rounds 3] [--fresh] [--report] [15M 135M 0.5B 1B] [bf16 int8 int4] [start-up]

Names choose what is run; by default all is. Rivals: llama.cpp and LitGPT, where `make bench` has made their
environments, and transformers. Every single measurement is a line of out/bench/rounds.jsonl as soon as it is there:
what is there is not measured again, so that a run which was stopped goes on. --fresh begins anew; --report measures
nothing. --quick takes one round of short answers, to see that everything works; its figures go to the screen only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import report
from measure import machine, reported, wall
from models import KINDS, make
from shapes import SHAPES

HERE = Path(__file__).parent
LITGPT = Path(os.environ.get("LITGPT_PYTHON", HERE.parent / ".venv-litgpt" / "bin" / "python"))
LLAMACPP = Path(os.environ.get("LLAMACPP_PYTHON", HERE.parent / ".venv-llamacpp" / "bin" / "python"))
START = report.START
BEGUN = {"Lathe": 12, "transformers": 16, "LitGPT": 16, "llama.cpp": 8, "the machine": 6, START: 4}  # seconds, about,
PER_GB = {"Lathe": 26, "transformers": 70, "LitGPT": 26, "llama.cpp": 32}  # and for each GB of weights
WEIGHTS = {"15M": 0.03, "135M": 0.27, "0.5B": 1.0, "1B": 2.5}  # GB in bfloat16
PARTS = {"bf16": 1.0, "int8": 0.6, "int4": 0.45}


@dataclass(frozen=True)
class Case:
    """One process to be measured. kind: of numbers; or START for what is measured from a command to its end."""

    size: str
    kind: str
    who: str

    @property
    def expected(self) -> float:
        """Seconds that it takes, about, on two cores."""
        if self.kind == START:
            return BEGUN[START]
        return BEGUN[self.who] + PER_GB.get(self.who, 0) * WEIGHTS[self.size] * PARTS[self.kind]


def cases(names: set[str]) -> list[Case]:
    """What is to be measured in every round, in turn."""
    found = []
    for size in SHAPES:
        for kind in KINDS:
            if _wanted(names, size, kind):
                found += [Case(size, kind, who) for who in rivals(kind)]
    if not names or START in names:
        found += [Case("1B", START, who) for who in starts(Path())]
    return found


def _wanted(names: set[str], size: str, kind: str) -> bool:
    if names == {START}:
        return False
    return all(not (names & {*every}) or one in names for every, one in ((SHAPES, size), (KINDS, kind)))


def rivals(kind: str) -> list[str]:
    there = ["Lathe"]
    if LLAMACPP.exists():
        there.append("llama.cpp")
    if kind == "bf16":
        there += ["transformers", *(["LitGPT"] if LITGPT.exists() else [])]
    return [*there, "the machine"]


def command(case: Case, model: Path) -> list[str]:
    peers = str(HERE / "decode_peers.py")
    return {
        "Lathe": [sys.executable, str(HERE / "decode_lathe.py"), str(model), case.kind],
        "llama.cpp": [str(LLAMACPP), "-E", peers, "llama.cpp", str(model / f"{KINDS.get(case.kind)}.gguf")],
        "transformers": [sys.executable, peers, "transformers", str(model)],
        "LitGPT": [str(LITGPT), "-E", peers, "litgpt", str(model / "litgpt")],
        "the machine": [sys.executable, str(HERE / "decode_lathe.py"), "limits"],
    }[case.who]


def starts(model: Path) -> dict[str, list[str]]:
    """Commands that are measured from their beginning to their end."""
    lathe = [sys.executable, "-m", "lathe"]
    ask = ["--prompt", "The", "--max-new-tokens", "1", "--device", "cpu"]
    found = {
        "import torch": [sys.executable, "-c", "import torch"],
        "lathe --help": [*lathe, "--help"],
        report.FIRST: [*lathe, "generate", str(model), *ask],
    }
    if LITGPT.exists():
        found["litgpt --help"] = [str(LITGPT.with_name("litgpt")), "--help"]
    return found


def measured(case: Case, model: Path) -> dict[str, float]:
    return wall(starts(model)[case.who]) if case.kind == START else reported(command(case, model))


class Rounds:
    """The measurements so far: one line of a file each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def has(self, case: Case, round: int) -> bool:
        return any(asdict(case).items() <= row.items() and row["round"] == round for row in self.rows)

    def add(self, case: Case, round: int, figures: Mapping[str, float], seconds: float) -> None:
        told = {"date": str(date.today()), "machine": machine(), "threads": os.environ["OMP_NUM_THREADS"]}
        row = {**asdict(case), "round": round, "figures": figures, "seconds": round_(seconds), **told, **state()}
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def round_(value: float) -> float:
    return float(f"{value:.4g}")


def state() -> dict[str, str]:
    """The commit that is measured, where git tells."""
    asked = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)
    return {"commit": told.stdout.strip()} if told.returncode == 0 else {}


def due(every: list[Case], rounds: Rounds, count: int) -> Iterator[tuple[str, list[tuple[int, Case]]]]:
    """What is still to be measured, size by size, so that models of one size are on the disk at a time. Every second
    round goes backwards, so that nobody is always the first."""
    for size in SHAPES:
        turns = [(n, case) for n in range(count) for case in (every if n % 2 == 0 else every[::-1])]
        of = [(n, case) for n, case in turns if case.size == size and not rounds.has(case, n)]
        if of:
            yield size, of


def run(every: list[Case], rounds: Rounds, count: int, models: Path, say: Callable[[str], None]) -> None:
    """Measure what is not there yet."""
    left = sum(case.expected for _, of in due(every, rounds, count) for _, case in of)
    say(f"{sum(len(of) for _, of in due(every, rounds, count))} measurements, about {left / 60:.0f} minutes")
    for size, of in due(every, rounds, count):
        model = models / size
        shutil.rmtree(model, ignore_errors=True)
        kinds = [kind for kind in KINDS if any(case.kind == kind and case.who == "llama.cpp" for _, case in of)]
        say(f"{size}: making the models")
        make(model, SHAPES[size], kinds, litgpt=any(case.who == "LitGPT" for _, case in of))
        if hasattr(os, "sync"):
            os.sync()  # or the first who is measured shares the memory with what still goes to the disk
        for n, case in of:
            begun = time.perf_counter()
            figures = measured(case, model)
            took = time.perf_counter() - begun
            rounds.add(case, n, figures, took)
            left -= case.expected
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            say(
                f"{size} {case.kind}, round {n + 1}, {case.who}: {shown} ({took:.0f} s; about {left / 60:.0f} min left)"
            )
        shutil.rmtree(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", help="which sizes, kinds, or start-up", choices=[[], *SHAPES, *KINDS, START]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    if asked.quick:
        os.environ |= {"NEW": "16", "SECONDS_EACH": "0"}
    path = asked.out / ("quick.jsonl" if asked.quick else "rounds.jsonl")
    if asked.fresh or asked.quick:
        path.unlink(missing_ok=True)
    rounds = Rounds(path)
    if not asked.report:
        every = cases({*asked.names} or ({"15M"} if asked.quick else set()))
        run(
            every,
            rounds,
            1 if asked.quick else asked.rounds,
            asked.out / "models",
            lambda text: print(text, flush=True),
        )
    if asked.quick:
        print(report.text(rounds.rows))
    else:
        report.write(rounds.rows)


if __name__ == "__main__":
    main()
