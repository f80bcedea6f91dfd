'''The actions of the command line, one module each: a frozen dataclass `Options` and a function `run(options)`.

An action's module is imported when its name is typed, for help too, so at its top stand only the standard library,
`lathe.errors`, `lathe.hub` and `lathe.options`; everything that reaches torch is imported inside `run`. For example:

    """Turns a prompt and a model into text on stdout; knows no tensor."""

    from __future__ import annotations

    from dataclasses import KW_ONLY, dataclass, field
    from pathlib import Path
    from typing import Literal

    from lathe.errors import UsageError


    @dataclass(frozen=True)
    class Train:
        max_steps: int | None = None
        """Stop after this many optimizer steps."""


    @dataclass(frozen=True)
    class Options:
        model: str
        """Folder, file or repo id."""
        _: KW_ONLY
        checkpoints: Path = Path("checkpoints")
        """Where models named by their repo id are looked for and downloaded to."""
        precision: Literal["bf16", "fp32"] = "fp32"
        """Number format of the weights."""
        stop: tuple[str, ...] = ()
        """End the text here. May be given several times."""
        train: Train = field(default_factory=Train)
        """How long and how much."""

        def __post_init__(self) -> None:
            if self.train.max_steps == 0:
                raise UsageError("--train.max-steps is 0.", "It must be at least 1.")


    def run(options: Options) -> None:
        """Print the text that follows a prompt.

        Further paragraphs appear in `lathe generate --help` only.
        """
        from lathe.llm import LLM

        llm = LLM.load(hub.find(options.model, options.checkpoints), dtype=options.precision)

What becomes what:

- Fields before `_: KW_ONLY` are given by position (`lathe generate MODEL`), all others by name: `max_steps` is
  `--max-steps` and `--max_steps`. A field without a default must be given, on the command line or in the recipe.
- The string under a field is its help; the docstring of `run` is the action's (paragraphs are wrapped anew, indented
  lines stay). Bases of `Options` count too, their fields after its own: actions share options by inheriting from a
  `@dataclass(frozen=True, kw_only=True)`.
- A field that is itself a dataclass is a section: `--train.max-steps`, in a recipe `train:` and below it `max_steps:`.
  It needs a default_factory; its own fields are always given by name.
- Types: str, int (also 1e9), float, bool, Path, Literal[...], `T | None` (spelt `none` on the command line, `null` in a
  recipe), `int | Literal["auto"]`, `tuple[T, ...]` (the option is repeated). A bool `x` is `--x` and `--no-x`.
- `--config`, `--print-config` and `--help` are added to every action by `lathe.command`.
- Errors of the user are raised as `lathe.errors.LatheError` from `__post_init__` or `run`. Results go to stdout, all
  else to stderr. `run` returns None, or the exit status where the result is a verdict (1: something is wrong).
- A run writes its options beside its result with `lathe.options.to_yaml(options)`; the file is read back by `--config`,
  and by `lathe.options.merge(Options, lathe.options.read_recipe(path))`.

An action appears in `lathe --help` once it stands in the table `lathe.cli.ACTIONS` and its module exists.
'''
