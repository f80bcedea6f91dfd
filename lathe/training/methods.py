"""The methods by which weights move, by name; imports no torch, so that options and LitGPT's words go by them."""

from __future__ import annotations

from typing import Literal

Own = Literal["adamw", "adamw-8bit", "muon", "adafactor"]
Torchs = Literal["adadelta", "adagrad", "adam", "adamax", "asgd", "nadam", "radam", "rmsprop", "sgd"]
Name = Literal[Own, Torchs]
CLASSES: dict[Torchs, str] = {  # in torch.optim
    "adadelta": "Adadelta",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adamax": "Adamax",
    "asgd": "ASGD",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "sgd": "SGD",
}
