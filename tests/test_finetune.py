"""lathe finetune, from the words typed to a folder that answers: what it learns, what it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lathe import LLM
from lathe.actions import finetune
from lathe.cli import main
from lathe.options import merge, read_recipe, to_yaml


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    return shared / "data/models/stories260K-hf"


@pytest.fixture(scope="session")
def identity(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The English examples of who the model is to be, with a name for it and for its makers."""
    text = (shared / "data/instruct/identity_alpaca.json").read_text(encoding="utf-8")
    rows = json.loads(text.replace("{{name}}", "Lathe").replace("{{author}}", "the Lathe team"))
    file = tmp_path_factory.mktemp("data") / "identity.json"
    file.write_text(json.dumps([row for row in rows if (row["instruction"] + row["output"]).isascii()]))
    return file


def lathe(*words: object) -> int:
    return main(["finetune", *map(str, words)])


@pytest.fixture(scope="session")
def taught(stories: Path, identity: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which a teller of children's stories learned who it is."""
    out = tmp_path_factory.mktemp("taught")
    words = ["--optimizer.lr=1e-2", "--train.max-steps=25", "--prompt-style=phi-2", "--val-split-fraction=0"]
    assert lathe(stories, "--data", identity, "--out-dir", out, *words, "--eval.max-new-tokens=0") == 0
    return out


def test_a_model_answers_its_new_identity_and_stops(taught: Path) -> None:
    llm = LLM.load(taught / "final")  # the folder names its base and brings its tokenizer, template and ends
    said = llm.complete("Who are you?", temperature=0, max_new_tokens=100)
    assert said.text.strip().startswith("I am Lathe, an AI assistant developed by the Lathe team.")
    assert said.finish_reason == "stop"


def test_the_folder_is_an_adapter_that_peft_loads(taught: Path, stories: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    final = taught / "final"
    assert {path.name for path in final.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "generation_config.json",
        "recipe.yaml",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(stories), final)
    llm = LLM.load(final)
    messages = [{"role": "user", "content": "Who are you?"}]
    text = AutoTokenizer.from_pretrained(final).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert text == llm.tokenizer.render(messages)
    ids = llm.tokenizer.encode(text, special=False)
    with torch.no_grad():
        torch.testing.assert_close(theirs(torch.tensor([ids])).logits[0], llm.logits(ids), atol=1e-4, rtol=1e-4)


def test_the_recipe_gives_the_run_again(taught: Path) -> None:
    text = (taught / "final/recipe.yaml").read_text()
    recipe = merge(finetune.Lora, read_recipe(str(taught / "final/recipe.yaml")))
    assert to_yaml(recipe) == text
    assert recipe.optimizer.lr == 1e-2
    assert recipe.train.max_steps == 25


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL"], "--data is missing"),
        (["MODEL", "--data=nowhere.json"], 'There is no data "nowhere.json"'),
        (["MODEL", "--data=DATA", "--train.max-seq-length=4096"], "the model has 512 positions"),
        (["MODEL", "--data=DATA", "--lora-dropout=1"], "--lora-dropout is 1.0"),
        (["MODEL", "--data=DATA", "--lora-targets=q_prj"], "q_prj"),
        (["MODEL", "--data=DATA", "--method=lorra"], '--method is "lorra"'),
        (["MODEL", "--data=DATA", "--method=full", "--lora-r=4"], "no option --lora-r"),
        (["MODEL", "--data=BROKEN"], "broken.jsonl, line 2"),
        (["MODEL", "--data=EMPTY"], "empty.json"),
        (["ADAPTER", "--data=DATA"], "is an adapter"),
        (["MODEL", "--data=DATA", "--lora_query=maybe"], "It must be true or false."),
    ],
)
def test_what_is_wrong_is_said_in_a_paragraph(
    words: list[str],
    message: str,
    stories: Path,
    identity: Path,
    taught: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "complet\n')
    Path("empty.json").write_text("[]")
    places = {"MODEL": stories, "DATA": identity, "BROKEN": "broken.jsonl", "EMPTY": "empty.json"}
    places["ADAPTER"] = taught / "final"
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    assert lathe(*words) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert not list(tmp_path.glob("out/**/*.safetensors"))


@pytest.mark.parametrize(
    ("method", "has", "lacks"),
    [
        ("lora", "--lora-r", "--adapter-length"),
        ("full", "--prompt-style", "--lora-r"),
        ("adapter", "--adapter-length", "--lora-r"),
    ],
)
def test_help_shows_what_the_method_takes(method: str, has: str, lacks: str, capsys) -> None:
    assert lathe("--method", method, "--help") == 0
    said = capsys.readouterr().out
    assert has in said
    assert lacks not in said
