"""A subject as lm-evaluation-harness wants its models: texts in, likelihoods and texts out.

Needs the extra eval: `harness` imports this file when it is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import lm_eval.tasks
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from lathe.evaluation import index, wording
from lathe.evaluation.asks import Answer, Ask, Generation, Known, Likely, Subject, ask_all
from lathe.evaluation.examination import Tick

MOST = 256  # tokens of an answer where a task does not say


class Loaded(TaskManager):
    """Knows all tasks, and loads each set of them once: before a model is, so that what is wrong is said at once.

    include: a folder with more tasks, which come before the harness's own. every: know these, too.
    """

    def __init__(self, include: Path | None, every: bool) -> None:
        super().__init__(include_path=include, include_defaults=False)
        own = index.entries(Path(lm_eval.tasks.__file__).parent) if every else {}
        self._index = {**own, **self.task_index}
        self._loaded: dict[tuple[str, ...], Any] = {}

    @property
    def all_tasks(self) -> list[str]:
        return sorted(self._index)

    def load(self, task_list: Any) -> Any:
        names = tuple(task_list)
        if names not in self._loaded:
            self._loaded[names] = super().load([*names])
        return self._loaded[names]


class Answering(LM):
    """The requests of one evaluation. known, tick: see `Examination.run`; all tasks count as one there."""

    def __init__(self, subject: Subject, known: Known, tick: Tick) -> None:
        super().__init__()
        self.subject, self.known, self.tick = subject, known, tick

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [cast("tuple[str, str]", request.args) for request in requests]
        asks = wording.likelihoods(self.subject.words, pairs, self.subject.longest)
        return [tuple(answer) for answer in self._answers("likelihoods", asks)]  # type: ignore[misc]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        words, found = self.subject.words, []
        texts = words.encode_all([request.args[0] for request in requests])
        # What a text begins with is judged too, behind another of its kind: so the harness has it, and its figures.
        each = [wording.windows(words, ids, self.subject.longest) for ids in texts]
        answers = iter(self._answers("texts", [ask for some in each for ask in some]))
        for some in each:
            found.append(sum(cast("Likely", next(answers)).logprob for _ in some))
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        ids = self.subject.words.encode_all([request.args[0] for request in requests])
        asks = [_generation(tokens, request.args[1]) for tokens, request in zip(ids, requests, strict=True)]
        asks = [wording.fitted(ask, self.subject.longest) for ask in asks]
        return [cast("str", answer) for answer in self._answers("answers", asks)]

    def _answers(self, what: str, asks: Sequence[Ask]) -> list[Answer]:
        return ask_all(self.subject, asks, self.known, lambda count: self.tick(what, count, len(asks)))

    # ------------------------------------------------------------ conversations

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.subject.words.render(chat_history, open_ended=not add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return ""  # the model's own is all there is

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps rendered requests by."""
        return blake2b(self.subject.identity.encode(), digest_size=8).hexdigest()


def _generation(prompt: Sequence[int], told: Mapping[str, Any]) -> Generation:
    until = told.get("until") or []
    drawn = told.get("do_sample", bool(told.get("temperature")))
    return Generation(
        tuple(prompt),
        tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        told.get("max_gen_toks", MOST),
        float(told.get("temperature") or 1.0) if drawn else 0.0,
        float(told.get("top_p", 1.0)),
        int(told.get("top_k", 0)),
    )
