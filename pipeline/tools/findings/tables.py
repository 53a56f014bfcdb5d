"""The findings in tables, and what they share with the sentences: a mean with its deviation, groups, counts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from eval.report.formats import escape_markdown
from eval.report.results import CHOSEN
from pipeline.tools.findings.relations import (
    FEWEST,
    MIN_GAP,
    OF_METHODS,
    OF_POINTS,
    Findings,
    Row,
    at_best,
    chance_level,
    retained,
)

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

KEPT_WORDS = """\
retained: (merged − zero-shot) / (individual − zero-shot), of averages over the seen tasks. factor: on the update. \
norm: ‖D‖ of the merged update D, over the mean of the experts' norms. share left: ⟨D, Dₙ⟩ / ⟨Dₙ, Dₙ⟩ with the \
expert's update Dₙ, mean over experts (lowest to highest). interference: ‖D − share·Dₙ‖ / ‖share·Dₙ‖, median over \
experts. of no expert: ‖D − its projection on the span of all Dₙ‖ / ‖D‖. cross terms: ‖Σ Bₙ Aₘ, n ≠ m‖ / ‖Σ Bₙ Aₙ‖ \
where a method sums A and B apart, after its pruning and scaling (in brackets the cosine between the two)."""
EXPERT_WORDS = """\
Means over experts, cosines over pairs of experts. norm: ‖B A‖ (Frobenius) over all layers as one vector. s₁ / s_r: \
largest over smallest singular value of B A, r = {ranks}; stable rank: ‖B A‖² / s₁², 1 if one direction holds all; \
both medians over layers. cosine of B A: over all layers as one vector; of A and of B: mean over layers. cross terms: \
‖Σ Bₙ Aₘ, n ≠ m‖ / ‖Σ Bₙ Aₙ‖, what (Σ B)(Σ A) has beyond the sum of the updates (in brackets the cosine between the \
two: 1 if they only make it longer)."""


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


def compose_details(found: Findings, relations: Sequence[Row], pictures: dict[str, str]) -> str:
    """The page as Markdown."""
    blocks = ["# What goes with the ranking, in full", "Mean ± sample standard deviation over seeds; shares are not %."]
    blocks += ["## The experts", *tell_experts(found), pictures["experts"]]
    blocks += ["## What every merged model leaves of them", *tell_merged(found), pictures["kept"]]
    return "\n\n".join([*blocks, "## What goes with the share of the gain", *tell_points(relations)]) + "\n"


def tell_experts(found: Findings) -> list[str]:
    """One line a group, then one an expert."""
    pairs, cross = by_group(found.pairs), by_group(found.cross)
    lines = []
    for group, rows in by_group(found.experts).items():
        own = [row for row in cross.get(group, []) if row["method"].startswith("plain")]
        cells = [group, str(len({row["seed"] for row in rows})), spread(by_seed(rows, mean_of("norm")))]
        cells += [spread(by_seed(rows, _unequal), ".1f"), spread(by_seed(rows, mean_of("first_over_last")), ".1f")]
        cells.append(spread(by_seed(rows, mean_of("stable_rank"))))
        for key in ("update_cosine", "a_cosine", "b_cosine"):
            cells.append(spread(by_seed(pairs.get(group, []), mean_of(key)), ".3f"))
        lines.append([*cells, _cross_cell(own)])
    heads = ["", "seeds", "norm", "largest / smallest norm", "s₁ / s_r", "stable rank"]
    heads += ["cosine of B A", "cosine of A", "cosine of B", "cross terms"]
    ranks = "-".join(str(rank) for rank in sorted({row["rank"] for row in found.experts}))
    return [table(heads, lines), EXPERT_WORDS.format(ranks=ranks), *_each_expert(found)]


def _unequal(rows: list[Row]) -> float:
    norms = [row["norm"] for row in rows]
    return max(norms) / min(norms) if min(norms) > 0 else math.inf


def _cross_cell(rows: Sequence[Row]) -> str:
    if not rows:
        return NOT_THERE
    return f"{spread(row['weight'] for row in rows)} ({spread(row['cosine'] for row in rows)})"


def _each_expert(found: Findings) -> list[str]:
    """Norm, and the retained share of the gain averaged over merged models, at chosen strengths where there are any."""
    groups = by_group(found.experts)
    best = [row for group in groups for row in at_best([row for row in found.kept if row["group"] == group])]
    kept = [row | {"retained": retained(row)} for row in best]
    lines = []
    for name in dict.fromkeys(row["expert"] for row in found.experts):
        cells = [name]
        for group, rows in groups.items():
            own = [row for row in kept if (row["group"], row["task"]) == (group, name) and row["retained"] is not None]
            cells.append(spread(row["norm_over_mean"] for row in rows if row["expert"] == name))
            cells.append(spread(by_seed(own, mean_of("share"))))
            cells.append(spread(by_seed(own, mean_of("retained"))))
        lines.append(cells)
    heads = ["expert", *(f"{what}, {group}" for group in groups for what in ("norm / mean", "share left", "retained"))]
    words = (
        f"norm / mean: over the mean of the experts. share left, retained: means over {which(best)} of the share of "
        "the expert in the update, and of (merged − zero-shot) / (individual − zero-shot) on its own task; "
        f"{NOT_THERE} where individual is less than {MIN_GAP:g} points above zero-shot."
    )
    return [table(heads, lines), words]


def tell_merged(found: Findings) -> list[str]:
    """A table a group, one line a merged model."""
    blocks = []
    for group, rows in by_group(found.merged).items():
        n_seeds = len({row["seed"] for row in rows})
        lines = [
            _merged_line(title, [row for row in rows if row["method"] == title], found.cross, n_seeds)
            for title in dict.fromkeys(row["method"] for row in rows)
        ]
        heads = [f"{group}, {count(n_seeds, 'seed')}", "seen avg, %", "retained", "factor", "norm", "share left"]
        blocks.append(table([*heads, "interference", "of no expert", "cross terms"], lines))
    return [*blocks, KEPT_WORDS]


def _merged_line(title: str, rows: Sequence[Row], cross: Sequence[Row], n_seeds: int) -> list[str]:
    def shown(key: str, form: str = ".2f") -> str:
        return spread((row[key] for row in rows), form)

    own = [row for row in cross if row["method"] == title and row["group"] == rows[0]["group"]]
    ends = [statistics.fmean(row[key] for row in rows) for key in ("share_lowest", "share_highest")]
    return [
        escape_markdown(title) + ("" if len(rows) == n_seeds else f" (n = {len(rows)})"),
        shown("seen_avg", ".1f"),
        shown("retained"),
        shown("factor", ".3g"),
        shown("norm_over_mean"),
        f"{shown('share_mean')} ({ends[0]:.2f} to {ends[1]:.2f})",
        shown("interference", ".1f"),
        shown("outside"),
        _cross_cell(own),
    ]


def tell_points(relations: Sequence[Row]) -> list[str]:
    """Over merged models and tasks."""
    groups = list(by_group(relations))
    scopes = {"points": "all", "within_task": "within a task", "within_method": "within a method"}
    lines = [
        [title, *(rho(pick(relations, group, scope, key)) for group in groups for scope in scopes)]
        for key, title in OF_POINTS.items()
    ]
    counts = {group: pick(relations, group, "points", "share") for group in groups}
    n = "; ".join(
        f"{group}: {row['n']} in a seed, {row['n_in_all']} in {count(row['seeds'], 'seed')}"
        for group, row in counts.items()
    )
    return [
        f"Rank correlation (Spearman's) with (merged − zero-shot) / (individual − zero-shot) on an expert's own task, "
        f"over merged models × tasks ({n}); in each seed, then mean ± deviation over seeds. all: every pair of merged "
        "model and task; within a task: over merged models, mean of the tasks; within a method: over tasks, mean of "
        "the merged models. Seeds share the base and the questions, methods share the experts: these values are less "
        "independent than their number.",
        table(["", *(f"{title}, {group}" for group in groups for title in scopes.values())], lines),
    ]
