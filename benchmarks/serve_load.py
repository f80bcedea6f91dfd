"""A server under load: many clients for some time, of whom some go away in the midst of their answers.

    python benchmarks/serve_load.py MODEL --clients 64 --seconds 300 --leaving 0.33
    python benchmarks/serve_load.py MODEL --clients 16 --seconds 60 --leaving 0

    python benchmarks/serve_load.py MODEL --clients 16 --seconds 60 --leaving 0 --tokens 128 --fresh 128

Each client asks for a greedy answer to one of 16 prompts, again and again; with `--fresh N` to another one of N tokens
each time, so that nothing of it was read before. Prints one JSON object: tokens per second
that arrived, seconds to the first token (median and 95 %), how many answers were whole, left, refused (429) and wrong
(not what the same prompt gets alone), and what the server holds before and after: pages, file descriptors and memory
(Linux). Further options are those of `lathe serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx2

PROMPTS = [f"Here is the {n}th story of the old harbour town, which begins on a " for n in range(16)]


class Tally:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: list[float] = []
        self.tokens = 0


def body(prompt: str | list[int], tokens: int) -> dict:
    asked = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    return {**asked, "stream_options": {"include_usage": True}}


async def ask(
    client: httpx2.AsyncClient, prompt: str | list[int], tokens: int, tally: Tally, leave_at: int | None = None
) -> str | None:
    """The answer; None where it was left or refused."""
    begun, text, pieces = time.perf_counter(), "", 0
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
                tally.tokens += chunk["usage"]["completion_tokens"]
            for choice in chunk["choices"]:
                text += choice["text"]
                pieces += bool(choice["text"])
            if pieces == 1:
                tally.first.append(time.perf_counter() - begun)
            if leave_at is not None and pieces >= leave_at:
                tally.counts["left"] += 1
                tally.tokens += pieces
                return None
    tally.counts["whole"] += 1
    return text


def held(process: int, url: str) -> dict[str, float]:
    """Pages, descriptors and megabytes of the server's processes."""
    told = httpx2.get(f"{url}/metrics").text
    found = {"cache": float(re.search(r"^lathe:kv_cache_usage_perc\S* (\S+)", told, re.M)[1])}  # type: ignore[index]
    if Path("/proc/self/fd").exists():
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        for name, each in zip(("web", "engine"), (str(process), children[-1]), strict=False):
            status = Path(f"/proc/{each}/status").read_text()
            found[f"{name}_descriptors"] = len(list(Path(f"/proc/{each}/fd").iterdir()))
            found[f"{name}_mb"] = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024  # type: ignore[index]
    return found


async def load(url: str, process: int, given: argparse.Namespace) -> dict:
    dice, tally = random.Random(0), Tally()
    limits = httpx2.Limits(max_connections=given.clients + 1)
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        alone = {prompt: await ask(client, prompt, given.tokens, Tally()) for prompt in PROMPTS}
        before, begun = held(process, url), time.perf_counter()

        async def one() -> None:
            while time.perf_counter() - begun < given.seconds:
                known = dice.choice(PROMPTS)
                prompt = dice.choices(range(3, 32_000), k=given.fresh) if given.fresh else known
                leaves = dice.randrange(given.tokens) if dice.random() < given.leaving else None
                text = await ask(client, prompt, given.tokens, tally, leaves)
                if text is not None and not given.fresh and text != alone[known]:
                    tally.counts["wrong"] += 1

        await asyncio.gather(*(one() for _ in range(given.clients)))
        seconds = time.perf_counter() - begun
        await asyncio.sleep(1)
    ranks = statistics.quantiles(tally.first, n=20)
    return {
        "clients": given.clients,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tally.tokens / seconds, 1),
        "first_token_seconds": {"median": round(ranks[9], 3), "p95": round(ranks[18], 3)},
        **{name: tally.counts[name] for name in ("whole", "left", "refused", "wrong")},
        "before": before,
        "after": held(process, url),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--leaving", type=float, default=0.33)
    parser.add_argument("--fresh", type=int, default=0)
    given, options = parser.parse_known_args()
    command = [sys.executable, "-m", "lathe", "serve", given.model, "--port", "0", *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert server.stderr is not None
        said = ""
        while not (found := re.search(r"http://\S+", said)):
            said += server.stderr.readline() or sys.exit(said)
        print(json.dumps(asyncio.run(load(found[0], server.pid, given)), indent=2))
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
