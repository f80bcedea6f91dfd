"""LitGPT's and Lightning's checkpoints of every kind, as torch writes them here; LitGPT itself does in oracles/."""

from __future__ import annotations

import collections
import json
import pathlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from patterned import pattern
from torch import Tensor

from lathe import checkpoint, families
from lathe.checkpoint import Checkpoint
from lathe.errors import CheckpointError, ConfigError, LatheError, MissingError, UnsafeError
from lathe.families import litgpt
from lathe.weights import storage

DATA = Path(__file__).parent / "data"
RECORDED = json.loads((DATA / "litgpt.json").read_text())
OLD = json.loads((DATA / "litgpt_old.json").read_text())
TOLD = RECORDED["models"]["llama-3"]["config"]  # four heads that share two keys and values
STATE = {name: pattern(name, tuple(shape)) for name, shape in RECORDED["models"]["llama-3"]["tensors"].items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(TOLD))
    return tmp_path


@pytest.fixture
def plain(tmp_path: Path) -> Checkpoint:
    """What all that is written here should be read as."""
    place = tmp_path / "plain"
    place.mkdir()
    (place / "model_config.yaml").write_text(yaml.safe_dump(TOLD))
    torch.save(STATE, place / "lit_model.pth")
    return checkpoint.open(place)


def same(a: Checkpoint, b: Checkpoint) -> bool:
    tensors = a.tensors.keys() == b.tensors.keys()
    return (
        tensors and a.spec == b.spec and all(torch.equal(a.tensors[n].read(), b.tensors[n].read()) for n in a.tensors)
    )


def interleaved(whole: Tensor) -> Tensor:
    """Queries of one group, its key, its value, then those of the next: as LitGPT stored them until 2024."""
    channels, groups = TOLD["head_size"], TOLD["n_query_groups"]
    each = TOLD["n_head"] // groups
    q, k, v = whole.split([each * groups * channels, groups * channels, groups * channels])
    parts = zip(q.split(each * channels), k.split(channels), v.split(channels), strict=True)
    return torch.cat([part for group in parts for part in group])


# ---- kinds ----------------------------------------------------------------------------------------------------------
def wrapped(prefix: str, mark: str = "") -> dict[str, Tensor]:
    return {prefix + name.replace("transformer.h.", f"transformer.h.{mark}"): STATE[name] for name in STATE}


OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]}
KINDS: dict[str, Any] = {
    "finetuned": {"model": STATE},
    "pretrained": {"model": STATE, "optimizer": OPTIMIZER, "iter_num": 7, "train_dataloader": {"epoch": 0}},
    "compiled": {"model": wrapped("_orig_mod.")},
    "compiled blocks": {"model": wrapped("", "_orig_mod.")},
    "FSDP": {"model": wrapped("_forward_module._fsdp_wrapped_module.", "_checkpoint_wrapped_module.")},
    "DDP": {"model": wrapped("module.")},
    "trained": {"state_dict": wrapped("model."), "optimizer_states": [OPTIMIZER], "hyper_parameters": {"lr": 1e-3}},
    "trained otherwise": {"state_dict": wrapped("llm.gpt.") | {"loss.weight": torch.ones(3)}, "global_step": 7},
    "adapted": {n.replace(".qkv.weight", ".qkv.linear.weight"): tensor for n, tensor in STATE.items()},
    "interleaved": {
        name.replace("attn.qkv", "attn.attn"): interleaved(tensor) if "qkv" in name else tensor
        for name, tensor in STATE.items()
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_model(kind, folder, plain):
    torch.save(KINDS[kind], folder / "lit_model.pth")
    assert same(checkpoint.open(folder), plain)
    assert same(checkpoint.open(folder / "lit_model.pth"), plain)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kind", ["finetuned", "pretrained", "compiled"])
def test_a_folder_of_shards_is_the_same_model(kind, folder, plain):
    dcp.save(KINDS[kind], checkpoint_id=folder / "lit_model.pth", no_dist=True)
    assert same(checkpoint.open(folder), plain)
    assert same(checkpoint.open(folder / "lit_model.pth"), plain)
    (folder / "lit_model.pth").rename(folder / "step=7.ckpt")
    assert same(checkpoint.open(folder / "step=7.ckpt"), plain)
    assert checkpoint.open(folder / "step=7.ckpt").folder == folder


@pytest.mark.parametrize("file", ["model_config.yaml", "lit_config.json"])
def test_a_trainers_file_beside_a_configuration(file, tmp_path, plain):
    (tmp_path / file).write_text(yaml.safe_dump(TOLD) if file.endswith(".yaml") else json.dumps(TOLD))
    torch.save(KINDS["trained"], tmp_path / "epoch=0.ckpt")
    assert same(checkpoint.open(tmp_path / "epoch=0.ckpt"), plain)


def test_a_trainers_file_with_its_configuration_among_the_options(tmp_path, plain):
    options = {"config": TOLD, "checkpoint_dir": pathlib.PurePosixPath("/a/b"), "lr": 0.1}
    torch.save({**KINDS["trained"], "hyper_parameters": options}, tmp_path / "epoch=0.ckpt")
    assert same(checkpoint.open(tmp_path / "epoch=0.ckpt"), plain)


def test_options_of_litgpts_own_classes_are_kept_as_data(tmp_path, plain, monkeypatch):
    """As objects are pickled: of a class that is then not imported."""
    for module, name in (("litgpt.config", "Config"), ("litgpt.args", "TrainArgs")):
        kind = type(name, (), {"__module__": module})
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: kind}))
    monkeypatch.setitem(sys.modules, "litgpt", SimpleNamespace())
    config, train = sys.modules["litgpt.config"].Config(), sys.modules["litgpt.args"].TrainArgs()
    vars(config).update(TOLD, rope_n_elem=8)
    torch.save({**KINDS["trained"], "hyper_parameters": {"train": train, "config": config}}, tmp_path / "x.ckpt")
    assert same(checkpoint.open(tmp_path / "x.ckpt"), plain)


def test_a_trainers_file_with_nothing_that_says_what_it_is(tmp_path):
    torch.save(KINDS["trained"], tmp_path / "epoch=0.ckpt")
    with pytest.raises(MissingError, match=r"what model .*epoch=0\.ckpt is.*model_config\.yaml"):
        checkpoint.open(tmp_path / "epoch=0.ckpt")


def test_options_of_unknown_classes_are_refused_by_name(tmp_path):
    options = {"config": TOLD, "counts": collections.Counter("ab")}
    torch.save({**KINDS["trained"], "hyper_parameters": options}, tmp_path / "epoch=0.ckpt")
    with pytest.raises(UnsafeError, match=r"collections\.Counter"):
        checkpoint.open(tmp_path / "epoch=0.ckpt")


def test_two_models_in_one_file_are_not_guessed_at(folder):
    torch.save(wrapped("a.") | wrapped("b."), folder / "lit_model.pth")
    with pytest.raises(CheckpointError, match="lacks"):
        checkpoint.open(folder).load()


def test_an_optimizers_state_is_not_read(folder, monkeypatch):
    """Not when a checkpoint is opened, not when it is loaded: only the model's tensors are, each from where it lies."""
    torch.save(KINDS["pretrained"], folder / "lit_model.pth")
    asked, view = [], storage.view
    monkeypatch.setattr(storage, "view", lambda data, *rest: asked.append(len(data)) or view(data, *rest))
    checkpoint.open(folder).load()
    sizes = {tensor.nbytes for tensor in STATE.values()}
    assert {2 * 4, 4} & sizes == set()  # those of the optimizer's
    assert len(asked) > len(STATE)
    assert set(asked) <= sizes


# ---- folders --------------------------------------------------------------------------------------------------------
def test_a_runs_folder_names_its_end(tmp_path):
    for name in ("step-000002", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_config.yaml").write_text(yaml.safe_dump(TOLD))
        torch.save(KINDS["finetuned"], tmp_path / name / "lit_model.pth")
    assert len(checkpoint.open(tmp_path / "step-000002").spec.layers) == TOLD["n_layer"]
    with pytest.raises(MissingError, match=r"Did you mean .*final\?"):
        checkpoint.open(tmp_path)


@pytest.mark.parametrize(("commit", "name"), [(commit, name) for commit, models in OLD.items() for name in models])
def test_older_versions_meant_the_same_by_other_words(commit, name):
    then, now = (families.read(litgpt.config(told)) for told in (OLD[commit][name], RECORDED["published"][name]))
    assert then == replace(now, context=then.context)  # which was corrected for some
    assert OLD[commit][name].keys() - TOLD.keys() or commit == "674f3154"


def test_windows_in_every_third_layer_from_the_second_on():
    told = {**TOLD, "norm_qk": True, "n_layer": 7, "sliding_window_size": 5}
    told |= {"sliding_window_layer_stride": 3, "sliding_window_offset": 2}
    spec = families.read(litgpt.config(told))
    assert [layer.mixer.window for layer in spec.layers] == [None, 5, None, None, 5, None, None]


@pytest.mark.parametrize("odd", [[], {}, "most", -1, 0, 2.5, True])
@pytest.mark.parametrize("key", ["placing", "stride", "offset"])
def test_odd_windows_of_older_versions_are_refused_in_words(key, odd):
    told = {**TOLD, "norm_qk": True, "sliding_window_size": 5}
    name = "sliding_window_offset" if key == "offset" else f"sliding_window_layer_{key}"
    try:
        families.read(litgpt.config({**told, name: odd}))
    except LatheError as error:
        assert "sliding_window" in str(error)


# ---- prompt styles --------------------------------------------------------------------------------------------------
def test_prompt_styles_by_name(folder, plain, shared):
    assert plain.prompt_style() is None
    for name, style in {"Alpaca": "alpaca", "Qwen2_5": "qwen2.5", "Llama3": "llama3"}.items():
        (plain.folder / "prompt_style.yaml").write_text(f"class_path: litgpt.prompts.{name}\n")
        assert plain.prompt_style() == style
    assert checkpoint.open(shared / "data/formats/litgpt-lora-finetune/final").prompt_style() == "alpaca"


@pytest.mark.parametrize("path", ["os.system", "litgpt.prompts.Alpacca", "litgpt.prompts.", "", None, 3, ["a"]])
def test_other_classes_are_not_imported(path, plain):
    (plain.folder / "prompt_style.yaml").write_text(yaml.safe_dump({"class_path": path}))
    with pytest.raises(ConfigError, match=r"prompt_style\.yaml names the class .* nothing of it was run"):
        plain.prompt_style()
