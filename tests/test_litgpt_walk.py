"""Every line of LitGPT's that does not train runs to its end, as it is typed, and does its work; see `litgpt_world`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from litgpt_lines import LINES, OTHERS, REFUSED, SERVERS, TRAININGS
from litgpt_world import World, check, served, world

# What an earlier line has made, where some lines look for it.
BEFORE = {
    "out/finetune/full": "finetune_full a/b",
    "out/finetune/lora": "finetune_lora c/d",
    "out/finetune/adapter": "finetune_adapter a/b",
    "out/finetune/adapter-v2": "finetune_adapter_v2 a/b",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("world"), {}) as made:
        for line in BEFORE.values():
            check(made, made.run(f"{line} --data d.json"))
        assert made.run("convert_pretrained_checkpoint out/finetune/full/final lean").status == 0
        for path in Path("lean").iterdir():  # f.pth: the weights that LitGPT would have written
            shutil.copyfile(path, "f.pth" if path.suffix == ".pth" else path.name)
        shutil.copytree("out/finetune/adapter/final", "f")
        shutil.copyfile("f.pth", "checkpoints/a/b/f.pth")
        shutil.copyfile("model_config.yaml", "checkpoints/a/b/model_config.yaml")
        made.kept = {path.name for path in made.place.iterdir()}
        yield made


def test_no_line_is_left_out() -> None:
    assert sorted([*SERVERS, *TRAININGS, *OTHERS]) == sorted(LINES)


@pytest.mark.parametrize("line", OTHERS)
def test_a_line_does_its_work(here: World, line: str) -> None:
    here.sweep()
    if line.startswith("merge_lora"):  # of the adapter that is here
        shutil.copytree("out/finetune/lora/final", "a/b")
    check(here, here.run(line))


@pytest.mark.parametrize("line", SERVERS)
def test_a_server_answers(here: World, line: str) -> None:
    here.sweep()
    served(here, line)


@pytest.mark.parametrize("line", REFUSED)
def test_what_litgpt_refuses_is_refused(here: World, line: str) -> None:
    ran = here.run(line)
    assert ran.status == 2 and "MODEL is missing" in ran.err
