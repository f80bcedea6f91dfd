"""llama.cpp's own tests of its server, with Lathe in its place: how many pass, and for each other the reason why not.

The tests come out of llama-cpp-python's source, which `make oracles` fetches; what is left out of them stands with its
reason in `llama_server_deselected.txt`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PLACE = HERE.parents[1] / ".venv-llamaserver"
TESTS = "vendor/llama.cpp/tools/server/tests"
TEMPLATES = "vendor/llama.cpp/models/templates"
FILES = (
    "test_chat_completion",
    "test_completion",
    "test_tokenize",
    "test_template",
    "test_security",
    "test_embedding",
    "test_compat_anthropic",
    "test_compat_oai_responses",
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of their tests, with the templates that these read where they look for them."""
    [source] = PLACE.glob("llama_cpp_python-*.tar.gz")
    place = tmp_path_factory.mktemp("llama")
    with tarfile.open(source) as archive:
        wanted = [item for item in archive if item.isfile() and (TESTS in item.name or TEMPLATES in item.name)]
        archive.extractall(place, wanted, filter="data")
    return next(place.iterdir()) / TESTS


@pytest.mark.parametrize("name", FILES)
def test_llama_cpp_finds_what_it_expects(
    name: str, theirs: Path, shared: Path, tmp_path: Path, record_property
) -> None:
    program = tmp_path / "llama-server"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "llama_server.py"} "$@"\n')
    program.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(theirs)]),
        "LATHE_STORIES": str(shared / "data/models/stories260K-hf"),
        "LATHE_PLACE": str(tmp_path),
        "LLAMA_SERVER_BIN_PATH": str(program),
        "PORT": str(port),
    }
    report = tmp_path / "report.xml"
    command = [str(PLACE / "bin/python"), "-m", "pytest", "-q", "-p", "llama_server_plugin", "-m", "not slow"]
    command += ["-p", "no:cacheprovider", f"--junit-xml={report}", f"unit/{name}.py"]
    ran = subprocess.run(command, cwd=theirs, env=environment, capture_output=True, text=True, check=False)
    assert report.exists(), ran.stdout[-4000:] + ran.stderr[-4000:]
    suite = next(ElementTree.parse(report).iter("testsuite"))
    drawn = len(suite.findall(".//property[@name='drawn']"))
    print(f"{name}: {suite.attrib}, the text of {drawn} not compared")
    assert ran.returncode == 0, ran.stdout[-8000:]
