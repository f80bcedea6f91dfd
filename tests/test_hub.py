"""Models are found on this machine, or fetched from a Hub that is a small HTTP server of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from lathe.errors import MissingError
from lathe.hub import find, has_weights, wanted

SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": b"one" * 1000,
    "model-00002-of-00002.safetensors": b"two" * 1000,
    "model.safetensors.index.json": b"{}",
    "pytorch_model.bin": b"the same, pickled",
    "consolidated.safetensors": b"the same, once more",
    "original/params.json": b"{}",
    "README.md": b"read me",
}
PICKLED = {"config.json": b"{}", "pytorch_model.bin": b"pickled"}
REPOS = {"org/good": FILES, "org/pickled": PICKLED, "org/gated": FILES, "org/gguf": {"a.gguf": b"x"}}


class Hub(ThreadingHTTPServer):
    """A Hub on this machine that notes what it is asked, and breaks down over the file `failing`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str]] = []
        self.failing = ""
        self.address = f"http://127.0.0.1:{self.server_port}"
        Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    """The part of the Hub's protocol that a download uses."""

    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path))
        api, _, rest = path.partition("/api/models/")
        repo = "/".join((rest if not api else path[1:]).split("/")[:2])
        files = REPOS.get(repo)
        if files is None:
            self.answer(401, b"Invalid username or password.")
        elif rest in (repo, f"{repo}/revision/main"):
            names = [{"rfilename": name} for name in files]
            self.answer(200, json.dumps({"id": repo, "sha": SHA, "siblings": names, "tags": []}).encode())
        elif rest.startswith(f"{repo}/tree/"):
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
            self.answer(200, json.dumps(tree).encode())
        elif repo == "org/gated":
            self.answer(403, b"Access is restricted", {"X-Error-Code": "GatedRepo"})
        else:
            name = path.partition(f"/resolve/{SHA}/")[2]
            failing = name == self.server.failing and self.command == "GET"
            self.answer(500 if failing else 200, files[name], {"ETag": f'"{name}"', "X-Repo-Commit": SHA})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.stop()


SCRIPT = """
import json, sys
from pathlib import Path
from lathe.errors import MissingError
from lathe.hub import find
for model, weights in json.loads(sys.argv[1]):
    try:
        answer = str(find(model, weights=weights))
    except MissingError as error:
        answer = f"MissingError: {error}"
    print(json.dumps(answer))
assert "torch" not in sys.modules
"""


def find_elsewhere(
    folder: Path, endpoint: str, *models: str, weights: bool = True, offline: bool = False
) -> tuple[list[str], str]:
    """What `find` answers, and says on stderr, in a process of its own that works in `folder`, with an empty cache."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    command = [sys.executable, "-c", SCRIPT, json.dumps([(model, weights) for model in models])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_downloads_one_form_of_the_weights(tmp_path: Path, hub: Hub) -> None:
    answers, said = find_elsewhere(tmp_path, hub.address, "org/good", "org/pickled")
    assert answers == ["checkpoints/org/good", "checkpoints/org/pickled"]
    assert "Downloading org/good into checkpoints/org/good\n" in said
    found = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints/org/good").iterdir()}
    assert found == {name: FILES[name] for name in wanted(FILES)}
    assert "model-00001-of-00002.safetensors" in found and "pytorch_model.bin" not in found
    assert {path.name for path in (tmp_path / "checkpoints/org/pickled").iterdir()} == set(PICKLED)
    assert sorted(path.name for path in (tmp_path / "checkpoints/org").iterdir()) == ["good", "pickled"]


def test_says_in_words_why_a_repo_cannot_be_had(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "checkpoints/org/god").mkdir(parents=True)
    (absent, gated, gguf), _ = find_elsewhere(tmp_path, hub.address, "org/goood", "org/gated", "org/gguf")
    assert absent.startswith("MissingError") and "no such repo" in absent and 'Did you mean "org/god"?' in absent
    assert gated.startswith("MissingError") and "is gated" in gated and f"{hub.address}/org/gated" in gated
    assert gguf.startswith("MissingError") and "no weights" in gguf
    assert all("\n" not in answer for answer in (absent, gated, gguf))
    assert not (tmp_path / "checkpoints/org/gated").exists()


def test_a_broken_download_leaves_no_model_and_is_taken_up_again(tmp_path: Path, hub: Hub) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    hub.failing = second
    (answer,), _ = find_elsewhere(tmp_path, hub.address, "org/good")
    assert answer.startswith("MissingError") and "failed: " in answer and "500" in answer and "\n" not in answer
    assert not (tmp_path / "checkpoints/org/good").exists()

    hub.failing, hub.asked = "", []
    assert find_elsewhere(tmp_path, hub.address, "org/good")[0] == ["checkpoints/org/good"]
    assert (tmp_path / "checkpoints/org/good" / second).read_bytes() == FILES[second]
    fetched = [path.rpartition("/")[2] for command, path in hub.asked if command == "GET"]
    assert second in fetched and first not in fetched


def test_without_network(tmp_path: Path, hub: Hub) -> None:
    hub.stop()
    (refused,), _ = find_elsewhere(tmp_path, hub.address, "org/good")
    assert refused.startswith("MissingError") and "downloading it from" in refused and "\n" not in refused
    (offline,), _ = find_elsewhere(tmp_path, hub.address, "org/good", offline=True)
    assert offline.startswith("MissingError") and "HF_HUB_OFFLINE" in offline


def test_the_configuration_alone_goes_into_the_cache_and_does_not_pass_for_the_model(tmp_path: Path, hub: Hub) -> None:
    (folder,), _ = find_elsewhere(tmp_path, hub.address, "org/good", weights=False)
    assert {path.name for path in Path(folder).iterdir()} == set(wanted(FILES, weights=False))
    hub.asked = []
    assert find_elsewhere(tmp_path, hub.address, "org/good", weights=False)[0] == [folder]
    assert not [path for _, path in hub.asked if "org/good" in path]
    assert find_elsewhere(tmp_path, hub.address, "org/good")[0] == ["checkpoints/org/good"]


def test_uses_what_the_hugging_face_cache_holds_in_full(tmp_path: Path) -> None:
    repo = tmp_path / "hf/hub/models--org--good"
    snapshot = repo / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(SHA)
    for name in wanted(FILES):
        (snapshot / name).write_bytes(FILES[name])
    assert find_elsewhere(tmp_path, "http://127.0.0.1:9", "org/good") == ([str(snapshot)], "")
    (snapshot / "model-00001-of-00002.safetensors").unlink()
    assert find_elsewhere(tmp_path, "http://127.0.0.1:9", "org/good")[0][0].startswith("MissingError")


def test_finds_paths_first_then_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    below = Path("checkpoints/org/name")
    below.mkdir(parents=True)
    assert find("org/name") == below
    Path("org/name").mkdir(parents=True)
    assert find("org/name") == Path("org/name")
    Path("story.gguf").touch()
    assert find("story.gguf") == Path("story.gguf")
    assert find("org/name", Path("elsewhere")) == Path("org/name")


@pytest.mark.parametrize("typed", ["", "no such model", "once upon a time " * 100, "a/" * 5000 + "b"])
def test_what_is_neither_path_nor_repo_is_missing(typed: str) -> None:
    with pytest.raises(MissingError, match="There is no folder or file"):
        find(typed)


@pytest.mark.parametrize(
    ("typed", "meant"), [("nmae", "name"), ("stroy.gguf", "story.gguf"), ("./runs/a/stp-10", "runs/a/step-10")]
)
def test_a_misspelt_path_is_told_its_neighbours(
    typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("checkpoints/name", "runs/a/step-10"):
        Path(folder).mkdir(parents=True)
    Path("story.gguf").touch()
    with pytest.raises(MissingError, match=f'Did you mean "{meant}"'):
        find(typed)


@pytest.mark.parametrize(
    ("names", "whole"),
    [
        ([], False),
        (["config.json"], False),
        (["model.safetensors"], True),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], True),
        (["model-00001-of-00002.safetensors"], False),
        (["pytorch_model-00001-of-00003.bin", "pytorch_model-00003-of-00003.bin"], False),
    ],
)
def test_weights_are_whole_when_all_numbered_parts_are_there(names: list[str], whole: bool) -> None:
    assert has_weights(names) is whole
