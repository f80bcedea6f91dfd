"""LitGPT's Python, as its documents use it, on our object: what each line asks for is done. LitGPT itself: oracles/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lathe.api import LLM, Preprocessor, benchmark_dict_to_markdown_table
from lathe.errors import CheckpointError, PromptError, UsageError

ROOT = Path(__file__).parents[1]
ONCE = "Once upon a time"


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    """A small model that LitGPT converted."""
    return shared / "data/models/stories260K-litgpt"


@pytest.fixture(scope="module")
def golden(shared: Path) -> str:
    return (shared / "data/models/stories260K/expected_greedy.txt").read_text()


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM.load(folder, device="cpu")


@pytest.fixture
def learning(folder: Path) -> LLM:
    """The same, ready to be trained."""
    llm = LLM.load(folder, distribute=None)
    llm.trainer_setup()
    return llm


# ---- answers ---------------------------------------------------------------------------------------------------------
def test_text_pieces_and_tokens_are_one_answer(llm: LLM, golden: str):
    text = llm.generate(ONCE, top_k=1, max_new_tokens=40)
    assert golden.startswith(ONCE + text) and len(text) > 60
    assert "".join(llm.generate(ONCE, top_k=1, max_new_tokens=40, stream=True)) == text
    tokens = llm.generate(ONCE, top_k=1, max_new_tokens=40, return_as_token_ids=True)
    assert tokens.dtype == torch.int64 and tokens.tolist() == llm.complete(ONCE, top_k=1, max_new_tokens=40).tokens
    pieces = llm.generate(ONCE, top_k=1, max_new_tokens=40, return_as_token_ids=True, stream=True)
    assert torch.equal(torch.cat([*pieces]), tokens)
    assert llm.preprocessor.decode(tokens) == llm.tokenizer.decode(tokens.tolist())


def test_a_system_prompt_is_a_message(shared: Path, folder: Path):
    styled = LLM.load(folder, device="cpu", prompt_style="llama2")
    told = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    wishes = {"temperature": 0, "max_new_tokens": 8}
    assert styled.generate("Hi", sys_prompt="Be short.", **wishes) == styled.generate(told, **wishes)
    written = styled.prompt_style.apply("Hi", sys_prompt="Be short.")
    assert written == styled.tokenizer.render(told) and "Be short." in written
    with pytest.raises(UsageError):
        styled.generate("Hi", sys_prompt="Be short.", raw=True)


def test_a_preprocessor_gives_tensors(llm: LLM):
    tokens = llm.preprocessor.encode(ONCE)
    assert isinstance(llm.preprocessor, Preprocessor) and tokens.tolist() == llm.tokenizer.encode(ONCE)
    assert llm.preprocessor.decode(tokens) == ONCE and llm.preprocessor.decode(tokens[1]) == llm.tokenizer.decode(
        tokens[1:2].tolist()
    )
    assert llm.prompt_style.apply(ONCE) == ONCE  # no template


def test_benchmark(llm: LLM):
    text, found = llm.benchmark(num_iterations=3, prompt=ONCE, top_k=1, max_new_tokens=9, stream=True)
    assert text == llm.generate(ONCE, top_k=1, max_new_tokens=9)
    assert found["Tokens generated"] == [9, 9, 9] and all(len(values) == 3 for values in found.values())
    for first, whole, speed in zip(
        found["Seconds to first token"], found["Seconds total"], found["Inference speed in tokens/sec"], strict=True
    ):
        assert 0 < first < whole and speed == 9 / whole
    with pytest.raises(UsageError):
        llm.benchmark(num_iterations=0, prompt=ONCE)


def test_a_table_of_a_benchmark():
    table = benchmark_dict_to_markdown_table({"Seconds total": [1.0, 2.0, 3.0], "Tokens generated": [26]})
    head, rule, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    assert head == ["Metric", "Mean", "Std Dev"] and all(set(cell) == {"-"} for cell in rule)
    assert rows == [["Seconds total", "2.00", "1.00"], ["Tokens generated", "26.00", "nan"]]


# ---- loading and placing ---------------------------------------------------------------------------------------------
def test_nothing_is_read_before_it_is_placed(folder: Path, golden: str):
    llm = LLM.load(folder, distribute=None)
    assert llm.model is None
    for early in (lambda: llm.generate(ONCE), llm.state_dict, lambda: llm(torch.ones(1, 2, dtype=torch.int64))):
        with pytest.raises(UsageError, match="distribute"):
            early()
    llm.distribute(accelerator="cpu", precision="32-true")
    assert golden.startswith(ONCE + llm.generate(ONCE, top_k=1, max_new_tokens=20))
    llm.distribute(accelerator="cpu", precision="bf16-true")
    assert next(llm.model.parameters()).dtype == torch.bfloat16 and llm.generate(ONCE, max_new_tokens=3)
    llm.distribute(accelerator="cpu", quantize="bnb.nf4")
    assert golden.startswith(ONCE + llm.generate(ONCE, top_k=1, max_new_tokens=5))


def test_in_a_row_of_devices(folder: Path, golden: str):
    llm = LLM.load(folder, distribute=None)
    llm.distribute(accelerator="cpu", devices=2, generate_strategy="sequential", fixed_kv_cache_size=64)
    answer = llm.complete(ONCE, top_k=1, max_new_tokens=100)
    assert golden.startswith(ONCE + answer.text)
    assert answer.finish_reason == "length" and answer.usage.total_tokens == 64
    with pytest.raises(PromptError):
        llm.generate(ONCE * 20)
    llm.distribute(accelerator="cpu", fixed_kv_cache_size="max_model_supported")
    assert llm.engine.context == 512


SCRIPT = """
from lathe import LLM
if __name__ == "__main__":
    llm = LLM.load({folder!r}, distribute=None)
    llm.distribute(accelerator="cpu", devices=2, generate_strategy="tensor_parallel")
    print(llm.generate("Once upon a time", top_k=1, max_new_tokens=20))
    print(len(llm.complete("Once upon a time", temperature=1.0, max_new_tokens=20).tokens))
"""


def test_a_script_becomes_as_many_processes_as_share_each_layer(folder: Path, golden: str, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(folder)))
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, env=here, check=False)
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()  # of one process, though two have run it
    assert golden.startswith(ONCE + first) and second == "20"


@pytest.mark.parametrize(
    "asked",
    [
        {"accelerator": "tpu"},
        {"generate_strategy": "sequentially"},
        {"devices": 2},
        {"accelerator": "cpu", "precision": "bf16-mixed"},
        {"accelerator": "cpu", "quantize": "bnb.fp3"},
    ],
    ids=str,
)
def test_what_is_not_known_is_said(folder: Path, asked: dict):
    llm = LLM.load(folder, distribute=None)
    with pytest.raises(UsageError):
        llm.distribute(**asked)


def test_only_load_knows_where_weights_come_from(llm: LLM):
    made = LLM(llm.decoder, llm.tokenizer, llm.config)
    assert made.generate(ONCE, top_k=1, max_new_tokens=3) == llm.generate(ONCE, top_k=1, max_new_tokens=3)
    with pytest.raises(UsageError):
        made.distribute()


def test_random_weights(folder: Path, tmp_path: Path, monkeypatch):
    shape = tmp_path / "checkpoints/EleutherAI/pythia-14m"  # by the last part of a well-known repo's id, and offline
    shape.mkdir(parents=True)
    shutil.copy(folder / "config.json", shape)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(LLM.load("pythia-14m", init="random", tokenizer_dir=folder, device="cpu"))
    one, same, other = (llm.state_dict()["model.embed_tokens.weight"] for llm in made)
    assert torch.equal(one, same) and not torch.equal(one, other) and one.dtype == torch.float32
    assert made[0].generate("hi", max_new_tokens=3, top_k=1)
    made[0].save("saved")
    assert torch.equal(LLM.load("saved", device="cpu").logits([1, 5]), made[0].logits([1, 5]))
    with pytest.raises(UsageError):
        made[0].distribute(accelerator="cpu", quantize="nf4")
    with pytest.raises(UsageError, match="init"):
        LLM.load(folder, init="zeros")


def test_another_tokenizer(shared: Path, folder: Path, llm: LLM):
    same = LLM.load(folder, tokenizer_dir=shared / "data/models/stories260K-hf", device="cpu")
    assert same.generate(ONCE, top_k=1, max_new_tokens=9) == llm.generate(ONCE, top_k=1, max_new_tokens=9)
    with pytest.raises(UsageError, match="6,400"):
        LLM.load(folder, tokenizer_dir=shared / "data/tokenizers/minimind", device="cpu")


# ---- training --------------------------------------------------------------------------------------------------------
def test_scores_and_losses(learning: LLM, llm: LLM):
    texts = torch.tensor([[1, 403, 407, 261, 378], [1, 5, 9, 30, 2]])
    logits = learning(texts)
    assert logits.shape == (2, 5, 512) and logits.requires_grad
    for row, text in zip(logits, texts, strict=True):  # no text sees another
        assert torch.allclose(row, llm.logits(text.tolist()), atol=2e-5)
    assert torch.allclose(learning(texts[0]), logits[0], atol=1e-5)

    targets = texts.clone()
    targets[0, :3] = -100
    again, loss = learning(texts, target_ids=targets)
    wanted = F.cross_entropy(logits[:, :-1].reshape(-1, 512), targets[:, 1:].reshape(-1), ignore_index=-100)
    assert torch.equal(again, logits) and torch.allclose(loss, wanted, atol=1e-6)
    _, own = learning(texts, texts, lambda scores, ids: scores.sum() * 0 + ids.sum())
    assert own == texts[:, 1:].sum()
    assert learning(texts, torch.full_like(texts, -100))[1] == 0  # nothing is learned, and nothing is infinite
    for wrong in (torch.ones(1, 513, dtype=torch.int64), torch.ones(1, 0, dtype=torch.int64)):
        with pytest.raises(PromptError):
            learning(wrong)


def test_what_was_learned_is_said_and_saved(learning: LLM, tmp_path: Path):
    texts = learning.preprocessor.encode("The lathe turns the work, and the tool stands still.")[None]
    optimizer = torch.optim.AdamW(learning.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        _, loss = learning(texts, texts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    learning.save(tmp_path / "tuned")
    again = LLM.load(tmp_path / "tuned", device="cpu")
    assert torch.allclose(again.logits(texts[0].tolist()), learning.logits(texts[0].tolist()), atol=1e-5)
    asked = {"top_k": 1, "max_new_tokens": 8}
    assert learning.generate("The lathe", **asked) == again.generate("The lathe", **asked)


class Holder(nn.Module):
    """As a LightningModule has it."""

    def __init__(self, llm: LLM) -> None:
        super().__init__()
        self.llm = llm


def test_weights_go_by_their_names_wherever_the_object_stands(learning: LLM, folder: Path):
    names = set(learning.state_dict())
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"} <= names
    holder = Holder(learning)
    assert set(holder.state_dict()) == {f"llm.{name}" for name in names}
    state = {name: tensor + 1 for name, tensor in holder.state_dict().items()}
    holder.load_state_dict(state)
    assert all(torch.equal(tensor, state[f"llm.{name}"]) for name, tensor in learning.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        learning.load_state_dict({})
    other = LLM.load(folder, distribute=None)
    with pytest.raises(UsageError):
        other.load_state_dict(learning.state_dict())


@pytest.mark.parametrize("hand", ["ours", "LitGPT's"])
def test_weights_of_a_trainer_ours_and_litgpts(hand: str, learning: LLM, folder: Path, tmp_path: Path):
    if hand == "ours":
        with torch.no_grad():
            learning.model.model.norm.weight += 1
        state = Holder(learning).state_dict()
    else:
        state = {f"llm.{name}": t for name, t in torch.load(folder / "lit_model.pth", weights_only=True).items()}
    file = tmp_path / "last.ckpt"
    torch.save({"epoch": 1, "state_dict": state, "optimizer_states": [], "loops": {}}, file)
    llm = LLM.load(folder, distribute=None)
    llm.trainer_setup(trainer_ckpt=file)
    wanted = learning.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in llm.state_dict().items())
    assert all(parameter.requires_grad for parameter in llm.parameters())
    torch.save({"state_dict": {"llm.weight": torch.ones(1)}}, file)
    with pytest.raises(CheckpointError):
        llm.trainer_setup(trainer_ckpt=file)


def test_it_moves_as_a_module_does(learning: LLM):
    learning.generate(ONCE, max_new_tokens=2)
    learning.to(torch.bfloat16)
    assert learning.generate(ONCE, max_new_tokens=2)
    assert next(learning.parameters()).dtype == torch.bfloat16
    assert {id(p) for p in learning.parameters()} == {id(p) for p in learning.model.parameters()}


def test_lightnings_trainer_saves_and_goes_on(folder: Path, tmp_path: Path):
    """Two epochs are one, and one more from what was saved; and the file's weights are read without Lightning."""
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Tuned(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.llm = LLM.load(folder, distribute=None)

        def setup(self, stage: str) -> None:
            self.llm.trainer_setup()

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.llm(batch, batch)[1]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.llm.model.parameters(), lr=0.05, momentum=0.9)

    rows = torch.utils.data.DataLoader(torch.tensor([[1, 403, 407, 261], [1, 5, 9, 30], [1, 2, 17, 8]]))

    def fit(epochs: int, **more: object) -> tuple[Tuned, Any]:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        told = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, **quiet}
        trainer, tuned = lightning.Trainer(max_epochs=epochs, **told), Tuned()
        trainer.fit(tuned, rows, **more)
        return tuned, trainer

    whole, _ = fit(2)
    half, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    on, _ = fit(2, ckpt_path=tmp_path / "half.ckpt")
    wanted = whole.llm.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in on.llm.state_dict().items())
    assert not torch.equal(half.llm.state_dict()["model.norm.weight"], wanted["model.norm.weight"])
    read = LLM.load(folder, distribute=None)
    read.trainer_setup(trainer_ckpt=tmp_path / "half.ckpt")
    kept = half.llm.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in read.state_dict().items())
