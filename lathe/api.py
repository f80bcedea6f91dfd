"""The names of LitGPT's `litgpt.api`, so that a script moves over by importing from `lathe.api`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from lathe.llm import LLM
from lathe.module import Preprocessor

__all__ = ["LLM", "Preprocessor", "benchmark_dict_to_markdown_table"]


def benchmark_dict_to_markdown_table(data: Mapping[str, Sequence[float]]) -> str:
    """`data`, as `LLM.benchmark` gives it, as a table in Markdown: means and deviations, nan of a single one."""
    lines = [f"| {'Metric':35} | {'Mean':27} | {'Std Dev':27} |", f"|{'-' * 37}|{'-' * 29}|{'-' * 29}|"]
    for name, values in data.items():
        deviation = stdev(values) if len(values) > 1 else float("nan")
        lines.append(f"| {name:35} | {fmean(values):<27.2f} | {deviation:<27.2f} |")
    return "\n".join(lines) + "\n"
