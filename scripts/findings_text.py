"""The findings in tables and words, each number with what it was taken over."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from eval.formats import escape_markdown
from scripts.findings_experts import Findings, Row
from scripts.findings_relation import MIN_GAP, OF_METHODS, OF_POINTS, at_best, chance_level, retained

NOT_THERE = "—"
KEPT_WORDS = """\
norm: of the merged update, over the mean of the experts' norms. share left: ⟨D, Dₙ⟩ / ⟨Dₙ, Dₙ⟩ of merged update D \
and expert's update Dₙ, mean over experts (lowest to highest); 1 leaves all of an expert. interference: \
‖D − share·Dₙ‖ / ‖share·Dₙ‖, median over experts; 1 when as much is not the expert's as is. of no expert: the part \
of D that is no weighted sum of the experts' updates, as a fraction of ‖D‖. cross terms: ‖Σ Bₙ Aₘ, n ≠ m‖ / ‖Σ Bₙ Aₙ‖ \
where a method sums A and B apart, after its pruning and scaling (in brackets the cosine between the two). retained: \
(merged − zero-shot) / (individual − zero-shot), of averages over the seen tasks. factor: on the update."""
RELATION_WORDS = """\
Rank correlations (Spearman) in each seed, mean ± deviation over seeds. Seeds share the base and the questions, \
methods share the experts: these values are less independent than their number."""


def spread(values: Iterable[float], form: str = ".2f") -> str:
    """`0.31 ± 0.02`: mean and sample standard deviation; one value, or equal ones, without."""
    there = [value for value in values if value is not None and not math.isnan(value)]
    if not there:
        return NOT_THERE
    mean = f"{statistics.fmean(there):{form}}"
    mean = mean.lstrip("-+") if float(mean) == 0 else mean  # no minus before what rounds to nothing
    return mean if len(set(there)) == 1 else f"{mean} ± {statistics.stdev(there):{form}}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(row)
    return found


def _by_seed(rows: Sequence[Row], tell: Callable[[list[Row]], float]) -> list[float]:
    """One number a seed."""
    seeds = sorted({row["seed"] for row in rows})
    return [tell([row for row in rows if row["seed"] == seed]) for seed in seeds]


def _mean_of(key: str) -> Callable[[list[Row]], float]:
    return lambda rows: statistics.fmean(row[key] for row in rows)


def _unequal(rows: list[Row]) -> float:
    norms = [row["norm"] for row in rows]
    return max(norms) / min(norms) if min(norms) > 0 else math.inf


def tell_experts(found: Findings) -> list[str]:
    """One line a group, then one an expert."""
    pairs, cross = _groups(found.pairs), _groups(found.cross)
    lines = []
    for group, rows in _groups(found.experts).items():
        own = [row for row in cross.get(group, []) if row["method"].startswith("plain")]
        cells = [group, str(len({row["seed"] for row in rows})), spread(_by_seed(rows, _mean_of("norm")))]
        cells += [spread(_by_seed(rows, _unequal), ".1f"), spread(_by_seed(rows, _mean_of("first_over_last")), ".1f")]
        cells.append(spread(_by_seed(rows, _mean_of("stable_rank"))))
        for key in ("update_cosine", "a_cosine", "b_cosine"):
            cells.append(spread(_by_seed(pairs.get(group, []), _mean_of(key)), ".3f"))
        lines.append([*cells, _cross_cell(own)])
    heads = ["", "seeds", "norm", "largest / smallest norm", "s₁ / s_r", "stable rank"]
    heads += ["cosine of B A", "cosine of A", "cosine of B", "cross terms"]
    ranks = "-".join(str(rank) for rank in sorted({row["rank"] for row in found.experts}))
    words = (
        f"Means over experts, cosines over pairs of experts. norm: ‖B A‖ over all layers. s₁ / s_r: largest over "
        f"smallest singular value of B A, r = {ranks}; stable rank: ‖B A‖² / s₁²; both medians over layers. cross "
        "terms: ‖Σ Bₙ Aₘ, n ≠ m‖ / ‖Σ Bₙ Aₙ‖, what (Σ B)(Σ A) has beyond the sum of the updates (in brackets the "
        "cosine between the two: 1 if they only make it longer)."
    )
    return [_table(heads, lines), words, *_each_expert(found)]


def which(rows: Sequence[Row]) -> str:
    """What a mean over merged models was taken over."""
    return "the merged models at chosen strengths" if all(row["chosen"] for row in rows) else "all merged models"


def _cross_cell(rows: Sequence[Row]) -> str:
    if not rows:
        return NOT_THERE
    return f"{spread(row['weight'] for row in rows)} ({spread((row['cosine'] for row in rows), '.2f')})"


def _each_expert(found: Findings) -> list[str]:
    """Norm, and the retained share of the gain averaged over merged models, at chosen strengths where there are any."""
    groups = _groups(found.experts)
    best = [row for group in groups for row in at_best([row for row in found.kept if row["group"] == group])]
    kept = [row | {"retained": retained(row)} for row in best]
    lines = []
    for name in dict.fromkeys(row["expert"] for row in found.experts):
        cells = [name]
        for group, rows in groups.items():
            own = [row for row in kept if (row["group"], row["task"]) == (group, name) and row["retained"] is not None]
            cells.append(spread(row["norm_over_mean"] for row in rows if row["expert"] == name))
            cells.append(spread(_by_seed(own, _mean_of("share"))))
            cells.append(spread(_by_seed(own, _mean_of("retained"))))
        lines.append(cells)
    heads = ["expert", *(f"{what}, {group}" for group in groups for what in ("norm / mean", "share left", "retained"))]
    words = (
        f"norm / mean: over the mean of the experts. share left, retained: means over {which(best)} of the share of "
        "the expert in the update, and of (merged − zero-shot) / (individual − zero-shot) on its own task; "
        f"{NOT_THERE} where individual is less than {MIN_GAP:g} points above zero-shot."
    )
    return [_table(heads, lines), words]


def tell_kept(found: Findings) -> list[str]:
    """A table a group, one line a merged model."""
    blocks = []
    for group, rows in _groups(found.merged).items():
        n_seeds = len({row["seed"] for row in rows})
        lines = [
            _kept_line(title, [row for row in rows if row["method"] == title], found.cross, n_seeds)
            for title in dict.fromkeys(row["method"] for row in rows)
        ]
        heads = [f"{group}, {_count(n_seeds, 'seed')}", "seen avg", "retained", "factor", "norm", "share left"]
        blocks.append(_table([*heads, "interference", "of no expert", "cross terms"], lines))
    return [*blocks, KEPT_WORDS]


def _kept_line(title: str, rows: Sequence[Row], cross: Sequence[Row], n_seeds: int) -> list[str]:
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


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def tell_relations(relations: Sequence[Row]) -> list[str]:
    """Over methods, and over methods and tasks."""
    groups = list(_groups(relations))
    over_methods = [
        [title, *(_rho(_pick(relations, group, "methods", key)) for group in groups)]
        for key, title in OF_METHODS.items()
    ]
    scopes = {"points": "all", "within_task": "within a task", "within_method": "within a method"}
    over_points = [
        [title, *(_rho(_pick(relations, group, scope, key)) for group in groups for scope in scopes)]
        for key, title in OF_POINTS.items()
    ]
    counts = {group: _pick(relations, group, "points", "share") for group in groups}
    n = "; ".join(
        f"{group}: {row['n']} in a seed, {row['n_in_all']} in {_count(row['seeds'], 'seed')}"
        for group, row in counts.items()
    )
    return [
        RELATION_WORDS,
        f"Seen average against what a merge leaves, over merged models ({_levels(relations, groups)}):",
        _table(["", *groups], over_methods),
        f"Retained share of the gain on an expert's own task, over merged models × tasks ({n}). all: every pair of "
        "merged model and task; within a task: over merged models, mean of the tasks; within a method: over tasks, "
        "mean of the merged models:",
        _table(["", *(f"{title}, {group}" for group in groups for title in scopes.values())], over_points),
    ]


def _pick(relations: Sequence[Row], group: str, scope: str, key: str) -> Row:
    return next(r for r in relations if (r["group"], r["scope"], r["quantity"]) == (group, scope, key))


def _rho(row: Row) -> str:
    if math.isnan(row["rho"]):
        return NOT_THERE
    return f"{row['rho']:+.2f}" + ("" if math.isnan(row["deviation"]) else f" ± {row['deviation']:.2f}")


def _levels(relations: Sequence[Row], groups: Sequence[str]) -> str:
    sizes = sorted({_pick(relations, group, "methods", "outside")["n"] for group in groups})
    return "; ".join(
        f"n = {n}, where two unrelated orders exceed |ρ| = {chance_level(n):.2f} once in twenty times"
        if n >= 4
        else f"n = {n}, too few"
        for n in sizes
    )
