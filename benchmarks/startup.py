"""Seconds from the shell to help: `lathe --help` and an action's help, against importing torch."""

from __future__ import annotations

import sys
from pathlib import Path

from measure import compare, wall

if __name__ == "__main__":
    lathe = str(Path(sys.executable).with_name("lathe"))
    compare(
        "start-up",
        {
            "import torch": [sys.executable, "-c", "import torch"],
            "lathe --help": [lathe, "--help"],
            "lathe pretrain --help": [lathe, "pretrain", "--help"],
        },
        wall,
        runs=9,
    )
