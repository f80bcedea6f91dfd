"""A `config.json` becomes values with their types checked, and every key is accounted for; knows no family.

Both dialects are read: transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from lathe.errors import ConfigError, did_you_mean
from lathe.model.spec import Activation, Spec
from lathe.weights.rules import Rule

MISSING: Any = object()

# Keys that do not change what the model computes: bookkeeping, training, and what the tokenizer's files say. The last
# says how weights are packed in the files, which `checkpoint.quantized` reads.
NOISE = frozenset(
    """
    architectures model_type torch_dtype dtype transformers_version _name_or_path name_or_path auto_map use_cache
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id forced_bos_token_id
    forced_eos_token_id tokenizer_class initializer_range initializer_factor attention_dropout hidden_dropout
    classifier_dropout resid_pdrop embd_pdrop attn_pdrop embedding_dropout residual_dropout gradient_checkpointing
    pretraining_tp cache_implementation attn_implementation _attn_implementation _attn_implementation_autoset
    _flash_attn_2_enabled use_bfloat16 torchscript tf_legacy_loss unsloth_version unsloth_fixed transformers.js_config
    output_attentions output_hidden_states output_scores return_dict return_dict_in_generate pruned_heads
    chunk_size_feed_forward is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size
    tie_encoder_decoder finetuning_task id2label label2id num_labels task_specific_params problem_type prefix
    max_length min_length do_sample temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_beams num_beam_groups num_return_sequences
    diversity_penalty early_stopping remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens quantization_config
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
    """A lineage: what `architectures` and `model_type` call it, how its keys become a Spec, what it calls tensors.

    older: what either called it in files that came with code of their own. alias: other names of the same `model_type`,
    which transformers does not know; Lathe does not write them. spent: keys that say how tensors are packed
    in the files; Lathe unpacks them when it reads, and does not write them.
    """

    architecture: str
    model_type: str
    spec: Callable[[Keys], Spec]
    rules: Callable[[Spec], Sequence[Rule]] = lambda spec: ()
    older: tuple[str, ...] = ()
    alias: tuple[str, ...] = ()
    spent: tuple[str, ...] = ()


class Keys:
    """A configuration read key by key. It remembers which keys were taken; `check` complains of the others.

    inside: what stands before each key's name, in messages; file: where the keys come from, in messages; noise: keys
    that are known not to matter.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        inside: str = "",
        file: str = "config.json",
        noise: Collection[str] = NOISE,
    ) -> None:
        self.config, self.inside, self.file, self.noise = config, inside, file, noise
        self.taken: set[str] = set()
        self.parts: dict[str, Keys] = {}

    def take(self, name: str, default: Any = MISSING) -> Any:
        """The value of a key, or `default` where it is missing or null."""
        self.taken.add(name)
        value = self.config.get(name)
        if value is None:
            if default is MISSING:
                raise ConfigError(f'{self.file} has no "{self.inside}{name}".', "The model cannot be built without it.")
            return default
        return value

    def _says(self, name: str, default: Any) -> bool:
        """Whether a key that may be null has a value, the file's or the default."""
        self.taken.add(name)
        return self.config.get(name, default) is not None

    def size(self, name: str, default: Any = MISSING, least: int = 1, most: int | None = None) -> int:
        """A whole number of at least `least`, and at most `most` where it is given."""
        value = self.take(name, default)
        if type(value) is not int or value < least or (most is not None and value > most):
            bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise self.wrong(name, value, f"a whole number {bounds}")
        return value

    def size_or_none(self, name: str, default: int | None = None) -> int | None:
        """A whole number of at least 1; None where the file says null, `default` where it says nothing."""
        return self.size(name, default) if self._says(name, default) else None

    def real(self, name: str, default: Any = MISSING, above: float = -math.inf) -> float:
        """A finite number above `above`."""
        value = self.take(name, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= above:
            raise self.wrong(name, value, "a number" if math.isinf(above) else f"a number above {above}")
        return float(value)

    def real_or_none(self, name: str, default: float | None = None, above: float = -math.inf) -> float | None:
        """A finite number above `above`; None where the file says null, `default` where it says nothing."""
        return self.real(name, default, above) if self._says(name, default) else None

    def flag(self, name: str, default: Any = MISSING) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def numbers(self, name: str, default: Any = MISSING, count: int | None = None) -> tuple[float, ...]:
        """A list of numbers, `count` of them where it is given."""
        value = self.take(name, default)
        sound = isinstance(value, (list, tuple)) and all(type(v) in (int, float) for v in value)
        if not sound or count not in (None, len(value)):
            raise self.wrong(name, value, "a list of numbers" if count is None else f"a list of {count} numbers")
        return tuple(value)

    def choices(self, name: str, allowed: Sequence[str], count: int, default: Sequence[str]) -> tuple[str, ...]:
        """A list with one of the words in `allowed` per layer."""
        value = self.take(name, default)
        if not isinstance(value, (list, tuple)) or len(value) != count or any(v not in allowed for v in value):
            raise self.wrong(name, value, f"a list of {count}, each one of {', '.join(allowed)}")
        return tuple(value)

    def activation(self, name: str, default: str) -> Activation:
        value = self.take(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.wrong(name, value, f"one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def expect(self, name: str, *allowed: Any) -> None:
        """A switch of which only these values are understood; missing or null is fine."""
        value = self.take(name, None)
        if value is not None and value not in allowed:
            raise self.wrong(name, value, " or ".join(map(json.dumps, allowed)))

    def ignore(self, *names: str) -> None:
        """Keys that do not change what the model computes, in this family."""
        self.taken.update(names)

    def part(self, name: str) -> Keys:
        """A nested object, its keys accounted for with the rest; the same one each time."""
        if name not in self.parts:
            value = self.take(name, {})
            if not isinstance(value, Mapping):
                raise self.wrong(name, value, "an object")
            self.parts[name] = Keys(value, f"{self.inside}{name}.", self.file, ())
        return self.parts[name]

    def wrong(self, name: str, value: Any, expected: str) -> ConfigError:
        shown = json.dumps(value, default=str)
        shown = shown if len(shown) < 80 else shown[:77] + "..."
        return ConfigError(f'{self.file} has "{self.inside}{name}": {shown}.', f"It should be {expected}.")

    def check(self) -> None:
        """Every key must have been taken, or be known not to matter."""
        for part in self.parts.values():
            part.check()
        known = {*self.taken, *self.noise}
        left = sorted(str(key) for key, value in self.config.items() if key not in known and value is not None)
        if left:
            names = ", ".join(f'"{self.inside}{name}"' for name in left)
            raise ConfigError(
                f"{self.file} has keys that this version does not understand: {names}.",
                "Loading anyway could give wrong answers.",
                did_you_mean(left[0], self.taken)
                or f"If it does not matter for the model, remove it from {self.file}.",
            )
