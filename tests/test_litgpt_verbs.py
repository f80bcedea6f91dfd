"""LitGPT's generating verbs say what the `lathe generate` that they stand for says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lathe import cli
from lathe.compat.table import VERBS

pytestmark = pytest.mark.usefixtures("forks")

GREEDY = ("--temperature", "0", "--max_new_tokens", "12", "--device", "cpu")
ONCE = ("--prompt", "Once upon a time")


@pytest.fixture(scope="module")
def models(shared: Path) -> Path:
    return shared / "data/models"


def said(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(words) == 0
    return capfd.readouterr().out


@pytest.mark.parametrize("verb", ["generate_tp", "generate_sequentially"])
def test_several_devices(models: Path, verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = str(models / "stories260K-litgpt")
    expected = said(capfd, "generate", model, *ONCE, *GREEDY)
    assert said(capfd, verb, model, *ONCE, *GREEDY, "--compile", "true") == expected  # one device, where no more are
    assert said(capfd, verb, model, *ONCE, *GREEDY, "--devices", "2", "--compile=false") == expected


def test_two_models(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, draft = str(models / "stories260K-litgpt"), str(models / "stories260K-gguf/stories260K-q8_0.gguf")
    expected = said(capfd, "generate", model, *ONCE, *GREEDY)
    assert cli.main(["generate_speculatively", draft, model, *ONCE, *GREEDY, "--speculative_k", "2"]) == 0
    out, err = capfd.readouterr()
    assert out == expected and "guesses of the draft stood" in err
    assert said(capfd, "generate_speculatively", draft, model, *GREEDY) == said(
        capfd, "generate", model, "--prompt", "What food do llamas eat?", *GREEDY
    )


def test_finetuned_weights(models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = str(models / "stories260K-litgpt")
    folder = tmp_path / "final"
    shutil.copytree(base, folder, copy_function=shutil.copyfile)
    file = folder / "lit_model.pth"
    words = ("generate_full", base, *GREEDY, "--finetuned_path")
    asked = ("--prompt", "Once upon a time\n\nLily")
    expected = said(capfd, "generate", base, *asked, *GREEDY)
    assert said(capfd, *words, str(file), *ONCE, "--input", "Lily") == expected
    assert cli.main([*words, str(tmp_path / "none.pth")]) == 2
    assert "none.pth" in capfd.readouterr().err


@pytest.mark.parametrize("verb", ["generate_adapter", "generate_adapter_v2"])
def test_adapters(models: Path, tmp_path: Path, verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Any adapter that is read will do: here one in PEFT's form, on one layer."""
    torch.manual_seed(0)
    place = "base_model.model.model.layers.2.self_attn.o_proj.lora_{}.weight"
    pair = {place.format("A"): torch.randn(4, 64), place.format("B"): torch.randn(64, 4)}
    safetensors.torch.save_file(pair, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["o_proj"], "layers_to_transform": [2]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    model = str(models / "stories260K-hf")
    expected = said(capfd, "generate", model, *ONCE, *GREEDY, "--adapter", str(tmp_path))
    assert expected != said(capfd, "generate", model, *ONCE, *GREEDY)
    assert said(capfd, verb, model, *ONCE, *GREEDY, "--adapter_path", str(tmp_path)) == expected
    assert said(capfd, verb, model, *ONCE, *GREEDY, "--adapter_path", str(tmp_path), "--devices", "2") == expected
    assert cli.main([verb, model, *GREEDY]) == 2
    assert "out/finetune/adapter" in capfd.readouterr().err


def test_validate_is_inspect(models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = models / "stories260K-litgpt"
    expected = said(capfd, "inspect", str(model))
    assert said(capfd, "validate", str(model), "--dtype", "bfloat16", "--training", "true") == expected
    folder = tmp_path / "final"
    shutil.copytree(model, folder, copy_function=shutil.copyfile)
    (folder / "lit_model.pth").rename(folder / "other.pth")
    assert "every tensor has its place" in said(capfd, "validate", str(folder), "--model_filename", "other.pth")
    assert cli.main(["validate", str(folder)]) == 2


def test_help_names_none_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--help"])
    said = capsys.readouterr().out
    assert not [verb for verb in VERBS if "_" in verb and verb in said]
    for verb, told in VERBS.items():
        if (action := told.new.split()[0]) in (*cli.available(), *cli.VERBS):
            assert cli.main([verb, "--help"]) == 0
            assert f"lathe {action} " in capsys.readouterr().out
