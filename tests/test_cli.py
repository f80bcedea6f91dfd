"""The command line: help without torch, options from words and recipes, and every failure in its own form."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread

import pytest
import yaml

import lathe
import lathe.actions
from lathe import cli

PLANE = '''
"""An action for these tests."""

from __future__ import annotations

import sys
import time
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal

from lathe.errors import DataError, UsageError


@dataclass(frozen=True)
class Train:
    max_steps: int | None = None
    """Stop after this many steps."""
    shuffle: bool = True
    """In random order."""


@dataclass(frozen=True)
class Options:
    model: str
    """Folder, file or repo id."""
    _: KW_ONLY
    then: Literal["show", "fail", "bug", "flood", "sleep", "disagree"] = "show"
    """What to do."""
    max_new_tokens: int | None = 50
    """At most so many."""
    stop: tuple[str, ...] = ()
    """End here."""
    quiet: bool = False
    """Say nothing."""
    out_dir: Path = Path("out")
    """Where to."""
    train: Train = field(default_factory=Train)
    """How long."""

    def __post_init__(self) -> None:
        if self.max_new_tokens == 0:
            raise UsageError("--max-new-tokens is 0.", "It must be at least 1.")


def run(options: Options) -> int | None:
    """Take a thin shaving off.

    And another.
    """
    match options.then:
        case "show":
            print(options)
        case "fail":
            raise DataError("The wood is wet.", "It must be dry.", "Wait.")
        case "bug":
            raise ZeroDivisionError("by the plane")
        case "flood":
            for number in range(1_000_000):
                print(number)
        case "sleep":
            print("asleep", file=sys.stderr, flush=True)
            time.sleep(60)
        case "disagree":
            return 1
'''


@pytest.fixture
def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, whose actions/plane.py is the action `plane`."""
    (tmp_path / "actions").mkdir()
    (tmp_path / "actions/plane.py").write_text(PLANE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lathe.actions, "__path__", [*lathe.actions.__path__, str(tmp_path / "actions")])
    monkeypatch.delitem(sys.modules, "lathe.actions.plane", raising=False)
    monkeypatch.setitem(cli.ACTIONS, "plane", "Take a thin shaving off.")
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def say(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    """The exit status, stdout and stderr of `lathe LINE` in this process."""
    status = cli.main(shlex.split(line))
    out, err = capsys.readouterr()
    return status, out, err


def elsewhere(line: str, folder: Path) -> list[str]:
    """The command of a process in which `lathe LINE` knows the action `plane`."""
    script = textwrap.dedent(f"""
        import sys
        import lathe.actions
        from lathe import cli
        lathe.actions.__path__.append({str(folder / "actions")!r})
        cli.ACTIONS["plane"] = "Take a thin shaving off."
        sys.exit(cli.main({shlex.split(line)!r}))
    """)
    return [sys.executable, "-c", script]


def test_no_help_imports_torch() -> None:
    script = """
import sys
from lathe import cli
for words in [], ["--help"], ["--version"], *([name, "--help"] for name in cli.available()):
    assert cli.main(words) == 0
print([name for name in ("torch", "numpy", "transformers", "huggingface_hub") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_the_installed_command_and_the_module_are_the_same() -> None:
    module = subprocess.run([sys.executable, "-m", "lathe", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout == f"lathe {lathe.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "lathe", "plan"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith('Error: There is no action "plan".')


def test_help_lists_the_actions_that_are_there_and_imports_none(
    plane: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli.ACTIONS, "absent", "Not written yet.")
    status, out, _ = say(capsys, "")
    assert status == 0 and out == say(capsys, "--help")[1]
    assert "plane" in out and "Take a thin shaving off." in out and "completion" in out and "absent" not in out
    assert "lathe.actions.plane" not in sys.modules


def test_an_action_shows_its_options(plane: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = say(capsys, "plane --help")
    assert (status, err) == (0, "")
    for part in (
        "Usage: lathe plane MODEL [--options]",
        "Take a thin shaving off.",
        "And another.",
        "MODEL  Folder, file or repo id.",
        "--max-new-tokens",
        "At most so many. [default: 50]",
        "--quiet --no-quiet",
        "--train.max-steps",
        "--train.no-shuffle",
        "How long.",
        "--config",
        "--print-config",
    ):
        assert part in out, part


def test_hyphens_and_underscores_are_the_same(plane: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = say(
        capsys, "plane m --max-new-tokens 7 --train.max-steps=3 --train.no-shuffle --out-dir a_b --stop x --stop y"
    )
    two = say(
        capsys, "plane --max_new_tokens=7 --train.max_steps 3 --train.no_shuffle --stop x m --out_dir a_b --stop y"
    )
    assert one == two and one[0] == 0
    options = "model='m', then='show', max_new_tokens=7, stop=('x', 'y'), quiet=False, out_dir=PosixPath('a_b')"
    assert options in one[1] and "Train(max_steps=3, shuffle=False)" in one[1]
    assert "max_new_tokens=None" in say(capsys, "plane m --max-new-tokens none")[1]
    assert "stop=('-x',)" in say(capsys, "plane m --stop=-x")[1]


@pytest.fixture
def recipe(plane: Path) -> str:
    (plane / "recipe.yaml").write_text("model: wood\nmax-new-tokens: 8\ntrain:\n  max_steps: 1e3\nquiet: true\n")
    return "recipe.yaml"


def test_the_command_line_wins_over_the_recipe(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = say(capsys, f"plane --config {recipe}")[1]
    assert "model='wood'" in out and "max_new_tokens=8" in out and "max_steps=1000" in out and "quiet=True" in out
    out = say(capsys, f"plane oak --config {recipe} --max-new-tokens 9 --no-quiet")[1]
    assert "model='oak'" in out and "max_new_tokens=9" in out and "max_steps=1000" in out and "quiet=False" in out


def test_a_recipe_may_be_an_address(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert "model='wood'" in say(capsys, f"plane --config {address}/{recipe}")[1]
        status, _, err = say(capsys, f"plane --config {address}/absent.yaml")
        server.shutdown()
    assert status == 2 and "404" in err


def test_the_printed_recipe_is_read_back(recipe: str, plane: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, first, err = say(capsys, f"plane --config {recipe} --stop : --then bug --print-config")
    assert (status, err) == (0, "")
    assert list(yaml.safe_load(first)) == "model then max_new_tokens stop quiet out_dir train".split()
    (plane / "printed.yaml").write_text(first)
    assert say(capsys, "plane --print-config --config printed.yaml")[1] == first


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("plan m", ['no action "plan"', 'Did you mean "plane"?']),
        ("--plane m", ['no action "--plane"']),
        ("plane", ["MODEL is missing", "Folder, file or repo id."]),
        ("plane m --quite", ["no option --quite", 'Did you mean "--quiet"?']),
        ("plane m --max_new_token 3", ["no option --max_new_token", 'Did you mean "--max-new-tokens"?']),
        ("plane m --max-steps 3", ["no option --max-steps", 'Did you mean "--train.max-steps"?']),
        ("plane m --qwertyuiop=3", ["no option --qwertyuiop.", "See lathe plane --help."]),
        ("plane m -x", ["no option -x"]),
        ("plane m --max-new-tokens many", ['--max-new-tokens is "many"', "a whole number or none"]),
        ("plane m --then shout", ['--then is "shout"', '"show", "fail"', 'Did you mean "show"?']),
        ("plane m --quiet=perhaps", ['--quiet is "perhaps"', "true or false"]),
        ("plane m --max-new-tokens", ["--max-new-tokens needs a value"]),
        ("plane m --stop -x", ["--stop needs a value", "--stop=-VALUE"]),
        ("plane m --out-dir a --out-dir b", ["--out-dir is given twice"]),
        ("plane m n o", ["more than lathe plane takes: n o"]),
        ("plane m --max-new-tokens 0", ["It must be at least 1."]),
        ("plane m --config absent.yaml", ["Cannot read the recipe absent.yaml"]),
        ("plane m --config ''", ["Cannot read the recipe"]),
        ("plane m --config 'http://a b'", ["Cannot fetch the recipe http://a b"]),
        ("plane m --config misspelt.yaml", ['"train.max_step" in the recipe misspelt.yaml', 'mean "train.max_steps"?']),
        ("plane --repo_id a/b --quiet", ["--repo_id is not an option", "Type: lathe plane a/b --quiet"]),
        ("plane --quiet --checkpoint_dir=a/b", ["--checkpoint_dir is not an option", "Type: lathe plane a/b --quiet"]),
        ("plane --model 'a b'", ["--model is not an option", "Type: lathe plane 'a b'"]),
        ("plane m --then fail", ["The wood is wet. It must be dry. Wait."]),
        ("completion csh", ['SHELL is "csh"', '"bash", "zsh", "fish"']),
    ],
)
def test_a_mistake_is_one_paragraph(
    line: str, said: list[str], plane: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (plane / "misspelt.yaml").write_text("train:\n  max-step: 3\n")
    status, out, err = say(capsys, line)
    assert (status, out) == (2, "")
    assert err.startswith("Error: ") and err.count("\n") == 1
    assert all(part in err for part in said), err


def test_the_exit_status_is_the_actions(plane: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert say(capsys, "plane m --then disagree") == (1, "", "")


def test_a_bug_keeps_its_traceback(plane: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = say(capsys, "plane m --then bug")
    assert (status, out) == (1, "")
    assert "Traceback" in err and "ZeroDivisionError: by the plane" in err and "report it" in err.splitlines()[-1]


def test_a_closed_pipe_ends_it_quietly(plane: Path) -> None:
    with subprocess.Popen(
        elsewhere("plane m --then flood", plane), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(10) == 141


def test_ctrl_c_ends_it_quietly(plane: Path) -> None:
    with subprocess.Popen(elsewhere("plane m --then sleep", plane), stderr=subprocess.PIPE) as process:
        assert process.stderr and process.stderr.readline() == b"asleep\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"" and process.wait(10) == 130


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_of_that_shell(shell: str, plane: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = say(capsys, f"completion {shell}")
    assert (status, err) == (0, "") and "plane" in out and "train.max-steps" in out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=out, text=True, check=True)


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [("pla", {"plane"}), ("plane --max", {"--max-new-tokens"}), ("plane m --then f", {"fail", "flood"})],
)
def test_bash_completes(typed: str, offered: set[str], plane: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = say(capsys, "completion bash")[1]
    words = ["lathe", *typed.split(" ")]
    script += f"\nCOMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}\n_lathe\n"
    script += "printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    clean = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["bash"], input=script, env=clean, capture_output=True, text=True, check=True)
    assert {word.strip() for word in done.stdout.splitlines()} == offered


@pytest.mark.parametrize("name", cli.available())
def test_every_option_of_every_action_is_documented(name: str) -> None:
    from lathe.options import documentation, options

    cls, run = cli.load(name)
    docs = documentation(cls)
    assert not {option.spelling for option in options(cls)} & {"--help", "--config", "--print-config"}
    assert [option.key for option in options(cls) if not docs.get(option.name)] == []
    assert run.__doc__ and cli.ACTIONS[name]
