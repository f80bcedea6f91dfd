"""Texts to token files: the same files and the same order whoever makes them, when, and however often it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.data import sources
from lathe.data.chunks import Chunk, Recipe, drawn, parted, together
from lathe.data.corpus import Corpus
from lathe.data.pack import Packed
from lathe.data.tokens import TokenFiles
from lathe.data.windows import Held, Windows, bounds
from lathe.errors import DataError
from lathe.tokenizer import Tokenizer, bytelevel, train_bpe

TEXTS = [f"The text of number {i}, and its words.\n" * (1 + i % 5) for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, 300)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return path


def recipe(data: object, tokenizer: Tokenizer, **more) -> Recipe:
    return Recipe(tuple(sources.read(str(data))), tokenizer, **{"size": 500, **more})


def ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]


def everything(files: TokenFiles) -> list[list[int]]:
    """All documents to train on, in the order of the data."""
    chunks = [files.chunk(number) for number in range(files.whole.chunks)]
    return [chunk[i].tolist() for chunk in chunks for i in range(chunk.training)]


# ---- encoding -------------------------------------------------------------------------------------------------------
def test_many_texts_are_encoded_as_each_alone(tokenizer: Tokenizer, shared: Path, monkeypatch) -> None:
    monkeypatch.setattr("lathe.tokenizer.encoder.PART", 100)
    texts = ["", "one", "two\nthree\nfour\n\nfive \nsix " * 20, "no line " * 40]
    for some in (tokenizer, *(Tokenizer.open(shared / "data/tokenizers" / name) for name in ("minimind", "llama-2"))):
        assert some.encode_all(texts) == [some.encode(text) for text in texts]
        assert some.encode_all([]) == []


@given(st.text(alphabet="aB1 \n\r\t.,'é世-", max_size=60), st.integers(1, 20), st.sampled_from(sorted(bytelevel.CUTS)))
def test_a_long_text_is_parted_where_every_vocabulary_cuts_it(text: str, size: int, name: str) -> None:
    parts = bytelevel.parts(text, size)
    assert "".join(parts) == text
    for_all = bytelevel.pipeline(bytelevel.models.BPE(), bytelevel.CUTS[name]).pre_tokenizer
    assert [cut for part in parts for cut, _ in for_all.pre_tokenize_str(part)] == [
        cut for cut, _ in for_all.pre_tokenize_str(text)
    ]


# ---- files ----------------------------------------------------------------------------------------------------------
def test_documents_come_back_and_end_with_eos(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = TokenFiles(recipe(data, tokenizer), tmp_path, workers=0)
    assert everything(files) == ids(tokenizer, TEXTS)
    assert files.whole.chunks > 10
    assert files.whole.documents == 60
    assert files.whole.tokens == sum(map(len, ids(tokenizer, TEXTS)))
    assert files.whole.targets == files.whole.tokens - 60
    assert files.whole.held_documents == 0
    assert files.chunk(0).ids.dtype == np.uint16
    assert files.chunk(files.whole.chunks) is None


def contents(files: TokenFiles) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in files.folder.iterdir() if path.suffix in (".ids", ".ends", ".json")
    }


def test_the_files_are_the_same_whoever_makes_them(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    alone = TokenFiles(recipe(data, tokenizer, held=0.2), tmp_path / "a", workers=0)
    others = TokenFiles(recipe(data, tokenizer, held=0.2), tmp_path / "b", workers=2)
    assert others.chunk(0) is not None  # while the rest is still being made
    assert alone.whole == others.whole
    assert contents(alone) == contents(others)
    assert alone.key == others.key


def test_what_is_there_is_not_made_again_and_what_is_cut_off_is(data: Path, tokenizer, tmp_path, monkeypatch) -> None:
    first = TokenFiles(recipe(data, tokenizer), tmp_path, workers=0)
    for number in range(3):
        first.chunk(number)
    assert len(list(first.folder.glob("*.ends"))) == 3
    made: list[int] = []
    encoded = Recipe.encoded
    monkeypatch.setattr(Recipe, "encoded", lambda self, chunk: made.append(len(chunk)) or encoded(self, chunk))
    (first.folder / "000001.ids").write_bytes(b"cut off")
    second = TokenFiles(recipe(data, tokenizer), tmp_path, workers=0)
    assert everything(second) == ids(tokenizer, TEXTS)
    assert len(made) == second.whole.chunks - 2
    made.clear()
    assert everything(TokenFiles(recipe(data, tokenizer), tmp_path, workers=0)) == ids(tokenizer, TEXTS)
    assert not made
    (first.folder / "000002.ends").unlink()
    assert everything(TokenFiles(recipe(data, tokenizer), tmp_path, workers=0)) == ids(tokenizer, TEXTS)
    assert len(made) == 1


def test_files_made_from_something_else_are_not_taken(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    def key(**more) -> str:
        return TokenFiles(recipe(data, more.pop("tokenizer", tokenizer), **more), tmp_path).key

    keys = [key(), key(held=0.1), key(held=0.1, seed=1), key(tokenizer=train_bpe(TEXTS, 301)), key(column="text")]
    assert key(seed=1) == keys[0]
    stat = data.stat()
    data.write_text(data.read_text().replace("number 7", "number 8"))
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    keys.append(key())
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_row_is_an_error_of_who_asks(data: Path, tokenizer: Tokenizer, tmp_path: Path, workers: int) -> None:
    data.write_text(data.read_text() + '\n{"txt": 1}')
    files = TokenFiles(recipe(data, tokenizer), tmp_path, workers=workers)
    with pytest.raises(DataError, match=r'texts\.jsonl, line 61: there is no "text" in this row'):
        _ = files.whole
    files.close()


# ---- several processes ----------------------------------------------------------------------------------------------
READER = """
import sys, pickle
from pathlib import Path
from lathe.data.tokens import TokenFiles
recipe, folder = pickle.load(open(sys.argv[1], "rb"))
files = TokenFiles(recipe, Path(folder), workers=int(sys.argv[2]))
print(files.whole.tokens, flush=True)
"""


def reader(task: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-c", READER, str(task), str(workers)]
    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})


def test_who_waits_goes_on_where_the_maker_was_killed(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    import pickle

    made = recipe(data, tokenizer)
    task = tmp_path / "task"
    task.write_bytes(pickle.dumps((made, tmp_path / "files")))
    killed = reader(task, workers=1)
    folder = TokenFiles(made, tmp_path / "files", workers=0).folder
    deadline = time.monotonic() + 30
    while not list(folder.glob("*.ends")) and time.monotonic() < deadline:
        time.sleep(0.01)
    waiting = reader(task, workers=1)
    killed.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    killed.communicate()
    told, _ = waiting.communicate(timeout=60)
    assert int(told) == sum(map(len, ids(tokenizer, TEXTS)))


def test_processes_at_once_make_one_set_of_files(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    import pickle

    task = tmp_path / "task"
    task.write_bytes(pickle.dumps((recipe(data, tokenizer), tmp_path / "files")))
    together = [reader(task, workers) for workers in (0, 0, 1)]
    assert {int(process.communicate(timeout=60)[0]) for process in together} == {sum(map(len, ids(tokenizer, TEXTS)))}


# ---- held out -------------------------------------------------------------------------------------------------------
@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_part_is_held_out_wherever_one_looks(count: int, fraction: float, seed: int) -> None:
    held = list(islice(drawn(fraction, seed, count if count < 1 / fraction else None), count))
    assert any(held)
    assert not all(held)
    assert abs(sum(held) - count * fraction) <= 1 + 1e-9
    assert held[: count // 2] == list(islice(drawn(fraction, seed, None), count // 2)) or count < 1 / fraction


def test_one_document_gives_its_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "\n".join(f"line {i}" for i in range(100))
    before, after = parted(text, 0.1)
    assert before + after == text
    assert before.endswith("\n")
    assert 0.07 < len(after) / len(text) < 0.12
    (tmp_path / "one.txt").write_text(text)
    files = TokenFiles(recipe(tmp_path / "one.txt", tokenizer, held=0.1, size=1 << 20), tmp_path, workers=0)
    assert everything(files) == ids(tokenizer, [before])
    assert [held.tolist() for held in Held(files)] == ids(tokenizer, [after])


def test_every_document_is_on_one_side(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = TokenFiles(recipe(data, tokenizer, held=0.1), tmp_path, workers=0)
    held = [document.tolist() for document in Held(files)]
    assert len(held) == files.whole.held_documents == 6
    assert sorted(everything(files) + held) == sorted(ids(tokenizer, TEXTS))


# ---- order ----------------------------------------------------------------------------------------------------------
def test_windows_grow_and_leave_nothing_out() -> None:
    edges = [bounds(window) for window in range(10)]
    assert [end - begin for begin, end in edges] == [4, 4, 8, 16, 32, 64, 64, 64, 64, 64]
    assert all(a[1] == b[0] for a, b in pairwise(edges))


def test_an_epoch_has_every_document_and_an_order_of_its_own(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = TokenFiles(recipe(data, tokenizer), tmp_path, workers=0)
    order = [document.tolist() for document in Windows(files, 1, most=3)]
    epochs = [order[:60], order[60:120], order[120:]]
    assert all(sorted(epoch) == sorted(ids(tokenizer, TEXTS)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order != [document.tolist() for document in Windows(files, 2, most=3)]


@pytest.mark.parametrize("stop", [0, 1, 30, 59, 60, 61, 119, 120])
def test_the_order_goes_on_from_its_state_whatever_is_there(data, tokenizer, tmp_path: Path, stop: int) -> None:
    first = Windows(TokenFiles(recipe(data, tokenizer), tmp_path / "a", workers=0), 1, most=2)
    begun = [document.tolist() for document in islice(first, stop)]
    fresh = TokenFiles(recipe(data, tokenizer), tmp_path / "b", workers=0)
    second = Windows(fresh, 7, most=2)
    second.restore(json.loads(json.dumps(first.state())))
    rest = [document.tolist() for document in second]
    assert rest == [document.tolist() for document in first]
    assert len(begun) + len(rest) == 120
    assert first.epochs == second.epochs == 2
    with pytest.raises(DataError, match="reading other data"):
        Windows(TokenFiles(recipe(data, tokenizer, held=0.1), tmp_path, workers=0), 1).restore(first.state())


def test_what_has_nothing_to_predict_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text('{"text": ""}\n{"text": ""}')
    with pytest.raises(DataError, match=r"none\.jsonl has nothing to predict"):
        next(Packed(Windows(TokenFiles(recipe(tmp_path / "none.jsonl", tokenizer), tmp_path, workers=0), 0), 4))


# ---- corpora --------------------------------------------------------------------------------------------------------
def test_a_corpus_learns_all_but_what_it_validates_on(data: Path, tokenizer: Tokenizer) -> None:
    corpus = Corpus.of(str(data), tokenizer, 16, held=0.1, workers=0)
    steps = list(corpus.training(4, 2, 0, "cpu", most=2))
    assert sum(work.supervised for work in steps) == 2 * corpus.targets
    assert steps[-1].epochs == 2
    held = list(corpus.validation(2, "cpu"))
    assert sum(work.supervised for work in held) == corpus.files[0].whole.held_targets
    assert corpus.targets + corpus.files[0].whole.held_targets == sum(len(some) - 1 for some in ids(tokenizer, TEXTS))


def test_corpora_are_mixed_by_tokens_and_go_on(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "z.txt").write_text("zzzz zz z zzz\n" * 400)
    words = [f"{data}:0.75", f"{tmp_path / 'z.txt'}:0.25"]
    z = set(tokenizer.encode("zzzz zz z zzz\n" * 3)) - set(tokenizer.encode("".join(TEXTS)))

    def steps():
        return Corpus.of(words, tokenizer, 16, workers=0).training(8, 8, 3, "cpu")

    first, second = steps(), steps()
    tokens = np.concatenate([batch.tokens.numpy() for work in islice(first, 200) for batch in work.batches])
    assert 0.15 < np.isin(tokens, list(z)).mean() < 0.26
    second.restore(json.loads(json.dumps(first.state())))
    for a, b in islice(zip(first, second, strict=True), 50):
        assert a.batches[0].tokens.tolist() == b.batches[0].tokens.tolist()
    corpus = Corpus.of(words, tokenizer, 16, workers=0)
    (each,) = [files.whole.tokens for files in corpus.files[:1]]
    assert corpus.epoch == int(max(each / 0.75, corpus.files[1].whole.tokens / 0.25))
    assert list(corpus.training(8, 8, 3, "cpu", most=1))[-1].epochs == pytest.approx(1, abs=0.05)


def test_data_to_validate_on_can_be_data_of_its_own(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text(TEXTS[3])
    corpus = Corpus.of(str(data), tokenizer, 8, held=str(tmp_path / "val.txt"), workers=0)
    assert sum(work.supervised for work in corpus.validation(2, "cpu")) == len(tokenizer.encode(TEXTS[3].strip("\n")))
    assert corpus.files[0].whole.documents == 60


def test_rows_of_one_long_document_are_learned_from_apart(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("".join(f"{i} and {i + 1}\n" for i in range(3000)))
    corpus = Corpus.of(str(tmp_path / "one.txt"), tokenizer, 32, workers=0)
    (document,) = everything(corpus.files[0])
    rows = [tuple(b.tokens.tolist()) for work in corpus.training(1, 1, 0, "cpu", most=1) for b in work.batches]
    cut = [tuple(document[begin : begin + 32]) for begin in range(0, len(document) - 1, 32)]
    cut[-1] = tuple(document[32 * (len(cut) - 1) : -1])
    assert sorted(rows) == sorted(cut)
    assert rows != cut


# ---- memory ---------------------------------------------------------------------------------------------------------
HUNGRY = """
import resource, sys
from pathlib import Path
from lathe.data import sources
from lathe.data.chunks import Recipe
from lathe.data.tokens import TokenFiles
from lathe.tokenizer import train_bpe
tokenizer = train_bpe(["the words of a long file"], 280)
files = TokenFiles(Recipe(tuple(sources.read(sys.argv[1])), tokenizer, size=1 << 18), Path(sys.argv[2]), workers=0)
files.chunk(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_ = files.whole
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(os.name == "nt", reason="the module `resource` is Unix's")
@pytest.mark.parametrize("suffix", [".txt", ".jsonl.gz"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    import gzip

    path = tmp_path / f"long{suffix}"
    if suffix == ".txt":
        path.write_text("the words of a long file\n" * 200_000)  # 5 MB, one document
    else:
        with gzip.open(path, "wt", compresslevel=1) as file:
            for _ in range(500):
                file.write(json.dumps({"text": "the words of a long file\n" * 400}) + "\n")
    command = [sys.executable, "-c", HUNGRY, str(path), str(tmp_path)]
    paths = os.pathsep.join(filter(None, sys.path))
    told = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=True)
    assert int(told.stdout) < 60


def test_a_chunk_of_nothing_is_a_chunk(tmp_path: Path) -> None:
    together([], [[]], np.dtype("<u2")).write(tmp_path, 0)
    chunk = Chunk.open(tmp_path, 0, np.dtype("<u2"))
    assert chunk.training == 0
    assert chunk[0].tolist() == []
