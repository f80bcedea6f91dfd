"""`lathe convert`: any form to any other and back, streamed, whole or not there, and checked when asked."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path

import memory
import pytest
import tokenizers
import torch
import yaml
from safetensors.torch import load_file

from lathe import LLM, checkpoint, cli, families
from lathe.actions import compare
from lathe.tokenizer import train_bpe
from lathe.weights.tensors import Ref

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 290,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 0,
}
FORMS = ("hf", "litgpt", "gguf")


def tensors(config: dict, dtype: torch.dtype = torch.float32) -> dict[str, Ref]:
    generator = torch.Generator().manual_seed(0)
    slots = checkpoint.slots(checkpoint.blank(families.read(config)))
    return {name: Ref.of((torch.randn(slot.shape, generator=generator) * 0.3).to(dtype)) for name, slot in slots}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = CONFIG | {"tie_word_embeddings": request.param}
    checkpoint.save(folder, tensors(config), config, tokenizer=train_bpe(["a lathe turns wood"] * 5, 290))
    return folder


def target(folder: Path, form: str) -> Path:
    return folder / ("model.gguf" if form == "gguf" else form)


@pytest.mark.parametrize(("first", "second"), list(product(FORMS, FORMS)))
def test_any_form_becomes_any_other_and_is_the_same_model(model, first, second, tmp_path, capsys):
    one, two = target(tmp_path / "1", first), target(tmp_path / "2", second)
    assert cli.main(["convert", str(model), str(one), "--to", first]) == 0
    assert cli.main(["convert", str(one), str(two), "--to", second, "--verify"]) == 0
    assert "all equal" in capsys.readouterr().out
    found = compare.compare(checkpoint.open(model), checkpoint.open(two))
    assert (found.changed, found.alone, found.specs, found.agreed) == (0, (), True, found.written)
    assert found.weights == found.scores == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_tied_head_is_stored_once(model, form, tmp_path):
    tied = checkpoint.open(model).spec.tied
    place = target(tmp_path, form)
    assert cli.main(["convert", str(model), str(place), "--to", form]) == 0
    files = [place] if place.is_file() else [f for f in place.iterdir() if f.suffix in (".safetensors", ".pth")]
    parameters = sum(ref.nbytes for ref in tensors(CONFIG | {"tie_word_embeddings": tied}).values())
    assert parameters <= sum(file.stat().st_size for file in files) < parameters + 60_000


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "stored"), [("bf16", torch.bfloat16), ("float16", torch.float16)])
def test_weights_are_rounded_once_when_asked(model, form, dtype, stored, tmp_path, capsys):
    place = target(tmp_path, form)
    assert cli.main(["convert", str(model), str(place), "--to", form, "--dtype", dtype, "--verify"]) == 0
    assert "all equal, rounded" in capsys.readouterr().out
    name = "model.layers.0.mlp.up_proj.weight"
    written, source = checkpoint.open(place).tensors[name].read(), checkpoint.open(model).tensors[name].read()
    assert torch.equal(written, source.to(stored))


def test_verify_finds_another_model(model, tmp_path, capsys):
    """What --verify says of a copy in which one tensor was changed, and of one with another configuration."""
    place = tmp_path / "copy"
    assert cli.main(["convert", str(model), str(place)]) == 0
    source = checkpoint.open(model)
    changed = dict(source.tensors)
    changed["model.norm.weight"] = Ref.of(changed["model.norm.weight"].read() + 100)
    checkpoint.save(place, changed, source.config, tokenizer=source.tokenizer(), replace=True)
    found = compare.compare(source, checkpoint.open(place))
    assert (found.changed, found.same) == (1, False)
    assert "NOT the same model" in found.told()[-1]
    other = source.config | {"rms_norm_eps": 0.5}
    checkpoint.save(place, source.tensors, other, tokenizer=source.tokenizer(), replace=True)
    assert not compare.compare(source, checkpoint.open(place)).same


def test_a_quantized_file_is_near_and_says_how_near(model, tmp_path, capsys):
    assert cli.main(["convert", str(model), str(tmp_path), "--to", "gguf", "--dtype", "q8_0", "--verify"]) == 0
    assert [file.name for file in tmp_path.iterdir()] == [f"{tmp_path.name}-Q8_0.gguf"]
    assert "rounded by 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dtype", "Q4_0"], "Only GGUF has it: add --to gguf"),
        (["--dtype", "bf61"], 'Did you mean "bf16"?'),
        (["--to", "gguf", "--dtype", "Q3_X"], "Q4_K_M"),
        (["--to", "onnx"], "onnx"),
    ],
)
def test_a_wrong_wish_is_named(model, words, said, tmp_path, capsys):
    assert cli.main(["convert", str(model), str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced_unless_asked(model, tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    assert cli.main(["convert", str(model), str(tmp_path)]) == 2
    assert "add --force" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]
    assert cli.main(["convert", str(model), str(tmp_path), "--force"]) == 0
    assert (tmp_path / "model.safetensors").is_file()
    assert not (tmp_path / "precious.txt").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_source_that_fails_midway_leaves_nothing(model, form, tmp_path):
    source = checkpoint.open(model)

    def fail(box):
        raise OSError("the disk went away")

    broken = {**source.tensors, "model.norm.weight": Ref((32,), torch.float32, fail)}
    with pytest.raises(OSError, match="went away"):
        checkpoint.save(target(tmp_path, form), broken, source.config, form=form, tokenizer=source.tokenizer())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_paragraph(model, tmp_path, capsys, monkeypatch):
    usage = type("usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert cli.main(["convert", str(model), str(tmp_path / "out")]) == 2
    assert "GB free" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
@pytest.mark.parametrize(("form", "dtype"), [("hf", "bf16"), ("litgpt", "auto"), ("gguf", "Q8_0"), ("hf", "fp32")])
def test_memory_holds_a_piece_of_a_tensor(form, dtype, tmp_path):
    """A model of 200 MB whose largest tensor is 130 MB passes through less than the whole of that tensor."""
    config = CONFIG | {
        "vocab_size": 64_000,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "tie_word_embeddings": True,
    }
    checkpoint.save(tmp_path / "model", tensors(config, torch.bfloat16), config)
    program = """if True:
        import sys
        import memory
        from lathe import checkpoint
        found = checkpoint.open(sys.argv[1])
        form, dtype = sys.argv[3], None if sys.argv[4] == "auto" else sys.argv[4]
        print(memory.grown(lambda: checkpoint.save(sys.argv[2], found.tensors, found.config, form=form, dtype=dtype)))
    """
    dtype = {"bf16": "BF16", "fp32": "F32"}.get(dtype, dtype)
    assert memory.printed(program, tmp_path / "model", target(tmp_path, form), form, dtype) < 200


def test_a_repo_of_shards_becomes_one_file_and_back(model, tmp_path):
    source = checkpoint.open(model)
    checkpoint.save(
        tmp_path / "shards", source.tensors, source.config, tokenizer=source.tokenizer(), shard_bytes=20_000
    )
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert cli.main(["convert", str(tmp_path / "shards"), str(tmp_path / "one")]) == 0
    assert json.loads((tmp_path / "one" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert compare.compare(source, checkpoint.open(tmp_path / "one")).changed == 0


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_is_merged_on_the_way(shared, form, tmp_path):
    """The real one of a real model: what PEFT generated with it, and after merging, is what the new model says."""
    base, adapter = shared / "data/models/stories260K-hf", shared / "data/formats/peft-lora-stories260K"
    told, place = json.loads((adapter / "expected.json").read_text()), target(tmp_path, form)
    words = ["convert", str(base), str(place), "--to", form, "--adapter", str(adapter), "--verify"]
    assert cli.main(words) == 0
    answer = LLM.load(place, device="cpu").generate(told["prompt"], raw=True, temperature=0, max_new_tokens=80)
    assert told["prompt"] + answer == told["merged"] != told["base"]


# ---- LitGPT's verbs -------------------------------------------------------------------------------------------------


def test_convert_to_litgpt_puts_its_two_files_into_the_folder(model, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert cli.main(["convert_to_litgpt", str(folder), "--model_name", "Whatever", "--dtype", "bfloat16"]) == 0
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert after.keys() - before.keys() == {"lit_model.pth", "model_config.yaml"}
    assert {name: after[name] for name in before} == before
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    found = compare.compare(checkpoint.open(model), checkpoint.open(folder))
    assert (found.changed, found.alone, found.specs) == (0, (), True)


def test_convert_from_litgpt_writes_a_folder_and_model_pth(model, tmp_path):
    checkpoint.save(tmp_path / "lit", (source := checkpoint.open(model)).tensors, source.config, form="litgpt")
    assert cli.main(["convert_from_litgpt", str(tmp_path / "lit"), str(tmp_path / "out")]) == 0
    theirs = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    files = load_file(tmp_path / "out" / "model.safetensors")
    assert theirs.keys() == files.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in files.items())
    assert compare.compare(checkpoint.open(tmp_path / "lit"), checkpoint.open(tmp_path / "out")).same


def test_litgpt_gets_the_tokenizers_settings_that_it_asks_for(model, tmp_path):
    """Without tokenizer_config.json and its class, LitGPT opens no folder."""
    bare = shutil.copytree(model, tmp_path / "bare")
    (bare / "tokenizer_config.json").unlink()
    assert cli.main(["convert", str(bare), str(tmp_path / "lit"), "--to", "litgpt"]) == 0
    assert "tokenizer_class" in json.loads((tmp_path / "lit" / "tokenizer_config.json").read_text())
    text = "a lathe turns"
    one, two = (checkpoint.open(folder).tokenizer() for folder in (bare, tmp_path / "lit"))
    assert one.encode(text) == two.encode(text)


def test_litgpt_gets_a_tokenizer_json_where_there_are_only_merges(model, tmp_path):
    bare = shutil.copytree(model, tmp_path / "bare")
    tokenizers.Tokenizer.from_file(str(bare / "tokenizer.json")).model.save(str(bare))  # vocab.json and merges.txt
    (bare / "tokenizer.json").unlink()
    (bare / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    words = checkpoint.open(bare).tokenizer()
    assert cli.main(["convert", str(bare), str(tmp_path / "lit"), "--to", "litgpt"]) == 0
    assert cli.main(["convert_to_litgpt", str(bare)]) == 0
    for folder in (tmp_path / "lit", bare):
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        for text in ("a lathe turns", " it's 12,\n\n  x"):
            assert theirs.encode(text).ids == words.encode(text) == checkpoint.open(folder).tokenizer().encode(text)


def test_convert_pretrained_checkpoint_leaves_the_training_behind(model, tmp_path):
    lit, out = tmp_path / "lit", tmp_path / "out"
    checkpoint.save(lit, (source := checkpoint.open(model)).tensors, source.config, form="litgpt")
    weights = torch.load(lit / "lit_model.pth", weights_only=True)
    state = {name: torch.zeros(4, *tensor.shape) for name, tensor in weights.items()}
    torch.save({"model": weights, "optimizer": {"state": state}, "iter_num": 3}, lit / "lit_model.pth")
    out.mkdir()  # an empty folder is no obstacle
    assert cli.main(["convert_pretrained_checkpoint", str(lit), str(out)]) == 0
    again = torch.load(out / "lit_model.pth", weights_only=True)
    assert again.keys() == weights.keys()
    assert (out / "lit_model.pth").stat().st_size < (lit / "lit_model.pth").stat().st_size / 4


def test_convert_pretrained_checkpoint_keeps_what_its_folder_says(model, tmp_path):
    """A run with LitGPT's YaRN, in words that we would not write ourselves."""
    lit, out = tmp_path / "lit", tmp_path / "out"
    checkpoint.save(lit, (source := checkpoint.open(model)).tensors, source.config, form="litgpt")
    told = yaml.safe_load((lit / "model_config.yaml").read_text())
    stretch = {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_seq_len": 16}
    text = "# as LitGPT wrote it\n" + yaml.safe_dump(told | {"rope_adjustments": stretch})
    (lit / "model_config.yaml").write_text(text)
    assert cli.main(["convert_pretrained_checkpoint", str(lit), str(out)]) == 0
    assert (out / "model_config.yaml").read_text() == text
    assert compare.compare(checkpoint.open(lit), checkpoint.open(out)).same
    assert cli.main(["convert", str(lit), str(tmp_path / "other"), "--to", "litgpt"]) == 2  # which we would not say


def test_what_llama_cpp_passes_over_is_said(tmp_path, capsys):
    config = CONFIG | {"architectures": ["MistralForCausalLM"], "sliding_window": 8}
    checkpoint.save(tmp_path / "mistral", tensors(config), config)
    assert cli.main(["convert", str(tmp_path / "mistral"), str(tmp_path / "mistral.gguf")]) == 0
    assert (
        "llama.cpp ignores some of it, and answers otherwise there: its windows of 8 tokens." in capsys.readouterr().err
    )
    checkpoint.save(tmp_path / "llama", tensors(CONFIG), CONFIG)
    assert cli.main(["convert", str(tmp_path / "llama"), str(tmp_path / "llama.gguf")]) == 0
    assert "ignores" not in capsys.readouterr().err
