"""Folders of torch.distributed.checkpoint against what torch loads from them; damaged and hostile ones are refused."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import damaged, draw_box
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from lathe.errors import CheckpointError, LatheError, UnsafeError
from lathe.weights import distributed

STATE: dict[str, Any] = {
    "model": {
        "layer.weight": torch.randn(9, 6),
        "layer.bias": torch.randn(9).bfloat16(),
        "scale": torch.tensor(3.5),
        "none": torch.empty(0, 4),
        "half": torch.randn(4, 6)[:, ::2],
    },
    "optimizer": {"state": {"layer.weight": {"step": torch.tensor(3.0)}}},
    "steps": 7,
}


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # there is one process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dcp.save(STATE, checkpoint_id=tmp_path / "saved", no_dist=True)
    return tmp_path / "saved"


def metadata(folder: Path) -> Any:
    return pickle.loads((folder / ".metadata").read_bytes())


def cut(folder: Path, boxes: dict[str, list[tuple[slice, ...]]]) -> None:
    """Write tensors of the folder again as processes would that each had one of these boxes."""
    found = metadata(folder)
    for name, parts in boxes.items():
        whole, told = STATE["model"][name.removeprefix("model.")], found.state_dict_metadata[name]
        told.chunks = []
        found.storage_data = {key: info for key, info in found.storage_data.items() if key.fqn != name}
        for number, box in enumerate(parts):
            file = f"__{number}_9.distcp"
            offsets = torch.Size([part.start for part in box])
            told.chunks.append(ChunkStorageMetadata(offsets, whole[box].shape))
            begin = (folder / file).stat().st_size if (folder / file).exists() else 0
            with (folder / file).open("ab") as out:
                torch.save(whole[box].clone(), out)
            info = type(next(iter(found.storage_data.values())))(file, begin, (folder / file).stat().st_size - begin)
            found.storage_data[MetadataIndex(name, offsets)] = info
    (folder / ".metadata").write_bytes(pickle.dumps(found))


def test_tensors_are_those_that_were_saved(folder):
    refs = distributed.open(folder)
    assert distributed.is_folder(folder)
    for name, tensor in STATE["model"].items():
        ref = refs[f"model.{name}"]
        assert (ref.shape, ref.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(ref.read(), tensor)
    assert refs.keys() == {*(f"model.{name}" for name in STATE["model"]), "optimizer.state.layer.weight.step"}


QUARTERS = [(slice(a, b), slice(c, d)) for a, b in ((0, 5), (5, 9)) for c, d in ((0, 2), (2, 6))]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_box_of_a_tensor_in_pieces(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("x") / "saved"
    dcp.save(STATE, checkpoint_id=folder, no_dist=True)
    cut(folder, {"model.layer.weight": QUARTERS, "model.layer.bias": [(slice(0, 1),), (slice(1, 9),)]})
    refs = distributed.open(folder)
    for name in ("layer.weight", "layer.bias"):
        tensor, ref = STATE["model"][name], refs[f"model.{name}"]
        box = draw_box(data, tuple(tensor.shape))
        assert torch.equal(ref[box].read(), tensor[box])


@pytest.mark.parametrize(
    "boxes",
    [
        QUARTERS[:3],  # one is missing
        [*QUARTERS[:3], (slice(5, 9), slice(2, 5))],  # one is too small
        [(slice(0, 5), slice(0, 6)), (slice(4, 9), slice(0, 6))],  # two overlap
        [(slice(1, 9), slice(0, 6))],
        [],
    ],
)
def test_chunks_that_do_not_make_up_a_tensor(folder, boxes):
    cut(folder, {"model.layer.weight": boxes})
    with pytest.raises(CheckpointError, match=r'\.metadata is damaged: the chunks of tensor "model\.layer\.weight"'):
        distributed.open(folder)


def test_a_file_that_is_gone(folder):
    cut(folder, {"model.layer.weight": QUARTERS})
    (folder / "__2_9.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"lacks __2_9\.distcp"):
        distributed.open(folder)


def test_a_file_that_is_cut_short(folder):
    [file] = folder.glob("*.distcp")
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=f"beyond the end of {file.name}"):
        distributed.open(folder)


def test_a_chunk_of_another_shape(folder):
    cut(folder, {"model.layer.weight": QUARTERS})
    found = metadata(folder)
    places = [key for key in found.storage_data if key.fqn == "model.layer.weight"]
    found.storage_data[places[0]] = found.storage_data[places[1]]
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    ref = distributed.open(folder)["model.layer.weight"]
    with pytest.raises(CheckpointError, match=r'"model\.layer\.weight" in .* not of the shape and type'):
        ref.read()


@pytest.mark.parametrize("away", ["../secret", "/etc/passwd", "sub/x.distcp", "..", ""])
def test_files_outside_of_the_folder_are_not_read(folder, away):
    found = metadata(folder)
    for info in found.storage_data.values():
        object.__setattr__(info, "relative_path", away)
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    with pytest.raises(CheckpointError, match="not described as torch does"):
        distributed.open(folder)


class Payload:
    def __reduce__(self) -> Any:
        return os.system, ("echo hostile",)


@pytest.mark.parametrize("field", ["planner_data", "storage_meta", "version"])
def test_a_payload_in_the_metadata_is_refused(folder, field):
    found = metadata(folder)
    setattr(found, field, Payload())
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    with pytest.raises(UnsafeError, match="system"):
        distributed.open(folder)


def test_damaged_metadata_are_refused_in_words(folder):
    """Whatever bytes change, what is read is right or refused: nothing hangs, nothing of it is run."""
    good = (folder / ".metadata").read_bytes()
    wanted = {f"model.{name}": tensor for name, tensor in STATE["model"].items()}
    opened = 0
    for bad in damaged(good, 1500, seed=1):
        (folder / ".metadata").write_bytes(bad)
        try:
            refs = distributed.open(folder)
            for name in wanted.keys() & refs.keys():
                if refs[name].nbytes < 1 << 20:
                    refs[name].read()
            opened += 1
        except LatheError as error:
            assert "\n" not in str(error)
    assert opened


def test_damaged_chunks_are_refused_in_words(folder):
    [file] = folder.glob("*.distcp")
    good, rng = file.read_bytes(), random.Random(0)
    copy = folder / "good"
    shutil.copy(file, copy)
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(rng.choice((1, 3))):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        file.write_bytes(bad)
        for ref in distributed.open(folder).values():
            try:
                assert ref.read().shape == ref.shape
            except LatheError as error:
                assert "\n" not in str(error)
