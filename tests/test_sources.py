"""Files of every kind to rows: the same rows in order and by number, each knowing its place; the standard library's
readers are the oracles."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.data import kinds, sources
from lathe.data.files import File
from lathe.data.rows import interleaved
from lathe.errors import DataError, MissingError, UsageError

ROWS = [{"a": f"line {i}\n“{i}”, and so on", "b": i * i} for i in range(7)]


def fields(path: Path | str) -> list[dict]:
    """The rows of a source, which are the same in order and by number."""
    (source,) = sources.read(str(path))
    in_order = [piece.read() for piece in source.pieces()]
    by_number = list(sources.rows(str(path)))
    assert [(r.fields, r.place) for r in in_order] == [(r.fields, r.place) for r in by_number]
    return [record.fields for record in in_order]


# ---- kinds of files -------------------------------------------------------------------------------------------------
def written(folder: Path, suffix: str, rows: list[dict]) -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".parquet":
        parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=3)
    elif suffix == ".json":
        path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    elif suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_what_was_written_is_read(tmp_path: Path, suffix: str) -> None:
    assert fields(written(tmp_path, suffix, ROWS)) == ROWS


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_tables_are_read_as_text(tmp_path: Path, suffix: str) -> None:
    assert fields(written(tmp_path, suffix, ROWS)) == [{"a": row["a"], "b": str(row["b"])} for row in ROWS]


def zstandard(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstandard)]
)
def test_compressed_files_hold_the_same_rows(tmp_path: Path, suffix: str, pack) -> None:
    plain = written(tmp_path, ".jsonl", ROWS)
    packed = tmp_path / f"packed.jsonl{suffix}"
    packed.write_bytes(pack(plain.read_bytes()) + pack(b"\n" + json.dumps({"a": "last"}).encode()))  # in two frames
    assert fields(packed) == [*ROWS, {"a": "last"}]
    assert str(sources.rows(str(packed))[1].place) == f"{packed}, line 3"
    packed.write_bytes(packed.read_bytes()[: len(pack(plain.read_bytes())) // 2])
    with pytest.raises(DataError, match=r"packed\.jsonl\..* cannot be unpacked"):
        fields(packed)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a"\\{}[],é\n', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k"]', max_size=2), inner, max_size=3),
    max_leaves=8,
)
objects = st.lists(st.dictionaries(st.text('k{",', max_size=3), json_values, max_size=3), max_size=5)


@settings(deadline=None)
@given(objects, st.sampled_from([None, 2]), st.booleans(), st.integers(1, 40))
def test_json_is_cut_where_its_reader_would_cut_it(rows: list[dict], indent, listed: bool, block: int) -> None:
    if listed:
        text = json.dumps(rows, indent=indent, ensure_ascii=False)
    else:
        text = "\n".join(json.dumps(row, indent=indent, ensure_ascii=False) for row in rows)
    kind, data = kinds.Json(), ("\ufeff " + text + "\n").encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "BLOCK", max(block, 5))
        cuts = list(kind.cut(io.BytesIO(data)))
    assert [kind.read(cut.raw, None) for cut in cuts] == rows
    assert all(data[cut.start : cut.start + len(cut.raw)] == cut.raw for cut in cuts)
    assert [cut.number for cut in cuts] == list(range(1, len(rows) + 1))


@given(st.lists(st.lists(st.text(alphabet='a",;\n é', max_size=5), min_size=2, max_size=2), max_size=6))
def test_tables_are_cut_where_their_reader_would_cut_them(rows: list[list[str]]) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([["one", "two"], *rows])
    kind, data = kinds.Columns(","), file.getvalue().encode()
    head = kind.head(io.BytesIO(data))
    read = [list(kind.read(cut.raw, head).values()) for cut in kind.cut(io.BytesIO(data))]
    assert read == [row for row in rows if any(row)]


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab\n é", max_size=30), max_size=5), st.integers(1, 9), st.integers(14, 30))
def test_long_documents_are_cut_between_lines_and_nothing_is_lost(parts: list[str], block: int, longest: int) -> None:
    kind, data = kinds.Text(), "<|endoftext|>".join(parts).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "BLOCK", block)
        patch.setattr(kinds, "LONGEST", longest)
        cuts = list(kind.cut(io.BytesIO(data)))
    assert all(data[cut.start : cut.start + len(cut.raw)] == cut.raw for cut in cuts)
    assert all(len(cut.raw) <= longest for cut in cuts)
    read = "".join("".join(kind.read(cut.raw, None)["text"] for cut in cuts).split())
    assert read == "".join("".join(parts).split())


# ---- names ----------------------------------------------------------------------------------------------------------
def test_the_manual_is_in_this_python() -> None:
    manual = sources.texts("python-manual")
    assert len(manual) > 50
    assert any("with" in text and "context manager" in text for text in manual)
    assert len(fields("python-manual")) == len(manual)


def test_a_folder_is_its_files_in_order_and_a_file_its_documents(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/no.txt").write_text("hidden")
    (tmp_path / "b/two.txt").write_text("second\n<|endoftext|>\n\n  third, indented\n<|endoftext|>\n \n")
    (tmp_path / "a.jsonl").write_text('{"text": "first", "id": 1}\n\n{"text": "first\\nand a half"}')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "notes.pdf").write_text("no text")
    found = sources.texts(str(tmp_path))
    assert list(found) == ["first", "first\nand a half", "second", "  third, indented"]
    assert list(found[1:3]) == ["first\nand a half", "second"]
    assert list(found.pick([3, 0])) == ["  third, indented", "first"]


def test_in_a_folder_of_code_settings_are_texts(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print(1)\n")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    assert list(sources.texts(str(tmp_path))) == ["print(1)", '{"name": "x"}']
    assert [str(record.place) for record in sources.rows(str(tmp_path))] == [
        f"{tmp_path / 'main.py'}, document 1",
        f"{tmp_path / 'package.json'}, document 1",
    ]


def test_a_pattern_names_files(tmp_path: Path) -> None:
    for name in ("b2.txt", "b1.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    assert list(sources.texts(str(tmp_path / "b*.txt"))) == ["b1.txt", "b2.txt"]
    with pytest.raises(MissingError, match="There is no data"):
        sources.texts(str(tmp_path / "d*.txt"))


def test_rows_can_be_limited_also_in_a_file_with_such_a_name(tmp_path: Path) -> None:
    path = written(tmp_path, ".jsonl", ROWS)
    assert fields(f"{path}#3") == ROWS[:3]
    odd = path.rename(tmp_path / "odd.jsonl#2")
    with pytest.raises(DataError, match="not read"):
        sources.rows(str(odd))


def test_columns_are_chosen_or_known(tmp_path: Path) -> None:
    path = written(tmp_path, ".jsonl", [{"content": "x", "other": "y"}])
    assert list(sources.texts(str(path))) == ["x"]
    assert list(sources.texts(str(path), "other")) == ["y"]


# ---- several sources ------------------------------------------------------------------------------------------------
def marked(folder: Path, name: str, count: int) -> str:
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{name}{i}"}) for i in range(count)))
    return str(path)


def test_sources_follow_each_other(tmp_path: Path) -> None:
    both = sources.texts([marked(tmp_path, "a", 2), marked(tmp_path, "b", 3) + "#2"])
    assert list(both) == ["a0", "a1", "b0", "b1"]
    assert list(sources.stream([marked(tmp_path, "a", 2), marked(tmp_path, "b", 3) + "#2"])) == list(both)


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0.05, 1)), min_size=1, max_size=4))
def test_weights_hold_in_every_beginning_and_no_row_is_left_out(some: list[tuple[int, float]]) -> None:
    places = [np.arange(100 * s, 100 * s + count) for s, (count, _) in enumerate(some)]
    weights = [weight for _, weight in some]
    order = interleaved(places, weights)
    assert set(order) == {item for place in places for item in place}
    for end in range(1, len(order) + 1):
        for s, weight in enumerate(weights):
            due = end * weight / sum(weights)
            assert abs(np.count_nonzero(order[:end] // 100 == s) - due) <= len(some)


def test_weights_are_written_behind_a_colon(tmp_path: Path) -> None:
    a, b = marked(tmp_path, "a", 3), marked(tmp_path, "b", 6)
    mixed = list(sources.texts([f"{a}:0.75", f"{b}:.25"]))
    assert mixed[:8] == ["a0", "a1", "b0", "a2", "a0", "a1", "b1", "a2"]
    assert len(mixed) == 24
    with pytest.raises(UsageError, match=r"b\.jsonl has no weight"):
        sources.rows([f"{a}:0.75", b])
    with pytest.raises(UsageError, match=r"weight in .* is 0"):
        sources.rows([f"{a}:0", b])


# ---- real data ------------------------------------------------------------------------------------------------------
def test_real_stories_are_cut_where_they_end(shared: Path) -> None:
    file = shared / "data/text/tinystories_1k.txt"
    expected = [part.strip("\r\n") for part in file.read_text(encoding="utf-8").split("<|endoftext|>")]
    assert list(sources.texts(str(file))) == [story for story in expected if story.strip()]


@pytest.mark.parametrize("folder", ["instruct", "preference"])
def test_real_rows_are_what_json_reads(shared: Path, folder: str) -> None:
    for file in sorted((shared / "data" / folder).iterdir()):
        text = file.read_text(encoding="utf-8")
        lines = file.suffix == ".jsonl"
        expected = [json.loads(line) for line in text.splitlines() if line.strip()] if lines else json.loads(text)
        assert fields(file) == expected


# ---- what is wrong --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', r'a\.jsonl, line 2: there is no "text" in this row, only txt'),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', r"a\.jsonl, line 2: .* only list"),
        (
            "a.jsonl",
            b'{"text": "x"}\n\n{"text": \n',
            r"a\.jsonl, line 3: this is not JSON: Expecting value at column 10",
        ),
        ("a.jsonl", b'{"text": "\xe9"}', r"a\.jsonl, line 1 is not UTF-8: byte 10 is 0xe9"),
        ("a.json", b'[{"text": "x"}, {"text": "y"', r"a\.json: the list is not closed: the file ends in row 2"),
        ("a.json", b'[{"text": "x"}]]', r"a\.json: there is more behind the end"),
        ("a.json", b'[{"text": "x"},\n {"text" 1}]', r"a\.json, row 2: this is not JSON: Expecting ':'"),
        ("a.json", b'{"text": "x"}\n{"text": ', r"a\.json, row 2: this is not JSON"),
        ("a.json", b"[" * 3000 + b"]" * 3000, r"a\.json, row 1: this JSON is nested too deeply|only list"),
        ("a.csv", b"text,b\nx,1\ny\n", r"a\.csv, line 3: this row has 1 columns, and the first line names 2"),
        ("a.csv", b"text,text\nx,1\n", r"a\.csv: the first line must give every column a name of its own"),
        ("a.csv", b'text\nx\n"y\n', r"a\.csv: line 3: "),
        ("a.txt", b"abc\xff", r"a\.txt is not UTF-8: byte 3 is 0xff"),
        ("a.txt", b" \n\n", r"a\.txt holds nothing"),
        ("a.jsonl", b"", r"a\.jsonl holds nothing"),
        ("a.json", b"[]", r"a\.json holds nothing"),
        ("a.csv", b"", r"a\.csv holds nothing"),
        ("a.parquet", b"PAR1", r"a\.parquet is not a parquet file"),
        ("a.jsonl.gz", b"{}", r"a\.jsonl\.gz cannot be unpacked"),
        ("a.pdf", b"%PDF", r"a\.pdf is of a kind that is not read"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(sources.texts(str(tmp_path / name)))


def test_a_name_that_is_none_is_said() -> None:
    with pytest.raises(MissingError, match='Did you mean "python-manual"'):
        sources.texts("python-manuel")
    with pytest.raises(UsageError, match="No data is named"):
        sources.read([])


def test_a_file_is_another_when_its_bytes_are(tmp_path: Path) -> None:
    path = written(tmp_path, ".jsonl", ROWS)
    before = File(path).identity()
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    assert File(copy).identity() == before
    copy.write_bytes(path.read_bytes().replace(b"0", b"1"))
    assert File(copy).identity() != before
