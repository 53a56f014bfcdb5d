"""The section on how the experts were trained, and whether each learned. It only reports: nothing is chosen by it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from eval.report.formats import FormatTable, escape_markdown
from eval.report.results import Context, ResultGroup, SourceResult, Training
from eval.report.tables import Cell, Column, Row, Table
from eval.settings import Task

MARK = "▼"
COLUMNS = (
    Column("steps", "Steps"),
    Column("samples", "Samples"),
    Column("left_out", "Rows left out"),
    Column("first_loss", "First loss", heading="Loss"),
    Column("last_loss", "Last loss", heading="Loss"),
    Column("fell_by", "Fell by, %", heading="Loss"),
    Column("alone", "Alone", heading="Score"),
    Column("zero_shot", "Zero-shot", heading="Score"),
    Column("learned", "Learned", is_text=True),
)


@dataclass(frozen=True)
class Trained:
    """An expert, or the multi-task model, by its trainings with all seeds.

    label: title of its task, or its own; point: what tells it from others of a sweep. scores: of each training, its
    own and that of its base; None where one of them is missing.
    """

    label: str
    point: str
    kind: str
    trainings: tuple[Training, ...]
    scores: tuple[tuple[float, float] | None, ...]

    @property
    def title(self) -> str:
        """The title of its row, unique."""
        return f"{self.label} ({self.point})" if self.point else self.label

    @property
    def doubts(self) -> list[str]:
        """Why trainings may have taught it nothing; empty where all of them did."""
        flat = sum(training.fell_by <= 0 for training in self.trainings)
        weak = sum(pair is not None and pair[0] <= pair[1] for pair in self.scores)
        of = f" in {{}} of {len(self.trainings)} trainings" if len(self.trainings) > 1 else ""
        doubts = [(flat, "the loss did not fall"), (weak, "the score is not above zero-shot's")]
        return [words + of.format(count) for count, words in doubts if count]


def list_trained(groups: Sequence[ResultGroup], context: Context) -> list[Trained]:
    """Every model that was trained here and whose losses are at hand: experts by task, then the multi-task model."""
    zero_shots = [group.first for group in groups if group.kind == "zero_shot"]
    return [one for group in groups for one in _list_of_group(group, context, zero_shots)]


def _list_of_group(group: ResultGroup, context: Context, zero_shots: Sequence[SourceResult]) -> Iterator[Trained]:
    point = re.sub(r"[()]", "", group.title.removeprefix(group.first.title)).strip()
    of_tasks: list[tuple[str, str, Sequence[Task]]] = [(task.name, task.title, [task]) for task in context.seen]
    for name, label, tasks in (*of_tasks, (group.kind, group.first.title, context.seen)):
        results = [result for result in group.results if name in result.trainings]
        if results:
            trainings = tuple(result.trainings[name] for result in results)
            scores = tuple(_compare(result, zero_shots, tasks) for result in results)
            yield Trained(label, point, group.kind, trainings, scores)


def _compare(result: SourceResult, bases: Sequence[SourceResult], tasks: Sequence[Task]) -> tuple[float, float] | None:
    """The mean scores of a model and of its base; None if a score is missing, or not exactly one base fits."""
    its = [base for base in bases if base.facet in ("", result.facet) and base.swept in ("", result.swept)]
    if len(its) != 1:
        return None
    scores = [one.scores[task.name].value for one in (result, *its) for task in tasks if task.name in one.scores]
    values = [value for value in scores if value is not None]
    return (fmean(values[: len(tasks)]), fmean(values[len(tasks) :])) if len(values) == 2 * len(tasks) else None


def training_table(trained: Sequence[Trained]) -> Table:
    """A row for each expert and for the multi-task model, means over seeds; with rows left out, if any were."""
    some = any(training.left_out for one in trained for training in one.trainings)
    shown = [index for index, column in enumerate(COLUMNS) if some or column.key != "left_out"]
    rows = []
    for one in trained:
        cells = list(_list_cells(one))
        rows.append(Row(one.title, one.kind, tuple(cells[index] for index in shown)))
    title, columns = "The training of every expert; means over seeds", tuple(COLUMNS[index] for index in shown)
    return Table("training", title, columns, tuple(rows), head="Expert", bars=False)


def _list_cells(one: Trained) -> Iterator[Cell]:
    pairs = [pair for pair in one.scores if pair is not None]
    for values, layout in (
        ([len(training.losses) for training in one.trainings], ",.0f"),
        ([training.samples for training in one.trainings], ",.0f"),
        ([training.left_out for training in one.trainings], ",.0f"),
        ([training.first for training in one.trainings], ".3g"),
        ([training.last for training in one.trainings], ".3g"),
        ([training.fell_by for training in one.trainings], ".1f"),
        ([alone for alone, _ in pairs], ".1f"),
        ([base for _, base in pairs], ".1f"),
    ):
        yield Cell(format(fmean(values), layout), fmean(values)) if values else Cell()
    yield Cell(f"no {MARK}" if one.doubts else "yes")


def format_training_section(
    trained: Sequence[Trained], tables: Mapping[str, Table], figure: str, format_table: FormatTable
) -> str:
    """The section as Markdown; "" where no losses are at hand. figure: of the losses."""
    if not trained:
        return ""
    doubtful = [f"- {MARK} {escape_markdown(one.title)}: {' and '.join(one.doubts)}." for one in trained if one.doubts]
    lines = [f"{len(trained) - len(doubtful)} of {len(trained)} did.", "\n\n" + "\n".join(doubtful) if doubtful else ""]
    explained = (
        "An expert has learned if the mean loss over the last tenth of its steps is below that over the first tenth, "
        "and its score on its own task, as in the table of scores, above zero-shot's. Of the multi-task model that is "
        "the average over the seen tasks. Nothing is chosen by this."
    )
    return (
        f"## Did every expert learn?\n\n{''.join(lines)}\n\n{explained}\n\n{figure}\n{format_table(tables['training'])}"
    )
