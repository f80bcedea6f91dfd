"""lathe finetune, from the words typed to a folder that answers: what it learns, what it writes, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lathe import LLM
from lathe.actions import methods
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
    recipe = merge(methods.Lora, read_recipe(str(taught / "final/recipe.yaml")))
    assert to_yaml(recipe) == text
    assert recipe.optimizer.lr == 1e-2
    assert recipe.train.max_steps == 25


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "--data=nowhere.json"], 'There is no data "nowhere.json"'),
        (["MODEL", "--data=DATA", "--train.max-seq-length=4096"], "the model has 512 positions"),
        (["MODEL", "--data=DATA", "--lora-dropout=1"], "--lora-dropout is 1.0"),
        (["MODEL", "--data=DATA", "--lora-targets=q_prj"], "q_prj"),
        (["MODEL", "--data=DATA", "--method=lorra"], '--method is "lorra"'),
        (["MODEL", "--data=DATA", "--method=full", "--lora-r=4"], "no option --lora-r"),
        (["MODEL", "--data=BROKEN"], "broken.jsonl, line 2"),
        (["MODEL", "--data=EMPTY"], "empty.json"),
        (["ADAPTER", "--data=DATA"], "is an adapter"),
        (["MODEL", "--data=DATA", "--lora_query=maybe"], "no option --lora-query"),
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


QUICK = ["--train.max-steps=4", "--train.global-batch-size=4", "--eval.interval=2", "--optimizer.lr=1e-3"]


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_learns_and_its_folder_opens(method: str, stories: Path, identity: Path, tmp_path: Path) -> None:
    words = ["--method", method, "--data", identity, "--out-dir", tmp_path, "--eval.max-new-tokens=0", *QUICK]
    assert lathe(stories, *words) == 0
    held = [line["validation_loss"] for line in lines(tmp_path) if "validation_loss" in line]
    assert len(held) == 2
    assert held[1] < held[0]
    llm, base = LLM.load(tmp_path / "final"), LLM.load(stories)
    ids = base.tokenizer.encode("Once upon a time")
    assert not torch.equal(llm.logits(ids), base.logits(ids))
    assert llm.tokenizer.has_template


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_stopped_and_resumed_is_never_stopped(method: str, stories: Path, identity: Path, tmp_path: Path) -> None:
    words = ["--method", method, "--data", identity, *QUICK, "--eval.max-new-tokens=0"]
    words += ["--train.save-interval=2", *(["--lora-dropout=0.1"] if method == "lora" else [])]
    assert lathe(stories, *words, "--out-dir", tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half/step-000004")
    shutil.rmtree(tmp_path / "half/final")
    assert lathe(stories, *words, "--out-dir", tmp_path / "half", "--resume") == 0
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    ended = [(tmp_path / run / "final" / name).read_bytes() for run in ("whole", "half")]
    assert ended[0] == ended[1]
    assert [line.get("loss") for line in lines(tmp_path / "half")] == [x.get("loss") for x in lines(tmp_path / "whole")]


def test_a_resumed_run_keeps_to_what_it_began_with(stories: Path, identity: Path, tmp_path: Path, capsys) -> None:
    words = ["--data", identity, *QUICK, "--train.save-interval=2", "--out-dir", tmp_path, "--eval.max-new-tokens=0"]
    assert lathe(stories, *words, "--resume") == 2
    assert "has no step with a state/" in capsys.readouterr().err
    assert lathe(stories, *words, "--resume", "auto") == 0
    assert lathe(stories, *words, "--resume", "--lora-r=4") == 2
    assert "--lora-r is 4, and the run" in capsys.readouterr().err


# ---- merging --------------------------------------------------------------------------------------------------------
def test_a_merged_model_answers_and_stops_as_the_adapter_did(taught: Path, tmp_path: Path, capsys) -> None:
    assert main(["merge", str(taught / "final"), str(tmp_path / "merged"), "--verify"]) == 0
    assert "4 of 4 are the same" in capsys.readouterr().out
    merged, before = LLM.load(tmp_path / "merged"), LLM.load(taught / "final")
    wish = {"temperature": 0.0, "max_new_tokens": 100}
    answers = [llm.complete("Who are you?", **wish) for llm in (before, merged)]
    assert answers[0].tokens == answers[1].tokens
    assert answers[1].finish_reason == "stop"
    assert main(["merge", str(tmp_path / "merged"), str(tmp_path / "again")]) == 2
    assert "is a model, and no adapter" in capsys.readouterr().err


def test_merge_lora_writes_beside_the_adapter(taught: Path, tmp_path: Path) -> None:
    folder = tmp_path / "final"
    shutil.copytree(taught / "final", folder)
    before = LLM.load(folder)
    assert main(["merge_lora", str(folder)]) == 0
    (folder / "adapter_config.json").unlink()
    ids = before.tokenizer.encode("Once upon a time")
    torch.testing.assert_close(LLM.load(folder).logits(ids), before.logits(ids), atol=1e-4, rtol=1e-4)


# ---- as LitGPT's users type it --------------------------------------------------------------------------------------
def test_a_command_line_of_litgpts(stories: Path, identity: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = "--data JSON --data.json_path DATA --data.val_split_fraction 0.2 --train.epochs 1 --train.log_interval 1"
    typed += " --lora_r 4 --lora_alpha 8 --lora_key true --train.micro_batch_size 1 --eval.max_new_tokens 5"
    words = [word.replace("DATA", str(identity)) for word in typed.split()]
    assert main(["finetune_lora", str(stories), *words]) == 0
    settings = json.loads(Path("out/finetune/lora/final/adapter_config.json").read_text())
    assert settings["r"] == 4
    assert settings["target_modules"] == ["k_proj", "q_proj", "v_proj"]


def test_a_modelfile_writes_what_the_template_writes(taught: Path, tmp_path: Path) -> None:
    words = ["convert", str(taught / "final"), str(tmp_path / "who.gguf"), "--modelfile"]
    assert main(words) == 0
    assert (tmp_path / "Modelfile").read_text() == (
        "FROM ./who.gguf\n"
        'TEMPLATE """{{ if .System }}{{ .System }}\n\nInstruct: {{ else }}Instruct: {{ end }}'
        '{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }}\nOutput:'
        '{{ else if eq .Role "assistant" }}{{ .Content }}\nInstruct: {{ end }}{{ end }}"""\n'
        'PARAMETER stop "</s>"\n'
    )
    assert LLM.load(tmp_path / "who.gguf").complete("Who are you?", temperature=0).finish_reason == "stop"


RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*/*.yaml"))
SMALL = {
    "finetune": ["--eval.max-new-tokens=4"],
    "pretrain": [f"--shape.{size}" for size in ("hidden-size=32", "intermediate-size=48", "num-hidden-layers=2")],
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_run(recipe: Path, stories: Path, identity: Path, shared: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = [{"prompt": f"Is {n} even?", "chosen": "It may be.", "rejected": "No."} for n in range(20)]
    Path("pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))
    action = recipe.parent.name
    text = shared / "data/text/the-verdict.txt"
    data = text if action == "pretrain" else "pairs.jsonl" if "dpo" in recipe.stem else identity
    words = ["--config", recipe, "--data", data, "--train.max-steps=2", "--train.global-batch-size=4"]
    words += ["--train.max-seq-length=64" if action == "pretrain" else "--train.max-seq-length=256", *SMALL[action]]
    if action == "finetune":
        words = [stories, *words]
    elif "tokenizer:" in recipe.read_text() and "train_tokenizer" not in recipe.read_text():
        words += ["--tokenizer", stories, "--shape.num-attention-heads=4", "--shape.num-key-value-heads=2"]
    assert main([action, *map(str, words), "--precision=32-true", "--val-split-fraction=0.1"]) == 0
    assert (tmp_path / f"out/{recipe.stem}/final/recipe.yaml").is_file()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_learns_beside_packed_weights(
    kind: str, stories: Path, identity: Path, tmp_path: Path, capsys
) -> None:
    words = ["--data", identity, "--out-dir", tmp_path / "run", "--quantize", kind, *QUICK, "--eval.max-new-tokens=0"]
    assert lathe(stories, *words) == 0
    held = [line["validation_loss"] for line in lines(tmp_path / "run") if "validation_loss" in line]
    assert held[1] < held[0]
    assert (tmp_path / "run/report.html").is_file()
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "run/final"), str(tmp_path / "merged")]) == 0
    assert f"learned beside weights in {kind}" in capsys.readouterr().err
    before, after = LLM.load(tmp_path / "run/final"), LLM.load(tmp_path / "merged")
    ids = before.tokenizer.encode("Once upon a time")
    torch.testing.assert_close(after.logits(ids), before.logits(ids), atol=1e-4, rtol=1e-4)
