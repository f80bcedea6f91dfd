"""LitGPT's generating verbs say what the `lathe generate` that they stand for says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lathe import cli

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
    (folder / "model_config.yaml").unlink()
    assert cli.main([*words, str(file)]) == 2
    assert "does not say what model lit_model.pth is" in capfd.readouterr().err
    assert cli.main([*words, str(tmp_path / "none.pth")]) == 2
    assert "none.pth does not exist" in capfd.readouterr().err


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
    assert not [verb for verb in cli.VERBS if verb in capsys.readouterr().out]
    for verb in cli.VERBS:
        assert cli.main([verb, "--help"]) == 0
        assert f"lathe {verb} " in capsys.readouterr().out
