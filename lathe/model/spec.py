"""A model as data: one frozen dataclass per part; a layer names its parts, a model is a tuple of layers. No torch here.

"Every sixth layer is global" is a tuple, not an `if`: whatever differs between families is a number or a choice of
part, settled when a decoder is built. Reading `config.json` into a Spec is the business of `families`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]


# ---- norms ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RMSNorm:
    """x / rms(x) * (offset + weight). Zhang & Sennrich 2019, arXiv:1910.07467. `affine=False` has no weight (Llama 4).
    Gemma stores weight - 1: offset 1."""

    eps: float
    offset: float = 0.0
    affine: bool = True


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / std * (offset + weight) + bias. Ba et al., arXiv:1607.06450. `affine=False` has neither weight nor
    bias (OLMo 1). Nemotron stores weight - 1: offset 1."""

    eps: float
    bias: bool = True
    affine: bool = True
    offset: float = 0.0


Norm = RMSNorm | LayerNorm


# ---- positions ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Linear:
    """Position interpolation: all positions divided by `factor`. arXiv:2306.15595"""

    factor: float


@dataclass(frozen=True)
class Dynamic:
    """NTK-aware base that grows with the length of the sequence beyond `original` positions."""

    factor: float
    original: int


@dataclass(frozen=True)
class Llama3:
    """Long wavelengths interpolated, short ones kept, a ramp between. Llama 3.1."""

    factor: float
    low: float
    high: float
    original: int


@dataclass(frozen=True)
class Yarn:
    """NTK by parts, with cos and sin scaled by `attention`. arXiv:2309.00071"""

    factor: float
    original: int
    fast: float
    slow: float
    attention: float
    truncate: bool = True


@dataclass(frozen=True)
class LongRope:
    """A divisor per frequency: `short` up to `original` positions, `long` for longer sequences. arXiv:2402.13753"""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    attention: float


Scaling = Linear | Dynamic | Llama3 | Yarn | LongRope


@dataclass(frozen=True)
class Rope:
    """Rotary positions on the first `channels` of a head; pairs are halves apart, or neighbours if `interleaved`."""

    base: float
    channels: int
    scaling: Scaling | None = None
    interleaved: bool = False


# ---- mixers ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CacheShape:
    """What one token leaves in a layer: heads x key channels, and values, which may be the keys' first channels."""

    heads: int
    key_channels: int
    value_channels: int
    values_in_keys: bool = False


@dataclass(frozen=True)
class QKNorm:
    """Queries and keys normed, before they turn or after (Hunyuan).

    over: each head, all by the same weights (Qwen 3, Gemma 3), each `own head` by its own (StableLM, Cohere), or the
    whole row (OLMo 2).
    """

    norm: Norm
    over: Literal["head", "own head", "row"] = "head"
    turned: bool = False


@dataclass(frozen=True)
class Temperature:
    """Queries times 1 + strength * log(1 + floor((position + ahead) / every)), so that the far past stays in focus.

    arXiv:2501.19399; Llama 4 counts positions from 1 (`ahead`), others from 0.
    """

    strength: float
    every: int
    ahead: int = 0


@dataclass(frozen=True)
class Attention:
    """Softmax attention with `kv_heads` shared by `heads` (MHA, GQA, MQA). `window`: how many keys a query sees, itself
    included; or `chunk`: positions fall into chunks of so many, and a query sees its own chunk only (Llama 4).
    `softcap` bounds scores: cap * tanh(score / cap). `sinks`: a learned score for each head that takes its share of the
    softmax and gives nothing (gpt-oss). `clip` bounds what is projected, to either side."""

    heads: int
    kv_heads: int
    channels: int
    scale: float
    rope: Rope | None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QKNorm | None = None
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: bool = False
    temperature: Temperature | None = None
    clip: float | None = None

    @property
    def cache(self) -> CacheShape:
        return CacheShape(self.kv_heads, self.channels, self.channels)


@dataclass(frozen=True)
class LatentAttention:
    """DeepSeek's attention: keys and values of all heads unfold from one latent of `kv_rank` channels, and one rotated
    key of `rope.channels` is shared by all heads. arXiv:2405.04434. `q_rank` None: queries are not compressed."""

    heads: int
    q_rank: int | None
    kv_rank: int
    plain_channels: int
    value_channels: int
    scale: float
    rope: Rope
    norm: Norm
    bias: bool = False
    window: int | None = None
    softcap: float | None = None

    @property
    def cache(self) -> CacheShape:
        return CacheShape(1, self.kv_rank + self.rope.channels, self.kv_rank, values_in_keys=True)


Mixer = Attention | LatentAttention


# ---- mlps -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Gated:
    """down(act(gate(x)) * up(x)). arXiv:2002.05202"""

    width: int
    act: Activation = "silu"
    bias: bool = False


@dataclass(frozen=True)
class Plain:
    """down(act(up(x)))."""

    width: int
    act: Activation
    bias: bool = True


@dataclass(frozen=True)
class Clamped:
    """down((u + 1) * g * sigmoid(alpha * g)) with g = min(gate(x), limit) and u = up(x) held between -limit and limit.
    gpt-oss, arXiv:2508.10925"""

    width: int
    limit: float = 7.0
    alpha: float = 1.702
    bias: bool = True


@dataclass(frozen=True)
class Router:
    """Which `chosen` of `count` experts a token visits, and with what weights.

    Scores are a softmax or sigmoids of the router's logits. With `groups`, only the `top_groups` best groups take part,
    judged by the sum of their `judges` best scores. `correction`: a learned bias that counts for the choice, not for
    the weight; `bias`: one in the logits. `renormalise` makes the chosen weights sum to 1; `scale` multiplies them.
    arXiv:2412.19437
    """

    count: int
    chosen: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = True
    groups: int = 1
    top_groups: int = 1
    judges: int = 2
    correction: bool = False
    bias: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class SparseMixer:
    """Experts chosen one after the other, each weighted by a softmax over those left whose logits come near the best:
    by less than 2 * `jitter` of the larger of the two sizes. Phi-3.5-MoE, arXiv:2409.12136"""

    count: int
    chosen: int = 2
    jitter: float = 0.01


@dataclass(frozen=True)
class Experts:
    """A mixture of `each`, chosen by `router`, plus a `shared` MLP that sees every token.

    `weighs`: whether the router's weights multiply what an expert gives or (Llama 4) what it is given. `shared_gate`:
    what the shared MLP gives is multiplied by the sigmoid of a learned projection (Qwen 2).
    """

    each: Gated | Clamped
    router: Router | SparseMixer
    shared: Gated | None = None
    shared_gate: bool = False
    weighs: Literal["output", "input"] = "output"


Mlp = Gated | Plain | Experts


Order = Literal["pre", "post", "sandwich", "parallel", "shared"]


# ---- the model ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Layer:
    """One residual block: a mixer and an MLP, and where their norms stand.

    pre       x += mixer(norm(x));        x += mlp(norm(x))
    post      x += norm(mixer(x));        x += norm(mlp(x))                   OLMo 2
    sandwich  x += norm(mixer(norm(x)));  x += norm(mlp(norm(x)))             Gemma 2, 3
    parallel  x += mixer(norm(x)) + mlp(norm'(x))                             GPT-NeoX
    shared    n = norm(x);                x += mixer(n) + mlp(n)              Falcon, Phi, Cohere

    `residual` multiplies what is added to the stream (Granite).
    """

    mixer: Mixer
    mlp: Mlp
    norm: Norm
    order: Order = "pre"
    residual: float = 1.0


@dataclass(frozen=True)
class Spec:
    """A whole decoder. `context`: the longest sequence it was made for. `tied`: the head is the embedding's matrix.
    `learned_positions`: rows of a position table added to the embeddings (GPT-2). `head_bias`: the head has one."""

    vocab: int
    width: int
    layers: tuple[Layer, ...]
    norm: Norm
    context: int
    tied: bool = False
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    learned_positions: int | None = None
    head_bias: bool = False
