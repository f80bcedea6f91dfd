"""Damage small checkpoints of every form, many thousand times, and open them: only errors of ours may come of it.

    python tests/fuzz.py [COUNT] [SEED]

Each damaged copy is opened, held against its configuration and read whole. What is watched: any exception but a
LatheError; a read that takes longer than SLOW; memory beyond SPARE; and, through Python's audit hooks, anything that
only running a program's wishes could cause: a process, a connection, a file written, an import or a compilation.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import yaml
from samples import hurt

from lathe import checkpoint, families, hub
from lathe.errors import LatheError
from lathe.families import litgpt
from lathe.tokenizer import train_bpe
from lathe.weights import rules, safetensors
from lathe.weights.tensors import Ref

SLOW = 20  # seconds, on a busy machine
SPARE = 1 << 30  # bytes of address space beyond what the process has when it begins
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}
CANARY = Path(tempfile.gettempdir()) / f"owned-by-a-pickle-{os.getpid()}"
FORBIDDEN = (
    "os.system os.exec os.posix_spawn os.fork os.spawn subprocess.Popen socket.connect socket.bind pickle.find_class "
    "exec compile ctypes.dlopen os.remove os.rename shutil.rmtree import"
).split()


class Watched:
    """What Python's audit hooks tell while it is on."""

    def __init__(self) -> None:
        self.on, self.seen = False, Counter[str]()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if event in FORBIDDEN or writes:
            self.seen[f"{event} {args[0]!r:.80}"] += 1

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False


def corpus(folder: Path) -> list[Path]:
    """One small model in every form that can be written here, each in a folder of its own."""
    torch.manual_seed(0)
    spec = families.read(CONFIG)
    tensors = {name: Ref.of(torch.randn(slot.shape) * 0.1) for name, slot in checkpoint.slots(checkpoint.blank(spec))}
    tokenizer = train_bpe(["a lathe turns wood, and wood turns"] * 9, 290)
    for form in ("hf", "litgpt"):
        checkpoint.save(folder / form, tensors, CONFIG, form=form, tokenizer=tokenizer)
    checkpoint.save(folder / "shards", tensors, CONFIG, tokenizer=tokenizer, shard_bytes=9_000)
    for kind in ("F32", "Q8_0"):
        place = folder / kind / "model.gguf"
        checkpoint.save(place, tensors, CONFIG, form="gguf", dtype=kind, tokenizer=tokenizer)
    whole = {name: ref.read() for name, ref in tensors.items()}
    for name, new in (("pickle", True), ("old-pickle", False)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(CONFIG))
        torch.save(whole, folder / name / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    named = {name: ref.read() for name, ref in rules.back(litgpt.rules(spec), tensors).items()}
    (folder / "trained").mkdir()
    (folder / "trained" / "model_config.yaml").write_text(yaml.safe_dump(litgpt.settings(CONFIG, spec)))
    optimizer = {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(9)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"model": named, "optimizer": optimizer, "iter_num": 7}, folder / "trained" / "lit_model.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is but one process
        dcp.save({"model": named, "optimizer": optimizer}, checkpoint_id=folder / "processes", no_dist=True)
    shutil.copy(folder / "trained" / "model_config.yaml", folder / "processes")
    (folder / "hostile").mkdir()
    (folder / "hostile" / "config.json").write_text(json.dumps(CONFIG))
    torch.save({"a": Payload()} | whole, folder / "hostile" / "pytorch_model.bin")
    (folder / "adapter").mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    told = json.dumps(settings | {"base_model_name_or_path": str(folder / "hf")})
    (folder / "adapter" / "adapter_config.json").write_text(told)
    site = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    shapes = {"A": (2, 16), "B": (16, 2)}
    low = {site.format(i, part): Ref.of(torch.randn(shape)) for i in (0, 1) for part, shape in shapes.items()}
    safetensors.write(folder / "adapter" / "adapter_model.safetensors", low)
    for name in ("pickle", "old-pickle", "trained", "processes", "hostile"):
        tokenizer.save(folder / name)
    return sorted(folder.iterdir())


class Payload:
    """A pickle of this wants a program run."""

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {CANARY}",)


def attempt(folder: Path) -> str:
    """Open and read everything; what came of it."""
    try:
        found = checkpoint.open(folder)
        decoder = checkpoint.blank(found.spec) if found.spec.width < 4096 and len(found.spec.layers) < 64 else None
        if decoder is not None:
            checkpoint.fit(decoder, found.tensors, found.path)
        for ref in found.tensors.values():
            for _ in ref.pieces():
                pass
        tokenizer = found.tokenizer()
        tokenizer.decode(tokenizer.encode("a lathe turns"))
    except LatheError as error:
        return type(error).__name__
    return "opened"


def run(count: int, seed: int = 0, report: bool = False) -> Counter[str]:
    """Open `count` damaged copies; what came of them, by name. AssertionError where one is no error of ours."""
    for codec in "raw_unicode_escape unicode_escape cp437 latin1 ascii utf_8_sig utf_16 utf_32".split():
        for end in ("", "_le", "_be") if codec in ("utf_16", "utf_32") else ("",):
            codecs.lookup(codec + end)  # Python imports each when it is first used
    rng, outcomes, watched = random.Random(seed), Counter[str](), Watched()
    with tempfile.TemporaryDirectory() as where:
        models = corpus(Path(where) / "good")
        assert [attempt(model) for model in models if model.name != "hostile"] == ["opened"] * (len(models) - 1)
        assert attempt(Path(where) / "good" / "hostile") == "UnsafeError"
        with contextlib.suppress(LatheError):
            hub.known()  # imports what is imported late, as does the next line
            hub.find("no/model")
        limit()
        begun, worst = time.monotonic(), 0.0
        while outcomes.total() < count:
            model = rng.choice(models)
            files = [file for file in sorted(model.iterdir()) if file.name != "tokenizer.json"]
            weights = [file for file in files if file.suffix not in (".json", ".yaml")]
            file = rng.choice(weights if rng.random() < 0.8 else files)
            bad = Path(where) / "bad"
            shutil.copytree(model, bad)
            for text in versions(file.read_bytes(), rng):
                (bad / file.name).write_bytes(text)
                start = time.monotonic()
                signal.alarm(SLOW)
                try:
                    with watched():
                        outcomes[attempt(bad)] += 1
                except BaseException:
                    keep = Path(tempfile.mkdtemp(prefix="fuzz-"))
                    shutil.copytree(bad, keep / model.name)
                    traceback.print_exc()
                    raise AssertionError(f"{file.name} of {model.name}, kept in {keep}") from None
                finally:
                    signal.alarm(0)
                worst = max(worst, time.monotonic() - start)
                assert not watched.seen, f"{file.name} of {model.name} caused {watched.seen}"
            shutil.rmtree(bad)
        assert not CANARY.exists()
    if report:
        took = f"{time.monotonic() - begun:.0f} s, the slowest {worst:.2f} s, {peak()}"
        print(f"{outcomes.total()} damaged checkpoints: {dict(outcomes)}; {took}")
    return outcomes


def versions(good: bytes, rng: random.Random) -> Iterator[bytes]:
    """A few damaged versions: most in the first bytes, where headers are, some cut short."""
    head = min(len(good), rng.choice((200, 2_000, len(good))))
    for _ in range(40):
        yield hurt(good[:head], rng) + good[head:]
    for _ in range(5):
        yield good[: rng.randrange(len(good))]


def limit() -> None:
    """Bound this process's address space, where the system can."""
    with contextlib.suppress(ImportError):
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, resource.RLIM_INFINITY))


def peak() -> str:
    with contextlib.suppress(ImportError):
        import resource

        return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB resident at most"
    return ""


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # a damaged adapter may name any base
    torch.set_num_threads(1)
    wanted, *rest = [int(word) for word in sys.argv[1:]] or [100_000]
    run(wanted, *rest, report=True)
