"""Record what llama.cpp's converter makes of small models, for test_hands.py: metadata, names, shapes, contents.

    python tests/oracles/llama_cpp_writes.py PATH_OF_LLAMA_CPP

in an environment with transformers; the converter brings its own gguf package. Writes tests/data/llama_cpp.json.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), sys.argv[1], sys.argv[1] + "/gguf-py"]

import gguf  # noqa: E402
from conversion import get_model_class  # noqa: E402
from families import CASES, DEEPSEEK, DEEPSEEK_YARN, ORIGINAL, Case  # noqa: E402
from patterned import digest, pattern  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

# What GGUF has no word for is left as llama.cpp takes it for granted: no window in a Llama or Qwen, mscale as
# mscale_all_dim, queries scaled by the size of their heads; and what its converter does not look at, as it assumes.
NAMES = """
    llama-2 llama-linear llama-yarn llama-biased mistral mixtral granite qwen2 qwen2-yarn qwen3 qwen3-moe gemma
    phi3-window phi3-longrope phi4-mini olmo olmo2 neox neox-one-after-the-other gpt2
    stablelm cohere-normed-heads qwen2-moe deepseek-v2
    glm4 exaone4 exaone4-global olmo3-yarn ministral3
    granite-moe glm4-moe glm4-moe-normed minimax-m2 ernie-moe-to-the-end
""".split()
LLAMA3_EXACT = Case("llama-3.2", "Llama-3.2-1B-Instruct", {"head_dim": 64, "num_attention_heads": 2})
LLAMA3_OTHER = next(case for case in CASES if case.name == "llama-3.2-tied-llama3-rope")


def changed(name: str, **changes: Any) -> Case:
    case = next(case for case in CASES if case.name == name)
    return Case(name, case.published, {**case.changes, **changes})


# What the converter takes the factor of cosines and sines to be in LongRoPE; and the name by which it knows the model.
USUAL = math.sqrt(1 + math.log(64 / ORIGINAL) / math.log(ORIGINAL))
PHI_MOE = next(case for case in CASES if case.name == "phi-moe")
PHI_MOE = changed("phi-moe", architectures=["PhiMoEForCausalLM"], rope_scaling={
    **PHI_MOE.changes["rope_scaling"], "short_mscale": USUAL, "long_mscale": USUAL,
})  # fmt: skip

OWN = [
    LLAMA3_EXACT,
    Case("llama-3-otherwise", LLAMA3_OTHER.published, LLAMA3_OTHER.changes),
    changed("olmoe", clip_qkv=None, rms_norm_eps=1e-5),
    # It counts these heads whatever "multi_query" says.
    changed("falcon-7b", num_kv_heads=1, max_position_embeddings=2048),
    changed("falcon-40b", bias=False),
    changed("falcon-11b", ffn_hidden_size=256, max_position_embeddings=2048, rope_theta=10_000.0),
    changed("nemotron", head_dim=16),
    changed("phi-2", intermediate_size=256, num_key_value_heads=4),
    changed("gpt-bigcode", n_inner=None),
    changed("starcoder2", sliding_window=None),
    changed("cohere2", sliding_window_pattern=4, num_hidden_layers=5),
    changed("gpt-oss", swiglu_limit=7.0),
    changed("seed-oss", attention_out_bias=False),
    changed("ernie", use_bias=False),
    changed("hunyuan", max_position_embeddings=1 << 18),  # which it takes them all to have
    changed("glm", head_dim=16, rms_norm_eps=1e-5),  # and a context as long as the model is wide
    changed("llama4", attention_chunk_size=8192, floor_scale=8192),
    PHI_MOE,
    Case("smollm3", "SmolLM3-3B", {"num_hidden_layers": 4, "no_rope_layers": None, "layer_types": None}),
    Case("gemma2", "gemma-2-2b", {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 8}),
    Case("gemma3", "gemma-3-1b-it", {
        "head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 8, "num_hidden_layers": 7,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }),
    Case("deepseek-v2-lite", "DeepSeek-V2-Lite", {
        **DEEPSEEK, "q_lora_rank": None, "n_group": 1, "topk_group": 1,
        "rope_scaling": {**DEEPSEEK_YARN, "mscale": 0.7},
    }),
    Case("deepseek-v3", "DeepSeek-V3", {**DEEPSEEK, "rope_scaling": {**DEEPSEEK_YARN, "mscale": 0.7}}),
    Case("deepseek-v3-plain", "DeepSeek-V3", {
        **DEEPSEEK, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "rope_scaling": None,
    }),
]  # fmt: skip


def write(config: dict[str, Any], folder: Path) -> None:
    """A Hugging Face folder with patterned weights, and the configuration in the dialect it was published in."""
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32).save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = {name: pattern(name, tensor.shape) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    # For Gemma 3 the converter counts the tokens; it is told nothing else of them.
    words = {str(n): n for n in range(config["vocab_size"])}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}, "added_tokens": []}))


def convert(folder: Path, file: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    kind = get_model_class(config["architectures"][0])
    kind.set_vocab = lambda self: None
    with torch.inference_mode():
        # The keys of transformers 4, which it knows, beside those of the transformers that is installed.
        keys = kind.load_hparams(folder, False) | config
        kind(folder, gguf.LlamaFileType.ALL_F32, file, hparams=keys).write()


def record(case: Case) -> dict[str, Any]:
    config = case.config
    if config["model_type"] == "gpt_neox":
        config.pop("num_key_value_heads", None)  # which it has no word for
    with TemporaryDirectory() as place:
        folder, file = Path(place) / "model", Path(place) / "model.gguf"
        write(config, folder)
        convert(folder, file)
        reader = gguf.GGUFReader(file)
        tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
        metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        metadata |= {name: tensor.tolist() for name, tensor in tensors.items() if name.startswith("rope_")}
        return {
            "config": config,
            "metadata": metadata,
            "tensors": {name: [*tensor.shape, digest(tensor)] for name, tensor in tensors.items()},
        }


cases = [*(case for case in CASES if case.name in NAMES), *OWN]
rows = (f"{json.dumps(case.name)}: {json.dumps(record(case))}" for case in cases)
(TESTS / "data" / "llama_cpp.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
