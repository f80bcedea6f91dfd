"""Models are found on this machine, or fetched from a Hub that is a small HTTP server of our own, by real processes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import NamedTuple

import pytest
from hubserver import Files, HubServer, Repo, commit_of

from lathe.errors import MissingError
from lathe.hub import amount, choosing, downloading, find, known, listing, note
from lathe.hub.refusals import in_words

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TOKENIZER: Files = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"a": 1}',
    "special_tokens_map.json": b'{"b": 2}',
    "vocab.json": b'{"c": 3}',
    "merges.txt": b"a b\n",
    "tekken.json": b'{"d": 4}',
    "tokenizer.model.v3": b"\n\x05",
    "qwen.tiktoken": b"YQ== 0\n",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
}
WEIGHTS: Files = {
    "model.safetensors.index.json": b'{"weight_map": {}}',
    FIRST: random.Random(1).randbytes(300_000),
    SECOND: random.Random(2).randbytes(200_000),
}
UNWANTED: Files = {
    "README.md": b"read me",
    "pytorch_model.bin": b"the same, pickled",
    "pytorch_model.bin.index.json": b'{"e": 5}',
    "adapter_model.safetensors": b"something beside",
    "consolidated.safetensors": b"the same, once more",
    "original/params.json": b"{}",
    "original/consolidated.00.pth": b"and again",
    "onnx/model.onnx": b"and again",
    "model-q4_0.gguf": b"and again, packed",
}
PICKLED: Files = {"config.json": b"{}", "pytorch_model.bin": b"pickled"}
PACKED: Files = {
    "config.json": b"{}",
    "story-Q4_K_M.gguf": b"GGUF four",
    "story-Q8_0.gguf": b"GGUF eight",
    "f16/story-f16-00001-of-00002.gguf": b"GGUF six",
    "f16/story-f16-00002-of-00002.gguf": b"GGUF teen",
    "mmproj-f16.gguf": b"eyes",
}
ADAPTER: Files = {
    "adapter_config.json": b'{"base_model_name_or_path": "org/good"}',
    "adapter_model.safetensors": b"small",
    "adapter_model.bin": b"the same, pickled",
}
LITGPT: Files = {"model_config.yaml": b"name: x", "lit_model.pth": b"PK", "tokenizer.json": b"{}"}
NEWER: Files = {**TOKENIZER, **WEIGHTS, "config.json": b'{"model_type": "mistral"}', SECOND: b"new" * 50_000}


def repos() -> dict[str, Repo]:
    good = {**TOKENIZER, **WEIGHTS, **UNWANTED}
    return {
        "org/good": Repo(good, {"v2": NEWER}),
        "org/pickled": Repo(PICKLED),
        "org/packed": Repo(PACKED),
        "org/one": Repo({"a.gguf": b"GGUF", "README.md": b""}),
        "org/adapter": Repo(ADAPTER),
        "org/litgpt": Repo(LITGPT),
        "org/gated": Repo(good, gated=True),
        "org/private": Repo(PICKLED, token="hf_owner"),
        "org/empty": Repo({"README.md": b""}),
    }


@pytest.fixture
def hub() -> Iterator[HubServer]:
    hub = HubServer(repos())
    yield hub
    hub.stop()


class Said(NamedTuple):
    status: int
    out: str
    err: str


class Machine:
    """A folder to work in, with an empty cache, where `lathe` is typed."""

    def __init__(self, folder: Path, hub: HubServer) -> None:
        self.folder, self.hub = folder, hub
        self.good = folder / "checkpoints/org/good"
        self.unfinished = folder / "checkpoints/org/.good.unfinished"

    def start(self, *words: str, before: str = "", **environment: str) -> subprocess.Popen[str]:
        """`lathe words` in a process of its own, after the statements `before`."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        own = {"HF_ENDPOINT": self.hub.address, "HF_HOME": str(self.folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
        program = ["-c", f"import sys\n{before}\nfrom lathe.cli import main\nsys.exit(main())"]
        return subprocess.Popen(
            [sys.executable, *(program if before else ["-m", "lathe"]), *words],
            cwd=self.folder,
            env={**kept, **own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def lathe(self, *words: str, before: str = "", **environment: str) -> Said:
        return said(self.start(*words, before=before, **environment))

    def refused(self, *words: str, before: str = "", **environment: str) -> str:
        """What `lathe words` says at last when it ends as a user's mistake does: 2, no traceback, nothing on stdout."""
        done = self.lathe(*words, before=before, **environment)
        assert (done.status, done.out) == (2, ""), done
        assert "Traceback" not in done.err and done.err.splitlines()[-1].startswith("Error: ")
        return done.err.splitlines()[-1]

    def sent(self, file: str) -> list[str]:
        """The ranges in which a large file was sent, in order; '' is the whole."""
        return [asked.range for asked in self.hub.asked if asked.file == file and asked.path.startswith("/cdn/")]


@pytest.fixture
def machine(tmp_path: Path, hub: HubServer) -> Machine:
    return Machine(tmp_path, hub)


def said(process: subprocess.Popen[str]) -> Said:
    out, err = process.communicate(timeout=60)
    return Said(process.returncode, out, err)


def held(folder: Path) -> Files:
    """The files of a downloaded folder, without its note."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != note.NAME]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


WITHOUT_FLOCK = "import warnings; warnings.simplefilter('ignore'); sys.modules['fcntl'] = None"
IMPATIENT = "from lathe.hub import fetching; fetching.PAUSES = (0.01, 0.01)"


def test_a_model_is_its_configuration_tokenizer_templates_and_one_form_of_the_weights(machine: Machine) -> None:
    done = machine.lathe("download", "org/good")
    assert (done.status, done.out) == (0, f"{Path('checkpoints/org/good')}\n")
    assert "Downloading org/good into" in done.err and "15 files, 500 kB" in done.err
    assert held(machine.good) == {**TOKENIZER, **WEIGHTS}
    assert [path.name for path in machine.good.parent.iterdir()] == ["good"]
    assert note.read(machine.good).commit == commit_of(machine.hub.repos["org/good"].files)


@pytest.mark.parametrize(
    ("repo", "names"),
    [
        ("org/pickled", set(PICKLED)),
        ("org/litgpt", set(LITGPT)),
        ("org/one", {"a.gguf"}),
        ("org/packed:Q4_K_M", {"story-Q4_K_M.gguf"}),
        ("org/packed:story-Q8_0.gguf", {"story-Q8_0.gguf"}),
        ("org/packed:f16", {"f16/story-f16-00001-of-00002.gguf", "f16/story-f16-00002-of-00002.gguf"}),
    ],
)
def test_other_forms_of_weights_where_there_is_no_safetensors(repo: str, names: set[str], machine: Machine) -> None:
    done = machine.lathe("download", repo)
    folder = machine.folder / "checkpoints" / repo.partition(":")[0]
    assert set(held(folder)) == names
    path = machine.folder / done.out.strip()
    assert path == (folder / min(names) if "gguf" in min(names) else folder) and path.exists()


def test_several_gguf_files_are_told_and_gather_in_one_folder(machine: Machine) -> None:
    told = machine.refused("download", "org/packed")
    assert "several GGUF files: " in told and "story-Q4_K_M.gguf (9 bytes)" in told and "mmproj" not in told
    assert "org/packed:" in told or "REPO:" in told
    assert "no GGUF file" in machine.refused("download", "org/packed", "--file", "Q5_0")
    assert machine.lathe("download", "org/packed", "--file", "q8_0").status == 0
    assert machine.lathe("download", "org/packed:Q4_K_M").status == 0
    assert set(held(machine.folder / "checkpoints/org/packed")) == {"story-Q4_K_M.gguf", "story-Q8_0.gguf"}
    machine.hub.asked.clear()
    again = machine.lathe("download", "org/packed:Q8_0")
    assert "already" in again.err and again.out.strip().endswith("story-Q8_0.gguf") and not machine.hub.asked


def test_an_adapter_brings_its_base_and_says_so(machine: Machine) -> None:
    done = machine.lathe("download", "org/adapter")
    assert done.out.strip().endswith("adapter") and "is an adapter of org/good, which it needs" in done.err
    assert set(held(machine.folder / "checkpoints/org/adapter")) == {"adapter_config.json", "adapter_model.safetensors"}
    assert held(machine.good) == {**TOKENIZER, **WEIGHTS}


def test_an_adapter_of_somebodys_own_folder_says_so(machine: Machine) -> None:
    there = {**ADAPTER, "adapter_config.json": b'{"base_model_name_or_path": "/home/ada/llama"}'}
    machine.hub.repos["org/adapter"] = Repo(there)
    done = machine.lathe("download", "org/adapter")
    assert done.status == 0 and 'an adapter of "/home/ada/llama", which names no repo' in done.err


def test_a_line_that_goes_dead_is_taken_up_where_it_stopped(machine: Machine) -> None:
    machine.hub.cuts = {FIRST: [100_000], SECOND: [0, 50_000]}
    done = machine.lathe("download", "org/good", before=IMPATIENT)
    assert done.status == 0 and held(machine.good) == {**TOKENIZER, **WEIGHTS}
    assert machine.sent(FIRST) == ["", "bytes=100000-"]
    assert machine.sent(SECOND) == ["", "", "bytes=50000-"]


def test_a_server_that_is_busy_is_asked_again(machine: Machine) -> None:
    machine.hub.answers = {FIRST: [503], SECOND: [429, 500], "config.json": [502]}
    assert machine.lathe("download", "org/good", before=IMPATIENT).status == 0
    assert held(machine.good) == {**TOKENIZER, **WEIGHTS}


def test_after_a_cut_the_next_run_asks_only_for_what_is_missing(machine: Machine) -> None:
    machine.hub.cuts = {SECOND: [60_000, 0, 0, 0]}
    told = machine.refused("download", "org/good", before=IMPATIENT)
    assert "failed: " in told and "what has arrived is kept" in told
    assert not machine.good.exists()
    machine.hub.cuts.clear()
    machine.hub.asked.clear()
    done = machine.lathe("download", "org/good")
    assert done.status == 0 and held(machine.good) == {**TOKENIZER, **WEIGHTS}
    assert machine.sent(SECOND) == ["bytes=60000-"] and "60 kB is there" in done.err
    assert not machine.unfinished.exists()


def test_what_was_fetched_before_a_cut_is_not_fetched_again(machine: Machine) -> None:
    machine.hub.answers = {SECOND: [500] * 9}
    one = "from lathe.hub import fetching; fetching.PAUSES = (); fetching.CONNECTIONS = 1"
    assert "answered" in machine.refused("download", "org/good", before=one)
    machine.hub.answers.clear()
    machine.hub.asked.clear()
    assert machine.lathe("download", "org/good").status == 0
    assert {asked.file for asked in machine.hub.asked if asked.file} == {SECOND}


def test_a_server_without_ranges_sends_the_whole_again(machine: Machine) -> None:
    machine.hub.ranges = False
    machine.hub.cuts = {FIRST: [100_000]}
    assert machine.lathe("download", "org/good", before=IMPATIENT).status == 0
    assert machine.sent(FIRST) == ["", "bytes=100000-"] and held(machine.good) == {**TOKENIZER, **WEIGHTS}


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal can be sent to a process alone")
@pytest.mark.parametrize(("with_what", "status"), [("SIGINT", 130), ("SIGKILL", -9), ("SIGTERM", -15)])
def test_interrupted_leaves_no_model_but_what_arrived(with_what: str, status: int, machine: Machine) -> None:
    machine.hub.held = {FIRST: Event()}
    process = machine.start("download", "org/good")
    assert machine.hub.reached.wait(30)
    part = next(machine.unfinished.glob(f"{FIRST}.*.part"))
    while part.stat().st_size < 150_000 and process.poll() is None:
        Event().wait(0.01)
    process.send_signal(signal.Signals[with_what])
    done = said(process)
    assert done.status == status and done.out == "" and "Traceback" not in done.err
    assert ("Interrupted. What has arrived is kept" in done.err) == (with_what == "SIGINT")
    assert not machine.good.exists()
    machine.hub.held.pop(FIRST).set()
    machine.hub.asked.clear()
    assert machine.lathe("download", "org/good").status == 0
    assert machine.sent(FIRST) == ["bytes=150000-"] and held(machine.good) == {**TOKENIZER, **WEIGHTS}


@pytest.mark.parametrize("file", [SECOND, "tokenizer.json"])
@pytest.mark.parametrize("fault", ["altered", "longer"])
def test_a_file_that_is_not_what_the_hub_lists_is_removed(file: str, fault: str, machine: Machine) -> None:
    setattr(machine.hub, fault, {file})
    told = machine.refused("download", "org/good")
    assert f"{file} of org/good did not arrive as it was sent" in told
    data = {**TOKENIZER, **WEIGHTS}[file]
    if file == SECOND:
        assert f"the Hub says {hashlib.sha256(data).hexdigest()}" in told
    assert not machine.good.exists() and not list(machine.unfinished.glob(f"{file}*"))
    setattr(machine.hub, fault, set())
    assert machine.lathe("download", "org/good").status == 0
    assert held(machine.good) == {**TOKENIZER, **WEIGHTS}


@pytest.mark.parametrize("before", ["", WITHOUT_FLOCK], ids=["as it is", "without locks of the system"])
def test_of_two_at_once_one_downloads_and_the_other_finds_it_there(before: str, machine: Machine) -> None:
    machine.hub.held = {FIRST: Event()}
    first = machine.start("download", "org/good", before=before)
    assert machine.hub.reached.wait(30)
    second = machine.start("download", "org/good", before=before)
    assert second.stderr is not None
    line = second.stderr.readline()
    assert line == "Another process is downloading org/good: waiting for it.\n"
    machine.hub.held[FIRST].set()
    assert said(first).status == 0
    done = said(second)
    assert done.status == 0 and "is already in" in done.err
    assert machine.sent(FIRST) == machine.sent(SECOND) == [""]
    assert held(machine.good) == {**TOKENIZER, **WEIGHTS}


def test_a_folder_holds_one_revision(machine: Machine) -> None:
    old, new = commit_of(machine.hub.repos["org/good"].files), commit_of(NEWER)
    assert machine.lathe("download", "org/good").status == 0
    told = machine.refused("download", "org/good", "--revision", "v2")
    assert old[:12] in told and new[:12] in told and "--checkpoints" in told
    assert held(machine.good) == {**TOKENIZER, **WEIGHTS}
    assert "already" in machine.lathe("download", "org/good", "--revision", "main").err
    assert "already" in machine.lathe("download", "org/good", "--revision", old, HF_HUB_OFFLINE="1").err
    other = machine.lathe("download", "org/good", "--revision", "v2", "--checkpoints", "new")
    assert other.status == 0 and held(machine.folder / "new/org/good") == NEWER
    told = machine.refused("download", "org/good", "--revision", "v3", "--checkpoints", "newer")
    assert 'no revision "v3"' in told and "It has main, v2." in told


def test_what_was_begun_of_one_revision_is_not_mixed_into_another(machine: Machine) -> None:
    machine.hub.cuts = {SECOND: [60_000, 0, 0]}
    machine.refused("download", "org/good", before=IMPATIENT)
    machine.hub.repos["org/good"] = Repo(NEWER)
    machine.hub.asked.clear()
    machine.hub.cuts.clear()
    assert machine.lathe("download", "org/good").status == 0
    assert held(machine.good) == NEWER
    assert machine.sent(FIRST) == [] and machine.sent(SECOND) == [""]


def test_the_tokenizer_alone_and_the_weights_later(machine: Machine) -> None:
    done = machine.lathe("download", "org/good", "--tokenizer-only")
    assert done.status == 0 and held(machine.good) == TOKENIZER
    # The Hub has moved on: the folder is completed from the revision that it has.
    machine.hub.repos["org/good"] = Repo(NEWER, {"old": machine.hub.repos["org/good"].files})
    machine.hub.asked.clear()
    told = machine.refused("inspect", "org/good")
    assert "Downloading" not in told and held(machine.good) == {**TOKENIZER, **WEIGHTS}
    assert not {asked.file for asked in machine.hub.asked} & set(TOKENIZER)


def test_a_folder_of_somebody_elses_is_left_alone(machine: Machine) -> None:
    machine.good.mkdir(parents=True)
    (machine.good / "config.json").write_text("mine")
    assert "was not downloaded by Lathe" in machine.refused("download", "org/good")
    assert held(machine.good) == {"config.json": b"mine"}
    (machine.good / "model.safetensors").write_text("mine")
    assert "already" in machine.lathe("download", "org/good").err
    assert "nothing says" in machine.refused("download", "org/good", "--revision", "v2")


def test_a_token_goes_to_the_hub_only_and_is_never_shown(machine: Machine) -> None:
    for words, environment in ((["--token", "hf_member"], {}), ([], {"HF_TOKEN": "hf_member"})):
        machine.hub.asked.clear()
        done = machine.lathe("download", "org/gated", "--checkpoints", f"c{len(words)}", *words, **environment)
        assert done.status == 0 and "hf_member" not in done.err + done.out
        shown = {asked.path.startswith("/cdn/"): set[str]() for asked in machine.hub.asked}
        for asked in machine.hub.asked:
            if "/org/gated" in asked.path:  # huggingface_hub has questions of its own
                shown[asked.path.startswith("/cdn/")].add(asked.token)
        assert shown == {False: {"hf_member"}, True: {""}}
    assert not any(b"hf_member" in path.read_bytes() for path in machine.folder.rglob("*") if path.is_file())
    for bad in ("hf secret", "", "hf_sécret", "hf_secret\n"):
        assert "hf_se" not in machine.refused("download", "org/private", f"--token={bad}")
    assert "hf_s" not in machine.refused("download", "org/private", HF_TOKEN="hf_sécret")
    told = machine.refused("download", "org/private", "--token", "unknown_secret")
    assert "does not know the token" in told and "secret" not in told


def test_says_in_words_why_a_repo_cannot_be_had(machine: Machine) -> None:
    (machine.folder / "checkpoints/org/god").mkdir(parents=True)
    absent = machine.refused("download", "org/goood")
    assert "no such repo" in absent and 'Did you mean "org/god"?' in absent
    gated = machine.refused("generate", "org/gated", "--prompt", "x")
    assert "is gated" in gated and f"{machine.hub.address}/org/gated" in gated and "HF_TOKEN" in gated
    assert "no weights that can be opened" in machine.refused("download", "org/empty")
    assert "neither a configuration" in machine.refused("download", "org/empty", "--tokenizer-only")
    assert "A private repo needs your token" in machine.refused("download", "org/private")
    assert [path.name for path in (machine.folder / "checkpoints/org").iterdir()] == ["god"]  # no trace of the others


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("qwen/qwen3-0.6b", "Qwen/Qwen3-0.6B"),
        ("Qwen/Qwen3-06B", "Qwen/Qwen3-0.6B"),
        ("gpt2", "openai-community/gpt2"),
        ("Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("meta/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
    ],
)
def test_a_misspelt_repo_is_told_the_well_known_one(typed: str, meant: str, machine: Machine) -> None:
    assert f'Did you mean "{meant}"?' in machine.refused("download", typed)


@pytest.mark.parametrize(("status", "word"), [(403, "does not let"), (418, "answered"), (404, "no such repo")])
def test_a_refused_file_is_told_once(status: int, word: str, machine: Machine) -> None:
    machine.hub.answers = {"config.json": [status]}
    assert word in machine.refused("download", "org/good")
    assert [asked.file for asked in machine.hub.asked].count("config.json") == 1


def test_a_hub_that_asks_to_wait_is_obeyed(machine: Machine) -> None:
    machine.hub.answers = {"config.json": [429] * 9}
    assert "asked too often" in machine.refused("download", "org/good", before=IMPATIENT)


@pytest.mark.parametrize(
    "name",
    ["../../x.json", "/etc/x.json", "a/../../x.json", "..\\..\\x.json", "C:\\x.json", "x\0.json", "..", "a//b/.."],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, machine: Machine) -> None:
    machine.hub.repos["org/evil"] = Repo({**PICKLED, name: b"evil"})
    told = machine.refused("download", "org/evil")
    assert "Nothing was downloaded" in told and repr(name) in told
    assert not any(asked.file for asked in machine.hub.asked)
    assert not list(machine.folder.rglob("*.json"))


@pytest.mark.parametrize("name", ["nul.json", "a:b.json", "what?.json", "\x1b[2J.json", "x.json.", "con.model"])
def test_a_name_that_some_system_cannot_hold_is_refused(name: str) -> None:
    files = {name: listing.File(name, 1, "")}
    with pytest.raises(MissingError, match="no name for a file everywhere"):
        listing.check(listing.Listing("org/evil", "main", "0" * 40, files), [name])


@pytest.mark.parametrize(
    "page",
    [
        b"<html>Log in to the network</html>",
        b"[]",
        b"{}",
        b'{"id": "org/good"}',
        b'{"id": "org/good", "sha": 7, "siblings": [{"rfilename": 1}]}',
        b'{"id": "org/good", "sha": "../..", "siblings": []}',
        b'{"id": "org/good", "sha": "0", "siblings": [{"name": "x"}]}',
        b'{"id": "org/good", "siblings": 5}',
    ],
)
def test_a_page_that_is_no_listing_is_told(page: bytes, machine: Machine) -> None:
    machine.hub.page = page
    told = machine.refused("download", "org/good")
    assert "HF_ENDPOINT" in told or "which commit" in told


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_999, "1 MB"),
        (2_470_000_000, "2.47 GB"),
        (1_370_000_000_000, "1.37 TB"),
    ],
)
def test_amounts_are_told_in_the_unit_that_suits_them(count: int, told: str) -> None:
    assert amount(count) == told


@pytest.mark.parametrize("lfs", ["../../x", "a" * 63, "G" * 64])
def test_a_hash_that_is_none_is_not_believed(lfs: str) -> None:
    assert listing._hex("sha256", lfs, 64) == ""


def test_a_disk_without_room_is_noticed_before(machine: Machine) -> None:
    little = "import shutil; shutil.disk_usage = lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 5000, 5000)"
    told = machine.refused("download", "org/good", before=little)
    assert "needs 500 kB" in told and "has 5 kB free" in told
    assert not any(asked.file for asked in machine.hub.asked)
    assert [path.name for path in (machine.folder / "checkpoints").iterdir()] == [".locks"]


def test_a_disk_that_fills_up_and_a_folder_that_cannot_be_written(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"disk that holds .* is full"), in_words("a/b", None, tmp_path, None):
        raise OSError(errno.ENOSPC, "No space left on device")
    (machine.folder / "checkpoints").write_text("a file")
    assert "--checkpoints" in machine.refused("download", "org/good")


def cache(machine: Machine, *names: str, revision: str = "main") -> None:
    """Put files of org/good into the Hugging Face cache, by huggingface_hub itself."""
    program = "import json, sys; from huggingface_hub import hf_hub_download\n"
    program += f"for name in json.loads(sys.argv[1]): hf_hub_download('org/good', name, revision={revision!r})"
    environment = {**os.environ, "HF_ENDPOINT": machine.hub.address, "HF_HOME": str(machine.folder / "hf")}
    environment |= {"HF_HUB_DISABLE_XET": "1"}
    subprocess.run([sys.executable, "-c", program, json.dumps(names)], env=environment, check=True, timeout=60)
    machine.hub.asked.clear()


def test_what_the_hugging_face_cache_holds_is_linked(machine: Machine) -> None:
    cache(machine, FIRST, "config.json")
    done = machine.lathe("download", "org/good")
    assert done.status == 0 and "Took 300 kB" in done.err and held(machine.good) == {**TOKENIZER, **WEIGHTS}
    assert machine.sent(FIRST) == [] and machine.sent(SECOND) == [""]
    blob = machine.folder / "hf/hub/models--org--good/blobs" / hashlib.sha256(WEIGHTS[FIRST]).hexdigest()
    assert not blob.exists() or blob.samefile(machine.good / FIRST)  # Windows without links keeps no blobs
    cached = next(machine.folder.glob("hf/hub/models--org--good/snapshots/*/config.json"))
    assert not cached.samefile(machine.good / "config.json")


def test_equal_files_of_another_revision_in_the_cache_are_linked_too(machine: Machine) -> None:
    cache(machine, FIRST, SECOND, revision="v2")
    assert machine.lathe("download", "org/good").status == 0
    assert machine.sent(FIRST) == [] and machine.sent(SECOND) == [""]
    assert held(machine.good) == {**TOKENIZER, **WEIGHTS}


def test_a_cache_that_holds_everything_needs_no_download_and_serves_actions_as_it_is(machine: Machine) -> None:
    cache(machine, *TOKENIZER, *WEIGHTS)
    told = machine.refused("inspect", "org/good", HF_HUB_OFFLINE="1")
    assert 'config.json has no "num_attention_heads"' in told  # that is, it was opened
    assert not machine.good.exists() and not machine.hub.asked
    done = machine.lathe("download", "org/good", HF_HUB_OFFLINE="1")
    assert done.status == 0 and "snapshots" in done.out and "is used as it is" in done.err
    done = machine.lathe("download", "org/good")
    assert done.status == 0 and "Took" in done.err and not any(asked.file for asked in machine.hub.asked)
    assert held(machine.good) == {**TOKENIZER, **WEIGHTS}


def test_a_cache_with_half_a_model_is_no_model(machine: Machine) -> None:
    cache(machine, "config.json", "tokenizer.json", FIRST)
    assert "HF_HUB_OFFLINE" in machine.refused("inspect", "org/good", HF_HUB_OFFLINE="1")


@pytest.mark.parametrize(("broken", "kind"), [(["link"], "symlink"), (["link", "symlink"], "copy"), ([], "hard link")])
def test_links_fall_back_on_copies(
    broken: list[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "not here")

    for name in broken:
        monkeypatch.setattr(os, name, refuse)
    digest = hashlib.sha256(b"abc").hexdigest()
    blob = tmp_path / "hub/models--org--good/blobs" / digest
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    file = listing.File("x.bin", 3, f"sha256:{digest}")
    assert downloading._link(listing.Listing("org/good", "main", "0" * 40, {"x.bin": file}), file, tmp_path)
    made = tmp_path / "x.bin"
    assert made.read_bytes() == b"abc" and made.is_symlink() == (kind == "symlink")
    assert made.samefile(blob) == (kind != "copy")


def test_a_file_too_large_for_http_comes_by_huggingface_hub_and_is_verified(machine: Machine) -> None:
    small = "from huggingface_hub import constants; constants.MAX_HTTP_DOWNLOAD_SIZE = 250_000"
    machine.hub.altered = {FIRST}
    # huggingface_hub itself does not look at the limit again, nor at the hash.
    raised = f"{small}\nimport huggingface_hub.file_download as f\nf.constants.MAX_HTTP_DOWNLOAD_SIZE = 250_000"
    http = "import huggingface_hub.file_download as f\nget = f.http_get\n"
    http += "def http_get(*a, expected_size=None, **k): return get(*a, expected_size=None, **k)\nf.http_get = http_get"
    assert "did not arrive as it was sent" in machine.refused("download", "org/good", before=f"{raised}\n{http}")
    machine.hub.altered = set()
    assert machine.lathe("download", "org/good", before=f"{raised}\n{http}").status == 0
    assert held(machine.good) == {**TOKENIZER, **WEIGHTS}


def test_without_network(machine: Machine) -> None:
    offline = machine.refused("generate", "org/good", "--prompt", "x", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in offline
    machine.hub.stop()
    refused = machine.refused("generate", "org/good", "--prompt", "x")
    assert "Downloading org/good from" in refused and "failed: " in refused
    machine.hub = HubServer({})


def test_other_actions_bring_a_missing_model_themselves_and_say_so(machine: Machine) -> None:
    done = machine.lathe("inspect", "org/good")
    assert "Downloading org/good into" in done.err and held(machine.good) == {**TOKENIZER, **WEIGHTS}
    machine.hub.asked.clear()
    machine.lathe("inspect", "org/packed:Q8_0")
    assert [asked.file for asked in machine.hub.asked if asked.path.startswith("/cdn/")] == ["story-Q8_0.gguf"]
    assert "Downloading" not in machine.lathe("inspect", "org/packed:Q8_0").err


def test_finding_and_downloading_need_no_torch(machine: Machine) -> None:
    before = "import atexit; atexit.register(lambda: print('torch' in sys.modules))"
    for words in (["download", "org/good"], ["models"], ["download", "list"]):
        assert machine.lathe(*words, before=before).out.splitlines()[-1] == "False"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_bar_moves_on_a_terminal_only(machine: Machine) -> None:
    import pty

    seen: list[bytes] = []

    def read(terminal: int) -> bytes:
        seen.append(os.read(terminal, 4096))
        return seen[-1]

    environment = {"HF_ENDPOINT": machine.hub.address, "HF_HOME": str(machine.folder / "hf"), "TERM": "xterm"}
    words = ["env", *(f"{key}={value}" for key, value in environment.items())]
    folder = str(machine.folder / "checkpoints")
    pty.spawn([*words, sys.executable, "-m", "lathe", "download", "org/good", "--checkpoints", folder], read)
    assert "━" in b"".join(seen).decode() and held(machine.good) == {**TOKENIZER, **WEIGHTS}
    shutil.rmtree(machine.good)
    assert "━" not in machine.lathe("download", "org/good").err


def test_a_note_that_is_damaged_is_none(tmp_path: Path) -> None:
    whole = note.Note("a/b", "main", "0" * 40, {"config.json": ""})
    whole.write(tmp_path)
    assert note.read(tmp_path) == whole
    for text in ("", "{}", "[]", '{"repo": 1, "revision": 2, "commit": 3, "files": {}}', "\x00"):
        (tmp_path / note.NAME).write_text(text)
        assert note.read(tmp_path) is None


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


@pytest.mark.parametrize(
    "typed", ["", "no such model", "once upon a time " * 100, "a/" * 5000 + "b", "../x", "./x", "a/..", "ä/b", "a/b/c"]
)
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
        (["a-00001-of-00002.gguf"], False),
        (["lit_model.pth"], True),
    ],
)
def test_weights_are_whole_when_all_numbered_parts_are_there(names: list[str], whole: bool) -> None:
    assert choosing.has_weights(names) is whole


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ("model.safetensors model.fp16.safetensors", "model.safetensors"),
        ("weights.safetensors", "weights.safetensors"),
        ("a.gguf pytorch_model.bin", "pytorch_model.bin"),
        ("pytorch_model.bin lit_model.pth", "pytorch_model.bin"),
        ("adapter_model.bin", "adapter_model.bin"),
        ("consolidated.safetensors a.gguf", "a.gguf"),
        ("training_args.bin optimizer.bin a.gguf", "a.gguf"),
    ],
)
def test_one_form_of_weights_is_taken(names: str, taken: str) -> None:
    assert choosing.wanted(dict.fromkeys(names.split())) == taken.split()


@pytest.mark.parametrize(
    ("word", "taken"),
    [
        ("Q4_K_M", "a-Q4_K_M.gguf"),
        ("q8_0", "b/a-Q8_0.gguf"),
        ("a-Q8_0.gguf", "b/a-Q8_0.gguf"),
        ("b/a-Q8_0", "b/a-Q8_0.gguf"),
        ("Q4_K", ""),
        ("4_K_M", ""),
        ("a", ""),
        ("a-Q4_K_M.ggu", ""),
    ],
)
def test_a_word_names_one_gguf_file(word: str, taken: str) -> None:
    sizes = dict.fromkeys(["a-Q4_K_M.gguf", "b/a-Q8_0.gguf", "a-IQ4_K_M.gguf"])
    try:
        assert choosing.gguf(sizes, word, "Here") == [taken]
    except MissingError as error:
        assert not taken, error


def test_well_known_repos_are_spelt_as_ids_and_are_of_families_that_exist() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    rows = known()
    assert len({row.repo for row in rows}) == len(rows) > 250
    for row in rows:
        assert row.family in {*CONFIG_MAPPING_NAMES, "kimi_k2"}, row
        assert all(part.rstrip("MB").replace(".", "").isdigit() for part in row.parameters.split("/")), row


def test_models_lists_what_can_be_had_and_what_is_here(machine: Machine) -> None:
    (machine.folder / "checkpoints/Qwen/Qwen3-0.6B").mkdir(parents=True)
    (machine.folder / "checkpoints/Qwen/Qwen3-0.6B/model.safetensors").touch()
    lines = machine.lathe("models", "qwen3", "0.6b").out.splitlines()
    assert [line.split() for line in lines if line] == [
        ["qwen3"],
        ["Qwen/Qwen3-0.6B", "596M", "thinks,", "here"],
        ["Qwen/Qwen3-0.6B-Base", "596M"],
    ]
    rows = json.loads(machine.lathe("models", "--json", "--family", "Qwen3ForCausalLM").out)
    assert {row["architecture"] for row in rows} == {"Qwen3ForCausalLM"} and len(rows) > 5
    assert {row["repo"] for row in rows if row["path"]} == {"Qwen/Qwen3-0.6B"}
    assert machine.lathe("models").out == machine.lathe("download", "list").out
    assert 'Did you mean "qwen3"' in machine.refused("models", "--family", "qwn3")
    assert 'Did you mean "pythia"' in machine.refused("models", "pythai")


def test_the_page_about_downloads_shows_what_happens(machine: Machine) -> None:
    model = {**dict.fromkeys(TOKENIZER, b"{}"), "model.safetensors": b"weights"}
    for extra in ("generation_config.json", "tekken.json", "tokenizer.model.v3", "qwen.tiktoken"):
        model.pop(extra)
    model = {name: data for name, data in model.items() if "chat_template" not in name}
    packed = {f"qwen2.5-0.5b-instruct-{kind}.gguf": kind.encode() for kind in ("q4_k_m", "q8_0")}
    machine.hub.repos |= {
        "Qwen/Qwen3-0.6B": Repo(model),
        "Qwen/Qwen2.5-0.5B-Instruct-GGUF": Repo(packed),
        "meta-llama/Llama-3.2-1B": Repo(model, gated=True),
    }
    page = (Path(__file__).parents[1] / "docs/download.md").read_text(encoding="utf-8")
    shown = "".join(re.findall(r"^```console\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL))
    for exchange in shown.split("$ lathe ")[1:]:
        line, _, expected = exchange.partition("\n")
        done = machine.lathe(*shlex.split(line))
        assert same(done.err + done.out.replace("\\", "/")) == same(expected), line


def same(text: str) -> str:
    """What was said, but for what differs between this Hub and the real one: sizes, times, commits, addresses."""
    text = re.sub(r"\d+:\d\d:\d\d|[\d.]+ (bytes|[kMG]B)|revision \w+", "...", text)
    return re.sub(r"https?://[\w.:]+/", "https://hub/", text).strip()
