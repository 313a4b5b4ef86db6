"""What a search found: a table, the behaviours at a glance, and what a behaviour costs."""

from __future__ import annotations

from pathlib import Path

from matplotlib.patches import Rectangle
from rich.table import Table

from alignvec.base.seen import queries_told
from alignvec.report.figure import COLOURS, colour_of, figure
from alignvec.search.solution import SearchResult, Solution


def behaviours_table(search: SearchResult) -> Table:
    """A line a setting: of each domain the rate of the wanted level, and what is retained."""
    solutions = search.front or search.solutions
    domains = sorted({domain for solution in solutions for domain in solution.target})
    queries = queries_told(search.verified, search.seen)
    table = Table(title=f"rates of the wanted level on {queries} ({search.method})")
    for column in ("setting", *domains, "reached", "neutral text: KL", "perplexity"):
        table.add_column(column, overflow="fold")
    for solution in solutions:
        cells = []
        for domain in domains:
            level = solution.target.get(domain)
            if level is None:
                cells.append("-")
                continue
            low, high = solution.rates[domain].interval[level]
            cells.append(f"{level} {solution.rates[domain].rate[level]:.2f} ({low:.2f}-{high:.2f})")
        reached = "firmly" if solution.reached_clearly else "yes" if solution.reached else "no"
        kept = solution.retention
        cost = []
        if kept:
            kl = "not measured" if kept.kl is None else f"{kept.kl:.3f}"
            cost = [kl, f"x {kept.perplexity:.2f}"]
        table.add_row(
            ",".join(f"{knob}={strength:g}" for knob, strength in solution.setting.items()),
            *cells,
            reached,
            *cost,
        )
    return table


def draw_behaviours(search: SearchResult, path: Path) -> None:
    """A column a target, a row a domain: the wanted level's letter, its rate as the shade.

    A frame marks a domain whose wanted level does not have the highest rate.
    """
    domains = sorted({domain for solution in search.solutions for domain in solution.target})
    with figure(path, 1.8 + 0.38 * len(search.solutions), 1.3 + 0.5 * len(domains)) as axes:
        for x, solution in enumerate(search.solutions):
            for y, domain in enumerate(domains):
                if domain not in solution.target:
                    continue
                level, rates = solution.target[domain], solution.rates[domain].rate
                rate = rates[level]
                missed = any(other >= rate for name, other in rates.items() if name != level)
                colour = colour_of(level)
                axes.add_patch(
                    Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=colour, alpha=rate)
                )
                if missed:
                    axes.add_patch(
                        Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, linewidth=1.6)
                    )
                axes.text(
                    x, y, f"{level[0].upper()}\n{rate:.2f}".replace("0.", "."), ha="center",
                    va="center", fontsize=8, color="white" if rate > 0.6 else "black",
                )  # fmt: skip
        axes.set_xlim(-0.5, len(search.solutions) - 0.5)
        axes.set_ylim(len(domains) - 0.5, -0.5)
        axes.set_yticks(range(len(domains)), domains)
        axes.set_xticks([])
        axes.grid(False)
        reached = sum(solution.reached for solution in search.solutions)
        axes.set_title(f"{reached} of {len(search.solutions)} behaviours reached", fontsize=11)
        axes.set_xlabel("a column a behaviour: wanted level and its rate; framed where not reached")


def draw_front(search: SearchResult, path: Path) -> None:
    """Of one target: the rate of the wanted level in each domain against what the model loses."""

    def kl(one: Solution) -> float:
        return (one.retention and one.retention.kl) or 0.0

    front = sorted(search.front, key=kl)
    lost = [*map(kl, front)]
    target = front[0].target
    with figure(path, 7.0, 4.2) as axes:
        for index, (domain, level) in enumerate(sorted(target.items())):
            rate = [one.rates[domain].rate[level] for one in front]
            low, high = zip(*(one.rates[domain].interval[level] for one in front), strict=True)
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(lost, rate, "o-", color=colour, label=f"{domain}: {level}")
            axes.fill_between(lost, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("KL from the base on neutral text, nats a token")
        axes.set_ylabel("rate of the wanted level")
        axes.legend(frameon=False)
        axes.set_title("What a behaviour costs; left the base", loc="left", fontsize=12)
