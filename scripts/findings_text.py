"""The findings in tables, and what they share with the sentences: a mean with its deviation, groups, counts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from eval.formats import escape_markdown
from eval.results import CHOSEN
from scripts.findings_experts import Findings, Row
from scripts.findings_relation import FEWEST, OF_METHODS, chance_level

NOT_THERE = "—"
LEFT_WORDS = """\
As configured → at the strength chosen on val; means over seeds, one value where both are equal. *seen avg*: mean \
score on the seen tasks, %. *strength*: the factor on the update. *length*: of the merged update, over the mean of the \
experts'. *share left*: how far the merged update goes in the direction of an expert's, over the expert's own length; \
mean over experts, 1 is all of it. *interference*: length of what is not the expert's over that of what is left of it; \
median over experts, 1 is as much of either. *of no expert*: the part of the merged update's length that no weighted \
sum of the experts' updates gives. The last two do not change with the strength."""
RELATION_WORDS = """\
Rank correlation (Spearman's) of the seen average with what a merge leaves: +1 if the order of the merged models is \
the same by both, -1 if it is reversed, about 0 if the two have nothing to do with one another. \
*distance*: length of the merged update less an expert's, over the expert's; 1 is as far as no update at all. Mean ± \
deviation over seeds of the correlation in each, """


def spread(values: Iterable[float], form: str = ".2f") -> str:
    """`0.31 ± 0.02`: mean and sample standard deviation; one value, or equal ones, without."""
    there = [value for value in values if value is not None and not math.isnan(value)]
    if not there:
        return NOT_THERE
    mean = f"{statistics.fmean(there):{form}}"
    mean = mean.lstrip("-+") if float(mean) == 0 else mean  # no minus before what rounds to nothing
    if len(set(there)) == 1 or math.inf in there:
        return mean
    return f"{mean} ± {statistics.stdev(there):{form.lstrip('+')}}"


def mean(values: Iterable[float], form: str = ".2f") -> str:
    """The mean alone."""
    return spread(values, form).partition(" ")[0]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, all columns but the first to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def by_group(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of every group, in the order of the rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(row)
    return found


def by_seed(rows: Sequence[Row], tell: Callable[[list[Row]], float]) -> list[float]:
    """One number a seed."""
    seeds = sorted({row["seed"] for row in rows})
    return [tell([row for row in rows if row["seed"] == seed]) for seed in seeds]


def mean_of(key: str) -> Callable[[list[Row]], float]:
    """The mean of a column."""
    return lambda rows: statistics.fmean(row[key] for row in rows)


def count(n: int, what: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{n} {what}" + ("" if n == 1 else "s")


def which(rows: Sequence[Row]) -> str:
    """What a mean over merged models was taken over."""
    return "the merged models at chosen strengths" if all(row["chosen"] for row in rows) else "all merged models"


def without_variant(title: str) -> str:
    """The method's title, whatever its strength."""
    return title.removesuffix(f", {CHOSEN}")


def rho(row: Row) -> str:
    """A rank correlation with its deviation over seeds."""
    if math.isnan(row["rho"]):
        return NOT_THERE
    return f"{row['rho']:+.2f}" + ("" if math.isnan(row["deviation"]) else f" ± {row['deviation']:.2f}")


def pick(relations: Sequence[Row], group: str, scope: str, key: str) -> Row:
    """The one relation of these."""
    return next(r for r in relations if (r["group"], r["scope"], r["quantity"]) == (group, scope, key))


def tell_kept(found: Findings) -> list[str]:
    """A table a group, one line a method: at both strengths."""
    blocks = []
    for group, rows in by_group(found.merged).items():
        n_seeds = len({row["seed"] for row in rows})
        methods = dict.fromkeys(without_variant(row["method"]) for row in rows)
        alike = {title: [row for row in rows if without_variant(row["method"]) == title] for title in methods}
        lines = [_kept_line(title, own, n_seeds) for title, own in alike.items()]
        heads = [f"{group}, {count(n_seeds, 'seed')}", "seen avg", "strength", "length", "share left"]
        blocks.append(table([*heads, "interference", "of no expert"], lines))
    return [*blocks, LEFT_WORDS]


def _kept_line(title: str, rows: Sequence[Row], n_seeds: int) -> list[str]:
    def both(key: str, form: str) -> str:
        cells = [mean((row[key] for row in rows if row["chosen"] is chosen), form) for chosen in (False, True)]
        return " → ".join(dict.fromkeys(cell for cell in cells if cell != NOT_THERE)) or NOT_THERE

    cells = [both("seen_avg", ".1f"), both("factor", ".3g"), both("norm_over_mean", ".2f"), both("share_mean", ".2f")]
    there = len({row["seed"] for row in rows})
    name = escape_markdown(title) + ("" if there == n_seeds else f" (n = {there})")
    return [name, *cells, both("interference", ".1f"), both("outside", ".2f")]


def tell_relations(relations: Sequence[Row]) -> list[str]:
    """Over merged models: what goes with the seen average."""
    groups = list(by_group(relations))
    lines = [
        [title, *(rho(pick(relations, group, "methods", key)) for group in groups)] for key, title in OF_METHODS.items()
    ]
    return [RELATION_WORDS + _levels(relations, groups), table(["", *groups], lines)]


def _levels(relations: Sequence[Row], groups: Sequence[str]) -> str:
    """How many merged models there are, and what chance does with so many."""
    sizes = sorted({pick(relations, group, "methods", "outside")["n"] for group in groups})
    told = [
        f"over n = {n} merged models (two orders that have nothing to do with one another are beyond "
        f"±{chance_level(n):.2f} once in twenty times)"
        if n >= FEWEST
        else f"over n = {n} merged models, too few to tell"
        for n in sizes
    ]
    return "; ".join(told) + "."
