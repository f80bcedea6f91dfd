"""The templates of many models that llama.cpp keeps for its own tests: calls that they write are read back.

They come out of llama-cpp-python's source, which `make oracles` fetches.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PLACE = HERE.parents[1] / ".venv-llamaserver"
sys.path.append(str(HERE.parent))

from test_turns import ASKED, called, found, read, written  # noqa: E402

# Why not: the template itself fails in the sandbox or without variables of its own; it writes no calls; or writes them
# in a way of its own.
OTHERS = {
    "CohereForAI-c4ai-command-r-plus-tool_use": "fails on a tool without descriptions of its arguments",
    "HuggingFaceTB-SmolLM3-3B": "writes no calls",
    "Kimi-K2-Instruct": "changes a list, which no sandbox lets it",
    "Kimi-K2-Thinking": "changes a list, which no sandbox lets it",
    "LFM2-8B-A1B": "writes no calls",
    "LFM2.5-Instruct": "writes no calls",
    "MiniMax-M3": "a tag for every key, at every depth",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "writes no calls",
    "fireworks-ai-llama-3-firefunction-v2": "wants functions as a text, in a variable of its own",
    "google-gemma-2-2b-it": "writes no calls",
    "ibm-granite-granite-3.3-2B-Instruct": "writes no calls",
    "llama-cpp-deepseek-r1": "cannot write a tool",
    "llama-cpp-rwkv-world": "writes no calls",
    "meetkai-functionary-medium-v3.2": "no mark begins the first call",
    "microsoft-Phi-3.5-mini-instruct": "writes no calls",
    "muse-glimmer": "a message of its own for every call",
    "openbmb-MiniCPM5-1B": "texts of several lines in CDATA",
}


def test_calls_are_read_back_whatever_the_template() -> None:
    [archive] = PLACE.glob("llama_cpp_python-*.tar.gz")
    wrong, right = [], 0
    with tarfile.open(archive) as packed:
        files = [item for item in packed if "/models/templates/" in item.name and item.name.endswith(".jinja")]
        for item in files:
            content = packed.extractfile(item)
            assert content is not None
            name, source = Path(item.name).stem, content.read().decode()
            if name in OTHERS:
                continue
            turns = found(source)
            assert turns.calls is not None
            asked = ASKED if turns.calls.several else ASKED[:1]
            text = written(source, turns, asked)
            if text and called(read(turns, [text])) == called(read(turns, list(text))) == asked:
                right += 1
            else:
                wrong.append(name)
    print(f"{right} of {len(files)} templates")
    assert not wrong and right > 50, wrong


@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "GLM-4.6", "ByteDance-Seed-OSS", "Apriel-1.6-15b-Thinker-fixed"])
def test_thoughts_are_read_back(name: str) -> None:
    [archive] = PLACE.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as packed:
        item = next(item for item in packed if item.name.endswith(f"/models/templates/{name}.jinja"))
        content = packed.extractfile(item)
        assert content is not None
        source = content.read().decode()
    turns = found(source)
    assert turns.history.thoughts is not None
    text = written(source, turns, ASKED, **{turns.history.thoughts: "It thinks."})
    assert text
    opened = turns.reasoning is not None and not turns.reasoning.begin
    said = read(turns, [text], opened=opened)
    assert said["reasoning"] == "It thinks." and called(said) == ASKED
