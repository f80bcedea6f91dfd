"""What `lathe inspect` says of a model, and that it notices what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from published import PUBLISHED

from lathe import checkpoint, families
from lathe.actions import inspect
from lathe.cli import main


@pytest.mark.parametrize(("name", "total", "active"), [("Mixtral-8x7B-v0.1", 46_702_792_704, 12_879_925_248)])
def test_active_parameters_of_a_mixture(name, total, active):
    """Worked by hand: 32 layers, in each 6 of 8 experts of 3 x 14,336 x 4,096 stay idle (defect 16 of LitGPT)."""
    spec = families.read(PUBLISHED[name].config)
    assert sum(slot.numel() for _, slot in checkpoint.slots(checkpoint.blank(spec))) == total
    assert total - inspect.idle(spec) == active == total - 32 * 6 * 3 * 14_336 * 4_096


@pytest.mark.parametrize("form", ["stories260K-hf", "stories260K-litgpt", "stories260K-gguf/stories260K-q8_0.gguf"])
def test_a_real_model_is_whole(shared, form, capsys):
    assert main(["inspect", str(shared / "data" / "models" / form), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["architecture"] == "LlamaForCausalLM"
    assert page["layers"] == {"8 heads of 8, 4 for keys and values, mlp 172": 5}
    assert page["cache_bytes_per_token"] == 5 * 2 * 4 * 8 * 4
    assert page["problems"] == []


def test_what_does_not_fit_is_said_and_gives_status_1(shared, tmp_path: Path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(shared / "data" / "models" / "stories260K-hf", folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6, "vocab_size": 500}))
    assert main(["inspect", str(folder)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "model.layers.5" in out
    assert "The tokenizer has 512 tokens" in out
