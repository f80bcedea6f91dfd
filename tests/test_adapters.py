"""Adapters put on from outside: PEFT is the oracle, for what its folders mean and for what we write."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CASES, ask, reference
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from lathe import checkpoint
from lathe.errors import CheckpointError, ConfigError, LatheError, MissingError, UsageError
from lathe.llm import LLM
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.transforms import adapt, begin
from lathe.transforms.terms import Lora, Prefix, Scale

TOKENS = torch.tensor([1, 5, 9, 30, 2, 2, 17, 8, 11, 4, 27, 3, 44, 60])
MODELS = ["llama-3.2-tied-llama3-rope", "llama-biased", "qwen3", "phi3-window", "gpt2", "neox", "gemma2", "olmo2"]


def logits(decoder: Decoder, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(tokens, Layout.of([len(tokens)])))


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() < 3e-5 * theirs.std())


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models as transformers writes them, by the names of the family suite's cases."""
    cases = {case.name: case for case in CASES if case.name in {*MODELS, "deepseek-v3", "mixtral"}}
    return {name: reference(case, tmp_path_factory.mktemp(name)).folder for name, case in cases.items()}


def made(base: Path, folder: Path, seed: int = 0, **settings: Any) -> Tensor:
    """Have PEFT put a LoRA with random numbers on a model and save it. Returns the logits it has then."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype=torch.float32).eval()
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    moved = [p for name, p in adapted.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in moved:
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    adapted.save_pretrained(folder)
    return ask(adapted, TOKENS)


def layers_of(base: Path) -> list[str]:
    """The ends of the names of a model's linear maps, as its family calls them."""
    model = AutoModelForCausalLM.from_pretrained(base)
    kinds = {"Linear", "Conv1D"}
    names = {n.rpartition(".")[2] for n, m in model.named_modules() if type(m).__name__ in kinds}
    return sorted(names - {"lm_head", "embed_out"})


def embedding_of(base: Path) -> str:
    model = AutoModelForCausalLM.from_pretrained(base)
    return next(n for n, m in model.named_modules() if m is model.get_input_embeddings()).rpartition(".")[2]


@dataclass(frozen=True)
class Kind:
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    embedding: bool = False
    whole: bool = False


KINDS = [
    Kind("plain"),
    Kind("rank-stabilised", {"use_rslora": True, "r": 5, "lora_alpha": 3}),
    Kind("dora", {"use_dora": True}),
    Kind("biases", {"bias": "all"}),
    Kind("own-biases", {"bias": "lora_only", "lora_bias": True}),
    Kind("embedding", {}, embedding=True),
    Kind("whole-head-and-embedding", {}, whole=True),
    Kind("some-layers", {"layers_to_transform": [1], "rank_pattern": {"layers.1.*": 3}, "alpha_pattern": {"1.*": 2}}),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_that_peft_wrote_gives_its_logits(name: str, kind: Kind, bases: dict[str, Path], tmp_path: Path):
    targets = layers_of(bases[name]) + ([embedding_of(bases[name])] if kind.embedding else [])
    settings = {"r": 4, "lora_alpha": 16, "target_modules": targets, **kind.settings}
    if kind.whole:
        settings["modules_to_save"] = ["lm_head", embedding_of(bases[name])]
    if kind.name == "some-layers" and name == "gpt2":
        settings |= {"layers_pattern": "h", "rank_pattern": {r"h\.1.*": 3}}
    theirs = made(bases[name], tmp_path / "adapter", **settings)
    model = checkpoint.open(bases[name])
    found = checkpoint.put_on(model, {"default": tmp_path / "adapter"})
    decoder = found.load()
    assert not close(logits(model.load()), theirs)
    assert close(logits(decoder), theirs)
    with adapt.disabled(decoder):
        assert torch.equal(logits(decoder), logits(model.load()))


def test_a_genuine_adapter_of_a_real_model(shared: Path):
    folder, base = shared / "data/formats/peft-lora-stories260K", shared / "data/models/stories260K-hf"
    expected = json.loads((folder / "expected.json").read_text())

    def told(llm: LLM) -> str:
        return expected["prompt"] + llm.generate(expected["prompt"], temperature=0, max_new_tokens=80)

    llm = LLM.load(base, device="cpu", adapter=folder)
    assert told(llm) == expected["with_adapter"]
    with adapt.disabled(llm.decoder):
        assert told(llm) == expected["base"]
    adapt.merge(llm.decoder)
    assert told(llm) == expected["merged"]


# ---- several ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def two(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two LoRAs for one Llama, on different modules, of different ranks."""
    place = tmp_path_factory.mktemp("two")
    made(bases["qwen3"], place / "a", 1, r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"])
    made(bases["qwen3"], place / "b", 2, r=2, lora_alpha=9, target_modules=["q_proj", "down_proj", "k_proj"])
    return {name: place / name for name in "ab"}


def test_adapters_are_switched_summed_and_combined_as_peft_combines_them(bases, two):
    theirs = AutoModelForCausalLM.from_pretrained(bases["qwen3"], dtype=torch.float32)
    theirs = PeftModel.from_pretrained(theirs, two["a"], "a").eval()
    theirs.load_adapter(two["b"], "b")
    theirs.add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum", combination_type="cat")
    theirs.add_weighted_adapter(["a", "b"], [0.3, 0.6], "mixed", combination_type="cat")
    base = checkpoint.open(bases["qwen3"])
    decoder = checkpoint.put_on(base, two).load()
    alone = logits(base.load())
    assert adapt.names(decoder) == ["a", "b"] and adapt.active(decoder) == ["a", "b"]
    theirs.set_adapter("sum")
    assert close(logits(decoder), ask(theirs, TOKENS))
    for name in "ab":
        adapt.activate(decoder, [name])
        theirs.set_adapter(name)
        assert close(logits(decoder), ask(theirs, TOKENS))
    adapt.combine(decoder, "mixed", {"a": 0.3, "b": 0.6})
    theirs.set_adapter("mixed")
    assert close(logits(decoder), ask(theirs, TOKENS))
    adapt.activate(decoder, ())
    assert torch.equal(logits(decoder), alone)
    for name in ("a", "mixed", "b"):
        adapt.remove(decoder, name)
    assert not list(adapt.adapted(decoder))
    assert decoder.state_dict().keys() == base.load().state_dict().keys()
    assert torch.equal(logits(decoder), alone)


def test_each_of_several_replaces_a_module_alone(bases, tmp_path):
    base = checkpoint.open(bases["qwen3"])
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    theirs = {name: made(bases["qwen3"], tmp_path / name, seed, **settings) for seed, name in enumerate("ab")}
    decoder = checkpoint.put_on(base, {"a": tmp_path / "a"}).load()
    other = checkpoint.put_on(base, {"b": tmp_path / "b"})
    with pytest.raises(UsageError, match=r"a and b both replace lm_head"):
        checkpoint.put_on(base, {name: tmp_path / name for name in "ab"})
    with pytest.raises(UsageError, match=r"a and b both replace lm_head"):
        adapt.put(decoder, "b", other.adapters["b"].parts)
    for name in "ab":
        adapt.activate(decoder, [name])
        assert close(logits(decoder), theirs[name])


@pytest.mark.parametrize("name", ["", "a.b", "keys", "a"])
def test_a_name_that_cannot_be_one(name: str, bases, two):
    decoder = checkpoint.put_on(checkpoint.open(bases["qwen3"]), {"a": two["a"]}).load()
    with pytest.raises(UsageError, match="adapter"):
        adapt.put(decoder, name, begin.lora(decoder, Lora()))


# ---- into the weights ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["plain", "dora", "biases", "embedding", "whole-head-and-embedding"])
@pytest.mark.parametrize("name", ["llama-3.2-tied-llama3-rope", "phi3-window", "gpt2", "neox"])
def test_a_merged_model_is_the_same_in_memory_and_on_disk(name: str, kind: str, bases, tmp_path):
    """Converting an adapter's folder merges it; transformers answers with what comes of it as PEFT did unmerged."""
    [chosen] = [k for k in KINDS if k.name == kind]
    extra = [embedding_of(bases[name])] if chosen.embedding else []
    settings = {"r": 4, "lora_alpha": 16, "target_modules": layers_of(bases[name]) + extra, **chosen.settings}
    if chosen.whole:
        settings["modules_to_save"] = ["lm_head", embedding_of(bases[name])]
    theirs = made(bases[name], tmp_path / "adapter", **settings)
    opened = checkpoint.open(tmp_path / "adapter")  # whose configuration names the base
    assert opened.spec == checkpoint.open(bases[name]).spec or opened.config["tie_word_embeddings"] is False

    checkpoint.save(tmp_path / "merged", opened.tensors, opened.config)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager", dtype=torch.float32)
    assert close(ask(again.eval(), TOKENS), theirs)

    decoder, alone = opened.load(), logits(checkpoint.open(bases[name]).load())
    adapt.merge(decoder)
    assert close(logits(decoder), theirs)
    with adapt.disabled(decoder):
        assert torch.equal(logits(decoder), alone)
    assert close(logits(decoder), theirs)
    adapt.unmerge(decoder)
    checkpoint.save(tmp_path / "saved", decoder, opened.config)  # with what is active
    assert close(logits(checkpoint.open(tmp_path / "saved").load()), theirs)
    assert close(logits(adapt.fold(decoder)), theirs)
    assert not list(adapt.adapted(decoder))
    assert close(logits(decoder), theirs)


def test_a_merged_weight_is_rounded_once(bases, two):
    base = checkpoint.open(bases["qwen3"])
    decoder = checkpoint.put_on(base, two).load(dtype=torch.bfloat16)
    name = "model.layers.0.self_attn.q_proj"
    module = decoder.get_submodule(name)
    weight = base.tensors[f"{name}.weight"].read().bfloat16()
    parts = [module.part_of("a"), module.part_of("b")]
    assert {part.a.dtype for part in parts} == {torch.float32}
    exact = weight.double() + sum(part.scaling * part.b.double() @ part.a.double() for part in parts)
    adapt.merge(decoder)
    assert (module.base_layer.weight == exact.bfloat16()).float().mean() > 0.999  # ties apart
    adapt.unmerge(decoder)
    assert torch.equal(module.base_layer.weight, weight)
    with pytest.raises(UsageError, match="Unmerge"):
        adapt.merge(decoder)
        adapt.activate(decoder, ["a"])


# ---- what learns -----------------------------------------------------------------------------------------------------
def learned(decoder: Decoder, steps: int = 8) -> tuple[float, float]:
    """The loss before some steps and after."""
    torch.manual_seed(1)
    moving = adapt.trainable(decoder)
    decoder.train()
    optimizer = torch.optim.AdamW(moving.values(), lr=0.01)
    losses = []
    for _ in range(steps):
        rows = decoder.logits(decoder(TOKENS, Layout.of([len(TOKENS)])))
        loss = torch.nn.functional.cross_entropy(rows[:-1], TOKENS[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    decoder.eval()
    return losses[0], losses[-1]


METHODS = {
    "lora": lambda decoder: begin.lora(decoder, Lora(targets="all-linear", dropout=0.1)),
    "dora": lambda decoder: begin.lora(decoder, Lora(dora=True, targets="all-linear", layers=(1,))),
    "own-biases": lambda decoder: begin.lora(
        decoder, Lora(own_bias=True, targets="all-linear", excluded=("kv_b_proj",))
    ),
    "biases": lambda decoder: begin.lora(
        decoder, Lora(bias="all", whole=("lm_head",), targets="all-linear", layers=(0,))
    ),
    "embedding": lambda decoder: begin.lora(decoder, Lora(targets=("embed_tokens", "lm_head"), excluded=("lm_head",))),
    "prefix": lambda decoder: begin.prefix(decoder, Prefix(length=4, start=0)),
    "scale": lambda decoder: begin.scale(decoder, Scale(Prefix(length=3, start=1))),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["qwen3", "neox", "gemma2", "mixtral", "deepseek-v3"])
def test_an_adapter_begins_as_nothing_and_learns_alone(name: str, method: str, bases):
    decoder = checkpoint.open(bases[name]).load()
    before = {key: tensor.clone() for key, tensor in decoder.state_dict().items()}
    alone = logits(decoder)
    if name == "deepseek-v3" and method in ("prefix", "scale"):
        with pytest.raises(UsageError, match="heads with keys and values of their own"):
            METHODS[method](decoder)
        return
    adapt.put(decoder, "mine", METHODS[method](decoder))
    assert close(logits(decoder), alone)
    first, last = learned(decoder)
    assert last < first
    moving = {name for name, p in decoder.named_parameters() if p.requires_grad}
    assert moving == adapt.own(decoder, "mine").keys()
    assert not close(logits(decoder), alone)
    adapt.remove(decoder, "mine")
    assert decoder.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in decoder.state_dict().items())


def test_parameters_are_called_what_peft_calls_them(bases):
    decoder = checkpoint.open(bases["qwen3"]).load()
    settings = {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(bases["qwen3"]), LoraConfig(**settings))
    adapt.put(decoder, "default", begin.lora(decoder, Lora(targets=("q_proj", "embed_tokens"), whole=("lm_head",))))
    wanted = {n.removeprefix("base_model.model.") for n, p in theirs.named_parameters() if p.requires_grad}
    assert adapt.trainable(decoder).keys() == wanted


def test_what_a_family_keeps_as_one_learns_as_one(bases, tmp_path):
    """PEFT has one A for Phi-3's q, k and v; reading it makes no three of it."""
    targets = layers_of(bases["phi3-window"])
    made(bases["phi3-window"], tmp_path / "adapter", r=4, target_modules=targets)
    decoder = checkpoint.open(tmp_path / "adapter").load()
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(bases["phi3-window"]), tmp_path / "adapter", is_trainable=True
    )
    count = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert sum(p.numel() for p in adapt.trainable(decoder).values()) == count
    first, last = learned(decoder)
    assert last < first
    attention = decoder.model.layers[0].self_attn
    assert attention.q_proj.lora_A["default"] is attention.v_proj.lora_A["default"]


def test_a_prefix_is_seen_through_the_layers_own_projections():
    """LitGPT cuts them as they lay in older files (its defect 5), and computes them once, so that they never learn
    (its defect 4): that they do learn, the test above shows."""
    from test_engine import decoder_of

    decoder = decoder_of("gqa")
    adapt.put(decoder, "p", begin.prefix(decoder, Prefix(3, 0)))
    attention = decoder.model.layers[0].self_attn
    attention.gating_factor["p"].data.fill_(0.7)
    x = torch.randn(5, decoder.spec.width)
    with torch.no_grad():
        q = attention.q_proj(x).unflatten(-1, (-1, attention.part.channels))
        tokens = attention.adapter_wte["p"]
        shared = attention.part.heads // attention.part.kv_heads
        k, v = (
            f(tokens).unflatten(-1, (-1, attention.part.channels)).repeat_interleave(shared, 1)
            for f in (attention.k_proj, attention.v_proj)
        )
        zero = torch.zeros(5, attention.part.kv_heads, attention.part.channels)
        seen = attention.look(q, zero, zero, Layout.of([5]), None)
        weights = (torch.einsum("thc,phc->htp", q, k) * attention.part.scale).softmax(-1)
        assert torch.allclose(seen, 0.7 * torch.einsum("htp,phc->thc", weights, v), atol=1e-5)


# ---- with a cache ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["lora", "dora", "scale"])
@pytest.mark.parametrize("kind", ["gqa", "softcap", "window", "latent", "experts"])
def test_an_adapter_answers_the_same_with_a_cache(kind: str, method: str):
    """Latent attention folds one of its matrices into the queries there: with what adapters add to it."""
    from test_engine import answers, decoder_of, prompt_of, whole

    from lathe.engine import Engine, Sampling

    decoder = decoder_of(kind)
    if (kind, method) == ("latent", "scale"):
        pytest.skip("it is refused")
    settings = Lora(targets="all-linear", dora=method == "dora")
    parts = begin.scale(decoder, Scale(Prefix(3, 0))) if method == "scale" else begin.lora(decoder, settings)
    adapt.put(decoder, "x", parts)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in adapt.own(decoder, "x").values():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    [made] = answers(Engine(decoder), [prompt_of(20)], [Sampling(temperature=0, max_new_tokens=30)])
    tokens = [*prompt_of(20), *made]
    assert whole(decoder, tokens, len(tokens)).argmax(-1).tolist()[19:-1] == made


@pytest.mark.parametrize("name", ["deepseek-v3", "mixtral"])
def test_14_latent_attention_and_shared_experts_are_adapted_too(name: str, bases, tmp_path):
    """LitGPT builds plain attention in the place of the one, and fails on the other. PEFT has one term in each layer
    for the matrices of all experts, and another for those that lead back."""
    theirs = made(bases[name], tmp_path / "adapter", r=3, lora_alpha=7, target_modules=layers_of(bases[name]))
    found = checkpoint.open(tmp_path / "adapter")
    assert close(logits(found.load()), theirs)
    assert name == "mixtral" or any("experts.down_proj" in module for module in found.adapters["default"].parts)
    checkpoint.save(tmp_path / "merged", found.tensors, found.config)
    assert close(logits(checkpoint.open(tmp_path / "merged").load()), theirs)


# ---- written for PEFT ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["lora", "dora", "biases", "own-biases", "embedding"])
@pytest.mark.parametrize("name", MODELS)
def test_peft_loads_what_we_write(name: str, method: str, bases, tmp_path):
    opened = checkpoint.open(bases[name])
    decoder = opened.load()
    adapt.put(decoder, "mine", METHODS[method](decoder))
    learned(decoder)
    ours = logits(decoder)
    checkpoint.write_adapter(tmp_path / "adapter", decoder, "mine", opened.config, str(bases[name]))
    base = AutoModelForCausalLM.from_pretrained(bases[name], attn_implementation="eager", dtype=torch.float32)
    assert close(ask(PeftModel.from_pretrained(base, tmp_path / "adapter").eval(), TOKENS), ours)
    assert close(logits(checkpoint.open(tmp_path / "adapter").load()), ours)
    with pytest.raises(UsageError, match="exists"):
        checkpoint.write_adapter(tmp_path / "adapter", decoder, "mine", opened.config)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.whole], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["qwen3", "phi3-window", "gpt2", "neox"])
def test_what_peft_wrote_is_written_again(name: str, kind: Kind, bases, tmp_path):
    targets = layers_of(bases[name]) + ([embedding_of(bases[name])] if kind.embedding else [])
    settings = {"r": 4, "lora_alpha": 16, "target_modules": targets, **kind.settings}
    if kind.name == "some-layers" and name == "gpt2":
        settings |= {"layers_pattern": "h", "rank_pattern": {r"h\.1.*": 3}}
    theirs = made(bases[name], tmp_path / "adapter", **settings)
    opened = checkpoint.open(tmp_path / "adapter")
    checkpoint.write_adapter(tmp_path / "again", opened.load(), "default", opened.config, str(bases[name]))
    base = AutoModelForCausalLM.from_pretrained(bases[name], attn_implementation="eager", dtype=torch.float32)
    assert close(ask(PeftModel.from_pretrained(base, tmp_path / "again").eval(), TOKENS), theirs)
    one, other = (
        checkpoint.open(tmp_path / folder / "adapter_model.safetensors").adapters["default"].parts
        for folder in ("adapter", "again")
    )
    assert one.keys() == other.keys()


def test_what_peft_has_no_words_for_is_not_written(bases, tmp_path):
    opened = checkpoint.open(bases["qwen3"])
    decoder = opened.load()
    adapt.put(decoder, "mine", begin.scale(decoder, Scale()))
    with pytest.raises(UsageError, match="Scaled on"):
        checkpoint.write_adapter(tmp_path / "adapter", decoder, "mine", opened.config)
    assert not list(tmp_path.iterdir())


# ---- where a model is named ------------------------------------------------------------------------------------------
@pytest.fixture
def stories(shared: Path, tmp_path: Path) -> Path:
    """The genuine adapter, in a folder that names its base by a path beside it."""
    (tmp_path / "base").symlink_to(shared / "data/models/stories260K-hf")
    folder, place = shared / "data/formats/peft-lora-stories260K", tmp_path / "adapter"
    place.mkdir()
    shutil.copyfile(folder / "adapter_model.safetensors", place / "adapter_model.safetensors")
    told = json.loads((folder / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps({**told, "base_model_name_or_path": "../base"}))
    return place


def change(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_an_adapter_is_named_as_a_model(stories: Path, shared: Path):
    expected = json.loads((shared / "data/formats/peft-lora-stories260K/expected.json").read_text())
    for named in (stories, stories / "adapter_model.safetensors"):
        llm = LLM.load(named, device="cpu")
        said = llm.generate(expected["prompt"], temperature=0, max_new_tokens=80)
        assert expected["prompt"] + said == expected["with_adapter"]


def test_several_adapters_by_names(stories: Path, shared: Path):
    base = shared / "data/models/stories260K-hf"
    for given in ([f"one={stories}", f"two={stories}"], {"one": stories, "two": stories}):
        assert adapt.names(LLM.load(base, device="cpu", adapter=given).decoder) == ["one", "two"]
    with pytest.raises(UsageError, match="NAME=PATH"):
        LLM.load(base, adapter=[stories, stories])


def test_the_command_line_takes_adapters(stories: Path, shared: Path, capsys: pytest.CaptureFixture[str]):
    from lathe.cli import main

    expected = json.loads((shared / "data/formats/peft-lora-stories260K/expected.json").read_text())
    base = str(shared / "data/models/stories260K-hf")
    wishes = ["--prompt", expected["prompt"], "--temperature", "0", "--max-new-tokens", "40", "--device", "cpu"]
    texts = []
    for named in ([base], [str(stories)], [base, "--adapter", str(stories)], [base, "--adapter", f"shout={stories}"]):
        assert main(["generate", *named, *wishes]) in (0, None)
        texts.append(capsys.readouterr().out)
    assert texts[1] == texts[2] == texts[3] != texts[0]
    assert (expected["prompt"] + texts[1]).strip() in expected["with_adapter"]
    assert main(["generate", base, "--adapter", "nowhere", *wishes]) == 2


def test_a_lora_of_litgpts_is_what_it_was_merged_into(shared: Path):
    folder = shared / "data/formats/litgpt-lora-finetune/final"
    base = checkpoint.open(shared / "data/models/stories260K-litgpt")
    merged = logits(checkpoint.open(folder).load())  # the folder itself has been merged
    for named in (folder, folder / "lit_model.pth.lora"):
        found = checkpoint.put_on(base, {"default": named})
        assert (logits(found.load()) - merged).abs().max() < 1e-4 < (logits(base.load()) - merged).abs().max()
        for name, ref in checkpoint.open(folder).tensors.items():
            assert torch.allclose(found.tensors[name].read(), ref.read(), atol=1e-6)


@pytest.mark.parametrize("name", ["no/such-base", "../nowhere", None, 5])
def test_a_base_that_is_not_there(name: Any, stories: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    change(stories, base_model_name_or_path=name)
    with pytest.raises(MissingError, match=f"lathe generate MODEL --adapter {stories}"):
        checkpoint.open(stories)


def test_a_base_that_is_an_adapter(stories: Path):
    change(stories, base_model_name_or_path=".")
    with pytest.raises(CheckpointError, match="an adapter itself"):
        checkpoint.open(stories)


def test_a_wrong_base(stories: Path, bases):
    with pytest.raises(CheckpointError, match=r'"base_model.model.model.layers.\d.\S*lora_[AB].weight" in .*shape'):
        checkpoint.put_on(checkpoint.open(bases["qwen3"]), {"x": stories})
    with pytest.raises(CheckpointError, match=r"lora_A.weight.*shape"):
        checkpoint.put_on(checkpoint.open(bases["gpt2"]), {"x": stories})


# ---- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "IA3"}, "\"peft_type\": 'IA3'"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"peft_type": None}, "peft_type"),
        ({"use_qalora": True}, "use_qalora"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"target_parameters": ["mlp.gate.weight"]}, "target_parameters"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"something_new": 1}, "something_new"),
        ({"r": 4}, "rank of 4|rank 4"),
        ({"r": 0}, '"r"'),
        ({"lora_alpha": "much"}, "lora_alpha"),
        ({"lora_dropout": 2.0}, "lora_dropout"),
        ({"bias": "some"}, "bias"),
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"rank_pattern": {"(.*)*q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"(": 8}}, "alpha_pattern"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern"),
        ({"layers_to_transform": "all"}, "layers_to_transform"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(changes: dict[str, Any], says: str, stories: Path):
    change(stories, **changes)
    with pytest.raises((ConfigError, CheckpointError), match=says):
        checkpoint.open(stories)


def test_what_is_off_is_not_asked_for(stories: Path):
    """Keys of versions to come, that say no."""
    change(stories, something_new=None, use_another=False, more={}, others=[])
    checkpoint.open(stories)


def test_damaged_and_hostile_files(stories: Path, tmp_path: Path):
    from samples import damaged

    good = (stories / "adapter_model.safetensors").read_bytes()
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.unlink()
    for bad in damaged(good[:20_000], 60, seed=1):
        file.write_bytes(bad)
        with pytest.raises(LatheError):
            checkpoint.open(stories)
    file.unlink()
    torch.save({"base_model.model.x": print}, stories / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin"):
        checkpoint.open(stories)
    (stories / "adapter_model.bin").unlink()
    with pytest.raises(MissingError, match=r"adapter_model\.safetensors"):
        checkpoint.open(stories)
    (stories / "adapter_config.json").write_text("[")
    with pytest.raises(ConfigError, match=r"adapter_config\.json is not JSON"):
        checkpoint.open(stories)


def test_a_pickled_adapter_is_read_too(stories: Path, shared: Path):
    from safetensors.torch import load_file

    file = stories / "adapter_model.safetensors"
    whole = logits(checkpoint.open(stories).load())
    torch.save(load_file(file), stories / "adapter_model.bin")
    file.unlink()
    assert torch.equal(logits(checkpoint.open(stories).load()), whole)


def test_a_prefix_is_not_merged_nor_converted(bases, tmp_path):
    base = checkpoint.open(bases["qwen3"])
    decoder = base.load()
    adapt.put(decoder, "p", begin.prefix(decoder, Prefix(3, 0)))
    with pytest.raises(UsageError, match="learned prefix"):
        adapt.merge(decoder)
    with pytest.raises(UsageError, match="learned prefix"):
        checkpoint.save(tmp_path / "out", decoder, base.config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["prefix", "scale"])
@pytest.mark.parametrize("name", ["qwen3", "neox", "gemma2", "mixtral"])
def test_a_llama_adapter_is_written_and_read(name: str, method: str, bases, tmp_path):
    base = checkpoint.open(bases[name])
    decoder = base.load()
    adapt.put(decoder, "mine", METHODS[method](decoder))
    learned(decoder)
    files = checkpoint.llama_adapter_files(decoder, "mine", str(bases[name]))
    (tmp_path / "out").mkdir()
    files.write(tmp_path / "out")
    assert close(logits(checkpoint.open(tmp_path / "out").load()), logits(decoder))
    with pytest.raises(CheckpointError, match=r"other model|it should have"):
        checkpoint.put_on(checkpoint.open(bases["deepseek-v3"]), {"a": tmp_path / "out"})
