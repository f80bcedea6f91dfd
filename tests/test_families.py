"""Every family against transformers: the same numbers from the same files, however the tokens are cut into calls."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import families as cases
import pytest
import torch
from families import CASES, Case, Reference
from published import PUBLISHED
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from lathe import checkpoint, families
from lathe.errors import ConfigError
from lathe.families import towers
from lathe.families.keys import NOISE
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.transforms import pack
from lathe.weights import rules, safetensors
from lathe.weights.tensors import Box, Ref


@pytest.fixture(scope="session", params=CASES, ids=lambda case: case.name)
def reference(request, tmp_path_factory) -> Reference:
    return cases.reference(request.param, tmp_path_factory.mktemp(request.param.name))


@pytest.fixture(scope="session")
def decoder(reference) -> Decoder:
    return checkpoint.open(reference.folder).load()


@pytest.fixture(scope="session")
def quick(reference) -> Decoder:
    """One that goes through kernels of its own where it has them."""
    decoder = checkpoint.open(reference.folder).load()
    pack.pack(decoder)
    return decoder


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Within 1e-4 of the spread of the logits."""
    return ours.shape == theirs.shape and (ours - theirs).abs().max() <= 1e-4 * (theirs.max() - theirs.min())


# ---- the same numbers -----------------------------------------------------------------------------------------------


def test_every_family_has_a_case():
    assert {case.config["architectures"][0] for case in CASES} == {*families.FAMILIES, *towers.TABLE}


@torch.inference_mode()
def test_whole_sequences(reference, decoder):
    for sequence, theirs in zip(reference.sequences, reference.logits, strict=True):
        assert same(decoder.logits(decoder(sequence, Layout.of([len(sequence)]))), theirs)


@torch.inference_mode()
@pytest.mark.parametrize("order", [(3, 0, 2, 4, 1), (3, 4)], ids=["ragged", "equal"])
def test_sequences_packed_on_one_ribbon(reference, decoder, order):
    sequences = [reference.sequences[s] for s in order]
    ours = decoder.logits(decoder(torch.cat(sequences), Layout.of([len(s) for s in sequences])))
    assert same(ours, torch.cat([reference.logits[s] for s in order]))


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [(1,), (3, 5, 1), (11,)], ids=["token by token", "in chunks", "past the window"])
@pytest.mark.parametrize("way", ["decoder", "quick"])
def test_through_a_cache(reference, request, way, chunks):
    """All sequences at once, each starting one step after the one before, so that a ribbon mixes chunks and tokens."""
    decoder = request.getfixturevalue(way)
    cuts = [cut(len(s), chunks) for s in reference.sequences]
    slots = lend(cuts)
    kept = [room(layer.mixer.cache, sum(map(len, slots))) for layer in decoder.spec.layers]
    got: list[list[Tensor]] = [[] for _ in cuts]
    for step in range(max(s + len(c) for s, c in enumerate(cuts))):
        now = {s: c[step - s] for s, c in enumerate(cuts) if 0 <= step - s < len(c)}
        layout = Layout(
            positions=torch.cat([torch.arange(a, b) for a, b in now.values()]),
            seams=tuple(accumulate((b - a for a, b in now.values()), initial=0)),
            extents=tuple(len(reference.sequences[s]) for s in now),
            write=torch.cat([torch.as_tensor(slots[s])[a:b] for s, (a, b) in now.items()]),
            read=tuple(
                slice(slots[s].start, slots[s].start + b) if isinstance(slots[s], range) else slots[s][:b]
                for s, (a, b) in now.items()
            ),
        )
        ribbon = torch.cat([reference.sequences[s][a:b] for s, (a, b) in now.items()])
        rows = decoder.logits(decoder(ribbon, layout, kept))
        for s, part in zip(now, rows.split(layout.lengths), strict=True):
            got[s].append(part)
    for ours, theirs in zip(got, reference.logits, strict=True):
        assert same(torch.cat(ours), theirs)


def cut(length: int, chunks: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where each chunk begins and ends; the sizes in `chunks` are used in turn."""
    ends = [0]
    while ends[-1] < length:
        ends.append(min(ends[-1] + chunks[(len(ends) - 1) % len(chunks)], length))
    return list(pairwise(ends))


def lend(cuts: list[list[tuple[int, int]]]) -> list[range | Tensor]:
    """Each sequence's slots of a cache: one run for every other sequence, scattered for the rest."""
    lengths = [c[-1][1] for c in cuts]
    starts = list(accumulate(lengths, initial=0))
    free = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in range(1, len(cuts), 2)])
    scattered = iter(free[torch.randperm(len(free))].split([lengths[s] for s in range(1, len(cuts), 2)]))
    return [next(scattered) if s % 2 else range(starts[s], starts[s + 1]) for s in range(len(cuts))]


def room(shape: Any, slots: int) -> tuple[Tensor, Tensor]:
    """One layer's cache, filled with what must never be read."""
    keys = torch.full((slots, shape.heads, shape.key_channels), float("nan"))
    if shape.values_in_keys:
        return keys, keys[..., : shape.value_channels]
    return keys, torch.full((slots, shape.heads, shape.value_channels), float("nan"))


@torch.inference_mode()
def test_bfloat16_is_as_near_to_float32_as_theirs(reference):
    """For the median token: where rounding sends one to another expert, it is chance who is nearer."""
    decoder = checkpoint.open(reference.folder).load(dtype=torch.bfloat16)
    ours = [decoder.logits(decoder(s, Layout.of([len(s)]))).float() for s in reference.sequences]
    exact = torch.cat(reference.logits)
    error, theirs = ((torch.cat(x) - exact).abs().mean(-1).median() for x in (ours, reference.half))
    assert error <= 1.5 * theirs


# ---- the same files -------------------------------------------------------------------------------------------------


def test_tensors_round_trip_bit_for_bit(reference, decoder):
    """All that transformers wrote has a place, is read when it is asked for, and is written back unchanged; but what a
    multimodal model has for images is left, and the text model is written under its own names."""
    found, multimodal = checkpoint.open(reference.folder), "vision_config" in reference.config
    read: set[str] = set()
    disk = {name: noted(ref, read) for name, ref in safetensors.open(reference.folder / "model.safetensors").items()}
    memory = rules.into(families.rules(reference.config, found.spec), disk)
    written = rules.back(families.rules(found.config, found.spec), memory)
    assert not read
    assert memory.keys() == {name for name, _ in checkpoint.slots(decoder)}
    for ref in memory.values():
        ref.read()
    unread = {name for name, ref in disk.items() if ref.source not in read}
    theirs = load_file(reference.folder / "model.safetensors")
    if multimodal:
        assert unread
        crossed = [f"layers.{i}." for i in reference.config.get("text_config", {}).get("cross_attention_layers", ())]
        assert all(any(of in name for of in ("visual.", "vision_", "multi_modal", *crossed)) for name in unread)
        theirs = text_of(theirs, reference)
    else:
        assert not unread
    assert written.keys() == theirs.keys()
    for name, tensor in theirs.items():
        ours = written[name].read()
        assert ours.dtype == tensor.dtype
        assert torch.equal(ours, tensor)


def text_of(tensors: dict[str, Tensor], reference: Reference) -> dict[str, Tensor]:
    """The tensors of a multimodal model's text, as transformers names them in a model of text alone."""
    folder = reference.folder.parent / f"{reference.folder.name}-text"
    config = AutoConfig.for_model(**families.plain(reference.config))
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    found = {name: name for name in load_file(folder / "model.safetensors")}
    if "cross_attention_layers" in reference.config.get("text_config", {}):  # in this case layers 1 and 3 of 5
        found = {name: re.sub(r"(?<=layers\.)\d", lambda n: str(2 * int(n[0])), name) for name in found}
    short = {name.replace("language_model.", "").replace("model.", ""): tensor for name, tensor in tensors.items()}
    rows = reference.config.get("text_config", reference.config)["vocab_size"]
    ours = {name: short[theirs.removeprefix("model.")] for name, theirs in found.items()}
    return {name: tensor[:rows] if "embed" in name else tensor for name, tensor in ours.items()}


def noted(ref: Ref, read: set[str]) -> Ref:
    """A Ref that notes that it was read."""

    def fetch(box: Box) -> Tensor:
        read.add(ref.source)
        return ref.fetch(box)

    return replace(ref, fetch=fetch)


@torch.inference_mode()
@pytest.mark.parametrize("dialect", ["transformers 5", "as published"])
def test_what_we_save_loads_in_transformers(reference, decoder, dialect, tmp_path):
    config = reference.config if dialect == "transformers 5" else reference.case.config
    checkpoint.save(tmp_path / "ours", decoder, config)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", dtype=torch.float32, local_files_only=True
    )
    for sequence, logits in zip(reference.sequences, reference.logits, strict=True):
        assert same(cases.ask(theirs, sequence), logits)


# ---- through other hands --------------------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("form", ["litgpt", "gguf"])
def test_through_another_hand_and_back(reference, decoder, form, tmp_path):
    """Written for LitGPT or llama.cpp, opened, written for transformers again: the same bits, the same model. What the
    other program has no words for is refused before anything is written."""
    found, place = checkpoint.open(reference.folder), tmp_path / f"model.{form}"
    if reference.case.name in cases.REFUSED[form]:
        with pytest.raises(ConfigError):
            checkpoint.save(place, found.tensors, found.config, form=form)
        assert not list(tmp_path.iterdir())
        return
    checkpoint.save(place, found.tensors, found.config, form=form)
    there = checkpoint.open(place)
    checkpoint.save(tmp_path / "back", there.tensors, there.config)
    back = checkpoint.open(tmp_path / "back").tensors
    assert back.keys() == found.tensors.keys()
    for name, ref in found.tensors.items():
        shifted = form == "gguf" and "norm" in name and getattr(found.spec.norm, "offset", 0)  # stored plus that
        assert torch.allclose(back[name].read(), ref.read(), rtol=0, atol=3e-7 if shifted else 0), name
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager", dtype=torch.float32)
    assert same(cases.ask(model, reference.sequences[-1]), reference.logits[-1])


# ---- the same configuration -----------------------------------------------------------------------------------------


def test_both_dialects_say_the_same(reference):
    """As published (transformers 4), and as transformers 5 rewrote it."""
    assert families.read(reference.case.config) == families.read(reference.config)


def test_older_words_for_the_same():
    phi = Case("", "Phi-3-mini-128k-instruct").config | {"rope_scaling": {**cases.LONG_8, "type": "longrope"}}
    older = phi | {"rope_scaling": {**cases.LONG_8, "type": "su"}}
    assert families.read(older) == families.read(phi)
    yarn = Case("", "Qwen2.5-7B", {"rope_scaling": {**cases.YARN, "type": "yarn"}}).config
    newer = yarn | {"rope_scaling": {**cases.YARN, "rope_type": "yarn"}}
    assert families.read(newer) == families.read(yarn)
    typed = {key: value for key, value in yarn.items() if key != "architectures"}
    assert families.read(typed) == families.read(yarn)


@pytest.mark.parametrize("name", ["falcon-7b", "falcon-40b"])
def test_the_first_falcons_words_for_the_same(name):
    """As the files said it before transformers knew the family, in RefinedWeb's words."""
    config = PUBLISHED[name].config
    words = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"}
    older = {words.get(key, key): value for key, value in config.items() if key != "new_decoder_architecture"}
    kind = "RefinedWeb" if "n_head_kv" in older else "RefinedWebModel"
    older |= {"architectures": ["RWForCausalLM"], "model_type": kind}
    assert families.read(older) == families.read(config)
    del older["architectures"]
    assert families.read(older) == families.read(config)


def test_a_pattern_of_layers_as_a_word():
    config = PUBLISHED["EXAONE-4.0-32B"].config
    told = {key: value for key, value in config.items() if key != "layer_types"}
    assert families.read(told) == families.read(told | {"sliding_window_pattern": 4}) == families.read(config)
    with pytest.raises(ConfigError, match='"sliding_window_pattern"'):
        families.read(told | {"sliding_window_pattern": "LLX"})


def test_positions_added_to_the_scores_are_refused_by_name():
    with pytest.raises(ConfigError, match='"alibi"'):
        families.read(PUBLISHED["falcon-7b"].config | {"alibi": True})


def test_kimi_k2_is_deepseek_v3_by_another_name():
    config = PUBLISHED["Kimi-K2-Instruct"].config
    assert families.read(config | {"model_type": "kimi_k2"}) == families.read(config)
    typed = {key: value for key, value in config.items() if key != "architectures"} | {"model_type": "kimi_k2"}
    assert families.read(typed) == families.read(config)


def test_llama_4_has_no_ramp_between_what_it_stretches_and_keeps():
    config = PUBLISHED["Llama-4-Scout-17B-16E-Instruct, text"].config
    with pytest.raises(ConfigError, match="high_freq_factor"):
        families.read(config | {"rope_scaling": config["rope_scaling"] | {"high_freq_factor": 0.5}})


@cache
def rewritten(name: str) -> dict[str, Any]:
    """A published configuration in the words of transformers 5."""
    return AutoConfig.for_model(**copy.deepcopy(PUBLISHED[name].config)).to_dict()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name):
    parameters, config = PUBLISHED[name]
    spec = families.read(config)
    assert sum(p.numel() for p in checkpoint.blank(spec).parameters()) == parameters
    assert families.read(rewritten(name)) == spec
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**copy.deepcopy(families.plain(config))))
    assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == parameters


EACH = {case.config["architectures"][0]: case for case in reversed(CASES)}.values()  # the first case of each family
OF_TEXT = [case for case in EACH if "vision_config" not in case.config]


@pytest.mark.parametrize("case", OF_TEXT, ids=lambda case: case.published)
def test_missing_keys_mean_what_transformers_takes_for_granted(case):
    sizes = {*cases.TINY, "model_type", "architectures", "n_embd", "n_head", "n_layer", "n_positions"} - {*cases.EPS}
    least = {key: value for key, value in case.config.items() if key in sizes}
    full = AutoConfig.for_model(**copy.deepcopy(least)).to_dict() | {"architectures": least["architectures"]}
    assert families.read(least) == families.read(full)


@pytest.mark.parametrize("case", EACH, ids=lambda case: case.published)
@pytest.mark.parametrize("value", ["nonsense", ["nonsense"], {"nonsense": 1}, -1, 0, 0.5, True], ids=repr)
def test_a_wrong_value_is_named_or_does_not_matter(case, value):
    """No value makes reading fail with anything but an error that names the key."""
    for config in (case.config, rewritten(case.published)):
        for key in config.keys() - NOISE:
            answer_or_name(config | {key: value}, key)
            for inner in config[key] if isinstance(config[key], dict) else ():
                answer_or_name(config | {key: config[key] | {inner: value}}, inner)


def answer_or_name(config: dict[str, Any], key: str) -> None:
    try:
        families.read(config)
    except ConfigError as error:
        assert key in str(error)


@pytest.mark.parametrize("case", EACH, ids=lambda case: case.published)
def test_an_unknown_key_is_an_error_that_names_it(case):
    for config in (case.config, rewritten(case.published)):
        families.read(config | {"sliding_windw": None})  # says nothing
        with pytest.raises(ConfigError, match='"sliding_windw"'):
            families.read(config | {"sliding_windw": 8})
        for key in ("rope_scaling", "rope_parameters"):
            if config.get(key):
                with pytest.raises(ConfigError, match=f'"{key}.factr"'):
                    families.read(config | {key: config[key] | {"factr": 2.0}})


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "num_attention_heads", "num_hidden_layers"])
def test_a_missing_size_is_an_error_that_names_it(key):
    config = Case("", "Llama-2-7b-hf").config
    del config[key]
    with pytest.raises(ConfigError, match=f'no "{key}"'):
        families.read(config)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"architectures": ["LlamaForCausalML"]}, 'Did you mean "LlamaForCausalLM"'),
        ({"architectures": ["MambaForCausalLM"]}, '"MambaForCausalLM" is not known'),
        ({"model_type": "lama"}, 'Did you mean "llama"'),
        ({"model_type": ["llama"]}, "is not known"),
        ({"architectures": "LlamaForCausalLM"}, "a list of names"),
        ({"architectures": [["LlamaForCausalLM"]]}, "a list of names"),
        ({}, "names no architecture"),
    ],
)
def test_an_unknown_architecture_is_an_error_that_names_it(named, words):
    config = Case("", "Llama-2-7b-hf").config
    del config["architectures"], config["model_type"]
    with pytest.raises(ConfigError, match=words):
        families.read(config | named)


def test_the_worked_example_is_the_code():
    """The listings in docs/adding-a-family.md are the lines of the files they are said to be in."""
    root = Path(__file__).parents[1]
    listings = re.findall(r"```python\n(.*?)```", (root / "docs/adding-a-family.md").read_text(), re.DOTALL)
    files = ("lathe/families/llama.py", "lathe/families/__init__.py", "tests/families.py")
    for listing, file in zip(listings, files, strict=True):
        assert listing in (root / file).read_text()
