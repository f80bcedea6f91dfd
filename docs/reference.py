"""What the code says of itself becomes pages of the site when it is built: mkdocs calls `on_files` and the others.

Commands and options come from the command line's own tables, the Python API from its signatures and docstrings,
metrics from the server's own page, recipes from their files. Nothing of it stands anywhere a second time.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any, is_typeddict

import lathe
from lathe import api, checkpoint, cli, engine, errors, llm, module, tokenizer
from lathe.compat.table import VERBS
from lathe.engine import Sampling
from lathe.options import Option, documentation, options
from lathe.server import metrics
from lathe.transforms import adapt
from lathe.values import describe

ROOT = Path(__file__).parents[1]
ICON = ROOT / "lathe/server/page/icon.svg"
COMMANDS, PYTHON = "reference/commands", "reference/python.md"
GENERAL = """Every command also takes `--config FILE` (options from a YAML recipe, a file or an address; the
command line wins), `--print-config` (print the options as a recipe, and stop) and `--help`."""
MEASURED = """# Metrics

`GET /metrics` of [`lathe serve`](../serve.md) tells, for each model, by `model_name`:

| name | kind | |
|---|---|---|
"""
FAULTS = """# Errors

What a user can put right is a `lathe.LatheError`: the command line prints it as one paragraph and exits with 2. In
Python, `found`, `expected` and `fix` are its sentences.
"""

# What is promised, in the order of the page: by headings, and of a class the methods that are told of.
ENGINE = "submit step stream cancel logits score judge_all judging embedding take_off"
TOKENIZER = "open encode decode stream render styled token id save"
LLM = (
    "load generate stream complete batch logits score save forward distribute trainer_setup state_dict benchmark "
    "preprocessor prompt_style"
)
API: dict[str, list[tuple[Any, str]]] = {
    "The model": [(lathe.LLM, LLM), (llm.Wishes, ""), (llm.Reply, "completion close"), (lathe.Completion, "")],
    "Text and tokens": [
        (tokenizer.Tokenizer, TOKENIZER),
        (tokenizer.train_bpe, ""),
        (tokenizer.train_characters, ""),
    ],
    "Checkpoints": [(checkpoint.open, ""), (checkpoint.Checkpoint, "load tokenizer"), (checkpoint.save, "")],
    "The engine": [(engine.Engine, ENGINE), (Sampling, "")],
    "Adapters": [(adapt.put, ""), (adapt.disabled, "")],
    "LitGPT's names": [
        (module.Preprocessor, "encode decode"),
        (module.PromptStyle, "apply"),
        (api.benchmark_dict_to_markdown_table, ""),
    ],
}
GIVEN = (llm.Reply,)  # which nobody makes by hand


# ---- what mkdocs calls ----------------------------------------------------------------------------------------------
def on_config(config: Any) -> Any:
    """Commands get their place in the navigation, and so do pages that have none in mkdocs.yml."""
    (place,) = (entry["Reference"] for entry in config.nav if "Reference" in entry)
    for entry in place:
        if "Commands" in entry:
            entry["Commands"] = [{f"lathe {name}": f"{COMMANDS}/{name}.md"} for name in cli.available()]
            entry["Commands"].append({"LitGPT's verbs": f"{COMMANDS}/litgpt.md"})
    known = set(re.findall(r"[\w.-]+\.md", str(config.nav)))
    if left := sorted({page.name for page in Path(config.docs_dir).glob("*.md")} - known):
        config.nav.append({"More": left})
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    files.append(File.generated(config, "pictures/icon.svg", content=ICON.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """What leads out of docs/ is no page of the site: its name is shown."""
    return re.sub(r"\[([^\]]*)\]\(\.\./([^)]*)\)", r"`\2`", markdown)


def pages() -> dict[str, str]:
    """All generated pages, by their place."""
    commands = {f"{COMMANDS}/{name}.md": command(name) for name in cli.available()}
    return {
        **commands,
        f"{COMMANDS}/litgpt.md": verbs(),
        PYTHON: python(),
        "reference/metrics.md": measured(),
        "reference/recipes.md": recipes(),
        "reference/errors.md": faults(),
    }


# ---- commands -------------------------------------------------------------------------------------------------------
def command(name: str) -> str:
    """The page of `lathe name`."""
    cls, run = cli.load(name)
    lines = [f"# lathe {name}", "", prose(run.__doc__ or ""), "", "```", usage(name, cls), "```", ""]
    lines += tables(cls)
    for method in methods(cls):
        other, _ = cls.understood(["--method", method])  # type: ignore[attr-defined]
        extra = [option for option in options(other) if option.name not in {known.name for known in options(cls)}]
        changed = [option for option in options(other) if is_changed(option, cls)]
        if extra or changed:
            lines += [f"## With `--method {method}`", "", *table(extra + changed, documentation(other))]
    lines += [GENERAL, ""]
    return "\n".join(lines)


def usage(name: str, cls: type) -> str:
    places = [option for option in options(cls) if option.positional]
    words = [option.spelling if option.default is MISSING else f"[{option.spelling}]" for option in places]
    return " ".join(["lathe", name, *words, "[--options]"])


def methods(cls: type) -> list[str]:
    """What --method may be, where options depend on it."""
    hints = [option.hint for option in options(cls) if option.name == ("method",)]
    return [str(word) for hint in hints for word in hint.__args__] if hasattr(cls, "understood") else []


def is_changed(option: Option, cls: type) -> bool:
    """Whether an option has another default than in `cls`."""
    return any(known.name == option.name and not known.is_section and known.default != option.default
               for known in options(cls))  # fmt: skip


def tables(cls: type) -> Iterator[str]:
    """The options of a dataclass, section by section."""
    docs, every = documentation(cls), [*options(cls)]
    yield from table([option for option in every if option.name[:-1] == () and not option.is_section], docs)
    for section in (option for option in every if option.is_section):
        yield from (f"## `--{section.key.replace('_', '-')}`", "", prose(docs.get(section.name, "")), "")
        inside = [option for option in every if option.name[:-1] == section.name and not option.is_section]
        yield from table(inside, docs)


def table(found: Iterable[Option], docs: dict[tuple[str, ...], str]) -> Iterator[str]:
    yield from ("| option | | default |", "|---|---|---|")
    for option in found:
        about, must = cell(docs.get(option.name, "")), cell(describe(option.hint))
        yield f"| `{option.spelling}` | {about}<br>*{must}* | {shown(option.default)} |"
    yield ""


def shown(default: Any) -> str:
    """A default as it is typed."""
    if default is MISSING:
        return "must be given"
    if default in (None, "", ()):
        return ""
    if isinstance(default, bool):
        return "yes" if default else "no"
    words = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"`{words}`"


def verbs() -> str:
    """LitGPT's verbs, each in Lathe's words."""
    about = (
        "These work as LitGPT's users type them, as do its options: [from LitGPT](../../from-litgpt.md) has them all."
    )
    lines = ["# LitGPT's verbs", "", about, "", "| LitGPT | Lathe |", "|---|---|"]
    lines += [f"| `{name}` | `{verb.new}` |" for name, verb in VERBS.items()]
    return "\n".join(lines) + "\n"


# ---- Python ---------------------------------------------------------------------------------------------------------
def python() -> str:
    """The page of the Python API."""
    lines = ["# Python", "", "`import lathe` costs nothing; PyTorch is imported with the first of these names.", ""]
    for heading, entries in API.items():
        lines += [f"## {heading}", ""]
        for thing, names in entries:
            lines += described(thing, f"{where(thing)}.{thing.__qualname__}", "###")
            for name in names.split():
                lines += described(inspect.getattr_static(thing, name), f"{thing.__name__}.{name}", "####")
    return "\n".join(lines) + "\n"


def where(thing: Any) -> str:
    """The module that a name is imported from."""
    public = ".".join(thing.__module__.split(".")[:2])
    if thing.__name__ in lathe.__all__:
        return "lathe"
    return public if hasattr(sys.modules[public], thing.__name__) else thing.__module__


def described(thing: Any, name: str, level: str) -> list[str]:
    """A heading, how it is written, and what is told of it."""
    if isinstance(thing, property) or thing in GIVEN:
        return [f"{level} {name}", "", *docstring(thing.__doc__ or ""), ""]
    plain = thing.__func__ if isinstance(thing, staticmethod | classmethod) else thing
    return [f"{level} {name}", "", "```python", signature(plain, name), "```", "", *docstring(plain.__doc__ or ""), ""]


def signature(thing: Callable[..., Any], name: str) -> str:
    """As it would be written, on one line or one for each parameter."""
    if is_typeddict(thing):
        return "\n".join(f"{key}: {hint.__forward_arg__}" for key, hint in thing.__annotations__.items())
    given = inspect.signature(thing)
    told = [p for p in given.parameters.values() if p.name not in ("self", "cls")]
    parts, stars = [], False
    for parameter in told:
        if parameter.kind is parameter.KEYWORD_ONLY and not stars:
            stars, parts = True, [*parts, "*"]
        stars |= parameter.kind is parameter.VAR_POSITIONAL
        stars_before = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        hint = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        parts.append(f"{stars_before}{parameter.name}{hint}{default}")
    back, empty = given.return_annotation, (given.empty, "None", None)
    ending = "" if back in empty or isinstance(thing, type) else f" -> {back}"
    line = f"{name.removeprefix('lathe.')}({', '.join(parts)}){ending}"
    if len(line) <= 100:
        return line
    return f"{name.removeprefix('lathe.')}(\n" + "".join(f"    {part},\n" for part in parts) + f"){ending}"


LABEL = re.compile(r"(\*{0,2}[A-Za-z_]\w*(?:, \*{0,2}[A-Za-z_]\w*)*): (.*)")
HEADER = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")


def docstring(text: str) -> list[str]:
    """A docstring in Markdown: paragraphs, and what is told of names as lists."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines, items = block.split("\n"), False
        depth = 0  # of the label that a further line may belong to
        for line in lines:
            indent, told = len(line) - len(line.lstrip()), line.strip()
            if header := HEADER.fullmatch(told):
                out += ["", f"**{header[1]}**", ""]
            elif (label := LABEL.fullmatch(told)) and (indent <= depth or not items):
                out += [*([] if items else [""]), f"- `{label[1]}`: {marked(label[2])}"]
                items, depth = True, indent
            elif items and indent > depth:
                out[-1] += " " + marked(told)
            else:
                out += [*([""] if items else []), marked(told)]
                items = False
        out.append("")
    return out


# ---- what else there is ---------------------------------------------------------------------------------------------
def measured() -> str:
    """The server's metrics, as its own page names them, and a run's."""
    counts = metrics.Metrics()
    counts.end("stop", 2, (0.0, 0.0))
    told = metrics.text({"NAME": (counts, {})})
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", told, flags=re.MULTILINE))
    helps = re.findall(r"^# HELP (\S+) (.*)$", told, flags=re.MULTILINE)
    return MEASURED + "".join(f"| `{name}` | {kinds[name]} | {cell(about)} |\n" for name, about in helps)


def recipes() -> str:
    """Each recipe, with what its first lines say of it."""
    lines = ["# Recipes", "", "Options for common models, for `--config`. The command line wins over them.", ""]
    for kind in ("pretrain", "finetune"):
        lines += [f"## {kind}", ""]
        for file in sorted((ROOT / "recipes" / kind).glob("*.yaml")):
            lines += [f"### {file.stem}", "", "```yaml", file.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


def faults() -> str:
    """The tree of errors."""
    return "\n".join([FAULTS, "```", *(errors.__doc__ or "").splitlines()[2:], "```", ""])


# ---- words ----------------------------------------------------------------------------------------------------------
def prose(text: str) -> str:
    """Paragraphs as they stand; indented lines are code."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(text))
    shown = (f"```\n{inspect.cleandoc(b)}\n```" if b.startswith("  ") else marked(" ".join(b.split())) for b in blocks)
    return "\n\n".join(shown)


def cell(text: str) -> str:
    return marked(" ".join(text.split())).replace("|", "\\|")


def marked(text: str) -> str:
    """Text in Markdown: nothing in it is HTML or emphasis, and options stand as code."""
    parts = re.split(r"(`[^`]*`)", text)
    for at in range(0, len(parts), 2):
        plain = parts[at].replace("&", "&amp;").replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[")
        parts[at] = re.sub(r"(?<![\w-])--[a-z][\w.-]*\w", r"`\g<0>`", plain)
    return "".join(parts)


def first(text: str | None) -> str:
    """The first paragraph."""
    return inspect.cleandoc(text or "").split("\n\n")[0]
