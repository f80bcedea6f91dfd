"""The name of a parameter becomes how ranks divide it: which of its dimensions, and by what; knows no rank.

`PLAN` says it as data. A parameter that it does not name is an error, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from lathe.errors import UsageError


@dataclass(frozen=True)
class Cut:
    """unit: what the dimension `dim` consists of and is divided by. None: every rank holds the whole; `once`: and only
    the first rank's counts, because ranks' results are added."""

    unit: Literal["heads", "kv_heads", "rows"] | None = None
    dim: int = 0
    once: bool = False


WHOLE, ONCE = Cut(), Cut(once=True)
HEADS, KEYS = Cut("heads", 0), Cut("kv_heads", 0)
ROWS = Cut("rows", 0)  # of a vocabulary, or of an MLP's width

# The first pattern that fits a parameter's name counts. Where a dimension is as long on a rank as in the whole model
# (norms over one head, a shared kv head), nothing is cut.
PLAN: dict[str, Cut] = {
    "model.embed_tokens.weight": ROWS,
    "lm_head.*": ROWS,
    "model.embed_positions.weight": WHOLE,
    "model.norm.*": WHOLE,
    "model.layers.*layernorm.*": WHOLE,
    "model.layers.*.self_attn.q_proj.*": HEADS,
    "model.layers.*.self_attn.q_norm.*": HEADS,
    "model.layers.*.self_attn.[kv]_proj.*": KEYS,
    "model.layers.*.self_attn.k_norm.*": KEYS,
    "model.layers.*.self_attn.sinks": HEADS,
    "model.layers.*.self_attn.o_proj.weight": Cut("heads", 1),
    "model.layers.*.self_attn.o_proj.bias": ONCE,
    "model.layers.*.self_attn.q_a_proj.*": WHOLE,
    "model.layers.*.self_attn.kv_a_proj_with_mqa.*": WHOLE,
    "model.layers.*.self_attn.q_b_proj.*": HEADS,
    "model.layers.*.self_attn.kv_b_proj.*": HEADS,
    "model.layers.*.mlp.gate.*": WHOLE,  # the router: every rank sends the same tokens to the same experts
    "model.layers.*.mlp.experts.gate_proj.weight": Cut("rows", 1),  # of every expert a slice of its width
    "model.layers.*.mlp.experts.up_proj.weight": Cut("rows", 1),
    "model.layers.*.mlp.experts.down_proj.weight": Cut("rows", 2),
    "model.layers.*.mlp.experts.gate_proj.bias": Cut("rows", 1),
    "model.layers.*.mlp.experts.up_proj.bias": Cut("rows", 1),
    "model.layers.*.mlp.experts.down_proj.bias": ONCE,
    "model.layers.*.mlp.shared_expert_gate.*": WHOLE,
    "model.layers.*.mlp.*gate_proj.*": ROWS,
    "model.layers.*.mlp.*up_proj.*": ROWS,
    "model.layers.*.mlp.*down_proj.weight": Cut("rows", 1),
    "model.layers.*.mlp.*down_proj.bias": ONCE,
}


def cut_of(name: str) -> Cut:
    """How a parameter is divided. Raises UsageError for one of which nothing is known."""
    cut = next((cut for pattern, cut in PLAN.items() if fnmatchcase(name, pattern)), None)
    if cut is None:
        found = f"Nothing is known of how {name} is divided among devices."
        raise UsageError(found, "", "Use --strategy layers for this model.")
    return cut
