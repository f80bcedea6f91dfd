"""Every command line in LitGPT's README, as the installed package carries it, runs as it is typed, in the order in
which it stands there. With LITGPT_SOURCE, a checkout of LitGPT, so do those of all its pages, and its own recipes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import ROOT
from litgpt_lines import REFUSED
from litgpt_recipes import recipes
from litgpt_world import World, check, meant, served, world

from lathe import compat

SOURCE = Path(os.environ["LITGPT_SOURCE"]) if "LITGPT_SOURCE" in os.environ else None
# What stands in pages for what only the reader knows.
VALUES = {
    "$repo_id": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "<repo_id>": "org/model",
    "$finetuned_dir": "out/lora-finetuned",
    "--data ...": "--data TextFiles --data.train_data_path custom_texts",
    "step-00060500": "step-00000001",
}
# What a page takes for made, and how it is.
MADE = {
    "path/to/microsoft/phi-2/checkpoint": "finetune_full microsoft/phi-2",
    "checkpoint_dir": "finetune_full microsoft/phi-2",
    "path/to/lora/checkpoint_dir": "finetune_lora microsoft/phi-2",
    "out/lora/final": "finetune_lora stabilityai/stablelm-base-alpha-3b",
    "out/lora/step-002000": "finetune_lora stabilityai/stablelm-base-alpha-3b",
    "out/finetune/adapter/final": "finetune_adapter stabilityai/stablelm-base-alpha-3b",
    "out/finetune/adapter-v2/final": "finetune_adapter_v2 stabilityai/stablelm-base-alpha-3b",
}
WITHOUT_A_WORD = {
    "generate_adapter": "out/finetune/adapter/final",
    "generate_adapter_v2": "out/finetune/adapter-v2/final",
}


def texts() -> dict[str, Path]:
    """LitGPT's pages, by name."""
    about = (ROOT / ".venv-litgpt").glob("lib*/**/litgpt-0.5.13.dist-info/METADATA")
    found = dict.fromkeys(["README.md"], next(about, Path()))
    if SOURCE is not None:
        found |= {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.md"))}
    return {name: path for name, path in found.items() if lines(path)}


def lines(page: Path) -> list[str]:
    """The command lines in a page, each without the program's name."""
    whole = re.sub(r"\\[ \t]*\n[ \t>]*", " ", page.read_text(encoding="utf-8"))
    found = re.findall(r"^[ \t>$]*litgpt[ \t]+([a-z_0-9]+\b[^\n`#|]*)", whole, flags=re.MULTILINE)
    return [" ".join(line.split()) for line in found]


def all_recipes() -> Mapping[str, str]:
    if SOURCE is None:
        return recipes()
    folder = SOURCE / "config_hub"
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.yaml")}


def run(here: World, line: str) -> None:
    """A line to its end, with what it takes for made."""
    for name, value in VALUES.items():
        line = line.replace(name, value)
    verb, *words = shlex.split(line)
    for place in (*words, WITHOUT_A_WORD.get(verb, "")):
        if place.rstrip("/") in MADE and not Path(place).exists():
            check(here, here.run(f"{MADE[place.rstrip('/')]} --data d.json --out_dir made"))
            shutil.copytree("made/final", place)
            shutil.rmtree("made")
    if verb == "serve":
        served(here, [verb, *words])
        return
    if line in REFUSED:
        ran = here.run(line)
        assert ran.status == 2 and "MODEL is missing" in ran.err
        return
    if verb.startswith(("finetune", "pretrain")) and "--help" not in words and words != ["list"]:
        begun(here, [verb, *words])
    check(here, here.run([verb, *words]))


def begun(here: World, words: list[str]) -> None:
    """Put away what is in a training's folder; for one that goes on, make what it goes on from."""
    out = Path(
        compat.value(meant(words).words, "out_dir") or ("out/pretrain" if words[0] == "pretrain" else "out/finetune")
    )
    shutil.rmtree(out, ignore_errors=True)
    if "--resume" in words:
        at = words.index("--resume")
        check(here, here.run([*words[:at], *words[at + 2 :], "--train.save_interval", "1"]))


PAGES = texts()


def test_the_readme_is_there() -> None:
    assert len(lines(PAGES["README.md"])) == 21


@pytest.mark.parametrize("name", PAGES)
def test_a_page(name: str, tmp_path: Path) -> None:
    failed: list[str] = []
    found = lines(PAGES[name])
    with world(tmp_path, all_recipes()) as here:
        for recipe, text in here.recipes.items():
            (place := here.place / "config_hub" / recipe).parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        for line in found:
            try:
                run(here, line)
            except (AssertionError, OSError) as error:
                failed.append(f"{line}\n{error}")
    print(f"{name}: {len(found)} command lines")
    assert not failed, "\n\n".join(failed)
