"""PEFT's `adapter_config.json` becomes settings of a LoRA, and back; knows no tensor. Written after PEFT 0.21."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lathe.errors import ConfigError
from lathe.families.keys import Keys
from lathe.transforms.terms import Lora, Names

FILE = "adapter_config.json"
# Bookkeeping, how the numbers were first chosen, and how they are computed.
NOISE = frozenset(
    """
    peft_type auto_mapping base_model_name_or_path revision inference_mode task_type peft_version megatron_config
    megatron_core eva_config corda_config lora_ga_config qalora_group_size fan_in_fan_out loftq_config runtime_config
    layers_pattern
    """.split()
)
EXPERTS = ("gate_up_proj", "down_proj")  # parameters in which transformers keeps the matrices of all experts
# First numbers that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ) take from the base what
# they put into the adapter, so that it belongs to a base that is nowhere on disk.
BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")


def lora(config: Mapping[str, Any]) -> Lora:
    """The settings in a parsed `adapter_config.json`.

    Raises:
        ConfigError: it is no LoRA, or has a key that changes the result and is not understood.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ConfigError(
            f'{FILE} has "peft_type": {kind!r:.60}.',
            "Lathe reads PEFT's LORA, with rank-stabilised scaling and DoRA.",
            "Merge the adapter into its base with PEFT (merge_and_unload), and open the result." if kind else "",
        )
    # What is off, or empty, asks for nothing, whatever version of PEFT it comes from.
    asked = {key: value for key, value in config.items() if value is not False and value not in (None, [], {}, "")}
    keys = Keys(asked, file=FILE, noise=NOISE)
    keys.expect("init_lora_weights", *BEGINNINGS)
    parameters = _list(keys, "target_parameters")
    if not all(name.endswith(EXPERTS) for name in parameters):
        raise keys.wrong("target_parameters", list(parameters), f"names that end in {' or '.join(EXPERTS)}")
    bias: Any = keys.take("bias", "none")
    if bias not in ("none", "lora_only", "all"):
        raise keys.wrong("bias", bias, '"none", "lora_only" or "all"')
    read = Lora(
        rank=keys.size("r", 8),
        alpha=keys.real("lora_alpha", 8),
        targets=_names(keys, "target_modules"),
        excluded=_names(keys, "exclude_modules"),
        layers=_layers(keys),
        ranks={name: keys.part("rank_pattern").size(name) for name in _patterns(keys, "rank_pattern")},
        alphas={name: keys.part("alpha_pattern").real(name) for name in _patterns(keys, "alpha_pattern")},
        stabilised=keys.flag("use_rslora", False),
        dora=keys.flag("use_dora", False),
        dropout=keys.real("lora_dropout", 0.0),
        bias=bias,
        own_bias=keys.flag("lora_bias", False),
        whole=_list(keys, "modules_to_save"),
    )
    if not 0 <= read.dropout <= 1:
        raise keys.wrong("lora_dropout", read.dropout, "a number from 0 to 1")
    keys.check()
    return read


def _names(keys: Keys, name: str) -> Names:
    value = keys.take(name, [])
    return value if isinstance(value, str) else _list(keys, name)


def _list(keys: Keys, name: str) -> tuple[str, ...]:
    value = keys.take(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise keys.wrong(name, value, "a list of names")
    return tuple(value)


def _patterns(keys: Keys, name: str) -> list[str]:
    """The expressions that are this part's keys, simple ones only: others may take for ever."""
    found = list(keys.part(name).config)
    for pattern in found:
        simple = len(pattern) < 300 and len(re.findall(r"[*+{?]", pattern)) <= 2 and not re.search(r"\)[*+{?]", pattern)
        try:
            re.compile(pattern if simple else "(")
        except re.error:
            raise keys.wrong(name, pattern, "expressions for names, with at most two repetitions each") from None
    return found


def _layers(keys: Keys) -> tuple[int, ...] | None:
    value = keys.take("layers_to_transform", None)
    value = [value] if type(value) is int else value
    if value is not None and not (isinstance(value, list) and all(type(item) is int for item in value)):
        raise keys.wrong("layers_to_transform", value, "a number or a list of numbers")
    return None if value is None else tuple(value)


def told(settings: Lora, base: str, transposed: bool) -> dict[str, Any]:
    """What `adapter_config.json` says of these settings, their names being those of the family's modules.

    transposed: whether the modules keep their matrices as inputs x outputs (GPT-2).
    """
    named = {"target_modules": settings.targets, "exclude_modules": settings.excluded or None}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        **{key: value if isinstance(value, str) or value is None else list(value) for key, value in named.items()},
        "rank_pattern": dict(settings.ranks),
        "alpha_pattern": dict(settings.alphas),
        "use_rslora": settings.stabilised,
        "use_dora": settings.dora,
        "lora_dropout": settings.dropout,
        "bias": settings.bias,
        "lora_bias": settings.own_bias,
        "modules_to_save": list(settings.whole) or None,
        "layers_to_transform": None if settings.layers is None else list(settings.layers),
        "fan_in_fan_out": transposed,
        "init_lora_weights": True,
        "inference_mode": True,
    }
