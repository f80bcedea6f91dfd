"""A save that breaks off anywhere, killed or for want of room, loses nothing: the step before it is found and whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lathe.errors import MissingError, UsageError
from lathe.training import resume

WORK = Path(__file__).with_name("save_work.py")
posix = pytest.mark.skipif(os.name == "nt", reason="needs fork and resource limits")


def work(*words: object, under: tuple[str, ...] = ()) -> str:
    command = [*under, sys.executable, str(WORK), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@posix
def test_killed_at_any_file_operation_the_newest_step_is_whole(tmp_path: Path) -> None:
    operations = int(work(tmp_path, "kill"))
    assert operations > 40  # writing, syncing, renaming, and removing what went before


@posix
@pytest.mark.parametrize("limit", [4000, 40000])
def test_a_file_that_cannot_grow_stops_the_run(tmp_path: Path, limit: int) -> None:
    said = work(tmp_path / "out", "fill", limit)
    assert "step-000002 could not be saved: the disk is full." in said
    assert "step-000001, is whole. Make room, and go on with --resume." in said


@pytest.mark.skipif(sys.platform != "linux", reason="makes a small disk of memory")
@pytest.mark.parametrize(
    ("left", "expected"),
    [(100, "and the disk has"), (156, "could not be saved: the disk is full")],
    ids=["seen", "met"],
)
def test_a_disk_that_fills_stops_the_run(tmp_path: Path, left: int, expected: str) -> None:
    """Seen before anything is copied where the tensors alone do not fit, met while writing where the rest does not."""
    disk = (
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs -o size=600k none {tmp_path} && "$@"',
        "-",
    )
    if subprocess.run([*disk, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk of memory")
    said = work(tmp_path / "out", "fill", -1, left * 1000, under=disk)
    assert expected in said


def test_the_newest_whole_step_is_found(tmp_path: Path) -> None:
    assert resume.find(tmp_path / "none", "auto") is None
    assert resume.find(tmp_path, False) is None
    with pytest.raises(MissingError, match=r"no step with a state/ to go on from"):
        resume.find(tmp_path, True)
    for name in ("step-000008", "step-000016", "step-1000000", "step-2000000"):
        (tmp_path / name / "state").mkdir(parents=True)
        (tmp_path / name / "state/training.json").write_text('{"version": 1}')
        (tmp_path / name / "state/.metadata").touch()
    (tmp_path / "step-2000000/state/training.json").unlink()
    assert resume.find(tmp_path, True) == resume.find(Path("elsewhere"), tmp_path) == tmp_path / "step-1000000"
    assert resume.find(tmp_path, str(tmp_path / "step-000008")) == tmp_path / "step-000008"
    with pytest.raises(MissingError, match="holds no state of a training"):
        resume.find(tmp_path, tmp_path / "step-2000000")
    (tmp_path / ".step-000008.gone-12").mkdir()
    (tmp_path / ".step-3000000.old-12").mkdir()
    resume.find(tmp_path, "auto")
    assert not (tmp_path / ".step-000008.gone-12").exists()
    assert (tmp_path / "step-3000000").is_dir()  # it was being replaced


def test_a_run_goes_on_with_the_options_it_began_with(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: llama\ntrain:\n  max_seq_length: 32\n  max_steps: 10\n")
    bound = ("model", "train.max_seq_length")
    resume.check(tmp_path, {"model": "llama", "train": {"max_seq_length": 32, "max_steps": 20}}, bound)
    with pytest.raises(UsageError, match=r"--train.max-seq-length is 64, and the run in .* was begun with 32"):
        resume.check(tmp_path, {"model": "llama", "train": {"max_seq_length": 64}}, bound)
