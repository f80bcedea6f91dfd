"""What happens is counted here, and told as text for Prometheus, by vLLM's names with lathe: in the place of vllm:.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0)

Labels = tuple[tuple[str, str], ...]


class Histogram:
    """How often a value was at most each of `bounds`, and the sum of all."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def mean(self) -> float:
        """0 where nothing was observed."""
        return self.sum / (sum(self.counts) or 1)


class Metrics:
    """The counts of one model."""

    def __init__(self) -> None:
        self.prompt = self.generated = self.reused = self.refused = self.cancelled = 0
        self.ended: dict[str, int] = {}
        self.first, self.next, self.whole = Histogram(), Histogram(), Histogram()

    def end(self, reason: str, tokens: int, seconds: tuple[float, float]) -> None:
        """One answer is whole. seconds: to its first token, and from there to its last."""
        self.ended[reason] = self.ended.get(reason, 0) + 1
        self.generated += tokens
        self.first.observe(seconds[0])
        self.whole.observe(sum(seconds))
        if tokens > 1:
            self.next.observe(seconds[1] / (tokens - 1))


def text(models: Mapping[str, tuple[Metrics, Mapping[str, int]]]) -> str:
    """All models' counts, with what the engine says of its state ("running", "waiting", "pages", "held")."""
    page = _Page()
    for name, (counts, state) in models.items():
        model = (("model_name", name),)
        pages = state.get("pages") or 1
        page.add("num_requests_running", "gauge", "Answers that are being made.", model, state.get("running", 0))
        page.add("num_requests_waiting", "gauge", "Answers that wait for a seat.", model, state.get("waiting", 0))
        page.add(
            "kv_cache_usage_perc", "gauge", "Share of the pages in use, 0 to 1.", model, state.get("held", 0) / pages
        )
        page.add("prompt_tokens_total", "counter", "Tokens of prompts.", model, counts.prompt)
        page.add("prefix_cache_queries_total", "counter", "Tokens looked for in the cache.", model, counts.prompt)
        page.add("prefix_cache_hits_total", "counter", "Tokens found there.", model, counts.reused)
        page.add("generation_tokens_total", "counter", "Tokens generated.", model, counts.generated)
        for reason, count in sorted(counts.ended.items()):
            labels = (*model, ("finished_reason", reason))
            page.add("request_success_total", "counter", "Answers that came to their end.", labels, count)
        page.add("request_refused_total", "counter", "Requests refused for want of room.", model, counts.refused)
        page.add("request_cancelled_total", "counter", "Answers nobody waited for.", model, counts.cancelled)
        page.histogram("time_to_first_token_seconds", "Seconds to the first token.", model, counts.first)
        page.histogram("time_per_output_token_seconds", "Seconds to each further token.", model, counts.next)
        page.histogram("e2e_request_latency_seconds", "Seconds to the last token.", model, counts.whole)
    return page.text()


class _Page:
    """Samples of one name stand together, whatever the order in which they are added."""

    def __init__(self) -> None:
        self._families: dict[str, list[str]] = {}

    def add(self, name: str, kind: str, about: str, labels: Labels, value: float) -> None:
        self._family(name, kind, about).append(_sample(name, labels, value))

    def histogram(self, name: str, about: str, labels: Labels, counts: Histogram) -> None:
        lines, total = self._family(name, "histogram", about), 0
        for bound, count in zip((*map(str, counts.bounds), "+Inf"), counts.counts, strict=True):
            total += count
            lines.append(_sample(f"{name}_bucket", (*labels, ("le", bound)), total))
        lines += [_sample(f"{name}_sum", labels, counts.sum), _sample(f"{name}_count", labels, total)]

    def _family(self, name: str, kind: str, about: str) -> list[str]:
        return self._families.setdefault(name, [f"# HELP lathe:{name} {about}", f"# TYPE lathe:{name} {kind}"])

    def text(self) -> str:
        return "".join(f"{line}\n" for lines in self._families.values() for line in lines)


def _sample(name: str, labels: Iterable[tuple[str, str]], value: float) -> str:
    quoted = ",".join(f'{label}="{_escaped(told)}"' for label, told in labels)
    return f"lathe:{name}{{{quoted}}} {value}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
