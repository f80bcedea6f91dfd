"""What LitGPT 0.5.13 does where it is wrong, by the numbers of our list of its defects: each function shows one.

    python tests/oracles/litgpt_defects.py NUMBER [ARGUMENTS]

in LitGPT's environment. Prints what happened as JSON on the last line.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import lightning as L
import torch
from litgpt import GPT, Config, Tokenizer
from litgpt.generate.base import generate
from litgpt.generate.speculative_decoding import generate as speculate
from litgpt.generate.tp import tensor_parallel
from litgpt.model import build_rope_cache
from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
from litgpt.scripts.convert_pretrained_checkpoint import convert_pretrained_checkpoint
from litgpt.utils import estimate_model_memory, save_config

TINY = {"n_layer": 2, "n_embd": 32, "n_head": 4, "block_size": 64, "padded_vocab_size": 64, "intermediate_size": 48}


def tiny(name: str, **changes: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(Config.from_name(name, **{**TINY, **changes})).eval()


def error(call: Any, *arguments: Any) -> str:
    try:
        call(*arguments)
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return ""


def prefilled(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    model.set_kv_cache(1)
    return model(tokens, torch.arange(tokens.shape[1]))


def soft_cap() -> float:
    """How far the logits of a prompt read into the cache are from those without one."""
    model = tiny("Gemma-2-2b", head_size=8, n_query_groups=2, sliding_window_size=None, attention_scores_scalar=8)
    for parameter in model.parameters():
        parameter.data.mul_(4)
    tokens = torch.randint(64, (1, 12))
    return float((model(tokens) - prefilled(model, tokens)).abs().max())


def window() -> str:
    """What a prompt longer than the window gives."""
    return error(prefilled, tiny("Mistral-7B-v0.1", n_query_groups=2, sliding_window_size=8), torch.ones(1, 12).int())


def parallel() -> list[float]:
    """How far two processes' answer is from one's, and how large that is."""
    fabric = L.Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    model, tokens = tiny("Llama-2-7b-hf"), torch.arange(8)[None]
    whole = model(tokens)
    parts = tensor_parallel(fabric, model)
    parts.max_seq_length = 64
    found = float((parts(tokens) - whole).abs().max())
    fabric.barrier()
    if fabric.global_rank:
        os._exit(0)  # not by way of the process group's end, which now and then aborts
    return [found, float(whole.abs().max())]


def yarn(stretch: str) -> list[float]:
    """The speed at which each pair of channels turns."""
    options = json.loads(stretch)
    cos, sin = build_rope_cache(2, options.pop("channels"), base=options.pop("base"), extra_config=options)
    return torch.atan2(sin[1], cos[1])[: cos.shape[1] // 2].tolist()


def speculative() -> list[list[int]]:
    """Eight greedy tokens of a model, and the same with itself to guess them."""
    model, prompt = tiny("pythia-14m"), torch.tensor([3, 1, 4])
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.set_kv_cache(1)
    plain = generate(model, prompt, 11, temperature=0, include_prompt=False)
    model.set_kv_cache(1)
    draft = tiny("pythia-14m")
    draft.load_state_dict(model.state_dict())
    draft.set_kv_cache(1)
    guessed, _ = speculate(draft, model, prompt, 11, temperature=0, speculative_k=3, include_prompt=False)
    return [plain.tolist(), guessed.tolist()]


def named(*folders: str) -> list[list[int]]:
    """A text's ids, by the tokenizers in these folders."""
    return [Tokenizer(folder).encode("a lathe").tolist() for folder in folders]


def streamed(folder: str, text: str) -> str:
    """A text's tokens, as they are shown one by one."""
    tokenizer = Tokenizer(folder)
    return "".join(tokenizer.decode_stream(iter(tokenizer.encode(text, bos=False).split(1)), torch.device("cpu")))


def exported(folder: str) -> str:
    """What exporting a folder in LitGPT's form raises."""
    with tempfile.TemporaryDirectory() as out:
        return error(convert_lit_checkpoint, Path(folder), Path(out) / "out")


def stripped(folder: str) -> dict[str, Any]:
    """How large a model is without the state of its training, of how many bytes of tensors; and into an empty folder.

    The training's folder stays, for us to do the same.
    """
    model = tiny("pythia-14m", n_embd=256, intermediate_size=1024)
    place, out = Path(folder) / "run", Path(folder) / "out"
    place.mkdir(parents=True)
    save_config(model.config, place)
    halves = {name: [tensor.clone(), tensor.clone()] for name, tensor in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "optimizer": halves, "iter_num": 3}, place / "lit_model.pth")
    (Path(folder) / "empty").mkdir()
    convert_pretrained_checkpoint(place, out)
    return {
        "file": (out / "lit_model.pth").stat().st_size,
        "tensors": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "empty": error(convert_pretrained_checkpoint, place, Path(folder) / "empty"),
    }


def fresh() -> float:
    """The root mean square of what a new Gemma's first norm gives."""
    model = tiny("Gemma-2b", n_query_groups=1, head_size=8)
    return float(model.transformer.h[0].norm_1(torch.randn(100, 32)).square().mean().sqrt())


def counted() -> dict[str, int]:
    """How many parameters are estimated."""
    return {name: estimate_model_memory(Config.from_name(name))["param_count"] for name in ("Mixtral-8x7B-v0.1",)}


DEFECTS = {
    "1": soft_cap, "2": window, "3": parallel, "6": yarn, "7": speculative, "8": named, "9": streamed, "10": exported,
    "13": stripped, "15": fresh, "16": counted,
}  # fmt: skip

with torch.inference_mode():
    print(json.dumps(DEFECTS[sys.argv[1]](*sys.argv[2:])), flush=True)
os._exit(0)
