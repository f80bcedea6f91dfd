"""The previous major of OpenAI's client, which many programs still have, gets what the current one gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OLDER = ROOT / ".venv-openai2"
TESTS = ("test_wire_openai.py", "test_wire_openai_completions.py", "test_wire_openai_tools.py")


@pytest.mark.skipif(not OLDER.is_dir(), reason=f"{OLDER.name} is not there: `make unit` installs the client into it")
def test_the_previous_major_of_the_client_gets_the_same() -> None:
    """The tests that use the client, in a process that finds the older one first."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(OLDER), str(ROOT)])}
    environment.pop("PYTEST_XDIST_WORKER", None)
    found = subprocess.run(
        [sys.executable, "-c", "import openai; print(openai.__version__)"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.startswith("2.")
    told = "not refused and not strict and not away and not again"  # what does not go by the client
    command = [sys.executable, "-m", "pytest", "-q", "-k", told]
    files = [str(ROOT / "tests" / name) for name in TESTS]
    ran = subprocess.run([*command, *files], env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:]
