"""LitGPT's generating verbs and validate, as its users type them: our actions with some options given."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from lathe.actions import generate, inspect
from lathe.actions.session import Settings
from lathe.errors import MissingError

QUESTION = "What food do llamas eat?"  # LitGPT's, where none is asked


@dataclass(frozen=True, kw_only=True)
class Spelt:
    """What LitGPT's users may type and Lathe needs no word for."""

    compile: bool = False
    """Does nothing: what pays is compiled by itself."""
    sys_prompt: str | None = None
    """The same as --system."""


@dataclass(frozen=True)
class Full(Spelt, generate.Options):
    _: KW_ONLY
    prompt: str | None = QUESTION
    """What to answer or continue."""
    input: str = ""
    """A text that the prompt is about; it follows it."""
    finetuned_path: Path = Path("out/full/alpaca/lit_model_finetuned.pth")
    """The finetuned weights. What model they are says the folder they lie in."""


def full(options: Full) -> None:
    """Print what a finetuned model answers: `lathe generate FOLDER`, the folder of the finetuned weights."""
    file = options.finetuned_path
    if not file.exists():
        raise MissingError(f"--finetuned-path {file} does not exist.", fix="Name the file that the finetuning wrote.")
    if file.suffix == ".pth" and not (file.parent / "model_config.yaml").is_file():
        found = f"{file.parent} does not say what model {file.name} is."
        fix = f"Copy model_config.yaml and the tokenizer's files of {options.model} into it."
        raise MissingError(found, "There should be a model_config.yaml.", fix)
    generate.run(plain(replace(options, model=str(file))))


@dataclass(frozen=True)
class Adapter(Spelt, generate.Options):
    _: KW_ONLY
    prompt: str | None = QUESTION
    """What to answer or continue."""
    input: str = ""
    """A text that the prompt is about; it follows it."""
    adapter_path: Path = Path("out/finetune/adapter/final/lit_model.pth.adapter")
    """The adapter for MODEL."""


@dataclass(frozen=True)
class AdapterV2(Adapter):
    _: KW_ONLY
    adapter_path: Path = Path("out/finetune/adapter-v2/final/lit_model.pth.adapter_v2")
    """The adapter for MODEL."""


def adapter(options: Adapter) -> None:
    """Print what a model with an adapter answers: `lathe generate MODEL --adapter PATH`."""
    if not options.adapter_path.exists():
        fix = "Name the file that the finetuning wrote."
        raise MissingError(f"--adapter-path {options.adapter_path} does not exist.", fix=fix)
    generate.run(replace(plain(options), adapter=(str(options.adapter_path),)))


@dataclass(frozen=True)
class Sequentially(Spelt, generate.Options):
    _: KW_ONLY
    prompt: str | None = QUESTION
    """What to answer or continue."""
    devices: int | Literal["auto"] = "auto"
    """How many devices the layers are spread over; auto takes all GPUs."""
    strategy: Literal["tensor", "layers"] = "layers"
    """How the model is divided."""


@dataclass(frozen=True)
class Tp(Spelt, generate.Options):
    _: KW_ONLY
    prompt: str | None = QUESTION
    """What to answer or continue."""
    devices: int | Literal["auto"] = "auto"
    """How many devices every layer is divided among; auto takes all GPUs."""


def sequentially(options: Sequentially) -> None:
    """Print the text that follows a prompt, layers on several GPUs: `lathe generate --devices N --strategy layers`."""
    generate.run(plain(options))


def tp(options: Tp) -> None:
    """Print the text that follows a prompt, every layer divided among GPUs: `lathe generate --devices N`."""
    generate.run(plain(options))


@dataclass(frozen=True)
class Speculatively(Spelt, Settings):
    draft_model: str
    """Folder, file or repo id of the small model that guesses."""
    target_model: str
    """Folder, file or repo id of the model that answers."""
    _: KW_ONLY
    prompt: str | None = QUESTION
    """What to answer or continue."""
    raw: bool = False
    """Continue the prompt as it is, also where the model has a chat template."""
    num_samples: int = 1
    """How many answers to make, side by side."""
    speculative_k: int = 3
    """How many tokens the small model guesses at once."""
    json: bool = False
    """Print one JSON object with texts, tokens and timings when all is done, instead of text as it comes."""
    device: str = "auto"
    """Where the models run: cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""
    precision: str = "auto"
    """Number format of the weights: bf16, fp16, fp32; auto keeps that of the files."""
    checkpoints: Path = Path("checkpoints")
    """Where models named by their repo id are looked for and downloaded to."""


def speculatively(options: Speculatively) -> None:
    """Print the text that follows a prompt, with a small model guessing: `lathe generate TARGET --draft DRAFT`."""
    asked = generate.Options(
        options.target_model,
        draft=options.draft_model,
        draft_tokens=options.speculative_k,
        system=options.sys_prompt,
    )
    generate.run(replace(asked, **{name: value for name, value in vars(options).items() if hasattr(asked, name)}))


@dataclass(frozen=True)
class Validate(inspect.Options):
    _: KW_ONLY
    model_filename: str = "lit_model.pth"
    """The file of weights in MODEL, where it has another name."""
    dtype: str = "float32"
    """Does nothing: the memory is shown for all of them."""
    training: bool = False
    """Does nothing: the memory that training takes is shown too."""


def validate(options: Validate) -> int:
    """Show what a model is and check its files: `lathe inspect MODEL`. The exit status is 1 when something is wrong."""
    told = {field.name: getattr(options, field.name) for field in fields(inspect.Options)}
    if options.model_filename != "lit_model.pth":
        told["model"] = str(Path(options.model) / options.model_filename)
    return inspect.run(inspect.Options(**told))


def plain(options: generate.Options) -> generate.Options:
    """Options of a verb as those of generate, which it has and more."""
    told = {field.name: getattr(options, field.name) for field in fields(generate.Options)}
    if more := getattr(options, "input", ""):
        told["prompt"] = f"{told['prompt']}\n\n{more}"
    if options.system is None:
        told["system"] = getattr(options, "sys_prompt", None)
    return generate.Options(**told)
