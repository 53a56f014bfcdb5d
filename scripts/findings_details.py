"""The page behind the page of findings: every expert, every merged model, every correlation, with deviations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from eval.formats import escape_markdown
from scripts.findings_experts import Findings, Row
from scripts.findings_relation import MIN_GAP, OF_POINTS, at_best, retained
from scripts.findings_text import (
    NOT_THERE,
    by_group,
    by_seed,
    count,
    mean_of,
    pick,
    rho,
    spread,
    table,
    which,
)

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
