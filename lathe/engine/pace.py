"""An engine is timed: prompts of random tokens go in, seconds come out; knows no text and no file."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from lathe.engine.engine import Engine
from lathe.engine.sampling import Sampling


@dataclass(frozen=True)
class Pace:
    """What some sequences took that were asked for at once.

    sequences: how many. prompt, new: tokens that each read, and that each wrote.
    first: seconds until all had their first token. whole: until all had their last.
    """

    sequences: int
    prompt: int
    new: int
    first: float
    whole: float

    @property
    def prefill(self) -> float:
        """Tokens read per second."""
        return self.sequences * self.prompt / self.first

    @property
    def decode(self) -> float:
        """Tokens written per second after the first; 0 where no more was written."""
        return self.sequences * (self.new - 1) / (self.whole - self.first) if self.new > 1 else 0.0

    @property
    def together(self) -> float:
        """Tokens written per second, with the time that reading took."""
        return self.sequences * self.new / self.whole


def pace(engine: Engine, prompt: int, new: int, sequences: int = 1, seed: int = 0) -> Pace:
    """Time an idle engine, greedily, on random prompts of `prompt` tokens; nothing is known of them from before.

    Raises PromptError where the context has no room for the prompt and one token.
    """
    engine.pages.forget()
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(engine.decoder.spec.vocab, (sequences, prompt), generator=generator).tolist()
    begun = time.perf_counter()
    asked = [engine.submit(tokens, Sampling(temperature=0, max_new_tokens=new)) for tokens in prompts]
    firsts, ends = [], []
    while engine.busy:
        engine.step()
    for sequence in asked:
        assert sequence.first is not None and sequence.ended is not None
        firsts.append(sequence.first - begun)
        ends.append(sequence.ended - begun)
    return Pace(sequences, prompt, len(asked[0].made), max(firsts), max(ends))
