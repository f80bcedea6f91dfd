"""Opening, filling, saving whole checkpoints: what is written is read back, by others too; what is wrong says so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import memory
import pytest
import torch
from safetensors.torch import load_file, save_file

from lathe import checkpoint, families
from lathe.checkpoint import saving
from lathe.errors import CheckpointError, ConfigError, LatheError, MissingError, UsageError
from lathe.model.layout import Layout

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def random_tensors(config: dict) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    slots = checkpoint.slots(checkpoint.blank(families.read(config)))
    return {name: torch.randn(slot.shape, generator=generator) * 0.1 for name, slot in slots}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama as another program would have written it."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    save_file(random_tensors(LLAMA), folder / "model.safetensors")
    return folder


def logits(decoder, tokens=(3, 1, 4, 1, 5, 9, 2, 6)) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.logits(decoder(torch.tensor(tokens), Layout.of([len(tokens)])))


def test_saved_is_read_back_bit_for_bit_and_by_transformers(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    found = checkpoint.open(folder)
    checkpoint.save(tmp_path / "out", found.load(), found.config)
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == load_file(folder / "model.safetensors").keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in load_file(folder / "model.safetensors").items())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])).logits[0]
    assert torch.allclose(logits(found.load()), theirs, atol=1e-5)


def test_shards_and_their_index(folder, tmp_path):
    found = checkpoint.open(folder)
    checkpoint.save(tmp_path / "out", found.tensors, found.config, shard_bytes=10_000)
    shards = list((tmp_path / "out").glob("model-*-of-*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(logits(checkpoint.open(tmp_path / "out").load()), logits(found.load()))
    shards[0].unlink()
    with pytest.raises(MissingError, match=shards[0].name):
        checkpoint.open(tmp_path / "out")


def test_a_tied_head_is_one_parameter_in_memory_and_one_tensor_on_disk(folder):
    decoder = checkpoint.open(folder).load()
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


def test_a_plain_load_is_a_view_of_the_file_and_never_writes_to_it(folder):
    before = (folder / "model.safetensors").read_bytes()
    decoder = checkpoint.open(folder).load()
    first, second = (p.data_ptr() for p in (decoder.model.norm.weight, decoder.model.layers[0].input_layernorm.weight))
    assert abs(first - second) < len(before)  # both lie in the one mapping
    with torch.no_grad():
        decoder.model.norm.weight.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
def test_loading_maps_the_file_instead_of_copying_it(tmp_path):
    """A model of 200 MB in bf16 costs almost no memory of its own until it is used."""
    config = LLAMA | {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 14, "vocab_size": 4000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    slots = checkpoint.slots(checkpoint.blank(families.read(config)))
    save_file({n: torch.zeros(s.shape, dtype=torch.bfloat16) for n, s in slots}, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size > 190e6
    program = """if True:
        import sys
        import memory
        from lathe import checkpoint
        before = memory.anonymous()
        decoder = checkpoint.open(sys.argv[1]).load()
        print(memory.anonymous() - before)
    """
    assert memory.printed(program, tmp_path) < 30


def test_dtype_is_as_stored_or_as_asked(folder):
    found = checkpoint.open(folder)
    assert found.dtype == torch.float32
    assert {p.dtype for p in found.load().parameters()} == {torch.float32}
    assert {p.dtype for p in found.load(dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_the_dtype_written_is_that_of_most_bytes(folder, tmp_path):
    found = checkpoint.open(folder)
    tensors = {name: ref.to(torch.bfloat16) for name, ref in found.tensors.items()}
    tensors[NORM] = found.tensors[NORM]  # the last one, and in another
    checkpoint.save(tmp_path / "out", tensors, found.config)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_tied_head_without_its_embedding_is_enough(folder):
    def swap(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    want = logits(checkpoint.open(folder).load())
    rewrite(folder, swap)
    assert torch.equal(logits(checkpoint.open(folder).load()), want)


def test_the_folder_is_whole_or_not_there(folder, tmp_path, monkeypatch):
    found = checkpoint.open(folder)
    monkeypatch.setattr(saving, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path / "out", found.tensors, found.config)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"]


def test_saving_over_a_model_needs_to_be_asked_for(folder):
    found = checkpoint.open(folder)
    with pytest.raises(UsageError, match="exists already"):
        checkpoint.save(folder, found.tensors, found.config)
    want = logits(found.load())
    checkpoint.save(folder, found.tensors, found.config, replace=True)
    assert torch.equal(logits(checkpoint.open(folder).load()), want)


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder: Path, **changes) -> None:
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def corrupt(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes((2**63).to_bytes(8, "little") + file.read_bytes()[8:])


NORM = "model.norm.weight"
WRONG = {
    "missing folder": (shutil.rmtree, MissingError, "does not exist"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), MissingError, "holds no weights"),
    "no config": (lambda f: (f / "config.json").unlink(), MissingError, "config.json does not exist"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), ConfigError, "is not JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), ConfigError, "no JSON object"),
    "architecture": (
        lambda f: reconfigure(f, architectures=["LlamaForCausalML"]),
        ConfigError,
        'mean "LlamaForCausalLM"',
    ),
    "unknown key": (lambda f: reconfigure(f, use_flux=True), ConfigError, '"use_flux"'),
    "wrong type": (lambda f: reconfigure(f, hidden_size="32"), ConfigError, '"hidden_size": "32"'),
    "rope type": (lambda f: reconfigure(f, rope_scaling={"rope_type": "spiral"}), ConfigError, "spiral"),
    "rope key": (lambda f: reconfigure(f, rope_scaling={"type": "linear", "factr": 2}), ConfigError, "factor"),
    "missing tensor": (lambda f: rewrite(f, lambda t: t.pop(NORM)), CheckpointError, f"lacks {NORM}"),
    "extra tensor": (lambda f: rewrite(f, lambda t: t.update(extra=torch.ones(1))), CheckpointError, "holds extra"),
    "shape": (lambda f: rewrite(f, lambda t: t.update({NORM: torch.ones(31)})), CheckpointError, r"shape \[31\]"),
    "truncated": (truncate, CheckpointError, "cut short"),
    "header": (corrupt, CheckpointError, "not a whole safetensors file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_paragraph(folder, name):
    spoil, kind, words = WRONG[name]
    spoil(folder)
    with pytest.raises(kind, match=words) as caught:
        checkpoint.open(folder).load()
    assert isinstance(caught.value, LatheError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_parent_of_models_says_which_it_holds(folder):
    with pytest.raises(MissingError, match="tiny"):
        checkpoint.open(folder.parent)


@pytest.mark.parametrize("form", ["stories260K-hf", "stories260K-litgpt", "stories260K-gguf/stories260K-f32.gguf"])
def test_one_real_model_in_three_forms(shared, form):
    """The tensors are those of the Hugging Face folder, bit for bit, whoever wrote the file."""
    models = shared / "data" / "models"
    want = checkpoint.open(models / "stories260K-hf").tensors
    found = checkpoint.open(models / form)
    tensors = {name: ref.read() for name, ref in found.tensors.items()}
    if not found.spec.tied:  # LitGPT has no word for a tied head and stores it twice
        assert torch.equal(tensors.pop("lm_head.weight"), tensors["model.embed_tokens.weight"])
    assert tensors.keys() == want.keys()
    assert all(torch.equal(tensors[name], ref.read()) for name, ref in want.items())
    assert replace(found.spec, tied=True) == checkpoint.open(models / "stories260K-hf").spec


def test_litgpt_wraps_finetuned_weights(shared, tmp_path):
    """`{"model": ...}` from finetuning, and the flat form of the same."""
    source = shared / "data" / "models" / "stories260K-litgpt"
    for name in ("model_config.yaml", "config.json"):
        shutil.copy(source / name, tmp_path / name)
    flat = torch.load(source / "lit_model.pth", weights_only=True)
    torch.save({"model": flat, "step_count": 3}, tmp_path / "lit_model.pth")
    want = checkpoint.open(source).tensors
    assert all(torch.equal(checkpoint.open(tmp_path).tensors[name].read(), ref.read()) for name, ref in want.items())


# ---- links ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokenizer.json", "merges.txt", "model.safetensors", "config.json"])
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, name):
    """Saved again, it would carry a private file along."""
    (tmp_path / "private").write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "private")
    with pytest.raises(CheckpointError, match=f"{name} is a link to .*private"):
        checkpoint.open(folder)


def test_links_that_the_hub_makes_are_followed(folder, tmp_path):
    cache = tmp_path / "hub" / "models--org--tiny"
    (cache / "blobs").mkdir(parents=True)
    for number, file in enumerate(list(folder.iterdir())):
        blob = cache / "blobs" / f"{number:064x}"
        file.rename(blob)
        file.symlink_to(blob)
    assert checkpoint.open(folder).spec.vocab == LLAMA["vocab_size"]


def test_a_folder_may_be_named_by_a_link_and_hold_its_own(folder, tmp_path):
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "model.safetensors")
    (folder / "model.safetensors").symlink_to(Path("weights") / "model.safetensors")
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert checkpoint.open(tmp_path / "link").spec.vocab == LLAMA["vocab_size"]
