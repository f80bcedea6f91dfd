"""`lathe generate` from the words typed to the bytes printed."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lathe import cli
from lathe.actions import serve
from lathe.engine import Sampling
from lathe.llm import LLM

pytestmark = pytest.mark.usefixtures("forks")

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


def test_a_prompt_from_a_file(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    greedy = ("--temperature", "0", "--max-new-tokens", "20")
    generate(model, "--prompt", ONCE, *greedy)
    expected = capsys.readouterr().out
    file = tmp_path / "prompt.txt"
    file.write_text(f"{ONCE}\n")
    assert generate(model, "--prompt-file", str(file), *greedy) == 0
    assert capsys.readouterr().out == expected
    assert generate(model, "--prompt-file", str(tmp_path / "none.txt")) == 2
    assert "none.txt cannot be read: No such file" in capsys.readouterr().err
    assert generate(model, "--prompt-file", str(file), "--prompt", "Hi") == 2
    assert "There are two prompts" in capsys.readouterr().err
    file.write_bytes(b"\xff")
    assert generate(model, "--prompt-file", str(file)) == 2
    assert "prompt.txt is not UTF-8" in capsys.readouterr().err


def test_a_system_message(shared: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "chatty"
    shutil.copytree(models / FORMS[0], folder, copy_function=shutil.copyfile)
    shutil.copyfile(shared / "data/chat_templates/chatml.jinja", folder / "chat_template.jinja")
    words = ("--prompt", "Hi", "--temperature", "0", "--max-new-tokens", "12", "--system", "Be brief.")
    assert generate(str(folder), *words) == 0
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = LLM.load(folder, device="cpu").generate(conversation, temperature=0, max_new_tokens=12)
    assert capsys.readouterr().out == expected + "\n"
    assert generate(str(models / FORMS[0]), *words) == 2
    assert "needs a chat template" in capsys.readouterr().err
    assert generate(str(folder), *words, "--raw") == 2
    assert "There is a --system message, and --raw" in capsys.readouterr().err


def test_a_draft_changes_the_speed_alone(model: str, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real model in eight bits guesses for itself in 32."""
    packed = str(models / "stories260K-gguf/stories260K-q8_0.gguf")
    words = (model, "--prompt", ONCE, "--temperature", "0", "--max-new-tokens", "150")
    generate(*words, "--json")
    plain = json.loads(capsys.readouterr().out)
    assert "draft" not in plain
    assert generate(*words, "--json", "--draft", packed, "--draft-tokens", "5") == 0
    page = json.loads(capsys.readouterr().out)
    assert page["samples"][0]["tokens"] == plain["samples"][0]["tokens"]
    assert page["samples"][0]["logprobs"] == pytest.approx(plain["samples"][0]["logprobs"], abs=1e-4)
    told = page["draft"]
    assert told["model"] == packed and 0.8 < told["acceptance_rate"] == told["accepted"] / told["proposed"] <= 1
    assert generate(*words, "--draft", packed) == 0
    assert "guesses of the draft stood." in capsys.readouterr().err


def test_a_draft_with_another_vocabulary(
    model: str, models: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(models / FORMS[0], folder, copy_function=shutil.copyfile)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    for file in (shared / "data/tokenizers/minimind").iterdir():
        shutil.copyfile(file, folder / file.name)
    assert generate(model, "--prompt", ONCE, "--draft", str(folder)) == 2
    error = capsys.readouterr().err
    assert "another vocabulary: its token" in error and error.count("\n") == 1
    assert generate(model, "--prompt", ONCE, "--draft", str(tmp_path)) == 2
    assert "holds no weights" in capsys.readouterr().err
    assert generate(model, "--prompt", ONCE, "--draft", model, "--draft-tokens", "0") == 2
    assert "--draft-tokens is 0. It must be at least 1." in capsys.readouterr().err


@pytest.mark.parametrize("wish", [("--temperature", "0"), ("--seed", "4", "--num-samples", "2")])
def test_several_devices_say_what_one_says(
    model: str, models: Path, wish: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    """Two processes, and layers on two devices which are both the CPU; the first process alone speaks."""
    packed = str(models / "stories260K-gguf/stories260K-q8_0.gguf")
    words = (model, "--prompt", ONCE, "--max-new-tokens", "30", "--json", *wish)
    assert generate(*words) == 0
    expected = [sample["tokens"] for sample in json.loads(capfd.readouterr().out)["samples"]]
    guesses = ("--draft", packed) if wish[0] == "--temperature" else ()
    for more in (("--devices", "2", *guesses), ("--devices", "2", "--strategy", "layers", *guesses)):
        assert generate(*words, *more) == 0
        page = json.loads(capfd.readouterr().out)
        assert [sample["tokens"] for sample in page["samples"]] == expected
        assert page["model"] == model and bool(guesses) == ("draft" in page)


@pytest.mark.skipif(sys.platform == "win32", reason="a process group cannot be interrupted there")
def test_an_interruption_ends_all_processes(model: str) -> None:
    words = ("generate", model, "--prompt", ONCE, "--device", "cpu", "--devices", "2", "--stop", "nothing says this")
    command = [sys.executable, "-m", "lathe", *words, "--max-new-tokens", "400", "--num-samples", "50"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert running.stdout is not None
    assert running.stdout.read(20)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert b"Traceback" not in err and b"Error" not in err
    with pytest.raises(ProcessLookupError):  # nobody of the group is left, once the dead are counted
        for _ in range(100):
            os.killpg(running.pid, 0)
            time.sleep(0.1)


def test_devices_that_cannot_be(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (("--devices", "3"), "A layer of 8 heads, 4 for keys and values cannot be divided among 3 devices."),
        (("--devices", "0"), "--devices is 0. It must be at least 1, or auto."),
        (("--devices", "2", "--top-p", "3"), "top_p is 3.0. It must be from 0 to 1."),
        (("--devices", "2", "--prompt", "word " * 600), "The context holds 512 tokens"),
    ):
        assert generate(model, *words, *(() if "--prompt" in words else ("--prompt", ONCE))) == 2
        out, err = capfd.readouterr()
        assert out == "" and says in err and err.count("\n") == 1


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


def test_looking_guesses_up_changes_the_speed_alone(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = (model, "--prompt", ONCE, "--seed", "1", "--max-new-tokens", "120", "--json")
    generate(*words)
    plain = json.loads(capsys.readouterr().out)
    assert generate(*words, "--draft", "ngram") == 0
    page = json.loads(capsys.readouterr().out)
    assert [sample["tokens"] for sample in page["samples"]] == [sample["tokens"] for sample in plain["samples"]]
    assert page["draft"]["model"] == "ngram" and 0 < page["draft"]["accepted"] <= page["draft"]["proposed"]


def test_answers_in_a_form(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}, "required": ["age"]}
    file = tmp_path / "person.json"
    file.write_text(json.dumps(schema | {"additionalProperties": False}))
    words = (model, "--prompt", ONCE, "--seed", "2", "--max-new-tokens", "200")
    for given in (str(file), file.read_text()):
        assert generate(*words, "--schema", given) == 0
        assert json.loads(capsys.readouterr().out)["age"] <= 99
    assert generate(*words, "--regex", "(yes|no), [a-z]{3}") == 0
    assert re.fullmatch("(yes|no), [a-z]{3}\n", capsys.readouterr().out)
    assert generate(*words, "--grammar", 'start: "one" | "two" " times"{2}') == 0
    assert capsys.readouterr().out in ("one\n", "two times times\n")
    for given, says in (
        (("--schema", str(tmp_path / "none.json")), "none.json cannot be read: No such file"),
        (("--schema", "{]"), "The JSON schema is no JSON"),
        (("--regex", "(a"), "unclosed group"),
        (("--grammar", "start: nothing"), 'unknown name: "nothing"'),
        (("--regex", "a", "--schema", "{}"), "There are a --schema and a --regex."),
        (("--logprobs", "2"), "Add --json."),
        (("--logit-bias", "a=b"), '--logit-bias is "a=b". It must be ID=NUMBER'),
        (("--logit-bias", "9999=1"), "logit_bias names token 9999. Ids run from 0 to 511."),
    ):
        assert generate(*words, *given) == 2
        assert says in capsys.readouterr().err


def test_likely_tokens_and_unwanted_ones(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = (model, "--prompt", ONCE, "--temperature", "0", "--max-new-tokens", "8", "--json")
    assert generate(*words, "--logprobs", "3") == 0
    [sample] = json.loads(capsys.readouterr().out)["samples"]
    for id, logprob, top in zip(sample["tokens"], sample["logprobs"], sample["top_logprobs"], strict=True):
        assert len(top) == 3 and (top[0]["id"], top[0]["logprob"]) == (id, pytest.approx(logprob))
    first = sample["tokens"][0]
    assert generate(*words, "--logit-bias", f"{first}=-100,{first + 1}=0.5") == 0
    [other] = json.loads(capsys.readouterr().out)["samples"]
    assert first not in other["tokens"] and "top_logprobs" not in other


def test_a_server_guesses_too(model: str) -> None:
    loaded = serve.load(serve.Options(model, draft="ngram", device="cpu"), Path(model))
    prompt = loaded.tokenizer.encode(ONCE)
    sequence = loaded.engine.submit(prompt, Sampling(seed=1, max_new_tokens=120, top_k=50, temperature=0.8))
    tokens = [token.id for token in loaded.engine.stream(sequence)]
    llm = LLM.load(model, device="cpu")
    assert tokens == llm.complete(prompt, seed=1, max_new_tokens=120, top_k=50, temperature=0.8).tokens
    assert sequence.accepted > 0
