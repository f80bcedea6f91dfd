"""Fixtures shared by all tests: where the real data lies, and a machine kept quiet and repeatable."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest

# Files that take more than 15 seconds, the longest first. Begun late, one of them would be waited for at the end.
LONG = """docs_using spread_training native hub docs_training families adapters saving pretrain spread launch finetune
    page_talk server_life distributed attention evaluate_harness resume spread_resume litgpt_trainings litgpt_recipes
    docs graphs docs_serving chat""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {f"test_{name}": at for at, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_configure() -> None:
    """Before torch is loaded, which reads them then, and for all processes that tests start: one thread where a test
    does not ask for more, and threads that wait for one on a core where other work runs soon let it run. And before
    Triton is: kernels for a GPU run through its interpreter where there is none."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not (shutil.which("nvidia-smi") or shutil.which("rocm-smi")):
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads that share a core with other work wait for each other a hundred times longer than tiny products take."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> None:
    """What tests make from data is kept nowhere else. Kernels and the index of tasks are made once for all sessions."""
    place = tmp_path_factory.mktemp("cache")
    assert request.config.cache is not None
    with suppress(OSError):  # a system without links makes them anew
        for name in ("native", "tasks"):
            (place / name).symlink_to(request.config.cache.mkdir(name))
    os.environ["LATHE_CACHE"] = str(place)


@pytest.fixture(scope="module")
def forks():
    """Processes start in no time. See ready.py."""
    if sys.platform != "linux":  # where PyTorch survives a fork
        yield
        return
    from ready import forks

    with forks():
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared/` beside the checkout (or $LATHE_SHARED): real tokenizers, templates, texts, one real model.

    It is not part of the repository. Without it the tests that need it skip; CI must have it.
    """
    folder = Path(os.environ.get("LATHE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "data").is_dir():
        reason = f"real test data not found at {folder} (set LATHE_SHARED to the folder that holds data/)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of random weights, a tokenizer and a chat template, to be served."""
    from serving import tiny

    return tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def server(tiny_model: Path):
    """`lathe serve` of the tiny model, for as long as the tests run. See `serving.Served`."""
    from serving import serving

    with serving(tiny_model) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window. While it is there, a loop of asyncio runs, and tests cannot run another."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"there is no Chromium on this machine, under any of the names {', '.join(names)}")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tool_server(tmp_path_factory: pytest.TempPathFactory):
    """`lathe serve` of a tiny model whose template knows tools and reasoning."""
    from serving import TOOLS, serving, tiny

    with serving(tiny(tmp_path_factory.mktemp("tools"), TOOLS, max_position_embeddings=1024)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    """OpenAI's client of `server`."""
    import openai

    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(client) -> str:
    """The name of the model that `client`'s server has."""
    return client.models.list().data[0].id


@pytest.fixture(scope="module")
def words(tiny_model: Path):
    """The tokenizer of the model that `server` has."""
    from lathe.tokenizer import Tokenizer

    return Tokenizer.open(tiny_model)


@pytest.fixture(scope="module")
def alone(tiny_model: Path):
    """The model that `server` has, in this process."""
    from lathe.llm import LLM

    return LLM.load(tiny_model, device="cpu")


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory):
    """What pages name: models, a Hub, and a process that starts commands. See workshop.py."""
    if not hasattr(os, "fork") or not shutil.which("bash"):
        pytest.skip("pages are walked in bash, by a process that forks")
    from workshop import Workshop

    running = Workshop(tmp_path_factory.mktemp("workshop"))
    yield running
    running.close()


@pytest.fixture
def walk(workshop, request: pytest.FixtureRequest):
    """Goes through a page, and holds that all its blocks are run, but those that are listed with a reason."""
    from pages import REAL, blocks
    from walking import Walk

    def walk(name: str) -> None:
        every = blocks(f"{name}.md")
        real = any(REAL.search(block.text) for block in every)
        data = request.getfixturevalue("shared") / "data" if real else None
        run, shown = Walk(workshop, f"{name}.md", data).through()
        assert run + shown == len(every)

    return walk
