"""The page of findings: tables, figures and definitions, written beside the report of the same overrides."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from eval.report.formats import escape_markdown
from pipeline.plan import Plan
from pipeline.stages.report import group_by_report, name_report
from pipeline.tools.findings.figures import draw_findings
from pipeline.tools.findings.measure import measure
from pipeline.tools.findings.relations import (
    FEWEST,
    MIN_GAP,
    OF_METHODS,
    OF_POINTS,
    Findings,
    Row,
    chance_level,
    relate,
)
from robustmerge.stage.files import write_atomically
from robustmerge.stage.tables import format_csv, format_markdown

MISSING = "—"
ABOUT = """\
Numbers are means ± sample standard deviations over seeds. An expert's update of a layer is the product B A; those \
of all {modules} adapted layers are taken as one long vector. Independent A: every expert began with a random A of \
its own; shared A: all with one. What was trained in full, such as the projector, is averaged by every method and is \
in none of these numbers. The numbers of each seed are in the [CSV files](findings)."""
EXPERTS = """\
Means over experts, cosines over pairs of experts. norm: ‖B A‖ (Frobenius). s₁ / s_r: largest over smallest singular \
value of B A, r = {ranks}; stable rank: ‖B A‖² / s₁², 1 if one direction holds all; both medians over layers. cosine \
of B A: over all layers; of A and of B: mean over layers. cross terms: ‖Σ Bₙ Aₘ, n ≠ m‖ / ‖Σ Bₙ Aₙ‖, what (Σ B)(Σ A) \
has beyond the sum of the updates (in brackets the cosine between the two: 1 if they only make it longer)."""
KEPT = """\
As configured → at the strength chosen on val; means over seeds, one value where both are equal. seen avg: mean \
score on the seen tasks, %. retained: (merged − zero-shot) / (individual − zero-shot), of these averages. strength: \
the factor on the update. length: ‖D‖ of the merged update D, over the mean of the experts'. share left: ⟨D, Dₙ⟩ / \
⟨Dₙ, Dₙ⟩ with the expert's update Dₙ, mean over experts. interference: ‖D − share·Dₙ‖ / ‖share·Dₙ‖, median over \
experts. of no expert: ‖D − its projection on the span of all Dₙ‖ / ‖D‖. The last two do not change with the \
strength."""
STRENGTHS = "Mean score on the val questions of the seen tasks at every strength tried:"
METHODS = """\
Rank correlation (Spearman's) of the seen average with what a merge leaves, over {sizes}: in each seed, then mean ± \
deviation over seeds. distance: ‖D − Dₙ‖ / ‖Dₙ‖."""
POINTS = f"""\
Rank correlation (Spearman's) of (merged − zero-shot) / (individual − zero-shot) on an expert's own task with what \
the merge leaves of that expert, without tasks on which the expert gains less than {MIN_GAP:g} points: over all \
pairs of merged model and task ({{sizes}} in a seed); within a task, over merged models, mean of the tasks; within a \
method, over tasks, mean of the merged models."""
SCOPES = {"points": "all", "within_task": "within a task", "within_method": "within a method"}


def write(plans: Sequence[Plan]) -> list[Path]:
    """Measure, and write the pages beside the reports; returns them. Raises UserError where results are missing."""
    return [_write_one(root, alike) for root, alike in group_by_report(plans)]


def _write_one(root: Path, plans: Sequence[Plan]) -> Path:
    findings = measure(plans)
    relations = relate(findings)
    page = root / "reports" / name_report(plans) / "findings.md"
    folder = page.parent / "findings"
    folder.mkdir(parents=True, exist_ok=True)
    for table in dataclasses.fields(findings):
        write_atomically(folder / f"{table.name}.csv", format_csv(getattr(findings, table.name)))
    write_atomically(folder / "relations.csv", format_csv(relations))
    figures = draw_findings(findings)
    for figure in figures:
        write_atomically(folder / f"{figure.name}.png", figure.png)
        write_atomically(folder / f"{figure.name}.svg", figure.svg)
    config = plans[0].config
    models = ", ".join(dict.fromkeys(plan.config.model.name for plan in plans))
    title = f"# What goes with the ranking: {config.benchmark.name}, {models}"
    head = [title] if config.profile == "full" else [title, f"**Profile {config.profile}: the numbers mean nothing.**"]
    links = {figure.name: f"![{figure.alt}](findings/{figure.name}.svg)" for figure in figures}
    write_atomically(page, "\n\n".join([*head, *compose(findings, relations, links)]) + "\n")
    return page


def compose(findings: Findings, relations: Sequence[Row], figures: Mapping[str, str]) -> list[str]:
    """The blocks of the page below its title, as Markdown. figures: links by name."""
    blocks = [ABOUT.format(modules=_either(row["modules"] for row in findings.experts))]
    blocks += ["## The experts", experts_table(findings)]
    blocks += [EXPERTS.format(ranks=_either(row["rank"] for row in findings.experts)), figures["experts"]]
    blocks += ["## What a merge leaves of the experts", *kept_tables(findings), KEPT, figures["kept"]]
    if "strengths" in figures:
        blocks += [STRENGTHS, figures["strengths"]]
    blocks += ["## What goes with the scores", *relation_tables(relations), figures["scores"]]
    return blocks


def _either(values: Iterable[int]) -> str:
    """`28, 42 or 210`: what it is in one model or another."""
    *others, largest = map(str, sorted(set(values)))
    return f"{', '.join(others)} or {largest}" if others else largest


def spread(values: Iterable[float | None], form: str = ".2f") -> str:
    """`0.31 ± 0.02`: mean and sample standard deviation; one value, or equal ones, without."""
    defined = [value for value in values if value is not None and not math.isnan(value)]
    if not defined:
        return MISSING
    mean = f"{statistics.fmean(defined):{form}}"
    mean = mean.lstrip("-+") if float(mean) == 0 else mean  # no minus before what rounds to nothing
    if len(set(defined)) == 1 or math.inf in defined:
        return mean
    return f"{mean} ± {statistics.stdev(defined):{form.lstrip('+')}}"


def by_group(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of every group, in the order of the rows."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    return groups


def _by_seed(rows: Sequence[Row], summarise: Callable[[list[Row]], float]) -> list[float]:
    """Reduce rows to one number per seed."""
    seeds = sorted({row["seed"] for row in rows})
    return [summarise([row for row in rows if row["seed"] == seed]) for seed in seeds]


def experts_table(findings: Findings) -> str:
    """The table of experts: one line per group."""

    def means(rows: Sequence[Row], key: str, form: str = ".2f") -> str:
        return spread(_by_seed(rows, lambda of_seed: statistics.fmean(row[key] for row in of_seed)), form)

    pairs, cross = by_group(findings.pairs), by_group([row for row in findings.cross if row["kind"] == "plain"])
    lines = []
    for group, rows in by_group(findings.experts).items():
        seeds = str(len({row["seed"] for row in rows}))
        cells = [group, seeds, means(rows, "norm"), spread(_by_seed(rows, _norm_ratio), ".1f")]
        cells += [means(rows, "first_over_last", ".1f"), means(rows, "stable_rank")]
        cells += [means(pairs.get(group, []), f"{of}_cosine", ".3f") for of in ("update", "a", "b")]
        plain = cross.get(group, [])
        weight, cosine = (means(plain, key) for key in ("weight", "cosine"))
        lines.append([*cells, f"{weight} ({cosine})" if plain else MISSING])
    heads = ["", "seeds", "norm", "largest / smallest norm", "s₁ / s_r", "stable rank"]
    heads += ["cosine of B A", "cosine of A", "cosine of B", "cross terms"]
    return format_markdown(heads, lines)


def _norm_ratio(rows: Sequence[Row]) -> float:
    norms = [row["norm"] for row in rows]
    return max(norms) / min(norms) if min(norms) > 0 else math.inf


def kept_tables(findings: Findings) -> list[str]:
    """A table a group, one line a method, at both strengths."""
    tables = []
    for group, rows in by_group(findings.merged).items():
        n_seeds = len({row["seed"] for row in rows})
        heads = [f"{group}, {n_seeds} seed{'s' if n_seeds > 1 else ''}", "seen avg", "retained", "strength", "length"]
        methods = {
            name: [row for row in rows if row["method"] == name] for name in dict.fromkeys(_column(rows, "method"))
        }
        lines = [_kept_line(name, of_method, n_seeds) for name, of_method in methods.items()]
        tables.append(format_markdown([*heads, "share left", "interference", "of no expert"], lines))
    return tables


def _column(rows: Sequence[Row], key: str) -> list[str]:
    return [row[key] for row in rows]


def _kept_line(method: str, rows: Sequence[Row], n_seeds: int) -> list[str]:
    variants = [[row for row in rows if bool(row["variant"]) is chosen] for chosen in (False, True)]

    def both(key: str, form: str) -> str:
        means = [spread((row[key] for row in variant), form).partition(" ")[0] for variant in variants]
        return " → ".join(dict.fromkeys(mean for mean in means if mean != MISSING)) or MISSING

    n = len({row["seed"] for row in rows})
    cells = [both("seen_avg", ".1f"), both("retained", ".2f"), both("factor", ".3g"), both("norm_over_mean", ".2f")]
    cells += [both("share_mean", ".2f"), both("interference", ".1f"), both("outside", ".2f")]
    return [escape_markdown(method) + ("" if n == n_seeds else f" (n = {n})"), *cells]


def relation_tables(relations: Sequence[Row]) -> list[str]:
    """What goes with the seen average over merged models, and with the retained gain over merged models and tasks."""
    cells = {(row["group"], row["scope"], row["quantity"]): row for row in relations}
    groups = list(by_group(relations))
    of_methods = [
        [title, *(format_rho(cells[group, "methods", key]) for group in groups)] for key, title in OF_METHODS.items()
    ]
    of_points = [
        [title, *(format_rho(cells[group, scope, key]) for group in groups for scope in SCOPES)]
        for key, title in OF_POINTS.items()
    ]
    n_methods = sorted({cells[group, "methods", "outside"]["n"] for group in groups})
    n_points = sorted({cells[group, "points", "share"]["n"] for group in groups})
    return [
        METHODS.format(sizes="; ".join(map(_describe_chance, n_methods))),
        format_markdown(["", *groups], of_methods),
        POINTS.format(sizes=_either(n_points)),
        format_markdown(["", *(f"{title}, {group}" for group in groups for title in SCOPES.values())], of_points),
    ]


def _describe_chance(n: int) -> str:
    """How many merged models there are, and what chance does with so many."""
    if n < FEWEST:
        return f"{n} merged models, which are too few"
    return f"{n} merged models (by chance beyond ±{chance_level(n):.2f} once in twenty times)"


def format_rho(row: Row) -> str:
    """A rank correlation with its deviation over seeds."""
    if math.isnan(row["rho"]):
        return MISSING
    return f"{row['rho']:+.2f}" + ("" if math.isnan(row["deviation"]) else f" ± {row['deviation']:.2f}")
