"""What a run shows of itself: the page, the loggers, the part of the peak, and the server that compares runs."""

from __future__ import annotations

import csv
import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lathe import families
from lathe.actions import runs
from lathe.cli import main
from lathe.errors import MissingError, UsageError
from lathe.model import initial
from lathe.training import gauge, loggers, report
from lathe.training.about import About
from lathe.training.limits import Reached
from lathe.training.loop import Step
from lathe.training.precision import Precision
from lathe.training.run import Run

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def step(number: int, loss: float = 1.0) -> Step:
    return Step(number, loss, 8, 8, 0.1, 1.0, 0.5, Reached(number, 8 * number, 0.0, 0.5 * number), 10.0)


def shown(folder: Path) -> dict:
    """The facts that a page holds."""
    page = (folder / "report.html").read_text()
    match = re.search(r'<script type="application/json" id="run">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def test_the_page_holds_all_of_a_run_and_asks_for_nothing(tmp_path: Path) -> None:
    about = About("<llama> on a & b", "seed: 1\n", {"width": "16"})
    with Run(tmp_path, about=about) as run:
        for number in range(1, 6):
            run.step(step(number, 1 / number))
        run.validated(5, 0.25)
        run.sample(5, "</script><script>alert(1)</script> <!-- ∑")
        run.report.write()
        assert shown(tmp_path)["status"] == "running"
        assert shown(tmp_path)["left"] == 2.5
    told = shown(tmp_path)
    assert told["status"] == "stopped"
    assert told["series"]["step"] == [1, 2, 3, 4, 5]
    assert told["series"]["loss"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert told["series"]["peak"] == [None] * 5
    assert told["validation"] == [[5, 0.25]]
    assert told["samples"] == [[5, "</script><script>alert(1)</script> <!-- ∑"]]
    assert (told["recipe"], told["facts"], told["total"]) == ("seed: 1\n", {"width": "16"}, 10)
    page = (tmp_path / "report.html").read_text()
    assert page.count("</script>") == 2
    assert "<title>&lt;llama&gt; on a &amp; b</title>" in page
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", page)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["metrics.jsonl", "report.html"]


def test_long_curves_become_as_many_means_as_can_be_seen() -> None:
    made = report.Report(Path(), "", "", {})
    for number in range(1, 6001):
        made.take({"step": number, "loss": number % 4})
    assert report.thin(made.series["loss"]) == [1.5] * 1500
    assert report.thin(made.series["step"], last=True) == list(range(4, 6001, 4))


def test_work_per_token_is_what_a_hand_counts() -> None:
    decoder = initial.decoder(families.read(CONFIG), seed=0)
    layer = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24  # q, k and v, o, and the MLP
    assert gauge.flops(decoder) == 6 * (2 * layer + 16 * 100)
    assert gauge.flops(decoder, 64) == 6 * (2 * layer + 16 * 100) + 2 * 12 * 2 * 8 * 32  # half of 64 tokens
    decoder.requires_grad_(False)
    assert gauge.flops(decoder) == 4 * (2 * layer + 16 * 100)
    measured = gauge.Gauge.of(decoder, Precision(torch.device("cpu"), torch.float32, None))
    assert measured.read(1000)["peak"] == round(1000 * measured.flops / measured.peak, 4)
    assert measured.peak > 1e8


def test_loggers_are_told_what_metrics_are(tmp_path: Path) -> None:
    made = loggers.open(["csv"], tmp_path, "a run", {"train": {"max_steps": 2}})
    with Run(tmp_path, about=About("a run", loggers=made)) as run:
        run.step(step(1, 0.5))
        run.validated(1, 0.25)
        run.sample(1, "Once")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = {(row["step"], row["name"]): float(row["value"]) for row in csv.DictReader(file)}
    assert rows["1", "loss"] == 0.5
    assert rows["1", "validation_loss"] == 0.25
    assert loggers.flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_tensorboard_reads_what_it_is_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (logger,) = loggers.open(["tensorboard"], tmp_path, "a run", {"seed": 1})
    logger.numbers(3, {"loss": 0.5, "lr": 0.1})
    logger.text(3, "Once\nupon")
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]
    assert {"recipe/text_summary", "sample/text_summary"} <= set(events.Tags()["tensors"])


def test_a_logger_that_is_not_there_is_named_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r'no logger "tensorbord".*Did you mean "tensorboard"'):
        loggers.open(["tensorbord"], tmp_path, "", {})
    for name, module in (("wandb", "wandb"), ("mlflow", "mlflow"), ("tensorboard", "torch.utils.tensorboard")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(MissingError, match=rf'needs the package {name}.*pip install "lathe-llm\[{name}\]"'):
            loggers.open([name], tmp_path, "", {})


# ---- lathe runs ------------------------------------------------------------------------------------------------------
@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A server of tmp_path/out, which has two runs; beside it lies a secret."""
    for name in ("out/a", "out/b/deep", "secret"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"st')
    (tmp_path / "out/a/step-000001").mkdir()
    (tmp_path / "out/a/report.html").write_text("the page")
    server = runs.serve(tmp_path / "out", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def get(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={"Host": f"{host}:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.getheader("X-Next")


def test_runs_are_listed_and_read_from_a_byte_on(port: int, tmp_path: Path) -> None:
    told = json.loads(get(port, "/api/runs")[1])["runs"]
    assert [(one["id"], one["report"], one["finished"]) for one in told] == [
        ("a", True, False),
        ("b/deep", False, False),
    ]
    status, text, following = get(port, "/api/metrics?run=b%2Fdeep&from=0")
    assert [json.loads(line)["loss"] for line in text.splitlines()] == [2.0, 1.0]  # and not the line that is not whole
    with (tmp_path / "out/b/deep/metrics.jsonl").open("a") as file:
        file.write('ep": 3, "loss": 0.5}\n')
    assert get(port, f"/api/metrics?run=b%2Fdeep&from={following}")[1] == '{"step": 3, "loss": 0.5}\n'
    assert get(port, "/report?run=a")[:2] == (200, "the page")
    status, page, _ = get(port, "/")
    assert status == 200
    assert "charts" in page


def test_nothing_else_is_served_and_nothing_is_changed(port: int) -> None:
    for run in ("../secret", "..%2Fsecret", "%2Fetc", "", ".", "c", "a/step-000001", "a%00"):
        assert get(port, f"/api/metrics?run={run}&from=0")[0] == 404
        assert get(port, f"/report?run={run}")[0] == 404
    assert get(port, "/report?run=b%2Fdeep")[0] == 404
    for path in ("/a/metrics.jsonl", "/../secret/metrics.jsonl", "/etc/passwd", "//etc/passwd"):
        assert get(port, path)[0] == 404
    for begin in ("-1", "x", "1e3", ""):
        assert get(port, f"/api/metrics?run=a&from={begin}")[0] == 400 if begin else True
    assert get(port, "/api/runs", method="POST")[0] == 501
    assert get(port, "/api/runs", method="DELETE")[0] == 501
    assert get(port, "/api/runs", host="rebound.example")[0] == 403


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is no folder"):
        runs.run(runs.Options(tmp_path / "none"))


def test_a_run_is_told_by_its_numbers() -> None:
    decoder = initial.decoder(families.read(CONFIG), seed=0)
    decoder.lm_head.requires_grad_(False)
    about = About.of("a run", "seed: 1", decoder, Precision(torch.device("cpu"), torch.float32, torch.bfloat16))
    size = sum(parameter.numel() for parameter in decoder.parameters())
    assert about.facts["parameters"] == f"{size:,}"
    assert about.facts["learned"] == f"{size - 1600:,}"
    assert re.fullmatch(r"[\d.]+ [GT]FLOP/s in bfloat16", about.facts["measured peak"])
    assert re.fullmatch(r"[\d.]+ kFLOP", about.facts["work per token"])


def test_a_training_is_seen_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "sums.txt").write_text("\n<|endoftext|>\n".join(f"{a} and {a} make {2 * a}." for a in range(60)))
    sizes = ("hidden-size=16", "intermediate-size=24", "num-hidden-layers=1", "num-attention-heads=2")
    words = ["pretrain", "llama", "--data", str(tmp_path / "sums.txt"), "--train-tokenizer=270", "--logger", "csv"]
    words += [*(f"--shape.{size}" for size in sizes), "--train.max-seq-length=16", "--train.global-batch-size=4"]
    assert main([*words, "--train.max-steps=4", "--out-dir", str(tmp_path / "out")]) == 0
    told = shown(tmp_path / "out")
    assert (told["status"], told["total"], told["series"]["step"]) == ("finished", 4, [1, 2, 3, 4])
    assert "max_steps: 4" in told["recipe"]
    assert told["facts"]["layers"] == "1"
    measured = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert all(line["peak"] > 0 for line in measured if "loss" in line)
    assert "loss" in (tmp_path / "out/metrics.csv").read_text()
