r"""A server under load: many clients for some time, of whom some go away in the midst of their answers.

    python benchmarks/serve_load.py MODEL --clients 64 --seconds 300 --leaving 0.33
    python benchmarks/serve_load.py MODEL --clients 16 --seconds 60 --leaving 0 --tokens 128 --fresh 128
    timeout 200 python benchmarks/serve_load.py LITGPT_FOLDER --peer .venv-litgpt/bin/litgpt --clients 16 \
        --seconds 90 --tokens 128 --fresh 128

Each client asks for a greedy answer to one of 16 prompts, again and again; with `--fresh N` to another one of N words
each time, so that nothing of it was read before. Prints one JSON object: tokens per second that arrived, and for each
second that the server's processes computed (for a busy machine), seconds to the first token (median and 95 %), how many
answers were whole, left, refused (429), failed (anything else, and those that are too short) and wrong (not what the
same prompt gets alone), and what the server holds before, in the middle and after: requests, pages, file descriptors
and memory (Linux). A pool fills with what is known of prompts: with a small one, as --cache-tokens 8192, memory is flat
from the middle on. `amiss` says what should not be: an answer that failed or is wrong, or something held that nobody
asks for any more; then the exit status is 1. Further options are those of `lathe serve`.

With `--peer PROGRAM` it is LitGPT's server that is asked, for whole answers, of as many tokens as were asked for. It
makes one at a time and lets none go, so what is under way after so many seconds is not waited for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2

PROMPTS = [f"Here is the {n}th story of the old harbour town, which begins on a " for n in range(16)]
WORDS = "the of and to in is was for that on with as by at from his an were are which have be this had not they".split()


class Tally:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: list[float] = []
        self.tokens = 0
        self.last = 0.0  # when an answer was whole


def body(prompt: str, tokens: int) -> dict:
    asked = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    return {**asked, "stream_options": {"include_usage": True}}


async def ask(
    client: httpx2.AsyncClient, prompt: str, tokens: int, tally: Tally, leave_at: int | None = None
) -> str | None:
    """The answer; None where it was left or refused."""
    begun, text, pieces, made = time.perf_counter(), "", 0, 0
    async with client.stream("POST", "/v1/completions", json=body(prompt, tokens)) as answer:
        if answer.status_code == 429:
            tally.counts["refused"] += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))
            return None
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"])
            if chunk.get("usage"):
                made = chunk["usage"]["completion_tokens"]
            for choice in chunk["choices"]:
                text += choice["text"]
                pieces += bool(choice["text"])
            if pieces == 1:
                tally.first.append(time.perf_counter() - begun)
            if leave_at is not None and pieces >= leave_at:
                tally.counts["left"] += 1
                tally.tokens += pieces
                return None
    if made != tokens:
        raise RuntimeError(f"An answer of {made} tokens came, where {tokens} were asked for.")
    whole(tally, tokens)
    return text


def whole(tally: Tally, tokens: int) -> None:
    tally.counts["whole"] += 1
    tally.tokens += tokens
    tally.last = time.perf_counter()


async def predict(
    client: httpx2.AsyncClient, prompt: str, tokens: int, tally: Tally, leave_at: int | None = None
) -> str | None:
    """LitGPT's answer, which comes whole and does not say of how many tokens: of all that it may have."""
    begun = time.perf_counter()
    answer = await client.post("/predict", json={"prompt": prompt})
    answer.raise_for_status()
    tally.first.append(time.perf_counter() - begun)
    whole(tally, tokens)
    return answer.json()["output"]


def held(process: int, url: str) -> dict[str, float]:
    """Requests, pages, descriptors and megabytes of the server's processes."""
    told = httpx2.get(f"{url}/metrics").text
    names = {"running": "num_requests_running", "waiting": "num_requests_waiting", "cache": "kv_cache_usage_perc"}
    found = {name: float(re.search(rf"^lathe:{word}\S* (\S+)", told, re.M)[1]) for name, word in names.items()}  # type: ignore[index]
    if Path("/proc/self/fd").exists():
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        for name, each in zip(("web", "engine"), (str(process), children[-1]), strict=False):
            status = Path(f"/proc/{each}/status").read_text()
            found[f"{name}_descriptors"] = len(list(Path(f"/proc/{each}/fd").iterdir()))
            found[f"{name}_mb"] = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024  # type: ignore[index]
    return found


def computed(process: int) -> float | None:
    """Seconds that the server's processes have computed together; what another's work does not change. Linux."""
    if not Path("/proc/self/stat").exists():
        return None
    seconds, parents = {}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            told = file.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        number = int(file.parent.name)
        parents[number] = int(told[1])
        seconds[number] = (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")

    def below(number: int) -> bool:
        return number == process or (number in parents and below(parents[number]))

    return sum(each for number, each in seconds.items() if below(number))


async def load(url: str, process: int, given: argparse.Namespace) -> dict:
    dice, tally = random.Random(0), Tally()
    asking, told = (predict, None) if given.peer else (ask, {})
    limits = httpx2.Limits(max_connections=given.clients + 1)
    async with httpx2.AsyncClient(base_url=url, timeout=3600, limits=limits) as client:
        if told is not None:
            told["before"] = await asyncio.to_thread(held, process, url)
        alone = {prompt: await asking(client, prompt, given.tokens, Tally()) for prompt in PROMPTS[: given.known]}
        begun, before = time.perf_counter(), computed(process)

        async def one() -> None:
            while time.perf_counter() - begun < given.seconds:
                known = dice.choice(PROMPTS)
                prompt = " ".join(dice.choices(WORDS, k=given.fresh)) if given.fresh else known
                leaves = dice.randrange(given.tokens) if dice.random() < given.leaving else None
                try:
                    text = await asking(client, prompt, given.tokens, tally, leaves)
                except (httpx2.HTTPError, RuntimeError) as error:
                    tally.counts["failed"] += 1
                    print(f"{type(error).__name__}: {error}", file=sys.stderr)
                    continue
                if text is not None and prompt in alone and text != alone[prompt]:
                    tally.counts["wrong"] += 1

        async def watch() -> None:
            await asyncio.sleep(given.seconds / 2)
            told["middle"] = await asyncio.to_thread(held, process, url)

        asked = [asyncio.ensure_future(one()) for _ in range(given.clients)]
        if told is None:
            await asyncio.wait(asked, timeout=given.seconds)
            for task in asked:
                task.cancel()
        else:
            await asyncio.gather(*asked, watch())
        if told is not None:
            seconds = time.perf_counter() - begun
        else:  # until the last that was whole: nobody knows how far the next has come
            seconds = tally.last - begun if tally.last else given.seconds
        after = computed(process)
    await asyncio.sleep(1)
    if told is not None:
        told["after"] = await asyncio.to_thread(held, process, url)
    ranks = statistics.quantiles(tally.first, n=20) if len(tally.first) > 1 else [float("nan")] * 19
    return {
        "clients": given.clients,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tally.tokens / seconds, 1),
        "tokens_per_computed_second": after and before and round(tally.tokens / (after - before), 1),
        "first_token_seconds": {"median": round(ranks[9], 3), "p95": round(ranks[18], 3)},
        **{name: tally.counts[name] for name in ("whole", "left", "refused", "failed", "wrong")},
        "held": told,
        "amiss": amiss(tally, told),
    }


def amiss(tally: Tally, told: dict[str, dict[str, float]] | None) -> list[str]:
    """What should not be: answers that failed or are wrong, and what the server holds when nobody asks any more."""
    found = [f"{tally.counts[name]} answers {name}" for name in ("failed", "wrong") if tally.counts[name]]
    if told is None:
        return found
    before, middle, after = told["before"], told["middle"], told["after"]
    found += [f"{name} is {after[name]} at the end" for name in ("running", "waiting", "cache") if after[name]]
    for process in ("web", "engine"):
        files, size = f"{process}_descriptors", f"{process}_mb"
        if files in after and after[files] > before[files] + 2:
            found.append(f"{files} were {before[files]} and are {after[files]}")
        if size in after and after[size] > 1.05 * middle[size] + 8:
            found.append(f"{size} was {middle[size]} in the middle and is {after[size]} at the end")
    return found


@contextmanager
def running(given: argparse.Namespace, options: list[str]) -> Iterator[tuple[str, int]]:
    """Lathe's server, or LitGPT's; its address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if given.peer:
        command = [given.peer, "serve", given.model, "--port", port, "--temperature", "0", "--timeout", "3600"]
        command += ["--accelerator", "cpu", "--max_new_tokens", str(given.tokens), *options]
    else:
        command = [sys.executable, "-m", "lathe", "serve", given.model, "--port", port, *options]
    server = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if httpx2.get(f"{url}/health").status_code == 200:
                    break
            except httpx2.TransportError:
                pass
            if server.poll() is not None:
                sys.exit(f"The server has ended with status {server.returncode}.")
            time.sleep(0.1)
        yield url, server.pid
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with suppress(ProcessLookupError, AttributeError):  # LitGPT's leaves its workers behind
            os.killpg(server.pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--leaving", type=float, default=0.33)
    parser.add_argument("--fresh", type=int, default=0)
    parser.add_argument("--peer")
    given, options = parser.parse_known_args()
    given.known = 0 if given.fresh else len(PROMPTS)
    with running(given, options) as (url, process):
        result = asyncio.run(load(url, process, given))
        print(json.dumps(result, indent=2), flush=True)
    sys.exit(bool(result["amiss"]))


if __name__ == "__main__":
    main()
