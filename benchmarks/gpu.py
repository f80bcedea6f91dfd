"""On one GPU: what Lathe reaches of the card's own limits, beside transformers; a line of JSON for every figure.

    python benchmarks/gpu.py [limits] [decode] [prefill] [train]       (all of them by default)

Shapes of Llama 3.2 1B and Llama 3.1 8B with random weights in bfloat16. Limits are measured in the same run: a copy
(bytes read and written) and a matrix product of 8192 x 8192 x 8192.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch

from lathe import families
from lathe.data.loader import Batch, Work
from lathe.data.pack import Row
from lathe.engine.engine import Engine
from lathe.engine.sampling import Sampling
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.training import blocks, gauge, loop, loss, optim
from lathe.training.limits import Limits
from lathe.transforms import adapt, begin, quantize
from lathe.transforms.terms import Lora

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
SHAPES = {
    "1B": LLAMA | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_hidden_layers": 16,
        "head_dim": 64, "tie_word_embeddings": True,
    },
    "8B": LLAMA | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32,
        "head_dim": 128, "tie_word_embeddings": False,
    },
}  # fmt: skip
PRODUCTS = {"1B": 0.973e9, "8B": 6.98e9}  # weights of the layers' matrices
NEW = 64  # steps of a decode that are timed
STEPS = 10  # of a training, of which the first three are not counted
PEAK: dict[str, float] = {}  # bytes and operations a second, as measured


def say(**figures: Any) -> None:
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps(rounded), flush=True)


def seconds(work: Callable[[], object], runs: int = 5, warm: int = 2) -> float:
    """The median time of some work on the device."""
    for _ in range(warm):
        work()
    times = []
    for _ in range(runs):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return median(times)


@contextmanager
def cleared() -> Iterator[None]:
    torch.cuda.reset_peak_memory_stats()
    yield
    gc.collect()
    torch.cuda.empty_cache()


def model(shape: str, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    with torch.device("meta"):
        made = Decoder(families.read(SHAPES[shape]))
    made = made.to(dtype).to_empty(device="cuda")
    if made.spec.tied:
        made.lm_head.weight = made.model.embed_tokens.weight
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.02) if parameter.ndim > 1 else parameter.fill_(1)
    return made


def limits() -> None:
    source = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    PEAK["bytes"] = 2 * source.nbytes / seconds(lambda: target.copy_(source), 10)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    PEAK["flops"] = 2 * 8192**3 / seconds(lambda: a @ b, 10)
    say(what="limits", card=torch.cuda.get_device_name(), torch=torch.__version__, **PEAK)


@torch.inference_mode()
def decode(shape: str, how: str = "bf16", batches: Sequence[int] = (1, 16, 64, 256), prompt: int = 128) -> None:
    """Steps of sequences that have read a prompt, all that happens to a step on the host included."""
    decoder = coded(model(shape), how)
    bytes_ = read(decoder)
    for batch in batches:
        engine = Engine(decoder, tokens=batch * (prompt + NEW + 64), chunk=8192, seats=batch)
        for number in range(batch):
            ids = [(31 * i + 7 * number) % 1000 for i in range(prompt)]
            engine.submit(ids, Sampling(max_new_tokens=NEW + 32, temperature=0))
        while not all(len(one.made) >= 4 for one in engine.scheduler.running) or engine.scheduler.waiting:
            engine.step()
        took = seconds(engine.step, NEW, 4)
        say(what="decode", who="lathe", shape=shape, how=how, batch=batch, tokens_per_second=batch / took,
            of_bandwidth=bytes_ / took / PEAK["bytes"])  # fmt: skip
        del engine
    if how != "bf16":
        return
    rival = transformer(decoder, shape)
    for batch in (1, 16):
        rows = torch.arange(prompt, device="cuda")[None].repeat(batch, 1)
        took = seconds(partial(generate, rival, rows, NEW), 1, 1) - seconds(partial(generate, rival, rows, 1), 1, 1)
        say(what="decode", who="transformers", shape=shape, batch=batch, tokens_per_second=batch * (NEW - 1) / took)


def coded(decoder: Decoder, how: str) -> Decoder:
    if how != "bf16":
        quantize.pack(decoder, how)
    return decoder


def read(decoder: Decoder) -> int:
    """Bytes that a step reads of the weights: all but a table of which rows are looked up."""
    table = None if decoder.spec.tied else decoder.model.embed_tokens.weight
    return sum(parameter.nbytes for parameter in decoder.parameters() if parameter is not table)


def generate(rival: Any, rows: torch.Tensor, made: int) -> None:
    lengths = {"max_new_tokens": made, "min_new_tokens": made}
    rival.generate(rows, do_sample=False, pad_token_id=0, eos_token_id=None, **lengths)


@torch.inference_mode()
def prefill(shape: str, how: str = "bf16", length: int = 2048) -> None:
    decoder = coded(model(shape), how)
    ids = torch.arange(length, device="cuda") % 1000
    layout = Layout.of([length], "cuda")
    took = seconds(lambda: decoder.logits(decoder(ids, layout)[-1:]))
    flops = 2 * length * PRODUCTS[shape]
    say(what="prefill", who="lathe", shape=shape, how=how, tokens_per_second=length / took,
        of_peak=flops / took / PEAK["flops"])  # fmt: skip
    if how != "bf16":
        return
    rival = transformer(decoder, shape)
    took = seconds(lambda: rival(ids[None], logits_to_keep=1))
    say(what="prefill", who="transformers", shape=shape, tokens_per_second=length / took)


def transformer(decoder: Decoder, shape: str) -> Any:
    """The same weights in transformers' model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        theirs = LlamaForCausalLM(LlamaConfig(**SHAPES[shape])).to(torch.bfloat16)
    theirs.load_state_dict(decoder.state_dict(), strict=False, assign=True)
    rope = type(theirs.model.rotary_emb)(LlamaConfig(**SHAPES[shape]))
    theirs.model.rotary_emb = rope.to("cuda")
    return theirs.eval()


def train(shape: str, lengths: Sequence[int], rows: int, how: Sequence[str]) -> None:
    """Steps of Lathe's own loop with AdamW on `rows` rows at once, each of sequences of these lengths.

    how: mixed (float32 weights), compiled, checkpointed, lora (rank 16, every matrix), nf4 (the base packed).
    """
    decoder = model(shape, torch.float32 if "mixed" in how else torch.bfloat16)
    if "nf4" in how:
        quantize.pack(decoder, "nf4")
    if "lora" in how:
        adapt.put(decoder, "default", begin.lora(decoder, Lora(rank=16, alpha=32, targets="all-linear")))
        adapt.trainable(decoder, ["default"])
    else:
        decoder.requires_grad_()
    per_token = gauge.flops(decoder, 2 * sum(n * n // 2 for n in lengths) // sum(lengths))
    if "compiled" in how:
        blocks.compiled(decoder)
    if "checkpointed" in how:
        blocks.checkpointed(decoder)
    ids = torch.arange(sum(lengths)).numpy() % 1000
    row = Row(ids, (ids * 7 + 1) % 1000, tuple(lengths))

    def data() -> Iterator[Work]:
        while True:
            batch = Batch.of([row] * rows, "cuda")
            yield Work([batch], batch.supervised, len(batch.tokens))

    times: list[float] = []

    def after(step: loop.Step) -> bool:
        times.append(step.seconds)
        return True

    objective = loss.next_token(decoder, torch.bfloat16 if "mixed" in how else None)
    optimizers = optim.build(decoder, optim.Settings(lr=1e-5, compiled="compiled" in how))
    loop.train(objective, optimizers, data(), lambda step, total: 1.0, Limits(steps=STEPS), 1.0, after)
    learning("lathe", shape, lengths, rows, how, times, per_token)


def theirs(shape: str, length: int, rows: int, how: Sequence[str]) -> None:
    """The same with transformers, and PEFT's LoRA, in a plain loop with torch's fused AdamW."""
    decoder = model(shape).requires_grad_("lora" not in how)
    made = transformer(decoder, shape).train()
    per_token = gauge.flops(decoder, length)
    del decoder
    if "checkpointed" in how:
        made.gradient_checkpointing_enable({"use_reentrant": False})
    if "lora" in how:
        from peft import LoraConfig, get_peft_model

        made.enable_input_require_grads()
        settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        made = get_peft_model(made, settings)
    learned = [parameter for parameter in made.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-5, fused=True)
    ids = (torch.arange(length, device="cuda") % 1000).repeat(rows, 1)
    times = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        made(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0).item()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - begun)
    learning("transformers", shape, [length], rows, how, times, per_token)


def learning(
    who: str, shape: str, lengths: Sequence[int], rows: int, how: Sequence[str], times: list[float], per_token: float
) -> None:
    torch.cuda.synchronize()
    tokens, took = rows * sum(lengths), median(times[3:])
    say(what="train", who=who, shape=shape, how=" ".join(how), sequences=len(lengths) * rows, tokens=tokens,
        tokens_per_second=tokens / took, of_peak=tokens / took * per_token / PEAK["flops"], first_step=times[0],
        gib=torch.cuda.max_memory_allocated() / 2**30)  # fmt: skip


def main(wanted: list[str]) -> None:
    limits()
    kinds = [*product(SHAPES, ("bf16", "int8", "int4", "fp8", "nf4"))]
    packed = [701, 37, 512, 300, 1100, 90, 8, 700, 648]  # 4,096 tokens in all
    training: list[partial[None]] = [
        partial(train, "1B", [2048] * 2, 4, []),
        partial(train, "1B", [2048] * 2, 4, ["compiled"]),
        partial(theirs, "1B", 2048, 8, []),
        partial(train, "1B", packed, 4, ["compiled"]),
        partial(train, "1B", [2048] * 2, 2, ["mixed", "compiled"]),
        partial(train, "8B", [2048], 4, ["lora", "checkpointed"]),
        partial(train, "8B", [2048], 4, ["lora", "compiled", "checkpointed"]),
        partial(theirs, "8B", 2048, 4, ["lora", "checkpointed"]),
        partial(train, "8B", [2048], 4, ["lora", "nf4", "checkpointed"]),
    ]
    runs = {
        "decode": [partial(decode, *kind) for kind in kinds],
        "prefill": [partial(prefill, *kind) for kind in kinds],
        "train": training,
    }
    for run in (run for what in wanted for run in runs[what]):
        with cleared():
            try:
                run()
            except Exception as error:  # the others are still worth their time
                say(failed=f"{run.func.__name__} {run.args}", error=repr(error)[:300])


if __name__ == "__main__":
    torch.manual_seed(0)
    main(sys.argv[1:] or ["decode", "prefill", "train"])
