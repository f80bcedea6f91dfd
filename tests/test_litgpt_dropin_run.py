"""LitGPT's tutorials, walked through with `lathe` for `litgpt`, tiny models and a Hub of our own: each line does its
work and leaves it where the next one looks for it."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread

import pytest
import torch
import yaml
from hubserver import HubServer, Repo
from serving import tiny

from lathe import LLM, checkpoint, families
from lathe.actions import occupant, serve
from lathe.cli import main
from lathe.model import initial

Run = Callable[..., str]
SHORT = "--train.max_steps 2 --train.global_batch_size 2 --train.max_seq_length 64 --eval.max_new_tokens 2"
READ = "--train.max_tokens 512 --train.global_batch_size 2 --train.micro_batch_size 2 --train.max_seq_length 64"
TEXTS = "--data TextFiles --data.train_data_path custom_texts/"
NEOX = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "vocab_size": 520,  # more rows than tokens
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
RECIPE = {
    "checkpoint_dir": "checkpoints/org/small",
    "out_dir": "out/finetune/lora-small",
    "precision": "32-true",
    "lora_r": 4,
    "lora_query": True,
    "lora_key": False,
    "data": {"class_path": "litgpt.data.JSON", "init_args": {"json_path": "d.json", "val_split_fraction": 0.1}},
    "train": {"epochs": 1, "log_interval": 1, "global_batch_size": 8, "max_seq_length": 64, "min_lr": 6e-5},
    "eval": {"interval": 100, "max_new_tokens": 2, "initial_validation": False},
    "logger_name": "csv",
    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-5, "betas": [0.9, 0.95]}},
}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, a Hub with two models, examples, texts and a recipe."""
    from huggingface_hub import constants

    place = tmp_path_factory.mktemp("workshop")
    small = tiny(tmp_path_factory.mktemp("small"))
    tokenizer = checkpoint.open(small).tokenizer()
    checkpoint.save(place / "neox", initial.decoder(families.read(NEOX), seed=0), NEOX, tokenizer=tokenizer)
    repos = {"org/small": small, "EleutherAI/pythia-14m": place / "neox"}
    hub = HubServer({repo: Repo({f.name: f.read_bytes() for f in at.iterdir()}) for repo, at in repos.items()})
    rows = [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}."} for n in range(20)]
    (place / "Alpaca").mkdir()
    for file in ("d.json", "Alpaca/all.json"):
        (place / file).write_text(json.dumps(rows))
    (place / "custom_texts").mkdir()
    for name in ("book1", "book2"):
        (place / f"custom_texts/{name}.txt").write_text((Path(__file__).parents[1] / "LICENSE").read_text())
    (place / "config_hub").mkdir()
    (place / "config_hub/lora.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.chdir(place)
        patch.delenv("HF_TOKEN", raising=False)
        yield place
    hub.stop()


@pytest.fixture
def run(workshop: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a line, which must succeed, and returns what it says on standard output; `.err` has the rest."""

    def run(line: str, *more: str, asked: str = "") -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(asked.encode())))
        status = main([*line.split(), *more])
        out, run.err = capfd.readouterr()
        assert status in (0, None), run.err
        return out

    return run


def opened(place: str) -> checkpoint.Checkpoint:
    return checkpoint.open(Path(place))


# ---- the readme -----------------------------------------------------------------------------------------------------
def test_download_then_finetune_then_chat(run: Run) -> None:
    assert run("download --repo_id org/small --access_token hf_member").strip() == str(Path("checkpoints/org/small"))
    assert "lathe download org/small --token ..." in run.err
    run(
        f"finetune org/small --data JSON --data.json_path d.json --data.val_split_fraction 0.1"
        f" --out_dir out/custom {SHORT}"
    )
    assert run.err.count("In Lathe's words: lathe finetune org/small --data d.json --val-split-fraction 0.1") == 1
    assert run("chat out/custom/final --max_new_tokens 4", asked="Hello\n").strip()
    assert run("generate out/custom/final --max_new_tokens 4", "--prompt", "Hello, my name is").strip()


def test_what_pretraining_writes_is_chatted_with_and_gone_on_with(run: Run) -> None:
    run("download EleutherAI/pythia-14m --tokenizer_only True")
    assert not list(Path("checkpoints/EleutherAI/pythia-14m").glob("*.safetensors"))
    pretrain = f"pretrain pythia-14m --tokenizer_dir EleutherAI/pythia-14m {TEXTS} {READ}"
    run(
        f"{pretrain} --out_dir new --train.lr_warmup_steps=2 --optimizer AdamW"
        " --optimizer.lr 0.005 --train.save_interval 2"
    )
    assert run("chat new/final --max_new_tokens 4", asked="Hello\n").strip()
    run("convert_pretrained_checkpoint new/final --output_dir converted")
    assert {"lit_model.pth", "model_config.yaml"} <= {file.name for file in Path("converted").iterdir()}
    run(f"{pretrain} --initial_checkpoint_dir converted --out_dir second --train.lr_warmup_steps=0")
    assert opened("second/final").spec == opened("new/final").spec
    assert Path("new/step-000002/state").is_dir()
    run("pretrain pythia-14m --config new/final/recipe.yaml --resume new/step-00000002 --out_dir third")
    assert "Resume from new/step-000002" in run.err.replace("\\", "/")
    assert Path("third/final/model.safetensors").is_file()


def test_continued_pretraining_keeps_rows_without_a_token(run: Run) -> None:
    model = "EleutherAI/pythia-14m"
    run(f"pretrain {model} --tokenizer_dir {model} --initial_checkpoint_dir {model} {TEXTS} {READ} --out_dir on")
    assert opened("on/final").spec.vocab == 520


def test_pretraining_by_a_recipe_with_a_shape_of_its_own(run: Run) -> None:
    shape = {"name": "stories", "n_layer": 2, "n_head": 4, "n_query_groups": 4, "n_embd": 32, "intermediate_size": 48}
    shape |= {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "parallel_residual": False, "bias": False}
    shape |= {"rotary_percentage": 1.0, "block_size": 64, "padded_vocab_size": 512, "hf_config": {}}
    recipe = {
        "model_name": "stories",
        "model_config": shape,
        "out_dir": "out/stories",
        "devices": "auto",
        "resume": False,
    }
    data = {"class_path": "litgpt.data.TextFiles", "init_args": {"train_data_path": "custom_texts"}}
    recipe |= {"data": data, "tokenizer_dir": "org/small", "logger_name": "csv", "initial_checkpoint_dir": None}
    recipe |= {"train": {"max_tokens": 256, "global_batch_size": 2, "tie_embeddings": True, "log_interval": 1}}
    Path("stories.yaml").write_text(yaml.safe_dump(recipe))
    run("pretrain --config stories.yaml")
    made = opened("out/stories/final")
    assert made.spec.tied and (made.spec.width, len(made.spec.layers), made.spec.vocab) == (32, 2, 512)


# ---- the tutorials of finetuning ------------------------------------------------------------------------------------
def test_a_lora_is_answered_with_merged_and_exported(run: Run) -> None:
    run(f"finetune_lora org/small --data Alpaca --train.save_interval 1 --quantize bnb.nf4 --precision 32-true {SHORT}")
    final, step = "out/finetune/lora/final", "out/finetune/lora/step-000001"
    assert run(f"generate {final} --max_new_tokens 4", "--prompt", "Recommend a movie.").strip()
    run(f"merge_lora {step}")
    before = LLM.load(final, device="cpu").logits([1, 2, 3])
    run(f"merge_lora {final}")
    run(f"convert_from_litgpt {final}/ out/converted")
    state = torch.load("out/converted/model.pth", weights_only=True)
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained("out/converted", dtype=torch.float32)
    theirs.load_state_dict(state, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(theirs(torch.tensor([[1, 2, 3]])).logits[0], before, atol=1e-3, rtol=1e-3)


def test_a_model_finetuned_whole(run: Run) -> None:
    run(f"finetune_full org/small --data Alpaca {SHORT}")
    assert run("generate_full org/small --max_new_tokens 4", "--prompt", "Say 3.").strip()
    named = "out/finetune/full/final/lit_model.pth"  # what LitGPT would have written there
    assert run(f"generate org/small --max_new_tokens 4 --finetuned_path {named}", "--prompt", "Say 3.").strip()


@pytest.mark.parametrize(("verb", "place"), [("adapter", "adapter"), ("adapter_v2", "adapter-v2")])
def test_llama_adapters(run: Run, verb: str, place: str) -> None:
    run(f"finetune_{verb} org/small --data Alpaca --adapter-start 0 {SHORT}")
    assert Path(f"out/finetune/{place}/final").is_dir()
    expected = run(
        f"generate org/small --adapter out/finetune/{place}/final --max_new_tokens 8 --temperature 0 --prompt Hello"
    )
    assert run(f"generate_{verb} org/small --max_new_tokens 8 --temperature 0 --prompt Hello") == expected
    named = f"out/finetune/{place}/final/lit_model.pth.{verb}"
    assert (
        run(f"generate_{verb} org/small --max_new_tokens 8 --temperature 0 --prompt Hello --adapter_path {named}")
        == expected
    )


def test_recipes_by_file_and_by_address(run: Run, workshop: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    run("download org/small")
    run("finetune_lora org/small --config config_hub/lora.yaml --train.max_steps 1")
    assert json.loads(Path("out/finetune/lora-small/final/adapter_config.json").read_text())["r"] == 4
    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(workshop))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/config_hub/lora.yaml"
        run(f"finetune --config {address} --lora_r 2 --train.max_steps 1 --out_dir out/by-address")
        server.shutdown()
    assert json.loads(Path("out/by-address/final/adapter_config.json").read_text())["r"] == 2
    told = yaml.safe_load(Path("out/by-address/final/recipe.yaml").read_text())
    assert (told["data"], told["optimizer"]["beta2"], told["optimizer"]["lr"]) == (["d.json"], 0.95, 2e-5)


# ---- all the others -------------------------------------------------------------------------------------------------
def test_models_are_converted_and_checked(run: Run) -> None:
    run("download org/small --convert_checkpoint false")
    run("convert_to_litgpt checkpoints/org/small")
    assert Path("checkpoints/org/small/lit_model.pth").is_file()
    assert "every tensor has its place" in run("validate org/small --dtype float32 --training true")
    assert "every tensor has its place" in run("validate org/small --model_filename lit_model.pth")
    (Path("checkpoints/org/small") / "lit_model.pth").unlink()


def test_a_token_goes_where_the_hub_looks_for_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    run("chat org/small --access_token hf_member --max_new_tokens 2", asked="Hi\n")
    assert os.environ["HF_TOKEN"] == "hf_member"
    assert "hf_member" not in run.err


def test_what_a_server_answers_where_nothing_is_said(run: Run) -> None:
    options = serve.Options("org/small", temperature=0.25, top_k=3, top_p=0.5, max_new_tokens=7, device="cpu")
    run("download org/small")
    told = occupant.load(options, Path("checkpoints/org/small")).defaults
    assert (told["temperature"], told["top_k"], told["top_p"], told["max_new_tokens"]) == (0.25, 3, 0.5, 7)
