"""What LitGPT 0.5.13 gets wrong, by the numbers of our list of its defects, and Lathe does not.

That LitGPT fails is shown, in its own environment, by tests/oracles/test_litgpt_defects.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from bytewise import plain_tokenizer
from families import CASES, Case, reference
from published import PUBLISHED
from rank_work import PROMPTS, each, opened, said
from serving import tiny
from test_engine import answers, decoder_of, prompt_of, run, whole
from test_lightning import STATE, TOLD

from lathe import LLM, checkpoint, families
from lathe.actions import inspect, ranks
from lathe.api import benchmark_dict_to_markdown_table
from lathe.cli import main
from lathe.data.loader import Batch
from lathe.engine import DraftModel, Engine, Sampling
from lathe.model import blockwise, initial, kernels, rope
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.tokenizer import Tokenizer
from lathe.training import loop, loss, optim
from lathe.training.limits import Limits
from lathe.training.schedule import Schedule
from lathe.transforms import adapt, begin
from lathe.transforms.terms import Lora, Prefix

pytestmark = pytest.mark.usefixtures("forks")


def test_1_a_prompt_read_into_the_cache_is_causal_under_a_soft_cap() -> None:
    """LitGPT adds its boolean mask to capped scores, so that a prompt sees what follows in it."""
    decoder = decoder_of("softcap")
    engine, prompt = Engine(decoder), prompt_of(40)
    engine.submit(prompt)
    [part] = engine.scheduler.pick()
    cached = decoder.logits(engine.runner.run([part]))
    assert part.length == 40
    assert torch.allclose(cached, whole(decoder, prompt, 96), atol=1e-5)
    changed = [*prompt[:-1], (prompt[-1] + 1) % decoder.spec.vocab]
    assert torch.allclose(cached[:-1], whole(decoder, changed, 96)[:-1], atol=1e-5)


@pytest.mark.parametrize("chunk", [4, 512])
def test_2_a_prompt_may_be_longer_than_the_sliding_window(chunk: int) -> None:
    """LitGPT refuses one: "use chunked prefill", which it does not have."""
    decoder = decoder_of("window")
    engine = Engine(decoder, chunk=chunk)
    sequence = engine.submit(prompt_of(60), Sampling(temperature=0, max_new_tokens=20))
    run(engine)
    expected = whole(decoder, sequence.tokens, sequence.extent).argmax(-1).tolist()
    assert [token.id for token in sequence.made] == expected[59:-1]


def test_3_two_processes_answer_what_one_answers(tmp_path: Path) -> None:
    """LitGPT cuts the rows of queries, keys and values as if they were one matrix. tests/test_shard.py has the rest."""
    source = "grouped queries"
    ranks.run(each, 2, "cpu", [source], tmp_path)
    engine = Engine(opened(source).load())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")[source]
        assert found["tokens"] == said(engine)
        for prompt, theirs in zip(PROMPTS, found["logits"], strict=True):
            torch.testing.assert_close(theirs, engine.logits(prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cold", [0.0, 1.0])
def test_7_speculative_decoding_loses_no_token(cold: float) -> None:
    """LitGPT drops the first token of an answer, and its greedy answers are not the target's."""
    decoder = decoder_of("gqa")
    [expected] = answers(Engine(decoder), [prompt_of(9)], [Sampling(temperature=0, max_new_tokens=50)])
    for draft in (decoder, decoder_of("experts")):
        wish = Sampling(temperature=cold, seed=1, max_new_tokens=50)
        [made] = answers(Engine(decoder, drafter=DraftModel(draft, 3)), [prompt_of(9)], [wish])
        assert len(made) == 50
        assert cold or made == expected


def test_8_the_name_of_a_folder_does_not_say_how_a_text_begins(tmp_path: Path) -> None:
    """LitGPT begins a text with BOS in a folder called Llama-3-8B, and in out/final not."""
    ids = [Tokenizer.open(plain_tokenizer(tmp_path / name)).encode("a") for name in ("Llama-3-8B", "final")]
    assert ids[0] == ids[1]
    assert ids[0][0] == 0


@pytest.mark.parametrize("text", ["né 🔥", "日本語 naïve", "👩‍👩‍👧‍👦"])
def test_9_characters_of_several_tokens_stream_whole(text: str, tmp_path: Path) -> None:
    """LitGPT decodes token by token: a character of several tokens comes out as so many question marks."""
    tokenizer = Tokenizer.open(plain_tokenizer(tmp_path / "bytes"))
    stream = tokenizer.stream()
    pieces = [stream.push(id) for id in tokenizer.encode(text, special=False)]
    assert "".join(pieces) + stream.flush() == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_4_the_prefix_of_an_adapter_learns() -> None:
    """LitGPT keeps keys and values of the prefix from the check before training: its tokens get no gradient."""
    model = trained(adapted("llama-2", Prefix(length=3, start=1)))
    before = adapted("llama-2", Prefix(length=3, start=1)).model.layers[1].self_attn
    after = model.model.layers[1].self_attn
    assert not torch.allclose(after.adapter_wte["default"], before.adapter_wte["default"], atol=1e-3)
    assert after.gating_factor["default"].abs().min() > 1e-3


def test_5_a_prefix_is_cut_into_heads_as_other_tokens_are() -> None:
    """LitGPT cuts its keys and values as its files had them two years ago."""
    attention = adapted("llama-2", Prefix(length=3, start=1)).model.layers[1].self_attn
    tokens = attention.adapter_wte["default"]
    keys, values = attention._learned("default", torch.float32)
    assert torch.equal(keys, attention.k_proj(tokens).unflatten(-1, (-1, attention.part.channels)))
    assert torch.equal(values, attention.v_proj(tokens).unflatten(-1, (-1, attention.part.channels)))


def test_11_a_finetuned_model_is_what_is_loaded(tmp_path: Path) -> None:
    """LitGPT's own LLM keeps random weights where a file holds {"model": ...}, and says nothing."""
    loaded = []
    for name, held in (("plain", STATE), ("finetuned", {"model": STATE})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_config.yaml").write_text(yaml.safe_dump(TOLD))
        torch.save(held, tmp_path / name / "lit_model.pth")
        loaded.append(dict(checkpoint.open(tmp_path / name).load().named_parameters()))
    assert all(torch.equal(weight, loaded[1][name]) for name, weight in loaded[0].items())


def test_12_a_benchmark_generates_once_a_round(tmp_path: Path) -> None:
    """LitGPT generates twice, so that its speed is half of what it is, and its table is a TypeError."""
    llm = LLM.load(tiny(tmp_path), device="cpu")
    asked = []
    plain = llm.engine.submit
    llm.engine.submit = lambda *given, **wishes: asked.append(1) or plain(*given, **wishes)  # type: ignore[method-assign]
    text, found = llm.benchmark(num_iterations=3, prompt="Hello", max_new_tokens=4)
    assert (len(asked), len(found["Seconds total"])) == (3, 3) and isinstance(text, str)
    assert "| Tokens generated" in benchmark_dict_to_markdown_table(found)


@pytest.mark.parametrize("name", ["qwen2-moe", "deepseek-v3"])
def test_14_a_lora_goes_on_shared_experts_and_on_latent_attention(name: str) -> None:
    """LitGPT fails on the first, and builds plain attention in place of the second."""
    model = adapted(name, Lora(rank=2, targets="all-linear"))
    kinds = {type(layer.self_attn).__name__ for layer in model.model.layers}
    assert kinds == {"LatentAttention" if name == "deepseek-v3" else "Attention"}
    learned = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    assert any("shared_experts.up_proj.lora_A" in name for name in learned)
    assert any("kv_b_proj.lora_A" in name for name in learned) == (name == "deepseek-v3")
    trained(model)
    now = dict(model.named_parameters())
    assert all(not torch.equal(now[name], before) for name, before in learned.items() if "lora_B" in name)


def test_6_yarn_keeps_what_turns_fast_and_stretches_what_turns_slowly() -> None:
    """LitGPT has its ramp the wrong way round. DeepSeek's numbers, as transformers reckons."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stretch = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}
    config = PUBLISHED["Llama-2-7b-hf"].config | {"max_position_embeddings": 163_840, "rope_scaling": stretch}
    expected, _ = ROPE_INIT_FUNCTIONS["yarn"](LlamaConfig(**config), "cpu")
    [turn] = {layer.mixer.rope for layer in families.read(config).layers}
    made = rope.frequencies(turn, 0)
    assert torch.allclose(made, expected)
    slow = turn.base ** -(126 / 128) / 40
    assert (float(made[0]), float(made[-1])) == (1, pytest.approx(slow))


def test_10_olmo_2_goes_to_hugging_face_form_and_answers_there(tmp_path: Path) -> None:
    """LitGPT has no name there for the norm after attention."""
    from transformers import AutoModelForCausalLM

    source = reference(Case("olmo2", "OLMo-2-1124-7B"), tmp_path / "hub")
    found = checkpoint.open(source.folder)
    checkpoint.save(tmp_path / "litgpt", found.tensors, found.config, form="litgpt")
    assert main(["convert_from_litgpt", str(tmp_path / "litgpt"), str(tmp_path / "out")]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    with torch.inference_mode():
        logits = theirs(source.sequences[2][None], use_cache=False).logits[0]
    torch.testing.assert_close(logits, source.logits[2], atol=1e-5, rtol=1e-5)


def test_13_a_model_without_its_training_is_as_large_as_its_tensors(tmp_path: Path) -> None:
    """LitGPT writes views of whole files, twice too much, and refuses a folder that is there and empty."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model_config.yaml").write_text(yaml.safe_dump(TOLD))
    torch.save({"model": STATE, "optimizer": {"state": STATE}, "iter_num": 3}, tmp_path / "run/lit_model.pth")
    (tmp_path / "out").mkdir()
    assert main(["convert_pretrained_checkpoint", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    written = torch.load(tmp_path / "out/lit_model.pth", weights_only=True)
    assert written.keys() == STATE.keys()
    size = sum(tensor.nbytes for tensor in STATE.values())
    assert (tmp_path / "out/lit_model.pth").stat().st_size < size + 1000 * len(STATE)


def test_tied_embeddings_stay_one_matrix_and_learn_from_both_ends(tmp_path: Path) -> None:
    """LitGPT trains two, and its export drops one of them."""
    from transformers import AutoModelForCausalLM

    config = case("llama-3.2-tied-llama3-rope")
    model = initial.decoder(families.read(config), seed=0)
    before = model.lm_head.weight.clone()
    trained(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.allclose(model.lm_head.weight, before, atol=1e-3)
    checkpoint.save(tmp_path / "out", model, config)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(20)
    with torch.no_grad():
        ours = model.logits(model(ids, Layout.of([20])))
        torch.testing.assert_close(ours, theirs(ids[None]).logits[0], rtol=1e-4, atol=1e-4)


def test_what_a_window_hides_is_worked_out_once_a_ribbon(monkeypatch: pytest.MonkeyPatch) -> None:
    """LitGPT builds its mask in every layer, at every pass, token by token."""
    config = {**case("mistral-window"), "num_hidden_layers": 6}
    model = initial.decoder(families.read(config), seed=0)
    made = []
    for module, name in ((kernels.Seen, "mask"), (blockwise, "_blocks")):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, plain=plain: made.append(1) or plain(*args))
    layout = Layout.of([40])
    for expected in (1, 1):  # with gradients, and then without, in another way
        made.clear()
        loss.cross_entropy(model, model(torch.arange(40), layout), torch.arange(40)).backward()
        assert len(made) == expected
        layout = Layout.of([40])
    with torch.no_grad():
        made.clear()
        model(torch.arange(40), layout)
        assert len(made) == 1


def test_without_anything_held_out_nothing_is_validated() -> None:
    """LitGPT validates on a loader that is empty or not there."""
    assert math.isnan(loop.mean(loss.next_token(initial.decoder(families.read(case("llama-2")), seed=0)), []))


def test_a_rise_as_long_as_the_run_divides_by_nothing() -> None:
    """LitGPT's schedule does, where warmup and steps are as many."""
    rates = [Schedule(warmup=10)(step, 10) for step in range(11)]
    assert rates == pytest.approx([*((step + 1) / 11 for step in range(10)), 1.0])


def test_gradients_are_clipped_in_finetuning_too() -> None:
    """LitGPT refuses the option there."""
    norms = []
    model = adapted("llama-2", Lora(rank=2))
    plain = torch.optim.SGD([{"params": [p for p in model.parameters() if p.requires_grad], "initial_lr": 1.0}], lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loop.train(
        loss.next_token(model), [plain], [work()], Schedule("constant", 0), Limits(1), 1e-3, lambda s: norms.append(s)
    )
    moved = [(p - before[name]).norm() for name, p in model.named_parameters()]
    assert norms[0].gradient_norm > 1e-2
    assert torch.stack(moved).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_tokens_a_second_are_those_of_the_seconds_they_took(shared: Path, tmp_path: Path) -> None:
    """LitGPT divides tokens by the time of day; and it ignores a limit of steps or seconds in pretraining."""
    words = ["pretrain", shared / "data/models/stories260K-hf", "--data", shared / "data/text/tinystories_1k.txt"]
    words += ["--train.max-seq-length=64", "--train.global-batch-size=2", "--val-split-fraction=0"]
    assert main([*map(str, words), "--train.max-steps=4", "--out-dir", str(tmp_path / "a")]) == 0
    assert main([*map(str, words), "--train.max-seconds=0.001", "--out-dir", str(tmp_path / "b")]) == 0
    text = {name: (tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in "ab"}
    steps = {name: [json.loads(line) for line in lines if "loss" in json.loads(line)] for name, lines in text.items()}
    assert (len(steps["a"]), len(steps["b"])) == (4, 1)
    assert all((tmp_path / name / "final/config.json").is_file() for name in "ab")
    seconds = steps["a"][-1]["seconds"] - steps["a"][0]["seconds"]
    reckoned = sum(128 / line["tokens_per_second"] for line in steps["a"][1:])
    assert 0.2 < reckoned / seconds < 5  # LitGPT's are off by ten thousand


def case(name: str) -> dict:
    return next(case.config for case in CASES if case.name == name)


def adapted(name: str, settings: Lora | Prefix) -> Decoder:
    """A model with an adapter that learns, and nothing else."""
    model = initial.decoder(families.read(case(name)), seed=0)
    torch.manual_seed(0)
    parts = begin.lora(model, settings) if isinstance(settings, Lora) else begin.prefix(model, settings)
    adapt.put(model, "default", parts)
    adapt.trainable(model)
    return model


def work() -> loop.Work:
    ids = torch.arange(41) * 7 % 90
    batch = Batch(ids[:-1], ids[1:], Layout.of([40]), 40)
    return loop.Work([batch], 40, 40)


def trained(model: Decoder) -> Decoder:
    """The model after a check and five steps, as LitGPT goes about it."""
    objective = loss.next_token(model)
    loop.mean(objective, [work()])
    made = optim.build(model, optim.Settings(lr=1e-2))
    loop.train(objective, made, [work()] * 5, Schedule("constant", 0), Limits(5), 1.0, lambda step: True)
    return model


@pytest.mark.parametrize("name", ["gemma-2b", "gemma-2-2b", "gemma-3-1b-it", "Llama-2-7b-hf"])
def test_15_norms_of_a_new_model_begin_as_the_identity(name: str) -> None:
    """LitGPT starts Gemma's norm weights, to which one is added, at one: every norm doubles."""
    decoder = initial.decoder(families.read(Case("", name).config), seed=0)
    x = torch.randn(100, decoder.spec.width) * 3
    for norm in (decoder.model.norm, decoder.model.layers[0].input_layernorm):
        size = norm(x).square().mean(-1).sqrt()
        assert torch.allclose(size, torch.ones(100), atol=0.02)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        # 32 layers, in each 6 of 8 experts of 3 x 14,336 x 4,096 stay idle.
        ("Mixtral-8x7B-v0.1", 46_702_792_704, 46_702_792_704 - 32 * 6 * 3 * 14_336 * 4_096),
        # 48 layers, in each 120 of 128 experts of 3 x 768 x 2,048 stay idle.
        ("Qwen3-30B-A3B", 30_532_122_624, 30_532_122_624 - 48 * 120 * 3 * 768 * 2_048),
    ],
)
def test_16_all_experts_count(name: str, total: int, active: int) -> None:
    """LitGPT's estimate has one expert in each layer: 7.2 B for Mixtral 8x7B, 3.3 B for Qwen3 30B."""
    spec = families.read(PUBLISHED[name].config)
    assert sum(slot.numel() for _, slot in checkpoint.slots(checkpoint.blank(spec))) == total
    assert total - inspect.idle(spec) == active
