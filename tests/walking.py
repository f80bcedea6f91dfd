"""A page becomes a walk through it: its files are written, its commands typed into bash and its programs run, in its
order, in a folder with all that it names; what is printed is held against what it shows.

A block that nothing here can run, or that ends with an error which the page does not show, fails.
"""

from __future__ import annotations

import configparser
import fcntl
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import asking
import pages
from pages import ROOT, Block, blocks, masked, same, stood_in, typed
from workshop import PROGRAMS, SAID, TESTS, Workshop, free, furnish_real

LIMIT = 120  # seconds for a block
MAKE, CURL = shutil.which("make"), shutil.which("curl")


class Walk:
    """One page, in a folder of its own."""

    def __init__(self, workshop: Workshop, page: str, data: Path | None) -> None:
        self.workshop, self.page = workshop, page
        self.place = Path(tempfile.mkdtemp(prefix=Path(page).stem, dir=workshop.place))
        self.ports = {"port": free(), "meet": free()}
        workshop.furnish(self.place)
        if data is not None:
            furnish_real(self.place, data)
        (self.place / ".said").write_text(SAID)
        (self.place / ".address").write_text(str(workshop.folder / "forks"))
        bin = self.place / ".venv/bin"
        bin.mkdir(parents=True)
        (bin.parent / ".demo").touch()
        (bin / "activate").write_text(f"PATH={bin}:$PATH\n")
        for name, text in PROGRAMS.items():
            text = text.format(python=sys.executable, asking=TESTS / "asking.py", make=MAKE, curl=CURL)
            (bin / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (bin / name).chmod(0o755)
        self.environment = {
            **workshop.environment,
            "PATH": f"{bin}:{os.environ['PATH']}",
            "WORKSHOP": str(self.place),
            "PYTHON_EXEC": str(bin / "python"),
            "PORT": str(self.ports["port"]),
            "HF_TOKEN": "" if page in pages.STRANGER else "hf_member",
        }

    def through(self) -> tuple[int, int]:
        """Go through the page. Returns how many blocks were run, and how many are only shown."""
        every = blocks(self.page)
        run = [block for block in every if not block.is_shown]
        try:
            for block in run:
                self.run(block)
        finally:
            asking.end(str(self.place))
        return len(run), len(every) - len(run)

    def run(self, block: Block) -> None:
        files = re.findall(r"`((?:lathe|tests)/[\w/]+\.py)`", block.before)
        match block.language:
            case "python" if files:
                assert block.text in (ROOT / files[-1]).read_text(encoding="utf-8"), f"{files[-1]} has no such lines"
            case "python":
                program = self.place / f"{self.page}-{block.number}.py"
                program.write_text(stood_in(block.text, **self.ports))
                self.bash(f"python {program.name}")
            case "json":
                self.write(block)
            case "ini":
                unit = configparser.ConfigParser(strict=False, interpolation=None)
                unit.read_string(block.text.replace("\\\n", " "))
                self.bash(stood_in(unit["Service"]["ExecStart"], **self.ports))
            case "" | "sh" | "bash" | "console" if block.text.startswith("$ "):
                for command, shown in typed(block.text):
                    self.command(command, shown)
            case "" | "sh" | "bash":
                self.bash(stood_in(block.text, **self.ports), HURRIED="1")
            case other:
                raise AssertionError(f"{block.page}: nothing here runs a block of {other}: {block.first}")

    def write(self, block: Block) -> None:
        """A file that the reader is told to write; or some rows of one that is there."""
        file = self.place / re.findall(r"`([\w.]+\.json)`", block.before)[-1]
        if block.before.startswith("Write "):
            file.write_text(block.text)
        else:
            there = json.loads(file.read_text())
            assert all(row in there for row in json.loads(block.text)), f"{file.name} has no such rows"

    def bash(self, script: str, status: int = 0, notes: bool = False, **more: str) -> str:
        """Type lines into bash, and return what they print. notes: what they say on standard error alone."""
        count = 2 if re.search(r"--(num-nodes|nnodes) 2", script) else 1  # on each machine the same
        command = ["bash", "-O", "expand_aliases", "-euo", "pipefail", "-c", script]
        started = []
        heard = (subprocess.DEVNULL, subprocess.PIPE) if notes else (subprocess.PIPE, subprocess.STDOUT)
        where = {"env": {**self.environment, **more}, "cwd": self.place, "text": True}
        for _ in range(count):
            with (self.place / ".said").open() as said:
                started.append(subprocess.Popen(command, stdin=said, stdout=heard[0], stderr=heard[1], **where))
        try:
            printed = ["".join(filter(None, one.communicate(timeout=LIMIT))) for one in started]
        finally:
            for one in started:
                one.kill()
        for one, text in zip(started, printed, strict=True):
            assert one.returncode == status, f"{self.page}: {script}\nended with status {one.returncode}:\n{text}"
        return printed[0].replace(self.workshop.hub.address, "https://huggingface.co")

    def command(self, command: str, shown: str) -> None:
        """Type a command, and compare what it prints with what the page shows."""
        if command.startswith("lathe chat ") and "\n> " in shown:
            return self.talk(command, shown)
        script, status = stood_in(command, **self.ports), 2 if "Error: " in shown else 0
        if any((self.page, begin) in pages.UNLEARNED for begin in beginnings(command)):
            said = masked(self.bash(script, status, notes=True), pages.NUMBERS)
            told = masked(shown, pages.NUMBERS)
            missing = [line for line in said if line not in told]
            assert not missing, f"{self.page}: {command}\nalso says {missing}"
            return None
        printed = self.bash(script, status)
        rule = pages.NUMBERS if self.page in pages.ELSEWHERE else pages.MEASURED
        if shown.strip() and not same(shown, printed, rule):
            assert masked(printed, rule) == masked(shown, rule), f"{self.page}: {command}\nprints {printed}"
        return None

    def talk(self, command: str, shown: str) -> None:
        """Hold a chat in a terminal, line by line, as the page shows it; Ctrl-C where it was stopped."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        own = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}  # this terminal tells nobody where its cursor is
        process = subprocess.Popen(
            ["bash", "-c", command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=self.environment | own,
            cwd=self.place,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C goes to the command
        )
        os.close(slave)
        heard, until = "", time.monotonic() + LIMIT

        def wait(text: str) -> None:
            nonlocal heard
            letters = (r"[\d.,]+" if letter == "#" else re.escape(letter) for letter in re.sub(r"\s", "", text))
            pattern = re.compile(r"\s*".join(letters))
            while not (found := pattern.search(heard)):
                ready, _, _ = select.select([master], [], [], max(0.0, until - time.monotonic()))
                assert ready, f"{self.page}: {text!r} did not come, but {heard!r}"
                data = os.read(master, 1 << 16).decode("utf-8", "replace")
                heard += re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])|\r", "", data)
            heard = heard[found.end() :]

        try:
            first, *turns = re.split(r"^> ?", shown, flags=re.MULTILINE)
            wait(first)
            for turn in turns:
                line, _, answer = turn.partition("\n")
                wait("> ")
                os.write(master, f"{line}\r".encode() if line else b"\x04")
                answer, stopped, rest = pages.MEASURED.sub("#", answer).partition("Stopped.")
                wait(answer)
                if stopped:
                    os.write(master, b"\x03")
                    wait(stopped + rest)
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()
            process.wait()
            os.close(master)


def beginnings(command: str) -> list[str]:
    """All beginnings of a command, word by word."""
    words = command.split()
    return [" ".join(words[: count + 1]) for count in range(len(words))]
