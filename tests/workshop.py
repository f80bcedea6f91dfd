"""Pages name models, files, a Hub and programs: here is a folder with tiny ones, and a process that starts commands.

The commands are real, and so is what they do; models are tiny and some of them random, other engines are played by
Lathe, and srun starts two tasks on this machine. See forking.py for how a command starts, `pages` for what else stands
for what.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow
import zstandard
from hubserver import HubServer, Repo
from pages import PAGES, ROOT
from pyarrow import parquet
from serving import TOOLS, tiny

from lathe import checkpoint, families
from lathe.cli import main
from lathe.model import initial
from lathe.tokenizer import train_bpe

SAID = "Once upon a time\n"  # what is typed where a command asks
TEXT = "The lathe turns the work, and the tool stands still.\n"
ROWS = [{"instruction": f"What is {n}?", "output": f"A number, {n}."} for n in range(240)]
TESTS = Path(__file__).parent
# Programs that are not Lathe's own. Other engines are played by Lathe; srun starts two tasks on one machine.
PROGRAMS = {
    "lathe": 'exec {python} -SE {asking} lathe "$@"',
    "python": 'exec {python} -SE {asking} python "$@"',
    "torchrun": 'exec {python} -SE {asking} python -m torch.distributed.run "$@"',
    "make": """[ "$1" = demo -a -z "${{HURRIED-}}" ] || exec {make} -n "$@" >&2  # what would be done
        exec {make} -s -o .venv/.demo "$@" """,
    "pip": 'grep -q "^$(sed "s/.*\\[//; s/\\].*//" <<< "$2") = " pyproject.toml  # there is such an extra',
    "curl": 'exec {curl} --silent --show-error --fail-with-body "$@"',
    "llama-server": 'exec python -m lathe serve "$2" --served-model-name "$4" --port "$8" --api-key "${{11}}"',
    "srun": """export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2 SLURM_STEP_NODELIST=localhost SLURM_JOB_ID=$$
        SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $!""",
}
SGLANG = """import sys
from lathe.cli import main
told = dict(zip(sys.argv[1::2], sys.argv[2::2]))
words = [word for name in ("--served-model-name", "--host", "--port") for word in (name, told[name])]
sys.exit(main(["serve", told["--model-path"], *words]))
"""
# What an example of lm-evaluation-harness's is here: the same names, on a file.
HARNESS = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""
RECIPE = """checkpoint_dir: checkpoints/microsoft/phi-2
out_dir: out/finetune/lora-phi-2
lora_r: 8
data: {class_path: litgpt.data.Alpaca2k, init_args: {mask_prompt: false, val_split_fraction: 0.03847}}
train: {epochs: 1, global_batch_size: 8, max_seq_length: 512, lr_warmup_steps: 10}
optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.0002, betas: [0.9, 0.95]}}
"""


def free() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


class Workshop:
    """Models, a Hub, and a process that forks, for all pages."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.folder = Path(tempfile.mkdtemp(prefix="lathe-"))  # a socket's address must be short
        modules = place / "modules/sglang"
        modules.mkdir(parents=True)
        (modules / "__init__.py").touch()
        (modules / "launch_server.py").write_text(SGLANG)
        paths = os.pathsep.join(map(str, (TESTS, ROOT, modules.parent)))
        alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.hub = HubServer({})
        home = place / "home"
        hub = {"HF_ENDPOINT": self.hub.address, "HF_HOME": str(home / "hub"), "HF_HUB_DISABLE_XET": "1"}
        more = {"PYTHONPATH": paths, "HOME": str(home), "NO_COLOR": "1", "BROWSER": "true", "COLUMNS": "100"}
        self.environment = {**os.environ, **alone, **hub, **more}
        command = [sys.executable, str(TESTS / "forking.py"), str(self.folder / "forks")]
        self.forks = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment, cwd=place
        )
        self.models = self._models()
        self.hub.repos = self._repos()
        assert self.forks.stdout is not None and self.forks.stdout.readline() == b"ready\n"

    def _models(self) -> dict[str, Path]:
        """A tiny model that talks, and a demo's, untrained."""
        talks = tiny(self.place / "talks", TOOLS, num_key_value_heads=4, max_position_embeddings=4096)
        tokenizer = train_bpe([PAGES["README.md"].read_text()], 300)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = {"architectures": ["LlamaForCausalLM"], **sizes, "vocab_size": tokenizer.vocab_size}
        demo = self.place / "demo"
        checkpoint.save(demo, initial.decoder(families.read(config), seed=0), config, tokenizer=tokenizer)
        (self.place / "examples.json").write_text(json.dumps(ROWS[:8]))
        taught = ["finetune", str(talks), "--data", str(self.place / "examples.json"), "--train.max-steps=1"]
        assert not main([*taught, "--val-split-fraction=0", "--out-dir", str(self.place / "taught")])
        assert not main(["convert", str(talks), str(self.place / "talks.gguf"), "--dtype", "Q8_0"])
        assert not main(["convert", str(talks), str(self.place / "half"), "--dtype", "bf16"])
        return {
            "half": self.place / "half",
            "talks": talks,
            "demo": demo,
            "lora": self.place / "taught/final",
            "gguf": self.place / "talks.gguf",
        }

    def _repos(self) -> dict[str, Repo]:
        talks = {file.name: file.read_bytes() for file in self.models["talks"].iterdir()}
        gguf = self.models["gguf"].read_bytes()
        names = ["meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-0.6B"]
        names += ["HuggingFaceTB/SmolLM2-135M"]
        repos = {name: Repo(talks) for name in names}
        repos["meta-llama/Llama-3.2-1B"] = Repo(talks, gated=True)
        both = {f"qwen2.5-0.5b-instruct-{kind}.gguf": gguf for kind in ("q4_k_m", "q8_0")}
        repos["Qwen/Qwen2.5-0.5B-Instruct-GGUF"] = Repo(both)
        return repos

    def close(self) -> None:
        self.hub.stop()
        assert self.forks.stdin is not None
        self.forks.stdin.close()
        self.forks.wait(20)
        shutil.rmtree(self.folder)

    def furnish(self, place: Path) -> None:
        """Put what pages name into a folder."""
        stands = {"MODEL": "talks", "SMALL": "talks", "out/final": "half", "out/demo/final": "demo", "manual": "demo"}
        stands |= dict.fromkeys(("out/support", "out/sql", "adapters/new"), "lora")
        for name, model in stands.items():
            shutil.copytree(self.models[model], place / name)
        for name in ("MODEL.gguf", "model-Q8_0.gguf"):
            shutil.copy(self.models["gguf"], place / name)
        texts(
            "story.txt corpus/a.txt books/a.txt code/a.py web/a.txt notes.txt shakespeare.txt tinyshakespeare.txt",
            place,
        )
        lines = {
            "faq.jsonl": ROWS,
            "texts.jsonl": [{"text": f"The lathe turns {n} times."} for n in range(40)],
            "heldout.jsonl": [{"text": "A tool."}] * 9,
            "lambada.jsonl": [{"context": "The lathe turns the", "continuation": "work"}] * 4,
            "arc_easy.jsonl": [{"query": f"{n}?", "choices": ["one", "two"], "gold": n % 2} for n in range(12)],
            "pairs.jsonl": [{"prompt": r["instruction"], "chosen": r["output"], "rejected": "No."} for r in ROWS[:8]],
        }
        for name, rows in lines.items():
            (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        shutil.copy(place / "pairs.jsonl", place / "opinions.json")
        (place / "examples.json").write_text(json.dumps(ROWS[:8]))
        (place / "web.jsonl.zst").write_bytes(zstandard.compress((place / "texts.jsonl").read_bytes()))
        parquet.write_table(pyarrow.Table.from_pylist(lines["texts.jsonl"]), place / "big.parquet")
        (place / "keys.txt").write_text("a-key\n")
        (place / "table.csv").write_text("Q,A\nWho?,Me.\nWhat?,A lathe.\n")
        (place / "person.json").write_text('{"type": "object", "properties": {"name": {"type": "string"}}}')
        (place / "tasks").mkdir()
        for name in ("mine", "hellaswag", "arc_easy", "gsm8k"):
            task = HARNESS.format(name=name, file=place / "arc_easy.jsonl")
            (place / ("mine.yaml" if name == "mine" else f"tasks/{name}.yaml")).write_text(task)
        (place / "config_hub/finetune/phi-2").mkdir(parents=True)
        (place / "config_hub/finetune/phi-2/lora.yaml").write_text(RECIPE)
        for name in ("recipes", "pyproject.toml", "Makefile", "constraints.txt"):
            (place / name).symlink_to(ROOT / name)
        subprocess.run(
            "git init --quiet && git add notes.txt && echo Turn it. >> notes.txt", shell=True, cwd=place, check=True
        )


def furnish_real(place: Path, data: Path) -> None:
    """Put what pages show the answers of into a folder."""
    shutil.copytree(data / "models/stories260K-hf", place / "stories260K")
    shutil.copy(data / "models/stories260K-gguf/stories260K-q8_0.gguf", place)
    shutil.copytree(data / "formats/peft-lora-stories260K", place / "bard")
    shutil.copy(data / "text/tinystories_1k.txt", place / "tinystories.txt")
    told = (data / "instruct/identity_alpaca.json").read_text(encoding="utf-8")
    rows = json.loads(told.replace("{{name}}", "Lathe").replace("{{author}}", "the Lathe team"))
    rows = [row for row in rows if (row["instruction"] + row["output"]).isascii()]
    (place / "who.json").write_text(json.dumps(rows))


def texts(names: str, place: Path) -> None:
    for name in names.split():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(TEXT * 20)
