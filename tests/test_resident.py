"""Pages of a mapped file that were read for a moment are given back, and nothing that was written is ever lost."""

from __future__ import annotations

import sys
from pathlib import Path

import memory
import pytest
import torch

from lathe import checkpoint, families
from lathe.checkpoint import packing
from lathe.model import initial, native
from lathe.model.native import resident
from lathe.transforms import pack, quantize
from lathe.weights import safetensors
from lathe.weights.tensors import Ref

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages of a file are in memory")
ROWS = 2048
UP = "model.layers.0.mlp.up_proj"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def held(file: Path) -> int:
    """Bytes of a file that are in this process's memory."""
    total, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            here = words[-1] == str(file)
        elif here and words[0] == "Rss:":
            total += int(words[1]) * 1024
    return total


@pytest.fixture
def file(tmp_path: Path) -> Path:
    place = tmp_path / "rows.safetensors"
    rows = torch.arange(ROWS * ROWS, dtype=torch.float32).view(ROWS, ROWS)
    safetensors.write(place, {"rows": Ref.of(rows)})
    return place


def test_what_was_read_is_given_back_and_can_be_read_again(file, monkeypatch):
    monkeypatch.setattr(resident, "LIMIT", 1 << 20)
    rows = safetensors.open(file)["rows"].read()
    passing = resident.Passing()
    total = 0.0
    for part in passing.through(rows.split(128)):
        total += float(part.double().sum())
        assert held(file) < 6 << 20  # of 16: what was read last, and what the system reads ahead
    passing.release()
    assert held(file) < 1 << 20
    assert total == float(rows.double().sum()) == ROWS**2 * (ROWS**2 - 1) / 2


def test_where_something_was_written_all_stays(file):
    """Of the tensor that it was written into; others around it go."""
    rows = safetensors.open(file)["rows"].read()
    rows[500, 500] = -1
    passing = resident.Passing()
    for part in passing.through(rows.split(128)):
        part.sum()
    passing.release()
    part = 128 * ROWS * 4
    assert part - 8192 <= held(file) < 3 * part
    assert rows[500, 500] == -1 and rows[500, 501] == 500 * ROWS + 501


def test_memory_of_its_own_stays():
    rows = torch.ones(ROWS, ROWS)
    passing = resident.Passing()
    assert sum(float(part.sum()) for part in passing.through(rows.split(128))) == ROWS**2
    passing.release()
    assert rows.sum() == ROWS**2


def test_quantizing_does_not_keep_what_it_read(tmp_path, monkeypatch):
    monkeypatch.setattr(resident, "LIMIT", 1 << 20)
    spec = families.read(CONFIG)
    checkpoint.save(tmp_path / "model", initial.decoder(spec, seed=0), CONFIG)
    opened = checkpoint.open(tmp_path / "model")
    decoder = opened.load(quantize="int8")
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    assert held(weights) < weights.stat().st_size / 4
    whole = opened.load()
    for name, module in decoder.named_modules():
        if hasattr(module, "codes"):
            plain = whole.get_submodule(name).weight
            assert (module.codes * module.scales - plain).abs().max() <= plain.abs().max() / 127


@pytest.mark.skipif(native.library() is None, reason="there is no compiler, and so no kernel")
def test_packing_does_not_keep_codes_twice():
    wide = CONFIG | {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4}
    decoder = initial.decoder(families.read(wide), seed=0).bfloat16()
    quantize.pack(decoder, "int8")
    resident.trim()
    before = memory.anonymous()
    pack.pack(decoder)
    codes = 4 * (4 * 1024 * 1024 + 3 * 1024 * 2048)
    assert memory.anonymous() - before < codes / 2 / 2**20


@pytest.mark.skipif(native.library() is None, reason="there is no compiler, and so no kernel")
def test_of_a_gguf_file_whose_codes_were_put_into_panels_little_stays(tmp_path):
    """Of its 4 MB: norms, ends of pages, and rows that have another order here."""
    spec, place = families.read(CONFIG), tmp_path / "medium.gguf"
    made = {name: Ref.of(torch.randn(slot.shape)) for name, slot in checkpoint.slots(checkpoint.blank(spec))}
    packing.pack(place, made, CONFIG, "Q4_K_M", {})
    decoder = checkpoint.open(place).load(quick=True)
    assert held(place) < place.stat().st_size / 4
    assert torch.equal(
        decoder.model.layers[0].mlp.up_proj.weight, checkpoint.open(place).tensors[f"{UP}.weight"].read()
    )
