"""Where the other programs' environments are, and how a test asks something of one: a script in, JSON out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
Ask = Callable[..., Any]


def _ask(environment: str) -> Ask:
    """A function that runs a script with arguments in an environment and returns the JSON on its last line."""
    python = ROOT / environment / "bin" / "python"
    if not python.is_file():
        pytest.fail(f"{python.parent.parent} is not there: run `make oracles`, which makes it.")

    def ask(script: str | Path, *arguments: object) -> Any:
        command = [str(python), str(script), *map(str, arguments)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert ran.returncode == 0, ran.stderr[-4000:]
        return json.loads(ran.stdout.splitlines()[-1])

    return ask


@pytest.fixture(scope="session")
def litgpt() -> Ask:
    """LitGPT 0.5.13."""
    return _ask(".venv-litgpt")


@pytest.fixture(scope="session")
def llama_cpp() -> Ask:
    """llama.cpp, through llama-cpp-python."""
    return _ask(".venv-llamacpp")
