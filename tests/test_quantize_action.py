"""`lathe quantize`: what it writes opens here and with others, in codes, and is as good as is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import memory
import pytest
import torch
from families import CASES

from lathe import checkpoint, cli, families
from lathe.actions import quality
from lathe.checkpoint import coding
from lathe.model import native
from lathe.model.layers import Linear
from lathe.model.layout import Layout
from lathe.tokenizer import train_bpe
from lathe.transforms import awq, gptq, pack
from lathe.transforms.grids import halves, int4_codes, int4_scales
from lathe.transforms.kinds import KINDS
from lathe.transforms.panels import QuickPacked, QuickPackedTable
from lathe.transforms.quantize import Packed, matrices
from lathe.weights.tensors import Ref

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 0,
}  # fmt: skip
KEPT = {"int8": "int8", "int4": "int4", "int4-zp": "int4-zp", "nf4": "nf4", "fp8": None}
PROGRAM = """
import sys
import memory
import torch
import lathe.checkpoint.coding
from lathe import cli
from lathe.actions import convert
torch.ones(300, 300) @ torch.ones(300, 300)

def quantize():
    assert cli.main(["quantize", *sys.argv[1:]]) == 0

print(memory.grown(quantize))
"""


def made(folder: Path, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> Path:
    """A folder with a model of random weights and a tokenizer."""
    generator = torch.Generator().manual_seed(0)
    slots = checkpoint.slots(checkpoint.blank(families.read(config)))
    tensors = {name: Ref.of((torch.randn(slot.shape, generator=generator) * 0.15).to(dtype)) for name, slot in slots}
    words = train_bpe(["a lathe turns wood and iron, and the turner turns the lathe"] * 5, 290)
    checkpoint.save(folder, tensors, config, tokenizer=words)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("models") / "tiny", CONFIG)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("The turner turns the lathe, and the lathe turns wood. " * 60)
    return file


def to(how: str) -> list[str]:
    return ["--to", "int4", "--method", "hqq"] if how == "int4-zp" else ["--to", how]


def ask(decoder: torch.nn.Module, count: int = 20) -> torch.Tensor:
    tokens = torch.arange(count) * 7 % 90
    with torch.inference_mode():
        return decoder.logits(decoder(tokens, Layout.of([count])))


def kinds(decoder: torch.nn.Module) -> set[str]:
    return {module.how for module in decoder.modules() if isinstance(module, Packed)}


# ---- what is written -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", KEPT)
def test_what_is_written_is_what_rounding_on_the_fly_gives(model, tmp_path, how, capsys):
    assert cli.main(["quantize", str(model), str(tmp_path / "out"), *to(how)]) == 0
    assert "of what it was" in capsys.readouterr().err
    found = checkpoint.open(tmp_path / "out")
    fly = checkpoint.open(model).load(quantize=how)
    if KEPT[how]:
        decoder = found.load()
        assert kinds(decoder) == {how}
        assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), fly.parameters(), strict=True))
    torch.testing.assert_close(ask(found.load(dense=True)), ask(fly), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(found.load(quantize=how).parameters(), fly.parameters(), strict=True))


@pytest.mark.parametrize("how", KEPT)
def test_transformers_reads_it_the_same(model, tmp_path, how):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes" if how == "nf4" else "compressed_tensors")
    assert cli.main(["quantize", str(model), str(tmp_path / "out"), *to(how)]) == 0
    how_to = {}
    if how == "int4-zp":  # whose zero points compressed-tensors 0.20 has no room for where it keeps codes
        how_to["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, **how_to)
    found = checkpoint.open(tmp_path / "out")
    near = 1e-3 if how_to else 1e-4
    if how == "nf4":  # which bitsandbytes may multiply in a narrower type, after packing it anew
        from bitsandbytes.functional import dequantize_4bit

        near = 0.01
        for name, weight in theirs.named_parameters():
            if hasattr(weight, "quant_state"):
                assert torch.equal(dequantize_4bit(weight.data, weight.quant_state), found.tensors[name].read())
    with torch.inference_mode():
        scores = theirs((torch.arange(20) * 7 % 90)[None]).logits[0]
    torch.testing.assert_close(ask(found.load(dense=True)), scores, rtol=near, atol=near)


@pytest.mark.parametrize("how", ["Q8_0", "Q4_0", "Q4_K_M"])
def test_ggufs_types_are_written_into_its_file(model, tmp_path, how):
    assert cli.main(["quantize", str(model), str(tmp_path / "some"), "--to", how]) == 0
    assert cli.main(["quantize", str(model), str(tmp_path / "one.gguf"), "--to", how]) == 0
    (file,) = (tmp_path / "some").iterdir()
    assert file.name == f"some-{how}.gguf" and file.read_bytes() == (tmp_path / "one.gguf").read_bytes()
    found = checkpoint.open(file)
    decoder = found.load()
    same = {"Q4_0": {"int4"}, "Q8_0": {"int8-32"}}  # codes that are kept; Q4_K_M has them for rows that it cannot cut
    assert kinds(decoder) == same.get(how, {"int8-32"})
    torch.testing.assert_close(ask(decoder), ask(found.load(dense=True)), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def medium(tmp_path_factory) -> Path:
    """A file in Q4_K_M whose rows are whole blocks."""
    place = tmp_path_factory.mktemp("medium")
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8}
    folder = made(place / "model", CONFIG | wide)
    assert cli.main(["quantize", str(folder), str(place / "medium.gguf"), "--to", "Q4_K_M"]) == 0
    return place / "medium.gguf"


def test_a_mixture_stays_in_its_codes(medium):
    """Values and some ways down in Q6_K, all else in Q4_K; the kernels multiply by the numbers of the file."""
    found = checkpoint.open(medium)
    decoder, dense, quick = found.load(), found.load(dense=True), found.load(quick=True)
    assert kinds(decoder) == kinds(quick) == {"q4_k", "q6_k"} and kinds(dense) == set()
    torch.testing.assert_close(ask(decoder), ask(dense), rtol=1e-5, atol=1e-5)
    assert (ask(quick) - ask(dense)).square().mean() <= (0.05 * ask(dense).std()) ** 2
    for name, module in matrices(dense):
        assert torch.equal(quick.get_submodule(name).weight, module.weight)
    assert native.library() is None or all(layer.plan().whole for layer in quick.model.layers)


@pytest.mark.skipif(native.library() is None, reason="there is no compiler, and so no kernel")
@pytest.mark.parametrize("tied", [True, False])
def test_the_ends_of_a_mixture_are_in_the_file_s_codes_once(tied, tmp_path):
    """Rows that are looked up, and what is saved, are the numbers of the file."""
    wide = {"hidden_size": 256, "num_hidden_layers": 1, "tie_word_embeddings": tied}
    folder = made(tmp_path / "model", CONFIG | wide)
    assert cli.main(["quantize", str(folder), str(tmp_path / "one.gguf"), "--to", "Q4_K_M"]) == 0
    found = checkpoint.open(tmp_path / "one.gguf")
    quick, dense = found.load(quick=True), found.load(dense=True)
    table, head = quick.model.embed_tokens, quick.lm_head
    assert isinstance(table, QuickPackedTable) and isinstance(head, QuickPacked)
    assert (table.how, head.how) == ("q6_k" if tied else "q4_k", "q6_k")
    assert (table.panels is head.panels) == tied
    assert quick.like.dtype == torch.float32
    index = torch.arange(300)
    torch.testing.assert_close(table(index), dense.model.embed_tokens(index), rtol=1e-6, atol=1e-7)
    assert torch.equal(table.weight, dense.model.embed_tokens.weight)
    assert (ask(quick) - ask(dense)).square().mean() <= (0.05 * ask(dense).std()) ** 2
    checkpoint.save(tmp_path / "saved", quick, found.config)
    again = checkpoint.open(tmp_path / "saved")
    assert again.tensors.keys() == found.tensors.keys()
    assert all(torch.equal(ref.read(), found.tensors[name].read()) for name, ref in again.tensors.items())
    pack.unpack(quick)
    torch.testing.assert_close(ask(quick), ask(dense), rtol=1e-5, atol=1e-5)


def test_a_row_that_is_no_whole_groups(tmp_path, capsys):
    """int4 keeps such matrices in 8 bits, nf4 as they were."""
    folder = made(tmp_path / "odd", CONFIG | {"intermediate_size": 172})
    for how, odd in (("int4", "int8"), ("nf4", None)):
        assert cli.main(["quantize", str(folder), str(tmp_path / how), "--to", how]) == 0
        decoder = checkpoint.open(tmp_path / how).load()
        ways = {name: getattr(one, "how", None) for name, one in decoder.named_modules() if name.endswith("_proj")}
        assert {way for name, way in ways.items() if "down_proj" in name} == {odd}
        assert ("2 matrices of layers stay" in capsys.readouterr().err) == (odd is None)
        assert {way for name, way in ways.items() if "down_proj" not in name} == {how}


@pytest.mark.parametrize("name", ["phi3", "qwen3-moe", "deepseek-v3", "gemma2"])
@pytest.mark.parametrize("how", ["int8", "int4"])
def test_other_families_and_their_files(tmp_path, name, how):
    """Where a family's files keep several matrices as one, or experts apart."""
    config = families.plain(next(case for case in CASES if case.name.startswith(name)).config)
    folder = made(tmp_path / "model", config | {"vocab_size": 300})
    assert cli.main(["quantize", str(folder), str(tmp_path / "out"), "--to", how]) == 0
    found = checkpoint.open(tmp_path / "out")
    assert how in kinds(found.load())
    dense, kept = ask(found.load(dense=True)), ask(found.load())
    torch.testing.assert_close(kept, dense, rtol=1e-4, atol=1e-4)
    assert cli.main(["convert", str(tmp_path / "out"), str(tmp_path / "plain")]) == 0
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    torch.testing.assert_close(ask(checkpoint.open(tmp_path / "plain").load()), dense, rtol=1e-5, atol=1e-5)


def test_a_family_whose_files_have_no_such_matrices_is_refused(tmp_path, capsys):
    config = families.plain(next(case for case in CASES if case.name == "gpt2").config)
    folder = made(tmp_path / "model", config | {"vocab_size": 300})
    assert cli.main(["quantize", str(folder), str(tmp_path / "out"), "--to", "int4"]) == 2
    assert "Q4_0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_memory_is_the_quantized_model_and_a_layer(tmp_path):
    config = CONFIG | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 8, "num_hidden_layers": 2}
    folder = made(tmp_path / "model", config, torch.bfloat16)
    sizes = {name: ref.nbytes / 2**20 for name, ref in checkpoint.open(folder).tensors.items()}
    whole, layer = sum(sizes.values()), sum(size for name, size in sizes.items() if ".0." in name)
    assert memory.printed(PROGRAM, folder, tmp_path / "out", "--to", "nf4") < whole * 4.5 / 16 + layer < whole


@pytest.mark.parametrize("how", ["int4", "nf4", "Q4_K_M"])
def test_it_is_finetuned_in_its_codes_or_whole(model, medium, tmp_path, how, capsys):
    """An adapter learns beside the codes (QLoRA) and is merged into what they stand for; a whole model learns dense."""
    place, rows = tmp_path / "out", tmp_path / "rows.json"
    if how == "Q4_K_M":
        place = medium
    else:
        assert cli.main(["quantize", str(model), str(place), "--to", how]) == 0
    rows.write_text(json.dumps([{"instruction": "Turn", "output": "wood"}] * 4))
    few = ["--data", str(rows), "--train.max-steps", "2", "--train.global-batch-size", "2", "--overwrite"]
    few += ["--train.micro-batch-size", "2", "--prompt-style", "alpaca", "--max-repeats", "1"]
    codes = checkpoint.open(place).tensors
    for method in ("lora", "full"):
        run = tmp_path / method
        assert cli.main(["finetune", str(place), "--method", method, "--out-dir", str(run), *few]) == 0
        told = checkpoint.open(run / "final")
        name = "model.layers.0.mlp.up_proj.weight"
        assert not torch.equal(told.tensors[name].read(), codes[name].read())
        assert kinds(told.load()) == (kinds(checkpoint.open(place).load()) if method == "lora" else set())
    assert cli.main(["merge", str(tmp_path / "lora" / "final"), str(tmp_path / "merged")]) == 0
    told = checkpoint.open(tmp_path / "merged")
    with torch.inference_mode():
        near = ask(told.load())
        assert (near - ask(checkpoint.open(tmp_path / "lora" / "final").load())).abs().max() < 0.05 * near.std()


def test_inspect_says_what_is_kept(model, tmp_path, capsys):
    assert cli.main(["quantize", str(model), str(tmp_path / "out"), "--to", "int4"]) == 0
    assert cli.main(["inspect", str(tmp_path / "out"), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["tensors"]["int4"] == 14 and "compressed-tensors" in page["form"]
    rest = sum(ref.nbytes for name, ref in checkpoint.open(model).tensors.items() if "_proj" not in name)
    assert page["bytes"] == rest + 2 * (64 * 64 * 3 + 64 * 128 * 3) * 4.5 / 8


# ---- calibrated ------------------------------------------------------------------------------------------------------
def test_gptq_errs_less_in_the_product_than_rounding_to_the_nearest():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 96, generator=generator)
    x = torch.randn(500, 24, generator=generator) @ torch.randn(24, 96, generator=generator)  # of few dimensions
    x += torch.randn(500, 96, generator=generator) * 0.3
    errors = {}
    for name, parts in {
        "nearest": KINDS["int4"].pack([weight], weight.shape, torch.device("cpu")),
        "gptq": gptq.quantize(weight, x.T @ x),
    }.items():
        again = KINDS["int4"].unpack([*parts.values()], 96, torch.float32)
        errors[name] = float((x @ (again - weight).T).square().mean())
    assert errors["gptq"] < 0.5 * errors["nearest"]


def test_gptq_with_inputs_that_do_not_depend_on_each_other_is_rounding():
    """Then no column can make up for another, and what is left is the nearest code."""
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    parts = gptq.quantize(weight, torch.eye(64) * 7)
    scales = int4_scales(weight.view(16, 2, 32), gptq.ENDS)
    codes = int4_codes(weight.view(16, 2, 32), scales[..., None]).view(16, 64)
    assert torch.equal(parts["scales"], scales) and torch.equal(parts["codes"], halves(codes))


def test_inputs_that_are_never_there_and_too_few_of_them():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    x[:, 10:50] = 0
    again = KINDS["int4"].unpack([*gptq.quantize(weight, x.T @ x).values()], 64, torch.float32)
    assert again.isfinite().all() and (x @ (again - weight).T).std() < 0.1 * (x @ weight.T).std()


def test_what_is_calibrated_saw_the_layers_below_it_in_codes(model):
    """The moments of the second layer's inputs are those of a model whose first layer is rounded."""
    found = checkpoint.open(model)
    rows = [[*range(5, 45)], [*range(50, 90)]]
    codes = dict(coding.calibrated(found, rows))
    assert codes.keys() == {f"{name}.weight" for name, _ in matrices(checkpoint.blank(found.spec))}
    assert {code.kind for code in codes.values()} == {"int4"}
    decoder = found.load()
    first = {n.removeprefix("model.layers.0."): c for n, c in codes.items() if n.startswith("model.layers.0.")}
    for name, code in first.items():
        decoder.model.layers[0].get_submodule(name.removesuffix(".weight")).weight = torch.nn.Parameter(code.read())
    ids = torch.tensor([id for row in rows for id in row])
    second = decoder.model.layers[1]
    with torch.inference_mode(), coding.Moments({"q": second.self_attn.q_proj}) as moments:
        decoder(ids, Layout.of([40, 40]))
    again = gptq.quantize(second.self_attn.q_proj.weight, moments.of["q"])
    code = codes["model.layers.1.self_attn.q_proj.weight"]
    same = (again["codes"] == code.parts["codes"].read()).float().mean()
    assert same > 0.99  # sums in another order may round one code otherwise


@pytest.mark.parametrize(
    ("name", "count"), [("llama-biased", 6), ("gemma2", 6), ("olmo2", 2), ("phi3", 6), ("neox", 4)]
)
def test_a_layer_that_awq_scales_computes_what_it_did(tmp_path, name, count):
    """count: matrices of a layer that are scaled, or divided as what comes before one."""
    config = families.plain(next(case for case in CASES if case.name.startswith(name)).config)
    found = checkpoint.open(made(tmp_path / "model", config | {"vocab_size": 300}))
    decoder, layout = found.load(), Layout.of([40])
    before, changed = ask(decoder), 0
    for layer in decoder.model.layers:
        maps = {name: one for name, one in layer.named_modules() if isinstance(one, Linear)}
        weights = {name: one.weight for name, one in maps.items()}
        with torch.inference_mode():
            with coding.Moments(maps) as moments:
                layer(decoder.embed(torch.arange(40) * 7 % 90, layout), layout, None)
            awq.scale(layer, moments.of, coding._again, torch.float32)
        changed += sum(one.weight is not weights[name] for name, one in maps.items())
    assert changed == count * len(decoder.model.layers)
    torch.testing.assert_close(ask(decoder), before, rtol=1e-4, atol=1e-4)


def test_a_calibrated_model_is_better_on_a_real_text(shared, tmp_path, capsys):
    source, text = shared / "data/models/stories260K-hf", shared / "data/text/tinystories_1k.txt"
    words = ["quantize", str(source), "--to", "int4", "--check", str(text), "--check-tokens", "4096"]
    found = {}
    ways = {"nearest": [], "hqq": ["--method", "hqq"], "gptq": ["--calibrate", str(text), "--calibrate-tokens", "8192"]}
    ways["awq"] = ["--method", "awq", *ways["gptq"]]
    for name, more in ways.items():
        assert cli.main([*words[:2], str(tmp_path / name), *words[2:], *more]) == 0
        out = capsys.readouterr().out
        before, after = (float(re.search(rf"^{row} +([\d.]+)", out, re.MULTILINE)[1]) for row in ("before", "int4"))
        found[name] = after
        assert 3 < before < 8 and "%" in out
    assert before < found["gptq"] < before + 0.75 * (found["nearest"] - before)
    assert before < found["awq"] < before + 0.85 * (found["nearest"] - before)
    assert before < found["hqq"] < before + 1.2 * (found["nearest"] - before)


# ---- checked ---------------------------------------------------------------------------------------------------------
def test_perplexity_is_what_scores_say(shared):
    from lathe import LLM

    folder = shared / "data/models/stories260K-hf"
    found, llm = checkpoint.open(folder), LLM.load(folder)
    rows = quality.rows(shared / "data/text/tinystories_1k.txt", llm.tokenizer, found.spec.context, 900)
    assert [len(row) for row in rows] == [512, 390] and {row[0] for row in rows} == {1}
    measured = quality.measure(found, rows, torch.float32)
    scores = [score for row in rows for score in llm.score(row)]
    assert measured.loss == pytest.approx(-sum(scores) / len(scores), rel=1e-5)
    likeliest = torch.cat([llm.logits(row)[:-1].argmax(-1) for row in rows])
    assert torch.equal(measured.likeliest, likeliest) and measured.agrees(measured) == 1


@pytest.mark.parametrize(("words", "said"), [
    (["--to", "int5"], "int4"),
    (["--to", "int8", "--calibrate", "x.txt"], "Only int4 is calibrated"),
    (["--to", "int8", "--method", "hqq"], "Only int4 is made in several ways"),
    (["--to", "int4", "--method", "hqq", "--calibrate", "x.txt"], "is not guided by a text"),
    (["--to", "int4", "--method", "gptq"], "Name one with --calibrate"),
    (["--to", "int4", "--calibrate", "nowhere.txt"], "nowhere.txt"),
    (["--to", "int4", "--check", "nowhere.txt"], "nowhere.txt"),
    (["--to", "int4", "--check-tokens", "1"], "--check-tokens is 1"),
])  # fmt: skip
def test_a_wrong_wish_is_named(model, tmp_path, words, said, capsys):
    assert cli.main(["quantize", str(model), str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_places(model, tmp_path, text, capsys):
    place = tmp_path / "out"
    assert cli.main(["quantize", str(model), str(tmp_path / "a.gguf"), "--to", "int4"]) == 2
    assert "Q4_0" in capsys.readouterr().err
    assert cli.main(["quantize", str(model), str(place), "--to", "int8", "--check", str(text)]) == 0
    assert re.search(r"int8 +[\d.]+ +\d+\.\d% ", capsys.readouterr().out)
    assert cli.main(["quantize", str(model), str(place), "--to", "nf4"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["quantize", str(place), str(place), "--to", "nf4", "--force"]) == 0
    assert "quantized already" in capsys.readouterr().err
    assert kinds(checkpoint.open(place).load()) == {"nf4"}
