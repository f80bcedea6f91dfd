"""A model whose scores are not numbers: who meets them is told so, in every shape, and nobody else is harmed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from serving import CONFIG, in_process, tiny

from lathe import families
from lathe.engine import DraftModel, Engine, Lookup, Sampling
from lathe.errors import CheckpointError
from lathe.model.decoder import Decoder

POISON = 7  # a token after which everything is NaN


def sound() -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(families.read({**CONFIG, "vocab_size": 64}))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return decoder


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    decoder = sound()
    decoder.model.embed_tokens.weight.data[POISON] = float("nan")
    return decoder


def made(decoder: Decoder, prompts: list[list[int]], sampling: Sampling, drafter=None) -> list:
    engine = Engine(decoder, tokens=512, drafter=drafter)
    sequences = [engine.submit(prompt, sampling) for prompt in prompts]
    while engine.busy:
        engine.step()
    assert engine.pages.free == len(engine.pages.holders)
    return sequences


@pytest.mark.parametrize("drafts", [None, "ngram", "model"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_others_go_on(decoder: Decoder, temperature: float, drafts: str | None) -> None:
    sampling = Sampling(temperature=temperature, seed=1, max_new_tokens=9, logit_bias={POISON: -100})
    drafter = {"ngram": Lookup, "model": lambda: DraftModel(decoder)}.get(drafts or "", lambda: None)
    prompts = [[1, 2, 3], [4, POISON, 5], [6, 8]]
    alone = [made(decoder, [prompt], sampling, drafter())[0] for prompt in prompts[::2]]
    first, broken, last = made(decoder, prompts, sampling, drafter())
    assert [[token.id for token in one.made] for one in (first, last)] == [
        [token.id for token in one.made] for one in alone
    ]
    assert broken.finish == "failed" and isinstance(broken.error, CheckpointError)


@pytest.mark.parametrize("who", ["answer", "judged", "embedded"])
def test_what_broke_once_is_not_taken_over(who: str) -> None:
    """Keys and values that were not numbers, as of memory that failed, are forgotten with who met them."""
    decoder = sound()
    engine, prompt = Engine(decoder, tokens=512, chunk=16), [*range(1, 41)]
    hook = decoder.model.layers[0].register_forward_hook(lambda _, given, x: x * float("nan"))
    ask = {"answer": engine.submit, "judged": engine.read, "embedded": engine.embedding}[who]
    first = ask(prompt)
    while not first.finish:
        engine.step()
    assert first.finish == "failed" if who == "answer" else first.broken
    hook.remove()
    assert not engine.pages.known and not engine.pages.notes
    again = ask(prompt)
    while not again.finish:
        engine.step()
    assert again.finish == ("length" if who == "answer" else "stop") and not again.broken


def test_a_broken_model_is_a_500_with_its_reason(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    file = model / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, file, {"format": "pt"})
    hello = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    with in_process(model) as client:
        for sampling in ({"temperature": 0}, {"temperature": 1.0}):
            answer = client.post("/v1/chat/completions", json={**hello, **sampling})
            assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
            assert "not numbers" in answer.json()["error"]["message"]
        frames = client.post("/v1/messages", json={**hello, "stream": True}).text
        assert json.loads(frames.splitlines()[-1].removeprefix("data: "))["error"]["type"] == "api_error"
        judged = {"prompt": "Hello", "max_tokens": 0, "echo": True, "logprobs": 1}
        for path, body in (("embeddings", {"input": "Hello"}), ("completions", judged)):
            answer = client.post(f"/v1/{path}", json=body)
            assert answer.status_code == 500 and "not numbers" in answer.json()["error"]["message"]
        assert client.get("/health").status_code == 200
