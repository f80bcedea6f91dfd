"""The loop that Lightning's Trainer runs over an `LLM`, as LitGPT's documentation has it: its object, or ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader


def losses(kind: Any, model: str | Path, rows: torch.Tensor) -> list[float]:
    """The loss of each step. kind: the class of the object. rows: steps T, token ids."""

    class Tuned(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.llm, self.losses = kind.load(model, distribute=None), []

        def setup(self, stage: str) -> None:
            self.llm.trainer_setup()

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            _, loss = self.llm(input_ids=batch, target_ids=batch)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.llm.model.parameters(), lr=1e-3)

    tuned = Tuned()
    told: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False}
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    lightning.Trainer(**told, **quiet).fit(tuned, DataLoader(rows, batch_size=1))
    return tuned.losses
