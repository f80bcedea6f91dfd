"""Record how older versions of LitGPT described models that it still has, for test_hands.py.

    python tests/oracles/litgpt_wrote.py CLONE

where CLONE is a clone of github.com/Lightning-AI/litgpt with its history. Writes tests/data/litgpt_old.json: of each
commit and model, what that version wrote into lit_config.json or model_config.yaml.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

DATA = Path(__file__).parents[1] / "data"

# commit -> the file that it has configurations in, and models
VERSIONS = {
    "b3cdb6ea": ("lit_gpt/config.py", ["pythia-160m", "Llama-2-7b-hf", "CodeLlama-7b-hf"]),  # 2023-09-01
    "8928f877": ("lit_gpt/config.py", ["LLaMA-2-7B-32K"]),  # 2023-09-12
    "de51ab11": ("lit_gpt/config.py", ["Mixtral-8x7B-v0.1"]),  # 2023-12-15
    "f241d94d": ("lit_gpt/config.py", ["Gemma-2b"]),  # 2024-03-06
    "674f3154": ("litgpt/config.py", ["pythia-160m", "Llama-2-7b-hf"]),  # 2024-03-12
    "45584631": ("litgpt/config.py", ["Gemma-2-2b"]),  # 2024-08-06
    "5c4c09f8": ("litgpt/config.py", ["Gemma-2-2b", "Mistral-7B-v0.1", "Phi-4-mini-instruct"]),  # 2025-04-02
}


def find_multiple(n: int, k: int) -> int:
    return n + -n % k


def load(commit: str, path: str, clone: str) -> ModuleType:
    """The module as it was, on modules of whose contents it asks nothing here."""
    source = subprocess.run(["git", "-C", clone, "show", f"{commit}:{path}"], capture_output=True, check=True).stdout
    for name in ("lit_gpt", "lit_gpt.model", "lit_gpt.utils", "litgpt", "litgpt.model", "litgpt.utils"):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].find_multiple = find_multiple  # type: ignore[attr-defined]
    module = ModuleType("old")
    sys.modules["old"] = module
    exec(compile(source, path, "exec"), module.__dict__)
    return module


def told(commit: str, path: str, names: list[str], clone: str) -> dict[str, Any]:
    module = load(commit, path, clone)
    configs = {name: module.Config.from_name(name) for name in names}
    # the first version dumped all that the object had
    return {name: config.__dict__ if commit == "b3cdb6ea" else asdict(config) for name, config in configs.items()}


found = {commit: told(commit, *version, sys.argv[1]) for commit, version in VERSIONS.items()}
(DATA / "litgpt_old.json").write_text(json.dumps(found) + "\n")
