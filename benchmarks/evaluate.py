"""Multiple choice by Lathe's engine and by lm-evaluation-harness's own `hf` backend, on the same requests.

    python benchmarks/evaluate.py ARC.jsonl [--model SHAPE] [--limit N] [--shots K] [--batch-size B ...]

A model of random weights in the shape of SmolLM2-135M answers the first N questions of a file of choices (see
docs/evaluate.md) after K examples. Both get the same texts. Printed: seconds of processor time and of the clock, and
by how much the log-likelihoods differ at most.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from lathe import checkpoint, families
from lathe.evaluation import tasks
from lathe.evaluation.asks import Likelihood
from lathe.evaluation.journal import Nothing
from lathe.evaluation.local import Local
from lathe.evaluation.tasks import Settings
from lathe.llm import LLM
from lathe.model import initial

SHAPES = {  # config.json of Llama's family
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
    "tiny": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4},
}


def model(shape: str, tokenizer: Path, place: Path) -> Path:
    """A folder with a model of random weights and that tokenizer."""
    from lathe.tokenizer import Tokenizer

    words = Tokenizer.open(tokenizer)
    sizes = SHAPES[shape]
    more = {"num_key_value_heads": sizes["num_attention_heads"] // 3 or 1, "max_position_embeddings": 2048}
    config = {"architectures": ["LlamaForCausalLM"], **sizes, **more, "vocab_size": words.vocab_size}
    config |= {"tie_word_embeddings": True, "torch_dtype": "float32"}
    checkpoint.save(place, initial.decoder(families.read(config), seed=0), config, tokenizer=words)
    return place


def spent() -> tuple[float, float]:
    times = os.times()
    return times.user + times.system, time.perf_counter()


def since(begun: tuple[float, float]) -> str:
    processor, clock = (now - then for now, then in zip(spent(), begun, strict=True))
    return f"{processor:8.2f} s processor {clock:8.2f} s clock"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with one")
    parser.add_argument("--model", default="135m", choices=SHAPES)
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch-size", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    with tempfile.TemporaryDirectory() as folder:
        run(told, model(told.model, told.tokenizer, Path(folder) / "model"))


def run(told: argparse.Namespace, place: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm = LLM.load(place, device="cpu", dtype=told.dtype)
    task = tasks.read("choices", told.data, Settings(told.shots, limit=told.limit))
    subject = Local(llm.decoder, llm.tokenizer, llm.stops)
    warm = Local(llm.decoder, llm.tokenizer, llm.stops)
    list(warm.answers([Likelihood(tuple(range(5, 1100)), (5,)), Likelihood((5, 6), (7,))]))  # kernels are compiled
    begun = spent()
    result = tasks.examine(task, subject, Nothing())
    print(f"lathe                {since(begun)}", flush=True)
    mine = [each[0][0] for record in result.samples for each in record["resps"]]

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[told.dtype]
    theirs = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
    pairs = [tuple(pair) for record in result.samples for pair in record["arguments"]]
    asked = [Instance("loglikelihood", {}, pair, at) for at, pair in enumerate(pairs)]
    for size in told.batch_size:
        backend = HFLM(pretrained=theirs, tokenizer=AutoTokenizer.from_pretrained(place), batch_size=size, device="cpu")
        begun = spent()
        answers = backend.loglikelihood(asked, disable_tqdm=True)
        off = max(abs(a - b) for a, (b, _) in zip(mine, answers, strict=True))
        print(f"hf, batches of {size:3}   {since(begun)}   apart at most {off:.1e}", flush=True)


if __name__ == "__main__":
    main()
