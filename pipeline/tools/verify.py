"""Show what prepared data holds, so that a person can see whether it is what was meant: counts, wordings, pictures."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from data_prep.settings import SPLITS, TaskData
from data_prep.summary import MOST_TEXTS, OTHERS, Summary, summarise
from eval.report.contact_sheet import draw_contact_sheet
from eval.settings import Task
from pipeline.plan import Plan
from pipeline.program import command
from pipeline.terminal import format_path
from robustmerge.stage.address import REPOSITORY, Address
from robustmerge.stage.files import write_atomically
from robustmerge.stage.json_stream import iterate_records
from robustmerge.stage.records import parse_example
from robustmerge.stage.settings import UserError
from robustmerge.stage.tables import format_columns
from robustmerge.stage.text import one_line, shorten
from robustmerge.stage.yaml_files import read_yaml

EXPECTED = REPOSITORY / "data_prep" / "expected.yaml"
MOST_SHOWN = 5  # wordings, answers and categories
LETTERS = 72  # of each
TITLES = ("split", "rows", "left out", "expected", "where the expected number is from", "sha256")


def verify(plan: Plan) -> None:
    """Print what every task's data holds, and draw a sheet of pictures. Raises UserError if some is not prepared."""
    addresses = {task.name: plan.data(task) for task in plan.config.tasks}
    if missing := [task.title for task in plan.config.tasks if not addresses[task.name].is_complete()]:
        raise UserError(f"not prepared yet: {', '.join(missing)}; run {command('prepare')}")
    lines: list[str] = []
    for task in plan.config.tasks:
        lines += _describe(task, plan.config.data(task), addresses[task.name])
        if (other := _find_other(plan, task)) is not None:
            lines += _compare_ways(addresses[task.name], other)
        lines.append("")
    print("\n".join(lines))
    folder = plan.root / "verify"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "verify.txt", "\n".join(lines))
    tests = [(task, addresses[task.name].path / "test.jsonl") for task in plan.config.tasks]
    if sheet := draw_contact_sheet([(task, path) for task, path in tests if path.stat().st_size]):
        write_atomically(folder / "pictures.png", sheet)
        print(f"pictures with their questions and answers: {format_path(folder / 'pictures.png')}")


def _describe(task: Task, settings: TaskData, address: Address) -> Iterator[str]:
    """What the data of a task holds, line by line."""
    summaries = {split: summarise(address.path, split) for split in SPLITS}
    yield f"{task.title}  ({address.short}, {_name_source(settings)})"
    rows = [_format_split(split, summary, find_expected(settings, split)) for split, summary in summaries.items()]
    yield from (f"  {line}" for line in format_columns(TITLES, rows, text=(0, 3, 4, 5)))
    for split in ("train", "test"):
        if summaries[split].rows:
            yield from (f"  {split}: {line}" for line in _describe_split(summaries[split]))


def _find_other(plan: Plan, task: Task) -> Address | None:
    """The same task's data by the other way, questions or release, if that is prepared too."""
    settings = plan.config.data(task)
    if settings.release is None:
        return None
    other = replace(task, data={**task.data, "source": "questions" if settings.source == "release" else "release"})
    try:
        address = Plan(replace(plan.config, tasks=(other,))).data(other)
    except UserError:  # its files are not there
        return None
    return address if address.is_complete() else None


def _compare_ways(one: Address, other: Address) -> Iterator[str]:
    """How many rows two ways to the same data have in common."""
    for split in ("train", "test"):
        rows, others = (Counter(_identify_rows(address.path / f"{split}.jsonl")) for address in (one, other))
        if rows and others:
            same = (rows & others).total()
            yield (
                f"  {split}: {same:,} of {rows.total():,} rows have the question, answer and picture of a row of "
                f"{other.short}, which has {others.total():,}"
            )


def _identify_rows(path: Path) -> Iterator[bytes]:
    for element in iterate_records(path, "a prepared split"):
        example = parse_example(element.value)
        asked = f"{example.text}\0{example.answer}\0{example.image}"
        yield hashlib.sha256(asked.encode()).digest()[:16]


def _name_source(settings: TaskData) -> str:
    if settings.generator is not None:
        return "drawn here"
    return "from the owners' release" if settings.source == "release" else "from question files"


def find_expected(settings: TaskData, split: str) -> Mapping[str, Any]:
    """What is known of the number of rows. None of it holds for drawn data, or for a sample."""
    if settings.generator is not None or getattr(settings.sample, split):
        return {}
    return _read_expected().get(settings.source, {}).get(settings.task, {}).get(split, {})


@cache
def _read_expected() -> dict[str, Any]:
    return read_yaml(EXPECTED, "the expected numbers of rows")


def name_expected(expected: Mapping[str, Any]) -> str:
    """Where an expected number is from, and whether anybody has counted it; "" without one."""
    return f"{expected['from']}{'' if expected['verified'] else ' (not verified)'}" if expected else ""


def _format_split(split: str, summary: Summary, expected: Mapping[str, Any]) -> list[str]:
    return [
        split,
        f"{summary.rows:,}",
        f"{summary.left_out:,}",
        _compare(summary, expected),
        name_expected(expected),
        summary.sha256[:12],
    ]


def _compare(summary: Summary, expected: Mapping[str, Any]) -> str:
    if not expected:
        return "not known"
    difference = summary.found - expected["rows"]
    return f"{expected['rows']:,}: {'as many' if not difference else f'{difference:+,}'}"


def _describe_split(summary: Summary) -> Iterator[str]:
    if summary.rejected:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in summary.rejected.items())
        yield f"{summary.coverage:.1%} of the rows can be used; left out: {kinds} (rejected.jsonl)"
    yield f"questions begin with: {_list_common(summary.openings, summary.rows)}"
    if any(summary.endings):
        yield f"questions end in a line: {_list_common(summary.endings, summary.rows, '(none)')}"
    different = f"more than {MOST_TEXTS:,}" if OTHERS in summary.answers else f"{len(summary.answers):,}"
    yield f"answers: {_list_common(summary.answers, summary.rows)}; {different} different"
    if len(summary.references) > 1 or 1 not in summary.references:
        counts = ", ".join(f"{number} ({rows:,} rows)" for number, rows in sorted(summary.references.items()))
        yield f"accepted answers a question: {counts}"
    if summary.categories:
        yield f"categories: {_list_common(summary.categories, summary.rows)}"
    if summary.dialogues:
        yield f"dialogues of several turns: {summary.dialogues:,}"
    formats = ", ".join(f"{suffix} {count:,}" for suffix, count in summary.suffixes.most_common())
    yield f"pictures: {len(summary.sizes):,} ({formats or 'none'}); {summary.describe_sizes()}"
    if summary.without_picture:
        yield f"questions without a picture: {summary.without_picture:,}"


def _list_common(counts: Counter[str], total: int, nothing: str = "(empty)") -> str:
    """The commonest texts with their shares."""
    common = [
        f"{shorten(one_line(text), LETTERS) or nothing} {count / total:.0%}"
        for text, count in counts.most_common(MOST_SHOWN)
    ]
    return ", ".join(common) + (", ..." if len(counts) > MOST_SHOWN else "")
