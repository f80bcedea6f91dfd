"""Data sets at a Hub on this machine, and LitGPT's names for well-known ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubserver import HubServer, Repo

from lathe.data import formats, hubdata, presets, sources
from lathe.data.samples import Chat
from lathe.errors import DataError, MissingError, UsageError


def lines(*texts: str) -> bytes:
    return "\n".join(json.dumps({"text": text}) for text in texts).encode()


CARD = b"""---
configs:
- config_name: small
  default: true
  data_files:
  - split: train
    path: some/s-*.jsonl
  - split: held_back
    path: [some/held.jsonl]
- config_name: large
  data_files: some/*.jsonl
---
# A card
"""

REPOS = {
    "me/plain": Repo(
        {"README.md": b"x", "train.jsonl": lines("a", "b"), "data/test-00000.jsonl": lines("c"), "p.py": b""}
    ),
    "me/packed": Repo({"rows.jsonl.gz": gzip.compress(lines("z"))}),
    "me/card": Repo(
        {"README.md": CARD, "some/s-0.jsonl": lines("0"), "some/s-1.jsonl": lines("1"), "some/held.jsonl": lines("h")}
    ),
    "me/program": Repo({"program.py": b""}, branches={hubdata.MADE: {"default/train/0000.jsonl": lines("made")}}),
    "me/gated": Repo({"train.jsonl": lines("secret")}, gated=True),
    "me/empty": Repo({"README.md": b""}, branches={hubdata.MADE: {}}),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import constants

    server = HubServer(REPOS)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.chdir(tmp_path)
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("me/plain", ["a", "b"]),
        ("me/plain:test", ["c"]),
        ("me/plain:train#1", ["a"]),
        ("me/plain/data/*.jsonl", ["c"]),
        ("me/packed", ["z"]),
        ("me/card", ["0", "1"]),
        ("me/card:held_back", ["h"]),
        ("me/card:large", ["h", "0", "1"]),
        ("me/card:small:held_back", ["h"]),
        ("me/program", ["made"]),
    ],
)
def test_a_split_is_what_the_card_or_the_paths_say(hub: HubServer, name: str, expected: list[str]) -> None:
    assert list(sources.texts(name)) == list(sources.stream(name)) == expected


def test_files_are_fetched_when_they_are_read_and_once(hub: HubServer) -> None:
    (source,) = sources.read("me/card")
    assert not any(asked.file for asked in hub.asked)
    pieces = source.pieces()
    assert next(pieces).read().fields == {"text": "0"}
    assert {asked.file for asked in hub.asked if asked.file} == {"some/s-0.jsonl"}
    assert str(next(pieces).read().place) == "me/card/some/s-1.jsonl, line 1"
    before = [asked.file for asked in hub.asked if asked.method == "GET"]
    list(source.pieces())
    assert [asked.file for asked in hub.asked if asked.method == "GET"] == before


def test_hub_ids_can_be_mixed(hub: HubServer) -> None:
    assert list(sources.texts(["me/plain:0.5", "me/plain:test:0.5"])) == ["a", "c", "b", "c"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("me/plain:dev", DataError, r"has no split dev. It has me/plain:test, me/plain:train"),
        ("me/plain/no*", DataError, r"me/plain has no file no\*"),
        ("me/none", MissingError, 'There is no data "me/none"'),
        ("me/gated", MissingError, "me/gated is gated"),
        ("me/empty", DataError, "me/empty has no split train. It has no files that are read"),
    ],
)
def test_what_is_not_there_is_said(hub: HubServer, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(sources.texts(name))


def test_a_token_that_cannot_be_one_is_refused_and_not_shown(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret\x01words")
    with pytest.raises(UsageError, match="access token") as told:
        list(sources.texts("me/plain"))
    assert "secret" not in str(told.value) and not hub.asked


def test_an_address_that_fails_leaves_nothing(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubdata, "cache", lambda: tmp_path / "kept")
    with pytest.raises(MissingError, match=r"Cannot fetch .*no\.jsonl"):
        list(sources.texts(f"{hub.address}/me/plain/resolve/0/no.jsonl"))
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]


def test_an_address_is_fetched_once(hub: HubServer) -> None:
    url = f"{hub.address}/me/plain/resolve/{REPOS['me/plain'].commits['main']}/train.jsonl"
    assert list(sources.texts(url)) == ["a", "b"]
    asked = len(hub.asked)
    assert [str(record.place) for record in sources.rows(url)] == [f"{url}, line 1", f"{url}, line 2"]
    assert len(hub.asked) == asked
    with pytest.raises(MissingError, match=r"Cannot fetch .*no\.jsonl"):
        list(sources.texts(f"{hub.address}/me/plain/resolve/0/no.jsonl"))


# ---- presets --------------------------------------------------------------------------------------------------------
def test_every_name_of_litgpt_is_known() -> None:
    known = "Alpaca Alpaca2k AlpacaGPT4 Deita Dolly FLAN LIMA LongForm MicroLlama OpenWebText TinyLlama TinyStories"
    assert sorted(preset.name for preset in presets.presets().values()) == sorted(known.split())
    for preset in presets.presets().values():
        words = preset.data + (preset.held if isinstance(preset.held, tuple) else ())
        for word in words:
            name = sources.WEIGHT.sub("", word)
            assert name.startswith("https://") or hubdata.REPO.fullmatch(name), word
        assert isinstance(preset.held, tuple) or 0 < preset.held < 1
    with pytest.raises(UsageError, match="JSON does not say where the data is"):
        sources.read("JSON")
    with pytest.raises(MissingError, match='Did you mean "TinyStories"'):
        sources.read("TinyStory")


@pytest.mark.parametrize(
    ("name", "files", "fields"),
    [
        ("LongForm", {"train": "longform_train_fixture.json", "val": "longform_val_fixture.json"}, {"input", "output"}),
        ("Dolly", {"train": "dolly_litgpt_fixture.json"}, {"instruction", "context", "response"}),
        ("Alpaca", {"train": "alpaca_rasbt_1100.json"}, {"instruction", "input", "output"}),
    ],
)
def test_presets_read_real_rows(shared: Path, hub: HubServer, monkeypatch, name: str, files, fields) -> None:
    """Local copies take the place of the addresses, laid out as the preset has them."""
    preset = presets.presets()[name.lower()]
    held = preset.held
    real = {side: (shared / "data/instruct" / file).read_bytes() for side, file in files.items()}
    hub.repos["my/copy"] = Repo({f"{side}.json": data for side, data in real.items()})
    if "val" in real:
        assert isinstance(held, tuple)
        held = ("my/copy:validation",)
    mine = presets.Preset(name, ("my/copy",), held)
    monkeypatch.setattr(presets, "presets", lambda: {name.lower(): mine})
    data, held = presets.sides(name, None)
    rows = sources.rows(data)
    samples = formats.Samples(rows)
    assert all(isinstance(samples[at], Chat) for at in range(len(rows)))
    assert [record.fields for record in rows] == json.loads(real["train"])
    assert fields <= set(rows[0].fields)
    if "val" in real:
        assert [record.fields for record in sources.rows(held)] == json.loads(real["val"])
    else:
        assert held == preset.held


def test_a_folder_can_say_what_is_held_out(tmp_path: Path) -> None:
    assert presets.sides(str(tmp_path), None) == ((str(tmp_path),), 0.05)
    assert presets.sides(["a", "b"], 0.1) == (("a", "b"), 0.1)
    (tmp_path / "train.json").write_text("[]")
    assert presets.sides(str(tmp_path), 0.2) == ((str(tmp_path),), 0.2)
    (tmp_path / "val.jsonl").write_text("")
    assert presets.sides(str(tmp_path), None) == ((str(tmp_path / "train.json"),), (str(tmp_path / "val.jsonl"),))
    assert presets.sides("alpaca", 0.5)[1] == 0.5
    assert presets.sides("alpaca", 0.5, ["v"])[1] == ("v",)
    assert presets.sides("Alpaca", None)[1] == 0.03865


@pytest.mark.parametrize(
    "row",
    [
        {"inputs": "Say it.", "targets": "It.", "task": "x"},  # FLAN
        {"conversations": ["Say it.", "It."], "source": "x"},  # LIMA
        {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It."}]},  # Deita
    ],
)
def test_rows_of_the_other_presets_are_recognised(row: dict) -> None:
    (sample,) = formats.Samples([row])
    assert isinstance(sample, Chat)
    assert [message["content"] for message in sample.messages] == ["Say it.", "It."]
