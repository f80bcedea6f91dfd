"""Measurements of all rounds become tables in docs/benchmarks.md, between two marks, and two pictures beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from shapes import NAMES, SHAPES, Cost

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
PICTURES = PAGE.with_suffix("")
MARKS = "<!-- begin of what benchmarks/all.py writes -->", "<!-- end of what benchmarks/all.py writes -->"
KINDS = {"bf16": "bf16", "int8": "8 bits", "int4": "4 bits"}
FORMS = {"int8": {"Lathe": "int8", "llama.cpp": "Q8_0"}, "int4": {"Lathe": "int4", "llama.cpp": "Q4_0"}}
WHO = ("Lathe", "llama.cpp", "transformers", "LitGPT")
COLORS = {"Lathe": "#2a6fb0", "llama.cpp": "#d98032", "transformers": "#8a8f98", "LitGPT": "#b9a9c9"}
LIMITS = "the machine"
START, FIRST = "start-up", "lathe generate, one token of 1B"
SPEEDS = {
    "decode": "decode, 128 in",
    "decode, long": "decode, 2,048 in",
    "prefill": "prefill, 512",
    "sixteen": "16 at once",
}
Values = dict[str, list[float]]  # by figures
Found = dict[tuple[str, str, str], Values]  # by size, kind and who


def gathered(rows: Iterable[Mapping[str, Any]]) -> Found:
    """Every figure of all rounds; of the machine, whichever case it was measured beside."""
    found: Found = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for figure, value in row["figures"].items():
            found[row["size"], row["kind"], row["who"]][figure].append(value)
            if row["who"] == LIMITS:
                found["", "", LIMITS][figure].append(value)
    return found


class Limits:
    """The most that the machine did in any round, and what it allows with it."""

    def __init__(self, found: Found) -> None:
        told = found["", "", LIMITS]
        self.read = max(told.get("GB/s", [0.0])) * 1e9
        self.multiply = max(told.get("bf16 GFLOP/s", [0.0])) * 1e9

    def of(self, size: str, figure: str, values: Values) -> float | None:
        """Tokens a second that somebody could reach who has these figures; None where no limit is reckoned."""
        cost = Cost(SHAPES[size])
        prompt = {"decode": 128, "decode, long": 2048}.get(figure)
        if prompt is not None and self.read:
            return self.read / cost.decode(values["reads"][0], prompt, 128)
        return self.multiply / cost.prefill(512) if figure == "prefill" and self.multiply else None


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The tables."""
    found = gathered(rows)
    limits = Limits(found)
    sizes = [size for size in SHAPES if any(key[0] == size and key[1] in KINDS for key in found)]
    parts = [head(rows, found), *(table(size, found, limits) for size in sizes)]
    if bars := held([*(row for size in sizes for row in judged(size, found, limits)), *started(found)]):
        parts.insert(1, bars)
    if any(key[1] == START for key in found):
        parts.append(starting(found))
    return "\n\n".join(parts)


def head(rows: Sequence[Mapping[str, Any]], found: Found) -> str:
    days, machines = sorted({row["date"] for row in rows}), sorted({row["machine"] for row in rows})
    commits = sorted({row["commit"] for row in rows if row["who"] == "Lathe" and "commit" in row})
    rounds, threads = max(row["round"] for row in rows) + 1, sorted({row["threads"] for row in rows})
    said = f"{' to '.join(dict.fromkeys((days[0], days[-1])))}, {'; '.join(machines)}, {' and '.join(threads)} threads"
    said += f", {rounds} round{'s' * (rounds > 1)} in turn" + (f", Lathe at {', '.join(commits)}" if commits else "")
    told = found["", "", LIMITS]
    if told:
        said += f". The machine, between them: it reads {span(told['GB/s'])} GB/s and does {span(told['bf16 GFLOP/s'])}"
        said += " GFLOP/s of bf16 products; shares are of the most of these"
    return said + ". Median (least - most) of all rounds."


def table(size: str, found: Found, limits: Limits) -> str:
    """Everybody's figures in one shape."""
    lines = [
        f"### The shape of {NAMES[size]}",
        "",
        f"| | {' | '.join(SPEEDS.values())} | first token | load | memory |",
    ]
    lines.append("|---" * (len(SPEEDS) + 4) + "|")
    for kind, words in KINDS.items():
        for who in WHO:
            if not (values := found.get((size, kind, who))):
                continue
            cells = [speed(size, figure, values, limits) for figure in SPEEDS]
            memory = f"{median(values['own MiB']):,.0f} MiB, {weight(values):.2f} x"
            first, load = (f"{span(values[name])} s" for name in ("first token, s", "load, s"))
            name = f"{who} {FORMS.get(kind, {}).get(who, words)}"
            name = f"**{name}**" if who == "Lathe" else name
            lines.append(f"| {' | '.join([name, *cells, first, load, memory])} |")
        ratios = [other for other in WHO[1:] if (size, kind, other) in found and (size, kind, "Lathe") in found]
        for other in ratios:
            mine, theirs = found[size, kind, "Lathe"], found[size, kind, other]
            cells = [times(mine, theirs, figure) for figure in (*SPEEDS, "first token, s", "load, s", "own MiB")]
            lines.append(f"| *Lathe / {other}* | {' | '.join(cells)} |")
    return "\n".join(lines)


def speed(size: str, figure: str, values: Values, limits: Limits) -> str:
    if not values.get(figure):
        return ""
    most = limits.of(size, figure, values)
    return span(values[figure]) + (f", {median(values[figure]) / most:.0%}" if most else "")


def weight(values: Values) -> float:
    """Memory as a multiple of the weights."""
    return median(values["own MiB"]) * 2**20 / values["reads"][0]


def times(mine: Values, theirs: Values, figure: str) -> str:
    if not mine.get(figure) or not (median(theirs.get(figure, [0]))):
        return ""
    return f"*{median(mine[figure]) / median(theirs[figure]):.2f}*"


def span(values: Sequence[float]) -> str:
    if len(values) == 1:
        return brief(values[0])
    return f"{brief(median(values))} ({brief(min(values))} - {brief(max(values))})"


def brief(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# ---- what was promised -----------------------------------------------------------------------------------------------
def judged(size: str, found: Found, limits: Limits) -> Iterable[tuple[str, str, str, float, float, bool]]:
    """Bars: of which shape, what, against whom, what was reached, what is asked, and whether that is a ceiling."""
    if size == "15M":
        return
    for kind, words in KINDS.items():
        mine = found.get((size, kind, "Lathe"))
        if not mine:
            continue
        for other in WHO[1:]:
            if not (theirs := found.get((size, kind, other))):
                continue
            asked = {"decode": 2.0, "decode, long": 2.0}
            if other == "llama.cpp":
                asked = dict.fromkeys(asked, 0.9 if size == "135M" else 1.0) | {"prefill": 1.5}
            for figure, bar in asked.items():
                if mine.get(figure) and theirs.get(figure):
                    reached = median(mine[figure]) / median(theirs[figure])
                    yield size, f"{words}: {SPEEDS[figure]}", f"of {other}", reached, bar, False
        if kind == "bf16" and (most := limits.of(size, "prefill", mine)):
            yield size, f"{words}: prefill, 512", "of the products' rate", median(mine["prefill"]) / most, 0.75, False
        yield size, f"{words}: memory", "of the weights", weight(mine), 1.15, True


def starts(found: Found) -> dict[str, list[float]]:
    """Seconds of each command."""
    return {who: values["seconds"] for (_, kind, who), values in found.items() if kind == START}


def started(found: Found) -> Iterable[tuple[str, str, str, float, float, bool]]:
    """Bars of start-up, as those of `judged`."""
    every = {who: median(values) for who, values in starts(found).items()}
    if not every.keys() >= {"import torch", "lathe --help", FIRST}:
        return
    torch = every["import torch"]
    yield START, "lathe --help", "of `import torch`", every["lathe --help"] / torch, 0.2, True
    yield START, FIRST, "seconds beyond `import torch`", every[FIRST] - torch, 1.0, True


def held(rows: Sequence[tuple[str, str, str, float, float, bool]]) -> str:
    """Which bars are met."""
    if not rows:
        return ""
    lines = ["### What is asked, and what is reached", "", "| | | reached | asked | |", "|---|---|---|---|---|"]
    met = 0
    for size, what, whom, reached, asked, ceiling in rows:
        good = reached <= asked if ceiling else reached >= asked
        met += good
        sign = "at most" if ceiling else "at least"
        lines.append(
            f"| {size}, {what} | {whom} | {reached:.2f} | {sign} {asked:g} | {'met' if good else '**not met**'} |"
        )
    return "\n".join([*lines, "", f"{met} of {len(rows)} are met."])


def starting(found: Found) -> str:
    """From a command to its end."""
    every = starts(found)
    torch = median(every["import torch"]) if "import torch" in every else None
    lines = ["### From a command to its end", "", "| | seconds | to `import torch` | beyond it |", "|---|---|---|---|"]
    for who, values in every.items():
        more = (
            ["", ""] if torch is None else [f"{median(values) / torch:.2f}", f"{max(median(values) - torch, 0):.2f} s"]
        )
        lines.append(f"| {who} | {span(values)} | {' | '.join(more)} |")
    return "\n".join(lines)


# ---- the page --------------------------------------------------------------------------------------------------------
def write(rows: Sequence[Mapping[str, Any]], page: Path = PAGE) -> None:
    """Put tables and pictures into the page; the prose around the marks is kept."""
    before, begin, rest = page.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    assert begin and end, f"{page} has lost its marks: {MARKS}"
    shown = "\n".join(
        f"![{title}]({page.stem}/{name})" for name, title in pictures(gathered(rows), page.with_suffix(""))
    )
    page.write_text(f"{before}{begin}\n\n{shown}\n\n{text(rows)}\n\n{end}{after}")


def pictures(found: Found, folder: Path) -> list[tuple[str, str]]:
    """SVG files of decode and prefill, and what they show."""
    folder.mkdir(exist_ok=True)
    limits, made = Limits(found), []
    for figure, title in (("decode", "Decode, 128 in and out"), ("prefill", "Prefill of 512")):
        name = f"{figure}.svg"
        draw(folder / name, f"{title}, tokens per second", figure, found, limits)
        made.append((name, f"{title}: tokens per second of each in each shape"))
    return made


def draw(path: Path, title: str, figure: str, found: Found, limits: Limits) -> None:
    """A panel for each shape, a bar for each rival; a line from least to most, and a mark where the limit is."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    sizes = [size for size in SHAPES if any(key[0] == size and key[1] in KINDS for key in found)]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lathe", "font.size": 9}):
        image = Figure(figsize=(2.9 * len(sizes) + 0.6, 3.6), layout="constrained")
        image.suptitle(title, fontsize=10, x=0.01, ha="left")
        for axes, size in zip(image.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
            panel(axes, size, figure, found, limits)
        names = [who for who in WHO if any(key[2] == who for key in found)]
        marks: list[Any] = [Patch(color=COLORS[who], label=who) for who in names]
        marks.append(Line2D([], [], color="black", lw=1.2, label="what the machine allows"))
        image.legend(handles=marks, loc="outside lower left", ncols=len(marks), frameon=False)
        image.savefig(path, metadata={"Date": None}, facecolor="white")


def panel(axes: Any, size: str, figure: str, found: Found, limits: Limits) -> None:
    places, ticks = 0.0, {}
    for kind, words in KINDS.items():
        here = [(who, found[size, kind, who]) for who in WHO if (size, kind, who) in found]
        here = [(who, values) for who, values in here if values.get(figure)]
        if here:
            ticks[places + (len(here) - 1) / 2] = words
        for who, values in here:
            middle, some = median(values[figure]), values[figure]
            spread = [[middle - min(some)], [max(some) - middle]]
            axes.bar(places, middle, width=0.85, color=COLORS[who], yerr=spread, ecolor="#333333", error_kw={"lw": 1})
            if most := limits.of(size, figure, values):
                axes.plot([places - 0.42, places + 0.42], [most, most], color="black", lw=1.2)
            told = {"ha": "center", "va": "bottom", "fontsize": 6, "bbox": {"color": "white", "alpha": 0.8, "pad": 0.3}}
            axes.text(places, max(some), f" {brief(middle)} ", **told)
            places += 1
        places += 0.6
    axes.set_title(NAMES[size], fontsize=9)
    axes.set_xticks([*ticks], [*ticks.values()])
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(bottom=0)
