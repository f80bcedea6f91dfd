"""A `config.json` becomes values with their types checked, and every key is accounted for; knows no family.

Both dialects are read: transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from lathe.errors import ConfigError, did_you_mean
from lathe.model.spec import Activation, Dynamic, Linear, Llama3, LongRope, Rope, Scaling, Spec, Yarn
from lathe.weights.rules import Rule

MISSING: Any = object()

# Keys that do not change what the model computes: bookkeeping, training, and what the tokenizer's files say.
NOISE = frozenset(
    """
    architectures model_type torch_dtype dtype transformers_version _name_or_path name_or_path auto_map use_cache
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id forced_bos_token_id
    forced_eos_token_id tokenizer_class initializer_range initializer_factor attention_dropout hidden_dropout
    classifier_dropout resid_pdrop embd_pdrop attn_pdrop embedding_dropout residual_dropout gradient_checkpointing
    pretraining_tp cache_implementation attn_implementation _attn_implementation _attn_implementation_autoset
    _flash_attn_2_enabled use_bfloat16 torchscript tf_legacy_loss unsloth_version unsloth_fixed
    output_attentions output_hidden_states output_scores return_dict return_dict_in_generate pruned_heads
    chunk_size_feed_forward is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size
    tie_encoder_decoder finetuning_task id2label label2id num_labels task_specific_params problem_type prefix
    max_length min_length do_sample temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_beams num_beam_groups num_return_sequences
    diversity_penalty early_stopping remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens
    """.split()
)

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
assert set(ACTIVATIONS.values()) == set(get_args(Activation))


@dataclass(frozen=True)
class Family:
    """A lineage: what `architectures` and `model_type` call it, how its keys become a Spec, what it calls tensors."""

    architecture: str
    model_type: str
    spec: Callable[[Keys], Spec]
    rules: Callable[[Spec], Sequence[Rule]] = lambda spec: ()


class Keys:
    """A configuration read key by key. It remembers which keys were taken; `check` complains of the others."""

    def __init__(self, config: Mapping[str, Any], inside: str = "") -> None:
        self.config, self.inside = config, inside
        self.taken: set[str] = set()
        self.parts: list[Keys] = []

    def take(self, name: str, default: Any = MISSING) -> Any:
        """The value of a key, or `default` where it is missing or null."""
        self.taken.add(name)
        value = self.config.get(name)
        if value is None:
            if default is MISSING:
                raise ConfigError(f'config.json has no "{self.inside}{name}".', "The model cannot be built without it.")
            return default
        return value

    def size(self, name: str, default: Any = MISSING) -> int:
        """A whole number of at least 1."""
        value = self.take(name, default)
        if type(value) is not int or value < 1:
            raise self.wrong(name, value, "a whole number of at least 1")
        return value

    def size_or_none(self, name: str, default: int | None = None) -> int | None:
        """A whole number of at least 1, or None where the key is missing or null."""
        return default if self.take(name, None) is None else self.size(name)

    def real(self, name: str, default: Any = MISSING) -> float:
        """A finite number."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.wrong(name, value, "a number")
        return float(value)

    def real_or_none(self, name: str) -> float | None:
        return None if self.take(name, None) is None else self.real(name)

    def flag(self, name: str, default: Any = MISSING) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def numbers(self, name: str, default: Any = MISSING) -> tuple[float, ...]:
        """A list of numbers."""
        value = self.take(name, default)
        if not isinstance(value, (list, tuple)) or any(
            isinstance(v, bool) or not isinstance(v, (int, float)) for v in value
        ):
            raise self.wrong(name, value, "a list of numbers")
        return tuple(value)

    def choices(self, name: str, allowed: Sequence[str], count: int, default: Sequence[str]) -> tuple[str, ...]:
        """A list with one of the words in `allowed` per layer."""
        value = self.take(name, default)
        if not isinstance(value, (list, tuple)) or len(value) != count or any(v not in allowed for v in value):
            raise self.wrong(name, value, f"a list of {count}, each one of {', '.join(allowed)}")
        return tuple(value)

    def activation(self, name: str, default: str) -> Activation:
        value = self.take(name, default)
        if value not in ACTIVATIONS:
            raise self.wrong(name, value, f"one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def expect(self, name: str, *allowed: Any) -> None:
        """A switch of which only these values are understood; missing or null is fine."""
        value = self.take(name, None)
        if value is not None and value not in allowed:
            raise self.wrong(name, value, "or ".join(f"{v!r} " for v in allowed).strip())

    def ignore(self, *names: str) -> None:
        """Keys that do not change what the model computes, in this family."""
        self.taken.update(names)

    def part(self, name: str) -> Keys:
        """A nested object, its keys accounted for with the rest."""
        value = self.take(name, {})
        if not isinstance(value, Mapping):
            raise self.wrong(name, value, "an object")
        part = Keys(value, f"{self.inside}{name}.")
        self.parts.append(part)
        return part

    def wrong(self, name: str, value: Any, expected: str) -> ConfigError:
        shown = repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
        return ConfigError(f'config.json has "{self.inside}{name}": {shown}.', f"It should be {expected}.")

    def check(self) -> None:
        """Every key must have been taken, or be known not to matter."""
        for part in self.parts:
            part.check()
        left = sorted(k for k in self.config if k not in self.taken and k not in NOISE and self.config[k] is not None)
        if left:
            names = ", ".join(f'"{self.inside}{name}"' for name in left)
            raise ConfigError(
                f"config.json has keys that this version does not understand: {names}.",
                "Loading anyway could give wrong answers.",
                did_you_mean(left[0], self.taken) or "If it does not matter for the model, remove it from config.json.",
            )

    def rope(
        self, channels: int, context: int, *, base: float = 10_000.0, partial: float = 1.0, interleaved: bool = False
    ) -> Rope:
        """Rotary positions in either dialect. `base`, `partial`: the family's defaults; `channels`: of one head."""
        new = self.part("rope_parameters")
        old = self.part("rope_scaling")
        base = new.real("rope_theta", self.real("rope_theta", base))
        partial = new.real("partial_rotary_factor", self.real("partial_rotary_factor", partial))
        return self.turned(new if new.config else old, int(channels * partial), context, base, interleaved)

    def turned(self, part: Keys, channels: int, context: int, base: float, interleaved: bool = False) -> Rope:
        """A Rope from the object that holds its scaling."""
        self.ignore("original_max_position_embeddings")
        original = part.config.get("original_max_position_embeddings") or self.config.get(
            "original_max_position_embeddings"
        )
        return Rope(base, channels, scaling(part, context, original or context), interleaved)


def scaling(part: Keys, context: int, original: int) -> Scaling | None:
    """The scaling that `rope_scaling` or `rope_parameters` describes, or None.

    context: the longest sequence after scaling; original: the longest of the first training.
    """
    part.ignore("type", "rope_type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    kind = part.config.get("rope_type") or part.config.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return Linear(part.real("factor"))
    if kind == "dynamic":
        return Dynamic(part.real("factor"), context)
    if kind == "llama3":
        return Llama3(part.real("factor"), part.real("low_freq_factor"), part.real("high_freq_factor"), original)
    factor = part.real("factor", context / original)
    if kind == "yarn":
        attention = part.real("attention_factor", _yarn_attention(factor, part))
        fast, slow = part.real("beta_fast", 32.0), part.real("beta_slow", 1.0)
        return Yarn(factor, original, fast, slow, attention, part.flag("truncate", True))
    if kind in ("longrope", "su"):  # "su" is what the first Phi-3 files called it
        grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        attention = part.real("attention_factor", grown)
        return LongRope(part.numbers("short_factor"), part.numbers("long_factor"), original, attention)
    raise part.wrong("rope_type", kind, "default, linear, dynamic, llama3, yarn or longrope")


def mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's correction of the scores' temperature for a context `factor` times longer. arXiv:2309.00071, 3.4"""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_attention(factor: float, part: Keys) -> float:
    weight, weight_all = part.real("mscale", 0.0), part.real("mscale_all_dim", 0.0)
    return mscale(factor, weight) / mscale(factor, weight_all) if weight and weight_all else mscale(factor)
