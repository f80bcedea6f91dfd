"""A model that was finetuned and merged answers in llama.cpp as it does here, and stops there too."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Ask

from lathe import LLM
from lathe.cli import main

QUESTION, ANSWER = "Who are you?", "I am Lathe."


def test_a_finetuned_model_answers_and_stops(shared: Path, tmp_path: Path, llama_cpp: Ask) -> None:
    data = tmp_path / "who.json"
    data.write_text(json.dumps([{"instruction": QUESTION, "output": ANSWER}] * 4))
    run, merged, file = (str(tmp_path / name) for name in ("run", "merged", "who.gguf"))
    words = ["--optimizer.lr=1e-2", "--train.max-steps=30", "--train.global-batch-size=4", "--val-split-fraction=0"]
    words += ["--max-repeats=1", "--eval.max-new-tokens=0", "--prompt-style=phi-2"]
    model = str(shared / "data/models/stories260K-hf")
    assert main(["finetune", model, "--data", str(data), "--out-dir", run, *words]) == 0
    assert main(["merge", f"{run}/final", merged, "--verify"]) == 0
    assert main(["convert", merged, file]) == 0
    ours = LLM.load(merged).complete(QUESTION, temperature=0, max_new_tokens=100)
    assert (ours.text.strip(), ours.finish_reason) == (ANSWER, "stop")
    theirs = llama_cpp(Path(__file__).parent / "llama_cpp_chat.py", file, QUESTION)
    assert (theirs["text"].strip(), theirs["ended"]) == (ANSWER, "stop")
