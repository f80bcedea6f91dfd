"""Recipes become options and options recipes: nothing is lost between them, and nothing misspelt is passed over."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from lathe.errors import LatheError, UsageError
from lathe.options import documentation, merge, options, read_recipe, to_yaml
from lathe.values import convert, describe


@dataclass(frozen=True)
class Schedule:
    warmup: int = 10
    """Steps of rising learning rate."""


@dataclass(frozen=True)
class Train:
    max_steps: int | None = None
    """Stop after this many steps."""
    lr: float = 3e-4
    schedule: Schedule = field(default_factory=Schedule)
    """How the learning rate moves."""


@dataclass(frozen=True, kw_only=True)
class Seeded:
    seed: int = 0
    """Start of all chance."""


@dataclass(frozen=True)
class Options(Seeded):
    model: str
    """Folder, file or repo id.

    Or a name.
    """
    _: KW_ONLY
    stop: tuple[str, ...] = ()
    """End the text here."""
    devices: int | Literal["auto"] = "auto"
    precision: Literal["bf16", "fp32"] = "fp32"
    out_dir: Path | None = None
    stream: bool = True
    train: Train = field(default_factory=Train)
    """How long."""


def test_options_stand_in_the_order_of_help() -> None:
    keys = [option.key for option in options(Options) if not option.is_section]
    assert keys == [
        *("model", "stop", "devices", "precision", "out_dir", "stream"),
        *("train.max_steps", "train.lr", "train.schedule.warmup", "seed"),
    ]
    assert [option.spelling for option in options(Options)][:2] == ["MODEL", "--stop"]
    assert [option.spelling for option in options(Options) if option.is_section] == ["--train", "--train.schedule"]
    assert next(iter(options(Schedule))).spelling == "WARMUP"  # by position only at the top


def test_documentation_is_the_string_below_a_field() -> None:
    assert documentation(Options) == {
        ("model",): "Folder, file or repo id.\n\nOr a name.",
        ("stop",): "End the text here.",
        ("seed",): "Start of all chance.",
        ("train",): "How long.",
        ("train", "max_steps"): "Stop after this many steps.",
        ("train", "schedule"): "How the learning rate moves.",
        ("train", "schedule", "warmup"): "Steps of rising learning rate.",
    }


def test_a_later_mapping_wins_and_defaults_fill_the_rest() -> None:
    first = {"model": "a", "train": {"max-steps": 5, "schedule": {"warmup": 2}}, "out-dir": "x"}
    second = {"train": {"max_steps": 7}, "out_dir": None, "stop": ["."]}
    train = Train(max_steps=7, schedule=Schedule(warmup=2))
    assert merge(Options, first, second) == Options("a", stop=(".",), train=train)
    assert merge(Options, {"model": "a", "train": None}) == Options("a")


everything = st.builds(
    Options,
    st.text(),
    seed=st.integers(),
    stop=st.lists(st.text()).map(tuple),
    devices=st.integers() | st.just("auto"),
    precision=st.sampled_from(["bf16", "fp32"]),
    out_dir=st.none() | st.text(alphabet="a/.~ -").map(Path),
    stream=st.booleans(),
    train=st.builds(
        Train,
        max_steps=st.none() | st.integers(),
        lr=st.floats(allow_nan=False),
        schedule=st.builds(Schedule, st.integers()),
    ),
)


@example(Options("\x85", stop=("two\nlines", " \u2028", "null", "1e5", "日本")))
@given(everything)
def test_a_written_recipe_is_read_back_as_it_was(chosen: Options) -> None:
    text = to_yaml(chosen)
    assert merge(Options, yaml.safe_load(text)) == chosen
    assert list(yaml.safe_load(text)) == "model stop devices precision out_dir stream train seed".split()


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, "1_000", 1000),
        (int, "3e9", 3_000_000_000),
        (int, 1e3, 1000),
        (int, "-4", -4),
        (int, "12345678901234567891", 12345678901234567891),
        (float, "3e-4", 3e-4),  # which YAML 1.1 reads as a string
        (float, 1, 1.0),
        (int | None, None, None),
        (int | Literal["auto"], "auto", "auto"),
        (int | Literal["auto"], "2", 2),
        (Literal[8, 16], "8", 8),
        (tuple[int, ...], ["1", 2], (1, 2)),
        (tuple[str, ...], "one", ("one",)),
        (Path, "a/b", Path("a/b")),
        (bool, False, False),
    ],
)
def test_converts(hint: Any, value: Any, expected: Any) -> None:
    converted = convert(hint, value, "x")
    assert converted == expected and type(converted) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        *((int, value) for value in ("1.5", 1.5, "", "x", True, None, [], "1e400", "nan", "0x10")),
        *((float, value) for value in ("", "x", True, None, {}, 10**400)),
        *((str, value) for value in (1, None, True, ["a"])),
        *((bool, value) for value in (1, "yes", None)),
        *((Path, value) for value in (1, None)),
        *((int | None, value) for value in ("none", "x")),
        (Literal["bf16"], "BF16"),
        (tuple[int, ...], ["1", "x"]),
    ],
)
def test_refuses_a_value_of_another_type(hint: Any, value: Any) -> None:
    with pytest.raises(UsageError) as error:
        convert(hint, value, '"n" in the recipe')
    assert str(error.value).startswith('"n" in the recipe is ') and describe(hint) in str(error.value)


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"sead": 1}, ['"sead" in the recipe', 'Did you mean "seed"?']),
        ({"max_steps": 1}, ['Did you mean "train.max_steps"?']),
        ({"train": {"max_stepz": 1}}, ['"train.max_stepz"', 'Did you mean "train.max_steps"?']),
        ({"train": 3}, ['"train" in the recipe is 3', "section"]),
        ({"out-dir": "a", "out_dir": "b"}, ['"out_dir" is set twice']),
        ({"precision": "bf61"}, ['"bf61"', '"bf16", "fp32"', 'Did you mean "bf16"?']),
        ({3: 4}, ['"3" in the recipe']),
        ({}, ["MODEL is missing", "It must be text", "Folder, file or repo id."]),
    ],
)
def test_a_misspelt_recipe_is_told_what_is_wrong(mapping: dict[Any, Any], said: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        merge(Options, mapping)
    assert all(part in str(error.value) for part in said), str(error.value)


@pytest.mark.parametrize(
    "content", [b"- a\n- b\n", b"just words", b"a: [", b"\xff\xfe\x00", b"a: !!python/name:os.system"]
)
def test_a_recipe_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_recipe(str(tmp_path / "recipe.yaml"))
    assert "recipe.yaml" in str(error.value) and "\n" not in str(error.value)


def test_reads_a_recipe_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_recipe(str(tmp_path / "empty.yaml")) == {}
    for absent in ("absent.yaml", "."):
        with pytest.raises(LatheError, match="Cannot read the recipe"):
            read_recipe(str(tmp_path / absent))
