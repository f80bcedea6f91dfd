"""Reads off other engines' own sources which options their servers take -> tests/data/engine_options.json, as JSON.

    python engine_options.py vllm-*.whl sglang-*.whl llama_cpp_python-*.tar.gz

Of `pip download --no-deps vllm sglang` and the source of llama-cpp-python. Nothing is imported: they are parsed.
Options that Lathe's commands have are kept, with the values that they may take where these are a list.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

VLLM = (
    "vllm/entrypoints/common/cli_args.py",
    "vllm/engine/arg_utils.py",
    "vllm/config/lora.py",
    "vllm/config/model.py",
)
SGLANG = tuple(f"sglang/srt/arg_groups/fields/{name}.py" for name in "model schedule serving lora device".split())
OURS = "model-path model served-model-name alias host port api-key dtype device max-num-seqs max-running-requests"
OURS += " enable-lora max-lora-rank lora-modules lora-paths parallel kv-unified jinja n-gpu-layers"


def strings(node: ast.AST) -> list[str | int]:
    """The constants of a list or a Literal."""
    found: list[str | int] = []
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, (str, int)):
            found.append(each.value)
    return found


def fields(tree: ast.AST) -> Iterator[tuple[str, list[str | int] | None]]:
    """Annotated fields of classes, by the option that each becomes, and flags that are added by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            choices = None
            for call in ast.walk(node.annotation):
                if isinstance(call, ast.keyword) and call.arg == "choices" and isinstance(call.value, ast.List):
                    choices = strings(call.value)
            yield node.target.id.replace("_", "-"), choices
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            for word in node.args:
                if isinstance(word, ast.Constant) and str(word.value).startswith("--"):
                    yield str(word.value)[2:], None


def literals(tree: ast.AST) -> dict[str, list[str | int]]:
    """Names of Literal types, and their values."""
    assigned = (
        node for node in ast.walk(tree) if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)
    )
    return {node.targets[0].id: strings(node.value.slice) for node in assigned if isinstance(node.targets[0], ast.Name)}


def read(wheel: Path, names: tuple[str, ...]) -> tuple[dict[str, list[str | int] | None], dict[str, list[str | int]]]:
    options: dict[str, list[str | int] | None] = {}
    types: dict[str, list[str | int]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in names:
            tree = ast.parse(archive.read(name))
            types |= literals(tree)
            options |= {option: choices for option, choices in fields(tree) if choices or option not in options}
    return options, types


def main() -> None:
    vllm, sglang, llama = map(Path, sys.argv[1:])
    ours = set(OURS.split())
    options, types = read(vllm, VLLM)
    options |= {"dtype": types["ModelDType"], "max-lora-rank": types["MaxLoRARanks"]}
    theirs, _ = read(sglang, SGLANG)
    with tarfile.open(llama) as archive:
        [item] = [item for item in archive if item.name.endswith("vendor/llama.cpp/common/arg.cpp")]
        source = archive.extractfile(item)
        assert source is not None
        flags = set(re.findall(r'"--([\w-]+)"', source.read().decode()))
    told = {
        "vllm": {"version": vllm.name.split("-")[1], "options": options},
        "sglang": {"version": sglang.name.split("-")[1], "options": theirs},
        "llamacpp": {"version": f"llama-cpp-python {llama.name.split('-')[1][:-7]}", "options": dict.fromkeys(flags)},
    }
    for engine in told.values():
        engine["options"] = {name: engine["options"][name] for name in sorted(ours & engine["options"].keys())}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
