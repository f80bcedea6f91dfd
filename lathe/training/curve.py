"""Losses become a curve: of Braille characters for a terminal, or a PNG where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

Points = Sequence[tuple[float, float]]  # step and loss

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a Braille cell, by column and row


def text(training: Points, validation: Points, width: int = 72, height: int = 12) -> str:
    """The training loss as a line and the validation loss as circles, `width` x `height` characters and the axes."""
    last, wide, tall = training[-1][0], 2 * width, 4 * height  # wide and tall in dots

    def across(step: float) -> int:
        return min(wide - 1, int(step / last * wide))

    line = _line([(across(step), loss) for step, loss in training])
    losses = [loss for _, loss in (*line, *validation)]
    low, high = min(losses), max(losses)

    def down(loss: float) -> int:
        return round((high - loss) / ((high - low) or 1) * (tall - 1))

    cells = [[0] * width for _ in range(height)]
    for (x, loss), (_, before) in zip(line, (line[0], *line), strict=False):
        top, bottom = sorted((down(loss), down(before)))
        for y in range(top, bottom + 1):
            cells[y // 4][x // 2] |= DOTS[x % 2][y % 4]
    rows = [[chr(0x2800 + cell) if cell else " " for cell in row] for row in cells]
    for step, loss in validation:
        rows[down(loss) // 4][across(step) // 2] = "●"

    labels = {0: f"{high:.2f}", height // 2: f"{(high + low) / 2:.2f}", height - 1: f"{low:.2f}"}
    legend = "loss" + (", and ● on what is held out" if validation else "")
    axis = f"{'0':<{width // 2}}{f'step {last:,.0f}':>{width - width // 2}}"
    lines = [f"{labels.get(y, ''):>7} ┤{''.join(row).rstrip()}" for y, row in enumerate(rows)]
    return "\n".join([f"{'':>9}{legend}", *lines, f"{'':>8}└{'─' * width}", f"{'':>9}{axis}"])


def _line(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """One loss for every dot from the first to the last: the mean of several, or between its neighbours."""
    columns: dict[int, list[float]] = {}
    for x, loss in points:
        columns.setdefault(x, []).append(loss)
    known = [(x, sum(losses) / len(losses)) for x, losses in columns.items()]
    line = known[:1]
    for (x0, y0), (x1, y1) in pairwise(known):
        line += [(x, y0 + (y1 - y0) * (x - x0) / (x1 - x0)) for x in range(x0 + 1, x1 + 1)]
    return line


def png(path: Path, training: Points, validation: Points, title: str) -> None:
    """Draw the curve into a PNG file. Raises ImportError where matplotlib is not installed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*training, strict=True), linewidth=0.8, alpha=0.4, color="tab:blue")
    axes.plot(*zip(*smooth(training), strict=True), linewidth=1.8, color="tab:blue", label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", markersize=4, color="tab:orange", label="validation")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path)


def smooth(points: Points) -> Points:
    """Each loss averaged with its neighbours, a fiftieth of the curve on either side."""
    reach = len(points) // 50
    windows = [points[max(0, i - reach) : i + reach + 1] for i in range(len(points))]
    return [(step, sum(loss for _, loss in near) / len(near)) for (step, _), near in zip(points, windows, strict=True)]
