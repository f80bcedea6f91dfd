"""Stopped and resumed equals never stopped, bit for bit; and a save that breaks off anywhere loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lathe import checkpoint, families
from lathe.cli import main
from lathe.data.loader import Steps
from lathe.data.pack import Packed
from lathe.data.stages import Shuffled
from lathe.errors import CheckpointError, DataError, MissingError, UsageError
from lathe.model import initial
from lathe.model.decoder import Decoder
from lathe.tokenizer import Tokenizer, train_bpe
from lathe.training import loop, loss, methods, metrics, optim, saves, state
from lathe.training.limits import Limits, Reached
from lathe.training.run import Run
from lathe.transforms import adapt, begin
from lathe.transforms.terms import Lora

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TIED = {**CONFIG, "tie_word_embeddings": True}
FUSED = {  # its files keep q, k and v as one matrix, so that an adapter's lie there otherwise than in memory
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["one and two make three; three and four make seven."], 300)


def steps(documents: int = 12) -> Steps:
    """An epoch is about five steps."""
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, 300, draw.integers(2, 40)) for _ in range(documents)]
    return Steps(Packed(Shuffled(texts, seed=3), 16), per_step=3, per_batch=2)


class Trainee:
    """A tiny training, as an action puts one together. folder: a step to go on from."""

    def __init__(
        self,
        config: dict,
        method: str,
        folder: Path | None = None,
        documents: int = 12,
        optimizer: methods.Name = "adamw",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.method, self.data = config, method, steps(documents)
        if folder is None or method != "full":
            self.decoder = initial.decoder(families.read(config), seed=0)
        else:
            self.decoder = checkpoint.open(folder).load(dtype=dtype).requires_grad_()
        if method != "full":
            torch.manual_seed(1)
            settings = Lora(rank=2, alpha=4, targets="all-linear", dropout=0.1, dora=method == "dora")
            adapt.put(self.decoder, "default", begin.lora(self.decoder, settings))
            adapt.trainable(self.decoder)
            self.decoder.train()
        self.decoder.to(dtype)
        self.optimizers = optim.build(self.decoder, optim.Settings(optimizer, lr=0.01))
        self.all = state.Training(self.decoder, self.optimizers, {"data": self.data})
        self.progress = self.all.restore(folder / "state") if folder else state.Progress()

    def model(self) -> Decoder | checkpoint.AdapterFiles:
        if self.method == "full":
            return self.decoder
        return checkpoint.adapter_files(self.decoder, "default", self.config, "base")

    def train(self, out: Path, until: int, tokenizer: Tokenizer, folder: Path | None = None, every: int = 4) -> None:
        resumed = None if folder is None else (folder, self.progress)
        with Run(out, resumed=resumed) as run:

            def after(step: loop.Step) -> bool:
                run.step(step)
                if step.number % every == 0:
                    run.save(
                        saves.step_name(step.number),
                        self.model(),
                        self.config,
                        generation={},
                        tokenizer=tokenizer,
                        recipe="seed: 1\n",
                        training=self.all,
                    )
                return step.number < until

            loop.train(
                loss.next_token(self.decoder),
                self.optimizers,
                self.data,
                lambda step, total: 1 / (1 + step),
                Limits(100),
                1.0,
                after,
                begin=self.progress.reached,
            )

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self.decoder.named_parameters()}


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in metrics.read(folder)]


@pytest.mark.parametrize(
    ("config", "method", "optimizer", "dtype"),
    [
        (TIED, "full", "adamw", torch.float32),
        (CONFIG, "full", "adamw", torch.bfloat16),
        (CONFIG, "full", "muon", torch.float32),
        (TIED, "full", "adafactor", torch.float32),
        *[(TIED, "full", name, torch.float32) for name in methods.CLASSES],
        (CONFIG, "full", "adamw-8bit", torch.bfloat16),
        (CONFIG, "lora", "adamw", torch.float32),
        (TIED, "dora", "adamw", torch.float32),
        (FUSED, "lora", "adamw", torch.float32),
    ],
)
def test_resumed_is_never_stopped(
    config: dict, method: str, optimizer: methods.Name, dtype: torch.dtype, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    if optimizer == "adamw-8bit":
        pytest.importorskip("torchao")

    def trainee(folder: Path | None = None) -> Trainee:
        return Trainee(config, method, folder, optimizer=optimizer, dtype=dtype)

    through = trainee()
    torch.manual_seed(6)
    through.train(tmp_path / "a", 13, tokenizer)

    stopped = trainee()
    torch.manual_seed(6)
    stopped.train(tmp_path / "b", 10, tokenizer)  # two steps after it was saved: they are done anew
    torch.manual_seed(7)
    newest = saves.steps(tmp_path / "b")[-1]
    assert newest.name == "step-000008"
    resumed = trainee(newest)
    assert resumed.progress.reached.steps == 8
    resumed.train(tmp_path / "b", 13, tokenizer, newest)

    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    weights, others = through.weights(), resumed.weights()
    assert weights.keys() == others.keys()
    for name in weights:
        assert torch.equal(weights[name], others[name]), name
    tokens = [[line["tokens"] for line in metrics.read(tmp_path / name)] for name in "ab"]
    assert tokens[0] == tokens[1]


def test_a_step_is_a_model_and_its_state_is_left_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainee = Trainee(TIED, "full")
    trainee.train(tmp_path, 4, tokenizer)
    step = tmp_path / "step-000004"
    assert {path.name for path in step.iterdir()} >= {"config.json", "model.safetensors", "recipe.yaml", "state"}
    (step / "state/.metadata").write_bytes(b"damaged")
    for name, weight in checkpoint.open(step).load().named_parameters():
        assert torch.equal(weight, trainee.weights()[name])


def test_saving_takes_what_was_there_when_it_was_called(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainee = Trainee(CONFIG, "full")
    trainee.train(tmp_path, 1, tokenizer)
    before = {name: weight.clone() for name, weight in trainee.weights().items()}
    moments = trainee.optimizers[0].state[next(trainee.decoder.parameters())]["exp_avg"].clone()
    with Run(tmp_path / "out") as run:
        begun = run.saves.background.start
        held: list[Callable[[], None]] = []
        run.saves.background.start = held.append  # type: ignore[method-assign]
        run.save(
            "step-000001", trainee.decoder, CONFIG, generation={}, tokenizer=tokenizer, recipe="", training=trainee.all
        )
        with torch.no_grad():
            for parameter in trainee.decoder.parameters():
                parameter.zero_()
                trainee.optimizers[0].state[parameter]["exp_avg"].zero_()
        next(trainee.data)
        begun(held[0])
    again = Trainee(CONFIG, "full", tmp_path / "out/step-000001")
    for name, weight in again.weights().items():
        assert torch.equal(weight, before[name])
    assert torch.equal(again.optimizers[0].state[next(again.decoder.parameters())]["exp_avg"], moments)
    assert again.data.state() != trainee.data.state()


def test_what_does_not_fit_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    Trainee(CONFIG, "full").train(tmp_path, 4, tokenizer)
    step = tmp_path / "step-000004"
    with pytest.raises(DataError, match="was reading 12 documents, and the data now holds 13"):
        Trainee(CONFIG, "full", step, documents=13)
    with pytest.raises(CheckpointError, match="lacks learned"):
        Trainee(CONFIG, "lora", step)
    wider = Trainee({**CONFIG, "intermediate_size": 64}, "full")
    with pytest.raises(CheckpointError, match=r"has shape \[48, 32\], and this training needs \[64, 32\]"):
        wider.all.restore(step / "state")
    other = torch.optim.Adamax(wider.decoder.parameters())
    with pytest.raises(CheckpointError, match="exp_inf"):
        state.Training(wider.decoder, [other], {}).restore(step / "state")
    facts = json.loads((step / "state/training.json").read_text())
    (step / "state/training.json").write_text(json.dumps({**facts, "version": 2}))
    with pytest.raises(CheckpointError, match="of version 2"):
        Trainee(CONFIG, "full", step)
    (step / "state/training.json").unlink()
    with pytest.raises(MissingError, match="holds no state"):
        Trainee(CONFIG, "full", step)


def test_the_last_steps_and_the_best_one_stay(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainee = Trainee(CONFIG, "full")
    state.begin(trainee.optimizers[0])

    def save(run: Run, step: int, validation: float) -> list[str]:
        run.step(loop.Step(step, 1.0, 8, 8, 0.1, 1.0, 0.5, Reached(step, 8 * step, 0.0, 0.5 * step), 9.0))
        run.validated(step, validation)
        name = saves.step_name(step)
        run.save(name, trainee.decoder, CONFIG, generation={}, tokenizer=tokenizer, recipe="", training=trainee.all)
        run.wait()
        return [path.name[-1] for path in saves.steps(tmp_path)]

    with Run(tmp_path, keep=2) as run:
        assert save(run, 1, 3.0) == ["1"]
        assert save(run, 2, 2.0) == ["1", "2"]
        assert save(run, 3, 2.5) == ["2", "3"]
        assert save(run, 4, 2.6) == ["2", "3", "4"]
    with pytest.raises(UsageError, match="step-000002 is there already"):
        Run(tmp_path)
    # From an earlier step: those after it stay until there is another.
    third = tmp_path / "step-000003"
    with Run(tmp_path, keep=2, resumed=(third, trainee.all.restore(third / "state"))) as run:
        assert [line["step"] for line in metrics.read(tmp_path)] == [1, 1, 2, 2, 3, 3]
        assert (run.progress.best, run.tokens) == (2.0, 24)
        assert [path.name[-1] for path in saves.steps(tmp_path)] == ["2", "3", "4"]
        assert save(run, 5, 1.0) == ["3", "5"]
    assert [line["step"] for line in map(json.loads, (tmp_path / "metrics-1.jsonl").open())][-1] == 4
    # Into another run's folder nothing is written that would take the place of what is there.
    other = tmp_path / "other"
    with Run(other, resumed=(third, trainee.all.restore(third / "state"))) as run:
        assert [line["step"] for line in metrics.read(other)] == [1, 1, 2, 2, 3, 3]
    with pytest.raises(UsageError, match="is there already"):
        Run(tmp_path, resumed=(other / "step-000009", state.Progress()))
    # A new run in place of it.
    with Run(tmp_path, replace=True, keep=2) as run:
        assert save(run, 1, 9.0) == ["1"]
    assert (tmp_path / "metrics-2.jsonl").is_file()


def test_whoever_takes_a_step_for_a_model_is_told_that_its_state_is_left_alone(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainee(CONFIG, "full").train(tmp_path, 4, tokenizer)
    step = tmp_path / "step-000004"
    before = {path: path.read_bytes() for path in (step / "state").iterdir()}
    assert main(["generate", str(step), "--prompt", "one", "--max-new-tokens", "2"]) == 0
    assert (
        f"{step} is a step of a training: its weights are taken, its state/ is left alone." in capsys.readouterr().err
    )
    assert main(["convert", str(step), str(tmp_path / "lean")]) == 0
    assert "left alone" in capsys.readouterr().err
    assert not (tmp_path / "lean/state").exists()
    assert {path: path.read_bytes() for path in (step / "state").iterdir()} == before
