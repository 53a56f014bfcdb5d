"""The section on the base model before any expert is trained: how well it sees pictures and follows instructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.formats import escape_code, escape_markdown
from eval.report.tables import MISSING

SEES, OBEYS = 0.95, 0.90
MARK = "▼"


def format_base_section(bases: Sequence[Mapping[str, Any]]) -> str:
    """The section as Markdown; "" where nothing was measured. bases: `Context.bases`."""
    measured = [(_name(base), parts) for base in bases if (parts := _format_measured(base))]
    if not measured:
        return ""
    (name, _), *others = measured
    what = f"each of {len(measured)} bases" if others else f"the base{name}"
    if any(base.get("skills") for base in bases):
        title, met = "Can the base see and obey?", "pictures and dialogues"
        advice = " Where a task asks only for what is unmarked here, a low zero-shot score is more likely its "
        advice += "convention than its pictures."
    else:
        title, met, advice = "Can the base see?", "pictures", ""
    blocks = [f"## {title}\n\nMeasured on {what}, before any expert, on {met} that its training never had.{advice}\n"]
    for name, parts in measured:
        blocks += [*([f"### The base{name}\n"] if others else []), *parts]
    return "\n".join(blocks)


def _name(base: Mapping[str, Any]) -> str:
    name = f" {escape_code(base['name'])}" if base.get("name") else ""
    return name + (f" of {base['parameters'] / 1e6:.1f} million parameters" if base.get("parameters") else "")


def _format_measured(base: Mapping[str, Any]) -> list[str]:
    """What was measured on one base; empty where nothing was."""
    probe, heads, skills = (base.get(key) or {} for key in ("probe", "heads", "skills"))
    parts = [_format_sight(probe, heads)] if probe or heads else []
    return [*parts, *([_format_skills(skills)] if skills else [])]


def _format_sight(probe: Mapping[str, float], heads: Mapping[str, float]) -> str:
    """State how well the base sees, by the linear probe or else by its training heads; with a table of both."""
    accuracies = probe or heads
    what = "a linear probe on the frozen features" if probe else "the heads that the vision tower was trained with"
    below = [name for name, value in accuracies.items() if value < SEES]
    names = list(dict.fromkeys([*probe, *heads]))
    by_title = (("Linear probe", probe), ("Training heads", heads))
    lines = [(title, [_percent(values.get(name), SEES) for name in names]) for title, values in by_title if values]
    count = f"{len(accuracies) - len(below)} of {len(accuracies)}"
    head = f"**It sees** {count} concepts at {100 * SEES:.0f} % or more, by {what}"
    return f"{head}{_name_below(below, accuracies)}.\n\n{_split_table('Accuracy, %', names, lines)}"


def _format_skills(skills: Mapping[str, float]) -> str:
    each = {name: value for name, value in skills.items() if name != "all"}
    below = [name for name, value in each.items() if value < OBEYS]
    names = list(skills)
    lines = [("Right answers", [_percent(skills[name], OBEYS) for name in names])]
    head = f"**It obeys** in {len(each) - len(below)} of {len(each)} skills at {100 * OBEYS:.0f} % or more"
    return f"{head}{_name_below(below, each)}.\n\n{_split_table('Accuracy, %', names, lines)}"


def _name_below(below: Sequence[str], values: Mapping[str, float]) -> str:
    if not below:
        return ""
    worst = sorted(below, key=lambda name: values[name])
    return f" ({MARK} below: " + ", ".join(f"{escape_markdown(n)} {100 * values[n]:.1f}" for n in worst) + ")"


def _percent(value: float | None, threshold: float) -> str:
    if value is None:
        return MISSING
    return f"**{100 * value:.1f}** {MARK}" if value < threshold else f"{100 * value:.1f}"


def _split_table(head: str, names: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]], width: int = 10) -> str:
    """Tables of at most `width` columns, so that none is wider than the page."""
    tables = []
    count = -(-len(names) // width)
    columns = -(-len(names) // count)
    for start in range(0, len(names), columns):
        part = slice(start, start + columns)
        tables.append(
            "\n".join(
                [
                    f"| {head} | " + " | ".join(escape_markdown(name) for name in names[part]) + " |",
                    "| --- |" + " ---: |" * len(names[part]),
                    *(f"| {title} | " + " | ".join(cells[part]) + " |" for title, cells in lines),
                ]
            )
        )
    return "\n\n".join(tables) + "\n"
