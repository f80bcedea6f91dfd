"""Let LitGPT and Lightning write a checkpoint of every kind they have, of one small model, each by its own script.

    python tests/oracles/litgpt_kinds.py BASE OUT

in LitGPT's environment. BASE: a checkpoint folder of LitGPT's; OUT: where to. Prints, as JSON on the last line, for
each file or folder it wrote the logits that LitGPT has for TOKENS with what is in it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}  # pretraining compiles its model: not worth it

import lightning as L
import torch
from lightning.fabric.strategies import ModelParallelStrategy
from lightning.pytorch.callbacks import ModelCheckpoint
from litgpt import GPT, Config, pretrain
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import JSON, DataModule
from litgpt.finetune import full
from litgpt.scripts.convert_lit_checkpoint import qkv_reassemble
from litgpt.utils import chunked_cross_entropy, copy_config_files, save_config
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

BASE, OUT = map(Path, sys.argv[1:3])
CONFIG = Config.from_checkpoint(BASE)
TOKENS = [1, 403, 407, 261, 378, 5, 17]
SHORT = {"lr_warmup_steps": 1, "global_batch_size": 2, "micro_batch_size": 1}


class Rows(DataLoader):
    """Random rows of tokens; it says where it is, as LitData's loader does."""

    def state_dict(self) -> dict[str, Any]:
        return {"dataset": {"current_epoch": 0}, "num_samples_yielded": [2]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


class Random(DataModule):
    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        self.rows = torch.randint(CONFIG.vocab_size, (4, max_seq_length + 1))
        self.batch = batch_size

    def train_dataloader(self) -> Rows:
        return Rows(self.rows, batch_size=self.batch)

    val_dataloader = train_dataloader


class Module(L.LightningModule):
    """A model in Lightning's Trainer, as LitGPT's tutorial has it."""

    def __init__(self, config: Config, checkpoint_dir: Path, train: TrainArgs, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = GPT(config)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return chunked_cross_entropy(self.model(batch[:, :-1]), batch[:, 1:])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def base() -> GPT:
    model = GPT(CONFIG)
    model.load_state_dict(torch.load(BASE / "lit_model.pth", weights_only=True))
    return model


def describe(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    copy_config_files(BASE, folder)
    save_config(CONFIG, folder)


def finetuned() -> None:
    """{"model": ...}, and with optimizer, scheduler and counters at each step."""
    sys.argv[1:] = ["finetune_full", str(BASE)]  # which the script writes down beside what it saves
    (OUT / "data.json").write_text(json.dumps([{"instruction": "Tell a story.", "output": "Once upon a time"}] * 16))
    train = TrainArgs(save_interval=2, max_steps=4, epochs=1, max_seq_length=64, **SHORT)
    data = JSON(OUT / "data.json", val_split_fraction=0.25, num_workers=0)
    full.setup(BASE, OUT / "full", "32-true", data=data, train=train, eval=EvalArgs(max_new_tokens=2, max_iters=1))


def pretrained() -> None:
    """The whole state of training, at each step and at the end."""
    sys.argv[1:] = ["pretrain", "pythia-14m"]
    train = TrainArgs(save_interval=1, max_tokens=64, max_norm=1.0, max_seq_length=8, min_lr=4e-5, **SHORT)
    pretrain.setup(
        "pythia-14m", CONFIG, OUT / "pretrain", "32-true", initial_checkpoint_dir=BASE, data=Random(), train=train,
        eval=EvalArgs(max_iters=1), devices=1, tokenizer_dir=BASE, logger_name="csv",
    )  # fmt: skip


def trained(place: Path, **options: Any) -> None:
    """A Trainer's checkpoint, with everything that it keeps beside the tensors."""
    module = Module(CONFIG, checkpoint_dir=BASE, train=TrainArgs())
    module.model.load_state_dict(base().state_dict())
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_progress_bar=False, default_root_dir=place,
        callbacks=[ModelCheckpoint(place, "last", every_n_train_steps=1)], **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.randint(CONFIG.vocab_size, (4, 9)), batch_size=1))


def cut(model: Any, mesh: Any) -> Any:
    """Each process keeps a part of every tensor."""
    for block in (model.model if isinstance(model, Module) else model).transformer.h:
        fully_shard(block, mesh=mesh["data_parallel"])
    return fully_shard(model, mesh=mesh["data_parallel"])


def sharded() -> None:
    """Two processes, each of which writes its shards of model and optimizer."""
    sys.argv[1:] = [str(BASE), str(OUT)]  # with which the other is started
    strategy = ModelParallelStrategy(
        cut, data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=True
    )
    fabric = L.Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    model = fabric.setup(base())
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters()))
    model(torch.tensor([TOKENS])).sum().backward()
    optimizer.step()
    fabric.save(OUT / "sharded" / "lit_model.pth", {"model": model, "optimizer": optimizer, "iter_num": 3})
    if fabric.global_rank == 0:
        describe(OUT / "sharded")


def renamed() -> None:
    """As LitGPT kept queries, keys and values until 2024, and as torch.compile leaves its mark on names."""
    state = torch.load(BASE / "lit_model.pth", weights_only=True)
    old = {
        name.replace("attn.qkv", "attn.attn"): qkv_reassemble(tensor, CONFIG) if "attn.qkv" in name else tensor
        for name, tensor in state.items()
    }
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    for kind, tensors in (("interleaved", old), ("compiled", {"model": compiled})):
        describe(OUT / kind)
        torch.save(tensors, OUT / kind / "lit_model.pth")


def logits(state: dict[str, torch.Tensor]) -> list[list[float]]:
    model = GPT(CONFIG).eval()
    model.load_state_dict(state)
    with torch.inference_mode():
        return model(torch.tensor([TOKENS]))[0].tolist()


def said() -> dict[str, list[list[float]]]:
    """What LitGPT answers with each, read as Lightning and torch read it."""
    found = {}
    for file in sorted(OUT.rglob("lit_model.pth")):
        if file.is_dir():
            dcp_to_torch_save(file, OUT / "joined")
        tree = torch.load(OUT / "joined" if file.is_dir() else file, weights_only=False)
        state = {name.removeprefix("_orig_mod."): tensor for name, tensor in tree.get("model", tree).items()}
        found[str(file.parent.relative_to(OUT))] = logits(state)
    for file in OUT.glob("trainer/*.ckpt"):
        state = torch.load(file, weights_only=False)["state_dict"]
        found[str(file.relative_to(OUT))] = logits({name.removeprefix("model."): state[name] for name in state})
    return found


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    if "LOCAL_RANK" not in os.environ:
        finetuned()
        pretrained()
        trained(OUT / "trainer")
        renamed()
    sharded()  # after which there are two processes
    if os.environ["LOCAL_RANK"] == "0":
        print(json.dumps(said()))
