"""General benchmarks as tables: what lmms-eval measured here, and beside it what the paper's table 3 gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from eval.general.lmms_results import GeneralResult
from eval.report.results import Context
from eval.report.tables import REFERENCES, Cell, Column, Row, Table
from eval.settings import Bootstrap
from eval.statistics import estimate_interval, resample_scores
from robustmerge.stage.records import Score
from robustmerge.stage.settings import UserError

NOTES = {
    "pope_f1": (
        "POPE: F1 of \"yes\" as lmms-eval has it (an answer that is neither yes nor no counts nowhere), and accuracy "
        "(such an answer is wrong). The paper does not say which of the two its POPE figure is, nor over which of the "
        "three question sets; LLaVA reports F1, and lmms-eval's pope pools them. Questions that share a picture "
        "are drawn apart, as lmms-eval's files do not name it: the intervals are somewhat too narrow."
    ),
    "mme_perception": "MME: points of perception, at most 2000; resampled by picture, within the ten categories.",
    "mmbench_circular": (
        "MMBench: dev set, a question counts if it is right in every order of its options; answers are read by "
        "lmms-eval's rules (mmbench_en_dev_static). The published script writes a submission for the benchmark's "
        "server instead, which asks a language model about answers that it cannot read."
    ),
}  # fmt: skip
LOOK = "asked only {n} of {whole} questions: a look, not a result"


def general_table(rows: Sequence[GeneralResult], bootstrap: Bootstrap | None = None) -> Table | None:
    """Scores with 95 % intervals where the answers give one; POPE has two columns. None without any score."""
    titles = dict.fromkeys(title for row in rows for title in row.scores)
    if not titles:
        return None
    columns: list[Column] = []
    for title in titles:
        pope = any(row.scores[title].metric == "pope_f1" for row in rows if title in row.scores)
        kinds = ("F1", "accuracy") if pope else ("",)
        columns += [Column(f"{title} {kind}".strip(), f"{title} {kind}".strip(), (title,), "") for kind in kinds]
    filled = [Row(row.title, row.kind, tuple(_cell(row, c, bootstrap or Bootstrap()) for c in columns)) for row in rows]
    title = "General benchmarks, by lmms-eval; in %, MME in points"
    return Table("general", title, tuple(columns), tuple(filled), bars=False)


def _cell(row: GeneralResult, column: Column, bootstrap: Bootstrap) -> Cell:
    score = row.scores.get(column.tasks[0])
    if score is None or score.value is None:
        return Cell()
    if column.key.endswith(" accuracy") and score.metric == "pope_f1":
        score = dataclasses.replace(score, value=score.parts["accuracy"], aggregate="mean", statistics={})
    return _with_interval(score, bootstrap)


def _with_interval(score: Score, bootstrap: Bootstrap) -> Cell:
    """The value of a score, with its interval where its answers give one."""
    if not score.values:
        return Cell(f"{score.value:.1f}", score.value)
    draws = resample_scores([score], list(score.values), score.task, bootstrap)[:, 0]
    found = estimate_interval(score.value / 100, draws)
    return Cell(f"{found.value:.1f} ({found.low:.1f}–{found.high:.1f})", found.value, found.low, found.high)


def general_notes(rows: Sequence[GeneralResult]) -> list[str]:
    """What a reader must know of the scores shown; limited runs first."""
    scores = [(title, score) for row in rows for title, score in row.scores.items()]
    looks = {t: LOOK.format(n=f"{s.n_expected:,}", whole=f"{s.n_asked:,}") for t, s in scores if s.n_asked}
    metrics = dict.fromkeys(score.metric for _, score in scores)
    reasons = {f"{title}: {score.reason}." for title, score in scores if score.reason}
    counted = [
        f"{row.title}, {title}: of {s.n_expected:,} answers {s.n_empty:,} empty, {s.n_unparsed:,} of another form than "
        f"asked for, {s.n_failed:,} failed."
        for row in rows
        for title, s in row.scores.items()
        if s.n_scored < s.n_expected
    ]
    told = [f"{title}: {look}." for title, look in looks.items()]
    return [*told, *(NOTES[metric] for metric in metrics if metric in NOTES), *sorted(reasons), *counted]


def general_tables(context: Context) -> dict[str, Table]:
    """Both tables of a report, by name; none where nothing was asked."""
    table = general_table(context.general, context.bootstrap)
    if table is None:
        return {}
    titles = {row.name: row.title for row in context.general if row.name}
    return {"general": table, "general_published": published_general_table(context.published, titles)}


def published_general_table(path: Path, titles: Mapping[str, str] | None = None) -> Table:
    """The paper's table 3. titles: how rows are called, by name. Raises UserError if the file has no such table."""
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["table_3_general_benchmarks"]
        heads = [str(head) for head in found["columns"]]
        rows = {str(name): [float(value) for value in values] for name, values in found["rows"].items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no table 3 of published values: {error!r}") from error
    columns = tuple(Column(head, f"{head} (published)", (head,), "") for head in heads)
    filled = []
    for name, values in rows.items():
        kind = "published_reference" if name in REFERENCES else "published"
        filled.append(Row((titles or {}).get(name, name), kind, tuple(Cell(f"{value:.1f}", value) for value in values)))
    title = "Published values (table 3 of the paper; LLaVA-1.5-7B), in %, MME in points: not measured here"
    return Table("general_published", title, columns, tuple(filled), bars=False)
