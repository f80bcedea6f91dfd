"""The 46 recipes of LitGPT's config_hub, from the facts in data/litgpt_recipes.csv: text by the end of its address.

A recipe there is the tree of a command's options, with a data set and an optimizer as class_path and init_args.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

PARTS = ("query", "key", "value", "projection", "mlp", "head")
FEW = ("query", "value")
ADAMW = "torch.optim.AdamW"


def recipes() -> dict[str, str]:
    """finetune/MODEL/METHOD.yaml and pretrain/NAME.yaml."""
    with Path(__file__).with_name("data").joinpath("litgpt_recipes.csv").open(encoding="utf-8") as file:
        found = {f"finetune/{row['recipe']}.yaml": finetuning(row) for row in csv.DictReader(file)}
    found |= {f"pretrain/{name}.yaml": pretraining(**more) for name, more in PRETRAINING.items()}
    return {name: yaml.safe_dump(recipe, sort_keys=False) for name, recipe in found.items()}


def optimizer(lr: float, decay: float) -> dict[str, Any]:
    return {"class_path": ADAMW, "init_args": {"lr": lr, "weight_decay": decay, "betas": [0.9, 0.95]}}


def finetuning(row: dict[str, str]) -> dict[str, Any]:
    """A row of the table as the recipe that it was taken from."""
    number = {name: yaml.safe_load(told) if told else None for name, told in row.items()}
    folder, method = row["recipe"].split("/")
    data: dict[str, Any] = {
        "mask_prompt": False,
        "prompt_style": "alpaca",
        "ignore_index": -100,
        "seed": 42,
        "num_workers": 4,
    }
    if row["held"]:
        data["val_split_fraction"] = number["held"]
    if number["held"] == 0.05:
        data["download_dir"] = "data/alpaca2k"
    made: dict[str, Any] = {
        "checkpoint_dir": f"checkpoints/{row['model']}",
        "out_dir": f"out/finetune/{method}-{folder}",
        "precision": "bf16-true",
        "devices": number["devices"],
        "num_nodes": 1,
        "data": {"class_path": "litgpt.data.Alpaca2k", "init_args": data},
        "train": {
            "save_interval": number["save"],
            "log_interval": 1,
            "global_batch_size": number["global"],
            "micro_batch_size": number["micro"],
            "lr_warmup_steps": number["warmup"],
            "epochs": number["epochs"],
            "max_tokens": None,
            "max_steps": number["steps"],
            "max_seq_length": 512,
            "tie_embeddings": None,
            "max_norm": None,
            "min_lr": 6e-5,
        },
        "eval": {"interval": number["interval"], "max_new_tokens": 100, "max_iters": 100}
        | {"initial_validation": False, "final_validation": True},
        "logger_name": "csv",
        "seed": 1337,
        "optimizer": optimizer(2e-4, number["decay"]),
    }
    if method == "full":
        return {**made, "resume": False}
    made |= {"quantize": "bnb.nf4" if method == "qlora" else None, "lora_r": number["rank"], "lora_alpha": 16}
    made["lora_dropout"] = number["dropout"]
    return made | {f"lora_{part}": row["parts"] == "all" or part in FEW for part in PARTS}


STORIES = {
    "name": "stories15M",
    "hf_config": {},
    "block_size": 256,
    "padded_vocab_size": 32000,
    "n_layer": 6,
    "n_head": 6,
    "n_query_groups": 6,
    "n_embd": 288,
    "head_size": 48,
    "rotary_percentage": 1.0,
    "scale_embeddings": False,
    "parallel_residual": False,
    "bias": False,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "intermediate_size": 768,
}
SMALL = {"global_batch_size": 125, "micro_batch_size": 5, "lr_warmup_steps": 100, "min_lr": "6e-5"}
LARGE = {"lr_warmup_steps": 2000, "max_seq_length": 2048, "min_lr": 4e-5, "max_tokens": 3_000_000_000_000}
TALES = {"global_batch_size": 512, "micro_batch_size": 128, "lr_warmup_steps": 1000, "max_seq_length": 256}
PRETRAINING: dict[str, dict[str, Any]] = {
    "debug": {
        "model": "pythia-14m",
        "out": "debug",
        "data": "TinyStories",
        "tokenizer": "EleutherAI/pythia-14m",
        "lr": "6e-4",
        "train": {**SMALL, "max_tokens": 100_000_000},
    },
    "microllama": {
        "model": "micro-llama-300M",
        "out": "micro-llama",
        "data": "MicroLlama",
        "lr": "4e-4",
        "train": {**LARGE, "global_batch_size": 48, "micro_batch_size": 12},
    },
    "tinyllama": {
        "model": "tiny-llama-1.1b",
        "out": "tiny-llama",
        "data": "TinyLlama",
        "lr": "4e-4",
        "train": {**LARGE, "global_batch_size": 512, "micro_batch_size": 4},
    },
    "tinystories": {
        "model": "stories15M",
        "shape": STORIES,
        "data": "TinyStories",
        "lr": 5e-4,
        "logger": "csv",
        "interval": 2000,
        "train": {**TALES, "max_tokens": 9_700_000_000, "tie_embeddings": True, "min_lr": 0.0},
    },
}


def pretraining(
    model: str,
    data: str,
    lr: Any,
    train: dict[str, Any],
    tokenizer: str = "meta-llama/Llama-2-7b-hf",
    shape: dict[str, Any] | None = None,
    logger: str = "tensorboard",
    out: str = "stories15M",
    interval: int = 1000,
) -> dict[str, Any]:
    usual = {"save_interval": 1000, "log_interval": 1, "epochs": None, "max_steps": None, "max_norm": 1.0}
    looks = {"interval": interval, "max_new_tokens": None, "max_iters": 100, "initial_validation": False}
    return {
        "model_name": model,
        "model_config": shape,
        "out_dir": f"out/pretrain/{out}",
        "precision": "bf16-mixed",
        "initial_checkpoint_dir": None,
        "resume": False,
        "data": data,
        "train": {**usual, "tie_embeddings": None, **train},
        "eval": {**looks, "final_validation": False},
        "optimizer": optimizer(lr, 0.1),
        "devices": "auto",
        "num_nodes": 1,
        "tokenizer_dir": f"checkpoints/{tokenizer}",
        "logger_name": logger,
        "seed": 42,
    }
