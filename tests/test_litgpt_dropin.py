"""LitGPT's command lines and recipes in Lathe's words: each form of a line, word by word, and what cannot be had."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml
from cyclopts import App
from litgpt_lines import LINES

from lathe import compat
from lathe.cli import load, main
from lathe.command import command, read
from lathe.compat.places import model
from lathe.compat.table import GROUPS, MODELS, ROWS, VERBS
from lathe.errors import UsageError
from lathe.options import options

PAGE = Path(__file__).parents[1] / "docs/from-litgpt.md"
DEFECTS = Path(__file__).with_name("test_litgpt_defects.py")


@cache  # which, as the next, costs more than all that is tested with it
def switches(action: str) -> list[str]:
    if action == "models":
        return []
    return [option.key for option in options(load(action)[0]) if option.is_switch]


@cache
def commanded(action: str, cls: type) -> App:
    return command(action, cls, load(action)[1].__doc__)


def meant(line: str) -> compat.Meant:
    return compat.meant(shlex.split(line), switches, piped=False)


def hyphens(words: list[str]) -> list[str]:
    return [word.replace("_", "-") if word.startswith("--") else word for word in words]


@pytest.mark.parametrize(("typed", "new"), LINES.items(), ids=LINES)
def test_a_line_of_litgpts_is_one_of_lathes(typed: str, new: str) -> None:
    made = meant(typed)
    environment = dict(re.findall(r"([A-Z_]+)=(\w+) ", new))
    line = re.sub(r"[A-Z_]+=\w+ ", "", new)
    assert made.environment == environment
    if not new:
        assert hyphens(made.words) == hyphens(shlex.split(typed)) and not made.changed
    else:
        assert hyphens(made.words) == hyphens(shlex.split(line))
        assert made.changed
        assert (
            "In Lathe's words: " in made.told() and "HF_TOKEN=t" not in made.told() and "--token t" not in made.told()
        )
    action, *words = made.words
    cls = load(action)[0]
    if hasattr(cls, "understood"):
        cls, words = cls.understood(words)
    if "--print-config" not in words:
        assert read(commanded(action, cls), cls, words) is not None


@pytest.mark.parametrize("line", [line for line, new in LINES.items() if new], ids=str)
def test_what_is_translated_needs_no_more_translation(line: str) -> None:
    made = meant(line)
    again = compat.meant(made.words, switches, piped=False)
    assert again.words == made.words and not again.changed


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "finetune_lora a/b --data Alpaca --optimizer my.module.AdamW",
            "--optimizer is my.module.AdamW. There are AdamW8bit",
        ),
        ("finetune_lora a/b --data Alpaca --optimizer LBFGS", "--optimizer is LBFGS. There are AdamW8bit"),
        ("finetune_lora a/b --data Alpaca --optimizer.betas 0.9", "Write them as [0.9,0.95]."),
        (
            "finetune_lora a/b --data my.module.Data --data.json_path d.json",
            "--data is my.module.Data, which is none of LitGPT's data.",
        ),
    ],
)
def test_what_lathe_does_not_do_is_refused(line: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        meant(line)


def test_a_prompt_through_a_pipe_needs_no_question() -> None:
    assert compat.meant(["generate", "a/b"], switches, piped=True).words == ["generate", "a/b"]


@pytest.mark.parametrize("line", ["finetune_full --help", "finetune a/b --data.help Alpaca", "generate_tp -h"])
def test_help_is_that_of_the_action(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 0
    assert f"Usage: lathe {meant(line).words[0]} " in capsys.readouterr().out


# ---- recipes --------------------------------------------------------------------------------------------------------
FINETUNE = """
checkpoint_dir: checkpoints/a/b
out_dir: out/finetune/lora-b
precision: bf16-true
quantize: bnb.nf4
devices: 1
lora_r: 32
lora_query: true
lora_key: false
lora_value: true
lora_projection: false
lora_mlp: true
lora_head: false
data:
  class_path: litgpt.data.Alpaca2k
  init_args: {mask_prompt: false, val_split_fraction: 0.05, prompt_style: alpaca, ignore_index: -100, num_workers: 4}
train: {save_interval: 200, log_interval: 1, max_steps: null, epochs: 2, max_norm: null, min_lr: 6.0e-05}
eval: {interval: 100, initial_validation: false}
logger_name: csv
optimizer:
  class_path: torch.optim.AdamW
  init_args: {lr: 0.0002, weight_decay: 0.0, betas: [0.9, 0.95]}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolved(line: str) -> dict:
    """The options that a line comes to."""
    action, *words = meant(line).words
    cls = load(action)[0]
    if hasattr(cls, "understood"):
        cls, words = cls.understood(words)
    told = read(commanded(action, cls), cls, words)
    assert told is not None
    return vars(told)


def test_a_recipe_of_litgpts_for_finetuning(here: Path) -> None:
    Path("r.yaml").write_text(FINETUNE)
    told = resolved("finetune_lora --config r.yaml")
    assert (told["model"], told["data"], told["out_dir"]) == (
        "checkpoints/a/b",
        ("Alpaca2k",),
        Path("out/finetune/lora-b"),
    )
    assert (told["precision"], told["quantize"], told["lora_r"], told["logger"]) == ("bf16-true", "nf4", 32, ("csv",))
    assert set(told["lora_targets"]) == {"q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
    assert (told["loss_on"], told["prompt_style"], told["val_split_fraction"]) == ("all", "alpaca", 0.05)
    train, optimizer = told["train"], told["optimizer"]
    assert (train.epochs, train.max_steps, train.save_interval, train.min_lr) == (2, None, 200, 0.0)
    assert (optimizer.name, optimizer.lr, optimizer.beta1, optimizer.beta2) == ("adamw", 2e-4, 0.9, 0.95)
    assert told["eval"].interval == 100


def test_the_command_line_goes_before_a_recipe(here: Path) -> None:
    Path("r.yaml").write_text(FINETUNE)
    line = "finetune_lora c/d --config r.yaml --data JSON --data.json_path d.json --lora_r 4 --lora_key true"
    told = resolved(f"{line} --train.max_steps 5 --optimizer.lr 0.1 --val-split-fraction 0.2")
    assert (told["model"], told["data"], told["lora_r"], told["train"].max_steps) == ("c/d", ("d.json",), 4, 5)
    assert set(told["lora_targets"]) >= {"q_proj", "k_proj", "v_proj"}
    assert (told["optimizer"].lr, told["val_split_fraction"]) == (0.1, 0.2)


def test_a_recipe_of_litgpts_for_pretraining(here: Path) -> None:
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_query_groups": 4, "intermediate_size": 48, "bias": False}
    shape |= {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "parallel_residual": False}
    shape |= {"name": "small", "rotary_percentage": 1.0, "padded_vocab_size": 512, "block_size": 64, "hf_config": {}}
    recipe = {"model_name": "small", "model_config": shape, "data": "TinyStories", "resume": False}
    recipe |= {"train": {"tie_embeddings": True, "max_tokens": 9_700, "min_lr": "6e-5"}, "devices": "auto"}
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    told = resolved("pretrain --config r.yaml")
    config = yaml.safe_load(told["model"])
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (2, 32, 512)
    assert told["shape"].tie_word_embeddings is True
    assert (told["train"].max_tokens, told["train"].min_lr, told["resume"]) == (9700, 6e-5, None)


def test_a_recipe_of_lathes_is_left_to_the_action(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("finetune_lora a/b --data d.json --quantize bnb.nf4 --print-config".split()) == 0
    printed = capsys.readouterr().out
    Path("r.yaml").write_text(printed)
    made = meant("finetune --config r.yaml --print-config")
    assert made.words == ["finetune", "--config", "r.yaml", "--print-config"]
    assert main(made.words) == 0
    assert capsys.readouterr().out == printed


# ---- places ---------------------------------------------------------------------------------------------------------
def test_what_litgpt_writes_elsewhere_is_found(here: Path) -> None:
    for place in ("out/step-000100", "out/final"):
        Path(place).mkdir(parents=True)
    assert resolved("chat out/step-00000100")["model"] == "out/step-000100"
    assert resolved("pretrain a/b --data d --resume out/step-00000100")["resume"] == "out/step-000100"
    assert resolved("generate_full a/b --prompt x --finetuned_path out/final/lit_model.pth")["model"] == "out/final"
    assert resolved("generate_adapter a/b --prompt x --adapter_path out/final/lit_model.pth.adapter")["adapter"] == (
        "out/final",
    )


def test_names_of_models_stand_for_repos() -> None:
    assert all(model(name) == repo for name, repo in MODELS.items())
    assert resolved("pretrain llama --data d")["model"] == "llama"  # a family


# ---- the table and its page -----------------------------------------------------------------------------------------
def test_the_page_shows_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = [line for line in rows() if line not in page]
    assert not missing, "\n".join(missing)


def test_the_page_names_a_test_for_each_defect() -> None:
    told = re.findall(r"^\| (\d+) \|.*\| `(test_\w+)` \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    there = re.findall(r"^def (test_(\d+)_\w+)", DEFECTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted((int(number), name) for number, name in told) == sorted((int(number), name) for name, number in there)
    assert [int(number) for number, _ in told] == [*range(1, 17)]


def rows() -> list[str]:
    """The table as the page has it; `python tests/test_litgpt_dropin.py` prints it."""
    verbs = [f"| `{verb}` | `{told.new}` | {told.why} |" for verb, told in VERBS.items()]
    made = [f"| {row.actions} | `--{row.old}` | {_code(row.new)} | {row.why} |" for row in ROWS]
    return [line.replace("  |", " |") for line in (*verbs, *made)]


def _code(new: str) -> str:
    return {"": "", "!": "refused"}.get(new, f"`{new}`")


def test_every_row_is_of_an_action_that_is_there() -> None:
    for row in ROWS:
        for action in GROUPS.get(row.actions, row.actions.split()):
            assert any(verb.new.split()[0] == action for verb in VERBS.values()), row


if __name__ == "__main__":
    print("\n".join(rows()))
