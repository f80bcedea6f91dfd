"""What `lathe inspect` says of a model, and that it notices what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from published import PUBLISHED

from lathe import checkpoint, families
from lathe.actions import memory
from lathe.cli import main
from lathe.model import spec as s
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.model.spec import Spec


def sizes_of(name: str) -> tuple[Spec, memory.Sizes]:
    spec = families.read(PUBLISHED[name].config)
    return spec, memory.Sizes.of(checkpoint.blank(spec))


# ---- memory ----------------------------------------------------------------------------------------------------------
def test_memory_to_run_llama_3_2_1b():
    """Worked by hand, from 16 layers of width 2048, 32 heads and 8 for keys and values of 64 channels, MLPs of 8192."""
    spec, sizes = sizes_of("Llama-3.2-1B-Instruct")
    matrices = 16 * (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 8192 * 2048)
    others = 128_256 * 2048 + 33 * 2048
    assert (sizes.matrices, sizes.others) == (matrices, others) == (973_078_528, 262_735_872)
    rows = 16 * (2048 + 512 + 512 + 2048 + 8192 + 8192 + 2048)
    cache = 131_072 * 16 * 2 * 8 * 64
    found = memory.running(spec, sizes, spec.context)
    assert found["fp32"] == {"weights": 4_943_257_600, "cache": 4 * cache, "total": 4_943_257_600 + 4 * cache}
    assert found["bf16"] == {"weights": 2_471_628_800, "cache": 2 * cache, "total": 2_471_628_800 + 2 * cache}
    assert found["int8"]["weights"] == matrices + 2 * rows + 2 * others
    assert found["int4"]["weights"] == matrices // 2 + matrices // 16 + 2 * others


def test_memory_to_train_llama_3_2_1b():
    spec, sizes = sizes_of("Llama-3.2-1B-Instruct")
    found = memory.training(spec, sizes, length=2048, batch=2)
    p, m = 1_235_814_400, 973_078_528
    a = 16 * (2 * 2 * 2048 + 2 * (32 + 8) * 64 + 4 * 8192) + 2 * 2048
    loss = 12 * 2**24  # 4096 x 128,256 scores would be more than a slice
    lora = 8 * 16 * (4096 + 2560 + 2560 + 4096 + 3 * (2048 + 8192))
    assert found["full, 32-true"] == memory.Training(4 * p, 4 * p, 8 * p, 4096 * a * 4 + loss)
    assert found["full, bf16-mixed"] == memory.Training(4 * p + 2 * m, 4 * p, 8 * p, 4096 * a * 2 + loss)
    assert found["full, bf16-true"] == memory.Training(2 * p, 2 * p, 4 * p, 4096 * a * 2 + loss)
    assert found["lora"] == memory.Training(2 * p + 4 * lora, 4 * lora, 8 * lora, 4096 * a * 2 + loss)
    packed = m / 2 + m / 16 + 2 * (p - m) + 2 * 8192 * 2048
    assert found["qlora"].weights == packed + 4 * lora
    prefix = 16 * (10 * 2048 + 32)
    assert found["adapter"] == memory.Training(2 * p + 4 * prefix, 4 * prefix, 8 * prefix, 4096 * a * 2 + loss)


@pytest.mark.parametrize("order", ["pre", "post", "sandwich", "parallel"])
@pytest.mark.parametrize("kind", ["gated", "plain", "experts", "qk norm", "latent"])
def test_activations_are_what_autograd_keeps(order, kind):
    """Against the bytes that a forward pass really saves: within a fifth, for every part."""
    norm, rope, width, tokens = s.RMSNorm(1e-6), s.Rope(1e4, 32), 256, 96
    attention = s.Attention(8, 2, 32, 32**-0.5, rope, qk_norm=s.QKNorm(norm) if kind == "qk norm" else None)
    latent = s.LatentAttention(8, 96, 64, 24, 32, 0.2, s.Rope(1e4, 16), norm)
    experts = s.Experts(s.Gated(192), s.Router(8, 2), shared=s.Gated(128))
    mlp = {"plain": s.Plain(768, "gelu"), "experts": experts}.get(kind, s.Gated(640))
    layer = s.Layer(latent if kind == "latent" else attention, mlp, norm, order=order)
    decoder = Decoder(s.Spec(50, width, (layer,) * 3, norm, 128))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    weights = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}
    kept = {}  # the tensors stay alive, so that no two have one address

    def keep(tensor):
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder(torch.randint(50, (tokens,)), Layout.of([tokens]))
    saved = sum(x.untyped_storage().nbytes() for at, x in kept.items() if at not in weights)
    reckoned = 4 * tokens * (3 * memory.activations(layer, width) + 2 * width)
    assert saved / reckoned == pytest.approx(1, abs=0.2)


# ---- the page --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["stories260K-hf", "stories260K-litgpt", "stories260K-gguf/stories260K-q8_0.gguf"])
def test_a_real_model_is_whole(shared, form, capsys):
    assert main(["inspect", str(shared / "data" / "models" / form), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["architecture"] == "LlamaForCausalLM"
    assert page["layers"] == {"8 heads of 8, 4 for keys and values, mlp 172": 5}
    assert page["cache_bytes_per_token"] == 5 * 2 * 4 * 8 * 4
    assert page["problems"] == []
    assert page["parameters"] == 260_032
    assert page["tokenizer"] == {"size": 512, "bos": "<s>", "ends": ["</s>"], "chat_template": False}
    assert page["memory"]["running"]["fp32"] == {"weights": 4 * 260_032, "cache": 512 * 1280, "total": 1_695_488}
    assert page["memory"]["max_seq_length"] == 512


def test_what_does_not_fit_is_said_and_gives_status_1(shared, tmp_path: Path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(shared / "data" / "models" / "stories260K-hf", folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6, "vocab_size": 500}))
    assert main(["inspect", str(folder)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "model.layers.5" in out
    assert "The tokenizer has 512 tokens" in out


def damaged(shared: Path, folder: Path, name: str, change: Callable[[torch.Tensor], None]) -> str:
    """The real model with one tensor changed."""
    shutil.copytree(shared / "data" / "models" / "stories260K-hf", folder, copy_function=shutil.copyfile)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors[name])
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("model.layers.3.mlp.up_proj.weight", lambda x: x[5, 3].fill_(float("nan")), "holds 1 numbers"),
        ("model.norm.weight", lambda x: x[2:4].fill_(float("inf")), "holds 2 numbers"),
        ("model.layers.1.self_attn.q_proj.weight", lambda x: x.zero_(), "is zero everywhere"),
    ],
)
def test_deep_reads_every_number(shared, tmp_path, capsys, name, change, says):
    folder = damaged(shared, tmp_path / "model", name, change)
    assert main(["inspect", folder]) == 0
    capsys.readouterr()
    assert main(["inspect", folder, "--deep", "--json"]) == 1
    [problem] = json.loads(capsys.readouterr().out)["problems"]
    assert problem.startswith(f"{name} {says}") and "model.safetensors" in problem


def test_a_vector_of_zeros_may_be_a_bias(shared, tmp_path, capsys):
    folder = damaged(shared, tmp_path / "model", "model.layers.0.input_layernorm.weight", lambda x: x.zero_())
    assert main(["inspect", folder, "--deep"]) == 0
    assert "every number is finite" in capsys.readouterr().out


def test_a_file_cut_short_is_noticed(shared, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(shared / "data" / "models" / "stories260K-hf", folder, copy_function=shutil.copyfile)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["inspect", str(folder), "--deep"]) != 0
    assert "model.safetensors" in capsys.readouterr().err


def test_what_is_asked_for_must_make_sense(shared, capsys):
    model = str(shared / "data" / "models" / "stories260K-hf")
    assert main(["inspect", model, "--max-seq-length", "0"]) == 2
    assert "--max-seq-length is 0. It must be at least 1." in capsys.readouterr().err
    assert main(["inspect", model, "--micro-batch-size", "3", "--max-seq-length", "100", "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)["memory"]
    assert (kept["max_seq_length"], kept["micro_batch_size"]) == (100, 3)


def test_a_draft_is_shown_and_must_share_the_vocabulary(shared, tmp_path, capsys):
    model, packed = (str(shared / "data/models" / n) for n in ("stories260K-hf", "stories260K-gguf"))
    draft = f"{packed}/stories260K-q8_0.gguf"
    assert main(["inspect", model, "--draft", draft]) == 0
    assert "LlamaForCausalLM of 260,032 parameters" in " ".join(capsys.readouterr().out.split())
    other = tmp_path / "other"
    shutil.copytree(model, other, copy_function=shutil.copyfile)
    for file in other.glob("tokenizer*"):
        file.unlink()
    for file in (shared / "data/tokenizers/minimind").iterdir():
        shutil.copyfile(file, other / file.name)
    assert main(["inspect", model, "--draft", str(other)]) == 1
    assert "has another vocabulary" in capsys.readouterr().out


def test_an_adapter_is_described(shared, tmp_path, capsys):
    """Facts of PEFT's own files: all parameters in them, and the settings that they were made with."""
    folder = tmp_path / "adapter"
    shutil.copytree(shared / "data/formats/peft-lora-stories260K", folder, copy_function=shutil.copyfile)
    settings = json.loads((folder / "adapter_config.json").read_text())
    base = {"base_model_name_or_path": str(shared / "data/models/stories260K-hf")}
    (folder / "adapter_config.json").write_text(json.dumps(settings | base))
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors").values()
    assert main(["inspect", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["adapter"]
    assert (told["method"], told["rank"], told["scaling"]) == ("LoRA", [settings["r"]], [settings["lora_alpha"] / 8])
    assert {*told["targets"]} == {*settings["target_modules"]} and not told["whole"]
    assert told["parameters"] == sum(tensor.numel() for tensor in tensors)
    assert told["bytes"] == sum(tensor.nbytes for tensor in tensors)
    assert main(["inspect", str(folder)]) == 0
    assert f"LoRA, rank 8, times 2, on {' '.join(told['targets'])}" in " ".join(capsys.readouterr().out.split())
