"""Let LitGPT make adapters of each kind for small models, as its finetuning scripts save them, and answer with them.

    python tests/oracles/litgpt_adapters.py OUT TOKENS

in LitGPT's environment. OUT: where to; TOKENS: as JSON. Prints, as JSON on the last line, the logits of each base and
of each adapter by the names of their folders, and what LitGPT raises, or builds, for two models that it cannot adapt.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from litgpt import adapter, adapter_v2, lora, model
from litgpt.utils import save_config

OUT, TOKENS = Path(sys.argv[1]), json.loads(sys.argv[2])
SMALL: dict[str, Any] = {
    "n_layer": 4, "n_embd": 32, "n_head": 4, "intermediate_size": 48, "padded_vocab_size": 96, "vocab_size": 96,
    "block_size": 64, "norm_eps": 0.03,
}  # fmt: skip
LLAMA = {"bias": False, "norm_class_name": "RMSNorm", "parallel_residual": False, "rotary_percentage": 1.0}
MODELS: dict[str, dict[str, Any]] = {
    "grouped": {**LLAMA, "mlp_class_name": "LLaMAMLP", "n_query_groups": 2},
    "one-key": {**LLAMA, "mlp_class_name": "LLaMAMLP", "n_query_groups": 1},
    "neox": {"mlp_class_name": "GptNeoxMLP", "rotary_percentage": 0.25},
    "experts": {
        **LLAMA, "mlp_class_name": "LLaMAMoE", "n_query_groups": 2, "n_expert": 4, "n_expert_per_token": 2,
        "moe_intermediate_size": 24,
    },
}  # fmt: skip
EVERYWHERE = dict.fromkeys(("lora_projection", "lora_mlp", "lora_head"), True)
LORAS: dict[str, dict[str, Any]] = {
    "lora": {"lora_r": 3, "lora_alpha": 16, "lora_dropout": 0.05, "lora_query": True, "lora_value": True},
    "lora-everywhere": {
        "lora_r": 4, "lora_alpha": 2, "lora_query": True, "lora_key": True, "lora_value": True, **EVERYWHERE,
    },
}  # fmt: skip


def answer(found: torch.nn.Module) -> list[list[float]]:
    with torch.inference_mode():
        return found.eval()(torch.tensor([TOKENS]))[0].tolist()


def randomised(found: torch.nn.Module, chosen: Callable[[str, Any], bool]) -> torch.nn.Module:
    with torch.no_grad():
        for name, tensor in found.named_parameters():
            if chosen(name, tensor):
                tensor.add_(torch.randn(tensor.shape) * 0.2)
    return found


def save(name: str, file: str, found: torch.nn.Module, chosen: Callable[[str, Any], bool], told: dict[str, Any]) -> Any:
    """As the scripts do: what their filters let through, under "model", and the options beside it."""
    folder = OUT / name
    folder.mkdir()
    torch.save({"model": {k: v for k, v in found.state_dict().items() if chosen(k, v)}}, folder / file)
    (folder / "hyperparameters.yaml").write_text(yaml.safe_dump(told))
    return answer(found)


def made() -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for name, changes in MODELS.items():
        shape = {**SMALL, **changes}
        config = model.Config(name=name, **shape)
        base = randomised(model.GPT(config), lambda *_: True)
        (OUT / name).mkdir()
        torch.save(base.state_dict(), OUT / name / "lit_model.pth")
        save_config(config, OUT / name)
        answers[name] = answer(base)
        told = {"checkpoint_dir": str(OUT / name)}
        for kind, options in LORAS.items():
            found = lora.GPT(lora.Config(name=name, **shape, **options))
            found.load_state_dict(base.state_dict(), strict=False)
            randomised(found, lora.lora_filter)
            options = {f"lora_{key}": False for key in ("query", "key", "value", "projection", "mlp", "head")} | options
            answers[f"{name}-{kind}"] = save(
                f"{name}-{kind}", "lit_model.pth.lora", found, lora.lora_filter, {**told, **options}
            )
        for kind, of in (("adapter", adapter), ("adapter_v2", adapter_v2)):
            if (name, kind) == ("experts", "adapter_v2"):
                continue  # it scales the router too
            found = of.GPT(of.Config(name=name, **shape))
            found.load_state_dict(base.state_dict(), strict=False)
            randomised(found, of.adapter_filter)
            answers[f"{name}-{kind}"] = save(f"{name}-{kind}", f"lit_model.pth.{kind}", found, of.adapter_filter, told)
    return answers


def cannot() -> dict[str, str]:
    """What becomes of LoRA on a mixture with shared experts, and on latent attention."""
    options = {**SMALL, **LORAS["lora-everywhere"], **LLAMA}
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    experts = {**MODELS["experts"], "n_shared_expert": 1}
    said = {
        "latent": type(
            lora.GPT(lora.Config(**options, latent_attention=latent, mlp_class_name="LLaMAMLP"))
            .transformer.h[0]
            .attn.qkv
        ).__name__
    }
    try:
        answer(lora.GPT(lora.Config(**{**options, **experts})))
    except AttributeError as error:
        said["shared"] = str(error)
    return said


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps({"answers": made(), "cannot": cannot()}))
