"""A few thousand damaged checkpoints of every form; `make fuzz` tries a hundred thousand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_no_damaged_checkpoint_makes_anything_but_an_error_of_ours():
    """In a process of its own, whose memory is bounded and whose deeds are watched."""
    program = Path(__file__).with_name("fuzz.py")
    ran = subprocess.run([sys.executable, str(program), "4000", "7"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert int(ran.stdout.split()[0]) >= 4000
