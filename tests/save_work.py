"""What the processes of test_saving.py do: save a step, on a disk that fills, or until they are killed.

python save_work.py FOLDER fill BYTES      no file may grow beyond so many bytes
python save_work.py FOLDER fill -1 BYTES   on a small disk, of which so many are left for the second step
python save_work.py FOLDER kill            in one process after another, each killed at one file operation later
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import torch

from lathe import checkpoint, families
from lathe.errors import UsageError
from lathe.model import initial
from lathe.tokenizer import train_bpe
from lathe.training import loop, resume, saves, state
from lathe.training.limits import Reached
from lathe.training.run import Run

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
"""Those of sys.addaudithook that change what is on a disk; fsync has none and is counted apart."""
TOKENIZER = train_bpe(["one and two make three; three and four make seven."], 300)


class Training:
    """Weights that say which step they are of."""

    def __init__(self) -> None:
        self.decoder = initial.decoder(families.read(CONFIG), seed=0)
        self.optimizer = torch.optim.AdamW(self.decoder.parameters())
        state.begin(self.optimizer)
        self.all = state.Training(self.decoder, [self.optimizer])

    @torch.no_grad()
    def step(self, run: Run, number: int, value: int | None = None) -> None:
        for parameter in self.decoder.parameters():
            parameter.fill_(value or number)
            self.optimizer.state[parameter]["exp_avg"].fill_(value or number)
        run.step(loop.Step(number, 1.0, 8, 8, 0.1, 1.0, 0.5, Reached(number, 8 * number), 9.0))
        name = saves.step_name(number)
        run.save(name, self.decoder, CONFIG, generation={}, tokenizer=TOKENIZER, recipe="", training=self.all)
        run.wait()


def kill_at(operation: int) -> None:
    """Have this process killed before its n-th operation on a file."""
    count = 0

    def one() -> None:
        nonlocal count
        count += 1
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(event: str, arguments: tuple) -> None:
        # Files that are opened to be read change nothing.
        if event in EVENTS and (event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            one()

    sync = os.fsync

    def counted(handle: int) -> None:
        one()
        sync(handle)

    os.fsync = counted
    sys.addaudithook(heard)


def fill(folder: Path, limit: int) -> None:
    """Save one step; a second that does not fit; and when there is room again, go on and save it."""
    training = Training()
    with Run(folder) as run:
        training.step(run, 1)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        ballast = folder.parent / "ballast"
        try:
            if limit == resource.RLIM_INFINITY:  # the disk itself is small
                ballast.write_bytes(bytes(shutil.disk_usage(folder).free - int(sys.argv[4])))
            training.step(run, 2)
        except UsageError as error:
            print(error)
        else:
            raise AssertionError("it fitted")
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        ballast.unlink(missing_ok=True)
    assert [step.name for step in saves.steps(folder)] == ["step-000001"]
    check(folder, {1})
    step = resume.find(folder, "auto")
    assert step is not None
    with Run(folder, resumed=(step, training.all.restore(step / "state"))) as run:
        training.step(run, 2)
    check(folder, {2})


def check(folder: Path, values: set[int]) -> None:
    """The newest step is whole and of one of these values, and nothing else is left."""
    step = resume.find(folder, True)
    assert step is not None
    again = Training()
    again.all.restore(step / "state")
    weights = checkpoint.open(step).load().state_dict()
    found = {float(number) for weight in weights.values() for number in weight.flatten()}
    moments = (again.optimizer.state[parameter]["exp_avg"] for parameter in again.decoder.parameters())
    assert found == {float(number) for moment in moments for number in moment.flatten()}, step
    assert len(found) == 1, found
    assert found <= {float(value) for value in values}, found
    kept = {"metrics.jsonl", "metrics-1.jsonl", "report.html", *(step.name for step in saves.steps(folder))}
    assert {path.name for path in folder.iterdir()} <= kept


def kill(folder: Path) -> None:
    """Save a second step in place of an earlier run's, killed at each operation in turn, until it comes through."""
    training, template = Training(), folder / "template"
    with Run(template) as run:
        training.step(run, 1)
        training.step(run, 2, value=9)
    for operation in range(1, 1000):
        out = folder / f"at-{operation}"
        shutil.copytree(template, out)
        child = os.fork()
        if child == 0:
            run = Run(out, resumed=(out / "step-000001", state.Progress(Reached(1, 8))), keep=1)
            kill_at(operation)
            training.step(run, 2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        check(out, {2} if status == 0 else {9, 2})
        shutil.rmtree(out)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status
    print(operation - 1)


if __name__ == "__main__":
    if sys.argv[2] == "fill":
        fill(Path(sys.argv[1]), int(sys.argv[3]))
    else:
        kill(Path(sys.argv[1]))
