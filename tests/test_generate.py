"""`lathe generate` from the words typed to the bytes printed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lathe import cli
from lathe.llm import LLM

ONCE = "Once upon a time"
FORMS = ["stories260K-hf", "stories260K-litgpt", "stories260K-gguf/stories260K-f32.gguf"]


@pytest.fixture(scope="module")
def models(shared: Path) -> Path:
    return shared / "data/models"


@pytest.fixture(scope="module")
def golden(models: Path) -> str:
    return (models / "stories260K/expected_greedy.txt").read_text()


@pytest.fixture(scope="module")
def model(models: Path) -> str:
    return str(models / FORMS[0])


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def generate(*words: str) -> int:
    return cli.main(["generate", *words, "--device", "cpu"])


@pytest.mark.parametrize("form", FORMS)
def test_the_golden_story(models: Path, golden: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(str(models / form), "--prompt", ONCE, "--temperature", "0", "--max-new-tokens", "150") == 0
    text, timings = capsys.readouterr()
    assert golden.startswith(ONCE + text.removesuffix("\n")) and len(text) > 300
    assert "Read 5 tokens at" in timings and "wrote 150 at" in timings


def test_eight_bits_tell_a_story(models: Path, golden: str, capsys: pytest.CaptureFixture[str]) -> None:
    packed = models / "stories260K-gguf/stories260K-q8_0.gguf"
    assert generate(str(packed), "--prompt", ONCE, "--temperature", "0", "--max-new-tokens", "60") == 0
    text = capsys.readouterr().out
    assert text.startswith(golden.removeprefix(ONCE)[:80])


def test_a_prompt_from_a_pipe(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = ("--temperature", "0", "--max-new-tokens", "20")
    generate(model, "--prompt", ONCE, *greedy)
    expected = capsys.readouterr().out
    for data, words in ((f"{ONCE}\n", ()), (ONCE, ("--prompt=-",)), (f"{ONCE}\r\n", ())):
        piped(monkeypatch, data.encode())
        assert generate(model, *words, *greedy) == 0
        assert capsys.readouterr().out == expected


def test_json(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--seed", "3", "--num-samples", "2", "--max-new-tokens", "12", "--top-k", "20", "--stop", "Lily", "--json")
    assert generate(model, "--prompt", ONCE, *words) == 0
    out, err = capsys.readouterr()
    page = json.loads(out)
    assert err == ""
    llm = LLM.load(model, device="cpu")
    for sample, seed in zip(page["samples"], (3, 4), strict=True):
        answer = llm.complete(ONCE, seed=seed, max_new_tokens=12, top_k=20, stop=["Lily"])
        assert (sample["text"], sample["tokens"]) == (answer.text, answer.tokens)
        assert sample["finish_reason"] == answer.finish_reason
        assert len(sample["logprobs"]) == sample["completion_tokens"] == len(sample["tokens"])
    assert (page["model"], page["prompt"]) == (model, ONCE)
    assert page["timings"]["decode_tokens"] == sum(len(sample["tokens"]) for sample in page["samples"])
    assert all(value > 0 for value in page["timings"].values())


def test_samples_one_after_another(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = (model, "--prompt", ONCE, "--max-new-tokens", "10")
    generate(*words, "--seed", "1")
    generate(*words, "--seed", "2")
    expected = capsys.readouterr().out
    assert generate(*words, "--seed", "1", "--num-samples", "2") == 0
    out, err = capsys.readouterr()
    assert out == expected
    assert err.startswith("Sample 1 of 2:\nSample 2 of 2:\nLoaded in")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--prompt", ""], "The prompt is empty."),
        (["--prompt", "word " * 600], "The context holds 512 tokens"),
        (["--prompt", "Hi", "--top-p", "2"], "top_p is 2.0. It must be from 0 to 1."),
        (["--prompt", "Hi", "--num-samples", "0"], "--num-samples is 0. It must be at least 1."),
        (["--prompt", "Hi", "--max-new-tokens", "0"], "max_new_tokens is 0. It must be 1 or more."),
        (["--prompt", "Hi", "--precision", "bf61"], 'Did you mean "bf16"?'),
        (["--prompt", "Hi", "--stop", ""], "A stop string is empty."),
        (["--promt", "Hi"], 'Did you mean "--prompt"?'),
    ],
)
def test_bad_input_is_one_paragraph(
    model: str, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model, *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err and err.startswith("Error: ") and err.count("\n") == 1


def test_bad_pipes(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for data, says in ((b"", "The prompt is empty."), (b"\n", "The prompt is empty."), (b"\xff\xfe", "not UTF-8")):
        piped(monkeypatch, data)
        assert generate(model) == 2
        assert says in capsys.readouterr().err


def test_help_imports_no_torch() -> None:
    code = "import sys; from lathe import cli; cli.main(['generate', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--max-new-tokens" in done.stdout


def test_every_wish_reaches_the_model(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each option changes the greedy or the drawn text as the same wish to LLM does."""
    llm = LLM.load(model, device="cpu")
    for name, value in (("repetition_penalty", 1.7), ("presence_penalty", 2.0), ("frequency_penalty", 1.5)):
        wishes = {"max_new_tokens": 40, "temperature": 0.0}
        plain = llm.generate(ONCE, raw=True, **wishes)
        assert generate(model, "--prompt", ONCE, f"--{name}={value}", "--max-new-tokens=40", "--temperature=0") == 0
        text = capsys.readouterr().out.removesuffix("\n")
        assert text == llm.generate(ONCE, raw=True, **wishes, **{name: value})
        assert text != plain
