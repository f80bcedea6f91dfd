"""`lathe bench`, what it holds its figures against, and the page that benchmarks/all.py writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from published import PUBLISHED

from lathe import checkpoint, families
from lathe.actions import bench, roofline
from lathe.actions.roofline import Machine, Work
from lathe.cli import main
from lathe.engine import Engine, Sampling
from lathe.engine.pace import Pace, pace
from lathe.model import initial
from lathe.training import gauge
from lathe.transforms import quantize

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
MATRICES = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is measured in a moment, and badly."""
    monkeypatch.setattr(roofline, "READ", 1 << 20)
    monkeypatch.setattr(gauge, "BUDGET", 0.0)


# ---- limits ----------------------------------------------------------------------------------------------------------
def test_what_a_token_of_llama_3_2_1b_costs():
    """Worked by hand, as in test_inspect.py: a tied table is read once, as the head."""
    work = Work.of(checkpoint.blank(families.read(PUBLISHED["Llama-3.2-1B-Instruct"].config)).bfloat16())
    assert (work.matrices, work.head) == (973_078_528, 128_256 * 2048)
    assert work.weights == 2 * 1_235_814_400
    assert work.cache == 16 * 2 * 8 * 64 * 2
    assert work.looking == 16 * 4 * 32 * 64


def test_limits_of_a_machine():
    """Worked by hand: a pass takes a second to read the weights alone, and one token's products take a second."""
    machine, work = Machine(read=1000.0, multiply=200.0), Work(weights=900, matrices=100, head=0, cache=10, looking=0)
    assert work.decode(machine, prompt=9, new=2) == 1.0
    assert work.prefill(machine, prompt=50) == 1.0
    assert work.together(machine, prompt=1, new=2, sequences=3) == 6 / (3 + 3)
    assert Work(0, 100, 100, 0, 2).prefill(machine, prompt=4) == 4 * 200 / (4 * (200 + 2 * 2) + 200)


def test_an_untied_table_is_not_read_and_codes_count_as_they_are_stored():
    decoder = initial.decoder(families.read(TINY), seed=0)
    norms, head = 5 * 32 * 4, 100 * 32 * 4
    assert Work.of(decoder).weights == MATRICES * 4 + norms + head
    rows = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)
    quantize.pack(decoder, "int8")
    assert Work.of(decoder).weights == MATRICES + 4 * rows + norms + head
    assert Work.of(decoder).matrices == MATRICES


def test_experts_that_a_token_does_not_visit_are_not_read():
    spec = families.read(PUBLISHED["Mixtral-8x7B-v0.1"].config)
    work = Work.of(checkpoint.blank(spec).bfloat16())
    each = 3 * 4096 * 14336
    assert work.matrices == 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 2 * each)
    assert work.weights == pytest.approx(2 * (work.matrices + work.head), rel=1e-3)


def test_the_machine_is_measured():
    found = Machine.measured(torch.device("cpu"), torch.float32)
    assert found.read > 1e6 and found.multiply > 1e6


# ---- pace ------------------------------------------------------------------------------------------------------------
def test_pace_reads_and_writes_what_it_is_asked_for():
    engine = Engine(initial.decoder(families.read(TINY), seed=0))
    engine.submit([1, 2, 3], Sampling(temperature=0, max_new_tokens=2))
    while engine.busy:
        engine.step()
    read = []
    run = engine.runner.run
    engine.runner.run = lambda parts: read.append(sum(len(part.tokens) for part in parts)) or run(parts)  # type: ignore[method-assign]
    for _ in range(2):  # the second time, too, nothing is known of the prompts
        read.clear()
        took = pace(engine, 20, 5, sequences=3)
        assert sum(read) == 3 * (20 + 4)
        assert (took.sequences, took.prompt, took.new) == (3, 20, 5) and 0 < took.first < took.whole
        assert engine.pages.free == len(engine.pages.holders)


def test_what_a_pace_says():
    took = Pace(sequences=2, prompt=10, new=5, first=4.0, whole=8.0)
    assert (took.prefill, took.decode, took.together) == (5.0, 2.0, 1.25)
    assert Pace(1, 10, 1, 4.0, 4.0).decode == 0.0


# ---- the command -----------------------------------------------------------------------------------------------------
WORDS = ["--device", "cpu", "--no-native", "--prompt-tokens", "8", "--prompt-tokens", "20", "--new-tokens", "4"]


def test_bench_tells_every_value(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny_model), *WORDS, "--prefill-tokens=30", "--sequences=3", "--runs=2", "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    decoder = checkpoint.open(tiny_model).load()
    assert page["weights_bytes"] == sum(parameter.nbytes for parameter in decoder.parameters())
    assert page["read_bytes"] == Work.of(decoder).weights and page["dtype"] == "float32"
    rows = {row["name"]: row for row in page["rows"]}
    assert [*rows] == [
        "load", "memory", "first token after 8", "first token after 20", "prefill of 30", "decode, 8 in, 4 out",
        "decode, 20 in, 4 out", "3 at once, 8 in, 4 out", "the machine reads", "the machine multiplies",
    ]  # fmt: skip
    assert all(len(row["values"]) == (1 if name in ("load", "memory") else 2) for name, row in rows.items())
    for name, row in rows.items():
        assert ("limit" in row) == name.startswith(("prefill", "decode", "3 at"))
        if "limit" in row:
            assert row["of_limit"] == row["median"] / row["limit"]


@pytest.mark.parametrize("how", [None, "int8"])
def test_bench_shows_a_table(tiny_model: Path, how: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    words = [] if how is None else ["--quantize", how]
    assert main(["bench", str(tiny_model), *WORDS, "--prefill-tokens=9", "--sequences=1", "--runs=1", *words]) == 0
    shown = capsys.readouterr().out
    assert f", {how or 'float32'}, " in shown and "decode, 20 in, 4 out" in shown and "at once" not in shown


def test_what_bench_refuses(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--prompt-tokens", "100000"], "the context has room for"),
        (["--new-tokens", "1"], "--new-tokens is 1. It must be at least 2."),
        (["--runs", "0"], "--runs is 0."),
    ):
        assert main(["bench", str(tiny_model), *words]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_numbers_are_brief():
    assert [bench.brief(n) for n in (1234.5, 99.96, 0.012345)] == ["1,234", "100", "0.0123"]


# ---- the page --------------------------------------------------------------------------------------------------------
@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("all", "report", "measure", "models", "shapes"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def rounds() -> list[dict]:
    """Two rounds in the shape of the 135 M model: Lathe writes 90 and 110 tokens a second, llama.cpp 100."""

    def row(who: str, round: int, **figures: float) -> dict:
        facts = {"size": "135M", "kind": "bf16", "who": who, "round": round, "date": "2026-11-26", "threads": "2"}
        return {**facts, "machine": "a machine", "commit": "abc", "figures": figures}

    def told(decode: float) -> dict[str, float]:
        speeds = {"decode": decode, "decode, long": decode, "prefill": 10 * decode, "sixteen": decode}
        return {**speeds, "first token, s": 0.1, "load, s": 1.0, "own MiB": 300.0, "MiB": 500.0, "reads": 2.69e8}

    rows = [row("Lathe", n, **told(speed)) for n, speed in enumerate((90.0, 110.0))]
    rows += [row("llama.cpp", n, **told(100.0)) for n in range(2)]
    rows += [row("transformers", n, **told(10.0)) for n in range(2)]
    return [*rows, *(row("the machine", n, **{"GB/s": 30.0, "bf16 GFLOP/s": 400.0}) for n in range(2))]


def test_the_page_keeps_its_prose(scripts: None, tmp_path: Path) -> None:
    import report

    page = tmp_path / "benchmarks.md"
    page.write_text(f"Before.\n{report.MARKS[0]}\nold\n{report.MARKS[1]}\nAfter.\n")
    report.write(rounds(), page)
    text = page.read_text()
    assert text.startswith("Before.\n") and text.endswith("\nAfter.\n") and "\nold\n" not in text
    assert "| **Lathe bf16** | 100 (90 - 110), " in text
    assert "| *Lathe / transformers* | *10.00* |" in text
    assert "| 135M, bf16: decode, 128 in | of llama.cpp | 1.00 | at least 0.9 | met |" in text
    assert "| 135M, bf16: prefill, 512 | of llama.cpp | 1.00 | at least 1.5 | **not met** |" in text
    assert (tmp_path / "benchmarks/decode.svg").read_text().count("<svg") == 1
    report.write(rounds(), page)
    assert page.read_text() == text


def test_start_up_is_held_against_torch(scripts: None) -> None:
    import report

    every = {"import torch": 2.0, "lathe --help": 0.5, report.FIRST: 2.9}
    facts = {"size": "1B", "kind": "start-up", "round": 0, "date": "2026-11-26", "machine": "m", "threads": "2"}
    text = report.text([{**facts, "who": who, "figures": {"seconds": n}} for who, n in every.items()])
    assert "| lathe --help | 0.5 | 0.25 | 0.00 s |" in text
    assert "| start-up, lathe --help | of `import torch` | 0.25 | at most 0.2 | **not met** |" in text
    assert (
        "| start-up, lathe generate, one token of 1B | seconds beyond `import torch` | 0.90 | at most 1 | met |" in text
    )


def test_the_page_in_the_repository_has_its_marks(scripts: None) -> None:
    import report

    assert all(report.PAGE.read_text().count(mark) == 1 for mark in report.MARKS)


def test_limits_in_the_page_are_those_of_bench(scripts: None) -> None:
    """The page reckons from a configuration alone, without Lathe: it must come to the same."""
    import shapes

    for config in shapes.SHAPES.values():
        work, cost = Work.of(checkpoint.blank(families.read(config)).bfloat16()), shapes.Cost(config)
        assert (cost.matrices, cost.head, cost.cache) == (work.matrices, work.head, work.cache)
        assert cost.looking == work.looking
        machine = Machine(1e10, 1e11)
        assert machine.read / cost.decode(work.weights, 128, 128) == pytest.approx(work.decode(machine, 128, 128))
        assert machine.multiply / cost.prefill(512) == pytest.approx(work.prefill(machine, 512))


def test_a_run_that_was_stopped_goes_on(scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import all as benchmark

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cases = [benchmark.Case("15M", "bf16", who) for who in ("Lathe", "transformers")]
    made: list[Path] = []

    def measured(case: object, model: Path) -> dict[str, float]:
        made.append(model)
        if len(made) == 3:
            raise KeyboardInterrupt
        return {"decode": float(len(made))}

    def make(folder: Path, *_: object, **__: object) -> None:
        folder.mkdir(parents=True)

    monkeypatch.setattr(benchmark, "measured", measured)
    monkeypatch.setattr(benchmark, "make", make)
    file = tmp_path / "rounds.jsonl"
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(cases, benchmark.Rounds(file), 2, tmp_path, lambda text: None)
    benchmark.run(cases, benchmark.Rounds(file), 2, tmp_path, lambda text: None)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    told = [(row["who"], row["round"], row["figures"]["decode"]) for row in rows]
    assert told == [("Lathe", 0, 1), ("transformers", 0, 2), ("transformers", 1, 4), ("Lathe", 1, 5)]  # backwards
