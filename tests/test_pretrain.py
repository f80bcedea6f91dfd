"""lathe pretrain, from the words typed to the folder on disk: what it writes is a model, here and in transformers."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lathe import LLM, checkpoint
from lathe.actions import demo, pretrain
from lathe.actions.training import Train
from lathe.cli import main
from lathe.options import merge, read_recipe, to_yaml
from lathe.tokenizer import Tokenizer
from lathe.training import curve

SHAPE = {
    "--shape.hidden-size": "32",
    "--shape.intermediate-size": "48",
    "--shape.num-hidden-layers": "2",
    "--shape.num-attention-heads": "4",
}
TINY = [
    *(word for pair in SHAPE.items() for word in pair),
    "--train.max-seq-length=32",
    "--train.global-batch-size=4",
    "--train.micro-batch-size=2",
    "--optimizer.lr=0.01",
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = [f"{a} and {b} make {a + b}." for a in range(12) for b in range(12)]
    (tmp_path / "sums.txt").write_text("\n<|endoftext|>\n".join(lines))
    return tmp_path / "sums.txt"


def lathe(*words: object) -> int:
    return main(["pretrain", *map(str, words)])


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_characters_can_be_tokens_and_data_mixed(data: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "more.jsonl").write_text('{"text": "one and two make three"}\n' * 30)
    words = ["llama", f"--data={data}:0.7", f"--data={tmp_path / 'more.jsonl'}:0.3", "--train-tokenizer=char"]
    assert lathe(*words, "--out-dir", tmp_path / "out", "--train.max-steps=3", *TINY) == 0, capsys.readouterr().err
    config = json.loads((tmp_path / "out/final/config.json").read_text())
    used = set(data.read_text().replace("<|endoftext|>", "").replace("\n", "")) | set("one and two make three")
    assert config["vocab_size"] == len(used) + 1  # and where a document ends


def test_a_run_becomes_a_model_like_any_other(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = [
        "llama",
        "--data",
        data,
        "--train-tokenizer=280",
        "--out-dir",
        out,
        "--train.epochs=3",
        "--eval.interval=10",
    ]
    assert lathe(*words, *TINY) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "random weights" in said.err
    assert f"Saved {out}/final" in said.err

    steps = [line for line in lines(out) if "loss" in line]
    held = [line for line in lines(out) if "validation_loss" in line]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert steps[-1]["loss"] < steps[0]["loss"] - 1
    assert [line["step"] for line in held] == [10, 20, len(steps)]
    assert {path.name for path in (out / "final").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "recipe.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    llm = LLM.load(out / "final")
    ids = llm.tokenizer.encode("1 and 2 make 3.")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(out / "final")
    with torch.no_grad():
        torch.testing.assert_close(llm.logits(ids), theirs(torch.tensor([ids])).logits[0], rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(out / "final")("1 and 2 make 3.")["input_ids"] == ids

    recipe = merge(pretrain.Options, read_recipe(str(out / "final/recipe.yaml")))
    assert to_yaml(recipe) == (out / "final/recipe.yaml").read_text()
    assert recipe.train.epochs == 3


def test_the_same_command_is_the_same_run(data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        words = ["llama", "--data", data, "--train-tokenizer=280", "--out-dir", tmp_path / name, "--train.max-steps=5"]
        assert lathe(*words, *TINY) == 0
    losses = [[line.get("loss", line.get("validation_loss")) for line in lines(tmp_path / name)] for name in "ab"]
    assert losses[0] == losses[1]
    weights = [(tmp_path / name / "final/model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_a_finished_run_is_not_written_over_unless_asked(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "llama",
        "--data",
        data,
        "--train-tokenizer=280",
        "--out-dir",
        tmp_path / "out",
        "--train.max-steps=2",
        *TINY,
    ]
    assert lathe(*words) == 0
    first = (tmp_path / "out/final/model.safetensors").read_bytes()
    metrics = (tmp_path / "out/metrics.jsonl").read_text()
    capsys.readouterr()
    assert lathe(*words, "--seed=7") == 2
    assert "final is there already" in capsys.readouterr().err
    assert (tmp_path / "out/final/model.safetensors").read_bytes() == first
    assert (tmp_path / "out/metrics.jsonl").read_text() == metrics
    assert lathe(*words, "--seed=7", "--overwrite") == 0
    assert (tmp_path / "out/final/model.safetensors").read_bytes() != first
    assert (tmp_path / "out/metrics-1.jsonl").read_text() == metrics


def test_weights_are_continued(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", data, "--train.max-steps=30"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert lathe("llama", *words, "--train-tokenizer=280", "--out-dir", first, *TINY) == 0
    final = first / "final"
    assert lathe(final, *words, "--initial-checkpoint", final, "--out-dir", second) == 0
    assert f"the weights of {final}" in capsys.readouterr().err
    assert lines(second)[0]["loss"] < lines(first)[0]["loss"] - 1
    assert (second / "final/tokenizer.json").read_bytes() == (final / "tokenizer.json").read_bytes()


def test_a_real_model_is_continued_in_its_own_shape(shared: Path, tmp_path: Path) -> None:
    model, data = shared / "data/models/stories260K-hf", shared / "data/text/tinystories_1k.txt"
    words = ["--data", data, "--train.max-steps=3", "--train.global-batch-size=4", "--train.max-seq-length=128"]
    assert lathe(model, *words, "--initial-checkpoint", model, "--out-dir", tmp_path, "--optimizer.lr=1e-4") == 0
    assert lines(tmp_path)[-1]["validation_loss"] < 2.0  # it was trained on such stories; chance is 6.2
    before, after = checkpoint.open(model), checkpoint.open(tmp_path / "final")
    assert after.spec == before.spec
    assert Tokenizer.open(tmp_path / "final").encode("Once upon") == before.tokenizer().encode("Once upon")


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "16-mixed"])
def test_precision_is_that_of_the_folder(data: Path, tmp_path: Path, precision: str) -> None:
    words = ["llama", "--data", data, "--train-tokenizer=280", "--out-dir", tmp_path / "out", "--train.max-steps=20"]
    assert lathe(*words, *TINY, f"--precision={precision}") == 0
    expected = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert checkpoint.open(tmp_path / "out/final").dtype == expected
    steps = [line["loss"] for line in lines(tmp_path / "out") if "loss" in line]
    assert steps[-1] < steps[0] - 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llama", "--data=DATA"], "names a family, which has no size of its own. Give --shape.hidden-size"),
        (["llama", "--data=DATA", *TINY], "llama comes without a tokenizer. Give --tokenizer FOLDER"),
        (["llama", "--data=nowhere.txt", *TINY], 'There is no data "nowhere.txt"'),
        (["lama", "--data=DATA", *TINY], "lama"),
        (["llama", "--data=DATA", "--train-tokenizer=100", *TINY], "256"),
        (["MODEL", "--data=DATA", "--shape.num-attention-heads=0"], "num_attention_heads"),
        (["MODEL", "--data=DATA", "--train.max-seq-length=4096"], "the model has 512 positions"),
        (["MODEL", "--data=DATA", "--initial-checkpoint=MODEL", "--shape.num-hidden-layers=2"], "another size"),
        (["MODEL", "--data=DATA", "--tokenizer=MODEL", "--train-tokenizer=300"], "Keep one of them"),
        (["MODEL", "--data=DATA", "--train.max-steps=0"], "--train.max-steps is 0. It must be above 0"),
        (["MODEL", "--data=DATA", "--train.z-loss=-1"], "--train.z-loss is -1.0. It must be at least 0"),
        (["MODEL", "--data=DATA", "--train.balance-loss=0.1"], "The model has no experts"),
        (
            ["MODEL", "--data=DATA", "--optimizer.name=muon", "--precision=bf16-true"],
            "would round to nothing. Take bf16-mixed",
        ),
        (
            ["MODEL", "--data=DATA", "--train.lr-warmup-steps=2", "--train.lr-warmup-fraction=0.1"],
            "are both given. Keep one",
        ),
        (["MODEL", "--data=DATA", "--optimizer.lr=1e-5"], "cannot be higher"),
        (["MODEL", "--data=DATA", "--out-dir=DATA"], "is a file, and a run needs a folder"),
        (["MODEL", "--data=DATA", "--val-split-fraction=1"], "from 0 to below 1"),
        (["MODEL", "--data=DATA", "--optimizer.lr=1e9", "--train.max-norm=none"], "The loss is"),
    ],
)
def test_what_is_wrong_is_said_in_a_paragraph_and_no_model_is_written(
    words: list[str],
    message: str,
    data: Path,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model = shared / "data/models/stories260K-hf"
    assert lathe(*(word.replace("DATA", str(data)).replace("MODEL", str(model)) for word in words)) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert not list(tmp_path.glob("out/**/config.json"))


def test_a_signal_saves_what_there_is(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["llama", "--data", data, "--train-tokenizer=280", "--out-dir", out, "--train.max-steps=1000000", *TINY]
    command = [sys.executable, "-m", "lathe", "pretrain", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not (out / "metrics.jsonl").exists() or len(lines_so_far(out)) < 3:
            assert process.poll() is None, process.stderr and process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    (place,) = out.glob("step-*")
    assert place.name == f"step-{lines(out)[-1]['step']:06}"
    assert f"Saved {place}" in said
    assert LLM.load(place).generate("1 and", max_new_tokens=3) is not None


def lines_so_far(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_choices_arrive_where_they_count(data: Path, tmp_path: Path) -> None:
    """Muon, a schedule, an end after some seconds, and blocks computed twice, from the command line."""
    words = ["llama", "--data", data, "--train-tokenizer=280", "--out-dir", tmp_path / "out", *TINY]
    words += ["--optimizer.name=muon", "--train.schedule=wsd", "--train.lr-warmup-fraction=0.1", "--train.z-loss=1e-4"]
    assert lathe(*words, "--train.max-steps=20", "--activation-checkpointing", "--train.min-lr=0") == 0
    steps = [line for line in lines(tmp_path / "out") if "loss" in line]
    assert [round(line["lr"] / 0.01, 3) for line in steps][:3] == [0.333, 0.667, 1.0]
    assert [line["lr"] == 0.01 for line in steps[2:16]] == [True] * 14
    assert steps[-1]["lr"] == 0
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5


# ---- how long -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("train", "steps"),
    [
        (Train(), 10),  # one epoch of 1,000 targets
        (Train(epochs=3), 30),
        (Train(max_tokens=101), 2),
        (Train(max_steps=7, epochs=2), 7),
        (Train(max_steps=70, epochs=2, max_tokens=1500), 15),
    ],
)
def test_the_first_limit_counts(train: Train, steps: int) -> None:
    rows = Train(train.max_steps, train.max_tokens, train.epochs, global_batch_size=10)
    assert rows.steps(10, lambda: 1000) == steps


# ---- the curve ------------------------------------------------------------------------------------------------------
def test_a_falling_loss_is_a_falling_line() -> None:
    drawn = curve.text([(step, 10.0 - step / 10) for step in range(1, 101)], [(50, 5.0)], width=40, height=10)
    rows = drawn.splitlines()[1:11]
    starts = [min(i for i, c in enumerate(row) if ord(c) > 0x2800) for row in rows]
    assert starts == sorted(starts)
    assert rows[0].lstrip().startswith("9.90 ┤")
    assert rows[-1].lstrip().startswith("0.05 ┤")  # the last dot is the mean of two steps
    assert "●" in rows[4]
    assert "step 100" in drawn


def test_the_png_is_one(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curve.png(tmp_path / "loss.png", [(1, 3.0), (2, 2.0)], [(2, 2.5)], "title")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_without_matplotlib_the_run_says_what_the_png_needs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = ["llama", "--data", data, "--train-tokenizer=280", "--out-dir", tmp_path / "out", "--train.max-steps=2"]
    assert lathe(*words, *TINY) == 0
    assert 'pip install "lathe-llm[plot]"' in capsys.readouterr().err
    assert not (tmp_path / "out/loss.png").exists()


# ---- the demo -------------------------------------------------------------------------------------------------------
def test_the_demo_shows_the_command_it_runs(tmp_path: Path) -> None:
    asked = demo.pretraining(demo.Options(out_dir=tmp_path / "demo"))
    from lathe.command import command, read

    words = demo.command(asked)
    assert words[:2] == ["lathe", "pretrain"]
    parsed = read(command("pretrain", pretrain.Options, ""), pretrain.Options, words[2:])
    assert parsed == asked


def test_the_demo_trains_and_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out-dir", str(tmp_path / "demo"), "--max-steps=2", "--prompt=The class"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("The class")
    assert f"lathe chat {tmp_path}/demo/final" in said.err
    assert (tmp_path / "demo/final/model.safetensors").is_file()
    assert math.isfinite(lines(tmp_path / "demo")[-1]["validation_loss"])
