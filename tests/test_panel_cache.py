"""Codes that were kept beside a model: mapped where they are this model's, made anew where anything is another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from serving import adapter, tiny
from torch import Tensor

from lathe import LLM, checkpoint
from lathe.checkpoint.adapters import put_on
from lathe.cli import main
from lathe.errors import UsageError
from lathe.model import native
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.transforms.group import Group
from lathe.transforms.panels import Panels
from lathe.transforms.shard import Share

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no compiler, and so no kernel")
IDS = torch.tensor([3, 14, 15, 92])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny(tmp_path)


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever rows are put into panels."""
    calls: list[int] = []
    real = Panels.put
    monkeypatch.setattr(Panels, "put", lambda *given: (calls.append(1), real(*given))[1])
    return calls


def loaded(place: Path, quantize: str | None = "int8", keep: bool = False, **more: torch.dtype) -> Decoder:
    return checkpoint.open(place).load(quantize=quantize, quick=True, keep=keep, **more)


def kept(place: Path) -> set[str]:
    return {file.name for file in (place / ".lathe").iterdir()}


@torch.no_grad()
def scores(decoder: Decoder) -> Tensor:
    return decoder.logits(decoder(IDS, Layout.of([len(IDS)])))


@pytest.mark.parametrize("kind", ["int8", "int4", "int4-zp", "nf4"])
def test_what_was_kept_is_mapped_and_gives_the_same(folder: Path, kind: str, put: list[int]) -> None:
    first = loaded(folder, kind)
    assert put
    assert not (folder / ".lathe").exists()
    loaded(folder, kind, keep=True)
    files = kept(folder)
    assert {name.split(".")[0] for name in files} == ({kind} if kind == "nf4" else {kind, "int8-32"})
    put.clear()
    again = loaded(folder, kind, keep=True)
    assert not put
    assert kept(folder) == files
    assert torch.equal(scores(first), scores(again))
    ours, theirs = dict(first.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_other_weights_and_other_ways_are_not_taken_for_these(folder: Path, put: list[int]) -> None:
    loaded(folder, keep=True)
    loaded(folder, "int4", keep=True)
    before = kept(folder)
    assert len(before) == 3  # both have the same embedding, which is the head
    for other in ({"quantize": "int8-32"}, {"quantize": "int8", "dtype": torch.bfloat16}):
        put.clear()
        loaded(folder, **other)
        assert put
    weights = folder / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[-4:] = b"\0\0\0\0"
    weights.write_bytes(whole)
    os.utime(weights, ns=(1, 1))  # some file systems count in seconds
    put.clear()
    expected = scores(loaded(folder))
    assert put
    assert torch.equal(scores(loaded(folder, keep=True)), expected)
    after = kept(folder)
    assert len(after) == 3 and {name for name in after if name.startswith("int4.")} <= before
    assert not {name for name in after if not name.startswith("int4.")} & before  # what was made of other weights


def test_a_file_that_is_not_whole_is_made_anew(folder: Path) -> None:
    expected = scores(loaded(folder, keep=True))
    for file in (folder / ".lathe").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(scores(loaded(folder, keep=True)), expected)
    assert torch.equal(scores(loaded(folder)), expected)


def test_of_one_file_with_codes_of_its_own(folder: Path, tmp_path: Path, put: list[int]) -> None:
    assert main(["quantize", str(folder), str(tmp_path / "some[1].gguf"), "--to", "Q8_0"]) == 0
    expected = scores(loaded(tmp_path / "some[1].gguf", None, keep=True))
    assert {name.partition(".gguf.")[0] for name in kept(tmp_path)} == {"some[1]"}
    put.clear()
    assert torch.equal(scores(loaded(tmp_path / "some[1].gguf", None)), expected)
    assert not put


def test_an_adapter_goes_on_what_was_kept(folder: Path, tmp_path: Path, put: list[int]) -> None:
    place = adapter(folder, tmp_path / "adapter", 1)
    expected = LLM.load(folder, device="cpu", quantize="int8", adapter=place, keep_packed=True)
    put.clear()
    again = LLM.load(folder, device="cpu", quantize="int8", adapter=place)
    assert again.generate("A lathe", temperature=0) == expected.generate("A lathe", temperature=0)
    assert not put


def test_what_cannot_be_kept_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(folder), "--prompt", "a", "--max-new-tokens", "1", "--keep-packed", "--device", "cpu"]
    assert main(words) == 2
    assert "Nothing of this model is packed" in capsys.readouterr().err
    (folder / ".lathe").touch()
    assert main([*words, "--quantize", "int8"]) == 2
    assert f"Cannot write to {folder / '.lathe'}" in capsys.readouterr().err
    with pytest.raises(UsageError, match="Random weights"):
        LLM.load(folder, device="cpu", init="random", keep_packed=True)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_part_of_a_model_is_not_kept_and_that_is_said(folder: Path, tmp_path: Path, adapted: bool) -> None:
    model = checkpoint.open(folder)
    if adapted:
        model = put_on(model, {"one": adapter(folder, tmp_path / "adapter", 1)})
    share = Share(model.spec, Group(0, 2))
    with pytest.raises(UsageError, match=r"its part of a model.*a whole model.*Leave --keep-packed out"):
        model.load(quantize="int8", quick=True, share=share, keep=True)
    assert not (folder / ".lathe").exists()
    assert model.load(quantize="int8", quick=True, share=share)


def test_what_breaks_off_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(UsageError, match="No space left"):
            loaded(folder, keep=True)
    assert not kept(folder)
